//! What would break the promises on the servers at hand.

use std::time::Duration;

use ringfence_core::{Finding, Result, Ttl};
use tokio::io::AsyncReadExt;

use crate::backend::Client;
use crate::servers::{Servers, send_all};
use crate::wire::{self, Code, Request};

/// How long a server may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(2);

/// The most that a server says of itself, in bytes.
const SAID_MAX: u64 = 64 * 1024;

/// Below which version a server is too old to know containers well, and what its makers have ceased to mend.
const OLDEST: Version = Version([3, 6, 0]);

/// Defects by which an ensemble can lose what it agreed to, and the version that has each of them no more.
const LOSSES: [(&str, Version); 3] = [
    ("ZOOKEEPER-4785", Version([3, 8, 5])),
    ("ZOOKEEPER-4394", Version([3, 9, 3])),
    ("ZOOKEEPER-4925", Version([3, 9, 4])),
];

/// What everybody is, in a rule of access.
const ANYONE: (&str, &str) = ("world", "anyone");

/// To change, to make and to delete, of the rights in a rule of access.
const RIGHTS_TO_CHANGE: i32 = 2 | 4 | 8;

pub(crate) async fn examine(client: &Client) -> Result<Vec<Finding>> {
    let mut findings = vec![access(client).await?, range(client.sessions.range)];
    let servers = &client.sessions.servers;
    for (place, (host, port)) in servers.addresses().iter().enumerate() {
        let server = format!("{host}:{port}");
        match tokio::time::timeout(PATIENCE, say(servers, place, "srvr")).await {
            Ok(Ok(said)) => findings.extend(of_server(&server, &said)),
            Ok(Err(why)) => findings.push(unreachable(&server, &why.to_string())),
            Err(_) => findings.push(unreachable(&server, "it does not answer in time")),
        }
    }
    Ok(findings)
}

fn unreachable(server: &str, why: &str) -> Finding {
    Finding::warning(
        "server",
        format!("{server} cannot be reached ({why}): the ensemble bears one failure less"),
        "see whether it runs, and whether the URL names it",
    )
}

/// Who may remove our locks.
async fn access(client: &Client) -> Result<Finding> {
    let session = client.sessions.any().await?;
    let root = client.keys.root();
    let rules = match session.call(Request::acl(&root)).answer().await {
        Ok(rules) => wire::acl(rules).map_err(|_| client.odd())?,
        Err(failure) if failure.is(Code::NO_NODE) => {
            return Ok(Finding::fine(
                "access",
                format!("there is no {root} yet: nobody has held a lock there"),
            ));
        }
        Err(failure) if failure.is(Code::NO_AUTH) => {
            return Ok(Finding::warning(
                "access",
                format!("we may not see who may change {root}"),
                "log in as the user whose locks these are",
            ));
        }
        Err(failure) => return Err(client.error(failure)),
    };
    let is_open = |(rights, scheme, id): &(i32, String, String)| {
        (scheme.as_str(), id.as_str()) == ANYONE && rights & RIGHTS_TO_CHANGE != 0
    };
    Ok(if rules.iter().any(is_open) {
        Finding::warning(
            "access",
            format!("everybody who reaches the servers may remove the locks below {root}"),
            "log in, zookeeper://user:password@host, below a path that nobody has used before: what we make there is for that \
             user alone",
        )
    } else {
        Finding::fine("access", format!("{root} is not everybody's to change"))
    })
}

/// Whether the usual TTL is among those that the servers grant.
fn range((shortest, longest): (Ttl, Ttl)) -> Finding {
    let what = format!("the servers grant sessions, and so TTLs, of {shortest} to {longest}");
    if (shortest..=longest).contains(&Ttl::DEFAULT) {
        return Finding::fine("sessions", what);
    }
    Finding::warning(
        "sessions",
        format!("{what}: the usual one of {} is not among them", Ttl::DEFAULT),
        "name a TTL that is, or change minSessionTimeout and maxSessionTimeout of the servers",
    )
}

