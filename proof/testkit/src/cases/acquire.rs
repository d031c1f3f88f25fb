use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    Attempt, BootInstant, ErrorKind, HANDOVER_BITS, Lease, LockName, Mode, NAME_MAX, RecordKey, Release,
    Renewal, Wait,
};

use crate::client::{Client, LONG, PATIENCE, SHORT, clients, expect_refused, fresh, permit};
use crate::harness::{Harness, NotApplicable, Verdict};
use crate::history::{Hold, check_exclusive};

/// How late a backend may notice that a lease or a wait is over: bounded polls are only the net, but they are one.
const LATE: Duration = Duration::from_secs(3);

/// Checks the numbers and instants of a lease that was just granted to an attempt.
fn check_lease(client: &Client, name: &LockName, ttl: Duration, lease: &Lease) {
    assert_eq!(lease.key.name, *name, "a lease is on the name that was asked for");
    assert_eq!(
        lease.key.ttl,
        client.ttl(ttl),
        "a TTL within the backend's range is granted as it was asked for"
    );
    assert_eq!(lease.token.nonce(), lease.key.nonce, "a token carries the nonce of its attempt");
    assert_eq!(
        lease.token.sequence(),
        lease.token.grant() << HANDOVER_BITS,
        "the low bits of a backend's token are free for the hall's hand-overs"
    );
    let now = client.now();
    assert!(
        lease.counted_from <= now,
        "a lease counts from before it was asked for, not from later than now"
    );
    assert!(lease.deadline() > now, "a lease that was just granted has not lapsed");
}

/// A free name is granted at once, in every mode, also to a request whose deadline is now. A permit where there are none is refused,
/// which is no contention.
pub async fn grants_a_free_name(harness: &dyn Harness) -> Verdict {
    let [ann] = clients(harness).await;
    for mode in modes(&ann) {
        let name = fresh("grants_a_free_name");
        let lease = ann.hold(&name, mode, LONG).await;
        check_lease(&ann, &name, LONG, &lease);
        ann.gives_back(&lease).await;
        // A name that nobody has ever asked for, and no time to lose.
        let name = fresh("grants_a_free_name");
        let lease = ann.wait_until(&name, mode, ann.now()).granted().await;
        ann.gives_back(&lease).await;
    }
    Ok(())
}

/// A name held by somebody else is `Busy` for a request that does not wait, and its holder is not disturbed.
pub async fn busy_is_a_value(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let rivals = [
        (Mode::Exclusive, Mode::Exclusive),
        (Mode::Exclusive, Mode::Shared),
        (Mode::Exclusive, permit(2)),
        (Mode::Shared, Mode::Exclusive),
        (Mode::Shared, permit(2)),
        (permit(2), Mode::Exclusive),
        (permit(2), Mode::Shared),
    ];
    let modes = modes(&ann);
    for (held, asked) in
        rivals.into_iter().filter(|(held, asked)| modes.contains(held) && modes.contains(asked))
    {
        let name = fresh("busy_is_a_value");
        let lease = ann.hold(&name, held, LONG).await;
        let contention = bob.meets_busy(&name, asked).await;
        assert_eq!(contention.waiters, 0, "nobody waits for {name:?}, so nobody is counted");
        assert!(
            contention.holders.iter().all(|holder| *holder == ann.holder),
            "{held} is held by {} alone: {contention:?}",
            ann.holder
        );
        assert_eq!(ann.renew(&lease).await, Renewal::Renewed, "{asked} in vain leaves {held} alone");
        ann.gives_back(&lease).await;
    }
    Ok(())
}

/// A request that waits is granted when the holder releases, for its whole TTL.
pub async fn waits_for_release(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let name = fresh("waits_for_release");
    let held = ann.hold(&name, Mode::Exclusive, LONG).await;
    let waiter = bob.wait(&name, Mode::Exclusive);
    let nonce = waiter.nonce;
    ann.sees_in_line(&name, 1).await;
    waiter.still_waits();
    ann.gives_back(&held).await;

    let lease = waiter.granted().await;
    check_lease(&bob, &name, LONG, &lease);
    assert!(
        lease.key.nonce == nonce || !bob.has_line(),
        "a lease is that of the attempt that stood in line: {nonce}, {lease:?}"
    );
    let state = ann.inspect(&name).await;
    assert!(
        state.holders.len() == 1 && state.holders[0].remaining > Some(LONG / 2),
        "who waited holds alone, and for its TTL: {state:?}"
    );
    bob.gives_back(&lease).await;
    Ok(())
}

