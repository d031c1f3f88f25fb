//! Releases by the server's own compare-and-delete, where it has one: what they cost, and whose lock they must leave alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringfence_core::{Attempt, Backend, BackendUrl, Lease, Release, Renewal, SystemClock, Wait};
use ringfence_redis::RedisBackend;
use ringfence_servers::{RedisOptions, valkey};

use crate::line::Stopped;
use crate::stage::{FOR_EVER, Stage, client_by, exclusive, granted, now, release, renew};

const KEY: &str = "ringfence:{orders/42}";

/// Every server at hand, with its compare-and-delete: Valkey has one from version 9 on, Redis from 8.4 on.
async fn servers() -> Vec<(Stage, Option<&'static str>)> {
    let mut servers = Vec::new();
    for options in [Some(RedisOptions::new()), valkey().map(|valkey| RedisOptions::new().program(valkey))] {
        let Some(options) = options else { continue };
        let Some(stage) = Stage::with(options).await else { continue };
        let mut has = None;
        for command in ["delifeq", "delex"] {
            if !stage.server.command(&["COMMAND", "INFO", command]).await.trim().is_empty() {
                has = Some(command);
            }
        }
        servers.push((stage, has));
    }
    servers
}

/// The commands of one release, and what it says.
async fn releasing(stage: &Stage, client: &RedisBackend, lease: &Lease) -> (Release, BTreeMap<String, u64>) {
    stage.server.command(&["CONFIG", "RESETSTAT"]).await;
    let answer = release(client, lease).await.expect("an answer");
    (answer, stage.calls().await)
}

fn calls<const N: usize>(calls: [(&str, u64); N]) -> BTreeMap<String, u64> {
    calls.into_iter().map(|(command, count)| (command.to_owned(), count)).collect()
}

fn script() -> BTreeMap<String, u64> {
    calls([("evalsha", 1), ("getrange", 1), ("del", 1)])
}

/// A script costs the server more than all that it calls.
#[tokio::test]
async fn a_release_that_nobody_waits_for_is_one_command_of_the_server() {
    for (stage, has) in servers().await {
        let ann = stage.client().await;
        for _ in 0..3 {
            let lease = granted(&ann, exclusive(Wait::No)).await;
            let expected = has.map_or_else(script, |command| calls([(command, 1)]));
            assert_eq!(releasing(&stage, &ann, &lease).await, (Release::Released, expected), "{has:?}");
            assert!(stage.state().await.is_free(), "{has:?}");
            // What it wrote is forgotten, and that it had the lock is not to be believed again.
            let (again, calls) = releasing(&stage, &ann, &lease).await;
            assert_eq!((again, calls.get("evalsha")), (Release::NotHeld, Some(&1)), "{has:?}: {calls:?}");
        }
        // Whoever waits for a free lock has it in the same way.
        let lease = granted(&ann, exclusive(FOR_EVER)).await;
        let (_, calls) = releasing(&stage, &ann, &lease).await;
        assert_eq!(!calls.contains_key("evalsha"), has.is_some(), "{has:?}: {calls:?}");
        // A lease that was renewed was held for long, and nothing is kept for it.
        let lease = granted(&ann, exclusive(Wait::No)).await;
        assert_eq!(renew(&ann, &lease).await.expect("an answer"), Renewal::Renewed);
        assert_eq!(releasing(&stage, &ann, &lease).await, (Release::Released, script()), "{has:?}");
    }
}

/// A command that deletes what somebody waits for would leave him to find it a quarter of a second later.
#[tokio::test]
async fn where_somebody_waits_the_script_hands_over() {
    for (stage, has) in servers().await {
        let ann = stage.client().await;
        // It hears of its turn, and asks for nothing meanwhile.
        let ben = Arc::new(client_by(stage.server.port(), Arc::new(Stopped(now()))).await);
        let lease = granted(&ann, exclusive(Wait::No)).await;
        let waiter = Arc::clone(&ben);
        let waiting = tokio::spawn(async move { granted(&waiter, exclusive(FOR_EVER)).await });
        stage.sees_waiters(1).await;
        let (answer, calls) = releasing(&stage, &ann, &lease).await;
        let next = waiting.await.expect("no panic");
        assert_eq!(answer, Release::Released, "{has:?}");
        assert!(next.token.sequence() > lease.token.sequence() && next.is_offer(), "{has:?}: {next:?}");
        assert_eq!(calls.get("publish"), Some(&1), "{has:?}: {calls:?}");
        let tried = has.map(|command| calls.get(command).copied().unwrap_or_default());
        assert_eq!(tried, has.map(|_| 1), "one command more, which changes nothing: {calls:?}");
        // A turn from the line goes the script's way at once: behind it, too, somebody may wait.
        let (answer, calls) = releasing(&stage, &ben, &next).await;
        assert_eq!((answer, calls.get("evalsha")), (Release::Released, Some(&1)), "{has:?}: {calls:?}");
        assert!(has.is_none_or(|command| !calls.contains_key(command)), "{calls:?}");
        assert!(stage.state().await.is_free(), "{has:?}");
    }
}

