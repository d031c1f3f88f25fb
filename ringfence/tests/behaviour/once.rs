//! Once per window: what is recorded when, what becomes of a run that does not end well, and what each step costs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringfence::patterns::{Missed, Once, OnceOutcome, OnceStart, Run, RunEntry, RunOutcome, Skipped, Window};
use ringfence::{
    Backend, BootInstant, Clock, Effect, ErrorKind, Locks, Result, Stakes, SystemClock, WallTime,
};

use crate::stage::{Call, Fate, JumpingClock, Stage, eventually, free, memory, millis, soon, staged};

/// All that a pattern asks of a backend.
const CALLS: [Call; 5] = [Call::Read, Call::Acquire, Call::Open, Call::Write, Call::Release];

/// A window that no test sees the end of.
const LONG: Duration = Duration::from_hours(20 * 365 * 24);

const HOUR: Duration = Duration::from_hours(1);

/// A clock whose time of day is what it was set to.
#[derive(Debug, Default)]
struct SetClock(AtomicU64);

impl SetClock {
    fn set(&self, hours: u64, minutes: u64) {
        self.0.store((hours * 60 + minutes) * 60_000, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> BootInstant {
        SystemClock::new().now()
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(self.0.load(Ordering::SeqCst))
    }
}

fn with_clock(clock: Arc<dyn Clock>) -> Locks {
    let backend: Arc<dyn Backend> = Stage::with_clock(Arc::clone(&clock));
    Locks::builder().clock(clock).with_backend(backend).unwrap()
}

fn job(locks: &Locks) -> Once {
    locks.once("a").every(LONG)
}

async fn run(job: &Once) -> Result<OnceOutcome<(), &'static str>> {
    soon(job.run(async |_| Ok(()))).await
}

async fn start(job: &Once) -> Run {
    match soon(job.start()).await.unwrap() {
        OnceStart::Due(run) => run,
        OnceStart::Skipped(skipped) => panic!("it is due: {skipped:?}"),
    }
}

/// The hour that a window begins with, and whether it was missed; `None` where nothing ran.
async fn ran(job: &Once) -> Option<(u64, bool)> {
    match run(job).await.unwrap() {
        OnceOutcome::Ran { window: Window { start, .. }, missed, .. } => {
            Some((start.as_millis() / 3_600_000, missed))
        }
        OnceOutcome::Skipped(_) => None,
    }
}

async fn skipped(job: &Once) -> Skipped {
    match run(job).await.unwrap() {
        OnceOutcome::Skipped(skipped) => skipped,
        ran @ OnceOutcome::Ran { .. } => panic!("it must not run: {ran:?}"),
    }
}

async fn last(job: &Once) -> RunEntry {
    job.history().await.unwrap().swap_remove(0)
}

#[tokio::test]
async fn each_step_costs_what_its_documentation_says() {
    let (locks, stage) = staged();
    let run = start(&job(&locks)).await;
    assert_eq!(stage.took(CALLS), [1, 1, 1, 1, 0], "what is due is read, acquired, opened and begun");
    run.succeed().await.unwrap();
    assert_eq!(stage.took(CALLS), [0, 0, 0, 1, 1], "it is written and released");
    skipped(&job(&locks)).await;
    assert_eq!(stage.took(CALLS), [1, 0, 0, 0, 0], "what is done is read");
}

#[tokio::test]
async fn it_stands_in_the_history_before_it_runs_and_how_it_ended_afterwards() {
    let clock = Arc::new(JumpingClock::default());
    let locks = with_clock(Arc::clone(&clock) as _);
    let once = job(&locks).label("nightly");
    let outcome = once
        .run(async |run| {
            let begun = last(&once).await;
            assert_eq!((begun.token, begun.window, begun.outcome), (run.token(), run.window(), None));
            assert_eq!(locks.inspect("once/a").await.unwrap().holders[0].token, run.token());
            clock.jump(Duration::from_secs(5));
            Err::<(), _>("disk full\nand so on")
        })
        .await
        .unwrap();
    assert!(matches!(outcome, OnceOutcome::Ran { missed: false, result: Err(_), .. }), "{outcome:?}");
    let run = last(&once).await;
    assert_eq!((run.outcome, run.why.as_deref()), (Some(RunOutcome::Failed), Some("disk full")));
    assert_eq!((run.by.label(), run.by.pid()), ("nightly", std::process::id()));
    let took = run.ended.unwrap().saturating_since(run.started);
    assert!((5..20).contains(&took.as_secs()), "{took:?}");
    free(&locks, "once/a").await;
}

#[tokio::test]
async fn missed_windows_are_skipped_or_the_latest_one_is_made_up_for() {
    let clock = Arc::new(SetClock::default());
    let locks = with_clock(Arc::clone(&clock) as _);
    let skips = locks.once("skips").every(HOUR);
    let makes_up = locks.once("makes up").every(HOUR).missed(Missed::Run);
    clock.set(1, 30);
    assert_eq!((ran(&skips).await, ran(&makes_up).await), (Some((1, false)), Some((1, false))));
    clock.set(7, 10);
    assert_eq!((ran(&skips).await, ran(&skips).await), (Some((7, false)), None));
    for wanted in [Some((6, true)), Some((7, false)), None] {
        assert_eq!(ran(&makes_up).await, wanted);
    }
    clock.set(8, 0);
    assert_eq!(ran(&makes_up).await, Some((8, false)), "it missed nothing");
}

#[tokio::test]
async fn what_is_not_due_says_when_it_is() {
    let clock = Arc::new(SetClock::default());
    let locks = with_clock(Arc::clone(&clock) as _);
    let next = async |job: &Once| match skipped(job).await {
        Skipped::NotDue { next, .. } => next.as_millis() / 60_000,
        busy => panic!("nobody is at it: {busy:?}"),
    };
    let hourly = locks.once("hourly").every(HOUR).offset(Duration::from_mins(15)).at_least(HOUR / 2);
    clock.set(1, 10);
    ran(&hourly).await.unwrap();
    assert_eq!(
        next(&hourly).await,
        100,
        "its window ends at a quarter past, and half an hour is to lie between two runs"
    );
    clock.set(1, 39);
    assert_eq!(next(&hourly).await, 100);
    clock.set(1, 40);
    ran(&hourly).await.unwrap();
    assert_eq!(next(&hourly).await, 135);
    clock.set(0, 20);
    assert_eq!(next(&hourly).await, 135, "a clock that was set back runs nothing");

    let paced = locks.once("paced").since_last(HOUR);
    clock.set(5, 17);
    ran(&paced).await.unwrap();
    clock.set(6, 16);
    assert_eq!(next(&paced).await, 6 * 60 + 17);
    clock.set(6, 17);
    ran(&paced).await.unwrap();
}

#[tokio::test]
async fn a_beginning_whose_answer_is_lost_is_made_sure_of_before_anything_runs() {
    let (locks, stage) = staged();
    stage.next(Call::Write, [Fate::ReplyLost, Fate::Unreachable]);
    let run = start(&job(&locks)).await;
    assert_eq!(stage.calls(Call::Write), 3);
    run.succeed().await.unwrap();
    assert_eq!(job(&locks).history().await.unwrap().len(), 1, "it is one run");
}

#[tokio::test]
async fn an_end_whose_answer_is_lost_is_taken_down_once() {
    let (locks, stage) = staged();
    stage.next(Call::Write, [Fate::Arrives, Fate::ReplyLost, Fate::Unreachable]);
    assert!(matches!(run(&job(&locks)).await.unwrap(), OnceOutcome::Ran { .. }));
    let history = job(&locks).history().await.unwrap();
    assert_eq!(history.iter().map(|run| run.outcome).collect::<Vec<_>>(), [Some(RunOutcome::Succeeded)]);
}

#[tokio::test]
async fn an_end_that_cannot_be_taken_down_is_an_error_and_counts_as_crashed() {
    let (locks, stage) = staged();
    let job = job(&locks).ttl(millis(1000));
    let ended = job.run(async |_| {
        stage.always(Call::Write, Fate::Unreachable);
        Ok::<_, &str>(())
    });
    let error = soon(ended).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("how the run ended could not be taken down"), "{error}");
    stage.always(Call::Write, None);
    free(&locks, "once/a").await;
    let Skipped::NotDue { last, .. } = skipped(&job).await else { panic!("nobody is at it") };
    assert_eq!(last.outcome, Some(RunOutcome::Crashed));
    assert_eq!(self::last(&job).await, *last, "it was written down");
}

