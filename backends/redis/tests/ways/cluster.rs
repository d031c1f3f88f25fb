use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, Effect, ErrorKind, Eviction, Lease, LeaseKey, ListQuery,
    LockName, Nonce, RecordKey, Release, Renewal, Ttl, Wait,
};
use ringfence_servers::{RedisCluster, RedisServer};
use ringfence_testkit::PATIENCE;
use tokio::task::JoinSet;

use crate::{connect, granted, name, refusal, release, renew, request, until_one_waits};

const LONG: Wait = Wait::Until(BootInstant::MAX);

/// A request for another lock.
fn asks_for(name: &str, wait: Wait) -> AcquireRequest {
    let mut request = request(wait);
    request.name = name.parse().expect("a name");
    request
}

pub(crate) async fn until(what: &str, asks: impl AsyncFn() -> bool) {
    let answered = async {
        while !asks().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

/// The slot of the lock that [`name`] names, its master, and another one.
async fn places(cluster: &RedisCluster) -> (u16, usize, usize) {
    let slot = cluster.slot_of("ringfence:{orders/42}").await;
    let from = cluster.master_of(slot).await;
    (slot, from, (from + 1) % RedisCluster::MASTERS)
}

/// How many times the nodes were called for this command, in all.
async fn calls(cluster: &RedisCluster, command: &str) -> u64 {
    let mut calls = 0;
    for node in &cluster.nodes()[..RedisCluster::MASTERS] {
        let stats = node.command(&["info", "commandstats"]).await;
        let field = format!("cmdstat_{command}:calls=");
        let count = stats.lines().find_map(|line| line.strip_prefix(&*field)?.split(',').next());
        calls += count.map_or(0, |count| count.parse::<u64>().expect("a number"));
    }
    calls
}

async fn channels(node: &RedisServer) -> usize {
    node.command(&["pubsub", "shardchannels"]).await.lines().filter(|line| !line.is_empty()).count()
}

/// How often a node said that it has only some keys of a slot.
async fn has_told_to_try_again(node: &RedisServer) -> bool {
    node.info("errorstat_TRYAGAIN").await.is_some()
}

#[tokio::test]
async fn a_lock_is_in_one_slot_whatever_its_name_contains() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let ann = connect(&cluster.url()).await.unwrap();
    let verbatim = connect(&format!("{}?keys=verbatim", cluster.url())).await.unwrap();
    for (client, names) in [
        (&ann, &["{a}", "}{", "{}", "a}b", "{a}{b}", "*?[", "é {x}", "ringfence:{a}"][..]),
        (&verbatim, &["orders", "{a}.x", "x{a}{b}", "a{b"]),
    ] {
        for name in names {
            let lease = granted(client.acquire(asks_for(name, LONG))).await;
            let key = RecordKey::of(lease.key.name.clone());
            client.records().open(&key, lease.token).await.expect("an open record");
            client.records().write(&key, lease.token, Bytes::from_static(b"it")).await.expect("a write");
            let seen = client.records().read(&key).await.expect("an answer");
            assert_eq!(seen.map(|record| record.value), Some(Bytes::from_static(b"it")), "{name}");
            assert_eq!(client.inspect(&lease.key.name).await.expect("an answer").holders.len(), 1, "{name}");
            let evicted = client.evict(&lease.key.name, lease.key.nonce).await;
            assert_eq!(evicted.expect("an answer"), Eviction::Evicted, "{name}");
            assert_eq!(renew(client, &lease).await.expect("an answer"), Renewal::Lost, "{name}");
        }
    }
    for name in ["a}b", "{}a"] {
        let name: LockName = name.parse().unwrap();
        let asked = asks_for(name.as_str(), LONG);
        let lease = LeaseKey::new(name.clone(), asked.nonce, asked.ttl);
        for error in [
            verbatim.acquire(asked).await.err(),
            verbatim.acquire(asks_for(name.as_str(), Wait::No)).await.err(),
            verbatim.renew(&[lease]).await.err(),
            verbatim.inspect(&name).await.err(),
            verbatim.evict(&name, Nonce::random()).await.err(),
            verbatim.records().read(&RecordKey::of(name.clone())).await.err(),
        ] {
            let error = error.unwrap_or_else(|| panic!("{name} is in several slots"));
            assert_eq!((error.kind(), error.effect()), (ErrorKind::InvalidRequest, Effect::None), "{error}");
            assert!(error.message().contains("keys=verbatim"), "{error}");
        }
    }
}

#[tokio::test]
async fn all_locks_are_listed_wherever_they_are() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let ann = connect(&cluster.url()).await.unwrap();
    let names: Vec<String> = (0..12).map(|number| format!("locks/{number:02}")).collect();
    let mut leases = Vec::new();
    for name in &names {
        leases.push(granted(ann.acquire(asks_for(name, Wait::No))).await);
    }
    let mut query = ListQuery::default();
    query.prefix = "locks/".to_owned();
    let page = ann.list(query).await.expect("a page");
    let listed: Vec<&str> = page.items.iter().map(|lock| lock.name.as_str()).collect();
    assert_eq!(listed, names);
    let keys: Vec<LeaseKey> = leases.into_iter().map(|lease| lease.key).collect();
    assert_eq!(ann.renew(&keys).await.expect("an answer"), [Renewal::Renewed; 12]);
    assert_eq!(ann.release(&keys).await.expect("an answer"), [Release::Released; 12]);
}

