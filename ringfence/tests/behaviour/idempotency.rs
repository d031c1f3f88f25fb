//! Idempotency keys: what is done once, what is done again, and what each step costs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence::patterns::{Begun, RESULT_MAX, Session};
use ringfence::{Backend, ErrorKind, Locks};

use crate::stage::{Call, Fate, JumpingClock, Stage, free, in_line, memory, millis, soon, staged};

/// All that a pattern asks of a backend.
const CALLS: [Call; 6] = [Call::Read, Call::Acquire, Call::Inspect, Call::Open, Call::Write, Call::Release];

async fn start(locks: &Locks, key: &str) -> Session {
    match locks.idempotency(key).begin().await.unwrap() {
        Begun::Started(session) => session,
        begun => panic!("{key} must be new: {begun:?}"),
    }
}

async fn result_of(locks: &Locks, key: &str) -> Bytes {
    match locks.idempotency(key).begin().await.unwrap() {
        Begun::Done(result) => result,
        begun => panic!("{key} must be done: {begun:?}"),
    }
}

#[tokio::test]
async fn each_step_costs_what_its_documentation_says() {
    let (locks, stage) = staged();
    let mut session = start(&locks, "a").await;
    assert_eq!(stage.took(CALLS), [1, 1, 0, 1, 0, 0], "a new one is read, acquired and opened");

    let other = locks.idempotency("a").fingerprint("same").begin().await.unwrap();
    assert!(matches!(other, Begun::InFlight(_)), "{other:?}");
    assert_eq!(
        stage.took(CALLS),
        [1, 1, 0, 0, 0, 0],
        "one in flight is read and asked for: the answer says who has it"
    );

    session.complete("done").await.unwrap();
    assert_eq!(stage.took(CALLS), [0, 0, 0, 0, 1, 1], "it is written and released");
    assert_eq!(result_of(&locks, "a").await, "done");
    assert_eq!(stage.took(CALLS), [1, 0, 0, 0, 0, 0], "one that is done is read");
}

#[tokio::test]
async fn whoever_works_on_it_is_named_also_where_the_backend_is_not_asked() {
    let (locks, stage) = staged();
    let working = locks.idempotency("a").label("till 7").begin().await.unwrap();
    stage.took(CALLS);
    // The same request from the same process: its waiting room knows that the key is taken, and not by whom.
    let Begun::InFlight(others) = locks.idempotency("a").label("till 7").begin().await.unwrap() else {
        panic!("somebody works on it")
    };
    assert_eq!(others.holders[0].label(), "till 7");
    assert_eq!(stage.took(CALLS), [1, 0, 1, 0, 0, 0]);
    drop(working);
}

#[tokio::test]
async fn a_key_is_one_requests_key_whether_that_is_done_or_in_flight() {
    let locks = memory().await;
    let request = |text: &str| locks.idempotency("a").fingerprint(text);
    let Begun::Started(mut session) = request("amount=1").begin().await.unwrap() else { panic!("it is new") };
    for how in ["is in flight", "was done"] {
        let error = soon(request("amount=2").wait(Duration::MAX).begin()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::KeyReused, "{error:?}");
        assert!(
            error.message().contains(how) && error.message().contains("new key"),
            "expected {how:?}: {error}"
        );
        let state = locks.inspect("idempotency/a").await.unwrap();
        assert!(
            !format!("{:?}", state.holders.iter().map(|held| held.holder.metadata()).collect::<Vec<_>>())
                .contains("amount")
        );
        if how == "is in flight" {
            session.complete("done").await.unwrap();
        }
    }
    for request in [request("amount=1"), locks.idempotency("a")] {
        assert!(matches!(request.begin().await.unwrap(), Begun::Done(_)), "it is the same, or does not say");
    }
}

#[tokio::test]
async fn whoever_waits_gets_the_result_and_does_not_work() {
    let locks = memory().await;
    let mut session = start(&locks, "a").await;
    let wait = |locks: &Locks| {
        // By another label it stands in line at the backend, as one of another process does.
        let request = locks
            .idempotency("a")
            .label("another")
            .wait(Duration::MAX)
            .run(async |_| -> ringfence::Result<Bytes> { panic!("it is done already") });
        tokio::spawn(request)
    };
    let others = [wait(&locks), wait(&locks), wait(&locks)];
    in_line(&locks, "idempotency/a", 1).await;
    session.complete("done").await.unwrap();
    for other in others {
        assert_eq!(soon(other).await.unwrap().unwrap(), "done");
    }
    free(&locks, "idempotency/a").await;
}

