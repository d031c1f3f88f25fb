//! The time for which nobody gets a lock whose holder has lost it.

use std::sync::Arc;
use std::time::Duration;

use ringfence::{Backend, Clock, ErrorKind, LockRequest, Locks, SystemClock};

use crate::stage::{Call, Fate, Gate, JumpingClock, Stage, in_line, is_ready, memory, millis, soon, staged};

/// Long enough for a busy machine to renew in time.
const TTL: Duration = millis(1500);
const DELAY: Duration = Duration::from_mins(1);

fn delayed(locks: &Locks) -> LockRequest {
    locks.lock("a").ttl(TTL).lock_delay(DELAY)
}

/// For how long the backend keeps others out.
async fn kept(locks: &Locks) -> Duration {
    let state = locks.inspect("a").await.unwrap();
    state.holders.first().and_then(|holder| holder.remaining).unwrap_or_default()
}

#[tokio::test]
async fn the_holder_counts_its_ttl_and_the_others_the_delay_as_well() {
    let locks = memory().await;
    let guard = delayed(&locks).acquire().await.unwrap();
    assert_eq!(guard.ttl().as_duration(), TTL);
    assert!(guard.remaining() <= TTL, "what is proven is the TTL: {:?}", guard.remaining());
    assert!(kept(&locks).await > DELAY, "others have to wait for longer");
    let mut lost = Box::pin(guard.lost());
    for _ in 0..25 {
        assert!(
            guard.is_held() && !is_ready(&mut lost).await,
            "it is renewed a third of the way through its TTL"
        );
        assert!(guard.remaining() <= TTL, "however often it is renewed: {:?}", guard.remaining());
        tokio::time::sleep(TTL / 10).await;
    }
    guard.release().await.unwrap();
}

#[tokio::test]
async fn what_is_given_back_is_free_at_once() {
    let locks = memory().await;
    delayed(&locks).acquire().await.unwrap().release().await.unwrap();
    drop(locks.lock("a").try_acquire().await.unwrap().expect("a release is clean"));
    drop(soon(delayed(&locks).acquire()).await.unwrap());
    let guard =
        soon(locks.lock("a").acquire()).await.expect("a guard that is dropped while it holds gives back");
    guard.release().await.unwrap();
    delayed(&locks).run(async |_| ()).await.unwrap();
    assert!(locks.lock("a").try_acquire().await.unwrap().is_some(), "so does work that came to its end");
}

#[tokio::test]
async fn a_guard_that_is_lost_gives_nothing_back_before_the_delay_is_over() {
    let clock = Arc::new(JumpingClock::default());
    let stage = Stage::with_clock(Arc::clone(&clock) as _);
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    for is_dropped in [true, false] {
        let guard = delayed(&locks).max_hold(Duration::ZERO).acquire().await.unwrap();
        soon(guard.lost()).await;
        if is_dropped {
            drop(guard);
        } else {
            assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
        }
        clock.jump(DELAY * 2 / 3);
        assert!(locks.lock("a").try_acquire().await.unwrap().is_none(), "the delay is not over");
        clock.jump(DELAY / 3);
        let next = locks.lock("a").try_acquire().await.unwrap().expect("the delay is over");
        next.release().await.unwrap();
    }
}

