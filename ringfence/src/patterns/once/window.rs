//! Which window is due: arithmetic on times of day, and nothing else.

use std::time::Duration;

use ringfence_core::{Error, ErrorKind, Result, WallTime};
use serde::{Deserialize, Serialize};

use super::ledger::RunEntry;

/// A stretch of time for which a job runs once: from its start until before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Window {
    /// Where it begins. Two windows of one job never have the same, so this is what names a window.
    pub start: WallTime,
    /// Where the next one begins.
    pub end: WallTime,
}

/// What becomes of a window that ended before anybody ran it, because nobody asked or the run before it took too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a window that is over is run or it is not")]
pub enum Missed {
    /// Nothing: only the current window is ever run.
    #[default]
    Skip,
    /// The latest one is run, once, before the current one. Those before it are not: after a weekend there is one run to make
    /// up for, and not fifty.
    Run,
}

/// What the user said about when to run.
#[derive(Clone, Debug, Default)]
pub(super) struct Timing {
    pub(super) pace: Option<Pace>,
    pub(super) offset: Option<Duration>,
    pub(super) at_least: Duration,
    pub(super) missed: Missed,
    pub(super) retry_failed: bool,
}

/// How windows follow each other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// As the calendar has it.
    Aligned(Duration),
    /// Each from the start of the last run.
    SinceLast(Duration),
}

/// When to run, checked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    windows: Windows,
    /// The least time between two starts.
    at_least: Duration,
    retry_failed: bool,
}

/// How windows follow each other, in milliseconds; none is empty.
#[derive(Clone, Copy, Debug)]
enum Windows {
    Aligned { every: u64, offset: u64, missed: Missed },
    SinceLast { every: u64 },
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Run this window.
    Due {
        window: Window,
        /// Whether it is over already, and is made up for.
        missed: bool,
    },
    /// Run nothing before then, unless somebody runs meanwhile.
    NotBefore(WallTime),
}

impl Timing {
    /// Errors with [`ErrorKind::InvalidRequest`] for what cannot be meant.
    pub(super) fn check(&self) -> Result<Plan> {
        let invalid = |why: String| Err(Error::new(ErrorKind::InvalidRequest, why));
        let (every, windows) = match self.pace {
            None => {
                return invalid(
                    "a job that runs once per window needs a window: say every(…) or since_last(…)"
                        .to_owned(),
                );
            }
            Some(Pace::Aligned(every)) => {
                let offset = self.offset.unwrap_or_default();
                if offset >= every && !every.is_zero() {
                    return invalid(format!(
                        "an offset into windows of {every:?} is less than that, {offset:?} is not"
                    ));
                }
                let windows =
                    Windows::Aligned { every: millis(every)?, offset: millis(offset)?, missed: self.missed };
                (every, windows)
            }
            Some(Pace::SinceLast(every)) => {
                if self.offset.is_some() || self.missed == Missed::Run {
                    return invalid(
                        "windows that begin with the last run have no offset, and none of them can be missed: use every(…)"
                            .to_owned(),
                    );
                }
                (every, Windows::SinceLast { every: millis(every)? })
            }
        };
        if every.is_zero() {
            return invalid("a window of no length never passes: make it at least a millisecond".to_owned());
        }
        if self.at_least > every {
            return invalid(format!(
                "the least time between two runs, {:?}, is longer than their window, {every:?}: make the window longer",
                self.at_least
            ));
        }
        millis(self.at_least)?;
        Ok(Plan { windows, at_least: self.at_least, retry_failed: self.retry_failed })
    }
}

fn millis(duration: Duration) -> Result<u64> {
    let whole = duration.subsec_nanos().is_multiple_of(1_000_000);
    match u64::try_from(duration.as_millis()) {
        Ok(millis) if whole => Ok(millis),
        _ => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "times of day are kept in whole milliseconds, and no more than 64 bits of them: {duration:?} is neither"
            ),
        )),
    }
}

