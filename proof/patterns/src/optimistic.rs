//! Versioned records do as their documentation says: who was slower writes nothing, and nothing is lost.

use std::time::Duration;

use ringfence::patterns::{Swap, Versioned};
use ringfence::{Error, ErrorKind, Version};
use ringfence_testkit::{Harness, NotApplicable, Verdict};

use crate::stage::{fresh, hall, locks, ttl, within};

/// A TTL that a case waits for.
const SHORT: Duration = Duration::from_millis(500);

/// How long a write waits for its turn, beside the TTLs that have to pass first.
const WAIT: Duration = Duration::from_secs(25);

async fn swap(record: &Versioned, expected: Option<Version>, value: &str) -> Swap {
    let swapped = record.compare_and_set(expected, value.to_owned());
    within("a compare-and-set is answered", swapped).await.expect("it is written or in conflict")
}

async fn stands_at(record: &Versioned, value: &str, version: u64) {
    let found = record.read().await.expect("a look").expect("it was written");
    assert_eq!((found.value.as_ref(), found.version), (value.as_bytes(), Version(version)));
}

/// The version decides, in every process, and a conflict says what there is.
pub async fn optimistic_writes_are_refused_who_read_before_the_last_one(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("optimistic"));
    let (ann, bob) = (ann.versioned(&name), bob.versioned(&name));
    assert_eq!(swap(&ann, None, "one").await, Swap::Swapped(Version(1)));
    let Swap::Conflict(Some(found)) = swap(&bob, None, "mine").await else { panic!("ann was faster") };
    assert_eq!((found.value.as_ref(), found.version), (b"one".as_slice(), Version(1)));
    assert_eq!(swap(&bob, Some(found.version), "two").await, Swap::Swapped(Version(2)));
    assert!(matches!(swap(&ann, Some(Version(1)), "mine").await, Swap::Conflict(Some(_))));
    stands_at(&ann, "two", 2).await;
    Ok(())
}

/// Updates of several processes at the same time: each of them counts once.
pub async fn optimistic_updates_lose_nothing(harness: &dyn Harness) -> Verdict {
    const EACH: u64 = 5;
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("optimistic"));
    let records = [ann.versioned(&name), bob.versioned(&name), ann.versioned(&name)];
    let count = async |record: Versioned| {
        let record = record.wait(WAIT).tries(1_000);
        for _ in 0..EACH {
            let counted = record.update(async |current| {
                let counted = current.map_or(0, |record| number(&record.value));
                Ok::<_, Error>((counted + 1).to_string())
            });
            within("an update is written", counted).await.expect("it is written in the end");
        }
    };
    let [a, b, c] = records.each_ref().map(Clone::clone);
    tokio::join!(count(a), count(b), count(c));
    stands_at(&records[0], &(3 * EACH).to_string(), 3 * EACH).await;
    Ok(())
}

/// A writer that hangs in the middle, past its lease, holds nobody up for longer, and its late write is refused.
pub async fn optimistic_writes_of_one_that_hung_are_refused(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("optimistic"));
    let hangs = ann.lock(&name).ttl(ttl(&ann, SHORT)).max_hold(Duration::ZERO);
    let late = within("the lock is free", hangs.acquire()).await.expect("a guard");
    let record = ann.record(&name).expect("a lock name");
    record.open(late.token()).await.expect("it holds the lock");
    assert_eq!(swap(&bob.versioned(&name).wait(WAIT), None, "in time").await, Swap::Swapped(Version(1)));
    let refused = record.write(late.token(), "late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale, "{refused:?}");
    stands_at(&bob.versioned(&name), "in time", 1).await;
    Ok(())
}

/// Who holds the lock of the record keeps versioned writes out for as long, and its own writes count as theirs do.
pub async fn optimistic_writes_wait_for_whoever_holds_the_lock(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("optimistic"));
    let guard = within("the lock is free", ann.lock(&name).acquire()).await.expect("a guard");
    let hurried = bob.versioned(&name).wait(Duration::from_millis(50));
    let refused = within("a wait that ends", hurried.compare_and_set(None, "mine")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WaitElapsed, "{refused:?}");
    let record = ann.record(&name).expect("a lock name");
    record.open(guard.token()).await.expect("it holds the lock");
    record.write(guard.token(), "the holder's").await.expect("it holds the lock");
    guard.release().await.expect("it held the lock");
    assert!(matches!(swap(&bob.versioned(&name), None, "mine").await, Swap::Conflict(Some(_))));
    assert_eq!(swap(&bob.versioned(&name), Some(Version(1)), "next").await, Swap::Swapped(Version(2)));
    Ok(())
}

/// A writer that is cut off in the middle of a write gets the truth or is told that nobody knows it, and what it may have
/// written late is never over somebody else's.
pub async fn optimistic_writes_of_one_that_is_cut_off_are_whole_or_not_at_all(
    harness: &dyn Harness,
) -> Verdict {
    let Some(cable) = harness.connect_by_cable() else {
        return Err(NotApplicable("the harness cuts no cable"));
    };
    let cable = cable.await;
    let (ann, bob, name) = (hall(harness, cable.client()), locks(harness).await, fresh("optimistic"));
    let lasts = ttl(&ann, SHORT);
    let (ann, bob) = (ann.versioned(&name).ttl(lasts), bob.versioned(&name).ttl(lasts).wait(WAIT));
    assert_eq!(swap(&ann, None, "0").await, Swap::Swapped(Version(1)));
    let writer = tokio::spawn(async move {
        let (mut version, mut told) = (Version(1), Vec::new());
        loop {
            match ann.compare_and_set(Some(version), format!("ann {}", version.0)).await {
                Ok(Swap::Swapped(next)) => {
                    told.push(next);
                    version = next;
                }
                end => return (told, end),
            }
        }
    });
    within("ann has written", async {
        while bob.read().await.expect("a look").is_none_or(|found| found.version < Version(3)) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    cable.cut();
    let before =
        within("ann's lease ends", bob.update(async |_| Ok::<_, Error>("bob"))).await.expect("bob writes");
    cable.mend();
    let (told, end) = within("ann is told", writer).await.expect("no panic");
    assert!(
        told.iter().all(|version| *version < before),
        "{told:?} were told to be written, bob wrote {before:?}"
    );
    match end {
        Ok(Swap::Conflict(Some(found))) => {
            assert_eq!(found.value, "bob", "who is told of a conflict wrote nothing");
        }
        Ok(end) => panic!("bob was faster: {end:?}"),
        Err(error) => assert!(
            matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::WaitElapsed | ErrorKind::Stale),
            "{error:?}"
        ),
    }
    stands_at(&bob, "bob", before.0).await;
    Ok(())
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a number was written")
}
