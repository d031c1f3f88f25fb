//! Under verbatim keys `etcdctl lock` and the mutex of Go's package `concurrency` stand in one line with ours. Python's etcd3 keeps
//! one key for each lock, and cannot.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/line.rs"]
mod line;

use std::sync::Arc;
use std::time::Duration;

use common::{LONG, client, granted, hold, name, of_each_version, release, renew, request, within};
use line::{FOR_EVER, sees_waiters};
use ringfence_core::{Attempt, Backend, Eviction, Mode, Renewal, Wait};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Process, go_etcd_lock, python};

const NAME: &str = "orders/42";

/// `etcdctl lock`, which prints its key when it holds, and gives the lock back when it is asked to end.
fn etcdctl_lock(cluster: &EtcdCluster, name: &str) -> Process {
    let mut command = cluster.etcdctl_command();
    command.args(["lock", name]);
    Process::start(command).expect("etcdctl starts")
}

async fn verbatim(cluster: &EtcdCluster) -> Arc<EtcdBackend> {
    Arc::new(client(&format!("{}?keys=verbatim", cluster.url())).await)
}

#[tokio::test]
async fn their_lock_keeps_ours_waiting_and_out() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let ours = verbatim(&cluster).await;
        let mut theirs = etcdctl_lock(&cluster, NAME);
        let key = within("etcdctl holds", theirs.line()).await.expect("its key");
        assert!(key.starts_with("orders/42/"), "{key}");

        let busy = ours.acquire(request(NAME, Mode::Exclusive, LONG, Wait::No)).await.unwrap();
        let Attempt::Busy(contention) = busy else { panic!("theirs is in the way: {busy:?}") };
        assert_eq!(contention.holders[0].label(), "another client");
        for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(2).unwrap()] {
            let waiting = tokio::spawn({
                let ours = Arc::clone(&ours);
                async move { granted(&ours, request(NAME, mode, LONG, FOR_EVER)).await }
            });
            sees_waiters(&ours, NAME, 1).await;
            assert!(!waiting.is_finished(), "{mode} waits for theirs");
            theirs.terminate().unwrap();
            let lease = within("ours is next", waiting).await.unwrap();
            // It lives by the lease of its TTL, or will by the next renewal.
            assert_eq!(renew(&ours, &lease).await.unwrap(), Renewal::Renewed);
            theirs = etcdctl_lock(&cluster, NAME);
            sees_waiters(&ours, NAME, 1).await;
            release(&ours, &lease).await.unwrap();
            within("etcdctl is next", theirs.line()).await.expect("its key");
        }
    }
}

#[tokio::test]
async fn ours_keeps_theirs_waiting_and_the_line_is_one() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let ours = verbatim(&cluster).await;
        let first = hold(&ours, NAME, LONG).await;
        let mut theirs = etcdctl_lock(&cluster, NAME);
        sees_waiters(&ours, NAME, 1).await;
        let last = tokio::spawn({
            let ours = Arc::clone(&ours);
            async move { granted(&ours, request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await }
        });
        sees_waiters(&ours, NAME, 2).await;
        assert!(
            tokio::time::timeout(Duration::from_millis(300), theirs.line()).await.is_err(),
            "etcdctl must not hold beside ours"
        );

        release(&ours, &first).await.unwrap();
        within("etcdctl is next", theirs.line()).await.expect("its key");
        assert!(!last.is_finished(), "ours came after theirs");
        theirs.terminate().unwrap();
        let last = within("ours is last", last).await.unwrap();
        assert!(last.token.sequence() > first.token.sequence());
    }
}

#[tokio::test]
async fn theirs_is_shown_listed_and_evicted() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let ours = verbatim(&cluster).await;
        let mut theirs = etcdctl_lock(&cluster, NAME);
        within("etcdctl holds", theirs.line()).await.expect("its key");
        let state = ours.inspect(&name(NAME)).await.unwrap();
        assert_eq!((state.holders.len(), state.holders[0].mode), (1, Mode::Exclusive));
        assert!(!state.holders[0].has_lapsed());
        let listed = ours.list(ringfence_core::ListQuery::new("")).await.unwrap();
        assert!(listed.items.is_empty(), "what is nobody's of ours may be anything: {listed:?}");

        let theirs = state.holders[0].token.nonce();
        assert_eq!(ours.evict(&name(NAME), theirs).await.unwrap(), Eviction::Evicted);
        hold(&ours, NAME, LONG).await;
        let listed = ours.list(ringfence_core::ListQuery::new("orders")).await.unwrap();
        assert_eq!(listed.items.iter().map(|state| state.name.as_str()).collect::<Vec<_>>(), [NAME]);
    }
}

#[tokio::test]
async fn encoded_names_share_nothing_with_theirs() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ours = client(&cluster.url()).await;
    let mut theirs = etcdctl_lock(&cluster, NAME);
    within("etcdctl holds", theirs.line()).await.expect("its key");
    hold(&ours, NAME, LONG).await;
}

