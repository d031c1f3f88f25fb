//! Many members of one work, each with a hall of its own, as in as many processes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence::patterns::{Membership, PartitionEvent};
use ringfence::{Backend, Clock, ErrorKind, ListQuery, Locks, Nonce, SystemClock};
use ringfence_memory::MemoryBackend;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::stage::{Call, Fate, Gate, SOON, staged};

const MEMBERS: usize = 50;
const COUNT: u32 = 1000;

/// The member and the token sequence of the last owner of each partition.
type Owners = Arc<Mutex<BTreeMap<u32, (Nonce, u64)>>>;

fn world() -> Arc<MemoryBackend> {
    Arc::new(MemoryBackend::new(Arc::new(SystemClock::new())))
}

fn hall(world: &Arc<MemoryBackend>) -> Locks {
    Locks::new(Arc::clone(world) as Arc<dyn Backend>)
}

/// Owns whatever it is told to, until it leaves.
async fn work(mut membership: Membership, owners: Owners, mut leave: oneshot::Receiver<()>) {
    let member = membership.id();
    let mut own = BTreeMap::new();
    loop {
        let event = tokio::select! {
            event = membership.next() => event.unwrap().unwrap(),
            _ = &mut leave => break,
        };
        match event {
            PartitionEvent::Assigned(partition) => {
                let number = partition.number();
                let sequence = partition.token().sequence();
                let before = owners.lock().unwrap().insert(number, (member, sequence));
                assert!(
                    before.is_none_or(|(_, before)| sequence > before),
                    "{number}: {sequence} after {before:?}"
                );
                own.insert(number, partition);
            }
            PartitionEvent::Revoked(number) => drop(own.remove(&number)),
            event => panic!("{event:?}"),
        }
    }
    drop(own);
    membership.leave().await.unwrap();
}

/// Who should own a partition, computed as the guide says that others may.
fn owner(members: &[Nonce], partition: u32) -> Nonce {
    let score = |member: &Nonce| {
        let mut mixed =
            member.get().wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(partition) + 1));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31), *member)
    };
    *members.iter().max_by_key(|member| score(member)).unwrap()
}

