//! A release gives the turn to the next in line, and to nobody who is not there.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, Lease, Mode, Renewal, abandonment};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Taker};
use ringfence_testkit::drop_after;

use crate::common::{LONG, client, hold, of_each_version, release, renew, request, within};
use crate::line::{FOR_EVER, sees_waiters};
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
