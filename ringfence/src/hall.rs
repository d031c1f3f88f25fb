//! What everything of one `Locks` shares, and the few steps that concern all of its rooms.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Backend, Clock, Contention, Error, ErrorKind, HolderInfo, LockName, Mode, Nonce, Result, TokenKey, Ttl,
    WallTime,
};
use tokio::sync::oneshot;

use crate::background::Background;
use crate::holder::Holders;
use crate::keeper::Keeper;
use crate::meters::Meters;
use crate::stander::{Stander, Withdrawal};
use crate::turn::{Lease, Turn};
use crate::waiting_room::WaitingRooms;

/// The policy of one `Locks`, and everything that lives as long as it.
#[derive(Debug)]
pub(crate) struct Hall {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: Settings,
    pub(crate) rooms: WaitingRooms<RoomKey, Answer, Withdrawal>,
    pub(crate) keeper: Keeper,
    pub(crate) holders: Holders,
    pub(crate) meters: Meters,
    pub(crate) background: Background,
}

/// What can be chosen when a `Locks` is opened.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) default_ttl: Ttl,
    pub(crate) handovers: u8,
    pub(crate) handover_time: Duration,
    pub(crate) holder: Arc<HolderInfo>,
    pub(crate) token_key: Option<TokenKey>,
}

/// What a waiting room is for: one lease of this kind can serve everybody in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoomKey {
    pub(crate) name: LockName,
    pub(crate) mode: Mode,
    /// For how long a holder may claim to hold without a renewal.
    pub(crate) ttl: Ttl,
    /// For how long the backend keeps others out without one: longer by the lock delay.
    pub(crate) kept: Ttl,
    pub(crate) holder: Arc<HolderInfo>,
    /// Only an exclusive lease can be handed on: whoever wants another mode, or a grant of its own, has a room of its own, told
    /// apart by this.
    pub(crate) alone: Option<Nonce>,
}

impl RoomKey {
    /// For how long others are kept out after a lease of it was lost.
    pub(crate) fn lock_delay(&self) -> Duration {
        self.kept.as_duration().saturating_sub(self.ttl.as_duration())
    }

    pub(crate) fn has_lock_delay(&self) -> bool {
        !self.lock_delay().is_zero()
    }
}

impl Hash for RoomKey {
    /// By the name only: requests that differ in anything else are rare, and this is on the path of every hand-over.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

/// How a seat is answered.
pub(crate) type Answer = oneshot::Sender<Result<Outcome>>;

/// How a request for a lock ends.
#[derive(Debug)]
pub(crate) enum Outcome<T = Turn> {
    Granted(T),
    Busy(Contention),
}

impl Hall {
    /// A lease is gone, and the keeper has just forgotten it: that is what makes this happen once for each lease.
    pub(crate) fn mourn(self: &Arc<Self>, lease: &Lease) {
        lease.state.lose();
        self.meters.lost.increment(1);
        tracing::warn!(name = %lease.name(), "a lease is lost");
        lease.gone.notify_waiters();
        // Its holder may hang for ever; those behind it need not wait for it.
        self.stand_again(lease);
    }

    /// A lease no longer serves its room. Whoever waits there stands in line at the backend.
    pub(crate) fn stand_again(self: &Arc<Self>, lease: &Lease) {
        if self.rooms.resign(&lease.room, lease.key.nonce) {
            self.background.spawn(Stander::new(Arc::clone(self), Arc::clone(&lease.room)).stand());
        }
    }

    /// The backend said that a lease is gone. It may be one that was released meanwhile.
    pub(crate) fn lost(self: &Arc<Self>, nonce: Nonce) {
        if let Some(lease) = self.keeper.forget(nonce) {
            self.mourn(&lease);
        }
    }

    /// The time of day that all processes share who use this backend: its own, and this machine's where it tells none.
    pub(crate) async fn time(&self) -> Result<WallTime> {
        Ok(self.backend.time().await?.unwrap_or_else(|| self.clock.wall()))
    }

    pub(crate) fn closed_error() -> Error {
        Error::new(ErrorKind::InvalidRequest, "these locks were closed: connect again to acquire more")
    }
}

impl Drop for Hall {
    fn drop(&mut self) {
        self.keeper.wake();
    }
}
