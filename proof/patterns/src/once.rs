//! A job that runs once per window does so.

use std::sync::Arc;
use std::time::Duration;

use ringfence::patterns::{Missed, Once, OnceOutcome, OnceStart, Run, RunEntry, RunOutcome, Skipped, Window};
use ringfence::{BootInstant, Clock, Error, ErrorKind, Locks, Result, WallTime};
use ringfence_testkit::{Harness, NotApplicable, Verdict, connected};
use tokio::sync::Notify;

use crate::stage::{fresh, hall, locks, ttl, within};

/// A TTL that a case waits for.
const SHORT: Duration = Duration::from_millis(500);

/// Twenty years, whose first window that nobody who reads this has seen the edge of begins at the end of 2029.
const GENERATION: Duration = Duration::from_hours(20 * 365 * 24);

/// How often a case looks again for what no event tells.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

type Ran = OnceOutcome<(), &'static str>;

async fn run(job: &Once) -> Ran {
    let outcome = within("a job that has nothing to do", job.run(async |_| Ok(()))).await;
    outcome.unwrap_or_else(|error| panic!("the job runs or is skipped, and this is neither: {error:?}"))
}

async fn runs(job: &Once) -> Window {
    match run(job).await {
        OnceOutcome::Ran { window, .. } => window,
        skipped @ OnceOutcome::Skipped(_) => panic!("the job is due, and was skipped: {skipped:?}"),
    }
}

async fn starts(job: &Once) -> Run {
    match within("the start of a job", job.start()).await.expect("a start") {
        OnceStart::Due(run) => run,
        skipped @ OnceStart::Skipped(_) => panic!("the job is due, and was skipped: {skipped:?}"),
    }
}

/// The last run, where nothing is due because of it.
#[track_caller]
fn not_due(outcome: Ran) -> RunEntry {
    match outcome {
        OnceOutcome::Skipped(Skipped::NotDue { last, .. }) => *last,
        other => panic!("the window is done, and this is no word of it: {other:?}"),
    }
}

