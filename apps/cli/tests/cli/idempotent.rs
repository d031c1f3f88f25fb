//! `idempotent`: a command that is run once for a key, and its output, which every duplicate gets.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::{Done, PATIENCE, RINGFENCE, Running, Store, eventually, until_gone};

/// The verb for a key, with a shell script that writes down that it was run.
fn idempotent<'a>(flags: &[&'a str], key: &'a str, script: &'a str) -> Vec<&'a str> {
    [&["idempotent", "--fingerprint", "one"], flags, &[key, "--", "sh", "-c", script]].concat()
}

/// What the scripts of a test have written down.
fn log(store: &Store) -> String {
    fs::read_to_string(store.path("log")).unwrap_or_default()
}

fn command(store: &Store, args: Vec<&str>) -> Command {
    let mut command = store.command(args);
    command.current_dir(store.directory());
    command
}

fn run(store: &Store, args: Vec<&str>) -> Done {
    Done::of(command(store, args).output().unwrap())
}

/// Waits until somebody stands in line for the key.
fn in_line(store: &Store, key: &str) {
    let name = format!("idempotency/{key}");
    eventually("somebody waits for the key", || {
        (!store.state(&name)["waiters"].as_array().unwrap().is_empty()).then_some(())
    });
}

#[test]
fn a_command_is_run_once_and_a_duplicate_prints_what_it_printed() {
    let store = Store::new();
    let script = "echo run >>log; printf 'not text: \\377\\n'; echo 'for people' >&2";
    for runs in ["the first", "a duplicate"] {
        let output = command(&store, idempotent(&[], "a", script)).output().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(0), b"not text: \xff\n".as_slice()),
            "{runs}"
        );
        assert_eq!(output.stderr.is_empty(), runs == "a duplicate", "{output:?}");
    }
    assert_eq!(log(&store), "run\n");
    run(&store, idempotent(&[], "another", script_ok())).with_code(0);
    let kept = store.ringfence(["record", "get", "idempotency/another"]).with_code(0).stdout;
    assert!(kept.starts_with("{\"fingerprint\":") && kept.ends_with("}\nok\n"), "{kept}");
}

fn script_ok() -> &'static str {
    "echo run >>log; echo ok"
}

