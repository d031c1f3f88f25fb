//! The waiting room: N tasks of a process are one waiter, hand-overs cost no round trip and have an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringfence::{ErrorKind, FencingToken, Locks};

use crate::stage::{
    Call, Fate, Gate, Stage, eventually, free, in_line, millis, on_stage, poll_and_drop, soon, staged,
};

const NAME: &str = "orders/42";

fn staged_with(handovers: u8, time: std::time::Duration) -> (Locks, Arc<Stage>) {
    on_stage(Locks::builder().handovers(handovers).handover_time(time))
}

/// Starts tasks that each take the lock once, and waits until each has its seat.
async fn crowd(locks: &Locks, size: usize) -> Vec<tokio::task::JoinHandle<FencingToken>> {
    let mut tasks = Vec::new();
    for _ in 0..size {
        let locks = locks.clone();
        tasks.push(tokio::spawn(async move {
            let guard = locks.lock(NAME).acquire().await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        }));
        // On a runtime of one thread the task takes its seat when this one yields.
        tokio::task::yield_now().await;
    }
    tasks
}

async fn tokens(tasks: Vec<tokio::task::JoinHandle<FencingToken>>) -> Vec<FencingToken> {
    let mut tokens = Vec::new();
    for task in tasks {
        tokens.push(soon(task).await.unwrap());
    }
    tokens
}

#[tokio::test]
async fn many_tasks_are_one_waiter() {
    let (locks, stage) = staged();
    let other = locks.lock(NAME).label("another process").acquire().await.unwrap();
    let tasks = crowd(&locks, 50).await;
    in_line(&locks, NAME, 1).await;
    assert_eq!(stage.calls(Call::Acquire), 2, "one for the holder, one for all who wait");
    other.release().await.unwrap();
    tokens(tasks).await;
    free(&locks, NAME).await;
}

#[tokio::test]
async fn a_handover_costs_no_call_and_has_a_token_of_its_own() {
    let (locks, stage) = staged_with(255, std::time::Duration::MAX);
    let first = locks.lock(NAME).acquire().await.unwrap();
    let token = first.token();
    let tasks = crowd(&locks, 20).await;
    first.release().await.unwrap();
    let tokens = tokens(tasks).await;
    let expected: Vec<u64> = (1..=20).map(|handover| token.sequence() + handover).collect();
    assert_eq!(
        tokens.iter().map(|token| token.sequence()).collect::<Vec<_>>(),
        expected,
        "in the order of arrival"
    );
    assert!(tokens.iter().all(|other| other.grant() == token.grant() && other.nonce() == token.nonce()));
    free(&locks, NAME).await;
    assert_eq!((stage.calls(Call::Acquire), stage.calls(Call::Release)), (1, 1));
}

#[tokio::test]
async fn records_refuse_the_token_of_the_task_before() {
    let (locks, _stage) = staged_with(255, std::time::Duration::MAX);
    let first = locks.lock(NAME).acquire().await.unwrap();
    let stale = first.token();
    let second = tokio::spawn(locks.lock(NAME).acquire());
    tokio::task::yield_now().await;
    first.release().await.unwrap();
    let second = soon(second).await.unwrap().unwrap();
    let record = locks.record(NAME).unwrap();
    record.open(second.token()).await.unwrap();
    assert_eq!(record.write(stale, "late").await.unwrap_err().kind(), ErrorKind::Stale);
    record.write(second.token(), "mine").await.unwrap();
}

