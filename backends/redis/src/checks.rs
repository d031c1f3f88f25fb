//! What would break the promises on a server: all of it when somebody asks, and the worst of it once, after connecting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, Value, from_redis_value};
use ringfence_core::{Finding, Result, ServerClock, Severity, WallTime};

use crate::access;
use crate::backend::Client;
use crate::error;
use crate::link::{Call, Link};
use crate::route::Route;
use crate::scripts::number;

/// What follows where the clock is set back, because tokens are made of it.
const TOKENS_GO_BACK: &str = ", and after a restart without data tokens may go back";

const HOURS_OF_A_YEAR: u64 = 8766;

/// A clock before 2020 was never set.
const EARLIEST: Duration = Duration::from_hours(50 * HOURS_OF_A_YEAR);

/// Grant numbers are microseconds in 16 digits, up to here in the year 2286.
const LATEST: Duration = Duration::from_secs(9_999_999_999);

/// With more of its memory in use than this, in percent, a server that evicts nothing will soon refuse to grant.
const MEMORY_MAX: u64 = 90;

/// What was seen of each server's clock the last time.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    clocks: Mutex<HashMap<String, ServerClock>>,
}

impl Checks {
    /// Looks at everything: about ten round trips for each server that has locks, and a second for the clocks the first time.
    pub(crate) async fn examine(&self, client: &Client) -> Result<Vec<Finding>> {
        let nodes = Node::all(client).await?;
        for node in &nodes {
            let seen = self.clocks().contains_key(node.link.server());
            if !seen && let Some(reading) = read_clock(node).await? {
                self.clocks().insert(node.link.server().to_owned(), reading);
            }
        }
        let mut findings = Vec::new();
        for node in &nodes {
            let found = self.examine_one(node).await?;
            let is_one_of_several = client.servers.is_cluster();
            let placed =
                |finding: Finding| if is_one_of_several { finding.at(node.link.server()) } else { finding };
            findings.extend(found.into_iter().map(placed));
        }
        Ok(findings)
    }

    async fn examine_one(&self, node: &Node<'_>) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        match Info::ask(node).await? {
            Some(info) => {
                findings.extend(of_info(&info, node.client.servers.is_cluster()));
                let confirm = node.client.replicas.map_or(0, |replicas| u64::from(replicas.get()));
                findings.extend(of_settings(&info, &Settings::ask(node).await?, confirm));
            }
            None => findings.push(Finding::warning(
                "server",
                "we are not allowed to look at its version, role, memory and persistence",
                "allow +info and +config|get, or ask who runs the server about them",
            )),
        }
        findings.push(access::examine(node).await?);
        if let Route::BySentinels(sentinels) = node.link.route() {
            findings.extend(sentinels.examine().await);
        }
        let before = self.clocks().get(node.link.server()).copied();
        if let Some(before) = before {
            let watched = node.client.now().saturating_since(before.at());
            tokio::time::sleep(ServerClock::WATCH.saturating_sub(watched)).await;
            if let Some(now) = read_clock(node).await? {
                self.clocks().insert(node.link.server().to_owned(), now);
                findings.push(date(&now).unwrap_or_else(|| now.compare(&before, TOKENS_GO_BACK)));
            }
        }
        Ok(findings)
    }

    fn clocks(&self) -> MutexGuard<'_, HashMap<String, ServerClock>> {
        self.clocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server that is looked at, and for whom.
pub(crate) struct Node<'a> {
    pub(crate) client: &'a Client,
    pub(crate) link: Arc<Link>,
}

impl<'a> Node<'a> {
    /// Every server that has locks.
    async fn all(client: &'a Client) -> Result<Vec<Self>> {
        let links = client.servers.all().await?;
        Ok(links.into_iter().map(|link| Self { client, link }).collect())
    }
}

/// Says in the log what is wrong at a glance. Two round trips for each server, in the background, and none where nobody
/// listens.
pub(crate) async fn log_what_is_wrong(client: &Client) {
    if !tracing::enabled!(tracing::Level::WARN) {
        return;
    }
    // Whatever keeps us from asking, the first call says.
    let Ok(nodes) = Node::all(client).await else { return };
    for node in &nodes {
        let Ok(Some(info)) = Info::ask(node).await else { continue };
        let mut findings = of_info(&info, client.servers.is_cluster());
        findings.extend(persistence(&info, &Settings::default()));
        if let Ok(Some(now)) = read_clock(node).await {
            findings.extend(date(&now));
        }
        let server = node.link.server();
        for Finding { severity, about, what, advice, .. } in findings {
            match severity {
                Severity::Problem => tracing::warn!(server, about, advice, "{what}"),
                Severity::Warning => tracing::info!(server, about, advice, "{what}"),
                Severity::Fine => {}
            }
        }
    }
}

