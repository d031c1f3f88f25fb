//! Advisory locks beside other clients of the server, under faults, and at its limits.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_core::{
    Abandoner, AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, ErrorKind, Eviction,
    FencingToken, HolderInfo, Lease, LockName, Mode, Nonce, Release, Renewal, Result, SystemClock, Ttl, Wait,
    abandonment,
};
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Pgbouncer, Postgres, PostgresOptions, Psql, Taker, postgres_18};
use ringfence_testkit::{OtherProcess, PATIENCE};
use tokio::task::{JoinHandle, JoinSet};

const TTL: Duration = Duration::from_mins(1);

struct Client(Arc<PostgresBackend>);

/// The locks that sessions wait for and that nobody has yet.
const WAITING: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";

/// The connections of our programs.
const CONNECTIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ringfence'";

async fn connect_to(server: &Postgres, params: &str) -> Result<Client> {
    let url = format!("{}?recipe=advisory{params}", server.url());
    let backend = PostgresBackend::connect(&BackendUrl::parse(&url)?, Arc::new(SystemClock::new())).await?;
    Ok(Client(Arc::new(backend)))
}

async fn client(server: &Postgres) -> Client {
    connect_to(server, "").await.expect("a server")
}

fn name(name: &str) -> LockName {
    LockName::new(name).unwrap()
}

fn now() -> BootInstant {
    SystemClock::new().now()
}

