//! Ringfence on PostgreSQL, by both of its recipes, beside the bare statements and beside other people's locks, all on one server
//! of the benchmark's own.

pub(crate) mod clients;
pub(crate) mod contended;
#[cfg(feature = "peers")]
pub(crate) mod crates;
pub(crate) mod held;
pub(crate) mod server;
pub(crate) mod uncontended;

use crate::network::subject::{Program, Subject};
use crate::network::whose::Whose;
use crate::report::Goal;

/// A way to have locks on PostgreSQL, and its limit: the same by bare statements.
struct Recipe {
    url: &'static str,
    ours: Subject,
    our_tasks: Subject,
    our_waiters: Subject,
    raw: Subject,
    /// `pgbench` with the script of the same name.
    limit: &'static str,
    script: &'static str,
    /// Pairs per second of 128 tasks, by those of `pgbench`.
    pairs_by_limit: Goal,
}

pub(crate) const LEASES_URL: &str = "postgres://postgres@HOSTS/postgres";
pub(crate) const ADVISORY_URL: &str = "postgres://postgres@HOSTS/postgres?recipe=advisory";

const RECIPES: [Recipe; 2] = [
    Recipe {
        url: LEASES_URL,
        ours: Subject::new("ringfence leases", Program::Ours(LEASES_URL)),
        our_tasks: Subject::new("ringfence leases, tasks", Program::OurTasks(LEASES_URL)),
        our_waiters: Subject::new("ringfence leases", Program::OurWaiters(LEASES_URL)),
        raw: Subject::new("upsert and release", Program::Here(Whose::PostgresLeases)),
        limit: "pgbench, upsert and release",
        script: clients::LEASES_SCRIPT,
        pairs_by_limit: Goal::AtLeast(3.0),
    },
    Recipe {
        url: ADVISORY_URL,
        ours: Subject::new("ringfence advisory", Program::Ours(ADVISORY_URL)),
        our_tasks: Subject::new("ringfence advisory, tasks", Program::OurTasks(ADVISORY_URL)),
        our_waiters: Subject::new("ringfence advisory", Program::OurWaiters(ADVISORY_URL)),
        raw: Subject::new("pg_try_advisory_lock", Program::Here(Whose::PostgresAdvisory)),
        limit: "pgbench, pg_try_advisory_lock",
        script: clients::ADVISORY_SCRIPT,
        pairs_by_limit: Goal::AtLeast(1.0),
    },
];

#[cfg(feature = "peers")]
const SQLX: Subject = Subject::new("sqlx's PgAdvisoryLock", Program::Here(Whose::Sqlx));
const DISTRIBUTED_LOCK: Subject =
    Subject::new("distributed-lock", Program::Rust("distributed_lock_postgres"));
const COMPARED: Goal = Goal::None("for comparison");
