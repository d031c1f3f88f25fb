//! Futures that are dropped at each of their await points.

use std::pin::pin;
use std::time::Duration;

use ringfence::{Guard, Locks};
use ringfence_core::{Attempt, Backend, Lease, Mode, Renewal, Wait};
use ringfence_redis::RedisBackend;
use ringfence_testkit::drop_after;

use crate::stage::{FOR_EVER, LONG, NAME, Stage, exclusive, granted, release, renew, request, within};

/// One that waits looks after its place every quarter of a second: within this it does everything that it does.
const A_WHILE: Duration = Duration::from_millis(600);

/// One who acquires: the backend itself, whose future withdraws, or the hall, whose task does.
trait Asks {
    type Held;

    async fn ask(&self) -> Self::Held;

    async fn give_back(&self, held: Self::Held);
}

impl Asks for RedisBackend {
    type Held = Lease;

    async fn ask(&self) -> Lease {
        match self.acquire(exclusive(FOR_EVER)).await {
            Ok(Attempt::Granted(lease)) => lease,
            // Its connection was killed in this very moment.
            other => panic!("it must be granted: {other:?}"),
        }
    }

    async fn give_back(&self, held: Lease) {
        release(self, &held).await.expect("an answer");
    }
}

impl Asks for Locks {
    type Held = Guard;

    async fn ask(&self) -> Guard {
        self.lock(NAME).ttl(LONG).acquire().await.expect("a lock")
    }

    async fn give_back(&self, held: Guard) {
        within("an answer", held.release()).await.expect("it holds");
    }
}

/// Without the withdrawal a lease would live until its TTL for somebody who has gone.
async fn an_attempt_that_is_dropped_leaves_nothing(stage: &Stage, client: &impl Asks, connects: bool) {
    for polls in 1.. {
        if connects {
            // Everybody's, also that of the one who looks on.
            stage.server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            stage.state().await;
        }
        let held = drop_after(polls, client.ask()).await;
        let Some(held) = held else {
            stage.sees_it_free().await;
            continue;
        };
        assert!(polls > 1, "it must have waited for something");
        client.give_back(held).await;
        return stage.sees_it_free().await;
    }
}

/// Without the withdrawal a place in line would be served for somebody who has gone.
async fn a_wait_that_is_dropped_leaves_nothing(stage: &Stage, client: &impl Asks) {
    let ben = stage.client().await;
    let lease = granted(&ben, exclusive(Wait::No)).await;
    for polls in 1.. {
        let asked = tokio::time::timeout(A_WHILE, drop_after(polls, client.ask())).await;
        let is_dropped = asked.as_ref().is_ok_and(Option::is_none);
        assert!(is_dropped || asked.is_err(), "somebody else has it");
        stage.sees_waiters(0).await;
        if !is_dropped {
            break;
        }
    }
    release(&ben, &lease).await.expect("an answer");
    stage.sees_it_free().await;
}

/// Without the withdrawal a turn would be over only when it lapses, and a turn that was claimed in this moment only at its TTL.
async fn a_turn_that_is_dropped_is_over(stage: &Stage, client: &impl Asks) {
    let ben = stage.client().await;
    for polls in 0.. {
        let lease = granted(&ben, exclusive(FOR_EVER)).await;
        let mut asking = pin!(client.ask());
        let in_line = async {
            stage.sees_waiters(1).await;
            release(&ben, &lease).await.expect("an answer");
        };
        let mut asking = tokio::select! {
            biased;
            () = in_line => Some(asking.as_mut()),
            _ = asking.as_mut() => None,
        };
        // It may have got it already, in the moment between the release and its answer.
        let Some(asking) = asking.take() else { continue };
        if let Some(held) = if polls == 0 { None } else { drop_after(polls, asking).await } {
            client.give_back(held).await;
            if polls > 1 {
                return stage.sees_it_free().await;
            }
        }
    }
}

#[tokio::test]
async fn an_attempt_that_is_dropped_while_it_connects_or_asks_leaves_nothing() {
    let Some(stage) = Stage::new().await else { return };
    for connects in [true, false] {
        an_attempt_that_is_dropped_leaves_nothing(&stage, &stage.client().await, connects).await;
        an_attempt_that_is_dropped_leaves_nothing(&stage, &stage.locks().await, connects).await;
    }
}

