//! `elect`: one leads and runs the command, the next one follows, whatever becomes of the first.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringfence_servers::RedisServer;
use serde_json::Value;

use crate::support::{Running, Store, eventually, now, read_all, since, until_gone};

/// Says which term it runs in and who it is, and runs until it is ended.
const LEAD: &str = "echo $RINGFENCE_TOKEN; echo $$; echo leads; exec sleep 1000";

/// A candidate, which says `leads` once it does.
fn candidate(store: &Store, flags: &[&str], script: &str) -> Running {
    let args = [&["elect"], flags, &["a", "--", "sh", "-c", script]].concat();
    Running::start(store.command(args).stderr(Stdio::piped()))
}

/// The term and the process of a command that leads.
fn term_of(candidate: &Running) -> (u64, i32) {
    let (token, pid) = (candidate.line().unwrap(), candidate.line().unwrap());
    candidate.expect("leads");
    (token.split_once('.').unwrap().0.parse().unwrap(), pid.parse().unwrap())
}

fn until_one_waits(store: &Store) {
    eventually("a candidate waits", || {
        (store.state("leader/a")["waiters"].as_array().unwrap().len() == 1).then_some(())
    });
}

#[test]
fn the_next_leads_in_a_later_term_when_the_leader_is_killed() {
    let store = Store::new();
    let first = candidate(&store, &["--ttl", "60s"], LEAD);
    let (term, pid) = term_of(&first);
    let second = candidate(&store, &["--ttl", "60s"], LEAD);
    until_one_waits(&store);
    let start = now();
    first.signal(Signal::SIGKILL);
    let (next_term, _) = term_of(&second);
    assert!(next_term > term, "{next_term} after {term}");
    assert!(since(start) < Duration::from_secs(20), "nobody waited for the TTL: {:?}", since(start));
    until_gone(pid);
}

#[test]
fn a_leader_that_was_stopped_past_its_term_ends_its_command_and_is_a_candidate_again() {
    let store = Store::new();
    let mut first = candidate(&store, &["--ttl", "1s"], LEAD);
    let (term, pid) = term_of(&first);
    let (second, leave) = follower(&store);
    first.signal(Signal::SIGSTOP);
    let (next_term, _) = term_of(&second);
    assert!(next_term > term, "{next_term} after {term}");
    first.signal(Signal::SIGCONT);
    until_gone(pid);
    until_one_waits(&store);
    drop(leave);
    assert_eq!(second.end().code(), Some(7), "the command's own exit code, after it resigned");
    let (last_term, pid) = term_of(&first);
    assert!(last_term > next_term, "{last_term} after {next_term}");
    first.signal(Signal::SIGTERM);
    let said = read_all(first.process.stderr.take().unwrap());
    assert!(said.contains("the lease on leader/a is lost: telling the command to end\n"), "{said}");
    assert_eq!(first.end().code(), Some(128 + Signal::SIGTERM as i32));
    until_gone(pid);
}

/// A candidate whose command leads until its input is closed, and then ends with 7.
fn follower(store: &Store) -> (Running, ChildStdin) {
    let script = "echo $RINGFENCE_TOKEN; echo $$; echo leads; read x; exit 7";
    let started = Running::start_with_input(
        &mut store.command(["elect", "--ttl", "60s", "a", "--", "sh", "-c", script]),
    );
    until_one_waits(store);
    started
}

#[test]
fn what_is_for_the_command_does_not_end_a_candidate() {
    let store = Store::new();
    let first = candidate(&store, &[], LEAD);
    term_of(&first);
    let second = candidate(&store, &[], LEAD);
    until_one_waits(&store);
    second.signal(Signal::SIGUSR1);
    second.signal(Signal::SIGUSR2);
    first.signal(Signal::SIGTERM);
    term_of(&second);
}

#[test]
fn with_once_a_lost_term_is_the_end() {
    let store = Store::new();
    let first = candidate(&store, &["--once"], LEAD);
    let (_, pid) = term_of(&first);
    store.ringfence(["evict", "--yes", "leader/a"]).with_code(0);
    assert_eq!(first.end().code(), Some(123));
    until_gone(pid);
}

#[test]
fn who_is_asked_to_end_while_its_term_is_lost_does_not_campaign_again() {
    let store = Store::new();
    let script =
        "trap 'echo told' TERM; echo $RINGFENCE_TOKEN; echo $$; echo leads; while :; do sleep 0.01; done";
    let leader = candidate(&store, &["--ttl", "8s"], script);
    term_of(&leader);
    store.ringfence(["evict", "--yes", "leader/a"]).with_code(0);
    leader.expect("told");
    leader.signal(Signal::SIGTERM);
    assert_eq!(leader.end().code(), Some(128 + Signal::SIGTERM as i32));
}

