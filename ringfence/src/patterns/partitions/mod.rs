//! Partitions: a fixed number of shares of one work, dealt to whoever takes part.

mod deal;
mod inbox;
mod member;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Error, ErrorKind, FencingToken, ListQuery, LockName, Nonce, RecordKey, Result};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use self::inbox::Inbox;
use self::member::{Member, no_longer};
use crate::guard::Guard;
use crate::locks::Locks;
use crate::patterns::lock_of;
use crate::record::RecordHandle;
use crate::request::{LockRequest, Terms};
use crate::stakes::Stakes;

/// The most partitions of one work. Each is a lease of its own.
pub const PARTITIONS_MAX: u32 = 16_384;

/// The most members of one work.
pub const MEMBERS_MAX: usize = 1000;

/// How often a member looks who the others are. A look is one round trip.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long a member may take to finish with a partition, unless you choose otherwise.
const HANDOVER_DEFAULT: Duration = Duration::from_secs(10);

impl Locks {
    /// A work in `count` partitions, for members to share. What is wrong with the name or the count is an error of
    /// [`join`](Partitions::join).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// use ringfence::patterns::PartitionEvent;
    ///
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let mut membership = locks.partitions("orders", 4).join().await?;
    /// for _ in 0..4 {                                                     // alone, it is dealt all of them
    ///     let Some(PartitionEvent::Assigned(partition)) = membership.next().await? else { panic!("they are free") };
    ///     tokio::spawn(async move {
    ///         println!("working on partition {} under token {}", partition.number(), partition.token());
    ///         partition.revoked().await;                                  // until it is somebody else's
    ///     });                                                             // and dropping it hands it over
    /// }
    /// membership.leave().await?;
    /// # Ok(()) }
    /// ```
    pub fn partitions<N: TryInto<LockName, Error = Error>>(&self, name: N, count: u32) -> Partitions {
        let lock = name.try_into().and_then(checked).and_then(|name| lock_of("partitions", Ok(name)));
        Partitions { locks: self.clone(), lock, count, terms: Terms::default(), handover: HANDOVER_DEFAULT }
    }
}

/// The locks of a work stand below its name, where those of another one must not stand.
fn checked(name: LockName) -> Result<LockName> {
    if name.as_str().contains('/') {
        return Err(Error::new(
            ErrorKind::InvalidName,
            format!(
                "the name of partitions has no slash, because their own locks stand below it; {name:?} has one"
            ),
        ));
    }
    Ok(name)
}

/// A work in partitions, which members [join](Self::join).
///
/// Each partition is a lock of its own, `partitions/NAME/17`, so that it has one owner by token, whoever believes what. Who should
/// own it is decided by rendezvous hashing among the members, by each of them alone: when one joins or leaves, only the partitions
/// move that it gets or had. Members hold the lock `partitions/NAME/members` together, as shared holders, and look at it once a
/// second.
#[derive(Clone, Debug)]
#[must_use = "nobody takes part until somebody joins"]
pub struct Partitions {
    locks: Locks,
    lock: Result<LockName>,
    count: u32,
    terms: Terms,
    handover: Duration,
}

impl Partitions {
    /// How long the partitions of a member that died or is cut off wait for others; see [`LockRequest::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// What two owners at once would cost; see [`LockRequest::stakes`].
    pub fn stakes(mut self, stakes: Stakes) -> Self {
        self.terms.stakes = stakes;
        self
    }

    /// What the member calls itself; see [`LockRequest::label`].
    pub fn label(mut self, label: &str) -> Self {
        self.terms.label = Some(label.to_owned());
        self
    }

    /// How long this member may take to finish with a partition that is revoked: 10 s unless you choose. Then it is taken.
    pub fn handover(mut self, handover: Duration) -> Self {
        self.handover = handover;
        self
    }

