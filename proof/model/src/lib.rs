//! Models: small protocols and everything that can happen to them, searched to the last state.
//!
//! A test of a real backend sees one order of events. Here a protocol is a handful of numbers, each step of it and each
//! fault is a move, and [`explore`] makes every move in every state. So a promise holds in all orders or is broken by the
//! shortest one, which is printed. That the real backend makes the same moves is not shown here: its own tests are for
//! that.

pub mod redlock;
mod search;

pub use search::{Found, Model, Trace, explore};
