//! The questions, which are flags of `advise` as well, and where their answers come from: flags, a file, a person.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use ringfence::nearest;
use serde::Serialize;

use crate::exit_codes;
use crate::failure::Failure;

/// A question, and what can be answered to it.
#[derive(Debug)]
pub(super) struct Question {
    /// Its flag, and its column in the tables of the rules.
    pub(super) flag: &'static str,
    pub(super) text: &'static str,
    /// What it is about, in a sentence.
    explanation: &'static str,
    /// Each answer, and what it means.
    pub(super) answers: &'static [(&'static str, &'static str)],
    /// How many of the answers, from the front, can be given together. The others stand alone.
    pub(super) together: usize,
}

/// All of them, in the order in which they are asked.
pub(super) const QUESTIONS: [Question; 6] = [
    Question {
        flag: "idempotent",
        text: "Is the work idempotent?",
        explanation: "Whether the end is the same where it is done twice with the same input.",
        answers: &[
            ("yes", "done twice, the end is the same as done once"),
            ("by-key", "not by itself, but each request has an id of its own"),
            ("no", "a second time does something more"),
        ],
        together: 0,
    },
    Question {
        flag: "in-transaction",
        text: "Does what it changes live in a database transaction?",
        explanation: "A transaction checks and writes in one step; what lies outside of it needs a fence of its own.",
        answers: &[
            ("postgres", "all of it is rows of one PostgreSQL database"),
            ("other-sql", "all of it is rows of one MySQL, MariaDB or SQLite database"),
            (
                "with-message",
                "rows of one PostgreSQL or SQLite database, and a message that must follow the commit",
            ),
            ("one-value", "it is one small value, which can live beside its lock"),
            ("http", "it is behind a service that is asked by HTTP"),
            ("objects", "it is in an object store or in files"),
            ("no", "it is elsewhere"),
        ],
        together: 0,
    },
    Question {
        flag: "double-run",
        text: "What does a double run cost?",
        explanation: "A paused holder can always overlap with the next one: is that a waste, or is it wrong?",
        answers: &[
            ("waste", "work that was in vain, and no more"),
            ("charge", "something wrong that stays: a second charge, a lost update"),
        ],
        together: 0,
    },
    Question {
        flag: "shard",
        text: "Can it be sharded to a single writer?",
        explanation: "Whether it falls into parts, by customer or by order, that can have one process each.",
        answers: &[("yes", "each part can have one writer"), ("no", "it is one thing")],
        together: 0,
    },
    Question {
        flag: "have",
        text: "What do you already run? Several with commas",
        explanation: "The best backend is most often one that is there, and that somebody watches over.",
        answers: &[
            ("redis", "Redis or Valkey"),
            ("redlock", "several Redis servers that know nothing of each other"),
            ("etcd", "an etcd cluster"),
            ("zookeeper", "a ZooKeeper ensemble"),
            ("postgres", "PostgreSQL"),
            ("one-machine", "one machine, and no other is involved"),
            ("nothing", "nothing of these, on several machines"),
        ],
        together: 5,
    },
    Question {
        flag: "contenders",
        text: "How many contenders, for how long?",
        explanation: "A moment's work, a job by the clock and a leader for life are different things.",
        answers: &[
            ("few-briefly", "a few, each for a moment"),
            ("many-briefly", "a crowd for the same thing, each for a moment"),
            ("each-window", "every host, once an hour or a day"),
            ("one-always", "one for as long as it lives, the others stand by"),
            ("some-at-once", "up to so many at the same time"),
        ],
        together: 0,
    },
];

/// Find out whether a lock is what you need, and which
///
/// Six questions lead to a pattern, a backend, a command and a program to paste, and to what is not guaranteed. What no flag and no
/// file answers is asked on the terminal; without a terminal it is an error. The rules are the tables of docs/guides/choosing.md.
#[derive(Debug, Args)]
pub(crate) struct AdviseArgs {
    #[command(flatten)]
    answers: Answers,
    /// Take what no flag answers from this file, as in {"idempotent":"no","have":"redis,etcd"}; --json prints one
    #[arg(long = "answers", id = "answers_file", value_name = "FILE", display_order = 99)]
    file: Option<PathBuf>,
}

/// What was answered so far, by the flags of the questions; several answers with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Answers(BTreeMap<&'static str, String>);

impl Answers {
    /// Whether this was answered, alone or among others.
    pub(super) fn say(&self, flag: &str, answer: &str) -> bool {
        self.0.get(flag).is_some_and(|answers| answers.split(',').any(|given| given == answer))
    }

