//! Redlock on five real servers, each behind a network of its own for each client: what becomes of leases, tokens and records
//! when nodes die, are silent, forget, or have another idea of the time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Backoff, BootInstant, Clock, Effect, Error, ErrorKind,
    FencingToken, HolderInfo, Lease, ListQuery, LockName, Mode, RecordKey, Release, Renewal, Result, Retry,
    Severity, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedlockBackend;
use ringfence_servers::{Event, Process, Proxy, RedisOptions, RedisServer, Taker, WallClock, node};
use ringfence_testkit::{PATIENCE, ShiftedClock};
use tokio::task::JoinSet;

const NODES: usize = 5;

/// The key of [`name`].
const KEY: &str = "ringfence:{orders/42}";
const COUNTER: &str = "ringfence:{orders/42}:t";
const WITHDRAWN: &str = "ringfence:{orders/42}:x";

fn name() -> LockName {
    "orders/42".parse().expect("a name")
}

/// Five servers.
struct Nodes(Vec<RedisServer>);

impl Nodes {
    async fn start() -> Option<Self> {
        Self::start_with(|_| RedisOptions::new()).await
    }

    async fn start_with(options: impl Fn(usize) -> RedisOptions) -> Option<Self> {
        let mut nodes = Vec::new();
        for node in 0..NODES {
            nodes.push(options(node).start().await?);
        }
        Some(Self(nodes))
    }

    /// What each node has in a key: nothing, where there is nothing.
    async fn get(&self, key: &str) -> Vec<String> {
        let mut values = Vec::new();
        for node in &self.0 {
            values.push(node.command(&["GET", key]).await);
        }
        values
    }

    /// On how many nodes the lock is taken.
    async fn taken(&self) -> usize {
        self.get(KEY).await.iter().filter(|value| !value.is_empty()).count()
    }

