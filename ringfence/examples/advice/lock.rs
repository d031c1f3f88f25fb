//! One at a time, so that no work is done in vain.

use std::time::Duration;

use ringfence::Locks;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let request = locks.lock("report").wait(Duration::from_mins(1));
    // The body is cancelled before the lease can be lost.
    let pages = request.run(async |_held| write_report()).await?;
    println!("{pages} pages");
    Ok(())
}

fn write_report() -> u32 {
    12
}
