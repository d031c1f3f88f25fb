//! Releases that a node was not told of, because it was dead, silent or cut off: it is told when it is there again.
//!
//! Whoever released is not held up by it, and neither is the next one as long as the others are a quorum. But a node that comes back
//! would keep the lease until its TTL, and count against the next one together with a second node that fails meanwhile.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringfence_core::{Backoff, BootInstant, LeaseKey, Retry};

use super::nodes::Node;
use crate::backend::{LOOK_EVERY, WITHDRAW_PAUSE};

/// How many releases are remembered for a node. Those that are more end there at their TTL.
const OWED_MAX: usize = 10_000;

/// How many of them it is told at a time.
const TOLD_MAX: usize = 128;

/// The releases that a node has to be told of, with the ends of their leases.
#[derive(Debug, Default)]
pub(crate) struct Owed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    leases: Vec<(LeaseKey, BootInstant)>,
    /// Whether somebody tells them.
    is_told: bool,
}

impl Node {
    /// Tells it of releases in the background, as soon as it answers and for as long as their leases could live.
    pub(crate) fn owe(self: &Arc<Self>, leases: &[LeaseKey]) {
        let now = self.client.now();
        let mut owed = self.owed.lock();
        let room = OWED_MAX.saturating_sub(owed.leases.len());
        let end = |lease: &LeaseKey| (lease.clone(), now.saturating_add(lease.ttl.as_duration()));
        owed.leases.extend(leases.iter().take(room).map(end));
        if !mem::replace(&mut owed.is_told, true) {
            self.client.runtime.spawn(tell(Arc::clone(self)));
        }
    }
}

impl Owed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next ones, without those whose leases are over. `None`: there are none any more.
    fn next(&self, now: BootInstant) -> Option<Vec<LeaseKey>> {
        let mut owed = self.lock();
        owed.leases.retain(|(_, ends)| now < *ends);
        owed.is_told = !owed.leases.is_empty();
        owed.is_told.then(|| owed.leases.iter().take(TOLD_MAX).map(|(lease, _)| lease.clone()).collect())
    }

    fn forget(&self, told: &[LeaseKey]) {
        self.lock().leases.retain(|(lease, _)| told.iter().all(|one| one.nonce != lease.nonce));
    }
}

async fn tell(node: Arc<Node>) {
    let mut pauses = Backoff::new(WITHDRAW_PAUSE, LOOK_EVERY);
    while let Some(leases) = node.owed.next(node.client.now()) {
        // A take of theirs may still be on its way, and must not come after this.
        match node.client.change_all("withdraw", &leases).await {
            Ok(_) => node.owed.forget(&leases),
            Err(error) if error.retry() == Retry::Never => {
                tracing::warn!(%error, "a node cannot be told of releases; their leases end there at their TTL");
                node.owed.forget(&leases);
            }
            Err(_) => tokio::time::sleep(pauses.pause()).await,
        }
    }
}
