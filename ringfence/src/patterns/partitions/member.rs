//! What a member does in the background: looks who is a member, and holds what is dealt to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Backoff, Error, ErrorKind, Nonce, Result};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::inbox::Inbox;
use super::{Group, LOOK_EVERY, Partition, deal};
use crate::guard::Guard;

/// The longest pauses between tries to get a partition while the backend cannot be used.
const TRY_PAUSE: Duration = Duration::from_millis(50);
const TRY_PAUSE_MOST: Duration = Duration::from_secs(1);

/// One that takes part.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) group: Group,
    pub(super) id: Nonce,
    pub(super) inbox: Inbox,
}

impl Member {
    /// Takes part until `leave` is gone or the membership is lost, and then until nothing is held any more.
    pub(super) async fn attend(self: Arc<Self>, membership: Guard, mut leave: oneshot::Receiver<()>) {
        let mut table = Table { member: Arc::clone(&self), members: BTreeSet::new(), dealt: BTreeMap::new() };
        let mut seats = JoinSet::new();
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost = Box::pin(membership.lost());
        let end = loop {
            let look = async {
                looks.tick().await;
                self.group.members().await
            };
            tokio::select! {
                biased;
                () = &mut lost => break Err(self.lost_error()),
                _ = &mut leave => break Ok(()),
                members = look => match members {
                    Ok(members) => table.deal(members, &mut seats),
                    Err(error) => tracing::warn!(name = %self.group.lock, %error, "nobody knows who the members are"),
                },
            }
            while seats.try_join_next().is_some() {}
        };
        // First the membership: then the others stand in line by the time a partition is finished. But nobody waits for the answer, which
        // may not come.
        let released = membership.release();
        let finished = async {
            drop(table);
            while seats.join_next().await.is_some() {}
        };
        if let (Err(error), ()) = tokio::join!(released, finished) {
            tracing::debug!(name = %self.group.lock, %error, "a membership that is left");
        }
        self.inbox.end(end);
    }

    /// Holds a partition for as long as it is `wanted`, and then until it is finished or the hand-over is over.
    async fn serve(self: Arc<Self>, number: u32, mut wanted: watch::Receiver<()>) {
        loop {
            let guard = tokio::select! {
                biased;
                () = no_longer(&mut wanted) => return,
                guard = self.acquire(number) => guard,
            };
            let (holds, mut finished) = oneshot::channel();
            let mut lost = Box::pin(guard.lost());
            self.inbox.assigned(Partition {
                number,
                guard: guard.nested(),
                wanted: wanted.clone(),
                _holds: holds,
            });
            tokio::select! {
                biased;
                () = &mut lost => self.inbox.lost(number),
                () = no_longer(&mut wanted) => {
                    self.inbox.revoked(number);
                    let given_back = tokio::select! {
                        biased;
                        _ = &mut finished => guard.release().await,
                        () = &mut lost => {
                            self.inbox.lost(number);
                            return;
                        }
                        () = sleep(self.group.handover) => {
                            self.inbox.lost(number);
                            guard.take_back().await
                        }
                    };
                    self.report(number, given_back);
                    return;
                }
                _ = &mut finished => {
                    self.report(number, guard.release().await);
                    // Given up of its own accord, it is still dealt to this member: which has it again, but not in a tight loop.
                    tokio::select! {
                        () = no_longer(&mut wanted) => return,
                        () = sleep(LOOK_EVERY) => {}
                    }
                }
            }
        }
    }

    /// Waits in line for a partition, whatever is wrong with the backend.
    async fn acquire(&self, number: u32) -> Guard {
        let mut pauses = Backoff::new(TRY_PAUSE, TRY_PAUSE_MOST);
        loop {
            match self.group.partition(number).acquire().await {
                Ok(guard) => {
                    guard.confirmed().await;
                    return guard;
                }
                Err(error) => {
                    tracing::warn!(name = %self.group.lock, number, %error, "a partition cannot be had at the moment");
                    sleep(pauses.pause()).await;
                }
            }
        }
    }

    fn report(&self, number: u32, given_back: Result<()>) {
        if let Err(error) = given_back {
            tracing::warn!(name = %self.group.lock, number, %error, "a partition was not given back in order");
        }
    }

    fn lost_error(&self) -> Error {
        Error::new(
            ErrorKind::Lost,
            format!(
                "the membership in {:?} is lost: it lapsed, or it was evicted; its partitions go to others, join again",
                self.group.lock.as_str()
            ),
        )
    }
}

/// Resolves when nobody wants the partition any more.
pub(super) async fn no_longer(wanted: &mut watch::Receiver<()>) {
    // Nothing is ever sent: it is the end of the sender that says so.
    while wanted.changed().await.is_ok() {}
}

/// What a member believes to be dealt to whom.
struct Table {
    member: Arc<Member>,
    members: BTreeSet<Nonce>,
    /// The partitions of this member; what is taken out of here is revoked.
    dealt: BTreeMap<u32, watch::Sender<()>>,
}

impl Table {
    /// Deals again, where there are other members than before.
    fn deal(&mut self, mut members: BTreeSet<Nonce>, seats: &mut JoinSet<()>) {
        // Whether we are a member our lease says, and no view of it that may be a moment old.
        members.insert(self.member.id);
        if members == self.members {
            return;
        }
        let share = deal::share(&members, self.member.id, self.member.group.count);
        self.members = members;
        self.dealt.retain(|number, _| share.contains(number));
        for number in share {
            self.dealt.entry(number).or_insert_with(|| {
                let (wanted, is_wanted) = watch::channel(());
                seats.spawn(Arc::clone(&self.member).serve(number, is_wanted));
                wanted
            });
        }
    }
}
