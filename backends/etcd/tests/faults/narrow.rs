//! What happens between two messages: each of these leaves nothing standing that nobody holds, and nobody holding what is not there.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, Effect, ErrorKind, Mode, RecordKey, Renewal, Wait};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Process, Proxy};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::common::{LONG, client, granted, hold, release, renew, request, within};
use crate::full::fill;
use crate::line::{FOR_EVER, sees_waiters};
use crate::{NAME, behind, metric_of, metric_reaches, now};

fn asks(
    client: &Arc<EtcdBackend>,
    mode: Mode,
    ttl: Duration,
    wait: Wait,
) -> JoinHandle<ringfence_core::Result<Attempt>> {
    let (client, request) = (Arc::clone(client), request(NAME, mode, ttl, wait));
    tokio::spawn(async move { client.acquire(request).await })
}

/// The last key of the lock's line, as soon as it is there: its key, its lease of the server and the revision at which it was
/// created.
pub(crate) async fn last_place(cluster: &EtcdCluster) -> (String, i64, i64) {
    within("a place in line", async {
        loop {
            let line = format!("ringfence/lock/{NAME}!");
            let found = cluster
                .etcdctl(&[
                    "get",
                    "--prefix",
                    "--sort-by",
                    "CREATE",
                    "--keys-only",
                    "--write-out",
                    "json",
                    &line,
                ])
                .await;
            let found: Value = serde_json::from_str(&found).unwrap();
            if let Some(place) = found["kvs"].as_array().and_then(|places| places.last()) {
                let key =
                    cluster.etcdctl(&["get", "--prefix", "--sort-by", "CREATE", "--keys-only", &line]).await;
                let key = key.lines().rfind(|line| !line.is_empty()).unwrap().to_owned();
                return (
                    key,
                    place["lease"].as_i64().unwrap_or(0),
                    place["create_revision"].as_i64().unwrap(),
                );
            }
        }
    })
    .await
}

