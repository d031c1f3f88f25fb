//! `outbox`: relays that are killed, stopped, cut off and told to end, and what is seen of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use insta::assert_snapshot;
use nix::sys::signal::Signal;
use ringfence_servers::{
    Hook, Pgbouncer, Posted, Postgres, PostgresOptions, Proxy, RedisOptions, RedisServer,
};
use serde_json::Value;

use crate::support::{Done, Running, Store, eventually};

/// A database with an outbox, and how to put something in it.
struct Database {
    url: String,
    table: &'static str,
    sql: Box<dyn Fn(&str) -> String>,
    /// Whether others can write, whoever is stopped.
    is_free: Box<dyn Fn() -> bool>,
}

impl Database {
    fn of_postgres(store: &Store, server: &Postgres) -> Self {
        let (psql, url) = (server.program("psql"), server.socket_url());
        let sql = move |sql: &str| {
            let mut psql = Command::new(&psql);
            psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, &url]);
            Done::of(psql.output().unwrap()).with_code(0).stdout
        };
        Self::set_up(store, server.url(), "ringfence_outbox.messages", sql, || true)
    }

    fn of_sqlite(store: &Store) -> Self {
        let file = store.path("app.db");
        let url = format!("sqlite:{}", file.display());
        let sqlite = move |patience: &str, sql: &str| {
            let mut sqlite = Command::new("sqlite3");
            sqlite.args(["-cmd", patience]).arg(&file).arg(sql);
            Done::of(sqlite.output().unwrap())
        };
        let is_free = {
            let sqlite = sqlite.clone();
            move || sqlite(".timeout 500", "INSERT INTO orders VALUES (0)").code == Some(0)
        };
        let sql = move |sql: &str| sqlite(".timeout 30000", sql).with_code(0).stdout;
        sql("CREATE TABLE orders (id)");
        Self::set_up(store, url, "ringfence_outbox_messages", sql, is_free)
    }

    fn set_up(
        store: &Store,
        url: String,
        table: &'static str,
        sql: impl Fn(&str) -> String + 'static,
        is_free: impl Fn() -> bool + 'static,
    ) -> Self {
        store.ringfence(["outbox", "setup", &url]).with_code(0);
        Self { url, table, sql: Box::new(sql), is_free: Box::new(is_free) }
    }

    fn put(&self, rows: impl IntoIterator<Item = (String, String)>) {
        let rows: Vec<_> =
            rows.into_iter().map(|(key, payload)| format!("('t', '{key}', '{payload}')")).collect();
        (self.sql)(&format!("INSERT INTO {} (topic, key, payload) VALUES {}", self.table, rows.join(", ")));
    }

    /// So many messages, of so many keys; the payload is the place within the key.
    fn put_many(&self, keys: usize, each: usize) {
        self.put_more(keys, 0, each);
    }

    /// Stops a relay, but not where it keeps others from writing: on SQLite that is so in the middle of its transactions.
    fn stop(&self, relay: &Running) {
        eventually("it is stopped and in nobody's way", || {
            relay.signal(Signal::SIGSTOP);
            let is_free = (self.is_free)();
            if !is_free {
                relay.signal(Signal::SIGCONT);
            }
            is_free.then_some(())
        });
    }

    /// As many more of each key, from this place on.
    fn put_more(&self, keys: usize, from: usize, each: usize) {
        let places = from..from + each;
        self.put(places.flat_map(|at| (0..keys).map(move |key| (format!("key-{key}"), at.to_string()))));
    }
}

/// A program for SQLite's files; without it these tests are skipped as they are without a server.
fn sqlite(store: &Store) -> Option<Database> {
    ringfence_servers::require("sqlite3").map(|_| Database::of_sqlite(store))
}

fn relay(store: &Store, database: &Database, to: &str, flags: &[&str]) -> Running {
    relay_of(store, &database.url, to, flags)
}

