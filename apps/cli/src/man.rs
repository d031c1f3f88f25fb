use std::io;

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use crate::cli::Cli;
use crate::exit_codes;
use crate::failure::Failure;

/// Print a manual page, for man(1)
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Of this verb, as in `ringfence man record put`
    #[arg(value_name = "VERB")]
    verb: Vec<String>,
}

/// Prints the manual page of the program or of one verb.
pub(crate) fn run(args: &ManArgs) -> Result<u8, Failure> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut page = &program;
    for verb in &args.verb {
        page = page.find_subcommand(verb).ok_or_else(|| {
            let known: Vec<_> = page.get_subcommands().map(clap::Command::get_name).collect();
            let guess = match ringfence::nearest(verb, &known) {
                Some(near) => format!(", did you mean {near:?}?"),
                None if known.is_empty() => String::new(),
                None => format!("; known: {}", known.join(", ")),
            };
            Failure::new(exit_codes::USAGE, format!("{} has no verb {verb:?}{guess}", page.get_name()))
        })?;
    }
    let source = concat!("ringfence ", env!("CARGO_PKG_VERSION"));
    Man::new(page.clone()).source(source).render(&mut io::stdout())?;
    Ok(exit_codes::OK)
}
