//! Other people's locks, in their own words.

use std::time::Duration;

use ringfence_core::Ttl;
use ringfence_servers::{Process, RedisServer, node, python};
use ringfence_testkit::PATIENCE;
use rslock::LockManager;

/// Longer than any test takes, and without a retry: who cannot have the lock is told so at once.
const TTL: Ttl = Ttl::DEFAULT;

/// Whose client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    RedisPy,
    NodeRedlock,
    Rslock,
    /// What a shell script does: `SET key value NX PX ttl`, and scripts that compare.
    Bare,
}

/// One client of somebody else's, and its lock.
pub(crate) enum Peer {
    Process(Process),
    Rslock { manager: LockManager, key: String, lock: Option<rslock::Lock> },
    Bare { key: String, value: String },
}

impl Peer {
    /// `None`, and said as [`ringfence_servers::skip`] does, where its client is not installed.
    pub(crate) fn start(kind: Kind, server: &RedisServer, key: &str) -> Option<Self> {
        let key = key.to_owned();
        let process = |mut command: std::process::Command, flag: &str, script: &str| {
            let port = server.port().to_string();
            command.args([flag, script, &port, &key, &TTL.as_millis().to_string()]);
            Self::Process(Process::start(command).expect("an interpreter starts"))
        };
        Some(match kind {
            Kind::RedisPy => process(python()?, "-c", include_str!("lock.py")),
            Kind::NodeRedlock => process(node()?, "-e", include_str!("lock.js")),
            Kind::Rslock => {
                let mut manager = LockManager::new(vec![server.url()]);
                manager.set_retry(1, Duration::ZERO);
                Self::Rslock { manager, key, lock: None }
            }
            Kind::Bare => Self::Bare { key, value: "a value without any meaning".to_owned() },
        })
    }

    /// Tries to get its lock, once; whether it has it.
    pub(crate) async fn acquire(&mut self, server: &RedisServer) -> bool {
        match self {
            Self::Process(process) => obey(process, "acquire").await,
            Self::Rslock { manager, key, lock } => {
                *lock = manager.lock(key.as_bytes(), TTL.as_duration()).await.ok();
                lock.is_some()
            }
            Self::Bare { key, value } => {
                let ttl = TTL.as_millis().to_string();
                server.command(&["SET", key, value, "NX", "PX", &ttl]).await == "OK"
            }
        }
    }

    /// Extends the lock that it has, or believes to have; whether it has it.
    pub(crate) async fn extend(&mut self, server: &RedisServer) -> bool {
        match self {
            Self::Process(process) => obey(process, "extend").await,
            Self::Rslock { manager, lock, .. } => {
                let lock = lock.as_ref().expect("it was acquired");
                manager.extend(lock, TTL.as_duration()).await.is_ok()
            }
            Self::Bare { key, value } => compare_and(server, "PEXPIRE", key, value).await,
        }
    }

    /// Releases the lock that it has, or believes to have. Not every client says whether it had it.
    pub(crate) async fn release(&mut self, server: &RedisServer) {
        match self {
            Self::Process(process) => drop(obey(process, "release").await),
            Self::Rslock { manager, lock, .. } => {
                manager.unlock(lock.as_ref().expect("it was acquired")).await;
            }
            Self::Bare { key, value } => drop(compare_and(server, "DEL", key, value).await),
        }
    }
}

async fn compare_and(server: &RedisServer, change: &str, key: &str, value: &str) -> bool {
    const SCRIPT: &str = "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end \
        return redis.call(unpack(ARGV, 2))";
    let mut words = vec!["EVAL", SCRIPT, "1", key, value, change, key];
    let ttl = TTL.as_millis().to_string();
    if change == "PEXPIRE" {
        words.push(&ttl);
    }
    server.command(&words).await == "1"
}

async fn obey(process: &mut Process, verb: &str) -> bool {
    process.send(verb).expect("it reads what it is told");
    let answer = tokio::time::timeout(PATIENCE, process.line()).await;
    match answer.unwrap_or_else(|_| panic!("{verb}: no answer in {PATIENCE:?}")).as_deref() {
        Some("yes") => true,
        Some("no") => false,
        other => panic!("{verb}: it says {other:?}, and on stderr why"),
    }
}
