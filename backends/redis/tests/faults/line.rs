//! The line: what a hand-over costs, whom a fault costs his place, and what an eviction tells.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Attempt, Backend, BootInstant, Clock, Effect, ErrorKind, Eviction, Lease, Release, Renewal, Retry,
    SystemClock, Wait, WallTime,
};
use ringfence_servers::{Proxy, Taker};
use tokio::sync::mpsc;

use crate::stage::{
    AT_ONCE, FOR_EVER, LONG, NAME, Stage, client, client_by, exclusive, granted, name, now, release, renew,
    within,
};

/// A clock that stands still, and by which nobody looks after anything: whoever waits hears of its turn, and does nothing
/// else.
#[derive(Debug)]
pub(crate) struct Stopped(pub(crate) BootInstant);

impl Clock for Stopped {
    fn now(&self) -> BootInstant {
        self.0
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(0).saturating_add(self.0.saturating_since(BootInstant::from_nanos(0)))
    }

    fn nap(&self, _: BootInstant) -> Option<Duration> {
        Some(Duration::from_hours(1))
    }
}

/// The commands of one hand-over, where so many wait.
async fn handing_over(waiters: usize) -> Option<BTreeMap<String, u64>> {
    let stage = Stage::new().await?;
    let ben = stage.client().await;
    let held = granted(&ben, exclusive(Wait::No)).await;
    let line = Arc::new(client_by(stage.server.port(), Arc::new(Stopped(SystemClock::new().now()))).await);
    let (sender, mut turns) = mpsc::unbounded_channel::<Lease>();
    for _ in 0..waiters {
        let (line, sender) = (Arc::clone(&line), sender.clone());
        tokio::spawn(async move {
            let Ok(Attempt::Granted(lease)) = line.acquire(exclusive(FOR_EVER)).await else { return };
            // The test may be over.
            let _ = sender.send(lease);
        });
    }
    stage.sees_waiters(waiters).await;
    // So that its release goes by the script, wherever this runs.
    assert_eq!(renew(&ben, &held).await.expect("an answer"), Renewal::Renewed);
    stage.server.command(&["CONFIG", "RESETSTAT"]).await;
    assert_eq!(release(&ben, &held).await.expect("an answer"), Release::Released);
    let first = within("the turn of the first", turns.recv()).await.expect("a lease");
    let calls = stage.calls().await;
    assert_eq!(calls["publish"], 1, "one is told, whoever else waits: {calls:?}");
    assert_eq!(calls["evalsha"], 1, "the release, and nothing else: {calls:?}");
    // The one after it has its turn in the same way.
    assert_eq!(renew(&line, &first).await.expect("an answer"), Renewal::Renewed);
    if waiters > 1 {
        stage.server.command(&["CONFIG", "RESETSTAT"]).await;
        assert_eq!(release(&line, &first).await.expect("an answer"), Release::Released);
        let second = within("the turn of the second", turns.recv()).await.expect("a lease");
        assert!(second.token.sequence() > first.token.sequence());
        assert_eq!(stage.calls().await, calls, "each costs the same");
    }
    Some(calls)
}

/// Whatever grows with the line is paid by everybody, for every turn.
#[tokio::test]
async fn a_hand_over_costs_as_many_commands_whether_ten_wait_or_a_thousand() {
    let Some(ten) = handing_over(10).await else { return };
    for waiters in [100, 1000] {
        assert_eq!(handing_over(waiters).await.as_ref(), Some(&ten), "{waiters} waiters, then 10");
    }
    let one = handing_over(1).await.expect("a server");
    let sum = |calls: &BTreeMap<String, u64>| calls.values().sum::<u64>();
    assert!(sum(&one) <= sum(&ten) + 1, "{one:?}, then {ten:?}");
    assert!(sum(&ten) < 12, "{ten:?}");
}