#[tokio::test]
async fn nothing_runs_where_its_beginning_cannot_be_taken_down() {
    let (locks, stage) = staged();
    let job = job(&locks).ttl(millis(1000));
    stage.always(Call::Write, Fate::ReplyLost);
    let begun = job.run(async |_| -> Result<(), &str> { panic!("it must not run") });
    assert_eq!(soon(begun).await.unwrap_err().effect(), Effect::Unknown);
    stage.always(Call::Write, None);
    stage.next(Call::Open, [Fate::Unreachable]);
    free(&locks, "once/a").await;
    assert_eq!(run(&job).await.unwrap_err().kind(), ErrorKind::Unavailable);
    free(&locks, "once/a").await;
}

#[tokio::test]
async fn a_body_that_is_evicted_is_cancelled_and_ends_nothing() {
    let locks = memory().await;
    let job = job(&locks);
    let outcome = soon(job.run(async |run| {
        locks.evict("once/a", run.token().nonce()).await.unwrap();
        std::future::pending::<Result<(), &str>>().await
    }));
    assert_eq!(outcome.await.unwrap_err().kind(), ErrorKind::Lost);
    let Skipped::NotDue { last, .. } = skipped(&job).await else { panic!("nobody is at it") };
    assert_eq!(last.outcome, Some(RunOutcome::Crashed));
}