/// What a server says of itself, where it does.
#[derive(Debug, Default)]
pub(crate) struct Introduction {
    /// What tells it apart from every other one.
    pub(crate) run_id: Option<String>,
    /// What time it is there, in microseconds.
    pub(crate) time: Option<u64>,
}

/// Asks a server who it is: one round trip. For clients of one server.
pub(crate) async fn introduction(client: &Client) -> Result<Introduction> {
    let nodes = Node::all(client).await?;
    let [node] = &nodes[..] else { return Ok(Introduction::default()) };
    let info = Info::of(node, redis::cmd("INFO").arg("server")).await?;
    Ok(info.map_or_else(Introduction::default, |info| Introduction {
        run_id: info.run_id().map(str::to_owned),
        time: info.number("server_time_usec"),
    }))
}

/// The time of day by the first server that says it, in an order that is always the same; `None` where we may not ask.
pub(crate) async fn time(client: &Client) -> Result<Option<WallTime>> {
    let mut failed = None;
    for node in &Node::all(client).await? {
        match read_clock(node).await {
            Ok(reading) => return Ok(reading.map(|reading| reading.wall())),
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// Asks for something that the server may refuse to say, to us or to everybody: then `None`.
pub(crate) async fn ask(node: &Node<'_>, command: &Cmd) -> Result<Option<Value>> {
    match node.link.ask(Call::of(command)).await? {
        Ok((reply, _)) => Ok(Some(reply)),
        Err(error) if matches!(error.code(), Some("NOPERM" | "ERR")) => Ok(None),
        Err(error) => Err(error::of_call(error, node.link.server())),
    }
}

/// What a server says about itself, line by line.
#[derive(Debug)]
struct Info(HashMap<String, String>);

impl Info {
    async fn ask(node: &Node<'_>) -> Result<Option<Self>> {
        Self::of(node, &redis::cmd("INFO")).await
    }

    async fn of(node: &Node<'_>, command: &Cmd) -> Result<Option<Self>> {
        let Some(reply) = ask(node, command).await? else { return Ok(None) };
        let odd = error::odd_reply(&reply, node.link.server());
        from_redis_value::<String>(reply).map(|text| Some(Self::parse(&text))).map_err(|_| odd)
    }

    fn parse(text: &str) -> Self {
        let fields = text.lines().filter_map(|line| line.split_once(':'));
        Self(fields.map(|(field, value)| (field.to_owned(), value.trim_end().to_owned())).collect())
    }

    fn text(&self, field: &str) -> Option<&str> {
        self.0.get(field).map(String::as_str)
    }

    /// What a server draws for itself when it starts. Services that hide it say something that is the same for all.
    fn run_id(&self) -> Option<&str> {
        let is_drawn = |id: &&str| id.len() == 40 && id.bytes().any(|digit| digit != b'0');
        self.text("run_id").filter(is_drawn)
    }

    fn number(&self, field: &str) -> Option<u64> {
        self.text(field)?.parse().ok()
    }
}

/// The settings that a server does not say about itself; `None` where we may not look.
#[derive(Debug, Default)]
struct Settings {
    appendfsync: Option<String>,
    save: Option<String>,
    min_replicas: Option<u64>,
}

impl Settings {
    async fn ask(node: &Node<'_>) -> Result<Self> {
        Ok(Self {
            appendfsync: Self::one(node, "appendfsync").await?,
            save: Self::one(node, "save").await?,
            min_replicas: Self::one(node, "min-replicas-to-write").await?.and_then(|text| text.parse().ok()),
        })
    }

    async fn one(node: &Node<'_>, name: &str) -> Result<Option<String>> {
        let Some(reply) = ask(node, redis::cmd("CONFIG").arg("GET").arg(name)).await? else {
            return Ok(None);
        };
        Ok(from_redis_value::<HashMap<String, String>>(reply).ok().and_then(|mut pairs| pairs.remove(name)))
    }
}

/// What is wrong or right for certain by what the server says about itself.
fn of_info(info: &Info, in_cluster: bool) -> Vec<Finding> {
    [version(info), role(info), part_of(info).filter(|_| !in_cluster), eviction(info), disk(info)]
        .into_iter()
        .flatten()
        .collect()
}

fn of_settings(info: &Info, settings: &Settings, confirm: u64) -> Vec<Finding> {
    let forbidden = (settings.appendfsync.is_none() || settings.min_replicas.is_none()).then(|| {
        Finding::warning(
            "settings",
            "we are not allowed to look at appendfsync, save and min-replicas-to-write",
            "allow +config|get, or ask who runs the server about them",
        )
    });
    [persistence(info, settings), replicas(info, settings, confirm), forbidden]
        .into_iter()
        .flatten()
        .collect()
}

fn version(info: &Info) -> Option<Finding> {
    const ABOUT: &str = "version";
    let redis = info.text("redis_version")?;
    if let Some(valkey) = info.text("valkey_version") {
        return Some(Finding::fine(ABOUT, format!("Valkey {valkey}")));
    }
    let mut numbers = redis.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Some(if version >= (6, 2) {
        Finding::fine(ABOUT, format!("Redis {redis}"))
    } else {
        Finding::problem(
            ABOUT,
            format!("Redis {redis} does not know what our scripts use"),
            "use Redis 6.2 or later, or Valkey",
        )
    })
}

fn role(info: &Info) -> Option<Finding> {
    const ABOUT: &str = "role";
    Some(match info.text("role")? {
        "slave" => {
            let (host, port) =
                (info.text("master_host").unwrap_or("?"), info.text("master_port").unwrap_or("?"));
            Finding::problem(
                ABOUT,
                format!("it became a replica of {host}:{port}, on which no lock can be taken"),
                "connect to its primary, by its Sentinels where it has some",
            )
        }
        "master" => Finding::fine(ABOUT, "primary"),
        other => Finding::fine(ABOUT, other),
    })
}

/// Whether the server has only some of the keys.
fn part_of(info: &Info) -> Option<Finding> {
    const ABOUT: &str = "cluster";
    (info.text("cluster_enabled")? == "1").then(|| {
        Finding::problem(
            ABOUT,
            "it is one node of a cluster, which refuses every lock whose slot another node has",
            "connect to a server of its own for the locks",
        )
    })
}

fn eviction(info: &Info) -> Option<Finding> {
    const ABOUT: &str = "eviction";
    let policy = info.text("maxmemory_policy")?;
    let (max, used) = (info.number("maxmemory")?, info.number("used_memory")?);
    let percent = used.saturating_mul(100).checked_div(max);
    let what = match (policy, percent) {
        ("noeviction", Some(percent @ MEMORY_MAX..)) => {
            return Some(Finding::warning(
                ABOUT,
                format!("{percent} % of maxmemory is in use; from 100 % on no lock is granted"),
                "raise maxmemory, or look for what else is kept there",
            ));
        }
        ("noeviction", _) => {
            return Some(Finding::fine(ABOUT, "noeviction: nothing is forgotten to make room"));
        }
        (_, None) => {
            return Some(Finding::fine(
                ABOUT,
                format!("{policy}, but without a maxmemory nothing is evicted"),
            ));
        }
        (policy, Some(percent)) if policy.starts_with("volatile-") => format!(
            "maxmemory-policy is {policy}: to make room the server removes keys with a TTL, as every lock has, while they \
             are held, and then two hold one lock; {percent} % of maxmemory is in use"
        ),
        (policy, Some(percent)) => format!(
            "maxmemory-policy is {policy}: to make room the server removes locks that are held, so that two hold one, and \
             records with their marks, so that a fence forgets; {percent} % of maxmemory is in use"
        ),
    };
    Some(Finding::problem(
        ABOUT,
        what,
        "set maxmemory-policy to noeviction, or give the locks a server of their own",
    ))
}

/// Whether the server can still write to its disk, where it is meant to.
fn disk(info: &Info) -> Option<Finding> {
    let failed = ["aof_last_write_status", "rdb_last_bgsave_status"]
        .into_iter()
        .find(|field| info.text(field) == Some("err"))?;
    Some(Finding::problem(
        "disk",
        format!(
            "it could not write to its disk ({failed} is err), and takes no changes meanwhile unless it is told to"
        ),
        "look at the server's disk and its log",
    ))
}

/// What a restart forgets.
fn persistence(info: &Info, settings: &Settings) -> Option<Finding> {
    const ABOUT: &str = "persistence";
    const ADVICE: &str = "set appendonly to yes and appendfsync to always, or keep what must not be lost behind a fence \
                          elsewhere; for locks whose loss costs a double run only, this may be meant";
    let append_only = info.text("aof_enabled")? == "1";
    let what = match (append_only, settings.appendfsync.as_deref(), settings.save.as_deref()) {
        (true, Some("always"), _) => {
            return Some(Finding::fine(ABOUT, "appendfsync always: what was confirmed survives a power cut"));
        }
        (true, Some("everysec"), _) => {
            return Some(Finding::fine(
                ABOUT,
                "appendfsync everysec: a restart forgets nothing, a power cut the last second or two",
            ));
        }
        (true, Some(_), _) => {
            "appendfsync no: a power cut forgets whatever the kernel had not yet written, half a minute \
                               or more"
                .to_owned()
        }
        (true, None, _) => return Some(Finding::fine(ABOUT, "appendonly yes")),
        (false, _, Some("")) => {
            "nothing is written to disk: a restart ends every lease while its holder goes on until it \
                                 notices, and forgets every record with its mark"
                .to_owned()
        }
        (false, _, Some(save)) => format!(
            "snapshots only (save {save}): a restart forgets leases, records and marks since the last one, and brings \
             released leases back until their TTL"
        ),
        (false, _, None) => {
            "appendonly no: a restart forgets leases, records and marks, at the least those since the last \
                             snapshot"
                .to_owned()
        }
    };
    Some(Finding::warning(ABOUT, what, ADVICE))
}

/// What a failover forgets. `confirm` is how many have to confirm a lease.
fn replicas(info: &Info, settings: &Settings, confirm: u64) -> Option<Finding> {
    const ABOUT: &str = "replicas";
    if info.text("role")? != "master" {
        return None;
    }
    let replicas = info.number("connected_slaves")?;
    // Said only where some are asked for.
    let in_step = info.number("min_slaves_good_slaves");
    let wanted = settings.min_replicas.unwrap_or(u64::from(in_step.is_some()));
    Some(match (replicas, wanted) {
        (_, wanted) if wanted > in_step.unwrap_or(replicas) => Finding::problem(
            ABOUT,
            format!("min-replicas-to-write is {wanted}, and fewer are in step: it takes no changes"),
            "bring the replicas back, or lower min-replicas-to-write",
        ),
        (replicas, _) if replicas < confirm => Finding::problem(
            ABOUT,
            format!("{confirm} have to confirm a lease, and {replicas} follow: nothing is granted"),
            "bring the replicas back, or lower replicas= in the URL",
        ),
        (0, _) => Finding::fine(ABOUT, "none"),
        (replicas, 0) => Finding::warning(
            ABOUT,
            format!(
                "{replicas}, and min-replicas-to-write is 0: a primary that is cut off goes on granting, and what it \
                 granted is forgotten when a replica takes over"
            ),
            "set min-replicas-to-write to 1 and min-replicas-max-lag to a second or two, which makes that time shorter; \
             only a fence that is kept elsewhere makes it harmless",
        ),
        (replicas, wanted) => Finding::fine(
            ABOUT,
            format!(
                "{replicas}, of which {wanted} must be in step; a failover may still forget the grants of the last moments"
            ),
        ),
    })
}

/// Reads the clock; `None` where we may not.
async fn read_clock(node: &Node<'_>) -> Result<Option<ServerClock>> {
    let sent = node.client.now();
    let Some(reply) = ask(node, &redis::cmd("TIME")).await? else { return Ok(None) };
    let answered = node.client.now();
    let theirs = match &reply {
        Value::Array(parts) => match &parts[..] {
            [seconds, micros] => number(seconds).zip(number(micros)),
            _ => None,
        },
        _ => None,
    };
    let (seconds, micros) = theirs.ok_or_else(|| error::odd_reply(&reply, node.link.server()))?;
    let theirs = Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros));
    Ok(Some(ServerClock::new(sent, answered, theirs)))
}

/// Whether the server's clock was never set.
fn date(now: &ServerClock) -> Option<Finding> {
    let year = 1970 + now.theirs().as_secs() / 3600 / HOURS_OF_A_YEAR;
    (!(EARLIEST..LATEST).contains(&now.theirs())).then(|| {
        Finding::problem(
            ServerClock::ABOUT,
            format!("the server's clock says that it is {year}; tokens are made of it"),
            "set the server's clock, and stop the users of its locks for as long as the longest TTL meanwhile",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_what_it_has_drawn_and_by_nothing_that_others_say_as_well() {
        let id = "05a8e9a6e1f4ba4f3a9f4f0f4d9e0b6c7d8e9f0a";
        let zeros = "0".repeat(40);
        for (said, known) in [(id, Some(id)), (&zeros, None), ("0", None), ("", None)] {
            let info = Info::parse(&format!("# Server\r\nrun_id:{said}\r\ntcp_port:6379\r\n"));
            assert_eq!(info.run_id(), known, "{said:?}");
        }
        assert_eq!(Info::parse("# Server\r\n").run_id(), None);
    }
}