/// The last run, once it is known that it is over: until then it is said to run.
async fn not_due_later(job: &Once) -> RunEntry {
    within("the lease of a run that crashed is over", async {
        loop {
            match run(job).await {
                OnceOutcome::Skipped(Skipped::Busy { running, .. }) => {
                    assert_eq!(running.expect("it stands in the history").outcome, None);
                }
                other => return not_due(other),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await
}

/// Runs a job that somebody else may still be at.
async fn runs_later(job: &Once) -> Window {
    within("the job is due at last", async {
        loop {
            if let OnceOutcome::Ran { window, .. } = run(job).await {
                return window;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await
}

async fn outcomes(job: &Once) -> Vec<Option<RunOutcome>> {
    let history = within("the history", job.history()).await.expect("a history");
    history.iter().map(|run| run.outcome).collect()
}

fn refused(ended: Result<()>) {
    let error = ended.expect_err("who lost its lease cannot say how it ended");
    assert!(matches!(error.kind(), ErrorKind::Stale | ErrorKind::Lost), "{error:?}");
}

/// Of hosts that call at the same instant exactly one runs. The others learn who does, and afterwards that it is done.
pub async fn once_is_run_by_one_of_many_at_the_same_instant(harness: &dyn Harness) -> Verdict {
    const HOSTS: usize = 6;
    let name = fresh("once");
    let others_are_back = Arc::new(Notify::new());
    let mut hosts = tokio::task::JoinSet::new();
    for _ in 0..HOSTS {
        let job = locks(harness).await.once(&name).every(GENERATION);
        let wait = Arc::clone(&others_are_back);
        hosts.spawn(async move {
            job.run(async |_| {
                wait.notified().await;
                Ok::<_, Error>(())
            })
            .await
        });
    }
    for _ in 1..HOSTS {
        let back = within("all but one come back while that one runs", hosts.join_next()).await;
        match back.expect("they were spawned").expect("no panic") {
            Ok(OnceOutcome::Skipped(Skipped::Busy { running: Some(running), .. })) => {
                assert_eq!(running.outcome, None);
            }
            other => panic!("a second one runs, or nobody is said to: {other:?}"),
        }
    }
    others_are_back.notify_one();
    let back = within("the one that runs", hosts.join_next()).await.expect("one is left").expect("no panic");
    assert!(matches!(back, Ok(OnceOutcome::Ran { missed: false, .. })), "{back:?}");

    let job = locks(harness).await.once(&name).every(GENERATION);
    assert_eq!(not_due(run(&job).await).outcome, Some(RunOutcome::Succeeded));
    assert_eq!(outcomes(&job).await, [Some(RunOutcome::Succeeded)]);
    Ok(())
}

/// A window is run once by whoever comes first, and the next one when it has come.
pub async fn once_runs_again_in_the_next_window(harness: &dyn Harness) -> Verdict {
    const EVERY: Duration = Duration::from_millis(700);
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("once"));
    let aligned = |locks: &Locks| locks.once(&name).every(EVERY).offset(EVERY / 7);
    let mut last = runs(&aligned(&ann)).await;
    for locks in [&bob, &ann] {
        let window = runs_later(&aligned(locks)).await;
        assert!(window.start >= last.end, "{window:?} after {last:?}");
        assert_eq!(u128::from(window.start.as_millis()) % EVERY.as_millis(), EVERY.as_millis() / 7);
        last = window;
    }

    let name = fresh("once");
    let since_last = |locks: &Locks| locks.once(&name).since_last(EVERY);
    let last = runs(&since_last(&ann)).await;
    let next = runs_later(&since_last(&bob)).await;
    assert!(next.start >= last.end, "{next:?} after {last:?}");
    Ok(())
}

/// A run that fails is done for its window, unless it is to be retried.
pub async fn once_a_failed_run_is_retried_only_where_that_is_asked_for(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("once"));
    let job = ann.once(&name).every(GENERATION).label("ann");
    let failed = within("a job that fails", job.run(async |_| Err::<(), _>("no disk"))).await;
    assert!(matches!(failed, Ok(OnceOutcome::Ran { result: Err("no disk"), .. })), "{failed:?}");

    let last = not_due(run(&bob.once(&name).every(GENERATION)).await);
    assert_eq!((last.outcome, last.why.as_deref()), (Some(RunOutcome::Failed), Some("no disk")));
    assert_eq!(last.by.label(), "ann");
    let retries = bob.once(&name).every(GENERATION).retry_failed(true);
    assert_eq!(runs(&retries).await, last.window, "in the same window");
    not_due(run(&retries).await);
    assert_eq!(outcomes(&job).await, [Some(RunOutcome::Succeeded), Some(RunOutcome::Failed)]);
    Ok(())
}

/// A run that hangs past its lease counts as crashed. If it is run again, it is the second one's end that stands.
pub async fn once_a_run_that_lost_its_lease_ends_nothing(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("once"));
    let job = |locks: &Locks| locks.once(&name).every(GENERATION);
    let hangs = starts(&job(&ann).ttl(ttl(&ann, SHORT)).max_hold(Duration::ZERO)).await;
    let last = not_due_later(&job(&bob)).await;
    assert_eq!((last.outcome, last.ended), (Some(RunOutcome::Crashed), None));

    let again = starts(&job(&bob).retry_failed(true)).await;
    assert!(again.token().sequence() > hangs.token().sequence());
    refused(hangs.succeed().await);
    again.fail("the second one").await.expect("it holds its lease");
    assert_eq!(outcomes(&job(&ann)).await, [Some(RunOutcome::Failed), Some(RunOutcome::Crashed)]);
    Ok(())
}

/// The work of a run that is cut off is cancelled before its lease can be lost, and it does not count as done.
pub async fn once_a_run_that_is_cut_off_is_cancelled_in_time(harness: &dyn Harness) -> Verdict {
    let connected = harness.connect_by_cable();
    let cable = connected.ok_or(NotApplicable("the harness cuts no client off"))?.await;
    let (ann, bob, name) = (hall(harness, cable.client()), locks(harness).await, fresh("once"));
    let job = |locks: &Locks| locks.once(&name).every(GENERATION).ttl(ttl(locks, 2 * SHORT));
    let cancelled = Arc::new(());
    let inside = Arc::clone(&cancelled);
    let cut_off = tokio::spawn({
        let job = job(&ann);
        let cable = Arc::new(cable);
        let cut = Arc::clone(&cable);
        async move {
            let outcome = job
                .run(async move |_| {
                    cut.cut();
                    std::future::pending::<()>().await;
                    drop(inside);
                    Ok::<_, Error>(())
                })
                .await;
            (outcome, cable)
        }
    });
    within("the body begins", async {
        while outcomes(&job(&bob)).await.is_empty() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    })
    .await;
    let last = not_due_later(&job(&bob)).await;
    assert_eq!(last.outcome, Some(RunOutcome::Crashed));
    assert_eq!(Arc::strong_count(&cancelled), 1, "its work goes on beside the next one's");
    let (outcome, cable) = within("who is cut off comes back", cut_off).await.expect("no panic");
    assert_eq!(outcome.expect_err("it was cancelled").kind(), ErrorKind::Lost);
    cable.mend();
    runs(&job(&bob).retry_failed(true)).await;
    Ok(())
}

/// A run that takes longer than its window is not run beside. What it was in the way of is skipped, or the latest of it made up
/// for, before the current one.
pub async fn once_a_run_longer_than_its_window_is_alone(harness: &dyn Harness) -> Verdict {
    const EVERY: Duration = Duration::from_millis(300);
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("once"));
    let long = starts(&ann.once(&name).every(EVERY)).await;
    let windows = [Missed::Skip, Missed::Run].map(|missed| bob.once(&name).every(EVERY).missed(missed));
    let began = harness.clock().now();
    while harness.clock().now().saturating_since(began) < 3 * EVERY {
        for job in &windows {
            let outcome = run(job).await;
            let busy = matches!(&outcome, OnceOutcome::Skipped(Skipped::Busy { running: Some(_), .. }));
            assert!(busy, "it still runs: {outcome:?}");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let mut last = long.window();
    long.succeed().await.expect("however long it took");
    let mut made_up_for = 0;
    loop {
        match run(&windows[1]).await {
            OnceOutcome::Ran { window, missed, .. } => {
                assert!(window.start >= last.end, "{window:?} after {last:?}");
                last = window;
                if !missed {
                    break;
                }
                made_up_for += 1;
            }
            skipped @ OnceOutcome::Skipped(_) => panic!("the current window is due: {skipped:?}"),
        }
    }
    assert!(made_up_for >= 1, "a window passed while the long one ran");
    Ok(())
}

/// A clock of which only the time of day is wrong.
#[derive(Debug)]
struct WrongClock {
    clock: Arc<dyn Clock>,
    set_to: fn(WallTime) -> WallTime,
}

impl Clock for WrongClock {
    fn now(&self) -> BootInstant {
        self.clock.now()
    }

    fn wall(&self) -> WallTime {
        (self.set_to)(self.clock.wall())
    }
}

/// No window is run twice because of a clock that is wrong. Where the backend has a clock, nobody's own clock decides at all.
pub async fn once_a_wrong_clock_runs_no_window_twice(harness: &dyn Harness) -> Verdict {
    const THIRTY_YEARS: Duration = Duration::from_hours(30 * 365 * 24);
    let name = fresh("once");
    let backend = connected(harness).await;
    let has_a_clock = backend.time().await.expect("the time").is_some();
    let ann = locks(harness).await;
    let host = async |set_to: fn(WallTime) -> WallTime| {
        let clock = Arc::new(WrongClock { clock: harness.clock(), set_to });
        let backend = connected(harness).await;
        let locks = Locks::builder().clock(clock).with_backend(backend).expect("no choice is wrong");
        locks.once(&name).every(GENERATION).retry_failed(true)
    };
    let behind = host(|now| {
        WallTime::from_millis(
            now.saturating_since(WallTime::from_millis(0))
                .saturating_sub(THIRTY_YEARS)
                .as_millis()
                .try_into()
                .unwrap_or(u64::MAX),
        )
    })
    .await;
    let ahead = host(|now| now.saturating_add(THIRTY_YEARS)).await;
    let right = ann.once(&name).every(GENERATION);

    let window = runs(&right).await;
    assert_eq!(not_due(run(&behind).await).window, window);
    if has_a_clock {
        assert_eq!(not_due(run(&ahead).await).window, window);
        return Ok(());
    }
    let early = runs(&ahead).await;
    assert!(early.start >= window.end, "a window of its own: {early:?} after {window:?}");
    for job in [&right, &behind, &ahead] {
        assert_eq!(not_due(run(job).await).window, early, "nobody goes back behind it");
    }
    Ok(())
}
