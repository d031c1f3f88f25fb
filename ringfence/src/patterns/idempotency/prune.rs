//! Removing what is kept of keys whose retention is over.

use std::sync::Arc;

use ringfence_core::{ErrorKind, ListQuery, LockName, Record, RecordKey, Result};
use tokio::task::JoinSet;

use super::kept::Kept;
use super::{Calendar, PREFIX};
use crate::guard::Guard;
use crate::hall::{Hall, Outcome};
use crate::locks::Locks;
use crate::record::RecordHandle;
use crate::request::{LockRequest, Patience, Terms};

/// How many keys are in hand at the same time, so that they share round trips where the backend can.
const AT_ONCE: usize = 32;

/// What those see who find a key held by the one that removes it.
const LABEL: &str = "removes what is past its retention";

/// What came of [`Locks::prune_idempotency_keys`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// How many results were looked at.
    pub looked_at: usize,
    /// How many of them were past their retention, and are gone.
    pub removed: usize,
    /// How many were not written by us and cannot be read: they stay, and a warning is logged for each.
    pub unreadable: usize,
    /// What to call again with; `None` where that was the last of them.
    pub next: Option<LockName>,
}

impl Locks {
    /// Removes the results of [idempotency keys](Self::idempotency) whose retention is over, at most
    /// [`PAGE_MAX`](crate::PAGE_MAX) results for each call: from the first one on, or from where the call before ended.
    ///
    /// Nothing else removes them, and nothing but room is lost where nobody does: a result past its retention is no result.
    /// Call it now and then, from one place.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # use std::time::Duration;
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// # locks.idempotency("a").retention(Duration::ZERO).run(async |_| Ok::<_, ringfence::Error>("done")).await?;
    /// let (mut removed, mut after) = (0, None);
    /// loop {
    ///     let pruned = locks.prune_idempotency_keys(after).await?;
    ///     removed += pruned.removed;
    ///     after = pruned.next;
    ///     if after.is_none() {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(removed, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// Two round trips, one for each result, and four more for each that is removed; 32 results at a time share them where the
    /// backend can.
    ///
    /// # Beside those who begin
    /// A result is removed under its key's lock and behind its fence, and only if it is still past its retention then. So one that
    /// was stored meanwhile stays, also where this process is paused between the look and the removal: then the fence
    /// refuses the removal. Where somebody holds the key it is left to the next call. Whoever begins at that very moment and does not
    /// wait is told that the key is [in flight](super::Begun::InFlight).
    ///
    /// Errors as listing, reading and [`LockRequest::try_acquire`] do. What was removed by then stays removed: call it again, with
    /// what it was called with.
    ///
    /// # Cancel safety
    /// What was removed stays removed. A lease is released in the background.
    pub async fn prune_idempotency_keys(&self, after: Option<LockName>) -> Result<Pruned> {
        let all = ListQuery::new(PREFIX);
        let query = match after {
            Some(name) => all.after(name),
            None => all,
        };
        let calendar = Calendar::of(&self.hall).await?;
        let page = self.hall.backend.records().list(query).await?;
        // The other fields of a key's lock are not ours.
        let mut keys = page.items.into_iter().filter(|key| key.field() == RecordKey::DEFAULT_FIELD);
        let mut pruned = Pruned { next: page.next, ..Pruned::default() };
        let mut in_hand = JoinSet::new();
        loop {
            while in_hand.len() < AT_ONCE
                && let Some(key) = keys.next()
            {
                let hall = Arc::clone(&self.hall);
                in_hand.spawn(async move { Candidate::new(hall, key, calendar).prune().await });
            }
            let Some(fate) = in_hand.join_next().await else { return Ok(pruned) };
            pruned.looked_at += 1;
            match fate.expect("no removal panics, and none is aborted")? {
                Fate::Removed => pruned.removed += 1,
                Fate::Stays => {}
                Fate::Unreadable => pruned.unreadable += 1,
            }
        }
    }
}

/// What becomes of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Removed,
    /// It is kept still, is gone already, or somebody works under its key.
    Stays,
    Unreadable,
}