#[tokio::test]
async fn an_attempt_that_is_dropped_while_it_waits_leaves_nothing() {
    let Some(stage) = Stage::new().await else { return };
    a_wait_that_is_dropped_leaves_nothing(&stage, &stage.client().await).await;
    a_wait_that_is_dropped_leaves_nothing(&stage, &stage.locks().await).await;
}

#[tokio::test]
async fn an_attempt_that_is_dropped_as_its_turn_comes_leaves_nothing() {
    let Some(stage) = Stage::new().await else { return };
    a_turn_that_is_dropped_is_over(&stage, &stage.client().await).await;
    a_turn_that_is_dropped_is_over(&stage, &stage.locks().await).await;
}

/// Whoever stops waiting for a release has let go all the same; without it the others would wait for the TTL.
#[tokio::test]
async fn a_release_that_is_dropped_goes_on() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.locks().await;
    for polls in 0.. {
        let guard = ann.ask().await;
        let released = match polls {
            0 => {
                drop(guard.release());
                None
            }
            polls => drop_after(polls, guard.release()).await,
        };
        stage.sees_it_free().await;
        if let Some(released) = released {
            assert!(polls > 1, "it must have waited for something");
            return released.expect("it holds");
        }
    }
}

/// An answer that nobody waits for any more must not be taken for somebody else's, and costs nobody the connection.
#[tokio::test]
async fn a_renewal_that_is_dropped_harms_nobody() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let mut lease = granted(&ann, exclusive(Wait::No)).await;
    for polls in 1.. {
        let answer = drop_after(polls, ann.renew(std::slice::from_ref(&lease.key))).await;
        // The next answer on this connection is another one: it must be that of the next question.
        assert_eq!(renew(&ann, &lease).await.expect("an answer"), Renewal::Renewed);
        release(&ann, &lease).await.expect("an answer");
        assert_eq!(renew(&ann, &lease).await.expect("an answer"), Renewal::Lost);
        let others = granted(&ben, exclusive(Wait::No)).await;
        assert!(others.token.sequence() > lease.token.sequence(), "{lease:?}, then {others:?}");
        release(&ben, &others).await.expect("an answer");
        if answer.is_some() {
            assert!(polls > 1, "it must have waited for something");
            return;
        }
        lease = granted(&ann, exclusive(Wait::No)).await;
    }
}

/// One that is short ends no sooner for those that are long, and none is kept for longer than its own TTL.
#[tokio::test]
async fn each_withdrawal_is_remembered_for_its_own_ttl() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let withdrawn = format!("ringfence:{{{NAME}}}:x");
    let short = Duration::from_millis(300);
    for (ttl, count) in [(LONG, "1"), (short, "2")] {
        let asked = ann.acquire(request(Mode::Exclusive, ttl, FOR_EVER));
        assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err(), "it waits");
        within("the withdrawal", async {
            while stage.server.command(&["ZCARD", &withdrawn]).await != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    let left: u64 = stage.server.command(&["PTTL", &withdrawn]).await.parse().expect("a TTL");
    assert!(left > 50_000, "the long one is remembered for {left} ms more");
    tokio::time::sleep(short).await;
    let asked = ann.acquire(request(Mode::Exclusive, LONG, FOR_EVER));
    assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err(), "it waits");
    stage.sees_waiters(0).await;
    assert_eq!(stage.server.command(&["ZCARD", &withdrawn]).await, "2", "the short one is forgotten");
    release(&ben, &held).await.expect("an answer");
}

/// A lock is to leave nothing for longer than an hour, however long a lease of it might have been.
#[tokio::test]
async fn no_withdrawal_is_remembered_for_longer_than_the_lock() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ben, exclusive(Wait::No)).await;
    let withdrawn = format!("ringfence:{{{NAME}}}:x");
    let asked = ann.acquire(request(Mode::Exclusive, Duration::from_hours(23), FOR_EVER));
    assert!(tokio::time::timeout(Duration::from_millis(50), asked).await.is_err(), "it waits");
    within("the withdrawal", async {
        while stage.server.command(&["ZCARD", &withdrawn]).await != "1" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    release(&ben, &held).await.expect("an answer");
    for key in stage.server.command(&["KEYS", "*"]).await.lines() {
        let left: i64 = stage.server.command(&["PTTL", key]).await.parse().expect("a TTL");
        assert!((0..=3_600_000).contains(&left), "{key} is kept for {left} ms");
    }
}
