//! Those of this process who stand in line at the server, and how each learns of its turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use foldhash::fast::RandomState;
use ringfence_core::{BootInstant, FencingToken, LockName, LossListener, Nonce};
use tokio::sync::Notify;

use super::calls::Stir;

/// Everybody of this process who waits.
#[derive(Default)]
pub(super) struct Line {
    waiters: Mutex<HashMap<Nonce, Waiter, RandomState>>,
    /// Whether somebody looks after them.
    is_looked_after: AtomicBool,
    listener: OnceLock<LossListener>,
}

/// One that waits.
#[derive(Debug)]
struct Waiter {
    name: LockName,
    called: Arc<Notify>,
    /// What it knows of its place, once it stands.
    place: Option<Stand>,
    /// The number of its grant, once its turn has come.
    turn: Option<u64>,
}

/// A place in line, as it was last seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stand {
    /// It stood there when something was answered that was asked at this instant. A turn of its own was given after it.
    pub(super) seen: BootInstant,
    /// No turn with this number, or a lower one, is its own any more.
    pub(super) last: u64,
}

/// A place in line, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Standing {
    line: Arc<Line>,
    nonce: Nonce,
    called: Arc<Notify>,
}

impl Line {
    pub(super) fn enter(self: &Arc<Self>, name: LockName, nonce: Nonce) -> Standing {
        let called = Arc::<Notify>::default();
        let waiter = Waiter { name, called: Arc::clone(&called), place: None, turn: None };
        self.waiters().insert(nonce, waiter);
        Standing { line: Arc::clone(self), nonce, called }
    }

    pub(super) fn listen(&self, listener: LossListener) {
        // The contract allows one call; a second listener would be told of leases that are not its own.
        let _ = self.listener.set(listener);
    }

    /// Whether the caller has to look after the line from now on, because nobody does.
    pub(super) fn begins_to_be_looked_after(&self) -> bool {
        !self.is_looked_after.swap(true, Ordering::AcqRel)
    }

    /// Whether the caller need not do so any more, because nobody stands.
    pub(super) fn ends_to_be_looked_after(&self) -> bool {
        // Under the lock, so that nobody stands up between the look and the answer and counts on us.
        let waiters = self.waiters();
        let is_empty = waiters.values().all(|waiter| waiter.place.is_none());
        if is_empty {
            self.is_looked_after.store(false, Ordering::Release);
        }
        is_empty
    }

    /// Those who stand.
    pub(super) fn standing(&self) -> Vec<(LockName, Nonce)> {
        let waiters = self.waiters();
        let standing = waiters.iter().filter(|(_, waiter)| waiter.place.is_some());
        standing.map(|(nonce, waiter)| (waiter.name.clone(), *nonce)).collect()
    }

    /// These were asked for at an instant, and all but some of them stood. Of those that stir, nobody knows since when: their turn
    /// may be older than the question, and counts from when they were last seen.
    pub(super) fn saw(&self, asked_for: &[(LockName, Nonce)], asked: BootInstant, stirring: &[Stir]) {
        let stirring: HashMap<Nonce, bool, RandomState> =
            stirring.iter().map(|stir| (stir.nonce, stir.is_gone)).collect();
        let mut waiters = self.waiters();
        for (_, nonce) in asked_for {
            let Some(waiter) = waiters.get_mut(nonce) else { continue };
            match (stirring.get(nonce), &mut waiter.place) {
                (Some(true), _) => waiter.called.notify_one(),
                (None, Some(place)) => place.seen = place.seen.max(asked),
                // It is told of its turn, or the next look says what became of it.
                (Some(false), _) | (None, None) => {}
            }
        }
    }

    /// What was told on the channel of this process.
    pub(super) fn told(&self, message: &str) {
        let mut parts = message.split(':');
        let what = parts.next();
        let nonce =
            parts.next().and_then(|digits| u64::from_str_radix(digits, 16).ok()).and_then(Nonce::from_u64);
        let number = parts.next().and_then(|digits| digits.parse::<u64>().ok());
        match (what, nonce, number) {
            (Some("turn"), Some(nonce), Some(number)) if FencingToken::of_grant(number, nonce).is_ok() => {
                if let Some(waiter) = self.waiters().get_mut(&nonce) {
                    waiter.turn = Some(number);
                    waiter.called.notify_one();
                }
            }
            (Some("lost"), Some(nonce), _) => self.lost(nonce),
            _ => tracing::warn!("somebody else writes to our channel"),
        }
    }

