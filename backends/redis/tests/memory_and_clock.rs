//! What becomes of locks and tokens when the server loses its memory, or its clock is set.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, ErrorKind, Eviction, HolderInfo, Lease,
    LockName, Mode, RecordKey, Release, Renewal, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{RedisOptions, RedisServer, WallClock};

async fn client(server: &RedisServer) -> RedisBackend {
    let url = BackendUrl::parse(&server.url()).expect("its URL");
    RedisBackend::connect(&url, Arc::new(SystemClock::new())).await.expect("a server that runs")
}

fn name() -> LockName {
    "orders/42".parse().expect("a name")
}

fn request(wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name(), Mode::Exclusive, Ttl::DEFAULT, wait, holder)
}

/// A lease on the name, as soon as the server answers again.
async fn hold(client: &RedisBackend) -> Lease {
    let granted = async {
        loop {
            match client.acquire(request(Wait::Until(BootInstant::MAX))).await {
                Ok(Attempt::Granted(lease)) => break lease,
                Ok(Attempt::Busy(contention)) => panic!("a wait without an end: {contention:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), granted).await.expect("a grant in time")
}

async fn release(client: &RedisBackend, lease: &Lease) -> Release {
    client.release(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
}

async fn renew(client: &RedisBackend, lease: &Lease) -> Renewal {
    client.renew(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
}

#[tokio::test]
async fn sequences_rise_through_lost_memory() {
    let Some(mut server) = RedisServer::start().await else { return };
    let ann = client(&server).await;
    let mut last = 0;
    for loss in ["FLUSHALL", "SCRIPT FLUSH", "CLIENT KILL TYPE normal", "a restart"] {
        let lease = hold(&ann).await;
        assert!(lease.token.sequence() > last, "after the loss before {loss}: {last}, {lease:?}");
        last = lease.token.sequence();
        if loss == "a restart" {
            server.restart_empty().await;
        } else {
            server.command(&loss.split(' ').collect::<Vec<_>>()).await;
        }
        // What the server still knows is still held; what it has forgotten is lost, and the guard learns it.
        let forgotten = matches!(loss, "FLUSHALL" | "a restart");
        if loss == "FLUSHALL" || loss == "SCRIPT FLUSH" {
            let expected = if forgotten { Renewal::Lost } else { Renewal::Renewed };
            assert_eq!(renew(&ann, &lease).await, expected, "{loss}");
        }
        if !forgotten {
            let ben = client(&server).await;
            assert!(matches!(ben.acquire(request(Wait::No)).await, Ok(Attempt::Busy(_))), "{loss}");
            assert_eq!(release(&ben, &lease).await, Release::Released, "{loss}");
        }
    }
    assert!(hold(&ann).await.token.sequence() > last, "after a restart without data");
}

#[tokio::test]
async fn sequences_rise_when_the_servers_clock_goes_back() {
    let Some(clock) = WallClock::new() else { return };
    let Some(server) = RedisOptions::new().clock(&clock).start().await else { return };
    let ann = client(&server).await;
    let before = hold(&ann).await;
    assert_eq!(release(&ann, &before).await, Release::Released);
    clock.step(-3000);
    let mut last = before;
    for _ in 0..3 {
        let lease = hold(&ann).await;
        assert!(lease.token.sequence() > last.token.sequence(), "{last:?}, {lease:?}");
        assert_eq!(release(&ann, &lease).await, Release::Released);
        last = lease;
    }
}

#[tokio::test]
async fn sequences_rise_when_a_lock_is_handed_over_after_the_clock_went_back() {
    let Some(clock) = WallClock::new() else { return };
    let Some(server) = RedisOptions::new().clock(&clock).start().await else { return };
    let (ann, ben) = (client(&server).await, client(&server).await);
    let before = hold(&ann).await;
    let next = tokio::spawn(async move { hold(&ben).await });
    while ann.inspect(&name()).await.expect("an answer").waiters.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    clock.step(-3000);
    assert_eq!(release(&ann, &before).await, Release::Released);
    let next = next.await.expect("no panic");
    assert!(next.token.sequence() > before.token.sequence(), "{before:?}, {next:?}");
}

#[tokio::test]
async fn a_clock_set_forward_breaks_exclusion_and_the_record_refuses_every_stale_write() {
    let Some(clock) = WallClock::new() else { return };
    let Some(server) = RedisOptions::new().clock(&clock).start().await else { return };
    let (ann, ben) = (client(&server).await, client(&server).await);
    let key = RecordKey::of(name());
    let first = hold(&ann).await;
    ann.records().open(&key, first.token).await.expect("an open record");
    ann.records().write(&key, first.token, Bytes::from_static(b"first")).await.expect("a write");
    clock.step(3600);
    let second = hold(&ben).await;
    // Both may say that they hold: that is the overlap, and only the fence tells them apart.
    assert!(first.deadline() > SystemClock::new().now(), "the first has no reason to doubt its lease");
    let late = ann.records().write(&key, first.token, Bytes::from_static(b"before the second came")).await;
    assert_eq!(late.expect_err("its lease is over").kind(), ErrorKind::Stale);
    ben.records().open(&key, second.token).await.expect("an open record");
    ben.records().write(&key, second.token, Bytes::from_static(b"second")).await.expect("a write");
    let late = ann.records().write(&key, first.token, Bytes::from_static(b"late")).await;
    assert_eq!(late.expect_err("it was overtaken").kind(), ErrorKind::Stale);
    let record = ben.records().read(&key).await.expect("an answer").expect("a record");
    assert_eq!(&record.value[..], b"second");
}

/// Whoever waits for a lease that a stepped clock keeps alive would wait for as long as the step; an operator can end it.
#[tokio::test]
async fn a_clock_set_back_keeps_a_dead_holders_lease_and_an_eviction_ends_it() {
    let Some(clock) = WallClock::new() else { return };
    let Some(server) = RedisOptions::new().clock(&clock).start().await else { return };
    let (ann, ben) = (client(&server).await, client(&server).await);
    let mut short = request(Wait::No);
    short.ttl = Ttl::new(Duration::from_millis(500)).expect("a TTL");
    let Ok(Attempt::Granted(dead)) = ann.acquire(short).await else { panic!("a free lock") };
    clock.step(-3600);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(dead.deadline() < SystemClock::new().now(), "its holder claims nothing any more");
    assert!(
        matches!(ben.acquire(request(Wait::No)).await, Ok(Attempt::Busy(_))),
        "the server keeps it alive"
    );
    assert_eq!(ben.evict(&name(), dead.key.nonce).await.expect("an answer"), Eviction::Evicted);
    assert!(hold(&ben).await.token.sequence() > dead.token.sequence());
}

#[tokio::test]
async fn nothing_is_published_when_nobody_waits() {
    let Some(server) = RedisServer::start().await else { return };
    let ann = client(&server).await;
    for _ in 0..10 {
        let lease = hold(&ann).await;
        assert_eq!(renew(&ann, &lease).await, Renewal::Renewed);
        assert_eq!(release(&ann, &lease).await, Release::Released);
    }
    let stats = server.command(&["INFO", "commandstats"]).await;
    assert!(stats.contains("cmdstat_evalsha") && !stats.contains("cmdstat_publish"), "{stats}");
    let keys = server.command(&["KEYS", "*"]).await;
    assert_eq!(keys, "ringfence:{orders/42}:t", "only the last number is left");
    let left: u64 = server.command(&["PTTL", "ringfence:{orders/42}:t"]).await.parse().expect("a TTL");
    assert!(left <= 3_600_000, "and not for longer than an hour: {left}");
}

#[tokio::test]
async fn a_release_tells_the_next_one_in_line() {
    const HANDOVERS: u32 = 8;
    let Some(server) = RedisServer::start().await else { return };
    let clients = [client(&server).await, client(&server).await];
    let clock = SystemClock::new();
    let (mut held, mut took) = (hold(&clients[0]).await, Duration::ZERO);
    for round in 0..HANDOVERS {
        let [here, there] =
            if round.is_multiple_of(2) { [&clients[0], &clients[1]] } else { [&clients[1], &clients[0]] };
        let mut released = clock.now();
        let (next, ()) = tokio::join!(hold(there), async {
            while here.inspect(&name()).await.expect("an answer").waiters.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            released = clock.now();
            assert_eq!(release(here, &held).await, Release::Released);
        });
        took += clock.now().saturating_since(released);
        held = next;
    }
    // One that is told of nothing finds its turn when it looks, after two seconds.
    assert!(took < HANDOVERS * Duration::from_millis(700), "{HANDOVERS} hand-overs took {took:?}");
}

/// How often it is looked for a place in line, by everybody, in two seconds.
async fn looks(server: &RedisServer) -> u64 {
    let calls = async || -> u64 {
        let stats = server.command(&["INFO", "commandstats"]).await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        calls.and_then(|calls| calls.split(',').next()).expect("a count").parse().expect("a number")
    };
    let before = calls().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    calls().await - before
}

#[tokio::test]
async fn who_waits_seldom_asks() {
    const MANY: usize = 12;
    let Some(server) = RedisServer::start().await else { return };
    let ann = client(&server).await;
    let held = hold(&ann).await;
    let mut waiting = tokio::task::JoinSet::new();
    let mut asked = Vec::new();
    for waiters in [1, MANY] {
        while waiting.len() < waiters {
            let ben = client(&server).await;
            waiting.spawn(async move {
                let lease = hold(&ben).await;
                assert_eq!(release(&ben, &lease).await, Release::Released);
                lease.token.sequence()
            });
        }
        while ann.inspect(&name()).await.expect("an answer").waiters.len() < waiters {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        asked.push(looks(&server).await);
    }
    // One asks once, or twice; of twelve the second 8 times, the third 4 times, the others twice or three times.
    assert!(
        asked[0] <= 2 && asked[1] <= 44,
        "in two seconds one and {MANY} waiters have asked so often: {asked:?}"
    );
    assert_eq!(release(&ann, &held).await, Release::Released);
    let all = tokio::time::timeout(Duration::from_secs(20), waiting.join_all()).await;
    assert_eq!(all.expect("everybody has its turn").len(), MANY);
}

#[tokio::test]
async fn a_turn_that_a_waiter_finds_by_looking_lasts_its_whole_ttl() {
    let Some(server) = RedisServer::start().await else { return };
    let (ann, ben) = (client(&server).await, client(&server).await);
    let key = "ringfence:{orders/42}";
    for mode in [Mode::Exclusive, Mode::Shared] {
        let gone = hold(&ann).await;
        let holder = HolderInfo::new("test", "host", 2).expect("a holder");
        let waits = AcquireRequest::new(name(), mode, Ttl::DEFAULT, Wait::Until(BootInstant::MAX), holder);
        let (attempt, ()) = tokio::join!(ben.acquire(waits), async {
            while ann.inspect(&name()).await.expect("an answer").waiters.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // As if the holder were gone and its TTL over: nobody hands over, and the waiter finds the lock free.
            server.command(&["DEL", key]).await;
        });
        let Ok(Attempt::Granted(lease)) = attempt else { panic!("expected a grant: {attempt:?}") };
        let left: u64 = server.command(&["PTTL", key]).await.parse().expect("a TTL");
        assert!(left > 5_000, "the client counts on {:?}, the server on {left} ms", lease.key.ttl);
        assert_eq!(release(&ben, &lease).await, Release::Released);
        assert_eq!(release(&ann, &gone).await, Release::NotHeld);
    }
}

/// So asks a gate for each request: nothing is to be logged or sent to replicas for that.
#[tokio::test]
async fn a_mark_that_stands_is_asked_for_without_a_write() {
    let Some(server) = RedisOptions::new().start().await else { return };
    let (ann, ben) = (client(&server).await, client(&server).await);
    let (key, first) = (RecordKey::of(name()), hold(&ann).await);
    ann.records().open(&key, first.token).await.expect("its lease lives");
    let asks_without_a_write = async || {
        let writes = server.info("rdb_changes_since_last_save").await;
        assert_eq!(ann.records().open(&key, first.token).await.expect("its lease lives").record, None);
        server.info("rdb_changes_since_last_save").await == writes
    };
    assert!(asks_without_a_write().await);
    let next = tokio::spawn(async move { (hold(&ben).await, ben) });
    while ann.inspect(&name()).await.expect("an answer").waiters.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Again where the one who waits has looked after its place meanwhile.
    let asked = async { while !asks_without_a_write().await {} };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("no write for a question");
    assert_eq!(release(&ann, &first).await, Release::Released);
    let over = ann.records().open(&key, first.token).await.expect_err("its lease is over");
    assert_eq!(over.kind(), ErrorKind::Stale);
    let (second, ben) = next.await.expect("no panic");
    ben.records().open(&key, second.token).await.expect("its lease lives");
    ben.records().write(&key, second.token, Bytes::from_static(b"kept")).await.expect("an open record");
    let opened = ben.records().open(&key, second.token).await.expect("its lease lives");
    assert_eq!(opened.record.expect("what was written").value, "kept");
}

/// A server that was demoted may not have heard that the lease is over, and would let its holder pass for ever.
#[tokio::test]
async fn a_mark_that_stands_on_a_replica_lets_nobody_pass() {
    let Some(server) = RedisServer::start().await else { return };
    let ann = client(&server).await;
    let (key, held) = (RecordKey::of(name()), hold(&ann).await);
    ann.records().open(&key, held.token).await.expect("its lease lives");
    // Of a primary that is not there: it hears nothing any more.
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = ann.records().open(&key, held.token).await.expect_err("it is no primary");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("it is a replica"), "{error}");
}
