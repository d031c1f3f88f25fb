//! Figures: collected by case and subject, printed as medians and ratios.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

/// The figures of one run of one subject.
pub(crate) type Figures = BTreeMap<&'static str, f64>;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
    ratios: Vec<Ratio>,
}

#[derive(Debug, Serialize)]
struct Row {
    case: String,
    subject: &'static str,
    rounds: usize,
    medians: Figures,
}

#[derive(Debug, Serialize)]
struct Ratio {
    case: String,
    what: String,
    times: f64,
    goal: String,
}

/// One figure of one subject, in a case that has run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure<'a> {
    pub(crate) case: &'a str,
    pub(crate) subject: &'a str,
    pub(crate) name: &'a str,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Better {
    More,
    Less,
}

/// What a figure or a ratio is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    None(&'static str),
}

impl Goal {
    /// What could not be measured has not been reached.
    fn is_missed_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value.is_nan() || value < least,
            Self::AtMost(most) => value.is_nan() || value > most,
            Self::None(_) => false,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "{} or more", rounded(*least)),
            Self::AtMost(most) => write!(f, "{} or less", rounded(*most)),
            Self::None(why) => write!(f, "none, {why}"),
        }
    }
}

impl Report {
    /// Runs every subject in turn, round by round, so that a machine whose speed drifts is fair to all; prints the medians.
    pub(crate) fn interleave(
        &mut self,
        case: &str,
        rounds: usize,
        subjects: &[(&'static str, &dyn Fn() -> Figures)],
    ) {
        eprintln!("{case}: {} subjects, {rounds} rounds", subjects.len());
        let mut runs: Vec<Vec<Figures>> = subjects.iter().map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for ((subject, run), runs) in subjects.iter().zip(&mut runs) {
                eprintln!("  {subject}");
                runs.push(run());
            }
        }
        println!("\n{case}");
        for ((subject, _), runs) in subjects.iter().zip(runs) {
            let medians = medians(&runs);
            let figures: Vec<String> =
                medians.iter().map(|(name, value)| format!("{name} {:>8}", short(*value))).collect();
            println!("  {subject:<36} {}", figures.join("  "));
            self.rows.push(Row { case: case.to_owned(), subject, rounds, medians });
        }
    }

    /// Prints one subject's figure as a multiple of another's, in a case that has run.
    pub(crate) fn ratio(&mut self, case: &str, figure: &str, subject: &str, to: &str, goal: Goal) {
        self.compare(
            Figure { case, subject, name: figure },
            Figure { case, subject: to, name: figure },
            goal,
        );
    }

    /// Prints by how much one subject's figure is above another's, in a case that has run.
    pub(crate) fn difference(&mut self, case: &str, name: &str, subject: &str, from: &str, goal: Goal) {
        let value = |subject| self.value(Figure { case, subject, name });
        let above = value(subject) - value(from);
        self.judge(case, format!("{name}: {subject} - {from}"), above, goal);
    }

    /// Prints one figure as a multiple of another.
    pub(crate) fn compare(&mut self, figure: Figure<'_>, to: Figure<'_>, goal: Goal) {
        let mut other = to.subject.to_owned();
        if to.name != figure.name {
            other = format!("{other}, {}", to.name);
        }
        if to.case != figure.case {
            other = format!("{other}, {}", to.case);
        }
        let times = self.value(figure) / self.value(to);
        self.judge(figure.case, format!("{}: {} / {other}", figure.name, figure.subject), times, goal);
    }

    /// Prints a figure that has a goal of its own.
    pub(crate) fn check(&mut self, figure: Figure<'_>, goal: Goal) {
        let value = self.value(figure);
        self.judge(figure.case, format!("{}: {}", figure.name, figure.subject), value, goal);
    }

    /// Of these subjects, the one with the best figure, where they have run.
    pub(crate) fn best<'a>(
        &self,
        case: &str,
        figure: &str,
        better: Better,
        subjects: &[&'a str],
    ) -> Option<&'a str> {
        let values =
            subjects.iter().map(|subject| (*subject, self.value(Figure { case, subject, name: figure })));
        let values = values.filter(|(_, value)| value.is_finite());
        let best = match better {
            Better::More => values.max_by(|(_, one), (_, other)| one.total_cmp(other)),
            Better::Less => values.min_by(|(_, one), (_, other)| one.total_cmp(other)),
        };
        best.map(|(subject, _)| subject)
    }

    fn value(&self, Figure { case, subject, name }: Figure<'_>) -> f64 {
        let row = self.rows.iter().find(|row| row.case == case && row.subject == subject);
        row.and_then(|row| row.medians.get(name)).copied().unwrap_or(f64::NAN)
    }

    fn judge(&mut self, case: &str, what: String, times: f64, goal: Goal) {
        let missed = if goal.is_missed_by(times) { ", MISSED" } else { "" };
        println!("  = {what}: {} (goal: {goal}{missed})", short(times));
        self.ratios.push(Ratio { case: case.to_owned(), what, times, goal: goal.to_string() });
    }

    pub(crate) fn write(&self, path: &Path) {
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(path))?;
            std::fs::write(path, serde_json::to_string_pretty(self).expect("figures have a JSON form"))
        };
        match write() {
            Ok(()) => println!("\nfigures: {}", path.display()),
            Err(error) => eprintln!("cannot write {}: {error}", path.display()),
        }
    }
}

fn medians(runs: &[Figures]) -> Figures {
    let median = |name: &'static str| {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.get(name).copied()).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    runs[0].keys().map(|name| (*name, median(name))).collect()
}

/// Two thirds are a goal, and sixteen digits are none.
fn rounded(goal: f64) -> f64 {
    (goal * 1000.0).round() / 1000.0
}

fn short(value: f64) -> String {
    match value {
        1000.0.. => format!("{value:.0}"),
        0.000_01..0.1 => format!("{value:.4}"),
        _ => format!("{value:.2}"),
    }
}

/// A count as a rate.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn per_second(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// The most by the least; infinite if somebody got nothing.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn fairness(counts: &[usize]) -> f64 {
    let (most, least) = (counts.iter().max(), counts.iter().min());
    most.copied().unwrap_or(0) as f64 / least.copied().unwrap_or(0) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_not_reached_is_missed_and_so_is_what_was_not_measured() {
        let missed = [0.8, 0.9, 1.0, f64::NAN].map(|value| Goal::AtLeast(0.9).is_missed_by(value));
        assert_eq!(missed, [true, false, false, true]);
        let missed = [1.1, 1.2, 1.3, f64::NAN].map(|value| Goal::AtMost(1.2).is_missed_by(value));
        assert_eq!(missed, [false, false, true, true]);
    }

    #[test]
    fn the_best_is_the_best_of_those_that_ran() {
        let mut report = Report::default();
        for (subject, value) in [("slow", 1.0), ("fast", 2.0), ("starved", f64::INFINITY)] {
            let medians = Figures::from([("figure", value)]);
            report.rows.push(Row { case: "case".to_owned(), subject, rounds: 1, medians });
        }
        let best = |better, subjects: &[&'static str]| {
            report.best("case", "figure", better, subjects).map(str::to_owned)
        };
        let all = ["slow", "fast", "starved", "absent"];
        assert_eq!(best(Better::More, &all).as_deref(), Some("fast"));
        assert_eq!(best(Better::Less, &all).as_deref(), Some("slow"));
        assert_eq!(best(Better::More, &["absent"]), None);
    }
}