    /// A lease is gone.
    pub(super) fn lost(&self, nonce: Nonce) {
        if let Some(listener) = self.listener.get() {
            listener(nonce);
        }
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<Nonce, Waiter, RandomState>> {
        self.waiters.lock().expect("nothing panics while it has the line")
    }
}

impl Standing {
    /// It stands, as was answered to what was asked at an instant, when this was the number of the last grant.
    pub(super) fn stands(&self, seen: BootInstant, last: u64) {
        if let Some(waiter) = self.line.waiters().get_mut(&self.nonce) {
            waiter.place = Some(Stand { seen, last });
        }
    }

    /// It stands no more.
    pub(super) fn left(&self) {
        if let Some(waiter) = self.line.waiters().get_mut(&self.nonce) {
            waiter.place = None;
        }
    }

    /// Its place, where it has one.
    pub(super) fn place(&self) -> Option<Stand> {
        self.line.waiters().get(&self.nonce).and_then(|waiter| waiter.place)
    }

    /// Resolves when its turn may have come, or its place may be lost.
    pub(super) async fn called(&self) {
        self.called.notified().await;
    }

    /// The number of its grant and the place that it came to, where its turn has come; told once.
    pub(super) fn turn(&self) -> Option<(u64, Stand)> {
        let mut waiters = self.line.waiters();
        let waiter = waiters.get_mut(&self.nonce)?;
        waiter.turn.take().zip(waiter.place).filter(|(number, place)| *number > place.last)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.line.waiters().remove(&self.nonce);
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("waiters", &self.waiters().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use ringfence_core::{Clock, SystemClock};

    use super::*;

    fn name() -> LockName {
        "orders/42".parse().unwrap()
    }

    fn nonce() -> Nonce {
        Nonce::from_u64(0xee).unwrap()
    }

    #[test]
    fn a_turn_is_told_once_to_the_one_whose_it_is() {
        let line = Arc::<Line>::default();
        let (standing, other) = (line.enter(name(), nonce()), line.enter(name(), Nonce::random()));
        let now = SystemClock::new().now();
        standing.stands(now, 7);
        other.stands(now, 7);
        line.told("turn:ee:8");
        assert_eq!(standing.turn().map(|(number, _)| number), Some(8));
        assert!(standing.turn().is_none() && other.turn().is_none());
    }

    #[test]
    fn a_turn_of_an_earlier_place_is_none() {
        let line = Arc::<Line>::default();
        let standing = line.enter(name(), nonce());
        line.told("turn:ee:8");
        standing.stands(SystemClock::new().now(), 8);
        assert!(standing.turn().is_none());
    }

    #[test]
    fn a_look_says_until_when_one_stood() {
        let line = Arc::<Line>::default();
        let standing = line.enter(name(), nonce());
        let asked = SystemClock::new().now();
        standing.stands(asked, 7);
        let later = asked.saturating_add(Duration::from_secs(1));
        line.saw(&line.standing(), later, &[]);
        assert_eq!(standing.place().unwrap().seen, later);
        // An answer that comes late says nothing new.
        line.saw(&line.standing(), asked, &[]);
        assert_eq!(standing.place().unwrap().seen, later);
        standing.left();
        assert!(line.standing().is_empty());
    }

    /// The message of its turn may come after the look that misses it, or that finds it about to go: the turn was given before that
    /// was asked, or nobody knows.
    #[test]
    fn a_look_that_finds_one_stirring_says_nothing_of_when_its_turn_began() {
        for is_gone in [true, false] {
            let line = Arc::<Line>::default();
            let standing = line.enter(name(), nonce());
            let asked = SystemClock::new().now();
            standing.stands(asked, 7);
            let stir = Stir { nonce: nonce(), is_gone };
            line.saw(&line.standing(), asked.saturating_add(Duration::from_secs(1)), &[stir]);
            line.told("turn:ee:8");
            let (number, place) = standing.turn().expect("it is its turn");
            assert_eq!((number, place.seen), (8, asked));
        }
    }

    proptest! {
        #[test]
        fn what_anybody_tells_is_no_panic_and_no_turn(
            text in prop_oneof!["\\PC{0,80}", "(turn|lost|TURN)?:?[0-9a-f]{0,17}:?[0-9:]{0,22}"],
        ) {
            let line = Arc::<Line>::default();
            let lost = Arc::new(Mutex::new(Vec::new()));
            let told = Arc::clone(&lost);
            line.listen(Arc::new(move |nonce| told.lock().unwrap().push(nonce)));
            // Nobody whose nonce the text has stands here.
            let standing = line.enter(name(), Nonce::from_u64(u64::MAX).unwrap());
            standing.stands(SystemClock::new().now(), 0);
            line.told(&text);
            prop_assert!(standing.turn().is_none());
            prop_assert!(text.starts_with("lost:") || lost.lock().unwrap().is_empty());
        }
    }
}
