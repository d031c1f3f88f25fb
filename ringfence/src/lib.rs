//! Exclusive access to shared things, across tasks, processes and machines, with fences that hold.
//!
//! A lock service cannot promise that a lock is exclusive: whoever holds it may be paused, lose it without knowing, and write
//! when it wakes up. What Ringfence gives is a *lease* that says whether it can be proven, a *fencing token* that rises with
//! every grant, and resources that refuse a token that is stale. So a write under a lock looks like this:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
//! use ringfence::Locks;
//!
//! let locks = Locks::connect("memory:").await?;                  // or "local:", the embedded store of one machine
//! let guard = locks.lock("orders/42").acquire().await?;
//! let token = guard.token();
//! let order = locks.record("orders/42")?;                        // a small value behind the lock's fence
//! order.open(token).await?;                                      // older tokens are refused from here on
//! order.write(token, "charged").await?;
//! guard.release().await?;
//!
//! let late = order.write(token, "charged twice").await;          // somebody who has not noticed that it lost the lock
//! assert_eq!(late.unwrap_err().kind(), ringfence::ErrorKind::Stale);
//! # Ok(()) }
//! ```
//!
//! # Where to look
//! - [`Locks`] is all locks of one backend. [`Locks::lock`] begins a request; [`LockRequest`] has its choices.
//! - [`Guard`] is holding a lock: its [token](Guard::token), whether it [is held](Guard::is_held), when it is
//!   [lost](Guard::lost).
//! - [`LockRequest::run`] runs a piece of work under a lock and cancels it before the lease can be lost.
//! - [`Locks::all`] takes several locks at once; [`Locks::holder`] is for re-entry.
//! - [`RecordHandle`] is a small value behind a fence.
//! - The module `postgres`, with the feature of that name, puts locks and fences into transactions of your own.
//! - [`Locks::examine`] looks for what would break these promises on the server at hand.
//! - [`Guarantees`] is what a backend promises, under which faults; [`Stakes`] refuses a backend that promises too little.
//!
//! # What runs in the background
//! The *keeper* renews every lease at a third of its TTL for as long as a guard on it lives. The tasks of a process that want
//! one exclusive lock queue in a *waiting room*: the backend sees one waiter, and the lock is handed from task to task without
//! a round trip, at most 64 times or 50 ms in a row, before other processes have their turn. Every hand-over has a token of
//! its own.
//!
//! # Observability
//! Spans `ringfence.acquire` (fields `name`, `mode`, `backend`) and events by `tracing`. Metrics by the crate `metrics`, all
//! with the label `backend`: the counters `ringfence_acquires_total` (label `outcome`: `granted`, `busy`, `wait_elapsed`,
//! `failed`), `ringfence_handovers_total` and `ringfence_lost_total`; the histograms `ringfence_wait_seconds`,
//! `ringfence_hold_seconds` and `ringfence_renewal_lag_seconds`. They are registered when a [`Locks`] is opened: install the
//! recorder first. Lock names are never labels.

// Under loom only what races without a runtime is built, and of that only what the models need is used.
#[cfg_attr(loom, expect(dead_code, reason = "the models need a part of it"))]
mod lease_state;
mod sync;
#[cfg_attr(loom, expect(dead_code, reason = "the models need a part of it"))]
mod waiting_room;

#[cfg(not(loom))]
mod all;
#[cfg(not(loom))]
mod background;
#[cfg(not(loom))]
mod connect;
#[cfg(not(loom))]
mod guard;
#[cfg(not(loom))]
mod hall;
#[cfg(not(loom))]
mod holder;
#[cfg(not(loom))]
mod keeper;
#[cfg(not(loom))]
mod locks;
#[cfg(not(loom))]
mod meters;
#[cfg(not(loom))]
pub mod patterns;
#[cfg(all(feature = "postgres", not(loom)))]
pub mod postgres;
#[cfg(not(loom))]
mod quiet;
#[cfg(not(loom))]
mod record;
#[cfg(not(loom))]
mod request;
#[cfg(not(loom))]
mod run;
#[cfg(not(loom))]
mod stakes;
#[cfg(not(loom))]
mod stander;
#[cfg(not(loom))]
mod token_key_file;
#[cfg(not(loom))]
mod turn;

#[cfg(not(loom))]
pub use crate::{
    all::{ALL_MAX, AllRequest, Guards},
    connect::{guarantees_of, schemes},
    guard::Guard,
    holder::Holder,
    locks::{Locks, LocksBuilder},
    record::RecordHandle,
    request::LockRequest,
    run::Held,
    stakes::Stakes,
};
#[doc(no_inline)]
pub use ringfence_core::{
    Abandoned, Abandoner, AcquireRequest, Agreement, Attempt, Backend, BackendUrl, BootInstant, BoxFuture,
    Claim, Clock, Contention, Effect, Error, ErrorKind, Eviction, FencedStore, FencingToken, Finding,
    Guarantees, HolderDeath, HolderInfo, HolderState, LABEL_MAX, Lease, LeaseClock, LeaseKey, ListQuery,
    LockName, LockState, LossListener, METADATA_MAX, Mode, NAME_MAX, Nonce, Opened, PAGE_MAX, PERMITS_MAX,
    Page, Permits, PresentedToken, Queue, Quorum, RECORD_VALUE_MAX, Record, RecordGuard, RecordKey, Records,
    Release, Renewal, Result, Retry, Scope, Severity, SystemClock, TokenKey, Tokens, Ttl, Version, Wait,
    WaiterState, WakeUp, WallTime, abandonment, nearest, parse_duration,
};

/// The README's example is a test, and so are the guides'.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/guides/leader.md")]
#[doc = include_str!("../../docs/guides/partitions.md")]
/// The README's example is a test, and so are those of the guides.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/guides/all-of-several.md")]
#[doc = include_str!("../../docs/guides/readers-writers.md")]
#[doc = include_str!("../../docs/guides/semaphores.md")]
struct Readme;
