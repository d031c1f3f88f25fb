//! Optimistic updates: no lock, and whoever comes second has to look again.

use std::num::NonZeroU32;
use std::time::Duration;

use ringfence_core::{Backoff, Error, ErrorKind, Result};

use crate::failure::{Conflict, explain};
use crate::names::{Key, Name, Rows};
use crate::statement::{Sql, Transaction, Value};

/// The pauses of [`retry_on_conflict`]: about as long as a short transaction, and never so long that a person would notice.
const FIRST_PAUSE: Duration = Duration::from_millis(4);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// A column that counts the changes of its row, for updates that go wrong when somebody else was quicker.
///
/// Where a conflict is rare and the work can be done again, this takes the place of a lock: nobody waits, and nobody has to hold
/// anything. Every writer has to count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionColumn {
    rows: Rows,
    version: Name,
}

impl VersionColumn {
    /// The column of versions of these rows, of integers and NOT NULL.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no name of a column.
    pub fn new(rows: Rows, version: &str) -> Result<Self> {
        Ok(Self { rows, version: Name::new(version)? })
    }

    /// Raises the row's version by one if it is still what was read, and returns the new one. The row is locked until the
    /// transaction ends: change in the same transaction what there is to change.
    ///
    /// It is `UPDATE … SET version = version + 1 WHERE id = … AND version = …`. One round trip, and another one to refuse.
    ///
    /// Errors with [`Conflict::Changed`] where the row has another version: roll back, read again, and decide again, as
    /// [`retry_on_conflict`] does. With another [`Conflict`] where other transactions are in the way, with
    /// [`ErrorKind::InvalidRequest`] where there is no such row (any more), more than one, or no such column, and as [`explain`] has
    /// them.
    pub async fn compare_and_set(
        &self,
        tx: &mut impl Transaction,
        key: impl Into<Key>,
        expected: i64,
    ) -> Result<i64> {
        let key = key.into();
        let about = |error: Error| error.about(self.rows.shown(&key));
        let failed = |error| about(explain(error));
        let refused = |why: &str| Err(about(Error::new(ErrorKind::InvalidRequest, why)));
        let Some(next) = expected.checked_add(1) else {
            return refused("there is no version after 2^63 - 1");
        };
        let set = self.rows.table(Sql::new(tx.dialect(), "UPDATE ")).text(" SET ").name(&self.version);
        let set = set.text(" = ").value(Value::Integer(next)).text(" WHERE ");
        let set = self.rows.has_key(set, &key).text(" AND ").name(&self.version).text(" = ");
        match tx.execute(set.value(Value::Integer(expected))).await.map_err(failed)? {
            0 => {}
            1 => return Ok(next),
            _ => {
                return refused(
                    "several rows have this key: roll back, and name a column that tells rows apart",
                );
            }
        }
        let look = Sql::new(tx.dialect(), "SELECT ").integer(&self.version).text(", NULL FROM ");
        let look = self.rows.has_key(self.rows.table(look).text(" WHERE "), &key).for_update();
        match tx.marks(look).await.map_err(failed)?.first() {
            Some(seen) => Err(about(
                Conflict::Changed
                    .explain(&format!("it was read at version {expected} and has {seen} now: read it again")),
            )),
            None => refused("there is no such row"),
        }
    }
}

/// Runs a transaction again from its beginning while it fails with a [`Conflict`], this many times in all at most, with pauses
/// that grow and are drawn at random: at most 4 ms after the first time, twice as much after each, and never above 250 ms.
///
/// The body begins a transaction, reads, decides and commits, each time anew; what it did in the transaction that failed is undone,
/// what it did elsewhere is not. Let errors of `sqlx` pass through [`explain`], and commit by [`commit`](crate::commit()), so that
/// conflicts are told from everything else: any other error is returned at once.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let file = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.path().join("shop.db")).create_if_missing(true);
/// # let pool = sqlx::SqlitePool::connect_with(file).await?;
/// # sqlx::query("CREATE TABLE stock (id INTEGER PRIMARY KEY, left_over INTEGER, version BIGINT)").execute(&pool).await?;
/// # sqlx::query("INSERT INTO stock VALUES (7, 3, 1)").execute(&pool).await?;
/// use ringfence_sql::{Rows, VersionColumn, commit, explain, retry_on_conflict};
///
/// let stock = VersionColumn::new(Rows::new("stock", "id")?, "version")?;
/// retry_on_conflict(5.try_into()?, || async {
///     let mut tx = pool.begin().await.map_err(explain)?;
///     let read = sqlx::query_as("SELECT version, left_over FROM stock WHERE id = 7").fetch_one(&mut *tx).await;
///     let (version, left_over): (i64, i64) = read.map_err(explain)?;
///     stock.compare_and_set(&mut tx, 7, version).await?;
///     let write = sqlx::query("UPDATE stock SET left_over = ? WHERE id = 7").bind(left_over - 1);
///     write.execute(&mut *tx).await.map_err(explain)?;
///     commit(tx).await
/// })
/// .await?;
/// # let left: (i64,) = sqlx::query_as("SELECT left_over FROM stock").fetch_one(&pool).await?;
/// # assert_eq!(left.0, 2);
/// # Ok(()) }
/// ```
///
/// # Cancel safety
/// That of the body: a transaction that is dropped is rolled back, unless its commit is under way.
pub async fn retry_on_conflict<T, F: Future<Output = Result<T>>>(
    tries: NonZeroU32,
    mut body: impl FnMut() -> F,
) -> Result<T> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    for number in 1.. {
        let error = match body().await {
            Err(error) if Conflict::of(&error).is_some() => error,
            done => return done,
        };
        if number == tries.get() {
            return Err(error.about(format_args!("given up after {tries} tries")));
        }
        tracing::debug!(%error, number, "a transaction has a conflict and is run again");
        tokio::time::sleep(backoff.pause()).await;
    }
    unreachable!("it returns with the last try at the latest")
}
