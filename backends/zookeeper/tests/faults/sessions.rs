//! What becomes of leases and turns when their session's connection is not what it was.

use std::sync::Arc;
use std::time::Duration;

use ringfence::Locks;
use ringfence_core::{
    Backend, BackendUrl, BootInstant, ErrorKind, Lease, LockState, Mode, RecordKey, Release, Renewal,
    SystemClock, Wait,
};
use ringfence_servers::{Ensemble, Proxy, ZooKeeperOptions};
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::task::JoinHandle;

use crate::{
    AT_ONCE, FOLDER, LONG, NAME, connect, connect_over, granted, hold, now, release, renew, request, sees,
    within,
};

/// A connection that owes an answer is given up after a third of it.
const TTL: Duration = Duration::from_secs(12);

#[tokio::test]
async fn a_session_that_the_next_server_grants_for_less_ends_with_its_leases() {
    let Some(mut servers) = Ensemble::start().await else { return };
    let locks = Locks::connect(&servers.url()).await.expect("a server");
    let guard = locks.lock(NAME).ttl(LONG).acquire().await.expect("a free lock");
    // Long enough for it to live on by its pings.
    servers.set(0, "maxSessionTimeout", "30000");
    servers.restart(0);
    tokio::time::timeout(AT_ONCE, guard.lost()).await.expect("word of the loss before any renewal");
    // Long before the timeout that it had.
    let eye = connect(&servers.url()).await;
    sees(&eye, "a lock whose session was ended", LockState::is_free).await;
}

/// A client outlives a change of the servers' settings: what needs no lease of the longest TTL does not need that TTL either.
#[tokio::test]
async fn who_has_seen_longer_sessions_granted_looks_at_locks_and_keeps_records_all_the_same() {
    let Some(mut servers) = Ensemble::start().await else { return };
    let ann = connect(&servers.url()).await;
    servers.set(0, "maxSessionTimeout", "30000");
    servers.restart(0);
    servers.serves().await;
    let held = within("a grant", async {
        loop {
            match ann.acquire(request(Mode::Exclusive, TTL, Wait::No)).await {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
                attempt => break granted(attempt),
            }
        }
    })
    .await;
    let record = RecordKey::of(held.key.name.clone());
    within("a record that is open", async {
        // The session that looks may have to be another one first.
        while let Err(error) = ann.records().open(&record, held.token).await {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        }
    })
    .await;
    let state = ann.inspect(&held.key.name).await.expect("a state");
    assert_eq!(state.holders.len(), 1, "{state:?}");
    let error =
        ann.acquire(request(Mode::Exclusive, LONG, Wait::No)).await.expect_err("it is too long by now");
    assert_eq!(error.kind(), ErrorKind::InvalidTtl, "{error:?}");
    // What that one asked for in vain has taken no session away.
    assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
}

#[tokio::test]
async fn a_server_that_falls_silent_is_not_the_first_that_is_tried_again() {
    let Some(servers) = Ensemble::start().await else { return };
    let ways = [Proxy::start(servers.ports()[0]).await, Proxy::start(servers.ports()[0]).await];
    let [one, two] = ways.each_ref().map(Proxy::port);
    let ann = connect(&format!("zookeeper://127.0.0.1:{one},127.0.0.1:{two}")).await;
    let held = granted(ann.acquire(request(Mode::Exclusive, TTL, Wait::No)).await);
    // It is on one of them, and comes to the other.
    for way in &ways {
        way.accept_and_be_silent();
        let since = now();
        assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
        let took = now().saturating_since(since);
        assert!(took < TTL / 3 + TTL / 4, "a silent server is given up once, and not twice: {took:?}");
        way.mend();
    }
}

#[tokio::test]
async fn a_lease_that_lapses_while_nothing_arrives_is_removed_afterwards() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, eye) = (connect_over(&proxy).await, connect(&servers.url()).await);
    let lapsing = granted(ann.acquire(request(Mode::Exclusive, TTL, Wait::No)).await);
    let mut other = request(Mode::Exclusive, TTL, Wait::No);
    other.name = "another".parse().expect("a lawful name");
    let other = granted(ann.acquire(other).await);
    tokio::time::sleep(TTL / 2).await;
    assert_eq!(renew(&ann, &other.key).await, Renewal::Renewed);
    let left = lapsing.deadline().saturating_since(now());
    tokio::time::sleep(left.saturating_sub(Duration::from_millis(500))).await;
    proxy.accept_and_be_silent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.mend();
    sees(&eye, "a lock whose lease has lapsed", LockState::is_free).await;
    // So it was not the session's end that freed it.
    assert_eq!(renew(&ann, &other.key).await, Renewal::Renewed);
    assert_eq!(renew(&ann, &lapsing.key).await, Renewal::Lost);
}

#[tokio::test]
async fn a_session_has_time_to_begin_however_short_it_is() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    // Longer than a silence may be in the shortest session.
    proxy.delay(Duration::from_millis(300));
    let url = BackendUrl::parse(&format!("zookeeper://127.0.0.1:{}", proxy.port())).expect("a lawful URL");
    let client = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await.expect("a slow server");
    assert_eq!(client.guarantees().ttl_min.as_millis(), 400);
}