/// A result that may be past its retention.
struct Candidate {
    hall: Arc<Hall>,
    record: RecordHandle,
    calendar: Calendar,
}

impl Candidate {
    fn new(hall: Arc<Hall>, key: RecordKey, calendar: Calendar) -> Self {
        let record = RecordHandle::new(Arc::clone(&hall), key);
        Self { hall, record, calendar }
    }

    async fn prune(self) -> Result<Fate> {
        let outcome = match self.is_over(self.record.read().await?) {
            Ok(true) => self.remove().await,
            outcome => outcome,
        };
        Self::fate(outcome)
    }

    fn fate(outcome: Result<bool>) -> Result<Fate> {
        match outcome {
            Ok(true) => Ok(Fate::Removed),
            Ok(false) => Ok(Fate::Stays),
            Err(error) => match error.kind() {
                ErrorKind::Corrupt => {
                    tracing::warn!(%error, "what no session wrote is not removed");
                    Ok(Fate::Unreadable)
                }
                // We were paused for longer than our lease, and somebody came after us.
                ErrorKind::Stale | ErrorKind::TokenCollision | ErrorKind::Lost => Ok(Fate::Stays),
                _ => Err(error),
            },
        }
    }

    /// Removes it, if nobody works under the key and it is still past its retention.
    async fn remove(&self) -> Result<bool> {
        match self.lock().await? {
            Some(guard) => self.remove_under(guard).await,
            None => Ok(false),
        }
    }

    async fn remove_under(&self, guard: Guard) -> Result<bool> {
        let opened = self.record.open(guard.token()).await?;
        let is_over = self.is_over(opened.record)?;
        if is_over {
            self.record.remove(guard.token()).await?;
        }
        let name = guard.name().clone();
        if let Err(error) = guard.release().await {
            tracing::warn!(%name, %error, "the key was not released");
        }
        Ok(is_over)
    }

    async fn lock(&self) -> Result<Option<Guard>> {
        let terms = Terms { label: Some(LABEL.to_owned()), ..Terms::default() };
        let name = self.record.key().lock().clone();
        let request = LockRequest::new(Arc::clone(&self.hall), Ok(name), terms, None);
        match request.checked(Patience::None)?.outcome().await? {
            Outcome::Granted(guard) => Ok(Some(guard)),
            Outcome::Busy(_) => Ok(None),
        }
    }

