//! PostgreSQL as a backend of Ringfence: leases in rows, the server's own advisory locks, and locks and fences in a caller's
//! transaction.
//!
//! # Where things are
//! Every change is a function of one schema (`src/sql/`), made by [`setup()`] or by who connects first. A URL names the servers, of which
//! the primary is found, and the recipe:
//! - *leases*: a row for each lock, and rows for those who share it or stand in line. One statement arbitrates by the server's clock, and
//!   the token is a counter that it commits. Who has its turn is told by `NOTIFY`.
//! - `recipe=advisory`: session locks of the server, which ends a session that it has not heard of for a TTL. Tokens come from a
//!   sequence below a mark that is on the disk.
//!
//! # Round trips
//! | call | leases | `recipe=advisory` |
//! |---|---|---|
//! | connect | 4 | 4 |
//! | acquire, free | 1; of several at a time, 1 more for those that are not simply free | 1 |
//! | acquire, refused | 1 | 2 |
//! | acquire, in line | 1 to join it; half of one for the turn | 1 to join it; half of one for the turn, 1 to claim it |
//! | renew | 1 for every 128 leases | 1 for each TTL |
//! | release | 1 for every 128 leases; of several at a time, 1 more for those that hand on | 1 |
//! | downgrade, inspect, list; open, write or read a record | 1 | 1 |
//! | evict | 1 | 3 or more |
//!
//! Each connection takes one more to prepare a statement the first time. What a process asks at the same time goes together.
//!
//! # Faults
//! - **A connection that breaks** costs no lease of rows; with `reclaim=connection`, and with advisory locks, it is their end.
//! - **A lost answer.** An acquire is withdrawn before its error is returned, and cannot come back; a release says that its effect is
//!   unknown.
//! - **A promotion** begins a timeline, and numbers above all that were granted before, whatever the standby lacks.
//! - **Tables that somebody has locked** hold up everything for as long: statements end after 2.5 s without effect, guards are lost at
//!   their deadlines.

mod advisory;
mod backend;
mod checks;
mod error;
mod fence_table;
mod leases;
mod link;
mod options;
mod patience;
mod place;
mod records;
mod rows;
mod schema;
mod setup;
mod stream;
mod tls;
mod together;
pub mod transaction;

pub use backend::{PostgresBackend, guarantees};
pub use fence_table::fence_table;
pub use options::PARAMS;
pub use schema::Schema;
pub use setup::{setup, setup_script};
