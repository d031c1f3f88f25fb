//! What becomes of locks when connections, sessions, servers and nodes go away under them.

mod attempts;
mod partitions;
mod permits;
mod records;
mod sessions;

use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ringfence::Locks;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, ErrorKind, HolderInfo, Lease, LeaseKey,
    LockName, LockState, Mode, Release, Renewal, Retry, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, Proxy, Taker, WallClock, ZooKeeperOptions, taker};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

const NAME: &str = "orders/42";
const FOLDER: &str = "/ringfence/locks/orders%2F42";

/// A TTL that no test outlives.
const LONG: Duration = Duration::from_mins(1);

/// One that a test waits for.
const SHORT: Duration = Duration::from_secs(2);

/// Long before the first renewal of a lease that is [`LONG`], and long enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A waiter looks every five seconds, whatever happens: that is its net, and nobody should fall into it.
const NET: Duration = Duration::from_secs(4);

fn name() -> LockName {
    NAME.parse().expect("a lawful name")
}

fn now() -> BootInstant {
    SystemClock::new().now()
}

fn request(mode: Mode, ttl: Duration, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("faults", "here", 1).expect("lawful words");
    AcquireRequest::new(name(), mode, Ttl::new(ttl).expect("a lawful TTL"), wait, holder)
}

fn for_ever() -> AcquireRequest {
    request(Mode::Exclusive, LONG, Wait::Until(BootInstant::MAX))
}

async fn connect(url: &str) -> Arc<ZooKeeperBackend> {
    let url = BackendUrl::parse(url).expect("a lawful URL");
    Arc::new(ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await.expect("servers that serve"))
}

/// A client whose network can be cut.
async fn connect_over(proxy: &Proxy) -> Arc<ZooKeeperBackend> {
    connect(&format!("zookeeper://127.0.0.1:{}", proxy.port())).await
}

fn granted(attempt: ringfence_core::Result<Attempt>) -> Lease {
    match attempt {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("it must be granted: {other:?}"),
    }
}

async fn hold(client: &ZooKeeperBackend) -> Lease {
    within("a grant", client.acquire(for_ever())).await.map(|attempt| granted(Ok(attempt))).expect("a grant")
}

