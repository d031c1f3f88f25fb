//! A server that is out of memory: it refuses, or it evicts.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, Effect, ErrorKind, LockState, Mode, Release, Renewal, Retry, Wait};

use tokio::task::JoinSet;

use crate::stage::{
    FOR_EVER, LONG, NAME, Stage, exclusive, granted, now, refused, release, renew, request, within,
};

impl Stage {
    /// From now on the server has as much memory as this: `1` is none, `0` is all there is.
    async fn memory(&self, bytes: &str) {
        self.server.command(&["CONFIG", "SET", "maxmemory", bytes]).await;
    }
}

/// Whoever is told that there is no memory must know that nothing was taken, and that it may try again.
#[tokio::test]
async fn without_memory_nothing_is_granted_and_the_error_says_why() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    stage.memory("1").await;
    for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(2).expect("a mode")] {
        for wait in [Wait::No, FOR_EVER] {
            let answer = within("an answer", ann.acquire(request(mode, LONG, wait))).await;
            let error = refused("a lock", answer);
            let said = (error.kind(), error.retry(), error.effect());
            assert_eq!(said, (ErrorKind::Full, Retry::Later, Effect::None), "{mode}: {error:?}");
            assert!(error.to_string().contains("out of memory"), "{error}");
        }
    }
    assert!(stage.state().await.is_free());
    stage.memory("0").await;
    granted(&ann, exclusive(Wait::No)).await;
}

/// What is held must be kept and given back, whatever else the server has no memory for: otherwise full memory would end
/// every lease, and nobody could let go.
#[tokio::test]
async fn without_memory_leases_are_renewed_and_released_and_handed_over() {
    for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(1).expect("a mode")] {
        let Some(stage) = Stage::new().await else { return };
        let (ann, ben) = (stage.client().await, stage.client().await);
        let held = granted(&ann, request(mode, LONG, Wait::No)).await;
        let waiting = granted(&ben, exclusive(FOR_EVER));
        let (next, ()) = tokio::join!(waiting, async {
            stage.sees_waiters(1).await;
            stage.memory("1").await;
            assert_eq!(renew(&ann, &held).await.expect("a renewal"), Renewal::Renewed, "{mode}");
            assert_eq!(release(&ann, &held).await.expect("a release"), Release::Released, "{mode}");
        });
        assert_eq!(renew(&ben, &next).await.expect("a renewal"), Renewal::Renewed, "{mode}");
        assert_eq!(release(&ben, &next).await.expect("a release"), Release::Released, "{mode}");
        stage.sees("a free lock", LockState::is_free).await;
    }
}

/// A waiter that gives up must be able to leave, or its place would be served for nobody.
#[tokio::test]
async fn without_memory_a_waiter_can_give_up() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    let waiting = tokio::spawn(async move { ben.acquire(exclusive(FOR_EVER)).await });
    stage.sees_waiters(1).await;
    stage.memory("1").await;
    waiting.abort();
    stage.sees_waiters(0).await;
    assert_eq!(release(&ann, &held).await.expect("a release"), Release::Released);
    assert!(stage.state().await.is_free());
}

/// One change that fails must not fail those that go with it.
#[tokio::test]
async fn without_memory_a_refused_acquire_does_not_hurt_the_releases_that_go_with_it() {
    let Some(stage) = Stage::new().await else { return };
    let ann = Arc::new(stage.client().await);
    let held = granted(&ann, exclusive(Wait::No)).await;
    stage.memory("1").await;
    let mut refusals = JoinSet::new();
    for _ in 0..8 {
        let ann = Arc::clone(&ann);
        refusals.spawn(async move { ann.acquire(exclusive(Wait::No)).await });
    }
    // They go first. Not all of them are under way at once, so some of them wait, and the release goes with those.
    tokio::task::yield_now().await;
    assert_eq!(release(&ann, &held).await.expect("a release"), Release::Released);
    for refusal in within("answers", refusals.join_all()).await {
        assert_eq!(refused("a lock", refusal).kind(), ErrorKind::Full);
    }
}

/// Whoever writes under our keys by mistake must be told, and keeps what it wrote.
#[tokio::test]
async fn a_key_that_holds_something_else_is_said_to_and_left_alone() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    let key = format!("ringfence:{{{NAME}}}");
    stage.server.command(&["RPUSH", &key, "theirs"]).await;
    let error = refused("a lock", ann.acquire(exclusive(Wait::No)).await);
    let said = (error.kind(), error.retry(), error.effect());
    assert_eq!(said, (ErrorKind::Corrupt, Retry::Never, Effect::None), "{error:?}");
    assert_eq!(stage.server.command(&["LRANGE", &key, "0", "-1"]).await, "theirs");
}

