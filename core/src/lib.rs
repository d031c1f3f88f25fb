//! The shared language of Ringfence: the types and traits that the hall, the backends and the proofs speak.
//!
//! This crate performs no I/O, spawns nothing and names no runtime and no driver. Read it in the order of a
//! request: a [`LockName`] and a [`Mode`] become an [`AcquireRequest`]; a [`Backend`] answers with an
//! [`Attempt`]; a granted [`Lease`] carries a [`FencingToken`]; a [`FencedStore`] refuses tokens that are stale.
//! What a backend promises, and under which faults, is data: [`Guarantees`].
//!
//! Users of the library depend on the crate `ringfence`, which re-exports what they need. Authors of a backend
//! depend on this crate and on `ringfence-testkit`.

mod backend;
mod backoff;
mod clock;
mod coalescer;
mod error;
mod fenced_store;
mod finding;
mod guarantees;
mod holder;
mod lease;
mod mode;
mod name;
mod request;
mod server_clock;
pub mod table;
mod token;
mod token_key;
mod url;

pub use backend::{Backend, BoxFuture, LossListener};
pub use backoff::Backoff;
pub use clock::{BootInstant, Clock, SystemClock, WallTime};
pub use coalescer::Coalescer;
pub use error::{Effect, Error, ErrorKind, Result, Retry};
pub use fenced_store::{FencedStore, Opened, RECORD_VALUE_MAX, Record, RecordKey, Version};
pub use finding::{Finding, Severity};
pub use guarantees::{
    Claim, Guarantees, HolderDeath, LeaseClock, Permits, Queue, Quorum, RecordGuard, Records, Scope, Tokens,
    WakeUp,
};
pub use holder::{HolderInfo, LABEL_MAX, METADATA_MAX};
pub use lease::{
    Agreement, Attempt, Contention, Eviction, HolderState, Lease, LeaseKey, ListQuery, LockState, PAGE_MAX,
    Page, Release, Renewal, WaiterState,
};
pub use mode::{Mode, PERMITS_MAX};
pub use name::{LockName, NAME_MAX};
pub use request::{Abandoned, Abandoner, AcquireRequest, Ttl, Wait, abandonment};
pub use server_clock::ServerClock;
pub use token::{FencingToken, HANDOVER_BITS, Nonce};
pub use token_key::{PresentedToken, TokenKey};
pub use url::{BackendUrl, nearest, parse_duration, split_port};
