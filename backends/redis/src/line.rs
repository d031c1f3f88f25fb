//! Those of this process who stand in line at the server, and how each learns of its turn.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use foldhash::fast::RandomState;
use redis::{PushInfo, PushKind};
use ringfence_core::{LossListener, Nonce};
use tokio::sync::Notify;

use crate::scripts::{parse_nonce, text};

/// Everybody of this process who waits.
#[derive(Default)]
pub(crate) struct Line {
    waiters: Mutex<HashMap<Nonce, Arc<Waiter>, RandomState>>,
    listener: OnceLock<LossListener>,
}

/// One that waits.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    called: Notify,
    /// The number of its grant, once its turn has come.
    turn: AtomicU64,
}

/// A place in line, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Standing {
    line: Arc<Line>,
    nonce: Nonce,
    waiter: Arc<Waiter>,
}

impl Line {
    pub(crate) fn stand(self: &Arc<Self>, nonce: Nonce) -> Standing {
        let waiter = Arc::new(Waiter::default());
        self.waiters().insert(nonce, Arc::clone(&waiter));
        Standing { line: Arc::clone(self), nonce, waiter }
    }

    pub(crate) fn listen(&self, listener: LossListener) {
        // The contract allows one call; a second listener would be told of leases that are not its own.
        let _ = self.listener.set(listener);
    }

    /// What came unasked on the connection.
    pub(crate) fn pushed(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Message => self.message(push),
            // Whoever waits opens a new one, and finds there what it missed.
            PushKind::Disconnection => self.waiters().values().for_each(|waiter| waiter.called.notify_one()),
            _ => {}
        }
    }

    fn message(&self, push: &PushInfo) {
        let mut parts = push.data.get(1).and_then(text).unwrap_or_default().split(':');
        let (what, nonce) = (parts.next(), parts.next().and_then(parse_nonce));
        let turn = parts.next().and_then(|digits| digits.parse::<u64>().ok());
        match (what, nonce, turn) {
            (Some("turn"), Some(nonce), Some(turn)) => {
                if let Some(waiter) = self.waiters().get(&nonce) {
                    waiter.turn.store(turn, Ordering::Release);
                    waiter.called.notify_one();
                }
            }
            (Some("lost"), Some(nonce), _) => {
                if let Some(listener) = self.listener.get() {
                    listener(nonce);
                }
            }
            _ => tracing::warn!(?push, "somebody else writes to our channel"),
        }
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<Nonce, Arc<Waiter>, RandomState>> {
        self.waiters.lock().expect("nothing panics while it has the line")
    }
}

impl Standing {
    /// Resolves when there is something to look at: the turn, or the end of the connection.
    pub(crate) async fn called(&self) {
        self.waiter.called.notified().await;
    }

    /// The number of the grant, where the turn has come; told once.
    pub(crate) fn turn(&self) -> Option<u64> {
        Some(self.waiter.turn.swap(0, Ordering::AcqRel)).filter(|number| *number != 0)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.line.waiters().remove(&self.nonce);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("waiters", &self.waiters().len()).finish_non_exhaustive()
    }
}
