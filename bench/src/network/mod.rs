//! Locks on servers: what the cases of every system share. A subject is a process, or several, beside the server, whose tasks
//! take locks as [`client::LockClient`] does, each a lock of its own or all the same.

pub(crate) mod client;
pub(crate) mod contender;
pub(crate) mod figures;
pub(crate) mod hold;
pub(crate) mod meter;
pub(crate) mod subject;
pub(crate) mod waiters;

use std::time::Duration;

/// The TTL of every lock, whoever takes it.
pub(crate) const TTL: Duration = Duration::from_secs(30);