#[tokio::test]
async fn handovers_have_an_end_and_the_others_their_turn() {
    let (locks, stage) = staged_with(3, std::time::Duration::MAX);
    let first = locks.lock(NAME).acquire().await.unwrap();
    let tasks = crowd(&locks, 9).await;
    // Another process, which came after all of ours.
    let other = tokio::spawn(locks.lock(NAME).label("another process").acquire());
    in_line(&locks, NAME, 1).await;
    first.release().await.unwrap();
    let other = soon(other).await.unwrap().unwrap();
    let served = tasks.iter().filter(|task| task.is_finished()).count();
    assert!(served <= 3, "{served} of ours came before the one who waited");
    other.release().await.unwrap();
    let tokens = tokens(tasks).await;
    assert!(tokens.is_sorted_by_key(|token| token.sequence()), "{tokens:?}");
    let grants: std::collections::BTreeSet<u64> = tokens.iter().map(|token| token.grant()).collect();
    assert_eq!(grants.len(), 3, "3 under the first grant, then 1 + 3 and 1 + 1 under their own: {tokens:?}");
    eventually(async || stage.calls(Call::Release) == 4).await;
}

#[tokio::test]
async fn no_handovers_means_none() {
    for (handovers, time) in [(0, std::time::Duration::MAX), (64, std::time::Duration::ZERO)] {
        let (locks, stage) = staged_with(handovers, time);
        let first = locks.lock(NAME).acquire().await.unwrap();
        let tasks = crowd(&locks, 5).await;
        first.release().await.unwrap();
        let tokens = tokens(tasks).await;
        assert!(tokens.is_sorted_by(|a, b| a.grant() < b.grant()), "each has a grant of its own: {tokens:?}");
        assert_eq!(stage.calls(Call::Acquire), 6);
    }
}

#[tokio::test]
async fn a_lease_past_half_its_ttl_is_not_handed_on() {
    let (locks, stage) = staged_with(255, std::time::Duration::MAX);
    stage.always(Call::Renew, Fate::Unreachable);
    let first = locks.lock(NAME).ttl(millis(4000)).acquire().await.unwrap();
    let grant = first.token().grant();
    let second = tokio::spawn(locks.lock(NAME).ttl(millis(4000)).acquire());
    tokio::task::yield_now().await;
    tokio::time::sleep(millis(2050)).await;
    first.release().await.unwrap();
    assert!(soon(second).await.unwrap().unwrap().token().grant() > grant, "a fresh grant");
}

#[tokio::test]
async fn a_try_does_not_ask_where_this_process_holds_or_waits() {
    let (locks, stage) = staged();
    let held = locks.lock(NAME).acquire().await.unwrap();
    assert!(locks.lock(NAME).try_acquire().await.unwrap().is_none());
    assert_eq!(stage.calls(Call::Acquire), 1);
    held.release().await.unwrap();
    assert!(locks.lock(NAME).try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn a_try_asks_where_others_hold() {
    let (locks, stage) = staged();
    let _held = locks.lock(NAME).label("another").acquire().await.unwrap();
    assert!(locks.lock(NAME).try_acquire().await.unwrap().is_none());
    assert_eq!(stage.calls(Call::Acquire), 2);
    assert_eq!(locks.inspect(NAME).await.unwrap().waiters, []);
}

#[tokio::test]
async fn whoever_waits_behind_a_try_is_served() {
    let (locks, stage) = staged();
    let held = locks.lock(NAME).label("another").acquire().await.unwrap();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::held_back(&gate)]);
    let tries = tokio::spawn(locks.lock(NAME).try_acquire());
    gate.somebody_is_there().await;
    let waits = tokio::spawn(locks.lock(NAME).acquire());
    tokio::task::yield_now().await;
    gate.open();
    assert!(soon(tries).await.unwrap().unwrap().is_none());
    in_line(&locks, NAME, 1).await;
    held.release().await.unwrap();
    soon(waits).await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test]
async fn an_error_is_for_the_first_and_the_next_tries_on_its_own() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::Unreachable.after(&gate)]);
    let first = tokio::spawn(locks.lock(NAME).acquire());
    gate.somebody_is_there().await;
    let others = crowd(&locks, 3).await;
    gate.open();
    assert_eq!(soon(first).await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(tokens(others).await.len(), 3);
    assert_eq!(stage.calls(Call::Acquire), 2);
}

