//! Answers that are lost after the server has done what it was told.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Attempt, Backend, Effect, Error, ErrorKind, Release, Renewal, Result, Retry, Wait, abandonment,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisOptions, valkey};
use tokio::task::JoinHandle;

use crate::stage::{FOR_EVER, LONG, Stage, client, exclusive, granted, refused, release, renew, within};

/// A server, and a client whose answers can be lost.
struct Lossy {
    stage: Stage,
    proxy: Proxy,
    ann: Arc<RedisBackend>,
}

impl Lossy {
    async fn new() -> Option<Self> {
        Self::with(RedisOptions::new()).await
    }

    async fn with(options: RedisOptions) -> Option<Self> {
        let stage = Stage::with(options).await?;
        let proxy = Proxy::start(stage.server.port()).await;
        let ann = Arc::new(client(proxy.port()).await);
        Some(Self { stage, proxy, ann })
    }

    /// Begins an attempt.
    fn ask(&self, wait: Wait) -> JoinHandle<Result<Attempt>> {
        let ann = Arc::clone(&self.ann);
        tokio::spawn(async move { ann.acquire(exclusive(wait)).await })
    }
}

/// An error of the network, with what it says of the effect.
fn assert_unavailable(error: &Error, effect: Effect) {
    let said = (error.kind(), error.retry(), error.effect());
    assert_eq!(said, (ErrorKind::Unavailable, Retry::Later, effect), "{error:?}");
}

/// Without the withdrawal nobody would have the lock until its TTL, and whoever tries again would wait for itself.
#[tokio::test]
async fn a_grant_whose_answer_is_lost_is_undone_before_its_error_is_returned() {
    let Some(lossy) = Lossy::new().await else { return };
    for wait in [Wait::No, FOR_EVER] {
        lossy.proxy.swallow_replies();
        let asked = lossy.ask(wait);
        lossy.proxy.swallowed().await;
        assert_eq!(lossy.stage.state().await.holders.len(), 1, "the server granted it");
        lossy.proxy.mend();
        let answer = within("the error", asked).await.expect("no panic");
        assert_unavailable(&refused("a lost grant", answer), Effect::None);
        assert!(lossy.stage.state().await.is_free(), "{:?}", lossy.stage.state().await);
        let lease = granted(&lossy.ann, exclusive(Wait::No)).await;
        assert_eq!(release(&lossy.ann, &lease).await.expect("an answer"), Release::Released);
    }
}

/// A withdrawal that was tried once, or that ended with who waits for it, would leave the lock to nobody where the server is
/// away for a moment.
#[tokio::test]
async fn a_lost_grant_is_undone_when_the_server_is_back() {
    for drops in [false, true] {
        let Some(mut lossy) = Lossy::with(RedisOptions::new().durable()).await else { return };
        lossy.proxy.swallow_replies();
        let mut asked = lossy.ask(Wait::No);
        lossy.proxy.swallowed().await;
        lossy.stage.server.kill();
        lossy.proxy.mend();
        let early = tokio::time::timeout(Duration::from_millis(300), &mut asked).await;
        assert!(early.is_err(), "its lease may live, and it says {early:?}");
        if drops {
            asked.abort();
        }
        lossy.stage.server.restart().await;
        if drops {
            lossy.stage.sees_it_free().await;
        } else {
            let answer = within("the error", asked).await.expect("no panic");
            assert_unavailable(&refused("a lost grant", answer), Effect::None);
            assert!(lossy.stage.state().await.is_free(), "{:?}", lossy.stage.state().await);
        }
    }
}

