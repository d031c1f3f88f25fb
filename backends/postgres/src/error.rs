//! What the server and the driver say, as errors of ours.

use std::error::Error as _;
use std::fmt;
use std::io;

use ringfence_core::{Error, ErrorKind};
use tokio_postgres::error::{DbError, SqlState};

use crate::tls;

pub(crate) type Theirs = tokio_postgres::Error;

/// What is wrong with a standby.
const STANDBY: &str =
    "it is a standby: locks are taken on the primary; name all hosts in the URL, and the primary is found";

const UNREACHABLE: &str = "it cannot be reached: see whether it runs, and whether the URL names it";

pub(crate) const BROKE: &str = "its connection broke";

const ODD: &str = "its answer makes no sense: is this a PostgreSQL server?";

/// The error of a statement that was on its way when this was said.
pub(crate) fn of_call(error: &Theirs) -> Error {
    let unknown = !is_answer(error);
    let error = explain(error);
    if unknown { error.with_unknown_effect() } else { error }
}

/// The error of a step on the way to a connection that is ready, which leaves nothing behind.
pub(crate) fn of_connecting(error: &Theirs) -> Error {
    match error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(cause) => of_stream(cause),
        None => explain(error),
    }
}

/// The error of a stream to a server that lets itself be reached.
pub(crate) fn of_stream(why: &io::Error) -> Error {
    let error = match (ringfence_tls::trouble(why), why.kind()) {
        (Some(trouble), _) => {
            let (kind, advice) = tls::PARAMS.explain(trouble);
            Error::new(kind, advice)
        }
        (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Error::new(
                ErrorKind::Unavailable,
                "it hangs up on us: it may be starting or stopping, or the port is not that of a PostgreSQL server",
            )
        }
        (None, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => odd(),
        (None, _) => Error::new(ErrorKind::Unavailable, UNREACHABLE),
    };
    error.because(why.to_string())
}

/// Whether the server might let us in if we came with TLS, or without.
pub(crate) fn is_of_way(error: &Theirs) -> bool {
    let is_of_tls = error
        .source()
        .and_then(|cause| cause.downcast_ref::<io::Error>())
        .is_some_and(|cause| ringfence_tls::trouble(cause).is_some());
    is_of_tls || error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
}

/// Of an answer that no version of PostgreSQL gives.
pub(crate) fn odd() -> Error {
    Error::new(ErrorKind::Corrupt, ODD)
}

/// The error of making the schema, or bringing it to another version.
pub(crate) fn of_setup(error: &Theirs) -> Error {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        let advice = "its schema is not there, or not of this version, and our role may not make it: have the database's owner \
                      run `ringfence setup URL --grant-to ROLE`";
        return Error::new(ErrorKind::Refused, advice).because(because(error));
    }
    of_connecting(error)
}

/// Of a host that no connection was opened to.
pub(crate) fn unreachable(why: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, UNREACHABLE).because(why)
}

/// Of a host that takes too long.
pub(crate) fn no_answer() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "it does not answer in time: it is overloaded or cut off, or something else listens there",
    )
}

/// What was said at the end of a connection that stood: the server may be as well as before.
#[derive(Debug)]
struct Ended(String);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Ended {}

/// The error of what was under way on a connection that ended, and of what was to come, with what is known of its end.
pub(crate) fn ended(what: &str, why: Option<&Error>) -> Error {
    let said = why.map_or_else(|| "nobody said why".to_owned(), ToString::to_string);
    Error::new(ErrorKind::Unavailable, what).because(Ended(said))
}

/// Whether it is of a connection that ended, and not of a server that cannot be reached or refuses us.
pub(crate) fn is_end_of_connection(error: &Error) -> bool {
    error.source().is_some_and(<dyn std::error::Error>::is::<Ended>)
}

/// Of a server that only repeats what another one does.
pub(crate) fn standby() -> Error {
    Error::new(ErrorKind::Unavailable, STANDBY)
}

