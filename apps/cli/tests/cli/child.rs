//! What the command of `run` is given, and what it is told.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{HOLD, RINGFENCE, Running, Store, eventually, until_gone, with_input};

#[test]
fn the_command_finds_the_lock_the_token_and_the_store_in_its_environment() {
    let store = Store::new();
    let script =
        "printenv RINGFENCE_LOCK RINGFENCE_TOKEN RINGFENCE_URL; \"$0\" show --json \"$RINGFENCE_LOCK\"";
    let done = store.ringfence(["run", "orders/42", "--", "sh", "-c", script, RINGFENCE]).with_code(0);
    let lines: Vec<_> = done.stdout.lines().collect();
    let state: serde_json::Value = serde_json::from_str(lines[3]).unwrap();
    assert_eq!(lines[..3], ["orders/42", state["holders"][0]["token"].as_str().unwrap(), &store.url()]);
}

#[test]
fn every_run_has_a_higher_token() {
    let store = Store::new();
    let sequence = || {
        let done = store.ringfence(["run", "a", "--", "printenv", "RINGFENCE_TOKEN"]).with_code(0);
        done.stdout.split_once('.').unwrap().0.parse::<u64>().unwrap()
    };
    let first = sequence();
    assert!(sequence() > first);
}

#[test]
fn the_command_reads_our_standard_input_and_needs_no_dashes() {
    let store = Store::new();
    assert_eq!(
        with_input(&mut store.command(["run", "a", "cat"]), b"in and out").with_code(0).stdout,
        "in and out"
    );
    assert_eq!(store.ringfence(["run", "a", "echo", "-n", "--", "x"]).with_code(0).stdout, "-- x");
}

#[test]
fn arguments_pass_no_shell() {
    let store = Store::new();
    let done =
        store.ringfence(["run", "a", "--", "printf", "%s|", "$HOME", "a b", "*", "", "--url"]).with_code(0);
    assert_eq!(done.stdout, "$HOME|a b|*||--url|");
}

#[test]
fn the_command_inherits_no_descriptor_but_the_lifeline() {
    let store = Store::new();
    // The shell lists its own, after it has closed what it needed for that.
    let script = "for fd in /proc/$$/fd/*; do readlink $fd; done; true";
    let listed = |command: &mut Command| {
        let done = with_input(command, b"").with_code(0);
        done.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let without = listed(Command::new("sh").args(["-c", script]));
    let with = listed(&mut store.command(["run", "a", "--", "sh", "-c", script]));
    let store_file = store.directory().display().to_string();
    let (ours, others): (Vec<_>, Vec<_>) = with.iter().partition(|target| target.contains(&store_file));
    assert_eq!(others.len(), without.len(), "{with:?} and {without:?}");
    assert_eq!(ours.len(), 1, "{with:?}");
    assert!(ours[0].contains("session-"), "{with:?}");
}

#[test]
fn the_command_has_a_process_group_of_its_own() {
    let store = Store::new();
    let done =
        store.ringfence(["run", "a", "--", "sh", "-c", "echo $$; cut -d' ' -f5 /proc/$$/stat"]).with_code(0);
    let lines: Vec<_> = done.stdout.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn signals_are_forwarded() {
    let store = Store::new();
    for signal in ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH"] {
        let script =
            format!("trap 'echo got {signal}; exit 7' {signal}; echo ready; while :; do sleep 0.01; done");
        let running = store.run_script(["a"], &script);
        running.signal(format!("SIG{signal}").parse().unwrap());
        running.expect(&format!("got {signal}"));
        assert_eq!(running.end().code(), Some(7), "{signal}");
    }
}

#[test]
fn a_signal_to_end_reaches_the_whole_group_and_a_users_signal_the_command_alone() {
    let store = Store::new();
    // A sleep that got SIGUSR1 would be ended by it.
    let script = "sleep 1000 & echo $!; trap 'kill -0 $! && echo alone' USR1; echo ready; while :; do sleep 0.01; done";
    let running = Running::start(&mut store.command(["run", "a", "--", "sh", "-c", script]));
    let grandchild: i32 = running.line().unwrap().parse().unwrap();
    running.expect("ready");
    running.signal(Signal::SIGUSR1);
    running.expect("alone");
    running.signal(Signal::SIGTERM);
    until_gone(grandchild);
    assert_eq!(running.end().code(), Some(128 + 15));
}

fn is_stopped(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.starts_with('T')
}

/// A service manager that stops us would wait for its whole patience, and then kill us, with a command that nobody continues.
#[test]
fn a_stopped_command_is_woken_to_end_as_it_is_told() {
    for verb in ["run", "elect"] {
        for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            let store = Store::new();
            let script = format!(
                "trap 'echo told; exit 7' {}; echo $$; while :; do sleep 0.01; done",
                &signal.as_str()[3..]
            );
            let running = Running::start(&mut store.command([verb, "a", "--", "sh", "-c", &script]));
            let pid: i32 = running.line().unwrap().parse().unwrap();
            kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
            eventually("it stops", || is_stopped(pid).then_some(()));
            running.signal(signal);
            running.expect("told");
            assert_eq!(running.end().code(), Some(7), "{verb} {signal}");
        }
    }
}

