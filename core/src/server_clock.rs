//! Whether a server's wall clock goes as time does.

use std::time::Duration;

use crate::clock::{BootInstant, WallTime};
use crate::finding::Finding;

/// By how much two clocks may drift apart in a second that are both in order: the kernel slews a clock by at most half of
/// that.
const DRIFT_PER_SECOND: Duration = Duration::from_millis(1);

/// By how much two readings may differ beside that, for what a server does between reading its clock and answering.
const SLACK: Duration = Duration::from_millis(10);

/// A server's wall clock at one moment, for a server that ends leases by it.
#[derive(Clone, Copy, Debug)]
pub struct ServerClock {
    /// When it was read, by our clock: between the request and the answer, at most `slack` away.
    at: BootInstant,
    slack: Duration,
    theirs: Duration,
}

impl ServerClock {
    /// What [`Self::compare`] is about, in its findings.
    pub const ABOUT: &str = "clock";

    /// For how long a clock is watched to see whether it goes, where nobody looked before.
    pub const WATCH: Duration = Duration::from_secs(1);

    /// What a server said that its clock was, counted from 1970, to a question that was sent and answered then.
    pub fn new(sent: BootInstant, answered: BootInstant, theirs: Duration) -> Self {
        let slack = answered.saturating_since(sent) / 2;
        Self { at: sent.saturating_add(slack), slack, theirs }
    }

    /// When it was read, by our clock.
    pub fn at(&self) -> BootInstant {
        self.at
    }

    /// What it said, counted from 1970.
    pub fn theirs(&self) -> Duration {
        self.theirs
    }

    /// What it said, as a time of day.
    pub fn wall(&self) -> WallTime {
        WallTime::from_millis(0).saturating_add(self.theirs)
    }

    /// Whether the clock has gone, since an earlier reading, as far as ours has. The two are never compared with each other,
    /// because neither is right. `also` is what else follows where it was set back.
    pub fn compare(&self, before: &Self, also: &str) -> Finding {
        let watched = self.at.saturating_since(before.at);
        let allowed = before.slack + self.slack + SLACK + DRIFT_PER_SECOND.mul_f64(watched.as_secs_f64());
        let went = self.theirs.saturating_sub(before.theirs);
        let (ahead, behind) =
            (went.saturating_sub(watched), (before.theirs + watched).saturating_sub(self.theirs));
        let (what, advice) = if ahead > allowed {
            (
                format!(
                    "the server's clock was set forward by {} in the last {}, or its machine slept: leases ended early, and two \
                     may hold one lock",
                    rounded(ahead),
                    rounded(watched)
                ),
                "have the clock slewed and not stepped (chrony: no makestep after the start); a fence refuses the stale writes",
            )
        } else if behind > allowed {
            (
                format!(
                    "the server's clock was set back by {} in the last {}: leases end late{also}",
                    rounded(behind),
                    rounded(watched)
                ),
                "have the clock slewed and not stepped (chrony: no makestep after the start)",
            )
        } else {
            let what = format!("went as ours did for {}, to within {}", rounded(watched), rounded(allowed));
            return Finding::fine(Self::ABOUT, what);
        };
        Finding::problem(Self::ABOUT, what, advice)
    }
}

/// To read: milliseconds below ten seconds, seconds from there on.
fn rounded(duration: Duration) -> String {
    match duration.as_millis() {
        millis @ 0..10_000 => format!("{millis} ms"),
        millis => format!("{} s", (millis + 500) / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn a_clock_that_is_set_is_found_and_one_that_drifts_is_not() {
        let reading = |millis: u64, theirs| {
            let at = BootInstant::from_nanos(millis * 1_000_000);
            ServerClock::new(at, at, Duration::from_millis(theirs))
        };
        let before = reading(1_000, 500_000);
        for (theirs, severity, said) in [
            (510_000, Severity::Fine, "for 10 s, to within 20 ms"),
            (510_020, Severity::Fine, "went as ours did"),
            (509_980, Severity::Fine, "went as ours did"),
            (510_021, Severity::Problem, "set forward by 21 ms in the last 10 s"),
            (540_000, Severity::Problem, "set forward by 30 s"),
            (509_979, Severity::Problem, "set back by 21 ms in the last 10 s: leases end late, and so on"),
        ] {
            let finding = reading(11_000, theirs).compare(&before, ", and so on");
            assert!(finding.severity == severity && finding.what.contains(said), "{theirs}: {finding:?}");
        }
    }

    #[test]
    fn what_passes_between_question_and_answer_is_allowed_for() {
        let at = |millis: u64| BootInstant::from_nanos(millis * 1_000_000);
        let before = ServerClock::new(at(0), at(100), Duration::from_secs(1));
        let after = ServerClock::new(at(1_000), at(1_200), Duration::from_millis(2_210));
        assert_eq!(after.at(), at(1_100));
        assert_eq!(after.compare(&before, "").severity, Severity::Fine);
    }
}
