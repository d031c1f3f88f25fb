use std::ffi::OsString;
use std::future::pending;

use clap::Args;
use ringfence::{ErrorKind, LockName};

use crate::child::Ended;
use crate::cli::{Global, LockArgs, OnLost};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job::{End, Orders, SIGNALS};
use crate::lock;
use crate::signals::{Signals, Source};

/// Run a command while holding a lock
///
/// Waits for the lock, runs the command in a process group of its own, and releases when the command ends. The
/// command finds RINGFENCE_LOCK, RINGFENCE_TOKEN and RINGFENCE_URL in its environment; it has our standard input and
/// the terminal. SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGWINCH and job control reach its process group, SIGUSR1 and
/// SIGUSR2 the command alone.
///
/// If the lease is lost, or about to be because it cannot be renewed, the command's process group is ended before
/// the lease can lapse: SIGTERM when a quarter of the TTL is left, SIGKILL when a twentieth is. After an eviction
/// SIGTERM comes at once, and SIGKILL after a quarter of the TTL, at most 5 seconds.
///
/// If this program itself is killed, the command is killed with it (a set-user-ID command is not: the kernel does not
/// allow it). What survives of its processes keeps the lease until its TTL.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence run [OPTIONS] <NAME> [--] <COMMAND>...",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) lock: LockArgs,
    /// What to do with the command when the lease is lost
    #[arg(long, value_name = "WHAT", default_value = "term")]
    on_lost: OnLost,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Gets the lock, runs the command, releases, and returns the command's exit code.
pub(crate) async fn run(mut args: RunArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.lock.name)?;
    let signals = Signals::take(&SIGNALS)?;
    let command = std::mem::take(&mut args.command);
    let orders =
        Orders::take(command, args.on_lost, global, &signals, args.lock.patience.to_connect()).await?;
    let outcome = run_locked(&orders, &name, &args, global, &signals).await;
    lock::close(&orders.locks, &name, global.messages()).await;
    orders.pass_on_interrupt(&outcome)?;
    Ok(outcome?.code())
}

async fn run_locked(
    orders: &Orders,
    name: &LockName,
    args: &RunArgs,
    global: &Global,
    signals: &Signals,
) -> Result<Ended, Failure> {
    let guard =
        lock::acquire(&orders.locks, name, &args.lock, orders.label(), signals, global.messages()).await?;
    let ended = match orders.start(&guard, Source::Queue(signals), &[]) {
        Ok(job) => match job.supervise(pending()).await {
            Ok(End::ByItself(ended, _)) => Ok(ended),
            Ok(End::Told | End::Lost(_)) => {
                if !args.lock.delay.lock_delay.is_zero() {
                    // What the command has sent may still be on its way: the delay is for that.
                    let _ = guard.leave_to_lapse().await;
                    return Err(lost(name));
                }
                Err(lost(name))
            }
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    match lock::release(guard).await {
        Err(error) if error.kind() == ErrorKind::Lost => ended.and(Err(error.into())),
        Err(error) => {
            global.messages().note(&format!("{name} stays held until its TTL is over: {error}"));
            ended
        }
        Ok(()) => ended,
    }
}

fn lost(name: &LockName) -> Failure {
    Failure::new(exit_codes::LOST, format!("the lease on {name} was lost while the command ran"))
}
