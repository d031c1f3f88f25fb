use std::time::Duration;

use ringfence_core::{
    ErrorKind, Eviction, ListQuery, LockName, LockState, Mode, Nonce, Page, RecordGuard, RecordKey, Release,
    Renewal, Severity,
};

use crate::client::{Client, LONG, QUIET, Waiter, clients, expect_refused, fresh, within};
use crate::harness::{Harness, NotApplicable, Verdict};

/// Shows the holder, its token, its age and its remaining time, and the waiters in line; a lock that nobody uses is free.
pub async fn inspect_shows_holder_and_waiters(harness: &dyn Harness) -> Verdict {
    let [mut ann, bob, cat, eve] = clients(harness).await;
    let name = fresh("inspect_shows_holder_and_waiters");
    assert!(eve.inspect(&name).await.is_free(), "a lock that nobody ever used is free");

    ann.holder = ann.holder.with_metadata("a build\nof branch «main»\u{202E}").expect("it is short");
    let lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    let writer = bob.wait(&name, Mode::Exclusive);
    eve.sees_in_line(&name, 1).await;
    let reader = cat.wait(&name, Mode::Shared);
    eve.sees_in_line(&name, 2).await;

    let state = eve.inspect(&name).await;
    let [holder] = &state.holders[..] else {
        panic!("one client holds {name:?}: {state:?}");
    };
    assert_eq!((&holder.holder, holder.mode, holder.token), (&ann.holder, Mode::Exclusive, lease.token));
    assert_eq!(holder.holder.metadata(), ann.holder.metadata(), "metadata is kept as it was given");
    assert!(holder.age.is_none_or(|age| age <= LONG / 2), "a fresh lease is young: {holder:?}");
    assert!(
        holder.remaining > Some(LONG / 2) && holder.remaining <= Some(lease.key.ttl.as_duration()),
        "a fresh lease has nearly all of its TTL left: {holder:?}"
    );
    if eve.has_line() {
        let line: Vec<_> = state.waiters.iter().map(|waiter| (&waiter.holder, waiter.mode)).collect();
        assert_eq!(line, [(&bob.holder, Mode::Exclusive), (&cat.holder, Mode::Shared)], "the next one first");
        assert!(
            state.waiters[0].age >= state.waiters[1].age,
            "the first in line waits the longest: {state:?}"
        );
    }

    ann.gives_back(&lease).await;
    // Where there is no line, either of them may be the first.
    let turn = async |waiter: Waiter, client: &Client| client.gives_back(&waiter.granted().await).await;
    tokio::join!(turn(writer, &bob), turn(reader, &cat));
    assert!(eve.inspect(&name).await.is_free(), "a lock that nobody uses any more is free");
    Ok(())
}

async fn list(client: &Client, query: ListQuery) -> Page<LockState> {
    within("a listing", client.backend.list(query)).await.expect("a listing")
}

/// Lists the locks in use by prefix, in byte order, page by page; a prefix is no pattern.
pub async fn list_pages_by_prefix(harness: &dyn Harness) -> Verdict {
    const PAGE: usize = 2;
    let [ann, bob] = clients(harness).await;
    let prefix = format!("{}*", fresh("list_pages_by_prefix"));
    let in_byte_order = ["%", "A", "a", "a/b", "aa", "é"].map(|rest| format!("{prefix}{rest}"));
    let others = [prefix.replace('*', "x"), prefix.replace('*', ""), format!(" {prefix}a")];
    let lawful = |name: &String| LockName::new(name).expect("a lawful name");

    let mut leases = Vec::new();
    for name in in_byte_order.iter().rev().chain(&others) {
        leases.push(ann.hold(&lawful(name), Mode::Exclusive, LONG).await);
    }
    let mut listed = Vec::new();
    let mut query = ListQuery::new(&prefix).limit(PAGE);
    loop {
        let page = list(&bob, query.clone()).await;
        assert!((1..=PAGE).contains(&page.items.len()), "a page has 1 to {PAGE} locks: {page:?}");
        listed.extend(page.items);
        assert!(listed.len() <= in_byte_order.len(), "too many locks begin with {prefix:?}: {listed:?}");
        match page.next {
            Some(next) => query = query.after(next),
            None => break,
        }
    }
    let names: Vec<&str> = listed.iter().map(|state| state.name.as_str()).collect();
    assert_eq!(names, in_byte_order, "the locks that begin with {prefix:?}, in byte order");
    for state in &listed {
        assert!(
            state.holders.len() == 1 && state.holders[0].holder == ann.holder,
            "a listing shows the holder: {state:?}"
        );
    }
    for lease in &leases {
        ann.gives_back(lease).await;
    }
    let page = list(&bob, ListQuery::new(&prefix)).await;
    assert!(page.items.is_empty() && page.next.is_none(), "locks that nobody uses are not listed: {page:?}");
    Ok(())
}