impl Plan {
    /// What is to be done now, where `last` is the last run. An unfinished one counts as failed.
    ///
    /// No window is ever due that is not later than the last one, except for that one itself, where it is to be retried: so a
    /// clock that is behind, or set back, runs nothing twice.
    pub(super) fn decide(&self, last: Option<&RunEntry>, now: WallTime) -> Decision {
        let Some(last) = last else {
            return Decision::Due { window: self.windows.at(now), missed: false };
        };
        let retry = self.retry_failed && last.has_failed();
        let earliest = last.started.saturating_add(self.at_least);
        let current = self.windows.at(now);
        let (window, missed, due) = match self.windows {
            Windows::SinceLast { every } => {
                let pause = if retry { 0 } else { every };
                (current, false, last.started.saturating_add(Duration::from_millis(pause)))
            }
            Windows::Aligned { missed, .. } => {
                let again = retry && current.start == last.window.start;
                if current.start <= last.window.start && !again {
                    return Decision::NotBefore(self.windows.at(last.window.start).end.max(earliest));
                }
                let unrun = self.windows.before(current).filter(|before| before.start > last.window.start);
                let made_up = unrun.filter(|_| missed == Missed::Run);
                (made_up.unwrap_or(current), made_up.is_some(), earliest)
            }
        };
        let due = due.max(earliest);
        if due <= now { Decision::Due { window, missed } } else { Decision::NotBefore(due) }
    }
}

impl Windows {
    /// The window that a time lies in.
    fn at(self, time: WallTime) -> Window {
        let time = time.as_millis();
        let (start, end) = match self {
            Self::Aligned { every, offset, .. } => {
                let since_1970 = time % every;
                let into =
                    if since_1970 < offset { since_1970 + (every - offset) } else { since_1970 - offset };
                // Before the first edge of 1970 lies a part of a window, and it begins with the calendar.
                (time.saturating_sub(into), time.saturating_add(every - into))
            }
            Self::SinceLast { every } => (time, time.saturating_add(every)),
        };
        Window { start: WallTime::from_millis(start), end: WallTime::from_millis(end) }
    }

