//! Which rights we need on a server, as a rule for its operator, and whether we have them.

use redis::Value;
use ringfence_core::{Finding, Result};

use crate::checks::{Node, ask};
use crate::compare_and_delete::CompareAndDelete;
use crate::error;
use crate::keys::Keys;
use crate::scripts::text;

const ABOUT: &str = "access";

/// The commands that we send, or that a script of ours calls, and whose only or first argument is a key.
const ON_A_KEY: &[&str] = &[
    "del",
    "exists",
    "get",
    "getrange",
    "hdel",
    "hget",
    "hincrby",
    "hmget",
    "hset",
    "hstrlen",
    "pexpire",
    "pttl",
    "set",
    "setrange",
    "type",
    "zadd",
    "zcard",
    "zrange",
    "zrangebyscore",
    "zrank",
    "zrem",
    "zscore",
];

/// The others, as a rule names them, with a call of each to ask about.
const OTHERS: &[(&str, &str)] = &[
    ("evalsha", "evalsha script 1 KEY"),
    ("publish", "publish CHANNEL message"),
    ("scan", "scan 0"),
    ("script|load", "script load script"),
    ("select", "select 0"),
    ("subscribe", "subscribe CHANNEL"),
    ("time", "time"),
];

/// As [`OTHERS`], where replicas have to confirm a lease.
const FOR_REPLICAS: (&str, &str) = ("wait", "wait 0 0");

/// As [`OTHERS`], in a cluster.
const FOR_A_CLUSTER: [(&str, &str); 6] = [
    ("asking", "asking"),
    ("cluster|slots", "cluster slots"),
    ("pubsub|shardnumsub", "pubsub shardnumsub"),
    ("spublish", "spublish CHANNEL message"),
    ("ssubscribe", "ssubscribe CHANNEL"),
    ("sunsubscribe", "sunsubscribe CHANNEL"),
];

/// What some ways of use need besides.
#[derive(Clone, Copy)]
struct Needs {
    replicas: bool,
    cluster: bool,
    /// Without it a release costs more, and nothing else.
    compare_and_delete: Option<CompareAndDelete>,
}

/// What an examination looks at besides. Without these it says that it was not allowed to.
const TO_EXAMINE: [&str; 3] = ["acl|whoami", "config|get", "info"];

/// Asks the server which of these it would refuse.
const SCRIPT: &str = include_str!("lua/access.lua");

/// The rule of a user who can do what we need and nothing else, for `ACL SETUSER`.
fn rule(keys: Keys, needs: Needs) -> String {
    let (keys, channels) = match (keys, needs.cluster) {
        (Keys::Encoded, _) => ("~ringfence:*", "&ringfence:*"),
        (Keys::Verbatim, false) => ("~ringfence@* ~YOUR_LOCK_NAMES", "&ringfence:*"),
        // There a channel stands beside its lock.
        (Keys::Verbatim, true) => ("~ringfence@* ~YOUR_LOCK_NAMES", "&ringfence@*"),
    };
    let others = others(needs).map(|(name, _)| name);
    let helpful = needs.compare_and_delete.map(right);
    let commands = ON_A_KEY.iter().copied().chain(others).chain(helpful);
    let commands: Vec<_> = commands.map(|name| format!("+{name}")).collect();
    format!("{keys} resetchannels {channels} {}", commands.join(" "))
}

fn others(needs: Needs) -> impl Iterator<Item = (&'static str, &'static str)> {
    let in_a_cluster = FOR_A_CLUSTER.into_iter().filter(move |_| needs.cluster);
    OTHERS.iter().copied().chain(needs.replicas.then_some(FOR_REPLICAS)).chain(in_a_cluster)
}

fn right(command: CompareAndDelete) -> &'static str {
    match command {
        CompareAndDelete::Delifeq => "delifeq",
        CompareAndDelete::Delex => "delex",
    }
}

fn advice(rule: &str) -> String {
    format!(
        "a user who can do what is needed and nothing else: ACL SETUSER NAME reset on >PASSWORD {rule}; for `ringfence \
         doctor` as well: {}",
        TO_EXAMINE.map(|name| format!("+{name}")).join(" ")
    )
}