#[tokio::test]
async fn a_lock_moves_with_its_slot() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (ann, ben) = (connect(&cluster.url()).await.unwrap(), connect(&cluster.url()).await.unwrap());
    let (slot, from, to) = places(&cluster).await;
    let mut last = 0;
    for master in [to, from, to] {
        let lease = granted(ann.acquire(request(Wait::No))).await;
        assert!(lease.token.sequence() > last, "{last} {lease:?}");
        last = lease.token.sequence();
        cluster.move_slot(slot, master).await;
        assert!(matches!(ben.acquire(request(Wait::No)).await, Ok(Attempt::Busy(_))));
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
        assert_eq!(release(&ben, &lease).await, Release::Released);
    }
    // One that asks nobody but the old master first.
    cluster.move_slot(slot, from).await;
    let lease = granted(ben.acquire(request(Wait::No))).await;
    assert!(lease.token.sequence() > last, "{last} {lease:?}");
}

#[tokio::test]
async fn a_lease_lives_on_while_its_slot_is_on_its_way_and_changes_wait_for_it() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let ann = connect(&cluster.url()).await.unwrap();
    let (slot, from, to) = places(&cluster).await;
    let (source, target) = (&cluster.nodes()[from], &cluster.nodes()[to]);
    let lease = granted(ann.acquire(request(Wait::No))).await;
    // The lock and its last number: renewed on the old master, between the two, and on the new one, which is asked to.
    cluster.begin_migration(slot, to).await;
    for moved in 0..=2 {
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed, "{moved} keys have moved");
        assert_eq!(ann.renew(&[lease.key.clone(), lease.key.clone()]).await.unwrap(), [Renewal::Renewed; 2]);
        let mut other = lease.key.clone();
        other.nonce = Nonce::random();
        assert_eq!(ann.renew(&[other]).await.unwrap(), [Renewal::Lost], "{moved} keys have moved");
        cluster.migrate_keys(slot, to, 1).await;
    }
    assert!(has_told_to_try_again(source).await && has_told_to_try_again(target).await);
    // What would touch several keys waits until they are together.
    let (released, ()) = tokio::join!(release(&ann, &lease), async { cluster.end_migration(slot, to).await });
    assert_eq!(released, Release::Released);
    // An attempt that waits is on its way when the slot is; so is one that does not.
    for (wait, master) in [(LONG, from), (Wait::No, to)] {
        let (at, goal) = if master == from { (to, from) } else { (from, to) };
        cluster.nodes()[at].command(&["config", "resetstat"]).await;
        cluster.nodes()[goal].command(&["config", "resetstat"]).await;
        cluster.begin_migration(slot, master).await;
        cluster.migrate_keys(slot, master, 1).await;
        let (next, ()) = tokio::join!(granted(ann.acquire(request(wait))), async {
            until("the attempt is told to try again", async || {
                has_told_to_try_again(&cluster.nodes()[goal]).await
            })
            .await;
            cluster.end_migration(slot, master).await;
        });
        assert!(next.token.sequence() > lease.token.sequence(), "{lease:?} {next:?}");
        assert_eq!(release(&ann, &next).await, Release::Released);
    }
    // A move that does not end is an outage of its slot, which is said.
    cluster.begin_migration(slot, from).await;
    let error = ann.acquire(request(Wait::No)).await.expect_err("half a slot");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
    assert!(error.message().contains("on its way to another master"), "{error}");
}

