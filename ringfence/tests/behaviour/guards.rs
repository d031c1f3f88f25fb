//! What a guard says, and how it ends.

use std::fmt;
use std::sync::{Arc, Mutex};

use ringfence::{
    Agreement, Backend, BootInstant, Clock, Effect, ErrorKind, Eviction, Locks, Mode, SystemClock, WallTime,
};

use crate::stage::{
    Call, Fate, Gate, JumpingClock, Stage, eventually, free, in_line, is_ready, memory, millis, soon, staged,
};

#[tokio::test]
async fn a_guard_is_held_until_it_is_released() {
    let locks = memory().await;
    let guard = locks.lock("a").acquire().await.unwrap();
    assert!(guard.is_held());
    guard.ensure_held().unwrap();
    assert!(guard.remaining() > millis(29_000) && guard.remaining() <= guard.ttl().as_duration());
    assert!(format!("{guard:?}").contains("\"a\""));
    guard.release().await.unwrap();
    assert!(locks.inspect("a").await.unwrap().is_free());
}

#[tokio::test]
async fn tokens_rise_from_grant_to_grant() {
    let locks = memory().await;
    let mut last = 0;
    for _ in 0..5 {
        let guard = locks.lock("a").acquire().await.unwrap();
        assert!(guard.token().sequence() > last);
        last = guard.token().sequence();
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_dropped_guard_is_released() {
    let (locks, stage) = staged();
    drop(locks.lock("a").acquire().await.unwrap());
    assert!(locks.inspect("a").await.unwrap().is_free(), "at once, where the backend answers at once");
    stage.next(Call::Release, [Fate::Slow]);
    drop(locks.lock("a").acquire().await.unwrap());
    free(&locks, "a").await;
}

#[tokio::test]
async fn a_nested_guard_is_the_same_hold_and_the_last_one_releases() {
    let (locks, stage) = staged();
    let outer = locks.lock("a").acquire().await.unwrap();
    let inner = outer.nested();
    assert_eq!(inner.token(), outer.token());
    let innermost = inner.nested();
    outer.release().await.unwrap();
    drop(innermost);
    assert!(inner.is_held());
    assert_eq!(stage.calls(Call::Release), 0);
    inner.release().await.unwrap();
    assert!(locks.inspect("a").await.unwrap().is_free());
}

#[tokio::test]
async fn a_release_that_fails_may_have_arrived() {
    let (locks, stage) = staged();
    stage.next(Call::Release, [Fate::ReplyLost]);
    let error = locks.lock("a").acquire().await.unwrap().release().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown));
    assert!(locks.inspect("a").await.unwrap().is_free());
}

#[tokio::test]
async fn a_release_that_did_not_arrive_is_made_again_in_the_background() {
    for drops in [false, true] {
        let (locks, stage) = staged();
        stage.next(Call::Release, [Fate::Unreachable, Fate::Unreachable]);
        let guard = locks.lock("a").acquire().await.unwrap();
        if drops {
            drop(guard);
        } else {
            let error = guard.release().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "whoever waits is told at once");
        }
        eventually(async || locks.inspect("a").await.unwrap().is_free()).await;
        assert_eq!(stage.calls(Call::Release), 3, "drops: {drops}");
    }
}

#[tokio::test]
async fn a_guard_is_dead_when_its_release_is_sent() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Release, [Fate::held_back(&gate)]);
    let guard = locks.lock("a").ttl(millis(150)).acquire().await.unwrap();
    let mut lost = Box::pin(guard.lost());
    assert!(!is_ready(&mut lost).await);
    let release = tokio::spawn(guard.release());
    gate.somebody_is_there().await;
    // Nothing renews it from here on.
    tokio::time::sleep(millis(200)).await;
    assert!(locks.inspect("a").await.unwrap().is_free());
    assert!(!is_ready(&mut lost).await, "what was given back is not lost");
    gate.open();
    assert_eq!(soon(release).await.unwrap().unwrap_err().kind(), ErrorKind::Lost, "it came too late");
}

#[tokio::test]
async fn an_evicted_holder_learns_it_at_once() {
    let locks = memory().await;
    let guard = locks.lock("a").acquire().await.unwrap();
    let lost = tokio::spawn(guard.lost());
    tokio::task::yield_now().await;
    assert!(!lost.is_finished());
    locks.evict("a", guard.token().nonce()).await.unwrap();
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    assert!(lost.is_finished(), "woken, not found out when it looks again");
    assert!(!guard.is_held());
    assert!(guard.remaining().is_zero());
    assert_eq!(guard.ensure_held().unwrap_err().kind(), ErrorKind::Lost);
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("\"a\""), "{error}");
}

