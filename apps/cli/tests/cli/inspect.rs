//! `ls`, `show` and `evict`: for whoever is on call.

use insta::assert_snapshot;
use ringfence::{Locks, PAGE_MAX};
use ringfence_servers::RedisServer;

use crate::support::{HOLD, Running, Store, eventually};

/// What differs from run to run.
fn filters() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    settings.add_filter(r"\d+\.[0-9a-f]{1,16}\b", "[token]");
    settings.add_filter(r"process \d+ on \S+?\)", "process [pid] on [host])");
    settings.add_filter(r#""host":"[^"]*","pid":\d+"#, r#""host":"[host]","pid":[pid]"#);
    settings.add_filter(r#""(age_ms|remaining_ms)":\d+"#, r#""$1":[time]"#);
    settings.add_filter(r"\b\d+m?s\b", "[time]");
    settings.add_filter(r"  +", "  ");
    assert!(!host.trim().is_empty());
    settings.bind_to_scope()
}

/// A store with one lock that is held and waited for, and one that two share.
fn busy_store() -> (Store, Vec<Running>) {
    let store = Store::new();
    let mut running =
        vec![store.run_script(["--label", "report", "--metadata", "ticket 42", "orders/42"], HOLD)];
    let waiter = ["run", "--label", "second", "--shared", "orders/42", "true"];
    running.push(Running::start(&mut store.command(waiter)));
    eventually("it waits", || store.state("orders/42")["waiters"].get(0).map(drop));
    running.push(store.run_script(["--label", "one", "-s", "doc"], HOLD));
    running.push(store.run_script(["--label", "two", "-s", "doc"], HOLD));
    (store, running)
}

#[test]
fn show_describes_a_lock() {
    let (store, _running) = busy_store();
    let _filters = filters();
    assert_snapshot!("show-held", store.ringfence(["show", "orders/42"]).with_code(0).stdout);
    assert_snapshot!("show-shared", store.ringfence(["show", "doc"]).with_code(0).stdout);
    assert_snapshot!("show-free", store.ringfence(["show", "nobody/has/it"]).with_code(0).stdout);
    assert_snapshot!("show-json", store.ringfence(["show", "--json", "orders/42"]).with_code(0).stdout);
}

#[test]
fn ls_lists_what_is_held_or_waited_for() {
    let (store, _running) = busy_store();
    let _filters = filters();
    assert_snapshot!("ls", store.ringfence(["ls"]).with_code(0).stdout);
    assert_snapshot!("ls-prefix", store.ringfence(["ls", "ord"]).with_code(0).stdout);
    assert_eq!(store.ringfence(["ls", "none"]).with_code(0).stdout, "");
    let names = store.ringfence(["ls", "--json"]).with_code(0).json();
    let names: Vec<_> = names.as_array().unwrap().iter().map(|lock| lock["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["doc", "orders/42"]);
}

#[test]
fn evict_says_whom_and_does_it_only_with_yes() {
    let (store, running) = busy_store();
    let _filters = filters();
    assert_snapshot!("evict-without-yes", store.ringfence(["evict", "orders/42"]).with_code(64).stderr);
    assert_eq!(store.holder("orders/42")["label"], "report", "nothing happened");
    assert_snapshot!("evict", store.ringfence(["evict", "orders/42", "--yes"]).with_code(0).stdout);
    let mut running = running.into_iter();
    let (report, second) = (running.next().unwrap(), running.next().unwrap());
    assert_eq!(report.end().code(), Some(123), "the evicted one learns that it lost");
    assert_eq!(second.end().code(), Some(0), "and the next in line had its turn");
    store.ringfence(["evict", "--yes", "orders/42"]).with_code(1).saying("there is nobody to evict");
}

#[test]
fn evict_takes_one_holder_by_its_token_or_nonce() {
    let (store, _running) = busy_store();
    let token = |at: usize| store.state("doc")["holders"][at]["token"].as_str().unwrap().to_owned();
    let (one, two) = (token(0), token(1));
    store.ringfence(["evict", "--yes", "--holder", "1", "doc"]).with_code(1).saying("no holder 1");
    let evicted = store.ringfence(["evict", "--yes", "--json", "--holder", &one, "doc"]).with_code(0).json();
    assert_eq!((&evicted["name"], &evicted["evicted"][0]["label"]), (&"doc".into(), &"one".into()));
    assert_eq!(token(0), two, "the other one still holds");
    let nonce = two.split_once('.').unwrap().1;
    store.ringfence(["evict", "--yes", "--holder", nonce, "doc"]).with_code(0);
    store.ringfence(["run", "-n", "doc", "true"]).with_code(0);
}

#[tokio::test]
async fn ls_reads_every_page() {
    let store = Store::new();
    let locks = Locks::connect(&store.url()).await.unwrap();
    let mut guards = Vec::new();
    for number in 0..=PAGE_MAX {
        guards.push(locks.lock(format!("lock {number}")).acquire().await.unwrap());
    }
    let listed = store.ringfence(["ls", "--json", "lock "]).with_code(0).json();
    assert_eq!(listed.as_array().unwrap().len(), guards.len());
    locks.close().await.unwrap();
    assert_eq!(store.ringfence(["ls"]).with_code(0).stdout, "");
}

/// Other clients make keys without a TTL, which is what has to be seen of them, and not a number of years.
#[tokio::test]
async fn a_lock_that_nothing_ends_is_shown_so() {
    let Some(server) = RedisServer::start().await else { return };
    let (store, url) = (Store::new(), format!("{}?keys=verbatim", server.url()));
    server.command(&["SET", "orders/42", "somebody"]).await;
    let shown = store.ringfence(["show", "--url", &url, "orders/42"]).with_code(0).stdout;
    assert!(shown.contains("\n  lapses     never by itself"), "{shown}");
}