fn relay_of(store: &Store, url: &str, to: &str, flags: &[&str]) -> Running {
    let mut command = store.command(["outbox", "relay", url, "--to", to].iter().chain(flags));
    Running::start(command.env("RINGFENCE_LOG", "off").stderr(Stdio::null()))
}

/// How many messages are not sent.
fn pending(store: &Store, url: &str) -> u64 {
    let status = store.ringfence(["outbox", "status", "--json", url]).with_code(0).json();
    status["pending"].as_u64().unwrap()
}

/// What came more than once.
struct Again {
    /// How often in all.
    times: usize,
    /// How often of these under a lower attempt than one that had come before: it was on its way while its relay slept.
    late: usize,
}

/// Checks that nothing was lost, that each key came in order, that what came again is the same message, that no attempt was made twice,
/// and that a receiver who goes by the numbers deals with each message once, in its order.
fn check(posted: &[Posted], keys: usize, each: usize) -> Again {
    let mut by_key: BTreeMap<&str, Vec<&Posted>> = BTreeMap::new();
    for posted in posted.iter().filter(|posted| posted.status == 204) {
        by_key.entry(&posted.headers["ringfence-outbox-key"]).or_default().push(posted);
    }
    assert_eq!(by_key.len(), keys);
    let mut again = Again { times: 0, late: 0 };
    for (key, posted) in by_key {
        let (mut first, mut dealt_with, mut highest) = (Vec::new(), Vec::new(), 0);
        let mut messages: BTreeMap<usize, (String, u64, BTreeSet<u64>)> = BTreeMap::new();
        for posted in posted {
            let place: usize = String::from_utf8_lossy(&posted.body).parse().unwrap();
            let number = |header: &str| posted.headers[header].parse::<u64>().unwrap();
            let (id, attempt) =
                (posted.headers["idempotency-key"].clone(), number("ringfence-outbox-attempt"));
            let number = number("ringfence-outbox-number");
            if number > highest {
                highest = number;
                dealt_with.push(place);
            }
            let Some((was, had, attempts)) = messages.get_mut(&place) else {
                first.push(place);
                messages.insert(place, (id, number, BTreeSet::from([attempt])));
                continue;
            };
            assert_eq!((&id, number), (&*was, *had), "{key}/{place} came again as another message");
            again.times += 1;
            again.late += usize::from(attempts.last() > Some(&attempt));
            assert!(attempts.insert(attempt), "{key}/{place} came twice as attempt {attempt}");
        }
        let all: Vec<usize> = (0..each).collect();
        assert_eq!((&first, &dealt_with), (&all, &all), "{key}: in order, and dealt with once");
    }
    again
}

fn places(posted: &[Posted]) -> usize {
    let taken = posted.iter().filter(|posted| posted.status == 204);
    taken.map(|posted| (&posted.headers["ringfence-outbox-key"], &posted.body)).collect::<BTreeSet<_>>().len()
}

/// Kills relays at many instants, while others go on.
fn nothing_is_lost_when_relays_are_killed(store: &Store, database: &Database) {
    const KEYS: usize = 6;
    const EACH: usize = 50;
    const KILLS: usize = 12;
    const BATCH: usize = 8;
    let hook = Hook::start(|_| {
        thread::sleep(Duration::from_millis(2));
        Some(204)
    });
    database.put_many(KEYS, EACH);
    let flags = ["--batch", "8", "--claim", "600ms", "--timeout", "200ms"];
    let start = || relay(store, database, &hook.url(), &flags);
    let mut relays = vec![start(), start()];
    for kill in 0..KILLS {
        // After so many more messages, and a moment that is another one each time.
        let wanted = (kill + 1) * KEYS * EACH / (KILLS + 2);
        hook.until("messages go on", |posted| places(posted) >= wanted);
        thread::sleep(Duration::from_micros(u64::try_from(kill).unwrap() * 700));
        let killed = relays.remove(0);
        killed.signal(Signal::SIGKILL);
        killed.end();
        relays.push(start());
    }
    let posted = hook.until("all have come", |posted| places(posted) == KEYS * EACH);
    let again = check(&posted, KEYS, EACH);
    assert!(
        again.times <= KILLS * BATCH,
        "{} came again: at most a batch for each of {KILLS} kills",
        again.times
    );
    assert_eq!(again.late, 0, "the dead send nothing late");
    // What has come is not settled yet where the last one was killed, or nobody heard the answer in time.
    eventually("all is settled", || (pending(store, &database.url) == 0).then_some(()));
    for relay in relays {
        relay.signal(Signal::SIGTERM);
        assert_eq!(relay.end().code(), Some(0));
    }
    let status = store.ringfence(["outbox", "status", "--json", &database.url]).with_code(0).json();
    assert_eq!((&status["pending"], &status["dead"]), (&0.into(), &0.into()), "{status}");
}

