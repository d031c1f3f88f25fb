//! Versioned records: who was faster, what a lost answer meant, and what each step costs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringfence::patterns::Swap;
use ringfence::{Effect, Error, ErrorKind, Locks, Version};

use crate::stage::{Call, Fate, Gate, free, memory, millis, poll_and_drop, soon, staged};

/// All that a versioned record asks of a backend.
const CALLS: [Call; 5] = [Call::Acquire, Call::Open, Call::Write, Call::Read, Call::Release];

async fn set(locks: &Locks, expected: impl Into<Option<u64>>, value: &'static str) -> Swap {
    locks.versioned("a").compare_and_set(expected.into().map(Version), value).await.unwrap()
}

async fn value(locks: &Locks) -> (String, u64) {
    let record = locks.versioned("a").read().await.unwrap().expect("it was written");
    (String::from_utf8(record.value.to_vec()).unwrap(), record.version.0)
}

#[tokio::test]
async fn each_step_costs_what_its_documentation_says() {
    let (locks, stage) = staged();
    assert_eq!(set(&locks, None, "one").await, Swap::Swapped(Version(1)));
    assert_eq!(stage.took(CALLS), [1, 1, 1, 0, 1]);
    assert!(matches!(set(&locks, None, "two").await, Swap::Conflict(Some(_))));
    assert_eq!(stage.took(CALLS), [1, 1, 0, 0, 1], "a conflict writes nothing");
    locks.versioned("a").read().await.unwrap();
    assert_eq!(stage.took(CALLS), [0, 0, 0, 1, 0]);
}

#[tokio::test]
async fn a_version_is_what_was_read_and_nothing_else() {
    let locks = memory().await;
    assert_eq!(set(&locks, 1, "one").await, Swap::Conflict(None), "it was never written");
    assert_eq!(set(&locks, None, "one").await, Swap::Swapped(Version(1)));
    for wrong in [None, Some(0), Some(2)] {
        let Swap::Conflict(Some(current)) = set(&locks, wrong, "wrong").await else {
            panic!("{wrong:?} is not the version")
        };
        assert_eq!((current.value.as_ref(), current.version), (b"one".as_slice(), Version(1)));
    }
    assert_eq!(set(&locks, 1, "two").await, Swap::Swapped(Version(2)));
    let other = locks.versioned("a").field("other");
    assert_eq!(other.compare_and_set(None, "other").await.unwrap(), Swap::Swapped(Version(1)));
    assert_eq!(value(&locks).await, ("two".to_owned(), 2));
}

#[tokio::test]
async fn writes_of_whoever_holds_the_lock_count() {
    let locks = memory().await;
    assert_eq!(set(&locks, None, "one").await, Swap::Swapped(Version(1)));
    let guard = locks.lock("a").acquire().await.unwrap();
    let hurried = locks.versioned("a").wait(millis(20)).compare_and_set(Some(Version(1)), "mine").await;
    assert_eq!(hurried.unwrap_err().kind(), ErrorKind::WaitElapsed);
    let record = locks.record("a").unwrap();
    record.open(guard.token()).await.unwrap();
    record.write(guard.token(), "holder's").await.unwrap();
    guard.release().await.unwrap();
    assert!(matches!(set(&locks, 1, "mine").await, Swap::Conflict(Some(_))));
    assert_eq!(value(&locks).await, ("holder's".to_owned(), 2));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_found() {
    let (locks, stage) = staged();
    stage.next(Call::Write, [Fate::ReplyLost]);
    assert_eq!(set(&locks, None, "one").await, Swap::Swapped(Version(1)));
    assert_eq!(stage.took([Call::Write]), [1], "it is not written twice");
    assert_eq!(value(&locks).await, ("one".to_owned(), 1));
}

#[tokio::test]
async fn a_write_that_did_not_arrive_is_an_error_without_effect() {
    let (locks, stage) = staged();
    assert_eq!(set(&locks, None, "one").await, Swap::Swapped(Version(1)));
    stage.next(Call::Write, [Fate::Vanishes]);
    let error = locks.versioned("a").compare_and_set(Some(Version(1)), "two").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None));
    assert_eq!(value(&locks).await, ("one".to_owned(), 1));
    assert_eq!(set(&locks, 1, "two").await, Swap::Swapped(Version(2)));
}

#[tokio::test]
async fn what_cannot_be_found_out_is_said_with_the_token_to_look_for() {
    let (locks, stage) = staged();
    stage.next(Call::Write, [Fate::ReplyLost]);
    stage.next(Call::Open, [Fate::Arrives, Fate::Unreachable]);
    let error = locks.versioned("a").compare_and_set(None, "one").await.unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown);
    let token = locks.versioned("a").read().await.unwrap().unwrap().written_with;
    assert!(error.message().contains(&format!("written with token {token} or not")), "{error}");
}

