//! Getting a lock for a while and giving it back: what the verbs have in common that hold one.

use std::convert::Infallible;
use std::future::pending;
use std::io::{self, IsTerminal};
use std::panic;
use std::time::Duration;

use ringfence::{BackendUrl, Error, ErrorKind, Guard, LockName, Locks, Result};
use tokio::runtime;
use tokio::time::{sleep, timeout};

use crate::cli::LockArgs;
use crate::failure::Failure;
use crate::print::{self, Messages};
use crate::signals::Signals;

/// After how long a wait is announced to a person at a terminal.
const ANNOUNCE_AFTER: Duration = Duration::from_secs(1);

/// How long we wait for a backend that does not answer while we withdraw from it: then the TTL has to do.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// Connects, and renews leases from then on, on a thread of its own; for no longer than this, where that is said.
///
/// A disk or a server that hangs then hangs only the renewals, and not the one who has to notice it in time. Take the
/// signals before this.
pub(crate) async fn connect(url: String, patience: Option<Duration>) -> Result<Locks, Failure> {
    let keeper =
        runtime::Builder::new_multi_thread().worker_threads(1).thread_name("keeper").enable_all().build()?;
    // It is needed for as long as the process lives.
    let keeper = Box::leak(Box::new(keeper));
    let shown = BackendUrl::parse(&url)?;
    let connecting = keeper.spawn(async move { Locks::connect(&url).await });
    let patience = patience.unwrap_or(Duration::MAX);
    match timeout(patience, connecting).await {
        Ok(Ok(locks)) => Ok(locks?),
        Ok(Err(panicked)) => panic::resume_unwind(panicked.into_panic()),
        Err(_) => Err(Error::new(
            ErrorKind::Unavailable,
            format!("no connection within {patience:?}: see whether its servers run and serve, or wait longer (-w)"),
        )
        .about(shown)
        .into()),
    }
}

/// Gets the lock as the flags say. If a signal comes first, nothing is left behind once `locks` is closed.
pub(crate) async fn acquire(
    locks: &Locks,
    name: &LockName,
    args: &LockArgs,
    default_label: Option<&str>,
    signals: &Signals,
    messages: Messages,
) -> Result<Guard, Failure> {
    let mut request = locks.lock(name).stakes(args.stakes()).lock_delay(args.delay.lock_delay);
    request = match (args.permits, args.shared) {
        (Some(limit), _) => request.permits(limit),
        (None, true) => request.shared(),
        (None, false) => request,
    };
    if let Some(ttl) = args.ttl {
        request = request.ttl(ttl.as_duration());
    }
    if let Some(wait) = args.patience.wait {
        request = request.wait(wait);
    }
    if let Some(label) = args.label.as_deref().or(default_label) {
        request = request.label(label);
    }
    if let Some(metadata) = &args.metadata {
        request = request.metadata(metadata);
    }
    let grant = async {
        let guard = if args.patience.nonblock {
            request.try_acquire().await?
        } else {
            let granted = request.acquire().await.map_err(|error| match error.kind() {
                ErrorKind::WaitElapsed => args.patience.in_vain(error.to_string()),
                _ => error.into(),
            });
            Some(granted?)
        };
        match guard {
            Some(guard) => {
                // What is left of the lease decides from now on when a command has to end.
                guard.confirmed().await;
                Ok(guard)
            }
            None => Err(args.patience.in_vain(format!("{name} is {}", whereabouts(locks, name).await))),
        }
    };
    signals.unless_interrupted(announced(locks, name, messages, grant)).await?
}

/// Does something that may have to wait for a lock, and says so.
pub(crate) async fn announced<T>(
    locks: &Locks,
    name: &LockName,
    messages: Messages,
    work: impl Future<Output = T>,
) -> T {
    tokio::select! {
        biased;
        done = work => done,
        never = announce(locks, name, messages) => match never {},
    }
}

/// Gives the lock back, or finds that it was lost. Waits no longer than there is something to give back.
pub(crate) async fn release(guard: Guard) -> Result<()> {
    let (name, remaining) = (guard.name().clone(), guard.remaining());
    while_it_lasts(&name, remaining, guard.release()).await
}

/// Waits for a release, but for no longer than the lease lasts.
pub(crate) async fn while_it_lasts(
    name: &LockName,
    remaining: Duration,
    release: impl Future<Output = Result<()>>,
) -> Result<()> {
    timeout(remaining, release).await.unwrap_or_else(|_| {
        Err(if remaining.is_zero() {
            Error::new(ErrorKind::Lost, format!("the lease on {name} is over"))
        } else {
            Error::new(ErrorKind::Unavailable, "the backend did not answer").with_unknown_effect()
        })
    })
}

/// Withdraws whatever was asked for and not given back.
pub(crate) async fn close(locks: &Locks, name: &LockName, messages: Messages) {
    let why = match timeout(CLOSE_WITHIN, locks.close()).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the backend did not answer".to_owned(),
    };
    messages.note(&format!("{name} may stay held until its TTL is over: {why}"));
}

/// Says once what a long wait waits for, if there is a person to say it to.
async fn announce(locks: &Locks, name: &LockName, messages: Messages) -> Infallible {
    if io::stderr().is_terminal() {
        sleep(ANNOUNCE_AFTER).await;
        messages.note(&format!("waiting for {name}: {}", whereabouts(locks, name).await));
    }
    pending().await
}

/// Who has a lock, in words: as far as the backend can tell.
async fn whereabouts(locks: &Locks, name: &LockName) -> String {
    let holders = locks.inspect(name).await.map(|state| state.holders).unwrap_or_default();
    match holders.as_slice() {
        [] => "busy".to_owned(),
        [first, others @ ..] => {
            let and_others = match others.len() {
                0 => String::new(),
                1 => " and one other".to_owned(),
                more => format!(" and {more} others"),
            };
            let held_for = first.age.map_or_else(String::new, |age| format!(" for {}", print::duration(age)));
            format!("held{held_for} by {}{and_others}", first.holder)
        }
    }
}
