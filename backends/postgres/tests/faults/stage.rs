//! A server of a test's own, clients of it, and somebody who looks on.

use std::sync::Arc;
use std::time::Duration;

use ringfence::Locks;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, ErrorKind, HolderInfo, Lease, LockName,
    LockState, Mode, Release, Renewal, Result, SystemClock, Ttl, Wait,
};
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Postgres, PostgresOptions, Proxy};
use ringfence_testkit::PATIENCE;

/// What everybody wants.
pub(crate) const NAME: &str = "orders/42";

/// A TTL that no test outlives.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// Long before the first renewal of a lease that is [`LONG`], and long enough for a busy machine.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(8);

/// For how long an answer is waited for, as the backend's `ANSWER_PATIENCE` has it.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// A server, and one who looks on.
pub(crate) struct Stage {
    pub(crate) server: Postgres,
    eye: Arc<PostgresBackend>,
}

impl Stage {
    pub(crate) async fn new() -> Option<Self> {
        Self::with(PostgresOptions::new()).await
    }

    pub(crate) async fn with(options: PostgresOptions) -> Option<Self> {
        let server = options.start().await?;
        let eye = client(&named(&server.url(), "eye")).await;
        Some(Self { server, eye })
    }

    /// Somebody with connections of its own.
    pub(crate) async fn client(&self) -> Arc<PostgresBackend> {
        client(&self.server.url()).await
    }

    /// The same, whose connections the server knows by this name.
    pub(crate) async fn client_named(&self, name: &str) -> Arc<PostgresBackend> {
        client(&named(&self.server.url(), name)).await
    }

    /// The same, with the hall's guards.
    pub(crate) async fn locks(&self) -> Locks {
        locks(&self.server.url()).await
    }

    /// A network between a client and the server, and where the client connects to.
    pub(crate) async fn proxy(&self) -> (Proxy, String) {
        let proxy = Proxy::start(self.server.port()).await;
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
        (proxy, url)
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

    /// A number that the server knows.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let answer = self.server.psql(sql).await;
        answer.parse().unwrap_or_else(|_| panic!("{sql}: a number was expected: {answer}"))
    }

    /// How many connections those have that are called so.
    pub(crate) async fn connections(&self, name: &str) -> i64 {
        let count = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
        self.number(&count).await
    }

    /// Waits until the server says so.
    pub(crate) async fn says(&self, sql: &str, expected: &str) {
        let mut answer = String::new();
        let said = tokio::time::timeout(PATIENCE, async {
            loop {
                answer = self.server.psql(sql).await;
                if answer == expected {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let is_said = said.await.is_ok();
        assert!(is_said, "{sql}: waited {PATIENCE:?} for {expected:?}, and it says {answer:?}");
    }
}

/// The URL, with a name by which the server knows the connections.
pub(crate) fn named(url: &str, name: &str) -> String {
    format!("{url}?application_name={name}")
}

pub(crate) async fn client(url: &str) -> Arc<PostgresBackend> {
    client_by(url, Arc::new(SystemClock::new())).await
}

pub(crate) async fn client_by(url: &str, clock: Arc<dyn Clock>) -> Arc<PostgresBackend> {
    let url = BackendUrl::parse(url).expect("a URL");
    Arc::new(PostgresBackend::connect(&url, clock).await.expect("a server that runs"))
}

pub(crate) async fn locks(url: &str) -> Locks {
    Locks::connect(url).await.expect("a server that runs")
}

pub(crate) fn name() -> LockName {
    NAME.parse().expect("a name")
}

pub(crate) fn now() -> BootInstant {
    SystemClock::new().now()
}

pub(crate) const FOR_EVER: Wait = Wait::Until(BootInstant::MAX);

pub(crate) fn request(mode: Mode, ttl: Duration, wait: Wait) -> AcquireRequest {
    request_of(NAME, mode, ttl, wait)
}

pub(crate) fn request_of(name: &str, mode: Mode, ttl: Duration, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name.parse().expect("a name"), mode, Ttl::new(ttl).expect("a TTL"), wait, holder)
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
pub(crate) async fn granted(client: &PostgresBackend, request: AcquireRequest) -> Lease {
    match within("a grant", client.acquire(request)).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("it must be granted: {other:?}"),
    }
}

pub(crate) async fn release(client: &PostgresBackend, lease: &Lease) -> Result<Release> {
    Ok(within("an answer to a release", client.release(std::slice::from_ref(&lease.key))).await?[0])
}

pub(crate) async fn renew(client: &PostgresBackend, lease: &Lease) -> Result<Renewal> {
    Ok(within("an answer to a renewal", client.renew(std::slice::from_ref(&lease.key))).await?[0])
}

/// Stands in line from now on.
pub(crate) fn waits(client: &Arc<PostgresBackend>) -> tokio::task::JoinHandle<Result<Attempt>> {
    let client = Arc::clone(client);
    tokio::spawn(async move { client.acquire(exclusive(FOR_EVER)).await })
}

/// The lease of one that waits.
pub(crate) async fn its_turn(
    waiting: impl Future<Output = Result<Result<Attempt>, tokio::task::JoinError>>,
) -> Lease {
    match within("the turn of one that waits", waiting).await.expect("no panic") {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("it must be granted: {other:?}"),
    }
}