/// Somebody who waits, and whose turn it is, of which he hears from a leader that has lost the others and does not know for five seconds.
struct Alone {
    servers: Ensemble,
    /// On the way from him to the leader.
    _proxy: Proxy,
    bob: Arc<ZooKeeperBackend>,
    waiting: JoinHandle<Lease>,
    /// Whose turn was before his.
    held: Lease,
}

impl Alone {
    /// He waits for a lease of this TTL, for so long.
    async fn begin(ttl: Duration, waits: Duration) -> Option<Self> {
        let options = ZooKeeperOptions::new().servers(3).interconnected();
        let servers = options.set("syncLimit", "25").start().await?;
        let leader = servers.leader().await.expect("servers that serve have a leader");
        let proxy = Proxy::start(servers.ports()[leader]).await;
        let follower = servers.ports()[(leader + 1) % 3];
        let ann = connect(&format!("zookeeper://127.0.0.1:{follower}")).await;
        let bob = connect_over(&proxy).await;
        let held = hold(&ann).await;
        let client = Arc::clone(&bob);
        let request = request(Mode::Exclusive, ttl, Wait::Until(BootInstant::MAX));
        let waiting = tokio::spawn(async move { granted(client.acquire(request).await) });
        // Of the one before him, of its end, and of his own node.
        within("his watches", async { while servers.watches(leader).await != 3 {} }).await;
        tokio::time::sleep(waits).await;
        // The word of his turn waits on its way to him until the leader is alone.
        proxy.cut();
        assert_eq!(release(&ann, &held).await, Release::Released);
        servers.cut_off(leader);
        proxy.mend();
        Some(Self { servers, _proxy: proxy, bob, waiting, held })
    }
}

#[tokio::test]
async fn a_turn_that_the_servers_agreed_to_counts_from_when_they_agreed_to_the_place() {
    let Some(Alone { servers, _proxy, bob, waiting, held }) = Alone::begin(LONG, Duration::ZERO).await else {
        return;
    };
    let cut = now();
    let lease = within("his turn", waiting).await.expect("no panic");
    assert!(lease.token.sequence() > held.token.sequence());
    let beyond = lease.deadline().saturating_since(cut);
    assert!(beyond < LONG, "a TTL of {LONG:?} that began before {cut:?}: {beyond:?}");
    let renewed = bob.renew(std::slice::from_ref(&lease.key)).await;
    assert!(!renewed.as_deref().is_ok_and(|renewals| renewals == [Renewal::Renewed]), "by a leader alone");
    servers.mend();
    assert_eq!(renew(&bob, &lease.key).await, Renewal::Renewed);
}

#[tokio::test]
async fn who_has_waited_for_half_of_a_ttl_holds_when_a_majority_agrees() {
    const TTL: Duration = Duration::from_secs(7);
    let Some(Alone { servers, _proxy, mut waiting, held, .. }) = Alone::begin(TTL, TTL / 2).await else {
        return;
    };
    let cut = now();
    let early = tokio::time::timeout(Duration::from_secs(3), &mut waiting).await;
    assert!(
        early.is_err(),
        "a grant {:?} after the leader lost the others: {early:?}",
        now().saturating_since(cut)
    );
    servers.mend();
    let next = within("his turn", waiting).await.expect("no panic");
    assert!(next.token.sequence() > held.token.sequence());
}

#[tokio::test]
async fn after_all_data_is_lost_guards_are_lost_in_time_and_tokens_begin_again() {
    const TTL: Duration = Duration::from_secs(4);
    let Some(mut servers) = Ensemble::start().await else { return };
    let locks = Locks::connect(&servers.url()).await.expect("a server");
    for _ in 0..20 {
        let guard = locks.lock("another").ttl(TTL).acquire().await.expect("a free lock");
        guard.release().await.expect("it is held");
    }
    let guard = locks.lock(NAME).ttl(TTL).acquire().await.expect("a free lock");
    servers.kill(0);
    let killed = now();
    std::fs::remove_dir_all(servers.files(0).join("version-2")).expect("what it knew");
    servers.restart(0);
    within("a loss", guard.lost()).await;
    let took = now().saturating_since(killed);
    assert!(took <= TTL + Duration::from_secs(1), "it was lost after {took:?}, and its TTL is {TTL:?}");
    // The client has seen more than the server knows of, which speaks to it in a new session only.
    let next = within("the next grant", async {
        loop {
            match locks.lock(NAME).ttl(TTL).acquire().await {
                Ok(guard) => break guard,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // As documented: what is fenced elsewhere refuses it until the numbers are higher.
    assert!(next.token().sequence() < guard.token().sequence(), "{} {}", guard.token(), next.token());
}

#[tokio::test]
async fn who_asks_in_a_session_that_is_over_is_served_in_the_next_one() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let ann = connect_over(&proxy).await;
    hold(&ann).await;
    let node = format!("{FOLDER}/{}", servers.children(FOLDER).await[0]);
    proxy.cut();
    servers.end_session_of(&node).await;
    let asking = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { ann.acquire(request(Mode::Exclusive, LONG, Wait::No)).await }
    });
    // It cannot know yet, and asks in the session that it has.
    tokio::time::sleep(Duration::from_millis(50)).await;
    proxy.cut_connections();
    proxy.mend();
    granted(within("a grant", asking).await.expect("no panic"));
}
