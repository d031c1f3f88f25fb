//! The keeper: one task that renews every lease of a `Locks`, in batches, a third of the way through its TTL.
//!
//! It sleeps until the next renewal is due and is woken before that only by a lease that is due earlier than everything it
//! knows. So taking and releasing a lock does not wake it, and holding ten thousand costs a few batches per TTL.

use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use foldhash::fast::RandomState;
use ringfence_core::{BootInstant, BoxFuture, LeaseKey, Nonce, Renewal, Result};
use tokio::sync::Notify;

use crate::hall::Hall;
use crate::sync::Mutex;
use crate::turn::Lease;

/// The most leases that one call renews.
pub(crate) const RENEW_BATCH_MAX: usize = 1024;

/// After a panic in its own code the keeper starts again this much later.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Keeper {
    registry: Mutex<Registry>,
    wake: Arc<Notify>,
}

#[derive(Debug)]
struct Registry {
    leases: HashMap<Nonce, Kept, RandomState>,
    /// Every lease that is not being renewed at the moment, by when to look at it next.
    due: BTreeSet<(BootInstant, Nonce)>,
    /// When the keeper looks next, if nobody wakes it.
    planned: BootInstant,
}

#[derive(Debug)]
struct Kept {
    lease: Arc<Lease>,
    /// `None` while a renewal is under way.
    due: Option<BootInstant>,
    failures: u32,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        let registry =
            Registry { leases: HashMap::default(), due: BTreeSet::new(), planned: BootInstant::MAX };
        Self { registry: Mutex::new(registry), wake: Arc::new(Notify::new()) }
    }

    /// Starts the task. It ends with the hall.
    pub(crate) fn start(hall: &Arc<Hall>) {
        let wake = Arc::clone(&hall.keeper.wake);
        hall.background.runtime().spawn(keep_all(Arc::downgrade(hall), wake));
    }

    /// Renews a lease from now on.
    pub(crate) fn keep(&self, lease: &Arc<Lease>, counted_from: BootInstant) {
        let nonce = lease.key.nonce;
        let due = first_due(lease, counted_from);
        let mut registry = self.registry.lock();
        registry.leases.insert(nonce, Kept { lease: Arc::clone(lease), due: Some(due), failures: 0 });
        registry.due.insert((due, nonce));
        let sooner = due < registry.planned;
        if sooner {
            // As early as any lease that is taken now may be due, so that the next ones do not wake us.
            registry.planned = earliest_due(lease, counted_from).min(due);
        }
        drop(registry);
        if sooner {
            self.wake();
        }
    }

    /// Renews an offer at once, and from then on like any other lease.
    pub(crate) fn confirm(hall: &Arc<Hall>, lease: &Arc<Lease>) {
        let kept = Kept { lease: Arc::clone(lease), due: None, failures: 0 };
        hall.keeper.registry.lock().leases.insert(lease.key.nonce, kept);
        let flight = Flight { hall: Arc::clone(hall), leases: vec![Arc::clone(lease)] };
        hall.background.runtime().spawn(flight.renew());
    }

    /// Renews a lease no longer; the lease, where it was kept until now.
    pub(crate) fn forget(&self, nonce: Nonce) -> Option<Arc<Lease>> {
        let mut registry = self.registry.lock();
        let kept = registry.leases.remove(&nonce)?;
        if let Some(due) = kept.due {
            registry.due.remove(&(due, nonce));
        }
        Some(kept.lease)
    }

    /// Forgets everything but what was left to lapse.
    pub(crate) fn drain(&self) -> Vec<Arc<Lease>> {
        let mut registry = self.registry.lock();
        let Registry { leases, due, .. } = &mut *registry;
        let drained: HashMap<_, _, RandomState> =
            leases.extract_if(|_, kept| !kept.lease.is_left()).collect();
        due.retain(|(_, nonce)| !drained.contains_key(nonce));
        drained.into_values().map(|kept| kept.lease).collect()
    }

    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Plans when to look again at leases that were renewed, counted from when, or could not be (`None`).
    fn plan(&self, leases: &[Arc<Lease>], renewed_from: Option<BootInstant>, now: BootInstant) {
        let mut registry = self.registry.lock();
        let Registry { leases: kept, due: order, planned } = &mut *registry;
        let mut sooner = false;
        for lease in leases {
            let nonce = lease.key.nonce;
            // It may have been released meanwhile.
            let Some(kept) = kept.get_mut(&nonce) else { continue };
            kept.failures = if renewed_from.is_some() { 0 } else { kept.failures + 1 };
            let due = match renewed_from {
                Some(from) => first_due(lease, from),
                None => retry_due(lease, now, kept.failures),
            };
            kept.due = Some(due);
            order.insert((due, nonce));
            sooner |= due < *planned;
            *planned = due.min(*planned);
        }
        drop(registry);
        if sooner {
            self.wake();
        }
    }

    /// Takes out what is to be done now, and plans the next look.
    fn take_due(&self, now: BootInstant) -> Work {
        let mut registry = self.registry.lock();
        let Registry { leases, due: order, planned } = &mut *registry;
        let mut work = Work::default();
        if let Some((first, _)) = order.first().filter(|(first, _)| *first <= now) {
            work.lag = now.saturating_since(*first);
            let mut later = Vec::new();
            while let Some(&(due, nonce)) = order.first() {
                let kept = leases.get_mut(&nonce).expect("what is due is kept");
                let lease = &kept.lease;
                if due > now.saturating_add(goes_along_within(lease)) {
                    break;
                }
                order.pop_first();
                match lease.state.deadline(now) {
                    None => {
                        work.lapsed.push(Arc::clone(lease));
                        leases.remove(&nonce);
                    }
                    Some(_) if now < lease.renewed_until() => {
                        work.renew.push(Arc::clone(lease));
                        kept.due = None;
                    }
                    Some(deadline) if due <= now => {
                        work.overstayed.push(Arc::clone(lease));
                        kept.due = Some(deadline);
                        later.push((deadline, nonce));
                    }
                    Some(_) => later.push((due, nonce)),
                }
            }
            order.extend(later);
        }
        // A look that is planned stays planned, even if the lease that it was for is gone: or else a lease that is taken and
        // released again and again would have to wake us each time.
        let kept_plan = if *planned > now { *planned } else { BootInstant::MAX };
        *planned = order.first().map_or(kept_plan, |(due, _)| kept_plan.min(*due));
        work.next = (*planned < BootInstant::MAX).then_some(*planned);
        work
    }
}

