//! Idempotency keys do as their documentation says: a request that comes twice is done once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringfence::patterns::{Begun, Idempotency, Session};
use ringfence::{ErrorKind, Locks, Result};
use ringfence_testkit::{Harness, NotApplicable, Verdict};

use crate::stage::{fresh, hall, locks, ttl, within};

/// A TTL that a case waits for.
const SHORT: Duration = Duration::from_millis(500);

/// How long a case waits for the work of others, beside the TTLs that have to pass first.
const WAIT: Duration = Duration::from_secs(25);

async fn begin(request: Idempotency) -> Begun {
    within("the answer to a request", request.begin()).await.expect("a request that can be answered")
}

async fn start(request: Idempotency) -> Session {
    match begin(request).await {
        Begun::Started(session) => session,
        begun => panic!("the request is new: {begun:?}"),
    }
}

/// The session of a key whose last result is over, or is about to be by the backend's clock.
async fn start_again(request: impl Fn() -> Idempotency) -> Session {
    within("the last result is over", async {
        loop {
            match begin(request().wait(WAIT)).await {
                Begun::Started(session) => return session,
                Begun::Done(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                begun @ Begun::InFlight(_) => panic!("whoever has it is waited for: {begun:?}"),
            }
        }
    })
    .await
}

async fn complete(mut session: Session, result: &str) -> Result<()> {
    within("a result is stored", session.complete(result)).await
}

async fn is_done_with(request: Idempotency, expected: &str) {
    match begin(request).await {
        Begun::Done(result) => assert_eq!(result, expected.as_bytes(), "the result that was stored"),
        begun => panic!("the request is done: {begun:?}"),
    }
}

/// Every process gets the result that one of them stored, and the key is another request's for nobody.
pub async fn idempotency_gives_a_duplicate_the_result(harness: &dyn Harness) -> Verdict {
    let (ann, bob, key) = (locks(harness).await, locks(harness).await, fresh("idempotency"));
    let request = |locks: &Locks| locks.idempotency(&key).fingerprint("amount=1");
    let other = bob.idempotency(&key).fingerprint("amount=2");
    let session = start(request(&ann)).await;
    let Begun::InFlight(others) = begin(request(&bob)).await else { panic!("ann works on it") };
    assert!(!others.holders.is_empty(), "it is said who works on it");
    let refused = within("another request is refused", other.wait(WAIT).begin()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::KeyReused, "while it is in flight: {refused:?}");

    complete(session, "charged").await.expect("nobody is in the way");
    is_done_with(request(&bob), "charged").await;
    is_done_with(request(&ann), "charged").await;
    let other = bob.idempotency(&key).fingerprint("amount=2");
    let refused = within("another request is refused", other.begin()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::KeyReused, "when it is done: {refused:?}");
    Ok(())
}

/// However many processes and tasks send one request at the same time, the work is done once and all get its result.
pub async fn idempotency_does_concurrent_requests_once(harness: &dyn Harness) -> Verdict {
    let (key, done) = (fresh("idempotency"), AtomicU32::new(0));
    let (ann, bob) = (locks(harness).await, locks(harness).await);
    let send = async |locks: &Locks| {
        let request = locks.idempotency(&key).wait(WAIT).run(async |_| {
            let before = done.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, ringfence::Error>(format!("after {before}"))
        });
        within("one of many like requests is answered", request).await
    };
    let answers = tokio::join!(send(&ann), send(&bob), send(&ann), send(&bob), send(&ann), send(&bob));
    for answer in <[_; 6]>::from(answers) {
        assert_eq!(answer.expect("an answer"), "after 0");
    }
    assert_eq!(done.into_inner(), 1, "the work was done once");
    Ok(())
}

/// Work that fails stores nothing, and the one that waits for it starts.
pub async fn idempotency_starts_again_after_a_failure(harness: &dyn Harness) -> Verdict {
    let (ann, bob, key) = (locks(harness).await, locks(harness).await, fresh("idempotency"));
    let first = start(ann.idempotency(&key)).await;
    let token = first.token();
    let waits = tokio::spawn(bob.idempotency(&key).wait(WAIT).begin());
    if ann.guarantees().queue.is_ordered() {
        within("bob waits", async {
            let name = format!("idempotency/{key}");
            while ann.inspect(&name).await.expect("an inspection").waiters.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    drop(first);
    let begun = within("the next one starts", waits).await.expect("no panic").expect("an answer");
    let Begun::Started(second) = begun else { panic!("nothing was stored: {begun:?}") };
    assert!(second.token().sequence() > token.sequence(), "{} after {token}", second.token());
    complete(second, "second").await.expect("nobody is in the way");
    is_done_with(ann.idempotency(&key), "second").await;
    Ok(())
}

/// A worker that hangs past its lease and then wakes up cannot put its result over its successor's.
pub async fn idempotency_refuses_the_result_of_one_that_hung(harness: &dyn Harness) -> Verdict {
    let (ann, bob, key) = (locks(harness).await, locks(harness).await, fresh("idempotency"));
    let hangs = ann.idempotency(&key).ttl(ttl(&ann, SHORT)).max_hold(Duration::ZERO);
    let late = start(hangs).await;
    let second = start(bob.idempotency(&key).wait(WAIT)).await;
    let refused = complete(late, "late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale, "{refused:?}");
    complete(second, "in time").await.expect("it holds the key");
    is_done_with(ann.idempotency(&key), "in time").await;
    Ok(())
}

/// The same, where the successor is done and gone before the late one wakes up.
pub async fn idempotency_keeps_the_result_that_was_stored_first(harness: &dyn Harness) -> Verdict {
    let (ann, bob, key) = (locks(harness).await, locks(harness).await, fresh("idempotency"));
    let hangs = ann.idempotency(&key).ttl(ttl(&ann, SHORT)).max_hold(Duration::ZERO);
    let late = start(hangs).await;
    complete(start(bob.idempotency(&key).wait(WAIT)).await, "in time").await.expect("it holds the key");
    let refused = complete(late, "late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale, "{refused:?}");
    is_done_with(ann.idempotency(&key), "in time").await;
    Ok(())
}

/// A worker that is cut off does not know whether its result is stored, says so, and somebody else does the work.
pub async fn idempotency_of_one_that_is_cut_off_is_done_by_another(harness: &dyn Harness) -> Verdict {
    let Some(cable) = harness.connect_by_cable() else {
        return Err(NotApplicable("the harness cuts no cable"));
    };
    let cable = cable.await;
    let (ann, bob, key) = (hall(harness, cable.client()), locks(harness).await, fresh("idempotency"));
    let lasts = ttl(&ann, SHORT);
    let cut_off = start(ann.idempotency(&key).ttl(lasts)).await;
    cable.cut();
    let stored = tokio::spawn(complete(cut_off, "cut off"));
    let second = start(bob.idempotency(&key).wait(WAIT)).await;
    complete(second, "in time").await.expect("it holds the key");
    // Its answer is awaited with the cable whole: how long a server may be silent is its backend's matter.
    cable.mend();
    let refused = within("the store answers", stored).await.expect("no panic").unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::Unavailable | ErrorKind::Stale),
        "it cannot be stored: {refused:?}"
    );
    is_done_with(bob.idempotency(&key), "in time").await;
    Ok(())
}

/// The whole of what [`Locks::prune_idempotency_keys`] has to look at: how many of it are removed.
async fn prune(locks: &Locks) -> usize {
    let (mut removed, mut after) = (0, None);
    loop {
        let pruned = within("a page is pruned", locks.prune_idempotency_keys(after)).await;
        let pruned = pruned.expect("nothing is in the way");
        removed += pruned.removed;
        after = pruned.next;
        if after.is_none() {
            return removed;
        }
    }
}

/// What is past its retention is removed and is new; what is not, or is worked on, stays; and who was overtaken by all of that is
/// refused.
pub async fn idempotency_removes_what_is_past_its_retention(harness: &dyn Harness) -> Verdict {
    let (ann, bob, group) = (locks(harness).await, locks(harness).await, fresh("idempotency"));
    let key = |name: &str| format!("{group}/{name}");
    let over = |name: &str| ann.idempotency(key(name)).retention(Duration::ZERO);
    let record = |name: &str| ann.record(format!("idempotency/{}", key(name))).expect("a short name");
    for name in ["over", "in hand", "late"] {
        complete(start(over(name)).await, "old").await.expect("nobody is in the way");
    }
    complete(start(ann.idempotency(key("kept"))).await, "kept").await.expect("nobody is in the way");
    let in_hand = start(bob.idempotency(key("in hand"))).await;
    let hangs = ann.idempotency(key("late")).ttl(ttl(&ann, SHORT)).max_hold(Duration::ZERO);
    let late = start(hangs).await;
    within("the late one's lease is over", late.lost()).await;

    // A lease that is over for its holder may live a moment longer at the store.
    within("what is over is removed", async {
        while record("late").read().await.expect("a read").is_some() {
            prune(&ann).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(record("over").read().await.expect("a read"), None, "it is past its retention");
    assert!(record("in hand").read().await.expect("a read").is_some(), "somebody works on it");
    let refused = complete(late, "late").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Stale, "{refused:?}");
    complete(in_hand, "new").await.expect("it was not disturbed");
    assert_eq!(prune(&bob).await, 0, "there is nothing left that is over");
    is_done_with(bob.idempotency(key("kept")), "kept").await;
    is_done_with(bob.idempotency(key("in hand")), "new").await;
    complete(start(bob.idempotency(key("over"))).await, "again").await.expect("the key is new");
    Ok(())
}

/// While one prunes over and over, requests under keys that are always past their retention are each answered, and what is stored to
/// stay is there in the end.
pub async fn idempotency_is_not_disturbed_by_who_removes_what_is_over(harness: &dyn Harness) -> Verdict {
    let (ann, bob, key) = (locks(harness).await, locks(harness).await, fresh("idempotency"));
    let working = async {
        for round in 0..5 {
            // Both what is over when it is stored, and what the one who prunes may have seen before it was over.
            for retention in [Duration::ZERO, Duration::from_millis(1)] {
                let request = || ann.idempotency(&key).retention(retention);
                complete(start_again(request).await, "over").await.expect("it holds the key");
            }
            let kept = format!("{key}/{round}");
            let request = || ann.idempotency(&kept).retention(Duration::ZERO);
            complete(start_again(request).await, "over").await.expect("it holds the key");
            let request = || ann.idempotency(&kept);
            complete(start_again(request).await, "kept").await.expect("it holds the key");
        }
    };
    let pruning = async {
        loop {
            prune(&bob).await;
            // Where nothing is to be waited for, as in memory, the others would never have their turn.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = working => {}
        never = pruning => match never {},
    }
    for round in 0..5 {
        is_done_with(bob.idempotency(format!("{key}/{round}")), "kept").await;
    }
    Ok(())
}
