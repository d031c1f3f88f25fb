//! `fence`: the gates' mark, shown and started anew.

use ringfence_servers::RedisServer;
use serde_json::json;

use crate::gate::{GateProcess, Upstream, hold};
use crate::support::Store;

const HUGE: &str = "9223372036854775807.1";

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_mark_is_given_up_and_that_is_kept() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::start(&store, &upstream, &["--url", &url]);
    gate.passes(&mut upstream, HUGE).await;
    assert_eq!(gate.refuses(&mut upstream, "256.1").await.0, 412);

    let fence = |args: &[&str]| store.ringfence(["fence"].iter().chain(args).chain(&["--url", &url]));
    let shown = fence(&["show", "--json", "a"]).with_code(0).json();
    assert_eq!(shown, json!({"name": "a", "mark": HUGE, "epoch": 0, "resets": []}));
    let reset = ["reset", "a", "--reason", "forged\u{202e}"];
    fence(&reset).with_code(64).saying(&format!("the gates' mark is {HUGE}; say --yes"));
    assert_eq!(gate.refuses(&mut upstream, "256.1").await.0, 412, "only said");
    fence(&[&reset[..], &["--yes"]].concat()).with_code(0);
    gate.passes(&mut upstream, "256.1").await;
    gate.passes(&mut upstream, "512.2").await;
    let (status, why) = gate.refuses(&mut upstream, "256.1").await;
    assert_eq!((status, &why["mark"]), (412, &json!(512)), "the new mark is one like any other");

    let shown = fence(&["show", "--json", "a"]).with_code(0).json();
    assert_eq!((&shown["mark"], &shown["epoch"]), (&json!("512.2"), &json!(1)));
    let [kept] = shown["resets"].as_array().unwrap().as_slice() else { panic!("{shown}") };
    assert_eq!((&kept["mark"], &kept["why"]), (&json!(HUGE), &json!("forged\u{202e}")));
    assert!(
        kept["by"].as_str().unwrap().contains('@') && kept["at"].as_u64() > Some(1_700_000_000_000),
        "{kept}"
    );
    let text = fence(&["show", "a"]).with_code(0).stdout;
    assert!(
        text.starts_with("a: the gates' mark is 512.2\nRESET ") && text.contains("forged\\u{202e}"),
        "{text}"
    );
}

/// Where the store knows the leases, whoever was granted before the reset is refused after it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_granted_before_is_refused_after_where_the_lock_lives_here() {
    let Some(server) = RedisServer::start().await else { return };
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = server.url();
    let gate = GateProcess::start(&store, &upstream, &["--url", &url]);
    let (holder, input, old) = hold(&store, ["--url", &url]);
    gate.passes(&mut upstream, &old).await;
    let fence = |args: &[&str]| store.ringfence(["fence"].iter().chain(args).chain(&["--url", &url]));
    let reset = ["reset", "a", "--reason", "drill", "--yes"];
    fence(&reset).with_code(75).saying("evict it first");
    drop(input);
    assert!(holder.end().success());
    fence(&reset).with_code(0);
    assert_eq!(gate.refuses(&mut upstream, &old).await.0, 412);
    let (_holder, _input, new) = hold(&store, ["--url", &url]);
    gate.passes(&mut upstream, &new).await;
    let shown = fence(&["show", "--json", "a"]).with_code(0).json();
    assert_eq!((&shown["mark"], &shown["resets"][0]["mark"]), (&json!(new), &json!(old)));
}

#[test]
fn what_is_not_as_it_should_be_is_said() {
    let store = Store::new();
    let done = store.ringfence(["fence", "show", "a"]).with_code(0);
    assert_eq!(done.stdout, "a: no gate has seen a token\n");
    store.ringfence(["fence", "reset", "a", "--yes"]).with_code(64).saying("--reason");
    let long = "x".repeat(513);
    store
        .ringfence(["fence", "reset", "a", "--yes", "--reason", &long])
        .with_code(64)
        .saying("at most 512 bytes");
    let put = "echo x | \"$0\" record put a --field gate.epoch";
    store.ringfence(["run", "a", "--", "sh", "-c", put, crate::support::RINGFENCE]).with_code(0);
    store.ringfence(["fence", "show", "a"]).with_code(69).saying("record a#gate.epoch");
}