#[tokio::test]
async fn waiters_have_their_turns_when_their_slot_moves() {
    const WAITERS: usize = 8;
    let Some(cluster) = RedisCluster::start().await else { return };
    let url = format!("{}?keys=verbatim", cluster.url());
    let (ann, ben) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let names: Vec<String> = (0..WAITERS).map(|number| format!("{{orders}}/{number}")).collect();
    let slot = cluster.slot_of("{orders}/0").await;
    let from = cluster.master_of(slot).await;
    let to = (from + 1) % RedisCluster::MASTERS;
    let mut held = Vec::new();
    for name in &names {
        held.push(granted(ann.acquire(asks_for(name, Wait::No))).await);
    }
    let waits = names.iter().map(|name| {
        let attempt = ben.acquire(asks_for(name, LONG));
        async { granted(attempt).await }
    });
    let all_turns = async {
        let mut turns = Vec::new();
        for wait in waits {
            turns.push(Box::pin(wait));
        }
        let mut leases = Vec::new();
        std::future::poll_fn(|context| {
            turns.retain_mut(|turn| match turn.as_mut().poll(context) {
                std::task::Poll::Ready(lease) => {
                    leases.push(lease);
                    false
                }
                std::task::Poll::Pending => true,
            });
            if turns.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        leases
    };
    let (turns, ()) = tokio::join!(all_turns, async {
        until("everybody waits and listens", async || channels(&cluster.nodes()[from]).await == WAITERS)
            .await;
        until("everybody is in line", async || {
            for lease in &held {
                if ann.inspect(&lease.key.name).await.expect("an answer").waiters.is_empty() {
                    return false;
                }
            }
            true
        })
        .await;
        cluster.move_slot(slot, to).await;
        until("everybody listens to the new master", async || {
            channels(&cluster.nodes()[to]).await == WAITERS
        })
        .await;
        for lease in &held {
            assert_eq!(release(&ann, lease).await, Release::Released);
        }
    });
    assert_eq!(turns.len(), WAITERS);
    for turn in &turns {
        let before = held.iter().find(|lease| lease.key.name == turn.key.name).expect("it was held");
        assert!(turn.token.sequence() > before.token.sequence(), "{before:?} {turn:?}");
        assert!(
            turn.lasts < turn.key.ttl.as_duration(),
            "it was told of its turn by the new master: {turn:?}"
        );
    }
}

#[tokio::test]
async fn a_waiter_whose_subscription_is_cut_is_told_all_the_same() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (ann, ben) = (connect(&cluster.url()).await.unwrap(), connect(&cluster.url()).await.unwrap());
    let (_, from, _) = places(&cluster).await;
    let master = &cluster.nodes()[from];
    let lease = granted(ann.acquire(request(Wait::No))).await;
    let (turn, ()) = tokio::join!(granted(ben.acquire(request(LONG))), async {
        until_one_waits(&ann).await;
        let heard = calls(&cluster, "ssubscribe").await;
        assert_eq!(master.command(&["client", "kill", "type", "pubsub"]).await, "1");
        until("it listens again", async || {
            calls(&cluster, "ssubscribe").await > heard && channels(master).await == 1
        })
        .await;
        assert_eq!(release(&ann, &lease).await, Release::Released);
    });
    assert!(turn.lasts < turn.key.ttl.as_duration(), "it was told: {turn:?}");
}

#[tokio::test]
async fn a_grant_costs_what_is_written_and_nothing_is_left_subscribed() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (ann, ben) = (connect(&cluster.url()).await.unwrap(), connect(&cluster.url()).await.unwrap());
    // The scripts are loaded on the first call.
    let first = granted(ann.acquire(request(LONG))).await;
    assert_eq!(release(&ann, &first).await, Release::Released);
    let before = calls(&cluster, "evalsha").await;
    for _ in 0..10 {
        let lease = granted(ann.acquire(request(LONG))).await;
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
        assert_eq!(release(&ann, &lease).await, Release::Released);
    }
    assert_eq!(calls(&cluster, "evalsha").await - before, 30, "one call for each change");
    assert_eq!(calls(&cluster, "ssubscribe").await, 0, "nobody listens who need not wait");
    assert_eq!(calls(&cluster, "spublish").await, 0, "nobody is told where nobody waits");
    let mut lease = granted(ann.acquire(request(LONG))).await;
    for turn in 1..=10 {
        let (next, ()) = tokio::join!(granted(ben.acquire(request(LONG))), async {
            until_one_waits(&ann).await;
            assert_eq!(release(&ann, &lease).await, Release::Released);
        });
        assert!(next.lasts < next.key.ttl.as_duration(), "it was told: {next:?}");
        assert_eq!(calls(&cluster, "spublish").await, turn, "one message for each turn");
        assert_eq!(release(&ben, &next).await, Release::Released);
        lease = granted(ann.acquire(request(LONG))).await;
    }
    assert!(calls(&cluster, "ssubscribe").await <= 2, "who waits again soon still listens");
    for node in cluster.nodes() {
        until("nobody listens any more", async || channels(node).await == 0).await;
    }
}

