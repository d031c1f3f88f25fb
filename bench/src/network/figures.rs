//! What is printed of what a subject's processes report.

use std::time::Duration;

use crate::contender::Outcome;
use crate::report::{Figures, fairness, per_second};

/// Of tasks that have a lock each.
pub(crate) fn uncontended(mut outcome: Outcome, length: Duration) -> Figures {
    assert_eq!(outcome.lost, 0, "locks that nobody else wants were lost");
    Figures::from([
        ("pairs/s", per_second(outcome.pairs.len(), length)),
        ("p50 us", outcome.pairs.micros_at(0.5)),
        ("p99 us", outcome.pairs.micros_at(0.99)),
    ])
}

/// Of clients that want one lock. What counts is that the holder *changed*: a lock that the same client takes again and again
/// serves nobody else.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn contended(mut outcome: Outcome, length: Duration) -> Figures {
    let pairs = outcome.counts.iter().sum();
    Figures::from([
        ("handovers/s", per_second(outcome.handovers.len(), length)),
        ("pairs/s", per_second(pairs, length)),
        ("lost", outcome.lost as f64),
        ("fairness", fairness(&outcome.counts)),
        ("handover p50 us", outcome.handovers.micros_at(0.5)),
        ("handover p99 us", outcome.handovers.micros_at(0.99)),
        ("wait p50 us", outcome.waits.micros_at(0.5)),
        ("wait p99 us", outcome.waits.micros_at(0.99)),
    ])
}