    /// Waits until the lock is taken on so many nodes.
    async fn until_taken(&self, count: usize) {
        let seen = async {
            while self.taken().await != count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        assert!(seen.is_ok(), "expected the lock on {count} nodes: {:?}", self.get(KEY).await);
    }
}

impl Nodes {
    /// Waits until all nodes know the lease by its number, also those that the grant did not wait for.
    async fn until_marked(&self, lease: &Lease) {
        let begin = format!("{:016x}:{}:", lease.key.nonce.get(), lease.token.grant());
        let marked = async {
            while !self.get(KEY).await.iter().all(|value| value.starts_with(&begin)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, marked).await.expect("all nodes are marked");
    }

    /// Waits until all nodes know the script for locks and the one for records. A node that has to be told one first may hear of
    /// the second step of an opening, which it then refuses, before the first one.
    async fn until_taught(&self) {
        let taught = async {
            for node in &self.0 {
                while node.info("number_of_cached_scripts").await.as_deref() != Some("2") {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, taught).await.expect("all nodes know both scripts");
    }
}

/// A client, and its way to each node.
struct Client {
    backend: RedlockBackend,
    ways: Vec<Proxy>,
}

impl Client {
    async fn of(nodes: &Nodes) -> Self {
        Self::with(nodes, "", Arc::new(SystemClock::new())).await
    }

    async fn with(nodes: &Nodes, parameters: &str, clock: Arc<dyn Clock>) -> Self {
        let mut ways = Vec::new();
        for node in &nodes.0 {
            ways.push(Proxy::start(node.port()).await);
        }
        let backend = connect(ways.iter().map(Proxy::port), parameters, clock).await.expect("five nodes");
        let client = Self { backend, ways };
        // Connected to all of them, and not only to the quorum that `connect` waits for.
        assert!(client.backend.inspect(&name()).await.expect("an answer").is_free());
        client
    }

    /// Cuts the ways to these nodes.
    fn cut(&self, nodes: &[usize]) {
        for &node in nodes {
            self.ways[node].cut();
        }
    }

    fn mend(&self) {
        self.ways.iter().for_each(Proxy::mend);
    }

    async fn ask(&self, mode: Mode, wait: Wait) -> Result<Attempt> {
        self.backend.acquire(request(name(), mode, Ttl::DEFAULT, wait)).await
    }

    async fn hold(&self) -> Lease {
        self.hold_for("orders/42", Ttl::DEFAULT).await
    }

    async fn hold_for(&self, name: &str, ttl: Ttl) -> Lease {
        let name = name.parse().expect("a name");
        granted(self.backend.acquire(request(name, Mode::Exclusive, ttl, Wait::No)).await)
    }

    async fn release(&self, lease: &Lease) -> Release {
        self.backend.release(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
    }

    async fn renew(&self, lease: &Lease) -> Renewal {
        self.backend.renew(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
    }

    /// The record, as soon as a majority of the nodes answers.
    async fn read(&self) -> Option<String> {
        let read = async {
            loop {
                match self.backend.records().read(&RecordKey::of(name())).await {
                    Ok(record) => break record,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
                }
            }
        };
        let record = tokio::time::timeout(PATIENCE, read).await.expect("a majority answers");
        record.map(|record| String::from_utf8(record.value.to_vec()).expect("text"))
    }

    async fn open(&self, lease: &Lease) -> Result<Option<String>> {
        let opened = self.backend.records().open(&RecordKey::of(name()), lease.token).await?;
        Ok(opened.record.map(|record| String::from_utf8(record.value.to_vec()).expect("text")))
    }

    async fn write(&self, lease: &Lease, value: &'static str) -> Result<u64> {
        let value = Bytes::from_static(value.as_bytes());
        Ok(self.backend.records().write(&RecordKey::of(name()), lease.token, value).await?.0)
    }
}

async fn connect(
    ports: impl Iterator<Item = u16>,
    parameters: &str,
    clock: Arc<dyn Clock>,
) -> Result<RedlockBackend> {
    let nodes: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    let url = BackendUrl::parse(&format!("redlock://{}?{parameters}", nodes.join(",")))?;
    RedlockBackend::connect(&url, clock).await
}

fn request(name: LockName, mode: Mode, ttl: Ttl, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name, mode, ttl, wait, holder)
}

fn granted(attempt: Result<Attempt>) -> Lease {
    match attempt {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("expected a grant: {other:?}"),
    }
}

fn is_busy(attempt: &Result<Attempt>) -> bool {
    matches!(attempt, Ok(Attempt::Busy(_)))
}

fn refused<T: std::fmt::Debug>(result: Result<T>) -> Error {
    result.expect_err("it is to be refused")
}

fn permit(limit: u32) -> Mode {
    Mode::permit(limit).expect("a few permits")
}

fn ttl(millis: u64) -> Ttl {
    Ttl::new(Duration::from_millis(millis)).expect("a TTL")
}

/// A resource that checks tokens, as any does that is no lock service: it refuses those below the highest it has seen.
#[derive(Debug, Default)]
struct Resource {
    mark: u64,
    writes: Vec<&'static str>,
}

impl Resource {
    fn write(&mut self, token: FencingToken, what: &'static str) {
        if token.sequence() >= self.mark {
            self.mark = token.sequence();
            self.writes.push(what);
        }
    }
}

#[tokio::test]
async fn a_lease_says_what_it_took_and_leaves_no_lock_behind() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold().await;
    let agreement = lease.agreement.expect("several nodes agreed");
    assert_eq!((agreement.nodes, agreement.attempts), (NODES, 1));
    assert!((3..=NODES).contains(&agreement.answered), "{agreement:?}");
    assert!(!agreement.took.is_zero() && agreement.took < PATIENCE, "{agreement:?}");
    // Those who were not waited for have it as well, with the same number.
    nodes.until_taken(NODES).await;
    nodes.until_marked(&lease).await;
    let counters = nodes.get(COUNTER).await;
    let number = lease.token.grant().to_string();
    assert!(counters.iter().all(|counter| *counter >= number), "{number}: {counters:?}");
    assert_eq!(ann.release(&lease).await, Release::Released);
    nodes.until_taken(0).await;
    for node in &nodes.0 {
        let keys = node.command(&["KEYS", "*orders*"]).await;
        assert_eq!(keys, COUNTER, "only the last number is left");
        let left: u64 = node.command(&["PTTL", COUNTER]).await.parse().expect("a TTL");
        assert!(left <= 3_601_000, "and not for longer than an hour: {left}");
    }
}

/// How many scripts each node has been asked to run.
async fn scripts(nodes: &Nodes) -> Vec<u64> {
    let mut scripts = Vec::new();
    for node in &nodes.0 {
        let stats = node.command(&["INFO", "commandstats"]).await;
        let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        let calls = calls.and_then(|calls| calls.split(',').next());
        scripts.push(calls.map_or(0, |calls| calls.parse().expect("a count")));
    }
    scripts
}

/// The clocks of the nodes are known from the beginning, and so is a number that all of them can give.
#[tokio::test]
async fn one_round_is_enough_where_the_nodes_give_the_number_that_they_are_asked_for() {
    let Some(nodes) = Nodes::start().await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    for mode in [Mode::Exclusive, Mode::Shared, permit(3)] {
        let mut last = 0;
        for client in [&ann, &ben, &ann] {
            // On a busy machine some nodes may be asked 2 ms later than the others, and give a higher number by then.
            let mut tries = 0;
            loop {
                let before = scripts(&nodes).await;
                let lease = granted(client.ask(mode, Wait::No).await);
                nodes.until_taken(NODES).await;
                let after = scripts(&nodes).await;
                assert!(lease.token.sequence() > last, "{last}: {lease:?}");
                last = lease.token.sequence();
                let is_once = before.iter().zip(&after).all(|(before, after)| before + 1 == *after);
                if is_once && mode == Mode::Exclusive {
                    nodes.until_marked(&lease).await;
                }
                assert_eq!(client.release(&lease).await, Release::Released);
                nodes.until_taken(0).await;
                if is_once {
                    break;
                }
                tries += 1;
                assert!(tries < 50, "{mode}: one round was never enough: {before:?}, {after:?}");
            }
        }
    }
}

/// A node whose clock is ahead gives a higher number by itself, until it has told what time it is there.
#[tokio::test]
async fn a_node_that_gave_another_number_is_told_that_of_the_lease() {
    let Some(clock) = WallClock::new() else { return };
    let with_clock = |node| if node == 4 { RedisOptions::new().clock(&clock) } else { RedisOptions::new() };
    let Some(nodes) = Nodes::start_with(with_clock).await else { return };
    let ann = Client::of(&nodes).await;
    let known = ann.hold().await;
    nodes.until_marked(&known).await;
    assert_eq!(ann.release(&known).await, Release::Released);
    nodes.until_taken(0).await;
    clock.step(3600);
    // Nobody waits for the fifth, which is late.
    ann.ways[4].hold_replies();
    let lease = ann.hold().await;
    nodes.until_taken(NODES).await;
    ann.mend();
    nodes.until_marked(&lease).await;
    let counter = nodes.0[4].command(&["GET", COUNTER]).await;
    assert!(counter > lease.token.grant().to_string(), "{counter}: its own clock is an hour ahead");
    assert_eq!(ann.release(&lease).await, Release::Released);
    nodes.until_taken(0).await;
    // From now on all are asked for what that one would give.
    let next = ann.hold().await;
    nodes.until_marked(&next).await;
    assert!(next.token.grant().to_string() > counter, "{counter}: {next:?}");
    for node in &nodes.0[..4] {
        let left = node.command(&["PTTL", COUNTER]).await;
        let left: u64 = left.parse().expect("a TTL");
        assert!(left > 3_600_000 + 3_000_000, "for an hour after its clock has passed it: {left}");
    }
    assert_eq!(ann.release(&next).await, Release::Released);
}

/// What the nodes are asked for is a guess, and they know better.
#[tokio::test]
async fn a_number_that_is_not_above_all_others_is_not_given() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let known = ann.hold().await;
    assert_eq!(ann.release(&known).await, Release::Released);
    nodes.until_taken(0).await;
    for mode in [Mode::Exclusive, Mode::Shared, permit(2)] {
        let far = (known.token.grant() + 60_000_000).to_string();
        for node in &nodes.0 {
            node.command(&["SET", COUNTER, &far]).await;
        }
        let lease = granted(ann.ask(mode, Wait::No).await);
        assert!(lease.token.grant().to_string() > far, "{mode}: {far}, {lease:?}");
        assert_eq!(ann.release(&lease).await, Release::Released);
        nodes.until_taken(0).await;
    }
}

/// Who waits asks again and again, each time as another one: what is late of an attempt then does not undo the next.
#[tokio::test]
async fn each_attempt_of_one_that_waits_has_a_nonce_of_its_own() {
    let Some(nodes) = Nodes::start().await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    ben.cut(&[3, 4]);
    let held = ben.hold().await;
    // So that what it takes there, which is too little, can be seen.
    ann.ways[3].delay(Duration::from_millis(20));
    let mut attempts = BTreeSet::new();
    let seen = async {
        while attempts.len() < 3 {
            let taken = nodes.0[3].command(&["GET", KEY]).await;
            attempts.extend(taken.split_once(':').map(|(nonce, _)| nonce.to_owned()));
        }
        assert_eq!(ben.release(&held).await, Release::Released);
    };
    let both = async { tokio::join!(ann.ask(Mode::Exclusive, Wait::Until(BootInstant::MAX)), seen) };
    let (attempt, ()) = tokio::time::timeout(PATIENCE, both).await.expect("it asks again and again");
    let lease = granted(attempt);
    assert_eq!(ann.release(&lease).await, Release::Released);
}

/// What comes late to a node, after the lease was given back, must not take it: neither where one round was enough, nor two.
#[tokio::test]
async fn a_take_that_nobody_waited_for_leaves_nothing_behind() {
    // For longer than a connection waits for an answer, after which the next request goes another way, and overtakes it.
    const LATE: Duration = Duration::from_secs(6);
    const CONNECTION_IS_DROPPED: Duration = Duration::from_millis(3500);
    let Some(clock) = WallClock::new() else { return };
    let with_clock = |node| if node < 3 { RedisOptions::new().clock(&clock) } else { RedisOptions::new() };
    let Some(nodes) = Nodes::start_with(with_clock).await else { return };
    for rounds in [1, 2] {
        let ann = Client::of(&nodes).await;
        let known = ann.hold().await;
        nodes.until_marked(&known).await;
        assert_eq!(ann.release(&known).await, Release::Released);
        nodes.until_taken(0).await;
        if rounds == 2 {
            // No quorum gives what it is asked for.
            clock.step(3600);
        }
        let before = scripts(&nodes).await[4];
        ann.ways[4].delay(LATE);
        let lease = ann.hold().await;
        tokio::time::sleep(CONNECTION_IS_DROPPED).await;
        ann.ways[4].delay(Duration::ZERO);
        assert_eq!(ann.release(&lease).await, Release::Released);
        // The take, its mark, its withdrawal and the release, in whatever order.
        let asked = async { while scripts(&nodes).await[4] < before + rounds + 2 {} };
        tokio::time::timeout(PATIENCE, asked).await.expect("the take arrives");
        nodes.until_taken(0).await;
    }
}

#[tokio::test]
async fn a_minority_that_is_dead_or_silent_holds_up_nobody() {
    let Some(mut nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    ann.ways[0].accept_and_be_silent();
    nodes.0[1].kill();
    let clock = SystemClock::new();
    let began = clock.now();
    for _ in 0..20 {
        let lease = ann.hold().await;
        assert_eq!(lease.agreement.expect("several nodes agreed").nodes, NODES);
        assert_eq!(ann.renew(&lease).await, Renewal::Renewed);
        assert_eq!(ann.release(&lease).await, Release::Released);
    }
    // A node may be waited for for a second: it is not, as long as the others are enough.
    let took = clock.now().saturating_since(began);
    assert!(took < Duration::from_secs(10), "20 turns took {took:?}");
    // Neither does it hold up those who find the lock busy.
    let lease = ann.hold().await;
    // One now and then waits for the silent node, to see whether it has taken anything.
    let began = clock.now();
    for _ in 0..20 {
        assert!(is_busy(&ann.ask(Mode::Exclusive, Wait::No).await));
    }
    let took = clock.now().saturating_since(began);
    assert!(took < Duration::from_secs(10), "20 tries took {took:?}");
    assert_eq!(ann.release(&lease).await, Release::Released);
}

/// As those of a program do that calls from a runtime of its own, which ends before a silent node has answered.
#[test]
fn a_caller_whose_runtime_ends_leaves_nothing_that_panics() {
    let ours = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let Some(nodes) = ours.block_on(Nodes::start()) else { return };
    let client = ours.block_on(Client::of(&nodes));
    let (panicked, panics) = std::sync::mpsc::channel();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |why| {
        if why.to_string().contains("being shutdown") {
            let _ = panicked.send(why.to_string());
        }
        usual(why);
    }));
    nodes.0[4].stop();
    for _ in 0..10 {
        let theirs = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert!(theirs.block_on(client.backend.inspect(&name())).expect("four answer").is_free());
        drop(theirs);
        // It goes through the hands of whoever hears the silent one out.
        assert!(ours.block_on(client.backend.inspect(&name())).expect("four answer").is_free());
    }
    nodes.0[4].resume();
    assert_eq!(panics.try_iter().collect::<Vec<_>>(), Vec::<String>::new());
}

#[tokio::test]
async fn a_slow_minority_gets_what_it_is_told_in_order() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    // There and back it is longer than a busy machine takes without them, and less than what a node is waited for.
    let delay = Duration::from_millis(250);
    ann.ways[0].delay(delay);
    ann.ways[1].delay(delay);
    let clock = SystemClock::new();
    let began = clock.now();
    let lease = ann.hold().await;
    assert!(clock.now().saturating_since(began) < 2 * delay, "the others are enough");
    assert_eq!(ann.release(&lease).await, Release::Released);
    let next = ann.hold().await;
    assert!(next.token.sequence() > lease.token.sequence(), "{lease:?}, {next:?}");
    nodes.until_taken(NODES).await;
    assert_eq!(ann.release(&next).await, Release::Released);
    nodes.until_taken(0).await;
}

#[tokio::test]
async fn without_a_quorum_nothing_is_granted_and_nothing_is_left() {
    let Some(mut nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    for dead in 0..3 {
        nodes.0[dead].kill();
    }
    let error = refused(ann.ask(Mode::Exclusive, Wait::No).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    assert!(error.to_string().contains("at most 2 of 5 nodes can be used and 3 have to agree"), "{error}");
    let error = refused(ann.ask(Mode::Exclusive, Wait::Until(BootInstant::MAX)).await);
    assert_eq!(
        error.kind(),
        ErrorKind::Unavailable,
        "nobody waits for what was not there at first: {error:?}"
    );
    for alive in &nodes.0[3..] {
        assert_eq!(alive.command(&["EXISTS", KEY]).await, "0", "what was taken is given back");
    }
    for dead in 0..3 {
        nodes.0[dead].restart().await;
    }
    let back = async {
        loop {
            match ann.ask(Mode::Exclusive, Wait::No).await {
                Ok(attempt) => break granted(Ok(attempt)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
        }
    };
    let lease = tokio::time::timeout(PATIENCE, back).await.expect("the nodes are back");
    assert_eq!(ann.release(&lease).await, Release::Released);
}

#[tokio::test]
async fn replies_that_are_lost_are_undone() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    for way in &ann.ways[..3] {
        way.swallow_replies();
    }
    let error = refused(ann.ask(Mode::Exclusive, Wait::No).await);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    ann.mend();
    nodes.until_taken(0).await;
    // What was sent before and comes late is not taken either: the connections were reset, and the attempt withdrawn.
    let ben = Client::of(&nodes).await;
    let lease = ben.hold().await;
    assert_eq!(ben.release(&lease).await, Release::Released);
}

#[tokio::test]
async fn an_attempt_that_is_dropped_is_undone() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    for way in &ann.ways {
        way.swallow_replies();
    }
    {
        let attempt = ann.ask(Mode::Exclusive, Wait::No);
        tokio::pin!(attempt);
        tokio::select! {
            biased;
            attempt = &mut attempt => panic!("nobody answers: {attempt:?}"),
            () = async {
                for way in &ann.ways {
                    way.swallowed().await;
                }
            } => {}
        }
    }
    ann.mend();
    nodes.until_taken(0).await;
}

/// Kleppmann's first schedule: the clock of one node goes forward, and with it a majority.
#[tokio::test]
async fn a_clock_that_jumps_breaks_exclusion_and_no_stale_write_is_accepted() {
    let Some(clock) = WallClock::new() else { return };
    let with_clock = |node| if node == 2 { RedisOptions::new().clock(&clock) } else { RedisOptions::new() };
    let Some(nodes) = Nodes::start_with(with_clock).await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    let mut resource = Resource::default();

    ann.cut(&[3, 4]);
    let first = ann.hold().await;
    assert_eq!(ann.open(&first).await.expect("an open record"), None);
    assert_eq!(ann.write(&first, "ann").await.expect("a write"), 1);
    resource.write(first.token, "ann");
    ben.cut(&[0, 1]);
    assert!(is_busy(&ben.ask(Mode::Exclusive, Wait::No).await), "one of the three has it");

    clock.step(3600);
    let second = ben.hold().await;
    assert!(
        first.deadline() > SystemClock::new().now(),
        "the first has no reason to doubt its lease: an overlap"
    );
    assert!(second.token.sequence() > first.token.sequence(), "{first:?}, {second:?}");
    resource.write(second.token, "ben");
    resource.write(first.token, "ann, who does not know");
    assert_eq!(resource.writes, ["ann", "ben"]);

    // The record on the nodes finds that no quorum has the first one's lease, before and after the second one opens it.
    ann.mend();
    assert_eq!(refused(ann.write(&first, "late").await).kind(), ErrorKind::Stale);
    assert_eq!(ben.open(&second).await.expect("an open record").as_deref(), Some("ann"));
    assert_eq!(ben.write(&second, "ben").await.expect("a write"), 2);
    assert_eq!(refused(ann.write(&first, "late").await).kind(), ErrorKind::Stale);
    ben.mend();
    assert_eq!(ben.read().await.as_deref(), Some("ben"));
    assert_eq!(ann.renew(&first).await, Renewal::Lost, "and it learns of it at its next renewal");
}

/// Kleppmann's second schedule: a client is paused while the answers are on their way to it, for longer than the TTL.
#[tokio::test]
async fn answers_that_are_read_after_the_ttl_are_no_grant() {
    let Some(nodes) = Nodes::start().await else { return };
    let clock = Arc::new(ShiftedClock::new());
    let ann = Client::with(&nodes, "", clock.clone()).await;
    // The requests are on their way when the time passes. Then the answers are read, all in good order.
    let (attempt, ()) = tokio::join!(biased; ann.ask(Mode::Exclusive, Wait::No), async { clock.advance(Ttl::DEFAULT.as_duration()) });
    let error = refused(attempt);
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    assert!(error.to_string().contains("when the TTL of 30s was over"), "{error}");
    nodes.until_taken(0).await;
}

/// The same with a real process that is stopped: what its kernel keeps for it is read when it runs on.
#[tokio::test]
async fn a_process_that_is_stopped_over_its_grant_does_not_hold() {
    let Some(nodes) = Nodes::start().await else { return };
    let ben = Client::of(&nodes).await;
    let mut ways = Vec::new();
    for node in &nodes.0 {
        ways.push(Proxy::start(node.port()).await);
    }
    let ports: Vec<String> = ways.iter().map(|way| format!("127.0.0.1:{}", way.port())).collect();
    let url = format!("redlock://{}", ports.join(","));
    let mut ann = Taker::start(&url, name().as_str(), &["--ttl", "4s"]);
    let (first, _) = ann.holds().await;
    ann.releases().await;
    ways.iter().for_each(Proxy::hold_replies);
    ann.tell("acquire");
    let taken = async { while ben.backend.inspect(&name()).await.expect("an answer").is_free() {} };
    tokio::time::timeout(PATIENCE, taken).await.expect("it takes the lock");
    ann.stop();
    ways.iter().for_each(Proxy::mend);
    // What is over on the nodes is over on the clock of the process.
    let held = ben.ask(Mode::Exclusive, Wait::Until(BootInstant::MAX));
    let held = granted(tokio::time::timeout(PATIENCE, held).await.expect("it lapses"));
    assert!(held.token.sequence() > first.sequence(), "{first}, {held:?}");
    ann.resume();
    let refused = |event: &Event| match event {
        Event::Held { token, .. } => panic!("it holds with {token} beside {held:?}"),
        Event::Refused { kind, message } => Some((kind.clone(), message.clone())),
        _ => None,
    };
    let (kind, message) = ann.event("is refused", refused).await;
    assert_eq!(kind, "Unavailable", "{message}");
    assert_eq!(ben.renew(&held).await, Renewal::Renewed, "and it took nothing away");
}

/// How many nodes may forget, by the quorum: where all clocks agree, numbers go on from them; where they do not, it shows.
#[tokio::test]
async fn numbers_rise_for_as_long_as_one_node_of_the_quorum_remembers() {
    let Some(ahead) = WallClock::new() else { return };
    let with_clock = |node| if node == 0 { RedisOptions::new().clock(&ahead) } else { RedisOptions::new() };
    for (quorum, may_forget, step) in [(3, 0, 3600), (4, 2, 7200)] {
        let Some(mut nodes) = Nodes::start_with(with_clock).await else { return };
        let (ann, ben) = {
            let client = async || {
                Client::with(&nodes, &format!("quorum={quorum}"), Arc::new(SystemClock::new())).await
            };
            (client().await, client().await)
        };
        // The clock of one node goes an hour ahead, and with it the number of every grant that it has a part in.
        ahead.step(step);
        let tokens = ann.backend.guarantees().tokens.to_string();
        assert!(
            tokens.contains(if may_forget == 0 { "none of the 5" } else { "at most 2 of the 5" }),
            "{tokens}"
        );
        // Ann has the first nodes, Ben the last ones; what they have in common is `may_forget + 1`.
        let rest: Vec<usize> = (quorum..NODES).collect();
        let common: Vec<usize> = (NODES - quorum..quorum).collect();
        assert_eq!(common.len(), may_forget + 1);
        ann.cut(&rest);
        ben.cut(&(0..NODES - quorum).collect::<Vec<_>>());
        let first = ann.hold().await;
        assert_eq!(ann.release(&first).await, Release::Released);
        // A counter that is ahead of its node's clock is kept until the clock has passed it, and for an hour more.
        let left = nodes.0[common[0]].command(&["PTTL", COUNTER]).await;
        assert!(left.parse::<u64>().expect("a TTL") > 3_600_000 + 3_000_000, "{left}");
        let forget = async |nodes: &mut Nodes, number: usize| {
            for &node in &common[..number] {
                nodes.0[node].restart_empty().await;
            }
        };
        forget(&mut nodes, may_forget).await;
        let second = patiently(&ben).await;
        assert!(second.token.sequence() > first.token.sequence(), "{first:?}, {second:?}");
        assert_eq!(ben.release(&second).await, Release::Released);

        forget(&mut nodes, may_forget + 1).await;
        for &node in &rest {
            nodes.0[node].restart_empty().await;
        }
        let third = patiently(&ben).await;
        assert!(
            third.token.sequence() < first.token.sequence(),
            "one more that forgets is too many, and is to be seen: {first:?}, {third:?}"
        );
    }
}

/// A lease, as soon as nodes that were restarted are connected to again.
async fn patiently(client: &Client) -> Lease {
    let held = async {
        loop {
            match client.ask(Mode::Exclusive, Wait::No).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                attempt => break granted(attempt),
            }
        }
    };
    tokio::time::timeout(PATIENCE, held).await.expect("the nodes are back")
}

/// A node that comes back without its memory lets a second client in. While all clocks are right, its tokens are higher.
#[tokio::test]
async fn a_node_that_forgets_breaks_exclusion_and_the_clock_keeps_the_order() {
    let Some(mut nodes) = Nodes::start().await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    ann.cut(&[3, 4]);
    ben.cut(&[0, 1]);
    let first = ann.hold().await;
    assert!(is_busy(&ben.ask(Mode::Exclusive, Wait::No).await));
    nodes.0[2].restart_empty().await;
    let second = patiently(&ben).await;
    assert!(first.deadline() > SystemClock::new().now(), "an overlap");
    assert!(second.token.sequence() > first.token.sequence(), "{first:?}, {second:?}");
}

#[tokio::test]
async fn waiters_that_split_the_votes_all_get_their_turn() {
    const WAITERS: usize = 8;
    let Some(nodes) = Nodes::start().await else { return };
    let mut clients = Vec::new();
    for _ in 0..WAITERS {
        clients.push(Client::of(&nodes).await);
    }
    let mut waiters = Vec::new();
    for client in clients {
        waiters.push(tokio::spawn(async move {
            let lease = granted(client.ask(Mode::Exclusive, Wait::Until(BootInstant::MAX)).await);
            assert_eq!(client.release(&lease).await, Release::Released);
            (lease.token.sequence(), client)
        }));
    }
    let (mut sequences, mut clients) = (Vec::new(), Vec::new());
    for waiter in waiters {
        let (sequence, client) =
            tokio::time::timeout(PATIENCE, waiter).await.expect("a turn").expect("no panic");
        sequences.push(sequence);
        // What it still has to tell the last nodes goes by its ways.
        clients.push(client);
    }
    sequences.sort_unstable();
    sequences.dedup();
    assert_eq!(sequences.len(), WAITERS, "everyone has a number of its own");
    nodes.until_taken(0).await;
}

/// Whoever waits asks again and again: what each of these attempts left would add up, for as long as a TTL is.
#[tokio::test]
async fn attempts_that_are_refused_leave_nothing_to_remember() {
    let Some(nodes) = Nodes::start().await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    let held = ann.hold().await;
    nodes.until_marked(&held).await;
    for _ in 0..20 {
        assert!(is_busy(&ben.ask(Mode::Exclusive, Wait::No).await));
    }
    for node in &nodes.0 {
        assert_eq!(node.command(&["EXISTS", WITHDRAWN]).await, "0");
    }
    assert_eq!(ann.release(&held).await, Release::Released);
}

/// Two that share the lock may be given one number by different nodes; the one that marks it later finds that out.
#[tokio::test]
async fn a_number_that_somebody_else_may_have_is_not_granted() {
    let Some(clock) = WallClock::new() else { return };
    let with_clock = |node| if node < 3 { RedisOptions::new().clock(&clock) } else { RedisOptions::new() };
    let Some(nodes) = Nodes::start_with(with_clock).await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    for (mode, step) in [(Mode::Shared, 3600), (permit(2), 7200), (Mode::Exclusive, 10800)] {
        // No quorum gives what it is asked for, so that there is a second round.
        clock.step(step);
        ann.ways.iter().for_each(Proxy::hold_replies);
        let between = async {
            while ben.backend.inspect(&name()).await.expect("an answer").is_free() {}
            // What another one marked meanwhile.
            let time = nodes.0[0].command(&["TIME"]).await;
            let seconds: u64 = time.lines().next().expect("two lines").parse().expect("seconds");
            let other = ((seconds + 60) * 1_000_000).to_string();
            let set = async |node: usize| nodes.0[node].command(&["SET", COUNTER, &other]).await;
            tokio::join!(set(0), set(1), set(2), set(3), set(4));
            ann.mend();
            other
        };
        let (attempt, other) = tokio::join!(ann.ask(mode, Wait::No), between);
        let lease = granted(attempt);
        assert!(lease.token.grant().to_string() > other, "{mode}: {other}, {lease:?}");
        assert_eq!(ann.release(&lease).await, Release::Released);
        nodes.until_taken(0).await;
    }
}

/// Between the two rounds a majority loses what was taken there, and somebody else takes it.
#[tokio::test]
async fn who_lost_the_nodes_between_its_two_rounds_is_granted_nothing() {
    let Some(clock) = WallClock::new() else { return };
    let with_clock = |node| if node < 3 { RedisOptions::new().clock(&clock) } else { RedisOptions::new() };
    let Some(nodes) = Nodes::start_with(with_clock).await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    // No quorum gives what it is asked for, so that there is a second round.
    clock.step(3600);
    ann.ways.iter().for_each(Proxy::hold_replies);
    let between = async {
        nodes.until_taken(NODES).await;
        for node in &nodes.0[..3] {
            node.command(&["DEL", KEY]).await;
        }
        let held = ben.hold().await;
        ann.mend();
        held
    };
    let (attempt, held) = tokio::join!(ann.ask(Mode::Exclusive, Wait::No), between);
    let error = refused(attempt);
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("3 of 5 nodes agreed, and then did not confirm it"), "{error}");
    assert_eq!(ben.renew(&held).await, Renewal::Renewed, "and it took nothing away");
    assert_eq!(ben.release(&held).await, Release::Released);
    nodes.until_taken(0).await;
}

/// A majority that is away for a moment ends no wait that it has once answered.
#[tokio::test]
async fn who_waits_bears_nodes_that_are_away_for_a_moment() {
    // More than the answers to one attempt.
    const ANSWERS: u64 = 1000;
    let Some(nodes) = Nodes::start().await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    let held = ben.hold().await;
    nodes.until_marked(&held).await;
    let asks_again = async || {
        let before = ann.ways[3].heard();
        let heard = async {
            while ann.ways[3].heard() < before + ANSWERS {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, heard).await.expect("it asks again");
    };
    let moment = async {
        asks_again().await;
        ann.cut(&[0, 1, 2]);
        asks_again().await;
        ann.mend();
        assert_eq!(ben.release(&held).await, Release::Released);
    };
    let (attempt, ()) = tokio::join!(ann.ask(Mode::Exclusive, Wait::Until(BootInstant::MAX)), moment);
    let lease = granted(attempt);
    assert!(lease.token.sequence() > held.token.sequence(), "{held:?}, {lease:?}");
}

/// Whoever is overtaken marks a higher number. If all of them marked the same one, a single one would be done each time, and the
/// last ones never.
#[tokio::test]
async fn many_who_share_a_lock_and_come_together_all_get_it() {
    const EACH: usize = 20;
    // None on an idle machine, and up to 163 with less than a ninth of a core; 261 and more where all mark the same number.
    const REFUSALS_MOST: usize = 210;
    let Some(nodes) = Nodes::start().await else { return };
    let clients =
        [Client::of(&nodes).await, Client::of(&nodes).await, Client::of(&nodes).await].map(Arc::new);
    let mut all_refusals = 0;
    for mode in [Mode::Shared, permit(1000)] {
        let mut asked = JoinSet::new();
        for client in clients.iter().flat_map(|client| std::iter::repeat_n(client, EACH)) {
            let client = Arc::clone(client);
            asked.spawn(async move {
                let mut refusals = 0;
                let mut pauses = Backoff::new(Duration::from_millis(250), Duration::from_secs(1));
                loop {
                    match client.ask(mode, Wait::No).await {
                        // On a busy machine one may be overtaken for as long as it tries at a time.
                        Err(error) if error.retry() == Retry::Later && refusals < REFUSALS_MOST => {
                            refusals += 1;
                            tokio::time::sleep(pauses.pause()).await;
                        }
                        attempt => break (granted(attempt), client, refusals),
                    }
                }
            });
        }
        let mut leases = Vec::new();
        for (lease, client, refusals) in asked.join_all().await {
            leases.push((lease, client));
            all_refusals += refusals;
        }
        let sequences: BTreeSet<u64> = leases.iter().map(|(lease, _)| lease.token.sequence()).collect();
        assert_eq!(sequences.len(), leases.len(), "{mode}: everyone has a number of its own");
        for (lease, client) in &leases {
            assert_eq!(client.release(lease).await, Release::Released);
        }
        nodes.until_taken(0).await;
    }
    assert!(
        all_refusals < REFUSALS_MOST,
        "they overtook each other again and again: {all_refusals} refusals"
    );
}

/// Each node counts permits for itself, so they need more nodes than a majority: then no three can have two.
#[tokio::test]
async fn permits_are_counted_by_more_than_a_majority() {
    let Some(mut nodes) = Nodes::start().await else { return };
    let clients = [Client::of(&nodes).await, Client::of(&nodes).await, Client::of(&nodes).await];
    let [ann, ben, cat] = &clients;
    ann.cut(&[4]);
    ben.cut(&[0]);
    let one = granted(ann.ask(permit(2), Wait::No).await);
    let two = granted(ben.ask(permit(2), Wait::No).await);
    // The first and the last node have one each, and three of any other client's four have two.
    assert!(is_busy(&cat.ask(permit(2), Wait::No).await));
    assert_eq!(ann.renew(&one).await, Renewal::Renewed);
    nodes.0[1].command(&["DEL", KEY]).await;
    assert_eq!(ann.renew(&one).await, Renewal::Unknown, "three of four have it, and the fifth would decide");
    assert_eq!(ben.release(&two).await, Release::Released);
    nodes.0[2].command(&["DEL", KEY]).await;
    assert_eq!(ann.renew(&one).await, Renewal::Lost, "whatever the fifth says");
    nodes.0[2].kill();
    nodes.0[3].kill();
    let error = refused(cat.ask(permit(2), Wait::No).await);
    assert!(error.to_string().contains("at most 3 of 5 nodes can be used and 4 have to agree"), "{error}");
    let lease = cat.hold_for("other", Ttl::DEFAULT).await;
    assert_eq!(cat.release(&lease).await, Release::Released, "an exclusive lock needs three");
}

/// A node that was away when a lock was given back would keep it until its TTL, and be no node for the next one.
#[tokio::test]
async fn a_node_that_was_away_is_told_of_a_release_when_it_is_back() {
    let Some(mut nodes) = Nodes::start_with(|_| RedisOptions::new().durable()).await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold_for("orders/42", Ttl::new(Duration::from_mins(1)).expect("a TTL")).await;
    nodes.until_marked(&lease).await;
    ann.ways[0].cut();
    nodes.0[1].kill();
    // From now on both are known to be away, and a release is not even sent.
    assert_eq!(ann.renew(&lease).await, Renewal::Renewed);
    assert_eq!(ann.release(&lease).await, Release::Released);
    ann.mend();
    nodes.0[1].restart().await;
    nodes.until_taken(0).await;
}

/// What is left of a lease that a majority has lost is given back, so that the next one has all nodes.
#[tokio::test]
async fn what_is_left_of_a_lost_lease_is_given_back() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold().await;
    nodes.until_taken(NODES).await;
    for node in &nodes.0[..3] {
        node.command(&["DEL", KEY]).await;
    }
    assert_eq!(ann.renew(&lease).await, Renewal::Lost);
    nodes.until_taken(0).await;
}

#[tokio::test]
async fn a_record_lives_on_any_majority() {
    let Some(mut nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let first = ann.hold().await;
    nodes.until_marked(&first).await;
    assert_eq!(ann.read().await, None);
    nodes.until_taught().await;
    ann.open(&first).await.expect("an open record");
    ann.cut(&[0, 1]);
    assert_eq!(ann.write(&first, "one").await.expect("a write"), 1);
    ann.mend();
    ann.cut(&[2, 3]);
    // Those who missed the write answer as well: the newest counts, and is on a majority before it is told.
    assert_eq!(ann.read().await.as_deref(), Some("one"));
    ann.mend();
    nodes.0[4].kill();
    ann.cut(&[2]);
    assert_eq!(ann.read().await.as_deref(), Some("one"));
}

/// What a few nodes have missed is not what is told of a lease that lives.
#[tokio::test]
async fn nodes_that_missed_a_grant_do_not_make_its_token_stale() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold().await;
    nodes.until_taken(NODES).await;
    for node in &nodes.0[..2] {
        node.command(&["DEL", KEY]).await;
    }
    let kind = |result: Result<u64>| refused(result).kind();
    assert_eq!(kind(ann.write(&lease, "unopened").await), ErrorKind::NotOpened, "as three of five say");
    ann.open(&lease).await.expect("an open record");
    assert_eq!(ann.write(&lease, "one").await.expect("a write"), 1);
    ann.cut(&[2]);
    let undecided = kind(ann.write(&lease, "two").await);
    assert_eq!(undecided, ErrorKind::Unavailable, "two nodes take it, and two do not");
    nodes.0[3].command(&["DEL", KEY]).await;
    assert_eq!(kind(ann.write(&lease, "two").await), ErrorKind::Stale, "as three of five say");
}

/// What a writer left on a minority when it was cut off is either seen by the next opening or never.
#[tokio::test]
async fn a_write_that_an_opening_did_not_see_never_comes_back() {
    let Some(nodes) = Nodes::start().await else { return };
    let (ann, ben) = (Client::of(&nodes).await, Client::of(&nodes).await);
    let first = ann.hold().await;
    ann.open(&first).await.expect("an open record");
    leave_behind(&nodes.0[0], &first).await;
    assert_eq!(ann.release(&first).await, Release::Released);
    nodes.until_taken(0).await;

    ben.cut(&[0]);
    let second = ben.hold().await;
    assert_eq!(ben.open(&second).await.expect("an open record"), None, "nobody that answers has it");
    ben.mend();
    assert_eq!(ben.release(&second).await, Release::Released);
    nodes.until_taken(0).await;
    ann.cut(&[3, 4]);
    assert_eq!(ann.read().await, None, "it was not there when the record was opened");
    let third = ann.hold().await;
    assert_eq!(ann.open(&third).await.expect("an open record"), None, "so it never was");
    assert_eq!(ann.write(&third, "new").await.expect("a write"), 1);
}

/// What a read has shown is on a majority from then on, so that no later one shows less.
#[tokio::test]
async fn a_read_that_saw_a_write_on_one_node_has_it_written() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold().await;
    ann.open(&lease).await.expect("an open record");
    leave_behind(&nodes.0[0], &lease).await;
    ann.cut(&[3, 4]);
    assert_eq!(ann.read().await.as_deref(), Some("lost"));
    ann.mend();
    ann.cut(&[0]);
    assert_eq!(ann.read().await.as_deref(), Some("lost"));
}