#[tokio::test]
async fn nothing_is_lost_in_postgres_when_relays_are_killed() {
    let Some(server) = Postgres::start().await else { return };
    let store = Store::new();
    nothing_is_lost_when_relays_are_killed(&store, &Database::of_postgres(&store, &server));
}

#[test]
fn nothing_is_lost_in_sqlite_when_relays_are_killed() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    nothing_is_lost_when_relays_are_killed(&store, &database);
}

/// A relay that is stopped past its claim wakes up when another one has sent what it was about to.
fn a_relay_that_is_stopped_does_no_harm(store: &Store, database: &Database) {
    const KEYS: usize = 1;
    const EACH: usize = 30;
    let is_slow = Arc::new(AtomicBool::new(true));
    let slow = Arc::clone(&is_slow);
    let hook = Hook::start(move |_| {
        thread::sleep(Duration::from_millis(if slow.load(Ordering::Relaxed) { 20 } else { 1 }));
        Some(204)
    });
    database.put_many(KEYS, EACH);
    let flags = ["--claim", "400ms", "--timeout", "150ms"];
    let stopped = relay(store, database, &hook.url(), &flags);
    hook.until("the first sends", |posted| posted.len() >= 2);
    database.stop(&stopped);
    is_slow.store(false, Ordering::Relaxed);
    let other = relay(store, database, &hook.url(), &flags);
    hook.until("the other one has sent all", |posted| places(posted) == KEYS * EACH);
    database.put([("key-0".to_owned(), EACH.to_string())]);
    hook.until("and one more", |posted| places(posted) == KEYS * EACH + 1);
    stopped.signal(Signal::SIGCONT);
    // It works again, so whatever it had to say of its old batch it has said.
    other.signal(Signal::SIGTERM);
    assert_eq!(other.end().code(), Some(0));
    database.put([("key-0".to_owned(), (EACH + 1).to_string())]);
    let posted = hook.until("the first works again", |posted| places(posted) == KEYS * EACH + 2);
    let again = check(&posted, KEYS, EACH + 2);
    assert!(
        again.late <= KEYS,
        "nothing is begun when it wakes, and of a key one is on its way: {}",
        again.late
    );
    stopped.signal(Signal::SIGTERM);
    assert_eq!(stopped.end().code(), Some(0));
}

#[tokio::test]
async fn a_relay_on_postgres_that_is_stopped_does_no_harm() {
    let Some(server) = Postgres::start().await else { return };
    let store = Store::new();
    a_relay_that_is_stopped_does_no_harm(&store, &Database::of_postgres(&store, &server));
}

#[test]
fn a_relay_on_sqlite_that_is_stopped_does_no_harm() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    a_relay_that_is_stopped_does_no_harm(&store, &database);
}