async fn release(client: &ZooKeeperBackend, lease: &Lease) -> Release {
    client.release(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(3 * PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Renews until there is an answer: a connection may break at any time.
async fn renew(client: &ZooKeeperBackend, key: &LeaseKey) -> Renewal {
    within("a renewal", async {
        loop {
            match client.renew(std::slice::from_ref(key)).await {
                Ok(renewals) => break renewals[0],
                Err(error) => assert_eq!(error.retry(), Retry::Later, "{error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

async fn sees(eye: &ZooKeeperBackend, what: &str, right: impl Fn(&LockState) -> bool) {
    within(what, async {
        while !eye.inspect(&name()).await.is_ok_and(|state| right(&state)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn sees_waiters(eye: &ZooKeeperBackend, count: usize) {
    sees(eye, &format!("a line of {count}"), |state| state.waiters.len() == count).await;
}

#[tokio::test]
async fn an_attempt_whose_answer_is_lost_is_found_by_its_nonce_and_made_once() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let ann = connect_over(&proxy).await;
    // From now on there is a session of this TTL, and a container.
    let lease = hold(&ann).await;
    release(&ann, &lease).await;

    proxy.swallow_replies();
    let asking = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { ann.acquire(for_ever()).await }
    });
    proxy.swallowed().await;
    proxy.mend();
    let lease = granted(within("a grant after all", asking).await.expect("no panic"));
    assert_eq!(servers.children(FOLDER).await.len(), 1, "it was made once");
    assert_eq!(renew(&ann, &lease.key).await, Renewal::Renewed);
    assert_eq!(release(&ann, &lease).await, Release::Released);
}

#[tokio::test]
async fn a_wait_ends_at_its_deadline_though_nobody_answers_and_leaves_nothing() {
    const PATIENT: Duration = Duration::from_millis(500);
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, bob) = (connect_over(&proxy).await, connect(&servers.url()).await);
    let held = hold(&bob).await;
    for is_standing in [true, false] {
        let wait = if is_standing { 4 * PATIENT } else { PATIENT };
        let deadline = now().saturating_add(wait);
        let asking = tokio::spawn({
            let ann = Arc::clone(&ann);
            async move { (ann.acquire(request(Mode::Exclusive, LONG, Wait::Until(deadline))).await, now()) }
        });
        if is_standing {
            sees_waiters(&bob, 1).await;
        }
        proxy.cut();
        let (attempt, ended) = within("the end of a wait", asking).await.expect("no panic");
        assert!(matches!(attempt, Ok(Attempt::Busy(_))), "a wait that ends is busy: {attempt:?}");
        let late = ended.saturating_since(deadline);
        assert!(
            ended >= deadline && late < 4 * PATIENT,
            "a wait ends at its deadline, not {late:?} after it"
        );
        proxy.mend();
        sees_waiters(&bob, 0).await;
    }
    assert_eq!(release(&bob, &held).await, Release::Released);
    sees(&bob, "a lock that nobody wants", LockState::is_free).await;
}

#[tokio::test]
async fn an_attempt_that_is_dropped_anywhere_leaves_nothing() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(&servers.url()).await, connect(&servers.url()).await);
    for is_held in [false, true] {
        let held = if is_held { Some(hold(&bob).await) } else { None };
        let mut was_granted = false;
        for polls in 1..=12 {
            let attempt = {
                let mut asking = pin!(ann.acquire(for_ever()));
                let mut polled = 0;
                let asked = std::future::poll_fn(|cx| {
                    polled += 1;
                    match asking.as_mut().poll(cx) {
                        Poll::Pending if polled >= polls => Poll::Ready(None),
                        polled => polled.map(Some),
                    }
                });
                // One that waits is not polled any more when it stands in line.
                tokio::time::timeout(Duration::from_millis(200), asked).await.unwrap_or(None)
            };
            if let Some(attempt) = attempt {
                was_granted = true;
                assert_eq!(release(&ann, &granted(attempt)).await, Release::Released);
            }
            let what = format!("nothing of an attempt that was dropped after {polls} polls");
            sees(&bob, &what, |state| {
                state.waiters.is_empty() && state.holders.len() == usize::from(is_held)
            })
            .await;
        }
        assert_eq!(was_granted, !is_held, "the last ones are polled often enough");
        if let Some(held) = held {
            assert_eq!(release(&bob, &held).await, Release::Released);
        }
    }
}

#[tokio::test]
async fn a_broken_connection_costs_nobody_a_lease_or_a_place() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, bob, cat) =
        (connect_over(&proxy).await, connect_over(&proxy).await, connect(&servers.url()).await);
    let held = hold(&ann).await;
    let begin = |client: &Arc<ZooKeeperBackend>| {
        let client = Arc::clone(client);
        tokio::spawn(async move { client.acquire(for_ever()).await })
    };
    let first = begin(&bob);
    sees_waiters(&cat, 1).await;
    let second = begin(&cat);
    sees_waiters(&cat, 2).await;

    proxy.cut_connections();
    assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
    proxy.cut_connections();
    // Its node is not looked after by anybody's watch but that of the new connection.
    assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
    let released = now();
    assert_eq!(release(&ann, &held).await, Release::Released);
    let next = granted(within("the turn of the first in line", first).await.expect("no panic"));
    let took = now().saturating_since(released);
    assert!(took < NET, "its new connection tells it, and not the net: {took:?}");
    assert!(!second.is_finished(), "the second one waits for the first one");
    assert_eq!(release(&bob, &next).await, Release::Released);
    let last = granted(within("the turn of the second in line", second).await.expect("no panic"));
    assert!(last.token.sequence() > next.token.sequence());
}

#[tokio::test]
async fn what_is_given_back_while_nobody_answers_is_free_afterwards() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let (ann, bob) = (connect_over(&proxy).await, connect(&servers.url()).await);
    let lease = hold(&ann).await;
    proxy.accept_and_be_silent();
    let released = within("an answer", ann.release(std::slice::from_ref(&lease.key))).await;
    assert!(released.is_err(), "nobody knows whether it was given back: {released:?}");
    proxy.mend();
    // Its session lives on, so nothing else removes the node.
    sees(&bob, "a lock that was given back", LockState::is_free).await;
}

#[tokio::test]
async fn what_is_given_back_while_its_session_is_between_connections_was_held() {
    let Some(servers) = Ensemble::start().await else { return };
    // The way to the server: it says who has come, and lets nobody further while it is shut.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("a listener has an address").port();
    let (server, is_open) = (servers.ports()[0], watch::Sender::new(true));
    let (come, mut has_come) = mpsc::unbounded_channel();
    let mut gate = is_open.subscribe();
    let mut way = JoinSet::new();
    way.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (mut client, _) = accepted.expect("a connection");
                    let _ = come.send(());
                    let mut gate = gate.clone();
                    connections.spawn(async move {
                        let _ = gate.wait_for(|is_open| *is_open).await;
                        let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await.expect("a server");
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut far).await;
                    });
                }
                changed = gate.changed() => match changed {
                    Ok(()) if *gate.borrow_and_update() => {}
                    Ok(()) => connections = JoinSet::new(),
                    Err(_) => return,
                },
            }
        }
    });
    let ann = connect(&format!("zookeeper://127.0.0.1:{port}")).await;
    for _ in 0..5 {
        let lease = hold(&ann).await;
        while has_come.try_recv().is_ok() {}
        is_open.send_replace(false);
        within("a session that looks for a server", has_come.recv()).await;
        let (released, ()) = tokio::join!(release(&ann, &lease), async {
            is_open.send_replace(true);
        });
        assert_eq!(released, Release::Released, "nobody else has removed it");
    }
}

