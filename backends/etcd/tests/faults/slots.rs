//! A client uses its keys of a name again, and nothing that is under way for the last one touches the next.

use std::time::Duration;

use ringfence_core::{Attempt, Backend, Effect, ErrorKind, Mode, Release, Renewal, Wait};
use ringfence_servers::{EtcdCluster, Proxy};

use crate::common::{LONG, client, granted, hold, release, renew, request, within};
use crate::line::FOR_EVER;
use crate::{LOCKS, NAME};

async fn keys(cluster: &EtcdCluster) -> Vec<String> {
    let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", LOCKS]).await;
    keys.lines().filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_is_taken_again_and_again_has_one_key() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&cluster.url()).await;
    let lease = hold(&ann, NAME, LONG).await;
    let first = keys(&cluster).await;
    assert_eq!(first.len(), 1, "{first:?}");
    let busy = ann.acquire(request(NAME, Mode::Exclusive, LONG, Wait::No)).await.unwrap();
    assert!(matches!(busy, Attempt::Busy(_)), "{busy:?}");
    release(&ann, &lease).await.unwrap();
    let mut last = lease.token;
    for wait in [Wait::No, FOR_EVER] {
        let lease = granted(&ann, request(NAME, Mode::Exclusive, LONG, wait)).await;
        assert_eq!(keys(&cluster).await, first);
        assert!(lease.token.sequence() > last.sequence());
        last = lease.token;
        release(&ann, &lease).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_arrives_late_takes_no_later_lease_with_it() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    // It gives back by the way that will be held up, and asks again by the other one.
    let url = format!("etcd://127.0.0.1:{},127.0.0.1:{}", proxy.port(), cluster.port(0));
    let ann = client(&url).await;
    let lease = hold(&ann, NAME, LONG).await;
    let first = keys(&cluster).await;
    proxy.cut();
    let error = release(&ann, &lease).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released);

    let next = hold(&ann, NAME, LONG).await;
    assert_ne!(keys(&cluster).await, first, "a deletion of that key is under way");
    // What was held up arrives now.
    proxy.mend();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(renew(&ann, &next).await.unwrap(), Renewal::Renewed);
    assert_eq!(keys(&cluster).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_of_one_that_was_ahead_is_soon_that_of_one_behind_and_holds_nobody_up() {
    const ROUNDS: usize = 100;
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let take_turns = |ann| {
        tokio::spawn(async move {
            for _ in 0..ROUNDS {
                let lease = granted(&ann, request(NAME, Mode::Exclusive, LONG, FOR_EVER)).await;
                release(&ann, &lease).await.unwrap();
            }
        })
    };
    let (ann, bob) = (client(&cluster.url()).await, client(&cluster.url()).await);
    let clients = [take_turns(ann), take_turns(bob)];
    // Whoever is held up waits for two seconds, until everybody looks where it stands.
    for client in clients {
        within("all of their turns", client).await.unwrap();
    }
    assert_eq!(keys(&cluster).await, [""; 0]);
}
