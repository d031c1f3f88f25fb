//! Several locks at a time, all or nothing.

use std::time::Duration;

use ringfence::LockName;
use ringfence_servers::{Event, SEVERAL, Taker, one_of_several};
use ringfence_testkit::Verdict;

use super::scene::{BESIDE_THE_TTL, LATE, Scene, appends, line};
use super::{Fault, Reach};

const ALL: &[&str] = &["--pattern", "several"];

/// How much longer it may be where one that was struck stood in line as well: its place is gone a few seconds after its last sign of
/// life, if not with its lease.
const BESIDE_A_PLACE: Duration = Duration::from_secs(4);

/// One holds all of them, and is struck: the next one holds all of them in time, each under a higher token, and each of them refuses
/// what the first one does late.
pub(super) async fn go_on(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    let mut first = scene.victim(fault, ALL).await;
    let (mut early, mut later) = (Vec::new(), Vec::new());
    for number in 0..SEVERAL {
        early.push(first.process.holds().await.0);
        appends(&mut first.process, &format!("append {number}"), "the first").await;
    }
    let mut second = scene.start(ALL);
    second.asks().await;

    let struck = first.strike();
    if fault != Fault::Killed {
        for number in 0..SEVERAL {
            first.process.tell(&format!("append {number} {LATE}"));
        }
    }
    for number in 0..SEVERAL {
        let (token, began) = second.holds().await;
        scene.in_time(&format!("all of one that was {fault:?}"), struck, began, BESIDE_THE_TTL);
        later.push(token);
        appends(&mut second, &format!("append {number}"), "the second").await;
    }

    first.goes_on();
    if fault != Fault::Killed {
        for _ in 0..SEVERAL {
            first.is_refused().await;
        }
        first.process.loses().await;
    }
    for (number, (early, later)) in (0..SEVERAL).zip(early.into_iter().zip(later)) {
        assert!(later.sequence() > early.sequence(), "{number}: {later} after {early}");
        let expected = line(early, "the first") + &line(later, "the second");
        assert_eq!(
            scene.effects(&name(&scene, number)).await,
            expected,
            "{number}, of one that was {fault:?}"
        );
    }
    Ok(())
}

/// One has the first of them and waits for the second, and is struck: the next one has all of them in time. The first one, when it goes
/// on, does not hold what it has left, and lets go of what it gets.
pub(super) async fn are_given_up(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    let in_the_way = scene.locks.lock(&*one_of_several(&scene.name, 1)).ttl(scene.ttl.as_duration());
    let in_the_way = in_the_way.acquire().await.expect("it is free");
    let mut first = scene.victim(fault, ALL).await;
    let early = scene.until_held(&name(&scene, 0)).await;
    let mut second = scene.start(ALL);
    second.asks().await;

    let struck = first.strike();
    in_the_way.release().await.expect("it is held");
    for number in 0..SEVERAL {
        let (token, began) = second.holds().await;
        scene.in_time(&format!("what one wanted that was {fault:?}"), struck, began, BESIDE_A_PLACE);
        assert!(number > 0 || token.sequence() > early.sequence(), "{token} after {early}");
    }

    first.goes_on();
    if fault != Fault::Killed {
        second.kill();
        has_none(&mut first.process, fault).await;
        for number in 0..SEVERAL {
            let again = scene
                .locks
                .lock(name(&scene, number).as_str())
                .wait(scene.ttl.as_duration() + BESIDE_A_PLACE);
            let guard = again.acquire().await.unwrap_or_else(|error| panic!("{number} is held on: {error}"));
            guard.release().await.expect("it is held");
        }
    }
    Ok(())
}

/// Waits until one says that it has not got them all.
async fn has_none(process: &mut Taker, fault: Fault) {
    let answer = |event: &Event| match event {
        Event::Refused { kind, .. } => Some(kind.clone()),
        Event::Held { .. } => Some("Held".to_owned()),
        _ => None,
    };
    let kind = process.event("is refused", answer).await;
    let is_expected = kind == "Lost" || (kind == "Unavailable" && fault == Fault::CutOff);
    assert!(is_expected, "one that was {fault:?}, and lost one of several, says {kind}");
}

fn name(scene: &Scene, number: u32) -> LockName {
    LockName::new(one_of_several(&scene.name, number)).expect("a short name")
}
