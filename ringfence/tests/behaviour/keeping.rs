//! The keeper: renewal, its failures, and loss whatever the keeper does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringfence::{Backend, BootInstant, Clock, ErrorKind, Locks, SystemClock, WallTime};

use crate::stage::{Call, Fate, Gate, JumpingClock, Stage, eventually, is_ready, millis, soon, staged};

/// Long enough for a busy machine to renew in time.
const TTL: Duration = millis(1500);

fn elapsed_since(start: BootInstant) -> Duration {
    SystemClock::new().now().saturating_since(start)
}

#[tokio::test]
async fn a_held_lease_outlives_its_ttl() {
    let (locks, stage) = staged();
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    let shared = locks.lock("b").ttl(TTL).shared().acquire().await.unwrap();
    let mut lost = Box::pin(guard.lost());
    let start = SystemClock::new().now();
    while elapsed_since(start) < TTL * 4 {
        assert!(guard.is_held() && shared.is_held());
        assert!(!is_ready(&mut lost).await);
        tokio::time::sleep(millis(5)).await;
    }
    assert!(stage.calls(Call::Renew) >= 8, "a third of the TTL: {}", stage.calls(Call::Renew));
    assert!(stage.calls(Call::Renew) <= 40, "and not all the time: {}", stage.calls(Call::Renew));
    guard.release().await.unwrap();
    shared.release().await.unwrap();
}

#[tokio::test]
async fn a_few_failed_renewals_lose_nothing() {
    let (locks, stage) = staged();
    stage.next(Call::Renew, [Fate::Unreachable, Fate::ReplyLost]);
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    eventually(async || stage.calls(Call::Renew) >= 5).await;
    assert!(guard.is_held());
}

#[tokio::test]
async fn renewals_that_keep_failing_lose_the_lease_at_its_deadline_and_not_before() {
    let (locks, stage) = staged();
    stage.always(Call::Renew, Fate::Unreachable);
    let start = SystemClock::new().now();
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    soon(guard.lost()).await;
    let lasted = elapsed_since(start);
    assert!(lasted >= TTL, "never while it is proven: {lasted:?}");
    assert!(!guard.is_held());
    assert!(stage.calls(Call::Renew) >= 3, "tried again: {}", stage.calls(Call::Renew));
    stage.always(Call::Renew, None);
    tokio::time::sleep(TTL / 2).await;
    assert!(!guard.is_held(), "lost is lost");
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_keeper_that_is_stuck_delays_no_loss() {
    let (locks, stage) = staged();
    stage.always(Call::Renew, Fate::held_back(&Gate::new()));
    let start = SystemClock::new().now();
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    soon(guard.lost()).await;
    let lasted = elapsed_since(start);
    assert!(lasted >= TTL && lasted < TTL * 4, "{lasted:?}");
}

#[tokio::test]
async fn a_renewal_without_an_answer_is_tried_again() {
    let (locks, stage) = staged();
    stage.next(Call::Renew, [Fate::held_back(&Gate::new())]);
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    eventually(async || stage.calls(Call::Renew) >= 6).await;
    assert!(guard.is_held());
}

/// A network on which an answer takes longer than the keeper waits for it loses nothing.
#[tokio::test]
async fn an_answer_that_comes_when_a_renewal_was_tried_again_counts() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Renew, [Fate::ReplyHeldBack(gate.clone())]);
    stage.always(Call::Renew, Fate::Unreachable);
    let start = SystemClock::new().now();
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    gate.somebody_is_there().await;
    let sent = SystemClock::new().now();
    eventually(async || stage.calls(Call::Renew) >= 2).await;
    gate.open();
    soon(guard.lost()).await;
    assert!(elapsed_since(start) > TTL + TTL / 10, "it lived for {:?}", elapsed_since(start));
    assert!(elapsed_since(sent) >= TTL * 9 / 10, "until a TTL after that one was sent");
}

