//! One line for kazoo's locks and ours, both ways.

use std::sync::Arc;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Eviction, HolderInfo, Lease, ListQuery,
    LockName, LockState, Mode, Release, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, Process, python};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;

const NAME: &str = "apps/orders/42";

/// A server that we and kazoo use for one lock.
struct Stage {
    ours: Arc<ZooKeeperBackend>,
    theirs: Process,
    _servers: Ensemble,
}

impl Stage {
    /// With one of kazoo's locks: `Lock`, `ReadLock` or `WriteLock`.
    async fn set(kind: &str) -> Option<Self> {
        let servers = Ensemble::start().await?;
        let mut command = python()?;
        command.args(["-c", include_str!("lock.py")]);
        command.args([&format!("127.0.0.1:{}", servers.ports()[0]), &format!("/{NAME}"), kind]);
        let theirs = Process::start(command).expect("Python starts");
        let url = BackendUrl::parse(&format!("{}?keys=verbatim", servers.url())).expect("a lawful URL");
        let ours = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await.expect("a server");
        Some(Self { ours: Arc::new(ours), theirs, _servers: servers })
    }

    fn tell(&mut self, verb: &str) {
        self.theirs.send(verb).expect("kazoo runs");
    }

    /// Whether it did what it was told.
    async fn hear(&mut self) -> bool {
        let line = tokio::time::timeout(PATIENCE, self.theirs.line()).await.expect("an answer in time");
        line.expect("kazoo runs") == "yes"
    }

    async fn they(&mut self, verb: &str) -> bool {
        self.tell(verb);
        self.hear().await
    }

    async fn ask(&self, mode: Mode, wait: Wait) -> Option<Lease> {
        match self.ours.acquire(request(mode, wait)).await.expect("an answer") {
            Attempt::Granted(lease) => Some(lease),
            Attempt::Busy(_) => None,
        }
    }

    async fn release(&self, lease: &Lease) {
        let released = self.ours.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
        assert_eq!(released, [Release::Released]);
    }

    async fn state(&self) -> LockState {
        self.ours.inspect(&name()).await.expect("a lock can be looked at, whoever has it")
    }

    async fn sees_waiters(&self, count: usize) {
        let seen = async {
            while self.state().await.waiters.len() != count {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("a line of {count}"));
    }

    fn wait(&self, mode: Mode) -> tokio::task::JoinHandle<Lease> {
        let ours = Arc::clone(&self.ours);
        tokio::spawn(async move {
            match ours.acquire(request(mode, Wait::Until(BootInstant::MAX))).await {
                Ok(Attempt::Granted(lease)) => lease,
                other => panic!("who waits without an end is granted: {other:?}"),
            }
        })
    }
}

fn name() -> LockName {
    NAME.parse().expect("a lawful name")
}

fn request(mode: Mode, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("ours", "here", 1).expect("lawful words");
    AcquireRequest::new(name(), mode, Ttl::DEFAULT, wait, holder)
}

async fn granted(task: tokio::task::JoinHandle<Lease>) -> Lease {
    tokio::time::timeout(PATIENCE, task).await.expect("a grant in time").expect("no panic")
}

fn every_mode() -> [Mode; 3] {
    [Mode::Exclusive, Mode::Shared, Mode::permit(4).expect("four permits")]
}

#[tokio::test]
async fn their_lock_keeps_ours_out_in_every_mode() {
    for kind in ["Lock", "WriteLock"] {
        let Some(mut stage) = Stage::set(kind).await else { return };
        assert!(stage.they("try").await, "a free lock is theirs");
        for mode in every_mode() {
            assert!(stage.ask(mode, Wait::No).await.is_none(), "{mode} beside their {kind}");
        }
        assert!(stage.they("release").await);
        for mode in every_mode() {
            let lease = stage.ask(mode, Wait::No).await.expect("a free lock is ours");
            stage.release(&lease).await;
        }
    }
}

#[tokio::test]
async fn ours_keeps_theirs_out() {
    for (kind, mode) in [
        ("Lock", Mode::Exclusive),
        ("Lock", Mode::Shared),
        ("ReadLock", Mode::Exclusive),
        ("WriteLock", Mode::Exclusive),
        ("WriteLock", Mode::Shared),
    ] {
        let Some(mut stage) = Stage::set(kind).await else { return };
        let lease = stage.ask(mode, Wait::No).await.expect("a free lock is ours");
        assert!(!stage.they("try").await, "their {kind} beside {mode}");
        stage.release(&lease).await;
        assert!(stage.they("try").await, "a free lock is theirs");
    }
}

#[tokio::test]
async fn they_and_we_stand_in_one_line() {
    let Some(mut stage) = Stage::set("Lock").await else { return };
    let first = stage.ask(Mode::Exclusive, Wait::No).await.expect("a free lock is ours");
    stage.tell("wait");
    stage.sees_waiters(1).await;
    let last = stage.wait(Mode::Exclusive);
    stage.sees_waiters(2).await;
    stage.release(&first).await;
    assert!(stage.hear().await, "their turn comes first");
    assert!(!last.is_finished(), "and ours after it");
    assert!(stage.they("release").await);
    let last = granted(last).await;
    assert!(last.token.sequence() > first.token.sequence());
    stage.release(&last).await;
    assert!(stage.state().await.is_free());
}

#[tokio::test]
async fn their_readers_and_ours_share() {
    let Some(mut stage) = Stage::set("ReadLock").await else { return };
    assert!(stage.they("try").await, "a free lock is theirs");
    let reader = stage.ask(Mode::Shared, Wait::No).await.expect("readers share");
    assert!(stage.ask(Mode::Exclusive, Wait::No).await.is_none(), "two read");
    let writer = stage.wait(Mode::Exclusive);
    stage.sees_waiters(1).await;
    stage.release(&reader).await;
    stage.sees_waiters(1).await;
    assert!(!writer.is_finished(), "they still read");
    assert!(stage.they("release").await);
    stage.release(&granted(writer).await).await;
}

#[tokio::test]
async fn an_operator_sees_their_lock_and_can_evict_it() {
    let Some(mut stage) = Stage::set("Lock").await else { return };
    assert!(stage.they("try").await, "a free lock is theirs");
    let seen = stage.state().await;
    let [holder] = &seen.holders[..] else { panic!("they hold it: {seen:?}") };
    assert_eq!((holder.holder.label(), holder.mode), ("another client", Mode::Exclusive));
    let page = stage.ours.list(ListQuery::new("apps/")).await.expect("a listing");
    let listed: Vec<&str> = page.items.iter().map(|state| state.name.as_str()).collect();
    assert_eq!(listed, [NAME], "their locks are listed, by their paths");
    let waiter = stage.wait(Mode::Exclusive);
    stage.sees_waiters(1).await;
    let evicted = stage.ours.evict(&name(), holder.token.nonce()).await.expect("an eviction");
    assert_eq!(evicted, Eviction::Evicted);
    stage.release(&granted(waiter).await).await;
}
