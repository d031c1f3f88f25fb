//! What this process holds.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::RandomState;
use ringfence_core::{BootInstant, LockName, LossListener, Nonce};
use tokio::sync::Notify;

use crate::follower::Next;
use crate::leases::ServerLease;
use crate::slots::Slot;
use crate::watch::Watch;

/// Every lease that was granted and is neither given back nor lost.
#[derive(Default)]
pub(crate) struct Held {
    entries: Mutex<Entries>,
    listener: OnceLock<LossListener>,
    /// Wakes the one that looks after leases that nobody renews.
    pub(crate) sooner: Notify,
}

#[derive(Default)]
struct Entries {
    by_nonce: HashMap<Nonce, Entry, RandomState>,
    /// When somebody looks for leases that nobody renews; `None` while nobody does.
    planned: Option<BootInstant>,
}

/// One lease: a key that lives by a lease of the server.
#[derive(Clone, Debug)]
pub(crate) struct Holding {
    pub(crate) name: LockName,
    pub(crate) key: Vec<u8>,
    pub(crate) slot: Arc<Slot>,
    /// The revision at which the key was created, which is the number of the grant.
    pub(crate) created: i64,
    pub(crate) lease: Arc<ServerLease>,
    /// Until when it was granted or renewed.
    pub(crate) deadline: BootInstant,
    /// Who is handed over to.
    pub(crate) next: Option<Arc<Next>>,
}

struct Entry {
    holding: Holding,
    /// When nobody can hold it any more, whatever becomes of a renewal that is under way.
    over: BootInstant,
    /// Tells of the end of the key.
    watch: Option<Watch>,
}

impl Held {
    pub(crate) fn listen(&self, listener: LossListener) {
        // The contract allows one call; a second listener would be told of leases that are not its own.
        let _ = self.listener.set(listener);
    }

    /// Keeps a lease. Says whether somebody has to begin to look for leases that nobody renews.
    pub(crate) fn insert(&self, nonce: Nonce, holding: Holding, watch: Watch) -> bool {
        let mut entries = self.entries();
        let deadline = holding.deadline;
        entries.by_nonce.insert(nonce, Entry { holding, over: deadline, watch: Some(watch) });
        match entries.planned {
            Some(planned) if planned <= deadline => false,
            Some(_) => {
                entries.planned = Some(deadline);
                self.sooner.notify_one();
                false
            }
            None => {
                entries.planned = Some(deadline);
                true
            }
        }
    }

    /// A lease that can still be renewed at this instant, for a renewal that makes it live until this deadline, if it succeeds:
    /// until then nobody ends it. One that cannot is about to be ended, whatever its server's lease does.
    pub(crate) fn renewing(&self, nonce: Nonce, now: BootInstant, deadline: BootInstant) -> Option<Holding> {
        let mut entries = self.entries();
        let entry = entries.by_nonce.get_mut(&nonce).filter(|entry| now < entry.holding.deadline)?;
        entry.over = entry.over.max(deadline);
        Some(entry.holding.clone())
    }

    /// It was renewed until this deadline.
    pub(crate) fn renewed(&self, nonce: Nonce, deadline: BootInstant) {
        if let Some(entry) = self.entries().by_nonce.get_mut(&nonce) {
            entry.holding.deadline = entry.holding.deadline.max(deadline);
        }
    }

    /// It lives by this lease of the server from now on.
    pub(crate) fn lives_by(&self, nonce: Nonce, lease: &Arc<ServerLease>) {
        if let Some(entry) = self.entries().by_nonce.get_mut(&nonce) {
            entry.holding.lease = Arc::clone(lease);
        }
    }

    /// What is being given back, whose end is no news any more.
    pub(crate) fn giving_back(&self, nonce: Nonce) -> Option<Holding> {
        let mut entries = self.entries();
        let entry = entries.by_nonce.get_mut(&nonce)?;
        entry.watch = None;
        Some(entry.holding.clone())
    }

    /// What is held, and not being given back.
    pub(crate) fn get(&self, nonce: Nonce) -> Option<Holding> {
        let entries = self.entries();
        entries.by_nonce.get(&nonce).filter(|entry| entry.watch.is_some()).map(|entry| entry.holding.clone())
    }

    pub(crate) fn remove(&self, nonce: Nonce) {
        self.entries().by_nonce.remove(&nonce);
    }

    /// It is gone, and whoever holds it is told, unless it is being given back.
    pub(crate) fn lost(&self, nonce: Nonce) {
        let removed = self.entries().by_nonce.remove(&nonce);
        if removed.is_some_and(|entry| entry.watch.is_some())
            && let Some(listener) = self.listener.get()
        {
            listener(nonce);
        }
    }

    /// It is over, and whoever holds it is told, but its key is still there, and is seen to at this instant.
    pub(crate) fn lingers(&self, nonce: Nonce, again: BootInstant) {
        let watch = self.entries().by_nonce.get_mut(&nonce).and_then(|entry| {
            entry.over = again;
            entry.watch.take()
        });
        if watch.is_some()
            && let Some(listener) = self.listener.get()
        {
            listener(nonce);
        }
    }

    /// Everything that lives by a lease of the server that is no more is lost.
    pub(crate) fn lost_with(&self, lease: &ServerLease) {
        let lost: Vec<Nonce> = {
            let entries = self.entries();
            let living = entries.by_nonce.iter().filter(|(_, entry)| entry.holding.lease.id() == lease.id());
            living.map(|(nonce, _)| *nonce).collect()
        };
        for nonce in lost {
            self.lost(nonce);
        }
    }

    /// What nobody renewed in time.
    pub(crate) fn overdue(&self, now: BootInstant) -> Vec<(Nonce, Holding)> {
        let entries = self.entries();
        let overdue = entries.by_nonce.iter().filter(|(_, entry)| entry.over <= now);
        overdue.map(|(nonce, entry)| (*nonce, entry.holding.clone())).collect()
    }

    /// When to look again: `None` when there is nothing to look for any more.
    pub(crate) fn plan(&self) -> Option<BootInstant> {
        let mut entries = self.entries();
        entries.planned = entries.by_nonce.values().map(|entry| entry.over).min();
        entries.planned
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("count", &self.entries().by_nonce.len()).finish_non_exhaustive()
    }
}