#[test]
fn the_command_knows_its_key_and_its_token() {
    let store = Store::new();
    let script = "echo $RINGFENCE_IDEMPOTENCY_KEY $RINGFENCE_LOCK $RINGFENCE_TOKEN; cat";
    let mut command = command(&store, idempotent(&["--label", "till 7"], "a/1", script));
    let (running, input) = Running::start_with_input(&mut command);
    let line = running.line().unwrap();
    let holder = store.holder("idempotency/a/1");
    assert_eq!(line, format!("a/1 idempotency/a/1 {}", holder["token"].as_str().unwrap()));
    assert_eq!(holder["label"], "till 7");
    drop(input);
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn a_command_that_fails_stores_nothing() {
    let store = Store::new();
    let script = "echo run >>log; echo half; kill -TERM $$";
    for _ in 0..2 {
        assert_eq!(run(&store, idempotent(&[], "a", script)).with_code(128 + 15).stdout, "half\n");
    }
    run(&store, idempotent(&[], "a", "exit 3")).with_code(3);
    run(&store, vec!["idempotent", "a", "/not/there"]).with_code(127);
    assert_eq!(run(&store, idempotent(&[], "a", script_ok())).with_code(0).stdout, "ok\n");
    assert_eq!(log(&store), "run\nrun\nrun\n");
}

#[test]
fn a_key_is_one_requests_key() {
    let store = Store::new();
    let first = ["idempotent", "a", "echo", "1"];
    assert_eq!(store.ringfence(first).with_code(0).stdout, "1\n");
    assert_eq!(store.ringfence(first).with_code(0).stdout, "1\n");
    let other = store.ringfence(["idempotent", "a", "echo", "2"]).with_code(65);
    other.saying("another request's, which was done");
    let same = ["--fingerprint", "order 1", "b"];
    let with_text = |number| store.ringfence(["idempotent"].into_iter().chain(same).chain(["echo", number]));
    assert_eq!(with_text("1").with_code(0).stdout, "1\n");
    assert_eq!(with_text("2").with_code(0).stdout, "1\n", "the text decides, where there is one");

    let working = Running::start(&mut command(&store, idempotent(&[], "c", "echo ready; exec sleep 1000")));
    working.expect("ready");
    let other =
        store.ringfence(["idempotent", "-w", "60", "--fingerprint", "two", "c", "true"]).with_code(65);
    other.saying("is in flight");
}

#[test]
fn one_in_flight_is_waited_for_or_not() {
    let store = Store::new();
    let working = Running::start(&mut command(
        &store,
        idempotent(&[], "a", "echo ready; while ! [ -e go ]; do sleep 0.01; done"),
    ));
    working.expect("ready");
    for (flags, code) in [(&["-n"][..], 75), (&["-w", "0.1"], 124), (&["-n", "-E", "9"], 9)] {
        run(&store, idempotent(flags, "a", script_ok())).with_code(code).saying("works on the request");
    }
    let waits = Running::start(&mut command(&store, idempotent(&[], "a", script_ok())));
    in_line(&store, "a");
    fs::write(store.path("go"), "").unwrap();
    assert_eq!(working.end().code(), Some(0));
    waits.expect("ready");
    assert_eq!(waits.end().code(), Some(0));
    assert_eq!(log(&store), "", "the one that waited ran nothing");
}

#[test]
fn what_is_no_key_is_said_in_the_words_of_keys() {
    let store = Store::new();
    let (longest, too_long) = ("x".repeat(243), "x".repeat(244));
    run(&store, idempotent(&[], &longest, script_ok())).with_code(0);
    for (key, said) in
        [(too_long.as_str(), "1 to 243 bytes of UTF-8, this one has 244"), ("", "this one has 0")]
    {
        run(&store, idempotent(&[], key, script_ok()))
            .with_code(64)
            .saying("an idempotency key is")
            .saying(said);
    }
    run(&store, idempotent(&[], "a\nb", script_ok()))
        .with_code(64)
        .saying("an idempotency key")
        .saying("U+000A");
    assert_eq!(log(&store), "run\n");
}

#[test]
fn whoever_is_killed_leaves_the_key_to_the_next_one() {
    let store = Store::new();
    let script = "echo run >>log; echo $$; exec sleep 1000";
    let killed = Running::start(&mut command(&store, idempotent(&["--ttl", "60s"], "a", script)));
    let child: i32 = killed.line().unwrap().parse().unwrap();
    let waits = Running::start(&mut command(&store, idempotent(&[], "a", script_ok())));
    in_line(&store, "a");
    killed.signal(Signal::SIGKILL);
    until_gone(child);
    waits.expect("ok");
    assert_eq!(waits.end().code(), Some(0));
    assert_eq!(run(&store, idempotent(&[], "a", "echo again")).stdout, "ok\n");
    assert_eq!(log(&store), "run\nrun\n");
}

#[test]
fn whoever_was_stopped_past_its_lease_cannot_store_its_output_over_the_next_ones() {
    let store = Store::new();
    let script = "echo ready; while ! [ -e go ]; do sleep 0.01; done; echo late >>log";
    let mut stopped = command(&store, idempotent(&["--ttl", "1s"], "a", script));
    let mut stopped = Running::start(stopped.stderr(Stdio::piped()));
    stopped.expect("ready");
    stopped.signal(Signal::SIGSTOP);
    let next = run(&store, idempotent(&["-w", "30"], "a", "echo in time")).with_code(0);
    assert_eq!(next.stdout, "in time\n");
    // Its command was not stopped, and ends well: nobody has told it that its lease is over.
    fs::write(store.path("go"), "").unwrap();
    eventually("the late command ends", || (log(&store) == "late\n").then_some(()));
    stopped.signal(Signal::SIGCONT);
    let said = crate::support::read_all(stopped.process.stderr.take().unwrap());
    let code = stopped.end().code();
    assert!(code == Some(77) || code == Some(123), "{code:?}: {said}");
    assert_eq!(run(&store, idempotent(&[], "a", script_ok())).with_code(0).stdout, "in time\n");
}

#[test]
fn an_eviction_ends_the_command_and_stores_nothing() {
    let store = Store::new();
    let script = "echo ready; exec sleep 1000";
    let running = Running::start(&mut command(&store, idempotent(&["--ttl", "20s"], "a", script)));
    running.expect("ready");
    store.ringfence(["evict", "--yes", "idempotency/a"]).with_code(0);
    assert_eq!(running.end().code(), Some(123));
    assert_eq!(run(&store, idempotent(&[], "a", script_ok())).with_code(0).stdout, "ok\n");
}

#[test]
fn a_key_is_new_when_its_retention_is_over() {
    let store = Store::new();
    for _ in 0..2 {
        run(&store, idempotent(&["--retention", "1ms"], "a", script_ok())).with_code(0);
        // By the time that the program has ended and the next one has started it is over.
    }
    assert_eq!(log(&store), "run\nrun\n");
    run(&store, idempotent(&["--retention", "24"], "a", script_ok())).with_code(64);
}

#[test]
fn what_is_past_its_retention_is_removed_and_nothing_else() {
    let store = Store::new();
    let over = ["--retention", "1ms"];
    for key in ["over", "over, too"] {
        run(&store, idempotent(&over, key, script_ok())).with_code(0);
    }
    run(&store, idempotent(&[], "kept", "echo kept")).with_code(0);
    let script = "[ -e go ] || { echo ready; exec sleep 1000; }; echo ok";
    fs::write(store.path("go"), "").unwrap();
    run(&store, idempotent(&over, "in hand", script)).with_code(0);
    fs::remove_file(store.path("go")).unwrap();
    let working = Running::start(&mut command(&store, idempotent(&[], "in hand", script)));
    working.expect("ready");

    let said = store.ringfence(["idempotent", "--prune"]).with_code(0).stdout;
    assert_eq!(said, "results removed: 2 of 4\n");
    let records = store.ringfence(["record", "ls"]).with_code(0).stdout;
    assert!(
        records.contains("in hand") && records.contains("kept") && !records.contains("over"),
        "{records}"
    );
    assert_eq!(run(&store, idempotent(&[], "kept", script_ok())).with_code(0).stdout, "kept\n");
    let json = store.ringfence(["--json", "idempotent", "--prune"]).with_code(0).json();
    assert_eq!(json, serde_json::json!({"looked_at": 2, "removed": 0, "unreadable": 0}));

    // What others keep there is not ours to remove.
    run(
        &store,
        vec![
            "run",
            "idempotency/other",
            "--",
            "sh",
            "-c",
            "echo x | \"$0\" record put idempotency/other",
            RINGFENCE,
        ],
    )
    .with_code(0);
    let said = store.ringfence(["idempotent", "--prune"]).with_code(0).saying("no results, and stay: 1");
    assert_eq!(said.stdout, "results removed: 0 of 3\n");
    store.ringfence(["record", "get", "idempotency/other"]).with_code(0);
    for with in ["--retention=1h", "a", "--ttl=3s", "-n"] {
        store.ringfence(["idempotent", "--prune", with]).with_code(64).saying("cannot be used with");
    }
    store.ringfence(["idempotent"]).with_code(64);
}

#[test]
fn more_output_than_is_kept_is_printed_once_and_its_beginning_again() {
    let store = Store::new();
    let script = "echo run >>log; yes | head -c 200000";
    let first = run(&store, idempotent(&[], "a", script)).with_code(0).saying("only the first 65280 bytes");
    assert_eq!(first.stdout.len(), 200_000);
    let again = run(&store, idempotent(&[], "a", script)).with_code(0).saying("only the first 65280 bytes");
    assert_eq!(again.stdout.len(), 65_280);
    assert_eq!(log(&store), "run\n");
}

#[test]
fn work_is_done_and_kept_whether_or_not_somebody_reads_its_output() {
    let store = Store::new();
    let script = "echo one; read -r line; echo run >>log; echo two";
    let mut unread = command(&store, idempotent(&[], "a", script));
    let mut process = unread.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    drop(process.stdout.take());
    drop(process.stdin.take());
    let status = eventually("it ends", || process.try_wait().unwrap());
    assert_eq!((status.code(), status.signal()), (Some(128 + 13), None), "within {PATIENCE:?}");
    assert_eq!(run(&store, idempotent(&[], "a", "echo again")).with_code(0).stdout, "one\ntwo\n");
    assert_eq!(log(&store), "run\n");
}

#[test]
fn a_command_can_write_under_its_key() {
    let store = Store::new();
    let script = "echo done | \"$0\" record put \"$RINGFENCE_LOCK\" --field effect";
    let args = [idempotent(&[], "a", script), vec![RINGFENCE]].concat();
    run(&store, args).with_code(0);
    assert_eq!(store.ringfence(["record", "get", "idempotency/a", "--field", "effect"]).stdout, "done\n");
}
