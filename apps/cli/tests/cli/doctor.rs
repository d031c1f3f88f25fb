//! `doctor`: what is wrong with a backend, the worst first, and an exit code for alarms.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use insta::assert_snapshot;
use ringfence_servers::{RedisOptions, RedisServer};

use crate::support::{HOLD, Store};

/// What differs from machine to machine.
fn filters() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"/\S+/store", "[store]");
    settings.add_filter(r"127\.0\.0\.1:\d+", "[server]");
    settings.add_filter(r"user \d+", "user [user]");
    settings.add_filter(r"\b\d+ MiB", "[size] MiB");
    settings.add_filter(r"\b\d+ (%|ms)", "[number] $1");
    settings.add_filter(r"(Redis|Valkey) [\d.]+", "$1 [version]");
    settings.add_filter(r"~ringfence:\* [^;]+", "[rule]");
    settings.add_filter(r"(?m)^  (fine|warning)  +file system: .*\n(   .*\n)?", "");
    settings.bind_to_scope()
}

#[test]
fn a_store_that_is_as_it_should_be_is_fine() {
    let store = Store::new();
    let _holder = store.run_script(["a"], HOLD);
    let _filters = filters();
    assert_snapshot!("doctor-local", store.ringfence(["doctor"]).with_code(0).stdout);
    assert_eq!(store.holder("a")["label"], "sh", "nothing happened to it");
    let said = store.ringfence(["doctor", "memory:"]).with_code(0).stdout;
    assert_snapshot!("doctor-memory", said);
    let json = store.ringfence(["doctor", "--json", "memory:"]).with_code(0).json();
    assert_eq!((&json["url"], &json["findings"][0]["severity"]), (&"memory:".into(), &"fine".into()));
}

#[test]
fn who_cannot_be_asked_is_no_problem_but_unavailable() {
    let store = Store::new();
    store.ringfence(["ls"]).with_code(0);
    fs::set_permissions(store.path("store"), fs::Permissions::from_mode(0o777)).unwrap();
    store.ringfence(["doctor"]).with_code(69).saying("others can write to it");
    store.ringfence(["doctor", "redis://127.0.0.1:1"]).with_code(69).saying("redis://127.0.0.1:1");
    store.ringfence(["doctor", "locl:"]).with_code(64).saying("did you mean local:?");
}

#[tokio::test]
async fn a_server_that_evicts_is_a_problem_and_the_worst_comes_first() {
    let options = RedisOptions::new()
        .set("maxmemory", &["100mb"])
        .set("maxmemory-policy", &["allkeys-lru"])
        .password("secret");
    let Some(server) = options.start().await else { return };
    let store = Store::new();
    let _filters = filters();
    let said = store.ringfence(["doctor", &server.url()]).with_code(78);
    assert!(!format!("{said:?}").contains("secret"), "{said:?}");
    assert_snapshot!("doctor-redis", said.stdout);
    let json = store.ringfence(["--json", "--url", &server.url(), "doctor"]).with_code(78).json();
    let severities: Vec<_> = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["severity"].as_str().unwrap())
        .collect();
    assert_eq!(severities[..2], ["problem", "warning"]);
    assert!(severities[2..].iter().all(|severity| *severity == "fine"), "{severities:?}");
    assert_eq!(json["findings"][0]["about"], "eviction");
}

#[tokio::test]
async fn stakes_of_correctness_are_refused_on_redis_and_what_to_use_is_said() {
    let Some(server) = RedisServer::start().await else { return };
    let store = Store::new();
    let args = ["run", "--url", &server.url(), "--stakes", "correctness", "a", "--", "true"];
    let refused = store
        .ringfence(args)
        .with_code(64)
        .saying("best effort")
        .saying("local: (the processes of one machine)");
    assert!(refused.stderr.contains("only while the writer's lease lives"), "{refused:?}");
    assert_eq!(server.command(&["dbsize"]).await, "0", "nothing was asked for");
}
