use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instant of this machine's boot-time clock: nanoseconds since boot, the time it was suspended included.
///
/// It means nothing on another machine or after the next boot, and is never compared across them. Arithmetic
/// saturates: no TTL, however large, overflows or panics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BootInstant(u64);

impl BootInstant {
    /// The far end of the clock, more than five hundred years after boot: a deadline that never comes.
    pub const MAX: Self = Self(u64::MAX);

    /// The instant this many nanoseconds after boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This instant and `duration` more, or [`Self::MAX`] where that is past the end of the clock.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long from `earlier` to this instant: zero if `earlier` is the later one.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A time of day, by somebody's wall clock: milliseconds since the start of 1970 (UTC), leap seconds not counted.
///
/// For what people name by the calendar, as the window of a nightly run. It steps when somebody sets the clock: no lease, no
/// deadline and no order of two writes ever depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(u64);

impl WallTime {
    /// The time this many milliseconds after the start of 1970.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the start of 1970.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This time and `duration` more, in whole milliseconds, or the end of the calendar where that is past it.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long from `earlier` to this time: zero if `earlier` is the later one.
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The only reader of time in Ringfence.
///
/// Deadlines use the boot-time clock because it counts suspend, as the servers' clocks do: a laptop that slept past
/// its lease wakes up knowing that it lost. The wall clock is for what people name by the calendar, and for nothing else.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now. Never earlier than an instant this clock has returned before.
    fn now(&self) -> BootInstant;

    /// The time of day on this machine. It steps when somebody sets the clock.
    fn wall(&self) -> WallTime;

    /// How long to sleep before looking at the clock again, on the way to `deadline`.
    ///
    /// Runtimes sleep on a clock that stops while the machine is suspended, so a long sleep would end late by the
    /// time of the suspend. Long waits are therefore slept in naps of at most a second. `None` means that the
    /// deadline has come.
    fn nap(&self, deadline: BootInstant) -> Option<Duration> {
        const NAP_MAX: Duration = Duration::from_secs(1);
        let left = deadline.saturating_since(self.now());
        (!left.is_zero()).then(|| left.min(NAP_MAX))
    }
}

/// The machine's own clocks (`CLOCK_BOOTTIME` and `CLOCK_REALTIME`).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SystemClock;

impl SystemClock {
    /// The machine's clock.
    pub const fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    fn now(&self) -> BootInstant {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
        BootInstant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    fn wall(&self) -> WallTime {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let millis = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
        WallTime(seconds.saturating_mul(1_000).saturating_add(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_does_not_go_back() {
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
    }

    #[test]
    fn sums_saturate_at_the_end_of_the_clock() {
        let now = BootInstant::from_nanos(7);
        assert_eq!(now.saturating_add(Duration::MAX), BootInstant::MAX);
        assert_eq!(now.saturating_since(BootInstant::MAX), Duration::ZERO);
    }
}
