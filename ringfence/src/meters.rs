//! What is counted and measured: handles registered once, when a `Locks` is opened. Lock names are never labels.

use std::fmt;

use metrics::{Counter, Histogram, counter, histogram};
use ringfence_core::Backend;

pub(crate) struct Meters {
    pub(crate) granted: Counter,
    pub(crate) busy: Counter,
    pub(crate) wait_elapsed: Counter,
    pub(crate) failed: Counter,
    pub(crate) handovers: Counter,
    pub(crate) lost: Counter,
    pub(crate) wait: Histogram,
    pub(crate) hold: Histogram,
    pub(crate) renewal_lag: Histogram,
}

impl Meters {
    pub(crate) fn of(backend: &dyn Backend) -> Self {
        let url = backend.to_string();
        let scheme = url.split(':').next().unwrap_or_default().to_owned();
        let acquires = |outcome: &'static str| counter!("ringfence_acquires_total", "backend" => scheme.clone(), "outcome" => outcome);
        Self {
            granted: acquires("granted"),
            busy: acquires("busy"),
            wait_elapsed: acquires("wait_elapsed"),
            failed: acquires("failed"),
            handovers: counter!("ringfence_handovers_total", "backend" => scheme.clone()),
            lost: counter!("ringfence_lost_total", "backend" => scheme.clone()),
            wait: histogram!("ringfence_wait_seconds", "backend" => scheme.clone()),
            hold: histogram!("ringfence_hold_seconds", "backend" => scheme.clone()),
            renewal_lag: histogram!("ringfence_renewal_lag_seconds", "backend" => scheme.clone()),
        }
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meters").finish_non_exhaustive()
    }
}
