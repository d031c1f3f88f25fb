//! Whatever befalls a cluster: nobody writes by a stale token, tokens are unique and in order, a loss is told in time, and what was
//! lost is free again soon.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence::{Guard, Locks};
use ringfence_core::{BootInstant, ErrorKind, FencingToken, Result, Retry, Version};
use ringfence_servers::{EtcdCluster, EtcdOptions, Proxy};
use ringfence_testkit::{Hold, check_exclusive};
use tokio::task::JoinHandle;

use crate::common::within;
use crate::{HEALS, now};

const TTL: Duration = Duration::from_secs(5);

/// The lock behind which a number is counted up.
const NUMBER: &str = "number";

/// What befalls the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    LeaderIsCutOff,
    FollowerIsCutOff,
    /// Each is alone.
    NobodyReachesAnybody,
    LeaderStops,
    LeaderIsKilled,
}

impl Trouble {
    /// Begins it. Those members that serve nobody any more.
    async fn begin(self, cluster: &mut EtcdCluster) -> Vec<usize> {
        let leader = cluster.leader().await;
        let follower = (leader + 1) % cluster.count();
        match self {
            Self::LeaderIsCutOff => cluster.cut_off(leader),
            Self::FollowerIsCutOff => {
                cluster.cut_off(follower);
                return vec![follower];
            }
            Self::NobodyReachesAnybody => {
                let all = 0..cluster.count();
                all.clone().for_each(|member| cluster.cut_off(member));
                return all.collect();
            }
            Self::LeaderStops => cluster.stop(leader),
            Self::LeaderIsKilled => cluster.kill(leader),
        }
        vec![leader]
    }

    fn end(self, cluster: &mut EtcdCluster, members: &[usize]) {
        match self {
            Self::LeaderIsCutOff | Self::FollowerIsCutOff | Self::NobodyReachesAnybody => cluster.mend(),
            Self::LeaderStops => members.iter().for_each(|member| cluster.resume(*member)),
            Self::LeaderIsKilled => members.iter().for_each(|member| cluster.start_again(*member)),
        }
    }
}

/// What a client did that counts.
#[derive(Debug, Default)]
struct History {
    grants: Vec<Hold>,
    /// By which token which number was written, and which version of the record that was.
    writes: Vec<(FencingToken, u64, Version)>,
}

/// A client that knows one member only, and counts for as long as it is let.
struct Counter {
    locks: Locks,
    history: Arc<Mutex<History>>,
    counting: JoinHandle<()>,
}

