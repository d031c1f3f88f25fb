//! One line for kazoo's locks, Curator's and ours, both ways.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Eviction, HolderInfo, Lease, ListQuery,
    LockName, LockState, Mode, Release, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, Process, curator, python};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;

const NAME: &str = "apps/orders/42";

/// Whose lock contends with ours, and which of theirs: kazoo has `Lock`, Curator has `Mutex`, both have `ReadLock` and `WriteLock`.
#[derive(Clone, Copy, Debug)]
enum Peer {
    Kazoo(&'static str),
    Curator(&'static str),
}

use Peer::{Curator, Kazoo};

impl Peer {
    /// Its program, for the server on this port.
    fn command(self, port: u16) -> Option<Command> {
        let (mut command, kind) = match self {
            Kazoo(kind) => {
                let mut command = python()?;
                command.args(["-c", include_str!("lock.py")]);
                (command, kind)
            }
            Curator(kind) => {
                let mut command = curator()?;
                command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/Lock.java"));
                (command, kind)
            }
        };
        command.args([&format!("127.0.0.1:{port}"), &format!("/{NAME}"), kind]);
        Some(command)
    }
}

/// A server that we and others use for one lock.
struct Stage {
    ours: Arc<ZooKeeperBackend>,
    theirs: Process,
    _servers: Ensemble,
}

impl Stage {
    async fn set(peer: Peer) -> Option<Self> {
        let servers = Ensemble::start().await?;
        let theirs = Process::start(peer.command(servers.ports()[0])?).expect("their client starts");
        let url = BackendUrl::parse(&format!("{}?keys=verbatim", servers.url())).expect("a lawful URL");
        let ours = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await.expect("a server");
        Some(Self { ours: Arc::new(ours), theirs, _servers: servers })
    }

    fn tell(&mut self, verb: &str) {
        self.theirs.send(verb).expect("their client runs");
    }

    /// Whether it did what it was told.
    async fn hear(&mut self) -> bool {
        let line = tokio::time::timeout(3 * PATIENCE, self.theirs.line()).await.expect("an answer in time");
        line.expect("their client runs") == "yes"
    }

    /// They have not done what they were told, and have had the time.
    async fn waits(&mut self) {
        let line = tokio::time::timeout(Duration::from_millis(300), self.theirs.line()).await;
        assert!(line.is_err(), "they hold beside us: {line:?}");
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
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(3 * PATIENCE, seen).await.unwrap_or_else(|_| panic!("a line of {count}"));
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
    tokio::time::timeout(3 * PATIENCE, task).await.expect("a grant in time").expect("no panic")
}

fn every_mode() -> [Mode; 3] {
    [Mode::Exclusive, Mode::Shared, Mode::permit(4).expect("four permits")]
}

#[tokio::test]
async fn their_lock_keeps_ours_out_in_every_mode() {
    for peer in [Kazoo("Lock"), Kazoo("WriteLock"), Curator("Mutex"), Curator("WriteLock")] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        assert!(stage.they("try").await, "a free lock is theirs");
        for mode in every_mode() {
            assert!(stage.ask(mode, Wait::No).await.is_none(), "{mode} beside {peer:?}");
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
    for (peer, mode) in [
        (Kazoo("Lock"), Mode::Exclusive),
        (Kazoo("Lock"), Mode::Shared),
        (Kazoo("ReadLock"), Mode::Exclusive),
        (Kazoo("WriteLock"), Mode::Exclusive),
        (Kazoo("WriteLock"), Mode::Shared),
        (Curator("Mutex"), Mode::Exclusive),
        (Curator("WriteLock"), Mode::Shared),
    ] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        let lease = stage.ask(mode, Wait::No).await.expect("a free lock is ours");
        assert!(!stage.they("try").await, "{peer:?} beside {mode}");
        stage.release(&lease).await;
        assert!(stage.they("try").await, "a free lock is theirs");
    }
}

/// What docs/zookeeper.md warns of: Curator looks for its own words alone, and sorts all others behind them.
#[tokio::test]
async fn curator_does_not_see_what_its_recipe_has_no_word_for() {
    for (peer, mode) in [
        (Curator("Mutex"), Mode::Shared),
        (Curator("Mutex"), Mode::permit(4).expect("four permits")),
        (Curator("WriteLock"), Mode::Exclusive),
        (Curator("ReadLock"), Mode::Exclusive),
    ] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        stage.ask(mode, Wait::No).await.expect("a free lock is ours");
        assert!(
            stage.they("try").await,
            "{peer:?} heeds {mode} by now: docs/zookeeper.md need not warn of it"
        );
    }
}

#[tokio::test]
async fn they_and_we_stand_in_one_line() {
    for peer in [Kazoo("Lock"), Curator("Mutex")] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        let first = stage.ask(Mode::Exclusive, Wait::No).await.expect("a free lock is ours");
        stage.tell("wait");
        stage.sees_waiters(1).await;
        let last = stage.wait(Mode::Exclusive);
        stage.sees_waiters(2).await;
        stage.waits().await;
        stage.release(&first).await;
        assert!(stage.hear().await, "the turn of {peer:?} comes first");
        assert!(!last.is_finished(), "and ours after it");
        assert!(stage.they("release").await);
        let last = granted(last).await;
        assert!(last.token.sequence() > first.token.sequence());
        stage.release(&last).await;
        assert!(stage.state().await.is_free());
    }
}

#[tokio::test]
async fn their_readers_and_ours_share() {
    for peer in [Kazoo("ReadLock"), Curator("ReadLock")] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        assert!(stage.they("try").await, "a free lock is theirs");
        let reader = stage.ask(Mode::Shared, Wait::No).await.expect("readers share");
        assert!(stage.ask(Mode::Exclusive, Wait::No).await.is_none(), "two read");
        let writer = stage.wait(Mode::Exclusive);
        stage.sees_waiters(1).await;
        stage.release(&reader).await;
        stage.sees_waiters(1).await;
        assert!(!writer.is_finished(), "{peer:?} still reads");
        assert!(stage.they("release").await);
        stage.release(&granted(writer).await).await;
    }
}

