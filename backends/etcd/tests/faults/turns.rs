//! A release gives the turn to the next in line, and to nobody who is not there.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Attempt, Backend, BackendUrl, BootInstant, Clock, Lease, Mode, Renewal, SystemClock, WallTime,
    abandonment,
};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Taker};
use ringfence_testkit::drop_after;
use tokio::task::JoinSet;

use crate::common::{LONG, client, granted, hold, of_each_version, release, renew, request, within};
use crate::line::{FOR_EVER, sees_waiters};
use crate::narrow::last_place;
use crate::{LOCKS, NAME, metric, metric_reaches, revision, waits};

const WATCHES: &str = "etcd_debugging_mvcc_watcher_total";

async fn new_client(cluster: &EtcdCluster) -> Arc<EtcdBackend> {
    Arc::new(client(&cluster.url()).await)
}

/// One that holds after it has waited.
async fn holds_after_waiting(cluster: &EtcdCluster) -> (Arc<EtcdBackend>, Lease) {
    let (ann, bob) = (new_client(cluster).await, new_client(cluster).await);
    let held = hold(&ann, NAME, LONG).await;
    let waiting = waits(&bob);
    sees_waiters(&ann, NAME, 1).await;
    // It listens for who comes, from before its turn.
    metric_reaches(cluster, 0, WATCHES, 3).await;
    release(&ann, &held).await.unwrap();
    let lease = within("the turn of the first one", waiting).await.unwrap();
    // For who comes, and, when it has been held for a while, for what becomes of its key.
    watches_are(cluster, 2).await;
    (bob, lease)
}