#[tokio::test]
async fn whoever_waits_starts_when_the_other_gives_up() {
    let locks = memory().await;
    let first = start(&locks, "a").await;
    let request = locks.idempotency("a").label("another").wait(Duration::MAX);
    let waits = tokio::spawn(request.begin());
    in_line(&locks, "idempotency/a", 1).await;
    let token = first.token();
    drop(first);
    let Begun::Started(second) = soon(waits).await.unwrap().unwrap() else { panic!("nothing was stored") };
    assert!(second.token().sequence() > token.sequence(), "{} after {token}", second.token());
}

#[tokio::test]
async fn a_wait_ends_and_says_who_is_in_the_way() {
    let locks = memory().await;
    let session = start(&locks, "a").await;
    let waited = locks.idempotency("a").wait(millis(50)).begin().await.unwrap();
    let Begun::InFlight(others) = waited else { panic!("it is in flight: {waited:?}") };
    assert_eq!(others.holders.len(), 1);
    for (wait, says) in [(Duration::ZERO, "works on the request"), (millis(50), "not done within 50ms")] {
        let run = locks.idempotency("a").wait(wait).run(async |_| Ok::<_, ringfence::Error>("twice"));
        let error = run.await.unwrap_err();
        assert_eq!((error.kind(), error.retry()), (ErrorKind::WaitElapsed, ringfence::Retry::Later));
        assert!(error.message().contains(says), "expected {says:?}: {error}");
    }
    drop(session);
}

#[tokio::test]
async fn a_panic_an_error_and_a_drop_release_the_key_and_store_nothing() {
    let locks = memory().await;
    let of = locks.clone();
    let panicked = tokio::spawn(async move {
        of.idempotency("a").run(async |_| -> ringfence::Result<Bytes> { panic!("on purpose") }).await
    });
    assert!(panicked.await.unwrap_err().is_panic());
    free(&locks, "idempotency/a").await;
    let failed = locks
        .idempotency("a")
        .run(async |_| Err::<Bytes, Box<dyn std::error::Error>>("the bank is closed".into()));
    assert_eq!(failed.await.unwrap_err().to_string(), "the bank is closed");
    free(&locks, "idempotency/a").await;
    start(&locks, "a").await.release().await.unwrap();
    assert!(locks.inspect("idempotency/a").await.unwrap().is_free(), "its release was waited for");
    assert_eq!(locks.record("idempotency/a").unwrap().read().await.unwrap(), None);
    drop(start(&locks, "a").await);
}

#[tokio::test]
async fn a_result_is_written_again_until_the_store_answers() {
    for fate in [Fate::Unreachable, Fate::Vanishes, Fate::ReplyLost] {
        let (locks, stage) = staged();
        stage.next(Call::Write, [fate.clone(), fate]);
        start(&locks, "a").await.complete("done").await.unwrap();
        assert_eq!(stage.calls(Call::Write), 3);
        assert_eq!(result_of(&locks, "a").await, "done");
    }
}

#[tokio::test]
async fn a_store_that_stays_away_is_an_error_after_a_ttl_and_the_session_can_try_again() {
    let (locks, stage) = staged();
    let Begun::Started(mut session) = locks.idempotency("a").ttl(millis(1000)).begin().await.unwrap() else {
        panic!("it is new")
    };
    stage.always(Call::Write, Fate::Vanishes);
    let error = soon(session.complete("done")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, ringfence::Effect::Unknown));
    assert!(error.message().contains("\"a\" is done, its result is not stored"), "{error}");
    stage.always(Call::Write, None);
    session.complete("done").await.unwrap();
    assert_eq!(result_of(&locks, "a").await, "done");
}

