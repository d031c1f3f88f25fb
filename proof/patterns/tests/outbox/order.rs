//! The messages of a key are sent one after the other, in the order in which their transactions were committed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringfence::patterns::outbox;
use ringfence::{Clock, SystemClock};
use ringfence_testkit::PATIENCE;

use crate::on_both;
use crate::stage::{Database, Memory, Stage, away, message, refused};

on_both!(
    four_relays_keep_the_order_of_each_key_whatever_fails,
    a_key_that_waits_holds_up_no_other,
    nobody_slips_past_one_whose_wait_is_over,
    ten_thousand_messages,
);

const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

fn so_many_keys(count: usize) -> Vec<&'static str> {
    (0..count).map(|at| &*format!("key-{at}").leak()).collect()
}

async fn four_relays_keep_the_order_of_each_key_whatever_fails(stage: Stage) {
    const EACH: usize = 20;
    let sink = Memory::slow(Duration::from_millis(1), |_| match getrandom::u32().unwrap() % 100 {
        0..20 => Err(refused()),
        20..22 => Err(away()),
        _ => Ok(()),
    });
    let relays: Vec<_> =
        (0..4).map(|_| stage.relay(|relay| relay.refusals(None).batch(7).unwrap(), &sink)).collect();
    for at in 0..EACH {
        let messages: Vec<_> = KEYS.iter().map(|&key| message(key, at)).collect();
        stage.put(&messages).await;
    }
    sink.until_taken(KEYS.len() * EACH).await;
    let mut delivered = 0;
    for relay in relays {
        delivered += relay.stop().await.delivered;
    }
    assert_eq!(delivered, (KEYS.len() * EACH) as u64, "each is sent once where nothing is killed");
    let expected: Vec<_> = (0..EACH).map(|at| at.to_string()).collect();
    for (key, payloads) in sink.payloads() {
        assert_eq!(payloads, expected, "{key:?}");
    }
    // And no message was even tried before the one before it was taken.
    for key in KEYS {
        let tried: Vec<u64> = sink
            .given()
            .into_iter()
            .filter(|(message, _)| message.key.as_deref() == Some(key))
            .map(|(message, _)| message.number)
            .collect();
        assert!(tried.is_sorted(), "{key}: {tried:?}");
    }
}

async fn a_key_that_waits_holds_up_no_other(stage: Stage) {
    let sink = Memory::answering(
        |message| if message.key.as_deref() == Some("a") { Err(refused()) } else { Ok(()) },
    );
    stage.put(&[message("a", 1), message("a", 2), message("b", 1), message(None, 1)]).await;
    let hour = Duration::from_hours(1);
    let relay = stage.relay(|relay| relay.pauses(hour, hour), &sink);
    sink.until_taken(2).await;
    stage.put(&[message("a", 3)]).await;
    // The lane that was served longest ago is next, so that a relay comes by all of them between these.
    for at in 2..8 {
        stage.put(&[message("b", at)]).await;
        sink.until_taken(at + 1).await;
    }
    relay.stop().await;
    let tried: Vec<_> = sink.given().into_iter().filter(|(_, is_taken)| !is_taken).collect();
    assert_eq!(tried.len(), 1, "the first of its key alone is tried: {tried:?}");
    let status = stage.outbox().status().await.unwrap();
    assert_eq!((status.pending, status.waiting.len(), status.dead), (3, 1, 0));
    let waiting = &status.waiting[0];
    assert_eq!(
        (waiting.key.as_deref(), waiting.refusals, waiting.error.as_str()),
        (Some("a"), 1, "no, thank you")
    );
    let left = Duration::from_millis(waiting.retry_in_ms.unwrap());
    assert!((hour / 5..=hour).contains(&left), "{left:?}");
}

/// The wait of one of so many keys is over while a relay looks at the next messages of all of them.
async fn nobody_slips_past_one_whose_wait_is_over(stage: Stage) {
    let keys = so_many_keys(1000);
    let sink = Memory::answering(|message| match (&*message.payload, message.attempt) {
        (b"0", 1) => Err(refused()),
        _ => Ok(()),
    });
    for at in 0..2 {
        let messages: Vec<_> = keys.iter().map(|&key| message(key, at)).collect();
        stage.put(&messages).await;
    }
    let pause = Duration::from_millis(300);
    let relays: Vec<_> = (0..2).map(|_| stage.relay(|relay| relay.pauses(pause, pause), &sink)).collect();
    sink.until_taken(2 * keys.len()).await;
    for relay in relays {
        relay.stop().await;
    }
    for (key, payloads) in sink.payloads() {
        assert_eq!(payloads, ["0", "1"], "{key:?}");
    }
}

