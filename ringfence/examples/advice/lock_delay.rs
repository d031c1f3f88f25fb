//! One at a time, and after a holder that was lost nobody for a while: for what cannot refuse anything.

use std::time::Duration;

use ringfence::Locks;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    // Longer than any of its holders can be paused and still act.
    let request = locks.lock("device/7").lock_delay(Duration::from_mins(1));
    request.run(async |_held| println!("moving the arm")).await
}