#[tokio::test]
async fn work_that_is_cut_short_leaves_the_delay_running() {
    let (locks, stage) = staged();
    stage.always(Call::Renew, Fate::Unreachable);
    let cut_short = delayed(&locks).run(async |_| std::future::pending::<()>().await);
    assert_eq!(soon(cut_short).await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(kept(&locks).await > DELAY / 2, "the delay runs");
    assert_eq!(stage.calls(Call::Release), 0);

    let holder = locks.inspect("a").await.unwrap().holders[0].token.nonce();
    locks.evict("a", holder).await.unwrap();
    let guard = locks.lock("a").try_acquire().await.unwrap().expect("an eviction frees at once");
    guard.release().await.unwrap();
}

/// The delay is for what was sent last, and not for what was sent first.
#[tokio::test]
async fn work_that_is_cut_short_leaves_the_whole_delay_however_long_it_went_on() {
    let delay = millis(600);
    let (locks, stage) = staged();
    let began = SystemClock::new().now();
    let request = locks.lock("a").ttl(TTL).lock_delay(delay);
    let cut_short = request.run(async |_| {
        tokio::time::sleep(TTL + delay).await;
        stage.always(Call::Renew, Fate::Unreachable);
        std::future::pending::<()>().await;
    });
    assert_eq!(soon(cut_short).await.unwrap_err().kind(), ErrorKind::Lost);
    let cut = SystemClock::new().now();
    assert!(cut.saturating_since(began) > TTL + delay, "a grant's own TTL and delay are over");
    let next = soon(locks.lock("a").acquire()).await.unwrap();
    let waited = SystemClock::new().now().saturating_since(cut);
    assert!(waited >= delay, "free {waited:?} after the work was cut short");
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_lease_that_is_left_to_lapse_does_so_when_the_delay_is_over() {
    let locks = memory().await;
    let delay = millis(400);
    let start = SystemClock::new().now();
    let guard = locks.lock("a").ttl(TTL).lock_delay(delay).acquire().await.unwrap();
    guard.leave_to_lapse().await.unwrap();
    let next = soon(locks.lock("a").acquire()).await.unwrap();
    let waited = SystemClock::new().now().saturating_since(start);
    assert!(waited >= TTL + delay, "free after {waited:?}");
    next.release().await.unwrap();
}

#[tokio::test]
async fn a_lease_with_a_delay_is_for_those_only_who_asked_for_one() {
    let (locks, stage) = staged();
    let guard = delayed(&locks).acquire().await.unwrap();
    let alike = tokio::spawn(delayed(&locks).acquire());
    let plain = tokio::spawn(locks.lock("a").ttl(TTL).acquire());
    in_line(&locks, "a", 1).await;
    guard.release().await.unwrap();
    let alike = soon(alike).await.unwrap().unwrap();
    assert_eq!(stage.calls(Call::Acquire), 2, "handed on inside the process");
    alike.release().await.unwrap();
    let plain = soon(plain).await.unwrap().unwrap();
    assert!(kept(&locks).await <= TTL, "it asked for no delay");
    plain.release().await.unwrap();
}

/// The backend ends an offer that nobody confirms without any delay.
#[tokio::test]
async fn nobody_works_under_an_offer() {
    let (locks, stage) = staged();
    stage.offer_for(millis(500));
    let gate = Gate::new();
    stage.next(Call::Renew, [Fate::ReplyHeldBack(gate.clone())]);
    let mut acquired = Box::pin(delayed(&locks).acquire());
    tokio::select! {
        biased;
        _ = &mut acquired => panic!("nobody has confirmed it yet"),
        () = gate.somebody_is_there() => {}
    }
    assert!(!is_ready(&mut acquired).await, "it is not known to live");
    gate.open();
    let guard = soon(acquired).await.unwrap();
    assert!(guard.is_held() && kept(&locks).await > DELAY / 2);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_delay_that_cannot_be_kept_is_refused() {
    let locks = memory().await;
    let day = Duration::from_hours(24);
    let error = locks.lock("a").ttl(TTL).lock_delay(day).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl);
    assert!(error.to_string().contains("at most 1day together"), "{error}");
    let all = locks.all(["a", "b"]).ttl(TTL).lock_delay(Duration::MAX).acquire().await.unwrap_err();
    assert_eq!(all.kind(), ErrorKind::InvalidTtl);
    locks.lock("a").ttl(day).lock_delay(Duration::ZERO).acquire().await.unwrap().release().await.unwrap();

    let directory = tempfile::TempDir::new().unwrap();
    let local = Locks::connect(&format!("local:{}", directory.path().display())).await.unwrap();
    let error = local.lock("a").ttl(TTL).lock_delay(DELAY).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("if a holder dies, its lease is free at once"), "{error}");
}