/// What a look at the registry found.
#[derive(Debug, Default)]
struct Work {
    renew: Vec<Arc<Lease>>,
    /// Past their deadline: lost.
    lapsed: Vec<Arc<Lease>>,
    /// Past their holder's `max_hold`: not renewed any more.
    overstayed: Vec<Arc<Lease>>,
    /// How late the look is.
    lag: Duration,
    /// When to look again, at the latest.
    next: Option<BootInstant>,
}

/// The keeper's task. Its own code is synchronous and caught if it panics; what calls the backend runs in tasks of its
/// own, so that a backend that hangs on one batch does not hold up another.
async fn keep_all(hall: Weak<Hall>, wake: Arc<Notify>) {
    loop {
        let nap = {
            let Some(hall) = hall.upgrade() else { return };
            catch_unwind(AssertUnwindSafe(|| look(&hall))).unwrap_or_else(|_| {
                tracing::error!("the keeper panicked and starts again; please report this");
                Some(RESTART_PAUSE)
            })
        };
        match nap {
            Some(nap) => tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep(nap) => {}
            },
            None => wake.notified().await,
        }
    }
}

/// Does what is due; for how long to sleep then, `None` where nothing is held.
fn look(hall: &Arc<Hall>) -> Option<Duration> {
    let now = hall.clock.now();
    let work = hall.keeper.take_due(now);
    if !work.renew.is_empty() {
        hall.meters.renewal_lag.record(work.lag);
    }
    for batch in work.renew.chunks(RENEW_BATCH_MAX) {
        let flight = Flight { hall: Arc::clone(hall), leases: batch.to_vec() };
        hall.background.runtime().spawn(flight.renew());
    }
    for lease in work.overstayed {
        tracing::warn!(name = %lease.name(), "a lock is held for longer than its max_hold and is not renewed any more");
    }
    for lease in work.lapsed {
        hall.mourn(&lease);
    }
    work.next.map(|next| hall.clock.nap(next).unwrap_or_default())
}