/// Two relays share the work, and again and again one of them is stopped in the middle of it, past its claim, and goes on.
fn what_relays_are_stopped_at_is_sent_by_the_others(store: &Store, database: &Database) {
    const KEYS: usize = 4;
    const EACH: usize = 12;
    const STOPS: usize = 6;
    const BATCH: usize = 8;
    let hook = Hook::start(|_| {
        thread::sleep(Duration::from_millis(2));
        Some(204)
    });
    let flags = ["--batch", "8", "--claim", "400ms", "--timeout", "150ms"];
    let relays = [(); 2].map(|()| relay(store, database, &hook.url(), &flags));
    for stop in 0..STOPS {
        database.put_more(KEYS, stop * EACH, EACH);
        let before = stop * KEYS * EACH;
        // At another place each time.
        hook.until("messages go on", |posted| places(posted) > before + 3 * stop);
        let stopped = &relays[stop % 2];
        database.stop(stopped);
        // So nothing is left that only the stopped one may send: its claim is over.
        eventually("all is settled", || (pending(store, &database.url) == 0).then_some(()));
        stopped.signal(Signal::SIGCONT);
    }
    let posted = hook.posted();
    let again = check(&posted, KEYS, STOPS * EACH);
    assert!(again.times <= STOPS * BATCH, "{} came again: at most a batch for each of {STOPS}", again.times);
    assert!(again.late <= STOPS * KEYS, "nothing is begun by who wakes: {} came late", again.late);
    for relay in relays {
        relay.signal(Signal::SIGTERM);
        assert_eq!(relay.end().code(), Some(0));
    }
}

#[tokio::test]
async fn what_relays_on_postgres_are_stopped_at_is_sent_by_the_others() {
    let Some(server) = Postgres::start().await else { return };
    let store = Store::new();
    what_relays_are_stopped_at_is_sent_by_the_others(&store, &Database::of_postgres(&store, &server));
}

#[test]
fn what_relays_on_sqlite_are_stopped_at_is_sent_by_the_others() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    what_relays_are_stopped_at_is_sent_by_the_others(&store, &database);
}

/// One that is stopped in the middle of a transaction of its own has locked a lane, and does not know.
#[tokio::test]
async fn a_relay_that_is_stopped_in_a_transaction_is_out_of_the_way_and_comes_back() {
    const KEYS: usize = 4;
    const EACH: usize = 500;
    const OPEN: &str = "SELECT count(*) FROM pg_stat_activity
        WHERE application_name = 'ringfence outbox' AND state = 'idle in transaction'";
    let Some(server) = Postgres::start().await else { return };
    let store = Store::new();
    let database = Database::of_postgres(&store, &server);
    let hook = Hook::taking_everything();
    database.put_many(KEYS, EACH);
    // Many small batches, so that it is in a transaction again and again.
    let flags = ["--batch", "2", "--claim", "1s", "--timeout", "400ms"];
    let first = relay(&store, &database, &hook.url(), &flags);
    eventually("it is stopped in a transaction", || {
        first.signal(Signal::SIGSTOP);
        let is_in_one = (database.sql)(OPEN).trim() != "0";
        if !is_in_one {
            first.signal(Signal::SIGCONT);
        }
        is_in_one.then_some(())
    });
    assert!(pending(&store, &database.url) > 0, "it had something left to do");
    let second = relay(&store, &database, &hook.url(), &flags[2..]);
    eventually("all is settled", || (pending(&store, &database.url) == 0).then_some(()));
    second.signal(Signal::SIGTERM);
    assert_eq!(second.end().code(), Some(0));
    first.signal(Signal::SIGCONT);
    database.put_more(KEYS, EACH, 1);
    let posted = hook.until("the first works again", |posted| places(posted) == KEYS * (EACH + 1));
    let again = check(&posted, KEYS, EACH + 1);
    assert!(again.times <= 2, "{} came again: at most its batch", again.times);
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end().code(), Some(0));
}

/// What happens to the network between a relay and its database.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Nothing passes, and nobody hangs up.
    Silent,
    /// What the relay asks for is done, and it does not hear of it.
    Deaf,
    /// Every connection is reset.
    Reset,
}

