//! Deals a work to many members, and says how long it takes when they join, when one more does, and when one leaves.
//!
//! ```sh
//! cargo run --release -p ringfence --example partitions
//! cargo run --release -p ringfence --example partitions --features redis -- redis://localhost 50 1000
//! ```
//!
//! Each member has a connection of its own, as if it were another process.

use std::collections::BTreeMap;
use std::env;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence::patterns::{Membership, PartitionEvent};
use ringfence::{Clock, Locks, Nonce, Result, SystemClock};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Which member owns each partition.
type Owners = Arc<Mutex<BTreeMap<u32, Nonce>>>;

/// A member that works until the sender is dropped.
struct Work {
    member: Nonce,
    stay: oneshot::Sender<()>,
    works: JoinHandle<Result<()>>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "local:".to_owned());
    let members = arguments.next().and_then(|members| members.parse().ok()).unwrap_or(50);
    let count = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1000);
    let (clock, owners) = (SystemClock::new(), Owners::default());
    let name = format!("example-{}", std::process::id());
    let mut works = Vec::new();

    let start = clock.now();
    for _ in 0..members {
        works.push(join(&url, &name, count, &owners).await?);
    }
    settled(count, &owners, &works).await;
    println!("{members} members join {count} partitions: {:?}", clock.now().saturating_since(start));

    let start = clock.now();
    works.push(join(&url, &name, count, &owners).await?);
    settled(count, &owners, &works).await;
    println!("one more joins: {:?}", clock.now().saturating_since(start));

    let start = clock.now();
    let last = works.pop().expect("it just joined");
    drop(last.stay);
    last.works.await.expect("no panic")?;
    settled(count, &owners, &works).await;
    println!("one leaves: {:?}", clock.now().saturating_since(start));

    for Work { stay, works, .. } in works {
        drop(stay);
        works.await.expect("no panic")?;
    }
    Ok(())
}

/// A member with a connection of its own.
async fn join(url: &str, name: &str, count: u32, owners: &Owners) -> Result<Work> {
    let membership = Locks::connect(url).await?.partitions(name, count).join().await?;
    let (stay, leave) = oneshot::channel();
    Ok(Work {
        member: membership.id(),
        stay,
        works: tokio::spawn(work(membership, Arc::clone(owners), leave)),
    })
}

/// What a member does: begins where it is assigned to, and ends where it is revoked.
async fn work(mut membership: Membership, owners: Owners, mut leave: oneshot::Receiver<()>) -> Result<()> {
    let member = membership.id();
    let mut own = BTreeMap::new();
    loop {
        tokio::select! {
            event = membership.next() => match event? {
                Some(PartitionEvent::Assigned(partition)) => {
                    owners.lock().unwrap_or_else(PoisonError::into_inner).insert(partition.number(), member);
                    own.insert(partition.number(), partition);
                }
                // Here the work on it would be finished; dropping it hands it over.
                Some(PartitionEvent::Revoked(number) | PartitionEvent::Lost(number)) => drop(own.remove(&number)),
                Some(_) => {}
                None => return Ok(()),
            },
            _ = &mut leave => break,
        }
    }
    drop(own);
    membership.leave().await
}

/// Who should own a partition: the one with the highest score, as any program in any language may compute.
fn owner(members: &[Nonce], partition: u32) -> Nonce {
    let score = |member: &Nonce| {
        let mut mixed =
            member.get().wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(partition) + 1));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31), *member)
    };
    *members.iter().max_by_key(|member| score(member)).expect("there are members")
}

/// Waits until everything is owned by who should own it.
async fn settled(count: u32, owners: &Owners, works: &[Work]) {
    let members: Vec<Nonce> = works.iter().map(|work| work.member).collect();
    let dealt: BTreeMap<u32, Nonce> = (0..count).map(|number| (number, owner(&members, number))).collect();
    while *owners.lock().unwrap_or_else(PoisonError::into_inner) != dealt {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
