//! What becomes of locks when the servers do not reach each other, or their leader falls silent.

use std::time::Duration;

use ringfence::{Guard, Locks};
use ringfence_core::{BootInstant, ErrorKind, FencingToken, Result, Version};
use ringfence_servers::{Ensemble, ZooKeeperOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::{AT_ONCE, FOLDER, NAME, now, within};

/// As short as it may be beside [`KNOWS`].
const TTL: Duration = Duration::from_secs(4);

/// So long after the others have fallen silent a server knows that it is alone: ten ticks.
const KNOWS: &str = "10";

/// How long an ensemble may take to find a leader on a busy machine.
const ELECTS: Duration = Duration::from_mins(1);

/// After the network is whole again and the servers serve, a lock is free within this time.
const FREE_AGAIN: Duration = Duration::from_secs(2 * TTL.as_secs() + 3);

async fn three() -> Option<Ensemble> {
    let options = ZooKeeperOptions::new().servers(3).interconnected();
    options.set("syncLimit", KNOWS).set("initLimit", "25").start().await
}

async fn hold(locks: &Locks) -> Guard {
    within("a grant", locks.lock(NAME).ttl(TTL).acquire()).await.expect("a grant")
}

/// A client that is connected to this server.
async fn locks_at(servers: &Ensemble, at: usize) -> Locks {
    loop {
        let locks = Locks::connect(&servers.url()).await.expect("servers that serve");
        let guard = hold(&locks).await;
        let node = format!("{FOLDER}/{}", servers.children(FOLDER).await[0]);
        let is_there = servers.server_of(&node).await == at;
        guard.release().await.expect("it is held");
        if is_there {
            return locks;
        }
    }
}

async fn a_follower(servers: &Ensemble) -> usize {
    let leader = servers.leader().await.expect("servers that serve have a leader");
    (leader + 1) % 3
}

#[tokio::test]
async fn a_follower_that_is_cut_off_with_clients_on_it_costs_nobody_a_lease_or_a_place() {
    let Some(servers) = three().await else { return };
    let follower = a_follower(&servers).await;
    let (ann, bob) = (locks_at(&servers, follower).await, locks_at(&servers, follower).await);
    // In half of it the follower knows that it is alone, and hangs up.
    let ttl = 2 * TTL;
    let held = ann.lock(NAME).ttl(ttl).acquire().await.expect("a free lock");
    let first = held.token();
    let waiting = tokio::spawn({
        let bob = bob.clone();
        async move { bob.lock(NAME).ttl(ttl).acquire().await }
    });
    within("a line of one", async {
        while ann.inspect(NAME).await.expect("an answer").waiters.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;

    servers.cut_off(follower);
    let is_lost = tokio::time::timeout(ttl + TTL, held.lost()).await.is_ok();
    assert!(!is_lost, "another server renews it");
    assert!(!waiting.is_finished(), "the first one holds");
    // On a busy machine the other two may part for a moment as well. Then it is given back afterwards.
    let patience = match held.release().await {
        Ok(()) => AT_ONCE,
        Err(error) if error.kind() == ErrorKind::Unavailable => ELECTS,
        Err(error) => panic!("it is held: {error}"),
    };
    let next = tokio::time::timeout(patience, waiting).await.expect("the turn of the next in line");
    let next = next.expect("no panic").expect("a grant");
    assert!(next.token().sequence() > first.sequence(), "{first} {}", next.token());
    servers.mend();
    servers.serves().await;
    assert!(next.is_held(), "nobody loses by the mend");
    next.release().await.expect("it is held");
}

#[tokio::test]
async fn who_is_cut_off_with_the_leader_loses_in_time_and_the_fence_refuses_what_it_writes_afterwards() {
    let Some(servers) = three().await else { return };
    let leader = servers.leader().await.expect("servers that serve have a leader");
    // It knows no other server.
    let ann = Locks::connect(&format!("zookeeper://127.0.0.1:{}", servers.ports()[leader])).await;
    let ann = ann.expect("a server that serves");
    let bob = Locks::connect(&servers.url()).await.expect("servers that serve");
    let held = hold(&ann).await;
    let (hers, his) = (ann.record(NAME).expect("a lawful name"), bob.record(NAME).expect("a lawful name"));
    hers.open(held.token()).await.expect("she holds");
    hers.write(held.token(), "hers").await.expect("she holds");

    servers.cut_off(leader);
    let cut = now();
    within("a loss", held.lost()).await;
    let after = now().saturating_since(cut);
    assert!(
        after <= TTL + Duration::from_secs(1),
        "it was lost {after:?} after the cut, and its TTL is {TTL:?}"
    );

    // The others elect a leader, who ends her session.
    let next = tokio::time::timeout(ELECTS, async {
        loop {
            match bob.lock(NAME).ttl(TTL).wait(TTL).acquire().await {
                Ok(guard) => break guard,
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::WaitElapsed),
                    "{error:?}"
                ),
            }
        }
    })
    .await
    .expect("a majority grants what is free");
    assert!(next.token().sequence() > held.token().sequence());
    his.open(next.token()).await.expect("he holds");
    his.write(next.token(), "his").await.expect("he holds");

    servers.mend();
    servers.serves().await;
    let refused = within("an answer of the one that was cut off", async {
        loop {
            match hers.write(held.token(), "late").await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                answer => break answer,
            }
        }
    })
    .await;
    assert_eq!(refused.expect_err("he came after her").kind(), ErrorKind::Stale);
    assert_eq!(his.read().await.expect("an answer").expect("a record").value, "his");
    next.release().await.expect("he holds");
    let healed = now();
    drop(hold(&ann).await);
    let after = now().saturating_since(healed);
    assert!(after <= FREE_AGAIN, "the lock was free {after:?} after the ensemble was whole");
}