    /// The other's answers where there are none of ours.
    fn or(mut self, other: Self) -> Self {
        for (flag, answer) in other.0 {
            self.0.entry(flag).or_insert(answer);
        }
        self
    }

    /// All questions are answered, or which are not, and what could be.
    pub(super) fn complete(self) -> Result<Self, Failure> {
        let missing = QUESTIONS.iter().filter(|question| !self.0.contains_key(question.flag));
        let missing: Vec<_> = missing
            .map(|question| format!("--{} ({})", question.flag, question.names().join(", ")))
            .collect();
        if missing.is_empty() {
            return Ok(self);
        }
        Err(usage(format!(
            "no answer to {}: give it by the flag or in the file of --answers, or let yourself be asked on a terminal",
            missing.join("; ")
        )))
    }
}

/// The answers: flags win over the file, and what neither says is asked for where there is a person to ask.
pub(super) fn answers(args: AdviseArgs) -> Result<Answers, Failure> {
    let mut answers = args.answers;
    if let Some(file) = args.file {
        answers = answers.or(read(&file)?);
    }
    if io::stdin().is_terminal() && io::stderr().is_terminal() {
        ask(&mut answers, &mut io::stdin().lock(), &mut io::stderr().lock())?;
    }
    answers.complete()
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(exit_codes::USAGE, message)
}

/// The answers in a file.
fn read(file: &Path) -> Result<Answers, Failure> {
    let name = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::new(exit_codes::IO, format!("{name}: {error}")))?;
    parse(&text).map_err(|why| usage(format!("{name}: {why}")))
}

pub(super) fn parse(text: &str) -> Result<Answers, String> {
    let given: BTreeMap<String, String> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let mut answers = Answers::default();
    for (flag, text) in given {
        let question = QUESTIONS.iter().find(|question| question.flag == flag).ok_or_else(|| {
            let flags = QUESTIONS.map(|question| question.flag);
            let guess =
                nearest(&flag, &flags).map(|near| format!(", did you mean {near:?}?")).unwrap_or_default();
            format!("{flag:?} is no question{guess} They are {}", flags.join(", "))
        })?;
        answers.0.insert(question.flag, question.answer(&text)?);
    }
    Ok(answers)
}

impl Question {
    fn names(&self) -> Vec<&'static str> {
        self.answers.iter().map(|(name, _)| *name).collect()
    }

    /// An answer as it was typed, or several with commas: each by its name or its number.
    fn answer(&self, typed: &str) -> Result<String, String> {
        let names = self.names();
        let mut given = Vec::new();
        for word in typed.split(',').map(str::trim) {
            let number = word.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
            let place = number
                .filter(|place| *place < names.len())
                .or_else(|| names.iter().position(|name| *name == word));
            let place = place.ok_or_else(|| {
                let guess =
                    nearest(word, &names).map(|near| format!(", did you mean {near}?")).unwrap_or_default();
                format!("{word:?} is no answer to --{}{guess} Expected {}", self.flag, names.join(", "))
            })?;
            if !given.contains(&place) {
                given.push(place);
            }
        }
        if given.len() > 1 && given.iter().any(|place| *place >= self.together) {
            let alone = names[self.together..].join(", ");
            return Err(format!("--{}: {alone} can each be an answer alone, not one of several", self.flag));
        }
        Ok(given.into_iter().map(|place| names[place]).collect::<Vec<_>>().join(","))
    }

    fn flag(&self) -> Arg {
        let values = self.answers.iter().map(|(name, meaning)| PossibleValue::new(name).help(meaning));
        let flag = Arg::new(self.flag)
            .long(self.flag)
            .value_name("ANSWER")
            .value_parser(PossibleValuesParser::new(values))
            .help(self.text)
            .long_help(format!("{}\n\n{}", self.text, self.explanation));
        if self.together > 0 { flag.action(ArgAction::Append).value_delimiter(',') } else { flag }
    }
}

