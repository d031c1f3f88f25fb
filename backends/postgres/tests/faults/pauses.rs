//! Processes of ours that are stopped, killed or cut off.

use std::time::Duration;

use ringfence_core::{Clock, ErrorKind, SystemClock, Wait};
use ringfence_servers::{Taker, taker};

use crate::stage::{
    AT_ONCE, FOR_EVER, LONG, NAME, Stage, client, exclusive, granted, its_turn, now, release, waits, within,
};

/// A stopped process does not know that it lost. What it does when it runs on must be refused, and it must learn of its loss
/// before it does anything else.
#[tokio::test]
async fn a_process_stopped_past_its_ttl_has_lost_and_is_refused() {
    let Some(stage) = Stage::new().await else { return };
    let ttl = Duration::from_secs(2);
    let ben = stage.locks().await;
    let mut stopped = Taker::start(&stage.server.url(), NAME, &["--ttl", "2s"]);
    let (first, since) = stopped.holds().await;
    stopped.writes("first").await.expect("its own record");
    let waiting = tokio::spawn({
        let ben = ben.clone();
        async move { ben.lock(NAME).ttl(LONG).acquire().await }
    });
    stage.sees_waiters(1).await;
    stopped.stop();
    let stopped_at = now();
    let next = within("the turn of the next one", waiting).await.expect("no panic").expect("a lock");
    let granted_at = now();
    assert!(
        granted_at >= since.saturating_add(ttl),
        "it was granted {:?} after",
        granted_at.saturating_since(since)
    );
    let took = granted_at.saturating_since(stopped_at);
    assert!(took < ttl + Duration::from_secs(3), "it took {took:?}");
    assert!(next.token().sequence() > first.sequence(), "{first}, then {}", next.token());
    let record = ben.record(NAME).expect("a name");
    record.open(next.token()).await.expect("its own record");
    record.write(next.token(), "second").await.expect("its own record");
    stopped.resume();
    stopped.loses().await;
    let late = stopped.writes("late").await.expect_err("its token is stale");
    assert_eq!(late.kind(), ErrorKind::Stale, "{late:?}");
    let record = record.read().await.expect("an answer").expect("it was written");
    assert_eq!(record.value, "second");
    assert!(next.is_held());
}

/// The same before the next one has looked at the record: the fence-first gap, in which a check of the mark alone would let the
/// stopped one write.
#[tokio::test]
async fn a_stopped_process_is_refused_before_the_next_one_has_opened_the_record() {
    let Some(stage) = Stage::new().await else { return };
    let mut stopped = Taker::start(&stage.server.url(), NAME, &["--ttl", "1s"]);
    let (first, _) = stopped.holds().await;
    stopped.writes("first").await.expect("its own record");
    stopped.stop();
    let ben = stage.client().await;
    let next = granted(&ben, exclusive(FOR_EVER)).await;
    assert!(next.token.sequence() > first.sequence(), "{first}, then {next:?}");
    stopped.resume();
    let late = stopped.writes("late").await.expect_err("its token is stale");
    assert_eq!(late.kind(), ErrorKind::Stale, "{late:?}");
}

/// A lost connection is no dead process: the lease of one that was killed lasts for its TTL, and not longer.
#[tokio::test]
async fn a_killed_holder_is_out_after_its_ttl() {
    let Some(stage) = Stage::new().await else { return };
    let ttl = Duration::from_secs(3);
    let ben = stage.client().await;
    let mut killed = Taker::start(&stage.server.url(), NAME, &["--ttl", "3s"]);
    let (first, since) = killed.holds().await;
    let waiting = waits(&ben);
    stage.sees_waiters(1).await;
    killed.kill();
    let killed_at = now();
    let next = its_turn(waiting).await;
    assert!(now() >= since.saturating_add(ttl));
    let took = now().saturating_since(killed_at);
    assert!(took < ttl + Duration::from_secs(2), "it took {took:?}");
    assert!(next.token.sequence() > first.sequence());
}

/// Whoever cannot take its turn must not cost the next one more than that turn, or his silence: seconds, and not a TTL.
#[tokio::test]
async fn waiters_that_are_killed_stopped_and_cut_off_cost_the_next_one_seconds() {
    // Built now, because nobody looks after the line meanwhile.
    taker();
    let Some(stage) = Stage::new().await else { return };
    let (proxy, url) = stage.proxy().await;
    let (ann, ben, far) = (stage.client().await, stage.client().await, client(&url).await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let mut takers = Vec::new();
    for place in 1..=2 {
        takers.push(Taker::start(&stage.server.url(), NAME, &["--ttl", "1m"]));
        stage.sees_waiters(place).await;
    }
    let cut_off = waits(&far);
    stage.sees_waiters(3).await;
    let live = waits(&ann);
    stage.sees_waiters(4).await;
    takers[0].kill();
    takers[1].stop();
    proxy.cut();
    let released = now();
    release(&ben, &held).await.expect("an answer");
    let lease = its_turn(live).await;
    let took = now().saturating_since(released);
    assert!(took < AT_ONCE, "it took {took:?}, where a TTL is {LONG:?}");
    // They come back, and stand in line again.
    proxy.mend();
    takers[1].resume();
    stage.sees_waiters(2).await;
    release(&ann, &lease).await.expect("an answer");
    // Whichever was back first gives way to the other one.
    let token = tokio::select! {
        (token, _) = takers[1].holds() => token,
        lease = its_turn(cut_off) => lease.token,
    };
    assert!(token.sequence() > lease.token.sequence(), "{}, then {token}", lease.token);
}

/// Whoever is cut off silently keeps what it can prove, and no longer.
#[tokio::test]
async fn a_holder_that_is_cut_off_keeps_its_lease_until_its_ttl_and_has_lost_it_then() {
    let Some(stage) = Stage::new().await else { return };
    let (proxy, url) = stage.proxy().await;
    let ttl = Duration::from_secs(3);
    let (far, ben) = (crate::stage::locks(&url).await, stage.client().await);
    let guard = far.lock(NAME).ttl(ttl).acquire().await.expect("a free lock");
    let waiting = waits(&ben);
    stage.sees_waiters(1).await;
    proxy.cut();
    let mut waiting = Box::pin(its_turn(waiting));
    let lost_first = tokio::select! {
        biased;
        () = guard.lost() => true,
        _ = &mut waiting => false,
    };
    assert!(lost_first, "the next one holds while this one believes that it does");
    let lost_at = SystemClock::new().now();
    let next = waiting.await;
    let late = now().saturating_since(lost_at);
    // A renewal may have arrived whose answer was cut off, and a waiter looks now and then.
    assert!(late < ttl + Duration::from_secs(1), "free again {late:?} after the loss");
    assert!(next.token.sequence() > guard.token().sequence());
    proxy.mend();
    let error = within("an answer", guard.release()).await.expect_err("it is lost");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
    assert_eq!(stage.state().await.holders.len(), 1, "a late release ends nobody else's lease");
}
