//! The program `ringfence`: locks from the shell.
//!
//! One file per verb, named after it, which begins with its flags; [`cli`] has what verbs share, [`exit_codes`] what scripts decide
//! by.

#![expect(clippy::doc_markdown, reason = "the doc comments of flags are the help, which is plain text")]

mod advise;
mod child;
mod cli;
mod completions;
mod doctor;
mod elect;
mod evict;
mod exit_codes;
mod failure;
mod fence;
mod fence_table;
mod gate;
mod guarantees;
mod hold;
mod idempotent;
mod job;
mod job_control;
mod lock;
mod lock_view;
mod ls;
mod man;
mod once;
mod outbox;
mod partitions;
mod print;
mod record;
mod run;
mod setup;
mod show;
mod signals;

use std::env::{self, VarError};
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use ringfence::{Error, ErrorKind, Locks};
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Global, Verb};
use crate::failure::Failure;
use crate::outbox::OutboxVerb;
use crate::print::Messages;
use crate::record::RecordVerb;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    if let Some(code) = child::exec(&arguments) {
        return code;
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let messages = cli.global.messages();
    let code = start(cli).unwrap_or_else(|failure| {
        if let Some(message) = failure.message() {
            messages.error(&message, failure.code());
        }
        failure.code()
    });
    code.into()
}

fn start(cli: Cli) -> Result<u8, Failure> {
    let logs = match cli.verb {
        // A relay has nobody to show to what it does but its log.
        Verb::Outbox(OutboxVerb::Relay(_)) => Some("ringfence=info"),
        // What is left out of a listing, and why.
        Verb::Ls(_) | Verb::Record(RecordVerb::Ls(_)) => Some("ringfence=warn"),
        _ => None,
    };
    start_log(logs)?;
    // One thread: a command started from another one would be killed with that thread, not with the program.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(dispatch(cli));
    // What still runs in the background has nobody to tell.
    runtime.shutdown_background();
    code
}

async fn dispatch(Cli { global, verb }: Cli) -> Result<u8, Failure> {
    match verb {
        Verb::Run(args) => run::run(args, &global).await,
        Verb::Hold(args) => hold::run(args, &global).await,
        Verb::Ls(args) => ls::run(args, &global).await,
        Verb::Show(args) => show::run(args, &global).await,
        Verb::Evict(args) => evict::run(args, &global).await,
        Verb::Elect(args) => elect::run(args, &global).await,
        Verb::Once(args) => once::run(args, &global).await,
        Verb::Partitions(args) => partitions::run(args, &global).await,
        Verb::Idempotent(args) => idempotent::run(args, &global).await,
        Verb::Record(verb) => record::run(verb, &global).await,
        Verb::Fence(verb) => fence::run(verb, &global).await,
        Verb::FenceTable(args) => fence_table::run(args, global).await,
        Verb::Gate(args) => gate::run(args, &global).await,
        Verb::Outbox(verb) => outbox::run(verb, global).await,
        Verb::Advise(args) => advise::run(args, &global),
        Verb::Doctor(args) => doctor::run(args, global).await,
        Verb::Setup(args) => setup::run(args, global).await,
        Verb::Guarantees(args) => guarantees::run(&args, &global),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
    }
}

/// Prints the help or the version that was asked for, or what is wrong with the command line.
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let asked_for_help = !error.use_stderr();
    if asked_for_help || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return match error.print() {
            Ok(()) if asked_for_help => exit_codes::OK.into(),
            Ok(()) => exit_codes::USAGE.into(),
            Err(error) => Failure::from(error).code().into(),
        };
    }
    // The command line could not be understood, so this is a guess at what its reader expects.
    let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    let text = error.to_string();
    Messages::new(json).usage(text.strip_prefix("error: ").unwrap_or(&text).trim_end(), exit_codes::USAGE);
    exit_codes::USAGE.into()
}

/// Logs to standard error, where `RINGFENCE_LOG` says what, as in `RINGFENCE_LOG=debug`; else what is logged by default.
fn start_log(default: Option<&str>) -> Result<(), Failure> {
    let Some(filter) = variable("RINGFENCE_LOG")?.or(default.map(str::to_owned)) else { return Ok(()) };
    let filter = EnvFilter::try_new(&filter).map_err(|error| {
        Error::new(ErrorKind::InvalidRequest, format!("RINGFENCE_LOG={filter:?} is no log filter"))
            .because(error)
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// An environment variable, `None` if it is not set.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    match env::var(name) {
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(Failure::new(exit_codes::USAGE, format!("{name} is not UTF-8"))),
    }
}

impl Global {
    /// Which locks: the flag, else the environment, else the local store of this machine.
    fn url(&self) -> Result<String, Failure> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => Ok(variable("RINGFENCE_URL")?.unwrap_or_else(|| "local:".to_owned())),
        }
    }

    async fn connect(&self) -> Result<Locks, Failure> {
        Ok(Locks::connect(&self.url()?).await?)
    }

    fn messages(&self) -> Messages {
        Messages::new(self.json)
    }
}