/// A batch of leases on its way to the backend. Whatever is still in it when it is dropped, because the backend failed or
/// panicked, is tried again soon, and so is a batch that takes long.
struct Flight {
    hall: Arc<Hall>,
    leases: Vec<Arc<Lease>>,
}

impl Flight {
    async fn renew(mut self) {
        let hall = Arc::clone(&self.hall);
        let keys: Vec<LeaseKey> = self.leases.iter().map(|lease| lease.key.clone()).collect();
        // Read before anything is sent: whatever the network does, the backend counts from no earlier.
        let sent = hall.clock.now();
        let patience = self.leases.iter().map(|lease| patience(lease, sent)).min().unwrap_or_default();
        let mut renewal = hall.backend.renew(&keys);
        let Ok(answered) = tokio::time::timeout(patience, &mut renewal).await else {
            tracing::warn!(leases = keys.len(), backend = %hall.backend, "a renewal has no answer, trying again");
            let leases = self.try_again();
            return hear_late(&hall, leases, sent, renewal).await;
        };
        let answers = match answered {
            Ok(answers) if answers.len() == keys.len() => answers,
            Ok(answers) => {
                let (got, expected) = (answers.len(), keys.len());
                tracing::error!(got, expected, backend = %hall.backend, "a renewal has too few answers or too many");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, leases = keys.len(), backend = %hall.backend, "a renewal failed, trying again");
                return;
            }
        };
        let now = hall.clock.now();
        let renewed;
        // What is unknown stays in the batch, and is tried again with it.
        (renewed, self.leases) = settle(&hall, std::mem::take(&mut self.leases), answers, sent, now);
        hall.keeper.plan(&renewed, Some(sent), now);
    }

    /// Plans the next try of those in it, and takes them out.
    fn try_again(&mut self) -> Vec<Arc<Lease>> {
        let leases = std::mem::take(&mut self.leases);
        if !leases.is_empty() {
            self.hall.keeper.plan(&leases, None, self.hall.clock.now());
        }
        leases
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.try_again();
    }
}

/// Waits for an answer for as long as any of the leases can be proven, although they are tried again meanwhile: on a network on which
/// an answer takes longer than our patience, all of them would be lost.
async fn hear_late(
    hall: &Arc<Hall>,
    leases: Vec<Arc<Lease>>,
    sent: BootInstant,
    renewal: BoxFuture<'_, Result<Vec<Renewal>>>,
) {
    let now = hall.clock.now();
    let left = leases.iter().map(|lease| lease.state.remaining(now)).max().unwrap_or_default();
    // Whatever else becomes of it, the next try says.
    if let Ok(Ok(answers)) = tokio::time::timeout(left, renewal).await {
        settle(hall, leases, answers, sent, hall.clock.now());
    }
}

/// Notes what a renewal that was sent at this instant made of leases. Returns those that were renewed, and those of which nothing is known.
fn settle(
    hall: &Arc<Hall>,
    leases: Vec<Arc<Lease>>,
    answers: Vec<Renewal>,
    sent: BootInstant,
    now: BootInstant,
) -> (Vec<Arc<Lease>>, Vec<Arc<Lease>>) {
    let (mut renewed, mut unknown) = (Vec::with_capacity(leases.len()), Vec::new());
    for (lease, answer) in leases.into_iter().zip(answers) {
        // An answer that comes after the deadline is too late: somebody may have seen the lease as lost.
        let deadline = sent.saturating_add(lease.ttl().as_duration());
        if answer == Renewal::Unknown {
            unknown.push(lease);
        } else if answer == Renewal::Renewed && lease.state.extend(now, deadline) {
            lease.confirm();
            renewed.push(lease);
        } else {
            hall.lost(lease.key.nonce);
        }
    }
    (renewed, unknown)
}

/// A third of the TTL after the last renewal, and a little more, so that what many processes take at a time does not stay together.
fn first_due(lease: &Lease, renewed_from: BootInstant) -> BootInstant {
    let earliest = earliest_due(lease, renewed_from);
    earliest.saturating_add(spread(lease.key.nonce, 0, lease.ttl().as_duration() / 30))
}

