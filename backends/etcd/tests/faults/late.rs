//! What a member says that was cut off and is behind: of keys that were there before, and nothing of what it never saw.

use std::sync::Arc;
use std::time::Duration;

use ringfence::Locks;
use ringfence_core::{Backend, Mode, Renewal, abandonment};
use ringfence_servers::{EtcdCluster, EtcdOptions, Proxy};
use tokio::task::JoinSet;

use crate::common::{LONG, client, hold, release, renew, request, within};
use crate::line::{FOR_EVER, sees_waiters};
use crate::{LOCKS, NAME, metric_reaches, waits};

/// Three members, and which of them leads and which does not.
async fn three(options: EtcdOptions) -> Option<(EtcdCluster, usize, usize)> {
    let cluster = options.members(3).separable().start().await?;
    let leader = cluster.leader().await;
    Some((cluster, leader, (leader + 1) % 3))
}

fn at(port: u16) -> String {
    format!("etcd://127.0.0.1:{port}")
}

/// Waits until somebody watches at a member.
async fn is_watched_at(cluster: &EtcdCluster, member: usize, watches: usize) {
    metric_reaches(cluster, member, "etcd_debugging_mvcc_watcher_total", watches).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_late_of_a_key_that_was_there_before_does_not_overtake() {
    let Some((cluster, leader, behind)) = three(EtcdOptions::new()).await else { return };
    let proxy = Proxy::start(cluster.port(leader)).await;
    let url = format!("{},127.0.0.1:{}", at(proxy.port()), cluster.port(behind));
    let ann = Arc::new(client(&url).await);
    let at_leader = at(cluster.port(leader));
    let (bob, eve) = (Arc::new(client(&at_leader).await), Arc::new(client(&at_leader).await));
    cluster.cut_off(behind);
    // Bob holds alone after he has waited, and then stands in line by the same key, behind Eve.
    let held = hold(&eve, NAME, LONG).await;
    let bobs = waits(&bob);
    sees_waiters(&eve, NAME, 1).await;
    release(&eve, &held).await.unwrap();
    let bobs = within("Bob's turn", bobs).await.unwrap();
    let eves = waits(&eve);
    sees_waiters(&eve, NAME, 1).await;
    release(&bob, &bobs).await.unwrap();
    let held = within("Eve's turn", eves).await.unwrap();
    // She was given it, and holds for her TTL from now on.
    assert_eq!(renew(&eve, &held).await.unwrap(), Renewal::Renewed);
    let (leaving, signal) = abandonment();
    let bobs = tokio::spawn(async move {
        bob.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER).abandoned_by(signal)).await
    });
    sees_waiters(&eve, NAME, 1).await;
    let mut anns = waits(&ann);
    sees_waiters(&eve, NAME, 2).await;

    // Her next member has seen nothing of all that, and tells it when it does.
    drop(proxy);
    is_watched_at(&cluster, behind, 3).await;
    cluster.mend();
    cluster.is_healthy(behind).await;
    sees_waiters(&client(&at(cluster.port(behind))).await, NAME, 2).await;
    drop(leaving);
    within("Bob leaves", bobs).await.unwrap().unwrap();
    let overtakes = tokio::time::timeout(Duration::from_secs(3), &mut anns).await;
    assert!(overtakes.is_err(), "Eve holds, and so does {overtakes:?}");
    release(&eve, &held).await.unwrap();
    let next = within("Ann's turn", anns).await.unwrap();
    assert!(next.token.sequence() > held.token.sequence());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_late_of_the_end_of_an_earlier_lease_keeps_the_one_at_hand() {
    let Some((cluster, leader, behind)) = three(EtcdOptions::new()).await else { return };
    let proxy = Proxy::start(cluster.port(leader)).await;
    let url = format!("{},127.0.0.1:{}", at(proxy.port()), cluster.port(behind));
    let ann = Locks::connect(&url).await.unwrap();
    cluster.cut_off(behind);
    let gone = ann.lock("gone").ttl(LONG).acquire().await.unwrap();
    ann.lock(NAME).ttl(LONG).acquire().await.unwrap().release().await.unwrap();
    let kept = ann.lock(NAME).ttl(LONG).acquire().await.unwrap();
    // What has been held for a moment is watched.
    is_watched_at(&cluster, leader, 2).await;
    drop(proxy);
    is_watched_at(&cluster, behind, 2).await;
    cluster.mend();
    cluster.is_healthy(behind).await;
    // Whatever came before it has been heard with it.
    cluster.etcdctl(&["del", "--prefix", "ringfence/lock/gone!"]).await;
    within("a loss is told", gone.lost()).await;
    assert!(kept.is_held(), "its key stands");
    kept.release().await.unwrap();
    cluster.has_none(LOCKS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_whose_member_was_given_a_snapshot_learns_of_a_loss_afterwards() {
    // Nobody renews it meanwhile, which would find the loss.
    const TTL: Duration = Duration::from_mins(10);
    let Some((cluster, leader, behind)) = three(EtcdOptions::new().set("snapshot-count", "100")).await else {
        return;
    };
    let ann = Locks::connect(&at(cluster.port(behind))).await.unwrap();
    let held = ann.lock(NAME).ttl(TTL).acquire().await.unwrap();
    is_watched_at(&cluster, behind, 1).await;
    cluster.cut_off(behind);
    // A leader remembers 5,000 entries for those who are behind.
    let mut writing = JoinSet::new();
    for number in 0..32 {
        let url = at(cluster.port(leader));
        writing.spawn(async move {
            let (bob, lock) = (client(&url).await, format!("another {number}"));
            let mut last = 0;
            for _ in 0..90 {
                let lease = hold(&bob, &lock, LONG).await;
                release(&bob, &lease).await.unwrap();
                last = lease.token.grant();
            }
            last
        });
    }
    let last = writing.join_all().await.into_iter().max().expect("they write").to_string();
    within("a compaction, by whichever member", async {
        let compact = ["--command-timeout", "1s", "compact", &last];
        while cluster.ask(&compact).await.is_err_and(|error| !error.contains("compacted")) {}
    })
    .await;
    // What it has missed is in no log any more, and it ends the watches that begin before that.
    cluster.mend();
    cluster.is_healthy(behind).await;
    metric_reaches(&cluster, behind, "etcd_debugging_mvcc_compact_revision", 1).await;
    cluster.etcdctl(&["del", "--prefix", &format!("{LOCKS}{NAME}!")]).await;
    within("the loss is told", held.lost()).await;
}