/// An evicted lock is free for the next one. Its holder would go on beside it for as long as nobody asks.
#[tokio::test]
async fn an_evicted_lock_is_lost_and_its_holder_learns_it_by_the_next_renewal() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.locks().await, stage.locks().await);
    let ttl = Duration::from_secs(3);
    let first = ann.lock(NAME).ttl(ttl).acquire().await.expect("a free lock");
    stage.server.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    stage.memory("1").await;
    // Whatever it is asked next, it evicts first.
    assert_eq!(stage.server.command(&["DBSIZE"]).await, "0", "everything was evicted");
    stage.memory("0").await;
    let second = ben.lock(NAME).ttl(LONG).acquire().await.expect("a lock that is free again");
    assert!(second.token().sequence() > first.token().sequence(), "{first:?}, then {second:?}");
    within("the loss", first.lost()).await;
    assert!(second.is_held());
    let error = within("an answer", first.release()).await.expect_err("it is lost");
    assert_eq!(error.kind(), ErrorKind::Lost);
}

/// What is missing of a lock must neither wedge it nor let somebody in beside a holder who was told that it holds.
#[tokio::test]
async fn a_lock_of_which_a_part_is_evicted_goes_on() {
    let mut runs = JoinSet::new();
    for part in ["h", "s", "l", "t", "q", "w", ""] {
        for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(1).expect("a mode")] {
            runs.spawn(a_part_is_evicted(part, mode));
        }
    }
    within("all of them", runs.join_all()).await;
}

async fn a_part_is_evicted(part: &str, mode: Mode) {
    let Some(stage) = Stage::new().await else { return };
    let case = format!("{mode}, without {part:?}");
    let (ann, ben, cat) = (stage.client().await, stage.client().await, stage.client().await);
    let ttl = Duration::from_secs(4);
    let held = granted(&ann, request(mode, ttl, Wait::No)).await;
    let waits = async { (granted(&ben, exclusive(FOR_EVER)).await, now()) };
    let ((next, granted_at), (renewed_at, renewal)) = tokio::join!(waits, async {
        stage.sees_waiters(1).await;
        let lock = format!("ringfence:{{{NAME}}}");
        let key = if part.is_empty() { lock } else { format!("{lock}:{part}") };
        stage.server.command(&["DEL", &key]).await;
        let asked = now();
        let renewal = renew(&ann, &held).await.unwrap_or_else(|error| panic!("{case}: {error:?}"));
        let tried = within("an answer", cat.acquire(exclusive(Wait::No))).await;
        assert!(matches!(tried, Ok(Attempt::Busy(_))), "{case}: {tried:?}");
        (asked, renewal)
    });
    let says_who_holds = if mode == Mode::Exclusive { "" } else { "h" };
    let expected = if part.is_empty() || part == says_who_holds { Renewal::Lost } else { Renewal::Renewed };
    assert_eq!(renewal, expected, "{case}");
    let overlap = renewed_at.saturating_add(ttl).saturating_since(granted_at);
    assert!(renewal == Renewal::Lost || overlap.is_zero(), "{case}: two held for {overlap:?}");
    assert!(next.token.sequence() > held.token.sequence(), "{case}: {held:?}, then {next:?}");
    assert_eq!(release(&ben, &next).await.expect("an answer"), Release::Released, "{case}");
    stage.sees_it_free().await;
}

/// What says until when they hold is evicted before they give back: without this the next one waits for the longest TTL of any
/// holder that there was, and holders may come and go for a day.
#[tokio::test]
async fn a_shared_lock_is_free_after_its_last_holder_though_a_part_was_evicted() {
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    for mode in [Mode::Shared, Mode::permit(2).expect("a mode")] {
        let one = granted(&ann, request(mode, LONG, Wait::No)).await;
        let two = granted(&ben, request(mode, LONG, Wait::No)).await;
        stage.server.command(&["DEL", &format!("ringfence:{{{NAME}}}:s")]).await;
        assert_eq!(release(&ann, &one).await.expect("an answer"), Release::Released, "{mode}");
        let tried = within("an answer", ann.acquire(exclusive(Wait::No))).await;
        assert!(matches!(tried, Ok(Attempt::Busy(_))), "{mode}: one holds still: {tried:?}");
        assert_eq!(release(&ben, &two).await.expect("an answer"), Release::Released, "{mode}");
        let next = granted(&ann, exclusive(Wait::No)).await;
        assert_eq!(release(&ann, &next).await.expect("an answer"), Release::Released, "{mode}");
    }
}
