//! Once per window: a job that many hosts know of, and that one of them runs.

mod ledger;
mod window;

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Backoff, BootInstant, Error, ErrorKind, FencingToken, LockName, RecordKey, Result, Retry, WallTime,
};

pub use self::ledger::{HISTORY_MAX, RunEntry, RunOutcome};
pub use self::window::{Missed, Window};

use self::ledger::Ledger;
use self::window::{Decision, Pace, Plan, Timing};
use crate::guard::Guard;
use crate::locks::Locks;
use crate::patterns::lock_of;
use crate::record::RecordHandle;
use crate::request::{LockRequest, Patience, Terms};
use crate::stakes::Stakes;

/// For how long a job's lock is waited for before its record is looked at again, and how often: whoever has the lock either
/// begins a run, which takes it two round trips and stands in the record, or finds that there is none to begin and lets go.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
const LOOKS: u32 = 8;

/// The pauses before something is written again that did not arrive.
const WRITE_PAUSE: Duration = Duration::from_millis(20);
const WRITE_PAUSE_MOST: Duration = Duration::from_secs(1);

impl Locks {
    /// A job that runs once per window, whoever calls for it and how often: say how long a window is, with
    /// [`every`](Once::every) or [`since_last`](Once::since_last), then [`run`](Once::run).
    ///
    /// Its lock is `once/` and the name, so that the name has at most 250 bytes; its history is that lock's record. A name that
    /// is none is an error when it is run.
    pub fn once<N: TryInto<LockName, Error = Error>>(&self, job: N) -> Once {
        let lock = lock_of("once", job.try_into());
        Once { locks: self.clone(), lock, timing: Timing::default(), terms: Terms::default() }
    }
}

/// A job that runs once per window: what a nightly report, a clean-up or a reconciliation wants that every one of twenty hosts
/// calls for, so that none of them has to be the one.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
/// use std::time::Duration;
/// use ringfence::patterns::{OnceOutcome, Skipped};
/// # let locks = ringfence::Locks::connect("memory:").await?;
///
/// let report = locks.once("report").every(Duration::from_hours(1));
/// for host in 1..=20 {
///     let outcome = report
///         .run(async |run| {
///             println!("host {host} reports on the hour before {:?}", run.window().start);
///             Ok::<_, std::io::Error>(42)
///         })
///         .await?;
///     match outcome {
///         OnceOutcome::Ran { result, .. } => println!("{result:?}"),
///         OnceOutcome::Skipped(Skipped::NotDue { last, next, .. }) => println!("{} did it; next {next:?}", last.by),
///         OnceOutcome::Skipped(other) => println!("{other:?}"),
///     }
/// }
/// assert_eq!(locks.once("report").history().await?.len(), 1);
/// # Ok(()) }
/// ```
///
/// # What decides
/// The backend's clock where it has one, else this machine's; and the record of the job, in which the latest window that
/// was begun stands, written behind the lock's fence. No window that is not later than that one is ever begun, and the one that
/// is recorded only again if it failed and [`retry_failed`](Self::retry_failed) says so. So a host whose clock is behind runs
/// nothing twice. One whose clock is ahead, on a backend without a clock, begins a window early, and the others then have it
/// behind them.
///
/// A run is *begun* when its record says so, before the body is called, and *has ended* when the record says how. In between
/// the lease is renewed, however long it takes: no window is ever run by two that both can end it. One that never ended, because
/// its process died or lost its lease, is found by whoever gets the job's lock next, counts as failed, and is
/// [`Crashed`](RunOutcome::Crashed) in the history.
///
/// # When to call
/// More often than there are windows, or well inside of each: a call at the very edge of a window finds it begun by one
/// clock and not by another, and the next call may be a whole window away.
#[derive(Clone, Debug)]
#[must_use = "a job is not run before `run` or `start`"]
pub struct Once {
    locks: Locks,
    lock: Result<LockName>,
    timing: Timing,
    terms: Terms,
}

/// What came of calling for a job.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "it was run here and now, or it was not")]
pub enum OnceOutcome<T, E> {
    /// It ran, here and now, and its history says how it ended.
    Ran {
        /// For this window.
        window: Window,
        /// Whether the window was over already, and was made up for. The current one is due now: call again.
        missed: bool,
        /// What the body returned.
        result: Result<T, E>,
    },
    /// It did not run: somebody else has done it, or does.
    Skipped(Skipped),
}

/// What comes of starting a job by hand.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "it is started or it is not")]
pub enum OnceStart {
    /// It is this caller's to run.
    Due(Run),
    /// It is not.
    Skipped(Skipped),
}

