//! Signals as a queue that a task reads, instead of handlers that interrupt it.
//!
//! They are blocked and read from a descriptor, so their dispositions stay what they were: a signal that our caller
//! ignores (`nohup`, a background job of a script) stays ignored here and in the command, and one that we let through
//! at the end does what it does to every program.

use std::convert::Infallible;
use std::fs;
use std::io;

use nix::sys::signal::{SigSet, Signal, killpg, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::getpgrp;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::SignalKind;
use tokio::sync::broadcast::{self, error::RecvError};

use crate::failure::Failure;
use crate::job::ENDING;

/// The signals of this process, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Signals {
    queue: AsyncFd<SignalFd>,
}

impl Signals {
    /// Takes these signals from now on, unless our caller ignores them. Call it before the first other thread starts:
    /// threads inherit what is blocked.
    pub(crate) fn take(wanted: &[Signal]) -> io::Result<Self> {
        if wanted.contains(&Signal::SIGCHLD) {
            // Where our caller ignores this one, the kernel throws away how a command ended. Any handler stops that,
            // also one that never runs because the signal is blocked.
            drop(tokio::signal::unix::signal(SignalKind::child())?);
        }
        let ignored = ignored()?;
        let mask: SigSet =
            wanted.iter().filter(|&&signal| ignored & (1 << (signal as u32 - 1)) == 0).copied().collect();
        mask.thread_block()?;
        // We move the terminal to and fro, and write messages, while we are not in its foreground.
        SigSet::from(Signal::SIGTTOU).thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        #[expect(deprecated, reason = "its successor is unsafe; a SignalFd owns its descriptor and keeps it")]
        Ok(Self { queue: AsyncFd::new(SignalFd::with_flags(&mask, flags)?)? })
    }

    /// The next signal.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a signal is taken from the queue by the very poll that returns it.
    pub(crate) async fn next(&self) -> io::Result<Signal> {
        loop {
            let mut ready = self.queue.readable().await?;
            match self.queue.get_ref().read_signal()? {
                Some(info) => return Ok(Signal::try_from(info.ssi_signo.cast_signed())?),
                None => ready.clear_ready(),
            }
        }
    }

    /// Does something that takes its time, until a signal asks us to end. Ctrl-Z stops us meanwhile, as any program. What is for a
    /// command has nobody to go to.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`, which is dropped when a signal comes.
    pub(crate) async fn unless_interrupted<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let interrupted = async {
            loop {
                match self.next().await? {
                    Signal::SIGTSTP => stop(Whom::Us)?,
                    signal if ENDING.contains(&signal) => {
                        return Err::<Infallible, _>(Failure::Interrupted(signal));
                    }
                    _ => {}
                }
            }
        };
        tokio::select! {
            biased;
            done = work => Ok(done),
            signal = interrupted => signal.map(|never| match never {}),
        }
    }
}

/// Where a command's supervisor learns of signals.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// From the queue itself.
    Queue(&'a Signals),
    /// From whoever reads the queue, and passes it on to several of us.
    Shared(broadcast::Receiver<Signal>),
}

impl Source<'_> {
    /// Whether there are others beside us who learn of them.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }

    /// The next signal.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, as [`Signals::next`].
    pub(crate) async fn next(&mut self) -> io::Result<Signal> {
        match self {
            Self::Queue(signals) => signals.next().await,
            Self::Shared(signals) => match signals.recv().await {
                Ok(signal) => Ok(signal),
                // What was missed is news of a command more likely than not, and to look for that once more is harmless.
                Err(RecvError::Lagged(_)) => Ok(Signal::SIGCHLD),
                Err(RecvError::Closed) => Err(io::Error::other("nobody reads the signals any more")),
            },
        }
    }
}

/// Who stops.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whom {
    /// This process.
    Us,
    /// Everybody in our process group: the other parts of a pipeline, the script that called us.
    OurGroup,
}

/// Stops as Ctrl-Z does, and returns when we are continued.
///
/// It returns at once where nobody could continue us: there the kernel ignores the signal, as it does for every
/// program.
pub(crate) fn stop(whom: Whom) -> io::Result<()> {
    let stop = SigSet::from(Signal::SIGTSTP);
    match whom {
        Whom::Us => raise(Signal::SIGTSTP)?,
        Whom::OurGroup => killpg(getpgrp(), Signal::SIGTSTP)?,
    }
    stop.thread_unblock()?;
    stop.thread_block()?;
    Ok(())
}

/// Interrupts our whole process group, as Ctrl-C does when nobody moves the terminal: a script or a loop that called
/// us ends too. Returns only where our caller ignores the signal.
pub(crate) fn interrupt_our_group() -> io::Result<()> {
    killpg(getpgrp(), Signal::SIGINT)?;
    SigSet::from(Signal::SIGINT).thread_unblock()?;
    Ok(())
}

/// Lets every signal through, for a program that takes our place.
pub(crate) fn let_through() -> io::Result<()> {
    Ok(SigSet::all().thread_unblock()?)
}

/// The signals that our caller ignores, as a bit set.
fn ignored() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok())
        .ok_or_else(|| io::Error::other("/proc/self/status does not say which signals are ignored"))
}
