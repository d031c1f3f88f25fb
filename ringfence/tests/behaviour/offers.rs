//! Turns that a backend gives for less than their TTL, until they are renewed.

use std::time::Duration;

use ringfence::{Clock, SystemClock};

use crate::stage::{Call, Fate, Gate, eventually, millis, soon, staged};

/// Long enough for a busy machine to try again within it.
const OFFER: Duration = millis(1500);
const TTL: Duration = millis(20_000);

#[tokio::test]
async fn an_offer_is_renewed_before_its_holder_runs_and_then_lives_for_its_ttl() {
    let (locks, stage) = staged();
    stage.offer_for(OFFER);
    let gate = Gate::new();
    stage.next(Call::Renew, [Fate::ReplyHeldBack(gate.clone())]);
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    assert_eq!(stage.calls(Call::Renew), 1, "it is under way though this task never waited for anything");
    assert!(
        guard.is_held() && guard.remaining() <= OFFER,
        "nothing more is proven yet: {:?}",
        guard.remaining()
    );
    gate.open();
    soon(guard.confirmed()).await;
    assert!(guard.remaining() > TTL / 2, "{:?}", guard.remaining());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn an_offer_that_cannot_be_renewed_is_tried_again_and_lost_at_its_end() {
    let (locks, stage) = staged();
    stage.offer_for(OFFER);
    stage.always(Call::Renew, Fate::Unreachable);
    let asked = SystemClock::new().now();
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    soon(guard.lost()).await;
    let lived = SystemClock::new().now().saturating_since(asked);
    assert!(lived >= OFFER && lived < TTL / 2, "it lived for as long as it was offered: {lived:?}");
    assert!(stage.calls(Call::Renew) > 2, "and was tried again: {}", stage.calls(Call::Renew));
    soon(guard.confirmed()).await;
}

#[tokio::test]
async fn work_begins_under_a_lease_that_lives_for_its_ttl() {
    let (locks, stage) = staged();
    stage.offer_for(OFFER);
    let left = locks.lock("a").ttl(TTL).run(async |held| held.remaining()).await.unwrap();
    assert!(left > TTL / 2, "{left:?}");
}

#[tokio::test]
async fn an_offer_is_handed_on_inside_the_process_like_any_lease() {
    let (locks, stage) = staged();
    stage.offer_for(OFFER);
    stage.always(Call::Renew, Fate::Unreachable);
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    let second = tokio::spawn(locks.lock("a").ttl(TTL).acquire());
    eventually(async || locks.inspect("a").await.unwrap().holders.len() == 1).await;
    tokio::task::yield_now().await;
    guard.release().await.unwrap();
    let second = soon(second).await.unwrap().unwrap();
    assert_eq!(stage.calls(Call::Release), 0, "no round trip");
    second.release().await.unwrap();
}
