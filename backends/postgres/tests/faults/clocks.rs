//! The server's wall clock is set forward and back: it is what leases end by.

use std::time::Duration;

use ringfence_core::{Attempt, Backend, ErrorKind, LeaseClock, Mode, Wait};
use ringfence_servers::{PostgresOptions, WallClock};

use crate::stage::{
    FOR_EVER, LONG, NAME, Stage, exclusive, granted, its_turn, now, release, renew, request, waits, within,
};

const HOUR: i64 = 3600;

/// A clock that is set forward ends leases before their time, and two hold: it is said of this backend, so it must be seen, as
/// must the refusal of the first one's token, and that the first one learns of it.
#[tokio::test]
async fn a_clock_set_forward_ends_leases_and_the_fence_holds() {
    let Some(clock) = WallClock::new() else { return };
    let Some(stage) = Stage::with(PostgresOptions::new().clock(&clock)).await else { return };
    let (ann, ben) = (stage.locks().await, stage.locks().await);
    assert_eq!(ann.guarantees().lease_clock, LeaseClock::ServerWallClock);
    let ttl = Duration::from_secs(12);
    let first = ann.lock(NAME).ttl(ttl).acquire().await.expect("a free lock");
    let record = ann.record(NAME).expect("a name");
    record.open(first.token()).await.expect("its own record");
    clock.step(HOUR);
    let second = ben
        .lock(NAME)
        .ttl(LONG)
        .try_acquire()
        .await
        .expect("an answer")
        .expect("it has lapsed, for the server");
    assert!(first.is_held(), "two hold");
    assert!(second.token().sequence() > first.token().sequence(), "{first:?}, then {second:?}");
    let late = record.write(first.token(), "late").await.expect_err("a stale token");
    assert_eq!(late.kind(), ErrorKind::Stale, "{late:?}");
    within("the loss, by the next renewal", first.lost()).await;
    assert!(second.is_held());
    within("an answer", second.release()).await.expect("it holds");
}

/// A clock that is set forward costs a lease nothing that is renewed before anybody asks, and nobody in line his turn.
#[tokio::test]
async fn a_clock_set_forward_costs_nobody_his_turn() {
    let Some(clock) = WallClock::new() else { return };
    let Some(stage) = Stage::with(PostgresOptions::new().clock(&clock)).await else { return };
    let (ann, ben, cat) = (stage.client().await, stage.client().await, stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = [waits(&ben), waits(&cat)];
    stage.sees_waiters(2).await;
    clock.step(HOUR);
    // Whichever of them had its turn first; for the server the first lease has lapsed.
    let mut last = held.token;
    let [one, other] = waiting;
    let (mut one, mut other) = (Box::pin(its_turn(one)), Box::pin(its_turn(other)));
    let (lease, by, rest, next) = tokio::select! {
        lease = &mut one => (lease, &ben, other, &cat),
        lease = &mut other => (lease, &cat, one, &ben),
    };
    assert!(lease.token.sequence() > last.sequence());
    last = lease.token;
    release(by, &lease).await.expect("an answer");
    let lease = rest.await;
    assert!(lease.token.sequence() > last.sequence());
    release(next, &lease).await.expect("an answer");
    stage.sees_it_free().await;
}

/// A clock that is set back lets the leases of the dead last: as long as it was set back, and no longer. Those of the living are
/// renewed and given back as ever, and so are turns.
#[tokio::test]
async fn a_clock_set_back_keeps_the_leases_of_the_dead_and_nothing_else() {
    let Some(clock) = WallClock::new() else { return };
    clock.step(HOUR);
    let Some(stage) = Stage::with(PostgresOptions::new().clock(&clock)).await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let ttl = Duration::from_secs(1);
    let dead = granted(&ann, request(Mode::Exclusive, ttl, Wait::No)).await;
    let other = "orders/43";
    let living = granted(&ann, crate::stage::request_of(other, Mode::Exclusive, LONG, Wait::No)).await;
    clock.step(0);
    let long_over = now().saturating_add(3 * ttl);
    let tried = ben.acquire(request(Mode::Exclusive, ttl, Wait::Until(long_over))).await.expect("an answer");
    assert!(matches!(tried, Attempt::Busy(_)), "for the server it lasts an hour more: {tried:?}");

    // What is renewed lives by the new clock.
    assert_eq!(renew(&ann, &living).await.expect("an answer"), ringfence_core::Renewal::Renewed);
    let waiting = tokio::spawn({
        let ben = std::sync::Arc::clone(&ben);
        async move { granted(&ben, crate::stage::request_of(other, Mode::Exclusive, LONG, FOR_EVER)).await }
    });
    stage
        .says(&format!("SELECT count(*) FROM ringfence.places WHERE name = '{other}' AND kind = 'w'"), "1")
        .await;
    release(&ann, &living).await.expect("an answer");
    let next = within("the next turn", waiting).await.expect("no panic");
    assert!(next.token.sequence() > living.token.sequence());

    clock.step(HOUR);
    let free = granted(&ben, request(Mode::Exclusive, ttl, FOR_EVER)).await;
    assert!(free.token.sequence() > dead.token.sequence(), "{dead:?}, then {free:?}");
    release(&ben, &free).await.expect("an answer");
}

/// A waiter that died while the clock was ahead looks alive for as long as it was; that must cost the others its turn only.
#[tokio::test]
async fn a_clock_set_back_makes_no_dead_waiter_block_the_line() {
    let Some(clock) = WallClock::new() else { return };
    clock.step(HOUR);
    let Some(stage) = Stage::with(PostgresOptions::new().clock(&clock)).await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let mut dead = ringfence_servers::Taker::start(&stage.server.url(), NAME, &["--ttl", "1m"]);
    stage.sees_waiters(1).await;
    dead.kill();
    clock.step(0);
    let waiting = waits(&ben);
    stage.sees_waiters(2).await;
    release(&ann, &held).await.expect("an answer");
    let lease = its_turn(waiting).await;
    assert!(lease.token.sequence() > held.token.sequence());
    release(&ben, &lease).await.expect("an answer");
}
