use std::time::Duration;

use ringfence_core::{Backoff, Error, ErrorKind, FencingToken, Result};

use super::kept::{Head, Kept, RESULT_MAX};
use super::{Work, key_of};
use crate::guard::Guard;

/// The first pause before a result is written again that could not be written, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Work that is yours to do, because its request is new. Its end is [`complete`](Self::complete).
///
/// # Drop
/// Dropping a session that is not completed, by a panic, an error or a cancelled task, releases the key in the background and
/// stores nothing: the next one that sends the request starts. What the work did until then it does again; see
/// [`Idempotency`](super::Idempotency).
#[derive(Debug)]
#[must_use = "a session that is dropped gives its key to the next one"]
pub struct Session {
    work: Work,
    token: FencingToken,
    /// Until the result is stored.
    guard: Option<Guard>,
}

impl Session {
    pub(super) fn new(work: Work, guard: Guard) -> Self {
        Self { work, token: guard.token(), guard: Some(guard) }
    }

    /// The idempotency key.
    pub fn key(&self) -> &str {
        key_of(self.work.name())
    }

    /// The fencing token, for whatever the work touches to check.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The guard of the lock `idempotency/KEY`, `None` once the result is stored.
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// Whether holding the key can be proven right now; see [`Guard::is_held`]. Not any more once the result is stored.
    pub fn is_held(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_held)
    }

    /// Resolves when the lease is lost: from then on somebody else may start the work. Never after [`complete`](Self::complete)
    /// has stored the result. See [`Guard::lost`].
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let lost = self.guard.as_ref().map(Guard::lost);
        async move {
            match lost {
                Some(lost) => lost.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Stores the result behind the fence, at most [`RESULT_MAX`] bytes, and releases the key. Two round trips.
    ///
    /// A store that cannot be reached is asked again for as long as the lease is held, at most for its TTL: to write the same
    /// result with the same token twice is to write it once. Whether the lease is still held does not decide, the fence does:
    /// what it takes nobody has overtaken, and what a successor began it refuses.
    ///
    /// **Whatever the error, the work is done and its result is not known to be stored.** The session still holds what it
    /// held: complete it again, or drop it and let the next one start.
    /// - [`ErrorKind::Stale`] or [`ErrorKind::TokenCollision`]: the lease was lost and somebody else may have started the work
    ///   again; theirs is the result that counts. Begin again to learn it. So it is where the key was
    ///   [pruned](crate::Locks::prune_idempotency_keys) since.
    /// - [`ErrorKind::InvalidRequest`]: the result is too large. Keep it elsewhere, and complete with where it is.
    /// - [`ErrorKind::Unavailable`]: it may be stored or not.
    ///
    /// A release that fails is logged and is no error: the result is stored.
    ///
    /// # Cancel safety
    /// The result may be stored or not. Call it again with the same result: where that says that it was completed before, it is
    /// stored.
    pub async fn complete(&mut self, result: impl AsRef<[u8]>) -> Result<()> {
        let result = result.as_ref();
        let Some(guard) = &self.guard else {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("the work under the idempotency key {:?} was completed before", self.key()),
            ));
        };
        let not_stored = |error: Error| {
            let key = self.key();
            error.about(format_args!(
                "the work under the idempotency key {key:?} is done, its result is not stored"
            ))
        };
        if result.len() > RESULT_MAX {
            return Err(not_stored(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "it is at most {RESULT_MAX} bytes, this one has {}; keep it elsewhere and complete with where it is: until \
                     then the key is held, and if the session is dropped the next one does the work again",
                    result.len()
                ),
            )));
        }
        let clock = &*self.work.hall.clock;
        let completed = self.work.calendar.time(clock);
        let head = Head {
            fingerprint: self.work.fingerprint.clone(),
            completed,
            expires: completed.saturating_add(self.work.retention),
        };
        let value = Kept::to_value(&head, result);
        let patience = clock.now().saturating_add(guard.ttl().as_duration());
        let (first, most) = PAUSES;
        let mut backoff = Backoff::new(first, most);
        while let Err(error) = self.work.record.write(self.token, value.clone()).await {
            // What it opened is gone, so somebody with a later token has removed it.
            if error.kind() == ErrorKind::NotOpened {
                let why = "its lease was lost, and the key was pruned or its record removed since";
                return Err(not_stored(Error::new(ErrorKind::Stale, why).because(error)));
            }
            let again = error.kind() == ErrorKind::Unavailable && guard.is_held() && clock.now() < patience;
            if !again {
                return Err(not_stored(error));
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        if let Some(guard) = self.guard.take()
            && let Err(error) = guard.release().await
        {
            tracing::warn!(key = self.key(), %error, "the result is stored, its key was not released");
        }
        Ok(())
    }

    /// Gives the key back without a result, so that the next one starts. One round trip.
    ///
    /// Errors as [`Guard::release`] does.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the release.
    pub async fn release(self) -> Result<()> {
        match self.guard {
            Some(guard) => guard.release().await,
            None => Ok(()),
        }
    }

    /// What comes of a body that runs while the key is held; see [`Guard::while_held`].
    pub(super) async fn while_held<T>(&self, body: impl Future<Output = T>) -> Result<T> {
        let guard = self.guard.as_ref().expect("work that runs has not been completed");
        guard.while_held(body).await
    }
}
