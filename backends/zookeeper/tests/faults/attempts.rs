//! What an attempt finds when it looks for itself, and what it does where the line has no number for it.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, Effect, ErrorKind, LockState, Mode, Release, Renewal, Retry, Wait};
use ringfence_servers::{Ensemble, Proxy, ZooKeeperOptions, curator};

use crate::{
    FOLDER, LONG, SHORT, connect, connect_over, for_ever, granted, hold, now, release, renew, request, sees,
    sees_waiters, within,
};

#[tokio::test]
async fn a_node_of_an_earlier_session_is_not_taken_for_that_of_an_attempt_whose_answer_was_lost() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, eye) = (connect_over(&proxy).await, connect(&servers.url()).await);
    // From now on there is a session of this TTL, and a container.
    let lease = hold(&ann).await;
    release(&ann, &lease).await;
    for arrives in [true, false] {
        let asked = request(Mode::Exclusive, LONG, Wait::No);
        // As it would stand there if this attempt had been made in another session before.
        let twin = format!("{FOLDER}/_c_{:016x}-lock-0000000999", asked.nonce.get());
        servers.create(&twin).await;
        if arrives {
            proxy.swallow_replies();
        } else {
            proxy.accept_and_be_silent();
        }
        let asking = tokio::spawn({
            let ann = Arc::clone(&ann);
            async move { ann.acquire(asked).await }
        });
        proxy.swallowed().await;
        proxy.mend();
        let attempt = within("what came of it", asking).await.expect("no panic");
        if arrives {
            let lease = granted(attempt);
            assert_eq!(release(&ann, &lease).await, Release::Released);
            servers.delete(&twin).await;
        } else {
            let error = attempt.expect_err("it never arrived, and the other one is not its own");
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
        }
        sees(&eye, "nothing of it", LockState::is_free).await;
    }
}

#[tokio::test]
async fn an_attempt_whose_answer_is_lost_looks_for_itself_no_longer_than_its_session_can_live() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, eye) = (connect_over(&proxy).await, connect(&servers.url()).await);
    let lease = granted(ann.acquire(request(Mode::Exclusive, SHORT, Wait::No)).await);
    release(&ann, &lease).await;
    proxy.swallow_replies();
    let asking = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { ann.acquire(request(Mode::Exclusive, SHORT, Wait::No)).await }
    });
    proxy.swallowed().await;
    proxy.cut();
    let cut = now();
    let error = within("an end", asking).await.expect("no panic").expect_err("nobody answers");
    let took = now().saturating_since(cut);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    assert!(took < 2 * SHORT + Duration::from_secs(3), "a session of {SHORT:?} was looked for for {took:?}");
    sees(&eye, "a lock whose session is over", LockState::is_free).await;
}

/// One that does not wait has no end of its own to wait for: two servers have the time to answer, and a withdrawal has its TTL.
#[tokio::test]
async fn one_that_does_not_wait_is_told_in_time_that_there_is_no_quorum() {
    let Some(servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let ann = connect(&servers.url()).await;
    let lease = granted(ann.acquire(request(Mode::Exclusive, SHORT, Wait::No)).await);
    release(&ann, &lease).await;
    let leader = servers.leader().await.expect("servers that serve have a leader");
    // The leader hangs up when it has not heard of the others for a while. Then it is silent as well.
    let followers = (0..3).filter(|server| *server != leader).collect();
    for silent in [followers, vec![leader]] {
        for server in silent {
            servers.stop(server);
        }
        for _ in 0..3 {
            let since = now();
            let attempt = within("an answer", ann.acquire(request(Mode::Exclusive, SHORT, Wait::No))).await;
            let took = now().saturating_since(since);
            let error = attempt.expect_err("nobody can agree to it");
            // Whatever the leader has heard it will do when the others are back, and it may be known of it then only.
            assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later), "{error:?}");
            assert!(took < 2 * SHORT + Duration::from_secs(3), "it was told after {took:?}: {error}");
        }
    }
}

