//! What the cluster and the transport say, as errors of ours.

use ringfence_core::{Error, ErrorKind};
use tonic::{Code, Status};

/// What a lease is called that the cluster does not know, or knows no more.
const NO_LEASE: &str = "requested lease not found";
/// What the cluster says when a token of ours is too old for it, and when we show none since it asked nobody.
const FORGOTTEN: [&str; 3] = ["invalid auth token", "revision of auth store is old", "user name is empty"];

/// What a cluster says to a login that asks nobody who they are.
const ASKS_NOBODY: &str = "authentication is not enabled";

/// How everything begins that etcd says itself, and what a member says of a call that it does not know or does not read. Codes alone say
/// little: our side of the connection has the same ones for what becomes of that.
const ITS_WORDS: [&str; 4] =
    ["etcdserver: ", "unknown service ", "unknown method ", "grpc: received message larger than max"];

/// What a connection says that the other end has closed.
const HANGS_UP: [&str; 3] = ["connection closed", "broken pipe", "connection reset"];

/// What a member says by an alert of TLS, while we connect or by the first call.
const UNKNOWN_TO_IT: &str =
    "it does not accept who we are: name a certificate that it knows with ?cert=/path.pem&key=/path.pem";

/// The error of a call that was on its way when this was said.
pub(crate) fn of_call(status: &Status, member: &str) -> Error {
    let error = explain(status).about(member);
    if is_refusal(status) { error } else { error.with_unknown_effect() }
}

/// The error of a call that was not sent, because there is no connection.
pub(crate) fn of_connecting(error: &tonic::transport::Error, member: &str) -> Error {
    let says = chain(error);
    let (kind, advice) = match () {
        () if says.contains("UnknownIssuer") || says.contains("BadSignature") => (
            ErrorKind::Refused,
            "its certificate is signed by an authority that we do not know: name the authority's PEM file with \
             ?ca=/path.pem, or have the system know it",
        ),
        () if says.contains("not valid for name") => (
            ErrorKind::Refused,
            "its certificate is for another host: write the URL with a host that the certificate names",
        ),
        () if says.contains("invalid peer certificate") => {
            (ErrorKind::Refused, "its certificate cannot be trusted")
        }
        () if says.contains("fatal alert") => (ErrorKind::Refused, UNKNOWN_TO_IT),
        () if says.contains("InvalidMessage") || says.contains("corrupt message") => (
            ErrorKind::InvalidUrl,
            "it does not speak TLS on this port: name the port that does, or write etcd: for a connection without",
        ),
        () => (
            ErrorKind::Unavailable,
            "it cannot be reached: see whether it runs, and whether the URL names it (etcds: where it speaks TLS)",
        ),
    };
    Error::new(kind, advice).about(member).because(says)
}

/// The error of saying who we are.
pub(crate) fn of_login(status: &Status, member: &str) -> Error {
    if status.code() != Code::InvalidArgument || !is_its_word(status) {
        return explain(status).about(member);
    }
    let advice = "it refuses our user or password: check the URL";
    Error::new(ErrorKind::Refused, advice).about(member).because(status.message())
}

/// A member does not answer.
pub(crate) fn no_answer(member: &str) -> Error {
    let advice = "it does not answer in time: it is overloaded or cut off, the cluster has lost its majority, or the port is \
                  not that of etcd for clients";
    Error::new(ErrorKind::Unavailable, advice).about(member)
}

/// A member is of another cluster than the one that we have spoken to.
pub(crate) fn of_another_cluster(member: &str) -> Error {
    let advice = "it is of another cluster than those that we spoke to before, and knows nothing of what is locked there: name members of \
                  one cluster in the URL; where that was set up anew, start this program again";
    Error::new(ErrorKind::InvalidUrl, advice).about(member)
}

/// No member could be connected to in time.
pub(crate) fn no_connection_in_time(shown: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "no connection to any member came about in time").about(shown)
}

/// An answer that no version of etcd gives.
pub(crate) fn odd_answer(what: &str, shown: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("an answer of the wrong shape, {what}; is this etcd, version 3.4 or later?"),
    )
    .about(shown)
}

/// Whether the lease that was named is no more.
pub(crate) fn is_of_lease(error: &Error) -> bool {
    // The only question that an error of ours cannot answer by its kind, and nobody but us asks it.
    error.kind() == ErrorKind::Lost
}

/// Whether the cluster asks nobody who they are, so that nobody can log in.
pub(crate) fn asks_nobody(status: &Status) -> bool {
    is_refusal(status) && status.message().contains(ASKS_NOBODY)
}

/// Whether the cluster does not know who we are, or no more, and did not do what was asked.
pub(crate) fn is_forgotten_login(status: &Status) -> bool {
    FORGOTTEN.iter().any(|words| status.message().contains(words))
}

/// Whether another member may do better.
pub(crate) fn is_of_member(status: &Status) -> bool {
    !is_refusal(status)
}

/// Whether the cluster itself said so, and so did not do what was asked. What a broken connection says is no answer.
fn is_refusal(status: &Status) -> bool {
    let is_no = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated
    );
    is_no && is_its_word(status)
}

/// Whether a member said so, and not our side of the connection.
fn is_its_word(status: &Status) -> bool {
    ITS_WORDS.iter().any(|words| status.message().starts_with(words))
}