/// Writes into one node what a writer would that was cut off from the others.
async fn leave_behind(node: &RedisServer, lease: &Lease) {
    let part = format!("{KEY}:n:value");
    let by = format!("{:016x}:{}:0", lease.token.nonce().get(), lease.token.grant());
    let words = ["HSET", &part, "value", "lost", "version", "1", "by", &by, "ballot", &by, "write", "1"];
    node.command(&words).await;
}

#[tokio::test]
async fn one_token_may_write_many_things_at_a_time() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold().await;
    ann.open(&lease).await.expect("an open record");
    let (one, two, three) =
        tokio::join!(ann.write(&lease, "one"), ann.write(&lease, "two"), ann.write(&lease, "three"));
    for written in [one, two, three] {
        assert!((1..=3).contains(&written.expect("a write")));
    }
    let read = ann.read().await;
    for _ in 0..3 {
        assert_eq!(ann.read().await, read, "they agree on one of them");
    }
}

/// A listing goes through all keys of a database, whosever they are, and takes as many round trips as there are thousands of them.
#[tokio::test]
async fn locks_and_records_are_listed_among_many_keys_of_others() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let held = ann.hold().await;
    ann.open(&held).await.expect("its lease lives");
    ann.write(&held, "kept").await.expect("an open record");
    for node in &nodes.0 {
        let fill = "for number = 1, 8000 do redis.call('SET', 'other:' .. number, '') end";
        node.command(&["EVAL", fill, "0"]).await;
    }
    ann.ways.iter().for_each(|way| way.delay(Duration::from_millis(75)));
    let locks = ann.backend.list(ListQuery::default()).await.expect("a quorum");
    assert_eq!(locks.items.iter().map(|lock| &lock.name).collect::<Vec<_>>(), [&name()]);
    let records = ann.backend.records().list(ListQuery::default()).await.expect("a quorum");
    assert_eq!(records.items, [RecordKey::of(name())]);
    assert_eq!(ann.release(&held).await, Release::Released);
}