/// Waits until every partition is owned by the one of these members who should own it.
async fn settled(owners: &Owners, members: &[Nonce]) -> BTreeMap<u32, (Nonce, u64)> {
    let dealt: Vec<Nonce> = (0..COUNT).map(|number| owner(members, number)).collect();
    let settled = async {
        loop {
            let owners = owners.lock().unwrap().clone();
            if owners.values().map(|(member, _)| *member).eq(dealt.iter().copied()) {
                return owners;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(2 * SOON, settled).await.expect("everything is dealt")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_partitions_over_fifty_members_are_dealt_again_in_seconds() {
    let (world, owners, clock) = (world(), Owners::default(), SystemClock::new());
    let (mut members, mut works) = (Vec::new(), Vec::new());
    let start = clock.now();
    for _ in 0..MEMBERS {
        let membership = hall(&world).partitions("a", COUNT).join().await.unwrap();
        members.push(membership.id());
        let (leave, left) = oneshot::channel();
        works.push((leave, tokio::spawn(work(membership, Arc::clone(&owners), left))));
    }
    let before = settled(&owners, &members).await;
    eprintln!("fifty join: {:?}", clock.now().saturating_since(start));
    let ((leave, worker), gone) = (works.pop().unwrap(), members.pop().unwrap());
    let start = clock.now();
    leave.send(()).unwrap();
    worker.await.unwrap();
    let after = settled(&owners, &members).await;
    eprintln!("one leaves: {:?}", clock.now().saturating_since(start));
    for (number, owner) in before {
        assert!(owner.0 == gone || after[&number] == owner, "{number} moved and had no reason to");
    }
    for (leave, worker) in works {
        leave.send(()).unwrap();
        worker.await.unwrap();
    }
    let locks = hall(&world);
    let left = locks.list(ListQuery::new("partitions/a")).await.unwrap().items;
    assert!(left.is_empty(), "everybody has left: {left:?}");
}

#[tokio::test]
async fn what_was_assigned_and_revoked_before_anybody_asked_is_not_told_of() {
    let world = world();
    let mut idle = hall(&world).partitions("a", 64).join().await.unwrap();
    let locks = hall(&world);
    let held = async {
        while locks.list(ListQuery::new("partitions/a/")).await.unwrap().items.len() < 65 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, held).await.expect("it has every partition, and its membership");
    let mut second = locks.partitions("a", 64).join().await.unwrap();
    let Some(PartitionEvent::Assigned(first)) = timeout(SOON, second.next()).await.unwrap().unwrap() else {
        panic!("it is free: nobody worked on it")
    };
    let mut numbers = Vec::new();
    while let Ok(event) = timeout(Duration::from_millis(50), idle.next()).await {
        let Some(PartitionEvent::Assigned(partition)) = event.unwrap() else {
            panic!("told of what it never had")
        };
        assert_ne!(partition.number(), first.number());
        numbers.push(partition);
    }
    assert!(!numbers.is_empty(), "what it keeps");
}

#[tokio::test]
async fn a_partition_that_nobody_revoked_comes_back_under_another_token() {
    let mut membership = hall(&world()).partitions("a", 1).join().await.unwrap();
    let Some(PartitionEvent::Assigned(first)) = membership.next().await.unwrap() else {
        panic!("it is free")
    };
    let token = first.token();
    drop(first);
    let again =
        timeout(SOON, membership.next()).await.expect("it is still dealt to the only member").unwrap();
    let Some(PartitionEvent::Assigned(again)) = again else { panic!("{again:?}") };
    assert!(again.token().sequence() > token.sequence());
}

#[tokio::test]
async fn a_membership_that_is_dropped_is_left() {
    let world = world();
    let mut membership = hall(&world).partitions("a", 1).join().await.unwrap();
    let Some(PartitionEvent::Assigned(partition)) = membership.next().await.unwrap() else {
        panic!("it is free")
    };
    drop(membership);
    timeout(SOON, partition.revoked()).await.expect("who works on it is told");
    drop(partition);
    let locks = hall(&world);
    let free = async {
        while !locks.list(ListQuery::new("partitions/a")).await.unwrap().items.is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, free).await.expect("nothing is left of it");
}

/// Who works has its time to finish, whether or not the backend is there to hear that somebody leaves.
#[tokio::test]
async fn one_that_leaves_is_told_to_finish_before_the_backend_has_answered() {
    let (locks, stage) = staged();
    let mut membership = locks.partitions("a", 1).join().await.unwrap();
    let Some(PartitionEvent::Assigned(partition)) = membership.next().await.unwrap() else {
        panic!("it is free")
    };
    let gate = Gate::new();
    stage.next(Call::Release, [Fate::held_back(&gate)]);
    let leaves = tokio::spawn(membership.leave());
    gate.somebody_is_there().await;
    timeout(SOON, partition.revoked()).await.expect("it is told meanwhile");
    drop(partition);
    gate.open();
    timeout(SOON, leaves).await.expect("it ends").unwrap().unwrap();
}

#[tokio::test]
async fn a_join_that_is_dropped_leaves_nothing_behind() {
    let world = world();
    let (first, locks) = (hall(&world), hall(&world));
    // Somebody is about to join, for long.
    let door = first.lock("partitions/a").acquire().await.unwrap();
    let partitions = locks.partitions("a", 4);
    assert!(timeout(Duration::from_millis(50), partitions.join()).await.is_err());
    door.release().await.unwrap();
    let joined = timeout(SOON, first.partitions("a", 4).join()).await.expect("nobody is in the way");
    drop(joined.unwrap());
}

#[tokio::test]
async fn closed_locks_end_a_membership() {
    let locks = hall(&world());
    let mut membership = locks.partitions("a", 1).join().await.unwrap();
    let Some(PartitionEvent::Assigned(partition)) = membership.next().await.unwrap() else {
        panic!("it is free")
    };
    locks.close().await.unwrap();
    timeout(SOON, partition.guard().lost()).await.expect("nothing is held any more");
    let end = async {
        loop {
            if let Err(error) = membership.next().await {
                return error;
            }
        }
    };
    let error = timeout(SOON, end).await.expect("it ends");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
}