/// Whether the server itself said so, in a session that goes on: it did not do what was asked, and undid what it had begun.
pub(crate) fn is_answer(error: &Theirs) -> bool {
    error.as_db_error().is_some_and(|said| !is_fatal(said))
}

/// Whether the session it was said in is over, or of no use.
pub(crate) fn ends_session(error: &Theirs) -> bool {
    let Some(said) = error.as_db_error() else { return true };
    let code = said.code();
    is_fatal(said)
        // What was made for another session, or for another version of the schema.
        || [
            &SqlState::READ_ONLY_SQL_TRANSACTION,
            &SqlState::INVALID_SQL_STATEMENT_NAME,
            &SqlState::DUPLICATE_PSTATEMENT,
            &SqlState::FEATURE_NOT_SUPPORTED,
        ]
        .contains(&code)
        || is_of_schema(code)
}

fn is_fatal(said: &DbError) -> bool {
    use tokio_postgres::error::Severity;
    match said.parsed_severity() {
        Some(severity) => !matches!(severity, Severity::Error),
        // Some poolers leave the untranslated severity out.
        None => said.severity() != "ERROR",
    }
}

/// Something of ours is not there.
fn is_of_schema(code: &SqlState) -> bool {
    [
        &SqlState::INVALID_SCHEMA_NAME,
        &SqlState::UNDEFINED_TABLE,
        &SqlState::UNDEFINED_COLUMN,
        &SqlState::UNDEFINED_FUNCTION,
    ]
    .contains(&code)
}

/// How a server says that it ends a connection which it had let in.
const ENDS: [&SqlState; 3] =
    [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::IDLE_SESSION_TIMEOUT];

fn explain(theirs: &Theirs) -> Error {
    let Some(said) = theirs.as_db_error() else {
        // It had let us in: there is no such answer before.
        if theirs.is_closed() {
            return Error::new(ErrorKind::Unavailable, BROKE).because(Ended(because(theirs)));
        }
        let (kind, advice) = of_driver(theirs);
        return Error::new(kind, advice).because(because(theirs));
    };
    if let Some(error) = of_ours(said.code(), said.message(), said.hint()) {
        return error;
    }
    let (kind, advice) = of_server(said.code());
    let error = Error::new(kind, advice);
    if is_fatal(said) && ENDS.contains(&said.code()) {
        return error.because(Ended(because(theirs)));
    }
    error.because(because(theirs))
}

/// What the functions of our schema refuse, in words of their own.
pub(crate) fn of_ours(code: &SqlState, message: &str, hint: Option<&str>) -> Option<Error> {
    let kind = match code.code() {
        "RF001" => ErrorKind::Stale,
        "RF002" => ErrorKind::TokenCollision,
        "RF003" | "RF006" => ErrorKind::NotOpened,
        "RF004" => ErrorKind::Full,
        "RF005" | "RF007" => ErrorKind::InvalidRequest,
        "RF008" => ErrorKind::Refused,
        _ => return None,
    };
    let hint = hint.map(|hint| format!(": {hint}")).unwrap_or_default();
    Some(Error::new(kind, format!("{message}{hint}")))
}

