//! Which key an attempt has in a line.
//!
//! The server keeps a mark of every key that was deleted until it compacts, and every acquire passes over those of its name. So a
//! process uses its keys of a name again, each when it is known to be gone: a lock that is taken a million times leaves one mark.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use ringfence_core::LockName;

/// The slots of a process.
#[derive(Clone, Default)]
pub(crate) struct Slots(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    era: u64,
    /// The numbers that are in use in this era.
    used: HashMap<LockName, BTreeSet<u64>, RandomState>,
}

/// The slot of an attempt, which no other attempt has: a key that was never used, or that is known to be gone.
///
/// One that is dropped in use ends its era. Nobody can tell what of it is still under way, a deletion perhaps, so that no key of this
/// era is used again.
pub(crate) struct Slot {
    slots: Slots,
    name: LockName,
    era: u64,
    number: u64,
    leaving: Mutex<Leaving>,
}

/// What becomes of the key of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// One deletion was sent.
    Once,
    /// Several were, of which one may arrive when another has been answered.
    Again,
    /// It is known to be gone, and may be somebody else's.
    Gone,
}

impl Slots {
    /// The first slot of a name that is not in use.
    pub(crate) fn take(&self, name: &LockName) -> Arc<Slot> {
        let mut state = self.state();
        let used = state.used.entry(name.clone()).or_default();
        let mut numbers = 0..=used.len() as u64;
        let number = numbers.find(|number| !used.contains(number)).expect("one more than are used");
        used.insert(number);
        let era = state.era;
        Arc::new(Slot {
            slots: self.clone(),
            name: name.clone(),
            era,
            number,
            leaving: Mutex::new(Leaving::No),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Whether the key may still be deleted without a look at whose it is: it is not known to be gone.
    pub(crate) fn leaves(&self) -> bool {
        let mut leaving = self.leaving();
        *leaving = match *leaving {
            Leaving::No => Leaving::Once,
            Leaving::Once | Leaving::Again => Leaving::Again,
            Leaving::Gone => Leaving::Gone,
        };
        *leaving != Leaving::Gone
    }

    /// The key is known to be gone, or never to have been there. It may be used again, unless another deletion of it is under way.
    pub(crate) fn is_gone(&self) {
        let mut leaving = self.leaving();
        if !matches!(*leaving, Leaving::No | Leaving::Once) {
            return;
        }
        *leaving = Leaving::Gone;
        let mut state = self.slots.state();
        if state.era == self.era
            && let Some(used) = state.used.get_mut(&self.name)
        {
            used.remove(&self.number);
            if used.is_empty() {
                state.used.remove(&self.name);
            }
        }
    }

    fn leaving(&self) -> MutexGuard<'_, Leaving> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands for it in a key.
impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}", self.era, self.number)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if *self.leaving() == Leaving::Gone {
            return;
        }
        let mut state = self.slots.state();
        if state.era == self.era {
            state.era += 1;
            state.used.clear();
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({self})")
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("era", &self.state().era).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> LockName {
        name.parse().unwrap()
    }

    #[test]
    fn the_key_of_one_that_is_gone_is_used_again() {
        let slots = Slots::default();
        let (first, second) = (slots.take(&name("a")), slots.take(&name("a")));
        let other = slots.take(&name("b"));
        assert_eq!([&first, &second, &other].map(ToString::to_string), ["0.0", "0.1", "0.0"]);
        assert!(first.leaves());
        first.is_gone();
        assert_eq!(slots.take(&name("a")).to_string(), "0.0");
        // That one was dropped in use.
        assert_eq!(slots.take(&name("a")).to_string(), "1.0");
    }

    #[test]
    fn a_slot_that_nobody_knows_the_end_of_ends_its_era_once() {
        let slots = Slots::default();
        let old = ["a", "a", "b"].map(|lock| slots.take(&name(lock)));
        let [first, second, third] = old;
        drop(first);
        let new = slots.take(&name("a"));
        assert_eq!(new.to_string(), "1.0");
        // One of the era before changes nothing, whatever becomes of it.
        drop(second);
        third.is_gone();
        assert_eq!(slots.take(&name("a")).to_string(), "1.1");
    }

    #[test]
    fn what_was_deleted_twice_is_not_used_again_and_what_is_gone_is_not_deleted() {
        let slots = Slots::default();
        let slot = slots.take(&name("a"));
        assert!(slot.leaves() && slot.leaves());
        slot.is_gone();
        assert_eq!(slots.take(&name("a")).to_string(), "0.1");
        assert!(slot.leaves(), "the other deletion may be answered first");

        let slot = slots.take(&name("b"));
        slot.is_gone();
        let next = slots.take(&name("b"));
        assert_eq!(next.to_string(), slot.to_string());
        assert!(!slot.leaves(), "it is somebody else's");
    }

    #[test]
    fn names_that_nobody_uses_are_forgotten() {
        let slots = Slots::default();
        for number in 0..100 {
            slots.take(&name(&number.to_string())).is_gone();
        }
        assert!(slots.state().used.is_empty());
    }
}
