//! One step of a pattern, done again and again by the tasks of one process.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::place::{Counter, On, Place};
use crate::contender::Outcome;
use crate::contest::Contest;
use crate::network::whose::Whose;
use crate::report::{Figure, Figures, Goal, Report, per_second};

/// What is done, and how many round trips that takes at most, as its documentation and that of the backend say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) whose: Whose,
    pub(super) round_trips: Option<fn(On) -> u32>,
}

/// What every pattern is compared with.
const PAIR: Step = Step { name: "acquire and release", whose: Whose::Ringfence, round_trips: None };

/// How long what is counted on the way to a server is done.
const COUNTED: Duration = Duration::from_millis(500);

const TASKS: [u64; 2] = [1, 16];

/// Measures the steps of a pattern on every backend: their latency when one task does them, and how often 16 do them in a second.
pub(super) fn measure(
    report: &mut Report,
    pattern: &str,
    backends: &[On],
    directory: &Path,
    rounds: usize,
    length: Duration,
    steps: impl Fn(On) -> Vec<Step>,
) {
    for on in backends {
        let Some(place) = on.start(directory) else { continue };
        let steps: Vec<Step> = [PAIR].into_iter().chain(steps(*on)).collect();
        for tasks in TASKS {
            let case = format!("{pattern}, {}, {tasks} tasks", on.name());
            let place = &place;
            let runs = steps.iter().map(|step| (step.name, move || step.figures(place, tasks, length)));
            let runs: Vec<_> = runs.collect();
            let runs: Vec<(&'static str, &dyn Fn() -> Figures)> =
                runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> Figures)).collect();
            report.interleave(&case, rounds, &runs);
            let figure = if tasks == 1 { "p50 us" } else { "/s" };
            for step in &steps[1..] {
                report.ratio(&case, figure, step.name, PAIR.name, Goal::None("for comparison"));
                if let Some(round_trips) =
                    step.round_trips.filter(|_| tasks == 1 && place.counter().is_some())
                {
                    let counted = Figure { case: &case, subject: step.name, name: "round trips" };
                    report.check(counted, Goal::AtMost(round_trips(*on).into()));
                }
            }
        }
    }
}

impl Step {
    fn figures(self, place: &Place, tasks: u64, length: Duration) -> Figures {
        place.forget();
        let mut process = self.process(tasks, length / 4, length);
        place.tell(&mut process);
        let mut outcome = self.run(Contest::prepare(vec![process]));
        let mut figures = Figures::from([
            ("/s", per_second(outcome.pairs.len(), length)),
            ("p50 us", outcome.pairs.micros_at(0.5)),
            ("p99 us", outcome.pairs.micros_at(0.99)),
        ]);
        if tasks == 1
            && let Some(counter) = place.counter()
        {
            figures.insert("round trips", self.round_trips(place, &counter));
        }
        figures
    }

    /// How many round trips one takes: a whole number, but for what is sent now and then to keep a lease or a connection alive.
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    fn round_trips(self, place: &Place, counter: &Counter<'_>) -> f64 {
        place.forget();
        let mut process = self.process(1, Duration::ZERO, COUNTED);
        place.tell_by_way_of(&mut process, counter);
        let contest = Contest::prepare(vec![process]);
        let before = counter.round_trips();
        let times = self.run(contest).pairs.len();
        ((counter.round_trips() - before) as f64 / times as f64).round()
    }

    fn process(self, tasks: u64, settle: Duration, length: Duration) -> Command {
        let mut process = self.whose.program();
        process.args(["--tasks", &tasks.to_string(), "--settle-ms", &settle.as_millis().to_string()]);
        process.args(["--millis", &length.as_millis().to_string()]);
        process
    }

    fn run(self, contest: Contest) -> Outcome {
        let outcome: Outcome = contest.go().outcomes().pop().expect("one process");
        assert_eq!(outcome.lost, 0, "{}: nobody is in the way, and some were lost", self.name);
        outcome
    }
}
