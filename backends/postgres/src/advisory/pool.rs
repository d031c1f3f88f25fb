//! The sessions of a process: for each TTL one for what is had without waiting, and those in which somebody waits or has waited.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringfence_core::{BootInstant, Error, ErrorKind, Result, Ttl};

use tokio::sync::Semaphore;

use super::session::{Session, Sessions};

/// The most TTLs in use at a time: each has a connection.
const TTLS_MAX: usize = 64;

/// The most sessions in which somebody waits, or holds what he has waited for.
const WAITING_MAX: usize = 16;

#[derive(Debug)]
pub(super) struct Pool {
    sessions: Sessions,
    /// One is opened at a time, so that those who come together share it.
    opening: tokio::sync::Mutex<()>,
    /// For those beside the main ones; each keeps its own until it is dropped.
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    main: HashMap<Ttl, Arc<Session>>,
    /// That nobody uses at the moment.
    spare: Vec<Arc<Session>>,
}

impl Pool {
    pub(super) fn new(sessions: Sessions) -> Self {
        Self {
            sessions,
            opening: tokio::sync::Mutex::default(),
            places: Arc::new(Semaphore::new(WAITING_MAX)),
            open: Mutex::default(),
        }
    }

    /// The session for what is had without waiting. Begins one where there is none.
    pub(super) async fn main(&self, ttl: Ttl) -> Result<Arc<Session>> {
        if let Some(session) = self.find(ttl) {
            return Ok(session);
        }
        let _opening = self.opening.lock().await;
        if let Some(session) = self.find(ttl) {
            return Ok(session);
        }
        {
            let mut open = self.open();
            open.main.retain(|_, session| !session.is_over());
            if open.main.len() >= TTLS_MAX {
                let idle = open
                    .main
                    .iter()
                    .find(|(_, session)| session.is_idle() && Arc::strong_count(session) == 1);
                let Some(ttl) = idle.map(|(ttl, _)| *ttl) else {
                    return Err(Error::new(
                        ErrorKind::Full,
                        format!(
                            "leases of {TTLS_MAX} TTLs are held, each with a connection of its own: use fewer TTLs"
                        ),
                    ));
                };
                open.main.remove(&ttl);
            }
        }
        let session = self.sessions.open(ttl, None).await?;
        self.open().main.insert(ttl, Arc::clone(&session));
        Ok(session)
    }

    fn find(&self, ttl: Ttl) -> Option<Arc<Session>> {
        self.open().main.get(&ttl).filter(|session| !session.is_over()).cloned()
    }

    /// A session to wait in. `None`: there are as many as there may be, and all are in use.
    ///
    /// # Cancel safety
    /// Dropped, it takes none.
    pub(super) async fn spare(&self, ttl: Ttl) -> Result<Option<Arc<Session>>> {
        let place = {
            let mut open = self.open();
            open.spare.retain(|session| !session.is_over());
            if let Some(index) = open.spare.iter().position(|session| session.ttl == ttl) {
                return Ok(Some(open.spare.swap_remove(index)));
            }
            let place = Arc::clone(&self.places).try_acquire_owned().or_else(|_| {
                // One of another TTL goes, if nobody uses it.
                drop(open.spare.pop());
                Arc::clone(&self.places).try_acquire_owned()
            });
            let Ok(place) = place else { return Ok(None) };
            place
        };
        self.sessions.open(ttl, Some(place)).await.map(Some)
    }

    /// Nobody needs a session any more, if nothing is held in it.
    pub(super) fn give_back(&self, session: &Arc<Session>) {
        let mut open = self.open();
        let is_main = open.main.get(&session.ttl).is_some_and(|main| Arc::ptr_eq(main, session));
        if is_main
            || session.is_over()
            || !session.is_idle()
            || open.spare.iter().any(|spare| Arc::ptr_eq(spare, session))
        {
            return;
        }
        open.spare.push(Arc::clone(session));
    }

    /// Ends the sessions in which nothing is held and that nobody has used for most of their TTL, before the server ends them and
    /// complains of it in its log. When to look again.
    pub(super) fn sweep(&self, now: BootInstant) -> BootInstant {
        let ends = |session: &Session| session.used().saturating_add(session.ttl.as_duration() / 4 * 3);
        let is_over = |session: &Arc<Session>| {
            session.is_over() || session.is_idle() && Arc::strong_count(session) == 1 && ends(session) <= now
        };
        let mut open = self.open();
        let main: Vec<_> = open.main.extract_if(|_, session| is_over(session)).collect();
        let spare: Vec<_> = open.spare.extract_if(.., |session| is_over(session)).collect();
        // One that is in use may be idle by then.
        let left = open.main.values().chain(&open.spare);
        let next =
            left.map(|session| ends(session).max(now.saturating_add(session.ttl.as_duration() / 4))).min();
        drop(open);
        drop((main, spare));
        next.unwrap_or(BootInstant::MAX)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
