//! Idempotency keys: a request that is new, one that is done, and one that somebody works on.

use std::path::Path;
use std::time::Duration;

use super::place::On;
use super::step::{self, Step};
use crate::network::whose::Whose;
use crate::report::Report;

const NEW: Step = Step {
    name: "new",
    whose: Whose::KeyNew,
    // The record is read, and the clock with it; then the lock, and the record opened, and written.
    round_trips: Some(|on| 3 + on.asked_to_make_a_lock() + 2 * on.asked_to_change_a_record()),
};
const DONE: Step = Step { name: "done", whose: Whose::KeyDone, round_trips: Some(|_| 1) };
const IN_FLIGHT: Step = Step { name: "in flight", whose: Whose::KeyInFlight, round_trips: Some(|_| 3) };
const REDIS: Step = Step { name: "SET NX and SET, redis-rs", whose: Whose::RedisKey, round_trips: None };
const POSTGRES: Step = Step { name: "INSERT and UPDATE", whose: Whose::PostgresKey, round_trips: None };

pub(crate) fn measure(
    report: &mut Report,
    backends: &[On],
    directory: &Path,
    rounds: usize,
    length: Duration,
) {
    step::measure(report, "idempotency", backends, directory, rounds, length, |on| {
        let bare = match on {
            On::Redis => Some(REDIS),
            On::PostgresLeases => Some(POSTGRES),
            _ => None,
        };
        [NEW, DONE, IN_FLIGHT].into_iter().chain(bare).collect()
    });
}