    fn before(self, window: Window) -> Option<Window> {
        Some(self.at(WallTime::from_millis(window.start.as_millis().checked_sub(1)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_core::{FencingToken, HolderInfo, Nonce};

    use super::super::ledger::RunOutcome;
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn at(millis: u64) -> WallTime {
        WallTime::from_millis(millis)
    }

    fn aligned(every: u64, offset: u64) -> Windows {
        Windows::Aligned { every, offset, missed: Missed::Skip }
    }

    fn plan(windows: Windows) -> Plan {
        Plan { windows, at_least: Duration::ZERO, retry_failed: false }
    }

    fn run(windows: Windows, started: u64, outcome: Option<RunOutcome>) -> RunEntry {
        let token = FencingToken::new(256, Nonce::from_u64(1).unwrap()).unwrap();
        let holder = HolderInfo::new("job", "host", 1).unwrap();
        let mut run = RunEntry::begun(windows.at(at(started)), token, at(started), holder);
        run.outcome = outcome;
        run
    }

    fn done(windows: Windows, started: u64) -> RunEntry {
        run(windows, started, Some(RunOutcome::Succeeded))
    }

    fn due(decision: Decision) -> Option<(u64, bool)> {
        match decision {
            Decision::Due { window, missed } => Some((window.start.as_millis(), missed)),
            Decision::NotBefore(_) => None,
        }
    }

    #[test]
    fn windows_begin_where_the_calendar_says() {
        let day = aligned(24 * HOUR, 2 * HOUR);
        assert_eq!(day.at(at(26 * HOUR)), Window { start: at(26 * HOUR), end: at(50 * HOUR) });
        assert_eq!(day.at(at(26 * HOUR - 1)), Window { start: at(2 * HOUR), end: at(26 * HOUR) });
        assert_eq!(day.at(at(0)), Window { start: at(0), end: at(2 * HOUR) }, "a part of one");
    }

    #[test]
    fn a_window_is_run_once_and_the_next_one_when_it_comes() {
        let hours = aligned(HOUR, 0);
        let plan = plan(hours);
        assert_eq!(due(plan.decide(None, at(5))), Some((0, false)));
        let last = done(hours, 5);
        assert_eq!(plan.decide(Some(&last), at(6)), Decision::NotBefore(at(HOUR)));
        assert_eq!(due(plan.decide(Some(&last), at(HOUR))), Some((HOUR, false)));
    }

    #[test]
    fn a_clock_that_is_behind_runs_nothing() {
        let hours = aligned(HOUR, 0);
        for outcome in [Some(RunOutcome::Succeeded), Some(RunOutcome::Failed), None] {
            let last = run(hours, 10 * HOUR, outcome);
            for retry_failed in [false, true] {
                let plan = Plan { retry_failed, ..plan(hours) };
                let decision = plan.decide(Some(&last), at(10 * HOUR - 1));
                assert_eq!(decision, Decision::NotBefore(at(11 * HOUR)), "{outcome:?}, {retry_failed}");
            }
        }
    }

    #[test]
    fn a_failed_run_is_retried_in_its_window_where_that_is_asked_for() {
        for windows in [aligned(HOUR, 0), Windows::SinceLast { every: HOUR }] {
            for outcome in [Some(RunOutcome::Failed), Some(RunOutcome::Crashed), None] {
                let last = run(windows, 0, outcome);
                let retries = Plan { retry_failed: true, ..plan(windows) };
                assert_eq!(plan(windows).decide(Some(&last), at(7)), Decision::NotBefore(at(HOUR)));
                assert!(due(retries.decide(Some(&last), at(7))).is_some(), "{windows:?}, {outcome:?}");
                let spaced = Plan { at_least: Duration::from_mins(1), ..retries };
                assert_eq!(spaced.decide(Some(&last), at(7)), Decision::NotBefore(at(60_000)));
            }
            let retries = Plan { retry_failed: true, ..plan(windows) };
            assert!(due(retries.decide(Some(&done(windows, 0)), at(7))).is_none(), "it has not failed");
        }
    }

    #[test]
    fn of_missed_windows_the_latest_is_run_once_and_then_the_current_one() {
        let hours = Windows::Aligned { every: HOUR, offset: 0, missed: Missed::Run };
        let plan = plan(hours);
        let now = at(7 * HOUR + 1);
        assert_eq!(due(plan.decide(Some(&done(hours, HOUR)), now)), Some((6 * HOUR, true)));
        let mut made_up = done(hours, 6 * HOUR);
        made_up.started = now;
        assert_eq!(due(plan.decide(Some(&made_up), now)), Some((7 * HOUR, false)));
        assert_eq!(due(plan.decide(Some(&done(hours, 7 * HOUR)), now)), None);
        assert_eq!(
            due(plan.decide(None, now)),
            Some((7 * HOUR, false)),
            "before its first run it missed nothing"
        );
        assert_eq!(
            due(Plan { windows: aligned(HOUR, 0), ..plan }.decide(Some(&done(hours, HOUR)), now)),
            Some((7 * HOUR, false))
        );
    }

    #[test]
    fn two_runs_keep_their_distance_across_the_edge_of_a_window() {
        let hours = aligned(HOUR, 0);
        let plan = Plan { at_least: Duration::from_mins(5), ..plan(hours) };
        let last = done(hours, HOUR - 1_000);
        assert_eq!(plan.decide(Some(&last), at(HOUR)), Decision::NotBefore(at(HOUR + 299_000)));
        assert_eq!(due(plan.decide(Some(&last), at(HOUR + 299_000))), Some((HOUR, false)));
    }

    #[test]
    fn a_window_of_another_length_is_due_when_it_is_later() {
        let last = done(aligned(24 * HOUR, 0), 5 * HOUR);
        assert_eq!(due(plan(aligned(HOUR, 0)).decide(Some(&last), at(5 * HOUR))), Some((5 * HOUR, false)));
        let last = done(aligned(HOUR, 0), 5 * HOUR);
        assert_eq!(
            plan(aligned(24 * HOUR, 0)).decide(Some(&last), at(6 * HOUR)),
            Decision::NotBefore(at(24 * HOUR))
        );
    }

    #[test]
    fn timings_that_cannot_be_meant_are_refused() {
        let hour = Duration::from_hours(1);
        let fine = Timing { pace: Some(Pace::Aligned(hour)), ..Timing::default() };
        fine.check().unwrap();
        for (timing, said) in [
            (Timing::default(), "say every(…) or since_last(…)"),
            (Timing { pace: Some(Pace::Aligned(Duration::ZERO)), ..Timing::default() }, "no length"),
            (Timing { pace: Some(Pace::SinceLast(Duration::ZERO)), ..Timing::default() }, "no length"),
            (
                Timing { pace: Some(Pace::Aligned(Duration::from_micros(1_500))), ..Timing::default() },
                "whole milliseconds",
            ),
            (Timing { pace: Some(Pace::SinceLast(Duration::MAX)), ..Timing::default() }, "64 bits"),
            (Timing { offset: Some(hour), ..fine.clone() }, "less than that"),
            (Timing { at_least: hour + Duration::from_secs(1), ..fine }, "longer than their window"),
            (
                Timing { pace: Some(Pace::SinceLast(hour)), missed: Missed::Run, ..Timing::default() },
                "none of them can be missed",
            ),
            (
                Timing {
                    pace: Some(Pace::SinceLast(hour)),
                    offset: Some(Duration::ZERO),
                    ..Timing::default()
                },
                "no offset",
            ),
        ] {
            let error = timing.check().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{timing:?}");
            assert!(error.to_string().contains(said), "expected {said:?} of {timing:?}: {error}");
        }
    }

    /// Numbers of all sizes, and those at the limits.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (0_u32..64).prop_flat_map(|bits| 0..=(1_u64 << bits)),
            Just(u64::MAX),
            Just(0)
        ]
    }

    fn any_aligned() -> impl Strategy<Value = (u64, u64)> {
        (number().prop_map(|every| every.max(1)), number())
            .prop_map(|(every, offset)| (every, offset % every))
    }

    proptest! {
        #[test]
        fn a_time_lies_in_its_window_and_its_neighbours_do_not((every, offset) in any_aligned(), time in number()) {
            let windows = aligned(every, offset);
            let window = windows.at(at(time));
            prop_assert!(window.start <= at(time));
            prop_assert!(at(time) < window.end || window.end == at(u64::MAX));
            prop_assert_eq!(windows.at(window.start), window, "its start is in it");
            if window.end < at(u64::MAX) {
                prop_assert_eq!(windows.at(at(window.end.as_millis() - 1)), window, "its last moment is in it");
                prop_assert_eq!(windows.at(window.end).start, window.end, "the next one begins where it ends");
                prop_assert_eq!(window.end.as_millis() % every, offset, "edges are a whole number of windows after the offset");
            }
            let ends_before = windows.before(window).map_or(at(0), |before| before.end);
            prop_assert_eq!(ends_before, window.start);
        }

        #[test]
        fn it_is_due_from_the_time_that_is_named_and_not_before(
            (every, offset) in any_aligned(),
            since_last in any::<bool>(),
            missed in prop_oneof![Just(Missed::Skip), Just(Missed::Run)],
            retry_failed in any::<bool>(),
            at_least in number(),
            (started, now) in (number(), number()),
            outcome in prop_oneof![Just(None), Just(Some(RunOutcome::Succeeded)), Just(Some(RunOutcome::Failed))],
        ) {
            let windows =
                if since_last { Windows::SinceLast { every } } else { Windows::Aligned { every, offset, missed } };
            let at_least = Duration::from_millis(at_least % every);
            let plan = Plan { windows, at_least, retry_failed };
            let last = run(windows, started, outcome);
            match plan.decide(Some(&last), at(now)) {
                Decision::NotBefore(next) => {
                    let at_the_end = next == at(u64::MAX);
                    prop_assert!(next > at(now) || at_the_end);
                    let decided = plan.decide(Some(&last), next);
                    prop_assert!(at_the_end || matches!(decided, Decision::Due { .. }), "{decided:?}");
                }
                Decision::Due { window, missed } => {
                    let retried = retry_failed && outcome != Some(RunOutcome::Succeeded);
                    prop_assert!(window.start > last.window.start || retried || since_last);
                    prop_assert!(window.start >= last.window.start, "a window never comes before an earlier one");
                    prop_assert!(at(now).saturating_since(last.started) >= at_least || now == u64::MAX);
                    prop_assert!(missed == (window.end <= at(now)) || now == u64::MAX);
                }
            }
        }
    }
}
