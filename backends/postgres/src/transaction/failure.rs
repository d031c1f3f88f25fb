//! Why a statement of the caller's transaction failed, as an error of ours.

use std::error::Error as _;
use std::fmt;

use ringfence_core::{Error, ErrorKind};
use tokio_postgres::error::SqlState;

use crate::error;

/// Other transactions were in the way. Nothing is wrong with this one: roll it back, or the savepoint around the call, and run
/// it again from its first statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Conflict {
    /// Somebody else has the lock, and `NOWAIT` or the `lock_timeout` says not to wait any longer.
    Busy,
    /// Transactions waited for each other, and the server chose this one to fail, so that the others can go on.
    Deadlock,
    /// Others have committed what this REPEATABLE READ or SERIALIZABLE transaction cannot see and would have to.
    SerializationFailure,
}

impl Conflict {
    /// The conflict that an error of this module tells of, `None` for any other error.
    ///
    /// ```
    /// # use ringfence_core::{Error, ErrorKind};
    /// use ringfence_postgres::transaction::Conflict;
    ///
    /// fn is_worth_another_try(error: &Error) -> bool {
    ///     matches!(Conflict::of(error), Some(Conflict::Deadlock | Conflict::SerializationFailure))
    /// }
    /// # assert!(!is_worth_another_try(&Error::new(ErrorKind::Stale, "a stale token")));
    /// ```
    pub fn of(error: &Error) -> Option<Self> {
        error.source()?.downcast_ref().copied()
    }

    fn of_state(state: &SqlState) -> Option<Self> {
        match state.code() {
            "55P03" => Some(Self::Busy),
            "40P01" => Some(Self::Deadlock),
            "40001" => Some(Self::SerializationFailure),
            _ => None,
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "somebody else has the lock",
            Self::Deadlock => "transactions waited for each other",
            Self::SerializationFailure => "others have changed what the transaction's snapshot shows",
        })
    }
}

impl std::error::Error for Conflict {}

/// Why a statement failed.
#[derive(Debug)]
pub enum Failure {
    Said(Said),
    /// The server said nothing of it, so that the driver did.
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

/// What the server said.
#[derive(Debug)]
pub struct Said {
    state: SqlState,
    message: String,
    hint: Option<String>,
}

/// Whose things a statement names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Functions of our schema, or of PostgreSQL.
    Ours,
    /// A table of the caller's.
    Theirs,
}

impl Said {
    pub(super) fn new(code: &str, message: &str, hint: Option<&str>) -> Self {
        Self {
            state: SqlState::from_code(code),
            message: message.to_owned(),
            hint: hint.map(ToOwned::to_owned),
        }
    }
}

impl Failure {
    /// Never with an unknown effect: what is not committed has none.
    pub(super) fn explain(self, about: About) -> Error {
        let said = match self {
            Self::Said(said) => said,
            Self::Broken(why) => {
                return Error::new(
                    ErrorKind::Unavailable,
                    "the transaction's connection broke: begin again on another",
                )
                .because(why);
            }
        };
        if let Some(conflict) = Conflict::of_state(&said.state) {
            let kind =
                if conflict == Conflict::Busy { ErrorKind::WaitElapsed } else { ErrorKind::Unavailable };
            return Error::new(kind, format!("{}: roll back, and run the transaction again", said.message))
                .because(conflict);
        }
        if let Some(error) = error::of_ours(&said.state, &said.message, said.hint.as_deref()) {
            return error;
        }
        let (kind, advice) =
            of_transaction(&said.state, about).unwrap_or_else(|| error::of_server(&said.state));
        let hint = said.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        Error::new(kind, advice).because(format!("{} {}{hint}", said.state.code(), said.message))
    }
}

/// What means something else in a transaction of the caller's than on a connection of ours.
fn of_transaction(state: &SqlState, about: About) -> Option<(ErrorKind, &'static str)> {
    Some(match (state.code(), about) {
        ("25P02", _) => {
            (ErrorKind::InvalidRequest, "the transaction has failed before: roll it back, and begin again")
        }
        ("25006", _) => (
            ErrorKind::InvalidRequest,
            "the transaction cannot write: it is READ ONLY, or its server is a standby",
        ),
        ("3F000" | "42883", About::Ours) => (
            ErrorKind::Refused,
            "the database has no such schema of Ringfence: have its owner run `ringfence setup URL --grant-to ROLE`, or name the \
             schema that it has",
        ),
        ("3F000" | "42P01", About::Theirs) => (
            ErrorKind::InvalidRequest,
            "there is no such table: names are taken as they are written here, upper and lower case included",
        ),
        ("42703", About::Theirs) => (
            ErrorKind::InvalidRequest,
            "the table has no such column: names are taken as they are written here, upper and lower case included",
        ),
        ("42883" | "42804" | "22P02" | "22003" | "42809", About::Theirs) => (
            ErrorKind::InvalidRequest,
            "the table's column is of another type: a key is an integer, text or a uuid, a column of tokens is bigint",
        ),
        ("42501", About::Theirs) => (
            ErrorKind::Refused,
            "the role lacks a right to the table: to lock rows it needs SELECT and UPDATE",
        ),
        _ => return None,
    })
}
