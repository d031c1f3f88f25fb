//! PostgreSQL as a backend of Ringfence.
#![cfg_attr(not(test), expect(dead_code, reason = "the recipes that use it are on their way"))]

mod error;
mod link;
mod options;
mod schema;

pub use options::PARAMS;
