//! Why a statement of the caller's transaction failed, as an error of ours.

use std::error::Error as _;
use std::fmt;

use ringfence_core::{Error, ErrorKind, Result};
use sqlx::error::DatabaseError;

use crate::statement::Dialect;

/// Other transactions were in the way, or have been. Nothing is wrong with this one: roll it back, and run it again from its first
/// statement, as [`retry_on_conflict`](crate::retry_on_conflict) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Conflict {
    /// Somebody else has the row or, in SQLite, the database, and the time to wait for it is over.
    Busy,
    /// Transactions waited for each other, and the database chose this one to fail, so that the others can go on. MySQL and MariaDB
    /// have rolled it back.
    Deadlock,
    /// Others have committed what this transaction's snapshot does not show.
    SerializationFailure,
    /// The row was changed since it was read, as its [`VersionColumn`](crate::VersionColumn) says.
    Changed,
}

impl Conflict {
    /// The conflict that an error of this crate tells of, `None` for any other error.
    pub fn of(error: &Error) -> Option<Self> {
        error.source()?.downcast_ref().copied()
    }

    /// An error that tells of it.
    pub(crate) fn explain(self, why: &str) -> Error {
        let kind = match self {
            Self::Busy => ErrorKind::WaitElapsed,
            Self::Changed => ErrorKind::Conflict,
            Self::Deadlock | Self::SerializationFailure => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("{why}: roll back, and run the transaction again")).because(self)
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "somebody else has the lock",
            Self::Deadlock => "transactions waited for each other",
            Self::SerializationFailure => "others have changed what the transaction's snapshot shows",
            Self::Changed => "others have changed the row",
        })
    }
}

impl std::error::Error for Conflict {}

/// Why a statement in a transaction failed, as an error of ours: whether it is a [`Conflict`], whose fault it is, and what to do. For
/// the caller's own statements, so that [`retry_on_conflict`](crate::retry_on_conflict) knows a conflict of theirs.
///
/// Its effect is always none, because what is not committed has none: commit by [`commit`], whose errors say more.
///
/// The kind is [`ErrorKind::WaitElapsed`] or [`ErrorKind::Unavailable`] for a conflict, [`ErrorKind::Unavailable`] for a connection
/// that broke or a server that stops, [`ErrorKind::Refused`] for a missing right, [`ErrorKind::Full`] for a full disk,
/// [`ErrorKind::Corrupt`] for a damaged file, and [`ErrorKind::InvalidRequest`] for everything else that the database refuses.
pub fn explain(error: sqlx::Error) -> Error {
    let Some(said) = error.as_database_error() else {
        return match error {
            sqlx::Error::PoolTimedOut => {
                Error::new(ErrorKind::Unavailable, "no connection of the pool became free in time")
                    .because(error)
            }
            sqlx::Error::Io(_)
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Tls(_) => Error::new(
                ErrorKind::Unavailable,
                "the transaction's connection broke: begin again on another",
            )
            .because(error),
            _ => {
                Error::new(ErrorKind::InvalidRequest, "the statement or its result is not what was expected")
                    .because(error)
            }
        };
    };
    let (dialect, code) = code(said);
    if let Some(conflict) = conflict(dialect, &code) {
        return conflict.explain(said.message());
    }
    let (kind, advice) = judge(dialect, &code);
    Error::new(kind, advice).because(format!("{code} {}", said.message()))
}

/// Commits a transaction.
///
/// Errors as [`explain`] has them. Where the connection broke the database may have committed or not: the effect is unknown, and
/// nobody tries again on his own.
///
/// # Cancel safety
/// A future that is dropped has committed or not.
pub async fn commit<DB: sqlx::Database>(tx: sqlx::Transaction<'_, DB>) -> Result<()> {
    tx.commit().await.map_err(|error| {
        let was_refused = error.as_database_error().is_some();
        let error = explain(error).about("commit");
        if was_refused { error } else { error.with_unknown_effect() }
    })
}

/// The code that the database has for an error: an SQLSTATE of PostgreSQL, a number of MySQL and SQLite.
fn code(said: &(dyn DatabaseError + 'static)) -> (Dialect, String) {
    #[cfg(feature = "mysql")]
    if let Some(said) = said.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        return (Dialect::MySql, said.number().to_string());
    }
    let code = said.code().unwrap_or_default().into_owned();
    #[cfg(feature = "sqlite")]
    if said.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
        return (Dialect::Sqlite, code);
    }
    (Dialect::Postgres, code)
}

fn conflict(dialect: Dialect, code: &str) -> Option<Conflict> {
    Some(match (dialect, code) {
        (Dialect::Postgres, "55P03") | (Dialect::MySql, "1205" | "3572") => Conflict::Busy,
        (Dialect::Postgres, "40P01") | (Dialect::MySql, "1213") => Conflict::Deadlock,
        // MariaDB says 1020 with `innodb_snapshot_isolation`; SQLite 517, where a read has become a write too late.
        (Dialect::Postgres, "40001") | (Dialect::MySql, "1020") | (Dialect::Sqlite, "517") => {
            Conflict::SerializationFailure
        }
        // The low byte is the kind of the error: SQLITE_BUSY and SQLITE_LOCKED.
        (Dialect::Sqlite, _) if matches!(primary(code), Some(5 | 6)) => Conflict::Busy,
        _ => return None,
    })
}

