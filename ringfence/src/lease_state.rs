//! Whether a lease can be proven right now: one word that the keeper, the guards and the waiters for loss share.

use std::time::Duration;

use ringfence_core::BootInstant;

use crate::sync::{AtomicU64, Ordering};

/// Live until a deadline, then lost; or given back.
///
/// A live lease can be extended. The other two states are final, and that is the point of the one word: a lease that
/// anybody has seen past its deadline stays lost, even if the answer to a renewal arrives a moment later.
#[derive(Debug)]
pub(crate) struct LeaseState(AtomicU64);

/// In place of a deadline: the lease is gone or could not be proven any more.
const LOST: u64 = 0;
/// In place of a deadline: the lease was given back, and claims nothing.
const RELEASED: u64 = 1;

impl LeaseState {
    /// A lease that lives until `deadline`.
    pub(crate) fn live_until(deadline: BootInstant) -> Self {
        Self(AtomicU64::new(deadline.as_nanos().max(RELEASED + 1)))
    }

    /// The deadline of a lease that lives at `now`. Whoever looks at or after the deadline makes the loss final.
    pub(crate) fn deadline(&self, now: BootInstant) -> Option<BootInstant> {
        self.update(now, |deadline| deadline).map(BootInstant::from_nanos)
    }

    /// For how long the lease is proven from `now`: zero for one that is over.
    pub(crate) fn remaining(&self, now: BootInstant) -> Duration {
        self.deadline(now).map_or(Duration::ZERO, |deadline| deadline.saturating_since(now))
    }

    /// Moves the deadline of a lease that still lives, never backwards. Says whether it still lived.
    pub(crate) fn extend(&self, now: BootInstant, deadline: BootInstant) -> bool {
        self.update(now, |old| old.max(deadline.as_nanos())).is_some()
    }

    /// The lease is gone. Says whether that is news.
    pub(crate) fn lose(&self) -> bool {
        self.finish(LOST)
    }

    /// The lease is about to be given back: from now on it claims nothing. Says whether it lived until `now`.
    pub(crate) fn release(&self, now: BootInstant) -> bool {
        self.deadline(now).is_some() && self.finish(RELEASED)
    }

    /// Replaces the word of a lease that lives at `now`; what it is after that, or `None` for a lease that is over.
    fn update(&self, now: BootInstant, change: impl Fn(u64) -> u64) -> Option<u64> {
        let mut word = self.0.load(Ordering::Acquire);
        loop {
            if word <= RELEASED {
                return None;
            }
            let next = if word <= now.as_nanos() { LOST } else { change(word) };
            if next != word
                && let Err(seen) =
                    self.0.compare_exchange_weak(word, next, Ordering::AcqRel, Ordering::Acquire)
            {
                word = seen;
                continue;
            }
            return (next != LOST).then_some(next);
        }
    }

    fn finish(&self, end: u64) -> bool {
        let mut word = self.0.load(Ordering::Acquire);
        while word > RELEASED {
            match self.0.compare_exchange_weak(word, end, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(seen) => word = seen,
            }
        }
        false
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(nanos: u64) -> BootInstant {
        BootInstant::from_nanos(nanos)
    }

    #[test]
    fn a_lease_is_proven_until_its_deadline_and_never_again() {
        let lease = LeaseState::live_until(at(100));
        assert_eq!(lease.remaining(at(99)), Duration::from_nanos(1));
        assert_eq!(lease.remaining(at(100)), Duration::ZERO);
        assert!(!lease.extend(at(100), at(200)), "seen past its deadline, it stays lost");
        assert_eq!(lease.deadline(at(50)), None, "whatever the clock says afterwards");
    }

    #[test]
    fn a_renewal_never_brings_the_deadline_nearer() {
        let lease = LeaseState::live_until(at(100));
        assert!(lease.extend(at(10), at(50)));
        assert_eq!(lease.deadline(at(10)), Some(at(100)));
        assert!(lease.extend(at(10), at(150)));
        assert_eq!(lease.deadline(at(10)), Some(at(150)));
    }

    #[test]
    fn loss_and_release_are_final() {
        let lost = LeaseState::live_until(at(100));
        assert!(lost.lose());
        assert!(!lost.lose(), "told once");
        assert!(!lost.extend(at(10), at(200)));
        assert!(!lost.release(at(10)));
        let released = LeaseState::live_until(at(100));
        assert!(released.release(at(10)));
        assert!(!released.lose(), "what was given back cannot be lost");
        assert_eq!(released.remaining(at(10)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn no_instant_overflows(deadline: u64, now: u64, renewed: u64) {
            let lease = LeaseState::live_until(at(deadline));
            let expected = deadline.max(RELEASED + 1).saturating_sub(now);
            prop_assert_eq!(lease.remaining(at(now)), Duration::from_nanos(expected));
            let lived = expected > 0;
            prop_assert_eq!(lease.extend(at(now), at(renewed)), lived);
            prop_assert_eq!(lease.release(at(now)), lived);
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    const NOW: BootInstant = BootInstant::from_nanos(10);
    const DEADLINE: BootInstant = BootInstant::from_nanos(100);
    const RENEWED: BootInstant = BootInstant::from_nanos(200);

    /// However a renewal, a loss and a release interleave, at most one of the latter two counts, and the lease stays over.
    #[test]
    fn loom_renewal_loss_and_release_agree_on_one_end() {
        loom::model(|| {
            let lease = Arc::new(LeaseState::live_until(DEADLINE));
            let keeper = thread::spawn({
                let lease = Arc::clone(&lease);
                move || lease.extend(NOW, RENEWED)
            });
            let listener = thread::spawn({
                let lease = Arc::clone(&lease);
                move || lease.lose()
            });
            let released = lease.release(NOW);
            let (_, lost) = (keeper.join().unwrap(), listener.join().unwrap());
            assert!(released != lost, "exactly one of them ended the lease");
            assert_eq!(lease.deadline(NOW), None);
        });
    }

    /// Whoever has seen the lease past its deadline is never contradicted by a renewal that arrives at the same moment.
    #[test]
    fn loom_a_lease_that_was_seen_lost_stays_lost() {
        loom::model(|| {
            let lease = Arc::new(LeaseState::live_until(DEADLINE));
            let late = thread::spawn({
                let lease = Arc::clone(&lease);
                // The answer was read off the network just in time.
                move || lease.extend(NOW, RENEWED)
            });
            let first = lease.deadline(DEADLINE);
            let second = lease.deadline(DEADLINE);
            assert!(first.is_some() || second.is_none(), "lost, then held again");
            let renewed = late.join().unwrap();
            assert_eq!(renewed, lease.deadline(DEADLINE).is_some());
        });
    }
}
