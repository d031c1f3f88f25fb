//! The conformance suite of Ringfence: what every backend must do, as cases that run against a real store.
//!
//! Each case is named after a line of the documentation of [`Backend`](ringfence_core::Backend) or
//! [`FencedStore`](ringfence_core::FencedStore), and every such line has its case. Which of them apply follows from
//! the backend's [`Guarantees`](ringfence_core::Guarantees); one that does not apply says so on stderr. Cases for
//! faults that somebody has to cause (stop, kill, cut off, expire, evict) run where the harness can cause them.
//!
//! A backend implements [`Harness`] in its tests and names it once:
//!
//! ```
//! use std::sync::Arc;
//!
//! use ringfence_core::{Backend, BoxFuture, Result, SystemClock};
//! use ringfence_memory::MemoryBackend;
//! use ringfence_testkit::Harness;
//!
//! struct Memory(Arc<MemoryBackend>);
//!
//! impl Harness for Memory {
//!     fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
//!         Box::pin(async { Ok(self.0.clone() as _) })
//!     }
//! }
//!
//! // In tests/conformance.rs: one test for each case, by its name.
//! ringfence_testkit::conformance!(Some(Memory(Arc::new(MemoryBackend::new(Arc::new(SystemClock::new()))))));
//! ```
//!
//! The cases wait for events, for at most [`PATIENCE`] each. Where a lease must lapse they ask for a TTL of less than
//! a second, or for the backend's shortest. They use lock names of their own, so that they run in parallel.

pub mod cases;
mod client;
mod clock;
mod drops;
mod harness;
mod history;

pub use client::{PATIENCE, connected};
pub use clock::ShiftedClock;
pub use drops::drop_after;
pub use harness::{Cable, Harness, NotApplicable, OtherProcess, Verdict, run};
pub use history::{Hold, check_exclusive};

/// Expands to one `#[test]` for each case, named after it.
///
/// The expression makes the [`Harness`], or is `None` where what it needs is not installed, which it has said. It is evaluated
/// anew for each case, inside the case's tokio runtime, and may `.await`.
#[macro_export]
macro_rules! conformance {
    ($harness:expr $(,)?) => {
        $crate::__with_every_case! { __tests ($harness) }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    (($harness:expr) [$($contract:ident)*] [$($fault:ident)*]) => {
        $crate::__tests! { ($harness) $($contract)* $($fault)* }
    };
    (($harness:expr) $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $crate::run(stringify!($case), async { $harness }, |harness| {
                    ::std::boxed::Box::pin($crate::cases::$case(harness))
                });
            }
        )*
    };
}
