//! Once per window: many processes, one run; and what becomes of it when its process does not end well.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::Signal;
use ringfence::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::support::{Done, HOLD, RINGFENCE, Running, Store, eventually, read_all, until_gone, with_input};

/// A window that no test sees the end of: twenty years.
const LONG: &str = "7300d";

const DAY: u64 = 24 * 60 * 60 * 1000;

impl Store {
    /// Calls for the job `a`, whose window lasts, with these flags and this script.
    fn once(&self, flags: &[&str], script: &str) -> Done {
        self.ringfence([&["once", "--every", LONG], flags, &["a", "--", "sh", "-c", script]].concat())
    }

    /// Starts the job `a` with a script that says that it is `ready`, and then does not end.
    fn once_running(&self, flags: &[&str]) -> Running {
        let args = [&["once", "--every", LONG], flags, &["a", "--", "sh", "-c", HOLD]].concat();
        let running = Running::start(&mut self.command(args));
        running.expect("ready");
        running
    }

    /// The history of the job `a`, the newest run first.
    fn runs(&self) -> Vec<Value> {
        let done = self.ringfence(["once", "--history", "--json", "a"]).with_code(0);
        done.json().as_array().unwrap().clone()
    }

    fn outcomes(&self) -> Vec<String> {
        self.runs().iter().map(|run| run["outcome"].as_str().unwrap().to_owned()).collect()
    }
}

#[track_caller]
fn silent(done: &Done) {
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""), "cron would send a mail");
}

#[test]
fn of_many_that_are_called_at_once_one_runs_and_the_others_are_silent() {
    let store = Store::new();
    let runs = store.path("runs");
    let script = format!("echo run >> {}", runs.display());
    let args = ["once", "--every", LONG, "a", "--", "sh", "-c", &script];
    let start = || store.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let all: Vec<_> = (0..8).map(|_| start()).collect();
    for one in all {
        silent(&Done::of(one.wait_with_output().unwrap()).with_code(0));
    }
    assert_eq!(fs::read_to_string(runs).unwrap(), "run\n");
    assert_eq!(store.outcomes(), ["succeeded"]);
}

#[test]
fn whoever_comes_while_it_runs_or_afterwards_does_not_run_it() {
    let store = Store::new();
    let args = ["once", "--every", LONG, "a", "--", "sh", "-c", "echo ready; read line; exit 0"];
    let (running, input) = Running::start_with_input(&mut store.command(args));
    running.expect("ready");
    assert_eq!(store.outcomes(), ["running"]);
    silent(&store.once(&[], "echo no").with_code(0));
    store.once(&["-E", "75"], "echo no").with_code(75);
    let busy = store.once(&["--json"], "echo no").with_code(0).json();
    assert_eq!((&busy["skipped"], &busy["run"]["outcome"]), (&json!("busy"), &json!("running")));
    drop(input);
    assert_eq!(running.end().code(), Some(0));

    silent(&store.once(&[], "echo no").with_code(0));
    store.once(&["-E", "75"], "echo no").with_code(75);
    let done = store.once(&["--json"], "echo no").with_code(0).json();
    assert_eq!((&done["skipped"], &done["run"]["outcome"]), (&json!("not_due"), &json!("succeeded")));
    assert!(done["next"].as_str().unwrap().ends_with("T00:00:00Z"), "{done}");
}

#[test]
fn the_command_knows_its_window_and_its_token() {
    let store = Store::new();
    let said = store.once(&[], "echo $RINGFENCE_WINDOW $RINGFENCE_TOKEN $RINGFENCE_LOCK").with_code(0).stdout;
    let run = store.runs().remove(0);
    let text = |key: &str| run[key].as_str().unwrap().to_owned();
    assert_eq!(said, format!("{} {} once/a\n", text("window"), text("token")));
    assert_eq!((text("label"), text("outcome")), ("sh".to_owned(), "succeeded".to_owned()));
    let keeps = "echo kept | \"$0\" record put --field result \"$RINGFENCE_LOCK\"";
    store.ringfence(["once", "--every", LONG, "b", "--", "sh", "-c", keeps, RINGFENCE]).with_code(0);
    assert_eq!(store.ringfence(["record", "get", "--field", "result", "once/b"]).stdout, "kept\n");
}

