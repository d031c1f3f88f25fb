//! What a taker holds, by the pattern for which it took it.

use std::time::Duration;

use ringfence::patterns::{Begun, Leadership, OnceStart, Run, Session};
use ringfence::{Error, ErrorKind, Guard, Locks, Result};

/// Twenty years: a window that does not end while a test runs.
const GENERATION: Duration = Duration::from_hours(20 * 365 * 24);

/// How long a request waits for somebody else who does it.
const WAIT: Duration = Duration::from_mins(1);

/// How often a job is called for while somebody else runs it.
const CALL_AGAIN: Duration = Duration::from_millis(20);

pub(crate) enum Work {
    Lock(Guard),
    Run(Run),
    Leadership(Leadership),
    Session(Session),
}

impl Work {
    pub(crate) async fn run(locks: &Locks, name: &str, ttl: Duration) -> Result<Self> {
        let job = locks.once(name).every(GENERATION).retry_failed(true).ttl(ttl);
        loop {
            match job.start().await? {
                OnceStart::Due(run) => return Ok(Self::Run(run)),
                OnceStart::Skipped(_) => tokio::time::sleep(CALL_AGAIN).await,
            }
        }
    }

    pub(crate) async fn lead(locks: &Locks, name: &str, ttl: Duration) -> Result<Self> {
        locks.leader(name).ttl(ttl).campaign("begins").await.map(Self::Leadership)
    }

    pub(crate) async fn answer(locks: &Locks, name: &str, ttl: Duration) -> Result<Self> {
        match locks.idempotency(name).ttl(ttl).wait(WAIT).begin().await? {
            Begun::Started(session) => Ok(Self::Session(session)),
            begun => Err(Error::new(ErrorKind::InvalidRequest, format!("there is nothing to do: {begun:?}"))),
        }
    }

    pub(crate) fn guard(&self) -> &Guard {
        match self {
            Self::Lock(guard) => guard,
            Self::Run(run) => run.guard(),
            Self::Leadership(leadership) => leadership.guard(),
            Self::Session(session) => session.guard().expect("it is not completed while it is held here"),
        }
    }

    /// Lets go, as the pattern does it that has nothing to say.
    pub(crate) async fn release(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.release().await,
            Self::Run(run) => run.fail("given up").await,
            Self::Leadership(leadership) => leadership.resign().await,
            Self::Session(session) => session.release().await,
        }
    }

    /// Leaves a lock without a release: it is free again a TTL after the grant.
    pub(crate) async fn leave(self) -> Result<()> {
        match self {
            Self::Lock(guard) => guard.leave_to_lapse().await,
            _ => Err(Error::new(ErrorKind::InvalidRequest, "only a lock is left to lapse")),
        }
    }

    /// Does what the pattern is for, and says what is left to hold.
    pub(crate) async fn end(self, text: &str) -> (Option<Self>, Result<()>) {
        match self {
            Self::Lock(guard) => {
                let nothing = Error::new(ErrorKind::InvalidRequest, "a lock has no end but its release");
                (Some(Self::Lock(guard)), Err(nothing))
            }
            Self::Run(run) => (None, run.succeed().await),
            Self::Leadership(leadership) => {
                let proclaimed = leadership.proclaim(text).await;
                (Some(Self::Leadership(leadership)), proclaimed)
            }
            Self::Session(mut session) => match session.complete(text).await {
                Ok(()) => (None, Ok(())),
                refused => (Some(Self::Session(session)), refused),
            },
        }
    }
}