/// Whoever cannot take its turn must not cost the next one more than that turn: a second, and not a TTL.
#[tokio::test]
async fn waiters_that_are_killed_stopped_and_cut_off_cost_the_next_one_a_second_each() {
    let Some(stage) = Stage::new().await else { return };
    let proxy = Proxy::start(stage.server.port()).await;
    let (ann, ben, far) = (stage.client().await, stage.client().await, client(proxy.port()).await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let mut takers = Vec::new();
    for place in 1..=2 {
        takers.push(Taker::start(&stage.server.url(), NAME, &["--ttl", "1m"]));
        stage.sees_waiters(place).await;
    }
    let cut_off = tokio::spawn(async move { far.acquire(exclusive(FOR_EVER)).await });
    stage.sees_waiters(3).await;
    let live = async {
        let lease = granted(&ann, exclusive(FOR_EVER)).await;
        (lease, now())
    };
    let falls = async {
        stage.sees_waiters(4).await;
        takers[0].kill();
        takers[1].stop();
        proxy.cut();
        let released = now();
        release(&ben, &held).await.expect("an answer");
        released
    };
    let ((lease, granted_at), released) = tokio::join!(live, falls);
    let took = granted_at.saturating_since(released);
    assert!(took < AT_ONCE, "it took {took:?}, where a TTL is {LONG:?}");
    // They come back, and stand in line again.
    proxy.mend();
    takers[1].resume();
    stage.sees_waiters(2).await;
    release(&ann, &lease).await.expect("an answer");
    let both = async {
        let lease = cut_off.await.expect("no panic");
        let Ok(Attempt::Granted(lease)) = lease else { panic!("it must be granted: {lease:?}") };
        lease
    };
    // Whichever was back first gives way to the other one.
    let (token, _) = tokio::select! {
        held = takers[1].holds() => held,
        lease = within("the turn of the one that was cut off", both) => (lease.token, now()),
    };
    assert!(token.sequence() > lease.token.sequence(), "{}, then {token}", lease.token);
}

/// A waiter without a connection cannot be told of its turn. It is passed over, as one that is dead; without its coming back
/// it would wait for ever.
#[tokio::test]
async fn a_waiter_without_a_connection_is_passed_over_and_stands_at_the_end_of_the_line() {
    let Some(stage) = Stage::new().await else { return };
    let proxy = Proxy::start(stage.server.port()).await;
    let (ann, ben) = (client(proxy.port()).await, stage.client().await);
    // It looks at nothing, and has its turn only if the release itself passes over the one before it.
    let cat = client_by(stage.server.port(), Arc::new(Stopped(SystemClock::new().now()))).await;
    let held = granted(&ben, exclusive(Wait::No)).await;
    let first = tokio::spawn(async move { ann.acquire(exclusive(FOR_EVER)).await });
    stage.sees_waiters(1).await;
    let second = tokio::spawn({
        let cat = Arc::new(cat);
        async move { (granted(&cat, exclusive(FOR_EVER)).await, cat) }
    });
    stage.sees_waiters(2).await;
    // Whoever connects from now on reaches nobody.
    proxy.accept_and_be_silent();
    proxy.cut_connections();
    within("the end of its connection", async {
        while stage.subscribers().await != 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    release(&ben, &held).await.expect("an answer");
    let (next, cat) = within("the turn of the next one", second).await.expect("no panic");
    assert_eq!(renew(&cat, &next).await.expect("an answer"), Renewal::Renewed);
    proxy.mend();
    stage.sees_waiters(1).await;
    release(&cat, &next).await.expect("an answer");
    let last = within("the turn of the one that came back", first).await.expect("no panic");
    let Ok(Attempt::Granted(last)) = last else { panic!("it must be granted: {last:?}") };
    assert!(last.token.sequence() > next.token.sequence(), "{next:?}, then {last:?}");
}

/// Without an end to the line, whoever never releases fills the server's memory.
#[tokio::test]
async fn a_line_of_ten_thousand_takes_nobody_more() {
    const FILL: &str = "for place = 2, 10000 do redis.call('ZADD', KEYS[1], place, 'waiter ' .. place) end";
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben, cat) = (stage.client().await, stage.client().await, stage.client().await);
    granted(&ben, exclusive(Wait::No)).await;
    tokio::spawn(async move { cat.acquire(exclusive(FOR_EVER)).await });
    stage.sees_waiters(1).await;
    stage.server.command(&["EVAL", FILL, "1", &format!("ringfence:{{{NAME}}}:q")]).await;
    let error = ann.acquire(exclusive(FOR_EVER)).await.expect_err("there is no room");
    assert_eq!((error.kind(), error.retry(), error.effect()), (ErrorKind::Full, Retry::Later, Effect::None));
}

/// A holder that learned of its eviction by a renewal only would work on, beside the next one, for a third of its TTL.
#[tokio::test]
async fn an_evicted_holder_learns_of_it_at_once_and_the_next_one_holds() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben, operator) = (stage.locks().await, stage.locks().await, stage.client().await);
    let guard = ann.lock(NAME).ttl(LONG).acquire().await.expect("a free lock");
    let next = tokio::spawn(async move { ben.lock(NAME).ttl(LONG).acquire().await });
    stage.sees_waiters(1).await;
    let (lost, nonce) = (guard.lost(), guard.token().nonce());
    assert_eq!(operator.evict(&name(), nonce).await.expect("an answer"), Eviction::Evicted);
    let told = tokio::time::timeout(AT_ONCE, lost).await;
    assert!(told.is_ok(), "not told within {AT_ONCE:?}, and the first renewal comes after {:?}", LONG / 3);
    assert!(!guard.is_held());
    let next = within("the turn of the next one", next).await.expect("no panic").expect("a lock");
    assert!(next.token().sequence() > guard.token().sequence());
    assert_eq!(operator.evict(&name(), nonce).await.expect("an answer"), Eviction::NotHeld);
}
