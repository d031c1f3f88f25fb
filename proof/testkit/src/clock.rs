use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringfence_core::{BootInstant, Clock, SystemClock, WallTime};

/// The machine's clock, as it would read if the machine had been suspended for a while.
///
/// Moving it forward ends every lease of a backend that reads it, without anybody having to sleep.
#[derive(Debug, Default)]
pub struct ShiftedClock {
    /// How far it is ahead, in nanoseconds.
    ahead: AtomicU64,
}

impl ShiftedClock {
    /// A clock that shows the machine's time until it is moved.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by =
            u64::try_from(by.as_nanos()).expect("a test moves the clock by less than five hundred years");
        self.ahead.fetch_add(by, Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        Duration::from_nanos(self.ahead.load(Ordering::SeqCst))
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> BootInstant {
        SystemClock::new().now().saturating_add(self.ahead())
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall().saturating_add(self.ahead())
    }
}
