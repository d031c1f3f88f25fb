//! Partitions: how long it takes until each has its owner again when a member joins and when one leaves.

mod crew;
mod history;
mod member;

use std::path::Path;
use std::time::Duration;

use self::crew::Crew;
use self::history::Change;
pub(crate) use self::member::Members;
use super::place::On;
use crate::contender::now;
use crate::report::{Figure, Figures, Goal, Report};

/// What is in the memory of one process nobody else has. A Redlock has no line: who waits for one of a thousand partitions asks five
/// nodes again and again, for which this machine is too small.
const NOT_SHARED: [On; 2] = [On::Memory, On::Redlock];

/// What "in seconds" means.
const SECONDS: Goal = Goal::AtMost(5.0);

const NONE: Goal = Goal::AtMost(0.0);

pub(crate) fn measure(
    report: &mut Report,
    backends: &[On],
    directory: &Path,
    rounds: usize,
    members: &[u32],
    partitions: &[u32],
) {
    let shared = backends.iter().copied().filter(|on| !NOT_SHARED.contains(on));
    // Who is not installed says so once.
    let backends: Vec<On> = shared.filter(|on| on.start(directory).is_some()).collect();
    for partitions in partitions {
        for members in members {
            let case = format!("{partitions} partitions, a member joins {members} and leaves");
            let runs = backends
                .iter()
                .map(|on| (on.name(), move || join_and_leave(*on, directory, *members, *partitions)));
            let runs: Vec<_> = runs.collect();
            let runs: Vec<(&'static str, &dyn Fn() -> Figures)> =
                runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> Figures)).collect();
            report.interleave(&case, rounds, &runs);
            for on in &backends {
                for (name, goal) in [
                    ("join s", SECONDS),
                    ("leave s", SECONDS),
                    ("moved in vain", NONE),
                    ("two owners", NONE),
                    ("lost", NONE),
                ] {
                    report.check(Figure { case: &case, subject: on.name(), name }, goal);
                }
            }
        }
    }
}

/// Has so many members share the partitions, then one more, then as many as before.
fn join_and_leave(on: On, directory: &Path, members: u32, partitions: u32) -> Figures {
    // A new one, because what so many clients leave behind ends in the middle of the next run.
    let place = on.start(directory).expect("a server that was there before");
    let mut crew = Crew::prepare(&place, members, partitions);
    let mut settle = |what: fn(&mut Crew)| {
        let before = now();
        what(&mut crew);
        let change = crew.settle()?;
        Some((change, Duration::from_nanos(change.settled).saturating_sub(before)))
    };
    let changes = settle(Crew::start).zip(settle(Crew::join)).zip(settle(Crew::leave));
    let Some((((_, start), (join, joined)), (leave, left))) = changes else {
        let never = ["start s", "join s", "leave s"].map(|name| (name, f64::INFINITY));
        return Figures::from(never);
    };
    figures(start, (join, joined), (leave, left))
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
fn figures(
    start: Duration,
    (join, joined): (Change, Duration),
    (leave, left): (Change, Duration),
) -> Figures {
    let both = |count: fn(&Change) -> usize| (count(&join) + count(&leave)) as f64;
    Figures::from([
        ("start s", start.as_secs_f64()),
        ("join s", joined.as_secs_f64()),
        ("leave s", left.as_secs_f64()),
        ("join gap ms", join.longest_gap as f64 / 1e6),
        ("leave gap ms", leave.longest_gap as f64 / 1e6),
        ("moved", both(|change| change.moved)),
        ("moved in vain", both(|change| change.moved_in_vain)),
        ("two owners", both(|change| change.two_owners)),
        ("lost", both(|change| change.lost)),
    ])
}
