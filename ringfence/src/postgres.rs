//! PostgreSQL beyond leases: locks, row locks and fences in a transaction of your own, and tables that refuse whoever has no token.
//!
//! The feature `postgres` has it for transactions of `tokio-postgres`, `postgres-sqlx` for those of `sqlx` as well.
//!
//! ```no_run
//! # async fn charge(guard: &ringfence::Guard, client: &mut tokio_postgres::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use ringfence::postgres::fence_in;
//!
//! let mut tx = client.transaction().await?;
//! fence_in(&mut tx, "orders/42", guard.token()).await?;      // a guard of any backend; a stale one goes no further
//! tx.execute("UPDATE orders SET state = 'charged' WHERE id = 42", &[]).await?;
//! tx.commit().await?;                                        // the check and the work, or neither
//! # Ok(()) }
//! ```

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
