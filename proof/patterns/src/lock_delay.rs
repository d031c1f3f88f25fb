//! A lock delay: after an unclean loss nobody gets the lock for a while.

use std::time::Duration;

use ringfence::{BootInstant, Error, ErrorKind, Guard, Locks};
use ringfence_testkit::{Harness, Verdict};

use crate::stage::{fresh, locks, within};

const DELAY: Duration = Duration::from_millis(1500);

/// By how much less than a delay one may seem to wait: what servers round.
const SLACK: Duration = Duration::from_millis(50);

/// Longer than any TTL and delay of these cases, and shorter than a case may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Holds with a delay, and does not renew; and says until when. `None`: the backend refuses, as it must where a holder's death
/// frees its locks at once.
async fn hang(harness: &dyn Harness, locks: &Locks, name: &str) -> Option<(Guard, BootInstant)> {
    let ttl = locks.guarantees().ttl_min.as_duration().max(Duration::from_millis(400));
    let request = locks.lock(name).ttl(ttl).lock_delay(DELAY).max_hold(Duration::ZERO);
    let is_refused = |error: &Error| error.kind() == ErrorKind::Unsupported;
    match (locks.guarantees().holder_death.is_at_once(), request.acquire().await) {
        (true, Err(error)) if is_refused(&error) => None,
        // Not when the loss is noticed: that may be late.
        (false, Ok(guard)) => {
            let until = harness.clock().now().saturating_add(guard.remaining());
            Some((guard, until))
        }
        (at_once, outcome) => panic!("leases of the dead end at once: {at_once}, but {outcome:?}"),
    }
}

/// Waits for the loss of a guard, then for the lock: for how long others were kept out.
async fn kept_out(harness: &dyn Harness, guard: &Guard, lost: BootInstant, name: &str) -> Duration {
    let bob = locks(harness).await;
    let clock = harness.clock();
    guard.lost().await;
    assert!(bob.lock(name).try_acquire().await.expect("a try").is_none(), "nobody gets it at once");
    let next = bob.lock(name).wait(PATIENCE).acquire().await.expect("the delay has an end");
    let waited = clock.now().saturating_since(lost);
    next.release().await.expect("a release");
    waited
}

/// After a holder has lost the lock because it hung, nobody gets it before the delay is over, and then the next one does.
pub async fn lock_delay_keeps_others_out(harness: &dyn Harness) -> Verdict {
    let (ann, name) = (locks(harness).await, fresh("lock_delay_keeps_others_out"));
    let Some((guard, lost)) = hang(harness, &ann, &name).await else { return Ok(()) };
    let waited = kept_out(harness, &guard, lost, &name).await;
    assert!(waited + SLACK >= DELAY, "the lock was free {waited:?} after the loss, and not {DELAY:?}");
    Ok(())
}

/// A holder that notices its loss and lets go of the guard does not shorten the delay.
pub async fn lock_delay_is_not_shortened_by_who_has_lost(harness: &dyn Harness) -> Verdict {
    let (ann, name) = (locks(harness).await, fresh("lock_delay_is_not_shortened"));
    let Some((guard, lost)) = hang(harness, &ann, &name).await else { return Ok(()) };
    guard.lost().await;
    let released = guard.release().await.map_err(|error| error.kind());
    assert_eq!(released, Err(ErrorKind::Lost), "what is lost cannot be given back");
    let bob = locks(harness).await;
    let next = bob.lock(&name).wait(PATIENCE).acquire().await.expect("the delay has an end");
    let waited = harness.clock().now().saturating_since(lost);
    assert!(waited + SLACK >= DELAY, "the lock was free {waited:?} after the loss, and not {DELAY:?}");
    next.release().await.expect("a release");
    Ok(())
}

/// The same of a leader that hangs: nobody leads before the delay is over, and then the next candidate does.
pub async fn lock_delay_keeps_candidates_out(harness: &dyn Harness) -> Verdict {
    let (ann, bob) = (locks(harness).await, locks(harness).await);
    let name = fresh("lock_delay_keeps_candidates_out");
    let ttl = ann.guarantees().ttl_min.as_duration().max(Duration::from_millis(400));
    let election = ann.leader(name.as_str()).ttl(ttl).lock_delay(DELAY).max_hold(Duration::ZERO);
    let leadership = match (ann.guarantees().holder_death.is_at_once(), election.campaign("ann").await) {
        (true, Err(error)) if error.kind() == ErrorKind::Unsupported => return Ok(()),
        (false, Ok(leadership)) => leadership,
        (at_once, outcome) => panic!("leases of the dead end at once: {at_once}, but {outcome:?}"),
    };
    let lost = harness.clock().now().saturating_add(leadership.guard().remaining());
    let next = bob.leader(name.as_str());
    let next = within("the next term", next.campaign("bob")).await.expect("the delay has an end");
    let waited = harness.clock().now().saturating_since(lost);
    assert!(waited + SLACK >= DELAY, "the next term began {waited:?} after the loss, and not {DELAY:?}");
    assert!(next.term().sequence() > leadership.term().sequence(), "{next:?} after {leadership:?}");
    next.resign().await.expect("a release");
    Ok(())
}

/// A clean release frees the lock at once, for those who wait in line as well.
pub async fn lock_delay_is_none_after_a_clean_release(harness: &dyn Harness) -> Verdict {
    const LONG: Duration = Duration::from_secs(15);
    let (ann, bob) = (locks(harness).await, locks(harness).await);
    if ann.guarantees().holder_death.is_at_once() {
        return Ok(());
    }
    let name = fresh("lock_delay_is_none_after_a_clean_release");
    let ttl = ann.guarantees().ttl_min.as_duration().max(Duration::from_secs(2));
    let guard = ann.lock(&name).ttl(ttl).lock_delay(LONG).acquire().await.expect("it is free");
    let waiting = tokio::spawn(bob.lock(&name).wait(PATIENCE).acquire());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let clock = harness.clock();
    let released = clock.now();
    guard.release().await.expect("it is held");
    let next = waiting.await.expect("it does not panic").expect("it is released");
    let waited = clock.now().saturating_since(released);
    assert!(waited < LONG / 2, "a clean release is at once, not after {waited:?}");
    next.release().await.expect("a release");
    Ok(())
}
