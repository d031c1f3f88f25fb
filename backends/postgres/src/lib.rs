//! PostgreSQL as a backend of Ringfence.

mod advisory;
mod backend;
mod checks;
mod error;
mod fence_table;
mod holder;
mod leases;
mod link;
mod options;
mod place;
mod records;
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