/// A relay that is cut off sends on what it has claimed, and cannot say so; the other one sends it again, and no more than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_is_cut_off_with_is_sent_by_the_other() {
    const KEYS: usize = 4;
    const EACH: usize = 12;
    const BATCH: usize = 8;
    let cuts = [Cut::Silent, Cut::Deaf, Cut::Reset, Cut::Silent, Cut::Deaf, Cut::Reset];
    let Some(server) = Postgres::start().await else { return };
    let store = Store::new();
    let database = Database::of_postgres(&store, &server);
    let network = Proxy::start(server.port()).await;
    let by_network = database.url.replace(&format!(":{}/", server.port()), &format!(":{}/", network.port()));
    assert_ne!(by_network, database.url);
    let hook = Hook::start(|_| {
        thread::sleep(Duration::from_millis(2));
        Some(204)
    });
    let flags = ["--batch", "8", "--claim", "600ms", "--timeout", "200ms"];
    let start = |url: &str| relay_of(&store, url, &hook.url(), &flags);
    let first = start(&by_network);
    for (round, cut) in cuts.into_iter().enumerate() {
        database.put_more(KEYS, 2 * round * EACH, EACH);
        let before = 2 * round * KEYS * EACH;
        hook.until("the first sends", |posted| places(posted) > before + 3 * round);
        match cut {
            Cut::Silent => network.cut(),
            Cut::Deaf => network.hold_replies(),
            Cut::Reset => network.cut_connections(),
        }
        let second = start(&database.url);
        eventually("all is settled", || (pending(&store, &database.url) == 0).then_some(()));
        second.signal(Signal::SIGTERM);
        assert_eq!(second.end().code(), Some(0));
        network.mend();
        // Alone again, it works as before.
        database.put_more(KEYS, (2 * round + 1) * EACH, EACH);
        hook.until("the first goes on", |posted| places(posted) == 2 * (round + 1) * KEYS * EACH);
    }
    eventually("all is settled", || (pending(&store, &database.url) == 0).then_some(()));
    let again = check(&hook.posted(), KEYS, 2 * cuts.len() * EACH);
    assert!(again.times <= cuts.len() * BATCH, "{} came again: at most a batch for each cut", again.times);
    assert_eq!(again.late, 0, "who is cut off knows when its claim is over");
    first.signal(Signal::SIGTERM);
    assert_eq!(first.end().code(), Some(0));
}

#[test]
fn lines_of_json_until_a_signal_or_until_nobody_reads() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    let mut command = store.command(["outbox", "relay", &database.url, "--to", "stdout"]);
    let relay = Running::start(command.stderr(Stdio::null()));
    database.put([("42".to_owned(), "{\"a\":1}".to_owned())]);
    let line: Value = serde_json::from_str(&relay.line().unwrap()).unwrap();
    assert_eq!(
        (&line["topic"], &line["key"], &line["payload"]),
        (&"t".into(), &"42".into(), &"{\"a\":1}".into())
    );
    assert_eq!((&line["number"], &line["attempt"]), (&1.into(), &1.into()));
    eventually("it is settled", || {
        let status = store.ringfence(["outbox", "status", "--json", &database.url]).with_code(0).json();
        (status["pending"] == 0).then_some(())
    });
    relay.signal(Signal::SIGINT);
    assert_eq!(relay.end().code(), Some(0));

    database.put([("42".to_owned(), "again".to_owned())]);
    let mut command = store.command(["outbox", "relay", &database.url, "--to", "stdout"]);
    let mut nobody = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(nobody.stdout.take());
    assert_eq!(nobody.wait().unwrap().code(), Some(128 + 13));
    let status = store.ringfence(["outbox", "status", "--json", &database.url]).with_code(0).json();
    assert_eq!(status["pending"], 1, "{status}");
}

