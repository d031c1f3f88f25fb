//! The scripts, their calls, and what they answer.

use std::sync::LazyLock;

use redis::{Cmd, Script, Value};
use ringfence_core::{Mode, Nonce, Ttl};

use crate::keys::LockKeys;

pub(crate) static LOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lock.lua")));
pub(crate) static RECORD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/record.lua")));

/// A call of the lock's script for one lock.
pub(crate) fn call(keys: &LockKeys, verb: &str, nonce: Nonce) -> Cmd {
    let mut command = by_hash(&LOCK, 2);
    command.arg(&keys.lock).arg(&keys.beside).arg(verb).arg(digits(nonce));
    command
}

/// Renews many leases in one step.
pub(crate) fn renew<'a>(leases: impl ExactSizeIterator<Item = (&'a LockKeys, Nonce, Ttl)> + Clone) -> Cmd {
    let mut command = by_hash(&LOCK, 2 * leases.len());
    for (keys, ..) in leases.clone() {
        command.arg(&keys.lock).arg(&keys.beside);
    }
    command.arg("renew");
    for (_, nonce, ttl) in leases {
        command.arg(digits(nonce)).arg(ttl.as_millis());
    }
    command
}

/// `EVALSHA`, its hash and the number of its keys.
pub(crate) fn by_hash(script: &Script, keys: usize) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys);
    command
}

/// A nonce as the scripts compare it: always as long.
pub(crate) fn digits(nonce: Nonce) -> String {
    format!("{:016x}", nonce.get())
}

pub(crate) fn parse_nonce(digits: &str) -> Option<Nonce> {
    u64::from_str_radix(digits, 16).ok().and_then(Nonce::from_u64)
}

/// A mode as the scripts write it.
pub(crate) fn mode(mode: Mode) -> String {
    match mode {
        Mode::Exclusive => "x".to_owned(),
        Mode::Shared => "s".to_owned(),
        Mode::Permit(limit) => format!("p{limit}"),
    }
}

pub(crate) fn parse_mode(text: &str) -> Option<Mode> {
    match text.split_at_checked(1)? {
        ("x", "") => Some(Mode::Exclusive),
        ("s", "") => Some(Mode::Shared),
        ("p", limit) => Mode::permit(limit.parse().ok()?).ok(),
        _ => None,
    }
}

/// What a reply is, where it is text.
pub(crate) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(crate) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => text(value)?.parse().ok(),
    }
}
