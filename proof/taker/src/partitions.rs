//! A member that has what is dealt to it, and finishes at once when it is told to.

use std::collections::BTreeMap;
use std::time::Duration;

use ringfence::patterns::PartitionEvent;
use ringfence::{Locks, Result};
use ringfence_servers::{Event, PARTITIONS};
use tokio::sync::mpsc;

use crate::{Numbered, append_to, provable, report, say};

/// Takes part until its orders end. A membership that is lost is said to be refused, and after it nothing is dealt any more.
pub(crate) async fn take_part(
    locks: &Locks,
    name: &str,
    ttl: Duration,
    mut orders: mpsc::UnboundedReceiver<String>,
) -> Result<()> {
    let mut membership = locks.partitions(name, PARTITIONS).ttl(ttl).join().await?;
    say(&Event::Joined { member: membership.id().get() });
    let (mut own, mut last) = (BTreeMap::new(), Numbered::new());
    let mut is_member = true;
    loop {
        tokio::select! {
            event = membership.next(), if is_member => match event {
                Ok(Some(PartitionEvent::Assigned(partition))) => {
                    let (number, token) = (partition.number(), partition.token());
                    say(&Event::Assigned { number, token, at: provable(partition.guard()) });
                    last.insert(number, (partition.guard().name().clone(), token));
                    own.insert(number, partition);
                }
                Ok(Some(PartitionEvent::Revoked(number))) => {
                    say(&Event::Revoked { number });
                    own.remove(&number);
                }
                Ok(Some(PartitionEvent::Lost(number))) => {
                    say(&Event::Gone { number });
                    own.remove(&number);
                }
                Ok(_) => is_member = false,
                Err(error) => {
                    is_member = false;
                    report(Err(error));
                }
            },
            order = orders.recv() => match order {
                Some(order) => report(append_to(locks, &last, &order).await),
                None => return Ok(()),
            },
        }
    }
}
