//! Locks of other people's clients and ours under one key, both ways: with redis-py, node-redlock, rslock and a shell script.

#[path = "../common/mod.rs"]
mod common;
mod peer;

use std::sync::Arc;
use std::time::Duration;

use common::{ask, connect, hold, request};
use peer::{Kind, Peer};
use ringfence_core::{
    Attempt, Backend, BootInstant, Clock, Contention, Eviction, HolderInfo, Lease, LockName, LockState, Mode,
    Release, Renewal, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::RedisServer;
use ringfence_testkit::PATIENCE;

const KEY: &str = "orders:{42}";

/// Waiters look every quarter of a second, because other clients tell nobody; the rest is for a busy machine.
const LOOKS_WITHIN: Duration = Duration::from_secs(1);

/// A server that we and somebody else use for one lock.
struct Stage {
    server: RedisServer,
    ours: Arc<RedisBackend>,
    theirs: Peer,
}

/// Each case as a test for each client.
macro_rules! beside_every_client {
    ($($case:ident)*) => {
        beside_every_client!(redis_py RedisPy: $($case)*);
        beside_every_client!(node_redlock NodeRedlock: $($case)*);
        beside_every_client!(rslock Rslock: $($case)*);
        beside_every_client!(bare_commands Bare: $($case)*);
    };
    ($client:ident $kind:ident: $($case:ident)*) => {
        mod $client {
            use super::{Kind, Stage};

            $(
                #[tokio::test]
                async fn $case() {
                    let Some(stage) = Stage::set(Kind::$kind).await else { return };
                    super::$case(stage).await;
                }
            )*
        }
    };
}

beside_every_client! {
    their_lock_keeps_ours_out_in_every_mode
    ours_keeps_theirs_out_in_every_mode
    a_wait_of_ours_ends_soon_after_their_release
    what_they_do_too_late_does_not_touch_ours
    what_we_do_too_late_does_not_touch_theirs
    an_operator_sees_their_lock_and_can_evict_it
}

impl Stage {
    async fn set(kind: Kind) -> Option<Self> {
        let server = RedisServer::start().await?;
        let theirs = Peer::start(kind, &server, KEY)?;
        let ours = ours(&server).await;
        Some(Self { server, ours, theirs })
    }

    async fn they_acquire(&mut self) -> bool {
        self.theirs.acquire(&self.server).await
    }
}

async fn ours(server: &RedisServer) -> Arc<RedisBackend> {
    Arc::new(connect(&format!("{}?keys=verbatim", server.url())).await.expect("a server that runs"))
}

fn key() -> LockName {
    common::name(KEY)
}

fn every_mode() -> [Mode; 3] {
    [Mode::Exclusive, Mode::Shared, Mode::permit(4).expect("four permits")]
}

/// Asks for the lock, which somebody else must have.
async fn meets_busy(ours: &RedisBackend, mode: Mode) -> Contention {
    match ask(ours, &key(), mode).await {
        Ok(Attempt::Busy(contention)) => contention,
        other => panic!("{mode} beside another client's lock must be busy: {other:?}"),
    }
}

/// Begins to wait for the lock, without an end.
async fn waits(ours: &Arc<RedisBackend>) -> tokio::task::JoinHandle<(Lease, BootInstant)> {
    let client = Arc::clone(ours);
    let task = tokio::spawn(async move {
        match client.acquire(request(&key(), Mode::Exclusive, Wait::Until(BootInstant::MAX))).await {
            Ok(Attempt::Granted(lease)) => (lease, SystemClock::new().now()),
            other => panic!("who waits without an end is granted: {other:?}"),
        }
    });
    while inspect(ours).await.waiters.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    task
}

async fn granted(task: tokio::task::JoinHandle<(Lease, BootInstant)>) -> (Lease, BootInstant) {
    tokio::time::timeout(PATIENCE, task).await.expect("a grant in time").expect("no panic")
}

async fn inspect(ours: &RedisBackend) -> LockState {
    ours.inspect(&key()).await.expect("a lock can be looked at, whoever has it")
}

async fn renew(ours: &RedisBackend, lease: &Lease) -> Renewal {
    ours.renew(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
}

async fn release(ours: &RedisBackend, lease: &Lease) -> Release {
    ours.release(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
}

async fn their_lock_keeps_ours_out_in_every_mode(mut stage: Stage) {
    assert!(stage.they_acquire().await, "a free name is theirs");
    for mode in every_mode() {
        let contention = meets_busy(&stage.ours, mode).await;
        let holders: Vec<_> = contention.holders.iter().map(HolderInfo::label).collect();
        assert_eq!(holders, ["another client"], "{mode}");
    }
    assert!(stage.theirs.extend(&stage.server).await, "none of it has touched their lock");
    stage.theirs.release(&stage.server).await;
    for mode in every_mode() {
        let lease = hold(&stage.ours, &key(), mode).await;
        assert_eq!(release(&stage.ours, &lease).await, Release::Released);
    }
}

async fn ours_keeps_theirs_out_in_every_mode(mut stage: Stage) {
    for mode in every_mode() {
        let lease = hold(&stage.ours, &key(), mode).await;
        assert!(!stage.they_acquire().await, "beside {mode} of ours");
        assert_eq!(
            renew(&stage.ours, &lease).await,
            Renewal::Renewed,
            "their attempt has not touched {mode}"
        );
        assert_eq!(release(&stage.ours, &lease).await, Release::Released);
        assert!(stage.they_acquire().await, "after the release of {mode}");
        stage.theirs.release(&stage.server).await;
    }
}

async fn a_wait_of_ours_ends_soon_after_their_release(mut stage: Stage) {
    assert!(stage.they_acquire().await);
    let waiter = waits(&stage.ours).await;
    stage.theirs.release(&stage.server).await;
    let released = SystemClock::new().now();
    let (lease, at) = granted(waiter).await;
    assert!(at.saturating_since(released) < LOOKS_WITHIN, "after {:?}", at.saturating_since(released));
    assert!(!stage.they_acquire().await, "now it is ours");
    assert_eq!(release(&stage.ours, &lease).await, Release::Released);
}

async fn what_they_do_too_late_does_not_touch_ours(mut stage: Stage) {
    assert!(stage.they_acquire().await);
    // As its TTL would end it.
    stage.server.command(&["DEL", KEY]).await;
    let lease = hold(&stage.ours, &key(), Mode::Exclusive).await;
    assert!(!stage.theirs.extend(&stage.server).await, "they have lost it");
    stage.theirs.release(&stage.server).await;
    assert_eq!(renew(&stage.ours, &lease).await, Renewal::Renewed);
    assert_eq!(release(&stage.ours, &lease).await, Release::Released);
}

async fn what_we_do_too_late_does_not_touch_theirs(mut stage: Stage) {
    for mode in every_mode() {
        let lease = hold(&stage.ours, &key(), mode).await;
        stage.server.command(&["DEL", KEY]).await;
        assert!(stage.they_acquire().await, "after {mode} of ours has ended");
        assert_eq!(renew(&stage.ours, &lease).await, Renewal::Lost, "{mode}");
        assert_eq!(stage.ours.downgrade(&lease.key).await.expect("an answer"), Renewal::Lost, "{mode}");
        assert_eq!(release(&stage.ours, &lease).await, Release::NotHeld, "{mode}");
        let evicted = stage.ours.evict(&key(), lease.key.nonce).await.expect("an answer");
        assert_eq!(evicted, Eviction::NotHeld, "{mode}");
        assert!(stage.theirs.extend(&stage.server).await, "they still have it, beside {mode}");
        stage.theirs.release(&stage.server).await;
    }
}

async fn an_operator_sees_their_lock_and_can_evict_it(mut stage: Stage) {
    assert!(stage.they_acquire().await);
    let seen = inspect(&stage.ours).await;
    let [holder] = &seen.holders[..] else { panic!("one holder: {seen:?}") };
    assert_eq!((holder.holder.label(), holder.mode), ("another client", Mode::Exclusive));
    assert_eq!((holder.token.sequence(), holder.age), (0, None), "nothing of it is known");
    let left = holder.remaining.expect("its key ends");
    assert!(left <= Duration::from_secs(30) && left > Duration::from_secs(10), "{left:?}");

    let waiter = waits(&stage.ours).await;
    let evicted = stage.ours.evict(&key(), holder.token.nonce()).await.expect("an answer");
    assert_eq!(evicted, Eviction::Evicted);
    let (lease, _) = granted(waiter).await;
    assert!(!stage.theirs.extend(&stage.server).await, "they are out");
    assert_eq!(renew(&stage.ours, &lease).await, Renewal::Renewed);
    let again = stage.ours.evict(&key(), holder.token.nonce()).await.expect("an answer");
    assert_eq!(again, Eviction::NotHeld, "it named them and nobody after them");
}

#[tokio::test]
async fn a_lock_without_a_ttl_is_respected_for_ever() {
    let Some(server) = RedisServer::start().await else { return };
    let ours = ours(&server).await;
    for value in ["by hand", ""] {
        server.command(&["SET", KEY, value]).await;
        for mode in every_mode() {
            meets_busy(&ours, mode).await;
        }
        let state = inspect(&ours).await;
        let [holder] = &state.holders[..] else { panic!("one holder: {state:?}") };
        assert!(holder.remaining > Some(Duration::from_hours(24 * 365)), "{:?}", holder.remaining);
        assert_eq!(server.command(&["PTTL", KEY]).await, "-1", "nothing of ours gave it an end");
        let evicted = ours.evict(&key(), holder.token.nonce()).await.expect("an answer");
        assert_eq!(evicted, Eviction::Evicted, "{value:?}");
    }
    hold(&ours, &key(), Mode::Exclusive).await;
}

/// Who knows nothing of readers waits for the end of the key, and of those who have left one may have had it for long.
#[tokio::test]
async fn the_key_of_readers_ends_with_the_last_that_is_left() {
    const SHORT: Duration = Duration::from_secs(1);
    let Some(server) = RedisServer::start().await else { return };
    let ours = ours(&server).await;
    for mode in [Mode::Shared, Mode::permit(4).expect("four permits")] {
        let long = hold(&ours, &key(), mode).await;
        let mut brief = request(&key(), mode, Wait::No);
        brief.ttl = Ttl::new(SHORT).expect("a TTL");
        let Ok(Attempt::Granted(_)) = ours.acquire(brief).await else { panic!("{mode} beside {mode}") };
        assert_eq!(release(&ours, &long).await, Release::Released);
        for part in server.command(&["KEYS", "*"]).await.lines().filter(|part| !part.ends_with('t')) {
            let left: i64 = server.command(&["PTTL", part]).await.parse().expect("a TTL");
            assert!(left <= 2000, "{mode}: {part} lives for {left} ms");
        }
        server.command(&["DEL", KEY]).await;
    }
}

/// A release and another client's lock, as close together as can be: between the two no waiter of ours has looked.
const JUMP: &str = "redis.call('DEL', KEYS[1]) return redis.call('SET', KEYS[1], 'next', 'NX', 'PX', 60000)";

#[tokio::test]
async fn other_clients_may_jump_the_line_which_goes_on_behind_them() {
    let Some(server) = RedisServer::start().await else { return };
    let ours = ours(&server).await;
    server.command(&["SET", KEY, "first", "NX", "PX", "60000"]).await;
    let waiter = waits(&ours).await;
    assert_eq!(server.command(&["EVAL", JUMP, "1", KEY]).await, "OK");
    let state = inspect(&ours).await;
    assert_eq!((state.holders.len(), state.waiters.len()), (1, 1), "it still stands in line: {state:?}");
    server.command(&["DEL", KEY]).await;
    granted(waiter).await;
}
