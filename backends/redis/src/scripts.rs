//! The scripts, their calls, and what they answer.

use std::borrow::Cow;
use std::sync::LazyLock;

use redis::{Cmd, Script, Value};
use ringfence_core::{Mode, Nonce, Ttl};

use crate::keys::LockKeys;

pub(crate) static LOCK: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/lock.lua")));
pub(crate) static RECORD: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/record.lua")));
pub(crate) static EXTEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/extend.lua")));

/// The keys and arguments of a change, and the bytes of one whose name is short.
const ARGS: usize = 7;
pub(crate) const BYTES: usize = 256;

/// One change of one lock, as the lock's script makes it.
#[derive(Debug)]
pub(crate) struct Change {
    keys: LockKeys,
    verb: &'static str,
    nonce: Nonce,
    ttl_ms: u64,
    /// The mode and the entry, of verbs that ask for the lock.
    asks: Option<(Cow<'static, str>, String)>,
    /// All that the lock holds, where this is a release and that is known.
    written: Option<String>,
}

impl Change {
    pub(crate) fn new(keys: LockKeys, verb: &'static str, nonce: Nonce) -> Self {
        Self { keys, verb, nonce, ttl_ms: 0, asks: None, written: None }
    }

    /// The key of its lock.
    pub(crate) fn lock(&self) -> &str {
        self.keys.lock()
    }

    /// Whether it asks for the lock, and so has no effect until it is granted.
    pub(crate) fn asks(&self) -> bool {
        self.asks.is_some()
    }

    pub(crate) fn lasting(self, ttl: Ttl) -> Self {
        Self { ttl_ms: ttl.as_millis(), ..self }
    }

    pub(crate) fn keys(&self) -> &LockKeys {
        &self.keys
    }

    pub(crate) fn asking(self, mode: Cow<'static, str>, entry: String) -> Self {
        Self { asks: Some((mode, entry)), ..self }
    }

    pub(crate) fn releasing(self, written: Option<String>) -> Self {
        Self { written, ..self }
    }

    pub(crate) fn written(&self) -> Option<&str> {
        self.written.as_deref()
    }

    pub(crate) fn is_renewal(&self) -> bool {
        self.verb == "renew"
    }

    /// Whether somebody will count on a lease that this may give or prolong.
    pub(crate) fn may_grant(&self) -> bool {
        matches!(self.verb, "acquire" | "take" | "queue" | "look" | "renew" | "downgrade")
    }
}

/// Many changes in one call, which answers each.
pub(crate) fn call(changes: &[Change]) -> Cmd {
    let mut command = by_hash(&LOCK, 2 * changes.len(), ARGS * changes.len(), BYTES * changes.len());
    for Change { keys, .. } in changes {
        command.arg(keys.lock()).arg(keys.beside());
    }
    for Change { verb, nonce, ttl_ms, asks, .. } in changes {
        command.arg(verb).arg(digits(*nonce)).arg(ttl_ms);
        let (mode, entry) = asks.as_ref().map_or(("", ""), |(mode, entry)| (mode, entry));
        command.arg(mode).arg(entry);
    }
    command
}

/// A renewal as a call that touches one key.
pub(crate) fn extension(Change { keys, nonce, ttl_ms, .. }: &Change) -> Cmd {
    let mut command = by_hash(&EXTEND, 1, 3, BYTES);
    command.arg(keys.lock()).arg(digits(*nonce)).arg(ttl_ms);
    command
}

/// `EVALSHA`, its hash and the number of its keys; with room for as many arguments, and their bytes.
pub(crate) fn by_hash(script: &Script, keys: usize, arguments: usize, bytes: usize) -> Cmd {
    let mut command = Cmd::with_capacity(3 + arguments, 64 + bytes);
    command.arg("EVALSHA").arg(script.get_hash()).arg(keys);
    command
}

/// A nonce as the scripts compare it: always as long.
pub(crate) fn digits(nonce: Nonce) -> String {
    let mut digits = String::with_capacity(16);
    let halves = nonce.get().to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.extend(halves.filter_map(|half| char::from_digit(half.into(), 16)));
    digits
}

pub(crate) fn parse_nonce(digits: &str) -> Option<Nonce> {
    u64::from_str_radix(digits, 16).ok().and_then(Nonce::from_u64)
}

/// A mode as the scripts write it.
pub(crate) fn mode(mode: Mode) -> Cow<'static, str> {
    match mode {
        Mode::Exclusive => "x".into(),
        Mode::Shared => "s".into(),
        Mode::Permit(limit) => format!("p{limit}").into(),
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

/// What anybody may have written, as text: other clients' values are bytes of any kind.
pub(crate) fn any_text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes)),
        _ => text(value).map(Cow::Borrowed),
    }
}

pub(crate) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => text(value)?.parse().ok(),
    }
}