    fn is_over(&self, record: Option<Record>) -> Result<bool> {
        let Some(record) = record else { return Ok(false) };
        let kept = Kept::of_value(self.record.key().lock(), &record.value)?;
        Ok(kept.is_over(self.calendar.time(&*self.hall.clock)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringfence_core::PAGE_MAX;

    use super::*;
    use crate::patterns::{Idempotency, Swap};

    async fn memory() -> Locks {
        Locks::connect("memory:").await.unwrap()
    }

    async fn done(locks: &Locks, key: &str, retention: Duration) {
        let request = locks.idempotency(key).retention(retention);
        request.run(async |_| Ok::<_, ringfence_core::Error>("done")).await.unwrap();
    }

    /// A result past its retention as it was seen, before anything was done about it.
    async fn seen(locks: &Locks, key: &str) -> Candidate {
        done(locks, key, Duration::ZERO).await;
        let record = RecordKey::of(Idempotency::lock_of(key).unwrap());
        Candidate::new(Arc::clone(&locks.hall), record, Calendar::of(&locks.hall).await.unwrap())
    }

    #[tokio::test]
    async fn all_of_them_are_gone_through_a_page_at_a_time() {
        let locks = memory().await;
        // What stays is gone through as well: who began anew each time would never come to the last one.
        for number in 0..PAGE_MAX {
            done(&locks, &format!("a/{number}"), Duration::from_hours(1)).await;
        }
        done(&locks, "b", Duration::ZERO).await;
        let first = locks.prune_idempotency_keys(None).await.unwrap();
        assert_eq!((first.looked_at, first.removed), (PAGE_MAX, 0));
        let second = locks.prune_idempotency_keys(first.next.clone()).await.unwrap();
        let last = Pruned { looked_at: 1, removed: 1, unreadable: 0, next: None };
        assert_eq!(second, last, "after {:?}", first.next);
        let again = locks.prune_idempotency_keys(None).await.unwrap();
        assert_eq!((again.looked_at, again.removed, again.next), (PAGE_MAX, 0, None));
    }

    /// By the numbers of their grants, the locks that were granted between two of ours.
    async fn taken_while(locks: &Locks, key: &str, work: impl AsyncFnOnce()) -> u64 {
        let lock = async || locks.lock(format!("idempotency/{key}")).try_acquire().await.unwrap();
        let before = lock().await.expect("nobody works under the key");
        let first = before.token().grant();
        before.release().await.unwrap();
        work().await;
        let after = lock().await.expect("what was locked is free again at once");
        after.token().grant() - first - 1
    }

    #[tokio::test]
    async fn what_is_kept_still_is_not_locked_and_what_is_over_is_free_afterwards() {
        let locks = memory().await;
        for (key, retention, expected) in [("kept", Duration::from_hours(1), 0), ("over", Duration::ZERO, 1)]
        {
            done(&locks, key, retention).await;
            let removed = async || {
                let pruned = locks.prune_idempotency_keys(None).await.unwrap();
                assert_eq!(pruned.removed, expected, "{key}");
            };
            assert_eq!(taken_while(&locks, key, removed).await, u64::try_from(expected).unwrap(), "{key}");
        }
    }

    #[tokio::test]
    async fn what_no_session_wrote_stays_and_so_does_what_others_keep_under_the_lock() {
        let locks = memory().await;
        let guard = locks.lock("idempotency/foreign").acquire().await.unwrap();
        let foreign = locks.record("idempotency/foreign").unwrap();
        let effect = RecordKey::new(guard.name().clone(), "effect").unwrap();
        let records = locks.records();
        foreign.open(guard.token()).await.unwrap();
        foreign.write(guard.token(), "not ours").await.unwrap();
        records.open(&effect, guard.token()).await.unwrap();
        records.write(&effect, guard.token(), "not ours".into()).await.unwrap();
        guard.release().await.unwrap();
        let elsewhere = locks.versioned("elsewhere").compare_and_set(None, "not ours").await.unwrap();
        assert!(matches!(elsewhere, Swap::Swapped(_)));
        let pruned = locks.prune_idempotency_keys(None).await.unwrap();
        assert_eq!(pruned, Pruned { looked_at: 1, removed: 0, unreadable: 1, next: None });
        assert!(records.read(foreign.key()).await.unwrap().is_some());
        assert!(records.read(&effect).await.unwrap().is_some());
    }

    /// A pause between the lock and the fence that is longer than the lease.
    #[tokio::test]
    async fn what_was_done_anew_after_the_lock_was_lost_stays() {
        let locks = memory().await;
        let candidate = seen(&locks, "a").await;
        let guard = candidate.lock().await.unwrap().expect("nobody works under the key");
        locks.evict("idempotency/a", guard.token().nonce()).await.unwrap();
        done(&locks, "a", Duration::from_hours(1)).await;
        let outcome = candidate.remove_under(guard).await;
        assert!(outcome.is_err(), "{outcome:?}");
        assert_eq!(Candidate::fate(outcome).unwrap(), Fate::Stays);
        assert!(candidate.record.read().await.unwrap().is_some());
    }

    /// The instant between the look and the lock.
    #[tokio::test]
    async fn what_was_done_anew_since_it_was_looked_at_stays() {
        let locks = memory().await;
        let candidate = seen(&locks, "a").await;
        assert!(candidate.is_over(candidate.record.read().await.unwrap()).unwrap());
        done(&locks, "a", Duration::from_hours(1)).await;
        assert!(!candidate.remove().await.unwrap());
        assert!(candidate.record.read().await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_key_under_which_somebody_works_is_left_alone() {
        let locks = memory().await;
        let candidate = seen(&locks, "a").await;
        let guard = locks.lock("idempotency/a").acquire().await.unwrap();
        assert_eq!(candidate.prune().await.unwrap(), Fate::Stays);
        assert!(guard.is_held());
    }
}