/// The earliest that [`first_due`] can be, for any lease of this TTL.
fn earliest_due(lease: &Lease, renewed_from: BootInstant) -> BootInstant {
    renewed_from.saturating_add(lease.ttl().as_duration() / 3)
}

/// Two thirds of the time between two renewals: what is due in that time goes along, so that all leases of one TTL come to be renewed
/// together, whenever they were taken. Where they share what is renewed, that is one message. Of two groups one is due within half of
/// that time after the other, and all of it a little later, because they are spread.
fn goes_along_within(lease: &Lease) -> Duration {
    lease.ttl().as_duration() * 2 / 9
}

/// A twentieth of the TTL after a failure, twice that after the next, up to a fifth, but no more than half of what is left;
/// at the deadline at the latest.
fn retry_due(lease: &Lease, now: BootInstant, failures: u32) -> BootInstant {
    let ttl = lease.ttl().as_duration();
    let backoff =
        (ttl / 20 * 2_u32.pow(failures.saturating_sub(1).min(2))).min(lease.state.remaining(now) / 2);
    let due = now.saturating_add(backoff + spread(lease.key.nonce, failures, backoff / 4));
    lease.state.deadline(now).map_or(now, |deadline| due.min(deadline))
}

/// How long a renewal may take: then it is tried again, twice at least before the lease lapses.
fn patience(lease: &Lease, now: BootInstant) -> Duration {
    (lease.ttl().as_duration() / 3).min(lease.state.remaining(now) / 2)
}

/// A part of `range` that differs from lease to lease and from time to time. Nonces are random, so this is too.
fn spread(nonce: Nonce, times: u32, range: Duration) -> Duration {
    let sixteenths = (nonce.get().rotate_right(times.wrapping_mul(4)) & 0xf) as u32;
    range / 16 * sixteenths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_core::{FencingToken, HolderInfo, Mode, Ttl};

    use super::*;
    use crate::hall::RoomKey;

    /// A lease that was taken at this instant.
    fn lease(taken: BootInstant) -> Arc<Lease> {
        let (nonce, ttl) = (Nonce::random(), Ttl::DEFAULT);
        let key = LeaseKey::new("a".parse().unwrap(), nonce, ttl);
        let holder = Arc::new(HolderInfo::new("job", "host", 1).unwrap());
        let room =
            RoomKey { name: key.name.clone(), mode: Mode::Exclusive, ttl, kept: ttl, holder, alone: None };
        let first = FencingToken::of_grant(1, nonce).unwrap();
        Arc::new(Lease::new(&ringfence_core::Lease::new(key, first, taken), Arc::new(room), taken))
    }

    proptest! {
        /// Within two TTLs, and before that none waits for longer than its own renewal would.
        #[test]
        fn leases_come_to_be_renewed_together(mut taken in prop::collection::vec(0..30_000_u64, 2..50)) {
            taken.sort_unstable();
            let (keeper, start, ttl) = (Keeper::new(), BootInstant::from_nanos(0), Ttl::DEFAULT.as_duration());
            let at = |millis| start.saturating_add(Duration::from_millis(millis));
            let mut to_take = taken.iter().map(|millis| at(*millis)).peekable();
            let all_taken = at(taken[taken.len() - 1]);
            let mut renewed_at = HashMap::new();
            loop {
                let planned = keeper.registry.lock().planned;
                if let Some(now) = to_take.next_if(|taken| *taken < planned) {
                    let lease = lease(now);
                    renewed_at.insert(lease.key.nonce, now);
                    keeper.keep(&lease, now);
                    continue;
                }
                let Work { renew, lapsed, .. } = keeper.take_due(planned);
                prop_assert!(lapsed.is_empty());
                for lease in &renew {
                    let renewed = renewed_at.insert(lease.key.nonce, planned).unwrap();
                    prop_assert!(planned.saturating_since(renewed) < ttl / 2);
                    prop_assert!(lease.state.extend(planned, planned.saturating_add(ttl)));
                }
                keeper.plan(&renew, Some(planned), planned);
                if renew.len() == taken.len() {
                    break;
                }
                prop_assert!(planned < all_taken.saturating_add(ttl * 2), "of {} only {} together", taken.len(), renew.len());
            }
        }
    }
}
