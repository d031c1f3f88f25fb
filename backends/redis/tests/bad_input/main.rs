//! What the backend does about data that is not ours, servers that are not what they should be, and secrets.

#[path = "../common/mod.rs"]
mod common;
mod impostor;
mod keys;
mod names;
mod secrets;
mod servers;

use ringfence_core::{Effect, Error, ErrorKind, Retry};

/// What people read, up to the words of the server or the system, and without what differs from run to run: the port.
fn message(error: &Error, port: u16) -> String {
    error.message().replace(&port.to_string(), "PORT")
}

/// An error that stays until a person has done something.
#[track_caller]
fn expect(error: &Error, kind: ErrorKind, retry: Retry, effect: Effect) {
    assert_eq!((error.kind(), error.retry(), error.effect()), (kind, retry, effect), "{error:?}");
}