impl Args for Answers {
    fn augment_args(command: Command) -> Command {
        command.args(QUESTIONS.iter().map(Question::flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Answers {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut answers = Self::default();
        answers.update_from_arg_matches(matches)?;
        Ok(answers)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for question in &QUESTIONS {
            let Some(given) = matches.get_many::<String>(question.flag) else { continue };
            let given = given.map(String::as_str).collect::<Vec<_>>().join(",");
            let invalid =
                |why| clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, format!("{why}\n"));
            self.0.insert(question.flag, question.answer(&given).map_err(invalid)?);
        }
        Ok(())
    }
}

/// Asks a person for what is missing, until there is an answer to each question or the person closes the input.
fn ask(answers: &mut Answers, input: &mut impl BufRead, output: &mut impl Write) -> Result<(), Failure> {
    for question in &QUESTIONS {
        if answers.0.contains_key(question.flag) {
            continue;
        }
        writeln!(output, "\n{}\n{}", question.text, question.explanation)?;
        for (place, (name, meaning)) in question.answers.iter().enumerate() {
            writeln!(output, "  {}  {name:<12}  {meaning}", place + 1)?;
        }
        let answer = loop {
            write!(output, "--{} ", question.flag)?;
            output.flush()?;
            let mut line = String::new();
            if input.read_line(&mut line)? == 0 {
                writeln!(output)?;
                return Ok(());
            }
            match question.answer(line.trim()) {
                Ok(answer) => break answer,
                Err(why) => writeln!(output, "{why}")?,
            }
        };
        answers.0.insert(question.flag, answer);
    }
    Ok(())
}

/// Every combination of answers that can be given.
#[cfg(test)]
pub(super) fn every_combination() -> impl Iterator<Item = Answers> {
    let choices = QUESTIONS.iter().map(|question| {
        let (together, alone) = question.answers.split_at(question.together);
        let sets = (1..1_u32 << together.len()).map(|set| {
            let members = together.iter().enumerate().filter(move |(place, _)| set & (1 << place) != 0);
            members.map(|(_, (name, _))| *name).collect::<Vec<_>>().join(",")
        });
        sets.chain(alone.iter().map(|(name, _)| (*name).to_owned())).collect::<Vec<_>>()
    });
    let choices: Vec<_> = choices.collect();
    let number = choices.iter().map(Vec::len).product::<usize>();
    (0..number).map(move |mut rest| {
        let mut answers = Answers::default();
        for (question, choices) in QUESTIONS.iter().zip(&choices) {
            answers.0.insert(question.flag, choices[rest % choices.len()].clone());
            rest /= choices.len();
        }
        answers
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(typed: &str, known: &str) -> (Answers, String) {
        let (mut answers, mut output) = (parse(known).unwrap(), Vec::new());
        ask(&mut answers, &mut typed.as_bytes(), &mut output).unwrap();
        (answers, String::from_utf8(output).unwrap())
    }

    #[test]
    fn a_person_is_asked_what_is_missing_and_answers_by_number_or_by_name() {
        let known = r#"{"double-run":"charge","shard":"no"}"#;
        let (answers, output) = asked("3\nno\n1, etcd\n1\n", known);
        let expected = r#"{"contenders":"few-briefly","double-run":"charge","have":"redis,etcd","idempotent":"no","in-transaction":"no","shard":"no"}"#;
        assert_eq!(serde_json::to_string(&answers).unwrap(), expected);
        for question in &QUESTIONS {
            let was_known = known.contains(question.flag);
            assert_eq!(output.contains(question.explanation), !was_known, "{}: {output}", question.flag);
            assert!(
                was_known || question.answers.iter().all(|(_, meaning)| output.contains(meaning)),
                "{output}"
            );
        }
    }

    #[test]
    fn what_is_no_answer_is_asked_for_again_with_what_could_be() {
        let known = r#"{"idempotent":"no","in-transaction":"no","double-run":"charge","shard":"no","contenders":"few-briefly"}"#;
        let (answers, output) = asked("\n8\n0\nredi\nredis,nothing\npostgres\n", known);
        assert!(answers.say("have", "postgres"));
        for said in
            ["\"\" is no answer", "\"8\" is no answer", "\"0\" is no answer", "did you mean redis?", "alone"]
        {
            assert!(output.contains(said), "{said}: {output}");
        }
        let (answers, _) = asked("", known);
        let failure = answers.complete().unwrap_err();
        assert_eq!(failure.code(), exit_codes::USAGE);
        assert!(failure.message().unwrap().contains("--have (redis, redlock, etcd"), "{failure:?}");
    }

    #[test]
    fn a_file_with_anything_unknown_in_it_is_refused() {
        for (text, why) in [
            (r#"{"idempotnt":"no"}"#, "did you mean \"idempotent\"?"),
            (r#"{"idempotent":"maybe"}"#, "Expected yes, by-key, no"),
            (r#"{"have":"redis,one-machine"}"#, "alone"),
            (r#"{"shard":"yes,no"}"#, "alone"),
            (r#"{"shard":true}"#, "invalid type"),
            ("", "EOF"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn all_combinations_are_all() {
        let mut all: Vec<_> = every_combination().map(|answers| answers.0).collect();
        assert!(all.iter().all(|answers| answers.len() == QUESTIONS.len()));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 3 * 7 * 2 * 2 * (31 + 2) * 5);
    }
}