/// Without the withdrawal a place would stay in line for nobody, and cost the next one a turn.
#[tokio::test]
async fn a_place_in_line_whose_answer_is_lost_is_given_up_before_its_error_is_returned() {
    let Some(lossy) = Lossy::new().await else { return };
    let ben = lossy.stage.client().await;
    let lease = granted(&ben, exclusive(Wait::No)).await;
    lossy.proxy.swallow_replies();
    let asked = lossy.ask(FOR_EVER);
    lossy.proxy.swallowed().await;
    assert_eq!(lossy.stage.state().await.waiters.len(), 1, "it stands in line");
    lossy.proxy.mend();
    let answer = within("the error", asked).await.expect("no panic");
    assert_unavailable(&refused("a lost place", answer), Effect::None);
    assert_eq!(lossy.stage.state().await.waiters.len(), 0, "it has left");
    release(&ben, &lease).await.expect("an answer");
    assert!(lossy.stage.state().await.is_free());
}

/// A waiter whose turn and whose answers are lost must neither hold twice nor lose the turn that it was given.
#[tokio::test]
async fn a_turn_of_which_nobody_was_told_is_found_when_it_is_asked_for() {
    let Some(lossy) = Lossy::new().await else { return };
    let ben = lossy.stage.client().await;
    let lease = granted(&ben, exclusive(Wait::No)).await;
    let asked = lossy.ask(FOR_EVER);
    lossy.stage.sees_waiters(1).await;
    lossy.proxy.swallow_replies();
    release(&ben, &lease).await.expect("an answer");
    lossy.proxy.swallowed().await;
    let given = lossy.stage.state().await.holders[0].token;
    lossy.proxy.mend();
    let answer = within("the grant", asked).await.expect("no panic");
    let Ok(Attempt::Granted(found)) = answer else { panic!("it must be granted: {answer:?}") };
    assert_eq!(found.token, given, "the grant that the server made, and no second one");
    assert!(!found.is_offer(), "it was asked for, so it lives for its TTL");
    let remaining = lossy.stage.state().await.holders[0].remaining;
    assert!(remaining > Some(LONG / 2), "and at the server as well: {remaining:?}");
    assert_eq!(release(&lossy.ann, &found).await.expect("an answer"), Release::Released);
    assert!(lossy.stage.state().await.is_free());
}

/// A repeated attempt that was a new one would hold twice, or wait for itself.
#[tokio::test]
async fn the_same_attempt_has_the_same_token_however_often_it_is_asked() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    let first = granted(&ann, exclusive(Wait::No)).await;
    for wait in [Wait::No, FOR_EVER, Wait::No] {
        let mut again = exclusive(wait);
        again.nonce = first.key.nonce;
        assert_eq!(granted(&ann, again).await.token, first.token);
        assert_eq!(stage.state().await.holders.len(), 1);
    }
    assert_eq!(release(&ann, &first).await.expect("an answer"), Release::Released);
    assert!(stage.state().await.is_free(), "one release ends it, because it was one attempt");
}

/// A renewal is repeated, so it must be harmless when it was done already.
#[tokio::test]
async fn a_renewal_whose_answer_is_lost_may_be_repeated() {
    let Some(lossy) = Lossy::new().await else { return };
    let lease = granted(&lossy.ann, exclusive(Wait::No)).await;
    lossy.proxy.swallow_replies();
    let renewing = renew(&lossy.ann, &lease);
    let (answer, ()) = tokio::join!(renewing, async {
        lossy.proxy.swallowed().await;
        lossy.proxy.mend();
    });
    assert_unavailable(&refused("a lost renewal", answer), Effect::Unknown);
    assert_eq!(renew(&lossy.ann, &lease).await.expect("an answer"), Renewal::Renewed);
    assert_eq!(lossy.stage.state().await.holders[0].token, lease.token);
}

