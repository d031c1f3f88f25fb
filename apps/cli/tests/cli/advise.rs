//! `advise`: from answers to a pattern, a backend, and what to paste.

use std::fs;

use insta::assert_snapshot;
use ringfence_servers::ZooKeeperOptions;
use serde_json::{Value, json};

use crate::support::Store;

/// Six answers by flags, in the order of the questions.
fn flags(answers: [&str; 6]) -> Vec<String> {
    let flags = ["idempotent", "in-transaction", "double-run", "shard", "have", "contenders"];
    flags.iter().zip(answers).map(|(flag, answer)| format!("--{flag}={answer}")).collect()
}

fn advise(store: &Store, answers: [&str; 6]) -> Value {
    let args = ["advise".to_owned(), "--json".to_owned()].into_iter().chain(flags(answers));
    store.ringfence(args).with_code(0).json()
}

#[test]
fn an_advice_says_what_to_paste_and_what_is_left_open() {
    let store = Store::new();
    let flags = flags(["no", "no", "waste", "no", "redis", "few-briefly"]);
    let said = store.ringfence(["advise".to_owned()].into_iter().chain(flags)).with_code(0);
    assert_snapshot!("advise-lock", said.stdout);
    assert!(said.stderr.is_empty(), "nobody was asked: {said:?}");
    assert!(!store.path("store").exists(), "and nothing was connected to");
}

#[test]
fn redis_will_do_for_waste_and_not_for_a_charge_and_no_lock_where_none_is_needed() {
    let store = Store::new();
    let waste = advise(&store, ["no", "no", "waste", "no", "redis", "few-briefly"]);
    assert_eq!(
        (&waste["pattern"], &waste["backend"]["url"]),
        (&json!("lock"), &json!("redis://redis.example"))
    );
    let charge = advise(&store, ["no", "one-value", "charge", "no", "redis,redlock", "many-briefly"]);
    assert_eq!(charge["pattern"], "fenced-record");
    assert_eq!(charge["backend"]["guarantees"]["tokens"], "durable");
    assert!(charge["backend"]["because"].as_str().unwrap().contains("Not Redis"), "{charge}");
    let none = advise(&store, ["yes", "no", "waste", "no", "redis", "few-briefly"]);
    assert_eq!(
        (&none["pattern"], &none["backend"], &none["command"]),
        (&json!("no-lock"), &Value::Null, &Value::Null)
    );
}

#[test]
fn what_is_missing_is_named_with_what_could_be_answered() {
    let store = Store::new();
    let said = store.ringfence(["advise", "--idempotent", "no", "--double-run", "charge"]).with_code(64);
    for missing in ["--in-transaction (postgres, ", "--shard (yes, no)", "--have (", "--contenders ("] {
        assert!(said.stderr.contains(missing), "{missing}: {said:?}");
    }
    assert!(!said.stderr.contains("--idempotent"), "{said:?}");
    assert!(said.stdout.is_empty());
    store.ringfence(["advise", "--double-run", "chrge"]).with_code(64).saying("charge");
    store.ringfence(["advise", "--have", "redis,nothing"]).with_code(64).saying("alone");
}

#[test]
fn answers_come_from_a_file_too_and_a_flag_wins() {
    let store = Store::new();
    let first = advise(&store, ["by-key", "no", "charge", "no", "postgres,etcd", "few-briefly"]);
    let file = store.path("answers.json");
    fs::write(&file, first["answers"].to_string()).unwrap();
    let file = file.to_str().unwrap();
    let again = store.ringfence(["advise", "--json", "--answers", file]).with_code(0).json();
    assert_eq!(again, first);
    let other =
        store.ringfence(["advise", "--json", "--answers", file, "--have", "etcd"]).with_code(0).json();
    assert!(other["backend"]["url"].as_str().unwrap().starts_with("etcd:"), "{other}");

    fs::write(store.path("wrong.json"), r#"{"shrad":"no"}"#).unwrap();
    let wrong = store.path("wrong.json");
    let said = store.ringfence(["advise", "--answers", wrong.to_str().unwrap()]).with_code(64);
    assert!(said.stderr.contains("wrong.json") && said.stderr.contains("did you mean \"shard\""), "{said:?}");
    store
        .ringfence(["advise", "--answers", "/nowhere/answers.json"])
        .with_code(74)
        .saying("/nowhere/answers.json");
}

/// Runs an advised command on this store, with `true` in place of what it would run.
fn runs(store: &Store, advice: &Value, url: &str) {
    let command =
        advice["command"].as_str().unwrap().replace(advice["backend"]["url"].as_str().unwrap(), url);
    let (ours, _) = command.split_once(" -- ").unwrap();
    store.ringfence(ours.split(' ').skip(1).chain(["--", "true"])).with_code(0);
}

/// What can refuse nothing gets a delay, but for one machine, where none would hold.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_advised_is_not_refused_where_it_is_advised() {
    let store = Store::new();
    for (contenders, pattern) in [
        ("few-briefly", "lock"),
        ("some-at-once", "permits"),
        ("each-window", "once"),
        ("one-always", "leader"),
    ] {
        let advice = advise(&store, ["no", "no", "charge", "no", "one-machine", contenders]);
        assert_eq!(advice["pattern"], pattern);
        runs(&store, &advice, &store.url());
    }
    // Configured as it comes, which gives the shortest of the longest leases.
    let ensemble = ZooKeeperOptions::new().set("tickTime", "2000").set("maxSessionTimeout", "40000").start();
    let Some(ensemble) = ensemble.await else { return };
    let advice = advise(&store, ["no", "no", "charge", "no", "zookeeper", "few-briefly"]);
    assert_eq!(advice["pattern"], "lock-delay");
    runs(&store, &advice, &ensemble.url());
}
