//! What a request can say, and what is wrong with it when it is.

use std::time::Duration;

use proptest::prelude::*;
use ringfence::{ErrorKind, LockName, Mode, Retry, Stakes};

use crate::stage::{Call, Fate, Gate, in_line, memory, millis, soon, staged};

#[tokio::test]
async fn a_request_is_granted_as_it_was_made() {
    let locks = memory().await;
    let guard = locks
        .lock("orders/42")
        .ttl(Duration::from_secs(5))
        .label("billing")
        .metadata("order of Tuesday")
        .acquire()
        .await
        .unwrap();
    assert_eq!((guard.name().as_str(), guard.mode()), ("orders/42", Mode::Exclusive));
    assert_eq!(guard.ttl().as_duration(), Duration::from_secs(5));
    let state = locks.inspect("orders/42").await.unwrap();
    let [holder] = state.holders.as_slice() else { panic!("{state:?}") };
    assert_eq!((holder.holder.label(), holder.holder.metadata()), ("billing", "order of Tuesday"));
    assert_eq!(holder.holder.pid(), std::process::id());
    assert_eq!(holder.token, guard.token());
}

#[tokio::test]
async fn names_of_every_kind_are_taken() {
    let locks = memory().await;
    let name: LockName = "a/b".parse().unwrap();
    drop(locks.lock(&name).acquire().await.unwrap());
    drop(locks.lock("a").acquire().await.unwrap());
    drop(locks.lock(String::from("b")).acquire().await.unwrap());
    drop(locks.lock(name.to_string()).acquire().await.unwrap());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_before_anything_is_sent() {
    let (locks, stage) = staged();
    let long = "x".repeat(256);
    let cases = [
        (locks.lock(""), ErrorKind::InvalidName, "empty"),
        (locks.lock("a\nb"), ErrorKind::InvalidName, "control"),
        (locks.lock(long.as_str()), ErrorKind::InvalidName, "255"),
        (locks.lock("a").ttl(Duration::ZERO), ErrorKind::InvalidTtl, "100ms to 1day"),
        (locks.lock("a").ttl(Duration::MAX), ErrorKind::InvalidTtl, "100ms to 1day"),
        (locks.lock("a").permits(0), ErrorKind::InvalidRequest, "1 to 65536 permits"),
        (locks.lock("a").permits(65_537), ErrorKind::InvalidRequest, "1 to 65536 permits"),
        (locks.lock("a").permits(2).shared(), ErrorKind::InvalidRequest, "either shared or"),
        (locks.lock("a").label(""), ErrorKind::InvalidRequest, "label"),
        (locks.lock("a").metadata(&"x".repeat(1025)), ErrorKind::InvalidRequest, "1024 bytes"),
        (locks.lock("a").stakes(Stakes::Correctness), ErrorKind::Unsupported, "durable"),
    ];
    for (request, kind, says) in cases {
        let error = request.acquire().await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (kind, Retry::Never), "{error}");
        assert!(error.to_string().contains(says), "{error} should say {says:?}");
    }
    let error = locks.lock("a").wait(millis(1)).try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(stage.calls(Call::Acquire), 0);
}

#[tokio::test]
async fn stakes_of_correctness_are_refused_with_the_reason_and_a_way_out() {
    let locks = memory().await;
    let error = locks.lock("a").stakes(Stakes::Correctness).acquire().await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("memory:"), "what was refused: {message}");
    assert!(message.contains("start again when it ends"), "why: {message}");
    assert!(message.contains("local"), "what to use instead: {message}");
    drop(locks.lock("a").stakes(Stakes::Efficiency).acquire().await.unwrap());
}

#[tokio::test]
async fn a_wait_ends_at_its_time_and_names_who_is_in_the_way() {
    let locks = memory().await;
    let _held = locks.lock("a").label("the night job").acquire().await.unwrap();
    let clock = ringfence::SystemClock::new();
    let asked = ringfence::Clock::now(&clock);
    let error = locks.lock("a").wait(millis(60)).acquire().await.unwrap_err();
    let waited = ringfence::Clock::now(&clock).saturating_since(asked);
    assert!(waited >= millis(60), "{waited:?}");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::WaitElapsed, Retry::Later));
    let message = error.to_string();
    assert!(message.contains("\"a\"") && message.contains("60ms"), "{message}");
    assert!(message.contains("the night job"), "{message}");
}

#[tokio::test]
async fn a_wait_of_zero_takes_what_is_free_and_nothing_else() {
    let (locks, stage) = staged();
    stage.always(Call::Acquire, Fate::Slow);
    let held = locks.lock("a").wait(Duration::ZERO).acquire().await.unwrap();
    let error = locks.lock("a").label("another").wait(Duration::ZERO).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WaitElapsed);
    drop(held);
}

