//! Marks in a table of their own.

use ringfence_core::{Error, ErrorKind, FencingToken, LockName, NAME_MAX, Result};

use crate::failure::explain;
use crate::mark::values;
use crate::names::Name;
use crate::statement::{Dialect, Sql, Transaction, Value};

/// A table of marks, beside the tables that they guard: one row for each resource, with the highest token that it has seen.
///
/// A resource is what the tokens of one lock guard, and has the name of your choice: 1 to 255 bytes of UTF-8 without control
/// characters, compared byte by byte. Its row stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideTable {
    name: Name,
}

impl SideTable {
    /// The table of this name, where the database looks for names without a schema: `ringfence_fences`, where nothing speaks for another.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no name: without a character or of more than 63 bytes, or with NUL.
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self { name: Name::new(name)? })
    }

    /// The statement that makes the table, if it is not there: for your migrations.
    pub fn create_statement(&self, dialect: Dialect) -> String {
        // Names are compared byte by byte: with a collation, those that differ in case, in accents or in spaces at the end would
        // share a mark.
        let columns = match dialect {
            Dialect::Postgres => {
                " (resource text COLLATE \"C\" PRIMARY KEY, sequence bigint NOT NULL, nonce text COLLATE \"C\" NOT NULL)"
            }
            Dialect::MySql => {
                " (resource VARBINARY(255) PRIMARY KEY, sequence BIGINT NOT NULL, nonce VARBINARY(16) NOT NULL) ENGINE = InnoDB"
            }
            Dialect::Sqlite => {
                " (resource TEXT PRIMARY KEY, sequence INTEGER NOT NULL, nonce TEXT NOT NULL) WITHOUT ROWID"
            }
        };
        Sql::new(dialect, "CREATE TABLE IF NOT EXISTS ").name(&self.name).text(columns).into_text()
    }

    /// Makes the table, if it is not there. Give it a transaction of its own, and commit that: MySQL and MariaDB commit whatever
    /// stands in it before. One round trip.
    ///
    /// Errors as [`explain`] has them.
    pub async fn create(&self, tx: &mut impl Transaction) -> Result<()> {
        let create = Sql::new(tx.dialect(), &self.create_statement(tx.dialect()));
        tx.execute(create)
            .await
            .map_err(|error| explain(error).about(format_args!("table {}", self.name)))?;
        Ok(())
    }

    /// Admits a token to a resource until the transaction ends: raises the resource's mark to it and keeps it locked, or refuses.
    ///
    /// Another transaction that admits to the resource waits for this one, and afterwards a lower token is refused. Admit before you
    /// read what you are about to modify. Admitting the same token again changes nothing. One round trip, on MySQL and MariaDB two;
    /// another one to refuse.
    ///
    /// A holder that is paused in its transaction keeps the next one waiting: give the server a limit for that
    /// (`idle_in_transaction_session_timeout`; `idle_transaction_timeout` of MariaDB; SQLite has none), and those who wait another
    /// (`lock_timeout`; `innodb_lock_wait_timeout`; SQLite's busy timeout).
    ///
    /// Errors with [`ErrorKind::Stale`] for a token below the mark, with [`ErrorKind::TokenCollision`] for one that has the mark's
    /// sequence and another nonce, with a [`Conflict`](crate::Conflict) where other transactions are in the way, with
    /// [`ErrorKind::InvalidRequest`] for what is no name of a resource, or without the table, and as [`explain`] has them.
    pub async fn admit(&self, tx: &mut impl Transaction, resource: &str, token: FencingToken) -> Result<()> {
        if LockName::new(resource).is_err() {
            let shown: String = resource.chars().take(100).collect();
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{shown:?} is no resource: it has 1 to {NAME_MAX} bytes of UTF-8 without control characters"
                ),
            ));
        }
        let about = |error: Error| error.about(format_args!("fencing {token} into {resource}"));
        let failed = |error| about(explain(error));
        let raised = tx.execute(self.raise(tx.dialect(), resource, token)).await.map_err(failed)?;
        // MySQL has no condition there: what it counts does not tell.
        if raised > 0 && tx.dialect() != Dialect::MySql {
            return Ok(());
        }
        let look = Sql::new(tx.dialect(), "SELECT ").integer(&Name::new("sequence")?).text(", ");
        let look = look.string(&Name::new("nonce")?).text(" FROM ").name(&self.name);
        let look = look.text(" WHERE resource = ").value(Value::Text(resource.to_owned())).for_update();
        let seen = tx.marks(look).await.map_err(failed)?;
        let seen = seen.first().ok_or_else(|| {
            about(Error::new(
                ErrorKind::Corrupt,
                format!("{} lost the mark that was written to it", self.name),
            ))
        })?;
        seen.judge(token, true).map_err(about)
    }

    /// As [`Self::admit`] for several resources, each with the token of its own lock, in the order of their names: so two that admit to
    /// the same ones by this do not wait for each other. The round trips of each.
    ///
    /// Where one is refused, those before it may be raised: roll back.
    pub async fn admit_all(
        &self,
        tx: &mut impl Transaction,
        resources: impl IntoIterator<Item = (&str, FencingToken)>,
    ) -> Result<()> {
        let mut resources: Vec<_> = resources.into_iter().collect();
        resources.sort_by_key(|(resource, _)| *resource);
        for (resource, token) in resources {
            self.admit(tx, resource, token).await?;
        }
        Ok(())
    }

    /// Raises the mark where it may be, and locks it.
    fn raise(&self, dialect: Dialect, resource: &str, token: FencingToken) -> Sql {
        let (sequence, nonce) = values(token);
        let insert = Sql::new(dialect, "INSERT INTO ").name(&self.name);
        let insert = if dialect == Dialect::MySql { insert } else { insert.text(" AS mark") };
        let insert =
            insert.text(" (resource, sequence, nonce) VALUES (").value(Value::Text(resource.to_owned()));
        let insert = insert.text(", ").value(sequence).text(", ").value(nonce).text(")");
        insert.text(match dialect {
            Dialect::Postgres | Dialect::Sqlite => {
                " ON CONFLICT (resource) DO UPDATE SET sequence = excluded.sequence, nonce = excluded.nonce \
                 WHERE mark.sequence < excluded.sequence \
                 OR (mark.sequence = excluded.sequence AND mark.nonce = excluded.nonce)"
            }
            // From left to right: the nonce is chosen by the sequence as it was.
            Dialect::MySql => {
                " ON DUPLICATE KEY UPDATE nonce = IF(sequence < VALUES(sequence), VALUES(nonce), nonce), \
                 sequence = GREATEST(sequence, VALUES(sequence))"
            }
        })
    }
}
