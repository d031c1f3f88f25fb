//! What a process asks at the same time shares replicated writes, and nobody pays for a neighbour.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, HolderInfo, Lease, LockName, Mode, Release,
    SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, Proxy};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::task::JoinSet;

/// As many as go together, and some more.
const MANY: usize = 100;

/// How long an answer takes, so that it can be lost on its way.
const UNDER_WAY: Duration = Duration::from_secs(1);

async fn connect(port: u16) -> Arc<ZooKeeperBackend> {
    let url = BackendUrl::parse(&format!("zookeeper://127.0.0.1:{port}")).expect("a lawful URL");
    let connected = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await;
    Arc::new(connected.expect("a server that serves"))
}

fn name(number: usize) -> LockName {
    format!("lock-{number}").parse().expect("a lawful name")
}

fn request(name: LockName, mode: Mode) -> AcquireRequest {
    let holder = HolderInfo::new("together", "here", 1).expect("lawful words");
    // The longest that is granted by default: the session that is there for everything else too.
    let ttl = Ttl::new(Duration::from_mins(1)).expect("a lawful TTL");
    AcquireRequest::new(name, mode, ttl, Wait::Until(BootInstant::MAX), holder)
}

fn granted(attempt: ringfence_core::Result<Attempt>) -> Lease {
    match attempt {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("whoever asks is granted it: {other:?}"),
    }
}

/// All of these, asked for at the same time.
async fn hold_all(
    client: &Arc<ZooKeeperBackend>,
    requests: impl IntoIterator<Item = AcquireRequest>,
) -> Vec<Lease> {
    let mut asking = JoinSet::new();
    for request in requests {
        let client = Arc::clone(client);
        asking.spawn(async move { granted(client.acquire(request).await) });
    }
    within("all grants", asking.join_all()).await
}

async fn release_all(client: &Arc<ZooKeeperBackend>, leases: Vec<Lease>) {
    let mut releasing = JoinSet::new();
    for lease in leases {
        let client = Arc::clone(client);
        releasing.spawn(async move {
            let released = client.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
            assert_eq!(released, [Release::Released], "{lease:?} was held");
        });
    }
    within("all releases", releasing.join_all()).await;
}

/// Holds and releases each once, so that there are nodes for all.
async fn begin(client: &Arc<ZooKeeperBackend>) {
    let leases = hold_all(client, (0..MANY).map(|number| request(name(number), Mode::Exclusive))).await;
    release_all(client, leases).await;
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(3 * PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

async fn children(servers: &Ensemble, number: usize) -> usize {
    servers.children(&format!("/ringfence/locks/{}", name(number))).await.len()
}

#[tokio::test]
async fn those_who_ask_for_one_name_together_have_tokens_of_their_own() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(servers.ports()[0]).await;
    begin(&client).await;
    let leases = hold_all(&client, (0..MANY).map(|number| request(name(number % 3), Mode::Shared))).await;
    let tokens: HashSet<_> =
        leases.iter().map(|lease| (lease.key.name.clone(), lease.token.sequence())).collect();
    assert_eq!(tokens.len(), MANY, "no two grants of one name have one number: {leases:?}");
    release_all(&client, leases).await;
}

#[tokio::test]
async fn who_goes_with_others_is_told_its_own_token() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(servers.ports()[0]).await;
    begin(&client).await;
    let leases = hold_all(&client, (0..MANY).map(|number| request(name(number), Mode::Exclusive))).await;
    for lease in &leases {
        let state = client.inspect(&lease.key.name).await.expect("a server that answers");
        let tokens: Vec<_> = state.holders.iter().map(|holder| holder.token).collect();
        assert_eq!(tokens, [lease.token], "its node says which transaction made it: {lease:?}");
    }
    release_all(&client, leases).await;
}

#[tokio::test]
async fn a_node_that_vanished_is_the_matter_of_those_who_want_it() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(servers.ports()[0]).await;
    begin(&client).await;
    for number in [7, 50] {
        servers.delete(&format!("/ringfence/locks/{}", name(number))).await;
    }
    let leases = hold_all(&client, (0..MANY).map(|number| request(name(number), Mode::Exclusive))).await;
    // One that is given back has been removed by somebody.
    servers
        .delete(&format!("/ringfence/locks/{}/{}", name(30), {
            servers.children(&format!("/ringfence/locks/{}", name(30))).await.remove(0)
        }))
        .await;
    let mut releasing = JoinSet::new();
    for lease in leases {
        let client = Arc::clone(&client);
        releasing.spawn(async move {
            let released = client.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
            let expected = if lease.key.name == name(30) { Release::NotHeld } else { Release::Released };
            assert_eq!(released, [expected], "{lease:?}");
        });
    }
    within("all releases", releasing.join_all()).await;
    for number in 0..MANY {
        assert_eq!(children(&servers, number).await, 0, "nothing is left of {}", name(number));
    }
}

#[tokio::test]
async fn answers_that_are_lost_together_are_found_one_by_one() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let client = connect(proxy.port()).await;
    begin(&client).await;
    // The first two go alone, and when they are answered the others go in two batches, in their order.
    proxy.delay(UNDER_WAY);
    let asking = tokio::spawn({
        let client = Arc::clone(&client);
        async move { hold_all(&client, (0..MANY).map(|number| request(name(number), Mode::Exclusive))).await }
    });
    for number in [MANY / 2, MANY - 1] {
        within(&format!("the node of {}", name(number)), async {
            while children(&servers, number).await == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
    proxy.swallow_replies();
    proxy.delay(Duration::ZERO);
    proxy.swallowed().await;
    proxy.mend();
    let leases = asking.await.expect("no panic");
    for number in 0..MANY {
        assert_eq!(children(&servers, number).await, 1, "{} was asked for once", name(number));
    }
    release_all(&client, leases).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_away_takes_nobody_along_and_leaves_nothing() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(servers.ports()[0]).await;
    begin(&client).await;
    for polls in 1..=4 {
        let mut leaving: Vec<_> =
            (0..MANY / 2).map(|number| client.acquire(request(name(number), Mode::Exclusive))).collect();
        let (mut leases, mut staying) = (Vec::new(), JoinSet::new());
        for poll in 0..polls {
            // Some may be granted it before they go away.
            leaving.retain_mut(|future| {
                match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(attempt) => {
                        leases.push(granted(attempt));
                        false
                    }
                    Poll::Pending => true,
                }
            });
            if poll == 0 {
                for number in MANY / 2..MANY {
                    let client = Arc::clone(&client);
                    let request = request(name(number), Mode::Exclusive);
                    staying.spawn(async move { granted(client.acquire(request).await) });
                }
            }
            tokio::task::yield_now().await;
        }
        drop(leaving);
        leases.extend(within("those who stay", staying.join_all()).await);
        let mut releasing: Vec<_> =
            leases.iter().map(|lease| client.release(std::slice::from_ref(&lease.key))).collect();
        for future in &mut releasing {
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
        drop(releasing);
        for number in 0..MANY {
            within(&format!("nothing of {} after {polls} polls", name(number)), async {
                while children(&servers, number).await > 0 {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
            .await;
        }
    }
}
