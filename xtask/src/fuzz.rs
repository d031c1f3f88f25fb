use clap::ValueEnum;
use ringfence::{Clock, SystemClock};

use crate::command::{Result, cargo, program, run as run_command, succeeds};

/// Feed a parser, or the local store, what nobody would write, by libFuzzer where there is one.
///
/// Without cargo-fuzz or a nightly toolchain, the same checks run on random input that no coverage guides.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Which of them; all of them, one after the other, where none is named.
    #[arg(value_enum)]
    target: Option<Target>,
    /// How long each of them runs.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
}

/// The targets are in `fuzz/src/lib.rs`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Target {
    /// Backend URLs.
    Url,
    /// Lock names.
    Name,
    /// Fencing tokens.
    Token,
    /// What the local store finds on the disk.
    Log,
}

pub(crate) fn run(args: Args) -> Result {
    let targets = match &args.target {
        Some(target) => std::slice::from_ref(target),
        None => Target::value_variants(),
    };
    let missing = missing();
    if let Some(missing) = missing {
        eprintln!("fuzz: {missing}; the same checks run on random input instead");
    }
    for target in targets {
        let value = target.to_possible_value().expect("no target is hidden");
        let name = value.get_name();
        if missing.is_some() {
            random(name, args.seconds)?;
        } else {
            guided(name, args.seconds)?;
        }
    }
    Ok(())
}

/// What libFuzzer needs and this machine lacks, with the command that installs it.
fn missing() -> Option<&'static str> {
    if !succeeds(program("cargo").args(["+nightly", "--version"])) {
        return Some("there is no nightly toolchain (rustup toolchain install nightly)");
    }
    if !succeeds(program("cargo").args(["fuzz", "--version"])) {
        return Some("there is no cargo-fuzz (cargo install --locked cargo-fuzz)");
    }
    None
}

/// Runs a target under libFuzzer. `cargo` by name and not the one that runs us: only rustup's understands `+nightly`.
fn guided(target: &str, seconds: u32) -> Result {
    let fuzz = ["+nightly", "fuzz", "run", "--fuzz-dir", "fuzz", target, "--"];
    run_command(program("cargo").args(fuzz).arg(format!("-max_total_time={seconds}")))
}

/// Runs the property test of a target, with new random input every time, until the time is over.
fn random(target: &str, seconds: u32) -> Result {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(std::time::Duration::from_secs(seconds.into()));
    while clock.now() < end {
        run_command(cargo().env("PROPTEST_CASES", "200000").args([
            "test",
            "--release",
            "-p",
            "ringfence-xtask",
            "--test",
            "fuzz",
            "--",
            "--exact",
            target,
        ]))?;
    }
    Ok(())
}