#[test]
fn a_run_that_fails_says_so_once_and_is_retried_where_that_is_asked_for() {
    let store = Store::new();
    store.once(&[], "exit 3").with_code(3);
    silent(&store.once(&[], "echo no").with_code(0));
    let history = store.ringfence(["once", "--history", "a"]).with_code(0).stdout;
    assert!(history.starts_with("WINDOW") && history.contains("failed: exit code 3\n"), "{history}");
    let retry = &["--retry-failed"];
    store.once(retry, "kill -9 $$").with_code(137);
    assert_eq!(store.runs()[0]["why"], "ended by signal 9");
    store.ringfence(["once", "--every", LONG, "--retry-failed", "a", "/nowhere/at/all"]).with_code(127);
    silent(&store.once(&["--retry-failed", "--at-least", "1d"], "echo too soon").with_code(0));
    store.once(retry, "exit 0").with_code(0);
    silent(&store.once(retry, "echo no").with_code(0));
    assert_eq!(store.outcomes(), ["succeeded", "failed", "failed", "failed"]);
}

#[test]
fn a_run_whose_program_is_killed_has_crashed() {
    let store = Store::new();
    let running = store.once_running(&[]);
    let command = store.holder("once/a")["pid"].as_i64().unwrap();
    running.signal(Signal::SIGKILL);
    until_gone(command.try_into().unwrap());
    drop(running);
    // Until somebody has the lock it is not taken down, and yet it is known.
    assert_eq!(
        eventually("the lease is over", || Some(store.outcomes()).filter(|it| it == &["crashed"])),
        ["crashed"]
    );
    silent(&store.once(&[], "echo no").with_code(0));
    assert_eq!(store.once(&["--retry-failed"], "echo again").with_code(0).stdout, "again\n");
    assert_eq!(store.outcomes(), ["succeeded", "crashed"]);
}

#[test]
fn a_program_that_was_stopped_past_its_lease_does_not_say_how_its_run_ended() {
    let store = Store::new();
    let running = store.once_running(&["--ttl", "500ms"]);
    running.signal(Signal::SIGSTOP);
    let again = eventually("the lease of the one that is stopped is over", || {
        let done = store.once(&["--retry-failed"], "echo again").with_code(0);
        (!done.stdout.is_empty()).then_some(done.stdout)
    });
    assert_eq!(again, "again\n");
    running.signal(Signal::SIGCONT);
    assert_eq!(running.end().code(), Some(123));
    assert_eq!(store.outcomes(), ["succeeded", "crashed"], "what the second one took down stands");
}

#[test]
fn a_command_that_ends_well_after_its_lease_was_lost_is_not_done() {
    let store = Store::new();
    let args = [
        "once",
        "--every",
        LONG,
        "a",
        "--",
        "sh",
        "-c",
        "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done",
    ];
    let mut running = Running::start(store.command(args).stderr(Stdio::piped()));
    running.expect("ready");
    store.ringfence(["evict", "--yes", "once/a"]).with_code(0);
    let said = read_all(running.process.stderr.take().unwrap());
    assert!(said.contains("the lease on once/a was lost while the command ran"), "{said}");
    assert_eq!(running.end().code(), Some(123));
    assert_eq!(store.outcomes(), ["crashed"]);
}

/// A history with one run, so many days ago.
fn ran_days_ago(store: &Store, days: u64) -> u64 {
    let today = SystemClock::new().wall().as_millis() / DAY * DAY;
    let then = today - days * DAY;
    let history = json!({"runs": [{
        "window": {"start": then, "end": then + DAY}, "token": "256.1", "started": then, "ended": then,
        "outcome": "succeeded", "by": {"label": "sh", "host": "elsewhere", "pid": 1},
    }]});
    let put = ["run", "once/a", "--", RINGFENCE, "record", "put", "once/a"];
    with_input(&mut store.command(put), history.to_string().as_bytes()).with_code(0);
    today
}

