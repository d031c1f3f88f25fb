//! What becomes of command and lease when the program itself is killed.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{HOLD, Running, Store, now, since, until_gone};

/// A TTL that no test waits for unless it means to.
const LONG: &str = "60s";

#[test]
fn the_command_dies_with_the_program_and_the_lock_is_free_at_once() {
    let store = Store::new();
    let script = format!("echo $$; {HOLD}");
    let running = Running::start(&mut store.command(["run", "--ttl", LONG, "a", "--", "sh", "-c", &script]));
    let child: i32 = running.line().unwrap().parse().unwrap();
    running.expect("ready");
    let next = Running::start(&mut store.command(["run", "a", "--", "echo", "next"]));
    let start = now();
    running.signal(Signal::SIGKILL);
    next.expect("next");
    assert!(since(start) < Duration::from_secs(10), "nobody waited for the TTL: {:?}", since(start));
    until_gone(child);
}

#[test]
fn a_grandchild_that_survives_keeps_the_lease_until_its_ttl_and_no_longer() {
    let store = Store::new();
    // The grandchild leaves the process group and the session, as a daemon does.
    let script = format!("setsid sh -c 'echo $$; exec sleep 1000' & {HOLD}");
    let running = Running::start(&mut store.command(["run", "--ttl", "3s", "a", "--", "sh", "-c", &script]));
    let lines = [running.line().unwrap(), running.line().unwrap()];
    let grandchild: i32 = lines.iter().find_map(|line| line.parse().ok()).unwrap();
    running.signal(Signal::SIGKILL);
    running.end();
    let start = now();
    let remaining = Duration::from_millis(store.holder("a")["remaining_ms"].as_u64().unwrap());
    assert!(remaining > Duration::from_secs(1), "renewed until the end: {remaining:?}");
    store.ringfence(["run", "-n", "a", "--", "true"]).with_code(75);
    store.ringfence(["run", "a", "--", "true"]).with_code(0);
    let waited = since(start);
    kill(Pid::from_raw(grandchild), Signal::SIGKILL).expect("the grandchild outlived its lease");
    assert!(waited >= remaining.saturating_sub(Duration::from_millis(100)), "{waited:?} of {remaining:?}");
    assert!(waited < remaining + Duration::from_secs(5), "{waited:?} of {remaining:?}");
}

#[test]
fn when_the_last_survivor_ends_the_lock_is_free_at_once() {
    let store = Store::new();
    let script = format!("setsid sh -c 'echo $$; exec sleep 1000' & {HOLD}");
    let running = Running::start(&mut store.command(["run", "--ttl", LONG, "a", "--", "sh", "-c", &script]));
    let lines = [running.line().unwrap(), running.line().unwrap()];
    let grandchild: i32 = lines.iter().find_map(|line| line.parse().ok()).unwrap();
    running.signal(Signal::SIGKILL);
    running.end();
    store.ringfence(["run", "-n", "a", "--", "true"]).with_code(75);
    let start = now();
    kill(Pid::from_raw(grandchild), Signal::SIGKILL).unwrap();
    store.ringfence(["run", "a", "--", "true"]).with_code(0);
    assert!(since(start) < Duration::from_secs(10), "{:?}", since(start));
}

#[test]
fn a_daemon_that_the_command_leaves_behind_does_not_keep_a_lock_that_was_given_back() {
    let store = Store::new();
    let script =
        "setsid sh -c 'echo $$; exec sleep 1000' >\"$0\" 2>&1 & while ! [ -s \"$0\" ]; do sleep 0.01; done";
    let out = store.path("daemon").display().to_string();
    store.ringfence(["run", "--ttl", LONG, "a", "--", "sh", "-c", script, &out]).with_code(0);
    store.ringfence(["run", "-n", "a", "--", "true"]).with_code(0);
    let daemon: i32 = std::fs::read_to_string(out).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(daemon), Signal::SIGKILL).expect("the daemon lives on");
}