#[tokio::test]
async fn an_answer_that_comes_after_the_deadline_is_too_late() {
    let clock = Arc::new(JumpingClock::default());
    // The backend does not share the jump: it would go on renewing.
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    let gate = Gate::new();
    stage.next(Call::Renew, [Fate::ReplyHeldBack(gate.clone())]);
    let guard = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    gate.somebody_is_there().await;
    clock.jump(TTL);
    gate.open();
    soon(guard.lost()).await;
    tokio::time::sleep(TTL / 2).await;
    assert!(!guard.is_held());
}

#[tokio::test]
async fn a_deadline_counts_from_before_the_renewal_was_sent() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Renew, [Fate::ReplyHeldBack(gate.clone())]);
    stage.always(Call::Renew, Fate::Unreachable);
    let ttl = millis(3000);
    let guard = locks.lock("a").ttl(ttl).acquire().await.unwrap();
    gate.somebody_is_there().await;
    let sent = SystemClock::new().now();
    tokio::time::sleep(millis(100)).await;
    gate.open();
    eventually(async || guard.remaining() > millis(2100)).await;
    // The clock first: what passes in between makes the sum no greater.
    assert!(elapsed_since(sent) + guard.remaining() <= ttl + millis(1), "{:?}", guard.remaining());
}

#[tokio::test]
async fn a_renewal_that_says_lost_is_believed() {
    let (locks, stage) = staged();
    stage.tell_nothing();
    let guard = locks.lock("a").ttl(millis(3000)).acquire().await.unwrap();
    let elsewhere = Locks::new(Arc::clone(&stage) as _);
    elsewhere.evict("a", guard.token().nonce()).await.unwrap();
    assert!(guard.is_held(), "nobody has told yet");
    let start = SystemClock::new().now();
    soon(guard.lost()).await;
    assert!(elapsed_since(start) < millis(2500), "by the renewal, not by the deadline");
    assert!(!guard.is_held());
}