#[test]
fn of_the_days_that_nobody_ran_the_last_is_made_up_for_before_today() {
    let store = Store::new();
    ran_days_ago(&store, 5);
    let daily = |flags: &[&str], script: &str| {
        store.ringfence([&["once", "--every", "1d"], flags, &["a", "--", "sh", "-c", script]].concat())
    };
    let said = daily(&["--missed", "run"], "echo $RINGFENCE_WINDOW").with_code(0).stdout;
    let windows: Vec<_> = store.runs().iter().map(|run| run["window"].as_str().unwrap().to_owned()).collect();
    assert_eq!(said, format!("{}\n{}\n", windows[1], windows[0]));
    assert_eq!(windows.len(), 3, "the days before are not made up for");
    assert_eq!(store.runs()[1]["window_end"], windows[0].as_str());

    let store = Store::new();
    ran_days_ago(&store, 5);
    let daily = |script: &str| {
        store.ringfence(["once", "--every", "1d", "--missed", "run", "a", "--", "sh", "-c", script])
    };
    daily("exit 4").with_code(4);
    assert_eq!(store.runs()[0]["outcome"], "failed", "the current one waits for the next call");
    assert_eq!(store.runs().len(), 2);
    daily("exit 0").with_code(0);
    assert_eq!(store.runs().len(), 3);
}

#[test]
fn who_is_asked_to_end_while_it_makes_up_for_a_day_does_not_begin_the_next() {
    let store = Store::new();
    ran_days_ago(&store, 5);
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let args = ["once", "--every", "1d", "--missed", "run", "a", "--", "sh", "-c", script];
    let running = Running::start(&mut store.command(args));
    running.expect("ready");
    running.signal(Signal::SIGTERM);
    assert_eq!(running.line(), None, "it began another one");
    assert_eq!(running.end().code(), Some(0));
    assert_eq!(store.outcomes(), ["succeeded", "succeeded"], "the one long ago, and the one made up for");
}

#[test]
fn whoever_holds_the_lock_of_a_job_keeps_it_from_running() {
    let store = Store::new();
    let (hold, input) = Running::start_with_input(&mut store.command(["hold", "once/a"]));
    hold.line().unwrap();
    let skipped = store.once(&["--json", "-E", "9"], "echo no").with_code(9).json();
    assert_eq!((&skipped["skipped"], &skipped["run"]), (&json!("busy"), &Value::Null));
    drop(input);
    assert_eq!(hold.end().code(), Some(0));
    store.once(&[], "exit 0").with_code(0);
}

#[test]
fn what_cannot_be_meant_is_wrong_usage() {
    let store = Store::new();
    for (args, said) in [
        (&["a", "true"][..], "--every"),
        (&["--every", "1h", "--since-last", "1h", "a", "true"], "cannot be used with"),
        (&["--every", "1h", "a"], "COMMAND"),
        (&["--every", "3600", "a", "true"], "unit"),
        (&["--every", "0s", "a", "true"], "no length"),
        (&["--every", "1h", "--offset", "1h", "a", "true"], "less than that"),
        (&["--since-last", "1h", "--offset", "1m", "a", "true"], "cannot be used with"),
        (&["--since-last", "1h", "--missed", "run", "a", "true"], "cannot be used with"),
        (&["--every", "1h", "--at-least", "2h", "a", "true"], "longer than their window"),
        (&["--history", "--every", "1h", "a"], "cannot be used with"),
        (&["--history", "a", "true"], "cannot be used with"),
    ] {
        store.ringfence([&["once"], args].concat()).with_code(64).saying(said);
    }
    store.ringfence(["once", "--history", "a"]).with_code(1).saying("a has never run");
    with_input(&mut store.command(["run", "once/a", "--", RINGFENCE, "record", "put", "once/a"]), b"41")
        .with_code(0);
    store.once(&[], "true").with_code(69).saying("record get once/a");
}