#[tokio::test]
async fn whoever_lost_the_key_cannot_store_its_result_over_the_next_ones() {
    let (locks, stage) = staged();
    let mut late = start(&locks, "a").await;
    locks.evict("idempotency/a", late.token().nonce()).await.unwrap();
    soon(late.lost()).await;
    assert!(!late.is_held());
    let refused = late.complete("late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale);
    assert_eq!(stage.took([Call::Write]), [1], "what is refused is not tried again");
    start(&locks, "a").await.complete("in time").await.unwrap();
    assert_eq!(late.complete("late").await.unwrap_err().kind(), ErrorKind::Stale);
    assert_eq!(result_of(&locks, "a").await, "in time");
}

#[tokio::test]
async fn work_is_cancelled_before_its_lease_can_be_lost() {
    let (locks, stage) = staged();
    stage.always(Call::Renew, Fate::Unreachable);
    let work = locks
        .idempotency("a")
        .ttl(millis(300))
        .run(async |_| -> ringfence::Result<Bytes> { std::future::pending().await });
    assert_eq!(soon(work).await.unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(stage.calls(Call::Write), 0);
}

#[tokio::test]
async fn a_result_that_is_too_large_is_refused_and_the_session_goes_on() {
    let locks = memory().await;
    let mut session = start(&locks, "a").await;
    let error = session.complete(vec![b'x'; RESULT_MAX + 1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    for part in ["is done", "65280 bytes, this one has 65281", "complete with where it is"] {
        assert!(error.message().contains(part), "expected {part:?}: {error}");
    }
    assert!(session.is_held());
    session.complete(vec![b'x'; RESULT_MAX]).await.unwrap();
    assert_eq!(result_of(&locks, "a").await.len(), RESULT_MAX);
    let again = session.complete("again").await.unwrap_err();
    assert!(again.message().contains("completed before"), "{again}");
    assert!(!session.is_held());
}

#[tokio::test]
async fn a_key_is_new_when_its_retention_is_over() {
    let clock = Arc::new(JumpingClock::default());
    let stage = Stage::with_clock(Arc::clone(&clock) as _);
    let backend: Arc<dyn Backend> = stage;
    let locks = Locks::builder().clock(Arc::clone(&clock) as _).with_backend(backend).unwrap();
    let minute = Duration::from_mins(1);
    let request = |text: &str| locks.idempotency("a").fingerprint(text).retention(minute);
    let Begun::Started(mut session) = request("one").ttl(2 * minute).begin().await.unwrap() else {
        panic!("it is new")
    };
    // It is kept from its completion on, not from its start.
    clock.jump(minute / 2);
    session.complete("one").await.unwrap();
    clock.jump(Duration::from_secs(55));
    assert_eq!(result_of(&locks, "a").await, "one");
    clock.jump(millis(5_000));
    let Begun::Started(mut second) = request("two").begin().await.unwrap() else { panic!("it is new again") };
    second.complete("two").await.unwrap();
    assert_eq!(result_of(&locks, "a").await, "two");
    // For ever is as long as the calendar goes.
    let ever = locks.idempotency("b").retention(Duration::MAX);
    ever.run(async |_| Ok::<_, ringfence::Error>("ever")).await.unwrap();
    clock.jump(Duration::from_hours(24 * 365 * 100));
    assert_eq!(result_of(&locks, "b").await, "ever");
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_before_anything_is_sent() {
    let (locks, stage) = staged();
    let refused = async |request: ringfence::patterns::Idempotency| request.begin().await.unwrap_err().kind();
    assert_eq!(refused(locks.idempotency("")).await, ErrorKind::InvalidName);
    assert_eq!(refused(locks.idempotency("a").ttl(Duration::ZERO)).await, ErrorKind::InvalidTtl);
    assert_eq!(refused(locks.idempotency("a").label("")).await, ErrorKind::InvalidRequest);
    let correct = locks.idempotency("a").stakes(ringfence::Stakes::Correctness);
    assert_eq!(refused(correct).await, ErrorKind::Unsupported);
    assert_eq!(stage.took(CALLS), [0; 6]);
}

#[tokio::test]
async fn a_record_of_somebody_else_is_not_taken_for_a_result() {
    let locks = memory().await;
    let guard = locks.lock("idempotency/a").acquire().await.unwrap();
    let record = locks.record("idempotency/a").unwrap();
    record.open(guard.token()).await.unwrap();
    record.write(guard.token(), "mine").await.unwrap();
    guard.release().await.unwrap();
    let error = locks.idempotency("a").begin().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.message().contains("record get"), "{error}");
}
