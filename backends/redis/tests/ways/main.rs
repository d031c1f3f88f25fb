//! The ways to a server: by TLS, by asking Sentinels, by the slots of a cluster; and what its replicas confirm.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Effect, Error, ErrorKind, HolderInfo, Lease, LockName,
    Mode, RecordKey, Release, Renewal, Result, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisServer, Sentinels};
use ringfence_testkit::PATIENCE;

mod cluster;
mod replicas;
mod sentinel;
mod tls;

async fn connect(url: &str) -> Result<RedisBackend> {
    RedisBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

/// The error of a URL that leads nowhere, which comes in time.
async fn refusal(url: &str) -> Error {
    let refused = tokio::time::timeout(PATIENCE, connect(url)).await.expect("an answer in time");
    refused.err().unwrap_or_else(|| panic!("{url} leads to a server"))
}

fn name() -> LockName {
    "orders/42".parse().expect("a name")
}

fn request(wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name(), Mode::Exclusive, Ttl::DEFAULT, wait, holder)
}

/// How long a failover may take: Sentinels that split their votes vote again after some seconds.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(30);

/// The lease that an attempt has to bring, in time.
async fn granted(attempt: impl Future<Output = Result<Attempt>>) -> Lease {
    match tokio::time::timeout(FAILOVER_PATIENCE, attempt).await.expect("an answer in time") {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("expected a grant: {other:?}"),
    }
}

async fn release(client: &RedisBackend, lease: &Lease) -> Release {
    client.release(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
}

async fn renew(client: &RedisBackend, lease: &Lease) -> Result<Renewal> {
    Ok(client.renew(std::slice::from_ref(&lease.key)).await?[0])
}

/// Waits until somebody stands in line.
async fn until_one_waits(client: &RedisBackend) {
    let name = name();
    let waits = async {
        while client.inspect(&name).await.expect("an answer").waiters.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("somebody waits");
}

/// The URL of Sentinels behind a network that can be cut.
async fn over_proxies(sentinels: &Sentinels) -> (String, Vec<Proxy>) {
    let mut proxies = Vec::new();
    for port in sentinels.sentinel_ports() {
        proxies.push(Proxy::start(port).await);
    }
    let hosts: Vec<_> = proxies.iter().map(|proxy| format!("127.0.0.1:{}", proxy.port())).collect();
    (format!("redis+sentinel://{}/{}", hosts.join(","), Sentinels::SERVICE), proxies)
}

/// Waits until the replicas have all that the primary has, and it knows that they follow.
async fn replicated(sentinels: &Sentinels) {
    let primary = sentinels.primary().await;
    // A replica that has just come hears of nothing new before its first word, which may take a second.
    primary.command(&["set", "follow", "me", "px", "1000"]).await;
    let all = primary.info("master_repl_offset").await.expect("every server counts");
    let all: u64 = all.parse().expect("a number");
    let follow = async {
        for replica in ["slave0", "slave1"] {
            while primary
                .info(replica)
                .await
                .and_then(|line| line.split_once("offset=")?.1.split(',').next()?.parse::<u64>().ok())
                .is_none_or(|confirmed| confirmed < all)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, follow).await.expect("replicas follow");
}

#[tokio::test]
async fn those_who_wait_for_one_connection_are_told_together() {
    let Some(server) = RedisServer::start().await else { return };
    let proxy = Proxy::start(server.port()).await;
    let ann = Arc::new(connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.unwrap());
    proxy.accept_and_be_silent();
    proxy.cut_connections();
    ann.records().read(&RecordKey::of(name())).await.expect_err("the connection was reset");
    let mut reads = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let ann = Arc::clone(&ann);
        reads.spawn(async move { ann.records().read(&RecordKey::of(name())).await });
    }
    // A try takes three seconds; one after the other they would take twelve.
    let reads = tokio::time::timeout(Duration::from_secs(9), reads.join_all()).await.expect("told together");
    for read in reads {
        let error = read.expect_err("nobody answers");
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
    }
    proxy.mend();
    assert_eq!(ann.records().read(&RecordKey::of(name())).await.expect("an answer"), None);
}
