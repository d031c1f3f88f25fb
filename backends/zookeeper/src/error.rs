//! What the servers say, as errors of ours.

use std::io;

use ringfence_core::{Error, ErrorKind};

use crate::session::Failure;
use crate::tls;
use crate::wire::Code;

/// Of a connection that cannot be had, or broke.
pub(crate) fn of_connecting(why: io::Error) -> Error {
    if let Some((kind, advice)) = tls::explain(&why) {
        return Error::new(kind, advice).because(why);
    }
    let advice = match why.kind() {
        _ if is_hang_up(&why) => {
            "it hangs up on us: it may have no quorum, have lost its data, have as many connections of this host as it takes \
             (maxClientCnxns), take less at once than it was sent (jute.maxbuffer), or speak TLS on this port where we do not, or not where we do (tls=on)"
        }
        io::ErrorKind::TimedOut => {
            "it does not answer in time: it is overloaded or cut off, or the port is not that of a ZooKeeper server"
        }
        _ => "it cannot be reached: see whether it runs, and whether the URL names it",
    };
    Error::new(ErrorKind::Unavailable, advice).because(why)
}

/// Whether a server took the connection and hung up, as all that are left do while they elect a leader.
pub(crate) fn has_hung_up(error: &Error) -> bool {
    use std::error::Error as _;
    error.source().and_then(|why| why.downcast_ref()).is_some_and(is_hang_up)
}

fn is_hang_up(why: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(why.kind(), UnexpectedEof | ConnectionReset | BrokenPipe)
}

/// Of an answer that no version of ZooKeeper gives.
pub(crate) fn odd() -> Error {
    Error::new(
        ErrorKind::Corrupt,
        "an answer of the wrong shape: is this the client port of a ZooKeeper server?",
    )
}

pub(crate) fn session_over() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the session has ended at the servers, and what was held in it is lost: acquire again, and with a longer TTL where the \
         network is too slow for this one",
    )
}

/// Of a session that another server of the ensemble would end earlier than its leases.
pub(crate) fn session_shortened() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the next server grants only a shorter session, and what was held in it is lost: give all servers of the ensemble one range \
         (minSessionTimeout, maxSessionTimeout)",
    )
}

/// Of what the server refused.
pub(crate) fn refused(code: Code) -> Error {
    let (kind, advice) = match code {
        Code::NO_AUTH => (
            ErrorKind::Refused,
            "the access rules of a node keep us out: see docs/zookeeper.md for what we need",
        ),
        Code::AUTH_FAILED | Code::INVALID_ACL => {
            (ErrorKind::Refused, "it refuses our user or password: check the URL")
        }
        Code::LOGIN_NEEDED => (
            ErrorKind::Refused,
            "it serves only those who log in: write user:password@ before the hosts, where it takes digest; SASL is not spoken",
        ),
        Code::NO_CHILDREN_FOR_EPHEMERALS => (
            ErrorKind::Corrupt,
            "where the node of the lock should be is one that ends with its session, below which nothing can stand: see whose it is, or \
             give the lock another name",
        ),
        Code::SESSION_EXPIRED => return session_over(),
        Code::QUOTA_EXCEEDED => (ErrorKind::Full, "the quota of a node is used up: raise it, or make room"),
        Code::SESSION_MOVED => (ErrorKind::Unavailable, "the session has moved to another server"),
        Code::NO_NODE | Code::NODE_EXISTS | Code::BAD_VERSION => {
            (ErrorKind::Unavailable, "somebody changes the same nodes all the time: try again")
        }
        _ => (ErrorKind::Unavailable, "it cannot do that right now"),
    };
    Error::new(kind, advice).because(format!("error {} of ZooKeeper", code.0))
}

/// Of a call that has no answer.
pub(crate) fn of_call(failure: Failure, shown: &str) -> Error {
    match failure {
        Failure::Refused(code) => refused(code).about(shown),
        Failure::Lost(why) => why.about(shown).with_unknown_effect(),
        Failure::NotSent(why) | Failure::Over(why) => why,
        Failure::Odd => odd().about(shown).with_unknown_effect(),
    }
}