async fn revoke(cluster: &EtcdCluster, lease: i64) {
    cluster.etcdctl(&["lease", "revoke", &format!("{lease:x}")]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_and_whose_place_is_gone_leaves_no_key() {
    // A leader that is left alone believes so long that it leads: it knows of leases, and changes nothing.
    let slow = EtcdOptions::new().members(3).set("heartbeat-interval", "300").set("election-timeout", "4500");
    let Some(cluster) = slow.start().await else { return };
    let leader = cluster.leader().await;
    let proxy = Proxy::start(cluster.port(leader)).await;
    let (ann, bob) = (behind(&proxy).await, client(&cluster.url()).await);
    let held = hold(&bob, NAME, LONG).await;
    let deadline = now().saturating_add(Duration::from_secs(6));
    let waiting = asks(&ann, Mode::Exclusive, LONG, Wait::Until(deadline));
    sees_waiters(&bob, NAME, 1).await;
    let (key, place, _) = last_place(&cluster).await;

    // It hears of its turn, and its claim is answered, but the answer takes longer than it takes us to see that.
    proxy.delay(Duration::from_millis(120));
    let changes = "etcd_server_proposals_committed_total";
    let release_and_claim = metric_of(&cluster, leader, changes) + 2;
    release(&bob, &held).await.unwrap();
    metric_reaches(&cluster, leader, changes, release_and_claim).await;
    proxy.hold_replies();
    assert_ne!(last_place(&cluster).await.1, place, "it lives by another lease");
    proxy.delay(Duration::ZERO);
    // The wait shall end while the next claim is under way, so that nobody joins the line again.
    let is_nearly_over = deadline.saturating_since(now().saturating_add(Duration::from_millis(1500)));
    tokio::time::sleep(is_nearly_over).await;
    revoke(&cluster, place).await;
    let others = (0..3).filter(|member| *member != leader);
    others.clone().for_each(|member| cluster.stop(member));
    proxy.cut_connections();
    proxy.mend();
    // The place is gone, says the leader at once, and of the claim it says nothing for three seconds.
    tokio::time::sleep(Duration::from_millis(3700)).await;
    others.for_each(|member| cluster.resume(member));

    let attempt = tokio::time::timeout(crate::HEALS, waiting).await.expect("it ends").unwrap();
    if let Ok(Attempt::Granted(lease)) = &attempt {
        release(&ann, lease).await.unwrap();
    }
    let left = cluster.etcdctl(&["get", "--keys-only", &key]).await;
    assert!(left.is_empty(), "nobody holds, and this stands: {left}, after {attempt:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_cluster_has_called_dead_is_not_granted_from() {
    const TTL: Duration = Duration::from_secs(6);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    // It asks by the way that will be held up, and keeps alive by the other one.
    let url = format!("etcd://127.0.0.1:{},127.0.0.1:{}", proxy.port(), cluster.port(0));
    let ann = Arc::new(client(&url).await);
    hold(&ann, "warm", TTL).await;
    // Until a grant keeps its lease alive first, so that this way is left while the grant is on it.
    tokio::time::sleep(TTL / 8).await;
    proxy.hold_replies();
    let asking = asks(&ann, Mode::Exclusive, TTL, Wait::No);
    let (_, lease, _) = last_place(&cluster).await;
    revoke(&cluster, lease).await;
    // The keep-alive is waited for a sixth of the TTL, the grant for three seconds.
    tokio::time::sleep(TTL / 4).await;
    // That is refused for the lease, and granted by another one.
    hold(&ann, "another", TTL).await;
    proxy.mend();
    let attempt = within("an answer", asking).await.unwrap();
    let Ok(Attempt::Granted(lease)) = attempt else { panic!("nobody is in its way: {attempt:?}") };
    assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed, "what is granted is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_counts_from_before_it_was_asked_for_and_is_none_when_that_is_too_long_ago() {
    const TTL: Duration = Duration::from_secs(2);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = behind(&proxy).await;
    for (late, is_granted) in [(TTL / 4, true), (TTL + TTL / 8, false)] {
        // Its lease is there, so that the next thing it asks for is the lock.
        let warm = hold(&ann, "warm", TTL).await;
        proxy.hold_replies();
        let asking = asks(&ann, Mode::Exclusive, TTL, Wait::No);
        let (key, ..) = last_place(&cluster).await;
        let granted = now();
        tokio::time::sleep(late).await;
        proxy.mend();
        match within("an answer", asking).await.unwrap() {
            Ok(Attempt::Granted(lease)) if is_granted => {
                assert!(lease.deadline() <= granted.saturating_add(TTL), "it is over at the cluster by then");
                release(&ann, &lease).await.unwrap();
                release(&ann, &warm).await.unwrap();
            }
            Err(error) if !is_granted => {
                assert_eq!(
                    (error.kind(), error.effect()),
                    (ErrorKind::Unavailable, Effect::None),
                    "{error:?}"
                );
            }
            other => panic!("its answer came after {late:?}: {other:?}"),
        }
        cluster.has_none(&key).await;
    }
    // One that lives by a lease that is there counts from when that was kept alive last.
    hold(&ann, "warm", LONG).await;
    let kept = now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let lease = hold(&ann, NAME, LONG).await;
    assert!(lease.deadline() <= kept.saturating_add(LONG), "nobody has kept it alive since");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_opened_between_the_look_and_the_write_takes_no_older_token() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let (ann, bob) = (behind(&proxy).await, client(&cluster.url()).await);
    let anns = granted(&ann, request(NAME, Mode::Shared, LONG, Wait::No)).await;
    let bobs = granted(&bob, request(NAME, Mode::Shared, LONG, Wait::No)).await;
    let key = RecordKey::of(anns.key.name.clone());
    ann.records().open(&key, anns.token).await.unwrap();
    proxy.hold_replies();
    let writing = tokio::spawn({
        let (ann, key) = (Arc::clone(&ann), key.clone());
        async move { ann.records().write(&key, anns.token, "late".into()).await }
    });
    // The look has been answered when the next one is, because each has a moment to arrive.
    tokio::time::sleep(Duration::from_millis(500)).await;
    bob.records().open(&key, bobs.token).await.unwrap();
    proxy.mend();
    let error = within("an answer", writing).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Stale, Effect::None), "{error:?}");
    bob.records().write(&key, bobs.token, "in time".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawal_that_takes_longer_than_the_ttl_goes_on_in_the_background() {
    const TTL: Duration = Duration::from_secs(2);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = behind(&proxy).await;
    hold(&ann, "warm", TTL).await;
    proxy.hold_replies();
    let asking = asks(&ann, Mode::Exclusive, TTL, Wait::No);
    let (_, lease, _) = last_place(&cluster).await;
    proxy.cut();
    // As somebody does who shares the lease.
    let mut keeper = cluster.etcdctl_command();
    keeper.args(["lease", "keep-alive", &format!("{lease:x}")]);
    let _keeper = Process::start(keeper).unwrap();
    let error = within("an error after the TTL", asking).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    let (key, ..) = last_place(&cluster).await;
    // The connections that there were are gone for good, with all that was under way on them.
    proxy.cut_connections();
    proxy.mend();
    cluster.has_none(&key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_is_withdrawn_while_the_database_is_full() {
    let small = EtcdOptions::new().set("quota-backend-bytes", "2097152");
    for cluster in crate::of_each_version(small).await {
        let proxy = Proxy::start(cluster.port(0)).await;
        let ann = behind(&proxy).await;
        let warm = hold(&ann, "warm", LONG).await;
        proxy.hold_replies();
        let asking = asks(&ann, Mode::Exclusive, LONG, Wait::No);
        let (key, ..) = last_place(&cluster).await;
        fill(&cluster).await;
        proxy.cut_connections();
        proxy.mend();
        let error = within("the withdrawal is answered", asking).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
        cluster.has_none(&key).await;
        assert_eq!(renew(&ann, &warm).await.unwrap(), Renewal::Renewed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_downgrade_that_is_not_kept_alive_has_let_readers_in_and_says_that_its_effect_is_unknown() {
    const TTL: Duration = Duration::from_secs(2);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let (ann, bob) = (behind(&proxy).await, Arc::new(client(&cluster.url()).await));
    let held = hold(&ann, NAME, TTL).await;
    let reading = asks(&bob, Mode::Shared, LONG, FOR_EVER);
    sees_waiters(&bob, NAME, 1).await;
    assert_eq!(renew(&ann, &held).await.unwrap(), Renewal::Renewed);
    // Longer than a keep-alive of this TTL is waited for, and shorter than a change is.
    proxy.delay(Duration::from_millis(250));
    let error = within("an answer", ann.downgrade(&held.key)).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    proxy.delay(Duration::ZERO);
    let reader = within("readers are let in", reading).await.unwrap();
    assert!(matches!(reader, Ok(Attempt::Granted(_))), "{reader:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_lives_on_while_its_turn_is_claimed() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let (ann, bob) = (behind(&proxy).await, client(&cluster.url()).await);
    let held = hold(&bob, NAME, LONG).await;
    let waiting = asks(&ann, Mode::Shared, LONG, FOR_EVER);
    sees_waiters(&bob, NAME, 1).await;
    let (_, _, created) = last_place(&cluster).await;
    // A reader looks before it claims: its claim arrives after three times as long. In two steps, because each makes a pause
    // between the keep-alives that arrive.
    for delay in [700, 1400] {
        proxy.delay(Duration::from_millis(delay));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let released = now();
    release(&bob, &held).await.unwrap();
    let attempt = tokio::time::timeout(crate::HEALS, waiting).await.expect("its turn comes").unwrap();
    let Ok(Attempt::Granted(lease)) = attempt else { panic!("it must be granted: {attempt:?}") };
    let took = now().saturating_since(released);
    assert_eq!(i64::try_from(lease.token.grant()), Ok(created), "it never lost its place, and took {took:?}");
}