/// A request that waits until a deadline answers `Busy` at that deadline, not before, does not count itself among those who wait,
/// and leaves nothing behind.
pub async fn wait_ends_at_its_deadline(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    let name = fresh("wait_ends_at_its_deadline");
    let held = ann.hold(&name, Mode::Exclusive, LONG).await;
    for patience in [Duration::ZERO, Duration::from_millis(400)] {
        let deadline = bob.now().saturating_add(patience);
        let (contention, gave_up) = bob.wait_until(&name, Mode::Exclusive, deadline).gave_up_at().await;
        assert!(gave_up >= deadline, "a wait of {patience:?} ends at its deadline, not before");
        let late = gave_up.saturating_since(deadline);
        assert!(late < LATE, "a wait of {patience:?} ends at its deadline, not {late:?} after it");
        ann.sees_in_line(&name, 0).await;
        assert_eq!(contention.waiters, 0, "nobody waits but the one that gave up: {contention:?}");
    }
    ann.gives_back(&held).await;
    let next = cat.hold(&name, Mode::Exclusive, LONG).await;
    cat.gives_back(&next).await;
    Ok(())
}

/// An abandoned request withdraws and leaves nothing behind, even if its turn comes at that very moment.
pub async fn abandoned_request_leaves_nothing(harness: &dyn Harness) -> Verdict {
    const ROUNDS: usize = 20;
    let [ann, bob, cat] = clients(harness).await;
    let name = fresh("abandoned_request_leaves_nothing");
    let held = ann.hold(&name, Mode::Exclusive, LONG).await;
    let waiter = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 1).await;
    let attempt = waiter.abandon().await;
    assert!(matches!(attempt, Attempt::Busy(_)), "a request that is withdrawn is busy: {attempt:?}");
    ann.sees_in_line(&name, 0).await;
    ann.gives_back(&held).await;

    for _ in 0..ROUNDS {
        let held = ann.hold(&name, Mode::Exclusive, LONG).await;
        let waiter = bob.wait(&name, Mode::Exclusive);
        ann.sees_in_line(&name, 1).await;
        let withdrawal = tokio::spawn(waiter.abandon());
        ann.gives_back(&held).await;
        if let Attempt::Granted(lease) = withdrawal.await.expect("a withdrawal does not panic") {
            // The grant was faster than the withdrawal; then it is a lease like any other.
            bob.gives_back(&lease).await;
        }
        let next = cat.hold(&name, Mode::Exclusive, LONG).await;
        cat.gives_back(&next).await;
    }
    Ok(())
}

/// The sequence of every grant of a name is higher than that of every earlier grant: in every mode, after an eviction,
/// and when several clients contend for it.
pub async fn sequences_rise(harness: &dyn Harness) -> Verdict {
    const CONTENDERS: usize = 4;
    const GRANTS: usize = 50;

    let [ann, bob] = clients(harness).await;
    let name = fresh("sequences_rise");
    let reader = ann.hold(&name, Mode::Shared, LONG).await;
    let other_reader = bob.hold(&name, Mode::Shared, LONG).await;
    ann.gives_back(&reader).await;
    bob.gives_back(&other_reader).await;
    let mode = if ann.has_permits() { permit(2) } else { Mode::Shared };
    let one = ann.hold(&name, mode, LONG).await;
    let two = bob.hold(&name, mode, LONG).await;
    ann.gives_back(&one).await;
    ann.evict(&name, two.key.nonce).await;
    let after = ann.hold(&name, Mode::Exclusive, LONG).await;
    ann.gives_back(&after).await;
    let sequences = [&reader, &other_reader, &one, &two, &after].map(|lease| lease.token.sequence());
    assert!(sequences.is_sorted_by(|earlier, later| earlier < later), "sequences rise: {sequences:?}");

    let contenders: [Client; CONTENDERS] = clients(harness).await;
    let contenders = contenders.map(|client| {
        let name = name.clone();
        tokio::spawn(async move {
            let mut holds = Vec::new();
            for _ in 0..GRANTS {
                let lease = client.wait(&name, Mode::Exclusive).granted().await;
                let from = client.now();
                // Lets the others run, so that an overlap would show.
                tokio::task::yield_now().await;
                let until = client.now();
                client.gives_back(&lease).await;
                holds.push(Hold { token: lease.token, from, until });
            }
            holds
        })
    });
    let mut holds = Vec::new();
    for contender in contenders {
        holds.extend(contender.await.expect("every contender gets its grants"));
    }
    let first = holds.iter().map(|hold| hold.token.sequence()).min();
    assert!(first > Some(after.token.sequence()), "the sequences of the contenders go on from {after:?}");
    check_exclusive(holds).unwrap_or_else(|why| panic!("{CONTENDERS} clients contended for {name:?}: {why}"));
    Ok(())
}

