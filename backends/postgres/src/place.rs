//! Where we are: on which server, on which timeline of it, and how far its log had come.

use std::time::Duration;

use ringfence_core::{Error, ErrorKind, Finding};
use tokio_postgres::Row;

/// For how long a promotion is worth a warning: whoever held a lease before it has lost it, or its holder, long before.
const RECENT: Duration = Duration::from_hours(24);

/// What is looked at, in the findings.
const ABOUT: &str = "history";

/// A moment in a server's history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    server: i64,
    timeline: i64,
    /// How many bytes of its log were on the disk.
    flushed: i64,
    left: Option<Left>,
}

/// Where the data was before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Left {
    server: i64,
    timeline: i64,
    since: Duration,
}

impl Place {
    /// Of the row of `arrive()`.
    pub(crate) fn of(row: &Row) -> Self {
        let left = |(server, since): (i64, f64)| Left {
            server,
            timeline: row.get("left_timeline"),
            since: Duration::try_from_secs_f64(since).unwrap_or_default(),
        };
        let (left_server, left_for): (Option<i64>, Option<f64>) =
            (row.get("left_server"), row.get("left_for"));
        Self {
            server: row.get("server"),
            timeline: row.get("timeline"),
            flushed: row.get("flushed"),
            left: left_server.zip(left_for).map(left),
        }
    }

    /// Refuses a server that was overtaken by a standby of it that was promoted, since this process was at another place: what is
    /// granted there, nobody else knows of.
    pub(crate) fn refuse_the_past(&self, before: &Self) -> Result<(), Error> {
        if self.server == before.server && self.timeline < before.timeline {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!(
                    "it goes on as a primary, on timeline {}, although another one was promoted, on timeline {}: make it a \
                     standby of that one, or stop it",
                    self.timeline, before.timeline
                ),
            ));
        }
        Ok(())
    }

    /// What is wrong with coming here from another place, in the life of one process.
    pub(crate) fn setback(&self, before: &Self) -> Option<Finding> {
        let is_same_history = (self.server, self.timeline) == (before.server, before.timeline);
        let lost = before.flushed.saturating_sub(self.flushed);
        (is_same_history && lost > 0).then(|| {
            Finding::problem(
                ABOUT,
                format!(
                    "the server's log has gone back by {lost} bytes: it has lost what it had confirmed, leases and the count of the \
                     fencing tokens among it, which may be given out again"
                ),
                "see that fsync is on and that the disk keeps its word; let nobody who holds a token from before write, and \
                 do not put an old copy of the data in its place",
            )
        })
    }

    /// What has become of the server since our schema was made.
    pub(crate) fn examine(&self) -> Finding {
        let Some(Left { server, timeline, since }) = &self.left else {
            return Finding::fine(ABOUT, format!("on timeline {}, as ever since", self.timeline));
        };
        let days = since.as_secs() / 86_400;
        let (what, advice) = if *server == self.server {
            (
                format!(
                    "a standby was promoted {days} days ago, from timeline {timeline} to {}: if it followed asynchronously, the last \
                     leases before that were forgotten, and two may have held; numbers of tokens rise all the same",
                    self.timeline
                ),
                "have standbys follow synchronously (synchronous_standby_names), or see that what is written under a lock is fenced",
            )
        } else {
            (
                format!(
                    "the data came to another server {days} days ago: if it was a copy that lacked the last grants, their tokens \
                     were given out again"
                ),
                "see that nobody locked anything on the old server after the copy was made",
            )
        };
        if *since > RECENT { Finding::fine(ABOUT, what) } else { Finding::warning(ABOUT, what, advice) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::Command;

    use ringfence_servers::{Postgres, PostgresOptions};
    use tempfile::TempDir;

    use crate::link::tests::link;

    #[tokio::test]
    async fn a_primary_that_was_overtaken_is_refused() {
        let Some(mut server) = Postgres::start().await else { return };
        let mut standby = server.standby().await;
        let hosts = format!("127.0.0.1:{},127.0.0.1:{}", server.port(), standby.port());
        let link = link(&format!("postgres://postgres@{hosts}/postgres")).unwrap();
        link.connect().await.unwrap();
        server.kill();
        standby.promote().await;
        link.connect().await.unwrap();
        // Nobody told it that there is another one.
        server.restart().await;
        link.hang_up();
        link.connect().await.unwrap();
        let port = crate::link::tests::ask(&link, "SELECT pg_catalog.current_setting('port')").await;
        assert_eq!(port.unwrap(), standby.port().to_string());
        standby.kill();
        link.hang_up();
        let error = link.connect().await.unwrap_err();
        assert!(
            error.to_string().contains("on timeline 1, although another one was promoted, on timeline 2"),
            "{error}"
        );
    }

    fn copy(from: &Path, to: &Path) {
        let copied = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(copied.is_ok_and(|status| status.success()), "{} is copied", from.display());
    }

    #[tokio::test]
    async fn a_server_that_has_lost_what_it_confirmed_is_found() {
        let folder = TempDir::new().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let [data, old] = ["data", "old"].map(|name| folder.path().join(name));
        let Some(mut server) = PostgresOptions::new().data(&data).start().await else { return };
        let link = link(&server.url()).unwrap();
        link.connect().await.unwrap();
        server.kill();
        copy(&data, &old);
        server.restart().await;
        server.psql("CREATE TABLE numbers AS SELECT generate_series(1, 100000)").await;
        link.connect().await.unwrap();
        assert_eq!(link.history().await.unwrap().len(), 1, "a crash alone loses nothing");
        server.kill();
        fs::remove_dir_all(&data).unwrap();
        copy(&old, &data);
        server.restart().await;
        link.connect().await.unwrap();
        let findings = link.history().await.unwrap();
        assert!(findings[1].what.contains("it has lost what it had confirmed"), "{findings:?}");
    }
}