/// A client that knows nothing of us takes the same key on the same nodes.
const NODE_REDLOCK: &str = r"
    const Redlock = require('redlock'), Redis = require('ioredis');
    const clients = process.argv.slice(1).map((port) => new Redis(Number(port)));
    const redlock = new Redlock(clients, { retryCount: 0 });
    redlock.on('clientError', () => {});
    (async () => {
        for await (const order of require('readline').createInterface({ input: process.stdin })) {
            try {
                if (order === 'acquire') { globalThis.lock = await redlock.lock('orders/42', 30000); }
                else { await globalThis.lock.unlock(); }
                console.log(order + ' done');
            } catch { console.log(order + ' refused'); }
        }
        process.exit(0);
    })();
";

#[tokio::test]
async fn node_redlock_is_respected_and_respects_us() {
    let Some(mut command) = node() else { return };
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::with(&nodes, "keys=verbatim", Arc::new(SystemClock::new())).await;
    command.args(["-e", NODE_REDLOCK, "--"]).args(nodes.0.iter().map(|node| node.port().to_string()));
    let mut theirs = Process::start(command).expect("node starts");
    let mut tell = async |order: &str| {
        theirs.send(order).expect("it reads");
        tokio::time::timeout(PATIENCE, theirs.line()).await.expect("it answers").expect("it lives")
    };
    assert_eq!(tell("acquire").await, "acquire done");
    let busy = ann.ask(Mode::Exclusive, Wait::No).await;
    assert!(is_busy(&busy), "{busy:?}");
    let seen = ann.backend.inspect(&name()).await.expect("an answer");
    assert_eq!(seen.holders[0].holder.label(), "another client", "{seen:?}");
    assert_eq!(tell("release").await, "release done");
    let lease = ann.hold().await;
    assert_eq!(tell("acquire").await, "acquire refused");
    assert_eq!(ann.renew(&lease).await, Renewal::Renewed);
    assert_eq!(ann.release(&lease).await, Release::Released);
    assert_eq!(tell("acquire").await, "acquire done");
}