#[tokio::test]
async fn a_node_that_is_removed_after_a_broken_connection_is_missed() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let ann = connect_over(&proxy).await;
    let held = hold(&ann).await;
    proxy.cut_connections();
    assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
    servers.delete(&format!("{FOLDER}/{}", servers.children(FOLDER).await[0])).await;
    assert_eq!(renew(&ann, &held.key).await, Renewal::Lost, "the new connection watches it as well");
}

#[tokio::test]
async fn what_is_given_back_of_several_permits_is_had_at_once_by_one_after_the_other() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&servers.url()).await;
    let begin = || {
        let (client, mode) = (Arc::clone(&client), Mode::permit(2).expect("two permits"));
        tokio::spawn(async move { client.acquire(request(mode, LONG, Wait::Until(BootInstant::MAX))).await })
    };
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(granted(within("a free permit", begin()).await.expect("no panic")));
    }
    let mut line = Vec::new();
    for count in 1..=4 {
        line.push(begin());
        sees_waiters(&client, count).await;
    }
    let since = now();
    // The later of the two holders first: whoever is next waits for any of them.
    for next in line {
        assert_eq!(release(&client, &held.pop().expect("two hold")).await, Release::Released);
        held.insert(0, granted(within("a turn", next).await.expect("no panic")));
    }
    let took = now().saturating_since(since);
    assert!(
        took < Duration::from_secs(4),
        "a look every five seconds is the net, and nobody fell into it: {took:?}"
    );
}

#[tokio::test]
async fn a_holder_is_told_at_once_when_its_session_ends_or_its_node_is_removed() {
    let Some(servers) = Ensemble::start().await else { return };
    let locks = Locks::connect(&servers.url()).await.expect("a server");
    for removes in [false, true] {
        let guard = locks.lock(NAME).ttl(LONG).acquire().await.expect("a free lock");
        let other = locks.lock("another").ttl(LONG).acquire().await.expect("a free lock");
        let node = format!("{FOLDER}/{}", servers.children(FOLDER).await[0]);
        if removes {
            servers.delete(&node).await;
        } else {
            servers.end_session_of(&node).await;
        }
        tokio::time::timeout(AT_ONCE, guard.lost()).await.expect("word of the loss before any renewal");
        if removes {
            assert!(other.is_held(), "the other lease of the session lives on");
        } else {
            tokio::time::timeout(AT_ONCE, other.lost()).await.expect("all leases of a session end with it");
        }
        // What was lost is nobody's to give back, and whoever wants the name gets it, in a new session.
        drop((guard, other));
        let next = within("the next grant", locks.lock(NAME).ttl(LONG).acquire()).await.expect("a free lock");
        next.release().await.expect("it is held");
    }
}

#[tokio::test]
async fn while_nobody_answers_a_guard_is_lost_at_its_deadline_and_never_before() {
    let Some(servers) = Ensemble::start().await else { return };
    let proxy = Proxy::start(servers.ports()[0]).await;
    let locks = Locks::connect(&format!("zookeeper://127.0.0.1:{}", proxy.port())).await.expect("a server");
    let guard = locks.lock(NAME).ttl(SHORT).acquire().await.expect("a free lock");
    proxy.cut();
    let left = guard.remaining();
    let cut = now();
    within("a loss", guard.lost()).await;
    let after = now().saturating_since(cut);
    // A renewal that was under way may have prolonged it, by what it had lost until then.
    assert!(after + Duration::from_millis(20) >= left, "it was lost after {after:?} and had {left:?}");
    assert!(after < SHORT + SHORT / 2, "it was lost after {after:?}, and its TTL is {SHORT:?}");
    proxy.mend();
    let bob = connect(&servers.url()).await;
    let next = hold(&bob).await;
    assert!(next.token.sequence() > guard.token().sequence());
}

