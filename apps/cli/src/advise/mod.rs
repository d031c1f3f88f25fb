//! `advise`: from a few answers to a pattern, a backend, and what to paste.

mod patterns;
mod questions;
mod rules;

use ringfence::{Claim, Guarantees, guarantees_of};
use serde::Serialize;

use self::patterns::Pattern;
pub(crate) use self::questions::AdviseArgs;
use self::questions::Answers;
use self::rules::Rule;
use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print;

/// Which of a backend's promises are printed: those that a choice hangs on. `--json` has all of them.
const PRINTED: [&str; 5] =
    ["Who can contend", "Fencing tokens", "A killed holder", "A paused holder", "Records"];

/// What makes it a matter of correctness, and not of efficiency.
const DOUBLE_RUN: &str = "double-run";
const CHARGE: &str = "charge";

/// What somebody with these answers should do.
#[derive(Debug, Serialize)]
struct Advice {
    answers: Answers,
    pattern: &'static str,
    title: &'static str,
    because: &'static str,
    /// `None` where none of our locks is part of it, or the database of the work is the backend.
    backend: Option<Backend>,
    command: Option<String>,
    packages: Vec<String>,
    program: Option<String>,
    not_guaranteed: &'static [&'static str],
    guide: Option<String>,
}

#[derive(Debug, Serialize)]
struct Backend {
    url: &'static str,
    because: &'static str,
    guarantees: Guarantees,
    claims: Vec<Claim>,
}

/// Asks for what was not said, and answers.
pub(crate) fn run(args: AdviseArgs, global: &Global) -> Result<u8, Failure> {
    let advice = Advice::of(questions::answers(args)?);
    if global.json {
        print::json(&advice)?;
    } else {
        print::line(advice.text().trim_end())?;
    }
    Ok(exit_codes::OK)
}

impl Advice {
    fn of(answers: Answers) -> Self {
        let rule = rules::pattern(&answers);
        let pattern = Pattern::named(rule.outcome);
        let backend = pattern.has_backend.then(|| Backend::of(rules::backend(&answers)));
        let url = backend.as_ref().map_or(patterns::DATABASE, |backend| backend.url);
        let connects = format!("connect({url:?})");
        let stakes = if answers.say(DOUBLE_RUN, CHARGE) { "--stakes correctness " } else { "" };
        Self {
            pattern: pattern.name,
            title: pattern.title,
            because: rule.because,
            command: pattern.command.map(|command| command.replace("URL", url).replace("STAKES ", stakes)),
            packages: pattern.packages.iter().map(|package| cargo_add(package, url)).collect(),
            program: pattern.program.map(|program| program.replace(patterns::CONNECTS, &connects)),
            not_guaranteed: pattern.not_guaranteed,
            guide: rule.page(),
            backend,
            answers,
        }
    }

    /// For people: what and why, what to paste, what is promised, and what is not.
    fn text(&self) -> String {
        let mut sections = vec![format!("{}: {}\n  {}", self.pattern, self.title, self.because)];
        if let Some(backend) = &self.backend {
            sections.push(format!("Backend: {}\n  {}", backend.url, backend.because));
        }
        if let Some(command) = &self.command {
            sections.push(format!("Command:\n  {command}"));
        }
        if !self.packages.is_empty() {
            sections.push(format!("Packages:\n  {}", self.packages.join("\n  ")));
        }
        if let Some(program) = &self.program {
            sections.push(format!("Program:\n{}", program.trim_end()));
        }
        if let Some(backend) = &self.backend {
            let promised = backend.claims.iter().filter(|claim| PRINTED.contains(&claim.about));
            let promised = promised.map(|claim| format!("\n  - {}: {}", claim.about, claim.promise));
            sections.push(format!("Promised by this backend:{}", promised.collect::<String>()));
        }
        let not_guaranteed = self.not_guaranteed.iter().map(|what| format!("\n  - {what}"));
        sections.push(format!("Not guaranteed:{}", not_guaranteed.collect::<String>()));
        if let Some(guide) = &self.guide {
            sections.push(format!("Read on: {guide}"));
        }
        sections.join("\n\n")
    }
}

/// The command that adds a package to a program, with the feature of the library that a URL takes: that of its scheme.
fn cargo_add(package: &str, url: &str) -> String {
    let features = match url.split(':').next().unwrap_or_default() {
        "local" => String::new(),
        "redlock" => "--features redis".to_owned(),
        scheme => format!("--features {scheme}"),
    };
    format!("cargo add {}", package.replace("FEATURES", &features)).trim_end().to_owned()
}

