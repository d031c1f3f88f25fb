//! Once per window: a run whose work is nothing, and a call when nothing is due.

use std::path::Path;
use std::time::Duration;

use super::place::On;
use super::step::{self, Step};
use crate::network::whose::Whose;
use crate::report::Report;

const RUN: Step = Step {
    name: "a run",
    whose: Whose::OnceDue,
    // The record is read, then the lock, the record opened, and its beginning and its end written; the clock twice.
    round_trips: Some(|on| 3 + 2 * on.asked_for_the_time() + 3 * on.asked_to_change_a_record()),
};
const NOT_DUE: Step = Step {
    name: "nothing is due",
    whose: Whose::OnceDone,
    round_trips: Some(|on| 1 + on.asked_for_the_time()),
};

pub(crate) fn measure(
    report: &mut Report,
    backends: &[On],
    directory: &Path,
    rounds: usize,
    length: Duration,
) {
    step::measure(report, "once", backends, directory, rounds, length, |_| vec![RUN, NOT_DUE]);
}
