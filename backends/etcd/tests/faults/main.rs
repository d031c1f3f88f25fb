//! What becomes of locks when members die and stop, replies are lost, leases and keys are removed, and callers go away.

mod clock;
#[path = "../common/mod.rs"]
mod common;
mod fence;
#[path = "../common/full.rs"]
mod full;
mod late;
#[path = "../common/line.rs"]
mod line;
mod narrow;
mod slots;
mod turns;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, client, connect, granted, hold, name, of_each_version, release, renew, request, within};
use full::revision;
use line::{FOR_EVER, sees_waiters};
use ringfence::Locks;
use ringfence_core::{
    Attempt, Backend, Clock, Effect, ErrorKind, FencingToken, Lease, Mode, RecordKey, Release, Renewal,
    Retry, SystemClock, Wait, abandonment,
};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Proxy, Taker};
use ringfence_testkit::drop_after;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const NAME: &str = "orders/42";

/// Where the keys of all locks are.
const LOCKS: &str = "ringfence/lock/";

/// How long members may take to elect a leader on a busy machine, and clients to find one that answers.
const HEALS: Duration = Duration::from_secs(30);

fn now() -> ringfence_core::BootInstant {
    SystemClock::new().now()
}

/// A client behind a proxy.
async fn behind(proxy: &Proxy) -> Arc<EtcdBackend> {
    Arc::new(client(&format!("etcd://127.0.0.1:{}", proxy.port())).await)
}

/// Begins to wait for the lock, which it must get.
fn waits(client: &Arc<EtcdBackend>) -> JoinHandle<Lease> {
    let client = Arc::clone(client);
    tokio::spawn(async move { granted(&client, request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await })
}

async fn locks(cluster: &EtcdCluster) -> Locks {
    Locks::connect(&cluster.url()).await.expect("a cluster that runs")
}

/// What a member can suffer.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
}

impl Fault {
    fn begin(self, cluster: &mut EtcdCluster, member: usize) {
        match self {
            Self::Kill => cluster.kill(member),
            Self::Stop => cluster.stop(member),
        }
    }

    fn end(self, cluster: &mut EtcdCluster, member: usize) {
        match self {
            Self::Kill => cluster.start_again(member),
            Self::Stop => cluster.resume(member),
        }
    }
}

