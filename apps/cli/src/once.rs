use std::ffi::OsString;
use std::future::pending;
use std::io::{self, IsTerminal};
use std::time::Duration;

use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use ringfence::patterns::{Missed, Once, OnceStart, Run, RunEntry, RunOutcome, Skipped};
use ringfence::{ErrorKind, FencingToken, LockName, Locks, parse_duration};
use serde::Serialize;

use crate::child::Ended;
use crate::cli::{Global, LeaseArgs, OnLost};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job::{End, Orders, SIGNALS};
use crate::lock;
use crate::lock_view::WhoView;
use crate::print;
use crate::signals::{Signals, Source};

/// Run a command once per window, whoever of many hosts calls for it
///
/// For cron on twenty hosts: the first one that calls in a window runs the command, the others exit with 0 and, unless at a terminal or
/// with --json, say nothing. Call it more often than there are windows, or well inside of each, because hosts differ about its edge.
///
/// The command finds RINGFENCE_WINDOW, the start of its window (UTC), beside what `ringfence run` gives it, and is ended as there before
/// its lease can lapse. What came of it stands in the record of the lock once/NAME. A run that fails, or whose host dies, is done for
/// its window unless there is --retry-failed.
///
/// A window is decided by the backend's clock, or by this machine's where the backend has none. None that is not later than the
/// recorded one ever runs.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence once [OPTIONS] <--every <WINDOW>|--since-last <PAUSE>> <NAME> [--] <COMMAND>...\n       \
                      ringfence once [OPTIONS] --history <NAME>",
    after_long_help = exit_codes::HELP
)]
#[group(id = "when", required = true, multiple = false, args = ["every", "since_last", "history"])]
pub(crate) struct OnceArgs {
    /// Once in each window of this length, from 1970 (UTC) on: 1h is each full hour, 1d midnight
    #[arg(long, value_name = "WINDOW", value_parser = parse_duration, allow_hyphen_values = true)]
    every: Option<Duration>,
    /// Windows begin so much later, as in --every 1d --offset 2h: at two in the morning (UTC)
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        allow_hyphen_values = true,
        conflicts_with_all = ["since_last", "history"]
    )]
    offset: Option<Duration>,
    /// Once this long after the last run began
    #[arg(long, value_name = "PAUSE", value_parser = parse_duration, allow_hyphen_values = true)]
    since_last: Option<Duration>,
    /// No sooner than this after the last run began, whatever the window and whatever came of it
    #[arg(
        long,
        value_name = "PAUSE",
        value_parser = parse_duration,
        allow_hyphen_values = true,
        conflicts_with = "history"
    )]
    at_least: Option<Duration>,
    /// What becomes of windows that nobody ran, because nobody called or the run before took too long
    #[arg(long, value_name = "WHAT", default_value = "skip", conflicts_with_all = ["since_last", "history"])]
    missed: MissedArg,
    /// Run it again in its window if it failed or its host died
    #[arg(long, conflicts_with = "history")]
    retry_failed: bool,
    /// Exit with this instead of 0 if nothing was run
    #[arg(short = 'E', long, value_name = "CODE", allow_negative_numbers = true, conflicts_with = "history")]
    skipped_exit_code: Option<u8>,
    /// Print the last runs, the newest first, and run nothing
    #[arg(long, conflicts_with_all = ["ttl", "stakes", "label", "command"])]
    history: bool,
    #[command(flatten)]
    lease: LeaseArgs,
    /// Which job; its lock is once/NAME
    name: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required_unless_present = "history", trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What becomes of a window that nobody ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MissedArg {
    /// Nothing
    Skip,
    /// The latest one is run, and then the current one
    Run,
}

/// Runs the command if its window is due, or prints what became of the last runs.
pub(crate) async fn run(mut args: OnceArgs, global: &Global) -> Result<u8, Failure> {
    if args.history {
        return history(&args.name, global).await;
    }
    let lock = LockName::new(format!("once/{}", args.name))?;
    let signals = Signals::take(&SIGNALS)?;
    let command = std::mem::take(&mut args.command);
    let orders = Orders::take(command, OnLost::Term, global, &signals, None).await?;
    let outcome = run_what_is_due(&orders, &job(&orders, &args), &args, global, &signals).await;
    lock::close(&orders.locks, &lock, global.messages()).await;
    orders.pass_on_interrupt(&outcome)?;
    Ok(outcome?.code())
}

