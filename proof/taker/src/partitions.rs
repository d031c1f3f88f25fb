//! A member that has what is dealt to it, and finishes at once when it is told to.

use std::collections::BTreeMap;
use std::time::Duration;

use ringfence::patterns::PartitionEvent;
use ringfence::{Error, ErrorKind, FencingToken, LockName, Locks, Result};
use ringfence_servers::{Event, PARTITIONS};
use tokio::sync::mpsc;

use crate::{append, provable, report, say};

/// Takes part until its orders end. A membership that is lost is said to be refused, and after it nothing is dealt any more.
pub(crate) async fn take_part(
    locks: &Locks,
    name: &str,
    ttl: Duration,
    mut orders: mpsc::UnboundedReceiver<String>,
) -> Result<()> {
    let mut membership = locks.partitions(name, PARTITIONS).ttl(ttl).join().await?;
    say(&Event::Joined { member: membership.id().get() });
    let (mut own, mut last) = (BTreeMap::new(), BTreeMap::new());
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
                Some(order) => report(obey(locks, &last, &order).await),
                None => return Ok(()),
            },
        }
    }
}

/// Adds to the effects of a partition, under the token by which it was last this member's.
async fn obey(locks: &Locks, last: &BTreeMap<u32, (LockName, FencingToken)>, order: &str) -> Result<()> {
    let wanted = order.strip_prefix("append ").and_then(|rest| rest.split_once(' '));
    let found = wanted.and_then(|(number, text)| Some((last.get(&number.parse().ok()?)?, text)));
    let Some(((lock, token), text)) = found else {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{order:?} is no order: expected append NUMBER TEXT, of a partition that it had"),
        ));
    };
    append(locks, lock, *token, text).await
}
