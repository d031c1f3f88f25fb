use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    Error, ErrorKind, FencingToken, Lease, ListQuery, Mode, Nonce, RECORD_VALUE_MAX, RecordGuard, RecordKey,
    Version,
};

use crate::client::{Client, LONG, clients, expect_refused, fresh, within};
use crate::harness::{Harness, NotApplicable, Verdict};

/// A record of this lock in another field than the usual one.
fn field(key: &RecordKey, field: &str) -> RecordKey {
    RecordKey::new(key.lock().clone(), field).expect("a lawful field")
}

/// A holder whose lease is over, and the record that it had opened and written.
async fn overtaken(ann: &Client, key: &RecordKey) -> Lease {
    let lease = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    ann.opens(key, &lease).await;
    ann.writes(key, &lease, "first").await;
    ann.gives_back(&lease).await;
    lease
}

/// A lower token than the mark is refused with `Stale`.
pub async fn records_refuse_a_stale_open(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("records_refuse_a_stale_open"));
    let old = overtaken(&ann, &key).await;
    let new = bob.hold(key.lock(), Mode::Exclusive, LONG).await;
    bob.opens(&key, &new).await;
    let refused = ann.open(&key, &old).await;
    let mark = refused.as_ref().err().and_then(Error::mark);
    expect_refused("opening with a token below the mark", refused, &[ErrorKind::Stale]);
    assert_eq!(mark, Some(new.token), "whoever is refused for the mark is told what it is");
    bob.writes(&key, &new, "second").await;
    bob.gives_back(&new).await;
    Ok(())
}

/// An equal sequence with another nonce is refused with `TokenCollision`, whichever of the two came first.
pub async fn records_refuse_a_collision(harness: &dyn Harness) -> Verdict {
    const COLLISION: &[ErrorKind] = &[ErrorKind::TokenCollision];
    let [ann] = clients(harness).await;
    let key = RecordKey::of(fresh("records_refuse_a_collision"));
    let lease = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    let mut twin = lease.clone();
    twin.token = FencingToken::new(lease.token.sequence(), Nonce::random()).expect("a lawful sequence");
    ann.opens(&key, &lease).await;
    expect_refused("opening with a token's twin", ann.open(&key, &twin).await, COLLISION);
    expect_refused("writing with a token's twin", ann.write(&key, &twin, "twin").await, COLLISION);
    ann.writes(&key, &lease, "genuine").await;

    // Where only the mark is checked, the twin can be the first; then it is the genuine one that finds it.
    let other = field(&key, "other");
    match ann.open(&other, &twin).await {
        Ok(_) if ann.guarantees().record_guard == RecordGuard::HighWaterMark => {
            expect_refused("opening after a token's twin", ann.open(&other, &lease).await, COLLISION);
        }
        refused => {
            expect_refused(
                "the twin of a live token",
                refused,
                &[ErrorKind::TokenCollision, ErrorKind::Stale],
            );
            ann.opens(&other, &lease).await;
        }
    }
    ann.gives_back(&lease).await;
    Ok(())
}

/// Where lock and record live in one store, a token of another lock is refused, whether its lock was granted earlier or later, and spoils nothing for the
/// right one.
pub async fn records_refuse_a_token_of_another_lock(harness: &dyn Harness) -> Verdict {
    const STRANGER: &[ErrorKind] = &[ErrorKind::Stale, ErrorKind::TokenCollision];
    let [ann] = clients(harness).await;
    if ann.guarantees().record_guard != RecordGuard::LiveLease {
        return Err(NotApplicable("its records check the mark alone, not whose lock a token is of"));
    }
    let keys = ["earlier", "later"].map(|_| RecordKey::of(fresh("records_refuse_a_token_of_another_lock")));
    let leases = [
        ann.hold(keys[0].lock(), Mode::Exclusive, LONG).await,
        ann.hold(keys[1].lock(), Mode::Exclusive, LONG).await,
    ];
    for (key, stranger) in [(&keys[0], &leases[1]), (&keys[1], &leases[0])] {
        expect_refused("opening with another lock's token", ann.open(key, stranger).await, STRANGER);
    }
    for (key, lease) in keys.iter().zip(&leases) {
        ann.opens(key, lease).await;
        ann.writes(key, lease, "mine").await;
    }
    for (key, stranger) in [(&keys[0], &leases[1]), (&keys[1], &leases[0])] {
        let refused = [STRANGER, &[ErrorKind::NotOpened]].concat();
        expect_refused(
            "writing with another lock's token",
            ann.write(key, stranger, "theirs").await,
            &refused,
        );
        assert_eq!(ann.value(key).await, Some(Bytes::from("mine")), "what is refused changes nothing");
    }
    for lease in &leases {
        ann.gives_back(lease).await;
    }
    Ok(())
}