    /// Takes part, from now until the membership is [left](Membership::leave), dropped or lost.
    ///
    /// One member joins at a time, behind the lock `partitions/NAME`, whose record says how many partitions there are. The first
    /// member says so, or one that finds nobody. Five to seven round trips.
    ///
    /// Errors as [`LockRequest::acquire`] does; with [`ErrorKind::InvalidRequest`] where the work is in another number of
    /// partitions, or for a number that is not 1 to [`PARTITIONS_MAX`]; with [`ErrorKind::InvalidName`] for a name with a slash; with
    /// [`ErrorKind::Full`] beyond [`MEMBERS_MAX`] members; with [`ErrorKind::Lost`] if this process was paused for too long while it
    /// joined. Whatever the error, this is no member.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws.
    pub async fn join(&self) -> Result<Membership> {
        let group = Group {
            locks: self.locks.clone(),
            lock: self.lock.clone()?,
            count: self.count,
            terms: self.terms.clone(),
            handover: self.handover,
        };
        if !(1..=PARTITIONS_MAX).contains(&self.count) {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("a work has 1 to {PARTITIONS_MAX} partitions, {} it cannot have", self.count),
            ));
        }
        let door = group.request(group.lock.clone()).acquire().await?;
        group.agree(door.token()).await?;
        let guard = group.enter().await?;
        // Whoever finds nobody here may choose another count: only while the door is ours nobody else looks.
        door.ensure_held()?;
        if let Err(error) = door.release().await {
            tracing::warn!(name = %group.lock, %error, "others join a little later");
        }
        let (stay, leave) = oneshot::channel();
        let member = Arc::new(Member { group, id: guard.token().nonce(), inbox: Inbox::default() });
        self.locks.hall.background.runtime().spawn(Arc::clone(&member).attend(guard, leave));
        Ok(Membership { member, stay: Some(stay) })
    }
}

/// Taking part. It goes on in the background, whether or not anybody asks for [what happened](Self::next).
///
/// # Drop
/// Dropping it leaves, in the background: partitions that are still worked on are [revoked](Partition::revoked).
#[must_use = "a membership that is dropped is left"]
pub struct Membership {
    member: Arc<Member>,
    stay: Option<oneshot::Sender<()>>,
}

impl Membership {
    /// Which member this is: the nonce of its hold on `partitions/NAME/members`, and what partitions are dealt by.
    pub fn id(&self) -> Nonce {
        self.member.id
    }

    /// What happens next to a partition of this member. `None` never comes while the membership lasts.
    ///
    /// Of each partition come, in this order: `Assigned`; then `Revoked`, when somebody else is to own it; and `Lost`, when it is
    /// gone before it was finished. What nobody asked for in time is never told of: a partition that was assigned and revoked
    /// meanwhile.
    ///
    /// Errors with [`ErrorKind::Lost`] when the membership is lost, after every partition was revoked and is finished or taken. Then
    /// join again.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub async fn next(&mut self) -> Result<Option<PartitionEvent>> {
        self.member.inbox.next().await
    }

    /// Leaves: gives the membership up, revokes every partition, and waits until each is finished or taken.
    ///
    /// What is assigned and was not asked for yet is given back. The others line up within a second, so a partition that is finished
    /// later than that is handed over without a gap. Errors with [`ErrorKind::Lost`] if the membership was lost before.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it.
    pub async fn leave(mut self) -> Result<()> {
        self.stay = None;
        while self.next().await?.is_some() {}
        Ok(())
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Group { lock, count, .. } = &self.member.group;
        let mut shown = f.debug_struct("Membership");
        shown.field("lock", lock).field("count", count).field("id", &self.id()).finish_non_exhaustive()
    }
}

/// What happens to a partition of a member.
#[derive(Debug)]
#[non_exhaustive]
pub enum PartitionEvent {
    /// It is this member's from now on. Whoever drops it has finished with it.
    Assigned(Partition),
    /// Somebody else is to own it: finish and drop the [`Partition`], or it is taken when the
    /// [hand-over time](Partitions::handover) is over.
    Revoked(u32),
    /// It is gone: its lease is lost, or it was taken because it was not finished in time. Somebody else may own it.
    Lost(u32),
}

/// A partition that this member owns, as far as a [`Guard`] is a proof.
///
/// # Drop
/// Dropping it says that the work on it is finished: it goes to whoever is to own it. A partition that nobody revoked comes back to
/// this member, under another token, a second later.
#[derive(Debug)]
#[must_use = "a partition that is dropped is finished"]
pub struct Partition {
    number: u32,
    // Before what tells of its end: who is told has the last guard.
    guard: Guard,
    wanted: watch::Receiver<()>,
    _holds: oneshot::Sender<()>,
}

impl Partition {
    /// Which one, from 0.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The fencing token for whatever is done in it, higher than that of every owner before.
    pub fn token(&self) -> FencingToken {
        self.guard.token()
    }

    /// The guard of its lock, which says for how long owning it is proven. It is [lost](Guard::lost) as well when the partition is
    /// taken at the end of the hand-over time.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Resolves when the partition is revoked: finish, and drop it. It does not resolve when it is [lost](Guard::lost).
    pub fn revoked(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut wanted = self.wanted.clone();
        async move { no_longer(&mut wanted).await }
    }
}

/// The locks of a work, and on which terms its members hold them.
#[derive(Debug)]
struct Group {
    locks: Locks,
    lock: LockName,
    count: u32,
    terms: Terms,
    handover: Duration,
}

