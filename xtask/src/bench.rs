use crate::command::{Result, cargo, run as run_command};

/// Run the benchmarks (the package ringfence-bench, in release).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the benchmark program is told; `-- --help` lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result {
    run_command(
        cargo()
            .args(["run", "--release", "-p", "ringfence-bench", "--features", "peers", "--"])
            .args(&args.arguments),
    )
}
