//! `partitions`: one command for each partition, in one place at a time, whatever becomes of the places.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::{Running, Store, eventually, now, read_all, since, until_gone};

/// So many that of two members none goes without.
const COUNT: usize = 24;

/// Says which partition it works on, under which token, and which process it is.
const WORK: &str = "echo $RINGFENCE_PARTITION $RINGFENCE_TOKEN $$; exec sleep 1000";

/// One command of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Work {
    partition: usize,
    sequence: u64,
    pid: i32,
}

fn member(store: &Store, flags: &[&str], script: &str) -> Running {
    let count = COUNT.to_string();
    let args = [&["partitions", "--count", &count], flags, &["a", "--", "sh", "-c", script]].concat();
    Running::start(store.command(args).stderr(Stdio::piped()))
}

/// The next command that a member starts.
#[track_caller]
fn started(member: &Running) -> Work {
    let line = member.line().expect("it goes on");
    let [partition, token, pid] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let (sequence, _) = token.split_once('.').unwrap();
    Work {
        partition: partition.parse().unwrap(),
        sequence: sequence.parse().unwrap(),
        pid: pid.parse().unwrap(),
    }
}

/// So many commands that a member starts, by their partitions.
#[track_caller]
fn starts(member: &Running, count: usize) -> BTreeMap<usize, Work> {
    let works: BTreeMap<_, _> =
        (0..count).map(|_| started(member)).map(|work| (work.partition, work)).collect();
    assert_eq!(works.len(), count, "a partition came twice: {works:?}");
    works
}

/// How many partitions are waited for: those that are dealt to one who does not have them yet.
fn waited_for(store: &Store) -> usize {
    let locks = store.ringfence(["ls", "--json", "partitions/a/"]).with_code(0).json();
    let waiters = |lock: &serde_json::Value| lock["waiters"].as_array().unwrap().len();
    locks.as_array().unwrap().iter().map(waiters).sum()
}

