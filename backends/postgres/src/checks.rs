//! What would break the promises on the server at hand.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ringfence_core::{Clock, Finding, Result, ServerClock};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::link::{Link, Sql};

/// With more of its connections in use than this, in percent, a server will soon refuse us.
const CONNECTIONS_MAX: i64 = 90;

/// What was seen of the server's clock the last time.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    clock: Mutex<Option<ServerClock>>,
}

impl Checks {
    /// Looks at everything: 4 round trips, and a second for the clock the first time.
    pub(crate) async fn examine(&self, link: &Link, clock: &dyn Clock) -> Result<Vec<Finding>> {
        let before = match self.last_clock() {
            Some(before) => before,
            None => read_clock(link, clock).await?,
        };
        let row = one(link, &Sql::new(LOOK, &[Type::TEXT]), link.schema().name()).await?;
        let mut findings = vec![
            Finding::fine("version", format!("PostgreSQL {}", row.get::<_, &str>("version"))),
            pooler(link),
            rights(&row),
            disk(&row),
            commit(&row),
            connections(&row),
            vacuum(&row),
        ];
        findings.extend(standbys(&row));
        findings.extend(link.history().await?);
        let watched = clock.now().saturating_since(before.at());
        tokio::time::sleep(ServerClock::WATCH.saturating_sub(watched)).await;
        let now = read_clock(link, clock).await?;
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        findings.push(now.compare(&before, ""));
        Ok(findings)
    }

    fn last_clock(&self) -> Option<ServerClock> {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the server says of itself to anybody.
const LOOK: &str = "
    SELECT pg_catalog.current_setting('server_version') AS version,
        pg_catalog.current_setting('fsync') AS fsync,
        pg_catalog.current_setting('full_page_writes') AS full_page_writes,
        pg_catalog.current_setting('synchronous_commit') AS synchronous_commit,
        pg_catalog.current_setting('synchronous_standby_names') AS synchronous_standby_names,
        pg_catalog.current_setting('autovacuum') AS autovacuum,
        -- Those that could be promoted: no subscription, and nobody who makes a copy, which answers and repeats nothing. A role that may
        -- not see which they are sees that they are there.
        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_replication f
            WHERE f.state IS DISTINCT FROM 'backup' AND (f.replay_lsn IS NOT NULL OR f.reply_time IS NULL) AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = f.pid AND s.slot_type = 'logical'
            )) AS standbys,
        (SELECT pg_catalog.sum(d.numbackends) FROM pg_catalog.pg_stat_database d)::bigint AS connections,
        pg_catalog.current_setting('max_connections')::bigint
            - pg_catalog.current_setting('superuser_reserved_connections')::bigint AS connections_max,
        current_user::text AS role,
        (SELECT pg_catalog.string_agg(p.oid::regprocedure::text, ', ' ORDER BY p.proname) FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = pg_catalog.to_regnamespace($1)
                AND NOT pg_catalog.has_function_privilege(p.oid, 'EXECUTE')) AS closed";

const CLOCK: &str = "SELECT (extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000)::bigint AS micros";

async fn one(link: &Link, sql: &Sql, param: &str) -> Result<Row> {
    let params: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[&param];
    let rows = link.query(sql, params).await?;
    Ok(rows.into_iter().next().expect("a SELECT without FROM has a row"))
}

