//! What would break the promises on a cluster.

use std::sync::Arc;

use ringfence_core::{Error, ErrorKind, Finding, Result};

use crate::backend::Client;
use crate::batch::TXN;
use crate::keys::Range;
use crate::ops;
use crate::proto::alarm_member::Type as Alarm;
use crate::proto::{
    AlarmRequest, AlarmResponse, MemberListRequest, MemberListResponse, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse,
};

/// How a member is.
pub(crate) const STATUS: &str = "/etcdserverpb.Maintenance/Status";
const ALARM: &str = "/etcdserverpb.Maintenance/Alarm";
const MEMBERS: &str = "/etcdserverpb.Cluster/MemberList";

/// The least that knows what we need: transactions within transactions, and watches that are numbered by the client.
const VERSION_MIN: Version = Version(3, 4, 0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64);

impl Version {
    /// From `3.4.23`, with anything behind it.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '.');
        let (major, minor) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let patch = parts.next()?;
        let digits = patch.find(|c: char| !c.is_ascii_digit()).map_or(patch, |end| &patch[..end]);
        Some(Self(major, minor, digits.parse().ok()?))
    }
}

/// A defect of etcd that matters to locks: what happens, and in which versions, each from the first that has it to the first that
/// does not.
struct Defect {
    what: &'static str,
    versions: &'static [(Version, Version)],
}

const DEFECTS: &[Defect] = &[
    Defect {
        what: "a member that has ceased to lead can end leases that are alive (etcd issue 15247): two may hold, and the fence \
               stops the first",
        versions: &[(Version(3, 4, 0), Version(3, 4, 31)), (Version(3, 5, 0), Version(3, 5, 13))],
    },
    Defect {
        what: "a read can show what was, after a member was paused (etcd issue 20418): a renewal may hide a loss until the next one",
        versions: &[(Version(3, 4, 20), Version(3, 4, 42)), (Version(3, 5, 0), Version(3, 5, 28))],
    },
    Defect {
        what: "a keep-alive can succeed for a lease that has ended: a renewal may hide a loss until the next one",
        versions: &[(Version(3, 4, 0), Version(3, 4, 38)), (Version(3, 5, 0), Version(3, 5, 23))],
    },
    Defect {
        what: "revisions, and with them tokens, can go back after a crash in a compaction (etcd issue 17780)",
        versions: &[(Version(3, 4, 0), Version(3, 4, 32)), (Version(3, 5, 0), Version(3, 5, 14))],
    },
    Defect {
        what: "members can come to hold different data (etcd 3.5.3 mended it)",
        versions: &[(Version(3, 5, 0), Version(3, 5, 3))],
    },
    Defect {
        what: "a member can crash when a client gives up a transaction that only reads (etcd issues 14110 and 14891)",
        versions: &[(Version(3, 5, 0), Version(3, 5, 7))],
    },
    Defect {
        what: "a leader whose clock was set back ends no leases until it has caught up (etcd issue 12291): locks of the dead stay \
               taken",
        versions: &[(Version(3, 4, 0), Version(3, 5, 0))],
    },
];

/// Errors for a member whose version does not know what we need.
pub(crate) fn refuse_what_is_too_old(status: &StatusResponse, shown: &str) -> Result<()> {
    if Version::parse(&status.version).is_some_and(|version| version >= VERSION_MIN) {
        return Ok(());
    }
    let Version(major, minor, _) = VERSION_MIN;
    Err(Error::new(
        ErrorKind::Unsupported,
        format!("it is etcd {:?}, and we need {major}.{minor} or later", status.version),
    )
    .about(shown))
}

/// Whether locks can be taken by a member, as far as it knows.
pub(crate) fn serves(status: &StatusResponse) -> bool {
    status.leader != 0 && !status.is_learner
}

/// Which cluster a member is of. Zero: it does not say so.
pub(crate) fn cluster(status: &StatusResponse) -> u64 {
    status.header.map_or(0, |header| header.cluster_id)
}