#[test]
fn what_is_refused_is_seen_and_put_back() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let hook = Hook::start(move |posted| {
        assert_eq!(posted.headers["authorization"], "Bearer secret");
        Some(if posted.body == b"poison" && !mended.load(Ordering::Relaxed) { 422 } else { 204 })
    });
    let headers = store.path("headers");
    fs::write(&headers, "Authorization: Bearer secret\n\nContent-Type: text/plain\n").unwrap();
    database.put([("42".to_owned(), "poison".to_owned()), ("42".to_owned(), "next".to_owned())]);
    let flags = ["--refusals", "2", "--headers", headers.to_str().unwrap()];
    let relay = relay(&store, &database, &hook.url(), &flags);
    hook.until("the next one comes", |posted| posted.len() == 3);
    let status =
        |flag: &[&str]| store.ringfence(["outbox", "status", &database.url].iter().chain(flag)).with_code(0);
    let seen = eventually("both are settled", || {
        let seen = status(&["--json"]).json();
        (seen["pending"] == 0).then_some(seen)
    });
    let letter = &seen["dead_letters"][0];
    assert_eq!(
        (&seen["dead"], &letter["key"], &letter["refusals"]),
        (&1.into(), &"42".into(), &2.into()),
        "{seen}"
    );
    let id = letter["id"].as_str().unwrap();
    let shown =
        status(&[]).stdout.replace(&database.url, "URL").replace(id, "00000000-0000-4000-8000-000000000000");
    assert_snapshot!("outbox-status", shown);

    let nobody = ["outbox", "retry", &database.url, "--key", "41"];
    store.ringfence(nobody).with_code(1).saying("there is no such dead letter");
    is_mended.store(true, Ordering::Relaxed);
    let json = store.ringfence(["outbox", "retry", "--json", &database.url, "--id", id]).with_code(0).json();
    assert_eq!(json["put_back"], 1);
    let posted = hook.until("it comes again", |posted| posted.len() == 4);
    assert_eq!(posted[3].headers["idempotency-key"], format!("\"{id}\""));
    let said = store.ringfence(["outbox", "retry", &database.url, "--all"]).with_code(0).stdout;
    assert_eq!(said, "dead letters put back: 0\n");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.end().code(), Some(0));
}

/// It says so each time that it has tried, and nothing else in between: that there was nothing to send says nothing of the sink.
#[test]
fn a_sink_that_is_not_there_takes_nothing_again() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    database.put([("42".to_owned(), "one".to_owned())]);
    let log = store.path("log");
    let mut command = store.command(["outbox", "relay", &database.url, "--to", "http://127.0.0.1:1"]);
    let relay = Running::start(command.stderr(fs::File::create(&log).unwrap()));
    let said = eventually("it has tried again", || {
        let said = fs::read_to_string(&log).unwrap();
        (said.matches("the sink is not there").count() == 3).then_some(said)
    });
    assert!(!said.contains("takes messages again"), "{said}");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.end().code(), Some(0));
}

/// The first one waits for a sink that may take its time.
#[test]
fn a_second_signal_ends_it_at_once() {
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    database.put([("42".to_owned(), "one".to_owned())]);
    let hook = Hook::start(|_| None);
    let relay = relay(&store, &database, &hook.url(), &["--claim", "1h", "--timeout", "30m"]);
    hook.until("it sends", |posted| !posted.is_empty());
    relay.signal(Signal::SIGTERM);
    relay.signal(Signal::SIGINT);
    // Which of two that come together is the second is the kernel's to say.
    let code = relay.end().code();
    assert!([Some(128 + 15), Some(128 + 2)].contains(&code), "{code:?}");
    assert_eq!(pending(&store, &database.url), 1, "it comes again");
}

#[tokio::test]
async fn a_stream_of_redis() {
    let Some(server) = RedisServer::start().await else { return };
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    database.put([("42".to_owned(), "one".to_owned())]);
    let mut command = store.command(["outbox", "relay", &database.url]);
    let relay = Running::start(command.env("RINGFENCE_OUTBOX_TO", server.url()).stderr(Stdio::null()));
    eventually("it is sent", || {
        let status = store.ringfence(["outbox", "status", "--json", &database.url]).with_code(0).json();
        (status["pending"] == 0).then_some(())
    });
    let entries = server.command(&["XRANGE", "t", "-", "+"]).await;
    assert!(entries.contains("one") && entries.contains("42"), "{entries}");
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.end().code(), Some(0));
}