/// Why the cases about order are left out.
const NO_LINE: NotApplicable = NotApplicable("its waiters are served in no order");

/// Waiters are served in the order in which they came.
pub async fn first_come_first_served(harness: &dyn Harness) -> Verdict {
    const WAITERS: usize = 5;
    let [ann, bob, cat] = clients(harness).await;
    if !ann.has_line() {
        return Err(NO_LINE);
    }
    let name = fresh("first_come_first_served");
    let mut held = ann.hold(&name, Mode::Exclusive, LONG).await;
    let mut waiters = Vec::new();
    for place in 0..WAITERS {
        let client = if place % 2 == 0 { &bob } else { &cat };
        waiters.push(client.wait(&name, Mode::Exclusive));
        ann.sees_in_line(&name, place + 1).await;
    }
    for place in 0..WAITERS {
        ann.gives_back(&held).await;
        // Nobody else would give the name back, so a waiter that overtook would keep this one from its turn.
        held = waiters.remove(0).granted().await;
        for waiter in &waiters {
            waiter.still_waits();
        }
        ann.sees_in_line(&name, WAITERS - 1 - place).await;
    }
    ann.gives_back(&held).await;
    Ok(())
}

/// A request that does not wait never overtakes those that wait: neither one that could hold together with the
/// holder, nor one that asks when the name has just been released.
pub async fn trying_does_not_overtake(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    if !ann.has_line() {
        return Err(NO_LINE);
    }
    let name = fresh("trying_does_not_overtake");
    let reader = ann.hold(&name, Mode::Shared, LONG).await;
    let writer = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 1).await;
    let contention = cat.meets_busy(&name, Mode::Shared).await;
    assert_eq!(contention.waiters, 1, "the one that waits is in the way, and is counted: {contention:?}");
    writer.still_waits();

    ann.gives_back(&reader).await;
    cat.meets_busy(&name, Mode::Shared).await;
    let lease = writer.granted().await;
    bob.gives_back(&lease).await;
    Ok(())
}

/// Shared holders hold together; an exclusive one holds alone.
pub async fn shared_holders_share(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    let name = fresh("shared_holders_share");
    let readers = [
        ann.hold(&name, Mode::Shared, LONG).await,
        bob.hold(&name, Mode::Shared, LONG).await,
        bob.hold(&name, Mode::Shared, LONG).await,
    ];
    cat.meets_busy(&name, Mode::Exclusive).await;
    for reader in &readers[1..] {
        bob.gives_back(reader).await;
        cat.meets_busy(&name, Mode::Exclusive).await;
    }
    ann.gives_back(&readers[0]).await;
    let writer = cat.hold(&name, Mode::Exclusive, LONG).await;
    ann.meets_busy(&name, Mode::Shared).await;
    cat.gives_back(&writer).await;
    Ok(())
}

/// A waiting writer is not overtaken by later readers, although they could hold together with the reader that holds.
pub async fn a_waiting_writer_is_not_starved(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    if !ann.has_line() {
        return Err(NO_LINE);
    }
    let name = fresh("a_waiting_writer_is_not_starved");
    let reader = ann.hold(&name, Mode::Shared, LONG).await;
    let writer = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 1).await;
    let later_reader = cat.wait(&name, Mode::Shared);
    ann.sees_in_line(&name, 2).await;

    ann.gives_back(&reader).await;
    let written = writer.granted().await;
    ann.sees_in_line(&name, 1).await;
    later_reader.still_waits();
    bob.gives_back(&written).await;
    let read = later_reader.granted().await;
    cat.gives_back(&read).await;
    Ok(())
}

/// Readers behind a writer share one turn; a reader behind the next writer does not join them.
pub async fn readers_share_one_turn(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    if !ann.has_line() {
        return Err(NO_LINE);
    }
    let name = fresh("readers_share_one_turn");
    let writer = ann.hold(&name, Mode::Exclusive, LONG).await;
    let mut line = Vec::new();
    for (place, mode) in
        [Mode::Shared, Mode::Shared, Mode::Shared, Mode::Exclusive, Mode::Shared].iter().enumerate()
    {
        let client = if place % 2 == 0 { &bob } else { &cat };
        line.push(client.wait(&name, *mode));
        ann.sees_in_line(&name, place + 1).await;
    }
    ann.gives_back(&writer).await;
    let mut readers = Vec::new();
    for reader in line.drain(..3) {
        // None of them gives the name back before all of them have it.
        readers.push(reader.granted().await);
    }
    ann.sees_in_line(&name, 2).await;
    for waiter in &line {
        waiter.still_waits();
    }
    for reader in &readers {
        bob.gives_back(reader).await;
    }
    for waiter in line {
        let lease = waiter.granted().await;
        bob.gives_back(&lease).await;
    }
    Ok(())
}

