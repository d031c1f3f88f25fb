//! Dropping any future of ours, after any number of polls and with the background at any step, leaves no orphan.

use std::sync::Arc;

use ringfence::Locks;

use crate::stage::{Call, Fate, Gate, Stage, free, in_line, millis, poll_and_drop, soon, staged};

const NAME: &str = "orders/42";

/// A stage on which every call takes a few steps, so that there are await points to be dropped at.
fn slow_stage() -> (Locks, Arc<Stage>) {
    let (locks, stage) = staged();
    for call in [Call::Acquire, Call::Renew, Call::Release, Call::Downgrade] {
        stage.always(call, Fate::Slow);
    }
    (locks, stage)
}

/// Every combination of polls and steps that makes a difference, and some more.
fn cuts() -> impl Iterator<Item = (usize, usize)> {
    (0..6).flat_map(|polls| (0..8).map(move |steps| (polls, steps)))
}

/// Nothing is left behind: the name is free, and stays so after somebody else has had it.
async fn assert_no_orphan(locks: &Locks) {
    free(locks, NAME).await;
    let guard = soon(locks.lock(NAME).acquire()).await.unwrap();
    guard.release().await.unwrap();
    free(locks, NAME).await;
}

#[tokio::test]
async fn a_dropped_acquire_leaves_nothing() {
    let mut cancelled = 0;
    for (polls, steps) in cuts() {
        for shared in [false, true] {
            let (locks, _stage) = slow_stage();
            let request = if shared { locks.lock(NAME).shared() } else { locks.lock(NAME) };
            cancelled += usize::from(poll_and_drop(request.acquire(), polls, steps).await.is_none());
            assert_no_orphan(&locks).await;
        }
    }
    assert!(cancelled > 10, "only {cancelled} were cancelled: the cuts cut nothing");
}

#[tokio::test]
async fn a_dropped_wait_leaves_nothing_and_hands_on_what_came_too_late() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        let held = locks.lock(NAME).acquire().await.unwrap();
        let cancelled = async {
            poll_and_drop(locks.lock(NAME).acquire(), polls, steps).await;
        };
        let releases = async {
            for _ in 0..steps / 2 {
                tokio::task::yield_now().await;
            }
            held.release().await.unwrap();
        };
        tokio::join!(cancelled, releases);
        assert_no_orphan(&locks).await;
    }
}

#[tokio::test]
async fn a_dropped_try_leaves_nothing() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        drop(poll_and_drop(locks.lock(NAME).try_acquire(), polls, steps).await);
        assert_no_orphan(&locks).await;
    }
}

#[tokio::test]
async fn a_dropped_release_releases() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        let guard = locks.lock(NAME).acquire().await.unwrap();
        poll_and_drop(guard.release(), polls, steps).await;
        assert_no_orphan(&locks).await;
    }
}

#[tokio::test]
async fn a_dropped_downgrade_releases() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        let guard = locks.lock(NAME).acquire().await.unwrap();
        drop(poll_and_drop(guard.downgrade(), polls, steps).await);
        assert_no_orphan(&locks).await;
    }
}

#[tokio::test]
async fn a_dropped_run_drops_its_body_and_releases() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        let body = Arc::new(());
        let inside = Arc::clone(&body);
        let run = locks.lock(NAME).run(async move |_held| {
            tokio::task::yield_now().await;
            drop(inside);
        });
        poll_and_drop(run, polls, steps).await;
        assert_eq!(Arc::strong_count(&body), 1, "the body is gone");
        assert_no_orphan(&locks).await;
    }
}

#[tokio::test]
async fn a_dropped_request_for_several_releases_those_it_had() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        drop(poll_and_drop(locks.all(["a", NAME, "z"]).acquire(), polls, steps).await);
        for name in ["a", NAME, "z"] {
            free(&locks, name).await;
        }
    }
}