/// What was written is read back: byte for byte, by everyone, by the next holder too, with a version that counts.
pub async fn records_keep_what_was_written(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("records_keep_what_was_written"));
    assert_eq!(bob.read(&key).await, None, "a record that was never written is not there");
    let lease = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    assert_eq!(ann.opens(&key, &lease).await, None, "a record that was never written opens empty");
    assert_eq!(bob.read(&key).await, None, "opening is not writing");

    let every_byte: Bytes = (0..=u8::MAX).collect();
    let values = [Bytes::from("first"), Bytes::new(), every_byte];
    for (value, version) in values.iter().zip(1..) {
        let written = ann.writes(&key, &lease, value.clone()).await;
        assert_eq!(written, Version(version), "every write is counted");
        let record = bob.read(&key).await.expect("a record that was written is there");
        assert_eq!(
            (&record.value, record.version, record.written_with),
            (value, Version(version), lease.token),
            "what was written is read back"
        );
        assert_eq!(
            ann.opens(&key, &lease).await,
            Some(record),
            "opening again shows the record as it stands"
        );
    }

    // Records whose keys look alike are two records.
    let lookalike = RecordKey::new(format!("{}#x", key.lock()).parse().expect("a lawful name"), "value")
        .expect("a lawful field");
    for other in [field(&key, "other"), field(&key, "x#value"), field(&key, "/value"), lookalike] {
        assert_eq!(bob.read(&other).await, None, "{other} was not written");
    }

    ann.gives_back(&lease).await;
    let next = bob.hold(key.lock(), Mode::Exclusive, LONG).await;
    let found = bob.opens(&key, &next).await.expect("the next holder finds the record");
    assert_eq!(
        (&found.value, found.version),
        (&values[2], Version(3)),
        "the next holder finds the last value"
    );
    assert_eq!(bob.writes(&key, &next, "next").await, Version(4), "the count goes on");
    bob.gives_back(&next).await;
    assert_eq!(ann.value(&key).await, Some(Bytes::from("next")), "a record outlives the lease");
    Ok(())
}

/// A token that did not open is refused with `NotOpened`: not opened by anybody, in this field, or by this holder.
pub async fn records_refuse_an_unopened_write(harness: &dyn Harness) -> Verdict {
    const NOT_OPENED: &[ErrorKind] = &[ErrorKind::NotOpened];
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("records_refuse_an_unopened_write"));
    let lease = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    expect_refused("writing without opening", ann.write(&key, &lease, "x").await, NOT_OPENED);
    ann.opens(&key, &lease).await;
    ann.writes(&key, &lease, "opened").await;
    let other = field(&key, "other");
    expect_refused("writing with another field opened", ann.write(&other, &lease, "x").await, NOT_OPENED);
    assert_eq!(bob.read(&other).await, None, "what is refused changes nothing");
    ann.gives_back(&lease).await;

    let next = bob.hold(key.lock(), Mode::Exclusive, LONG).await;
    expect_refused("writing with an earlier holder's opening", bob.write(&key, &next, "x").await, NOT_OPENED);
    assert_eq!(ann.value(&key).await, Some(Bytes::from("opened")), "what is refused changes nothing");
    bob.gives_back(&next).await;
    Ok(())
}

/// A token that was overtaken is refused with `Stale`, from the moment at which its successor opened the record.
pub async fn records_refuse_a_stale_write(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("records_refuse_a_stale_write"));
    let old = overtaken(&ann, &key).await;
    let new = bob.hold(key.lock(), Mode::Exclusive, LONG).await;
    let found = bob.opens(&key, &new).await;
    expect_refused(
        "writing with a token below the mark",
        ann.write(&key, &old, "late").await,
        &[ErrorKind::Stale],
    );
    assert_eq!(bob.read(&key).await, found, "what is refused changes nothing");
    bob.writes(&key, &new, "second").await;
    bob.gives_back(&new).await;
    Ok(())
}

