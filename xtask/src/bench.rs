use crate::command::{Result, cargo, run as run_command};

/// Run the benchmarks (the package ringfence-bench, in release).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What the benchmark program is told; `-- --help` lists it.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Peers that cannot be built with the rest, and where they go.
const PEERS: &[&str] = &["distributed_lock_postgres"];
const BUILT_PEERS: &str = "target/peers/rust";

pub(crate) fn run(args: &Args) -> Result {
    for peer in PEERS {
        let manifest = format!("bench/peers/{peer}/Cargo.toml");
        let build = ["build", "--release", "--locked", "--target-dir", BUILT_PEERS, "--manifest-path"];
        // The benchmark leaves out who is not there.
        if let Err(error) = run_command(cargo().args(build).arg(manifest)) {
            eprintln!("bench: {error}; it needs OpenSSL, as from: apt-get install libssl-dev pkg-config");
        }
    }
    // The gate is measured as people run it.
    run_command(cargo().args(["build", "--release", "-p", "ringfence-cli"]))?;
    run_command(
        cargo()
            .args(["run", "--release", "-p", "ringfence-bench", "--features", "peers", "--"])
            .args(&args.arguments),
    )
}
