//! A lost lease ends the command, and before the lease can lapse where that is in our hands.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use ringfence_servers::{RedisServer, require, skip};

use crate::support::{HOLD, Running, Store, now, read_all, since, until_gone};

/// Prints its process id and that of a child in its group, both deaf to SIGTERM.
const STUBBORN: &str = "trap '' TERM; sh -c 'while :; do sleep 0.01; done' & echo $$; echo $!; echo ready; \
                        while :; do sleep 0.01; done";

fn run(store: &Store, flags: &[&str], script: &str) -> Running {
    let args = [&["run"], flags, &["a", "--", "sh", "-c", script]].concat();
    Running::start(store.command(args).stderr(Stdio::piped()))
}

fn stderr(running: &mut Running) -> String {
    read_all(running.process.stderr.take().unwrap())
}

#[test]
fn an_eviction_tells_the_command_to_end() {
    let store = Store::new();
    let script = "trap 'echo told; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let mut running = run(&store, &["--ttl", "60s"], script);
    running.expect("ready");
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    running.expect("told");
    let said = stderr(&mut running);
    assert!(said.contains("ringfence: the lease on a is lost: telling the command to end\n"), "{said}");
    assert_eq!(running.end().code(), Some(123), "whatever the command's own code");
}

#[test]
fn a_stubborn_process_group_is_killed() {
    let store = Store::new();
    let running = run(&store, &["--ttl", "2s"], STUBBORN);
    let group = [running.line().unwrap(), running.line().unwrap()].map(|pid| pid.parse::<i32>().unwrap());
    running.expect("ready");
    let start = now();
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    assert_eq!(running.end().code(), Some(123));
    let took = since(start);
    assert!(took >= Duration::from_millis(500), "a quarter of the TTL to end by itself: {took:?}");
    group.into_iter().for_each(until_gone);
}

#[test]
fn the_rest_of_the_group_has_its_grace_when_the_command_ends_first() {
    let store = Store::new();
    let script = "sh -c 'trap \"sleep 0.2; echo cleaned up; exit\" TERM; echo ready; while :; do sleep 0.01; done' & wait";
    let running = run(&store, &["--ttl", "20s"], script);
    running.expect("ready");
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    running.expect("cleaned up");
    assert_eq!(running.end().code(), Some(123));
}

#[test]
fn a_stopped_command_is_woken_to_end() {
    let store = Store::new();
    let running = run(&store, &["--ttl", "60s"], "trap 'echo told; exit 0' TERM; echo ready; kill -STOP $$");
    running.expect("ready");
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    running.expect("told");
    assert_eq!(running.end().code(), Some(123));
}

#[test]
fn on_lost_kill_does_not_ask() {
    let store = Store::new();
    let script = "trap 'echo told' TERM; echo ready; while :; do sleep 0.01; done";
    let running = run(&store, &["--ttl", "60s", "--on-lost", "kill"], script);
    running.expect("ready");
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    assert_eq!(running.line(), None, "killed at once, without SIGTERM");
    assert_eq!(running.end().code(), Some(123));
}

#[test]
fn on_lost_warn_lets_the_command_run_on_and_still_says_123() {
    let store = Store::new();
    let mut command =
        store.command(["run", "--on-lost", "warn", "a", "--", "sh", "-c", "echo ready; read x; echo $x"]);
    let (mut running, input) = Running::start_with_input(command.stderr(Stdio::piped()));
    running.expect("ready");
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    store.ringfence(["run", "a", "--", "true"]).with_code(0);
    let mut input = input;
    std::io::Write::write_all(&mut input, b"still here\n").unwrap();
    running.expect("still here");
    let said = stderr(&mut running);
    assert!(said.contains("the command runs on without it"), "{said}");
    assert_eq!(running.end().code(), Some(123));
}

#[test]
fn a_program_that_was_stopped_past_its_ttl_ends_its_command() {
    let store = Store::new();
    let running = run(&store, &["--ttl", "500ms"], HOLD);
    running.expect("ready");
    running.signal(Signal::SIGSTOP);
    // The next one gets the lock when the TTL is over, and not before.
    store.ringfence(["run", "a", "--", "true"]).with_code(0);
    running.signal(Signal::SIGCONT);
    assert_eq!(running.end().code(), Some(123));
}

#[test]
fn the_evicted_command_cannot_write_any_more() {
    let store = Store::new();
    let script = "trap '' TERM; echo ready; read x; \"$0\" record put a </dev/null; echo $?";
    let mut command =
        store.command(["run", "--ttl", "60s", "a", "--", "sh", "-c", script, crate::support::RINGFENCE]);
    let (running, input) = Running::start_with_input(&mut command);
    running.expect("ready");
    store.ringfence(["evict", "--yes", "a"]).with_code(0);
    drop(input);
    running.expect("77");
}

