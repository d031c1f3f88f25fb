//! `all`: several locks, all or nothing.

use ringfence::{ALL_MAX, ErrorKind, Mode, Stakes};

use crate::stage::{Call, Fate, free, in_line, memory, millis, soon, staged};

#[tokio::test]
async fn all_are_held_once_each_in_order() {
    let (locks, stage) = staged();
    let guards = locks.all(["c", "a", "b", "a"]).acquire().await.unwrap();
    let names: Vec<&str> = guards.iter().map(|guard| guard.name().as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(stage.calls(Call::Acquire), 3);
    assert_eq!(guards.get("b").unwrap().name().as_str(), "b");
    assert!(guards.get("d").is_none());
    assert_eq!((&guards).into_iter().count(), 3);
    guards.ensure_held().unwrap();
    guards.release().await.unwrap();
    for name in ["a", "b", "c"] {
        assert!(locks.inspect(name).await.unwrap().is_free());
    }
}

#[tokio::test]
async fn opposite_orders_do_not_wait_in_a_circle() {
    let locks = memory().await;
    let tasks: Vec<_> = (0..20)
        .map(|number| {
            let locks = locks.clone();
            let names = if number % 2 == 0 { ["a", "b"] } else { ["b", "a"] };
            tokio::spawn(async move {
                for _ in 0..20 {
                    let guards = locks.all(names).acquire().await.unwrap();
                    tokio::task::yield_now().await;
                    guards.release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
}

#[tokio::test]
async fn if_one_cannot_be_had_none_is_held() {
    let (locks, stage) = staged();
    stage.always(Call::Release, Fate::Slow);
    let _held = locks.lock("c").acquire().await.unwrap();
    let error = locks.all(["a", "b", "c"]).wait(millis(20)).acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WaitElapsed);
    assert!(error.to_string().contains("\"c\""), "which one: {error}");
    for name in ["a", "b"] {
        assert!(locks.inspect(name).await.unwrap().is_free(), "{name}, when the error returns");
    }
    assert!(locks.inspect("c").await.unwrap().waiters.is_empty());
}

#[tokio::test]
async fn the_wait_is_for_all_together() {
    let locks = memory().await;
    let first = locks.lock("a").acquire().await.unwrap();
    let _last = locks.lock("b").acquire().await.unwrap();
    let request = tokio::spawn(locks.all(["a", "b"]).wait(millis(2000)).acquire());
    tokio::time::sleep(millis(1000)).await;
    let halfway = ringfence::Clock::now(&ringfence::SystemClock::new());
    first.release().await.unwrap();
    assert_eq!(soon(request).await.unwrap().unwrap_err().kind(), ErrorKind::WaitElapsed);
    let rest = ringfence::Clock::now(&ringfence::SystemClock::new()).saturating_since(halfway);
    assert!(rest < millis(1800), "what was left of the wait, not the whole again: {rest:?}");
}

#[tokio::test]
async fn one_that_is_lost_while_the_others_are_waited_for_is_an_error() {
    let locks = memory().await;
    let held = locks.lock("b").label("another").acquire().await.unwrap();
    let request = tokio::spawn(locks.all(["a", "b"]).acquire());
    in_line(&locks, "b", 1).await;
    let first = locks.inspect("a").await.unwrap().holders[0].token;
    locks.evict("a", first.nonce()).await.unwrap();
    held.release().await.unwrap();
    assert_eq!(soon(request).await.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    free(&locks, "a").await;
    free(&locks, "b").await;
}

#[tokio::test]
async fn the_loss_of_one_is_the_loss_of_all() {
    let locks = memory().await;
    let guards = locks.all(["a", "b"]).acquire().await.unwrap();
    let lost = tokio::spawn(guards.lost());
    tokio::task::yield_now().await;
    locks.evict("b", guards.get("b").unwrap().token().nonce()).await.unwrap();
    soon(lost).await.unwrap();
    assert_eq!(guards.ensure_held().unwrap_err().kind(), ErrorKind::Lost);
    assert!(guards.get("a").unwrap().is_held());
    assert_eq!(guards.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(locks.inspect("a").await.unwrap().is_free(), "the others are released all the same");
}

#[tokio::test]
async fn terms_are_for_each_of_them() {
    let locks = memory().await;
    let guards = locks.all(["a", "b"]).shared().ttl(millis(5000)).acquire().await.unwrap();
    assert!(guards.iter().all(|guard| guard.mode() == Mode::Shared && guard.ttl().as_millis() == 5000));
    let refused = locks.all(["a"]).stakes(Stakes::Correctness).acquire().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn none_and_too_many_are_refused() {
    let (locks, stage) = staged();
    assert_eq!(locks.all::<_, &str>([]).acquire().await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    let many = (0..=ALL_MAX).map(|number| number.to_string());
    assert_eq!(locks.all(many).acquire().await.unwrap_err().kind(), ErrorKind::InvalidRequest);
    assert_eq!(locks.all(["a", ""]).acquire().await.unwrap_err().kind(), ErrorKind::InvalidName);
    assert_eq!(stage.calls(Call::Acquire), 0);
}