/// Waits until a query answers so.
async fn sees(server: &Postgres, query: &str, wanted: &str) {
    let ends = now().saturating_add(PATIENCE);
    loop {
        let seen = server.psql(query).await;
        if seen.trim() == wanted {
            return;
        }
        assert!(now() < ends, "{query}: expected {wanted}, and it is {seen}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The answer of a `psql` that does not hang.
async fn says(psql: &mut Psql, sql: &str, wanted: &str) {
    assert_eq!(psql.ask(sql).await.trim(), wanted, "{sql}");
}

struct Waiter {
    task: JoinHandle<Result<Attempt>>,
    abandoner: Abandoner,
}

fn request(lock: &str, mode: Mode, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("a test", "a host", 1).unwrap();
    AcquireRequest::new(name(lock), mode, Ttl::new(TTL).unwrap(), wait, holder)
}

impl Client {
    async fn ask(&self, name: &str, mode: Mode) -> Result<Attempt> {
        self.0.acquire(request(name, mode, Wait::No)).await
    }

    async fn hold(&self, name: &str, mode: Mode) -> Lease {
        match self.ask(name, mode).await.expect("an answer") {
            Attempt::Granted(lease) => lease,
            busy @ Attempt::Busy(_) => panic!("{name} must be free: {busy:?}"),
        }
    }

    async fn meets_busy(&self, name: &str, mode: Mode) {
        let answer = self.ask(name, mode).await.expect("an answer");
        assert!(matches!(answer, Attempt::Busy(_)), "{name} must be busy: {answer:?}");
    }

    fn wait(&self, name: &str, mode: Mode, patience: Duration) -> Waiter {
        let (abandoner, signal) = abandonment();
        let until = Wait::Until(now().saturating_add(patience));
        let request = request(name, mode, until).abandoned_by(signal);
        let backend = Arc::clone(&self.0);
        Waiter { task: tokio::spawn(async move { backend.acquire(request).await }), abandoner }
    }

    async fn gives_back(&self, lease: &Lease) {
        let released = self.0.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
        assert_eq!(released, [Release::Released], "{lease:?}");
    }

    async fn renew(&self, lease: &Lease) -> Renewal {
        self.0.renew(std::slice::from_ref(&lease.key)).await.expect("an answer")[0]
    }

    /// What is said to be lost, in time.
    fn losses(&self) -> Losses {
        let losses = Losses::default();
        let told = losses.clone();
        self.0.on_loss(Arc::new(move |nonce| {
            told.told.lock().unwrap().insert(nonce);
            told.news.notify_one();
        }));
        losses
    }
}

#[derive(Clone, Default)]
struct Losses {
    told: Arc<Mutex<HashSet<Nonce>>>,
    news: Arc<tokio::sync::Notify>,
}

impl Losses {
    async fn come(&self, leases: &[&Lease]) {
        let all = async {
            while !leases.iter().all(|lease| self.told.lock().unwrap().contains(&lease.key.nonce)) {
                self.news.notified().await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("a loss is told");
    }
}

impl Waiter {
    async fn attempt(self) -> Attempt {
        let attempt = tokio::time::timeout(PATIENCE, self.task).await.expect("an answer in time");
        drop(self.abandoner);
        attempt.expect("no panic").expect("no error")
    }

    async fn granted(self) -> Lease {
        match self.attempt().await {
            Attempt::Granted(lease) => lease,
            busy @ Attempt::Busy(_) => panic!("one that waits must be granted: {busy:?}"),
        }
    }
}

#[tokio::test]
async fn psql_and_ours_exclude_each_other_by_plain_keys() {
    let Some(server) = Postgres::start().await else { return };
    let ours = connect_to(&server, "&keys=verbatim").await.unwrap();
    let mut psql = server.session();

    let lease = ours.hold("42", Mode::Exclusive).await;
    says(&mut psql, "SELECT pg_try_advisory_lock(42)", "f").await;
    says(&mut psql, "SELECT pg_try_advisory_lock_shared(42)", "f").await;
    says(&mut psql, "SELECT pg_try_advisory_lock(0, 42)", "t").await;
    psql.send("SELECT 'got it' FROM pg_advisory_lock(42);");
    sees(&server, WAITING, "1").await;
    ours.gives_back(&lease).await;
    assert_eq!(psql.answer().await.trim(), "got it");

    ours.meets_busy("42", Mode::Exclusive).await;
    ours.meets_busy("42", Mode::Shared).await;
    let state = ours.0.inspect(&name("42")).await.unwrap();
    assert_eq!((state.holders.len(), state.holders[0].holder.label()), (1, "psql"), "{state:?}");
    let evicted = ours.0.evict(&name("42"), state.holders[0].token.nonce()).await;
    assert_eq!(
        evicted.unwrap_err().kind(),
        ErrorKind::Unsupported,
        "a stranger's session is not ours to end"
    );
    let listed = ours.0.list(ringfence_core::ListQuery::new("")).await.unwrap().items;
    assert!(listed.iter().any(|lock| lock.name.as_str() == "42"), "{listed:?}");
    let waiter = ours.wait("42", Mode::Exclusive, PATIENCE);
    sees(&server, WAITING, "1").await;
    says(&mut psql, "SELECT pg_advisory_unlock(42)", "t").await;
    let next = waiter.granted().await;
    assert!(next.token.sequence() > lease.token.sequence());
    ours.gives_back(&next).await;

    let shared = ours.hold("42", Mode::Shared).await;
    says(&mut psql, "SELECT pg_try_advisory_lock_shared(42)", "t").await;
    says(&mut psql, "SELECT pg_try_advisory_lock(42)", "f").await;
    ours.gives_back(&shared).await;
    ours.meets_busy("42", Mode::Exclusive).await;
    says(&mut psql, "SELECT pg_advisory_unlock_shared(42)", "t").await;
    let lease = ours.hold("42", Mode::Exclusive).await;
    ours.gives_back(&lease).await;
}

#[tokio::test]
async fn a_name_is_locked_by_the_key_that_sql_makes_of_it() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let mut psql = server.session();
    for name in ["orders/42", "O'Brien", "\\", "ключ", "42"] {
        let lease = ours.hold(name, Mode::Exclusive).await;
        let quoted = name.replace('\'', "''");
        says(&mut psql, &format!("SELECT pg_try_advisory_lock(ringfence.lock_key('{quoted}'))"), "f").await;
        ours.gives_back(&lease).await;
    }
}

#[tokio::test]
async fn a_name_that_is_no_key_is_refused_where_names_are_keys() {
    let Some(server) = Postgres::start().await else { return };
    let ours = connect_to(&server, "&keys=verbatim").await.unwrap();
    for name in ["orders/42", "042", "9223372036854775808"] {
        let error = ours.ask(name, Mode::Exclusive).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName);
        assert!(error.message().contains(name), "{error}");
    }
}

#[tokio::test]
async fn a_key_of_another_name_is_told() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    // No two names of one key are known, so that it is said of a lock that it is another name's.
    let mut other = server.session();
    other.ask("SELECT ringfence.advisory_begin(77, 60000)").await;
    other.ask("SELECT pg_advisory_lock(ringfence.lock_key('orders/42'))").await;
    let written = "SELECT ringfence.advisory_write('{}', '{5}', '{77}', ARRAY[ringfence.lock_key('orders/42')], \
                   '{invoices/7}', '{12}', '{f}', '{3}', ARRAY['{}'])";
    says(&mut other, written, "").await;
    let error = ours.ask("orders/42", Mode::Exclusive).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest, "{error}");
    assert!(error.message().contains("orders/42") && error.message().contains("invoices/7"), "{error}");
}

#[tokio::test]
async fn who_goes_away_leaves_no_ghost_in_the_servers_line() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let held = ours.hold("orders/42", Mode::Exclusive).await;

    let abandoned = ours.wait("orders/42", Mode::Exclusive, TTL);
    sees(&server, WAITING, "1").await;
    let Waiter { task, abandoner } = abandoned;
    drop(abandoner);
    assert!(matches!(task.await.unwrap().unwrap(), Attempt::Busy(_)));
    assert_eq!(server.psql(WAITING).await.trim(), "0", "abandoned");

    let late = ours.wait("orders/42", Mode::Exclusive, Duration::from_millis(300));
    sees(&server, WAITING, "1").await;
    assert!(matches!(late.attempt().await, Attempt::Busy(_)));
    assert_eq!(server.psql(WAITING).await.trim(), "0", "over its deadline");

    let dropped = ours.wait("orders/42", Mode::Shared, TTL);
    sees(&server, WAITING, "1").await;
    dropped.task.abort();
    sees(&server, WAITING, "0").await;

    // Those of a moment at which the lock is free.
    for _ in 0..20 {
        let held = ours.hold("invoices/7", Mode::Exclusive).await;
        let waiter = ours.wait("invoices/7", Mode::Exclusive, TTL);
        sees(&server, WAITING, "1").await;
        waiter.task.abort();
        ours.gives_back(&held).await;
        if let Ok(Ok(Attempt::Granted(lease))) = waiter.task.await {
            ours.gives_back(&lease).await;
        }
        sees(&server, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "1").await;
    }
    assert_eq!(ours.renew(&held).await, Renewal::Renewed);
    ours.gives_back(&held).await;
}