/// The evicted holder's next renewal is `Lost`, the next in line is granted, and other holders stay.
pub async fn eviction_frees_the_name(harness: &dyn Harness) -> Verdict {
    let [ann, bob, eve] = clients(harness).await;
    let name = fresh("eviction_frees_the_name");
    let key = RecordKey::of(name.clone());
    let evicted = ann.hold(&name, Mode::Exclusive, LONG).await;
    ann.opens(&key, &evicted).await;
    let waiting = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 1).await;

    assert_eq!(eve.evict(&name, evicted.token.nonce()).await, Eviction::Evicted, "a holder can be evicted");
    let next = waiting.granted().await;
    assert_eq!(ann.renew(&evicted).await, Renewal::Lost, "the evicted holder learns that it lost");
    assert_eq!(ann.release(&evicted).await, Release::NotHeld, "the evicted holder has nothing to give back");
    assert!(
        next.token.sequence() > evicted.token.sequence(),
        "the next token is higher: {evicted:?}, {next:?}"
    );
    if ann.guarantees().record_guard == RecordGuard::HighWaterMark {
        bob.opens(&key, &next).await;
    }
    expect_refused(
        "a write of the evicted holder",
        ann.write(&key, &evicted, "late").await,
        &[ErrorKind::Stale],
    );
    bob.gives_back(&next).await;

    let reader = ann.hold(&name, Mode::Shared, LONG).await;
    let other_reader = bob.hold(&name, Mode::Shared, LONG).await;
    assert_eq!(eve.evict(&name, reader.token.nonce()).await, Eviction::Evicted, "one of two can be evicted");
    assert_eq!(bob.renew(&other_reader).await, Renewal::Renewed, "evicting one leaves the other one alone");
    eve.meets_busy(&name, Mode::Exclusive).await;
    bob.gives_back(&other_reader).await;
    Ok(())
}

/// Evicting somebody who does not hold the name says `NotHeld` and changes nothing: a stranger, one who waits, a holder
/// of another name.
pub async fn eviction_names_a_holder(harness: &dyn Harness) -> Verdict {
    let [ann, bob, eve] = clients(harness).await;
    let (name, other_name) = (fresh("eviction_names_a_holder"), fresh("eviction_names_a_holder"));
    assert_eq!(eve.evict(&name, Nonce::random()).await, Eviction::NotHeld, "nobody holds a free name");
    let lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    let other_lease = ann.hold(&other_name, Mode::Exclusive, LONG).await;
    let waiting = bob.wait(&name, Mode::Exclusive);
    ann.sees_in_line(&name, 1).await;

    for (who, nonce) in [
        ("a stranger", Nonce::random()),
        ("one who waits", waiting.nonce),
        ("the holder of another name", other_lease.token.nonce()),
    ] {
        assert_eq!(eve.evict(&name, nonce).await, Eviction::NotHeld, "{who} does not hold {name:?}");
    }
    assert_eq!(ann.renew_all(&[&lease, &other_lease]).await, [Renewal::Renewed; 2], "nobody lost anything");
    ann.sees_in_line(&name, 1).await;
    waiting.still_waits();
    ann.gives_back(&lease).await;
    ann.gives_back(&other_lease).await;
    let lease = waiting.granted().await;
    bob.gives_back(&lease).await;
    Ok(())
}

/// An examination says something about what it looked at, with advice where something is wrong; whoever holds, waits or
/// wrote does not notice.
pub async fn examination_changes_nothing(harness: &dyn Harness) -> Verdict {
    let [ann, bob, eve] = clients(harness).await;
    let name = fresh("examination_changes_nothing");
    let key = RecordKey::of(name.clone());
    let lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    ann.opens(&key, &lease).await;
    let version = ann.writes(&key, &lease, "before").await;
    let waiting = bob.wait(&name, Mode::Exclusive);
    eve.sees_in_line(&name, 1).await;

    for client in [&ann, &eve] {
        let findings = within("an examination", client.backend.examine()).await.expect("an examination");
        assert!(!findings.is_empty(), "an examination that looks at nothing finds nothing");
        for finding in &findings {
            let texts = [finding.about, &finding.what, finding.advice.as_deref().unwrap_or("none")];
            let is_text = |text: &&str| !text.is_empty() && !text.contains(char::is_control);
            assert!(texts.iter().all(is_text), "a finding is made of lines of text: {finding:?}");
            assert!(
                finding.severity == Severity::Fine || finding.advice.is_some(),
                "what is wrong comes with advice: {finding:?}"
            );
        }
    }

    assert_eq!(ann.renew(&lease).await, Renewal::Renewed, "nobody lost anything");
    eve.sees_in_line(&name, 1).await;
    waiting.still_waits();
    assert_eq!(ann.read(&key).await.map(|record| record.version), Some(version), "nothing was written");
    ann.gives_back(&lease).await;
    let next = waiting.granted().await;
    bob.gives_back(&next).await;
    Ok(())
}

/// The time of day of the service goes on, and every client is told the same one: that of this machine, on which the servers of
/// tests run.
pub async fn tells_the_time(harness: &dyn Harness) -> Verdict {
    const APART_MOST: Duration = Duration::from_hours(1);
    let [ann, bob] = clients(harness).await;
    let ask = async |client: &Client| within("the time", client.backend.time()).await.expect("the time");
    let Some(first) = ask(&ann).await else {
        return Err(NotApplicable("its service tells no time of day"));
    };
    let ours = harness.clock().wall();
    let apart = ours.saturating_since(first).max(first.saturating_since(ours));
    assert!(apart < APART_MOST, "here all look at one and the same clock: {first:?}, and not {ours:?}");
    tokio::time::sleep(QUIET).await;
    let second = ask(&bob).await.expect("all clients of a service are told its time");
    assert!(second > first, "time goes on: {first:?}, then {second:?}");
    Ok(())
}
