//! Who waits for a permit hears of it, although the line has changed between its coming and its look.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, BootInstant, Lease, Mode, Release, Wait};
use ringfence_servers::{Ensemble, Proxy};
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::task::JoinHandle;

use crate::{LONG, NET, connect, connect_over, granted, now, release, request, sees_waiters, within};

/// So much later what one of them asks arrives, each way.
const LATE: Duration = Duration::from_millis(300);

type Asking = JoinHandle<ringfence_core::Result<Attempt>>;

/// Stands in line for one of two permits.
fn begin(client: &Arc<ZooKeeperBackend>) -> Asking {
    let client = Arc::clone(client);
    let mode = Mode::permit(2).expect("two permits");
    tokio::spawn(async move { client.acquire(request(mode, LONG, Wait::Until(BootInstant::MAX))).await })
}

async fn turn(asking: Asking) -> Lease {
    granted(within("a turn", asking).await.expect("no panic"))
}

/// One that holds both permits, and one whose network is slow, in a session that it has.
async fn stage(servers: &Ensemble) -> (Arc<ZooKeeperBackend>, [Lease; 2], Arc<ZooKeeperBackend>, Proxy) {
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, slow) = (connect(&servers.url()).await, connect_over(&proxy).await);
    let warm = turn(begin(&slow)).await;
    assert_eq!(release(&slow, &warm).await, Release::Released);
    let held = [turn(begin(&ann)).await, turn(begin(&ann)).await];
    proxy.delay(LATE);
    (ann, held, slow, proxy)
}

/// The last permit is given back: whoever waits for it has to have it before it would look whatever happens.
async fn is_had_at_once(holder: &ZooKeeperBackend, last: &Lease, waiting: Asking) {
    let released = now();
    assert_eq!(release(holder, last).await, Release::Released);
    turn(waiting).await;
    let took = now().saturating_since(released);
    assert!(took < NET / 2, "it hears of it, and does not have to look: {took:?}");
}

#[tokio::test]
async fn who_stands_behind_one_that_found_a_permit_at_its_second_look_is_told_that_it_holds() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, [first, last], slow, _network) = stage(&servers).await;
    let looking = begin(&slow);
    sees_waiters(&ann, 1).await;
    // It knows of both holders, and its second look is on its way.
    let waiting = begin(&ann);
    sees_waiters(&ann, 2).await;
    assert_eq!(release(&ann, &first).await, Release::Released);
    turn(looking).await;
    is_had_at_once(&ann, &last, waiting).await;
}

#[tokio::test]
async fn who_finds_that_the_one_before_it_holds_by_now_hears_of_the_next_permit() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, [first, last], slow, _network) = stage(&servers).await;
    let before = begin(&ann);
    sees_waiters(&ann, 1).await;
    let waiting = begin(&slow);
    sees_waiters(&ann, 2).await;
    // It knows that one as a waiter, and its look at it is on its way.
    assert_eq!(release(&ann, &first).await, Release::Released);
    turn(before).await;
    tokio::time::sleep(4 * LATE).await;
    is_had_at_once(&ann, &last, waiting).await;
}