#[tokio::test]
async fn a_line_without_numbers_is_full_until_its_node_is_removed() {
    let Some(mut servers) = Ensemble::start().await else { return };
    let Some(mut java) = curator() else { return };
    let ann = connect(&servers.url()).await;
    let first = hold(&ann).await;
    assert_eq!(release(&ann, &first).await, Release::Released);
    drop(ann);
    servers.kill(0);
    java.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/Numbers.java"));
    java.arg(servers.files(0)).args([FOLDER, &(i32::MAX - 1).to_string()]);
    let changed = java.output().expect("Java starts");
    assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
    servers.restart(0);
    servers.serves().await;

    let ann = connect(&servers.url()).await;
    let last = hold(&ann).await;
    assert!(servers.children(FOLDER).await[0].ends_with("-2147483646"), "the last number but one");
    assert_eq!(release(&ann, &last).await, Release::Released);
    for _ in 0..2 {
        let error =
            ann.acquire(request(Mode::Exclusive, LONG, Wait::No)).await.expect_err("no number is left");
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Full, Effect::None), "{error:?}");
        assert!(error.to_string().contains(FOLDER), "it says which node to remove: {error}");
    }
    sees(&ann, "nothing of those who were refused", LockState::is_free).await;
    servers.delete(FOLDER).await;
    let next = granted(ann.acquire(request(Mode::Exclusive, LONG, Wait::No)).await);
    assert!(next.token.sequence() > last.token.sequence(), "tokens do not begin again");
    let again = ann.acquire(request(Mode::Exclusive, LONG, Wait::No)).await;
    assert!(matches!(again, Ok(Attempt::Busy(_))), "{again:?}");
}

/// Rights to a node: all, all but to remove what is below it, and all but to read it.
const ALL: i32 = 31;
const ALL_BUT_TO_REMOVE: i32 = 23;
const ALL_BUT_TO_READ: i32 = 30;
const ALL_BUT_TO_WRITE: i32 = 29;

#[tokio::test]
async fn what_cannot_be_given_back_is_removed_as_soon_as_it_can_be() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(&servers.url()).await, connect(&servers.url()).await);
    let held = hold(&ann).await;
    servers.allow(FOLDER, ALL_BUT_TO_REMOVE).await;
    let error = ann.release(std::slice::from_ref(&held.key)).await.expect_err("it may not be removed");
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    servers.allow(FOLDER, ALL).await;
    // Its session and its connection live on, so nothing else removes the node.
    sees(&bob, "a lock that was given back", LockState::is_free).await;
}

#[tokio::test]
async fn a_lease_whose_node_cannot_be_looked_at_is_held_until_it_is_given_back() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, bob) = (connect_over(&proxy).await, connect(&servers.url()).await);
    let held = hold(&ann).await;
    let node = format!("{FOLDER}/{}", servers.children(FOLDER).await[0]);
    servers.allow(&node, ALL_BUT_TO_READ).await;
    // On the next connection it is watched anew, which is refused.
    proxy.cut_connections();
    for _ in 0..2 {
        assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
    }
    assert_eq!(release(&ann, &held).await, Release::Released);
    sees(&bob, "a lock that was given back", LockState::is_free).await;
}

#[tokio::test]
async fn who_may_not_write_into_its_node_any_more_gives_it_back_all_the_same() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(&servers.url()).await, connect(&servers.url()).await);
    let held = hold(&ann).await;
    let waiting = tokio::spawn({
        let bob = Arc::clone(&bob);
        async move { hold(&bob).await }
    });
    sees_waiters(&ann, 1).await;
    assert_eq!(release(&ann, &held).await, Release::Released);
    let held = within("his turn", waiting).await.expect("no panic");
    let node = format!("{FOLDER}/{}", servers.children(FOLDER).await[0]);
    servers.allow(&node, ALL_BUT_TO_WRITE).await;
    assert_eq!(release(&bob, &held).await, Release::Released);
    sees(&ann, "a lock that was given back", LockState::is_free).await;
}

#[tokio::test]
async fn a_withdrawal_that_is_refused_is_tried_again_until_it_is_not() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(&servers.url()).await, connect(&servers.url()).await);
    let held = hold(&bob).await;
    let waiting = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { ann.acquire(for_ever()).await }
    });
    sees_waiters(&bob, 1).await;
    servers.allow(FOLDER, ALL_BUT_TO_REMOVE).await;
    waiting.abort();
    // The withdrawal is refused at once, and nobody hears of it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    sees_waiters(&bob, 1).await;
    servers.allow(FOLDER, ALL).await;
    // Its session lives on, so nothing else removes the node.
    sees_waiters(&bob, 0).await;
    assert_eq!(release(&bob, &held).await, Release::Released);
}

/// On a network that is slow enough, whoever makes a container finds it removed again, which happens to empty ones, as often as it
/// tries. Counted tries would have it fail with hours left to wait.
#[tokio::test]
async fn a_waiter_whose_container_vanishes_again_and_again_goes_on() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let ann = connect_over(&proxy).await;
    proxy.delay(Duration::from_millis(400));
    let waiting = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { ann.acquire(for_ever()).await }
    });
    for _ in 0..6 {
        within("a container", async {
            while servers.children("/ringfence/locks").await.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        servers.delete(FOLDER).await;
    }
    granted(within("a grant", waiting).await.expect("no panic"));
}
