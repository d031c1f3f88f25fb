//! What the line does when those in it go away or sleep through their turn.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use ringfence_core::table::{CLAIM_WINDOW, WAITERS_MAX};
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, BoxFuture, ErrorKind, HolderInfo, Lease, LockName, Mode,
    Release, Result, Ttl, Wait,
};
use ringfence_memory::MemoryBackend;
use ringfence_testkit::ShiftedClock;

fn name() -> LockName {
    "orders/42".parse().unwrap()
}

fn ask(world: &MemoryBackend, wait: Wait) -> BoxFuture<'_, Result<Attempt>> {
    let holder = HolderInfo::new("test", "host", 1).unwrap();
    world.acquire(AcquireRequest::new(name(), Mode::Exclusive, Ttl::DEFAULT, wait, holder))
}

fn wait(world: &MemoryBackend) -> BoxFuture<'_, Result<Attempt>> {
    ask(world, Wait::Until(BootInstant::MAX))
}

fn lease(attempt: Result<Attempt>) -> Lease {
    match attempt.unwrap() {
        Attempt::Granted(lease) => lease,
        busy @ Attempt::Busy(_) => panic!("{busy:?}"),
    }
}

async fn is_ready(attempt: &mut BoxFuture<'_, Result<Attempt>>) -> bool {
    poll_fn(|context| Poll::Ready(Pin::new(&mut *attempt).poll(context).is_ready())).await
}

#[tokio::test]
async fn a_dropped_wait_gives_its_place_up() {
    let world = MemoryBackend::new(Arc::new(ShiftedClock::new()));
    let held = lease(wait(&world).await);
    let mut first = wait(&world);
    let mut second = wait(&world);
    assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
    drop(first);
    assert_eq!(world.inspect(&name()).await.unwrap().waiters.len(), 1);
    world.release(&[held.key]).await.unwrap();
    lease(second.await);
}

#[tokio::test]
async fn a_wait_that_is_dropped_with_its_turn_passes_it_on() {
    let world = MemoryBackend::new(Arc::new(ShiftedClock::new()));
    let held = lease(wait(&world).await);
    let mut first = wait(&world);
    let mut second = wait(&world);
    assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
    world.release(&[held.key]).await.unwrap();
    assert!(!is_ready(&mut second).await, "it is the first one's turn");
    drop(first);
    lease(second.await);
}

#[tokio::test]
async fn whoever_sleeps_through_its_turn_comes_last() {
    let clock = Arc::new(ShiftedClock::new());
    let world = MemoryBackend::new(Arc::clone(&clock) as _);
    let held = lease(wait(&world).await);
    let mut sleeps = wait(&world);
    let mut next = wait(&world);
    assert!(!is_ready(&mut sleeps).await && !is_ready(&mut next).await);
    world.release(&[held.key]).await.unwrap();
    clock.advance(CLAIM_WINDOW);
    // The next one looks when the offer should have been claimed.
    let held = lease(next.await);
    assert!(!is_ready(&mut sleeps).await);
    assert_eq!(world.release(&[held.key]).await.unwrap(), [Release::Released]);
    lease(sleeps.await);
}

#[tokio::test]
async fn a_line_has_an_end() {
    let world = MemoryBackend::new(Arc::new(ShiftedClock::new()));
    let _held = lease(wait(&world).await);
    let mut line = Vec::new();
    for _ in 0..WAITERS_MAX {
        let mut waits = wait(&world);
        assert!(!is_ready(&mut waits).await);
        line.push(waits);
    }
    let error = wait(&world).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(error.to_string().contains("orders/42"), "{error}");
    drop(line.pop());
    assert!(!is_ready(&mut wait(&world)).await, "one has gone, one is let in");
}