/// The job, as the flags say.
fn job(orders: &Orders, args: &OnceArgs) -> Once {
    let mut job =
        orders.locks.once(&args.name).stakes(args.lease.stakes()).retry_failed(args.retry_failed).missed(
            match args.missed {
                MissedArg::Skip => Missed::Skip,
                MissedArg::Run => Missed::Run,
            },
        );
    if let Some(every) = args.every {
        job = job.every(every);
    }
    if let Some(pause) = args.since_last {
        job = job.since_last(pause);
    }
    if let Some(offset) = args.offset {
        job = job.offset(offset);
    }
    if let Some(pause) = args.at_least {
        job = job.at_least(pause);
    }
    if let Some(ttl) = args.lease.ttl {
        job = job.ttl(ttl.as_duration());
    }
    if let Some(label) = args.lease.label.as_deref().or(orders.label()) {
        job = job.label(label);
    }
    job
}

/// Runs the window that is due, and the current one behind it where that one was missed and went well.
async fn run_what_is_due(
    orders: &Orders,
    job: &Once,
    args: &OnceArgs,
    global: &Global,
    signals: &Signals,
) -> Result<Ended, Failure> {
    let mut made_up = None;
    loop {
        let run = match signals.unless_interrupted(job.start()).await?? {
            OnceStart::Due(run) => run,
            OnceStart::Skipped(skipped) => {
                if let Some(ended) = made_up {
                    return Ok(ended);
                }
                say(&args.name, &skipped, global)?;
                return Ok(Ended::Exited(args.skipped_exit_code.unwrap_or(exit_codes::OK).into()));
            }
        };
        let missed = run.missed();
        let (ended, asked) = run_window(orders, run, signals).await?;
        // Who was asked to end begins nothing more.
        if !missed || ended.code() != exit_codes::OK || asked.is_some() {
            return Ok(ended);
        }
        made_up = Some(ended);
    }
}

/// Runs the command for one window, and takes down how it ended. With the signal that asked it to, if one did.
async fn run_window(
    orders: &Orders,
    run: Run,
    signals: &Signals,
) -> Result<(Ended, Option<Signal>), Failure> {
    let window = [("RINGFENCE_WINDOW", print::time(run.window().start))];
    let end = match orders.start(run.guard(), Source::Queue(signals), &window) {
        Ok(job) => job.supervise(pending()).await,
        Err(failure) => Err(failure),
    };
    let (name, remaining) = (run.guard().name().clone(), run.guard().remaining());
    let lost =
        || Failure::new(exit_codes::LOST, format!("the lease on {name} was lost while the command ran"));
    let failure = match &end {
        Ok(End::ByItself(Ended::Exited(0), _)) => None,
        Ok(End::ByItself(Ended::Exited(code), _)) => Some(format!("exit code {code}")),
        Ok(End::ByItself(Ended::Signalled(signal), _)) => Some(format!("ended by signal {signal}")),
        Ok(End::Told | End::Lost(_)) => return Err(lost()),
        Err(failure) => Some(failure.message().unwrap_or_default()),
    };
    let taken_down = async {
        match failure {
            None => run.succeed().await,
            Some(why) => run.fail(why).await,
        }
    };
    match lock::while_it_lasts(&name, remaining, taken_down).await {
        Ok(()) => {}
        Err(error) if [ErrorKind::Lost, ErrorKind::Stale].contains(&error.kind()) => return Err(lost()),
        Err(error) => return Err(error.into()),
    }
    match end? {
        End::ByItself(ended, asked) => Ok((ended, asked)),
        End::Told | End::Lost(_) => Err(lost()),
    }
}

/// What `--json` prints where nothing was run.
#[derive(Serialize)]
struct SkippedView<'a> {
    name: &'a str,
    skipped: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    run: Option<RunView<'a>>,
}