async fn ten_thousand_messages(stage: Stage) {
    const COUNT: usize = 10_000;
    let keys = so_many_keys(200);
    let messages: Vec<_> = (0..COUNT).map(|at| message(keys[at % keys.len()], at)).collect();
    let clock = SystemClock::new();
    let begin = clock.now();
    for messages in messages.chunks(1000) {
        stage.put(messages).await;
    }
    let enqueued = clock.now();
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay, &sink);
    sink.until_taken(COUNT).await;
    relay.stop().await;
    let sent = clock.now();
    eprintln!(
        "{}: {COUNT} messages of {} keys enqueued within {:?}, relayed within {:?}",
        stage.url.split(':').next().unwrap(),
        keys.len(),
        enqueued.saturating_since(begin),
        sent.saturating_since(enqueued)
    );
    for (key, payloads) in sink.payloads() {
        let numbers: Vec<usize> = payloads.iter().map(|payload| payload.parse().unwrap()).collect();
        assert!(numbers.is_sorted() && numbers.len() == COUNT / keys.len(), "{key:?}: {numbers:?}");
    }
}

#[tokio::test]
async fn who_enqueues_for_a_key_waits_for_who_did_before() {
    let Some(stage) = Stage::postgres().await else { return };
    let Database::Postgres(_, pool) = &stage.database else { unreachable!() };
    let mut first = pool.begin().await.unwrap();
    outbox::enqueue(&mut first, &message("k", "first")).await.unwrap();
    // Neither another key nor a message without one waits.
    stage.put(&[message("other", 1), message(None, 1)]).await;
    let second = tokio::spawn({
        let pool = pool.clone();
        async move {
            let mut second = pool.begin().await.unwrap();
            outbox::enqueue(&mut second, &message("k", "second")).await.unwrap();
            second.commit().await.unwrap();
        }
    });
    let waits = async {
        while stage.number("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").await
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("the second waits for the first");
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay, &sink);
    sink.until_taken(2).await;
    // What is enqueued later in the first is still before what the second has enqueued.
    outbox::enqueue(&mut first, &message("k", "first again")).await.unwrap();
    assert!(!second.is_finished());
    first.commit().await.unwrap();
    second.await.unwrap();
    sink.until_taken(5).await;
    relay.stop().await;
    assert_eq!(sink.payloads()[&Some("k".to_owned())], ["first", "first again", "second"]);
    let numbers: Vec<u64> = sink
        .taken()
        .iter()
        .filter(|message| message.key.as_deref() == Some("k"))
        .map(|message| message.number)
        .collect();
    assert!(numbers.is_sorted_by(|one, other| one < other), "{numbers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_at_the_same_time_are_sent_in_the_order_of_their_commits() {
    let Some(stage) = Stage::postgres().await else { return };
    let Database::Postgres(_, pool) = &stage.database else { unreachable!() };
    stage.sql("CREATE TABLE counter (value bigint); INSERT INTO counter VALUES (0)").await.unwrap();
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay.batch(3).unwrap(), &sink);
    let failed = Arc::new(AtomicU32::new(0));
    let writers: Vec<_> = (0..6)
        .map(|_| {
            let (pool, failed) = (pool.clone(), Arc::clone(&failed));
            tokio::spawn(async move {
                for _ in 0..15 {
                    let mut tx = pool.begin().await.unwrap();
                    // The message is first, so that nothing but its own lock keeps the order.
                    outbox::enqueue(&mut tx, &message("k", "before")).await.unwrap();
                    let next = "UPDATE counter SET value = value + 1 RETURNING value";
                    let value: i64 = sqlx::query_scalar(next).fetch_one(&mut *tx).await.unwrap();
                    outbox::enqueue(&mut tx, &message("k", value)).await.unwrap();
                    if getrandom::u32().unwrap().is_multiple_of(4) {
                        failed.fetch_add(1, Ordering::Relaxed);
                        tx.rollback().await.unwrap();
                    } else {
                        tx.commit().await.unwrap();
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let committed = 90 - failed.load(Ordering::Relaxed) as usize;
    sink.until_taken(2 * committed).await;
    relay.stop().await;
    let expected: Vec<_> =
        (1..=committed).flat_map(|value| ["before".to_owned(), value.to_string()]).collect();
    assert_eq!(sink.payloads()[&Some("k".to_owned())], expected);
}

#[tokio::test]
async fn an_idle_relay_is_called_at_once() {
    let Some(stage) = Stage::postgres().await else { return };
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay, &sink);
    let clock = SystemClock::new();
    let mut latencies = Vec::new();
    for at in 0..9 {
        // It has looked, and sleeps.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage.put(&[message("k", at)]).await;
        let begin = clock.now();
        sink.until_taken(at + 1).await;
        latencies.push(clock.now().saturating_since(begin));
    }
    relay.stop().await;
    latencies.sort();
    assert!(
        latencies[4] < Duration::from_millis(300),
        "it looks once a second, and is called: {latencies:?}"
    );
}
