//! Defects of etcd that matter to locks, tried on the versions that are there: each test prints what was seen, which may be nothing.
//! docs/etcd.md has what was seen. To see it again: cargo nextest run -p ringfence-etcd --test defects --run-ignored all --no-capture

use std::time::Duration;

use ringfence::Locks;
use ringfence_core::{BootInstant, Clock, SystemClock};
use ringfence_servers::{EtcdCluster, EtcdOptions, Process, etcd_3_5, require};
use ringfence_testkit::PATIENCE;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The lock's name in base64, as JSON has bytes.
const NAME: (&str, &str) = ("defect", "ZGVmZWN0");

fn now() -> BootInstant {
    SystemClock::new().now()
}

/// A cluster of each version that is there, and which that is.
async fn of_each_version(options: EtcdOptions) -> Vec<(String, EtcdCluster)> {
    let mut clusters = Vec::new();
    let later = etcd_3_5().map(|program| options.clone().program(program));
    for options in [Some(options), later].into_iter().flatten() {
        let Some(cluster) = options.start().await else { continue };
        clusters.push((version(&cluster).await, cluster));
    }
    clusters
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

async fn version(cluster: &EtcdCluster) -> String {
    let status = cluster.etcdctl(&["endpoint", "status", "--write-out", "json"]).await;
    let status: Value = serde_json::from_str(&status).unwrap();
    status[0]["Status"]["version"].as_str().unwrap().to_owned()
}

/// A lease of the server that nobody keeps alive.
async fn lease(cluster: &EtcdCluster, seconds: u64) -> i64 {
    let granted = cluster.etcdctl(&["lease", "grant", &seconds.to_string()]).await;
    i64::from_str_radix(granted.split(' ').nth(1).unwrap(), 16).unwrap()
}

/// Asks etcd's own lock service, by HTTP, for the lock. What it says, when it does.
async fn lock_of_the_service(port: u16, lease: i64) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let body = json!({ "name": NAME.1, "lease": lease.to_string() }).to_string();
    let head = format!("POST /v3/lock/lock HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let lines: Vec<&str> = answer.lines().collect();
    // Whether it does, and what it says.
    format!("{} {}", lines[0], lines[lines.len() - 1])
}

async fn places(cluster: &EtcdCluster) -> Vec<String> {
    let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", &format!("{}/", NAME.0)]).await;
    keys.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

async fn sees_places(cluster: &EtcdCluster, count: usize) {
    within("so many places", async { while places(cluster).await.len() != count {} }).await;
}

/// etcd issue 11456: the lock is granted without a look at whether the lease has ended while it waited.
#[tokio::test]
#[ignore = "it prints what was seen of other people's code, and promises nothing"]
async fn the_lock_service_grants_to_a_lease_that_has_ended() {
    for (version, cluster) in of_each_version(EtcdOptions::new()).await {
        let (long, short) = (lease(&cluster, 60).await, lease(&cluster, 2).await);
        let first = lock_of_the_service(cluster.port(0), long).await;
        let port = cluster.port(0);
        let second = tokio::spawn(lock_of_the_service(port, short));
        sees_places(&cluster, 2).await;
        sees_places(&cluster, 1).await;
        let ended = now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.etcdctl(&["lease", "revoke", &format!("{long:x}")]).await;
        let second = within("an answer", second).await.unwrap();
        let ago = now().saturating_since(ended);
        let another = lease(&cluster, 60).await;
        let third = within("an answer", lock_of_the_service(port, another)).await;
        println!(
            "{version}: first {first:?}; second, whose lease had ended {ago:?} before, {second:?}; third, at the same time, {third:?}",
        );
    }
}

/// etcd issue 15247: a leader whose disk hangs goes on ending leases that are kept alive by the next leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it prints what was seen of other people's code, and promises nothing"]
async fn a_leader_whose_disk_hangs_ends_leases_that_are_alive() {
    const TTL: Duration = Duration::from_secs(4);
    const HANGS: Duration = Duration::from_secs(8);
    const ROUNDS: u32 = 3;
    let Some(strace) = require("strace") else { return };
    for (version, cluster) in of_each_version(EtcdOptions::new().members(3)).await {
        for round in 1..=ROUNDS {
            let leader = cluster.leader().await;
            // Who is at another member renews by the next leader.
            let follower = cluster.port((leader + 1) % 3);
            let locks = Locks::connect(&format!("etcd://127.0.0.1:{follower}")).await.unwrap();
            let guard = locks.lock(format!("round {round}")).ttl(TTL).acquire().await.unwrap();
            let mut hang = std::process::Command::new("sh");
            hang.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(&strace);
            let delay = format!("inject=fdatasync:delay_enter={}", HANGS.as_micros());
            hang.args(["-f", "-e", "trace=fdatasync", "-e", &delay]);
            hang.args(["-p", &cluster.process(leader).to_string()]);
            let begun = now();
            let mut hang = Process::start(hang).unwrap();
            hang.line().await;
            // The leader hangs as soon as it has something to write.
            let _ = cluster.ask(&["--command-timeout", "1s", "put", "something", "to write"]).await;
            let lost = tokio::time::timeout(HANGS, guard.lost()).await.is_ok();
            let (during, left) = (now().saturating_since(begun), guard.remaining());
            hang.terminate().unwrap();
            let lost_later = tokio::time::timeout(2 * TTL, guard.lost()).await.is_ok();
            let after = now().saturating_since(begun);
            let seen = match (lost, lost_later) {
                (true, _) => format!("lost after {during:?}, while the disk hung"),
                (false, true) => format!(
                    "lost after {after:?}; at {during:?}, when the disk was back, it had {left:?} left"
                ),
                (false, false) => "kept".to_owned(),
            };
            println!(
                "{version}, round {round}: {seen}; it was led by {leader}, and is by {}",
                cluster.leader().await
            );
            let _ = guard.release().await;
        }
    }
}
