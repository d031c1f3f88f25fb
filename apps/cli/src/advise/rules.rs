//! The rules, which are the tables of the guide `choosing.md`: read from the top, the first line that fits is the answer.
//!
//! What is tested about them: every word is an answer that can be given, every combination of answers reaches a line, every line is
//! reached by some, and what a line leads to is there.

use std::sync::LazyLock;

use super::questions::Answers;

/// What people read, and the program as well, so that the two say the same.
const GUIDE: &str = include_str!("../../../../docs/guides/choosing.md");

/// Where the guide's links start from.
const GUIDES: &str = "docs/guides/";

/// In a cell: whatever was answered.
const ANY: &str = "any";

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Which answers it is for: a question, by its flag, and the answers of which one was given, `None` for any.
    conditions: Vec<(&'static str, Option<Vec<&'static str>>)>,
    /// The name of a pattern, or the URL of a backend.
    pub(super) outcome: &'static str,
    /// The guide's page about it, as seen from the guide.
    link: Option<&'static str>,
    pub(super) because: &'static str,
}

static PATTERNS: LazyLock<Vec<Rule>> = LazyLock::new(|| table("pattern"));
static BACKENDS: LazyLock<Vec<Rule>> = LazyLock::new(|| table("backend"));

/// The line that decides the pattern.
pub(super) fn pattern(answers: &Answers) -> &'static Rule {
    first(&PATTERNS, answers)
}

/// The line that decides the backend.
pub(super) fn backend(answers: &Answers) -> &'static Rule {
    first(&BACKENDS, answers)
}

