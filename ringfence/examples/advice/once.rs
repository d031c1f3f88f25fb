//! Every host calls for it, one of them runs it.

use std::io::Write;
use std::time::Duration;

use ringfence::Locks;
use ringfence::patterns::OnceOutcome;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let nightly = locks.once("nightly").every(Duration::from_hours(24));
    match nightly.run(async |run| write_report(run.token())).await? {
        OnceOutcome::Ran { result: Ok(()), .. } => println!("done"),
        OnceOutcome::Ran { result: Err(error), .. } => println!("failed, and recorded as such: {error}"),
        OnceOutcome::Skipped(why) => println!("not this time: {why:?}"),
    }
    Ok(())
}

/// What it writes to should refuse a token that is lower than one it has seen.
fn write_report(token: ringfence::FencingToken) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "writing under {token}")
}
