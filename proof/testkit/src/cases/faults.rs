use std::time::Duration;

use ringfence_core::{
    Attempt, ErrorKind, Lease, Mode, Queue, RecordGuard, RecordKey, Release, Renewal, Scope, Wait,
};

use crate::client::{Client, LONG, clients, expect_refused, fresh};
use crate::harness::{Harness, NotApplicable, Verdict};

/// What *at once* means for a death that the kernel tells of: long before any TTL, with room for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(2);

/// What a waiter that is paused when its turn comes may cost the next one: a second by the contract, and room.
const A_TURN: Duration = Duration::from_secs(4);

/// The TTL of a lease that a case lets lapse while a process is stopped or cut off: long enough to act within it.
const PAUSED: Duration = Duration::from_secs(2);

const NO_PROCESS: NotApplicable = NotApplicable("the harness starts no client in a process of its own");

/// The token of a holder that was paused is refused once another one holds the lock and has opened its record.
async fn takes_over(client: &Client, key: &RecordKey, lease: &Lease) {
    client.opens(key, lease).await;
    client.writes(key, lease, "the next holder").await;
}

/// A holder killed with SIGKILL is out of the way at once, not after its TTL. Where `Guarantees::holder_death` says so.
pub async fn a_killed_holder_is_out_at_once(harness: &dyn Harness) -> Verdict {
    let [ann] = clients(harness).await;
    if !ann.guarantees().holder_death.is_at_once() {
        return Err(NotApplicable("the lease of a killed holder ends at its TTL"));
    }
    let name = fresh("a_killed_holder_is_out_at_once");
    let mut process = harness.start_process(&name, ann.ttl(LONG)).ok_or(NO_PROCESS)?.await;
    let token = process.held().await;
    let waiter = ann.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 1).await;
    waiter.still_waits();

    let killed = ann.now();
    process.kill();
    let (lease, granted) = waiter.granted_at().await;
    let took = granted.saturating_since(killed);
    assert!(took < AT_ONCE, "the next one is granted at once, not after {took:?}");
    assert!(lease.token.sequence() > token.sequence(), "the next token is higher: {token}, {lease:?}");
    ann.gives_back(&lease).await;

    let mut process = harness.start_process(&name, ann.ttl(LONG)).ok_or(NO_PROCESS)?.await;
    let token = process.held().await;
    process.kill();
    // Nobody waited, so nobody has noticed the death before. To a server on the network the kernel tells it a moment later.
    let killed = ann.now();
    let lease = loop {
        match ann.ask(&name, Mode::Exclusive, LONG).await {
            Attempt::Granted(lease) => break lease,
            Attempt::Busy(contention) => {
                let took = ann.now().saturating_since(killed);
                let is_near = ann.guarantees().scope != Scope::Network;
                assert!(
                    !is_near && took < AT_ONCE,
                    "who tries is granted at once, not after {took:?}: {contention:?}"
                );
            }
        }
        tokio::task::yield_now().await;
    };
    assert!(lease.token.sequence() > token.sequence(), "the next token is higher: {token}, {lease:?}");
    ann.gives_back(&lease).await;
    Ok(())
}

/// A waiter killed with SIGKILL leaves the line at once, and those behind it move up.
pub async fn a_killed_waiter_is_out_at_once(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    if !ann.guarantees().holder_death.is_at_once() {
        return Err(NotApplicable("the place of a killed waiter ends at its TTL"));
    }
    let name = fresh("a_killed_waiter_is_out_at_once");
    let held = ann.hold(&name, Mode::Exclusive, LONG).await;
    let mut process = harness.start_process(&name, ann.ttl(LONG)).ok_or(NO_PROCESS)?.await;
    ann.sees_in_line(&name, 1).await;
    let behind = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 2).await;

    process.kill();
    ann.sees_in_line(&name, 1).await;
    behind.still_waits();
    let released = ann.now();
    ann.gives_back(&held).await;
    let (lease, granted) = behind.granted_at().await;
    let took = granted.saturating_since(released);
    assert!(took < AT_ONCE, "the dead one's turn costs nothing, not {took:?}");
    bob.gives_back(&lease).await;
    Ok(())
}