#[derive(Serialize)]
struct RunView<'a> {
    window: String,
    window_end: String,
    started: String,
    took_ms: Option<u64>,
    outcome: &'static str,
    why: Option<&'a str>,
    token: FencingToken,
    #[serde(flatten)]
    by: WhoView<'a>,
}

impl<'a> RunView<'a> {
    fn new(run: &'a RunEntry, outcome: &'static str) -> Self {
        Self {
            window: print::time(run.window.start),
            window_end: print::time(run.window.end),
            started: print::time(run.started),
            took_ms: run.ended.map(|ended| print::millis(ended.saturating_since(run.started))),
            outcome,
            why: run.why.as_deref(),
            token: run.token,
            by: (&run.by).into(),
        }
    }
}

/// Says why nothing was run: to a person or a program. On most of many hosts that is how it should be, and nothing to send a mail
/// about.
fn say(name: &str, skipped: &Skipped, global: &Global) -> io::Result<()> {
    let (reason, next, run) = match skipped {
        Skipped::NotDue { last, next, .. } => ("not_due", Some(print::time(*next)), Some(&**last)),
        Skipped::Busy { running, .. } => ("busy", None, running.as_deref()),
        // Whatever else a later version of the library has to say.
        _ => ("other", None, None),
    };
    if global.json {
        let run = run.map(|run| RunView::new(run, word(run.outcome, "running")));
        return print::json(&SkippedView { name, skipped: reason, next, run });
    }
    if io::stderr().is_terminal() {
        let who = run.map(|run| (print::time(run.window.start), &run.by, word(run.outcome, "runs")));
        let text = match (next, who) {
            (Some(next), Some((window, by, outcome))) => {
                format!("{name} is not due before {next}: the run for {window} {outcome}, by {by}")
            }
            (_, Some((window, by, _))) => format!("{name} runs, for {window}, by {by}"),
            (_, None) => format!("somebody has the lock of {name}, once/{name}, and runs nothing"),
        };
        global.messages().note(&text);
    }
    Ok(())
}

/// How a run ended, in a word.
fn word(outcome: Option<RunOutcome>, unknown: &'static str) -> &'static str {
    match outcome {
        Some(RunOutcome::Succeeded) => "succeeded",
        Some(RunOutcome::Failed) => "failed",
        Some(RunOutcome::Crashed) => "crashed",
        None => unknown,
    }
}

/// Prints the last runs, the newest first.
async fn history(name: &str, global: &Global) -> Result<u8, Failure> {
    let locks = global.connect().await?;
    let job = locks.once(name);
    let runs = job.history().await?;
    if runs.is_empty() {
        return Err(Failure::new(exit_codes::NOTHING_THERE, format!("{name} has never run")));
    }
    let unfinished = if runs[0].outcome.is_none() && is_running(&locks, &job, &runs[0]).await? {
        "running"
    } else {
        "crashed"
    };
    if global.json {
        let runs: Vec<_> = runs.iter().map(|run| RunView::new(run, word(run.outcome, unfinished))).collect();
        print::json(&runs)?;
        return Ok(exit_codes::OK);
    }
    let heading = ["WINDOW", "STARTED", "TOOK", "TOKEN", "BY", "OUTCOME"].map(str::to_owned);
    let rows = runs.iter().map(|run| {
        let took = run.ended.map(|ended| print::duration(ended.saturating_since(run.started)));
        let outcome = word(run.outcome, unfinished);
        [
            print::time(run.window.start),
            print::time(run.started),
            took.unwrap_or_else(|| "-".to_owned()),
            run.token.to_string(),
            run.by.to_string(),
            run.why.as_ref().map_or_else(|| outcome.to_owned(), |why| format!("{outcome}: {why}")),
        ]
    });
    let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
    print::line(&print::table(&rows))?;
    Ok(exit_codes::OK)
}

/// Whether a run that has not ended still has its lock.
async fn is_running(locks: &Locks, job: &Once, run: &RunEntry) -> Result<bool, Failure> {
    let holders = locks.inspect(&job.lock_name()?).await?.holders;
    Ok(holders.iter().any(|holder| holder.token.nonce() == run.token.nonce() && !holder.has_lapsed()))
}
