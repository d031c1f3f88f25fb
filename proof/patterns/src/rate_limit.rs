//! A limit on a rate: permits that are left to lapse.

use std::sync::Arc;
use std::time::Duration;

use ringfence::{BootInstant, Clock, Guard, LockRequest, Locks, Permits};
use ringfence_testkit::{Harness, NotApplicable, PATIENCE, Verdict};

use crate::stage::{fresh, locks};

/// A TTL that a case waits for, and within which a busy machine is told that a permit is its own.
fn ttl(locks: &Locks) -> Duration {
    Duration::from_millis(1500).max(locks.guarantees().ttl_min.as_duration())
}

/// A request for one of `limit` in a TTL, or why the backend has none.
fn one_of(locks: &Locks, name: &str, limit: u32) -> Result<LockRequest, NotApplicable> {
    if locks.guarantees().permits == Permits::None {
        return Err(NotApplicable("it has no permits"));
    }
    Ok(locks.lock(name).permits(limit).ttl(ttl(locks)))
}

async fn take(request: LockRequest) -> Guard {
    request.wait(PATIENCE).acquire().await.expect("a permit comes within the time that all of this takes")
}

async fn leave(guard: Guard) {
    guard.leave_to_lapse().await.expect("a guard that is held can be left");
}

/// As many as the limit get through at once; the next one gets through a TTL after the first, and by itself.
pub async fn rate_limit_grants_a_permit_again_a_ttl_later(harness: &dyn Harness) -> Verdict {
    let (ann, bob) = (locks(harness).await, locks(harness).await);
    let name = fresh("rate_limit_grants_a_permit_again_a_ttl_later");
    let clock = harness.clock();
    let asked = clock.now();
    for _ in 0..2 {
        leave(take(one_of(&ann, &name, 2)?).await).await;
    }
    let early = one_of(&bob, &name, 2)?.try_acquire().await.expect("an answer");
    assert!(early.is_none(), "a third permit of two in a TTL: {early:?}");
    let third = take(one_of(&bob, &name, 2)?).await;
    let passed = clock.now().saturating_since(asked);
    assert!(passed >= ttl(&bob), "the third of two in a TTL was granted {passed:?} after the first");
    leave(third).await;
    Ok(())
}

/// A program that takes its permit and goes on without its locks has spent it all the same, closed or dropped.
pub async fn rate_limit_outlives_the_locks_of_those_who_took_their_permits(harness: &dyn Harness) -> Verdict {
    let watcher = locks(harness).await;
    for closes in [true, false] {
        let name = fresh("rate_limit_outlives_the_locks_of_those_who_took_their_permits");
        let ann = locks(harness).await;
        let asked = harness.clock().now();
        leave(take(one_of(&ann, &name, 1)?).await).await;
        if closes {
            ann.close().await.expect("these locks close");
        }
        drop(ann);
        let next = take(one_of(&watcher, &name, 1)?).await;
        let passed = harness.clock().now().saturating_since(asked);
        assert!(passed >= ttl(&watcher), "closed: {closes}; spent for no longer than {passed:?}");
        leave(next).await;
    }
    Ok(())
}

/// A permit counts from its own grant, even where the leases of one process end together and others of it are older.
pub async fn rate_limit_counts_from_the_grant_beside_older_leases(harness: &dyn Harness) -> Verdict {
    let (ann, bob) = (locks(harness).await, locks(harness).await);
    let name = fresh("rate_limit_counts_from_the_grant_beside_older_leases");
    let older = take(ann.lock(&*fresh("older")).ttl(ttl(&ann))).await;
    older.release().await.expect("a lock is given back");
    // Nothing is held, so that nothing is renewed meanwhile.
    tokio::time::sleep(ttl(&ann) / 4).await;
    let asked = harness.clock().now();
    leave(take(one_of(&ann, &name, 1)?).await).await;
    let next = take(one_of(&bob, &name, 1)?).await;
    let passed = harness.clock().now().saturating_since(asked);
    assert!(passed >= ttl(&ann), "one in a TTL, and the next one {passed:?} later");
    leave(next).await;
    Ok(())
}

/// Three processes take what they can get: in no stretch as long as a TTL are there more grants than the limit.
pub async fn rate_limit_holds_for_everybody_who_hammers_at_it(harness: &dyn Harness) -> Verdict {
    const LIMIT: u32 = 3;
    const EACH: usize = 2;
    let name = fresh("rate_limit_holds_for_everybody_who_hammers_at_it");
    let mut all = Vec::new();
    for _ in 0..3 {
        let (locks, clock) = (locks(harness).await, harness.clock());
        let _ = one_of(&locks, &name, LIMIT)?;
        all.push(tokio::spawn(hammer(locks, clock, name.clone(), LIMIT, EACH)));
    }
    let mut grants = Vec::new();
    for one in all {
        grants.extend(one.await.expect("whoever hammers gets its permits"));
    }
    let ttl = ttl(&locks(harness).await);
    for (asked, _) in &grants {
        let end = asked.saturating_add(ttl);
        let within = grants.iter().filter(|(other, granted)| other >= asked && *granted < end).count();
        assert!(within <= LIMIT as usize, "{within} grants of {LIMIT} within a TTL of {asked:?}: {grants:?}");
    }
    Ok(())
}

/// Takes and spends so many permits, and says when each was asked for, at the latest, and had.
async fn hammer(
    locks: Locks,
    clock: Arc<dyn Clock>,
    name: String,
    limit: u32,
    times: usize,
) -> Vec<(BootInstant, BootInstant)> {
    let mut grants = Vec::new();
    while grants.len() < times {
        let asked = clock.now();
        let request = one_of(&locks, &name, limit).expect("it was asked before whether there are permits");
        if let Some(guard) = request.try_acquire().await.expect("an answer") {
            grants.push((asked, clock.now()));
            leave(guard).await;
        } else {
            // What comes to those who wait is covered elsewhere; here the requests are to come at odd times.
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    }
    grants
}

/// A permit that was spent is free before its time where an operator evicts whoever spent it.
pub async fn rate_limit_lets_an_operator_give_a_permit_back(harness: &dyn Harness) -> Verdict {
    let (ann, bob) = (locks(harness).await, locks(harness).await);
    let name = fresh("rate_limit_lets_an_operator_give_a_permit_back");
    let long = Duration::from_mins(1).min(ann.guarantees().ttl_max.as_duration());
    let guard = take(one_of(&ann, &name, 1)?.ttl(long)).await;
    let nonce = guard.token().nonce();
    leave(guard).await;
    let state = bob.inspect(&*name).await.expect("an answer");
    assert_eq!(state.holders.len(), 1, "what is spent can be seen: {state:?}");
    bob.evict(&*name, nonce).await.expect("an eviction");
    leave(take(one_of(&bob, &name, 1)?.ttl(long)).await).await;
    Ok(())
}