/// Why the cases about permits are left out.
const NO_PERMITS: NotApplicable = NotApplicable("a name has no permits");

/// The modes that a name can be held in.
pub(crate) fn modes(client: &Client) -> Vec<Mode> {
    let permits = client.has_permits().then_some(permit(2));
    [Mode::Exclusive, Mode::Shared].into_iter().chain(permits).collect()
}

/// Where a name has no permits, whoever asks for one is told so, and the name is left alone.
async fn refuses_a_permit(client: &Client) -> Verdict {
    let name = fresh("refuses_a_permit");
    for wait in [Wait::No, Wait::Until(client.now().saturating_add(LONG))] {
        let request = client.request(&name, permit(2), LONG, wait);
        expect_refused("a permit", client.backend.acquire(request).await, &[ErrorKind::Unsupported]);
    }
    let lease = client.hold(&name, Mode::Exclusive, LONG).await;
    client.gives_back(&lease).await;
    Err(NO_PERMITS)
}

/// At most `limit` permits are held at once, the next one is granted when one is released, and the smallest limit
/// that anybody agreed to counts.
pub async fn permits_are_counted(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    if !ann.has_permits() {
        return refuses_a_permit(&ann).await;
    }
    let name = fresh("permits_are_counted");
    let one = ann.hold(&name, permit(2), LONG).await;
    let two = bob.hold(&name, permit(2), LONG).await;
    cat.meets_busy(&name, permit(2)).await;
    let next = cat.wait(&name, permit(2));
    ann.sees_in_line(&name, 1).await;
    next.still_waits();
    ann.gives_back(&one).await;
    let three = next.granted().await;
    ann.meets_busy(&name, permit(2)).await;
    bob.gives_back(&two).await;
    cat.gives_back(&three).await;

    let generous = ann.hold(&name, permit(3), LONG).await;
    bob.meets_busy(&name, permit(1)).await;
    let strict = bob.hold(&name, permit(2), LONG).await;
    cat.meets_busy(&name, permit(3)).await;
    bob.gives_back(&strict).await;
    let another = cat.hold(&name, permit(3), LONG).await;
    ann.gives_back(&generous).await;
    cat.gives_back(&another).await;
    Ok(())
}

/// A lease that is not renewed is free after its TTL, not before: for one who waits and for one who tries.
pub async fn a_lease_lapses_after_its_ttl(harness: &dyn Harness) -> Verdict {
    const TRY_AGAIN: Duration = Duration::from_millis(5);
    let [ann, bob] = clients(harness).await;
    let (waited_for, tried) = (fresh("a_lease_lapses_after_its_ttl"), fresh("a_lease_lapses_after_its_ttl"));
    let check = |what: &str, lease: &Lease, freed: BootInstant| {
        assert!(freed >= lease.deadline(), "{what}: a lease is not free before its TTL is over");
        let late = freed.saturating_since(lease.deadline());
        assert!(late < LATE, "{what}: a lease is free when its TTL is over, not {late:?} later");
    };

    let lease = ann.hold(&waited_for, Mode::Exclusive, SHORT).await;
    let (next, freed) = bob.wait(&waited_for, Mode::Exclusive).granted_at().await;
    check("waiting", &lease, freed);
    bob.gives_back(&next).await;

    let lease = ann.hold(&tried, Mode::Exclusive, SHORT).await;
    let next = loop {
        if let Attempt::Granted(next) = bob.ask(&tried, Mode::Exclusive, LONG).await {
            break next;
        }
        assert!(bob.now().saturating_since(lease.deadline()) < PATIENCE, "a lease never lapses: {lease:?}");
        tokio::time::sleep(TRY_AGAIN).await;
    };
    check("trying", &lease, bob.now());
    bob.gives_back(&next).await;
    Ok(())
}

