//! The sessions of a process: one for each TTL, because a lease lives as long as its session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringfence_core::{Clock, Error, ErrorKind, LossListener, Result, Ttl};

use crate::servers::Servers;
use crate::session::{Listener, Session};

/// The most sessions of one process: each has a connection and pings.
const SESSIONS_MAX: usize = 64;

/// The sessions that are open, by their TTL.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(crate) servers: Arc<Servers>,
    clock: Arc<dyn Clock>,
    listener: Listener,
    open: Mutex<HashMap<Ttl, Arc<Session>>>,
    /// One is opened at a time, so that those who come together share it.
    opening: tokio::sync::Mutex<()>,
    /// The shortest and the longest one that the servers grant.
    pub(crate) range: (Ttl, Ttl),
}

impl Sessions {
    /// Learns the range of the servers, by asking for the shortest and the longest session that there could be.
    pub(crate) async fn connect(servers: Servers, clock: Arc<dyn Clock>) -> Result<Self> {
        let (servers, listener) = (Arc::new(servers), Listener::default());
        let longest = Session::open(&servers, &clock, &listener, Ttl::MAX).await?;
        let shortest = Session::open(&servers, &clock, &listener, Ttl::MIN).await?.timeout;
        let range = (shortest, longest.timeout);
        let open = Mutex::new(HashMap::from([(longest.timeout, Arc::new(longest))]));
        Ok(Self { servers, clock, listener, open, opening: tokio::sync::Mutex::new(()), range })
    }

    pub(crate) fn on_loss(&self, listener: LossListener) {
        self.listener.set(listener);
    }

    /// The session of this TTL; begins one where there is none, or only one that is over.
    pub(crate) async fn of(&self, ttl: Ttl) -> Result<Arc<Session>> {
        if let Some(session) = self.find(ttl) {
            return Ok(session);
        }
        let _opening = self.opening.lock().await;
        if let Some(session) = self.find(ttl) {
            return Ok(session);
        }
        let session = self.begin(ttl).await?;
        if session.timeout != ttl {
            return Err(Error::new(
                ErrorKind::InvalidTtl,
                format!(
                    "a TTL of {ttl} is outside the range of this server's sessions, and it granted {}: the servers of an \
                     ensemble should have one range (minSessionTimeout, maxSessionTimeout)",
                    session.timeout
                ),
            )
            .about(self.servers.shown()));
        }
        Ok(session)
    }

    /// A session with a timeout as near to this one as the servers grant by now, which may be one that there is.
    async fn begin(&self, ttl: Ttl) -> Result<Arc<Session>> {
        let session = Arc::new(Session::open(&self.servers, &self.clock, &self.listener, ttl).await?);
        let mut open = self.open();
        open.retain(|_, session| !session.is_over());
        if let Some(present) = open.get(&session.timeout) {
            return Ok(Arc::clone(present));
        }
        if open.len() >= SESSIONS_MAX {
            let idle = open.iter().find(|(ttl, session)| {
                **ttl != self.range.1 && session.is_idle() && Arc::strong_count(session) == 1
            });
            let Some(ttl) = idle.map(|(ttl, _)| *ttl) else {
                return Err(Error::new(
                    ErrorKind::Full,
                    format!(
                        "leases of {SESSIONS_MAX} TTLs are held, each with a session of its own: use fewer TTLs"
                    ),
                ));
            };
            open.remove(&ttl);
        }
        open.insert(session.timeout, Arc::clone(&session));
        Ok(session)
    }

    /// The session of this TTL, where there is one that is not over.
    pub(crate) fn find(&self, ttl: Ttl) -> Option<Arc<Session>> {
        self.open().get(&ttl).filter(|session| !session.is_over()).cloned()
    }

    /// The session for everything that is no lease: the longest one. What the servers granted when we connected they may not grant
    /// any more.
    pub(crate) async fn any(&self) -> Result<Arc<Session>> {
        if let Some(session) = self.longest() {
            return Ok(session);
        }
        let _opening = self.opening.lock().await;
        match self.longest() {
            Some(session) => Ok(session),
            None => self.begin(self.range.1).await,
        }
    }

    fn longest(&self) -> Option<Arc<Session>> {
        let open = self.open();
        let living = open.values().filter(|session| !session.is_over());
        living.max_by_key(|session| session.timeout).cloned()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Ttl, Arc<Session>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
