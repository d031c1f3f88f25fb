use std::ffi::OsString;
use std::future::pending;
use std::pin::pin;
use std::time::Duration;

use clap::Args;
use ringfence::patterns::{Election, Leader, Leadership};
use ringfence::{ErrorKind, FencingToken, LockName, Retry};
use serde::Serialize;
use tokio::time::sleep;

use crate::child::Ended;
use crate::cli::{DelayArgs, Global, LeaseArgs, OnLost};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job::{ENDING, End, Orders, SIGNALS};
use crate::lock;
use crate::lock_view::WhoView;
use crate::print;
use crate::signals::{Signals, Source};

/// Run a command while leading an election
///
/// Waits until this candidate leads, then runs the command as `ringfence run` does, with the term in RINGFENCE_TOKEN: it ends before
/// the term can. After a lost term this is a candidate again, and the command is started anew in the next term; it stays one while the
/// locks cannot be reached. When the command ends by itself, this resigns and ends with its exit code.
///
/// With --observe it runs nothing, and prints a line for each change of the leader: its term, what it proclaims and who it is, or
/// nobody. It looks once a second, and never prints a leader older than one it printed.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence elect [OPTIONS] <NAME> [--] <COMMAND>...\n       ringfence elect [OPTIONS] --observe <NAME>",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct ElectArgs {
    /// What the leader proclaims, such as its address [default: nothing]
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    value: String,
    /// After a lost term do not campaign again: exit with 123
    #[arg(long)]
    once: bool,
    /// Print who leads, and each change
    #[arg(long, conflicts_with_all = ["value", "once", "lock_delay", "ttl", "stakes", "label", "command"])]
    observe: bool,
    #[command(flatten)]
    delay: DelayArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    /// Which election; its lock is leader/NAME
    name: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required_unless_present = "observe", trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long a candidate waits after the locks could not be used.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Leads and runs the command, or prints who leads.
pub(crate) async fn run(mut args: ElectArgs, global: &Global) -> Result<u8, Failure> {
    if args.observe {
        return observe(&args.name, global).await;
    }
    let name = LockName::new(format!("leader/{}", args.name))?;
    let signals = Signals::take(&SIGNALS)?;
    let command = std::mem::take(&mut args.command);
    let orders = Orders::take(command, OnLost::Term, global, &signals, None).await?;
    let mut election =
        orders.locks.leader(&args.name).stakes(args.lease.stakes()).lock_delay(args.delay.lock_delay);
    if let Some(ttl) = args.lease.ttl {
        election = election.ttl(ttl.as_duration());
    }
    if let Some(label) = args.lease.label.as_deref().or(orders.label()) {
        election = election.label(label);
    }
    let outcome = campaign_and_lead(&orders, &election, &args, global, &signals).await;
    lock::close(&orders.locks, &name, global.messages()).await;
    orders.pass_on_interrupt(&outcome)?;
    Ok(outcome?.code())
}

/// Campaigns and leads until the command ends by itself, or somebody wants us to end.
async fn campaign_and_lead(
    orders: &Orders,
    election: &Election,
    args: &ElectArgs,
    global: &Global,
    signals: &Signals,
) -> Result<Ended, Failure> {
    loop {
        match signals.unless_interrupted(election.campaign(&args.value)).await? {
            Ok(leadership) => match lead(orders, leadership, args, global, signals).await? {
                End::ByItself(ended, _) => return Ok(ended),
                End::Lost(Some(signal)) => return Err(Failure::Interrupted(signal)),
                End::Told | End::Lost(None) if args.once => {
                    return Err(Failure::new(
                        exit_codes::LOST,
                        format!("{} was lost while the command ran", args.name),
                    ));
                }
                End::Told | End::Lost(None) => {}
            },
            Err(error) if error.retry() == Retry::Later && !args.once => {
                global.messages().note(&format!("no candidate at the moment: {error}"));
                signals.unless_interrupted(sleep(TRY_AGAIN_AFTER)).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs the command for a term.
async fn lead(
    orders: &Orders,
    leadership: Leadership,
    args: &ElectArgs,
    global: &Global,
    signals: &Signals,
) -> Result<End, Failure> {
    let end = match orders.start(leadership.guard(), Source::Queue(signals), &[]) {
        Ok(job) => job.supervise(pending()).await,
        Err(failure) => Err(failure),
    };
    if matches!(end, Ok(End::Told | End::Lost(_))) && !args.delay.lock_delay.is_zero() {
        // What the command has sent may still be on its way: the delay is for that.
        let _ = leadership.leave_to_lapse().await;
        return end;
    }
    let (name, remaining) = (leadership.guard().name().clone(), leadership.guard().remaining());
    match lock::while_it_lasts(&name, remaining, leadership.resign()).await {
        Ok(()) => end,
        Err(error) if error.kind() == ErrorKind::Lost => match end? {
            End::ByItself(..) => Err(error.into()),
            end => Ok(end),
        },
        Err(error) => {
            global.messages().note(&format!("{name} stays held until its TTL is over: {error}"));
            end
        }
    }
}

/// A line of `--observe --json`.
#[derive(Serialize)]
struct Report<'a> {
    leader: Option<LeaderView<'a>>,
}

#[derive(Serialize)]
struct LeaderView<'a> {
    term: FencingToken,
    value: &'a str,
    #[serde(flatten)]
    who: WhoView<'a>,
}

/// Prints who leads, and each change, until a signal comes.
async fn observe(name: &str, global: &Global) -> Result<u8, Failure> {
    let signals = Signals::take(&ENDING)?;
    let locks = signals.unless_interrupted(global.connect()).await??;
    let mut observation = locks.leader(name).observe();
    let mut unread = pin!(print::unread());
    loop {
        let seen = tokio::select! {
            biased;
            seen = signals.unless_interrupted(observation.next()) => seen?,
            () = &mut unread => return Err(Failure::OutputClosed),
        };
        match seen {
            Ok(leader) if global.json => print::json(&Report { leader: leader.as_ref().map(view) })?,
            Ok(Some(Leader { value, term, holder, .. })) => {
                print::line(&print::visible(&format!("{term}  {value}  {holder}")))?;
            }
            Ok(None) => print::line("nobody")?,
            Err(error) if error.retry() == Retry::Later => {
                global.messages().note(&format!("nobody knows who leads: {error}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn view(leader: &Leader) -> LeaderView<'_> {
    LeaderView { term: leader.term, value: &leader.value, who: (&leader.holder).into() }
}
