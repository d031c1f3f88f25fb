//! The scripts, their calls, and what they answer.

use std::sync::LazyLock;

use redis::{Cmd, Script, Value};
use ringfence_core::{Mode, Nonce, Ttl};

use crate::keys::LockKeys;

pub(crate) static LOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lock.lua")));
pub(crate) static RECORD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/record.lua")));

/// One change of one lock, as the lock's script makes it.
#[derive(Debug)]
pub(crate) struct Change {
    keys: LockKeys,
    verb: &'static str,
    nonce: Nonce,
    ttl_ms: u64,
    /// The mode and the entry, of verbs that ask for the lock.
    asks: Option<(String, String)>,
}

impl Change {
    pub(crate) fn new(keys: LockKeys, verb: &'static str, nonce: Nonce) -> Self {
        Self { keys, verb, nonce, ttl_ms: 0, asks: None }
    }

    pub(crate) fn lasting(self, ttl: Ttl) -> Self {
        Self { ttl_ms: ttl.as_millis(), ..self }
    }

    pub(crate) fn asking(self, mode: String, entry: String) -> Self {
        Self { asks: Some((mode, entry)), ..self }
    }
}

/// Many changes in one call, which answers each.
pub(crate) fn call(changes: &[Change]) -> Cmd {
    let mut command = by_hash(&LOCK, 2 * changes.len());
    for Change { keys, .. } in changes {
        command.arg(&keys.lock).arg(&keys.beside);
    }
    for Change { verb, nonce, ttl_ms, asks, .. } in changes {
        command.arg(verb).arg(digits(*nonce)).arg(ttl_ms);
        if let Some((mode, entry)) = asks {
            command.arg(mode).arg(entry);
        }
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
