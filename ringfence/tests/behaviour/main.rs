//! How the hall behaves, on the memory backend and on one that fails on demand.

mod cancellation;
mod connecting;
mod guards;
mod holders;
mod idempotency;
mod keeping;
mod lock_delay;
mod observing;
mod offers;
mod once;
mod optimistic;
mod partitions;
mod requests;
mod running;
mod several;
mod stage;
mod waiting;