/// Its value says that somebody waited, so that the command could only fail.
#[tokio::test]
async fn a_turn_that_was_found_by_looking_is_released_by_the_script() {
    for (stage, has) in servers().await {
        let (ann, ben) = (stage.client().await, Arc::new(stage.client().await));
        granted(&ann, exclusive(Wait::No)).await;
        let waiter = Arc::clone(&ben);
        let waiting = tokio::spawn(async move { granted(&waiter, exclusive(FOR_EVER)).await });
        stage.sees_waiters(1).await;
        // As if the holder were gone: nobody hands over.
        stage.server.command(&["DEL", KEY]).await;
        let next = waiting.await.expect("no panic");
        let (answer, calls) = releasing(&stage, &ben, &next).await;
        assert_eq!(answer, Release::Released, "{has:?}");
        assert!(has.is_none_or(|command| !calls.contains_key(command)), "{calls:?}");
    }
}

/// Whoever comes back late would free the lock of another one.
#[tokio::test]
async fn a_release_that_comes_late_frees_nobody_elses_lock() {
    for (stage, has) in servers().await {
        let (ann, ben) = (stage.client().await, stage.client().await);
        let late = granted(&ann, exclusive(Wait::No)).await;
        stage.server.command(&["DEL", KEY]).await;
        let next = granted(&ben, exclusive(Wait::No)).await;
        assert_eq!(releasing(&stage, &ann, &late).await.0, Release::NotHeld, "{has:?}");
        assert_eq!(stage.state().await.holders[0].token, next.token, "{has:?}");
        assert_eq!(release(&ben, &next).await.expect("an answer"), Release::Released, "{has:?}");

        let late = granted(&ann, exclusive(Wait::No)).await;
        stage.server.command(&["SET", KEY, "another client's"]).await;
        assert_eq!(releasing(&stage, &ann, &late).await.0, Release::NotHeld, "{has:?}");
        assert_eq!(stage.server.command(&["GET", KEY]).await, "another client's", "{has:?}");
    }
}

/// A right that is missing, or a command that an operator has taken away, must not keep a lock from being released.
#[tokio::test]
async fn where_the_command_is_refused_the_script_releases_and_it_is_not_tried_again() {
    for (stage, has) in servers().await {
        let Some(command) = has else { continue };
        let user = ["ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", &format!("-{command}")];
        stage.server.command(&user).await;
        let url = format!("redis://ann:secret@127.0.0.1:{}", stage.server.port());
        let url = BackendUrl::parse(&url).expect("a URL");
        let ann =
            RedisBackend::connect(&url, Arc::new(SystemClock::new())).await.expect("a server that runs");
        stage.server.command(&["ACL", "LOG", "RESET"]).await;
        for _ in 0..3 {
            let lease = granted(&ann, exclusive(Wait::No)).await;
            assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::Released, "{command}");
            assert!(stage.state().await.is_free(), "{command}");
        }
        // With a count of how often it was the same.
        let refused = stage.server.command(&["ACL", "LOG"]).await;
        let mut refused = refused.lines().skip_while(|line| *line != "count");
        assert_eq!(refused.nth(1), Some("1"), "{command} is tried once by each connection");
    }
    let Some(valkey) = valkey() else { return };
    let without = RedisOptions::new().program(valkey).set("rename-command", &["DELIFEQ", ""]);
    let Some(stage) = Stage::with(without).await else { return };
    let ann = stage.client().await;
    for _ in 0..2 {
        let lease = granted(&ann, exclusive(Wait::No)).await;
        assert_eq!(releasing(&stage, &ann, &lease).await, (Release::Released, script()));
    }
    let unknown = stage.server.command(&["INFO", "errorstats"]).await;
    assert!(!unknown.contains("errorstat_ERR"), "the second one was not tried: {unknown}");
}

/// A command for each of many would cost more than one script for all of them.
#[tokio::test]
async fn leases_that_are_released_together_share_one_script() {
    for (stage, has) in servers().await {
        let ann = stage.client().await;
        let first = granted(&ann, exclusive(Wait::No)).await;
        let mut other = exclusive(Wait::No);
        other.name = "orders/43".parse().expect("a name");
        let leases = [first.key, granted(&ann, other).await.key];
        stage.server.command(&["CONFIG", "RESETSTAT"]).await;
        assert_eq!(ann.release(&leases).await.expect("an answer"), [Release::Released; 2], "{has:?}");
        assert_eq!(stage.calls().await, calls([("evalsha", 1), ("getrange", 2), ("del", 2)]), "{has:?}");
    }
}

/// The command says only that there is something else; what that is, a person has to know.
#[tokio::test]
async fn a_lock_that_somebody_damaged_is_described_as_by_the_script() {
    for (stage, has) in servers().await {
        let ann = stage.client().await;
        let lease = granted(&ann, exclusive(Wait::No)).await;
        stage.server.command(&["DEL", KEY]).await;
        stage.server.command(&["RPUSH", KEY, "a list"]).await;
        let error = release(&ann, &lease).await.expect_err("it is a list");
        assert!(error.to_string().contains("is a list"), "{has:?}: {error}");
        stage.server.command(&["DEL", KEY]).await;
        // That was one lock's affair: the next one is released as cheaply as any.
        let lease = granted(&ann, exclusive(Wait::No)).await;
        let (answer, calls) = releasing(&stage, &ann, &lease).await;
        assert_eq!((answer, calls.contains_key("evalsha")), (Release::Released, has.is_none()), "{calls:?}");
        let Ok(Attempt::Granted(_)) = ann.acquire(exclusive(Wait::No)).await else {
            panic!("{has:?}: it must be free")
        };
    }
}