#[test]
fn what_a_leader_proclaims_is_in_the_record_and_every_change_is_leader_now() {
    let store = Store::new();
    let observer = Running::start(&mut store.command(["elect", "--observe", "--json", "a"]));
    let leader_now = || serde_json::from_str::<Value>(&observer.line().unwrap()).unwrap()["leader"].clone();
    assert_eq!(leader_now(), Value::Null);
    let mut first = store.command(["elect", "--value", "10.0.0.7:80", "a", "--", "sh", "-c"]);
    let (first, mut input) = Running::start_with_input(first.arg("echo leads; read x; exit 3"));
    first.expect("leads");
    let leader = leader_now();
    assert_eq!((&leader["value"], &leader["label"]), (&"10.0.0.7:80".into(), &"sh".into()), "{leader}");
    assert_eq!(leader["pid"], first.process.id(), "{leader}");
    assert_eq!(leader["term"], store.holder("leader/a")["token"]);
    let record: Value = store.ringfence(["record", "get", "leader/a"]).with_code(0).json();
    assert_eq!(record, serde_json::json!({ "value": "10.0.0.7:80" }));
    input.write_all(b"\n").unwrap();
    assert_eq!(first.end().code(), Some(3));
    assert_eq!(leader_now(), Value::Null);
    observer.signal(Signal::SIGTERM);
    assert_eq!(observer.end().code(), Some(128 + Signal::SIGTERM as i32));
}

#[test]
fn people_read_who_leads() {
    let store = Store::new();
    let observer = Running::start(&mut store.command(["elect", "--observe", "a"]));
    assert_eq!(observer.line().as_deref(), Some("nobody"));
    let leader =
        candidate(&store, &["--value", "here\u{1b}", "--label", "ann"], "echo leads; exec sleep 1000");
    leader.expect("leads");
    let line = observer.line().unwrap();
    assert!(line.contains("  here\\u{1b}  ann (process "), "{line}");
    kill(Pid::from_raw(leader.process.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(observer.line().as_deref(), Some("nobody"));
}

#[test]
fn an_observer_that_nobody_reads_any_more_ends() {
    let store = Store::new();
    let (reader, writer) = io::pipe().unwrap();
    let mut command = store.command(["elect", "--observe", "a"]);
    let mut observer = command.stdout(writer).spawn().unwrap();
    // It has the other end as well.
    drop(command);
    let mut lines = BufReader::new(reader).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "nobody");
    drop(lines);
    let ended = eventually("it ends, although nothing changes", || observer.try_wait().unwrap());
    assert_eq!(ended.code(), Some(128 + Signal::SIGPIPE as i32));
}

#[test]
fn what_elect_cannot_do_is_wrong_usage() {
    let store = Store::new();
    store.ringfence(["elect", "a"]).with_code(64).saying("COMMAND");
    store.ringfence(["elect", "--observe", "a", "--", "true"]).with_code(64);
    store.ringfence(["elect", "--observe", "--once", "a"]).with_code(64);
    store
        .ringfence(["elect", "--url", "memory:", "--stakes", "correctness", "a", "--", "true"])
        .with_code(64);
    store.ringfence(["elect", "a\nb", "--", "true"]).with_code(64);
    store.ringfence(["elect", "a", "--", "no such command"]).with_code(127);
}

#[tokio::test]
async fn nobody_leads_before_the_lock_delay_of_a_lost_term_is_over() {
    let Some(server) = RedisServer::start().await else { return };
    let (store, url) = (Store::new(), server.url());
    let flags = ["--url", &url, "--ttl", "1s", "--lock-delay", "2s"];
    let first = candidate(&store, &flags, LEAD);
    let (term, _) = term_of(&first);
    let killed = now();
    first.signal(Signal::SIGKILL);
    let (next_term, _) = term_of(&candidate(&store, &flags, LEAD));
    assert!(next_term > term, "{next_term} after {term}");
    assert!(since(killed) >= Duration::from_secs(2), "led after {:?}", since(killed));
}

/// The delay is for what the command has sent last, however long it has led.
#[tokio::test]
async fn a_lock_delay_begins_when_the_command_is_ended_and_not_with_the_term() {
    const DELAY: Duration = Duration::from_secs(2);
    let Some(server) = RedisServer::start().await else { return };
    let (store, url) = (Store::new(), server.url());
    // Long enough for a busy machine to renew in time.
    let flags = ["--url", &url, "--ttl", "3s", "--lock-delay", "2s"];
    let first = candidate(&store, &flags, LEAD);
    let (term, pid) = term_of(&first);
    let second = candidate(&store, &flags, LEAD);
    // The time for which the first term's own grant would have been kept.
    tokio::time::sleep(Duration::from_secs(3) + DELAY).await;
    server.stop();
    until_gone(pid);
    let ended = now();
    server.resume();
    let (next_term, _) = term_of(&second);
    assert!(next_term > term, "{next_term} after {term}");
    assert!(since(ended) >= DELAY, "led {:?} after the command of the term before was ended", since(ended));
}
