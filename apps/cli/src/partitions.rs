use std::ffi::OsString;
use std::future::ready;
use std::io;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;
use ringfence::patterns::{Membership, PARTITIONS_MAX, Partition, PartitionEvent, Partitions};
use ringfence::{ErrorKind, LockName, Retry, parse_duration};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cli::{Global, LeaseArgs, OnLost};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job::{ENDING, End, Orders, SIGNALS};
use crate::lock;
use crate::print::Messages;
use crate::signals::{Signals, Source};

/// Run a command for each partition of a work that is dealt to us
///
/// Takes part in a work in a fixed number of partitions, together with every other host that does the same, and runs the command once
/// for each partition that it owns, at most one at a time anywhere as far as the lease goes. The command finds RINGFENCE_PARTITION
/// (a number from 0), RINGFENCE_TOKEN, RINGFENCE_LOCK and RINGFENCE_URL in its environment; its standard input is empty.
///
/// When a partition is to be somebody else's, the command gets SIGTERM, and SIGKILL when nine tenths of the hand-over time are over;
/// then the next owner starts. If a lease is lost, or about to be, its command ends before the lease can lapse, as with `ringfence run`.
/// A command that ends by itself is started again a second later, under another token; one that cannot be run (126, 127) ends the
/// program. SIGTERM, SIGINT, SIGQUIT and SIGHUP end every command, hand everything over and exit with 0; SIGUSR1 and SIGUSR2 go to
/// every command; SIGTSTP is ignored.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence partitions [OPTIONS] --count <N> <NAME> [--] <COMMAND>...",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct PartitionsArgs {
    /// How many partitions there are; the same for everybody
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_MAX)),
        allow_negative_numbers = true
    )]
    count: u32,
    /// How long a command may take to end when its partition is to be somebody else's
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s", allow_hyphen_values = true)]
    handover: Duration,
    #[command(flatten)]
    lease: LeaseArgs,
    /// Which work, without a slash; its locks are partitions/NAME/0 and so on
    name: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How long we wait after the locks could not be used.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// How many signals a command's supervisor may be behind.
const SIGNALS_BEHIND: usize = 64;

/// Takes part until a signal comes.
pub(crate) async fn run(mut args: PartitionsArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(format!("partitions/{}", args.name))?;
    let signals = Signals::take(&SIGNALS)?;
    let command = std::mem::take(&mut args.command);
    let orders = Arc::new(Orders::take(command, OnLost::Term, global, &signals, None).await?);
    let mut partitions =
        orders.locks.partitions(&args.name, args.count).handover(args.handover).stakes(args.lease.stakes());
    if let Some(ttl) = args.lease.ttl {
        partitions = partitions.ttl(ttl.as_duration());
    }
    if let Some(label) = args.lease.label.as_deref().or(orders.label()) {
        partitions = partitions.label(label);
    }
    let mut crew = Crew {
        orders: Arc::clone(&orders),
        // What is not finished by then is taken: the command has to be gone before that.
        grace: args.handover.mul_f64(0.9),
        messages: global.messages(),
        signals,
        passed_on: broadcast::channel(SIGNALS_BEHIND).0,
        jobs: JoinSet::new(),
    };
    let outcome = crew.take_part(&partitions).await;
    lock::close(&orders.locks, &name, global.messages()).await;
    match outcome {
        // While nothing runs, between two memberships or before the first one, there is nothing to hand over.
        Err(Failure::Interrupted(_)) => Ok(exit_codes::OK),
        outcome => outcome,
    }
}

/// The commands that run, each for its partition.
struct Crew {
    orders: Arc<Orders>,
    grace: Duration,
    messages: Messages,
    signals: Signals,
    passed_on: broadcast::Sender<Signal>,
    jobs: JoinSet<Result<(), Failure>>,
}

