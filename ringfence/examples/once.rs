//! Three hosts call for one report; one of them writes it.
//!
//! `cargo run -p ringfence --example once`, or with a URL for locks that other processes share: start it twice.

use std::time::Duration;

use ringfence::patterns::{OnceOutcome, Skipped};
use ringfence::{Locks, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let locks = Locks::connect(&url).await?;
    let hosts = ["ann", "bob", "cyd"].map(|host| tokio::spawn(call(locks.clone(), host)));
    for host in hosts {
        host.await.expect("no host panics")?;
    }
    for run in locks.once("report").history().await? {
        println!("{:?} under token {}, by {}", run.outcome, run.token, run.by);
    }
    Ok(())
}

/// What each host does, as often as it likes.
async fn call(locks: Locks, host: &str) -> Result<()> {
    let report = locks.once("report").every(Duration::from_mins(1)).retry_failed(true).label(host);
    let outcome = report
        .run(async |run| {
            println!("{host} reports on {:?}", run.window());
            // The work, with run.token() for whatever it writes to.
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok::<_, std::io::Error>("report.txt")
        })
        .await?;
    match outcome {
        OnceOutcome::Ran { result: Ok(file), .. } => println!("{host} wrote {file}"),
        OnceOutcome::Ran { result: Err(error), .. } => println!("{host} failed: {error}"),
        OnceOutcome::Skipped(Skipped::NotDue { last, .. }) => {
            println!("{host} has nothing to do: {} did it", last.by);
        }
        OnceOutcome::Skipped(_) => println!("{host} has nothing to do: somebody is at it"),
    }
    Ok(())
}