/// Whoever does not know whether it released may release again: it must free nobody else's lock.
#[tokio::test]
async fn a_release_whose_answer_is_lost_has_freed_the_lock_and_may_be_repeated() {
    // One that releases by a script, and one that has a command for it.
    for options in [Some(RedisOptions::new()), valkey().map(|valkey| RedisOptions::new().program(valkey))] {
        let Some(options) = options else { continue };
        let Some(lossy) = Lossy::with(options).await else { return };
        let ben = lossy.stage.client().await;
        let lease = granted(&lossy.ann, exclusive(Wait::No)).await;
        lossy.proxy.swallow_replies();
        let (answer, next) = tokio::join!(release(&lossy.ann, &lease), async {
            lossy.proxy.swallowed().await;
            let next = granted(&ben, exclusive(Wait::No)).await;
            lossy.proxy.mend();
            next
        });
        assert_unavailable(&refused("a lost release", answer), Effect::Unknown);
        assert_eq!(release(&lossy.ann, &lease).await.expect("an answer"), Release::NotHeld);
        assert_eq!(lossy.stage.state().await.holders[0].token, next.token, "the next one still has it");
    }
}

/// A withdrawal that was not repeated until it is answered could be lost with its answer.
#[tokio::test]
async fn a_withdrawal_whose_answer_is_lost_is_done_and_repeated() {
    let Some(lossy) = Lossy::new().await else { return };
    let ben = lossy.stage.client().await;
    let lease = granted(&ben, exclusive(Wait::No)).await;
    // Given up by its future's end, then by its request's.
    for abandons in [false, true] {
        let (wanted, abandoned) = abandonment();
        let ann = Arc::clone(&lossy.ann);
        let asked =
            tokio::spawn(async move { ann.acquire(exclusive(FOR_EVER).abandoned_by(abandoned)).await });
        lossy.stage.sees_waiters(1).await;
        lossy.proxy.swallow_replies();
        if abandons {
            drop(wanted);
        } else {
            asked.abort();
        }
        // The answer to the farewell, or to a question that was under way: then the farewell was lost as well.
        lossy.proxy.swallowed().await;
        lossy.proxy.mend();
        lossy.stage.sees_waiters(0).await;
        if abandons {
            let answer = within("the answer to who gave up", asked).await.expect("no panic");
            assert!(matches!(answer, Ok(Attempt::Busy(_))), "{answer:?}");
        }
        stays_empty(&lossy).await;
    }
    release(&ben, &lease).await.expect("an answer");
    assert!(lossy.stage.state().await.is_free(), "nobody is given a turn");
    let lease = granted(&lossy.ann, exclusive(Wait::No)).await;
    assert_eq!(release(&lossy.ann, &lease).await.expect("an answer"), Release::Released);
}

/// A farewell that did not arrive, and was not said again, would leave a place in line that is served for nobody.
#[tokio::test]
async fn a_farewell_that_is_lost_is_said_again() {
    let Some(lossy) = Lossy::new().await else { return };
    let ben = lossy.stage.client().await;
    let lease = granted(&ben, exclusive(Wait::No)).await;
    let (wanted, abandoned) = abandonment();
    let ann = Arc::clone(&lossy.ann);
    let asked = tokio::spawn(async move { ann.acquire(exclusive(FOR_EVER).abandoned_by(abandoned)).await });
    lossy.stage.sees_waiters(1).await;
    lossy.proxy.accept_and_be_silent();
    drop(wanted);
    lossy.proxy.swallowed().await;
    assert_eq!(lossy.stage.state().await.waiters.len(), 1, "the server knows of nothing");
    lossy.proxy.mend();
    let answer = within("the answer to who gave up", asked).await.expect("no panic");
    assert!(matches!(answer, Ok(Attempt::Busy(_))), "{answer:?}");
    lossy.stage.sees_waiters(0).await;
    release(&ben, &lease).await.expect("an answer");
    assert!(lossy.stage.state().await.is_free(), "nobody is given a turn");
}

/// Everything that was under way has been answered, and nobody stands in line.
async fn stays_empty(lossy: &Lossy) {
    let busy = within("an answer", lossy.ann.acquire(exclusive(Wait::No))).await;
    // The connection may have died under this very call.
    assert!(busy.as_ref().map_or_else(|error| error.kind() == ErrorKind::Unavailable, |_| true), "{busy:?}");
    assert_eq!(lossy.stage.state().await.waiters.len(), 0);
}