/// A lock of somebody else's, which is told by lines what to do and says of each whether it did.
struct Theirs(Process);

impl Theirs {
    /// A mutex of Go's package `concurrency`, whose session lives for so many seconds without its process.
    fn go(cluster: &EtcdCluster, name: &str, ttl: u32) -> Option<Self> {
        let mut command = go_etcd_lock()?;
        command.args([&format!("127.0.0.1:{}", cluster.port(0)), name, &ttl.to_string()]);
        Some(Self(Process::start(command).expect("it starts")))
    }

    /// A lock of Python's etcd3.
    fn python(cluster: &EtcdCluster, name: &str) -> Option<Self> {
        let mut command = python()?;
        command.args(["-c", include_str!("lock.py"), &cluster.port(0).to_string(), name]);
        Some(Self(Process::start(command).expect("Python starts")))
    }

    fn tell(&mut self, verb: &str) {
        self.0.send(verb).expect("it runs");
    }

    async fn did(&mut self) -> bool {
        within("an answer", self.0.line()).await.expect("it runs") == "yes"
    }

    async fn does(&mut self, verb: &str) -> bool {
        self.tell(verb);
        self.did().await
    }
}

fn waits(ours: &Arc<EtcdBackend>, lock: &str, mode: Mode) -> tokio::task::JoinHandle<ringfence_core::Lease> {
    let (ours, request) = (Arc::clone(ours), request(lock, mode, LONG, FOR_EVER));
    tokio::spawn(async move { granted(&ours, request).await })
}

#[tokio::test]
async fn a_mutex_in_go_keeps_ours_waiting_and_out_and_ours_keeps_it() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let ours = verbatim(&cluster).await;
        let Some(mut theirs) = Theirs::go(&cluster, NAME, 60) else { return };
        assert!(theirs.does("try").await, "the name is free");
        let busy = ours.acquire(request(NAME, Mode::Exclusive, LONG, Wait::No)).await.unwrap();
        assert!(matches!(busy, Attempt::Busy(_)), "theirs is in the way: {busy:?}");
        for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(2).unwrap()] {
            let waiting = waits(&ours, NAME, mode);
            sees_waiters(&ours, NAME, 1).await;
            assert!(theirs.does("owns").await && !waiting.is_finished(), "{mode} waits for theirs");
            assert!(theirs.does("release").await);
            let lease = within("ours is next", waiting).await.unwrap();
            assert!(!theirs.does("try").await, "ours is in the way of theirs: {mode}");
            theirs.tell("wait");
            sees_waiters(&ours, NAME, 1).await;
            // One that comes later is later.
            let last = waits(&ours, NAME, Mode::Exclusive);
            sees_waiters(&ours, NAME, 2).await;
            release(&ours, &lease).await.unwrap();
            assert!(theirs.did().await, "theirs is next");
            assert!(theirs.does("owns").await && !last.is_finished(), "ours came after theirs");
            assert!(theirs.does("release").await);
            let last = within("ours is last", last).await.unwrap();
            assert!(last.token.sequence() > lease.token.sequence(), "tokens rise: {lease:?}, {last:?}");
            release(&ours, &last).await.unwrap();
            assert!(theirs.does("try").await, "ours is given back");
        }
    }
}

#[tokio::test]
async fn a_mutex_in_go_whose_process_is_killed_is_out_of_the_way_when_its_session_ends() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ours = verbatim(&cluster).await;
    let Some(mut theirs) = Theirs::go(&cluster, NAME, 2) else { return };
    assert!(theirs.does("wait").await, "the name is free");
    let waiting = waits(&ours, NAME, Mode::Exclusive);
    sees_waiters(&ours, NAME, 1).await;
    theirs.0.kill().unwrap();
    let lease = within("ours is next", waiting).await.unwrap();
    assert_eq!(renew(&ours, &lease).await.unwrap(), Renewal::Renewed);
}

#[tokio::test]
async fn ours_waits_for_a_lock_of_pythons_etcd3_below_its_name_and_that_for_none_of_ours() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ours = verbatim(&cluster).await;
    let Some(mut theirs) = Theirs::python(&cluster, NAME) else { return };
    assert!(theirs.does("try").await, "the name is free");
    // Their lock `orders/42` is the key `/locks/orders/42`, which is in the line of our lock `/locks/orders`.
    let waiting = waits(&ours, "/locks/orders", Mode::Exclusive);
    sees_waiters(&ours, "/locks/orders", 1).await;
    assert!(theirs.does("release").await);
    let outer = within("ours is next", waiting).await.unwrap();
    assert_eq!(renew(&ours, &outer).await.unwrap(), Renewal::Renewed);

    // What they look for is that one key, which we never write.
    let inner = hold(&ours, "/locks/orders/42", LONG).await;
    assert!(theirs.does("try").await, "it sees nothing of ours, as docs/etcd.md says");
    for lease in [inner, outer] {
        assert_eq!(renew(&ours, &lease).await.unwrap(), Renewal::Renewed);
    }
}
