//! Processes that are stopped for longer than they may.

use ringfence_core::{FencedStore, LockState, RecordKey};
use ringfence_servers::{Event, Taker};

use crate::stage::{FOR_EVER, NAME, Stage, exclusive, granted, name, release};

/// How often a waiter is stopped past its turn: whether it hears of the old turn before or after it asks anew is a matter of
/// chance.
const ROUNDS: usize = 10;

/// Without the record's fence the first holder would undo the second one's write; without the local deadline it would go on
/// as if nothing had been.
#[tokio::test]
async fn a_holder_that_slept_past_its_ttl_wakes_up_to_a_refusal_and_a_loss() {
    let Some(stage) = Stage::new().await else { return };
    let mut first = Taker::start(&stage.server.url(), NAME, &["--ttl", "1s"]);
    let (first_token, held_at) = first.holds().await;
    first.writes("first").await.expect("its token is the highest");
    first.stop();
    let mut second = Taker::start(&stage.server.url(), NAME, &["--ttl", "1m"]);
    let (second_token, _) = second.holds().await;
    assert!(second_token.sequence() > first_token.sequence(), "{first_token}, then {second_token}");
    second.writes("second").await.expect("its token is the highest");
    // The order is there when it wakes, so that nothing comes before the write.
    first.tell("write late");
    first.resume();
    let refused = |event: &Event| match event {
        Event::Refused { kind, .. } => Some(kind.clone()),
        Event::Written { value, .. } => panic!("the late write was taken: {value}"),
        _ => None,
    };
    assert_eq!(first.event("is refused", refused).await, "Stale");
    let lost_at = first.loses().await;
    assert!(lost_at > held_at, "{lost_at:?} {held_at:?}");
    let record =
        stage.client().await.read(&RecordKey::of(name())).await.expect("an answer").expect("a record");
    assert_eq!((&record.value[..], record.written_with), (&b"second"[..], second_token));
}

/// The news of an old turn and the answer to a new question cross: a waiter that took the one for the other would hold a lock
/// that somebody else has.
#[tokio::test]
async fn a_waiter_that_sleeps_through_its_turns_believes_none_of_them() {
    let Some(stage) = Stage::new().await else { return };
    let ben = stage.client().await;
    let mut lease = granted(&ben, exclusive(FOR_EVER)).await;
    let mut waiter = Taker::start(&stage.server.url(), NAME, &["--ttl", "1m"]);
    for _ in 0..ROUNDS {
        stage.sees_waiters(1).await;
        waiter.stop();
        release(&ben, &lease).await.expect("an answer");
        stage.sees("a turn of the waiter", |state| holder_is(state, waiter.id())).await;
        lease = granted(&ben, exclusive(FOR_EVER)).await;
        waiter.resume();
    }
    stage.sees_waiters(1).await;
    release(&ben, &lease).await.expect("an answer");
    let held = |event: &Event| if let Event::Held { token, .. } = event { Some(*token) } else { None };
    let token = waiter.event("holds", held).await;
    assert!(token.sequence() > lease.token.sequence(), "it believed {token}, after {}", lease.token);
}

fn holder_is(state: &LockState, pid: u32) -> bool {
    state.holders.iter().any(|seen| seen.holder.pid() == pid)
}
