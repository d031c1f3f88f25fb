//! Re-entry by name.

use ringfence::{ErrorKind, Mode};

use crate::stage::{Call, Fate, Gate, free, memory, millis, soon, staged};

#[tokio::test]
async fn a_holder_that_acquires_again_gets_a_nested_guard() {
    let (locks, stage) = staged();
    let job = locks.holder("job-7");
    assert_eq!(job.id(), "job-7");
    let outer = job.lock("a").acquire().await.unwrap();
    let inner = locks.holder("job-7").lock("a").try_acquire().await.unwrap().unwrap();
    assert_eq!(inner.token(), outer.token(), "a token that rose would fence the outer one out");
    assert_eq!(stage.calls(Call::Acquire), 1);
    outer.release().await.unwrap();
    assert!(inner.is_held());
    inner.release().await.unwrap();
    assert!(locks.inspect("a").await.unwrap().is_free());
}

#[tokio::test]
async fn another_holder_and_no_holder_wait() {
    let locks = memory().await;
    let _held = locks.holder("job-7").lock("a").acquire().await.unwrap();
    assert!(locks.holder("job-8").lock("a").try_acquire().await.unwrap().is_none());
    assert!(locks.lock("a").try_acquire().await.unwrap().is_none());
    drop(locks.holder("job-7").lock("b").acquire().await.unwrap());
}

#[tokio::test]
async fn a_holder_that_holds_nothing_any_more_acquires_anew() {
    let locks = memory().await;
    let job = locks.holder("job-7");
    let first = job.lock("a").acquire().await.unwrap();
    let token = first.token();
    first.release().await.unwrap();
    let second = job.lock("a").acquire().await.unwrap();
    assert!(second.token().sequence() > token.sequence());
    locks.evict("a", second.token().nonce()).await.unwrap();
    let third = job.lock("a").acquire().await.unwrap();
    assert!(third.is_held(), "a lost hold is nothing to nest in");
    assert!(third.token().sequence() > second.token().sequence());
}

#[tokio::test]
async fn two_tasks_of_one_holder_share_one_lease() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::held_back(&gate)]);
    let job = locks.holder("job-7");
    let first = tokio::spawn(job.lock("a").acquire());
    gate.somebody_is_there().await;
    assert!(job.lock("a").try_acquire().await.unwrap().is_none(), "not yet");
    let elapsed = job.lock("a").wait(millis(10)).acquire().await.unwrap_err();
    assert_eq!(elapsed.kind(), ErrorKind::WaitElapsed);
    let second = tokio::spawn(job.lock("a").acquire());
    tokio::task::yield_now().await;
    gate.open();
    let (first, second) = (soon(first).await.unwrap().unwrap(), soon(second).await.unwrap().unwrap());
    assert_eq!(first.token(), second.token());
    assert_eq!(stage.calls(Call::Acquire), 1);
}

#[tokio::test]
async fn a_holder_that_fails_leaves_the_next_to_try() {
    let (locks, stage) = staged();
    stage.next(Call::Acquire, [Fate::Unreachable]);
    let job = locks.holder("job-7");
    assert_eq!(job.lock("a").acquire().await.unwrap_err().kind(), ErrorKind::Unavailable);
    drop(job.lock("a").acquire().await.unwrap());
}

#[tokio::test]
async fn what_a_hold_covers_is_nested_and_what_it_does_not_is_refused() {
    let locks = memory().await;
    let job = locks.holder("job-7");
    let exclusive = job.lock("a").acquire().await.unwrap();
    let weaker = job.lock("a").shared().acquire().await.unwrap();
    assert_eq!((weaker.mode(), weaker.token()), (Mode::Exclusive, exclusive.token()));

    let shared = job.lock("b").shared().acquire().await.unwrap();
    let again = job.lock("b").shared().acquire().await.unwrap();
    assert_eq!(again.token(), shared.token());
    let error = job.lock("b").acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("cannot become an exclusive one"), "{error}");
    assert!(shared.is_held());

    let _permit = job.lock("c").permits(4).acquire().await.unwrap();
    drop(job.lock("c").permits(4).acquire().await.unwrap());
    assert_eq!(job.lock("c").permits(2).acquire().await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test]
async fn after_a_downgrade_an_exclusive_request_is_an_upgrade() {
    let locks = memory().await;
    let job = locks.holder("job-7");
    let guard = job.lock("a").acquire().await.unwrap().downgrade().await.unwrap();
    assert_eq!(job.lock("a").acquire().await.unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(job.lock("a").shared().acquire().await.unwrap().token(), guard.token());
    drop(guard);
    free(&locks, "a").await;
    drop(job.lock("a").acquire().await.unwrap());
}
