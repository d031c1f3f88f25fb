//! A process's presence in the store: one named pipe, which is its inbox and the proof that it lives.
//!
//! The session has the pipe open for reading. Others write a byte into it to say "look at the log". When the last
//! descriptor of the reading side is closed, by an exit, by SIGKILL or by a crash, the kernel tells everybody who has it
//! open for writing. A child that inherited the descriptor keeps it open: see [`Session::lifeline`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ringfence_core::{Nonce, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::unix::pipe;

use crate::directory::Directory;

/// The names of sessions' pipes: this, and the session's nonce.
const PREFIX: &str = "session-";

/// The names of pipes that nobody reads from yet.
const UNFINISHED: &str = "opening-";

/// How many wake-ups are read at once; what they say is only that there is something to look at.
const DRAIN_BUFFER: usize = 4096;

/// This process's session.
#[derive(Debug)]
pub(crate) struct Session {
    id: Nonce,
    directory: Arc<Directory>,
    inbox: pipe::Receiver,
}

impl Session {
    /// Opens a session of a new name. Must be called in a runtime.
    pub(crate) fn open(directory: Arc<Directory>) -> Result<Self> {
        let failed = |errno| directory.error(errno, "cannot open a session");
        loop {
            let id = Nonce::random();
            let unfinished = format!("{UNFINISHED}{id}");
            rustix::fs::mknodat(directory.fd(), &unfinished, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
                .map_err(failed)?;
            // Opened for writing as well, it never reads as ended, and it can be opened without a partner.
            let flags =
                OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let opened = rustix::fs::openat(directory.fd(), &unfinished, flags, Mode::empty());
            // Only a pipe with a reader gets its name: whoever sees one without knows that its process is dead.
            let named = opened.and_then(|pipe| {
                rustix::fs::renameat(directory.fd(), &unfinished, directory.fd(), name(id)).map(|()| pipe)
            });
            let fifo = match named {
                // A sweep took it for litter in the moment before we opened it.
                Err(Errno::NOENT) => continue,
                other => other.map_err(failed)?,
            };
            let inbox = pipe::Receiver::from_owned_fd(fifo)
                .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
            return Ok(Self { id, directory, inbox });
        }
    }

    pub(crate) fn id(&self) -> Nonce {
        self.id
    }

    /// Returns when others have said that there is something to look at.
    pub(crate) async fn called(&self) -> std::io::Result<()> {
        let mut drain = [0; DRAIN_BUFFER];
        loop {
            self.inbox.readable().await?;
            match self.inbox.try_read(&mut drain) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                read => return read.map(|_| ()),
            }
        }
    }

    /// A second descriptor of the pipe, for a child to inherit: while the child has it, this session counts as alive.
    pub(crate) fn lifeline(&self) -> Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(&self.inbox, 0)
            .map_err(|errno| self.directory.error(errno, "cannot duplicate the session"))
    }
}

/// Somebody else's session.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// `None`: it was dead when we looked, and the dead do not come back.
    pipe: Option<Arc<pipe::Sender>>,
}

impl Peer {
    /// Opens the way to a session, or finds that nobody is there any more.
    pub(crate) fn open(directory: &Directory, session: Nonce) -> Result<Self> {
        let failed = |errno| directory.error(errno, "cannot reach another session");
        let Some(pipe) = open_alive(directory, &name(session)).map_err(failed)? else {
            return Ok(Self { pipe: None });
        };
        let pipe = pipe::Sender::from_owned_fd(pipe)
            .map_err(|error| failed(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        Ok(Self { pipe: Some(Arc::new(pipe)) })
    }

    /// Tells it that there is something to look at. `false`: nobody is there any more.
    pub(crate) fn call(&self) -> bool {
        // A full pipe is one that its reader has yet to look at.
        self.pipe
            .as_ref()
            .is_some_and(|pipe| !matches!(rustix::io::write(pipe.as_fd(), &[1]), Err(Errno::PIPE)))
    }

    /// Returns when nobody is there any more.
    pub(crate) async fn gone(&self) {
        if let Some(pipe) = &self.pipe {
            // The runtime stopping ends the wait as well, and then nobody is left to care.
            let _ = pipe.ready(Interest::ERROR).await;
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        let mut polled = [PollFd::new(&**pipe, PollFlags::OUT)];
        let outcome = rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        outcome.is_err() || !polled[0].revents().contains(PollFlags::ERR)
    }
}

/// Whether any session but this one is alive.
pub(crate) fn others_alive(directory: &Directory, own: Nonce) -> Result<bool> {
    for session in named(directory, PREFIX)? {
        if session != own && is_alive(directory, session)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a session is alive.
pub(crate) fn is_alive(directory: &Directory, session: Nonce) -> Result<bool> {
    Ok(open_alive(directory, &name(session))
        .map_err(|errno| directory.error(errno, "cannot look for another session"))?
        .is_some())
}

/// Tells a session that there is something to look at, without a runtime.
pub(crate) fn call(directory: &Directory, session: Nonce) {
    if let Ok(Some(pipe)) = open_alive(directory, &name(session)) {
        // Whoever is gone by now needs no call.
        let _ = rustix::io::write(&pipe, &[1]);
    }
}

/// The dead sessions that left their names behind.
pub(crate) fn dead(directory: &Directory) -> Result<Vec<Nonce>> {
    let mut dead = Vec::new();
    for session in named(directory, PREFIX)? {
        if !is_alive(directory, session)? {
            dead.push(session);
        }
    }
    Ok(dead)
}

/// How many sessions live, and how many are dead and left their names behind.
pub(crate) fn count(directory: &Directory) -> Result<(usize, usize)> {
    let (all, dead) = (named(directory, PREFIX)?.len(), dead(directory)?.len());
    Ok((all.saturating_sub(dead), dead))
}

/// Takes a session's name away.
pub(crate) fn remove(directory: &Directory, session: Nonce) {
    // Somebody else may have been faster.
    let _ = rustix::fs::unlinkat(directory.fd(), name(session), AtFlags::empty());
}

/// Takes away the pipes of processes that were killed while they opened a session. One that is about to be opened finds
/// its name gone and takes another.
pub(crate) fn sweep_unfinished(directory: &Directory) -> Result<()> {
    for session in named(directory, UNFINISHED)? {
        let name = format!("{UNFINISHED}{session}");
        if open_alive(directory, &name).is_ok_and(|pipe| pipe.is_none()) {
            let _ = rustix::fs::unlinkat(directory.fd(), name, AtFlags::empty());
        }
    }
    Ok(())
}

fn named(directory: &Directory, prefix: &str) -> Result<Vec<Nonce>> {
    Ok(directory.list(prefix)?.iter().filter_map(|nonce| nonce.parse().ok()).collect())
}

fn name(session: Nonce) -> String {
    format!("{PREFIX}{session}")
}

fn open_alive(directory: &Directory, name: &str) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(directory.fd(), name, flags, Mode::empty()) {
        Ok(pipe) => Ok(Some(pipe)),
        // No reader, or no name.
        Err(Errno::NXIO | Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}