/// The token of a lease that was released, lapsed or was evicted is refused, even if no successor came near the
/// record.
pub async fn records_refuse_the_token_of_a_lease_that_ended(harness: &dyn Harness) -> Verdict {
    // Long enough for a busy machine to open the record under it.
    const LAPSES: Duration = Duration::from_secs(2);
    let [ann, eve] = clients(harness).await;
    if ann.guarantees().record_guard != RecordGuard::LiveLease {
        return Err(NotApplicable("its records check the mark alone, not whether the lease lives"));
    }
    let key = RecordKey::of(fresh("records_refuse_the_token_of_a_lease_that_ended"));
    let check = async |why: &str, lease: &Lease| {
        let stale = &[ErrorKind::Stale];
        expect_refused(
            &format!("a write by a lease that {why}"),
            ann.write(&key, lease, "late").await,
            stale,
        );
        expect_refused(&format!("an opening by a lease that {why}"), ann.open(&key, lease).await, stale);
    };

    let released = overtaken(&ann, &key).await;
    check("was released", &released).await;
    let lapsed = ann.hold(key.lock(), Mode::Exclusive, LAPSES).await;
    ann.opens(&key, &lapsed).await;
    ann.sees_lapsed(&lapsed).await;
    check("lapsed", &lapsed).await;
    let evicted = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    ann.opens(&key, &evicted).await;
    eve.evict(key.lock(), evicted.token.nonce()).await;
    check("was evicted", &evicted).await;
    assert_eq!(eve.value(&key).await, Some(Bytes::from("first")), "what is refused changes nothing");
    Ok(())
}

/// A value of `RECORD_VALUE_MAX` bytes is kept; a larger one is refused and nothing is lost.
pub async fn records_have_a_limit(harness: &dyn Harness) -> Verdict {
    let [ann] = clients(harness).await;
    let key = RecordKey::of(fresh("records_have_a_limit"));
    let lease = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    ann.opens(&key, &lease).await;
    let largest: Bytes = (0..=u8::MAX).cycle().take(RECORD_VALUE_MAX).collect();
    ann.writes(&key, &lease, largest.clone()).await;
    let too_large: Result<Version, Error> = ann.write(&key, &lease, vec![0; RECORD_VALUE_MAX + 1]).await;
    expect_refused("a value above the limit", too_large, &[ErrorKind::InvalidRequest]);
    assert_eq!(ann.value(&key).await, Some(largest), "what is refused changes nothing");
    assert_eq!(ann.writes(&key, &lease, "small").await, Version(2), "the record can still be written");
    ann.gives_back(&lease).await;
    Ok(())
}

/// What was removed reads as if it had never been written, for everyone and for the next holder, and can be opened and written
/// anew; its neighbour stays.
pub async fn records_can_be_removed(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("records_can_be_removed"));
    let other = field(&key, "other");
    let lease = ann.hold(key.lock(), Mode::Exclusive, LONG).await;
    for key in [&key, &other] {
        ann.opens(key, &lease).await;
        ann.writes(key, &lease, "first").await;
    }
    ann.writes(&key, &lease, "second").await;
    ann.removes(&key, &lease).await;
    for client in [&ann, &bob] {
        assert_eq!(client.read(&key).await, None, "what was removed is not there");
        assert_eq!(client.value(&other).await, Some(Bytes::from("first")), "its neighbour is");
    }
    assert_eq!(ann.opens(&key, &lease).await, None, "what was removed opens empty");
    ann.removes(&key, &lease).await;
    assert_eq!(ann.opens(&key, &lease).await, None, "what was never written can be removed");
    // How often it was written is counted on where the mark has stayed.
    let written = ann.writes(&key, &lease, "anew").await;
    assert_eq!(ann.read(&key).await.map(|record| record.version), Some(written), "it can be written anew");
    assert_eq!(bob.value(&key).await, Some(Bytes::from("anew")), "it can be written anew");
    ann.removes(&key, &lease).await;
    ann.gives_back(&lease).await;

    let next = bob.hold(key.lock(), Mode::Exclusive, LONG).await;
    assert_eq!(bob.opens(&key, &next).await, None, "the next holder finds nothing");
    bob.writes(&key, &next, "next").await;
    assert_eq!(ann.value(&key).await, Some(Bytes::from("next")), "the next holder can write it");
    bob.gives_back(&next).await;
    Ok(())
}

