//! Patterns as a task meets them, again and again. What begins is taken as a lock is, and what ends is its release.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence::Locks;
use ringfence::patterns::{Begun, Idempotency, OnceStart, Run, Session, Skipped};

use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};

/// The result of a request.
pub(crate) const RECEIPT: &str = r#"{"receipt":"17a4f2c0","amount":4200,"currency":"EUR","state":"charged"}"#;

const DAY: Duration = Duration::from_hours(24);

/// A job that is due whenever it is called for, because no window is as short as that: it failed the last time, and is retried.
#[derive(Clone)]
pub(crate) struct OnceDue(Locks);

impl LockClient for OnceDue {
    type Held = Run;

    async fn connect(servers: &Servers) -> Self {
        Self(connect(servers).await)
    }

    async fn acquire(&self, name: &str) -> Run {
        let job = self.0.once(of_this_process(name)).since_last(DAY).retry_failed(true).ttl(TTL);
        match job.start().await.expect("a job") {
            OnceStart::Due(run) => run,
            OnceStart::Skipped(why) => panic!("{name} is due, but {why:?}"),
        }
    }

    async fn release(&self, run: Run) -> bool {
        run.fail("it is due again").await.is_ok()
    }
}

/// A job that was run already, the first time that it was called for.
#[derive(Clone)]
pub(crate) struct OnceDone(Locks);

impl LockClient for OnceDone {
    type Held = ();

    async fn connect(servers: &Servers) -> Self {
        Self(connect(servers).await)
    }

    async fn acquire(&self, name: &str) {
        let job = self.0.once(of_this_process(name)).since_last(DAY).ttl(TTL);
        match job.start().await.expect("a job") {
            OnceStart::Due(run) => run.succeed().await.expect("the first run"),
            OnceStart::Skipped(Skipped::NotDue { .. }) => {}
            OnceStart::Skipped(why) => panic!("{name} was run, but {why:?}"),
        }
    }

    async fn release(&self, (): ()) -> bool {
        true
    }
}

/// Requests that are new, each with a key of its own.
#[derive(Clone)]
pub(crate) struct KeyNew {
    locks: Locks,
    requests: Arc<AtomicU64>,
}

impl LockClient for KeyNew {
    type Held = Session;

    async fn connect(servers: &Servers) -> Self {
        Self { locks: connect(servers).await, requests: Arc::default() }
    }

    async fn acquire(&self, name: &str) -> Session {
        let name = format!("{name}/{}", self.requests.fetch_add(1, Ordering::Relaxed));
        started(request(&self.locks, &name)).await
    }

    async fn release(&self, mut session: Session) -> bool {
        session.complete(RECEIPT).await.is_ok()
    }
}

/// A request that comes again after it was done, the first time that it came.
#[derive(Clone)]
pub(crate) struct KeyDone(Locks);

impl LockClient for KeyDone {
    type Held = ();

    async fn connect(servers: &Servers) -> Self {
        Self(connect(servers).await)
    }

    async fn acquire(&self, name: &str) {
        match request(&self.0, name).begin().await.expect("a key") {
            Begun::Done(result) => assert_eq!(result, RECEIPT, "the result of {name}"),
            Begun::Started(mut session) => session.complete(RECEIPT).await.expect("the first request"),
            Begun::InFlight(others) => panic!("{name} is done, but {others:?}"),
        }
    }

    async fn release(&self, (): ()) -> bool {
        true
    }
}

/// A request that comes again while somebody works on it, as another process would.
#[derive(Clone)]
pub(crate) struct KeyInFlight {
    asking: Locks,
    working: Locks,
    works: Arc<Mutex<Vec<Session>>>,
}

impl LockClient for KeyInFlight {
    type Held = ();

    async fn connect(servers: &Servers) -> Self {
        let asking = connect(servers).await;
        // Nobody else has what is in the memory of this one.
        let working = if servers.url() == "memory:" { asking.clone() } else { connect(servers).await };
        Self { asking, working, works: Arc::default() }
    }

    async fn acquire(&self, name: &str) {
        match request(&self.asking, name).begin().await.expect("a key") {
            Begun::InFlight(_) => {}
            Begun::Started(first) => {
                first.release().await.expect("a release");
                let session = started(request(&self.working, name)).await;
                self.works.lock().unwrap_or_else(PoisonError::into_inner).push(session);
            }
            Begun::Done(result) => panic!("nobody has completed {name}, but {result:?}"),
        }
    }

    async fn release(&self, (): ()) -> bool {
        true
    }
}

async fn connect(servers: &Servers) -> Locks {
    Locks::connect(&servers.url()).await.expect("a backend")
}

/// A name that no process before had, because not every server forgets them.
fn of_this_process(name: &str) -> String {
    format!("{}/{name}", std::process::id())
}

/// As a service has it that does not want another request's answer.
fn request(locks: &Locks, name: &str) -> Idempotency {
    locks.idempotency(of_this_process(name)).fingerprint(name).ttl(TTL)
}

async fn started(request: Idempotency) -> Session {
    match request.begin().await.expect("a key") {
        Begun::Started(session) => session,
        other => panic!("a new request, but {other:?}"),
    }
}
