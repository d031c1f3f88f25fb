//! Permits, of which several may hold.

use ringfence::Permits;
use ringfence_testkit::{NotApplicable, Verdict};

use super::scene::{BESIDE_THE_TTL, LATE, Scene, appends, line};
use super::{Fault, Reach};

const PERMIT: &[&str] = &["--mode", "permits:2"];
const THE_PERMIT: &[&str] = &["--mode", "permits:1"];

const NONE: NotApplicable = NotApplicable("it has no permits");

/// Two hold, and one of them is struck: the third holds in time, the fourth when one of the others gives back, and nothing that the
/// first one does late makes room for more.
pub(super) async fn come_back(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    if scene.locks.guarantees().permits == Permits::None {
        return Err(NONE);
    }
    let mut first = scene.victim(fault, PERMIT).await;
    let (early, _) = first.process.holds().await;
    appends(&mut first.process, "append", "the first").await;
    let mut beside = scene.start(PERMIT);
    let _ = beside.holds().await;
    let mut third = scene.start(PERMIT);
    third.asks().await;

    let struck = first.strike();
    if fault != Fault::Killed {
        first.process.tell(&format!("append {LATE}"));
    }
    let (token, began) = third.holds().await;
    scene.in_time(&format!("a permit of one that was {fault:?}"), struck, began, BESIDE_THE_TTL);
    assert!(token.sequence() > early.sequence(), "{token} after {early}");
    appends(&mut third, "append", "the third").await;
    let mut fourth = scene.start(PERMIT);
    fourth.asks().await;
    is_full(&scene, 2, fault).await;

    first.goes_on();
    if fault != Fault::Killed {
        first.is_refused().await;
        first.process.loses().await;
        first.gives_back_late().await;
    }
    is_full(&scene, 2, fault).await;
    let until = beside.gives_back().await;
    let (_, began) = fourth.holds().await;
    assert!(began >= until, "three hold one of two: the fourth at {began:?}, who was beside until {until:?}");
    is_full(&scene, 2, fault).await;
    let expected = line(early, "the first") + &line(token, "the third");
    assert_eq!(scene.effects(&scene.lock()).await, expected, "{fault:?}");
    Ok(())
}

/// One takes the only permit in a TTL and leaves it, and is struck: the next one holds a TTL after that grant, in time, and what the
/// first one gives back when it wakes up is not the next one's.
pub(super) async fn stay_spent(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    let guarantees = scene.locks.guarantees();
    if guarantees.permits == Permits::None {
        return Err(NONE);
    }
    // The dead hold nothing there, not even what they have spent.
    let is_spent = fault != Fault::Killed || !guarantees.holder_death.is_at_once();
    let mut first = scene.victim(fault, THE_PERMIT).await;
    let asked = first.process.asks().await;
    let (early, _) = first.process.holds().await;
    appends(&mut first.process, "append", "the first").await;
    first.process.leaves().await;
    let mut second = scene.start(THE_PERMIT);
    second.asks().await;

    let struck = first.strike();
    if fault != Fault::Killed {
        first.process.tell(&format!("append {LATE}"));
    }
    let (token, began) = second.holds().await;
    scene.in_time(
        &format!("a permit that was spent by one that was {fault:?}"),
        struck,
        began,
        BESIDE_THE_TTL,
    );
    let (passed, ttl) = (began.saturating_since(asked), scene.ttl.as_duration());
    assert!(
        passed >= ttl || !is_spent,
        "one in {ttl:?}, and the next one {passed:?} after one that was {fault:?}"
    );
    assert!(token.sequence() > early.sequence(), "{token} after {early}");
    appends(&mut second, "append", "the second").await;

    first.goes_on();
    if fault != Fault::Killed {
        first.is_refused().await;
    }
    is_full(&scene, 1, fault).await;
    let until = second.gives_back().await;
    if fault != Fault::Killed {
        // It is one of those who want a permit again.
        first.process.tell("acquire");
        let (_, began) = first.process.holds().await;
        assert!(began >= until, "two hold the only permit: from {began:?} and until {until:?}");
    }
    let expected = line(early, "the first") + &line(token, "the second");
    assert_eq!(scene.effects(&scene.lock()).await, expected, "{fault:?}");
    Ok(())
}

/// Checks that all permits are held.
async fn is_full(scene: &Scene, limit: u32, fault: Fault) {
    let more = scene.locks.lock(&scene.name).permits(limit).try_acquire().await.expect("an answer");
    assert!(more.is_none(), "more than {limit} hold beside one that was {fault:?}: {more:?}");
}
