//! A fence for HTTP: no request without a fencing token, none with an old one.
//!
//! A resource that knows nothing of tokens is put behind a [`Gate`]. A client sends the token of its lock in the header
//! `Ringfence-Token` ([`TokenHeader`]). The gate raises a mark in a [`FencedStore`](ringfence_core::FencedStore) and refuses every lower
//! token with 412 ([`Refusal`] has all answers). [`FenceLayer`] puts it before a service of axum or any other of tower; the program
//! `ringfence gate` is the same before any HTTP server.
//!
//! What has passed cannot be called back: [`Gate`] says what that means.
//!
//! Read it in the order of a request: `header`, `layer`, `gate`, `body`. `epoch` is how an operator starts a mark anew.

mod body;
mod epoch;
mod gate;
mod header;
mod layer;
mod refusal;

pub use body::{FencedBody, PassedBody};
pub use epoch::{Epochs, Reset, mark};
pub use gate::{Alone, DRAIN_DEFAULT, Gate, Pass};
pub use header::{TOKEN_HEADER, TokenHeader};
pub use layer::{FenceLayer, Fenced};
pub use refusal::Refusal;
