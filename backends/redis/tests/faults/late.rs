//! Commands that the network kept, and that arrive when nobody wants them any more.

use std::time::Duration;

use ringfence_core::{Attempt, Backend, Effect, ErrorKind, Mode, Release, Result, Wait, abandonment};
use ringfence_servers::Proxy;
use ringfence_testkit::PATIENCE;

use crate::stage::{
    ANSWER_PATIENCE, FOR_EVER, LONG, Stage, client, exclusive, granted, refused, release, request, within,
};

/// Until what was sent arrives: when nobody waits for its answer any more, and something else was asked meanwhile.
const LATE: Duration = Duration::from_millis(5500);

/// Waits until nobody but those who are known has a connection: what was under way on the others has arrived.
async fn everything_has_arrived(stage: &Stage, connections: usize) {
    let arrived = tokio::time::timeout(2 * PATIENCE, async {
        while stage.subscribers().await != connections {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(arrived.await.is_ok(), "{} connections, {connections} expected", stage.subscribers().await);
}

/// Without the tombstone the late attempt would be granted a lock, for its whole TTL, that nobody knows of.
#[tokio::test]
async fn an_attempt_that_arrives_after_its_withdrawal_is_not_granted() {
    an_attempt_that_arrives_after_its_withdrawal(&["PING"]).await;
}

/// The same where nothing is known of the lock, not even a number.
#[tokio::test]
async fn nor_is_it_where_the_lock_was_never_used() {
    an_attempt_that_arrives_after_its_withdrawal(&["FLUSHALL"]).await;
}

async fn an_attempt_that_arrives_after_its_withdrawal(before: &[&str]) {
    let Some(stage) = Stage::new().await else { return };
    let proxy = Proxy::start(stage.server.port()).await;
    let ann = client(proxy.port()).await;
    // What was sent before this call arrives in time, so the scripts are known.
    let lease = granted(&ann, exclusive(Wait::No)).await;
    release(&ann, &lease).await.expect("an answer");
    stage.server.command(before).await;
    // The eye and the client, on its second connection.
    late_and_withdrawn(&stage, &proxy, ann.acquire(exclusive(Wait::No)), 2).await;
    assert!(stage.state().await.is_free(), "{:?}", stage.state().await);
    assert!(matches!(ann.acquire(exclusive(Wait::No)).await, Ok(Attempt::Granted(_))));
}

/// Where others hold and wait it would stand in line for nobody.
#[tokio::test]
async fn nor_does_it_join_the_line() {
    let Some(stage) = Stage::new().await else { return };
    let proxy = Proxy::start(stage.server.port()).await;
    let (ann, ben, cat) = (client(proxy.port()).await, stage.client().await, stage.client().await);
    granted(&ben, exclusive(Wait::No)).await;
    tokio::spawn(async move { cat.acquire(exclusive(FOR_EVER)).await });
    stage.sees_waiters(1).await;
    late_and_withdrawn(&stage, &proxy, ann.acquire(exclusive(FOR_EVER)), 4).await;
    assert_eq!(stage.state().await.waiters.len(), 1, "{:?}", stage.state().await);
}

/// Lets an attempt be withdrawn before it arrives, where so many are connected in the end.
async fn late_and_withdrawn(
    stage: &Stage,
    proxy: &Proxy,
    asking: impl Future<Output = Result<Attempt>>,
    connections: usize,
) {
    proxy.delay(LATE);
    let (answer, ()) = tokio::join!(within("the error", asking), async {
        // Half the time that it waits: it was sent, and the way is short for what comes after it.
        tokio::time::sleep(ANSWER_PATIENCE / 2).await;
        proxy.delay(Duration::ZERO);
    });
    refused("an attempt without an answer", answer);
    let calls = stage.calls().await["evalsha"];
    everything_has_arrived(stage, connections).await;
    assert!(stage.calls().await["evalsha"] > calls, "the attempt arrived after the withdrawal");
}

/// A waiter asks again and again. Without a rule one such question, late, would take the lock for an attempt that was given
/// up, or that has held and released.
#[tokio::test]
async fn a_waiters_question_that_arrives_after_its_end_asks_for_nothing() {
    for holds in [false, true] {
        let Some(stage) = Stage::new().await else { return };
        let proxy = Proxy::start(stage.server.port()).await;
        let (ann, ben) = (client(proxy.port()).await, stage.client().await);
        // The end of what readers hold is not waited for, so that it is looked for often.
        let lease = granted(&ben, request(Mode::Shared, LONG, Wait::No)).await;
        let (wanted, abandoned) = abandonment();
        let waiting = ann.acquire(exclusive(FOR_EVER).abandoned_by(abandoned));
        let (answer, _wanted) = tokio::join!(within("the end of the wait", waiting), async {
            stage.sees_waiters(1).await;
            proxy.delay(LATE);
            // No event tells that it asks again. It does so every quarter of a second.
            tokio::time::sleep(Duration::from_millis(700)).await;
            proxy.delay(Duration::ZERO);
            // The waiter's second connection, beside the eye's, the holder's and its first.
            everything_has_arrived(&stage, 4).await;
            if holds {
                release(&ben, &lease).await.expect("an answer");
                Some(wanted)
            } else {
                None
            }
        });
        match answer.expect("a waiter outlives a slow answer") {
            Attempt::Granted(lease) if holds => {
                assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::Released);
            }
            Attempt::Busy(_) if !holds => {
                release(&ben, &lease).await.expect("an answer");
            }
            other => panic!("{other:?}"),
        }
        stage.sees_it_free().await;
        everything_has_arrived(&stage, 3).await;
        assert!(stage.state().await.is_free(), "holds: {holds}, {:?}", stage.state().await);
    }
}

/// The server lets everybody in, and does nothing that might write.
#[tokio::test]
async fn one_that_does_not_wait_is_not_kept_for_a_ttl_by_a_server_that_stalls() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    stage.server.command(&["CLIENT", "PAUSE", "600000", "WRITE"]).await;
    let asked = ann.acquire(exclusive(Wait::No));
    let asked = tokio::time::timeout(3 * PATIENCE, asked).await.expect("an end well before its TTL");
    let error = asked.expect_err("nobody answers");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    stage.server.command(&["CLIENT", "UNPAUSE"]).await;
    // What was asked for is withdrawn in the background, however late it is done.
    stage.sees_it_free().await;
    let ben = stage.client().await;
    let lease = granted(&ben, exclusive(FOR_EVER)).await;
    assert_eq!(release(&ben, &lease).await.expect("an answer"), Release::Released);
}
