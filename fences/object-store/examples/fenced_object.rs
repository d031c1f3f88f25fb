//! One at a time, and the token beside the object, so that a stale writer is refused.

use std::error::Error;

use object_store::memory::InMemory;
use ringfence::Locks;
use ringfence_object_store::FencedObjects;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let locks = Locks::connect("memory:").await?;
    // Any `ObjectStore`, such as `AmazonS3Builder::from_env()`; refused if it cannot put on a condition.
    let objects = FencedObjects::new(InMemory::new(), "fences/probes").await?;
    let report = objects.object("reports/today.json")?;
    let guard = locks.lock("reports/today").acquire().await?;
    // Older tokens are refused from here on; and this one is, if it was overtaken meanwhile.
    let mut open = report.open(guard.token()).await?;
    open.write(r#"{"sum": 1}"#).await?;
    guard.release().await?;
    Ok(())
}