/// As where the server's news comes by a connection that is only being made.
#[tokio::test]
async fn a_holder_that_is_evicted_by_its_own_locks_need_not_be_told_by_the_backend() {
    let (locks, stage) = staged();
    stage.tell_nothing();
    let guard = locks.lock("a").acquire().await.unwrap();
    assert_eq!(locks.evict("b", guard.token().nonce()).await.unwrap(), Eviction::NotHeld);
    assert!(guard.is_held(), "it holds another name");
    assert_eq!(locks.evict("a", guard.token().nonce()).await.unwrap(), Eviction::Evicted);
    assert!(!guard.is_held());
    soon(guard.lost()).await;
    soon(locks.lock("a").acquire()).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_process_that_was_paused_past_its_ttl_knows_it_when_it_wakes_up() {
    let clock = Arc::new(JumpingClock::default());
    let stage = Stage::with_clock(Arc::clone(&clock) as _);
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    let guard = locks.lock("a").acquire().await.unwrap();
    let token = guard.token();
    // The rest is more than a busy machine is late.
    clock.jump(millis(29_000));
    assert!(guard.is_held());
    clock.jump(millis(1_000));
    assert!(!guard.is_held());
    soon(guard.lost()).await;
    let next = locks.lock("a").label("another").acquire().await.unwrap();
    assert!(next.token().sequence() > token.sequence());
    let record = locks.record("a").unwrap();
    record.open(next.token()).await.unwrap();
    assert_eq!(record.write(token, "late").await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(next.is_held(), "a late release frees no successor");
}

#[tokio::test]
async fn a_downgraded_guard_keeps_its_token_and_lets_readers_in() {
    let (locks, _stage) = staged();
    let guard = locks.lock("a").acquire().await.unwrap();
    let token = guard.token();
    let lost = guard.lost();
    let reader = tokio::spawn(locks.lock("a").shared().acquire());
    in_line(&locks, "a", 1).await;
    let guard = guard.downgrade().await.unwrap();
    assert_eq!((guard.mode(), guard.token()), (Mode::Shared, token));
    let reader = soon(reader).await.unwrap().unwrap();
    let writer = tokio::spawn(locks.lock("a").acquire());
    in_line(&locks, "a", 1).await;
    drop(reader);
    guard.release().await.unwrap();
    assert!(soon(writer).await.unwrap().unwrap().token().grant() > token.grant());
    let mut lost = Box::pin(lost);
    assert!(!is_ready(&mut lost).await);
}

#[tokio::test]
async fn whoever_waited_behind_a_downgraded_guard_stands_at_the_backend() {
    let (locks, _stage) = staged();
    let guard = locks.lock("a").acquire().await.unwrap();
    let writer = tokio::spawn(locks.lock("a").acquire());
    tokio::task::yield_now().await;
    assert_eq!(locks.inspect("a").await.unwrap().waiters, [], "it waits in the room");
    let guard = guard.downgrade().await.unwrap();
    in_line(&locks, "a", 1).await;
    drop(guard);
    let writer = soon(writer).await.unwrap().unwrap();
    assert_eq!(writer.token().sequence() & 0xff, 0, "a grant of its own");
}

#[tokio::test]
async fn a_downgrade_keeps_telling_of_loss() {
    let (locks, _stage) = staged();
    let guard = locks.lock("a").acquire().await.unwrap();
    let lost = tokio::spawn(guard.lost());
    let guard = guard.downgrade().await.unwrap();
    locks.evict("a", guard.token().nonce()).await.unwrap();
    soon(lost).await.unwrap();
}

#[tokio::test]
async fn a_downgrade_that_cannot_be_is_refused() {
    let (locks, stage) = staged();
    let guard = locks.lock("a").acquire().await.unwrap();
    let inner = guard.nested();
    assert_eq!(guard.downgrade().await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(inner.mode(), Mode::Exclusive, "the nested one relies on it");
    let guard = inner.downgrade().await.unwrap();
    assert_eq!(guard.downgrade().await.unwrap().mode(), Mode::Shared, "a shared hold stays one");
    let permit = locks.lock("b").permits(2).acquire().await.unwrap();
    assert_eq!(permit.downgrade().await.unwrap_err().kind(), ErrorKind::InvalidRequest);

    let guard = locks.lock("c").acquire().await.unwrap();
    locks.evict("c", guard.token().nonce()).await.unwrap();
    assert_eq!(guard.downgrade().await.unwrap_err().kind(), ErrorKind::Lost);

    stage.next(Call::Downgrade, [Fate::Unreachable]);
    let guard = locks.lock("d").acquire().await.unwrap();
    assert_eq!(guard.downgrade().await.unwrap_err().kind(), ErrorKind::Unavailable);
    for name in ["a", "b", "c", "d"] {
        free(&locks, name).await;
    }
}

#[tokio::test]
async fn an_upgrade_is_refused_with_the_reason_and_costs_nothing() {
    let locks = memory().await;
    let guard = locks.lock("a").shared().acquire().await.unwrap();
    let error = guard.upgrade().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("wait for each other for ever"), "{error}");
    assert!(error.to_string().contains("read again"), "{error}");
    assert!(guard.is_held());
}

#[tokio::test]
async fn close_releases_what_is_held_and_turns_away_who_waits() {
    let (locks, stage) = staged();
    stage.always(Call::Release, Fate::Slow);
    let held = locks.lock("a").acquire().await.unwrap();
    let shared = locks.lock("b").shared().acquire().await.unwrap();
    let lost = tokio::spawn(held.lost());
    let waits = tokio::spawn(locks.lock("a").acquire());
    let stands = tokio::spawn(locks.lock("b").acquire());
    in_line(&locks, "b", 1).await;
    drop(locks.lock("c").acquire().await.unwrap());
    soon(locks.close()).await.unwrap();
    for name in ["a", "b", "c"] {
        assert!(locks.inspect(name).await.unwrap().is_free(), "{name}, when close returns");
    }
    assert!(!held.is_held() && !shared.is_held());
    soon(lost).await.unwrap();
    for turned_away in [waits, stands] {
        let error = soon(turned_away).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
    }
    assert!(locks.lock("d").acquire().await.unwrap_err().to_string().contains("closed"));
    assert!(locks.lock("d").shared().try_acquire().await.is_err());
    assert_eq!(held.release().await.unwrap_err().kind(), ErrorKind::Lost);
    locks.close().await.unwrap();
}

#[tokio::test]
async fn close_waits_for_grants_that_are_under_way() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::ReplyHeldBack(gate.clone())]);
    let late = tokio::spawn(locks.lock("a").acquire());
    gate.somebody_is_there().await;
    let closing = tokio::spawn({
        let locks = locks.clone();
        async move { locks.close().await }
    });
    assert!(soon(late).await.unwrap().is_err());
    assert!(!closing.is_finished());
    gate.open();
    soon(closing).await.unwrap().unwrap();
    assert!(locks.inspect("a").await.unwrap().is_free());
}

