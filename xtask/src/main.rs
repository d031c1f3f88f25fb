//! The chores of the house, as `cargo xtask VERB`: one file for each verb.

mod bench;
mod command;
mod evidence;
mod fuzz;
mod generate;
mod messages;
mod setup;
mod test;

use std::process::ExitCode;

use clap::Parser;

/// The chores of the house.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Verb {
    Setup(setup::Args),
    Test(test::Args),
    Gen(generate::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let outcome = match Verb::parse() {
        Verb::Setup(args) => setup::run(args),
        Verb::Test(args) => test::run(args),
        Verb::Gen(args) => generate::run(args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