#[tokio::test]
async fn a_container_that_vanishes_takes_no_order_of_tokens_with_it() {
    let Some(servers) = Ensemble::start().await else { return };
    let ann = connect(&servers.url()).await;
    let mut last = None;
    for _ in 0..3 {
        let lease = hold(&ann).await;
        let [node] = &servers.children(FOLDER).await[..] else { panic!("one holds") };
        assert!(node.ends_with("-0000000000"), "numbers of nodes begin again: {node}");
        assert!(Some(lease.token.sequence()) > last, "tokens do not: {last:?}, {lease:?}");
        last = Some(lease.token.sequence());
        assert_eq!(release(&ann, &lease).await, Release::Released);
        // As the servers do it with a container that is empty, some time later.
        servers.delete(FOLDER).await;
    }
}

#[tokio::test]
async fn a_container_that_vanishes_whenever_it_is_empty_is_in_nobodys_way() {
    // The servers look for empty ones every minute, and remove so many of them, unless they are told otherwise.
    let options = ZooKeeperOptions::new().property("znode.container.checkIntervalMs", "1");
    let Some(servers) = options.property("znode.container.maxPerMinute", "60000").start().await else {
        return;
    };
    let mut working = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let client = connect(&servers.url()).await;
        working.spawn(async move {
            let mut tokens = Vec::new();
            for _ in 0..30 {
                let lease = hold(&client).await;
                tokens.push(lease.token);
                assert_eq!(release(&client, &lease).await, Release::Released);
            }
            tokens
        });
    }
    let mut tokens = std::collections::BTreeSet::new();
    while let Some(worker) = working.join_next().await {
        let its = worker.expect("no panic");
        assert!(its.is_sorted_by(|one, next| one.sequence() < next.sequence()), "{its:?}");
        tokens.extend(its.iter().map(|token| token.sequence()));
    }
    assert_eq!(tokens.len(), 90, "no two grants have one number");
    within("the end of the container", async {
        while !servers.children("/ringfence/locks").await.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_wall_clock_that_is_stepped_ends_no_session_and_prolongs_none() {
    const TTL: Duration = Duration::from_secs(6);
    const HOUR: i64 = 3_600;
    let Some(clock) = WallClock::new() else { return };
    let Some(servers) = ZooKeeperOptions::new().servers(3).clock(&clock).start().await else { return };
    // Where it has to be built, that is no time in which anybody holds.
    taker();
    let locks = Locks::connect(&servers.url()).await.expect("servers that serve");
    let held = locks.lock("another").ttl(TTL).acquire().await.expect("a free lock");
    let mut shown = 0;
    for step in [HOUR, -HOUR] {
        let mut taker = Taker::start(&servers.url(), NAME, &["--ttl", "6s"]);
        let (token, _) = taker.holds().await;
        clock.step(step);
        taker.kill();
        let killed = now();
        let next = within("the next grant", locks.lock(NAME).ttl(TTL).acquire()).await.expect("a grant");
        let took = now().saturating_since(killed);
        // The servers heard of it last a quarter of the TTL and half a tick before, and look once in a tick.
        let bounds = TTL / 2..TTL + Duration::from_secs(3);
        assert!(bounds.contains(&took), "after a step of {step} s it was granted after {took:?}");
        assert!(next.token().sequence() > token.sequence(), "{token} {}", next.token());
        let node = format!("{FOLDER}/{}", servers.children(FOLDER).await[0]);
        let made = servers.made_at(&node).await / 1_000;
        assert!(shown == 0 || made < shown - HOUR, "the clock was stepped: {shown} {made}");
        shown = made;
        next.release().await.expect("it is held");
        assert!(held.is_held(), "a step of {step} s ends nobody's lease");
    }
    held.release().await.expect("it is held");
}

#[tokio::test]
async fn a_restarted_server_has_every_lease_and_place() {
    let Some(mut servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(&servers.url()).await, connect(&servers.url()).await);
    let held = hold(&ann).await;
    let waiting = tokio::spawn({
        let bob = Arc::clone(&bob);
        async move { bob.acquire(for_ever()).await }
    });
    sees_waiters(&ann, 1).await;
    servers.restart(0);
    servers.serves().await;
    assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
    sees_waiters(&ann, 1).await;
    assert_eq!(release(&ann, &held).await, Release::Released);
    let next = granted(within("the turn of the one in line", waiting).await.expect("no panic"));
    assert!(next.token.sequence() > held.token.sequence());
}

#[tokio::test]
async fn an_ensemble_loses_its_leader_and_nobody_loses_a_lease() {
    let Some(mut servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let (ann, bob) = (connect(&servers.url()).await, connect(&servers.url()).await);
    let mut held = hold(&ann).await;
    for round in 0..2 {
        let (holder, next) = if round % 2 == 0 { (&ann, &bob) } else { (&bob, &ann) };
        let waiting = tokio::spawn({
            let next = Arc::clone(next);
            async move { next.acquire(for_ever()).await }
        });
        sees_waiters(holder, 1).await;
        let leader = servers.leader().await.expect("servers that serve have a leader");
        servers.kill(leader);
        assert_eq!(
            renew(holder, &held.key).await,
            Renewal::Renewed,
            "a session goes on under the next leader"
        );
        assert_eq!(release(holder, &held).await, Release::Released);
        let lease = granted(within("the turn of the one in line", waiting).await.expect("no panic"));
        assert!(lease.token.sequence() > held.token.sequence(), "{held:?} {lease:?}");
        held = lease;
        servers.restart(leader);
        servers.serves().await;
    }
}

/// Those that are left take connections meanwhile, and hang up.
#[tokio::test]
async fn a_newcomer_waits_until_the_next_leader_is_elected() {
    let Some(mut servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let ann = connect(&servers.url()).await;
    let held = hold(&ann).await;
    let leader = servers.leader().await.expect("servers that serve have a leader");
    servers.kill(leader);
    // They notice a moment after that, and a follower may take a newcomer in until then.
    let bob = loop {
        let newcomer = connect(&servers.url()).await;
        if servers.leader().await.is_some() {
            break newcomer;
        }
    };
    let asked = bob.acquire(request(Mode::Exclusive, LONG, Wait::No)).await;
    assert!(matches!(asked, Ok(Attempt::Busy(_))), "it sees what is held: {asked:?}");
    assert_eq!(release(&ann, &held).await, Release::Released);
}

#[tokio::test]
async fn a_follower_that_falls_silent_is_left_and_leases_live_on() {
    const TTL: Duration = Duration::from_secs(9);
    let Some(servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let ann = connect(&servers.url()).await;
    let wait = Wait::Until(BootInstant::MAX);
    let held = granted(ann.acquire(request(Mode::Exclusive, TTL, wait)).await);
    let leader = servers.leader().await.expect("servers that serve have a leader");
    // One of them is the one that it speaks to, unless that is the leader.
    for follower in (0..3).filter(|server| *server != leader) {
        servers.stop(follower);
        assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed, "the others renew it");
        servers.resume(follower);
        servers.serves().await;
        assert_eq!(renew(&ann, &held.key).await, Renewal::Renewed);
    }
}

#[tokio::test]
async fn without_a_quorum_guards_are_lost_and_afterwards_the_lock_is_free_again() {
    let Some(servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let locks = Locks::connect(&servers.url()).await.expect("servers that serve");
    let guard = locks.lock(NAME).ttl(SHORT).acquire().await.expect("a free lock");
    let leader = servers.leader().await.expect("servers that serve have a leader");
    let silent: Vec<usize> = (0..3).filter(|server| *server != leader).collect();
    let stopped = now();
    for server in &silent {
        servers.stop(*server);
    }
    within("a loss", guard.lost()).await;
    // The renewal of the last moment may have been answered.
    let after = now().saturating_since(stopped);
    assert!(after < SHORT + SHORT / 2, "it was lost after {after:?}, and its TTL is {SHORT:?}");
    let refused = locks.lock(NAME).ttl(SHORT).try_acquire().await;
    assert!(
        !matches!(refused, Ok(Some(_)))
            && refused.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Unavailable),
        "nothing is granted: {refused:?}"
    );
    for server in &silent {
        servers.resume(*server);
    }
    servers.serves().await;
    let bob = connect(&servers.url()).await;
    let lease = hold(&bob).await;
    assert!(lease.token.sequence() > guard.token().sequence());
}
