//! ZooKeeper as a backend of Ringfence.

mod backend;
mod checks;
mod error;
mod keys;
mod line;
mod options;
mod place;
mod records;
mod servers;
mod session;
mod sessions;
mod task;
mod view;
mod wire;

pub use backend::{ZooKeeperBackend, guarantees};
pub use options::PARAMS;