/// Looks at the cluster: three round trips, and one to each member of the URL, with its connection.
pub(crate) async fn examine(client: &Arc<Client>) -> Result<Vec<Finding>> {
    let statuses = client.servers.call_each(STATUS, &StatusRequest {}).await;
    if let Some((_, Err(error))) = statuses.first()
        && statuses.iter().all(|(_, status)| status.is_err())
    {
        return Err(error.clone());
    }
    let mut findings = Vec::new();
    for (member, status) in &statuses {
        match status {
            Ok(status) => findings.extend(of_member(member, status)),
            Err(error) => findings.push(Finding::warning(
                "member",
                error.to_string(),
                "bring it back: with each member that is gone the cluster bears one failure less",
            )),
        }
    }
    findings.extend(of_clusters(&statuses));
    let members: Result<MemberListResponse> = client.servers.call(MEMBERS, &MemberListRequest {}).await;
    findings.push(match members {
        Ok(members) => of_members(&members, statuses.len()),
        Err(error) => not_allowed("members", &error),
    });
    let alarms: Result<AlarmResponse> = client.servers.call(ALARM, &AlarmRequest {}).await;
    match alarms {
        Ok(alarms) => findings.extend(of_alarms(&alarms)),
        Err(error) => findings.push(not_allowed("alarms", &error)),
    }
    findings.extend(rights(client).await);
    if client.servers.has_no_use_for_our_login() {
        findings.push(Finding::warning(
            "login",
            "the cluster asks nobody who they are: whoever reaches it may change our locks",
            "have its authentication enabled (etcdctl auth enable), or leave the user and the password out of the URL",
        ));
    }
    Ok(findings)
}

/// Whether our user may read and write what everybody needs. The cluster looks whether a transaction may do what it would do before it looks
/// whether that comes to pass, and of this one nothing does: no key was ever created at that revision.
async fn rights(client: &Client) -> Option<Finding> {
    const ABOUT: &str = "rights";
    const NEVER: i64 = -1;
    let areas = client.keys.areas();
    let would = |area: &Range| [ops::range(ops::get_range(area)), ops::put(&area.begin, Vec::new(), 0)];
    let txn = TxnRequest {
        compare: vec![ops::created_at(&areas[0].begin, NEVER)],
        success: areas.iter().flat_map(would).collect(),
        failure: Vec::new(),
    };
    let asked: Result<TxnResponse> = client.servers.call(TXN, &txn).await;
    match asked {
        Ok(_) => Some(Finding::fine(ABOUT, "we may read and write what is ours")),
        // That is said as an alarm.
        Err(error) if error.kind() == ErrorKind::Full => None,
        Err(error) if error.kind() == ErrorKind::Refused => Some(Finding::problem(
            ABOUT,
            format!("we may not read and write all that begins with {}: {error}", client.keys.prefix()),
            "grant our role readwrite there, as docs/etcd.md says; one that is to have some locks only may do without",
        )),
        Err(error) => Some(not_allowed(ABOUT, &error)),
    }
}

fn not_allowed(about: &'static str, error: &Error) -> Finding {
    Finding::warning(about, format!("we could not look: {error}"), "look by etcdctl, as a user who may")
}

fn of_member(member: &str, status: &StatusResponse) -> Vec<Finding> {
    let mut findings = Vec::new();
    let version = Version::parse(&status.version);
    let has = |defect: &&Defect| {
        let is_in = |(from, to): &(Version, Version)| {
            version.is_some_and(|version| *from <= version && version < *to)
        };
        defect.versions.iter().any(is_in)
    };
    for defect in DEFECTS.iter().filter(has) {
        let what = format!("{member} is etcd {}: {}", status.version, defect.what);
        findings.push(Finding::problem("version", what, "use the last version of 3.5 or 3.6"));
    }
    if findings.is_empty() {
        findings.push(Finding::fine("version", format!("{member} is etcd {}", status.version)));
    }
    if status.leader == 0 {
        findings.push(Finding::problem(
            "leader",
            format!("{member} knows no leader: nothing can be locked or renewed by it"),
            "see whether a majority of the members run, and reach each other",
        ));
    }
    if status.is_learner {
        findings.push(Finding::problem(
            "role",
            format!("{member} is a learner, which serves no locks"),
            "leave it out of the URL, or promote it",
        ));
    }
    findings
}

/// Whether the members of the URL belong together.
fn of_clusters(statuses: &[(&str, Result<StatusResponse>)]) -> Option<Finding> {
    let mut known =
        statuses.iter().filter_map(|(member, status)| Some((member, cluster(status.as_ref().ok()?))));
    let (first, cluster) = known.next()?;
    let (other, _) = known.find(|(_, other)| *other != cluster)?;
    Some(Finding::problem(
        "cluster",
        format!(
            "{first} and {other} are of different clusters: what is locked in one of them nobody sees in the other"
        ),
        "name members of one cluster in the URL",
    ))
}

