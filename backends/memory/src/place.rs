use ringfence_core::table::Op;
use ringfence_core::{AcquireRequest, BootInstant, Nonce, Wait};
use tokio::sync::Notify;

use crate::MemoryBackend;

/// A place in line, given up when it is dropped: also by a future that is dropped while it waits.
pub(crate) struct Place<'a> {
    backend: &'a MemoryBackend,
    nonce: Nonce,
}

impl<'a> Place<'a> {
    pub(crate) fn new(backend: &'a MemoryBackend, nonce: Nonce) -> Self {
        Self { backend, nonce }
    }

    /// Sleeps until it may be this attempt's turn (then `true`: ask again), or until its wait is over.
    pub(crate) async fn turn_comes(&self, turn: &Notify, request: &mut AcquireRequest) -> bool {
        let Wait::Until(deadline) = request.wait else {
            unreachable!("the table lets nobody into the line who does not wait");
        };
        let clock = &self.backend.clock;
        loop {
            // A holder that does not renew is noticed by those who wait for it.
            let lapse = self.backend.at_once(|world, _| world.table.next_deadline(&request.name));
            let Some(nap) = clock.nap(deadline.min(lapse.unwrap_or(BootInstant::MAX))) else {
                if clock.now() >= deadline {
                    return false;
                }
                self.backend.apply(|at| Op::Settle { name: request.name.clone(), at });
                continue;
            };
            tokio::select! {
                biased;
                () = turn.notified() => return true,
                () = &mut request.abandoned => return false,
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// Ends the place without giving up what it led to.
    pub(crate) fn keep(self) {
        self.backend.at_once(|world, _| world.sleepers.remove(&self.nonce));
        std::mem::forget(self);
    }
}

impl Drop for Place<'_> {
    /// Gives the place up, or the offer that came too late; the next in line is served.
    fn drop(&mut self) {
        self.backend.at_once(|world, at| {
            world.sleepers.remove(&self.nonce);
            world.apply(Op::Release { nonce: self.nonce, at });
        });
    }
}
