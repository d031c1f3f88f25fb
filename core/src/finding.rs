use std::fmt;

use serde::Serialize;

/// How bad a finding is; the worse, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "alarms are set by these three; a fourth one would not be heard")]
pub enum Severity {
    /// As it should be, or only worth knowing.
    Fine,
    /// What is promised holds; somebody should say whether this is meant.
    Warning,
    /// What is promised does not hold here, or will soon not be granted.
    Problem,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fine => "fine",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// What an examination ([`Backend::examine`](crate::Backend::examine)) says about one thing that it looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at, in a word or two that are the same every time, as in `eviction`.
    pub about: &'static str,
    /// What was found, and what follows from it.
    pub what: String,
    /// What to do about it. Always there where the finding is worse than fine.
    pub advice: Option<String>,
}

impl Finding {
    /// It is as it should be.
    pub fn fine(about: &'static str, what: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, about, what: what.into(), advice: None }
    }

    /// Somebody should look at it.
    pub fn warning(about: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::fine(about, what).advising(advice) }
    }

    /// Somebody has to do something.
    pub fn problem(about: &'static str, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { severity: Severity::Problem, ..Self::fine(about, what).advising(advice) }
    }

    /// The same finding with this advice.
    #[must_use]
    pub fn advising(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// The same finding, said of one of several servers that were looked at.
    #[must_use]
    pub fn at(self, server: impl fmt::Display) -> Self {
        Self { what: format!("{server}: {}", self.what), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_is_the_greater() {
        assert!(Severity::Problem > Severity::Warning && Severity::Warning > Severity::Fine);
    }

    #[test]
    fn one_of_several_servers_is_named() {
        let one = Finding::warning("clock", "it stands still", "wind it up").at("redis://one");
        assert_eq!(one, Finding::warning("clock", "redis://one: it stands still", "wind it up"));
    }

    #[test]
    fn a_finding_has_a_form_for_programs() {
        let finding = Finding::warning("clock", "it stands still", "wind it up");
        assert_eq!(
            serde_json::to_string(&finding).unwrap(),
            r#"{"severity":"warning","about":"clock","what":"it stands still","advice":"wind it up"}"#
        );
        let fine = serde_json::to_string(&Finding::fine("clock", "it goes")).unwrap();
        assert_eq!(fine, r#"{"severity":"fine","about":"clock","what":"it goes","advice":null}"#);
    }
}
