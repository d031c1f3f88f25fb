//! Patterns that hold a lock from their beginning to their end.

use std::time::Duration;

use ringfence::patterns::{Begun, RunOutcome};
use ringfence::{FencingToken, LockName};
use ringfence_servers::{Event, Taker};
use ringfence_testkit::{NotApplicable, Verdict};

use super::scene::{BESIDE_THE_TTL, LATE, Scene, appends, line};
use super::{Fault, Reach};

/// For how long nobody gets a lock that was lost.
const DELAY: Duration = Duration::from_secs(3);

/// What the lock is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Once,
    Leader,
    Idempotency,
    /// For its delay, and for nothing else.
    Delayed,
}

/// One holds, and is struck; the next one in line holds in time, and nothing of the first one's is done or believed any more.
pub(super) async fn take_over(reach: &dyn Reach, held: Held, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    if held == Held::Delayed && scene.locks.guarantees().holder_death.is_at_once() {
        return Err(NotApplicable("it keeps no lock delay, because the dead hold nothing"));
    }
    let mut first = scene.victim(fault, held.options()).await;
    let (early, _) = first.process.holds().await;
    appends(&mut first.process, "append", "the first").await;
    let mut second = scene.start(held.options());
    second.asks().await;

    let struck = first.strike();
    if fault != Fault::Killed {
        // They wait in the process that is stopped, or in the network.
        first.process.tell(&format!("append {LATE}"));
        first.process.tell(&format!("end {LATE}"));
    }
    let (token, began) = second.holds().await;
    let what = format!("{held:?} of one that was {fault:?}");
    scene.in_time(&what, struck, began, BESIDE_THE_TTL + held.delay());
    let kept_out = began.saturating_since(struck);
    assert!(kept_out >= held.delay(), "{what}: somebody gets it after {kept_out:?}, within the delay");
    assert!(token.sequence() > early.sequence(), "{what}: {token} after {early}");
    appends(&mut second, "append", "the second").await;

    first.goes_on();
    if fault != Fault::Killed {
        first.is_refused().await;
        if held != Held::Delayed {
            first.is_refused().await;
        }
        // A run that has ended has nothing left to lose.
        if held != Held::Once {
            first.process.loses().await;
        }
    }
    held.ends(&mut second).await;
    let effects = scene.effects(&held.lock(&scene.name)).await;
    assert_eq!(effects, line(early, "the first") + &line(token, "the second"), "{what}");
    held.stands(&scene, early, token).await;
    Ok(())
}

impl Held {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Once => &["--pattern", "once"],
            Self::Leader => &["--pattern", "leader"],
            Self::Idempotency => &["--pattern", "idempotency"],
            Self::Delayed => &["--lock-delay", "3s"],
        }
    }

    fn delay(self) -> Duration {
        if self == Self::Delayed { DELAY } else { Duration::ZERO }
    }

    fn lock(self, name: &str) -> LockName {
        let lock = match self {
            Self::Once => format!("once/{name}"),
            Self::Leader => format!("leader/{name}"),
            Self::Idempotency => format!("idempotency/{name}"),
            Self::Delayed => name.to_owned(),
        };
        LockName::new(lock).expect("a short name")
    }

    /// Has somebody do what the pattern is for.
    async fn ends(self, process: &mut Taker) {
        if self != Self::Delayed {
            process.tell("end the second");
            process.event("has ended", |event| matches!(event, Event::Ended).then_some(())).await;
        }
    }

    /// It is the second one's that everybody sees.
    async fn stands(self, Scene { locks, name, .. }: &Scene, first: FencingToken, second: FencingToken) {
        match self {
            Self::Once => {
                let history = locks.once(name).history().await.expect("a history");
                let runs: Vec<_> = history.iter().map(|run| (run.token, run.outcome)).collect();
                let expected = [(second, Some(RunOutcome::Succeeded)), (first, Some(RunOutcome::Crashed))];
                assert_eq!(runs, expected);
            }
            Self::Leader => {
                let leader = locks.leader(name).current().await.expect("a look").expect("the second leads");
                assert_eq!((leader.value.as_str(), leader.term), ("the second", second));
            }
            Self::Idempotency => match locks.idempotency(name).begin().await.expect("an answer") {
                Begun::Done(result) => assert_eq!(result, "the second"),
                begun => panic!("the second has done it: {begun:?}"),
            },
            Self::Delayed => {}
        }
    }
}
