//! What would break the promises on the servers at hand.

use std::time::Duration;

use bytes::BytesMut;
use ringfence_core::{Finding, Result, Ttl};
use tokio::io::AsyncReadExt;

use crate::backend::Client;
use crate::error;
use crate::servers::{Servers, send_all};
use crate::session::Failure;
use crate::wire::{self, Answer, Code, Data, Greeting, Kind, Odd, Request};

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
    findings.extend(rights(client).await?);
    let servers = &client.sessions.servers;
    let mut marks = Vec::new();
    for (place, (host, port)) in servers.addresses().iter().enumerate() {
        let server = format!("{host}:{port}");
        match tokio::time::timeout(PATIENCE, say(servers, place, "srvr")).await {
            Ok(Ok(said)) => {
                findings.extend(of_server(&server, &said));
                let leads = matches!(mode(&said), Some("leader" | "standalone"));
                let root = tokio::time::timeout(PATIENCE, root_at(client, place)).await;
                marks.push(Mark { server, leads, root: root.ok().and_then(Result::ok) });
            }
            Ok(Err(why)) => findings.push(unreachable(&server, &why.to_string())),
            Err(_) => findings.push(unreachable(&server, "it does not answer in time")),
        }
    }
    findings.push(ensemble(&marks));
    Ok(findings)
}

/// What shows of which ensemble a server is.
struct Mark {
    server: String,
    /// Whether it leads, or is alone.
    leads: bool,
    /// The transaction that made the node below which all of ours is, and when, in its ensemble; zeros where there is none. `None`: it does
    /// not say.
    root: Option<(i64, i64)>,
}

/// The mark of the ensemble of a server, which asks its leader first, in a session that begins and ends with that.
async fn root_at(client: &Client, place: usize) -> Result<(i64, i64)> {
    let shortest = i32::try_from(client.sessions.range.0.as_millis()).expect("a day has fewer milliseconds");
    let (mut connection, _) = client.sessions.servers.greet(place, &Greeting::new_session(shortest)).await?;
    let (mut out, root) = (BytesMut::new(), client.keys.root());
    for (number, request) in (1..).zip([Request::sync(&root), Request::data(&root, false), Request::close()])
    {
        request.write(number, &mut out);
    }
    send_all(&mut connection.stream, &out).await.map_err(error::of_connecting)?;
    let _synced = connection.message().await?;
    let found = Answer::read(connection.message().await?).map_err(|Odd| error::odd())?;
    match found.outcome {
        Err(Code::NO_NODE) => Ok((0, 0)),
        found => {
            let stat = Data::read(found.map_err(error::refused)?).map_err(|Odd| error::odd())?.stat;
            Ok((stat.made_by, stat.made_at))
        }
    }
}

/// Whether the servers belong together, as far as they show it: one of an ensemble leads or is alone, and a node is made once in it.
fn ensemble(marks: &[Mark]) -> Finding {
    const ABOUT: &str = "ensemble";
    let mut leading = marks.iter().filter(|mark| mark.leads);
    let mut telling = marks.iter().filter(|mark| mark.root.is_some());
    let two_lead = leading.next().zip(leading.next());
    let two_have =
        telling.next().and_then(|first| Some((first, telling.find(|other| other.root != first.root)?)));
    match two_lead.or(two_have) {
        None => Finding::fine(ABOUT, "nothing shows that the servers of the URL are of more than one"),
        Some((one, other)) => Finding::problem(
            ABOUT,
            format!(
                "{} and {} are of different ensembles: what is locked in one of them nobody sees in the other",
                one.server, other.server
            ),
            "name the servers of one ensemble in the URL, and see that these are set up as one",
        ),
    }
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

/// Whether we may make nodes where all of ours are, and remove them; `None` where nobody has made anything yet.
///
/// The servers do all that is asked for in one transaction or nothing, and to remove a node twice cannot be done.
async fn rights(client: &Client) -> Result<Option<Finding>> {
    const ABOUT: &str = "rights";
    let session = client.sessions.any().await?;
    let keys = &client.keys;
    let pending = keys.areas().map(|area| {
        // No name of a lock is written so.
        let node = format!("{area}/%");
        let (make, remove) =
            (Request::create(&node, b"", keys.access(), Kind::Persistent), Request::delete(&node));
        (area, session.call(Request::all([&make, &remove, &remove])))
    });
    let mut found = None;
    for (area, pending) in pending {
        let answer = pending.answer().await.and_then(|answer| Ok(wire::all(answer)?));
        match answer.map_err(|failure| client.error(failure))? {
            Err((2, Code::NO_NODE)) => {
                found.get_or_insert_with(|| Finding::fine(ABOUT, "we may make and remove what is ours"));
            }
            Err((_, Code::NO_NODE)) => {}
            Err((_, Code::NO_AUTH)) => {
                return Ok(Some(Finding::problem(
                    ABOUT,
                    format!("we may not make and remove nodes below {area}"),
                    "log in as the user whose locks these are, or have that user allow it (setAcl)",
                )));
            }
            Err((_, code)) => {
                let error = client.error(Failure::Refused(code));
                return Ok(Some(Finding::warning(
                    ABOUT,
                    format!("we could not look below {area}: {error}"),
                    "see to that first",
                )));
            }
            Ok(_) => return Err(client.odd()),
        }
    }
    Ok(found)
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

/// What stands behind these words in what a server says of itself.
fn line<'a>(said: &'a str, begin: &str) -> Option<&'a str> {
    said.lines().find_map(|line| line.strip_prefix(begin))
}

/// Its role, by its own word.
fn mode(said: &str) -> Option<&str> {
    line(said, "Mode: ")
}

/// What a server says of itself in `srvr`.
fn of_server(server: &str, said: &str) -> Vec<Finding> {
    let Some(written) = line(said, "Zookeeper version: ") else {
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
    let mode = mode(said).unwrap_or("unknown");
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
    fn servers_of_two_ensembles_are_told_apart() {
        let mark = |leads, root| Mark { server: "one:2181".to_owned(), leads, root };
        let (here, there, nowhere) = (Some((7, 1000)), Some((7, 1001)), Some((0, 0)));
        for (marks, severity) in [
            (&[][..], Severity::Fine),
            (&[mark(false, None), mark(true, here), mark(false, here)], Severity::Fine),
            (&[mark(true, nowhere), mark(false, None), mark(true, None)], Severity::Problem),
            (&[mark(false, here), mark(false, None), mark(false, there)], Severity::Problem),
            (&[mark(false, nowhere), mark(false, here)], Severity::Problem),
        ] {
            assert_eq!(ensemble(marks).severity, severity);
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