#[tokio::test]
async fn an_attempt_that_is_dropped_leaves_nothing() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    for round in 0..50_u32 {
        let lock = format!("orders/{round}");
        let asking = ours.ask(&lock, Mode::Exclusive);
        // From before it is sent to after it is answered.
        let _ = tokio::time::timeout(Duration::from_micros((round * 40).into()), asking).await;
    }
    // What was granted before it was dropped is a lease that nobody renews; whoever dropped it has its key, or none.
    sees(&server, WAITING, "0").await;
    let described = "SELECT count(*) FROM ringfence.advisory_look(NULL) WHERE nonce IS NULL";
    sees(&server, described, "0").await;
}

#[tokio::test]
async fn a_session_that_is_ended_from_outside_is_told_as_loss_at_once() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let losses = ours.losses();
    let leases = [ours.hold("a", Mode::Exclusive).await, ours.hold("b", Mode::Shared).await];
    server.terminate_backends().await;
    losses.come(&[&leases[0], &leases[1]]).await;
    for lease in &leases {
        assert_eq!(ours.renew(lease).await, Renewal::Lost);
    }
    let next = ours.hold("a", Mode::Exclusive).await;
    assert!(next.token.sequence() > leases[0].token.sequence());
    ours.gives_back(&next).await;
}

#[tokio::test]
async fn one_that_waits_stands_in_line_again_when_its_session_is_ended() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let mut psql = server.session();
    psql.ask("SELECT pg_advisory_lock(ringfence.lock_key('orders/42'))").await;
    let waiter = ours.wait("orders/42", Mode::Exclusive, TTL);
    sees(&server, WAITING, "1").await;
    server
        .psql("SELECT pg_terminate_backend(pid, 5000) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        .await;
    sees(&server, WAITING, "1").await;
    psql.ask("SELECT pg_advisory_unlock_all()").await;
    let lease = waiter.granted().await;
    ours.gives_back(&lease).await;
}

/// PostgreSQL 17 and later end a session whose transaction takes longer than that, and one that waits is in one.
#[tokio::test]
async fn a_transaction_timeout_of_the_server_is_not_for_one_that_waits() {
    let Some(programs) = postgres_18() else { return };
    let options = PostgresOptions::new().programs(programs).set("transaction_timeout", "1s");
    let Some(server) = options.start().await else { return };
    let (ann, ben) = (client(&server).await, client(&server).await);
    let held = ann.hold("a", Mode::Exclusive).await;
    let waiting = ben.wait("a", Mode::Exclusive, PATIENCE);
    sees(&server, &format!("{WAITING} AND clock_timestamp() - waitstart > '3s'"), "1").await;
    ann.gives_back(&held).await;
    ben.gives_back(&waiting.granted().await).await;
}