/// A file system of our own, whose disk can be made to hang.
struct Disk<'a> {
    store: &'a Store,
}

impl<'a> Disk<'a> {
    /// `None`, and said so, where this machine does not let us mount one.
    fn new(store: &'a Store) -> Option<Self> {
        for tool in ["mkfs.ext4", "mount", "fsfreeze"] {
            require(tool)?;
        }
        let disk = Self { store };
        let mounted = disk.sh(
            "truncate -s 64M image && mkfs.ext4 -q image && mkdir mount && mount -o loop image mount && \
             chmod 700 mount",
        );
        if !mounted {
            skip("mount", "only root can mount a file system");
        }
        mounted.then_some(disk)
    }

    /// Makes it hang for as long as what is returned lives.
    fn freeze(&self) -> Frozen {
        let mut command =
            self.shell("fsfreeze -f mount && echo frozen; read until_closed; fsfreeze -u mount");
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut answer = [0; 7];
        process.stdout.take().unwrap().read_exact(&mut answer).unwrap();
        Frozen { process }
    }

    fn sh(&self, script: &str) -> bool {
        self.shell(script).status().unwrap().success()
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        // Where the administrator's tools are, which an ordinary user's PATH may leave out.
        let script = format!("PATH=$PATH:/usr/sbin:/sbin; {script}");
        command.args(["-c", &script]).current_dir(self.store.directory()).stderr(Stdio::null());
        command
    }
}

impl Drop for Disk<'_> {
    fn drop(&mut self) {
        // It may not even be mounted.
        self.sh("umount --lazy mount");
    }
}

/// A disk that hangs: until this is dropped, or this process is killed.
struct Frozen {
    process: Child,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Closes its standard input first, which is what it waits for.
        self.process.wait().unwrap();
    }
}

#[test]
fn a_disk_that_hangs_does_not_keep_the_command_alive_past_its_lease() {
    let store = Store::new();
    let Some(disk) = Disk::new(&store) else { return };
    let url = format!("local:{}", store.path("mount/store").display());
    // Its last twentieth, in which the command is killed, is more than a busy machine is late.
    let args = ["--url", &url, "run", "--ttl", "8s", "a", "--", "sh", "-c", STUBBORN];
    let mut running = Running::start(store.command(args).stderr(Stdio::piped()));
    let group = [running.line().unwrap(), running.line().unwrap()].map(|pid| pid.parse::<i32>().unwrap());
    running.expect("ready");
    let frozen = disk.freeze();
    // From here on nothing is renewed, so the lease is over eight seconds after this at the latest.
    let start = now();
    group.into_iter().for_each(until_gone);
    let took = since(start);
    drop(frozen);
    assert!(took < Duration::from_secs(8), "killed before the lease could lapse: {took:?}");
    let said = stderr(&mut running);
    assert!(said.contains("could not be renewed"), "{said}");
    assert_eq!(running.end().code(), Some(123));
}

#[tokio::test]
async fn a_lock_delay_keeps_others_out_after_a_kill_and_not_after_a_release() {
    const DELAY: Duration = Duration::from_secs(2);
    let Some(server) = RedisServer::start().await else { return };
    let (store, url) = (Store::new(), server.url());
    let command = ["hold", "--url", &url, "--ttl", "1s", "--lock-delay", "2s", "a"];
    let run =
        |flags: &[&str]| store.ringfence([&["run", "--url", &url], flags, &["a", "--", "true"]].concat());
    let (held, input) = Running::start_with_input(&mut store.command(command));
    held.line().unwrap();
    drop(input);
    assert_eq!(held.end().code(), Some(0));
    run(&["-n"]).with_code(0);

    let (held, _input) = Running::start_with_input(&mut store.command(command));
    held.line().unwrap();
    let killed = now();
    held.signal(Signal::SIGKILL);
    run(&["-n"]).with_code(75);
    run(&["-w", "30"]).with_code(0);
    assert!(since(killed) >= DELAY, "free after {:?}", since(killed));
}

#[test]
fn a_lock_delay_is_refused_where_it_would_not_hold() {
    let store = Store::new();
    store
        .ringfence(["run", "--lock-delay", "2s", "a", "--", "true"])
        .with_code(64)
        .saying("would not hold on local:");
    store.ringfence(["run", "--lock-delay", "2", "a", "--", "true"]).with_code(64);
}