impl Counter {
    async fn start(port: u16) -> Self {
        let locks = Locks::connect(&format!("etcd://127.0.0.1:{port}")).await.expect("a cluster that runs");
        let history = Arc::new(Mutex::new(History::default()));
        let counting = tokio::spawn({
            let (locks, history) = (locks.clone(), Arc::clone(&history));
            async move {
                loop {
                    if let Err(error) = count(&locks, &history).await {
                        let may_come = [ErrorKind::WaitElapsed, ErrorKind::Lost, ErrorKind::Stale];
                        assert!(
                            error.retry() == Retry::Later || may_come.contains(&error.kind()),
                            "trouble passes: {error:?}"
                        );
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
        Self { locks, history, counting }
    }

    async fn hold(&self, name: &str) -> Guard {
        self.locks.lock(name).ttl(TTL).acquire().await.expect("a lock that is free")
    }

    /// Waits until it has written so many times more.
    async fn writes(&self, more: usize) {
        let written = || self.history.lock().unwrap().writes.len();
        let before = written();
        let writes = async {
            while written() < before + more {
                assert!(!self.counting.is_finished(), "it has met what must not happen");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(HEALS, writes).await.expect("it can write again");
    }
}

/// Adds one to the number, by the token of a lease. Where that is over, the fence has to know.
async fn count(locks: &Locks, history: &Mutex<History>) -> Result<()> {
    let guard = locks.lock(NUMBER).ttl(TTL).wait(TTL).acquire().await?;
    let (token, from) = (guard.token(), now());
    history.lock().unwrap().grants.push(Hold { token, from, until: from });
    let record = locks.record(NUMBER)?;
    let found = record.open(token).await?.record;
    let number = found.map_or(0, |found| String::from_utf8_lossy(&found.value).parse::<u64>().unwrap()) + 1;
    let version = record.write(token, number.to_string()).await?;
    history.lock().unwrap().writes.push((token, number, version));
    guard.release().await
}

/// Checks what all of them did.
fn check(counters: Vec<Counter>) {
    let (mut grants, mut writes) = (Vec::new(), Vec::new());
    for counter in counters {
        counter.counting.abort();
        let history = std::mem::take(&mut *counter.history.lock().unwrap());
        grants.extend(history.grants);
        writes.extend(history.writes);
    }
    check_exclusive(grants).unwrap();
    writes.sort_by_key(|(_, _, version)| *version);
    for (token, number, version) in &writes {
        assert_eq!(
            *number, version.0,
            "somebody wrote between the look and the write by {token}: {writes:?}"
        );
    }
    for pair in writes.windows(2) {
        let (earlier, later) = (pair[0].0, pair[1].0);
        assert!(earlier.sequence() < later.sequence(), "{earlier} wrote before {later}: {writes:?}");
    }
}

/// When the guard said that it is lost.
fn loss(guard: &Guard) -> JoinHandle<BootInstant> {
    let lost = guard.lost();
    tokio::spawn(async move {
        lost.await;
        now()
    })
}

async fn is_borne(trouble: Trouble) {
    let separable = EtcdOptions::new().members(3).separable();
    let Some(mut cluster) = separable.start().await else { return };
    let mut counters = Vec::new();
    for member in 0..cluster.count() {
        counters.push(Counter::start(cluster.port(member)).await);
    }
    // Connected while all is well: to connect takes an answer in time, of members that are busy with their election.
    let everywhere = crate::locks(&cluster).await;
    let (mut guards, mut losses) = (Vec::new(), Vec::new());
    for (member, counter) in counters.iter().enumerate() {
        let guard = counter.hold(&format!("of {member}")).await;
        losses.push(loss(&guard));
        guards.push(guard);
        counter.writes(1).await;
    }

    let begun = now();
    let gone = trouble.begin(&mut cluster).await;
    for member in &gone {
        let lost = within("a loss", &mut losses[*member]).await.unwrap();
        let took = lost.saturating_since(begun);
        assert!(took < TTL + Duration::from_secs(2), "a loss is told in time, not after {took:?}");
    }
    for (member, guard) in guards.iter().enumerate().filter(|(member, _)| !gone.contains(member)) {
        assert!(guard.is_held(), "who is at member {member} is not concerned: {trouble:?}");
    }

    trouble.end(&mut cluster, &gone);
    let healed = now();
    for member in &gone {
        let free = async {
            let name = format!("of {member}");
            while everywhere.lock(&*name).ttl(TTL).acquire().await.is_err() {}
        };
        tokio::time::timeout(HEALS, free).await.expect("what was lost is free again");
        let took = now().saturating_since(healed);
        assert!(
            took < 2 * TTL + Duration::from_secs(3),
            "free within twice the TTL and 3 s, not after {took:?}"
        );
    }
    for counter in &counters {
        counter.writes(1).await;
    }
    check(counters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_writes_nothing_for_those_who_lost() {
    is_borne(Trouble::LeaderIsCutOff).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_cut_off_costs_those_their_locks_who_know_no_other() {
    is_borne(Trouble::FollowerIsCutOff).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_are_all_alone_grant_nothing_and_come_back() {
    is_borne(Trouble::NobodyReachesAnybody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_past_the_ttl_writes_nothing_for_those_who_lost() {
    is_borne(Trouble::LeaderStops).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_killed_writes_nothing_for_those_who_lost() {
    is_borne(Trouble::LeaderIsKilled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_replies_cost_nobody_a_lock_and_no_number_twice() {
    const ROUNDS: u32 = 30;
    let Some(cluster) = EtcdCluster::start(3).await else { return };
    let (mut proxies, mut counters) = (Vec::new(), Vec::new());
    for member in 0..cluster.count() {
        proxies.push(Proxy::start(cluster.port(member)).await);
        counters.push(Counter::start(proxies[member].port()).await);
    }
    let guard = counters[0].hold("kept").await;
    for (round, proxy) in (0..ROUNDS).zip(proxies.iter().cycle()) {
        tokio::time::sleep(Duration::from_millis(10) * (round % 7)).await;
        proxy.swallow_replies();
        proxy.swallowed().await;
        proxy.mend();
    }
    for counter in &counters {
        counter.writes(1).await;
    }
    assert!(guard.is_held(), "a renewal can be asked for again");
    check(counters);
}