/// What an error of the server is, and what to do about it.
pub(crate) fn of_server(code: &SqlState) -> (ErrorKind, &'static str) {
    match code.code() {
        "28P01" => (ErrorKind::Refused, "it refuses our user or password: check the URL"),
        "28000" => (
            ErrorKind::Refused,
            "it does not let us in from here, as this user, to this database, without TLS, or without a certificate of ours \
             (sslcert=, sslkey=): see its pg_hba.conf",
        ),
        "3D000" => (ErrorKind::InvalidUrl, "it has no such database: check the path of the URL"),
        "42501" => (
            ErrorKind::Refused,
            "our role lacks a right: have the schema's owner run `ringfence setup URL --grant-to ROLE`, which is GRANT USAGE ON \
             SCHEMA and GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA",
        ),
        "53100" => (ErrorKind::Full, "its disk is full: make room"),
        "53200" => (
            ErrorKind::Full,
            "it is out of memory, or its table of locks is full: raise max_locks_per_transaction, or see who takes so many",
        ),
        "53300" => (
            ErrorKind::Unavailable,
            "it has no connection left for us: raise max_connections, or the limit of the role or database, or put a pooler \
             before it",
        ),
        "57014" => (
            ErrorKind::Unavailable,
            "it did not get to it in time and gave up: it is overloaded, or somebody has locked our tables (VACUUM FULL, a \
             long ALTER, a transaction left open)",
        ),
        "57P01" | "57P02" => (ErrorKind::Unavailable, "it, or somebody there, ended our connection"),
        "57P03" => {
            (ErrorKind::Unavailable, "it is starting or stopping, or recovers from a crash: try again soon")
        }
        "57P05" => (
            ErrorKind::Unavailable,
            "it ended our connection, which was idle for longer than its idle_session_timeout",
        ),
        "25006" => (ErrorKind::Unavailable, STANDBY),
        "40001" | "40P01" | "55P03" => {
            (ErrorKind::Unavailable, "somebody else was at the same rows: try again")
        }
        "26000" | "42P05" => (
            ErrorKind::Unavailable,
            "a pooler seems to stand between that was not there when we connected: try again",
        ),
        "22021" | "22P05" => {
            (ErrorKind::InvalidRequest, "its encoding does not know a character that we sent")
        }
        "42704" => (ErrorKind::InvalidRequest, "there is nobody of this name: CREATE ROLE first"),
        "0A000" => (ErrorKind::Unsupported, "it cannot do that: see that it is PostgreSQL 14 or later"),
        _ if is_of_schema(code) => (
            ErrorKind::Corrupt,
            "something of our schema is gone: somebody has dropped or changed it, and with it may have gone the count of the \
             fencing tokens; see who, then run `ringfence setup URL`",
        ),
        state if state.starts_with("08") => (ErrorKind::Unavailable, "the connection to it is broken"),
        state if state.starts_with("28") => (ErrorKind::Refused, "it refuses our user: check the URL"),
        state if state.starts_with("53") => (ErrorKind::Full, "it has run out of something"),
        state if state.starts_with("58") || state.starts_with("XX") => {
            (ErrorKind::Unavailable, "it has trouble of its own: see its log")
        }
        _ => (ErrorKind::Unavailable, "it does not do what we ask"),
    }
}

fn of_driver(error: &Theirs) -> (ErrorKind, &'static str) {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    if cause.contains("password missing") {
        return (
            ErrorKind::Refused,
            "it wants a password, and the URL has none: write postgres://user:password@host/database",
        );
    }
    match error.source().and_then(|cause| cause.downcast_ref::<io::Error>()) {
        Some(cause) if matches!(cause.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData) => {
            (ErrorKind::Corrupt, ODD)
        }
        Some(_) => (ErrorKind::Unavailable, UNREACHABLE),
        // What it is that we send is for us to know.
        None if error.to_string().contains("parameter") => {
            (ErrorKind::Bug, "a statement of ours has the wrong parameters")
        }
        None => (ErrorKind::Unavailable, ODD),
    }
}

/// What was said, in one line. The driver's own text says little of it.
fn because(error: &Theirs) -> String {
    let Some(said) = error.as_db_error() else {
        return error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"));
    };
    let hint = said.hint().map(|hint| format!("; {hint}")).unwrap_or_default();
    format!("{} {}{hint}", said.code().code(), said.message()).replace('\n', ", ")
}

/// Of a statement that others took along, and that nobody was left to carry out.
pub(crate) fn shutting_down() -> Error {
    let why = "the statement ended without an answer, because the program is shutting down";
    Error::new(ErrorKind::Unavailable, why).with_unknown_effect()
}

/// Of an answer that our own functions do not give.
pub(crate) fn odd_answer(server: &str) -> Error {
    let why = format!(
        "{server} answers what our functions do not: somebody has changed them; run `ringfence setup URL`"
    );
    Error::new(ErrorKind::Corrupt, why).with_unknown_effect()
}