#[tokio::test]
async fn the_server_itself_frees_the_lock_of_a_stopped_process_at_its_ttl() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let url = format!("{}?recipe=advisory", server.url());
    let mut process = Taker::start(&url, "orders/42", &["--ttl", "1s"]);
    let token = process.held().await;
    process.stop();
    let stopped = now();
    let lease = ours.wait("orders/42", Mode::Exclusive, PATIENCE).granted().await;
    let took = now().saturating_since(stopped);
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(4), "{took:?}");
    assert!(token.sequence() < lease.token.sequence());
    process.resume();
    process.lost().await;
    assert_eq!(ours.renew(&lease).await, Renewal::Renewed);
}

#[tokio::test]
async fn many_locks_are_on_one_connection() {
    const LOCKS: usize = 500;
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let mut asking = JoinSet::new();
    for number in 0..LOCKS {
        let ours = Client(Arc::clone(&ours.0));
        asking.spawn(async move { ours.hold(&format!("orders/{number}"), Mode::Exclusive).await });
    }
    let leases = asking.join_all().await;
    // One has the locks, and one is for everything else.
    assert_eq!(server.psql(CONNECTIONS).await.trim(), "2");
    let tokens: HashSet<u64> = leases.iter().map(|lease| lease.token.sequence()).collect();
    assert_eq!(tokens.len(), LOCKS, "each has a token of its own");
    let keys: Vec<_> = leases.iter().map(|lease| lease.key.clone()).collect();
    assert_eq!(ours.0.renew(&keys).await.unwrap(), vec![Renewal::Renewed; LOCKS]);
    assert_eq!(ours.0.release(&keys).await.unwrap(), vec![Release::Released; LOCKS]);
    assert_eq!(server.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").await.trim(), "0");
}

#[tokio::test]
async fn a_session_that_shares_lets_nobody_past_a_writer_that_waits() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let readers = [ours.hold("doc", Mode::Shared).await, ours.hold("doc", Mode::Shared).await];
    let writer = ours.wait("doc", Mode::Exclusive, TTL);
    sees(&server, WAITING, "1").await;
    ours.meets_busy("doc", Mode::Shared).await;
    ours.gives_back(&readers[0]).await;
    ours.meets_busy("doc", Mode::Shared).await;
    assert_eq!(ours.renew(&readers[1]).await, Renewal::Renewed);
    ours.gives_back(&readers[1]).await;
    let written = writer.granted().await;
    ours.meets_busy("doc", Mode::Shared).await;
    ours.gives_back(&written).await;
}

#[tokio::test]
async fn more_who_wait_than_there_are_sessions_have_their_turn_too() {
    const NAMES: usize = 20;
    let Some(server) = Postgres::start().await else { return };
    let (ours, theirs) = (client(&server).await, client(&server).await);
    let mut held = Vec::new();
    for number in 0..NAMES {
        held.push(theirs.hold(&format!("orders/{number}"), Mode::Exclusive).await);
    }
    let waiters: Vec<Waiter> =
        (0..NAMES).map(|number| ours.wait(&format!("orders/{number}"), Mode::Exclusive, TTL)).collect();
    sees(&server, WAITING, "16").await;
    for lease in &held {
        theirs.gives_back(lease).await;
    }
    for waiter in waiters {
        let lease = waiter.granted().await;
        assert_eq!(ours.renew(&lease).await, Renewal::Renewed);
    }
}

