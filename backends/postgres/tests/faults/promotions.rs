//! A standby is promoted: what an asynchronous one loses, and what of it nobody notices for the fence.

use ringfence::Locks;
use ringfence_core::{Attempt, Backend, ErrorKind, RecordKey, Release, Renewal, Wait};
use ringfence_servers::Postgres;

use crate::stage::{
    AT_ONCE, FOR_EVER, LONG, NAME, client, exclusive, granted, locks, name, now, release, renew, within,
};

/// A URL with both servers, of which the primary is found.
fn both(one: &Postgres, other: &Postgres) -> String {
    format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", one.port(), other.port())
}

/// The number in bits 40 and up.
fn timeline(grant: u64) -> u64 {
    grant >> 40
}

/// What an asynchronous standby has not got was never there: the lock is granted a second time. This must be seen, because it
/// is said of it; and what the second one is given must be more than what the first one had, or no fence would hold.
#[tokio::test]
async fn an_asynchronous_promotion_lets_two_hold_and_the_fence_tells_them_apart() {
    let Some(mut primary) = Postgres::start().await else { return };
    // The schema is there before the copy is made.
    let ann = locks(&primary.url()).await;
    let mut standby = primary.standby().await;
    let url = both(&primary, &standby);
    drop(ann);
    let (ann, ben) = (locks(&url).await, locks(&url).await);
    let kept = ann.lock("kept").ttl(LONG).acquire().await.expect("a free lock");
    let known = "SELECT count(*) FROM ringfence.locks WHERE name = 'kept' AND nonce IS NOT NULL";
    within("the standby has what is kept", async {
        while standby.psql(known).await != "1" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    // From here on it gets nothing.
    standby.kill();
    for _ in 0..20 {
        let guard = take(&ann).await;
        guard.release().await.expect("it holds");
    }
    let first = take(&ann).await;
    let record = ann.record(NAME).expect("a name");
    record.open(first.token()).await.expect("its own record");
    primary.kill();
    standby.restart().await;
    standby.promote().await;

    let second = take(&ben).await;
    assert!(first.is_held(), "two hold: it would be no asynchronous promotion otherwise");
    assert!(second.token().sequence() > first.token().sequence(), "{first:?}, then {second:?}");
    assert_eq!((timeline(first.token().grant()), timeline(second.token().grant())), (1, 2));
    let late = record.write(first.token(), "late").await.expect_err("it is not known here");
    assert_eq!(late.kind(), ErrorKind::Stale, "{late:?}");
    let theirs = ben.record(NAME).expect("a name");
    theirs.open(second.token()).await.expect("its own record");
    theirs.write(second.token(), "second").await.expect("its own record");
    for stale in
        [record.open(first.token()).await.map(drop), record.write(first.token(), "late").await.map(drop)]
    {
        assert_eq!(stale.expect_err("a stale token").kind(), ErrorKind::Stale);
    }
    // What the standby knew goes on.
    let busy = ben.lock("kept").ttl(LONG).try_acquire().await.expect("an answer");
    assert!(busy.is_none() && kept.is_held());
    let token = kept.token();
    within("an answer", kept.release()).await.expect("it holds");
    let next = ben.lock("kept").ttl(LONG).acquire().await.expect("a free lock");
    assert!(next.token().sequence() > token.sequence(), "{token}, then {}", next.token());
}

async fn take(locks: &Locks) -> ringfence::Guard {
    within("a grant", async {
        loop {
            match locks.lock(NAME).ttl(LONG).acquire().await {
                Ok(guard) => break guard,
                // It has yet to see that the primary is another one.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
        }
    })
    .await
}

/// Whoever lost its lease to a promotion must learn of it by the next renewal, and not by the work of another.
#[tokio::test]
async fn a_lease_that_a_promotion_forgot_is_lost_at_its_renewal() {
    let Some(mut primary) = Postgres::start().await else { return };
    drop(locks(&primary.url()).await);
    let mut standby = primary.standby().await;
    let url = both(&primary, &standby);
    let ann = locks(&url).await;
    standby.kill();
    let ttl = 2 * AT_ONCE;
    let guard = ann.lock(NAME).ttl(ttl).acquire().await.expect("a free lock");
    let deadline = now().saturating_add(ttl);
    primary.kill();
    standby.restart().await;
    standby.promote().await;
    within("the loss", guard.lost()).await;
    assert!(now() < deadline, "it would be lost by then whatever is asked");
    let error = within("an answer", guard.release()).await.expect_err("it is lost");
    assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
}

/// An old primary that nobody has stopped goes on for those who are still connected to it. They hold beside the others for as
/// long as that lasts; what they are given there must never pass where the others have been.
#[tokio::test]
async fn what_an_old_primary_still_grants_is_below_what_the_new_one_grants() {
    let Some(primary) = Postgres::start().await else { return };
    let old = client(&primary.url()).await;
    let standby = primary.standby().await;
    standby.promote().await;
    let new = client(&standby.url()).await;
    let second = granted(&new, exclusive(Wait::No)).await;
    let key = RecordKey::of(name());
    new.records().open(&key, second.token).await.expect("its own record");
    let mut last = None;
    for _ in 0..100 {
        let first = granted(&old, exclusive(Wait::No)).await;
        assert!(last.is_none_or(|last| first.token.sequence() > last), "{first:?}");
        assert!(first.token.sequence() < second.token.sequence(), "{first:?}, and {second:?}");
        assert_eq!(renew(&old, &first).await.expect("an answer"), Renewal::Renewed, "two hold");
        last = Some(first.token.sequence());
        let stale = new.records().open(&key, first.token).await.expect_err("a stale token");
        assert_eq!(stale.kind(), ErrorKind::Stale, "{stale:?}");
        release(&old, &first).await.expect("an answer");
    }
    new.records().write(&key, second.token, "second".into()).await.expect("its own record");
}

/// A synchronous standby has all that anybody was told: nobody notices but by a moment without a server.
#[tokio::test]
async fn a_synchronous_promotion_costs_nobody_anything() {
    let Some(mut primary) = Postgres::start().await else { return };
    drop(client(&primary.url()).await);
    let standby = primary.synchronous_standby().await;
    let url = both(&primary, &standby);
    let (ann, ben) = (client(&url).await, client(&url).await);
    for _ in 0..20 {
        let lease = granted(&ann, exclusive(Wait::No)).await;
        release(&ann, &lease).await.expect("an answer");
    }
    let held = granted(&ann, exclusive(Wait::No)).await;
    let key = RecordKey::of(name());
    ann.records().open(&key, held.token).await.expect("its own record");
    ann.records().write(&key, held.token, "first".into()).await.expect("its own record");
    primary.kill();
    standby.psql("ALTER SYSTEM SET synchronous_standby_names = ''").await;
    standby.promote().await;
    let tried = within("an answer", async {
        loop {
            match ben.acquire(exclusive(Wait::No)).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                answer => break answer,
            }
        }
    })
    .await;
    assert!(matches!(tried, Ok(Attempt::Busy(_))), "it is held: {tried:?}");
    let waiting = tokio::spawn({
        let ben = std::sync::Arc::clone(&ben);
        async move { ben.acquire(exclusive(FOR_EVER)).await }
    });
    let renewed = within("an answer", async {
        loop {
            match ann.renew(std::slice::from_ref(&held.key)).await {
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
                Ok(renewed) => break renewed,
            }
        }
    })
    .await;
    assert_eq!(renewed, [Renewal::Renewed]);
    let record = ann.records().read(&key).await.expect("an answer").expect("it was written");
    assert_eq!(record.value, "first");
    ann.records().write(&key, held.token, "first, still".into()).await.expect("its own record");
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);
    let next = crate::stage::its_turn(waiting).await;
    assert!(next.token.sequence() > held.token.sequence(), "{held:?}, then {next:?}");
}
