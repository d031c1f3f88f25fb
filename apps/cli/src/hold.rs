use std::io;
use std::mem;
use std::thread;

use clap::Args;
use nix::sys::signal::{SigSet, Signal};
use ringfence::{ErrorKind, LockName, Locks};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::cli::{Global, LockArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::lock;
use crate::print;
use crate::signals::Signals;

/// Hold a lock until standard input closes, for scripts and other languages
///
/// Prints one JSON line when it has the lease, {"event":"held","name":…,"token":…,"ttl_ms":…,"remaining_ms":…}, and
/// keeps it until standard input closes or SIGTERM, SIGINT, SIGQUIT or SIGHUP comes; then it releases, prints
/// {"event":"released",…} and exits with 0. If the lease is lost it prints {"event":"lost",…} and exits with 123.
/// Standard input is looked at once the lease is held: give it a pipe, because /dev/null is closed at once.
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    lock: LockArgs,
}

/// What ends `hold`. Ctrl-Z stops it as any program: its lease then lapses.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// A line of output.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event<'a> {
    Held { name: &'a LockName, token: &'a str, ttl_ms: u64, remaining_ms: u64 },
    Lost { name: &'a LockName, token: &'a str },
    Released { name: &'a LockName, token: &'a str },
}

/// Gets the lock and keeps it until standard input closes or a signal comes.
pub(crate) async fn run(args: HoldArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.lock.name)?;
    let signals = Signals::take(&SIGNALS)?;
    let connecting = lock::connect(global.url()?, args.lock.patience.to_connect());
    let locks = signals.unless_interrupted(connecting).await??;
    let outcome = hold(&locks, &name, &args, global, &signals).await;
    lock::close(&locks, &name, global.messages()).await;
    outcome
}

async fn hold(
    locks: &Locks,
    name: &LockName,
    args: &HoldArgs,
    global: &Global,
    signals: &Signals,
) -> Result<u8, Failure> {
    let guard = lock::acquire(locks, name, &args.lock, None, signals, global.messages()).await?;
    let token = &guard.presented_token().reveal();
    let (ttl_ms, remaining_ms) = (guard.ttl().as_millis(), print::millis(guard.remaining()));
    print::json(&Event::Held { name, token, ttl_ms, remaining_ms })?;
    tokio::select! {
        biased;
        () = guard.lost() => {}
        () = input_closed()? => {}
        signal = signals.next() => { signal?; }
    }
    // One that is lost stays so, whatever comes of giving it back: the server may be away.
    let lost = guard.ensure_held();
    match lost.and(lock::release(guard).await) {
        Ok(()) => {
            print::json(&Event::Released { name, token })?;
            Ok(exit_codes::OK)
        }
        Err(error) if error.kind() == ErrorKind::Lost => {
            print::json(&Event::Lost { name, token })?;
            Err(error.into())
        }
        Err(error) => {
            global.messages().note(&format!("{name} stays held until its TTL is over"));
            Err(error.into())
        }
    }
}

/// Resolves when nothing more can come from standard input. What comes is thrown away.
fn input_closed() -> io::Result<impl Future<Output = ()>> {
    let (closed, wait) = oneshot::channel::<()>();
    // In the background of a terminal reading would stop us; blocked, this makes the read fail instead.
    SigSet::from(Signal::SIGTTIN).thread_block()?;
    // A thread of its own, because neither a terminal nor a file can be waited for in every case; it ends with us.
    thread::spawn(move || {
        if io::copy(&mut io::stdin().lock(), &mut io::sink()).is_ok() {
            drop(closed);
        } else {
            // It is not closed, only not ours to read: a signal will end us.
            mem::forget(closed);
        }
    });
    Ok(async { drop(wait.await) })
}