/// Whether our user may do all that we need. The server itself is asked, and nothing is done.
pub(crate) async fn examine(node: &Node<'_>) -> Result<Finding> {
    let user = match ask(node, redis::cmd("ACL").arg("WHOAMI")).await? {
        Some(user) => format!("user {:?}", text(&user).unwrap_or_default()),
        None => "our user".to_owned(),
    };
    let helpful = node.link.compare_and_delete_of_server().filter(|_| node.client.written.is_some());
    let needs = Needs {
        replicas: node.client.replicas.is_some(),
        cluster: node.client.servers.is_cluster(),
        compare_and_delete: helpful,
    };
    let advice = advice(&rule(node.client.keys, needs));
    let reply = match ask(node, redis::cmd("SCRIPT").arg("LOAD").arg(SCRIPT)).await? {
        Some(hash) => {
            let mut command = redis::cmd("EVALSHA");
            command.arg(text(&hash).unwrap_or_default()).arg(0);
            for call in calls(node.client.keys, needs) {
                command.arg(call);
            }
            ask(node, &command).await?
        }
        None => None,
    };
    Ok(match &reply {
        None => Finding::problem(ABOUT, format!("{user} may not load and call scripts"), advice),
        Some(Value::Nil) => {
            let what = format!("{user}; a server before version 7 cannot say what it may do");
            Finding::fine(ABOUT, what).advising(advice)
        }
        Some(Value::Array(refused)) if refused.is_empty() => {
            Finding::fine(ABOUT, format!("{user} may do all that is needed")).advising(advice)
        }
        Some(Value::Array(refused)) => {
            let refused = refused.iter().filter_map(text);
            let is_helpful = |call: &&str| needs.compare_and_delete.map(right) == call.split(' ').next();
            let (unknown, refused): (Vec<_>, Vec<_>) = refused.partition(|call| call.starts_with('?'));
            if !unknown.is_empty() {
                let names = unknown.iter().filter_map(|call| call[1..].split(' ').next());
                let what = format!("the server has no {}", names.collect::<Vec<_>>().join(", "));
                let advice =
                    "these commands are needed, by these names: see `rename-command` in its configuration";
                return Ok(Finding::problem(ABOUT, what, advice));
            }
            let (helpful, needed): (Vec<_>, Vec<_>) = refused.into_iter().partition(is_helpful);
            if needed.is_empty() {
                let what = format!("{user} may do all that is needed, and not {}", helpful.join(", "));
                return Ok(Finding::fine(ABOUT, what + ", which makes a release cheaper").advising(advice));
            }
            Finding::problem(ABOUT, format!("{user} may not {}", needed.join(", ")), advice)
        }
        Some(odd) => return Err(error::odd_reply(odd, node.link.server())),
    })
}

/// A call of every command that we need, on keys and a channel as ours are.
fn calls(keys: Keys, needs: Needs) -> impl Iterator<Item = String> {
    let beside = match keys {
        Keys::Encoded => "ringfence:{doctor}:t",
        Keys::Verbatim => "ringfence@{doctor}:t",
    };
    let others = others(needs).map(|(_, call)| call.to_owned());
    let channel = if needs.cluster { beside } else { "ringfence:doctor" };
    let on_a_key = ON_A_KEY.iter().copied().chain(needs.compare_and_delete.map(right));
    let calls = on_a_key.map(|name| format!("{name} KEY")).chain(others);
    calls.map(move |call| call.replace("KEY", beside).replace("CHANNEL", channel))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::sentinel;

    fn package() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// All that this crate is made of, but for what an examination needs besides and what Sentinels are asked.
    fn sources() -> String {
        let files =
            [package().join("src"), package().join("src/lua")].map(|folder| fs::read_dir(folder).unwrap());
        let files =
            files.into_iter().flatten().map(|file| file.unwrap().path()).filter(|path| path.is_file());
        let others = ["access.rs", "access.lua", "checks.rs", "sentinel.rs"];
        let needed = files.filter(|path| !others.iter().any(|name| path.ends_with(name)));
        needed.map(|path| fs::read_to_string(path).unwrap()).collect()
    }

    /// Every command that the sources name.
    fn used() -> BTreeSet<String> {
        let sources = sources();
        let named = |opening, closing| {
            let rests = sources.split(opening).skip(1);
            rests.filter_map(move |rest: &str| rest.split(closing).next()).map(str::to_lowercase)
        };
        // The driver has names of its own for three of these, and a call of a script is put together by hand.
        let otherwise = ["evalsha", "script|load", "select", "subscribe"].map(str::to_owned);
        let named = named("call('", '\'').chain(named("cmd(\"", '"')).chain(otherwise);
        // The greeting needs no right.
        let with_its_subcommand = |name: String| match &*name {
            "cluster" => "cluster|slots".to_owned(),
            "pubsub" => "pubsub|shardnumsub".to_owned(),
            _ => name,
        };
        named.filter(|name| name != "hello").map(with_its_subcommand).collect()
    }

    #[test]
    fn the_rule_names_every_command_that_is_used_and_no_other() {
        let others = others(Needs { replicas: true, cluster: true, compare_and_delete: None });
        let helpful = [CompareAndDelete::Delifeq, CompareAndDelete::Delex].map(right);
        let named = ON_A_KEY.iter().copied().chain(others.map(|(name, _)| name)).chain(helpful);
        let named: BTreeSet<_> = named.map(str::to_owned).collect();
        assert_eq!(named, used());
    }

    #[test]
    fn the_rule_is_in_the_documentation() {
        let page = fs::read_to_string(package().join("../../docs/redis.md")).unwrap();
        let words: Vec<_> = page.split_whitespace().filter(|word| *word != "\\").collect();
        let for_replicas = format!("With `replicas=N` also `+{}`", FOR_REPLICAS.0);
        let usual = Needs { replicas: false, cluster: false, compare_and_delete: None };
        let [delifeq, delex] = [CompareAndDelete::Delifeq, CompareAndDelete::Delex].map(right);
        let for_newer_servers = format!("from Valkey 9 on also `+{delifeq}`, from Redis 8.4 on `+{delex}`");
        let for_a_cluster = FOR_A_CLUSTER.map(|(name, _)| format!("+{name}")).join(" ");
        for rule in [
            rule(Keys::Encoded, usual),
            for_replicas,
            for_a_cluster,
            for_newer_servers,
            TO_EXAMINE.map(|name| format!("+{name}")).join(" "),
            sentinel::RULE.to_owned(),
        ] {
            assert!(words.join(" ").contains(&rule), "docs/redis.md should say: {rule}");
        }
    }
}
