//! Partitions do as their documentation says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringfence::patterns::{Membership, Partition, PartitionEvent, Partitions};
use ringfence::{ErrorKind, FencingToken, Locks, Nonce};
use ringfence_testkit::{Harness, NotApplicable, Verdict};
use tokio::task::JoinHandle;

use crate::stage::{hall, locks, ttl, within};

/// A TTL that a case waits for.
const SHORT: Duration = Duration::from_millis(500);

/// A TTL that a case waits for in the end, and through which a busy machine keeps every partition until then.
const KEPT: Duration = Duration::from_secs(3);

/// How many partitions the works of these cases have: so many that of two members none goes without.
const COUNT: u32 = 40;

/// A name that no other case and no other run uses. It has no slash.
fn fresh() -> String {
    format!("partitions-{}", Nonce::random())
}

/// Who has been told that it owns what, in the order of being told: the judge of a case.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Owners>>);

/// The last owner of each partition.
type Owners = BTreeMap<u32, (Nonce, FencingToken)>;

/// Who should own a partition, computed as the guide says that others may.
///
/// # Panics
/// Where nobody is a member.
pub fn owner(members: &[Nonce], partition: u32) -> Nonce {
    let wants = |member: &Nonce| {
        let mut mixed =
            member.get().wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(partition) + 1));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31), *member)
    };
    *members.iter().max_by_key(|member| wants(member)).expect("there are members")
}