#[tokio::test]
async fn a_full_table_of_locks_is_said_and_costs_no_lock() {
    let options = PostgresOptions::new().set("max_locks_per_transaction", "10").set("max_connections", "10");
    let Some(server) = options.start().await else { return };
    let ours = client(&server).await;
    let mut leases = Vec::new();
    let error = loop {
        match ours.ask(&format!("orders/{}", leases.len()), Mode::Exclusive).await {
            Ok(Attempt::Granted(lease)) => leases.push(lease),
            Ok(busy) => panic!("nobody else is there: {busy:?}"),
            Err(error) => break error,
        }
        assert!(leases.len() < 100_000, "the table has an end");
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.message().contains("max_locks_per_transaction"), "{error}");
    assert_eq!(ours.renew(&leases[0]).await, Renewal::Renewed, "what was held is held");

    // Those that are asked for in one statement: what it has taken before it failed is not kept.
    let mut asking = JoinSet::new();
    for number in 0..100 {
        let ours = Client(Arc::clone(&ours.0));
        asking.spawn(async move { ours.ask(&format!("invoices/{number}"), Mode::Exclusive).await });
    }
    for answer in asking.join_all().await {
        match answer {
            Ok(Attempt::Granted(lease)) => leases.push(lease),
            Ok(busy) => panic!("nobody else is there: {busy:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Full, "{error}"),
        }
    }

    // Nobody else can even connect to count them before there is room again.
    let mut given_back = leases.drain(..20).collect::<Vec<_>>();
    for lease in &given_back {
        ours.gives_back(lease).await;
    }
    let held = leases.len().to_string();
    sees(&server, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", &held).await;
    let again = ours.hold("orders/0", Mode::Exclusive).await;
    let before = given_back.pop().expect("it was given back");
    assert!(again.token.sequence() > before.token.sequence());
}

#[tokio::test]
async fn tokens_rise_through_crashes_and_a_promotion() {
    let Some(mut server) = Postgres::start().await else { return };
    let mut last: Option<FencingToken> = None;
    let mut rises = |lease: &Lease, when: &str| {
        assert!(
            last.is_none_or(|last| last.sequence() < lease.token.sequence()),
            "{when}: {last:?}, {lease:?}"
        );
        last = Some(lease.token);
    };
    for _ in 0..3 {
        let ours = client(&server).await;
        for _ in 0..40 {
            let lease = ours.hold("orders/42", Mode::Exclusive).await;
            rises(&lease, "after a crash");
            ours.gives_back(&lease).await;
        }
        server.restart().await;
    }
    let mut standby = server.standby().await;
    // It lacks everything from now on.
    standby.kill();
    let ours = client(&server).await;
    for _ in 0..40 {
        let lease = ours.hold("orders/42", Mode::Exclusive).await;
        rises(&lease, "on the primary");
        ours.gives_back(&lease).await;
    }
    server.psql("SELECT ringfence.advisory_reserve(n) FROM (SELECT max(ringfence.advisory_number()) AS n FROM generate_series(1, 200000)) AS x").await;
    let lease = ours.hold("orders/42", Mode::Exclusive).await;
    rises(&lease, "far ahead of the standby");
    server.kill();
    standby.restart().await;
    standby.promote().await;
    let lease = client(&standby).await.hold("orders/42", Mode::Exclusive).await;
    rises(&lease, "on a standby that was promoted");
}

#[tokio::test]
async fn a_locked_table_holds_up_nobodys_lock() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let lease = ours.hold("a", Mode::Exclusive).await;
    let mut vacuum = server.session();
    vacuum.ask("BEGIN; LOCK TABLE ringfence.advisory_attempts, ringfence.advisory_sessions IN ACCESS EXCLUSIVE MODE").await;
    let other = ours.hold("b", Mode::Exclusive).await;
    assert_eq!(ours.renew(&lease).await, Renewal::Renewed);
    ours.gives_back(&other).await;
    ours.gives_back(&lease).await;
    vacuum.ask("COMMIT").await;
}

#[tokio::test]
async fn who_was_granted_before_its_wait_was_written_down_is_seen() {
    let Some(server) = Postgres::start().await else { return };
    let ours = client(&server).await;
    let mut psql = server.session();
    let mut wait_for = async || {
        psql.ask("SELECT pg_advisory_lock(ringfence.lock_key('a'))").await;
        let waiter = ours.wait("a", Mode::Exclusive, TTL);
        sees(&server, WAITING, "1").await;
        psql.ask("SELECT pg_advisory_unlock_all()").await;
        waiter.granted().await
    };
    // Both sessions, of what holds and of what waits, are there before the table is locked.
    let first = ours.hold("b", Mode::Exclusive).await;
    ours.gives_back(&wait_for().await).await;
    let mut vacuum = server.session();
    vacuum.ask("BEGIN; LOCK TABLE ringfence.advisory_attempts IN ACCESS EXCLUSIVE MODE").await;
    let second = ours.hold("c", Mode::Exclusive).await;
    let hangs = "SELECT count(*) FROM pg_locks WHERE relation = 'ringfence.advisory_attempts'::regclass AND NOT granted";
    sees(&server, hangs, "1").await;
    // What comes now is written in one go, when the table can be written to.
    let lease = wait_for().await;
    // Longer than it takes until it is due as one that waits and as one that holds. No event tells of that.
    tokio::time::sleep(Duration::from_millis(200)).await;
    vacuum.ask("COMMIT").await;
    sees(&server, "SELECT count(*) FROM ringfence.advisory_look(NULL) WHERE held AND name = 'a'", "1").await;
    let holders = ours.0.inspect(&name("a")).await.unwrap().holders;
    assert_eq!(holders.iter().map(|holder| holder.token).collect::<Vec<_>>(), [lease.token]);
    for held in [first, second, lease] {
        ours.gives_back(&held).await;
    }
}

#[tokio::test]
async fn evicting_one_lease_leaves_the_others_of_its_session_alone() {
    let Some(server) = Postgres::start().await else { return };
    let (ours, operator) = (client(&server).await, client(&server).await);
    let losses = ours.losses();
    let (evicted, kept) = (ours.hold("a", Mode::Exclusive).await, ours.hold("b", Mode::Exclusive).await);
    assert_eq!(operator.0.evict(&name("a"), evicted.key.nonce).await.unwrap(), Eviction::Evicted);
    losses.come(&[&evicted]).await;
    assert_eq!((ours.renew(&evicted).await, ours.renew(&kept).await), (Renewal::Lost, Renewal::Renewed));

    // A process that does not listen is not asked twice.
    let url = format!("{}?recipe=advisory", server.url());
    let mut process = Taker::start(&url, "c", &["--ttl", "60s"]);
    let token = process.held().await;
    sees(&server, "SELECT count(*) FROM ringfence.advisory_look(NULL) WHERE held AND name = 'c'", "1").await;
    process.stop();
    assert_eq!(operator.0.evict(&name("c"), token.nonce()).await.unwrap(), Eviction::Evicted);
    let lease = operator.hold("c", Mode::Exclusive).await;
    process.resume();
    process.lost().await;
    operator.gives_back(&lease).await;
}

#[tokio::test]
async fn a_pooler_is_refused() {
    let Some(server) = Postgres::start().await else { return };
    let Some(pooler) = Pgbouncer::start(&server, "transaction").await else { return };
    let url = BackendUrl::parse(&format!("{}?recipe=advisory", pooler.url())).unwrap();
    let error = PostgresBackend::connect(&url, Arc::new(SystemClock::new())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("pooler"), "{error}");
}

#[tokio::test]
async fn a_role_needs_the_schema_and_its_functions_and_nothing_else() {
    let Some(server) = Postgres::start().await else { return };
    drop(client(&server).await);
    server.psql("CREATE ROLE worker LOGIN").await;
    server.psql("GRANT USAGE ON SCHEMA ringfence TO worker").await;
    server.psql("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ringfence TO worker").await;
    let url = BackendUrl::parse(&format!("{}?recipe=advisory", server.url_of("worker"))).unwrap();
    let connected = PostgresBackend::connect(&url, Arc::new(SystemClock::new())).await;
    let ours = Client(Arc::new(connected.expect("a role with these rights")));

    let lease = ours.hold("orders/42", Mode::Exclusive).await;
    let waiter = ours.wait("orders/42", Mode::Shared, TTL);
    sees(&server, WAITING, "1").await;
    let state = ours.0.inspect(&name("orders/42")).await.unwrap();
    assert_eq!((state.holders.len(), state.waiters.len()), (1, 1), "{state:?}");
    assert!(state.holders[0].remaining <= Some(TTL), "{state:?}");
    ours.gives_back(&lease).await;
    let lease = waiter.granted().await;
    assert_eq!(ours.0.evict(&name("orders/42"), lease.key.nonce).await.unwrap(), Eviction::Evicted);
}

#[test]
fn a_runtime_that_ends_while_somebody_waits_ends() {
    let servers = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let Some(server) = servers.block_on(Postgres::start()) else { return };
    let program = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let waiter = program.block_on(async {
        let client = client(&server).await;
        let request = |wait| {
            let holder = HolderInfo::new("ringfence-test", "here", 1).unwrap();
            AcquireRequest::new(name("orders/42"), Mode::Exclusive, Ttl::new(TTL).unwrap(), wait, holder)
        };
        let held = client.0.acquire(request(Wait::No)).await.expect("an answer");
        assert!(matches!(held, Attempt::Granted(_)), "{held:?}");
        let waits = request(Wait::Until(BootInstant::MAX));
        let waiter = tokio::spawn(async move { client.0.acquire(waits).await.map(drop) });
        sees(&server, WAITING, "1").await;
        waiter.abort_handle()
    });
    // What undoes an attempt would be spawned on a runtime that takes no more. Done again and again, that ends the process.
    drop(program);
    assert!(waiter.is_finished());
    servers.block_on(sees(&server, CONNECTIONS, "0"));
}