#[tokio::test]
async fn a_grant_whose_asker_has_gone_is_the_next_ones() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::ReplyHeldBack(gate.clone())]);
    let first = tokio::spawn(locks.lock(NAME).acquire());
    gate.somebody_is_there().await;
    let others = crowd(&locks, 2).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.open();
    let tokens = tokens(others).await;
    assert_eq!(tokens[0].sequence() & 0xff, 0, "nobody has seen the first token of the grant: {tokens:?}");
    assert_eq!(stage.calls(Call::Acquire), 1);
}

#[tokio::test]
async fn a_backend_that_panics_is_an_error_for_all_who_wait_and_no_hang() {
    let (locks, stage) = staged();
    let gate = Gate::new();
    stage.next(Call::Acquire, [Fate::Panics.after(&gate)]);
    let first = tokio::spawn(locks.lock(NAME).acquire());
    gate.somebody_is_there().await;
    let second = tokio::spawn(locks.lock(NAME).acquire());
    tokio::task::yield_now().await;
    gate.open();
    for waits in [first, second] {
        let error = soon(waits).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug, "{error}");
    }
    drop(soon(locks.lock(NAME).acquire()).await.unwrap());
}

#[tokio::test]
async fn requests_that_differ_do_not_share_a_lease() {
    let (locks, _stage) = staged();
    let first = locks.lock(NAME).ttl(millis(5000)).acquire().await.unwrap();
    let longer = tokio::spawn(locks.lock(NAME).ttl(millis(9000)).acquire());
    in_line(&locks, NAME, 1).await;
    first.release().await.unwrap();
    assert_eq!(soon(longer).await.unwrap().unwrap().ttl().as_duration(), millis(9000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_contention_one_holds_at_a_time_and_tokens_rise() {
    let (locks, _stage) = staged();
    let inside = Arc::new(AtomicUsize::new(0));
    let last = Arc::new(std::sync::Mutex::new(0_u64));
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let (locks, inside, last) = (locks.clone(), Arc::clone(&inside), Arc::clone(&last));
            tokio::spawn(async move {
                for _ in 0..500 {
                    let guard = locks.lock(NAME).acquire().await.unwrap();
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold it");
                    let before = std::mem::replace(&mut *last.lock().unwrap(), guard.token().sequence());
                    assert!(before < guard.token().sequence());
                    inside.fetch_sub(1, Ordering::SeqCst);
                    if guard.token().sequence() % 3 == 0 {
                        drop(guard);
                    } else {
                        guard.release().await.unwrap();
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
    free(&locks, NAME).await;
}

#[tokio::test]
async fn a_dropped_guard_is_handed_on_too() {
    let (locks, stage) = staged();
    let first = locks.lock(NAME).acquire().await.unwrap();
    let token = first.token();
    let tasks = crowd(&locks, 3).await;
    drop(first);
    assert_eq!(tokens(tasks).await[0].sequence(), token.sequence() + 1);
    free(&locks, NAME).await;
    assert_eq!((stage.calls(Call::Acquire), stage.calls(Call::Release)), (1, 1));
}

#[tokio::test]
async fn a_lease_past_its_holders_max_hold_is_not_handed_on() {
    let (locks, _stage) = staged();
    let hangs = locks.lock(NAME).max_hold(millis(1)).acquire().await.unwrap();
    let grant = hangs.token().grant();
    let next = tokio::spawn(locks.lock(NAME).acquire());
    tokio::task::yield_now().await;
    tokio::time::sleep(millis(5)).await;
    hangs.release().await.unwrap();
    assert!(soon(next).await.unwrap().unwrap().token().grant() > grant, "a lease that is renewed");
}

#[tokio::test]
async fn an_uncontended_pair_spawns_nothing() {
    let (locks, _stage) = staged();
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = metrics.num_alive_tasks();
    for _ in 0..10 {
        let guard = poll_and_drop(locks.lock(NAME).acquire(), 1, 0).await.expect("ready at once").unwrap();
        assert_eq!(metrics.num_alive_tasks(), before);
        poll_and_drop(guard.release(), 1, 0).await.expect("ready at once").unwrap();
        assert_eq!(metrics.num_alive_tasks(), before);
    }
}
