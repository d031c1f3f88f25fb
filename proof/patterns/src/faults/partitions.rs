//! Partitions, of which a process has some.

use std::collections::BTreeMap;

use ringfence::{BootInstant, FencingToken, LockName, Nonce};
use ringfence_servers::{Event, PARTITIONS, Taker};
use ringfence_testkit::Verdict;

use super::scene::{BESIDE_THE_TTL, LATE, Scene, appends, line};
use super::{Fault, Reach};
use crate::partitions::owner;

/// One of two members is struck; the other one has all of its partitions in time, and each has one owner by token after the other.
pub(super) async fn move_on(reach: &dyn Reach, fault: Fault) -> Verdict {
    const MEMBER: &[&str] = &["--pattern", "partitions"];
    let scene = Scene::new(reach).await;
    let mut first = scene.victim(fault, MEMBER).await;
    let mut members = vec![joined(&mut first.process).await];
    let mut early = BTreeMap::new();
    for number in 0..PARTITIONS {
        early.insert(number, assigned(&mut first.process, number).await.0);
    }
    let mut second = scene.start(MEMBER);
    members.push(joined(&mut second).await);
    let (own, given): (Vec<u32>, Vec<u32>) =
        (0..PARTITIONS).partition(|number| owner(&members, *number) == members[0]);
    for number in given {
        let _ = assigned(&mut second, number).await;
    }
    for number in &own {
        appends(&mut first.process, &format!("append {number}"), "the first").await;
    }

    let struck = first.strike();
    if fault != Fault::Killed {
        for number in &own {
            first.process.tell(&format!("append {number} {LATE}"));
        }
    }
    let mut later = BTreeMap::new();
    for number in &own {
        let (token, since) = assigned(&mut second, *number).await;
        scene.in_time(&format!("a partition of one that was {fault:?}"), struck, since, BESIDE_THE_TTL);
        later.insert(*number, token);
        appends(&mut second, &format!("append {number}"), "the second").await;
    }

    first.goes_on();
    if fault != Fault::Killed {
        for _ in &own {
            first.is_refused().await;
        }
        for number in &own {
            is_told(&mut first.process, *number).await;
        }
    }
    for number in &own {
        let lock = LockName::new(format!("partitions/{}/{number:02}", scene.name)).expect("a short name");
        let (early, later) = (early[number], later[number]);
        assert!(later.sequence() > early.sequence(), "{number}: {later} after {early}");
        let expected = line(early, "the first") + &line(later, "the second");
        assert_eq!(scene.effects(&lock).await, expected, "{number}, of one that was {fault:?}");
    }
    Ok(())
}

async fn joined(process: &mut Taker) -> Nonce {
    let joined = |event: &Event| match *event {
        Event::Joined { member } => Nonce::from_u64(member),
        _ => None,
    };
    process.event("takes part", joined).await
}

/// Under which token a member has a partition, and since when at the latest.
async fn assigned(process: &mut Taker, wanted: u32) -> (FencingToken, BootInstant) {
    let assigned = |event: &Event| match *event {
        Event::Assigned { number, token, at: Some(at) } if number == wanted => Some((token, at)),
        _ => None,
    };
    process.event("has a partition", assigned).await
}

/// That a partition is not its own any more. It may have lost its membership a little sooner than the partition.
async fn is_told(process: &mut Taker, wanted: u32) {
    let told = |event: &Event| match *event {
        Event::Gone { number } | Event::Revoked { number } => (number == wanted).then_some(()),
        _ => None,
    };
    process.event("knows that a partition is gone", told).await;
}
