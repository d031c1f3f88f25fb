//! Ringfence on Redis, beside the bare commands and beside other people's locks, all on one server of the benchmark's own.

pub(crate) mod clients;
pub(crate) mod contended;
pub(crate) mod contender;
#[cfg(feature = "peers")]
mod crates;
pub(crate) mod held;
pub(crate) mod redlock;
mod server;
mod subject;
pub(crate) mod uncontended;

use std::time::Duration;

/// The TTL of every lock, whoever takes it.
const TTL: Duration = Duration::from_secs(30);
