//! A server of a test's own, clients of it, and somebody who looks on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringfence::Locks;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, Error, ErrorKind, HolderInfo, Lease,
    LockName, LockState, Mode, Release, Renewal, Result, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{RedisOptions, RedisServer};
use ringfence_testkit::PATIENCE;

/// What everybody wants.
pub(crate) const NAME: &str = "orders/42";

/// A TTL that no test outlives.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// Long before the first renewal of a lease that is [`LONG`], and long enough for a busy machine.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);

/// For how long an answer is waited for, as the backend's `ANSWER_PATIENCE` has it.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// A server, and one who looks on.
pub(crate) struct Stage {
    pub(crate) server: RedisServer,
    eye: RedisBackend,
}

impl Stage {
    pub(crate) async fn new() -> Option<Self> {
        Self::with(RedisOptions::new()).await
    }

    pub(crate) async fn with(options: RedisOptions) -> Option<Self> {
        let server = options.start().await?;
        let eye = client(server.port()).await;
        let stage = Self { server, eye };
        // From now on the server knows the script: the next call is one command.
        stage.state().await;
        Some(stage)
    }

    /// Somebody with a connection of its own.
    pub(crate) async fn client(&self) -> RedisBackend {
        client(self.server.port()).await
    }

    /// The same, with the hall's guards.
    pub(crate) async fn locks(&self) -> Locks {
        locks(self.server.port()).await
    }

    /// The lock as it stands, as soon as the server answers.
    pub(crate) async fn state(&self) -> LockState {
        let looked = async {
            loop {
                match self.eye.inspect(&name()).await {
                    Ok(state) => break state,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within("the lock can be looked at", looked).await
    }

    pub(crate) async fn sees(&self, what: &str, right: impl Fn(&LockState) -> bool) {
        let seen = tokio::time::timeout(PATIENCE, async {
            while !right(&self.state().await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(seen.await.is_ok(), "waited {PATIENCE:?} for {what}: {:?}", self.state().await);
    }

    pub(crate) async fn sees_waiters(&self, count: usize) {
        self.sees(&format!("a line of {count}"), |state| state.waiters.len() == count).await;
    }

    /// Waits until nobody holds and nobody waits. A lease of these tests lives for longer than they wait.
    pub(crate) async fn sees_it_free(&self) {
        self.sees("a lock that nobody holds or waits for", LockState::is_free).await;
    }

    /// How often each command was called, from a script or not, since the last `CONFIG RESETSTAT`.
    pub(crate) async fn calls(&self) -> BTreeMap<String, u64> {
        let stats = self.server.command(&["INFO", "commandstats"]).await;
        let calls = stats.lines().filter_map(|line| {
            let (command, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            // What `redis-cli` asks is not ours.
            (!command.starts_with("config") && command != "info")
                .then(|| (command.to_owned(), numbers.split(',').next().unwrap_or_default()))
                .map(|(command, calls)| (command, calls.parse().expect("a number of calls")))
        });
        calls.collect()
    }

    /// How many connections hear of their turn. Everybody who is connected has one.
    pub(crate) async fn subscribers(&self) -> usize {
        self.server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await.lines().count()
    }
}

pub(crate) async fn client(port: u16) -> RedisBackend {
    client_by(port, Arc::new(SystemClock::new())).await
}

pub(crate) async fn client_by(port: u16, clock: Arc<dyn Clock>) -> RedisBackend {
    let url = BackendUrl::parse(&url(port)).expect("a URL");
    RedisBackend::connect(&url, clock).await.expect("a server that runs")
}

pub(crate) async fn locks(port: u16) -> Locks {
    Locks::connect(&url(port)).await.expect("a server that runs")
}

pub(crate) fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

pub(crate) fn name() -> LockName {
    NAME.parse().expect("a name")
}

pub(crate) fn now() -> BootInstant {
    SystemClock::new().now()
}

pub(crate) const FOR_EVER: Wait = Wait::Until(BootInstant::MAX);

pub(crate) fn request(mode: Mode, ttl: Duration, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name(), mode, Ttl::new(ttl).expect("a TTL"), wait, holder)
}

/// A request for the lock alone, and for long.
pub(crate) fn exclusive(wait: Wait) -> AcquireRequest {
    request(Mode::Exclusive, LONG, wait)
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// The lease that must come of a request.
pub(crate) async fn granted(client: &RedisBackend, request: AcquireRequest) -> Lease {
    match within("a grant", client.acquire(request)).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("it must be granted: {other:?}"),
    }
}

pub(crate) async fn release(client: &RedisBackend, lease: &Lease) -> Result<Release> {
    Ok(within("an answer to a release", client.release(std::slice::from_ref(&lease.key))).await?[0])
}

pub(crate) async fn renew(client: &RedisBackend, lease: &Lease) -> Result<Renewal> {
    Ok(within("an answer to a renewal", client.renew(std::slice::from_ref(&lease.key))).await?[0])
}

pub(crate) fn refused<T: std::fmt::Debug>(what: &str, result: Result<T>) -> Error {
    result.err().unwrap_or_else(|| panic!("{what} must be refused"))
}