/// A waiter that was killed is passed over at once: nobody hears its turn.
#[tokio::test]
async fn a_waiter_that_nobody_hears_is_passed_over_at_once() {
    let Some(cluster) = RedisCluster::start().await else { return };
    let (ann, cid) = (connect(&cluster.url()).await.unwrap(), connect(&cluster.url()).await.unwrap());
    let (_, from, _) = places(&cluster).await;
    let lease = granted(ann.acquire(request(Wait::No))).await;
    // It stands in line, and its process is gone with its connections.
    let session = "c0123456789abcdef";
    let entry = format!("1700000000000:{session}:x:30000:1:dead\nhost\n");
    let nonce = "00000000000000ff";
    let master = &cluster.nodes()[from];
    master.command(&["zadd", "ringfence:{orders/42}:q", "0", nonce]).await;
    master.command(&["hset", "ringfence:{orders/42}:w", nonce, &entry]).await;
    let (turn, ()) = tokio::join!(granted(cid.acquire(request(LONG))), async {
        until("both wait", async || ann.inspect(&name()).await.expect("an answer").waiters.len() == 2).await;
        assert_eq!(release(&ann, &lease).await, Release::Released);
        let state = ann.inspect(&name()).await.expect("an answer");
        assert_eq!(state.waiters.len(), 0, "one is passed over, the other one has its turn: {state:?}");
        assert_eq!(state.holders.len(), 1, "{state:?}");
    });
    assert_eq!(turn.key.name, name());
}

#[tokio::test]
async fn a_masters_loss_is_survived_by_holders_waiters_and_newcomers() {
    let Some(mut cluster) = RedisCluster::start_with_replicas().await else { return };
    let url = cluster.url();
    let (ann, ben) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let (slot, from, _) = places(&cluster).await;
    let first = granted(ann.acquire(request(Wait::No))).await;
    let (second, third) = tokio::join!(
        async {
            let second = granted(ben.acquire(request(LONG))).await;
            assert_eq!(release(&ben, &second).await, Release::Released);
            second
        },
        async {
            until_one_waits(&ann).await;
            assert_eq!(cluster.nodes()[from].command(&["wait", "1", "0"]).await, "1");
            cluster.kill(from);
            let error = renew(&ann, &first).await.expect_err("its master is dead");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            cluster.wait_for_failover(from).await;
            // What was replicated is held, and the line goes on, on the new master.
            assert_eq!(renew(&ann, &first).await.unwrap(), Renewal::Renewed);
            let next = &cluster.nodes()[cluster.master_of(slot).await];
            until("the waiter listens to the new master", async || channels(next).await == 1).await;
            assert_eq!(release(&ann, &first).await, Release::Released);
            let cid = connect(&url).await.unwrap();
            granted(cid.acquire(request(LONG))).await
        }
    );
    let sequences = [&first, &second, &third].map(|lease| lease.token.sequence());
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
}

#[tokio::test]
async fn a_master_that_does_not_answer_holds_up_nobody_elses_locks() {
    let Some(cluster) = RedisCluster::start_with_replicas().await else { return };
    let ann = connect(&cluster.url()).await.unwrap();
    let (mut leases, mut masters): (Vec<Lease>, Vec<usize>) = (Vec::new(), Vec::new());
    for number in 0..12 {
        let mut asked = asks_for(&format!("locks/{number}"), Wait::No);
        asked.ttl = Ttl::new(Duration::from_secs(6)).expect("a TTL");
        leases.push(granted(ann.acquire(asked)).await);
        let slot = cluster.slot_of(&format!("ringfence:{{locks/{number}}}")).await;
        masters.push(cluster.master_of(slot).await);
    }
    let stopped = masters[0];
    cluster.nodes()[stopped].stop();
    let keys: Vec<LeaseKey> = leases.iter().map(|lease| lease.key.clone()).collect();
    // The keeper waits for a third of the TTL, and then takes all of them for unanswered.
    let renewals = tokio::time::timeout(keys[0].ttl.as_duration() / 3, ann.renew(&keys)).await;
    let renewals = renewals.expect("an answer while it counts").expect("some have an answer");
    for ((renewal, master), key) in renewals.iter().zip(&masters).zip(&keys) {
        let expected = if *master == stopped { Renewal::Unknown } else { Renewal::Renewed };
        assert_eq!(*renewal, expected, "{key:?} on {master}, {stopped} is stopped");
    }
    // Calls for the others do not wait behind those for the one.
    let other =
        masters.iter().position(|master| *master != stopped).expect("twelve locks are on three masters");
    let stuck = renew(&ann, &leases[0]);
    let done = async {
        for _ in 0..20 {
            assert_eq!(renew(&ann, &leases[other]).await.unwrap(), Renewal::Renewed);
        }
    };
    tokio::select! {
        biased;
        renewal = stuck => panic!("nobody is there to answer: {renewal:?}"),
        () = done => {}
    }
    cluster.nodes()[stopped].resume();
}

