//! Each member works on the parts that it is dealt, and hands them over when others join.

use ringfence::Locks;
use ringfence::patterns::{Partition, PartitionEvent};

const PARTS: u32 = 8;

#[tokio::main(flavor = "current_thread")]
pub async fn main() -> ringfence::Result<()> {
    let locks = Locks::connect("memory:").await?;
    let mut membership = locks.partitions("orders", PARTS).join().await?;
    let mut dealt = 0;
    // A real member goes on until it is told to leave.
    while dealt < PARTS {
        match membership.next().await? {
            Some(PartitionEvent::Assigned(partition)) => {
                dealt += 1;
                tokio::spawn(work(partition));
            }
            // Revoked, or lost: a part is somebody else's.
            Some(event) => println!("{event:?}"),
            None => break,
        }
    }
    membership.leave().await
}

/// What it writes to should refuse a token that is lower than one it has seen.
async fn work(partition: Partition) {
    println!("part {} under {}", partition.number(), partition.token());
    // Dropping it afterwards says that the work on it has come to its end.
    partition.revoked().await;
}