#[tokio::test]
async fn those_behind_a_holder_that_lost_its_lease_need_not_wait_for_it() {
    let (locks, _stage) = staged();
    let hangs = locks.lock("a").acquire().await.unwrap();
    let next = tokio::spawn(locks.lock("a").acquire());
    tokio::task::yield_now().await;
    locks.evict("a", hangs.token().nonce()).await.unwrap();
    let next = soon(next).await.unwrap().unwrap();
    assert!(next.token().grant() > hangs.token().grant());
    assert_eq!(hangs.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(next.is_held());
    let after = tokio::spawn(locks.lock("a").acquire());
    tokio::task::yield_now().await;
    next.release().await.unwrap();
    drop(soon(after).await.unwrap().unwrap());
}

#[tokio::test]
async fn a_worker_that_hangs_loses_the_lock_after_its_max_hold() {
    let (locks, stage) = staged();
    let start = SystemClock::new().now();
    let hangs = locks.lock("a").ttl(TTL).max_hold(TTL * 2).acquire().await.unwrap();
    let next = tokio::spawn(locks.lock("a").ttl(TTL).acquire());
    soon(hangs.lost()).await;
    let lasted = elapsed_since(start);
    assert!(lasted >= TTL * 2, "not before: {lasted:?}");
    assert!(lasted < TTL * 6, "{lasted:?}");
    let next = soon(next).await.unwrap().unwrap();
    let renewals = stage.calls(Call::Renew);
    eventually(async || stage.calls(Call::Renew) >= renewals + 3).await;
    assert!(next.is_held(), "the next holder has no such limit");
}

#[tokio::test]
async fn the_max_hold_of_one_is_not_the_next_ones() {
    let (locks, stage) = staged();
    let first = locks.lock("a").ttl(TTL).max_hold(millis(10)).acquire().await.unwrap();
    let second = tokio::spawn(locks.lock("a").ttl(TTL).acquire());
    tokio::task::yield_now().await;
    first.release().await.unwrap();
    let second = soon(second).await.unwrap().unwrap();
    eventually(async || stage.calls(Call::Renew) >= 4).await;
    assert!(second.is_held());
}

#[tokio::test]
async fn leases_are_renewed_in_batches() {
    let (locks, stage) = staged();
    let mut guards = Vec::new();
    for number in 0..3000 {
        guards.push(locks.lock(format!("{number}")).ttl(millis(3000)).acquire().await.unwrap());
    }
    eventually(async || stage.batches().iter().sum::<usize>() >= 3000).await;
    let batches = stage.batches();
    assert!(batches.len() <= 12, "{batches:?}");
    assert!(batches.iter().all(|size| *size <= 1024), "{batches:?}");
    assert!(guards.iter().all(ringfence::Guard::is_held));
}

#[tokio::test]
async fn one_lost_lease_in_a_batch_does_not_hurt_its_neighbours() {
    let (locks, stage) = staged();
    let one = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    let two = locks.lock("b").ttl(TTL).acquire().await.unwrap();
    let three = locks.lock("c").ttl(TTL).acquire().await.unwrap();
    locks.evict("b", two.token().nonce()).await.unwrap();
    eventually(async || stage.calls(Call::Renew) >= 5).await;
    assert!(one.is_held() && !two.is_held() && three.is_held());
}

#[tokio::test]
async fn a_lease_of_which_nobody_can_say_is_tried_again_and_lost_at_its_deadline_and_its_neighbours_are_kept()
{
    let (locks, stage) = staged();
    stage.silence("b");
    let start = SystemClock::new().now();
    let one = locks.lock("a").ttl(TTL).acquire().await.unwrap();
    let two = locks.lock("b").ttl(TTL).acquire().await.unwrap();
    soon(two.lost()).await;
    let lasted = elapsed_since(start);
    assert!(lasted >= TTL, "never while it is proven: {lasted:?}");
    assert!(stage.calls(Call::Renew) >= 3, "tried again: {}", stage.calls(Call::Renew));
    let renewed = stage.calls(Call::Renew);
    eventually(async || stage.calls(Call::Renew) >= renewed + 3).await;
    assert!(one.is_held() && elapsed_since(start) > TTL);
}

#[tokio::test]
async fn a_backend_that_panics_in_a_renewal_does_not_end_the_keeper() {
    let (locks, stage) = staged();
    stage.next(Call::Renew, [Fate::Panics]);
    // Long enough for the printing of a backtrace.
    let guard = locks.lock("a").ttl(TTL * 20).acquire().await.unwrap();
    eventually(async || stage.calls(Call::Renew) >= 2).await;
    assert!(guard.is_held());
}

/// A clock that panics once, where only the keeper asks.
#[derive(Debug, Default)]
struct PanickingClock {
    armed: AtomicBool,
    panics: AtomicUsize,
}

impl Clock for PanickingClock {
    fn now(&self) -> BootInstant {
        SystemClock::new().now()
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall()
    }

    fn nap(&self, deadline: BootInstant) -> Option<Duration> {
        if self.armed.swap(false, Ordering::SeqCst) {
            self.panics.fetch_add(1, Ordering::SeqCst);
            panic!("the clock was told to panic");
        }
        SystemClock::new().nap(deadline)
    }
}

#[tokio::test]
async fn a_keeper_that_panics_starts_again() {
    let clock = Arc::new(PanickingClock::default());
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    let guard = locks.lock("a").ttl(TTL * 20).acquire().await.unwrap();
    clock.armed.store(true, Ordering::SeqCst);
    eventually(async || stage.calls(Call::Renew) >= 1).await;
    assert_eq!(clock.panics.load(Ordering::SeqCst), 1);
    assert!(guard.is_held());
}

/// A clock that counts how often somebody asks how long to sleep.
#[derive(Debug, Default)]
struct CountingClock(AtomicUsize);

impl Clock for CountingClock {
    fn now(&self) -> BootInstant {
        SystemClock::new().now()
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall()
    }

    fn nap(&self, deadline: BootInstant) -> Option<Duration> {
        self.0.fetch_add(1, Ordering::SeqCst);
        SystemClock::new().nap(deadline)
    }
}

#[tokio::test]
async fn taking_and_releasing_does_not_wake_the_keeper() {
    let clock = Arc::new(CountingClock::default());
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    for _ in 0..200 {
        locks.lock("a").acquire().await.unwrap().release().await.unwrap();
        tokio::task::yield_now().await;
    }
    let wakes = clock.0.load(Ordering::SeqCst);
    assert!(wakes <= 5, "it woke {wakes} times");
}
