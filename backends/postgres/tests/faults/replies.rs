//! Answers that are lost on their way, and statements that arrive when nobody wants them any more.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Attempt, Backend, Effect, ErrorKind, LockState, Mode, Release, Renewal, Retry, Wait, abandonment,
};
use ringfence_testkit::PATIENCE;

use crate::stage::{
    ANSWER_PATIENCE, FOR_EVER, LONG, NAME, Stage, client, exclusive, granted, its_turn, name, now, release,
    renew, request, waits, within,
};

/// Until what was sent arrives: when nobody waits for its answer any more.
const LATE: Duration = Duration::from_millis(4500);

/// Without the withdrawal a lease would live until its TTL for somebody who was told that there is none.
#[tokio::test]
async fn an_attempt_whose_answer_is_lost_leaves_no_orphan() {
    for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(2).expect("a mode")] {
        for wait in [Wait::No, FOR_EVER] {
            let Some(stage) = Stage::new().await else { return };
            let (proxy, url) = stage.proxy().await;
            let ann = client(&url).await;
            // What was prepared is not to be prepared on a connection that swallows.
            let lease = granted(&ann, exclusive(Wait::No)).await;
            release(&ann, &lease).await.expect("an answer");
            proxy.swallow_replies();
            let asking = tokio::spawn({
                let ann = Arc::clone(&ann);
                async move { ann.acquire(request(mode, LONG, wait)).await }
            });
            proxy.swallowed().await;
            stage.sees("a lease that nobody knows of", |state| state.holders.len() == 1).await;
            proxy.mend();
            match within("what comes of it", asking).await.expect("no panic") {
                // One that waits asks again, when nothing is left of what was lost.
                Ok(Attempt::Granted(lease)) if wait != Wait::No => {
                    assert_eq!(stage.state().await.holders.len(), 1, "{mode}: {:?}", stage.state().await);
                    release(&ann, &lease).await.expect("an answer");
                }
                Err(error) if wait == Wait::No => {
                    let said = (error.kind(), error.retry(), error.effect());
                    assert_eq!(
                        said,
                        (ErrorKind::Unavailable, Retry::Later, Effect::None),
                        "{mode}: {error:?}"
                    );
                }
                other => panic!("{mode}: {other:?}"),
            }
            assert!(stage.state().await.is_free(), "{mode}: {:?}", stage.state().await);
            let next = granted(&ann, exclusive(Wait::No)).await;
            assert!(next.token.sequence() > lease.token.sequence());
        }
    }
}

/// Whoever cannot withdraw must say nothing of the end before the lease can be no more.
#[tokio::test]
async fn an_attempt_that_cannot_be_withdrawn_is_waited_out() {
    let Some(stage) = Stage::new().await else { return };
    let (proxy, url) = stage.proxy().await;
    let ann = client(&url).await;
    let ttl = Duration::from_secs(5);
    // Its way for attempts is open.
    let lease = granted(&ann, exclusive(Wait::No)).await;
    release(&ann, &lease).await.expect("an answer");
    proxy.swallow_replies();
    let asked = now();
    let error = tokio::time::timeout(2 * PATIENCE, ann.acquire(request(Mode::Exclusive, ttl, Wait::No)));
    let error = error.await.expect("an end").expect_err("its answer is lost");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let took = now().saturating_since(asked);
    assert!(took >= ttl, "it said so after {took:?}, and the lease may live for {ttl:?}");
    assert!(stage.state().await.is_free());
}

/// Without the withdrawal's mark the late attempt would be granted a lock, for its whole TTL, that nobody knows of.
#[tokio::test]
async fn an_attempt_that_arrives_after_its_withdrawal_is_not_granted() {
    for is_new in [false, true] {
        let Some(stage) = Stage::new().await else { return };
        let (proxy, url) = stage.proxy().await;
        let ann = client(&url).await;
        let lease = granted(&ann, exclusive(Wait::No)).await;
        release(&ann, &lease).await.expect("an answer");
        if is_new {
            // The same where nothing is known of the lock, not even a number.
            stage.server.psql("DELETE FROM ringfence.locks").await;
        }
        late_and_withdrawn(&stage, &proxy, ann.acquire(exclusive(Wait::No))).await;
        assert!(stage.state().await.is_free(), "new: {is_new}, {:?}", stage.state().await);
        granted(&ann, exclusive(Wait::No)).await;
    }
}

