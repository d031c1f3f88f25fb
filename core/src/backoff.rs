//! The pauses between tries.

use std::time::Duration;

/// Pauses that grow, and are drawn at random, so that those who failed together do not try again together.
///
/// ```
/// use std::time::Duration;
/// use ringfence_core::Backoff;
///
/// let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(40));
/// assert!(backoff.pause() <= Duration::from_millis(5));
/// assert!((0..100).all(|_| backoff.pause() <= Duration::from_millis(40)));
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    longest: Duration,
    most: Duration,
}

impl Backoff {
    /// Pauses of at most `first`, then of at most twice as much each time, and never of more than `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { longest: first.min(most), most }
    }

    /// How long to pause now: from a quarter of its longest to all of it, any with the same likelihood.
    pub fn pause(&mut self) -> Duration {
        let longest = self.longest;
        self.longest = longest.saturating_mul(2).min(self.most);
        let draw = getrandom::u32().expect("the operating system has a random source");
        longest.mul_f64(0.25 + 0.75 * f64::from(draw) / f64::from(u32::MAX)).min(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(8);
    const MOST: Duration = Duration::from_millis(30);

    #[test]
    fn pauses_double_up_to_the_most() {
        let mut backoff = Backoff::new(FIRST, MOST);
        for longest in [FIRST, 2 * FIRST, MOST, MOST] {
            let pause = backoff.pause();
            assert!((longest / 4..=longest).contains(&pause), "{pause:?} of {longest:?}");
        }
    }

    #[test]
    fn two_that_fail_together_pause_differently() {
        let draws: std::collections::BTreeSet<Duration> =
            (0..20).map(|_| Backoff::new(FIRST, MOST).pause()).collect();
        assert!(draws.len() > 15, "{draws:?}");
    }
}
