//! Versioned records, which are locked for the moment of a write only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringfence::{Clock, Error, SystemClock, Version};
use ringfence_servers::{Event, Taker};
use ringfence_testkit::Verdict;

use super::scene::{BESIDE_THE_TTL, Scene, Victim};
use super::{Fault, Reach};

/// How often the one that goes on counts.
const TIMES: u64 = 5;

/// How much later it is struck at most, in milliseconds: about as long as an update takes where the disk is waited for.
const LATER_MOST: u64 = 16;

/// A process that counts is struck in the middle of an update; another one counts on, and so does the first one if it lives. Every
/// update that anybody was told of is there, once.
pub(super) async fn goes_on(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    let mut first = scene.victim(fault, &["--pattern", "versioned"]).await;
    let mut told = BTreeSet::new();
    let struck = strike_in_the_middle(&scene, &mut first, fault, &mut told).await;

    let record = scene.locks.versioned(&scene.name).wait(10 * scene.ttl.as_duration()).tries(u32::MAX);
    for time in 0..TIMES {
        let counted = record.update(async |current| {
            let mut counts = current.map(|record| counts(&record.value)).unwrap_or_default();
            *counts.entry(std::process::id()).or_default() += 1;
            Ok::<_, Error>(serde_json::to_vec(&counts).expect("numbers are JSON"))
        });
        let version = counted.await.expect("who is struck is in nobody's way for long");
        assert!(told.insert(version), "{version:?} was written twice");
        if time == 0 {
            let what = format!("an update after one that was {fault:?}");
            scene.in_time(&what, struck, SystemClock::new().now(), BESIDE_THE_TTL);
        }
    }
    first.goes_on();
    if fault != Fault::Killed {
        for _ in 0..TIMES {
            counts_on(&mut first.process, &mut told).await;
        }
    }

    first.process.kill();
    let id = first.process.id();
    let mut unknown = 1; // the one in the middle of which it is killed
    for event in first.process.last_events().await {
        match event {
            Event::Written { version, .. } => assert!(told.insert(version), "{version:?} was written twice"),
            Event::Refused { kind, .. } if kind == "Unavailable" => unknown += 1,
            _ => {}
        }
    }
    // Nobody holds it any more when this has been written.
    record
        .update(async |current| Ok::<_, Error>(current.expect("it was written").value))
        .await
        .expect("it is free");
    let found = record.read().await.expect("a look").expect("it was written");
    let counts = counts(&found.value);
    assert_eq!(
        counts.values().sum::<u64>(),
        found.version.0 - 1,
        "each version but the last counts once: {counts:?}"
    );
    assert_eq!(counts[&std::process::id()], TIMES, "{counts:?}");
    let (least, counted) = (told.len() as u64 - TIMES, counts[&id]);
    assert!((least..=least + unknown).contains(&counted), "{least} were told, {counted} are there");
    Ok(())
}

/// Strikes it again and again, each time a little later after it has counted, until it has the lock of the record when it is struck:
/// when it says that it counted it has let go, and rests.
async fn strike_in_the_middle(
    scene: &Scene,
    first: &mut Victim,
    fault: Fault,
    told: &mut BTreeSet<Version>,
) -> ringfence::BootInstant {
    for later in (0..LATER_MOST).cycle() {
        counts_on(&mut first.process, told).await;
        tokio::time::sleep(Duration::from_millis(later)).await;
        let struck = first.holds_still();
        let free = scene.locks.lock(&scene.name).try_acquire().await.expect("an answer");
        let Some(guard) = free else {
            return if fault == Fault::Killed { first.strike() } else { struck };
        };
        guard.release().await.expect("it was held");
        first.moves_again();
    }
    unreachable!("the times go round and round")
}

async fn counts_on(process: &mut Taker, told: &mut BTreeSet<Version>) {
    let written = |event: &Event| match event {
        Event::Written { version, .. } => Some(*version),
        _ => None,
    };
    let version = process.event("counts", written).await;
    assert!(told.insert(version), "{version:?} was written twice");
}

/// By process, how often it counted.
fn counts(value: &[u8]) -> BTreeMap<u32, u64> {
    serde_json::from_slice(value).expect("only counts are written")
}