/// Holders keep what they hold, waiters their places, and newcomers get what is free, while one of three members is gone.
async fn one_member_goes(mut cluster: EtcdCluster, fault: Fault, leads: bool) {
    const TTL: Duration = Duration::from_secs(20);
    let (ann, bob) = (locks(&cluster).await, locks(&cluster).await);
    let held = ann.lock(NAME).ttl(TTL).acquire().await.unwrap();
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.lock(NAME).ttl(TTL).acquire().await }
    });
    let eye = client(&cluster.url()).await;
    sees_waiters(&eye, NAME, 1).await;

    let leader = cluster.leader().await;
    // The clients are at the first member.
    let gone = if leads { leader } else { usize::from(leader == 0) };
    fault.begin(&mut cluster, gone);
    let newcomer = tokio::time::timeout(HEALS, async {
        loop {
            match ann.lock("another").ttl(TTL).acquire().await {
                Ok(guard) => break guard,
                Err(error) => assert_eq!(error.retry(), Retry::Later, "{error:?}"),
            }
        }
    });
    let newcomer = newcomer.await.expect("a newcomer gets what is free");
    assert!(!waiting.is_finished(), "the first one holds");
    assert!(held.is_held(), "a holder keeps what it holds");
    let first = held.token();
    held.release().await.unwrap();
    let next =
        tokio::time::timeout(HEALS, waiting).await.expect("the next one has its turn").unwrap().unwrap();
    assert!(next.token().sequence() > first.sequence(), "tokens rise: {first}, {}", next.token());
    fault.end(&mut cluster, gone);
    cluster.is_healthy(gone).await;
    assert!(next.is_held() && newcomer.is_held());
    next.release().await.unwrap();
    newcomer.release().await.unwrap();
    cluster.has_none(LOCKS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_is_followed_by_holders_waiters_and_newcomers() {
    for cluster in of_each_version(EtcdOptions::new().members(3)).await {
        one_member_goes(cluster, Fault::Kill, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_is_followed_by_holders_waiters_and_newcomers() {
    let Some(cluster) = EtcdCluster::start(3).await else { return };
    one_member_goes(cluster, Fault::Stop, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_stopped_is_left() {
    let Some(cluster) = EtcdCluster::start(3).await else { return };
    one_member_goes(cluster, Fault::Stop, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_a_guard_is_lost_at_its_deadline_and_the_lock_is_free_soon_after_it_is_back() {
    const TTL: Duration = Duration::from_secs(4);
    let Some(mut cluster) = EtcdCluster::start(3).await else { return };
    let ann = locks(&cluster).await;
    let held = ann.lock(NAME).ttl(TTL).acquire().await.unwrap();
    let first = held.token();
    let cut = now();
    cluster.kill(1);
    cluster.kill(2);
    tokio::time::timeout(2 * TTL, held.lost()).await.expect("the loss is told by the local deadline");
    let took = now().saturating_since(cut);
    assert!(took >= TTL / 2, "a lease that was just renewed is not lost after {took:?}");
    assert!(took <= TTL + Duration::from_secs(1), "nobody may claim it after its TTL, not after {took:?}");
    let eve = ann.lock("another").ttl(TTL).try_acquire().await;
    let error = eve.expect_err("nothing is granted without a majority");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");

    cluster.start_again(1);
    cluster.start_again(2);
    for member in 0..3 {
        cluster.is_healthy(member).await;
    }
    let healed = now();
    let next = client(&cluster.url()).await;
    let lease =
        tokio::time::timeout(HEALS, next.acquire(request(NAME, Mode::Exclusive, TTL, FOR_EVER))).await;
    let Ok(Ok(Attempt::Granted(lease))) = lease else { panic!("the lock must be free again: {lease:?}") };
    let took = now().saturating_since(healed);
    assert!(
        took <= 2 * TTL + Duration::from_secs(3),
        "a lock is free within twice its TTL and 3 s, not {took:?}"
    );
    assert!(lease.token.sequence() > first.sequence(), "tokens rise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_is_dropped_anywhere_leaves_nothing_behind() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (ann, bob) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let mut dropped = 0;
    for wait in [Wait::No, FOR_EVER] {
        for polls in 1..12 {
            match drop_after(polls, ann.acquire(request(NAME, Mode::Exclusive, LONG, wait))).await {
                None => dropped += 1,
                Some(Ok(Attempt::Granted(lease))) => {
                    release(&ann, &lease).await.unwrap();
                }
                Some(other) => panic!("the name is free: {other:?}"),
            }
            cluster.has_none(LOCKS).await;
        }
    }
    let held = hold(&bob, NAME, LONG).await;
    for polls in 1..12 {
        let waits = ann.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER));
        assert!(drop_after(polls, waits).await.is_none(), "the name is held");
        dropped += 1;
        sees_waiters(&bob, NAME, 0).await;
    }
    assert!(dropped > 12, "only {dropped} attempts were dropped on their way");
    assert_eq!(renew(&bob, &held).await.unwrap(), Renewal::Renewed, "nobody else noticed");
}

/// Waits until the server has nothing left to say: the first thing of it that is swallowed takes its connection along, and what is
/// asked there afterwards never arrives. HTTP/2 says something now and then that is no answer.
async fn all_is_said(proxy: &Proxy) {
    within("the server is silent", async {
        let mut heard = u64::MAX;
        while std::mem::replace(&mut heard, proxy.heard()) != proxy.heard() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_whose_answer_was_lost_is_withdrawn_before_its_error_is_told() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = behind(&proxy).await;
    // Its lease is there, so that the next thing it asks for is the lock.
    let warm = hold(&ann, "warm", LONG).await;
    for wait in [Wait::No, FOR_EVER] {
        // The connection is there as well: one that was mended is another one.
        within("a connection", async { while renew(&ann, &warm).await.is_err() {} }).await;
        all_is_said(&proxy).await;
        proxy.swallow_replies();
        let attempt = tokio::spawn({
            let ann = Arc::clone(&ann);
            async move { ann.acquire(request(NAME, Mode::Exclusive, LONG, wait)).await }
        });
        proxy.swallowed().await;
        within("the cluster has the key", async {
            while cluster
                .etcdctl(&["get", "--prefix", "--keys-only", "ringfence/lock/orders"])
                .await
                .is_empty()
            {}
        })
        .await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!attempt.is_finished(), "nobody knows yet what became of it");
        proxy.mend();
        let error = within("the withdrawal is answered", attempt).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
        cluster.has_none("ringfence/lock/orders").await;
    }
    assert_eq!(renew(&ann, &warm).await.unwrap(), Renewal::Renewed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_arrives_after_its_withdrawal_does_not_come_back() {
    for is_free in [true, false] {
        arrives_after_its_withdrawal(is_free).await;
    }
}

async fn arrives_after_its_withdrawal(is_free: bool) {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    // It asks by the way that will be held up, and withdraws by the other one.
    let url = format!("etcd://127.0.0.1:{},127.0.0.1:{}", proxy.port(), cluster.port(0));
    let (ann, bob) = (Arc::new(client(&url).await), client(&cluster.url()).await);
    let asks = |lock: &str| {
        let (ann, request) = (Arc::clone(&ann), request(lock, Mode::Exclusive, LONG, FOR_EVER));
        tokio::spawn(async move { ann.acquire(request).await })
    };
    // What it asks with is there, and what its place would live by, which another one keeps alive.
    let warm = hold(&ann, "warm", LONG).await;
    hold(&bob, "other", LONG).await;
    let other = asks("other");
    sees_waiters(&bob, "other", 1).await;
    if !is_free {
        hold(&bob, NAME, LONG).await;
    }
    let line = || cluster.etcdctl(&["get", "--prefix", "--keys-only", "ringfence/lock/orders"]);
    let before = line().await;

    proxy.cut();
    let attempt = asks(NAME);
    // It has asked by then, and still waits for the answer. That it does so no more, the cluster never hears.
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.lose_what_is_sent();
    let error = within("an error", attempt).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let proposed = "etcd_server_proposals_committed_total";
    let late = metric(&cluster, proposed) + 1;
    proxy.hold_replies();
    metric_reaches(&cluster, 0, proposed, late).await;
    assert_eq!(line().await, before, "what arrives late finds that it was withdrawn");
    assert_eq!(renew(&ann, &warm).await.unwrap(), Renewal::Renewed);
    other.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_learns_at_once_that_its_key_or_its_lease_was_removed() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let ann = locks(&cluster).await;
        for revokes in [false, true] {
            let held = ann.lock(NAME).ttl(LONG).acquire().await.unwrap();
            let key = cluster.etcdctl(&["get", "--prefix", "--keys-only", LOCKS]).await;
            // The watch of the own key is on its way when the guard is there: what comes before it is seen by the next renewal.
            tokio::time::sleep(Duration::from_millis(200)).await;
            if revokes {
                let (_, place) = key.trim().rsplit_once('!').unwrap();
                cluster.etcdctl(&["lease", "revoke", place.split_once('-').unwrap().0]).await;
            } else {
                cluster.etcdctl(&["del", key.trim()]).await;
            }
            within("the loss is told long before the first renewal", held.lost()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_whose_key_went_while_its_watch_was_broken_learns_of_it_when_that_is_back() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = Locks::connect(&format!("etcd://127.0.0.1:{}", proxy.port())).await.unwrap();
    let (gone, kept) = (
        ann.lock("gone").ttl(LONG).acquire().await.unwrap(),
        ann.lock("kept").ttl(LONG).acquire().await.unwrap(),
    );
    // The watches are on their way when the guards are there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.cut();
    cluster.etcdctl(&["del", "--prefix", "ringfence/lock/gone!"]).await;
    // What the server tells of it is on a connection that never comes back.
    proxy.cut_connections();
    proxy.mend();
    within("the loss is told long before the first renewal", gone.lost()).await;
    assert!(kept.is_held(), "it was looked at, and is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_is_killed_is_out_of_the_line_after_seconds_and_not_after_its_ttl() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = Arc::new(client(&cluster.url()).await);
    let held = hold(&ann, NAME, LONG).await;
    let mut dead = Taker::start(&cluster.url(), NAME, &["--ttl", "1h"]);
    dead.asks().await;
    sees_waiters(&ann, NAME, 1).await;
    dead.kill();
    sees_waiters(&ann, NAME, 0).await;
    assert_eq!(release(&ann, &held).await.unwrap(), Release::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_nobody_renews_lapses_beside_one_that_is_renewed() {
    const TTL: Duration = Duration::from_secs(2);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (ann, bob) = (client(&cluster.url()).await, client(&cluster.url()).await);
    // They share a lease of the server.
    let (kept, left) = (hold(&ann, "kept", TTL).await, hold(&ann, "left", TTL).await);
    let taken = bob.acquire(request("left", Mode::Exclusive, TTL, FOR_EVER));
    let mut taken = pin!(taken);
    let lease = within("the other one lapses", async {
        loop {
            tokio::select! {
                taken = &mut taken => break taken,
                () = tokio::time::sleep(TTL / 4) => {
                    assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed);
                }
            }
        }
    })
    .await;
    assert!(matches!(lease, Ok(Attempt::Granted(_))), "{lease:?}");
    assert!(now() >= left.deadline(), "it does not lapse before its TTL");
    assert_eq!(renew(&ann, &left).await.unwrap(), Renewal::Lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_nobody_renews_is_ended_after_the_network_was_gone_when_it_was_due() {
    const TTL: Duration = Duration::from_secs(8);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = behind(&proxy).await;
    // They share a lease of the server.
    let (left, kept) = (hold(&ann, "left", TTL).await, hold(&ann, "kept", TTL).await);
    let is_nearly_due = left.deadline().saturating_since(now().saturating_add(Duration::from_secs(1)));
    tokio::time::sleep(is_nearly_due).await;
    assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed);
    proxy.accept_and_be_silent();
    // What is sent now never arrives, and is given up after three seconds.
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    proxy.mend();
    within("the one that is kept lives on", async { while renew(&ann, &kept).await.is_err() {} }).await;
    let ended = within("the other one ends", async {
        for _ in 0..100 {
            if cluster.etcdctl(&["get", "--prefix", "--keys-only", "ringfence/lock/left"]).await.is_empty() {
                return true;
            }
            assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    });
    assert!(ended.await, "nobody renews it, and its key still stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_whose_lease_is_revoked_take_no_holder_with_them() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let (ann, bob) = (Arc::new(client(&cluster.url()).await), client(&cluster.url()).await);
        let (kept, held) = (hold(&ann, "kept", LONG).await, hold(&bob, NAME, LONG).await);
        let leases = async || -> BTreeSet<String> {
            cluster.etcdctl(&["lease", "list"]).await.lines().skip(1).map(str::to_owned).collect()
        };
        let before = leases().await;
        let waiting = tokio::spawn({
            let ann = Arc::clone(&ann);
            async move { granted(&ann, request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await }
        });
        // Several times, because a place is not asked for again where a keep-alive comes first and finds its lease gone.
        for _ in 0..5 {
            sees_waiters(&bob, NAME, 1).await;
            for place in leases().await.difference(&before) {
                cluster.etcdctl(&["lease", "revoke", place]).await;
            }
        }
        assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed, "its lease was not revoked");
        release(&bob, &held).await.unwrap();
        within("its turn", waiting).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_leases_are_kept_by_one_message_and_given_back_in_few_writes() {
    const COUNT: usize = 1000;
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = Arc::new(client(&cluster.url()).await);
    let before = revision(&cluster).await;
    let mut taking = tokio::task::JoinSet::new();
    for number in 0..COUNT {
        let ann = Arc::clone(&ann);
        taking.spawn(async move { hold(&ann, &format!("lock {number}"), LONG).await });
    }
    let leases = within("a thousand locks", taking.join_all()).await;
    let writes = revision(&cluster).await - before;
    assert!(writes <= 100, "what comes together goes together, not in {writes} writes");
    let sequences: BTreeSet<u64> = leases.iter().map(|lease| lease.token.sequence()).collect();
    assert!(sequences.len() <= 100, "one write has one revision");
    assert_eq!(cluster.leases().await, 1, "they share a lease of the server");

    let keys: Vec<_> = leases.iter().map(|lease| lease.key.clone()).collect();
    let renewed = within("a renewal", ann.renew(&keys)).await.unwrap();
    assert!(renewed.iter().all(|renewal| *renewal == Renewal::Renewed));
    let before = revision(&cluster).await;
    let released = within("a release", ann.release(&keys)).await.unwrap();
    assert!(released.iter().all(|release| *release == Release::Released));
    let writes = revision(&cluster).await - before;
    assert!(writes <= 100, "what goes together goes in few writes, not in {writes}");
}

/// What the first member counts under a name that begins so.
fn metric(cluster: &EtcdCluster, name: &str) -> usize {
    metric_of(cluster, 0, name)
}

/// What a member counts under a name that begins so.
fn metric_of(cluster: &EtcdCluster, member: usize, name: &str) -> usize {
    let mut stream = TcpStream::connect(("127.0.0.1", cluster.port(member))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    let line = metrics.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("a counter")
}

/// Waits until a member has counted so many.
async fn metric_reaches(cluster: &EtcdCluster, member: usize, name: &str, count: usize) {
    within(name, async {
        while metric_of(cluster, member, name) < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_and_hears_nothing_writes_nothing() {
    const WAITERS: usize = 20;
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = behind(&proxy).await;
    let held = hold(&ann, NAME, LONG).await;
    let waiting: Vec<_> = (0..WAITERS)
        .map(|_| {
            let ann = Arc::clone(&ann);
            // Nobody gives up while this is looked at.
            tokio::spawn(async move { ann.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await })
        })
        .collect();
    sees_waiters(&ann, NAME, WAITERS).await;
    let writes = || metric(&cluster, "etcd_server_proposals_committed_total");
    // What each sees behind its joining may still be looked at.
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A thousand who claim their turn because their connection broke are enough that the next one breaks as well.
    for breaks in [false, true] {
        let before = writes();
        if breaks {
            proxy.cut_connections();
        }
        // Longer than it takes until everybody looks where it stands, twice.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let written = writes() - before;
        assert!(written < WAITERS, "{written} writes while nothing happened; the connection broke: {breaks}");
    }
    for waiting in &waiting {
        waiting.abort();
    }
    release(&ann, &held).await.unwrap();
}

/// A server may tell a new watch of what it missed a tenth of a second late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_just_begun_to_wait_looks_as_well() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (ann, bob) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let held = hold(&ann, NAME, LONG).await;
    let looks = "grpc_server_msg_received_total{grpc_method=\"Txn\"";
    let before = metric(&cluster, looks);
    let since = now();
    let waiting =
        tokio::spawn(async move { bob.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await });
    // It joins, which may take two, and looks when it is watched and five times until the watch must be up to date.
    metric_reaches(&cluster, 0, looks, before + 7).await;
    let took = now().saturating_since(since);
    // Who looks every two seconds only, has looked once by then.
    assert!(took < Duration::from_secs(3), "seven calls of one that waits took {took:?}");
    waiting.abort();
    release(&ann, &held).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_at_a_member_that_hangs_up_pauses_before_it_asks_again() {
    let Some(mut cluster) = EtcdCluster::start(1).await else { return };
    let (ann, bob) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let _held = hold(&ann, NAME, LONG).await;
    let waiting =
        tokio::spawn(async move { bob.acquire(request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await });
    sees_waiters(&ann, NAME, 1).await;
    cluster.kill(0);
    let in_its_place = TcpListener::bind((Ipv4Addr::LOCALHOST, cluster.port(0))).await.unwrap();
    let mut calls = 0;
    let counted = async {
        loop {
            drop(in_its_place.accept().await.unwrap());
            calls += 1;
        }
    };
    // Longer than it takes until it looks where it stands, whatever it hears.
    let counted = tokio::time::timeout(Duration::from_secs(5), counted).await;
    assert!(counted.is_err() && calls < 100, "{calls} connections of one that waits");
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_given_back_at_once_costs_two_calls_and_no_watch() {
    const COUNT: usize = 30;
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&cluster.url()).await;
    // With it there is a stream of watches, and a lease of the server.
    let _held = hold(&ann, "held", LONG).await;
    let calls = || {
        ["Txn", "DeleteRange", "Watch"].map(|method| {
            metric(&cluster, &format!("grpc_server_msg_received_total{{grpc_method=\"{method}\""))
        })
    };
    let before = calls();
    for _ in 0..COUNT {
        let lease = hold(&ann, NAME, LONG).await;
        release(&ann, &lease).await.unwrap();
    }
    let after = calls();
    let [taking, giving_back, watching] = [0, 1, 2].map(|at| after[at] - before[at]);
    assert_eq!(giving_back, COUNT, "a deletion for each");
    // On a busy machine a few of them are held for longer than a moment, so that their keys are watched and looked at.
    assert!((COUNT..2 * COUNT).contains(&taking), "{taking} transactions for {COUNT} locks");
    assert!(watching < COUNT, "{watching} orders for watches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_of_one_process_are_different_waiters_with_tokens_of_their_own() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = Arc::new(client(&cluster.url()).await);
    let mut taking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let ann = Arc::clone(&ann);
        taking.spawn(async move {
            let lease = granted(&ann, request(NAME, Mode::permit(3).unwrap(), LONG, FOR_EVER)).await;
            assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
            let holders = ann.inspect(&name(NAME)).await.unwrap().holders.len();
            assert!((1..=3).contains(&holders), "{holders} hold of 3");
            release(&ann, &lease).await.unwrap();
            lease.token
        });
    }
    let tokens: Vec<FencingToken> = within("everybody has a turn", taking.join_all()).await;
    let sequences: BTreeSet<u64> = tokens.iter().map(|token| token.sequence()).collect();
    assert_eq!(sequences.len(), tokens.len(), "each has a number of its own: {tokens:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_takes_no_turn_away() {
    for cluster in of_each_version(EtcdOptions::new()).await {
        let ann = Arc::new(client(&cluster.url()).await);
        let held = hold(&ann, NAME, LONG).await;
        let waiting = tokio::spawn({
            let ann = Arc::clone(&ann);
            async move { granted(&ann, request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await }
        });
        sees_waiters(&ann, NAME, 1).await;
        for _ in 0..10 {
            cluster.etcdctl(&["put", "other", "value"]).await;
        }
        let revision = revision(&cluster).await.to_string();
        cluster.etcdctl(&["compact", &revision]).await;
        release(&ann, &held).await.unwrap();
        within("a turn", waiting).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_member_in_the_url_costs_nothing_after_the_first_try() {
    let Some(mut cluster) = EtcdCluster::start(3).await else { return };
    cluster.kill(0);
    for member in 1..3 {
        cluster.is_healthy(member).await;
    }
    let ann = tokio::time::timeout(HEALS, async {
        loop {
            match connect(&cluster.url()).await {
                Ok(client) => break client,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
        }
    });
    let ann = ann.await.expect("two of three are enough");
    let lease = hold(&ann, NAME, LONG).await;
    release(&ann, &lease).await.unwrap();
    let begun = now();
    for _ in 0..20 {
        let lease = hold(&ann, NAME, LONG).await;
        release(&ann, &lease).await.unwrap();
    }
    let took = now().saturating_since(begun);
    assert!(took < Duration::from_secs(5), "twenty pairs ask the living, and take {took:?}");
}

/// A command of the shell is a newcomer each time, and begins with the first member that its URL names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_passes_over_a_member_that_takes_connections_and_serves_nobody() {
    let Some(cluster) = EtcdOptions::new().members(3).separable().start().await else { return };
    let (leader, far) = (cluster.leader().await, Proxy::start(1).await);
    let bad = usize::from(leader == 0);
    let others = (0..3).filter(|member| *member != bad).map(|member| cluster.port(member));
    let others: Vec<String> = others.map(|port| format!("127.0.0.1:{port}")).collect();
    let beginning_with = |port: u16| format!("etcd://127.0.0.1:{port},{}", others.join(","));
    let member = beginning_with(cluster.port(bad));

    let served = async |url: &str| {
        let ann = connect(url).await?;
        let lease = hold(&ann, NAME, LONG).await;
        release(&ann, &lease).await
    };
    // A proxy whose member is dead: it hangs up.
    assert_eq!(served(&beginning_with(far.port())).await.unwrap(), Release::Released);
    // And one that is silent, as the kernel of a member that is stopped.
    cluster.stop(bad);
    assert_eq!(served(&member).await.unwrap(), Release::Released);
    cluster.resume(bad);
    cluster.is_healthy(bad).await;
    // A member without the others answers, and grants nothing. It finds out when it has not heard of its leader for a while.
    cluster.cut_off(bad);
    let passed_over = async {
        while let Err(error) = served(&member).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        }
    };
    tokio::time::timeout(HEALS, passed_over).await.expect("the majority serves a newcomer");
    cluster.mend();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_moves_up_when_the_one_before_it_leaves_and_does_not_overtake() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = Arc::new(client(&cluster.url()).await);
    let held = hold(&ann, NAME, LONG).await;
    let begin = || {
        let (leaving, signal) = abandonment();
        let request = request(NAME, Mode::Exclusive, LONG, FOR_EVER).abandoned_by(signal);
        let ann = Arc::clone(&ann);
        (leaving, tokio::spawn(async move { ann.acquire(request).await }))
    };
    let (leaves, first) = begin();
    sees_waiters(&ann, NAME, 1).await;
    let (_stays, second) = begin();
    sees_waiters(&ann, NAME, 2).await;
    drop(leaves);
    let left = within("the first one leaves", first).await.unwrap();
    assert!(matches!(left, Ok(Attempt::Busy(_))), "{left:?}");
    // Longer than it takes until everybody looks where it stands, whatever it has heard.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!second.is_finished(), "somebody holds");
    assert_eq!(renew(&ann, &held).await.unwrap(), Renewal::Renewed);
    release(&ann, &held).await.unwrap();
    let next = within("the second one is next", second).await.unwrap();
    assert!(matches!(next, Ok(Attempt::Granted(_))), "{next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_whose_place_was_removed_stands_in_line_again() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = Arc::new(client(&cluster.url()).await);
    let held = hold(&ann, NAME, LONG).await;
    let request = request(NAME, Mode::Exclusive, LONG, FOR_EVER);
    let nonce = format!("{:016x}", request.nonce.get());
    let waiting = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { granted(&ann, request).await }
    });
    sees_waiters(&ann, NAME, 1).await;
    let key = cluster.key_of(LOCKS, &nonce).await;
    let before = revision(&cluster).await;
    cluster.etcdctl(&["del", &key]).await;
    release(&ann, &held).await.unwrap();
    let lease = within("its turn", waiting).await.unwrap();
    assert!(i64::try_from(lease.token.grant()).unwrap() > before, "its number is that of its new place");
    assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_renewed_outlives_many_ttls() {
    const TTL: Duration = Duration::from_secs(1);
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let (ann, bob) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let lease = hold(&ann, NAME, TTL).await;
    while now() < lease.counted_from.saturating_add(5 * TTL) {
        tokio::time::sleep(TTL / 5).await;
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
    }
    let other = bob.acquire(request(NAME, Mode::Exclusive, TTL, Wait::No)).await.unwrap();
    assert!(matches!(other, Attempt::Busy(_)), "{other:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_refuses_a_lease_that_ends_between_the_look_and_the_write() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    let ann = behind(&proxy).await;
    let lease = hold(&ann, NAME, LONG).await;
    let key = RecordKey::of(name(NAME));
    ann.records().open(&key, lease.token).await.unwrap();
    proxy.hold_replies();
    let writing = tokio::spawn({
        let (ann, key) = (Arc::clone(&ann), key.clone());
        async move { ann.records().write(&key, lease.token, "late".into()).await }
    });
    // The look has been answered when the next one is, because each has a moment to arrive.
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.etcdctl(&["del", "--prefix", LOCKS]).await;
    proxy.mend();
    let error = within("an answer", writing).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Stale, Effect::None), "{error:?}");
    assert_eq!(ann.records().read(&key).await.unwrap(), None, "nothing was written");
}