#[tokio::test]
async fn close_says_what_it_could_not_release() {
    let (locks, stage) = staged();
    let _held = locks.lock("a").acquire().await.unwrap();
    stage.next(Call::Release, [Fate::Unreachable]);
    assert_eq!(locks.close().await.unwrap_err().kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn when_the_last_clone_and_guard_are_gone_everything_is() {
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = Locks::new(backend);
    let guard = locks.lock("a").acquire().await.unwrap();
    drop(locks);
    assert!(guard.is_held());
    assert!(Arc::strong_count(&stage) > 1);
    drop(guard);
    let metrics = tokio::runtime::Handle::current().metrics();
    eventually(async || Arc::strong_count(&stage) == 1 && metrics.num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn a_guard_says_what_it_took_for_several_nodes_to_agree() {
    let (locks, stage) = staged();
    let alone = locks.lock("a").acquire().await.unwrap();
    assert_eq!(alone.agreement(), None);
    let agreement = Agreement::new(4, 5, millis(12), 3);
    stage.agree(agreement);
    let agreed = locks.lock("b").acquire().await.unwrap();
    assert_eq!(agreed.agreement(), Some(agreement));
    assert_eq!(agreed.nested().agreement(), Some(agreement), "it is the lease's");
}

#[tokio::test]
async fn a_lease_that_is_left_to_lapse_is_nobodys_before_its_ttl_and_then_the_next_ones() {
    let (locks, stage) = staged();
    // Its turn begins before we hear of it.
    let asked = SystemClock::new().now();
    let guard = locks.lock("a").ttl(millis(300)).acquire().await.unwrap();
    let token = guard.token();
    let mut lost = Box::pin(guard.lost());
    guard.leave_to_lapse().await.unwrap();
    assert_eq!(stage.calls(Call::Release), 0, "it is not released");
    assert!(locks.lock("a").try_acquire().await.unwrap().is_none(), "nor is it handed on inside the process");
    let next = soon(locks.lock("a").acquire()).await.unwrap();
    assert!(SystemClock::new().now().saturating_since(asked) >= millis(300), "not before its TTL");
    assert!(next.token().sequence() > token.sequence());
    assert_eq!(stage.calls(Call::Release), 1);
    assert!(!is_ready(&mut lost).await, "what was left was not lost");
}

#[tokio::test]
async fn what_is_left_to_lapse_after_its_ttl_is_free_at_once() {
    let (locks, stage) = staged();
    let guard = locks.lock("a").ttl(millis(1000)).acquire().await.unwrap();
    tokio::time::sleep(millis(1000)).await;
    let token = guard.token();
    guard.leave_to_lapse().await.unwrap();
    let next = soon(locks.lock("a").acquire()).await.unwrap();
    assert!(next.token().sequence() > token.sequence());
    assert_eq!(stage.calls(Call::Release), 1);
}

/// A backend whose leases share one of the server's, as on etcd: what is granted may have lived for a while.
#[tokio::test]
async fn a_lease_that_began_before_its_grant_is_left_for_a_whole_ttl() {
    let (locks, stage) = staged();
    stage.offer_for(millis(200));
    let asked = SystemClock::new().now();
    let guard = locks.lock("a").ttl(millis(600)).acquire().await.unwrap();
    guard.leave_to_lapse().await.unwrap();
    let renewals = stage.calls(Call::Renew);
    let _next = soon(locks.lock("a").acquire()).await.unwrap();
    assert!(SystemClock::new().now().saturating_since(asked) >= millis(600));
    assert!(stage.calls(Call::Renew) > renewals, "it is kept until then");
}

#[tokio::test]
async fn neither_closing_the_locks_nor_dropping_them_ends_what_was_left_to_lapse() {
    for closes in [true, false] {
        let stage = Stage::new();
        let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
        let locks = Locks::new(Arc::clone(&backend));
        locks.lock("a").ttl(millis(300)).acquire().await.unwrap().leave_to_lapse().await.unwrap();
        if closes {
            soon(locks.close()).await.unwrap();
        }
        drop(locks);
        assert_eq!(stage.calls(Call::Release), 0, "closed: {closes}");
        eventually(async || stage.calls(Call::Release) == 1).await;
        assert!(backend.inspect(&"a".parse().unwrap()).await.unwrap().is_free());
    }
}

#[tokio::test]
async fn a_guard_with_nested_ones_or_without_a_lease_is_not_left_to_lapse() {
    let (locks, stage) = staged();
    let guard = locks.lock("a").acquire().await.unwrap();
    let nested = guard.nested();
    assert_eq!(guard.leave_to_lapse().await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert!(nested.is_held(), "the other one still holds it");
    let nonce = nested.token().nonce();
    locks.evict("a", nonce).await.unwrap();
    assert_eq!(nested.leave_to_lapse().await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(stage.calls(Call::Renew), 0);
    drop(soon(locks.lock("a").acquire()).await.unwrap());
}

#[tokio::test]
async fn an_offer_is_confirmed_before_it_is_left_to_lapse() {
    let (locks, stage) = staged();
    stage.offer_for(millis(500));
    let gate = Gate::new();
    stage.next(Call::Renew, [Fate::held_back(&gate)]);
    let asked = SystemClock::new().now();
    let guard = locks.lock("a").ttl(millis(1500)).acquire().await.unwrap();
    let mut left = Box::pin(guard.leave_to_lapse());
    gate.somebody_is_there().await;
    assert!(!is_ready(&mut left).await, "until then it would lapse much sooner");
    gate.open();
    soon(left).await.unwrap();
    let _next = soon(locks.lock("a").acquire()).await.unwrap();
    assert!(SystemClock::new().now().saturating_since(asked) >= millis(1500));
}

/// A clock during whose next look something happens: what another thread may do in between any two steps of ours.
#[derive(Default)]
struct BusyClock(Mutex<Option<Happening>>);

type Happening = Box<dyn FnOnce() + Send>;

impl fmt::Debug for BusyClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BusyClock")
    }
}

impl Clock for BusyClock {
    fn now(&self) -> BootInstant {
        let happens = self.0.lock().unwrap().take();
        if let Some(happens) = happens {
            happens();
        }
        SystemClock::new().now()
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall()
    }
}

#[tokio::test]
async fn a_guard_that_is_given_back_while_somebody_looks_is_not_lost() {
    let clock = Arc::new(BusyClock::default());
    let backend: Arc<dyn Backend> = Stage::new();
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    let guard = locks.lock("a").acquire().await.unwrap();
    let mut lost = Box::pin(guard.lost());
    *clock.0.lock().unwrap() = Some(Box::new(|| drop(guard)));
    assert!(!is_ready(&mut lost).await, "given back, and not lost");
    free(&locks, "a").await;
    assert!(!is_ready(&mut lost).await, "then there is nothing left to lose");
}