/// What a server says of itself in `srvr`.
fn of_server(server: &str, said: &str) -> Vec<Finding> {
    let line = |begin: &str| said.lines().find_map(|line| line.strip_prefix(begin));
    let Some(written) = line("Zookeeper version: ") else {
        let first = said.lines().next().unwrap_or_default();
        let what = if first.contains("whitelist") {
            format!(
                "{server} does not say its version and its role: srvr is not in its 4lw.commands.whitelist"
            )
        } else {
            format!("{server} serves nobody right now, or says so in words that we do not know")
        };
        return vec![Finding::warning("server", what, "see its log, and allow srvr")];
    };
    let mode = line("Mode: ").unwrap_or("unknown");
    let role = match mode {
        "standalone" => Finding::warning(
            "role",
            format!(
                "{server} is alone: when it or its disk is lost, locks, records and the order of tokens are"
            ),
            "use an ensemble of three servers, or of five",
        ),
        _ => Finding::fine("role", format!("{server} is a {mode}")),
    };
    vec![version(server, written, mode), role]
}

fn version(server: &str, written: &str, mode: &str) -> Finding {
    let Some(version) = Version::parse(written) else {
        return Finding::warning(
            "version",
            format!("{server} says a version that we do not understand"),
            "see whether it is a ZooKeeper server",
        );
    };
    let Version([major, minor, patch]) = version;
    let what = format!("{server} is ZooKeeper {major}.{minor}.{patch}");
    if version < OLDEST {
        return Finding::problem(
            "version",
            format!("{what}, which is older than what we were tried with"),
            "upgrade it to 3.9.4 or later",
        );
    }
    let losses: Vec<&str> =
        LOSSES.iter().filter(|(_, mended)| version < *mended).map(|(name, _)| *name).collect();
    if losses.is_empty() || mode == "standalone" {
        return Finding::fine("version", what);
    }
    Finding::warning(
        "version",
        format!("{what}: an ensemble of it may lose what it agreed to, by {}", losses.join(", ")),
        "upgrade it to 3.9.4 or later",
    )
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version([u32; 3]);

impl Version {
    /// From `3.8.0-5a02a05eddb59aee6ac762f7ea82e92a68eb9c0f, built on …`.
    fn parse(written: &str) -> Option<Self> {
        let numbers = written.split(['-', ',', ' ']).next()?;
        let mut parts = numbers.splitn(3, '.').map(str::parse);
        Some(Self([parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?]))
    }
}

/// What a server says to one of its words of four letters.
async fn say(servers: &Servers, place: usize, word: &str) -> std::io::Result<String> {
    let mut stream = servers.open(place).await?;
    send_all(&mut stream, word.as_bytes()).await?;
    let mut said = Vec::new();
    stream.take(SAID_MAX).read_to_end(&mut said).await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

#[cfg(test)]
mod tests {
    use ringfence_core::Severity;

    use super::*;

    const SAID: &str = "Zookeeper version: 3.8.0-5a02a05, built on 2022-02-25 08:49 UTC\nLatency min/avg/max: 0/0.0/0\nMode: ";

    #[test]
    fn what_a_server_says_is_judged() {
        let judged = |said: &str| -> Vec<_> {
            of_server("one:2181", said).into_iter().map(|finding| (finding.about, finding.severity)).collect()
        };
        assert_eq!(
            judged(&format!("{SAID}follower\n")),
            [("version", Severity::Warning), ("role", Severity::Fine)]
        );
        assert_eq!(
            judged(&format!("{SAID}standalone")),
            [("version", Severity::Fine), ("role", Severity::Warning)]
        );
        let newer = SAID.replace("3.8.0", "3.9.4");
        assert_eq!(
            judged(&format!("{newer}leader")),
            [("version", Severity::Fine), ("role", Severity::Fine)]
        );
        let older = SAID.replace("3.8.0", "3.4.14");
        assert_eq!(judged(&format!("{older}leader"))[0], ("version", Severity::Problem));
        for odd in
            ["", "srvr is not executed because it is not in the whitelist.", "HTTP/1.1 400 Bad Request"]
        {
            assert_eq!(judged(odd), [("server", Severity::Warning)], "{odd}");
        }
    }

    #[test]
    fn the_losses_that_a_version_can_have_are_named() {
        let finding = version("one", "3.9.3-x", "leader");
        assert!(finding.what.contains("4925") && !finding.what.contains("4394"), "{finding:?}");
    }

    #[test]
    fn a_range_without_the_usual_ttl_is_said() {
        let ttl = |seconds| Ttl::new(Duration::from_secs(seconds)).unwrap();
        assert_eq!(range((ttl(4), ttl(40))).severity, Severity::Fine);
        assert_eq!(range((ttl(1), ttl(10))).severity, Severity::Warning);
    }
}
