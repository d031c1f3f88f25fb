//! What it costs to pass a lock on, and that nobody passes on what others have.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, HolderInfo, Lease, LockName, Mode,
    Release, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, Proxy};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::task::JoinSet;

/// A TTL that no test outlives.
const LONG: Duration = Duration::from_mins(1);

async fn connect(port: u16) -> Arc<ZooKeeperBackend> {
    let url = BackendUrl::parse(&format!("zookeeper://127.0.0.1:{port}")).expect("a lawful URL");
    let connected = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await;
    Arc::new(connected.expect("a server that serves"))
}

/// Waits for the lock as long as it takes.
async fn hold(client: Arc<ZooKeeperBackend>, name: LockName) -> Lease {
    let holder = HolderInfo::new("hand-over", "here", 1).expect("lawful words");
    let ttl = Ttl::new(LONG).expect("a lawful TTL");
    let wait = Wait::Until(BootInstant::MAX);
    match client.acquire(AcquireRequest::new(name, Mode::Exclusive, ttl, wait, holder)).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("who waits as long as it takes is granted it: {other:?}"),
    }
}

async fn release(client: &ZooKeeperBackend, lease: &Lease) {
    let released = client.release(std::slice::from_ref(&lease.key)).await;
    assert_eq!(released.expect("an answer"), [Release::Released], "{lease:?} is held");
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(3 * PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Waits until so many stand in line for it.
async fn stand(servers: &Ensemble, name: &LockName, count: usize) -> Vec<String> {
    let folder = format!("/ringfence/locks/{name}");
    within(&format!("{count} in line"), async {
        loop {
            let mut children = servers.children(&folder).await;
            if children.len() == count {
                // By their numbers, which are what their names end with.
                children.sort_by_key(|child| child[child.len() - 10..].to_owned());
                return children.into_iter().map(|child| format!("{folder}/{child}")).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

#[tokio::test]
async fn what_a_hand_over_reads_does_not_grow_with_the_line() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, bob) = (connect(servers.ports()[0]).await, connect(proxy.port()).await);
    let mut read = Vec::new();
    for count in [10, 1000] {
        let name: LockName = format!("line-of-{count}").parse().expect("a lawful name");
        let held = hold(Arc::clone(&ann), name.clone()).await;
        let mut line = JoinSet::new();
        for _ in 0..count {
            let (bob, name) = (Arc::clone(&bob), name.clone());
            line.spawn(async move {
                let lease = hold(Arc::clone(&bob), name).await;
                release(&bob, &lease).await;
            });
        }
        stand(&servers, &name, count + 1).await;
        // Its answer comes after those to whoever joined the line, which were lists of it.
        bob.inspect(&"another".parse().expect("a lawful name")).await.expect("a server that answers");
        let before = proxy.heard();
        release(&ann, &held).await;
        within("the end of a line", line.join_all()).await;
        read.push((proxy.heard() - before) / u64::try_from(count).expect("a small number"));
    }
    // A list of a thousand has forty kilobytes and more. Whoever waits for more than five seconds looks for the one before it.
    assert!(
        2 * read[1] < 3 * read[0] + 1000,
        "bytes read for a hand-over in lines of 10 and of 1,000: {read:?}"
    );
}

#[tokio::test]
async fn many_that_are_gone_at_once_are_not_looked_for_one_by_one() {
    const GONE: usize = 100;
    const DELAY: Duration = Duration::from_millis(50);
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, bob) = (connect(servers.ports()[0]).await, connect(proxy.port()).await);
    let name: LockName = "mass-death".parse().expect("a lawful name");
    let mut line = JoinSet::new();
    for _ in 0..GONE {
        line.spawn(hold(Arc::clone(&ann), name.clone()));
    }
    let dying = stand(&servers, &name, GONE).await;
    let last = tokio::spawn(hold(bob, name.clone()));
    stand(&servers, &name, GONE + 1).await;
    proxy.delay(DELAY);
    let clock = SystemClock::new();
    let since = clock.now();
    servers.end_session_of(&dying[0]).await;
    within("the turn of the one that is left", last).await.expect("no panic");
    let took = clock.now().saturating_since(since);
    // Of a hundred there and back it is seven seconds; it takes four there and back, and one way.
    assert!(took < 40 * DELAY, "{GONE} left at once, and who was behind them held after {took:?}");
}

#[tokio::test]
async fn a_waiter_whose_node_is_removed_stands_in_line_again() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob, cat) = {
        let port = servers.ports()[0];
        (connect(port).await, connect(port).await, connect(port).await)
    };
    let name: LockName = "removed".parse().expect("a lawful name");
    let held = hold(Arc::clone(&ann), name.clone()).await;
    let first = tokio::spawn(hold(Arc::clone(&bob), name.clone()));
    let places = stand(&servers, &name, 2).await;
    let second = tokio::spawn(hold(Arc::clone(&cat), name.clone()));
    stand(&servers, &name, 3).await;
    servers.delete(&places[1]).await;
    release(&ann, &held).await;
    // The second one is the first one now; neither holds what the other has.
    let lease = within("the turn of the second", second).await.expect("no panic");
    let standing = stand(&servers, &name, 2).await;
    assert!(standing[0].contains(&format!("{:016x}", lease.key.nonce.get())), "{standing:?}: {lease:?}");
    assert!(!first.is_finished(), "the lock is held");
    release(&cat, &lease).await;
    let last = within("the turn of the first", first).await.expect("no panic");
    assert!(last.token.sequence() > lease.token.sequence(), "{last:?} came after {lease:?}");
    stand(&servers, &name, 1).await;
}
