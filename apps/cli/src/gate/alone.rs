//! Being the only gate: one lock, held for as long as it can be.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringfence::{FencingToken, Guard, LockName, Locks};
use ringfence_http::Gate;
use tokio::time::sleep;

use crate::gate::Event;
use crate::print::Messages;

/// How long to leave a store alone that gave no lock.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Stands in line for the lock that says which gate is alone, and holds it.
pub(crate) struct Lookout {
    locks: Locks,
    name: LockName,
    json: bool,
    messages: Messages,
    held: Mutex<Option<Guard>>,
}

impl Lookout {
    pub(crate) fn new(locks: Locks, name: LockName, json: bool, messages: Messages) -> Self {
        Self { locks, name, json, messages, held: Mutex::default() }
    }

    /// The lease by which this gate is alone, if it can be proven right now.
    pub(crate) fn lease(&self) -> Option<FencingToken> {
        self.held().as_ref().filter(|guard| guard.is_held()).map(Guard::token)
    }

    /// Stands in line, again whenever the lock is lost; what has passed by then is cut. Returns when it cannot print that.
    pub(crate) async fn stand(&self, gate: &Gate) -> io::Error {
        loop {
            let printed = Event::StandingBy { name: &self.name }.print(self.json);
            let guard = match printed {
                Ok(()) => self.wait().await,
                Err(error) => return error,
            };
            let lost = guard.lost();
            *self.held() = Some(guard);
            if let Err(error) = (Event::Alone { name: &self.name }).print(self.json) {
                return error;
            }
            lost.await;
            gate.cut();
            self.leave();
        }
    }

    async fn wait(&self) -> Guard {
        loop {
            match self.locks.lock(&self.name).acquire().await {
                Ok(guard) => return guard,
                Err(error) => self.messages.note(&format!("cannot get the lock {}: {error}", self.name)),
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// Is no longer alone.
    pub(crate) fn leave(&self) {
        drop(self.held().take());
    }

    fn held(&self) -> MutexGuard<'_, Option<Guard>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
