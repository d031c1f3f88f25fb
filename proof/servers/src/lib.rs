//! Real processes for tests and benches: found, started, stopped, killed, and gone at the end.
//!
//! - [`Process`] is a child with its whole process group, whose lines are awaited.
//! - [`require()`] finds a tool, or says on stderr that a test is skipped; under `RINGFENCE_REQUIRE=name,name` or `=all`
//!   what is missing is a failure.
//! - [`Taker`] is a process that takes a lock and can be stopped or killed in any state.

mod process;
mod require;
mod taker;

pub use process::Process;
pub use require::{require, skip};
pub use taker::{Event, Taker, taker};
