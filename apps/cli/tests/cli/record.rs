//! `record`: a value behind its lock's fence, from the shell.

use std::io::Write;

use nix::sys::signal::Signal;
use ringfence_servers::RedisServer;
use serde_json::Value;

use crate::support::{RINGFENCE, Running, Store, with_input};

/// Puts standard input into the record of the lock that is held.
const PUT: &str = "\"$0\" record put \"$RINGFENCE_LOCK\"";

#[test]
fn a_record_is_written_under_its_lock_and_read_by_anyone() {
    let store = Store::new();
    let value = b"not text: \xff\x00\n";
    with_input(&mut store.command(["run", "a", "--", "sh", "-c", PUT, RINGFENCE]), value).with_code(0);
    let read = store.command(["record", "get", "a"]).output().unwrap();
    assert_eq!(read.stdout, value);
    let json = store.ringfence(["record", "get", "--json", "a"]).with_code(0).json();
    assert_eq!(json["value_hex"], "6e6f7420746578743a20ff000a");
    assert_eq!((&json["name"], &json["field"], &json["version"]), (&"a".into(), &"value".into(), &1.into()));
}

#[test]
fn text_is_text_in_json_and_versions_count() {
    let store = Store::new();
    let put = format!(
        "printf 'one' | {PUT} --json; printf '\"two\"' | {PUT} --field other; printf 'three' | {PUT} --json"
    );
    let done = store.ringfence(["run", "a", "--", "sh", "-c", &put, RINGFENCE]).with_code(0);
    let versions: Vec<_> = done.stdout.lines().map(|line| line.contains(r#""version":1,"#)).collect();
    assert_eq!(versions, [true, false], "{done:?}");
    assert_eq!(store.ringfence(["record", "get", "--json", "a"]).json()["value"], "three");
    assert_eq!(store.ringfence(["record", "get", "a", "--field", "other"]).stdout, "\"two\"");
}

#[test]
fn a_record_that_was_never_written_is_1() {
    let store = Store::new();
    let done = store.ringfence(["record", "get", "a"]).with_code(1).saying("was never written");
    assert!(done.stdout.is_empty());
}

#[test]
fn a_record_is_removed_under_its_lock_and_then_there_is_none() {
    let store = Store::new();
    with_input(&mut store.command(["run", "a", "--", "sh", "-c", PUT, RINGFENCE]), b"one").with_code(0);
    let remove = ["run", "a", "--", "sh", "-c", "\"$0\" record rm \"$RINGFENCE_LOCK\"", RINGFENCE];
    let done = store.ringfence(remove).with_code(0);
    assert!(done.stdout.is_empty(), "{done:?}");
    store.ringfence(["record", "get", "a"]).with_code(1).saying("or removed");
    store.ringfence(remove).with_code(1).saying("a#value was never written, or removed");
}

#[test]
fn a_stale_token_is_77_and_nothing_is_removed() {
    let store = Store::new();
    let put = format!("{PUT}; printenv RINGFENCE_TOKEN");
    let mut run = store.command(["run", "a", "--", "sh", "-c", &put, RINGFENCE]);
    let old = with_input(&mut run, b"good").with_code(0).stdout;
    store.ringfence(["record", "rm", "a", "--token", old.trim()]).with_code(77).saying("a#value");
    assert_eq!(store.ringfence(["record", "get", "a"]).stdout, "good");
}

#[test]
fn records_are_listed_by_their_locks() {
    let store = Store::new();
    let put = format!("{PUT}; {PUT} --field other");
    for name in ["b/2", "a", "b/1"] {
        store.ringfence(["run", name, "--", "sh", "-c", &put, RINGFENCE]).with_code(0);
    }
    let all = store.ringfence(["record", "ls"]).with_code(0).stdout;
    let rows: Vec<Vec<&str>> = all.lines().map(|line| line.split_whitespace().collect()).collect();
    let of = |name| [vec![name, "other"], vec![name, "value"]];
    assert_eq!(
        rows,
        [vec![vec!["NAME", "FIELD"]], of("a").into(), of("b/1").into(), of("b/2").into()].concat()
    );
    let json = store.ringfence(["record", "ls", "--json", "b/2"]).with_code(0).json();
    assert_eq!(
        json,
        serde_json::json!([{"name": "b/2", "field": "other"}, {"name": "b/2", "field": "value"}])
    );
    let none = store.ringfence(["record", "ls", "c"]).with_code(0);
    assert!(none.stdout.is_empty(), "{none:?}");
}

#[test]
fn a_stale_token_is_77_and_nothing_is_written() {
    let store = Store::new();
    let token = |name| {
        let done = store.ringfence(["run", name, "--", "printenv", "RINGFENCE_TOKEN"]).with_code(0);
        done.stdout.trim().to_owned()
    };
    let put =
        |token: &str| with_input(&mut store.command(["record", "put", "--token", token, "a"]), b"stale");
    let old = token("a");
    put(&old).with_code(77).saying("a#value");
    store.ringfence(["record", "get", "a"]).with_code(1);
    with_input(&mut store.command(["run", "a", "--", "sh", "-c", PUT, RINGFENCE]), b"good").with_code(0);
    put(&old).with_code(77);
    put(&token("another lock")).with_code(77);
    put("9223372036854775807.1").with_code(77);
    assert_eq!(store.ringfence(["record", "get", "a"]).stdout, "good");
}

#[test]
fn a_value_has_a_limit_and_nothing_is_lost_at_it() {
    let store = Store::new();
    let put = |size: usize| {
        with_input(&mut store.command(["run", "a", "--", "sh", "-c", PUT, RINGFENCE]), &vec![b'x'; size])
    };
    put(65_536).with_code(0);
    put(65_537).with_code(64).saying("65536 bytes");
    assert_eq!(store.ringfence(["record", "get", "a"]).stdout.len(), 65_536);
}

#[test]
fn the_tokens_flag_wins_over_the_environment() {
    let store = Store::new();
    let put = "\"$0\" record put a --token 256.1 </dev/null";
    store.ringfence(["run", "a", "--", "sh", "-c", put, RINGFENCE]).with_code(77);
}

/// The lock is in Redis, the record here, and the first holder's keeper is stopped while its command works on.
#[tokio::test]
async fn a_record_here_refuses_who_held_a_lock_elsewhere_once_the_next_holder_has_opened_it() {
    let Some(server) = RedisServer::start().await else { return };
    let store = Store::new();
    let records = format!("{}?fence=mark", store.url());
    let writes = "while read -r line; do echo $line | \"$0\" --url \"$1\" record put job; echo $?; done";
    let run = ["run", "--url", &server.url(), "--ttl", "1s", "--on-lost", "warn", "job", "--", "sh", "-c"];
    let mut command = store.command(run);
    let (first, mut input) = Running::start_with_input(command.args([writes, RINGFENCE, &records]));
    let mut write = |line: &str| {
        writeln!(input, "{line}").unwrap();
        first.line().unwrap()
    };
    let read = || store.ringfence(["record", "get", "job"]).with_code(0).stdout;
    assert_eq!(write("first"), "0");

    first.signal(Signal::SIGSTOP);
    let (second, _until_the_end) =
        Running::start_with_input(&mut store.command(["hold", "--url", &server.url(), "job"]));
    let held: Value = serde_json::from_str(&second.line().unwrap()).unwrap();
    // The lock is the second one's, but that one has not come near the record: no fence can tell.
    assert_eq!((write("late"), read()), ("0".to_owned(), "late\n".to_owned()));
    let token = held["token"].as_str().unwrap();
    let put = ["record", "put", "--url", &records, "--token", token, "job"];
    with_input(&mut store.command(put), b"second").with_code(0);
    assert_eq!((write("too late"), read()), ("77".to_owned(), "second".to_owned()));
    first.signal(Signal::SIGCONT);
}

#[test]
fn a_version_decides_where_nobody_holds_the_lock() {
    let store = Store::new();
    let put = |version: &str, value: &[u8]| {
        with_input(&mut store.command(["record", "put", "--if-version", version, "a", "--json"]), value)
    };
    let done = put("0", b"one").with_code(0).json();
    assert_eq!((&done["version"], done.get("token")), (&1.into(), None));
    put("0", b"two").with_code(76).saying("the record a#value has version 1: nothing was written");
    put("7", b"two").with_code(76);
    assert_eq!(store.ringfence(["record", "get", "a"]).stdout, "one");
    put("1", b"two").with_code(0);
    assert_eq!(store.ringfence(["record", "get", "--json", "a"]).json()["version"], 2);
    let other = ["record", "put", "--if-version", "1", "--field", "other", "a"];
    with_input(&mut store.command(other), b"").with_code(76).saying("a#other was never written");
    with_input(&mut store.command(["record", "put", "a"]), b"").with_code(64).saying("--token");
}

#[test]
fn a_version_decides_under_the_lock_as_well() {
    let store = Store::new();
    let put = format!("printf one | {PUT} --if-version 0 && printf two | {PUT} --if-version 0");
    store.ringfence(["run", "a", "--", "sh", "-c", &put, RINGFENCE]).with_code(76);
    assert_eq!(store.ringfence(["record", "get", "a"]).stdout, "one");
}
