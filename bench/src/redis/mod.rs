//! Ringfence on Redis, beside the bare commands and beside other people's locks, all on one server of the benchmark's own.

pub(crate) mod clients;
pub(crate) mod contended;
#[cfg(feature = "peers")]
pub(crate) mod crates;
pub(crate) mod held;
pub(crate) mod redlock;
pub(crate) mod server;
pub(crate) mod uncontended;