#[tokio::test]
async fn a_quorum_is_enough_to_connect_and_less_is_not() {
    let Some(mut nodes) = Nodes::start().await else { return };
    let clock = || Arc::new(SystemClock::new());
    let ports = |nodes: &Nodes| nodes.0.iter().map(RedisServer::port).collect::<Vec<_>>();
    nodes.0[0].kill();
    nodes.0[1].kill();
    assert!(connect(ports(&nodes).into_iter(), "", clock()).await.is_ok());
    nodes.0[2].kill();
    let error = connect(ports(&nodes).into_iter(), "", clock()).await.expect_err("two are no majority");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("at most 2 of 5 nodes can be used and 3 have to agree"), "{error}");
}

/// Three nodes by these addresses.
async fn connect_to(nodes: [&str; 3], parameters: &str) -> Result<RedlockBackend> {
    let url = BackendUrl::parse(&format!("redlock://{}?{parameters}", nodes.join(",")))?;
    RedlockBackend::connect(&url, Arc::new(SystemClock::new())).await
}

#[tokio::test]
async fn nodes_that_are_one_server_are_refused() {
    let Some(one) = RedisServer::start().await else { return };
    let Some(other) = RedisServer::start().await else { return };
    let (way, late) = (Proxy::start(one.port()).await, Proxy::start(one.port()).await);
    // Later than the two that are a quorum.
    late.delay(Duration::from_millis(20));
    let [one, other, way, late] =
        [one.port(), other.port(), way.port(), late.port()].map(|port| format!("127.0.0.1:{port}"));
    let by_name = one.replace("127.0.0.1", "localhost");
    for ([first, second, third], parameters, twins) in [
        ([&one, &other, &by_name], "quorum=3", [&one, &by_name]),
        ([&way, &one, &other], "quorum=3", [&way, &one]),
        ([&one, &other, &late], "", [&one, &late]),
    ] {
        let error = refused(connect_to([first, second, third], parameters).await);
        assert_eq!((error.kind(), error.effect()), (ErrorKind::InvalidUrl, Effect::None), "{error}");
        let [one, other] = twins;
        let said = format!("redis://{one} and redis://{other} are one server");
        assert!(error.to_string().contains(&said), "expected {said:?}: {error}");
    }
}

