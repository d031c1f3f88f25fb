//! For how long one that waits puts up with a server that is away.

use std::time::Duration;

use ringfence_core::{Backoff, BootInstant, Error, Ttl};

use crate::error;

/// The pauses between tries that fail.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The patience of one that waits: a connection that ends is not a server that is gone, and costs it no more than its place.
pub(crate) struct Patience {
    ttl: Ttl,
    /// When the server last did what it was asked, or said itself that it ends a connection.
    heard: Option<BootInstant>,
    pauses: Backoff,
}

impl Patience {
    /// Of one that has heard nothing of the server yet, and wants a lease of this TTL.
    pub(crate) fn new(ttl: Ttl) -> Self {
        Self { ttl, heard: None, pauses: pauses() }
    }

    /// The server answered what was asked at this instant.
    pub(crate) fn heard(&mut self, asked: BootInstant) {
        self.heard = self.heard.max(Some(asked));
        self.pauses = pauses();
    }

    /// How long to pause before another try. `None`: it is over. A server that was not there from the beginning is said so at
    /// once, and one that has gone after a TTL.
    pub(crate) fn outlasts(&mut self, error: &Error, now: BootInstant) -> Option<Duration> {
        if error::is_end_of_connection(error) {
            self.heard = Some(now);
        }
        self.heard
            .is_some_and(|heard| now < heard.saturating_add(self.ttl.as_duration()))
            .then(|| self.pauses.pause())
    }
}

/// The pauses of whoever tries until it succeeds.
pub(crate) fn pauses() -> Backoff {
    Backoff::new(PAUSES.0, PAUSES.1)
}
