use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use clap::ValueEnum;
use ringfence::{Clock, SystemClock};

use crate::command::{Result, cargo, is_ci, root, run as run_command};
use crate::{generate, setup};

/// Install what is missing, check everything and run every test, the quick checks first.
///
/// With CI=true in the environment a test that cannot run here has failed; elsewhere it says that it is skipped.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this step.
    #[arg(long, value_enum, value_name = "STEP")]
    only: Option<Step>,
}

/// In the order in which they run: whatever fails soonest comes first, and the last lines are the test runner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// What the tests need is installed.
    Setup,
    /// The sources are formatted.
    Fmt,
    /// The generated documents are up to date.
    Gen,
    /// Clippy has nothing to say.
    Clippy,
    /// Neither has rustdoc.
    Doc,
    /// The guard and the waiting room, under every interleaving.
    Loom,
    /// Every test.
    Tests,
    /// Every example in the documentation.
    Doctests,
}

pub(crate) fn run(args: Args) -> Result {
    let steps = match &args.only {
        Some(step) => std::slice::from_ref(step),
        None => Step::value_variants(),
    };
    let clock = SystemClock::new();
    let mut durations = Vec::new();
    for (at, &step) in steps.iter().enumerate() {
        eprintln!("\n== {step} ({} of {})", at + 1, steps.len());
        if at > 0 && at + 1 == steps.len() {
            // Here and not at the end: the last lines are the test runner's.
            eprintln!("so far: {}", summary(&durations));
        }
        let begin = clock.now();
        step.run().map_err(|error| {
            format!(
                "{step} failed: {error}\nxtask: run just this step again with: cargo xtask test --only {step}"
            )
        })?;
        durations.push((step, clock.now().saturating_since(begin)));
    }
    Ok(())
}

/// As in `fmt 0.8 s, clippy 21.4 s`.
fn summary(durations: &[(Step, Duration)]) -> String {
    let steps = durations.iter().map(|(step, duration)| format!("{step} {:.1} s", duration.as_secs_f64()));
    steps.collect::<Vec<_>>().join(", ")
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().expect("no step is hidden").get_name())
    }
}

impl Step {
    fn run(self) -> Result {
        match self {
            Self::Setup => setup::run(setup::Args::default()),
            Self::Fmt => run_command(cargo().args(["fmt", "--all", "--check"])),
            Self::Gen => generate::run(generate::Args { check: true }),
            Self::Clippy => {
                run_command(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
            }
            // One after the other, because the program `ringfence` and the library `ringfence` have their pages in one place.
            Self::Doc => ["--bins", "--lib"].into_iter().try_for_each(|what| {
                run_command(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                    what,
                ]))
            }),
            Self::Loom => loom(),
            Self::Tests => tests(),
            Self::Doctests => run_command(cargo().args(["test", "--workspace", "--doc"])),
        }
    }
}

/// Runs every test, then says what was left out: the runner shows nothing of a test that passed, and one that could not
/// do its work here must not look like one that did.
fn tests() -> Result {
    // The tests start programs of other packages, which the runner does not build.
    run_command(cargo().args(["build", "--workspace", "--bins"]))?;
    // This one they build, alone, which is not the same build where the workspace asks for more of what it stands on; inside a
    // test that would take longer than a lease lives.
    run_command(cargo().args(["build", "--package", "ringfence-taker"]))?;
    let profile = if is_ci() { "ci" } else { "default" };
    let mut tests = cargo();
    tests.args(["nextest", "run", "--workspace", "--profile", profile]);
    if is_ci() {
        tests.env("RINGFENCE_REQUIRE", "all");
    }
    run_command(&mut tests)?;
    let report = root().join("target/nextest").join(profile).join("junit.xml");
    let report = fs::read_to_string(&report).map_err(|error| format!("{}: {error}", report.display()))?;
    for line in left_out(&report) {
        eprintln!("{line}");
    }
    Ok(())
}

/// The lines in which tests say what they did not do, each after the binary of its test.
fn left_out(report: &str) -> BTreeSet<String> {
    let (mut lines, mut binary) = (BTreeSet::new(), "");
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once(" classname=\"") {
            binary = rest.split('"').next().unwrap_or_default();
        }
        let said =
            ["skipped: ", "not applicable: "].iter().find_map(|mark| line.find(mark).map(|at| &line[at..]));
        if let Some(said) = said {
            lines.insert(format!("{binary}: {}", unescaped(said.trim_end_matches("</system-err>"))));
        }
    }
    lines
}

/// XML's five, as text.
fn unescaped(xml: &str) -> String {
    let text = xml.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    text.replace("&amp;", "&")
}

/// Runs the tests under loom, which replaces every atomic and mutex: hence a build, and a target folder, of its own.
fn loom() -> Result {
    let tests = || {
        let mut tests = cargo();
        tests.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", root().join("target/loom"));
        tests.args(["test", "-p", "ringfence", "--no-default-features", "--lib", "--release", "loom_"]);
        tests
    };
    run_command(&mut tests())?;
    // A renamed test would be filtered out without a word.
    let list = tests().args(["--", "--list"]).output()?;
    if !String::from_utf8_lossy(&list.stdout).contains(": test") {
        return Err("no test's name contains loom_: nothing ran under loom".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_checks_come_first_and_the_test_runners_last() {
        let steps = Step::value_variants();
        assert_eq!(steps[..2], [Step::Setup, Step::Fmt]);
        assert_eq!(steps[steps.len() - 2..], [Step::Tests, Step::Doctests]);
    }

    #[test]
    fn the_summary_has_a_duration_for_each_step() {
        let durations = [(Step::Fmt, Duration::from_millis(800)), (Step::Clippy, Duration::from_secs(21))];
        assert_eq!(summary(&durations), "fmt 0.8 s, clippy 21.0 s");
    }

    #[test]
    fn what_was_left_out_is_found_in_the_report() {
        let report = r#"
            <testcase name="one" classname="a::b" time="0.011">
                <system-err>skipped: flock: not found
not applicable: one: the store&apos;s own &lt;way&gt;</system-err>
            <testcase name="two" classname="c::d" time="0.011">
                <system-out>test result: ok. 1 passed</system-out>
                <system-err>skipped: flock: not found</system-err>"#;
        let lines: Vec<_> = left_out(report).into_iter().collect();
        assert_eq!(
            lines,
            [
                "a::b: not applicable: one: the store's own <way>",
                "a::b: skipped: flock: not found",
                "c::d: skipped: flock: not found",
            ]
        );
    }
}