/// Waits until there are so many watches. Who waits has three: of its key, of the one ahead and for who comes, which ends when somebody
/// has come.
async fn watches_are(cluster: &EtcdCluster, count: usize) {
    within("the watches of those who wait", async {
        while metric(cluster, WATCHES) != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_gives_the_turn_to_the_next_one_in_the_same_write() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let (mut bob, mut held) = holds_after_waiting(&cluster).await;
        let mut eve = new_client(&cluster).await;
        // Where the holder has not heard yet that somebody has come, that one asks for its turn, and holds for its TTL at once.
        let (bob, given) = within("a turn that is given", async {
            loop {
                let waiting = waits(&eve);
                sees_waiters(&bob, NAME, 1).await;
                watches_are(&cluster, 4).await;
                let before = revision(&cluster).await;
                release(&bob, &held).await.unwrap();
                let next = waiting.await.unwrap();
                assert!(next.token.sequence() > held.token.sequence());
                (held, bob, eve) = (next, eve, bob);
                let line = cluster.etcdctl(&["get", "--prefix", LOCKS, "--write-out", "json"]).await;
                if held.is_offer() && line.contains(&format!("\"mod_revision\":{},", before + 1)) {
                    break (bob, held);
                }
                watches_are(&cluster, 2).await;
            }
        })
        .await;
        // It lives as long as a place at first, and for its TTL when it is renewed.
        assert_eq!(renew(&bob, &given).await.unwrap(), Renewal::Renewed);
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(renew(&bob, &given).await.unwrap(), Renewal::Renewed);
        release(&bob, &given).await.unwrap();
        cluster.has_none(LOCKS).await;
    }
}

/// A clock by which nobody looks after anything: whoever waits hears of its turn, and does nothing else.
#[derive(Debug)]
struct Asleep(SystemClock);

impl Clock for Asleep {
    fn now(&self) -> BootInstant {
        self.0.now()
    }

    fn wall(&self) -> WallTime {
        self.0.wall()
    }

    fn nap(&self, _: BootInstant) -> Option<Duration> {
        Some(Duration::from_hours(1))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_of_its_turn_and_need_not_look() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let url = BackendUrl::parse(&cluster.url()).unwrap();
        let asleep = EtcdBackend::connect(&url, Arc::new(Asleep(SystemClock::new()))).await;
        let asleep = Arc::new(asleep.unwrap());
        // One that has not waited gives nobody its turn, which is claimed then.
        let ann = new_client(&cluster).await;
        let held = hold(&ann, NAME, LONG).await;
        watches_are(&cluster, 1).await;
        is_told(&cluster, &asleep, &ann, held).await;
        let (bob, held) = holds_after_waiting(&cluster).await;
        is_told(&cluster, &asleep, &bob, held).await;
    }
}

/// Stands in line behind a holder, which leaves; and gives back what it gets then.
async fn is_told(cluster: &EtcdCluster, asleep: &Arc<EtcdBackend>, holder: &EtcdBackend, held: Lease) {
    let waiting = waits(asleep);
    sees_waiters(holder, NAME, 1).await;
    watches_are(cluster, 4).await;
    let (_, _, place) = last_place(cluster).await;
    release(holder, &held).await.unwrap();
    let lease = within("its turn", waiting).await.unwrap();
    let place = u64::try_from(place).unwrap();
    assert_eq!(lease.token.grant(), place, "it has kept its place, which nobody keeps alive");
    release(asleep, &lease).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_news_for_the_next_in_line_and_not_for_all() {
    const WAITERS: usize = 12;
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (ann, bob) = (new_client(&cluster).await, new_client(&cluster).await);
    let mut held = hold(&ann, NAME, LONG).await;
    watches_are(&cluster, 1).await;
    let mut waiting = JoinSet::new();
    for before in 0..WAITERS {
        let bob = Arc::clone(&bob);
        waiting.spawn(async move { granted(&bob, request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await });
        // Each watches its key and the one ahead, and the last one listens for who comes.
        watches_are(&cluster, 1 + 2 * (before + 1) + 1).await;
    }
    let told = || metric(&cluster, "etcd_debugging_mvcc_events_total");
    let before = told();
    let mut holder = &ann;
    for _ in 0..WAITERS / 2 {
        release(holder, &held).await.unwrap();
        held = within("the next turn", waiting.join_next()).await.unwrap().unwrap();
        holder = &bob;
    }
    let told = told() - before;
    // That the one ahead has left, and what becomes of the own key.
    assert!(told <= 4 * WAITERS / 2, "{told} events for {} turns", WAITERS / 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_the_line_is_given_no_turn_and_holds_nobody_up() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (bob, held) = holds_after_waiting(&cluster).await;
    let (eve, dan) = (new_client(&cluster).await, new_client(&cluster).await);
    let (leaves, signal) = abandonment();
    let leaving = tokio::spawn(async move {
        eve.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER).abandoned_by(signal)).await
    });
    sees_waiters(&bob, NAME, 1).await;
    watches_are(&cluster, 4).await;
    let waiting = waits(&dan);
    sees_waiters(&bob, NAME, 2).await;
    drop(leaves);
    let left = within("it leaves", leaving).await.unwrap();
    assert!(matches!(left, Ok(Attempt::Busy(_))), "{left:?}");
    sees_waiters(&bob, NAME, 1).await;
    release(&bob, &held).await.unwrap();
    let next = within("the turn of the one behind", waiting).await.unwrap();
    assert_eq!(renew(&dan, &next).await.unwrap(), Renewal::Renewed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_given_to_the_dead_passes_on_after_seconds_and_not_after_a_ttl() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (bob, held) = holds_after_waiting(&cluster).await;
    let mut dead = Taker::start(&cluster.url(), NAME, &["--ttl", "1h"]);
    dead.asks().await;
    sees_waiters(&bob, NAME, 1).await;
    watches_are(&cluster, 4).await;
    let dan = new_client(&cluster).await;
    let waiting = waits(&dan);
    sees_waiters(&bob, NAME, 2).await;
    dead.kill();
    release(&bob, &held).await.unwrap();
    let next = within("the turn of the one behind", waiting).await.unwrap();
    assert!(next.token.sequence() > held.token.sequence());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_line_that_somebody_writes_by_hand_has_no_turn() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (bob, held) = holds_after_waiting(&cluster).await;
    let eve = new_client(&cluster).await;
    let mut waiting = waits(&eve);
    sees_waiters(&bob, NAME, 1).await;
    watches_are(&cluster, 4).await;
    let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", "--sort-by", "CREATE", LOCKS]).await;
    let key = keys.lines().rfind(|line| !line.is_empty()).unwrap();
    cluster.etcdctl(&["put", key, "by hand"]).await;
    // Longer than it takes until everybody looks where it stands.
    let overtakes = tokio::time::timeout(Duration::from_secs(3), &mut waiting).await;
    assert!(overtakes.is_err(), "somebody holds, and so does {overtakes:?}");
    assert_eq!(renew(&bob, &held).await.unwrap(), Renewal::Renewed);
    release(&bob, &held).await.unwrap();
    within("its turn", waiting).await.unwrap();
}

/// As an operator's tool does that writes keys back, which knows of no lease, or one that touches them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_key_is_written_by_hand_has_not_held() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        for touches in [false, true] {
            let ann = new_client(&cluster).await;
            let held = hold(&ann, NAME, LONG).await;
            let mut waiting = Vec::new();
            for before in 1..=3 {
                let client = new_client(&cluster).await;
                let waiter = waits(&client);
                sees_waiters(&ann, NAME, before).await;
                waiting.push((client, waiter));
            }
            let [(bob, mut first), (_cat, second), (dan, mut third)] =
                <[_; 3]>::try_from(waiting).unwrap_or_else(|_| panic!("three wait"));
            let keys =
                cluster.etcdctl(&["get", "--prefix", "--keys-only", "--sort-by", "CREATE", LOCKS]).await;
            let mut written: Vec<&str> = keys.lines().filter(|line| !line.is_empty()).skip(1).collect();
            if !touches {
                // With no lease the others would stay for good.
                written.retain(|key| Some(*key) == keys.lines().filter(|line| !line.is_empty()).nth(2));
            }
            for key in written {
                if touches {
                    cluster.etcdctl(&["put", key, "--ignore-value", "--ignore-lease"]).await;
                } else {
                    let value = cluster.etcdctl(&["get", "--print-value-only", key]).await;
                    // What ends it has no text, and was lost with the end of the line.
                    cluster.etcdctl(&["put", key, &format!("{value}\n")]).await;
                }
            }
            second.abort();
            sees_waiters(&ann, NAME, 2).await;
            let overtakes = async {
                tokio::select! {
                    lease = &mut first => lease,
                    lease = &mut third => lease,
                }
            };
            let overtakes = tokio::time::timeout(Duration::from_secs(3), overtakes).await;
            assert!(overtakes.is_err(), "somebody holds, and so does {overtakes:?}");
            assert_eq!(renew(&ann, &held).await.unwrap(), Renewal::Renewed);
            release(&ann, &held).await.unwrap();
            let next = within("the turn of the first", first).await.unwrap();
            release(&bob, &next).await.unwrap();
            let last = within("the turn of the third", third).await.unwrap();
            assert!(last.token.sequence() > next.token.sequence());
            release(&dan, &last).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_dropped_while_it_is_given_its_turn_leaves_nothing_behind() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let eve = new_client(&cluster).await;
    let (mut dropped, mut given) = (0, 0);
    for polls in 1..30 {
        let (bob, held) = holds_after_waiting(&cluster).await;
        let waits = drop_after(polls, eve.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER)));
        let gives_back = async {
            // It has joined by then, and has been polled a few times.
            tokio::time::sleep(Duration::from_millis(10)).await;
            release(&bob, &held).await.unwrap();
        };
        let (outcome, ()) = tokio::join!(waits, gives_back);
        match outcome {
            None => dropped += 1,
            Some(Ok(Attempt::Granted(lease))) => {
                given += 1;
                release(&eve, &lease).await.unwrap();
            }
            Some(other) => panic!("the name is free: {other:?}"),
        }
        cluster.has_none(LOCKS).await;
    }
    assert!(dropped > 3 && given > 3, "{dropped} were dropped on their way, and {given} had their turn");
}
