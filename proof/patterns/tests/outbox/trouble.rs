//! A relay that was paused past its claim, and a database that goes away.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence::patterns::outbox::{Delivery, Grants, Outbox, Relayed, Sink, Which};
use ringfence::{BoxFuture, ErrorKind, Result};
use ringfence_servers::{Postgres, PostgresOptions, postgres_18};
use ringfence_testkit::PATIENCE;

use crate::on_both;
use crate::stage::{Database, Memory, Stage, message, refused, text};

on_both!(a_relay_that_slept_past_its_claim_says_nothing_any_more);

/// Blocks its whole runtime, as a pause does, in its first message.
#[derive(Debug)]
struct Sleeper {
    given: Arc<Mutex<Vec<String>>>,
    asleep: mpsc::Sender<()>,
    wake: Mutex<mpsc::Receiver<()>>,
}

impl Sink for Sleeper {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.given.lock().unwrap().push(text(message));
            self.asleep.send(()).unwrap();
            self.wake.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            Ok(())
        })
    }
}

async fn a_relay_that_slept_past_its_claim_says_nothing_any_more(stage: Stage) {
    let (claim, timeout) = (Duration::from_millis(400), Duration::from_millis(100));
    stage.put(&[message("k", 1), message("k", 2), message("k", 3)]).await;
    let (asleep, sleeps) = mpsc::channel();
    let (wake, wakes) = mpsc::channel();
    let given = Arc::new(Mutex::new(Vec::new()));
    let sleeper = Sleeper { given: Arc::clone(&given), asleep, wake: Mutex::new(wakes) };
    let relay = stage.outbox().relay().claim(claim, timeout).unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let paused = std::thread::spawn(move || -> Result<Relayed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(relay.run(Arc::new(sleeper), async { drop(stopped.await) }))
    });
    tokio::task::spawn_blocking(move || sleeps.recv_timeout(PATIENCE)).await.unwrap().unwrap();

    // Another one has its lane when the claim is over, and is refused the first message: so it is still there.
    let hour = Duration::from_hours(1);
    let sink = Memory::answering(|_| Err(refused()));
    let other = stage.relay(|relay| relay.pauses(hour, hour), &sink);
    sink.until("the other one was given the first", |given| !given.is_empty()).await;
    other.stop().await;
    assert_eq!(sink.given()[0].0.attempt, 2, "it may have been sent");

    drop(stop);
    wake.send(()).unwrap();
    let done = tokio::task::spawn_blocking(|| paused.join().unwrap()).await.unwrap().unwrap();
    assert_eq!(done.lost_claims, 1, "{done:?}");
    assert_eq!(*given.lock().unwrap(), ["1"], "it sends nothing when it wakes");
    let status = stage.outbox().status().await.unwrap();
    assert_eq!(status.pending, 3, "what it says of its batch is refused");
    assert_eq!(status.waiting[0].refusals, 1, "and what the other one said stands");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_loses_nothing() {
    const COUNT: usize = 120;
    let Some(mut stage) = Stage::postgres().await else { return };
    let messages: Vec<_> = (0..COUNT).map(|at| message(["a", "b", "c", "d"][at % 4], at)).collect();
    stage.put(&messages).await;
    let sink = Memory::slow(Duration::from_millis(2), |_| Ok(()));
    let claim = |relay: ringfence::patterns::outbox::Relay| {
        relay.claim(Duration::from_secs(2), Duration::from_millis(500)).unwrap().batch(5).unwrap()
    };
    let relays = [stage.relay(claim, &sink), stage.relay(claim, &sink)];
    sink.until_taken(COUNT / 3).await;
    let Database::Postgres(server, _) = &mut stage.database else { unreachable!() };
    server.kill();
    server.restart().await;
    sink.until_taken(2 * COUNT / 3).await;
    let Database::Postgres(server, _) = &stage.database else { unreachable!() };
    server.terminate_backends().await;
    let all = |given: &[(Delivery, bool)]| {
        let ids: std::collections::BTreeSet<_> = given.iter().map(|(message, _)| message.id).collect();
        ids.len() == COUNT
    };
    sink.until("every message came", all).await;
    for relay in relays {
        relay.stop().await;
    }
    assert_eq!(stage.outbox().status().await.unwrap().pending, 0);
    for (key, payloads) in sink.payloads() {
        // Without those that came again.
        let mut seen = std::collections::BTreeSet::new();
        let first: Vec<usize> =
            payloads.iter().map(|payload| payload.parse().unwrap()).filter(|&at| seen.insert(at)).collect();
        assert!(first.is_sorted(), "{key:?}: {payloads:?}");
    }
    let twice = sink.taken().len() - COUNT;
    assert!(twice <= 2 * 2 * 5, "{twice} came again: at most a batch for each relay and fault");
}