/// A stopped holder keeps its lease until its TTL, then the next one gets it. When it runs on, its writes are refused
/// and it learns that it lost.
pub async fn a_stopped_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused(
    harness: &dyn Harness,
) -> Verdict {
    let [ann] = clients(harness).await;
    let name = fresh("a_stopped_holder_keeps_its_lease");
    let key = RecordKey::of(name.clone());
    let mut process = harness.start_process(&name, ann.ttl(PAUSED)).ok_or(NO_PROCESS)?.await;
    let token = process.held().await;
    process.write("the first holder").await.expect("a holder writes");

    process.stop();
    let stopped = ann.now();
    let state = ann.inspect(&name).await;
    let remaining =
        state.holders.first().and_then(|holder| holder.remaining).expect("a stopped holder still holds");
    let (lease, granted) = ann.wait(&name, Mode::Exclusive).granted_at().await;
    assert!(
        granted >= stopped.saturating_add(remaining),
        "a stopped holder keeps what it had left, {remaining:?}, and lost it after {:?}",
        granted.saturating_since(stopped)
    );
    assert!(lease.token.sequence() > token.sequence(), "the next token is higher: {token}, {lease:?}");
    takes_over(&ann, &key, &lease).await;

    process.resume();
    expect_refused("a late write", process.write("late").await, &[ErrorKind::Stale]);
    process.lost().await;
    let record = ann.read(&key).await.expect("it was written");
    assert_eq!((&record.value[..], record.written_with), (&b"the next holder"[..], lease.token));
    ann.gives_back(&lease).await;
    Ok(())
}

/// A waiter that is stopped when its turn comes costs the next one about a second, or its TTL where `Guarantees::queue` says
/// so; when it runs on, it has not got what it slept through, and gets its turn later.
pub async fn a_stopped_waiter_does_not_hold_up_the_line(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    if !ann.has_line() {
        return Err(NotApplicable("its waiters are served in no order"));
    }
    let name = fresh("a_stopped_waiter_does_not_hold_up_the_line");
    let held = ann.hold(&name, Mode::Exclusive, LONG).await;
    let (ttl, at_most) = match ann.guarantees().queue {
        Queue::FirstComeFirstServedByLease => (ann.ttl(PAUSED), ann.ttl(PAUSED).as_duration() + A_TURN),
        _ => (ann.ttl(LONG), A_TURN),
    };
    let mut process = harness.start_process(&name, ttl).ok_or(NO_PROCESS)?.await;
    ann.sees_in_line(&name, 1).await;
    let behind = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 2).await;

    process.stop();
    let released = ann.now();
    ann.gives_back(&held).await;
    let (lease, granted) = behind.granted_at().await;
    let took = granted.saturating_since(released);
    assert!(took < at_most, "a stopped waiter costs the next one less than {at_most:?}, not {took:?}");

    process.resume();
    assert_eq!(bob.renew(&lease).await, Renewal::Renewed, "the one that slept takes nothing back");
    bob.gives_back(&lease).await;
    let token = process.held().await;
    assert!(token.sequence() > lease.token.sequence(), "its turn comes later: {lease:?}, {token}");
    Ok(())
}