#[tokio::test]
async fn an_end_that_comes_after_the_successors_is_refused() {
    let locks = memory().await;
    let late = start(&job(&locks)).await;
    locks.evict("once/a", late.token().nonce()).await.unwrap();
    let second = start(&job(&locks).retry_failed(true)).await;
    assert_eq!(late.succeed().await.unwrap_err().kind(), ErrorKind::Stale);
    second.succeed().await.unwrap();
    let history = job(&locks).history().await.unwrap();
    let outcomes: Vec<_> = history.iter().map(|run| run.outcome).collect();
    assert_eq!(outcomes, [Some(RunOutcome::Succeeded), Some(RunOutcome::Crashed)]);
}

#[tokio::test]
async fn a_run_that_panics_or_is_dropped_has_crashed() {
    let locks = memory().await;
    let panics = tokio::spawn({
        let locks = locks.clone();
        async move { job(&locks).run(async |_| -> Result<(), &str> { panic!("it was told to panic") }).await }
    });
    assert!(panics.await.unwrap_err().is_panic());
    free(&locks, "once/a").await;
    let again = start(&job(&locks).retry_failed(true)).await;
    drop(again);
    free(&locks, "once/a").await;
    skipped(&job(&locks)).await;
    let history = job(&locks).history().await.unwrap();
    assert_eq!(history.iter().map(|run| run.outcome).collect::<Vec<_>>(), [Some(RunOutcome::Crashed); 2]);
}

#[tokio::test]
async fn whoever_only_looks_is_waited_for() {
    let (locks, stage) = staged();
    let decider = locks.lock("once/a").acquire().await.unwrap();
    let waits = tokio::spawn({
        let locks = locks.clone();
        async move { run(&job(&locks)).await }
    });
    // It has waited for the lock, and looks whether there is a run by now.
    eventually(async || stage.calls(Call::Read) == 2).await;
    decider.release().await.unwrap();
    let outcome = soon(waits).await.unwrap().unwrap();
    assert!(matches!(outcome, OnceOutcome::Ran { .. }), "{outcome:?}");
}

#[tokio::test]
async fn an_operator_who_holds_the_lock_keeps_the_job_from_running() {
    let locks = memory().await;
    let held = locks.lock("once/a").acquire().await.unwrap();
    let skipped = skipped(&job(&locks)).await;
    assert!(matches!(skipped, Skipped::Busy { running: None, .. }), "{skipped:?}");
    held.release().await.unwrap();
    assert!(matches!(run(&job(&locks)).await.unwrap(), OnceOutcome::Ran { .. }));
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_before_anything_is_sent() {
    let (locks, stage) = staged();
    for (job, kind) in [
        (locks.once("a"), ErrorKind::InvalidRequest),
        (locks.once("").every(HOUR), ErrorKind::InvalidName),
        (locks.once("x".repeat(251)).every(HOUR), ErrorKind::InvalidName),
        (locks.once("a").every(HOUR).offset(HOUR), ErrorKind::InvalidRequest),
    ] {
        assert_eq!(run(&job).await.unwrap_err().kind(), kind, "{job:?}");
    }
    assert_eq!(stage.took(CALLS), [0; 5]);
    run(&locks.once("x".repeat(250)).every(HOUR)).await.unwrap();
    run(&job(&locks)).await.unwrap();
    let stakes = job(&locks).stakes(Stakes::Correctness);
    assert_eq!(run(&stakes).await.unwrap_err().kind(), ErrorKind::Unsupported, "also where nothing is due");
}

#[tokio::test]
async fn a_record_that_is_no_history_is_left_alone() {
    let locks = memory().await;
    let guard = locks.lock("once/a").acquire().await.unwrap();
    let record = locks.record("once/a").unwrap();
    record.open(guard.token()).await.unwrap();
    record.write(guard.token(), "41").await.unwrap();
    guard.release().await.unwrap();
    assert_eq!(run(&job(&locks)).await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(job(&locks).history().await.unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(record.read().await.unwrap().unwrap().value, "41");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_can_be_spawned() {
    let locks = memory().await;
    let task = tokio::spawn(async move { job(&locks).run(async |run| Ok::<_, String>(run.token())).await });
    assert!(matches!(soon(task).await.unwrap().unwrap(), OnceOutcome::Ran { .. }));
}
