//! The contract's documentation and the suite name the same cases.

use std::collections::BTreeSet;

use ringfence_testkit::cases::CONTRACT;

/// The documentation that names the cases, in brackets.
const CONTRACT_SOURCES: [&str; 2] =
    [include_str!("../../../core/src/backend.rs"), include_str!("../../../core/src/fenced_store.rs")];

/// The names that stand as `[name]` in the behaviour lines of a source's documentation.
fn bracketed(source: &str) -> impl Iterator<Item = &str> {
    source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("///"))
        .flat_map(|line| line.split("`[").skip(1))
        .filter_map(|rest| rest.split_once("]`").map(|(name, _)| name))
}

#[test]
fn every_line_has_its_case_and_every_case_its_line() {
    let lines: Vec<&str> = CONTRACT_SOURCES.into_iter().flat_map(bracketed).collect();
    let (lines_set, cases): (BTreeSet<_>, BTreeSet<_>) =
        (lines.iter().copied().collect(), CONTRACT.iter().map(|(name, _)| *name).collect());
    assert!(lines.len() > 30, "the documentation could not be read: {lines:?}");
    assert_eq!(lines.len(), lines_set.len(), "no two lines have one name: {lines:?}");
    let uncovered: Vec<_> = lines_set.difference(&cases).collect();
    assert!(uncovered.is_empty(), "lines of the contract without a case: {uncovered:?}");
    let invented: Vec<_> = cases.difference(&lines_set).collect();
    assert!(invented.is_empty(), "cases without a line in the contract: {invented:?}");
}