#[test]
fn stopping_and_continuing_reaches_the_command() {
    let store = Store::new();
    let running =
        Running::start(&mut store.command(["run", "a", "--", "sh", "-c", &format!("echo $$; {HOLD}")]));
    let child: i32 = running.line().unwrap().parse().unwrap();
    running.expect("ready");
    let program = running.pid().as_raw();
    running.signal(Signal::SIGTSTP);
    eventually("both stop", || (is_stopped(child) && is_stopped(program)).then_some(()));
    running.signal(Signal::SIGCONT);
    eventually("both go on", || (!is_stopped(child) && !is_stopped(program)).then_some(()));
    running.signal(Signal::SIGTERM);
    assert_eq!(running.end().code(), Some(128 + 15));
}

#[test]
fn what_our_caller_ignores_stays_ignored() {
    let store = Store::new();
    let script = "trap '' HUP INT; exec \"$0\" run a -- grep SigIgn /proc/self/status";
    let mut command = Command::new("sh");
    command.args(["-c", script, RINGFENCE]).env("RINGFENCE_URL", store.url());
    let done = with_input(&mut command, b"").with_code(0);
    let ignored = u64::from_str_radix(done.stdout.trim().rsplit_once('\t').unwrap().1, 16).unwrap();
    assert_eq!(ignored & 0b11, 0b11, "{done:?}");
}

#[test]
fn what_our_caller_ignores_does_not_end_a_wait() {
    let store = Store::new();
    let _holder = store.run_script(["a"], HOLD);
    let mut command = Command::new("env");
    command.args(["--ignore-signal=HUP", RINGFENCE, "run", "a", "true"]).env("RINGFENCE_URL", store.url());
    let waiter = Running::start(&mut command);
    eventually("it waits", || store.state("a")["waiters"].get(0).map(drop));
    waiter.signal(Signal::SIGHUP);
    waiter.signal(Signal::SIGTERM);
    assert_eq!(waiter.end().code(), Some(128 + 15));
}

#[test]
fn a_caller_that_ignores_the_end_of_its_children_does_not_hide_the_exit_code() {
    let store = Store::new();
    let mut command = Command::new("env");
    command.args(["--ignore-signal=CHLD", RINGFENCE, "run", "a", "--", "sh", "-c", "exit 9"]);
    assert_eq!(Running::start(command.env("RINGFENCE_URL", store.url())).end().code(), Some(9));
}

#[test]
fn one_run_at_a_time() {
    let store = Store::new();
    let counter = store.path("counter");
    fs::write(&counter, "0").unwrap();
    // Read, think, write: without the lock nearly every round loses an update.
    let script = "n=$(cat \"$0\"); sleep 0.01; echo $((n + 1)) > \"$0\"";
    let path = counter.display().to_string();
    let rounds = 20;
    let runs: Vec<_> = (0..rounds)
        .map(|_| Running::start(&mut store.command(["run", "a", "--", "sh", "-c", script, &path])))
        .collect();
    for run in runs {
        assert!(run.end().success());
    }
    assert_eq!(fs::read_to_string(counter).unwrap().trim(), rounds.to_string());
}

#[test]
fn shared_runs_run_together_and_permits_are_counted() {
    let store = Store::new();
    let _reader = store.run_script(["-s", "doc"], HOLD);
    store.ringfence(["run", "-n", "-s", "doc", "true"]).with_code(0);
    store.ringfence(["run", "-n", "doc", "true"]).with_code(75);
    store.ringfence(["run", "-n", "-x", "doc", "true"]).with_code(75);
    let _first = store.run_script(["--permits", "2", "gpu"], HOLD);
    let second = store.run_script(["--permits", "2", "gpu"], HOLD);
    store.ringfence(["run", "-n", "--permits", "2", "gpu", "true"]).with_code(75);
    second.signal(Signal::SIGTERM);
    second.end();
    store.ringfence(["run", "-n", "--permits", "2", "gpu", "true"]).with_code(0);
}
