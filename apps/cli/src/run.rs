use std::future::pending;

use ringfence::{ErrorKind, LockName};

use crate::child::Ended;
use crate::cli::{Global, RunArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job::{End, Orders, SIGNALS};
use crate::lock;
use crate::signals::{Signals, Source};

/// Gets the lock, runs the command, releases, and returns the command's exit code.
pub(crate) async fn run(mut args: RunArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.lock.name)?;
    let signals = Signals::take(&SIGNALS)?;
    let command = std::mem::take(&mut args.command);
    let orders = Orders::take(command, args.on_lost, global, &signals).await?;
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
            Ok(End::ByItself(ended)) => Ok(ended),
            Ok(End::Told | End::Lost(_)) => {
                if !args.lock.lock_delay.is_zero() {
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