#[tokio::test]
async fn a_stream_of_redis_by_tls() {
    let Some(server) = RedisOptions::new().tls().password("secret").start().await else { return };
    let store = Store::new();
    let Some(database) = sqlite(&store) else { return };
    database.put([("42".to_owned(), "one".to_owned())]);
    let relay = || store.command(["outbox", "relay", &database.url, "--to", &server.url()]);
    is_not_believed(&store, &mut relay());
    assert_eq!(server.command(&["DBSIZE"]).await, "0");
    let authority = server.authority().unwrap();
    let trusting = Running::start(relay().env("SSL_CERT_FILE", authority).stderr(Stdio::null()));
    eventually("it is sent", || (pending(&store, &database.url) == 0).then_some(()));
    assert!(server.command(&["XRANGE", "t", "-", "+"]).await.contains("one"));
    trusting.signal(Signal::SIGTERM);
    assert_eq!(trusting.end().code(), Some(0));
}

/// A server whose authority is not one of the system's is nobody that messages are sent to.
fn is_not_believed(store: &Store, relay: &mut Command) {
    let log = store.path("log");
    let relay = Running::start(relay.stderr(fs::File::create(&log).unwrap()));
    eventually("it says so", || {
        fs::read_to_string(&log).unwrap().contains("the sink is not there").then_some(())
    });
    relay.signal(Signal::SIGTERM);
    assert_eq!(relay.end().code(), Some(0));
}

