//! A counter in a versioned record: for each process that counts, how often it did.

use std::collections::BTreeMap;
use std::time::Duration;

use ringfence::{Error, Locks};
use ringfence_servers::Event;

use crate::{now, report, say};

/// How long it does nothing between two updates.
const PAUSE: Duration = Duration::from_millis(2);

/// Counts for ever. What is refused is not counted, and it goes on.
pub(crate) async fn count(locks: &Locks, name: &str, ttl: Duration) {
    let record = locks.versioned(name).ttl(ttl).wait(10 * ttl).tries(u32::MAX);
    loop {
        let counted = record.update(async |current| {
            let mut counts: BTreeMap<u32, u64> = current
                .map(|record| serde_json::from_slice(&record.value).expect("only counts are written"))
                .unwrap_or_default();
            *counts.entry(std::process::id()).or_default() += 1;
            Ok::<_, Error>(serde_json::to_vec(&counts).expect("numbers are JSON"))
        });
        match counted.await {
            Ok(version) => say(&Event::Written { version, value: String::new(), at: now() }),
            Err(error) => report(Err(error)),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