#[tokio::test]
async fn a_node_that_was_away_at_first_and_is_another_one_is_found() {
    let Some(one) = RedisServer::start().await else { return };
    let Some(other) = RedisServer::start().await else { return };
    let away = Proxy::start(one.port()).await;
    away.cut();
    let nodes = [one.port(), other.port(), away.port()].map(|port| format!("127.0.0.1:{port}"));
    let [first, second, third] = &nodes;
    let clock = SystemClock::new();
    let began = clock.now();
    let ann = connect_to([first, second, third], "").await.expect("a quorum");
    let took = clock.now().saturating_since(began);
    assert!(took < Duration::from_secs(2), "a node that is silent is not waited for: {took:?}");
    away.mend();
    let findings = ann.examine().await.expect("they can be looked at");
    let found = findings.iter().find(|finding| finding.about == "nodes");
    let found = found.unwrap_or_else(|| panic!("nothing about the nodes: {findings:?}"));
    assert_eq!(found.severity, Severity::Problem, "{found:?}");
    assert!(found.what.contains(&format!("redis://{first} and redis://{third} are one server")), "{found:?}");
}

#[tokio::test]
async fn nodes_that_do_not_say_who_they_are_are_believed() {
    let silent =
        || RedisOptions::new().set("user", &["default", "on", "nopass", "~*", "&*", "+@all", "-info"]);
    let Some(one) = silent().start().await else { return };
    let Some(other) = silent().start().await else { return };
    let way = Proxy::start(one.port()).await;
    let nodes = [one.port(), other.port(), way.port()].map(|port| format!("127.0.0.1:{port}"));
    let [first, second, third] = &nodes;
    let ann = connect_to([first, second, third], "quorum=3").await.expect("no reason to refuse them");
    let findings = ann.examine().await.expect("they can be looked at");
    assert!(findings.iter().all(|finding| finding.about != "nodes"), "{findings:?}");
}