/// A holder that is cut off from the store keeps its lease until its TTL, then the next one gets it. No renewal
/// succeeds meanwhile; when it is back, it learns that it lost, and its writes are refused.
pub async fn a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused(
    harness: &dyn Harness,
) -> Verdict {
    let connected = harness.connect_by_cable();
    let cable = connected.ok_or(NotApplicable("the harness cuts no client off"))?.await;
    let (ann, [bob]) = (Client::new(harness, cable.client(), "cut off"), clients(harness).await);
    let key = RecordKey::of(fresh("a_cut_off_holder_keeps_its_lease"));
    let lost = ann.hold(key.lock(), Mode::Exclusive, PAUSED).await;
    takes_over(&ann, &key, &lost).await;
    let waiting = bob.wait(key.lock(), Mode::Exclusive);
    bob.sees_in_line(key.lock(), 1).await;

    cable.cut();
    let keys = [lost.key.clone()];
    let renewal = tokio::time::timeout(PAUSED / 4, ann.backend.renew(&keys)).await;
    if let Ok(Ok(renewals)) = renewal {
        panic!("no renewal passes a cut cable: {renewals:?}");
    }
    let (lease, granted) = waiting.granted_at().await;
    assert!(granted >= lost.deadline(), "a holder that is cut off keeps its lease until its TTL is over");
    takes_over(&bob, &key, &lease).await;

    cable.mend();
    ann.sees_lost(&lost).await;
    expect_refused("a late write", ann.write(&key, &lost, "late").await, &[ErrorKind::Stale]);
    bob.gives_back(&lease).await;
    Ok(())
}

/// A lease that ended is lost to its holder, free for the next in line, and its token is refused.
async fn ended(holder: &Client, next: &Client, key: &RecordKey, lost: &Lease, lease: &Lease) {
    assert_eq!(holder.renew(lost).await, Renewal::Lost, "a lease that ended is lost");
    assert_eq!(holder.release(lost).await, Release::NotHeld, "a lease that ended cannot be given back");
    assert!(lease.token.sequence() > lost.token.sequence(), "the next token is higher: {lost:?}, {lease:?}");
    if next.guarantees().record_guard == RecordGuard::HighWaterMark {
        next.opens(key, lease).await;
    }
    expect_refused("a late write", holder.write(key, lost, "late").await, &[ErrorKind::Stale]);
    assert_eq!(next.renew(lease).await, Renewal::Renewed, "the next one holds");
    next.gives_back(lease).await;
}

/// When a long lease expires, its holder has lost it and the next in line is granted.
pub async fn an_expired_lease_is_lost_and_the_next_in_line_is_granted(harness: &dyn Harness) -> Verdict {
    const TTL: Duration = Duration::from_hours(1);
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("an_expired_lease_is_lost"));
    let lost = ann.hold(key.lock(), Mode::Exclusive, TTL).await;
    ann.opens(&key, &lost).await;
    // The harness may move the clock by the TTL: the one that waits has more patience than that.
    let wait = Wait::Until(bob.now().saturating_add(2 * TTL));
    let waiting = bob.begin(bob.request(key.lock(), Mode::Exclusive, TTL, wait));
    ann.sees_in_line(key.lock(), 1).await;
    waiting.still_waits();

    harness.expire(&lost).ok_or(NotApplicable("the harness ends no lease before its time"))?.await;
    let lease = waiting.granted().await;
    // A server that has just ended a session may leave what is asked in it unanswered: the next one answers.
    ann.sees_lost(&lost).await;
    ended(&ann, &bob, &key, &lost, &lease).await;
    Ok(())
}

/// When somebody removes a lease by the store's own means, its holder has lost it, the next in line is granted, and
/// tokens still rise.
pub async fn a_lease_removed_behind_its_back_is_lost(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("a_lease_removed_behind_its_back"));
    let lost = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    ann.opens(&key, &lost).await;
    let waiting = bob.wait(key.lock(), Mode::Exclusive);
    ann.sees_in_line(key.lock(), 1).await;
    waiting.still_waits();

    let removal = harness.remove_behind_its_back(&lost);
    removal.ok_or(NotApplicable("the harness removes no lease by the store's own means"))?.await;
    let lease = waiting.granted().await;
    ended(&ann, &bob, &key, &lost, &lease).await;
    Ok(())
}
