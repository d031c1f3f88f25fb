//! After a holder has hung past its lease, nobody gets the lock for a while: `cargo run --example lock_delay`.

use std::time::Duration;

use ringfence::{Clock, Locks, SystemClock};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let request = || locks.lock("warehouse-robot/7").ttl(Duration::from_millis(500));

    // It does not renew, as if it hung.
    let hung = request().lock_delay(Duration::from_secs(2)).max_hold(Duration::ZERO).acquire().await?;
    hung.lost().await;
    let lost = SystemClock::new().now();
    println!("the first holder has lost the lock; what it has sent may be on its way");

    let next = request().acquire().await?;
    let waited = SystemClock::new().now().saturating_since(lost);
    println!("the next one has it {:.1} s later", waited.as_secs_f64());
    assert!(waited >= Duration::from_millis(1950), "the delay was not kept: {waited:?}");
    next.release().await
}