/// Why a job was not run. It is no error: on twenty hosts it is what nineteen of them see.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Skipped {
    /// The window is done, or the least time between two runs has not passed.
    #[non_exhaustive]
    NotDue {
        /// The last run. It may have failed: then it is not retried in this window, or not yet.
        last: Box<RunEntry>,
        /// Before this nothing is due, unless somebody runs it meanwhile.
        next: WallTime,
    },
    /// Somebody else has the job's lock.
    #[non_exhaustive]
    Busy {
        /// The run that it is busy with. `None`: whoever has the lock has begun none, as an operator who keeps the job from running.
        running: Option<Box<RunEntry>>,
    },
}

impl Once {
    /// Runs once in each window of this length: the first begins with 1970 (UTC), each other one where the one before it ends.
    /// So `every` an hour begins at each full hour, and `every` 24 hours at midnight (UTC). It replaces a `since_last`.
    ///
    /// In whole milliseconds, as all durations here. [`start`](Self::start) errors with [`ErrorKind::InvalidRequest`] for what
    /// cannot be meant.
    pub fn every(mut self, window: Duration) -> Self {
        self.timing.pace = Some(Pace::Aligned(window));
        self
    }

    /// Windows begin so much later: `every` 24 hours with an offset of 2 begins at two in the morning (UTC), and `every` 7 days,
    /// which would begin on Thursdays, with an offset of 4 days on Mondays. Less than the window.
    pub fn offset(mut self, offset: Duration) -> Self {
        self.timing.offset = Some(offset);
        self
    }

    /// Runs when so much time has passed since the last run began: its window is from its start until then. It replaces an `every`.
    pub fn since_last(mut self, pause: Duration) -> Self {
        self.timing.pace = Some(Pace::SinceLast(pause));
        self
    }

    /// The least time from the start of one run to the start of the next, whatever came of it: none, unless you choose. At most
    /// the window.
    ///
    /// With [`every`](Self::every) it keeps a late run in one window and an early one in the next from following each other at
    /// once. With [`since_last`](Self::since_last) that time is what the window is, and this only spaces what
    /// [`retry_failed`](Self::retry_failed) retries.
    pub fn at_least(mut self, pause: Duration) -> Self {
        self.timing.at_least = pause;
        self
    }

    /// What becomes of windows that nobody ran: nothing, unless you choose.
    pub fn missed(mut self, missed: Missed) -> Self {
        self.timing.missed = missed;
        self
    }

    /// Whether a run that failed or crashed may be run again in its window: not, unless you choose. In the next window the job is
    /// run anyway.
    pub fn retry_failed(mut self, retry: bool) -> Self {
        self.timing.retry_failed = retry;
        self
    }

