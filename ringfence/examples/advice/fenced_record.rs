//! One at a time, and what the lock guards lives behind its fence.

use ringfence::Locks;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let guard = locks.lock("counter").acquire().await?;
    let counter = locks.record("counter")?;
    // Older tokens are refused from here on, so that what is read now stays true until it is written.
    let opened = counter.open(guard.token()).await?;
    let count: u64 = opened.record.map_or(0, |record| parse(&record.value));
    // Refused with `Stale`, if the lease was lost meanwhile.
    counter.write(guard.token(), (count + 1).to_string()).await?;
    guard.release().await
}

fn parse(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}
