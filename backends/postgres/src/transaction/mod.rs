//! Locks and fences in a transaction of the caller's own, so that the lock, the check and the work are committed together or not
//! at all.
//!
//! Every function takes the caller's transaction: a [`tokio_postgres::Transaction`](::tokio_postgres::Transaction), or with the
//! feature `sqlx` a `sqlx::Transaction<'_, sqlx::Postgres>`. A savepoint is one, too.
//!
//! An error leaves nothing behind but a transaction that has failed: PostgreSQL carries out nothing more in it, and rolls it back
//! even where it is told to commit. Roll it back, or the savepoint around the call; [`Conflict`] says which errors are worth
//! another try.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let Some(server) = ringfence_servers::Postgres::start().await else { return Ok(()) };
//! # server.psql("CREATE TABLE orders (id bigint PRIMARY KEY, state text); INSERT INTO orders VALUES (42, 'new')").await;
//! # let stream = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await?;
//! # let config: tokio_postgres::Config = server.url().parse()?;
//! # let (mut client, connection) = config.connect_raw(stream, tokio_postgres::NoTls).await?;
//! # tokio::spawn(connection);
//! # let locks = ringfence::Locks::connect(&server.url()).await?;
//! use ringfence::postgres::{RowLock, Rows, fence_in, lock_row};
//!
//! let guard = locks.lock("orders/42").acquire().await?;              // of any backend
//! let mut tx = client.transaction().await?;
//! fence_in(&mut tx, "orders/42", guard.token()).await?;              // fails for a token that was overtaken
//! let orders = Rows::new("public", "orders", "id")?;
//! assert!(lock_row(&mut tx, &orders, 42, RowLock::UPDATE).await?);   // against those who take no locks
//! tx.execute("UPDATE orders SET state = 'charged' WHERE id = 42", &[]).await?;
//! tx.commit().await?;                                                // the check and the work, or neither
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Cancel safety
//! A future that is dropped may have locked or raised what it was to. It is undone with the transaction.

mod failure;
mod rows;
#[cfg(feature = "sqlx")]
mod sqlx;
mod statements;
mod tokio_postgres;

use std::time::Duration;

use ringfence_core::{Error, ErrorKind, FencingToken, LockName, NAME_MAX, Result};

use self::failure::About;
pub use self::failure::Conflict;
pub use self::rows::{Key, RowLock, Rows, fence_column, lock_row, lock_rows};
use self::statements::{Statements, Value};
use crate::schema::Schema;

/// A transaction of the caller's: see the [module](self).
///
/// Sealed: it is implemented for the transactions of `tokio-postgres` and, with the feature `sqlx`, of `sqlx`.
pub trait Transaction: Statements {}

/// What the statements after a lock can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a snapshot is taken before the lock or after it")]
pub enum Snapshot {
    /// Everything that the last holder committed: in READ COMMITTED each statement takes a snapshot of its own.
    AfterLock,
    /// Maybe not what the last holder committed: in REPEATABLE READ and SERIALIZABLE a transaction keeps the snapshot of its
    /// first statement, and that is older than the lock even if this was the first. Lock in a READ COMMITTED transaction, or
    /// read what you modify by [`lock_rows`], which fails where a row has changed since.
    BeforeLock,
}

/// [`Schema::xact_lock`] of the schema `ringfence`.
pub async fn xact_lock(
    tx: &mut impl Transaction,
    name: impl TryInto<LockName, Error = Error>,
) -> Result<Snapshot> {
    Schema::default().xact_lock(tx, name).await
}

/// [`Schema::try_xact_lock`] of the schema `ringfence`.
pub async fn try_xact_lock(
    tx: &mut impl Transaction,
    name: impl TryInto<LockName, Error = Error>,
) -> Result<Option<Snapshot>> {
    Schema::default().try_xact_lock(tx, name).await
}

/// [`Schema::fence_in`] of the schema `ringfence`.
pub async fn fence_in(tx: &mut impl Transaction, resource: &str, token: FencingToken) -> Result<()> {
    Schema::default().fence_in(tx, resource, token).await
}

/// From here to the end of the transaction, no lock is waited for any longer than this, be it by name, of a row, or of a
/// resource's mark: the wait fails with [`Conflict::Busy`]. It is PostgreSQL's `lock_timeout`, set for this transaction alone. One
/// round trip.
///
/// Errors with [`ErrorKind::InvalidRequest`] for zero, which would be no limit, and above 24 days.
pub async fn lock_timeout(tx: &mut impl Transaction, limit: Duration) -> Result<()> {
    let millis = limit.as_nanos().div_ceil(1_000_000);
    if !(1..=i32::MAX as u128).contains(&millis) {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("a lock_timeout of {limit:?} is out of range: it is from 1 ms to 24 days"),
        ));
    }
    let set = "SELECT pg_catalog.set_config('lock_timeout', $1, true)".to_owned();
    tx.column(set, vec![Value::Text(format!("{millis}ms"))])
        .await
        .map_err(|failure| failure.explain(About::Ours).about("lock_timeout"))?;
    Ok(())
}