fn first(table: &'static [Rule], answers: &Answers) -> &'static Rule {
    table.iter().find(|rule| rule.fits(answers)).expect("a test sends every combination of answers here")
}

impl Rule {
    fn fits(&self, answers: &Answers) -> bool {
        self.conditions.iter().all(|(question, wanted)| {
            wanted.as_ref().is_none_or(|wanted| wanted.iter().any(|answer| answers.say(question, answer)))
        })
    }

    /// The page to read on, from the root of the repository.
    pub(super) fn page(&self) -> Option<String> {
        self.link.map(|link| match link.strip_prefix("../") {
            Some(above) => format!("docs/{above}"),
            None => format!("{GUIDES}{link}"),
        })
    }
}

/// The lines of a table of the guide: between two marks, the names of the columns, a rule, and a line for each rule.
fn table(name: &str) -> Vec<Rule> {
    let begin = format!("<!-- {name}:begin -->\n");
    let end = format!("<!-- {name}:end -->");
    let (_, rest) = GUIDE.split_once(&begin).expect("the guide has its tables between marks");
    let (table, _) = rest.split_once(&end).expect("the guide has its tables between marks");
    let mut lines = table.lines().map(cells);
    let columns = lines.next().expect("a table begins with the names of its columns");
    lines.skip(1).map(|line| rule(&columns, &line)).collect()
}

fn cells(line: &'static str) -> Vec<&'static str> {
    line.trim_matches('|').split('|').map(str::trim).collect()
}

/// The last two cells are what it leads to and why; those before them are conditions.
fn rule(columns: &[&'static str], cells: &[&'static str]) -> Rule {
    assert_eq!(cells.len(), columns.len(), "a line of the guide's table has all cells: {cells:?}");
    let [conditions @ .., outcome, because] = cells else {
        panic!("a line says what it leads to, and why: {cells:?}")
    };
    let wanted = |cell: &'static str| (cell != ANY).then(|| cell.split(", ").collect());
    let linked = outcome.strip_prefix('[').and_then(|link| link.strip_suffix(')')?.split_once("]("));
    Rule {
        conditions: columns.iter().copied().zip(conditions.iter().copied().map(wanted)).collect(),
        outcome: linked.map_or(outcome.trim_matches('`'), |(name, _)| name),
        link: linked.map(|(_, page)| page),
        because,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use ringfence::guarantees_of;

    use super::super::patterns::{self, Pattern};
    use super::super::questions::{QUESTIONS, every_combination, parse};
    use super::*;

    #[test]
    fn every_combination_of_answers_reaches_one_line_and_every_line_is_reached() {
        // How many combinations reach each line: who changes a condition, or the order, sees here for how many that is.
        const TO_PATTERNS: [u32; 18] =
            [1980, 2376, 2376, 1188, 1188, 1584, 264, 528, 264, 1056, 132, 264, 66, 99, 99, 3, 96, 297];
        const TO_BACKENDS: [u32; 8] = [420, 3360, 5040, 2520, 1260, 210, 630, 420];
        for (name, table, expected) in
            [("pattern", &PATTERNS, &TO_PATTERNS[..]), ("backend", &BACKENDS, &TO_BACKENDS)]
        {
            let mut reached = vec![0; table.len()];
            for answers in every_combination() {
                let line = table.iter().position(|rule| rule.fits(&answers));
                reached[line.unwrap_or_else(|| panic!("no line of {name} fits {answers:?}"))] += 1;
            }
            for (rule, times) in table.iter().zip(&reached) {
                assert!(*times > 0, "{name}: an earlier line always fits before {rule:?}");
            }
            assert_eq!(reached, expected, "{name}");
        }
    }

    #[test]
    fn every_word_of_the_tables_is_an_answer_and_every_answer_but_the_last_decides_something() {
        let mut used = BTreeMap::<_, BTreeSet<_>>::new();
        for rule in PATTERNS.iter().chain(BACKENDS.iter()) {
            for (flag, wanted) in &rule.conditions {
                let question = QUESTIONS.iter().find(|question| question.flag == *flag);
                let question = question.unwrap_or_else(|| panic!("{flag} is no question"));
                for word in wanted.iter().flatten() {
                    let known = question.answers.iter().any(|(name, _)| name == word);
                    assert!(known, "{word} is no answer to --{flag}: {rule:?}");
                    used.entry(*flag).or_default().insert(*word);
                }
            }
        }
        for question in &QUESTIONS {
            let unused = question.answers.iter().filter(|(name, _)| !used[question.flag].contains(name));
            let unused: Vec<_> = unused.collect();
            assert!(unused.len() <= 1, "--{}: these lead to the same: {unused:?}", question.flag);
        }
    }

    /// The guide lists the questions for those who read; the program has them for those who are asked.
    #[test]
    fn the_guide_names_every_answer() {
        for question in &QUESTIONS {
            let line = GUIDE.lines().find(|line| line.starts_with(&format!("| `--{}` |", question.flag)));
            let line = line.unwrap_or_else(|| panic!("the guide says nothing of --{}", question.flag));
            for (name, _) in question.answers {
                assert!(line.contains(&format!("`{name}`")), "{name}: {line}");
            }
        }
    }

    #[test]
    fn every_line_leads_to_something_that_is_there_and_nothing_is_there_in_vain() {
        let mut named = BTreeSet::new();
        for rule in PATTERNS.iter() {
            named.insert(Pattern::named(rule.outcome).name);
            if let Some(page) = rule.page() {
                let file = page.split('#').next().unwrap();
                let path = format!("{}/../../{file}", env!("CARGO_MANIFEST_DIR"));
                assert!(std::fs::exists(&path).unwrap(), "{page} is not there");
            }
        }
        assert_eq!(named, patterns::PATTERNS.iter().map(|pattern| pattern.name).collect());
        for rule in BACKENDS.iter() {
            guarantees_of(rule.outcome).unwrap_or_else(|error| panic!("{}: {error}", rule.outcome));
        }
    }

    /// A test for each line, by answers that a person would give.
    #[test]
    fn what_people_ask_about_gets_the_pattern_that_it_needs() {
        // In the order of the questions.
        for (answers, pattern, backend) in [
            (["no", "with-message", "charge", "no", "postgres", "few-briefly"], "outbox", "postgres"),
            (["no", "no", "waste", "no", "one-machine", "some-at-once"], "permits", "local"),
            (["no", "no", "waste", "no", "redis", "each-window"], "once", "redis"),
            (["no", "no", "charge", "yes", "etcd", "one-always"], "partitions", "etcd"),
            (["no", "no", "charge", "no", "zookeeper", "one-always"], "leader", "zookeeper"),
            (["yes", "no", "waste", "no", "redis", "few-briefly"], "no-lock", "redis"),
            (["no", "postgres", "charge", "no", "postgres", "few-briefly"], "conditional-update", "postgres"),
            (["no", "other-sql", "charge", "no", "redis", "many-briefly"], "conditional-update", "postgres"),
            (["no", "postgres", "charge", "no", "postgres", "many-briefly"], "transaction-lock", "postgres"),
            (["by-key", "no", "charge", "no", "etcd,postgres", "few-briefly"], "idempotency", "postgres"),
            (["no", "one-value", "charge", "no", "etcd", "few-briefly"], "versioned", "etcd"),
            (["no", "no", "waste", "yes", "redlock", "many-briefly"], "partitions", "redlock"),
            (["no", "one-value", "charge", "no", "redis", "many-briefly"], "fenced-record", "postgres"),
            (["no", "http", "charge", "no", "nothing", "few-briefly"], "gate", "postgres"),
            (["no", "objects", "charge", "no", "redlock", "few-briefly"], "object-fence", "postgres"),
            (["no", "no", "charge", "no", "one-machine", "few-briefly"], "lock", "local"),
            (["no", "no", "charge", "no", "zookeeper,etcd", "few-briefly"], "lock-delay", "etcd"),
            (["no", "no", "waste", "no", "redis,postgres", "few-briefly"], "lock", "redis"),
        ] {
            let answers: BTreeMap<_, _> =
                QUESTIONS.iter().map(|question| question.flag).zip(answers).collect();
            let answers = parse(&serde_json::to_string(&answers).unwrap()).unwrap();
            assert_eq!(super::pattern(&answers).outcome, pattern, "{answers:?}");
            let url = super::backend(&answers).outcome;
            assert!(url.starts_with(&format!("{backend}:")), "{answers:?}: {url}");
        }
    }
}
