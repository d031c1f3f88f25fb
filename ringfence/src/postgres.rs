//! PostgreSQL beyond leases: locks, row locks and fences in a transaction of your own, tables that refuse whoever has no token,
//! and the schema that all of it needs.
//!
//! The feature `postgres` has it for transactions of `tokio-postgres`, `postgres-sqlx` for those of `sqlx` as well.
//!
//! See [`ringfence_postgres::transaction`] for how they are used.

pub use ringfence_postgres::Schema;
pub use ringfence_postgres::transaction::*;

use crate::{Result, connect};

/// Fences a table, by the server and the role of a URL as [`Locks::connect`](crate::Locks::connect) takes it: see
/// [`ringfence_postgres::fence_table`].
///
/// Errors with [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for a URL that is not PostgreSQL's.
///
/// # Cancel safety
/// Dropped, the table is fenced or not. Calling it again says so.
pub async fn fence_table(url: &str, table: &str, key: &str) -> Result<String> {
    ringfence_postgres::fence_table(&connect::of_postgres(url)?, table, key).await
}

/// Makes the schema that locks on a PostgreSQL server need, as the role of the URL, or brings it to the version of this program;
/// and lets another role use it, which may do nothing else there. What is in order stays as it is. Returns the schema's name.
///
/// Nobody has to call this where the role that locks may create a schema itself: it does so when it first connects.
///
/// Errors with [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) for a URL of anything else, with
/// [`Refused`](crate::ErrorKind::Refused) where the URL's role may not do it, with
/// [`InvalidRequest`](crate::ErrorKind::InvalidRequest) where there is no such role to grant to, with
/// [`Unsupported`](crate::ErrorKind::Unsupported) where a newer program has made the schema, and with
/// [`Unavailable`](crate::ErrorKind::Unavailable) where the server cannot be reached.
///
/// # Cancel safety
/// Dropped, the schema is made or not, as a whole; the rights may be given in part. Calling it again does the rest.
pub async fn setup(url: &str, grant_to: Option<&str>) -> Result<String> {
    ringfence_postgres::setup(&connect::of_postgres(url)?, grant_to).await
}

/// What [`setup`] does where there is no schema yet, as a script for `psql`. Nothing is connected to.
///
/// Errors with [`ErrorKind::InvalidUrl`](crate::ErrorKind::InvalidUrl) and, for what is no role, with
/// [`InvalidRequest`](crate::ErrorKind::InvalidRequest).
///
/// ```
/// let script = ringfence::postgres::setup_script("postgres://host/db?schema=locks", Some("app"))?;
/// assert!(script.contains(r#"GRANT USAGE ON SCHEMA "locks" TO "app";"#), "{script}");
/// # Ok::<(), ringfence::Error>(())
/// ```
pub fn setup_script(url: &str, grant_to: Option<&str>) -> Result<String> {
    ringfence_postgres::setup_script(&connect::of_postgres(url)?, grant_to)
}