/// What is in the schema is the same from any language: `SELECT ringfence.xact_lock('orders/42')`.
impl Schema {
    /// Waits for a lock and holds it until the transaction, or the savepoint around it, ends. One round trip.
    ///
    /// Those who wait are served by the server, in their order. It excludes the same name in other transactions and in
    /// `?recipe=advisory` of the same database; leases, the recipe where nothing is said, know nothing of it. It has no token and
    /// needs none: what is written in the transaction is committed with the lock held, or not at all.
    ///
    /// Where the transaction's snapshot is older than the lock, that is the answer, and a warning in the log of both sides.
    ///
    /// Errors with [`Conflict::Busy`] after the [`lock_timeout`], with [`Conflict::Deadlock`], with [`ErrorKind::Refused`] where the
    /// schema is missing or the role has no right to it, and with [`ErrorKind::InvalidName`] before anything is sent.
    pub async fn xact_lock(
        &self,
        tx: &mut impl Transaction,
        name: impl TryInto<LockName, Error = Error>,
    ) -> Result<Snapshot> {
        let name = name.try_into()?;
        let call = "SELECT pg_catalog.current_setting('transaction_isolation') FROM @schema@.xact_lock($1)";
        let locked = self.lock(tx, call, &name).await?;
        locked.ok_or_else(|| Error::new(ErrorKind::Bug, "a lock was granted without an answer"))
    }

    /// Takes a lock if it is free: `None` if somebody else has it, and the transaction goes on without. Otherwise as
    /// [`Self::xact_lock`], and it never waits. One round trip.
    pub async fn try_xact_lock(
        &self,
        tx: &mut impl Transaction,
        name: impl TryInto<LockName, Error = Error>,
    ) -> Result<Option<Snapshot>> {
        let name = name.try_into()?;
        let call = "SELECT CASE WHEN locked THEN pg_catalog.current_setting('transaction_isolation') END \
                    FROM @schema@.try_xact_lock($1) AS locked";
        self.lock(tx, call, &name).await
    }

    /// Makes a lock call that answers with the isolation of the transaction, or with NULL.
    async fn lock(&self, tx: &mut impl Transaction, call: &str, name: &LockName) -> Result<Option<Snapshot>> {
        let answer = tx.column(self.place(call), vec![Value::Text(name.as_str().to_owned())]).await;
        let answer =
            answer.map_err(|failure| failure.explain(About::Ours).about(format_args!("lock {name}")))?;
        Ok(answer.into_iter().flatten().next().map(|isolation| {
            if ["repeatable read", "serializable"].contains(&&*isolation) {
                tracing::warn!(%name, isolation, "the snapshot of this transaction is older than its lock");
                Snapshot::BeforeLock
            } else {
                Snapshot::AfterLock
            }
        }))
    }

    /// Fences a guard of any backend into the transaction: admits its token to a resource until the transaction ends, so that the
    /// check of the token and the work are committed together. One round trip, and a row that is written.
    ///
    /// It raises the resource's mark, the highest token that the resource has seen, and keeps it locked: another transaction that
    /// is fenced into the resource waits for this one, and afterwards a lower token is refused. Fence in before you read what you
    /// are about to modify. A resource is what the tokens of one lock guard, and has the name of your choice: 1 to 255 bytes of
    /// UTF-8 without control characters. In a [fenced table](crate::fence_table()) it is a row, as `public.orders/42`.
    ///
    /// A holder that is paused inside its transaction keeps the next one waiting: `idle_in_transaction_session_timeout` of the
    /// server ends it.
    ///
    /// Errors with [`ErrorKind::Stale`] for a token below the mark, with [`ErrorKind::TokenCollision`] for one that has the mark's
    /// sequence and another nonce, with a [`Conflict`] where other transactions are in the way, and as [`Self::xact_lock`].
    pub async fn fence_in(
        &self,
        tx: &mut impl Transaction,
        resource: &str,
        token: FencingToken,
    ) -> Result<()> {
        if LockName::new(resource).is_err() {
            let shown: String = resource.chars().take(100).collect();
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{shown:?} is no resource: it has 1 to {NAME_MAX} bytes of UTF-8 without control characters"
                ),
            ));
        }
        let sequence = i64::try_from(token.sequence()).expect("sequences stay below 2^63");
        let values = vec![
            Value::Text(resource.to_owned()),
            Value::Integer(sequence),
            Value::Text(token.nonce().to_string()),
        ];
        let admit = self.place("SELECT NULL::text FROM @schema@.admit($1, $2, $3)");
        tx.column(admit, values).await.map_err(|failure| {
            failure.explain(About::Ours).about(format_args!("fencing {token} into {resource}"))
        })?;
        Ok(())
    }
}