/// What befalls the ensemble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    FollowerCutOff,
    LeaderCutOff,
    AllCutOff,
    LeaderStopped,
}

impl Fault {
    fn begin(self, servers: &Ensemble, leader: usize) {
        match self {
            Self::FollowerCutOff => servers.cut_off((leader + 1) % 3),
            Self::LeaderCutOff => servers.cut_off(leader),
            Self::AllCutOff => (0..3).for_each(|server| servers.cut_off(server)),
            Self::LeaderStopped => servers.stop(leader),
        }
    }

    fn end(self, servers: &Ensemble, leader: usize) {
        match self {
            Self::FollowerCutOff | Self::LeaderCutOff | Self::AllCutOff => servers.mend(),
            Self::LeaderStopped => servers.resume(leader),
        }
    }

    /// Whether nobody has a majority.
    fn stops_all(self) -> bool {
        self == Self::AllCutOff
    }
}

/// What a worker tells.
#[derive(Debug)]
enum Told {
    Wrote(Version, FencingToken, BootInstant),
    /// It was granted nothing, or was refused.
    Failed,
}

/// Takes the lock, and writes its record by the token, again and again until it is told to end.
async fn work(locks: Locks, told: mpsc::UnboundedSender<Told>, mut is_over: watch::Receiver<bool>) {
    let record = locks.record(NAME).expect("a lawful name");
    let turn = async || -> Result<()> {
        let guard = locks.lock(NAME).ttl(TTL).wait(TTL).acquire().await?;
        let token = guard.token();
        record.open(token).await?;
        for _ in 0..3 {
            let version = record.write(token, token.to_string()).await?;
            let _ = told.send(Told::Wrote(version, token, now()));
        }
        guard.release().await
    };
    while !*is_over.borrow_and_update() {
        if let Err(error) = turn().await {
            let kinds =
                [ErrorKind::Unavailable, ErrorKind::WaitElapsed, ErrorKind::Stale, ErrorKind::NotOpened];
            assert!(kinds.contains(&error.kind()), "{error:?}");
            let _ = told.send(Told::Failed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Four clients work while this happens: their effects are in the order of their tokens, and they get on with it afterwards.
async fn effects_are_in_order(fault: Fault) {
    const WORKERS: usize = 4;
    let Some(servers) = three().await else { return };
    let (sender, mut told) = mpsc::unbounded_channel();
    let (end, is_over) = watch::channel(false);
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let locks = Locks::connect(&servers.url()).await.expect("servers that serve");
        workers.spawn(work(locks, sender.clone(), is_over.clone()));
    }
    drop(sender);
    let mut written = Vec::new();
    let mut hear =
        async |what: &str, patience: Duration, mut enough: Box<dyn FnMut(&Told) -> bool + Send>| {
            let heard = tokio::time::timeout(patience, async {
                loop {
                    let told = told.recv().await.expect("workers that work");
                    let is_enough = enough(&told);
                    if let Told::Wrote(version, token, at) = told {
                        written.push((version, token, at));
                    }
                    if is_enough {
                        break;
                    }
                }
            });
            heard.await.unwrap_or_else(|_| panic!("{fault:?}: waited {patience:?} in vain for {what}"));
        };
    let writes = |count: usize| {
        let mut left = count;
        Box::new(move |told: &Told| {
            left -= usize::from(matches!(told, Told::Wrote(..)));
            left == 0
        })
    };
    hear("work", ELECTS, writes(20)).await;

    let leader = servers.leader().await.expect("servers that serve have a leader");
    fault.begin(&servers, leader);
    if fault.stops_all() {
        let mut failures = 0;
        let all_failed = move |told: &Told| {
            failures = if matches!(told, Told::Failed) { failures + 1 } else { 0 };
            failures == 3 * WORKERS
        };
        hear("everybody's failures, one after the other", ELECTS, Box::new(all_failed)).await;
    } else {
        // Not what was under way when it began.
        let begun = now();
        let later =
            move |told: &Told| matches!(told, Told::Wrote(_, _, at) if at.saturating_since(begun) > TTL);
        hear("work without those who are gone", ELECTS, Box::new(later)).await;
        hear("more of it", ELECTS, writes(10)).await;
    }
    fault.end(&servers, leader);
    servers.serves().await;
    let healed = now();
    let later = move |told: &Told| matches!(told, Told::Wrote(_, _, at) if *at > healed);
    hear("work afterwards", FREE_AGAIN, Box::new(later)).await;
    hear("more of it", ELECTS, writes(20)).await;

    end.send_replace(true);
    while let Some(told) = within("the end of the work", told.recv()).await {
        if let Told::Wrote(version, token, at) = told {
            written.push((version, token, at));
        }
    }
    while let Some(worker) = workers.join_next().await {
        worker.expect("no panic");
    }
    written.sort_unstable_by_key(|(version, ..)| *version);
    for pair in written.windows(2) {
        let [(earlier, before, _), (later, after, _)] = pair else { unreachable!("windows of two") };
        assert!(earlier < later, "{fault:?}: one version was written twice: {pair:?}");
        assert!(
            before == after || before.sequence() < after.sequence(),
            "{fault:?}: a stale write was taken: {pair:?}"
        );
    }
}

#[tokio::test]
async fn effects_are_in_order_when_a_follower_is_cut_off() {
    effects_are_in_order(Fault::FollowerCutOff).await;
}

#[tokio::test]
async fn effects_are_in_order_when_the_leader_is_cut_off() {
    effects_are_in_order(Fault::LeaderCutOff).await;
}

#[tokio::test]
async fn effects_are_in_order_when_no_server_reaches_another() {
    effects_are_in_order(Fault::AllCutOff).await;
}

#[tokio::test]
async fn effects_are_in_order_when_the_leader_is_stopped() {
    effects_are_in_order(Fault::LeaderStopped).await;
}
