//! What the server and the driver say, as errors of ours.

use redis::{ErrorKind as Theirs, RedisError, ServerErrorKind};
use ringfence_core::{Error, ErrorKind};

use crate::scripts::Change;
use crate::tls;

/// What is wrong with a replica.
pub(crate) const REPLICA: &str = "it is a replica: locks are taken on the primary, name that one";
const DAMAGED: &str =
    "what is kept there is not what Ringfence writes: see who else writes there, then delete the key";

/// The error of a call that was on its way when this was said.
pub(crate) fn of_call(error: RedisError, server: &str) -> Error {
    let unknown = !is_answer(&error);
    let error = explain(error).about(server);
    if unknown { error.with_unknown_effect() } else { error }
}

/// The error of a call that was not sent, because there is no connection.
pub(crate) fn of_connecting(error: RedisError, server: &str) -> Error {
    explain_greeting(error).about(server)
}

/// What is wrong where a connection ends as soon as it begins.
fn explain_greeting(error: RedisError) -> Error {
    if error.is_connection_dropped() && !error.is_connection_refusal() && !error.is_timeout() {
        let advice = "it hangs up on us: it may be in protected mode, have no connection left, or speak TLS (rediss:, or \
                      tls=on for several servers)";
        return Error::new(ErrorKind::Unavailable, advice).because(error);
    }
    explain(error)
}

/// The error of asking a Sentinel, which has users of its own.
pub(crate) fn of_sentinel(error: RedisError) -> Error {
    if is_of_login(&error) {
        let advice = "it refuses our user or password: sentinel_user= and sentinel_password= are what the Sentinels know, \
                      and what stands before the @ is for the servers";
        return Error::new(ErrorKind::Refused, advice).because(error);
    }
    explain_greeting(error)
}

/// The error of one change of a lock, among others that were made. A change that failed in its middle may be half done.
pub(crate) fn of_change(error: RedisError, change: &Change, server: &str) -> Error {
    let error = explain(error).about(server).about(format_args!("lock {:?}", change.lock()));
    let may_be_half_done = matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported);
    if may_be_half_done && !change.asks() { error.with_unknown_effect() } else { error }
}

/// Whether the server does not know a command, in its words or in those that it has for it in a script.
pub(crate) fn is_of_unknown_command(error: &RedisError) -> bool {
    let says = error.to_string();
    ["unknown command", "Unknown Redis command"].iter().any(|words| says.contains(words))
}

/// What is kept under a key is not what the scripts write there.
pub(crate) fn damaged(server: &str) -> Error {
    Error::new(ErrorKind::Corrupt, DAMAGED).about(server)
}

/// A reply that no version of the scripts gives. Whoever gave it may have done what was asked.
pub(crate) fn odd_reply(reply: &redis::Value, server: &str) -> Error {
    let mut shown = format!("{reply:?}");
    shown.truncate(shown.floor_char_boundary(200));
    Error::new(
        ErrorKind::Corrupt,
        format!("an answer of the wrong shape: {shown}; is this a Redis server, version 6.2 or later?"),
    )
    .with_unknown_effect()
    .about(server)
}

/// Whether the server itself said so, and so did not do what was asked.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), Theirs::Server(_) | Theirs::Extension | Theirs::AuthenticationFailed)
}

/// Whether a server that we thought a primary says that it is one no more.
pub(crate) fn is_of_replica(error: &RedisError) -> bool {
    // An older server wraps what a command of a script said into an error of the script.
    // Without `replica-serve-stale-data` it says so until it follows its primary.
    matches!(error.kind(), Theirs::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown))
        || error.to_string().contains("READONLY")
}

fn is_of_login(error: &RedisError) -> bool {
    error.kind() == Theirs::AuthenticationFailed || matches!(error.code(), Some("WRONGPASS" | "NOAUTH"))
}

/// What is said without the code of a refusal: by servers up to Redis 7.0 and by those since of a command in a script, and
/// by the driver of the choice of a database.
const REFUSALS: [&str; 3] =
    ["The user executing the script can't", "ACL failure in script", "has no permissions to run"];

