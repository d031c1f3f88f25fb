//! The taker does as it is told: what it says is what the fault tests believe.

use std::process::Command;
use std::time::Duration;

use ringfence_core::{ErrorKind, LockName, RecordKey};
use ringfence_servers::{EFFECTS, Event, Process, SEVERAL, Taker, one_of_several, taker};
use tempfile::TempDir;

const NAME: &str = "-a name that looks like an option";

/// A store of its own for a test.
struct Store(TempDir);

impl Store {
    fn new() -> Self {
        Self(TempDir::new().expect("a temporary directory"))
    }

    fn url(&self) -> String {
        format!("local:{}", self.0.path().display())
    }

    fn taker(&self, options: &[&str]) -> Taker {
        Taker::start(&self.url(), NAME, options)
    }
}

async fn refused(taker: &mut Taker) -> String {
    let refused = |event: &Event| match event {
        Event::Refused { kind, .. } => Some(kind.clone()),
        _ => None,
    };
    taker.event("is refused", refused).await
}

#[tokio::test]
async fn it_acquires_writes_releases_and_acquires_again() {
    let store = Store::new();
    let mut taker = store.taker(&["--ttl", "1m"]);
    taker.asks().await;
    let (first, _) = taker.holds().await;
    assert_eq!(taker.writes("two words").await.expect("a holder writes").0, 1);
    taker.releases().await;
    assert_eq!(taker.writes("late").await.expect_err("its lease is over").kind(), ErrorKind::Stale);
    taker.tell("release");
    assert_eq!(refused(&mut taker).await, "InvalidRequest");
    taker.tell("acquire");
    let (second, _) = taker.holds().await;
    assert!(second.sequence() > first.sequence(), "{first}, then {second}");
    taker.tell("dance");
    assert_eq!(refused(&mut taker).await, "InvalidRequest");
}

#[tokio::test]
async fn it_holds_in_every_mode_and_waits_as_long_as_it_is_told() {
    let store = Store::new();
    for (mode, together) in [("exclusive", 1), ("shared", 2), ("permits:2", 2)] {
        let mut holders = Vec::new();
        for _ in 0..together {
            let mut holder = store.taker(&["--ttl", "1m", "--mode", mode]);
            let _ = holder.holds().await;
            holders.push(holder);
        }
        let rival = if mode == "permits:2" { mode } else { "exclusive" };
        let mut rival = store.taker(&["--mode", rival, "--wait", "50ms"]);
        assert_eq!(refused(&mut rival).await, "WaitElapsed", "{together} hold {mode}");
        for holder in &mut holders {
            holder.releases().await;
        }
    }
}

#[tokio::test]
async fn it_counts_in_the_record_and_ends() {
    let store = Store::new();
    let mut counting = [store.taker(&["--cycles", "20"]), store.taker(&["--cycles", "20"])];
    let mut numbers = Vec::new();
    for taker in &mut counting {
        for event in taker.last_events().await {
            match event {
                Event::Written { value, .. } => numbers.push(value.parse::<u64>().expect("a number")),
                Event::Refused { kind, message } => panic!("{kind}: {message}"),
                _ => {}
            }
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn it_does_not_outlive_its_stdin() {
    let store = Store::new();
    let mut command = Command::new(taker());
    command.args([&store.url(), "name"]);
    let mut process = Process::start(command).expect("the taker starts");
    process.close_stdin();
    let ends = async { while process.line().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(10), ends).await.expect("it ends with its stdin");
}

#[tokio::test]
async fn it_works_by_a_pattern_and_writes_down_what_it_does() {
    for (pattern, lock) in [("once", "once/"), ("leader", "leader/"), ("idempotency", "idempotency/")] {
        let store = Store::new();
        let mut taker = store.taker(&["--pattern", pattern]);
        let (token, _) = taker.holds().await;
        for effect in ["one", "another one"] {
            taker.tell(&format!("append {effect}"));
            let written = |event: &Event| matches!(event, Event::Written { value, .. } if value == effect);
            taker.event("has written", |event| written(event).then_some(())).await;
        }
        taker.tell("end well");
        taker.event("has ended", |event| matches!(event, Event::Ended).then_some(())).await;

        let locks = ringfence::Locks::connect(&store.url()).await.expect("the store");
        let lock = LockName::new(format!("{lock}{NAME}")).expect("a name");
        let key = RecordKey::new(lock, EFFECTS).expect("a field");
        let effects = locks.records().read(&key).await.expect("a look").expect("it wrote").value;
        let sequence = token.sequence();
        assert_eq!(effects, format!("{sequence} one\n{sequence} another one\n"), "{pattern}");
    }
}

#[tokio::test]
async fn it_leaves_a_permit_that_is_spent_for_a_ttl() {
    let store = Store::new();
    let mut spending = store.taker(&["--mode", "permits:1", "--ttl", "1m"]);
    let asked = spending.asks().await;
    let (_, held) = spending.holds().await;
    assert!(held >= asked);
    spending.leaves().await;
    let mut rival = store.taker(&["--mode", "permits:1", "--wait", "50ms"]);
    assert_eq!(refused(&mut rival).await, "WaitElapsed");
    spending.tell("leave");
    assert_eq!(refused(&mut spending).await, "InvalidRequest", "it holds nothing any more");
}

#[tokio::test]
async fn it_takes_several_and_writes_down_what_it_does_under_each() {
    let store = Store::new();
    let mut taker = store.taker(&["--pattern", "several"]);
    let locks = ringfence::Locks::connect(&store.url()).await.expect("the store");
    for number in 0..SEVERAL {
        let (token, _) = taker.holds().await;
        taker.tell(&format!("append {number} one"));
        let written = |event: &Event| matches!(event, Event::Written { .. }).then_some(());
        taker.event("has written", written).await;
        let lock = LockName::new(one_of_several(NAME, number)).expect("a name");
        let key = RecordKey::new(lock, EFFECTS).expect("a field");
        let effects = locks.records().read(&key).await.expect("a look").expect("it wrote").value;
        assert_eq!(effects, format!("{} one\n", token.sequence()));
    }
    taker.tell(&format!("append {SEVERAL} one"));
    assert_eq!(refused(&mut taker).await, "InvalidRequest");
}

#[tokio::test]
async fn it_counts_in_a_versioned_record_until_it_ends() {
    let store = Store::new();
    let mut taker = store.taker(&["--pattern", "versioned"]);
    for expected in 1..=3 {
        let written = |event: &Event| match event {
            Event::Written { version, .. } => Some(version.0),
            _ => None,
        };
        assert_eq!(taker.event("counts", written).await, expected);
    }
    taker.kill();
    let locks = ringfence::Locks::connect(&store.url()).await.expect("the store");
    let record = locks.versioned(NAME).read().await.expect("a look").expect("it counted");
    assert_eq!(record.value, format!("{{\"{}\":{}}}", taker.id(), record.version.0));
}
