//! A process of members that share partitions, and what it says of them as it happens.

use ringfence::patterns::{Partition, PartitionEvent};
use ringfence::{Locks, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::contender::client::Servers;
use crate::contender::{TTL, now, runtime_of_these_cores, word};

/// Some members, each of which is a client of its own, as if it were a process of its own. They join at the word to go, and leave when
/// nobody writes to this process any more.
#[derive(Debug, clap::Args)]
pub(crate) struct Members {
    #[command(flatten)]
    servers: Servers,
    #[arg(long = "members")]
    count: u32,
    #[arg(long)]
    partitions: u32,
}

/// What a member says.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct News {
    /// When that was, in nanoseconds since the machine began.
    pub(super) at: u64,
    pub(super) member: u64,
    pub(super) what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    Joined,
    /// It owns this partition, since a moment ago.
    Owns(u32),
    /// It has finished with it, and gives it back in a moment.
    Finished(u32),
    /// It learned that the partition is gone.
    Lost(u32),
}

impl Members {
    pub(crate) fn run(self) {
        runtime_of_these_cores().block_on(async {
            let mut clients = Vec::new();
            for _ in 0..self.count {
                clients.push(Locks::connect(&self.servers.url()).await.expect("a backend"));
            }
            word::wait();
            let (stay, leave) = watch::channel(());
            let mut members = JoinSet::new();
            for locks in clients {
                members.spawn(take_part(locks, self.partitions, leave.clone()));
            }
            tokio::task::spawn_blocking(wait_for_the_end).await.expect("a thread that listens");
            drop(stay);
            while let Some(member) = members.join_next().await {
                member.expect("a member that leaves in order");
            }
        });
    }
}

/// Waits until nobody has anything more to say to this process.
fn wait_for_the_end() {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).expect("its input");
}

/// A member that fails says so and is gone: the others go on without it, and what it was to own is never settled.
async fn take_part(locks: Locks, partitions: u32, leave: watch::Receiver<()>) {
    if let Err(error) = share(&locks, partitions, leave).await {
        eprintln!("a member: {error}");
    }
}

async fn share(locks: &Locks, partitions: u32, mut leave: watch::Receiver<()>) -> Result<()> {
    let mut membership = locks.partitions("bench", partitions).ttl(TTL).join().await?;
    let member = membership.id().get();
    say(member, What::Joined);
    loop {
        tokio::select! {
            event = membership.next() => {
                if let Some(PartitionEvent::Assigned(partition)) = event? {
                    tokio::spawn(own(member, partition));
                }
            }
            // It is the end of the sender that says so.
            _ = leave.changed() => return membership.leave().await,
        }
    }
}

/// Owns a partition until somebody else is to own it, and finishes at once.
async fn own(member: u64, partition: Partition) {
    say(member, What::Owns(partition.number()));
    let finished = tokio::select! {
        () = partition.revoked() => What::Finished(partition.number()),
        () = partition.guard().lost() => What::Lost(partition.number()),
    };
    say(member, finished);
}

fn say(member: u64, what: What) {
    let at = u64::try_from(now().as_nanos()).expect("some centuries");
    word::report(&News { at, member, what });
}