impl Ledger {
    /// Each owner has a higher token than everyone before.
    fn assigned(&self, member: Nonce, partition: &Partition) {
        let before = self.owners().insert(partition.number(), (member, partition.token()));
        if let Some((before, highest)) = before {
            assert!(
                partition.token().sequence() > highest.sequence(),
                "{}: {member} under {} after {before} under {highest}",
                partition.number(),
                partition.token()
            );
        }
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until everything is dealt to these members, and as it should be.
    async fn until_dealt_to(&self, members: &[Nonce]) -> Owners {
        let dealt: BTreeMap<u32, Nonce> = (0..COUNT).map(|number| (number, owner(members, number))).collect();
        within("every partition has the owner that it should have", async {
            loop {
                let owners = self.owners().clone();
                if owners.iter().map(|(number, (owner, _))| (*number, *owner)).eq(dealt.clone()) {
                    return owners;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

/// A member that works on whatever it is told to, and finishes at once when it is told to.
struct Worker {
    id: Nonce,
    leave: tokio::sync::oneshot::Sender<()>,
    works: JoinHandle<()>,
}

impl Worker {
    async fn join(partitions: &Partitions, ledger: &Ledger) -> Self {
        let mut membership = join(partitions).await;
        let (id, ledger) = (membership.id(), ledger.clone());
        let (leave, mut left) = tokio::sync::oneshot::channel();
        let works = tokio::spawn(async move {
            let mut own = BTreeMap::new();
            loop {
                let event = tokio::select! {
                    event = membership.next() => event.expect("a membership that lasts"),
                    _ = &mut left => break,
                };
                match event.expect("a membership that lasts") {
                    PartitionEvent::Assigned(partition) => {
                        ledger.assigned(id, &partition);
                        let number = partition.number();
                        assert!(
                            own.insert(number, partition).is_none(),
                            "{number} was this member's already"
                        );
                    }
                    PartitionEvent::Revoked(number) => {
                        assert!(own.remove(&number).is_some(), "{number} was never this member's");
                    }
                    event => panic!("nobody took anything: {event:?}"),
                }
            }
            drop(own);
            membership.leave().await.expect("a membership that lasts");
        });
        Self { id, leave, works }
    }

    async fn leave(self) {
        self.leave.send(()).expect("it works");
        within("a member leaves", self.works).await.expect("no panic");
    }
}

async fn join(partitions: &Partitions) -> Membership {
    within("a member joins", partitions.join()).await.expect("a membership")
}

/// A member that is told of each of its partitions, and keeps them.
async fn join_alone(partitions: &Partitions) -> (Membership, Vec<Partition>) {
    let mut membership = join(partitions).await;
    let mut own = Vec::new();
    while own.len() < COUNT as usize {
        own.push(assigned(&mut membership).await);
    }
    (membership, own)
}

async fn assigned(membership: &mut Membership) -> Partition {
    match next(membership).await {
        PartitionEvent::Assigned(partition) => partition,
        event => panic!("expected a partition to be assigned, not {event:?}"),
    }
}

async fn next(membership: &mut Membership) -> PartitionEvent {
    within("something happens to a partition", membership.next())
        .await
        .expect("a membership that lasts")
        .expect("a membership that lasts")
}

/// Checks that what an earlier owner writes is refused, as soon as the next one has opened the record.
async fn assert_fenced(locks: &Locks, name: &str, earlier: &Partition, later: &Partition) {
    let record = locks.record(earlier.guard().name()).expect("a name");
    record.open(later.token()).await.expect("the owner opens its record");
    let late = record.write(earlier.token(), "late").await.expect_err("a stale token");
    assert_eq!(late.kind(), ErrorKind::Stale, "{name}: {late:?}");
}

/// Every partition has an owner; one that joins takes its own from the others, one that leaves gives them back, and no other moves.
pub async fn partitions_are_dealt_to_all_and_move_to_a_newcomer_only(harness: &dyn Harness) -> Verdict {
    let (name, ledger) = (fresh(), Ledger::default());
    let halls = [locks(harness).await, locks(harness).await, locks(harness).await];
    let [ann, bob, eve] = halls.each_ref().map(|locks| locks.partitions(&name, COUNT));
    let ann = Worker::join(&ann, &ledger).await;
    let bob = Worker::join(&bob, &ledger).await;
    let before = ledger.until_dealt_to(&[ann.id, bob.id]).await;
    let eve = Worker::join(&eve, &ledger).await;
    let with_eve = ledger.until_dealt_to(&[ann.id, bob.id, eve.id]).await;
    for (number, owner) in &with_eve {
        assert!(
            owner.0 == eve.id || before[number] == *owner,
            "{number} moved from {:?} to {owner:?}",
            before[number]
        );
    }
    let eves = eve.id;
    eve.leave().await;
    for (number, owner) in ledger.until_dealt_to(&[ann.id, bob.id]).await {
        let before = with_eve[&number];
        assert!(before.0 == eves || before == owner, "{number} moved from {before:?} to {owner:?}");
    }
    ann.leave().await;
    bob.leave().await;
    Ok(())
}

/// The old owner is told, the next one waits, and has the partition when the old one has finished.
pub async fn partitions_are_finished_before_the_next_owner_has_them(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh());
    let (mut first, own) = join_alone(&ann.partitions(&name, COUNT)).await;
    let mut own: BTreeMap<u32, Partition> = own.into_iter().map(|own| (own.number(), own)).collect();
    let mut second = join(&bob.partitions(&name, COUNT)).await;
    let PartitionEvent::Revoked(number) = next(&mut first).await else { panic!("told to finish") };
    let working = own.remove(&number).expect("it was assigned");
    within("the partition knows that it is revoked", working.revoked()).await;
    // Whatever else is revoked is not finished either: it says nothing until the hand-over time is over.
    let early = tokio::time::timeout(SHORT, second.next()).await;
    assert!(early.is_err(), "nothing is finished, and the next owner has {early:?}");
    working.guard().ensure_held().expect("it works on it for as long as it takes");
    let token = working.token();
    drop(working);
    let taken_over = assigned(&mut second).await;
    assert_eq!(taken_over.number(), number, "the only one that was finished");
    assert!(taken_over.token().sequence() > token.sequence(), "{} after {token}", taken_over.token());
    Ok(())
}

/// Of a partition that was assigned and is gone again before anybody asked nobody is told, and it is handed over at once.
pub async fn partitions_that_nobody_heard_of_go_without_a_word(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh());
    let mut first = join(&ann.partitions(&name, COUNT)).await;
    for number in 0..COUNT {
        let _ = held_by_another_than(&bob, &name, number, None).await;
    }
    let mut second = join(&bob.partitions(&name, COUNT)).await;
    let members = [first.id(), second.id()];
    let (own, given): (Vec<u32>, Vec<u32>) =
        (0..COUNT).partition(|number| owner(&members, *number) == first.id());
    let mut kept = Vec::new();
    while kept.len() < given.len() {
        kept.push(assigned(&mut second).await);
    }
    let evicted = held_by_another_than(&bob, &name, own[0], None).await;
    bob.evict(format!("partitions/{name}/{:02}", own[0]), evicted.nonce()).await.expect("an eviction");
    let _ = held_by_another_than(&bob, &name, own[0], Some(evicted)).await;

    let mut heard = BTreeMap::new();
    while heard.len() < own.len() {
        let partition = assigned(&mut first).await;
        assert!(own.contains(&partition.number()), "{} is not its own any more", partition.number());
        assert_ne!(partition.token(), evicted, "it is not told of what it had before an eviction");
        heard.insert(partition.number(), partition);
    }
    let more = tokio::time::timeout(SHORT, first.next()).await;
    assert!(more.is_err(), "there is nothing more to hear: {more:?}");
    Ok(())
}

/// By which token a partition is held, as soon as it is by another one than that.
async fn held_by_another_than(
    locks: &Locks,
    name: &str,
    number: u32,
    before: Option<FencingToken>,
) -> FencingToken {
    within("a partition is held", async {
        loop {
            let state = locks.inspect(format!("partitions/{name}/{number:02}")).await.expect("an inspection");
            if let Some(holder) = state.holders.first()
                && Some(holder.token) != before
            {
                return holder.token;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

/// Who does not finish in time is told that it lost the partition, and writes no more.
pub async fn partitions_are_taken_when_the_hand_over_is_over(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh());
    let (mut first, own) = join_alone(&ann.partitions(&name, COUNT).handover(SHORT)).await;
    let mut second = join(&bob.partitions(&name, COUNT)).await;
    let PartitionEvent::Revoked(number) = next(&mut first).await else { panic!("told to finish") };
    let hangs = own.iter().find(|own| own.number() == number).expect("it was assigned");
    within("what is not finished in time is lost", hangs.guard().lost()).await;
    let taken_over = loop {
        let taken_over = assigned(&mut second).await;
        if taken_over.number() == number {
            break taken_over;
        }
    };
    assert!(hangs.guard().ensure_held().is_err(), "two own {number}");
    assert_fenced(&bob, &name, hangs, &taken_over).await;
    // Others that were revoked with it may be told of first.
    while !matches!(next(&mut first).await, PartitionEvent::Lost(lost) if lost == number) {}
    Ok(())
}

/// Who is no member any more has to finish with everything, and is told so in the end.
pub async fn partitions_are_revoked_when_the_membership_is_lost(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh());
    let short = ttl(&ann, KEPT);
    let (mut first, own) = join_alone(&ann.partitions(&name, COUNT).ttl(short)).await;
    bob.evict(format!("partitions/{name}/members"), first.id()).await.expect("an eviction");
    let mut own: BTreeMap<u32, Partition> = own.into_iter().map(|own| (own.number(), own)).collect();
    while !own.is_empty() {
        let PartitionEvent::Revoked(number) = next(&mut first).await else { panic!("told to finish") };
        drop(own.remove(&number).expect("it was assigned"));
    }
    let error = within("the end of the membership", first.next()).await.expect_err("it was evicted");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
    let (second, _own) = join_alone(&ann.partitions(&name, COUNT)).await;
    assert_ne!(second.id(), first.id(), "it is another member now");
    Ok(())
}

/// All members agree on how many partitions there are. When nobody takes part any more, somebody may begin with another number.
pub async fn partitions_in_another_number_are_refused_while_anybody_takes_part(
    harness: &dyn Harness,
) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh());
    let (first, own) = join_alone(&ann.partitions(&name, COUNT)).await;
    let error = bob.partitions(&name, COUNT + 1).join().await.expect_err("another number");
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error:?}");
    assert!(error.to_string().contains("is in 40 partitions, not in 41"), "{error}");
    drop(own);
    within("the only member leaves", first.leave()).await.expect("a membership that lasts");
    let other = join(&bob.partitions(&name, COUNT + 1)).await;
    let error = ann.partitions(&name, COUNT).join().await.expect_err("another number");
    assert!(error.to_string().contains("is in 41 partitions, not in 40"), "{error}");
    within("the only member leaves", other.leave()).await.expect("a membership that lasts");
    Ok(())
}

/// A member that nothing reaches any more: it knows by itself that it owns nothing, before others own it.
pub async fn partitions_of_one_that_is_cut_off_are_known_to_be_gone(harness: &dyn Harness) -> Verdict {
    let connected = harness.connect_by_cable();
    let cable = connected.ok_or(NotApplicable("the harness cuts no client off"))?.await;
    let (ann, bob, name) = (hall(harness, cable.client()), locks(harness).await, fresh());
    let short = ttl(&ann, KEPT);
    let (_first, own) = join_alone(&ann.partitions(&name, COUNT).ttl(short)).await;
    let mut second = join(&bob.partitions(&name, COUNT).ttl(short)).await;
    cable.cut();
    let mut taken_over = Vec::new();
    while taken_over.len() < COUNT as usize {
        let partition = assigned(&mut second).await;
        let earlier = own.iter().find(|own| own.number() == partition.number()).expect("every one was ann's");
        assert!(earlier.guard().ensure_held().is_err(), "two own {}", partition.number());
        taken_over.push(partition);
    }
    cable.mend();
    for later in &taken_over {
        let earlier = own.iter().find(|own| own.number() == later.number()).expect("every one was ann's");
        assert_fenced(&bob, &name, earlier, later).await;
    }
    Ok(())
}