/// What the record says.
#[derive(Debug, Serialize, Deserialize)]
struct Agreement {
    partitions: u32,
}

impl Group {
    fn request(&self, name: LockName) -> LockRequest {
        LockRequest::new(Arc::clone(&self.locks.hall), Ok(name), self.terms.clone(), None)
    }

    fn below(&self, name: impl fmt::Display) -> Result<LockName> {
        LockName::new(format!("{}/{name}", self.lock))
    }

    /// The lock of a partition, its number padded with zeros, so that they are listed in their order.
    fn partition(&self, number: u32) -> LockRequest {
        let width = (self.count - 1).checked_ilog10().map_or(1, |log| log as usize + 1);
        self.request(
            self.below(format_args!("{number:0width$}")).expect("it is shorter than the members' lock"),
        )
    }

    /// Makes sure that all members have the same number of partitions in mind.
    async fn agree(&self, token: FencingToken) -> Result<()> {
        let record = RecordHandle::new(Arc::clone(&self.locks.hall), RecordKey::of(self.lock.clone()));
        if let Some(written) = record.open(token).await?.record {
            let Agreement { partitions } = serde_json::from_slice(&written.value).map_err(|error| {
                Error::new(
                    ErrorKind::Corrupt,
                    format!("the record of {:?} says of no number of partitions: something else was written there", self.lock),
                )
                .because(error)
            })?;
            if partitions == self.count {
                return Ok(());
            }
            if self.is_in_use().await? {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!(
                        "{:?} is in {partitions} partitions, not in {}: ask for as many, or let all its members leave first",
                        self.lock, self.count
                    ),
                ));
            }
        }
        let agreement = serde_json::to_vec(&Agreement { partitions: self.count }).expect("a number is JSON");
        record.write(token, agreement).await?;
        Ok(())
    }

    /// Whether anybody is a member, or has a partition.
    async fn is_in_use(&self) -> Result<bool> {
        let below = ListQuery::new(format!("{}/", self.lock)).limit(1);
        Ok(!self.locks.list(below).await?.items.is_empty())
    }

    /// Becomes a member.
    async fn enter(&self) -> Result<Guard> {
        if self.members().await?.len() >= MEMBERS_MAX {
            return Err(Error::new(
                ErrorKind::Full,
                format!("{:?} has {MEMBERS_MAX} members, and cannot have more", self.lock),
            ));
        }
        self.request(self.below("members")?).shared().acquire().await
    }

    /// Who the members are. One round trip.
    async fn members(&self) -> Result<BTreeSet<Nonce>> {
        let state = self.locks.inspect(&self.below("members")?).await?;
        let lives = state.holders.into_iter().filter(|holder| !holder.has_lapsed());
        Ok(lives.map(|holder| holder.token.nonce()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn locks_are_listed_in_the_order_of_their_numbers() {
        let locks = Locks::connect("memory:").await.unwrap();
        for (count, last) in
            [(1, "partitions/a/0"), (10, "partitions/a/9"), (11, "partitions/a/10"), (64, "partitions/a/63")]
        {
            let partitions = locks.partitions("a", count);
            let lock = partitions.lock.clone().unwrap();
            let group = Group {
                locks: locks.clone(),
                lock,
                count,
                terms: Terms::default(),
                handover: HANDOVER_DEFAULT,
            };
            let guards = [0, count - 1].map(|number| group.partition(number));
            let [first, guard] = guards;
            let first = first.acquire().await.unwrap();
            assert_eq!(first.name().as_str().len(), last.len());
            first.release().await.unwrap();
            assert_eq!(guard.acquire().await.unwrap().name().as_str(), last);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_joined_says_why() {
        let locks = Locks::connect("memory:").await.unwrap();
        for (name, count, kind) in [
            ("", 4, ErrorKind::InvalidName),
            ("a/members", 4, ErrorKind::InvalidName),
            ("a", 0, ErrorKind::InvalidRequest),
            ("a", PARTITIONS_MAX + 1, ErrorKind::InvalidRequest),
        ] {
            let error = locks.partitions(name, count).join().await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
        }
    }

    #[tokio::test]
    async fn there_is_a_limit_to_members() {
        let locks = Locks::connect("memory:").await.unwrap();
        let mut others = Vec::new();
        for _ in 0..MEMBERS_MAX {
            others.push(locks.lock("partitions/a/members").shared().acquire().await.unwrap());
        }
        let error = locks.partitions("a", 4).join().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error}");
        others.pop();
        locks.partitions("a", 4).join().await.unwrap().leave().await.unwrap();
    }
}
