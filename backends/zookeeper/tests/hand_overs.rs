//! What it costs to pass a lock on, and that nobody passes on what others have.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, HolderInfo, Lease, LockName, Mode,
    Release, Renewal, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, Proxy, ZooKeeperOptions};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// A TTL that no test outlives.
const LONG: Duration = Duration::from_mins(1);

async fn connect(port: u16) -> Arc<ZooKeeperBackend> {
    let url = BackendUrl::parse(&format!("zookeeper://127.0.0.1:{port}")).expect("a lawful URL");
    let connected = ZooKeeperBackend::connect(&url, Arc::new(SystemClock::new())).await;
    Arc::new(connected.expect("a server that serves"))
}

/// Waits for the lock as long as it takes.
async fn hold(client: Arc<ZooKeeperBackend>, name: LockName) -> Lease {
    hold_in(Mode::Exclusive, client, name).await
}

async fn hold_in(mode: Mode, client: Arc<ZooKeeperBackend>, name: LockName) -> Lease {
    let holder = HolderInfo::new("hand-over", "here", 1).expect("lawful words");
    let ttl = Ttl::new(LONG).expect("a lawful TTL");
    let wait = Wait::Until(BootInstant::MAX);
    match client.acquire(AcquireRequest::new(name, mode, ttl, wait, holder)).await {
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

/// A line for a lock that the first one holds: those who wait for it, in their order, with the task in which each does.
async fn line(
    servers: &Ensemble,
    name: &LockName,
    count: usize,
) -> (Vec<Arc<ZooKeeperBackend>>, Lease, Vec<JoinHandle<Lease>>) {
    let mut clients = Vec::new();
    for _ in 0..=count {
        clients.push(connect(servers.ports()[0]).await);
    }
    let held = hold(Arc::clone(&clients[0]), name.clone()).await;
    let mut waiting = Vec::new();
    for (client, standing) in clients[1..].iter().zip(2..) {
        waiting.push(tokio::spawn(hold(Arc::clone(client), name.clone())));
        stand(servers, name, standing).await;
    }
    (clients, held, waiting)
}

#[tokio::test]
async fn a_turn_comes_with_the_transaction_by_which_the_one_before_leaves() {
    const COUNT: usize = 8;
    let Some(servers) = Ensemble::start().await else { return };
    let name: LockName = "turns".parse().expect("a lawful name");
    let (clients, mut held, waiting) = line(&servers, &name, COUNT).await;
    let other: LockName = "another".parse().expect("a lawful name");
    let before = hold(Arc::clone(&clients[0]), other.clone()).await;
    release(&clients[0], &before).await;
    let clock = SystemClock::new();
    let mut is_slow = false;
    for (at, waiting) in waiting.into_iter().enumerate() {
        let asked = clock.now();
        release(&clients[at], &held).await;
        held = within("a turn", waiting).await.expect("no panic");
        is_slow |= clock.now().saturating_since(asked) >= Duration::from_millis(90);
    }
    let after = hold(Arc::clone(&clients[0]), other).await;
    // The release of the first one, a hand-over each, and the making of the second.
    let transactions = after.token.grant() - before.token.grant();
    let most = if is_slow { COUNT } else { 0 };
    let least = 1 + COUNT + 1;
    // One that holds for a tenth of a second writes that it does.
    assert!(
        (least..=least + most).contains(&usize::try_from(transactions).expect("a small number")),
        "{transactions} transactions for {COUNT} hand-overs"
    );
}

#[tokio::test]
async fn who_holds_and_dies_without_a_word_is_followed_all_the_same() {
    let Some(servers) = Ensemble::start().await else { return };
    let name: LockName = "without-a-word".parse().expect("a lawful name");
    let (clients, first, waiting) = line(&servers, &name, 3).await;
    let [second, third, fourth] = <[_; 3]>::try_from(waiting).expect("three wait");
    let places = stand(&servers, &name, 4).await;
    release(&clients[0], &first).await;
    within("the second one's turn", second).await.expect("no panic");
    servers.end_session_of(&places[1]).await;
    let third = within("the third one's turn", third).await.expect("no panic");
    assert!(!fourth.is_finished(), "the lock is held");
    release(&clients[2], &third).await;
    let fourth = within("the fourth one's turn", fourth).await.expect("no panic");
    assert!(fourth.token.sequence() > third.token.sequence(), "{fourth:?} came after {third:?}");
    // Somebody removes its node, and it is given back before it is told.
    servers.delete(&places[3]).await;
    let released = clients[3].release(std::slice::from_ref(&fourth.key)).await;
    assert_eq!(released.expect("an answer"), [Release::NotHeld]);
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
    // It is told, and does so long before it would look by itself.
    let stands = tokio::time::timeout(Duration::from_secs(3), stand(&servers, &name, 3)).await;
    assert!(stands.is_ok(), "{:?} stands in line nowhere", places[1]);
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

/// As an operator's tool does that writes nodes back, or a neighbour where everybody may.
#[tokio::test]
async fn a_waiter_whose_node_is_written_by_somebody_else_has_not_held() {
    let Some(servers) = Ensemble::start().await else { return };
    let port = servers.ports()[0];
    let name: LockName = "written".parse().expect("a lawful name");
    let ann = connect(port).await;
    let held = hold(Arc::clone(&ann), name.clone()).await;
    let mut waiting = Vec::new();
    for before in 1..=3 {
        let client = connect(port).await;
        let waiter = tokio::spawn(hold(Arc::clone(&client), name.clone()));
        stand(&servers, &name, before + 1).await;
        waiting.push((client, waiter));
    }
    let [(bob, first), (_cat, second), (_dan, mut third)] =
        <[_; 3]>::try_from(waiting).unwrap_or_else(|_| panic!("three wait"));
    servers.touch(&stand(&servers, &name, 4).await[2]).await;
    second.abort();
    stand(&servers, &name, 3).await;
    let overtakes = tokio::time::timeout(Duration::from_millis(500), &mut third).await;
    assert!(overtakes.is_err(), "{held:?} is held, and so is {overtakes:?}");
    release(&ann, &held).await;
    let next = within("the turn of the first", first).await.expect("no panic");
    assert!(!third.is_finished(), "{next:?} is held");
    release(&bob, &next).await;
    let last = within("the turn of the third", third).await.expect("no panic");
    assert!(last.token.sequence() > next.token.sequence(), "{last:?} came after {next:?}");
}

/// Above what a line counts as long.
const MANY: usize = 40;

/// A long line for a lock that the first client holds, of waiters of the second, which knows that the line is long. Each that
/// has had the lock gives it back and says who it is.
async fn long_line(
    servers: &Ensemble,
    clients: [&Arc<ZooKeeperBackend>; 2],
    name: &LockName,
    count: usize,
) -> (Lease, Waiters) {
    let held = hold(Arc::clone(clients[0]), name.clone()).await;
    let waiters =
        Waiters { client: Arc::clone(clients[1]), name: name.clone(), had: mpsc::unbounded_channel() };
    for _ in 0..count - 1 {
        waiters.join(Mode::Exclusive);
    }
    stand(servers, name, count).await;
    // Now it is seen.
    waiters.join(Mode::Exclusive);
    stand(servers, name, count + 1).await;
    (held, waiters)
}

struct Waiters {
    client: Arc<ZooKeeperBackend>,
    name: LockName,
    had: (mpsc::UnboundedSender<u64>, mpsc::UnboundedReceiver<u64>),
}

impl Waiters {
    /// One more, at the end.
    fn join(&self, mode: Mode) -> JoinHandle<()> {
        let (client, name, had) = (Arc::clone(&self.client), self.name.clone(), self.had.0.clone());
        tokio::spawn(async move {
            let lease = hold_in(mode, Arc::clone(&client), name).await;
            let _ = had.send(lease.token.sequence());
            release(&client, &lease).await;
        })
    }

    /// The tokens of the next ones to have it, in the order in which they had it.
    async fn had(&mut self, count: usize) -> Vec<u64> {
        let mut tokens = Vec::new();
        for _ in 0..count {
            tokens.push(within("a turn", self.had.1.recv()).await.expect("a sender is here"));
        }
        tokens
    }
}

#[tokio::test]
async fn who_joins_a_long_line_does_not_list_it() {
    const JOIN: usize = 20;
    let Some(servers) = Ensemble::start().await else { return };
    let (port, proxy) = (servers.ports()[0], Proxy::start(servers.ports()[0]).await);
    let (ann, bob, cat) = (connect(port).await, connect(port).await, connect(proxy.port()).await);
    let another: LockName = "another".parse().expect("a lawful name");
    let mut read = Vec::new();
    for count in [MANY, 1000] {
        let name: LockName = format!("line-of-{count}").parse().expect("a lawful name");
        let (held, mut waiters) = long_line(&servers, [&ann, &bob], &name, count).await;
        // The first of a client says nothing of itself, the second one does not know who was before it, and lists them, which may be
        // answered while the third joins.
        waiters.client = Arc::clone(&cat);
        let mut before = 0;
        for joined in 1..=JOIN + 3 {
            waiters.join(Mode::Exclusive);
            stand(&servers, &name, 1 + count + joined).await;
            // Its answer comes after those to whoever joined.
            cat.inspect(&another).await.expect("a server that answers");
            if joined == 3 {
                before = proxy.heard();
            }
        }
        read.push((proxy.heard() - before) / JOIN as u64);
        release(&ann, &held).await;
        assert!(
            waiters.had(count + JOIN + 3).await.is_sorted(),
            "everybody has it, in the order of the line"
        );
    }
    // A list of forty has 1.6 kilobytes.
    assert!(
        read[0] < 1500 && read[1] < 1500,
        "bytes read by one that joins lines of {MANY} and 1,000: {read:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_line_that_has_vanished_is_made_again_by_all_at_once() {
    const CLIENTS: usize = 6;
    let Some(servers) = ZooKeeperOptions::new().servers(3).start().await else { return };
    let ann = connect(servers.ports()[0]).await;
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        clients.push(connect(servers.ports()[client % 3]).await);
    }
    for round in 0..10 {
        let name: LockName = format!("vanished-{round}").parse().expect("a lawful name");
        let (held, mut waiters) = long_line(&servers, [&ann, &clients[0]], &name, MANY).await;
        // All of them know that it is long.
        for (joined, client) in clients.iter().enumerate() {
            waiters.client = Arc::clone(client);
            waiters.join(Mode::Exclusive);
            stand(&servers, &name, MANY + 2 + joined).await;
        }
        release(&ann, &held).await;
        waiters.had(MANY + CLIENTS).await;
        stand(&servers, &name, 0).await;
        servers.delete(&format!("/ringfence/locks/{name}")).await;
        let mut joining = Vec::new();
        for client in clients.iter().cycle().take(3 * CLIENTS) {
            waiters.client = Arc::clone(client);
            joining.push(waiters.join(Mode::Exclusive));
        }
        for joined in joining {
            within("its turn", joined).await.expect("nobody is refused");
        }
    }
}

#[tokio::test]
async fn who_was_told_of_the_last_one_alone_does_not_pass_over_those_before_it() {
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(servers.ports()[0]).await, connect(servers.ports()[0]).await);
    let name: LockName = "behind-the-last".parse().expect("a lawful name");
    let (held, mut waiters) = long_line(&servers, [&ann, &bob], &name, MANY).await;
    let gives_up = waiters.join(Mode::Exclusive);
    stand(&servers, &name, MANY + 2).await;
    waiters.join(Mode::Exclusive);
    stand(&servers, &name, MANY + 3).await;
    // It does not hold, and goes.
    gives_up.abort();
    stand(&servers, &name, MANY + 2).await;
    // One that shares says nothing of itself to those who come after it.
    waiters.join(Mode::Shared);
    stand(&servers, &name, MANY + 3).await;
    waiters.join(Mode::Exclusive);
    stand(&servers, &name, MANY + 4).await;
    release(&ann, &held).await;
    assert!(waiters.had(MANY + 3).await.is_sorted(), "everybody has it, in the order of the line");
    stand(&servers, &name, 0).await;
}

#[tokio::test]
async fn who_may_not_say_that_it_came_last_lists_a_long_line() {
    const ALL_BUT_WRITE: i32 = 31 - 2;
    let Some(servers) = Ensemble::start().await else { return };
    let (ann, bob) = (connect(servers.ports()[0]).await, connect(servers.ports()[0]).await);
    let name: LockName = "not-to-be-written".parse().expect("a lawful name");
    let (held, mut waiters) = long_line(&servers, [&ann, &bob], &name, MANY).await;
    servers.allow(&format!("/ringfence/locks/{name}"), ALL_BUT_WRITE).await;
    waiters.join(Mode::Exclusive);
    stand(&servers, &name, MANY + 2).await;
    release(&ann, &held).await;
    assert!(waiters.had(MANY + 1).await.is_sorted(), "everybody has it, in the order of the line");
}

#[tokio::test]
async fn how_long_somebody_holds_is_told_without_its_wait() {
    const WAITED: Duration = Duration::from_secs(3);
    let Some(servers) = Ensemble::start().await else { return };
    let name: LockName = "since".parse().expect("a lawful name");
    let (clients, first, waiting) = line(&servers, &name, 2).await;
    let [second, third] = <[_; 2]>::try_from(waiting).expect("two wait");
    tokio::time::sleep(WAITED).await;
    release(&clients[0], &first).await;
    let second = within("the second one's turn", second).await.expect("no panic");
    within("a holder that is younger than its wait", async {
        loop {
            let state = clients[0].inspect(&name).await.expect("a server that answers");
            let [holder, waiter] = [state.holders[0].age, state.waiters[0].age];
            assert!(waiter.is_some_and(|age| age > WAITED / 2), "who waits is as old as its wait: {state:?}");
            if holder.is_some_and(|age| age < WAITED / 2) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // What it has said does not keep it from sharing, nor the next one from its turn.
    let downgraded = clients[1].downgrade(&second.key).await.expect("an answer");
    assert_eq!(downgraded, Renewal::Renewed);
    let state = clients[0].inspect(&name).await.expect("a server that answers");
    assert_eq!(state.holders[0].mode, Mode::Shared, "{state:?}");
    release(&clients[1], &second).await;
    within("the third one's turn", third).await.expect("no panic");
}
