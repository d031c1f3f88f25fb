//! PostgreSQL beyond leases: locks, row locks and fences in a transaction of your own, and tables that refuse whoever has no token.
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