#[tokio::test]
async fn a_writer_of_theirs_stands_between_our_readers() {
    for peer in [Kazoo("WriteLock"), Curator("WriteLock")] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        let first = stage.ask(Mode::Shared, Wait::No).await.expect("a free lock is ours");
        stage.tell("wait");
        stage.sees_waiters(1).await;
        let last = stage.wait(Mode::Shared);
        stage.sees_waiters(2).await;
        stage.waits().await;
        stage.release(&first).await;
        assert!(stage.hear().await, "the turn of {peer:?} comes when our reader has left");
        assert!(!last.is_finished(), "and our next reader waits for it");
        assert!(stage.they("release").await);
        stage.release(&granted(last).await).await;
    }
}

#[tokio::test]
async fn what_a_killed_client_of_theirs_held_is_ours() {
    let Some(mut stage) = Stage::set(Curator("Mutex")).await else { return };
    assert!(stage.they("try").await, "a free lock is theirs");
    let waiter = stage.wait(Mode::Exclusive);
    stage.sees_waiters(1).await;
    stage.theirs.kill().expect("it can be killed");
    // Its session lives for five seconds.
    stage.release(&granted(waiter).await).await;
}

#[tokio::test]
async fn an_operator_sees_their_lock_and_can_evict_it() {
    for peer in [Kazoo("Lock"), Curator("Mutex")] {
        let Some(mut stage) = Stage::set(peer).await else { continue };
        assert!(stage.they("try").await, "a free lock is theirs");
        let seen = stage.state().await;
        let [holder] = &seen.holders[..] else { panic!("they hold it: {seen:?}") };
        assert_eq!((holder.holder.label(), holder.mode), ("another client", Mode::Exclusive));
        assert_eq!(holder.remaining, None, "nobody tells how long their session is");
        let page = stage.ours.list(ListQuery::new("apps/")).await.expect("a listing");
        let listed: Vec<&str> = page.items.iter().map(|state| state.name.as_str()).collect();
        assert_eq!(listed, [NAME], "their locks are listed, by their paths");
        let waiter = stage.wait(Mode::Exclusive);
        stage.sees_waiters(1).await;
        let evicted = stage.ours.evict(&name(), holder.token.nonce()).await.expect("an eviction");
        assert_eq!(evicted, Eviction::Evicted);
        stage.release(&granted(waiter).await).await;
    }
}
