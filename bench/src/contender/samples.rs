//! Durations, as they are collected and reported.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Durations of single operations, in nanoseconds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Samples(Vec<u32>);

impl Samples {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.0.push(u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX));
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The duration that this share of the samples does not exceed, in microseconds.
    pub(crate) fn micros_at(&mut self, share: f64) -> f64 {
        if self.0.is_empty() {
            return f64::NAN;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index of a sample"
        )]
        let index = ((self.0.len() - 1) as f64 * share) as usize;
        let (_, value, _) = self.0.select_nth_unstable(index);
        f64::from(*value) / 1000.0
    }
}