#[tokio::test]
async fn a_dropped_reentry_leaves_nothing() {
    for (polls, steps) in cuts() {
        let (locks, _stage) = slow_stage();
        let holder = locks.holder("job");
        let held = holder.lock(NAME).acquire().await.unwrap();
        drop(poll_and_drop(holder.lock(NAME).acquire(), polls, steps).await);
        assert!(held.is_held(), "the outer guard is untouched");
        held.release().await.unwrap();
        assert_no_orphan(&locks).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_aborted_at_random_moments_leave_nothing() {
    let (locks, _stage) = slow_stage();
    for round in 0..200 {
        let tasks: Vec<_> = (0..4)
            .map(|_| {
                let locks = locks.clone();
                tokio::spawn(async move {
                    let guard = locks.lock(NAME).acquire().await.unwrap();
                    tokio::task::yield_now().await;
                    guard.release().await.unwrap();
                })
            })
            .collect();
        for task in &tasks[..3] {
            for _ in 0..round % 7 {
                tokio::task::yield_now().await;
            }
            task.abort();
        }
        for task in tasks {
            // Aborted, or not in time.
            let _ = soon(task).await;
        }
    }
    assert_no_orphan(&locks).await;
}

#[tokio::test]
async fn a_grant_whose_request_was_dropped_meanwhile_is_given_back() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::ReplyHeldBack(gate.clone())]);
    let request = tokio::spawn(locks.lock(NAME).acquire());
    gate.somebody_is_there().await;
    assert_eq!(locks.inspect(NAME).await.unwrap().holders.len(), 1, "granted, but nobody knows yet");
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    gate.open();
    free(&locks, NAME).await;
    assert_eq!(stage.calls(Call::Release), 1);
}

#[tokio::test]
async fn a_dropped_request_gives_its_place_in_line_up() {
    let (locks, _stage) = staged();
    let held = locks.lock(NAME).label("another").acquire().await.unwrap();
    let waits = tokio::spawn(locks.lock(NAME).acquire());
    in_line(&locks, NAME, 1).await;
    waits.abort();
    in_line(&locks, NAME, 0).await;
    held.release().await.unwrap();
    free(&locks, NAME).await;
}

#[tokio::test]
async fn a_wait_that_is_over_leaves_no_place_in_line() {
    let (locks, _stage) = staged();
    let _held = locks.lock(NAME).label("another").acquire().await.unwrap();
    for _ in 0..3 {
        let error = locks.lock(NAME).wait(millis(20)).acquire().await.unwrap_err();
        assert_eq!(error.kind(), ringfence::ErrorKind::WaitElapsed);
        assert_eq!(locks.inspect(NAME).await.unwrap().waiters, [], "at the moment the error returns");
    }
}

#[tokio::test]
async fn a_wait_is_over_when_its_place_in_line_is_given_up() {
    let (locks, stage) = staged();
    let _held = locks.lock(NAME).label("the night job").acquire().await.unwrap();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::ReplyHeldBack(gate.clone())]);
    let mut waits = Box::pin(locks.lock(NAME).wait(millis(20)).acquire());
    tokio::select! {
        early = &mut waits => panic!("{early:?}, before its place is given up"),
        () = gate.somebody_is_there() => {}
    }
    gate.open();
    let error = soon(waits).await.unwrap_err();
    assert!(error.to_string().contains("the night job"), "{error}");
}

#[tokio::test]
async fn a_backend_that_is_slow_to_withdraw_does_not_hold_up_the_error_for_ever() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::held_back(&gate)]);
    let error = soon(locks.lock(NAME).wait(millis(20)).acquire()).await.unwrap_err();
    assert_eq!(error.kind(), ringfence::ErrorKind::WaitElapsed);
    gate.open();
    // What the late request was granted is given back.
    free(&locks, NAME).await;
}

#[test]
fn a_guard_dropped_outside_of_its_runtime_is_released_by_it() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (locks, stage) = runtime.block_on(async { staged() });
    let guard = runtime.block_on(locks.lock(NAME).acquire()).unwrap();
    stage.next(Call::Release, [Fate::Slow]);
    drop(guard);
    runtime.block_on(free(&locks, NAME));
}

/// As a program does that calls from a runtime of its own for each request, for a while.
#[test]
fn a_caller_whose_runtime_ends_takes_nothing_from_those_who_wait_with_it() {
    let ours = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let locks = ours.block_on(async { staged().0 });
    let held = ours.block_on(locks.lock(NAME).label("another").acquire()).unwrap();
    let theirs = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // It is the first there, and stands in line for everybody of this process.
    let first = theirs.spawn(locks.lock(NAME).acquire());
    theirs.block_on(in_line(&locks, NAME, 1));
    let second = ours.spawn(locks.lock(NAME).acquire());
    ours.block_on(async { tokio::time::sleep(millis(50)).await });
    drop(theirs);
    drop(first);
    ours.block_on(async {
        // Long enough for whoever stands there to have looked again.
        tokio::time::sleep(millis(100)).await;
        held.release().await.unwrap();
        soon(second).await.unwrap().expect("it waits for itself now").release().await.unwrap();
    });
}

#[test]
fn a_guard_that_outlives_its_runtime_does_not_panic() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (locks, _stage) = runtime.block_on(async { staged() });
    let guard = runtime.block_on(locks.lock(NAME).acquire()).unwrap();
    let waits = runtime.spawn(locks.lock(NAME).acquire());
    drop(runtime);
    drop(guard);
    drop(waits);
}
