//! Where messages go.

mod json_lines;
#[cfg(feature = "outbox-redis")]
mod redis_streams;
mod webhook;

use std::fmt::Debug;

pub use self::json_lines::JsonLines;
#[cfg(feature = "outbox-redis")]
pub use self::redis_streams::RedisStreams;
pub use self::webhook::Webhook;
use super::Delivery;
use crate::{BoxFuture, Result};

/// Where a relay sends messages.
///
/// ```
/// use ringfence::patterns::outbox::{Delivery, Sink};
/// use ringfence::{BoxFuture, Result};
///
/// /// Says what it gets.
/// #[derive(Debug)]
/// struct Shout;
///
/// impl Sink for Shout {
///     fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
///         Box::pin(async move {
///             println!("{} {:?}", message.topic, message.payload);
///             Ok(())
///         })
///     }
/// }
/// ```
pub trait Sink: Debug + Send + Sync + 'static {
    /// Hands a message on, and returns when it cannot be lost any more.
    ///
    /// It is called for several messages at once, of different keys or without any, and for the next message of a key when the one
    /// before it was taken, or is dead. The same message comes again, with the same id and a higher attempt, whenever it is not
    /// certain that it was taken.
    ///
    /// Errors with [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) where it cannot be handed on now and none of it is the
    /// message's fault: it is tried again without end. Every other error is a refusal, which is counted: after so many the message is
    /// dead.
    ///
    /// # Cancel safety
    /// It is dropped when it takes longer than the relay's timeout, or when the relay is: the message comes again.
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>>;
}
