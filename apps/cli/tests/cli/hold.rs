//! `hold`: a lock for scripts and other languages, by lines of JSON.

use std::process::Stdio;

use nix::sys::signal::Signal;
use ringfence_servers::RedisServer;
use serde_json::Value;

use crate::support::{Running, Store};

fn event(running: &Running) -> Value {
    serde_json::from_str(&running.line().expect("a line")).unwrap()
}

#[test]
fn hold_says_held_and_keeps_the_lock_until_its_input_closes() {
    let store = Store::new();
    let (running, input) = Running::start_with_input(&mut store.command(["hold", "--ttl", "10s", "a"]));
    let held = running.line().unwrap();
    assert!(held.starts_with(r#"{"event":"held","name":"a","token":""#), "{held}");
    let held: Value = serde_json::from_str(&held).unwrap();
    assert_eq!(held["ttl_ms"], 10_000);
    let remaining = held["remaining_ms"].as_u64().unwrap();
    assert!((1..=10_000).contains(&remaining), "{held}");
    assert_eq!(store.holder("a")["token"], held["token"]);
    store.ringfence(["run", "-n", "a", "true"]).with_code(75);
    drop(input);
    let released = event(&running);
    assert_eq!(released["event"], "released");
    assert_eq!((&released["name"], &released["token"]), (&held["name"], &held["token"]));
    assert_eq!(running.line(), None);
    assert_eq!(running.end().code(), Some(0));
    store.ringfence(["run", "-n", "a", "true"]).with_code(0);
}

#[test]
fn a_signal_releases_as_well() {
    let store = Store::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let (running, _input) = Running::start_with_input(&mut store.command(["hold", "a"]));
        assert_eq!(event(&running)["event"], "held");
        running.signal(signal);
        assert_eq!(event(&running)["event"], "released");
        assert_eq!(running.end().code(), Some(0), "{signal}");
    }
}

#[test]
fn input_that_was_closed_before_is_looked_at_when_the_lock_is_held() {
    let store = Store::new();
    let done = store.ringfence(["hold", "a"]).with_code(0);
    let events: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!([&events[0]["event"], &events[1]["event"]], ["held", "released"]);
}

#[test]
fn an_evicted_hold_says_lost_and_exits_with_123() {
    let store = Store::new();
    let (running, _input) = Running::start_with_input(store.command(["hold", "a"]).stderr(Stdio::null()));
    let held = event(&running);
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    let lost = event(&running);
    assert_eq!((&lost["event"], &lost["token"]), (&Value::from("lost"), &held["token"]));
    assert_eq!(running.line(), None, "and not that it released");
    assert_eq!(running.end().code(), Some(123));
}

#[test]
fn a_hold_that_was_stopped_past_its_ttl_has_lost() {
    let store = Store::new();
    let (running, _input) =
        Running::start_with_input(store.command(["hold", "--ttl", "500ms", "a"]).stderr(Stdio::null()));
    event(&running);
    running.signal(Signal::SIGSTOP);
    store.ringfence(["run", "a", "true"]).with_code(0);
    running.signal(Signal::SIGCONT);
    assert_eq!(event(&running)["event"], "lost");
    assert_eq!(running.end().code(), Some(123));
}

#[tokio::test]
async fn a_hold_whose_server_is_gone_has_lost_when_its_lease_is_over() {
    let Some(mut server) = RedisServer::start().await else { return };
    let store = Store::new();
    let mut command = store.command(["hold", "--url", &server.url(), "--ttl", "1s", "a"]);
    let (running, _input) = Running::start_with_input(command.stderr(Stdio::null()));
    let held = event(&running);
    server.kill();
    let lost = event(&running);
    assert_eq!((&lost["event"], &lost["token"]), (&Value::from("lost"), &held["token"]));
    assert_eq!(running.end().code(), Some(123));
}
