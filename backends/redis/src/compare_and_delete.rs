//! The server's own compare-and-delete, by which a lock is given back that most likely nobody waits for.
//!
//! It compares the whole value, so that of each grant is kept until the first change of its lease. Whoever waits for a lock has
//! changed the value by one character: then nothing is deleted, and the script is asked.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use foldhash::fast::RandomState;
use redis::{Cmd, RedisError, Value};
use ringfence_core::{BootInstant, Nonce};

use crate::error;
use crate::route::entry;
use crate::scripts::text;

/// What the command is called, where there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CompareAndDelete {
    /// Since Valkey 9.
    Delifeq,
    /// Since Redis 8.4.
    Delex,
}

impl CompareAndDelete {
    /// The command of a server, by its greeting. A server that only says it is one of these will refuse the command.
    pub(crate) fn of(greeting: &Value) -> Option<Self> {
        let says = |what| entry(greeting, what).and_then(text);
        let mut version = says("version")?.split('.').map_while(|number| number.parse::<u32>().ok());
        let version = (version.next()?, version.next()?);
        match says("server")? {
            "valkey" if version >= (9, 0) => Some(Self::Delifeq),
            "redis" if version >= (8, 4) => Some(Self::Delex),
            _ => None,
        }
    }

    /// Deletes a key if it holds this value. Answers 1, or 0 if it does not.
    pub(crate) fn call(self, key: &str, value: &str) -> Cmd {
        match self {
            Self::Delifeq => {
                let mut command = redis::cmd("DELIFEQ");
                command.arg(key).arg(value);
                command
            }
            Self::Delex => {
                let mut command = redis::cmd("DELEX");
                command.arg(key).arg("IFEQ").arg(value);
                command
            }
        }
    }
}

/// Whether a server does not let us have the command, or has none.
pub(crate) fn is_out_of_reach(error: &RedisError) -> bool {
    error.code() == Some("NOPERM") || error::is_of_unknown_command(error)
}

/// The values that this process wrote, by the nonces of their leases, until the first change of each: whoever renews a lease
/// holds it for so long that its release is cheap beside that, and what was lost is over by its deadline.
#[derive(Default)]
pub(crate) struct Written {
    values: Mutex<HashMap<Nonce, (String, BootInstant), RandomState>>,
}

impl Written {
    pub(crate) fn keep(&self, nonce: Nonce, value: String, deadline: BootInstant, now: BootInstant) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() == values.capacity() {
            values.retain(|_, (_, deadline)| *deadline > now);
            // As many again have room before it is swept the next time.
            let count = values.len();
            values.reserve(count);
        }
        values.insert(nonce, (value, deadline));
    }

    /// The value of a lease, told once.
    pub(crate) fn take(&self, nonce: Nonce) -> Option<String> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.remove(&nonce).map(|(value, _)| value)
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::slice;
    use std::sync::Arc;
    use std::time::Duration;

    use ringfence_core::{
        AcquireRequest, Attempt, Backend, BackendUrl, Clock, HolderInfo, Lease, LockName, Mode, SystemClock,
        Ttl, Wait,
    };
    use ringfence_servers::{RedisOptions, valkey};

    use super::*;
    use crate::RedisBackend;

    fn greeting(server: &str, version: &str) -> Value {
        let text = |text: &str| Value::BulkString(text.into());
        let entries = [("server", server), ("version", version), ("role", "master")];
        Value::Map(entries.iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    #[test]
    fn a_server_has_the_command_from_its_version_on() {
        let of = |server, version| CompareAndDelete::of(&greeting(server, version));
        for version in ["9.0.0", "9.1.2", "10.0.0", "9.0.0-rc1"] {
            assert_eq!(of("valkey", version), Some(CompareAndDelete::Delifeq), "Valkey {version}");
        }
        for version in ["8.4.0", "8.6.2", "9.0.0", "10.1"] {
            assert_eq!(of("redis", version), Some(CompareAndDelete::Delex), "Redis {version}");
        }
        for (server, version) in
            [("valkey", "8.1.4"), ("redis", "8.3.9"), ("redis", "7.4"), ("dragonfly", "9.9"), ("redis", "")]
        {
            assert_eq!(of(server, version), None, "{server} {version}");
        }
        assert_eq!(CompareAndDelete::of(&Value::Nil), None);
    }

    impl Written {
        fn count(&self) -> usize {
            self.values.lock().unwrap().len()
        }
    }

    #[test]
    fn what_has_lapsed_is_forgotten_before_more_is_kept() {
        let (written, start) = (Written::default(), SystemClock::new().now());
        let at = |seconds| start.saturating_add(Duration::from_secs(seconds));
        // A hundred live at any time, and nobody says that one is over.
        for second in 0..10_000 {
            written.keep(Nonce::random(), "value".into(), at(second + 100), at(second));
            assert!(written.count() < 500, "{} are kept after {second} s", written.count());
        }
        let lives = Nonce::random();
        written.keep(lives, "lives".into(), at(20_000), at(10_000));
        for _ in 0..10_000 {
            written.keep(Nonce::random(), "value".into(), at(20_000), at(10_000));
        }
        assert!(written.count() > 10_000, "{} are kept, and these live", written.count());
        assert_eq!(written.take(lives).as_deref(), Some("lives"));
        assert_eq!(written.take(lives), None, "told once");
    }

    fn kept(backend: &RedisBackend) -> usize {
        backend.client.written.as_ref().unwrap().count()
    }

    async fn hold(backend: &RedisBackend) -> Lease {
        let (name, holder) = ("orders/42".parse().unwrap(), HolderInfo::new("test", "host", 1).unwrap());
        let request = AcquireRequest::new(name, Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder);
        match backend.acquire(request).await {
            Ok(Attempt::Granted(lease)) => lease,
            other => panic!("it must be granted: {other:?}"),
        }
    }

    #[tokio::test]
    async fn the_first_change_of_a_lease_leaves_nothing_kept() {
        let Some(program) = valkey() else { return };
        let Some(server) = RedisOptions::new().program(program).start().await else { return };
        let url = BackendUrl::parse(&server.url()).unwrap();
        let backend = RedisBackend::connect(&url, Arc::new(SystemClock::new())).await.unwrap();
        for change in ["release", "renew", "downgrade", "evict"] {
            let lease = hold(&backend).await;
            assert_eq!(kept(&backend), 1, "before it is changed by {change}");
            let (key, name): (_, &LockName) = (slice::from_ref(&lease.key), &lease.key.name);
            match change {
                "release" => drop(backend.release(key).await.unwrap()),
                "renew" => drop(backend.renew(key).await.unwrap()),
                "downgrade" => drop(backend.downgrade(&lease.key).await.unwrap()),
                _ => drop(backend.evict(name, lease.key.nonce).await.unwrap()),
            }
            assert_eq!(kept(&backend), 0, "after {change}");
            backend.release(key).await.unwrap();
        }
    }
}