fn explain(error: RedisError) -> Error {
    if let Some((kind, advice)) = tls::explain(&error) {
        return Error::new(kind, advice).because(error);
    }
    let code = error.code().unwrap_or_default().to_owned();
    let says = error.to_string();
    let (kind, advice) = match (error.kind(), code.as_str()) {
        _ if is_of_login(&error) => (ErrorKind::Refused, "it refuses our user or password: check the URL"),
        (_, code) if code == "NOPERM" || REFUSALS.iter().any(|words| says.contains(words)) => (
            ErrorKind::Refused,
            "its access rules keep us out; the rule that we need is in docs/redis.md, and `ringfence doctor` prints it",
        ),
        (Theirs::RESP3NotSupported, _) => {
            (ErrorKind::Unsupported, "it is older than Redis 6.2, which is the least we need")
        }
        _ if is_of_replica(&error) => (ErrorKind::Unavailable, REPLICA),
        (Theirs::Server(ServerErrorKind::TryAgain), _) => (
            ErrorKind::Unavailable,
            "the slot of this lock is on its way to another master: its locks wait until it has arrived",
        ),
        (Theirs::Server(ServerErrorKind::ClusterDown), _) => (
            ErrorKind::Unavailable,
            "the cluster does not serve this slot right now: see whether a master is gone",
        ),
        (Theirs::Server(ServerErrorKind::Moved), _) => {
            (ErrorKind::InvalidUrl, "it belongs to a cluster: write redis+cluster:// instead of redis://")
        }
        _ if says.contains("cluster support disabled") => {
            (ErrorKind::InvalidUrl, "it is no cluster: write redis:// for one server")
        }
        (_, "WRONGTYPE" | "DAMAGED") => (ErrorKind::Corrupt, DAMAGED),
        _ if is_of_unknown_command(&error) => (
            ErrorKind::Unsupported,
            "it lacks a command that we need, or has it under another name (rename-command): docs/redis.md names them all",
        ),
        // A script that stumbled over what it found.
        (_, "ERR") if says.contains("user_script") => (ErrorKind::Corrupt, DAMAGED),
        (Theirs::Server(ServerErrorKind::BusyLoading), _) => {
            (ErrorKind::Unavailable, "it is reading its data: try again soon")
        }
        (_, "OOM") => (ErrorKind::Full, "it is out of memory: make room, or raise its maxmemory"),
        (_, "MISCONF") => (ErrorKind::Full, "it cannot write to its disk and takes no changes"),
        (_, "BUSY") => (
            ErrorKind::Unavailable,
            "somebody's script has kept it busy for long, and it serves nobody until that ends: see who runs it, or end it \
             by SCRIPT KILL",
        ),
        (_, "NOREPLICAS") => (
            ErrorKind::Unavailable,
            "fewer replicas follow it than its min-replicas-to-write asks for, so that it takes no changes: see what has \
             become of them",
        ),
        _ if says.contains("DB index") => (ErrorKind::InvalidUrl, "it has no such database: check the URL"),
        (Theirs::Io, _) if error.is_timeout() => (
            ErrorKind::Unavailable,
            "it does not answer in time: it is overloaded or cut off, or the port is not that of a Redis server (by TLS, \
             where the URL says rediss: or tls=on)",
        ),
        (Theirs::Io, _) => (
            ErrorKind::Unavailable,
            "it cannot be reached: see whether it runs, and whether the URL names it",
        ),
        (Theirs::Server(_), _) => (ErrorKind::Unavailable, "it cannot be used right now"),
        (Theirs::Parse | Theirs::UnexpectedReturnType, _) => {
            (ErrorKind::Corrupt, "its answer makes no sense: is this a Redis server?")
        }
        _ => (ErrorKind::Unavailable, "it does not do what we ask"),
    };
    let explained = Error::new(kind, advice);
    // A message of ours is one line.
    if says.contains('\n') {
        explained.because(says.trim_end().replace('\n', ", "))
    } else {
        explained.because(error)
    }
}
