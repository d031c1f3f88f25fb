//! The exit codes are API: each of them, as `ringfence --help` lists them.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringfence::{Clock, SystemClock};

use crate::support::{Done, HOLD, Running, Store, eventually};

#[test]
fn run_ends_with_the_code_of_its_command() {
    let store = Store::new();
    for code in [0, 1, 7, 64, 75, 123, 124, 255] {
        store.ringfence(["run", "a", "--", "sh", "-c", &format!("exit {code}")]).with_code(code);
    }
}

#[test]
fn run_ends_with_128_and_the_signal_that_ended_its_command() {
    let store = Store::new();
    for signal in [1, 2, 9, 15, 40] {
        store
            .ringfence(["run", "a", "--", "sh", "-c", &format!("kill -{signal} $$")])
            .with_code(128 + signal);
    }
}

#[test]
fn a_lock_that_is_busy_is_75_or_the_code_of_your_choice() {
    let store = Store::new();
    let _holder = store.run_script(["a"], HOLD);
    store.ringfence(["run", "-n", "a", "--", "true"]).with_code(75).saying("ringfence: a is held for ");
    for flags in [["-E", "3"], ["-E", "0"], ["--conflict-exit-code", "255"]] {
        let code = flags[1].parse().unwrap();
        store.ringfence(["run", "-n", flags[0], flags[1], "a", "true"]).with_code(code);
    }
    store.ringfence(["hold", "--nonblock", "a"]).with_code(75);
}

#[test]
fn waiting_too_long_is_124_or_the_code_of_your_choice() {
    let store = Store::new();
    let _holder = store.run_script(["a"], HOLD);
    for wait in ["0", "0.05", "50ms"] {
        store.ringfence(["run", "-w", wait, "a", "--", "true"]).with_code(124);
    }
    store.ringfence(["run", "--timeout", "0.05", "-E", "9", "a", "--", "true"]).with_code(9);
    store.ringfence(["hold", "--wait", "0.05", "a"]).with_code(124);
    assert_eq!(store.state("a")["waiters"].as_array().unwrap().len(), 0, "who gave up waits no more");
}

#[test]
fn a_store_that_cannot_be_used_is_69() {
    let store = Store::new();
    std::fs::write(store.path("file"), "").unwrap();
    let url = format!("local:{}", store.path("file").display());
    for verb in [&["run", "a", "true"][..], &["hold", "a"], &["ls"], &["show", "a"], &["record", "get", "a"]]
    {
        let args = ["--url", &url].into_iter().chain(verb.iter().copied());
        store.ringfence(args).with_code(69).saying("not a directory");
    }
}

/// Nobody knows then whether the lock is free, so that `-E` says nothing of it either.
#[test]
fn a_store_to_which_no_connection_comes_about_within_the_wait_is_69() {
    let store = Store::new();
    // Their kernel takes connections, and nobody is there to answer.
    let silent = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let hosts = silent.each_ref().map(|server| server.local_addr().unwrap().to_string()).join(",");
    let url = format!("zookeeper://ann:secret@{hosts}");
    for verb in [&["run", "-w", "1", "-E", "0", "a", "true"][..], &["hold", "--wait", "100ms", "a"]] {
        let clock = SystemClock::new();
        let begun = clock.now();
        let args = ["--url", &url].into_iter().chain(verb.iter().copied());
        let done = store.ringfence(args).with_code(69).saying("no connection within 3s");
        assert!(!done.stderr.contains("secret"), "{done:?}");
        // Each of them would be waited for twice, a second and five.
        let took = clock.now().saturating_since(begun);
        assert!(took < Duration::from_secs(9), "{verb:?} ended after {took:?}");
    }
}

#[test]
fn wrong_usage_is_64_and_asking_for_help_is_0() {
    let store = Store::new();
    for args in [&["run"][..], &["run", "a"], &["frobnicate"], &["run", "--frobnicate", "a", "true"], &[]] {
        store.ringfence(args).with_code(64);
    }
    for args in
        [&["--help"][..], &["--version"], &["run", "--help"], &["help", "run"], &["record", "put", "-h"]]
    {
        let done = store.ringfence(args).with_code(0);
        assert!(done.stderr.is_empty(), "{done:?}");
    }
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_is_126() {
    let store = Store::new();
    std::fs::write(store.path("plain"), "").unwrap();
    let plain = store.path("plain").display().to_string();
    let directory = store.directory().display().to_string();
    for command in ["no-such-command", "/no/such/command", ""] {
        store.ringfence(["run", "a", "--", command]).with_code(127).saying("ringfence: cannot run ");
    }
    for command in [plain, directory] {
        store.ringfence(["run", "a", "--", &command]).with_code(126).saying("Permission denied");
    }
    assert!(store.state("a")["holders"].as_array().unwrap().is_empty(), "the lock is given back");
}

#[test]
fn stakes_that_the_backend_does_not_meet_are_64() {
    let store = Store::new();
    store
        .ringfence(["--url", "memory:", "run", "--stakes", "correctness", "a", "--", "true"])
        .with_code(64)
        .saying("memory");
    store.ringfence(["run", "--stakes", "correctness", "a", "--", "true"]).with_code(0);
}

#[test]
fn a_signal_while_waiting_ends_the_wait_with_128_and_its_number() {
    let store = Store::new();
    let _holder = store.run_script(["a"], HOLD);
    for verb in ["run", "hold"] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            let command: &[&str] = if verb == "run" { &["--", "true"] } else { &[] };
            let waiter = Running::start(&mut store.command([&[verb, "a"], command].concat()));
            eventually("it waits", || {
                (store.state("a")["waiters"].as_array().unwrap().len() == 1).then_some(())
            });
            waiter.signal(signal);
            assert_eq!(waiter.end().code(), Some(128 + signal as i32), "{verb} and {signal}");
            assert!(store.state("a")["waiters"].as_array().unwrap().is_empty(), "nothing is left behind");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_like_any_broken_pipe() {
    let store = Store::new();
    for verb in [&["guarantees"][..], &["completions", "bash"], &["man"], &["--help"], &["show", "a"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let done = store.command(verb).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((done.status.code(), done.status.signal()), (Some(128 + 13), None), "{verb:?}");
        assert!(done.stderr.is_empty(), "{verb:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
}

#[test]
fn input_and_output_that_fail_are_74() {
    let store = Store::new();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for verb in [&["guarantees"][..], &["ls", "--json"], &["man"], &["completions", "zsh"], &["hold", "a"]] {
        Done::of(store.command(verb).stdout(full()).output().unwrap()).with_code(74).saying("No space left");
    }
    store.ringfence(["run", "-n", "a", "true"]).with_code(0);
    let mut put = store.command(["record", "put", "--token", "256.1", "a"]);
    Done::of(put.stdin(File::open("/").unwrap()).output().unwrap()).with_code(74).saying("directory");
}

#[test]
fn messages_are_json_where_json_is_asked_for() {
    let store = Store::new();
    for args in [
        &["--json", "show", ""][..],
        &["show", "--json", ""],
        &["--json", "frobnicate"],
        &["run", "--json", "a", "--", "no-such-command"],
    ] {
        let done = store.ringfence(args);
        let message: serde_json::Value = serde_json::from_str(&done.stderr).unwrap();
        assert_eq!(message["exit_code"].as_i64(), done.code.map(i64::from), "{done:?}");
        assert!(!message["error"].as_str().unwrap().is_empty(), "{done:?}");
    }
}
