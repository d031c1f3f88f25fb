//! Up to four at once; and up to ten in half a minute.

use std::time::Duration;

use ringfence::Locks;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let one_of_four = locks.lock("gpu").permits(4).acquire().await?;
    call_the_api(&locks).await?;
    one_of_four.release().await
}

async fn call_the_api(locks: &Locks) -> ringfence::Result<()> {
    let one_of_ten = locks.lock("api").permits(10).ttl(Duration::from_secs(30)).acquire().await?;
    // Not released: nobody else has this permit before half a minute is over.
    one_of_ten.leave_to_lapse().await?;
    println!("asking the API");
    Ok(())
}