#[tokio::test]
async fn a_lost_answer_is_no_conflict_where_somebody_wrote_in_between() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Write, [Fate::ReplyLost.after(&gate)]);
    let of = locks.clone();
    let first = tokio::spawn(async move { of.versioned("a").compare_and_set(None, "first").await });
    gate.somebody_is_there().await;
    let versioned = locks.versioned("a");
    let mut second = Box::pin(versioned.compare_and_set(Some(Version(1)), "second"));
    // It stands behind the first one, and before the look at what became of that one.
    assert!(!crate::stage::is_ready(&mut second).await);
    gate.open();
    assert_eq!(soon(second).await.unwrap(), Swap::Swapped(Version(2)));
    let error = soon(first).await.unwrap().unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "its write had landed, and was written over: {error:?}");
}

#[tokio::test]
async fn an_update_starts_again_from_what_there_is() {
    let locks = memory().await;
    assert_eq!(set(&locks, None, "1").await, Swap::Swapped(Version(1)));
    let calls = AtomicU32::new(0);
    let versioned = locks.versioned("a");
    let version = versioned
        .update(async |current| {
            let current = current.expect("it was written");
            if calls.fetch_add(1, Ordering::Relaxed) < 2 {
                let faster =
                    versioned.compare_and_set(Some(current.version), format!("{}!", text(&current.value)));
                assert!(matches!(faster.await.unwrap(), Swap::Swapped(_)));
            }
            Ok::<_, Error>(format!("{}+", text(&current.value)))
        })
        .await
        .unwrap();
    assert_eq!((version, calls.into_inner()), (Version(4), 3));
    assert_eq!(value(&locks).await, ("1!!+".to_owned(), 4));
}

#[tokio::test]
async fn an_update_gives_up_after_so_many_tries() {
    let (locks, stage) = staged();
    let calls = AtomicU32::new(0);
    let versioned = locks.versioned("a").tries(3);
    let outrun = versioned.update(async |current| {
        calls.fetch_add(1, Ordering::Relaxed);
        let faster = versioned.compare_and_set(current.map(|record| record.version), "faster");
        assert!(matches!(faster.await.unwrap(), Swap::Swapped(_)));
        Ok::<_, Error>("mine")
    });
    let error = outrun.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.retry(), error.effect()),
        (ErrorKind::Conflict, ringfence::Retry::Later, Effect::None)
    );
    assert!(error.message().contains("3 times in a row"), "{error}");
    assert_eq!(calls.into_inner(), 3);
    assert_eq!(value(&locks).await, ("faster".to_owned(), 3));
    stage.took(CALLS);
    let none = locks.versioned("a").tries(0).update(async |_| Ok::<_, Error>("mine")).await.unwrap_err();
    assert_eq!((none.kind(), stage.took(CALLS)), (ErrorKind::InvalidRequest, [0; 5]));
}

#[tokio::test]
async fn an_update_that_fails_writes_nothing_and_is_not_tried_again() {
    let (locks, stage) = staged();
    let versioned = locks.versioned("a");
    let broken = versioned.update(async |_| Err::<&str, Box<dyn std::error::Error>>("no".into()));
    assert_eq!(broken.await.unwrap_err().to_string(), "no");
    assert_eq!(stage.took(CALLS), [0, 0, 0, 1, 0]);
    stage.next(Call::Write, [Fate::Unreachable]);
    let cut = locks.versioned("a").update(async |_| Ok::<_, Error>("one")).await.unwrap_err();
    assert_eq!((cut.kind(), stage.took([Call::Write])), (ErrorKind::Unavailable, [1]));
}

#[tokio::test]
async fn a_write_that_is_dropped_leaves_no_lock_behind() {
    for polls in 0..8 {
        let (locks, stage) = staged();
        for call in CALLS {
            stage.always(call, Fate::Slow);
        }
        let versioned = locks.versioned("a").ttl(Duration::from_hours(1));
        poll_and_drop(versioned.compare_and_set(None, "one"), polls, 2).await;
        free(&locks, "a").await;
        let found = versioned.read().await.unwrap();
        let expected = found.map(|record| record.version);
        assert_eq!(
            versioned.compare_and_set(expected, "two").await.unwrap(),
            Swap::Swapped(Version(expected.map_or(1, |version| version.0 + 1)))
        );
    }
}

fn text(value: &[u8]) -> &str {
    std::str::from_utf8(value).unwrap()
}