pub(crate) async fn read_clock(link: &Link, clock: &dyn Clock) -> Result<ServerClock> {
    let sql = Sql::new(CLOCK, &[]);
    // So that nothing but the question is between the two readings of ours.
    link.connect().await?;
    let sent = clock.now();
    let rows = link.query(&sql, &[]).await?;
    let answered = clock.now();
    let micros: i64 = rows[0].get("micros");
    Ok(ServerClock::new(sent, answered, Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
}

fn pooler(link: &Link) -> Finding {
    const ABOUT: &str = "pooler";
    if !link.session().is_some_and(|session| session.is_pooled) {
        return Finding::fine(ABOUT, "none");
    }
    Finding::warning(
        ABOUT,
        "a pooler stands between us and the server, which lends a session for a statement: nobody who waits can be woken, so \
         they ask again and again, and advisory locks cannot be held",
        "connect to the server itself for locks; they need one connection of it for each process, not one for each lock",
    )
}

fn rights(row: &Row) -> Finding {
    const ABOUT: &str = "rights";
    let role: &str = row.get("role");
    match row.get::<_, Option<&str>>("closed") {
        None => Finding::fine(ABOUT, format!("the role {role:?} may call all of our functions")),
        Some(closed) => Finding::problem(
            ABOUT,
            format!("the role {role:?} may not call {closed}"),
            format!(
                "have the schema's owner run `ringfence setup URL --grant-to {role}`, again where it was run before: a newer \
                 version of the schema has functions that nobody was let in to"
            ),
        ),
    }
}

fn disk(row: &Row) -> Finding {
    const ABOUT: &str = "disk";
    for (setting, so) in [
        ("fsync", "a power cut can damage the data, or take back what was confirmed"),
        ("full_page_writes", "a power cut in the middle of a write can leave damaged data"),
    ] {
        if row.get::<_, &str>(setting) != "on" {
            return Finding::problem(
                ABOUT,
                format!("{setting}=off: {so}, locks and the count of the fencing tokens among it"),
                format!("set {setting} to on"),
            );
        }
    }
    Finding::fine(ABOUT, "what is confirmed is on it")
}

fn commit(row: &Row) -> Finding {
    const ABOUT: &str = "commit";
    match row.get("synchronous_commit") {
        "off" => Finding::fine(
            ABOUT,
            "synchronous_commit=off: what gives a token or raises a mark waits for the disk all the same, so that tokens rise \
             through a crash; what else your transactions confirm may be lost in one",
        ),
        "local" if !row.get::<_, &str>("synchronous_standby_names").is_empty() => Finding::warning(
            ABOUT,
            "synchronous_commit=local: grants do not wait for the synchronous standbys, whose promotion may forget the last ones",
            "ALTER ROLE … SET synchronous_commit = on for the role that locks",
        ),
        other => Finding::fine(ABOUT, format!("synchronous_commit={other}")),
    }
}

fn standbys(row: &Row) -> Option<Finding> {
    const ABOUT: &str = "standbys";
    let count: i64 = row.get("standbys");
    let names: &str = row.get("synchronous_standby_names");
    if count == 0 && names.is_empty() {
        return None;
    }
    Some(if names.is_empty() {
        Finding::warning(
            ABOUT,
            format!(
                "{count} follow asynchronously: if one is promoted, the last grants are forgotten and two may hold one lock; numbers \
                 of tokens rise all the same, so that a fence stops the first"
            ),
            "name one that has to confirm (synchronous_standby_names), or see that what is written under a lock is fenced",
        )
    } else {
        Finding::fine(ABOUT, format!("{count} follow, and {names:?} have to confirm"))
    })
}

fn connections(row: &Row) -> Finding {
    const ABOUT: &str = "connections";
    let (used, most): (i64, i64) = (row.get("connections"), row.get("connections_max"));
    let what = format!("{used} of {most} are in use");
    if used * 100 < most * CONNECTIONS_MAX {
        return Finding::fine(ABOUT, what);
    }
    Finding::warning(
        ABOUT,
        format!("{what}: who comes too late can neither lock nor renew"),
        "raise max_connections, or see who has so many; a process of ours needs three at most",
    )
}

fn vacuum(row: &Row) -> Finding {
    const ABOUT: &str = "vacuum";
    if row.get::<_, &str>("autovacuum") == "on" {
        return Finding::fine(ABOUT, "autovacuum is on");
    }
    Finding::warning(
        ABOUT,
        "autovacuum=off: nobody removes what is no longer needed, and locking becomes slower and slower",
        "set autovacuum to on, or have somebody vacuum our tables",
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use ringfence_core::{Severity, SystemClock};
    use ringfence_servers::{Pgbouncer, Postgres, PostgresOptions, WallClock};

    use super::*;
    use crate::link::tests::link;

    struct Doctor {
        link: Arc<Link>,
        checks: Checks,
    }

    impl Doctor {
        fn of(url: &str) -> Self {
            Self { link: link(url).unwrap(), checks: Checks::default() }
        }

        async fn examine(&self) -> Vec<Finding> {
            self.checks.examine(&self.link, &SystemClock::new()).await.unwrap()
        }

        /// Asserts that one thing is found so bad, with these words.
        async fn finds(&self, about: &str, severity: Severity, said: &str) {
            let findings = self.examine().await;
            let is_it = |finding: &Finding| {
                (finding.about, finding.severity) == (about, severity) && finding.what.contains(said)
            };
            assert!(findings.iter().any(is_it), "no {severity} of {about} with {said:?}: {findings:#?}");
        }
    }

    #[tokio::test]
    async fn a_server_as_it_comes_is_fine() {
        let Some(server) = Postgres::start().await else { return };
        let findings = Doctor::of(&server.url()).examine().await;
        let about: Vec<_> = findings.iter().map(|finding| (finding.about, finding.severity)).collect();
        let all =
            ["version", "pooler", "rights", "disk", "commit", "connections", "vacuum", "history", "clock"];
        assert_eq!(about, all.map(|about| (about, Severity::Fine)), "{findings:#?}");
    }

    #[tokio::test]
    async fn settings_that_forget_are_found() {
        for (setting, about, severity, said) in [
            ("fsync", "disk", Severity::Problem, "fsync=off"),
            ("full_page_writes", "disk", Severity::Problem, "full_page_writes=off"),
            ("synchronous_commit", "commit", Severity::Fine, "waits for the disk all the same"),
            ("autovacuum", "vacuum", Severity::Warning, "autovacuum=off"),
        ] {
            let Some(server) = PostgresOptions::new().set(setting, "off").start().await else { return };
            Doctor::of(&server.url()).finds(about, severity, said).await;
        }
    }

    #[tokio::test]
    async fn a_pooler_is_found() {
        let Some(server) = Postgres::start().await else { return };
        let Some(pooler) = Pgbouncer::start(&server, "transaction").await else { return };
        Doctor::of(&pooler.url()).finds("pooler", Severity::Warning, "nobody who waits can be woken").await;
    }

    #[tokio::test]
    async fn a_right_that_is_missing_is_found() {
        let Some(server) = Postgres::start().await else { return };
        server.psql("CREATE ROLE ann LOGIN").await;
        crate::setup(&ringfence_core::BackendUrl::parse(&server.url()).unwrap(), Some("ann")).await.unwrap();
        let doctor = Doctor::of(&server.url_of("ann"));
        doctor.finds("rights", Severity::Fine, "may call all").await;
        server.psql("REVOKE EXECUTE ON FUNCTION ringfence.floor() FROM ann").await;
        doctor.finds("rights", Severity::Problem, "may not call ringfence.floor()").await;
    }

    #[tokio::test]
    async fn connections_that_run_out_are_found() {
        let options = PostgresOptions::new().set("max_connections", "8");
        let Some(server) = options.set("superuser_reserved_connections", "1").start().await else { return };
        let doctor = Doctor::of(&server.url());
        doctor.finds("connections", Severity::Fine, "of 7 are in use").await;
        let mut sessions: Vec<_> = (0..6).map(|_| server.session()).collect();
        for session in &mut sessions {
            session.ask("SELECT 1").await;
        }
        doctor.finds("connections", Severity::Warning, "7 of 7 are in use").await;
    }

    #[tokio::test]
    async fn standbys_and_their_promotion_are_found() {
        let Some(mut server) = Postgres::start().await else { return };
        let doctor = Doctor::of(&server.url());
        doctor.link.connect().await.unwrap();
        let standby = server.standby().await;
        doctor.finds("standbys", Severity::Warning, "1 follow asynchronously").await;
        server.psql("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        server.psql("ALTER SYSTEM SET synchronous_commit = 'local'").await;
        server.psql("SELECT pg_reload_conf()").await;
        doctor.link.hang_up();
        doctor.finds("standbys", Severity::Fine, "have to confirm").await;
        doctor.finds("commit", Severity::Warning, "do not wait for the synchronous standbys").await;
        server.kill();
        standby.promote().await;
        let doctor = Doctor::of(&standby.url());
        doctor.finds("history", Severity::Warning, "promoted 0 days ago, from timeline 1 to 2").await;
        standby.psql("UPDATE ringfence.histories SET since = since - interval '30 days'").await;
        doctor.finds("history", Severity::Fine, "promoted 30 days ago").await;
    }

    /// Who makes a copy, and who subscribes to changes, cannot be promoted, and forgets nobody's grant.
    #[tokio::test]
    async fn who_only_takes_from_the_log_is_no_standby() {
        let options = PostgresOptions::new().set("wal_level", "logical");
        let Some(server) = options.start().await else { return };
        server.psql("CREATE PUBLICATION everything FOR ALL TABLES").await;
        server.psql("SELECT pg_create_logical_replication_slot('reader', 'pgoutput')").await;
        let reader = format!(
            "CREATE SUBSCRIPTION reader CONNECTION '{}' PUBLICATION everything WITH (create_slot = false, copy_data = false)",
            server.socket_url()
        );
        server.psql("CREATE DATABASE copy").await;
        let mut copy = server.session_by(&server.socket_url().replace("/postgres?", "/copy?"));
        copy.ask(&reader).await;
        let folder = tempfile::tempdir().unwrap();
        let mut backup = Command::new(server.program("pg_basebackup"));
        backup.args(["--max-rate=32", "--checkpoint=fast", "-d", &server.socket_url(), "-D"]);
        let mut backup = backup.arg(folder.path().join("data")).spawn().unwrap();
        let take =
            "SELECT string_agg(application_name, ',' ORDER BY application_name) FROM pg_stat_replication
            WHERE state = 'streaming' AND reply_time IS NOT NULL OR state = 'backup'";
        while server.psql(take).await != "pg_basebackup,pg_basebackup,reader" {
            assert!(backup.try_wait().unwrap().is_none(), "it takes minutes");
        }
        let findings = Doctor::of(&server.url()).examine().await;
        backup.kill().unwrap();
        backup.wait().unwrap();
        assert!(findings.iter().all(|finding| finding.about != "standbys"), "{findings:#?}");
    }

    #[tokio::test]
    async fn data_on_another_server_is_found() {
        let Some(server) = Postgres::start().await else { return };
        let doctor = Doctor::of(&server.url());
        doctor.link.connect().await.unwrap();
        server.psql("UPDATE ringfence.histories SET server = 42").await;
        doctor.finds("history", Severity::Warning, "came to another server").await;
    }

    #[tokio::test]
    async fn a_clock_that_is_set_is_found() {
        let Some(clock) = WallClock::new() else { return };
        let Some(server) = PostgresOptions::new().clock(&clock).start().await else { return };
        let doctor = Doctor::of(&server.url());
        doctor.finds("clock", Severity::Fine, "went as ours did").await;
        clock.step(30);
        doctor.finds("clock", Severity::Problem, "set forward by 30 s").await;
        clock.step(0);
        doctor.finds("clock", Severity::Problem, "set back by 30 s").await;
    }
}
