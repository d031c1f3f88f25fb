//! What people want who ask for a lock, each behind a fence and on every backend.
//!
//! Each stands on locks and records alone, in names of its own that begin with the pattern's: what a pattern does under
//! `report` never meets a lock that you call `report`.

mod idempotency;
mod leader;
mod once;
mod optimistic;
#[cfg(feature = "outbox")]
pub mod outbox;
mod partitions;

use ringfence_core::{LockName, Result};

pub use self::idempotency::{Begun, Idempotency, KEY_MAX, Pruned, RESULT_MAX, RETENTION_DEFAULT, Session};
pub use self::leader::{Election, Leader, Leadership, Observation};
pub use self::once::{
    HISTORY_MAX, Missed, Once, OnceOutcome, OnceStart, Run, RunEntry, RunOutcome, Skipped, Window,
};
pub use self::optimistic::{Swap, TRIES_DEFAULT, Versioned};
pub use self::partitions::{MEMBERS_MAX, Membership, PARTITIONS_MAX, Partition, PartitionEvent, Partitions};

/// The name of a pattern's lock.
fn lock_of(pattern: &str, name: Result<LockName>) -> Result<LockName> {
    LockName::new(format!("{pattern}/{}", name?))
}

/// The examples of the guides are tests.
#[cfg(doctest)]
mod guides {
    #[doc = include_str!("../../../docs/guides/idempotency.md")]
    struct Idempotency;
    #[doc = include_str!("../../../docs/guides/optimistic.md")]
    struct Optimistic;
}
