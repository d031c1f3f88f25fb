//! The one of a waiting room that stands in line at the backend, for everybody who sits there.

use std::sync::Arc;

use ringfence_core::{
    Abandoner, AcquireRequest, Attempt, BootInstant, Contention, Error, ErrorKind, HolderInfo, Wait,
    abandonment,
};
use tokio::sync::oneshot;

use crate::hall::{Hall, Outcome, RoomKey};
use crate::turn::{begin_first, give_back};

/// Calls a stander back; for the last one to leave the room.
#[derive(Debug)]
pub(crate) struct Withdrawal {
    pub(crate) abandoner: Abandoner,
    /// Resolves when the stander has left the line, with who was in the way.
    pub(crate) left: oneshot::Receiver<Contention>,
}

/// Has the claim of a room, and asks the backend until one of the room holds the lease or nobody is left.
pub(crate) struct Stander {
    hall: Arc<Hall>,
    room: Arc<RoomKey>,
    claim: bool,
}

impl Stander {
    pub(crate) fn new(hall: Arc<Hall>, room: Arc<RoomKey>) -> Self {
        Self { hall, room, claim: true }
    }

    pub(crate) async fn stand(mut self) {
        loop {
            let (abandoner, called_back) = abandonment();
            let (leaves, left) = oneshot::channel();
            let Some(tries) = self.hall.rooms.stand(&self.room, Withdrawal { abandoner, left }) else {
                self.claim = false;
                return;
            };
            // Those in the room keep their own deadlines; the last one of them calls the stander back.
            let wait = if tries { Wait::No } else { Wait::Until(BootInstant::MAX) };
            let RoomKey { name, mode, kept, holder, .. } = &*self.room;
            let request = AcquireRequest::new(name.clone(), *mode, *kept, wait, HolderInfo::clone(holder))
                .abandoned_by(called_back);
            match self.hall.backend.acquire(request).await {
                Ok(Attempt::Granted(lease)) => {
                    // The claim goes with the lease, whoever gets it.
                    self.claim = false;
                    if let Err(unwanted) = begin_first(&self.hall, &self.room, &lease).await {
                        let given_back = give_back(Arc::clone(&self.hall), unwanted).await;
                        if let Err(error) = given_back {
                            tracing::warn!(name = %self.room.name, %error, "a lease that nobody wanted any more");
                        }
                    }
                    return;
                }
                Ok(Attempt::Busy(contention)) => {
                    if let Some(answer) = self.hall.rooms.busy(&self.room, tries) {
                        let busy =
                            if tries { Ok(Outcome::Busy(contention.clone())) } else { Err(self.gave_up()) };
                        let _ = answer.send(busy);
                    }
                    let _ = leaves.send(contention);
                }
                Err(error) => {
                    if let Some(answer) = self.hall.rooms.failed(&self.room) {
                        let _ = answer.send(Err(error));
                    }
                }
            }
        }
    }

    fn gave_up(&self) -> Error {
        Error::new(
            ErrorKind::Bug,
            format!("{} stopped waiting for {:?} without being asked to", self.hall.backend, self.room.name),
        )
    }
}

impl Drop for Stander {
    fn drop(&mut self) {
        // Cut off, by a panic of the backend or by the end of the runtime: nobody in the room may wait for ever. What
        // they wait for is dropped, and each of them reports it.
        if self.claim {
            drop(self.hall.rooms.evacuate(&self.room));
        }
    }
}