/// Real nodes, which all say who they are, are nobody's twins, and each is looked at for itself.
#[tokio::test]
async fn five_servers_are_five() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::with(&nodes, "quorum=5", Arc::new(SystemClock::new())).await;
    let findings = ann.backend.examine().await.expect("they can be looked at");
    assert!(findings.iter().all(|finding| finding.about != "nodes"), "{findings:?}");
    for way in &ann.ways {
        let node = format!("redis://127.0.0.1:{}: ", way.port());
        let of_node = findings.iter().filter(|finding| finding.what.starts_with(&node));
        assert_eq!(of_node.count() * NODES, findings.len(), "{node}: {findings:?}");
    }
}

#[tokio::test]
async fn a_short_ttl_is_kept_by_the_nodes_for_as_long_as_it_is_claimed() {
    let Some(nodes) = Nodes::start().await else { return };
    let ann = Client::of(&nodes).await;
    let lease = ann.hold_for("orders/42", ttl(20_000)).await;
    assert_eq!(lease.lasts, Duration::from_secs(20), "the whole TTL can be claimed");
    for node in &nodes.0[..3] {
        let kept: u64 = node.command(&["PTTL", KEY]).await.parse().expect("a TTL");
        let claimed = lease.deadline().saturating_since(SystemClock::new().now());
        assert!(Duration::from_millis(kept) > claimed, "{kept} ms, {claimed:?}");
        assert!(kept <= 20_205, "no longer than the TTL and its drift: {kept} ms");
    }
}