fn is_gone(pid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

/// The partitions that a member hands over to one that is told of its first ones.
#[track_caller]
fn moves(first: &BTreeMap<usize, Work>, second: &Running) -> BTreeMap<usize, Work> {
    let work = started(second);
    let mut moved = BTreeMap::from([(work.partition, work)]);
    // As many as the first member ends: it was told of all of them in one look.
    let ends = eventually("the first member ends some", || {
        let gone = first.values().filter(|work| is_gone(work.pid)).count();
        std::thread::sleep(Duration::from_millis(500));
        (gone > 0 && gone == first.values().filter(|work| is_gone(work.pid)).count()).then_some(gone)
    });
    while moved.len() < ends {
        let work = started(second);
        assert!(moved.insert(work.partition, work).is_none(), "{work:?} came twice");
    }
    for (partition, work) in &moved {
        let before = first[partition];
        assert!(is_gone(before.pid), "{partition} runs in two places: {before:?} and {work:?}");
        assert!(work.sequence > before.sequence, "{work:?} after {before:?}");
    }
    moved
}

#[test]
fn partitions_move_when_a_member_joins_and_back_when_it_is_killed() {
    let store = Store::new();
    let first = member(&store, &[], WORK);
    let alone = starts(&first, COUNT);
    let second = member(&store, &[], WORK);
    let moved = moves(&alone, &second);
    assert!(moved.len() < COUNT, "the first member keeps some");
    let kept: Vec<Work> =
        alone.values().filter(|work| !moved.contains_key(&work.partition)).copied().collect();
    second.signal(Signal::SIGKILL);
    let back = starts(&first, moved.len());
    for (partition, work) in &back {
        assert!(work.sequence > moved[partition].sequence, "{work:?} after {:?}", moved[partition]);
        until_gone(moved[partition].pid);
    }
    assert!(kept.iter().all(|work| !is_gone(work.pid)), "what had no reason to move runs on");
}

#[test]
fn one_that_was_stopped_past_its_leases_ends_its_commands_and_takes_part_again() {
    let store = Store::new();
    let mut first = member(&store, &["--ttl", "3s"], WORK);
    let alone = starts(&first, COUNT);
    first.signal(Signal::SIGSTOP);
    let second = member(&store, &[], WORK);
    let taken = starts(&second, COUNT);
    assert!(taken.iter().all(|(partition, work)| work.sequence > alone[partition].sequence));
    first.signal(Signal::SIGCONT);
    for work in alone.values() {
        until_gone(work.pid);
    }
    let back = moves(&taken, &first);
    assert!(back.len() < COUNT, "the second member keeps some");
    first.signal(Signal::SIGTERM);
    let said = read_all(first.process.stderr.take().unwrap());
    assert!(said.contains("joining again"), "{said}");
    assert_eq!(first.end().code(), Some(0));
}

#[test]
fn sigterm_ends_every_command_and_leaves_nothing_behind() {
    let store = Store::new();
    let script = "trap 'sleep 0.2; exit 0' TERM; echo $RINGFENCE_PARTITION $RINGFENCE_TOKEN $$; while :; do sleep 0.05; done";
    let member = member(&store, &["--ttl", "60s"], script);
    let works = starts(&member, COUNT);
    let start = now();
    member.signal(Signal::SIGTERM);
    assert_eq!(member.end().code(), Some(0));
    assert!(
        since(start) < Duration::from_secs(9),
        "nobody waited for the hand-over time: {:?}",
        since(start)
    );
    for work in works.values() {
        assert!(is_gone(work.pid), "{work:?} outlived its member");
    }
    assert_eq!(store.ringfence(["ls", "--json", "partitions/"]).with_code(0).json(), serde_json::json!([]));
}

#[test]
fn one_that_waits_to_join_ends_with_0_when_it_is_asked_to_and_not_by_what_is_for_its_commands() {
    let store = Store::new();
    let (door, _open) = Running::start_with_input(&mut store.command(["hold", "partitions/a"]));
    door.line().expect("it holds the lock behind which one joins");
    let waits = member(&store, &[], WORK);
    let in_line = || store.state("partitions/a")["waiters"].as_array().unwrap().len();
    eventually("it waits", || (in_line() == 1).then_some(()));
    waits.signal(Signal::SIGUSR1);
    waits.signal(Signal::SIGTERM);
    assert_eq!(waits.end().code(), Some(0));
    assert_eq!(in_line(), 0, "nothing is left behind");
}

#[test]
fn a_command_that_does_not_end_is_killed_within_the_hand_over_time() {
    let store = Store::new();
    let stubborn =
        "trap '' TERM; echo $RINGFENCE_PARTITION $RINGFENCE_TOKEN $$; while :; do sleep 0.05; done";
    let first = member(&store, &["--handover", "2s"], stubborn);
    let alone = starts(&first, COUNT);
    let second = member(&store, &[], WORK);
    eventually("the second member waits for some", || (waited_for(&store) > 0).then_some(()));
    let work = started(&second);
    assert!(is_gone(alone[&work.partition].pid), "{work:?} runs in two places");
}

#[test]
fn a_command_that_ends_is_started_again_under_another_token() {
    let store = Store::new();
    let script = "echo $RINGFENCE_PARTITION $RINGFENCE_TOKEN $$; [ $RINGFENCE_PARTITION = 7 ] && exit 3; exec sleep 1000";
    let mut member = member(&store, &[], script);
    let works = starts(&member, COUNT);
    let again = started(&member);
    assert_eq!(again.partition, 7);
    assert!(again.sequence > works[&7].sequence, "{again:?} after {:?}", works[&7]);
    member.signal(Signal::SIGTERM);
    let said = read_all(member.process.stderr.take().unwrap());
    assert!(
        said.contains("the command of partition 7 ended with exit code 3: it is started again\n"),
        "{said}"
    );
    assert_eq!(member.end().code(), Some(0));
}

#[test]
fn what_partitions_cannot_do_is_said() {
    let store = Store::new();
    let member = member(&store, &[], WORK);
    starts(&member, COUNT);
    let other = store.ringfence(["partitions", "--count", "7", "a", "--", "true"]).with_code(64);
    other.saying("is in 24 partitions, not in 7");
    store.ringfence(["partitions", "a", "--", "true"]).with_code(64).saying("--count");
    store.ringfence(["partitions", "--count", "0", "a", "--", "true"]).with_code(64);
    store.ringfence(["partitions", "--count", "7", "a/b", "--", "true"]).with_code(64).saying("no slash");
    store
        .ringfence(["partitions", "--count", "7", "b", "--", "no such command"])
        .with_code(127)
        .saying("cannot be run");
    let free = store.ringfence(["ls", "--json", "partitions/b"]).with_code(0).json();
    assert_eq!(free, serde_json::json!([]), "and nothing of it is left");
}
