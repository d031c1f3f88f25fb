//! What patterns cost, on every backend, beside an acquire and a release there.

pub(crate) mod clients;
pub(crate) mod idempotency;
pub(crate) mod once;
pub(crate) mod partitions;
pub(crate) mod place;
mod step;