/// To ask who has which slots takes seconds where nobody answers: one after the other, for each who wants to know, it would be minutes.
#[tokio::test]
async fn those_who_ask_while_no_node_answers_are_told_together() {
    const ASKERS: usize = 16;
    let Some(cluster) = RedisCluster::start().await else { return };
    let ann = Arc::new(connect(&cluster.url()).await.unwrap());
    cluster.nodes().iter().for_each(RedisServer::stop);
    let ask = async || {
        let mut asked = JoinSet::new();
        for number in 0..ASKERS {
            let ann = Arc::clone(&ann);
            asked.spawn(async move { ann.inspect(&format!("locks/{number}").parse().unwrap()).await });
        }
        // A connection is given up after three seconds, and so is a try to open one; then the others are asked, and those in doubt.
        let answers = tokio::time::timeout(Duration::from_secs(20), asked.join_all()).await;
        for answer in answers.expect("told together") {
            let error = answer.expect_err("nobody answers");
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        }
    };
    // By the connections that stood, and then without one.
    ask().await;
    ask().await;
    cluster.nodes().iter().for_each(RedisServer::resume);
    ann.inspect(&name()).await.expect("they answer again");
}

#[tokio::test]
async fn a_cluster_is_found_by_any_node_and_what_is_none_is_said() {
    let Some(cluster) = RedisCluster::start_with_replicas().await else { return };
    for node in cluster.nodes() {
        let ann = connect(&format!("redis+cluster://127.0.0.1:{}", node.port())).await.unwrap();
        for name in ["a", "b", "c", "d", "e", "f"] {
            let lease = granted(ann.acquire(asks_for(name, Wait::No))).await;
            assert_eq!(release(&ann, &lease).await, Release::Released);
        }
    }
    let one_of_them = connect(&format!("redis://127.0.0.1:{}", cluster.nodes()[0].port())).await.unwrap();
    let mut errors = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        errors.extend(one_of_them.acquire(asks_for(name, Wait::No)).await.err());
    }
    let error = errors.first().expect("not all slots are on one master");
    assert!(error.message().contains("write redis+cluster://"), "{error}");
    let Some(server) = RedisServer::start().await else { return };
    let error = refusal(&format!("redis+cluster://127.0.0.1:{}", server.port())).await;
    assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{error}");
    assert!(error.message().contains("write redis://"), "{error}");
    let port = server.port();
    drop(server);
    let error = refusal(&format!("redis+cluster://127.0.0.1:{port}")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_lease_is_confirmed_by_the_replicas_of_its_master() {
    let Some(cluster) = RedisCluster::start_with_replicas().await else { return };
    let one = connect(&format!("{}?replicas=1", cluster.url())).await.unwrap();
    let two = connect(&format!("{}?replicas=2", cluster.url())).await.unwrap();
    let error = two.acquire(request(Wait::No)).await.expect_err("each master has one replica");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
    assert!(error.message().contains("of 2 replicas"), "{error}");
    // Replicas that are slow on a busy machine are no failure of ours.
    let lease = tokio::time::timeout(PATIENCE, async {
        loop {
            match one.acquire(request(Wait::No)).await {
                Ok(Attempt::Granted(lease)) => break lease,
                Err(error) if error.message().contains("of 1 replicas") => {}
                other => panic!("expected a grant: {other:?}"),
            }
        }
    });
    let lease = lease.await.expect("a replica that follows");
    assert_eq!(release(&one, &lease).await, Release::Released);
}