fn primary(code: &str) -> Option<u32> {
    Some(code.parse::<u32>().ok()? & 0xff)
}

/// What is to be done about an error that is no conflict.
fn judge(dialect: Dialect, code: &str) -> (ErrorKind, &'static str) {
    const NAMES: &str = "there is no such table or column: names are taken as they are written here, upper and lower case included";
    const TYPES: &str = "the column is of another type: a key is what its `Key` says, a column of sequences is BIGINT, one of nonces text";
    const RIGHTS: &str = "the role lacks a right: to admit a token it needs SELECT, INSERT and UPDATE";
    const READ_ONLY: &str = "the transaction cannot write: it or its server is read-only";
    const GONE: &str = "the server ended the statement or the connection: begin again";
    const FULL: &str = "the database has no room";
    match (dialect, code) {
        (Dialect::Postgres, "42P01" | "42703" | "3F000") | (Dialect::MySql, "1054" | "1146" | "1049") => {
            (ErrorKind::InvalidRequest, NAMES)
        }
        (Dialect::Postgres, "42883" | "42804" | "22P02" | "22003")
        | (Dialect::MySql, "1264" | "1265" | "1292" | "1366" | "1406") => (ErrorKind::InvalidRequest, TYPES),
        (Dialect::Postgres, "42501") | (Dialect::MySql, "1044" | "1142" | "1143") => {
            (ErrorKind::Refused, RIGHTS)
        }
        (Dialect::Postgres, "25006") | (Dialect::MySql, "1290" | "1792" | "1836") => {
            (ErrorKind::InvalidRequest, READ_ONLY)
        }
        (Dialect::Postgres, "25P02") => {
            (ErrorKind::InvalidRequest, "the transaction has failed before: roll it back, and begin again")
        }
        (Dialect::Postgres, "53100") | (Dialect::MySql, "1021" | "1114") => (ErrorKind::Full, FULL),
        (Dialect::Postgres, _) if ["57", "08", "53"].iter().any(|class| code.starts_with(class)) => {
            (ErrorKind::Unavailable, GONE)
        }
        (Dialect::MySql, "1053" | "1317" | "1927" | "1969" | "3024") => (ErrorKind::Unavailable, GONE),
        (Dialect::Sqlite, _) => match primary(code) {
            Some(8) => (ErrorKind::InvalidRequest, READ_ONLY),
            Some(9 | 10 | 14) => (ErrorKind::Unavailable, "the database's file cannot be read or written"),
            Some(11 | 26) => (ErrorKind::Corrupt, "the database's file is damaged or is none"),
            Some(13) => (ErrorKind::Full, FULL),
            _ => (ErrorKind::InvalidRequest, "the database refuses the statement"),
        },
        _ => (ErrorKind::InvalidRequest, "the database refuses the statement"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflicts_are_told_from_other_errors() {
        for (dialect, code, expected) in [
            (Dialect::Postgres, "40001", Some(Conflict::SerializationFailure)),
            (Dialect::Postgres, "23505", None),
            (Dialect::MySql, "1205", Some(Conflict::Busy)),
            (Dialect::MySql, "1020", Some(Conflict::SerializationFailure)),
            (Dialect::Sqlite, "5", Some(Conflict::Busy)),
            (Dialect::Sqlite, "261", Some(Conflict::Busy)),
            (Dialect::Sqlite, "517", Some(Conflict::SerializationFailure)),
            (Dialect::Sqlite, "2067", None),
        ] {
            assert_eq!(conflict(dialect, code), expected, "{dialect:?} {code}");
        }
    }

    #[test]
    fn an_error_says_whose_fault_it_is() {
        for (dialect, code, kind) in [
            (Dialect::Postgres, "57P01", ErrorKind::Unavailable),
            (Dialect::Postgres, "53100", ErrorKind::Full),
            (Dialect::MySql, "1142", ErrorKind::Refused),
            (Dialect::Sqlite, "1032", ErrorKind::InvalidRequest),
            (Dialect::Sqlite, "13", ErrorKind::Full),
            (Dialect::Sqlite, "266", ErrorKind::Unavailable),
        ] {
            assert_eq!(judge(dialect, code).0, kind, "{dialect:?} {code}");
        }
        let conflict = Conflict::Busy.explain("busy");
        assert_eq!(
            (conflict.kind(), Conflict::of(&conflict)),
            (ErrorKind::WaitElapsed, Some(Conflict::Busy))
        );
        assert_eq!(Conflict::of(&Error::new(ErrorKind::Stale, "a stale token")), None);
    }
}
