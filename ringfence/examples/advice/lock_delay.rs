//! One at a time, and after a holder that was lost nobody for a while: for what cannot refuse anything.

use std::time::Duration;

use ringfence::Locks;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    // Longer than any of its holders can be paused and still act. TTL and delay together are at most the longest lease of the
    // backend: 40 s on a ZooKeeper that is configured as it comes.
    let ttl = Duration::from_secs(10);
    let request = locks.lock("device/7").ttl(ttl).lock_delay(Duration::from_secs(30));
    request.run(async |_held| println!("moving the arm")).await
}