/// Where others hold and wait it would stand in line for nobody.
#[tokio::test]
async fn nor_does_it_join_the_line() {
    let Some(stage) = Stage::new().await else { return };
    let (proxy, url) = stage.proxy().await;
    let (ann, ben, cat) = (client(&url).await, stage.client().await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    // Its way for attempts is open, and the statement is prepared.
    assert!(matches!(ann.acquire(exclusive(Wait::No)).await, Ok(Attempt::Busy(_))));
    let waiting = waits(&cat);
    stage.sees_waiters(1).await;
    late_and_withdrawn(&stage, &proxy, ann.acquire(exclusive(FOR_EVER))).await;
    assert_eq!(stage.state().await.waiters.len(), 1, "{:?}", stage.state().await);
    release(&ben, &held).await.expect("an answer");
    release(&cat, &its_turn(waiting).await).await.expect("an answer");
    stage.sees_it_free().await;
}

/// How often anything was asked of the schema for an attempt.
async fn asked_for(stage: &Stage) -> i64 {
    // What a transaction did is counted after it; a backend that is idle may keep it for itself for a while.
    stage
        .number("SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname = 'acquire_one'")
        .await
}

/// Lets an attempt be withdrawn before it arrives.
async fn late_and_withdrawn(
    stage: &Stage,
    proxy: &ringfence_servers::Proxy,
    asking: impl Future<Output = ringfence_core::Result<Attempt>>,
) {
    // A function's calls are counted from here on.
    stage.server.psql("ALTER SYSTEM SET track_functions = 'pl'").await;
    stage.server.psql("SELECT pg_reload_conf()").await;
    stage.says("SHOW track_functions", "pl").await;
    let before = asked_for(stage).await;
    proxy.delay(LATE);
    let (answer, ()) = tokio::join!(within("the error", asking), async {
        // Half the time that it waits: it was sent, and the way is short for what comes after it.
        tokio::time::sleep(ANSWER_PATIENCE / 2).await;
        proxy.delay(Duration::ZERO);
    });
    let error = answer.expect_err("nobody answered it in time");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    stage.says("SELECT count(*) FROM ringfence.places WHERE kind = 'x'", "1").await;
    within("the late attempt", async {
        while asked_for(stage).await == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Each withdrawal is remembered for the TTL of its attempt, and then forgotten: or they would fill the table.
#[tokio::test]
async fn each_withdrawal_is_remembered_for_its_own_ttl() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let short = Duration::from_millis(500);
    for (ttl, count) in [(LONG, "1"), (short, "2")] {
        let (wanted, abandoned) = abandonment();
        let asked = ann.acquire(request(Mode::Exclusive, ttl, FOR_EVER).abandoned_by(abandoned));
        assert!(tokio::time::timeout(Duration::from_millis(100), asked).await.is_err(), "it waits");
        drop(wanted);
        stage.says("SELECT count(*) FROM ringfence.places WHERE kind = 'x'", count).await;
    }
    tokio::time::sleep(short).await;
    // The next change of the lock forgets what is over.
    release(&ben, &held).await.expect("an answer");
    stage.says("SELECT count(*) FROM ringfence.places WHERE kind = 'x'", "1").await;
    assert!(stage.state().await.is_free());
}

/// A release whose answer is lost may have arrived. Sent again it says that nothing was held, and takes nothing from the next
/// one.
#[tokio::test]
async fn a_release_whose_answer_is_lost_is_sent_again_and_takes_nothing_from_the_next_one() {
    let Some(stage) = Stage::new().await else { return };
    let (proxy, url) = stage.proxy().await;
    let (ann, ben) = (client(&url).await, stage.client().await);
    let lease = granted(&ann, exclusive(Wait::No)).await;
    // Prepared, so that what is swallowed is the answer to the release itself.
    assert_eq!(renew(&ann, &lease).await.expect("an answer"), Renewal::Renewed);
    let other = granted(&ann, crate::stage::request_of("orders/43", Mode::Exclusive, LONG, Wait::No)).await;
    release(&ann, &other).await.expect("an answer");
    proxy.swallow_replies();
    let asking = tokio::spawn({
        let (ann, lease) = (Arc::clone(&ann), lease.clone());
        async move { ann.release(std::slice::from_ref(&lease.key)).await }
    });
    proxy.swallowed().await;
    stage.sees("a free lock", LockState::is_free).await;
    let next = granted(&ben, exclusive(Wait::No)).await;
    proxy.mend();
    let error = within("the error", asking).await.expect("no panic").expect_err("its answer is lost");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::NotHeld);
    assert_eq!(renew(&ben, &next).await.expect("an answer"), Renewal::Renewed);
    release(&ben, &next).await.expect("an answer");
}

/// A waiter whose answers are all lost keeps nobody from anything when it is over, and is over at its deadline.
#[tokio::test]
async fn a_wait_ends_at_its_deadline_though_nobody_answers_and_leaves_nothing() {
    let Some(stage) = Stage::new().await else { return };
    let (proxy, url) = stage.proxy().await;
    let (ann, ben) = (client(&url).await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let deadline = now().saturating_add(Duration::from_secs(2));
    let asking = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { (ann.acquire(request(Mode::Exclusive, LONG, Wait::Until(deadline))).await, now()) }
    });
    stage.sees_waiters(1).await;
    proxy.cut();
    let (attempt, ended) = within("the end of a wait", asking).await.expect("no panic");
    assert!(matches!(attempt, Ok(Attempt::Busy(_))), "a wait that ends is busy: {attempt:?}");
    let late = ended.saturating_since(deadline);
    assert!(ended >= deadline && late < 2 * ANSWER_PATIENCE, "{late:?} after its deadline");
    proxy.mend();
    stage.sees_waiters(0).await;
    release(&ben, &held).await.expect("an answer");
    assert!(stage.state().await.is_free(), "of {NAME}: {:?}", ben.inspect(&name()).await);
}