fn explain(status: &Status) -> Error {
    let says = status.message();
    let cause = match std::error::Error::source(status) {
        Some(source) => format!("{says}: {}", chain(source)),
        None => says.to_owned(),
    };
    let (kind, advice) = match status.code() {
        _ if says.contains(NO_LEASE) => (ErrorKind::Lost, "the lease is over"),
        _ if says.contains("database space exceeded") => (
            ErrorKind::Full,
            "its database is full: compact and defragment it, then disarm the alarm (etcdctl compact, defrag, alarm disarm); \
             locks can be given back meanwhile",
        ),
        _ if says.contains("user name is empty") => {
            (ErrorKind::Refused, "it wants to know who we are: write user:password@ before the hosts")
        }
        _ if is_forgotten_login(status) => (
            ErrorKind::Refused,
            "it does not know us: write user:password@ before the hosts, or look whether its authentication was changed",
        ),
        Code::PermissionDenied if is_its_word(status) => {
            (ErrorKind::Refused, "our user may not do this: the role that we need is in docs/etcd.md")
        }
        _ if says.contains("request is too large") => {
            (ErrorKind::InvalidRequest, "the request is larger than its --max-request-bytes allows")
        }
        Code::ResourceExhausted => {
            (ErrorKind::Unavailable, "it has too much to do right now: try again soon")
        }
        Code::Unimplemented => {
            (ErrorKind::Unsupported, "it does not know this call: etcd 3.4 is the least that we need")
        }
        _ if cause.contains("fatal alert") => (ErrorKind::Refused, UNKNOWN_TO_IT),
        // It may hang up before the alert is read.
        _ if HANGS_UP.iter().any(|words| cause.contains(words)) => (
            ErrorKind::Unavailable,
            "it hangs up on us: it may be going down, or want to know who we are (etcds: with ?cert=/path.pem&key=/path.pem)",
        ),
        _ if !is_refusal(status) => (
            ErrorKind::Unavailable,
            "it cannot be used right now: see whether it runs, and whether the cluster has its majority",
        ),
        _ => (ErrorKind::Corrupt, "it refuses what we ask: is this etcd, version 3.4 or later?"),
    };
    Error::new(kind, advice).because(one_line(&cause))
}

/// What an error says, and what its causes say, where that is something else.
fn chain(error: &dyn std::error::Error) -> String {
    let mut says = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !says.contains(&more) {
            says = format!("{says}: {more}");
        }
        source = cause.source();
    }
    one_line(&says)
}

/// A message of ours is one line.
fn one_line(text: &str) -> String {
    text.trim_end().replace('\n', ", ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use ringfence_core::{Effect, Retry};

    use super::*;

    #[test]
    fn what_the_cluster_refuses_was_not_done() {
        for (code, says, kind) in [
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", ErrorKind::Full),
            (Code::ResourceExhausted, "etcdserver: too many requests", ErrorKind::Unavailable),
            (Code::PermissionDenied, "etcdserver: permission denied", ErrorKind::Refused),
            (Code::NotFound, "etcdserver: requested lease not found", ErrorKind::Lost),
            (Code::InvalidArgument, "etcdserver: request is too large", ErrorKind::InvalidRequest),
            (Code::Unimplemented, "unknown service etcdserverpb.KV", ErrorKind::Unsupported),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", ErrorKind::Corrupt),
        ] {
            let status = Status::new(code, says);
            let error = of_call(&status, "it");
            assert_eq!((error.kind(), error.effect()), (kind, Effect::None), "{says}: {error:?}");
            assert!(!is_of_member(&status), "another member would say the same: {says}");
        }
    }

    #[test]
    fn what_becomes_of_a_connection_is_no_refusal() {
        let broken = [
            // Whoever asks too often, and a connection that is too weak, by the codes that gRPC has for these ends of a stream.
            Status::new(Code::ResourceExhausted, "h2 protocol error: http2 error"),
            Status::new(Code::PermissionDenied, "h2 protocol error: http2 error"),
            Status::new(Code::ResourceExhausted, "grpc: trying to send message larger than max (5 vs. 4)"),
            Status::new(
                Code::Unauthenticated,
                "grpc-status header missing, mapped from HTTP status code 401",
            ),
            Status::from(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Status::from(io::Error::from(io::ErrorKind::InvalidInput)),
            Status::from(io::Error::from(io::ErrorKind::NotFound)),
            Status::from(io::Error::from(io::ErrorKind::PermissionDenied)),
            Status::from(io::Error::from(io::ErrorKind::ConnectionReset)),
            Status::new(Code::Unavailable, "etcdserver: request timed out"),
            Status::new(Code::Unknown, "transport error"),
            Status::new(Code::Cancelled, "operation was canceled"),
        ];
        for status in broken {
            let error = of_call(&status, "it");
            assert_eq!(
                (error.kind(), error.effect(), error.retry()),
                (ErrorKind::Unavailable, Effect::Unknown, Retry::Later),
                "{status:?}: {error:?}"
            );
            assert!(is_of_member(&status), "another member may do better: {status:?}");
            assert_eq!(of_login(&status, "it").kind(), ErrorKind::Unavailable, "{status:?}");
        }
    }
}