/// A permit that is not renewed comes back after its TTL, and only that one.
pub async fn a_lapsed_permit_comes_back(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    if !ann.has_permits() {
        return Err(NO_PERMITS);
    }
    let name = fresh("a_lapsed_permit_comes_back");
    let kept = ann.hold(&name, permit(2), LONG).await;
    let lapsing = bob.hold(&name, permit(2), SHORT).await;
    let (next, freed) = cat.wait(&name, permit(2)).granted_at().await;
    assert!(freed >= lapsing.deadline(), "a permit does not come back before its TTL is over");
    ann.meets_busy(&name, permit(2)).await;
    assert_eq!(ann.renew(&kept).await, Renewal::Renewed, "the other permit is still held");
    ann.gives_back(&kept).await;
    cat.gives_back(&next).await;
    Ok(())
}

/// Lawful names that a careless encoding would mix up: with each other, or with a part of its own notation.
const TRICKY_NAMES: &[&str] = &[
    "a", "A", "a/", "a/b", "a//", "a//b", "/a", "/", "//", "a/.", "a/..", "a/../b", "./a", "../a", ".", "..",
    "...", "{a}", "{}", "{", "}", "{a}b", "a{b}", "-x", "--", "-", "%2F", "%2f", "%", "%%", "a%2Fb", "a%2fb",
    "%61", "a b", " a", "a ", " ", "a+b", "*", "?", "a*", "a?", "[a]", "\\", "a\\b", "'", "\"", "$a", "$(a)",
    "`a`", "a;b", "a,b", "a:b", "a=b", "a|b", "a#value", "a#", "#", "a@b", "~", "a.lock", "a_b", "a-b", "0",
    "00", "1", "01", "null", "NUL", "é", "É", "ß", "ss", "i", "I", "İ", "ı", "K", "а", "ａ", "😀",
];

/// More of them, that an editor would not show as they are.
const UNSEEN_NAMES: &[&str] = &[
    "e\u{301}",
    "\u{212A}",
    "\u{202E}a",
    "\u{200B}",
    "a\u{200B}",
    "\u{FEFF}a",
    "\u{2028}",
    "\u{2044}",
    "\u{10FFFF}",
];

/// All of them, and some of the greatest length.
fn tricky_names() -> Vec<LockName> {
    let long = "x".repeat(NAME_MAX - 1);
    let longest = [format!("{long}x"), format!("{long}y"), format!("{}x", "é".repeat(NAME_MAX / 2)), long];
    let names = TRICKY_NAMES.iter().chain(UNSEEN_NAMES).copied().chain(longest.iter().map(String::as_str));
    names.map(|name| LockName::new(name).expect("tricky names are lawful names")).collect()
}

/// Names that differ never contend, whatever they contain, and each has records of its own.
pub async fn names_do_not_collide(harness: &dyn Harness) -> Verdict {
    // These names cannot be fresh. Runs that share a namespace take turns by a lock of their own, and what a run
    // that was killed leaves behind lapses before the next one gives up.
    const TTL: Duration = Duration::from_secs(30);
    let [ann, bob] = clients(harness).await;
    let turn = LockName::new("testkit/names_do_not_collide").expect("a lawful name");
    let wait = Wait::Until(ann.now().saturating_add(LONG));
    let turn = ann.begin(ann.request(&turn, Mode::Exclusive, TTL, wait)).granted().await;

    let names = tricky_names();
    let mut leases = Vec::new();
    for name in &names {
        leases.push(ann.hold(name, Mode::Exclusive, TTL).await);
    }
    // With a slow disk all of this takes longer than a lease lasts.
    let all: Vec<&Lease> = leases.iter().chain([&turn]).collect();
    ann.keeps(&all).await;
    for (name, lease) in names.iter().zip(&leases) {
        bob.meets_busy(name, Mode::Exclusive).await;
        let state = bob.inspect(name).await;
        assert!(
            state.holders.len() == 1 && state.holders[0].token == lease.token,
            "{name:?} is held with {} and nothing else: {state:?}",
            lease.token
        );
    }
    ann.keeps(&all).await;
    for (name, lease) in names.iter().zip(&leases) {
        let key = RecordKey::of(name.clone());
        ann.opens(&key, lease).await;
        ann.writes(&key, lease, name.as_str().to_owned()).await;
    }
    for name in &names {
        let value = bob.value(&RecordKey::of(name.clone())).await;
        assert_eq!(value, Some(Bytes::from(name.as_str().to_owned())), "{name:?} has a record of its own");
    }
    // Releasing one hurts no other name.
    let (first, others) = leases.split_first().expect("there are tricky names");
    ann.gives_back(first).await;
    let others: Vec<&Lease> = others.iter().collect();
    ann.keeps(&others).await;
    let releases = ann.release_all(&others).await;
    assert!(releases.iter().all(|release| *release == Release::Released), "each was held: {releases:?}");
    ann.gives_back(&turn).await;
    Ok(())
}
