//! Under verbatim keys `etcdctl lock`, which is the mutex of Go's package `concurrency`, stands in one line with ours.

mod common;
#[path = "common/line.rs"]
mod line;

use std::sync::Arc;
use std::time::Duration;

use common::{LONG, client, granted, hold, name, of_each_version, release, renew, request, within};
use line::{FOR_EVER, sees_waiters};
use ringfence_core::{Attempt, Backend, Eviction, Mode, Renewal, Wait};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Process};

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
        assert!(!state.holders[0].remaining.is_zero());
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