/// What an operator chose for other programs keeps no relay from writing what it has to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_are_for_other_programs_stop_no_relay() {
    let options = PostgresOptions::new()
        .set("default_transaction_read_only", "on")
        .set("default_transaction_isolation", "serializable")
        .set("standard_conforming_strings", "off");
    let Some(server) = options.start().await else { return };
    let stage = Stage::of_server(server);
    stage.outbox().setup(&Grants::none()).await.unwrap();
    let put =
        "BEGIN READ WRITE; INSERT INTO ringfence_outbox.messages (topic, payload) VALUES ('t', '1'); COMMIT";
    stage.sql(put).await.unwrap();
    let sink = Memory::answering(|_| Err(refused()));
    let relay = stage.outbox().relay().refusals(std::num::NonZeroU32::new(1));
    let done =
        relay.run(Arc::clone(&sink) as _, sink.until("one is refused", |given| !given.is_empty())).await;
    assert_eq!(done.unwrap().dead, 1);
    assert_eq!(stage.outbox().retry(&Which::All).await.unwrap(), 1);
}

/// Says that it was given something, and never answers.
#[derive(Debug)]
struct Hole(tokio::sync::Notify);

impl Sink for Hole {
    fn deliver<'a>(&'a self, _: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async {
            self.0.notify_one();
            std::future::pending().await
        })
    }
}

/// A server that confirms what is not on its disk may forget a message that was sent, and give its number to another one, which
/// whoever keeps the highest number would then take for the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_on_the_disk_whatever_the_server_says_of_commits() {
    // For a minute it writes nothing that nobody waits for.
    let options = PostgresOptions::new().set("synchronous_commit", "off").set("wal_writer_delay", "10s");
    let Some(server) = options.start().await else { return };
    let mut stage = Stage::of_server(server);
    stage.outbox().setup(&Grants::none()).await.unwrap();
    stage.sql("BEGIN; SET LOCAL synchronous_commit = on; CREATE TABLE on_the_disk (); COMMIT").await.unwrap();
    stage.put(&[message("k", 1)]).await;
    let hole = Arc::new(Hole(tokio::sync::Notify::new()));
    let relay = stage.relay(|relay| relay, &hole);
    hole.0.notified().await;
    let Database::Postgres(server, _) = &mut stage.database else { unreachable!() };
    server.kill();
    relay.task.abort();
    server.restart().await;
    let left = "SELECT count(*) FROM ringfence_outbox.messages WHERE attempts = 1";
    assert_eq!(server.psql(left).await, "1", "the message is there");
    assert_eq!(
        server.psql("SELECT max(token) FROM ringfence_outbox.lanes").await,
        "1",
        "and so is the claim"
    );
}

/// Who keeps the highest number that it has dealt with would drop every message of the new server that has no higher one.
#[tokio::test]
async fn numbers_rise_through_the_promotion_of_a_standby_that_lacks_the_last() {
    let Some(mut server) = Postgres::start().await else { return };
    Outbox::open(&server.url()).unwrap().setup(&Grants::none()).await.unwrap();
    let mut standby = server.standby().await;
    standby.kill();
    let put = "INSERT INTO ringfence_outbox.messages (topic, key, payload) SELECT 't', 'k', '' FROM generate_series(1, 100)";
    let highest = "SELECT max(number) FROM ringfence_outbox.messages";
    server.psql(put).await;
    let before: u64 = server.psql(highest).await.parse().unwrap();
    server.kill();
    standby.restart().await;
    let error = Outbox::open(&standby.url()).unwrap().retry(&Which::All).await.unwrap_err();
    let is_said =
        error.kind() == ErrorKind::InvalidRequest && error.to_string().contains("its server is a standby");
    assert!(is_said, "{error:?}");
    standby.promote().await;
    standby.psql(put).await;
    let lowest: u64 = standby.psql(&highest.replace("max", "min")).await.parse().unwrap();
    assert!(lowest > before, "{before} was given, and then {lowest}");

    // A cluster of another version, or one that was restored, begins with the first timeline and goes on with the counter.
    let before: u64 = standby.psql(highest).await.parse().unwrap();
    server.restart().await;
    server.psql(&format!("SELECT setval('ringfence_outbox.numbers', {before})")).await;
    server.psql(put).await;
    let highest: u64 = server.psql(highest).await.parse().unwrap();
    assert_eq!(highest, before + 100);
}

/// Somebody who listens and stays in a transaction would otherwise have the app's transactions fail, each at its commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_enqueued_is_committed_and_sent_where_there_is_no_room_for_messages() {
    let Some(programs) = postgres_18() else { return };
    let options = PostgresOptions::new().programs(programs).set("max_notify_queue_pages", "64");
    let Some(server) = options.start().await else { return };
    let listener = server.without_room_for_messages().await;
    let stage = Stage::of_server(server);
    stage.outbox().setup(&Grants::none()).await.unwrap();
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay, &sink);
    stage.put(&[message("k", 1)]).await;
    sink.until_taken(1).await;
    relay.stop().await;
    drop(listener);
}