/// Takes posts by TLS with the certificate and the key that it is given, and prints its port and what it takes.
const HTTPS: &str = "
import http.server, ssl, sys
class Taker(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print(self.path, self.rfile.read(int(self.headers['content-length'])).decode(), flush=True)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(('127.0.0.1', 0), Taker)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(*sys.argv[1:])
server.socket = tls.wrap_socket(server.socket, server_side=True)
print(server.server_port, flush=True)
server.serve_forever()
";

#[tokio::test]
async fn from_postgres_by_tls_to_a_webhook_by_tls() {
    let Some(python) = ringfence_servers::require("python3") else { return };
    let Some(server) = PostgresOptions::new().tls().start().await else { return };
    let store = Store::new();
    let database = Database::of_postgres(&store, &server);
    let [authority, certificate, key] = server.certificates().unwrap();
    let taker = Running::start(
        Command::new(python).args(["-c", HTTPS]).args([certificate, key]).stdout(Stdio::piped()),
    );
    let hook = format!("https://127.0.0.1:{}/hook", taker.line().unwrap());
    database.put([("42".to_owned(), "one".to_owned())]);
    let relay = || store.command(["outbox", "relay", &database.url, "--to", &hook]);
    is_not_believed(&store, &mut relay());
    let trusting = Running::start(relay().env("SSL_CERT_FILE", authority).stderr(Stdio::null()));
    taker.expect("/hook one");
    eventually("it is settled", || (pending(&store, &database.url) == 0).then_some(()));
    trusting.signal(Signal::SIGTERM);
    assert_eq!(trusting.end().code(), Some(0));
    // The database is believed by its authority alone, too.
    let stranger = database.url.split("&sslrootcert").next().unwrap();
    store.ringfence(["outbox", "status", stranger]).with_code(69);
}

#[tokio::test]
async fn behind_a_pooler_that_lends_a_session_for_a_transaction() {
    let Some(server) = Postgres::start().await else { return };
    let Some(pooler) = Pgbouncer::start(&server, "transaction").await else { return };
    let store = Store::new();
    let mut database = Database::of_postgres(&store, &server);
    database.url = pooler.url();
    store.ringfence(["outbox", "setup", &database.url]).with_code(0);
    let hook = Hook::taking_everything();
    // Two of them and an operator, so that the sessions of the server go from hand to hand.
    let relays = [(); 2].map(|()| relay(&store, &database, &hook.url(), &["--batch", "5"]));
    for _ in 0..3 {
        database.put_many(8, 5);
        eventually("all is sent", || (pending(&store, &database.url) == 0).then_some(()));
    }
    assert_eq!(hook.posted().len(), 120, "nothing was sent twice");
    for relay in relays {
        relay.signal(Signal::SIGTERM);
        assert_eq!(relay.end().code(), Some(0));
    }
}

#[test]
fn a_script_is_printed_without_connecting() {
    let store = Store::new();
    let print = |url: &str| store.ringfence(["outbox", "setup", "--print", url]).with_code(0).stdout;
    let script = print("sqlite:/nowhere/app.db");
    assert!(
        script.contains("CREATE TABLE ringfence_outbox_messages (") && script.ends_with("COMMIT;\n"),
        "{script}"
    );
    let to = ["outbox", "setup", "postgres://nobody@127.0.0.1:1/db", "--print", "--grant-to", "the \"app\""];
    let script = store.ringfence(to.iter().chain(&["--grant-relay-to", "relay"])).with_code(0).stdout;
    let app = "GRANT INSERT (id, topic, key, payload) ON ringfence_outbox.messages TO \"the \"\"app\"\"\";";
    assert!(script.contains(app) && script.contains("ringfence_outbox.lanes TO \"relay\";"), "{script}");
    let json = store.ringfence(to.iter().chain(&["--json"])).with_code(0).json();
    assert!(json["script"].as_str().unwrap().contains(app));
}

#[test]
fn what_cannot_be_done_is_said() {
    let store = Store::new();
    let file = store.path("none.db");
    let url = format!("sqlite:{}", file.display());
    let url = url.as_str();
    store
        .ringfence(["outbox", "status"])
        .with_code(64)
        .saying("local: has no outbox")
        .saying("sqlite:/some/file.db");
    store.ringfence(["outbox", "status", "redis://host"]).with_code(64).saying("redis: has no outbox");
    store.ringfence(["outbox", "status", url]).with_code(69).saying("there is no such database file");
    store.ringfence(["outbox", "status", "sqlite:"]).with_code(64).saying("takes a file");
    store
        .ringfence(["outbox", "status", "sqlite:/a?mode=rwc"])
        .with_code(64)
        .saying("knows no parameter \"mode\"");
    let mistyped = "postgres://u:secret@host/db?sslmod=require";
    store.ringfence(["outbox", "status", mistyped]).with_code(64).saying("did you mean \"sslmode\"?");
    let down = store.ringfence(["outbox", "status", "postgres://u:secret@127.0.0.1:1/db"]).with_code(69);
    let down = down.saying("postgres://u:***@127.0.0.1:1/db: outbox: the database cannot be reached");
    assert!(!format!("{down:?}").contains("secret"), "{down:?}");
    let relay = |args: &[&str]| store.ringfence(["outbox", "relay", url].iter().chain(args)).with_code(64);
    relay(&[]).saying("--to <SINK>");
    relay(&["--to", "smtp://host"]).saying("--to is none of stdout, http://");
    relay(&["--to", "http://u:secret@host"]).saying("stands in a header");
    relay(&["--to", "stdout", "--headers", "/dev/null"]).saying("--headers are for a webhook");
    relay(&["--to", "http://host", "--headers", file.to_str().unwrap()]).saying("none.db: No such file");
    let headers = store.path("headers");
    fs::write(&headers, "Authorization: a\nsecret").unwrap();
    let said = relay(&["--to", "http://host", "--headers", headers.to_str().unwrap()])
        .saying("line 2 is not NAME: VALUE");
    assert!(!said.stderr.contains("secret"), "{said:?}");
    relay(&["--to", "stdout", "--batch", "0"]).saying("from 1 to 1000");
    relay(&["--to", "stdout", "--claim", "1s"]).saying("at least twice as long");
    relay(&["--to", "stdout", "--refusals", "0"]).saying("from 1 on, or unlimited");
    store.ringfence(["outbox", "retry", url]).with_code(64).saying("--all");
    store.ringfence(["outbox", "retry", url, "--id", "7"]).with_code(64).saying("it is a UUID");
    store
        .ringfence(["outbox", "setup", "sqlite:/a", "--print", "--grant-to", "app"])
        .with_code(64)
        .saying("no roles");
}