#[tokio::test]
async fn a_wait_without_end_is_no_overflow() {
    let locks = memory().await;
    let held = locks.lock("a").acquire().await.unwrap();
    let waits = tokio::spawn(locks.lock("a").wait(Duration::MAX).acquire());
    tokio::task::yield_now().await;
    held.release().await.unwrap();
    drop(soon(waits).await.unwrap().unwrap());
}

#[tokio::test]
async fn one_waits_less_than_another() {
    let locks = memory().await;
    let held = locks.lock("a").acquire().await.unwrap();
    let long = tokio::spawn(locks.lock("a").acquire());
    let error = locks.lock("a").wait(millis(20)).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WaitElapsed);
    assert!(!long.is_finished());
    held.release().await.unwrap();
    drop(soon(long).await.unwrap().unwrap());
}

#[tokio::test]
async fn shared_holders_hold_together_and_never_beside_an_exclusive_one() {
    let locks = memory().await;
    let one = locks.lock("a").shared().acquire().await.unwrap();
    let two = locks.lock("a").shared().acquire().await.unwrap();
    assert_eq!((one.mode(), two.mode()), (Mode::Shared, Mode::Shared));
    assert!(one.token().sequence() < two.token().sequence());
    assert!(locks.lock("a").try_acquire().await.unwrap().is_none());
    let writer = tokio::spawn(locks.lock("a").acquire());
    in_line(&locks, "a", 1).await;
    assert!(locks.lock("a").shared().try_acquire().await.unwrap().is_none(), "it would overtake the writer");
    drop((one, two));
    drop(soon(writer).await.unwrap().unwrap());
}

#[tokio::test]
async fn permits_are_counted() {
    let locks = memory().await;
    let one = locks.lock("gpu").permits(2).acquire().await.unwrap();
    let _two = locks.lock("gpu").permits(2).acquire().await.unwrap();
    assert!(locks.lock("gpu").permits(2).try_acquire().await.unwrap().is_none());
    let third = tokio::spawn(locks.lock("gpu").permits(2).acquire());
    in_line(&locks, "gpu", 1).await;
    one.release().await.unwrap();
    drop(soon(third).await.unwrap().unwrap());
}

#[tokio::test]
async fn an_unreachable_backend_is_an_error_to_try_again() {
    let (locks, stage) = staged();
    stage.next(Call::Acquire, [Fate::Unreachable]);
    let error = locks.lock("a").acquire().await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later));
    drop(locks.lock("a").acquire().await.unwrap());
}

#[tokio::test]
async fn a_lease_that_lapsed_on_the_way_is_no_guard() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::ReplyHeldBack(gate.clone())]);
    let slow = tokio::spawn(locks.lock("a").ttl(millis(100)).acquire());
    gate.somebody_is_there().await;
    let first = locks.inspect("a").await.unwrap().holders[0].token;
    // The answer is under way for longer than the TTL.
    tokio::time::sleep(millis(120)).await;
    gate.open();
    let guard = soon(slow).await.unwrap().unwrap();
    assert!(guard.is_held());
    assert!(guard.token().grant() > first.grant(), "acquired again");
}

#[tokio::test]
async fn a_lease_that_lapsed_on_the_way_costs_the_wait() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::ReplyHeldBack(gate.clone())]);
    let tries = tokio::spawn(locks.lock("a").ttl(millis(100)).try_acquire());
    gate.somebody_is_there().await;
    tokio::time::sleep(millis(120)).await;
    let _quicker = locks.lock("a").label("another").acquire().await.unwrap();
    gate.open();
    assert!(soon(tries).await.unwrap().unwrap().is_none());
}

proptest! {
    /// Whatever the durations, an answer and no panic, and the range is exactly the backend's.
    #[test]
    fn no_duration_overflows(ttl: u64, nanos in 0_u32..1_000_000_000, wait: u64, max_hold: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let locks = memory().await;
            let ttl = Duration::new(ttl, nanos);
            let request = locks
                .lock("a")
                .ttl(ttl)
                .wait(Duration::from_secs(wait))
                .max_hold(Duration::from_nanos(max_hold));
            let in_range = ttl > Duration::from_millis(99) && ttl <= Duration::from_hours(24);
            match request.acquire().await {
                Ok(guard) => {
                    assert!(in_range);
                    assert!(guard.remaining() <= guard.ttl().as_duration());
                    guard.release().await.unwrap();
                }
                Err(error) => assert!(!in_range && error.kind() == ErrorKind::InvalidTtl, "{error}"),
            }
        });
    }

    #[test]
    fn no_duration_in_range_is_refused(millis in 100_u64..=86_400_000) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let guard = memory().await.lock("a").ttl(Duration::from_millis(millis)).acquire().await.unwrap();
            assert_eq!(guard.ttl().as_millis(), millis);
        });
    }
}
