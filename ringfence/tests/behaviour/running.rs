//! `run`: a body that is cancelled before the lease can be lost.

use std::sync::Arc;
use std::time::Duration;

use ringfence::{Clock, ErrorKind, SystemClock};

use crate::stage::{Call, Fate, free, memory, millis, soon, staged};

#[tokio::test]
async fn the_body_runs_under_the_lock_and_its_result_comes_back() {
    let locks = memory().await;
    let data = [1, 2, 3];
    let sum: i32 = locks
        .lock("a")
        .run(async |held| {
            assert_eq!(held.name().as_str(), "a");
            assert!(held.remaining() > Duration::ZERO);
            let state = locks.inspect("a").await.unwrap();
            assert_eq!(state.holders[0].token, held.token());
            data.iter().sum()
        })
        .await
        .unwrap();
    assert_eq!(sum, 6);
    assert!(locks.inspect("a").await.unwrap().is_free());
}

#[tokio::test]
async fn a_body_can_outlive_the_ttl() {
    let locks = memory().await;
    let run = locks.lock("a").ttl(millis(1000)).run(async |_| tokio::time::sleep(millis(2500)).await);
    soon(run).await.unwrap();
}

#[tokio::test]
async fn the_body_is_gone_before_the_lease_can_be_lost() {
    let (locks, stage) = staged();
    stage.always(Call::Renew, Fate::Unreachable);
    let start = SystemClock::new().now();
    let alive = Arc::new(());
    let inside = Arc::clone(&alive);
    // Of which a tenth is more than a busy machine is late.
    let ttl = millis(5000);
    let error = soon(locks.lock("a").ttl(ttl).run(async move |_| {
        std::future::pending::<()>().await;
        drop(inside);
    }))
    .await
    .unwrap_err();
    let lasted = SystemClock::new().now().saturating_since(start);
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.to_string().contains("cancelled"), "{error}");
    assert_eq!(Arc::strong_count(&alive), 1);
    assert!(lasted >= ttl * 9 / 10, "a tenth of the TTL before the deadline, not earlier: {lasted:?}");
    assert!(lasted < ttl, "before the deadline: {lasted:?}");
    assert!(locks.inspect("a").await.unwrap().is_free(), "and the lock was given back");
}

#[tokio::test]
async fn the_body_of_an_evicted_holder_is_cancelled_at_once() {
    let locks = memory().await;
    let run = locks.lock("a").run(async |held| {
        locks.evict("a", held.token().nonce()).await.unwrap();
        std::future::pending::<()>().await;
    });
    assert_eq!(soon(run).await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn a_body_that_finished_after_the_loss_is_not_taken_for_done() {
    let locks = memory().await;
    let run = locks.lock("a").run(async |held| {
        locks.evict("a", held.token().nonce()).await.unwrap();
    });
    assert_eq!(run.await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test]
async fn work_that_is_done_is_not_undone_by_a_failed_release() {
    let (locks, stage) = staged();
    stage.next(Call::Release, [Fate::Unreachable]);
    assert_eq!(locks.lock("a").run(async |_| 42).await.unwrap(), 42);
}

#[tokio::test]
async fn a_body_that_panics_releases() {
    let locks = memory().await;
    let panics = tokio::spawn({
        let locks = locks.clone();
        async move { locks.lock("a").run(async |_| panic!("the body was told to panic")).await }
    });
    assert!(panics.await.unwrap_err().is_panic());
    free(&locks, "a").await;
}

#[tokio::test]
async fn a_lock_that_cannot_be_had_runs_nothing() {
    let locks = memory().await;
    let _held = locks.lock("a").acquire().await.unwrap();
    let run = locks.lock("a").wait(millis(10)).run(async |_| panic!("it must not run"));
    assert_eq!(run.await.unwrap_err().kind(), ErrorKind::WaitElapsed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_can_be_spawned() {
    let locks = memory().await;
    let task = tokio::spawn(async move {
        let lost = locks.lock("a").run(async |held| held.lost()).await?;
        drop(lost);
        locks.lock("a").run(async |held| held.token().sequence()).await
    });
    assert!(soon(task).await.unwrap().unwrap() > 0);
}