impl Crew {
    /// Is a member until a signal comes or a command cannot be run, and one again after a membership that was lost.
    async fn take_part(&mut self, partitions: &Partitions) -> Result<u8, Failure> {
        let mut was_member = false;
        loop {
            let membership = match self.signals.unless_interrupted(partitions.join()).await {
                Ok(Ok(membership)) => membership,
                Ok(Err(error)) if was_member && error.retry() == Retry::Later => {
                    self.messages.note(&format!("no member at the moment: {error}"));
                    self.signals.unless_interrupted(sleep(TRY_AGAIN_AFTER)).await?;
                    continue;
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(failure) => return Err(failure),
            };
            was_member = true;
            if let ControlFlow::Break(outcome) = self.work(membership).await {
                return outcome;
            }
        }
    }

    /// Works on whatever is dealt to us, for as long as the membership lasts.
    async fn work(&mut self, mut membership: Membership) -> ControlFlow<Result<u8, Failure>> {
        let outcome = loop {
            tokio::select! {
                biased;
                signal = self.signals.next() => match signal {
                    Ok(signal) if ENDING.contains(&signal) => break Ok(exit_codes::OK),
                    Ok(signal) => self.pass_on(signal),
                    Err(error) => break Err(error.into()),
                },
                Some(ended) = self.jobs.join_next() => {
                    if let Err(failure) = ended.expect("no job panics, and none is aborted") {
                        break Err(failure);
                    }
                }
                event = membership.next() => match event {
                    Ok(Some(PartitionEvent::Assigned(partition))) => self.start(partition),
                    // Each job hears of it from its partition.
                    Ok(Some(_)) => {}
                    Err(error) if error.kind() == ErrorKind::Lost => {
                        self.messages.note(&format!("{error}: joining again"));
                        return match self.finish(ready(())).await {
                            Ok(((), false)) => ControlFlow::Continue(()),
                            Ok(((), true)) => ControlFlow::Break(Ok(exit_codes::OK)),
                            Err(error) => ControlFlow::Break(Err(error.into())),
                        };
                    }
                    Ok(None) => break Ok(exit_codes::OK),
                    Err(error) => break Err(error.into()),
                },
            }
        };
        let left = match self.finish(membership.leave()).await {
            Ok((left, _)) => left.map_err(Failure::from),
            Err(error) => Err(error.into()),
        };
        ControlFlow::Break(outcome.and_then(|code| left.map(|()| code)))
    }

    /// Waits for this and for the end of every command, which has its reasons by now. Says, too, whether a signal asked us to end.
    async fn finish<T>(&mut self, end: impl Future<Output = T>) -> io::Result<(T, bool)> {
        let mut end = pin!(end);
        let (mut ended, mut asked) = (None, false);
        loop {
            if self.jobs.is_empty()
                && let Some(ended) = ended
            {
                return Ok((ended, asked));
            }
            tokio::select! {
                biased;
                signal = self.signals.next() => {
                    let signal = signal?;
                    asked |= ENDING.contains(&signal);
                    self.pass_on(signal);
                }
                Some(_) = self.jobs.join_next() => {}
                result = &mut end, if ended.is_none() => ended = Some(result),
            }
        }
    }

    fn pass_on(&self, signal: Signal) {
        // Stopped one by one, the commands would not go on when we do.
        if signal != Signal::SIGTSTP {
            // Where no command runs there is nobody to tell.
            let _ = self.passed_on.send(signal);
        }
    }

    fn start(&mut self, partition: Partition) {
        let (orders, grace, messages) = (Arc::clone(&self.orders), self.grace, self.messages);
        let signals = self.passed_on.subscribe();
        self.jobs.spawn(async move { work_on(&orders, partition, signals, grace, messages).await });
    }
}

/// Runs the command for a partition, until it ends, has to, or cannot be run.
async fn work_on(
    orders: &Orders,
    partition: Partition,
    signals: broadcast::Receiver<Signal>,
    grace: Duration,
    messages: Messages,
) -> Result<(), Failure> {
    let number = partition.number();
    let job = orders.start(
        partition.guard(),
        Source::Shared(signals),
        &[("RINGFENCE_PARTITION", number.to_string())],
    )?;
    let revoked = async {
        partition.revoked().await;
        grace
    };
    match job.supervise(revoked).await? {
        End::ByItself(ended, _)
            if [exit_codes::CANNOT_RUN, exit_codes::NOT_FOUND].contains(&ended.code()) =>
        {
            Err(Failure::new(ended.code(), format!("the command of partition {number} cannot be run")))
        }
        End::ByItself(ended, _) => {
            messages.note(&format!("the command of partition {number} ended {ended}: it is started again"));
            Ok(())
        }
        End::Told | End::Lost(_) => Ok(()),
    }
}