fn of_members(members: &MemberListResponse, named: usize) -> Finding {
    const ABOUT: &str = "members";
    let voting = members.members.iter().filter(|member| !member.is_learner).count();
    if voting < 3 {
        return Finding::warning(
            ABOUT,
            format!("the cluster has {voting} voting: it stands still as soon as one is gone"),
            "have three or five, on machines that do not fail together",
        );
    }
    if named < voting {
        return Finding::warning(
            ABOUT,
            format!("the URL names {named} of {voting}: without these nobody finds the others"),
            "name all of them in the URL",
        );
    }
    Finding::fine(
        ABOUT,
        format!("{voting}, and the URL names as many: it bears {} failures", (voting - 1) / 2),
    )
}

fn of_alarms(alarms: &AlarmResponse) -> Vec<Finding> {
    const ABOUT: &str = "alarms";
    let is = |kind: Alarm| alarms.alarms.iter().any(|alarm| alarm.alarm() == kind);
    let mut findings = Vec::new();
    if is(Alarm::Nospace) {
        findings.push(Finding::problem(
            ABOUT,
            "the database is full: nothing can be locked",
            "compact and defragment it, then disarm the alarm (etcdctl compact, defrag, alarm disarm); have it compact by itself \
             (--auto-compaction-retention)",
        ));
    }
    if is(Alarm::Corrupt) {
        findings.push(Finding::problem(
            ABOUT,
            "members hold different data: locks and tokens are not to be relied on",
            "stop what writes, and restore the cluster as the manual of etcd says",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::fine(ABOUT, "none"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use ringfence_core::Severity;

    use super::*;
    use crate::proto::{AlarmMember, Member};

    fn defects(version: &str) -> usize {
        let status = StatusResponse { version: version.to_owned(), leader: 1, ..StatusResponse::default() };
        of_member("one", &status).iter().filter(|finding| finding.severity == Severity::Problem).count()
    }

    #[test]
    fn the_defects_of_a_version_are_named() {
        for (version, expected) in [
            ("3.4.23", 5),
            ("3.4.45", 1),
            ("3.5.1", 6),
            ("3.5.6", 5),
            ("3.5.28", 0),
            ("3.6.0", 0),
            ("3.5.14-rc.1", 2),
        ] {
            assert_eq!(defects(version), expected, "{version}");
        }
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(Version::parse("3.4.23"), Some(Version(3, 4, 23)));
        assert_eq!(Version::parse("3.6.0-alpha.0"), Some(Version(3, 6, 0)));
        assert!(["", "3", "3.4", "three.4.1", "3.4.x"].iter().all(|text| Version::parse(text).is_none()));
    }

    #[test]
    fn what_a_member_lacks_is_a_problem() {
        let status =
            StatusResponse { version: "3.6.1".to_owned(), is_learner: true, ..StatusResponse::default() };
        let about: Vec<&str> = of_member("one", &status).iter().map(|finding| finding.about).collect();
        assert_eq!(about, ["version", "leader", "role"]);
    }

    #[test]
    fn too_few_members_are_a_warning() {
        let members = |count| MemberListResponse { members: vec![Member::default(); count] };
        assert_eq!(of_members(&members(1), 1).severity, Severity::Warning);
        assert_eq!(of_members(&members(3), 2).severity, Severity::Warning);
        let fine = of_members(&members(5), 5);
        assert_eq!(
            (fine.severity, fine.what.contains("bears 2 failures")),
            (Severity::Fine, true),
            "{fine:?}"
        );
    }

    #[test]
    fn alarms_are_problems() {
        let alarm = |kind: Alarm| AlarmMember { member_id: 1, alarm: kind.into() };
        let found = of_alarms(&AlarmResponse { alarms: vec![alarm(Alarm::Nospace), alarm(Alarm::Corrupt)] });
        assert!(found.len() == 2 && found.iter().all(|finding| finding.severity == Severity::Problem));
        assert_eq!(of_alarms(&AlarmResponse::default())[0].severity, Severity::Fine);
    }
}
