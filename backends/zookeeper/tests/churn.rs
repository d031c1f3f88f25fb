//! A long line in which many come, go and give up is passed on in its order.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Clock, HolderInfo, LockName, Mode, SystemClock, Ttl, Wait,
};
use ringfence_servers::ZooKeeperOptions;
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::task::JoinSet;

/// How many clients there are, and how many of each want the lock at a time: more than a line needs to be long.
const CLIENTS: usize = 6;
const EACH: usize = 12;

/// How often the lock is had alone.
const GRANTS: usize = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_line_is_passed_on_in_its_order_whoever_comes_and_goes() {
    let Some(servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let name: LockName = "churn".parse().expect("a lawful name");
    // Who wants to wait for a few milliseconds has no time to make it.
    servers
        .create_all(["", "/locks", "/locks/churn"].map(|below| format!("/ringfence{below}")).to_vec())
        .await;
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let url = format!("zookeeper://127.0.0.1:{}", servers.ports()[client % 3]);
        let url = BackendUrl::parse(&url).expect("a lawful URL");
        let backend = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await;
        let backend = Arc::new(backend.expect("servers that serve"));
        for one in 0..EACH {
            clients.spawn(want(Arc::clone(&backend), name.clone(), Arc::clone(&tokens), client * EACH + one));
        }
    }
    let all = tokio::time::timeout(6 * PATIENCE, clients.join_all()).await;
    let tokens = tokens.lock().expect("no panic").clone();
    all.unwrap_or_else(|_| panic!("the lock was had {} times of {GRANTS} only", tokens.len()));
    assert!(tokens.is_sorted_by(|one, next| one < next), "tokens in the order of their grants: {tokens:?}");
}

/// Wants the lock again and again, in one way or another.
async fn want(client: Arc<ZooKeeperBackend>, name: LockName, tokens: Arc<Mutex<Vec<u64>>>, who: usize) {
    let clock = SystemClock::new();
    let ttl = Ttl::new(Duration::from_secs(20)).expect("a lawful TTL");
    for round in 0.. {
        if tokens.lock().expect("no panic").len() >= GRANTS {
            return;
        }
        let holder = HolderInfo::new("churn", "here", 1).expect("lawful words");
        // Some share, some give up soon, and some go away without a word.
        let chance = (who * 7919 + round * 104_729) % 100;
        let mode = if chance < 10 { Mode::Shared } else { Mode::Exclusive };
        let waits =
            Duration::from_millis(if chance.is_multiple_of(4) { 20 + 3 * chance as u64 } else { 60_000 });
        let patience =
            Duration::from_millis(if chance.is_multiple_of(7) { 15 + 2 * chance as u64 } else { 60_000 });
        let wait = Wait::Until(clock.now().saturating_add(waits));
        let asked = client.acquire(AcquireRequest::new(name.clone(), mode, ttl, wait, holder));
        let lease = match tokio::time::timeout(patience, asked).await {
            Ok(Ok(Attempt::Granted(lease))) => lease,
            Ok(Ok(Attempt::Busy(_))) | Err(_) => continue,
            Ok(other) => panic!("one that waits is granted it or gives up: {other:?}"),
        };
        if mode == Mode::Exclusive {
            tokens.lock().expect("no panic").push(lease.token.sequence());
        }
        let released = client.release(std::slice::from_ref(&lease.key)).await;
        released.expect("an answer");
    }
}
