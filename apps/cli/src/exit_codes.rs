//! The exit codes of the program. They are API: scripts decide by them.

use ringfence::{Error, ErrorKind};

/// It went well. `run` ends with its command's own code instead.
pub(crate) const OK: u8 = 0;
/// What was asked about is not there: `record get` or `record rm` of a record that was never written, `evict` of nobody, `outbox retry` of no letter,
/// the history of a job that has never run.
pub(crate) const NOTHING_THERE: u8 = 1;
/// The command line, the URL, a name, a duration or a token is wrong, or the backend does not promise what was asked for.
pub(crate) const USAGE: u8 = 64;
/// The idempotency key was used for another request.
pub(crate) const KEY_REUSED: u8 = 65;
/// The locks cannot be used: unreachable, refused, full or damaged.
pub(crate) const UNAVAILABLE: u8 = 69;
/// A bug of the program.
pub(crate) const BUG: u8 = 70;
/// Standard input, standard output or the operating system failed us.
pub(crate) const IO: u8 = 74;
/// Somebody else has the lock, and `--nonblock` said not to wait.
pub(crate) const BUSY: u8 = 75;
/// Somebody else wrote first, and nothing was written.
pub(crate) const CONFLICT: u8 = 76;
/// A fence refused the token, and nothing was written.
pub(crate) const STALE: u8 = 77;
/// `doctor` found a problem.
pub(crate) const PROBLEM: u8 = 78;
/// The lease was lost while it was held.
pub(crate) const LOST: u8 = 123;
/// The wait ended before the lock was free.
pub(crate) const WAITED_TOO_LONG: u8 = 124;
/// The command is there and cannot be run.
pub(crate) const CANNOT_RUN: u8 = 126;
/// The command is not there.
pub(crate) const NOT_FOUND: u8 = 127;
/// Ended by signal n: this and n.
const SIGNALLED: u8 = 128;

/// The table at the end of `ringfence --help` and of the manual page.
pub(crate) const HELP: &str = "\
Exit codes:
  0        it went well (`run`, `once`: the command's own code; `once`: nothing was due)
  1        nothing there: `record get`, `record rm`, `evict`, `once --history`, `outbox retry`
  64       wrong usage: flags, URL, name, duration, token, or stakes the backend does not meet
  65       `idempotent`: the key was used for another request
  69       the locks cannot be used: unreachable, refused, full or damaged
  70       a bug of this program
  74       standard input, standard output or the operating system failed
  75       somebody else has the lock (-n)
  76       `record put --if-version`: somebody else wrote first, nothing was written
  77       a stale token was refused, nothing was written
  78       `doctor`: there is a problem
  123      the lease was lost
  124      waited too long (-w)
  126 127  the command cannot be run, is not there
  128+n    ended by signal n";

/// The exit code of an error, by its kind.
pub(crate) fn of(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::InvalidName
        | ErrorKind::InvalidTtl
        | ErrorKind::InvalidToken
        | ErrorKind::InvalidUrl
        | ErrorKind::InvalidRequest
        | ErrorKind::Unsupported => USAGE,
        ErrorKind::KeyReused => KEY_REUSED,
        ErrorKind::Conflict => CONFLICT,
        ErrorKind::WaitElapsed => WAITED_TOO_LONG,
        ErrorKind::Lost => LOST,
        ErrorKind::Stale | ErrorKind::TokenCollision | ErrorKind::NotOpened => STALE,
        ErrorKind::Full | ErrorKind::Unavailable | ErrorKind::Refused | ErrorKind::Corrupt => UNAVAILABLE,
        // `ErrorKind::Bug`, and kinds that a later version of the library may add.
        _ => BUG,
    }
}

/// The exit code of one that was ended by a signal, as shells report it.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(signal).map_or(u8::MAX, |signal| SIGNALLED.saturating_add(signal))
}
