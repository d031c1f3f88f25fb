use std::io::{self, Write};

use clap::{Args, CommandFactory};

use crate::cli::Cli;
use crate::exit_codes;
use crate::failure::Failure;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Prints a completion script.
pub(crate) fn run(args: &CompletionsArgs) -> Result<u8, Failure> {
    // Into memory first: the generator panics where its output is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ringfence", &mut script);
    let mut out = io::stdout().lock();
    out.write_all(&script)?;
    out.flush()?;
    Ok(exit_codes::OK)
}