    /// How long the lease lives without renewal; see [`LockRequest::ttl`]. It says nothing about how long a run takes, only for how
    /// long nobody knows that it crashed.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// After this long a run is given up, and counts as crashed; see [`LockRequest::max_hold`].
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.terms.max_hold = Some(max_hold);
        self
    }

    /// What a double run costs. With [`Stakes::Correctness`] a backend whose tokens are not durable is refused.
    pub fn stakes(mut self, stakes: Stakes) -> Self {
        self.terms.stakes = stakes;
        self
    }

    /// What the holder calls itself, in the history too. 1 to 255 bytes.
    pub fn label(mut self, label: &str) -> Self {
        self.terms.label = Some(label.to_owned());
        self
    }

    /// Runs `body` if the job is due and nobody else runs it, for one window, and takes down how it ended.
    ///
    /// `Ok(OnceOutcome::Ran)` means that the body ran to its end and that the history says so. What it said in its error is in the
    /// history too, the first 128 bytes of it. With [`Missed::Run`] a window that was missed comes first, and the current one with
    /// the next call.
    ///
    /// The body is cancelled (its future is dropped) *before* the lease can be lost, as [`LockRequest::run`] does it, and this
    /// errors with [`ErrorKind::Lost`]. It errors with [`ErrorKind::Stale`] if the lease was lost all the same and somebody else
    /// took over before the end was taken down: what *they* wrote stands, and what the body did may have overlapped with it. On
    /// any other error after the body ran, how it ended could not be taken down within a TTL, and the run counts as crashed
    /// unless the history says otherwise. Before that it errors as [`start`](Self::start) does.
    ///
    /// # Cancel safety
    /// Dropping the future drops the body and releases the lock in the background. If the run was begun, it counts as crashed.
    pub async fn run<T, E: Display>(
        &self,
        body: impl AsyncFnOnce(&Run) -> Result<T, E>,
    ) -> Result<OnceOutcome<T, E>> {
        let run = match self.start().await? {
            OnceStart::Due(run) => run,
            OnceStart::Skipped(skipped) => return Ok(OnceOutcome::Skipped(skipped)),
        };
        let (window, missed) = (run.window, run.missed);
        let finished = run.guard.while_held(body(&run)).await;
        let result = match finished {
            Ok(result) => result,
            Err(lost) => {
                // It is lost already, or about to be, and that is what the error says.
                let _ = run.guard.release().await;
                return Err(lost);
            }
        };
        match &result {
            Ok(_) => run.succeed().await?,
            Err(failure) => run.fail(failure).await?,
        }
        Ok(OnceOutcome::Ran { window, missed, result })
    }

    /// Begins a run if the job is due and nobody else runs it, for whoever cannot have its work cancelled as [`run`](Self::run)
    /// does: the caller minds the [guard](Run::guard), and says how the run ended.
    ///
    /// Where nothing is due it takes two round trips (one where the backend has no clock) and no lock. Otherwise six until the
    /// run has begun (four), and two to end it, where a record is opened and written by one, as [`RecordHandle`] says.
    /// Where others decide at the same instant it waits for them, for at most two seconds, and looks at the record four times a
    /// second meanwhile.
    ///
    /// Errors about the request itself come before anything is sent: [`InvalidName`](ErrorKind::InvalidName),
    /// [`InvalidTtl`](ErrorKind::InvalidTtl), [`InvalidRequest`](ErrorKind::InvalidRequest),
    /// [`Unsupported`](ErrorKind::Unsupported). Errors with [`ErrorKind::Corrupt`] where the lock's record is no history. On an
    /// error with [unknown effect](ringfence_core::Effect::Unknown) the run may stand in the history, as crashed, although
    /// nothing was run.
    ///
    /// # Cancel safety
    /// Dropping the future releases the lock in the background. If the run was begun already, it counts as crashed.
    pub async fn start(&self) -> Result<OnceStart> {
        let plan = self.timing.check()?;
        let lock = self.lock_name()?;
        // Also what is wrong with a request that is not made, because nothing is due.
        self.request(&lock).checked(Patience::None)?;
        let record = self.record(lock.clone());
        for _ in 0..LOOKS {
            // What is found without the lock is old, and good enough: what is not due does not become due by others' runs.
            let ledger = Ledger::read(record.key(), record.read().await?)?;
            let running = ledger.unfinished();
            if running.is_none()
                && let Decision::NotBefore(next) = plan.decide(ledger.newest(), self.locks.hall.time().await?)
            {
                return Ok(OnceStart::not_due(&ledger, next));
            }
            // An unfinished run is one that runs, where somebody has the lock, or one that crashed.
            let wait = if running.is_some() { Duration::ZERO } else { LOOK_AGAIN };
            match self.request(&lock).wait(wait).acquire().await {
                Ok(guard) => return self.begin(guard, record, &plan).await,
                Err(error) if error.kind() == ErrorKind::WaitElapsed => {
                    if let Some(running) = running {
                        return Ok(OnceStart::busy(Some(running)));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(OnceStart::busy(None))
    }

    /// The runs of this job, the newest first: at most [`HISTORY_MAX`]. One round trip.
    ///
    /// Errors with [`ErrorKind::InvalidName`], and with [`ErrorKind::Corrupt`] where the lock's record is no history.
    pub async fn history(&self) -> Result<Vec<RunEntry>> {
        let record = self.record(self.lock_name()?);
        Ok(Ledger::read(record.key(), record.read().await?)?.runs)
    }

    /// The name of the job's lock. Errors with [`ErrorKind::InvalidName`].
    pub fn lock_name(&self) -> Result<LockName> {
        self.lock.clone()
    }

    /// Decides under the lock, and takes down what is begun.
    async fn begin(&self, guard: Guard, record: RecordHandle, plan: &Plan) -> Result<OnceStart> {
        guard.confirmed().await;
        let mut ledger = Ledger::read(record.key(), record.open(guard.token()).await?.record)?;
        // Who ran it last had this lock, and has it no more.
        let crashed = ledger.bury();
        let now = self.locks.hall.time().await?;
        match plan.decide(ledger.newest(), now) {
            Decision::NotBefore(next) => {
                if crashed {
                    write(&guard, &record, &ledger).await?;
                }
                let_go(guard).await;
                Ok(OnceStart::not_due(&ledger, next))
            }
            Decision::Due { window, missed } => {
                let holder = guard.hold().turn.lease.room.holder.as_ref().clone();
                ledger.begin(RunEntry::begun(window, guard.token(), now, holder));
                write(&guard, &record, &ledger).await?;
                let began = self.locks.hall.clock.now();
                Ok(OnceStart::Due(Run { guard, record, ledger, window, missed, began }))
            }
        }
    }

    fn request(&self, lock: &LockName) -> LockRequest {
        LockRequest::new(Arc::clone(&self.locks.hall), Ok(lock.clone()), self.terms.clone(), None)
    }

    fn record(&self, lock: LockName) -> RecordHandle {
        RecordHandle::new(Arc::clone(&self.locks.hall), RecordKey::of(lock))
    }
}

impl OnceStart {
    fn not_due(ledger: &Ledger, next: WallTime) -> Self {
        let last = ledger.newest().expect("a job without a last run is due").clone();
        Self::Skipped(Skipped::NotDue { last: Box::new(last), next })
    }

    fn busy(running: Option<&RunEntry>) -> Self {
        Self::Skipped(Skipped::Busy { running: running.cloned().map(Box::new) })
    }
}

/// A run that was begun: it stands in the history, and its lease is renewed.
///
/// # Drop
/// A run that is dropped before it said how it ended counts as crashed; its lock is released in the background.
#[derive(Debug)]
#[must_use = "a run that is dropped counts as crashed"]
pub struct Run {
    guard: Guard,
    record: RecordHandle,
    ledger: Ledger,
    window: Window,
    missed: bool,
    began: BootInstant,
}

impl Run {
    /// The window that it is for.
    pub fn window(&self) -> Window {
        self.window
    }

    /// Whether the window is over already, and this makes up for it. The current one is due when this has ended.
    pub fn missed(&self) -> bool {
        self.missed
    }

    /// The fencing token, for what the run works on to check.
    pub fn token(&self) -> FencingToken {
        self.guard.token()
    }

    /// Holding the job's lock: whether it can be proven, and when it is lost.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Takes down that the run did what it was for, and releases the lock. Two round trips; what does not arrive is written again
    /// for as long as the lease is held, and at most for its TTL.
    ///
    /// Errors with [`ErrorKind::Stale`] or [`ErrorKind::Lost`] if the lease was lost before, and as the backend does where it could
    /// not be reached all that time. Then the run counts as crashed, unless the history says otherwise. A failed release is
    /// logged and not returned: the window is done.
    ///
    /// # Cancel safety
    /// The end may have been taken down or not. The lock is released in the background.
    pub async fn succeed(self) -> Result<()> {
        self.end(None).await
    }

    /// Takes down that the run failed, and the first 128 bytes of why, as [`succeed`](Self::succeed) does the other.
    ///
    /// # Cancel safety
    /// As for [`succeed`](Self::succeed).
    pub async fn fail(self, why: impl Display) -> Result<()> {
        self.end(Some(&why.to_string())).await
    }

    async fn end(mut self, failure: Option<&str>) -> Result<()> {
        // By our own clock from its start on, so that nobody's clock is asked twice and none of them can be set in between.
        let took = self.guard.hold().turn.hall.clock.now().saturating_since(self.began);
        let started = self.ledger.newest().map_or(WallTime::from_millis(0), |run| run.started);
        self.ledger.end(started.saturating_add(took), failure);
        let written = write(&self.guard, &self.record, &self.ledger).await;
        written.map_err(|error| error.about("how the run ended could not be taken down"))?;
        let_go(self.guard).await;
        Ok(())
    }
}

/// Writes a job's history, again and again until it arrives, for as long as the lease is held and at most for its TTL. With one
/// token and one value it is one write, however often it arrives.
async fn write(guard: &Guard, record: &RecordHandle, ledger: &Ledger) -> Result<()> {
    let value = ledger.to_bytes();
    let clock = &guard.hold().turn.hall.clock;
    let until = clock.now().saturating_add(guard.ttl().as_duration());
    let mut backoff = Backoff::new(WRITE_PAUSE, WRITE_PAUSE_MOST);
    loop {
        match record.write(guard.token(), value.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) if error.retry() == Retry::Later && guard.is_held() && clock.now() < until => {
                tracing::debug!(name = %guard.name(), %error, "a history is written again");
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// Releases a lock under which everything is done that was to do.
async fn let_go(guard: Guard) {
    let name = guard.name().clone();
    if let Err(error) = guard.release().await {
        tracing::warn!(%name, %error, "the job is done, its lock was not released");
    }
}