/// Without the option the nodes would be spoken to in the clear, and with it but without its authorities they are not trusted.
#[tokio::test]
async fn nodes_are_spoken_to_by_tls() {
    let Some(nodes) = Nodes::start_with(|_| RedisOptions::new().tls()).await else { return };
    let authorities = tempfile::NamedTempFile::new().expect("a file");
    for node in &nodes.0 {
        let authority = std::fs::read(node.authority().expect("a server with TLS")).expect("a certificate");
        std::io::Write::write_all(&mut authorities.as_file(), &authority).expect("a file");
    }
    let ports = || nodes.0.iter().map(RedisServer::port);
    let parameters = format!("tls=on&ca={}", authorities.path().display());
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let [ann, ben] = [(); 2].map(|()| connect(ports(), &parameters, Arc::clone(&clock)));
    let (ann, ben) = (ann.await.expect("five nodes"), ben.await.expect("five nodes"));
    let asks = || request(name(), Mode::Exclusive, Ttl::DEFAULT, Wait::No);
    let lease = granted(ann.acquire(asks()).await);
    assert!(matches!(ben.acquire(asks()).await, Ok(Attempt::Busy(_))));
    assert_eq!(ann.release(&[lease.key]).await.expect("an answer"), [Release::Released]);
    for (parameters, hint) in [("tls=on", "?ca=/path.pem"), ("", "redis://127.0.0.1")] {
        let error = connect(ports(), parameters, Arc::clone(&clock)).await.expect_err("nobody vouches");
        assert!(error.to_string().contains(hint), "{parameters}: {error}");
    }
}