impl Backend {
    fn of(rule: &Rule) -> Self {
        let guarantees = guarantees_of(rule.outcome).expect("a test looks every URL of the table up");
        Self { url: rule.outcome, because: rule.because, claims: guarantees.claims(), guarantees }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    /// One advice for each pattern on each backend with each cost: all that can be printed.
    fn every_advice() -> Vec<Advice> {
        let mut seen = BTreeSet::new();
        let all = questions::every_combination().filter(|answers| {
            let (pattern, backend) = (rules::pattern(answers), rules::backend(answers));
            seen.insert((pattern.outcome, backend.outcome, answers.say(DOUBLE_RUN, CHARGE)))
        });
        all.map(Advice::of).collect()
    }

    #[test]
    fn every_command_is_one_of_ours_with_a_url_that_is_known() {
        let mut verbs = BTreeSet::new();
        for advice in every_advice() {
            let Some(command) = &advice.command else { continue };
            let cli =
                Cli::try_parse_from(command.split(' ')).unwrap_or_else(|error| panic!("{command}: {error}"));
            if let Some(url) = &cli.global.url {
                guarantees_of(url).unwrap_or_else(|error| panic!("{command}: {error}"));
            }
            verbs.insert(command.split(' ').nth(1).unwrap().to_owned());
            if let Verb::Run(run) = cli.verb {
                let durable = guarantees_of(&cli.global.url.unwrap()).unwrap().tokens_are_durable();
                assert!(
                    run.lock.stakes() == ringfence::Stakes::Efficiency || durable,
                    "{command}: would be refused"
                );
            }
        }
        let expected = ["elect", "gate", "idempotent", "once", "outbox", "partitions", "record", "run"];
        assert_eq!(verbs, expected.map(str::to_owned).into());
    }

    #[test]
    fn nobody_whose_double_run_costs_more_than_work_is_sent_to_tokens_that_can_go_back() {
        for advice in every_advice().iter().filter(|advice| advice.answers.say(DOUBLE_RUN, CHARGE)) {
            let Some(backend) = &advice.backend else { continue };
            assert!(backend.guarantees.tokens_are_durable(), "{advice:?}");
        }
    }

    #[test]
    fn what_is_promised_is_what_the_backend_says_and_something_is_always_left_open() {
        for advice in every_advice() {
            let text = advice.text();
            assert!(!advice.not_guaranteed.is_empty(), "{advice:?}");
            assert!(advice.not_guaranteed.iter().all(|what| text.contains(what)), "{text}");
            let Some(backend) = &advice.backend else { continue };
            for about in PRINTED {
                let claim = guarantees_of(backend.url)
                    .unwrap()
                    .claims()
                    .into_iter()
                    .find(|claim| claim.about == about);
                let claim =
                    claim.unwrap_or_else(|| panic!("{}: nothing is promised about {about}", backend.url));
                assert!(text.contains(&format!("- {about}: {}\n", claim.promise)), "{text}");
            }
        }
    }

    #[test]
    fn everybody_gets_a_program_but_who_needs_no_lock_and_it_has_the_url_of_the_backend() {
        for advice in every_advice() {
            let Some(program) = &advice.program else {
                assert_eq!(advice.pattern, "no-lock");
                continue;
            };
            assert!(advice.text().contains(program.trim_end()), "{}", advice.text());
            let url = match &advice.backend {
                Some(backend) => format!("connect({:?})", backend.url),
                None => format!("{:?}", patterns::DATABASE),
            };
            assert!(program.contains(&url), "{url}: {program}");
            assert!(!program.contains(patterns::CONNECTS), "{program}");
        }
    }

    /// The section of a manifest under this heading.
    fn section<'a>(manifest: &'a str, heading: &str) -> &'a str {
        let (_, rest) = manifest.split_once(&format!("\n[{heading}]\n")).expect("it has such a section");
        rest.split_once("\n[").map_or(rest, |(section, _)| section)
    }

    /// What stands there under this name, as `name = value`.
    fn entry<'a>(section: &'a str, name: &str) -> Option<&'a str> {
        section.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))
    }

    #[test]
    fn every_package_that_is_to_be_added_has_the_features_that_are_named_and_the_version_that_is_ours() {
        let ours = section(include_str!("../../../../Cargo.toml"), "workspace.dependencies");
        let features = section(include_str!("../../../../ringfence/Cargo.toml"), "features");
        let mut seen = BTreeSet::new();
        for advice in every_advice() {
            for line in &advice.packages {
                let package = line.strip_prefix("cargo add ").expect("a command");
                let (package, named) = package.split_once(" --features ").unwrap_or((package, ""));
                let (name, version) = package.split_once('@').unwrap_or((package, ""));
                let entry = entry(ours, name).unwrap_or_else(|| panic!("{line}: no package of ours"));
                assert!(version.is_empty() || entry.contains(&format!("\"{version}")), "{line}: {entry}");
                if name == "ringfence" {
                    for feature in named.split(',').filter(|feature| !feature.is_empty()) {
                        assert!(self::entry(features, feature).is_some(), "{line}: there is no {feature}");
                        seen.insert(feature.to_owned());
                    }
                }
            }
        }
        let expected = ["etcd", "outbox", "postgres", "postgres-sqlx", "redis", "zookeeper"];
        assert_eq!(seen, expected.map(str::to_owned).into());
    }

    /// What a program names is added, and what is added is named by it.
    #[test]
    fn a_program_needs_the_packages_that_are_to_be_added_and_no_other() {
        for advice in every_advice() {
            let Some(program) = &advice.program else { continue };
            let named: BTreeSet<_> = program
                .split(|character: char| {
                    !(character.is_alphanumeric() || character == '_' || character == ':')
                })
                .filter_map(|word| word.split_once("::").map(|(first, _)| first))
                .filter(|first| first.starts_with(|first: char| first.is_ascii_lowercase()))
                .filter(|first| !["std", "self", "outbox"].contains(first))
                .map(str::to_owned)
                .collect();
            let added: BTreeSet<_> = advice
                .packages
                .iter()
                .map(|line| line.split([' ', '@']).nth(2).expect("a package").replace('-', "_"))
                .collect();
            assert_eq!(named, added, "{}: {program}", advice.pattern);
        }
    }

    /// What `--json` prints of the answers is what `--answers` reads.
    #[test]
    fn the_answers_that_are_printed_can_be_given_again() {
        for answers in questions::every_combination().step_by(97) {
            let printed = serde_json::to_string(&answers).unwrap();
            let again = questions::parse(&printed).unwrap().complete().unwrap();
            assert_eq!(again, answers, "{printed}");
        }
    }
}