/// A token that did not open, was overtaken or is another's twin removes nothing; and what was stale before a removal is refused
/// after it: the token of an earlier lease, of an earlier hand-over under the same lease, and of another holder beside.
pub async fn records_refuse_a_stale_removal(harness: &dyn Harness) -> Verdict {
    const STALE: &[ErrorKind] = &[ErrorKind::Stale];
    let [ann, bob] = clients(harness).await;
    let key = RecordKey::of(fresh("records_refuse_a_stale_removal"));
    let old = overtaken(&ann, &key).await;
    let mut new = bob.hold(key.lock(), Mode::Exclusive, LONG).await;
    let unopened = &[ErrorKind::NotOpened];
    expect_refused("removing what is not open", bob.remove(&key, &new).await, unopened);
    bob.opens(&key, &new).await;
    expect_refused("removing with a token below the mark", ann.remove(&key, &old).await, STALE);
    let mut twin = new.clone();
    twin.token = FencingToken::new(new.token.sequence(), Nonce::random()).expect("a lawful sequence");
    let collision = &[ErrorKind::TokenCollision];
    expect_refused("removing with a token's twin", ann.remove(&key, &twin).await, collision);
    assert_eq!(bob.value(&key).await, Some(Bytes::from("first")), "what is refused changes nothing");

    bob.removes(&key, &new).await;
    expect_refused("opening with an older token after a removal", ann.open(&key, &old).await, STALE);
    // A removal may leave nothing behind that would tell a token that is overtaken from one that never opened.
    let late = &[ErrorKind::Stale, ErrorKind::NotOpened];
    expect_refused("writing with an older token after a removal", ann.write(&key, &old, "late").await, late);

    let handed_on = new.clone();
    new.token = new.token.handed_over().expect("it is the first");
    bob.opens(&key, &new).await;
    bob.writes(&key, &new, "next").await;
    bob.removes(&key, &new).await;
    expect_refused("opening after a hand-over and a removal", bob.open(&key, &handed_on).await, STALE);
    assert_eq!(bob.read(&key).await, None, "what is refused changes nothing");
    bob.gives_back(&new).await;

    let first = ann.hold(key.lock(), Mode::Shared, LONG).await;
    let second = bob.hold(key.lock(), Mode::Shared, LONG).await;
    bob.opens(&key, &second).await;
    bob.removes(&key, &second).await;
    expect_refused("opening beside one that removed", ann.open(&key, &first).await, STALE);
    bob.gives_back(&second).await;
    ann.gives_back(&first).await;
    Ok(())
}

/// Lists the records that hold a value by the prefix of their locks, in byte order, page by page; a prefix is no pattern.
pub async fn records_are_listed_by_prefix(harness: &dyn Harness) -> Verdict {
    const PAGE: usize = 2;
    const FIELDS: [&str; 2] = ["a:r:b", RecordKey::DEFAULT_FIELD];
    let [ann, bob] = clients(harness).await;
    let prefix = format!("{}*", fresh("records_are_listed_by_prefix"));
    let in_byte_order = ["%", "A", "a", "a/b", "aa", "é"].map(|rest| format!("{prefix}{rest}"));
    let others = [prefix.replace('*', "x"), prefix.replace('*', ""), format!(" {prefix}a")];
    for name in in_byte_order.iter().rev().chain(&others) {
        let lock = name.parse().expect("a lawful name");
        let lease = ann.hold(&lock, Mode::Exclusive, LONG).await;
        for name in FIELDS.iter().rev().chain(&["opened", "removed"]) {
            let key = field(&RecordKey::of(lock.clone()), name);
            ann.opens(&key, &lease).await;
            if *name != "opened" {
                ann.writes(&key, &lease, Bytes::new()).await;
            }
            if *name == "removed" {
                ann.removes(&key, &lease).await;
            }
        }
        ann.gives_back(&lease).await;
    }
    let list = async |query| {
        within("a listing of records", bob.backend.records().list(query)).await.expect("a listing")
    };
    let mut listed = Vec::new();
    let mut query = ListQuery::new(&prefix).limit(PAGE);
    loop {
        let page = list(query.clone()).await;
        let locks: BTreeSet<_> = page.items.iter().map(RecordKey::lock).collect();
        assert!((1..=PAGE).contains(&locks.len()), "a page has the records of 1 to {PAGE} locks: {page:?}");
        listed.extend(page.items);
        match page.next {
            Some(next) => query = query.after(next),
            None => break,
        }
    }
    let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
    let expected: Vec<String> =
        in_byte_order.iter().flat_map(|name| FIELDS.map(|field| format!("{name}#{field}"))).collect();
    assert_eq!(listed, expected, "the records whose locks begin with {prefix:?}, in byte order");
    assert!(list(ListQuery::new(format!("{prefix}-"))).await.items.is_empty(), "no record begins with that");
    Ok(())
}
