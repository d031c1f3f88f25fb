use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use ringfence_core::{Error, ErrorKind, FencingToken, LockName, Result, Ttl};

use crate::guard::Guard;
use crate::request::LockRequest;

/// What the body of [`LockRequest::run`] knows of the lock it runs under.
#[derive(Debug)]
pub struct Held {
    guard: Guard,
}

impl Held {
    /// The fencing token, for the guarded resource to check.
    pub fn token(&self) -> FencingToken {
        self.guard.token()
    }

    /// What is locked.
    pub fn name(&self) -> &LockName {
        self.guard.name()
    }

    /// For how long holding is proven if nothing is renewed from now on.
    pub fn remaining(&self) -> Duration {
        self.guard.remaining()
    }

    /// Resolves when the lease is lost; for tasks that the body spawned, which `run` cannot cancel.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.guard.lost()
    }
}

impl LockRequest {
    /// Acquires the lock, runs `body` under it, releases it and returns what came of the body.
    ///
    /// The body is cancelled (its future is dropped) *before* the lease can be lost: a tenth of the TTL before the deadline,
    /// at least 5 ms and at most a second, unless the lease is renewed meanwhile; or at once when the lease turns out to be
    /// lost. Then this errors with [`ErrorKind::Lost`]. A body that blocks its thread cannot be cancelled, and tasks that
    /// it spawned run on: give them [`Held::lost`], and the resource the [token](Held::token). With a
    /// [`lock_delay`](Self::lock_delay) the lock of a body that was cancelled is not given back: the delay runs its course.
    ///
    /// Errors as [`acquire`](Self::acquire) does, before the body runs. It errors with [`ErrorKind::Lost`] after a body that
    /// ran to its end, too, if the release finds the lease gone: what the body did may have overlapped with somebody else's
    /// work. Any other failure of the release is logged and not returned, because the body's work is done.
    ///
    /// # Cancel safety
    /// Dropping the future drops the body and releases the lock in the background.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let sum = locks.lock("orders/42").run(async |held| {
    ///     println!("working under token {}", held.token());
    ///     1 + 1
    /// }).await?;
    /// assert_eq!(sum, 2);
    /// # Ok(()) }
    /// ```
    pub async fn run<T>(self, body: impl AsyncFnOnce(&Held) -> T) -> Result<T> {
        let held = Held { guard: self.acquire().await? };
        let finished = held.guard.while_held(body(&held)).await;
        let name = held.guard.name().clone();
        let delays = held.guard.hold().turn.lease.room.has_lock_delay();
        let released = if finished.is_err() && delays {
            held.guard.leave_to_lapse().await
        } else {
            held.guard.release().await
        };
        let result = finished?;
        match released {
            Err(error) if error.kind() == ErrorKind::Lost => Err(error),
            Err(error) => {
                tracing::warn!(%name, %error, "the work is done, its lock was not released");
                Ok(result)
            }
            Ok(()) => Ok(result),
        }
    }
}

impl Guard {
    /// What comes of a body that runs while this is held. It is dropped, with [`ErrorKind::Lost`], before the lease can be lost.
    pub(crate) async fn while_held<T>(&self, body: impl Future<Output = T>) -> Result<T> {
        self.confirmed().await;
        let body = pin!(body);
        tokio::select! {
            biased;
            () = self.lost_but_for(margin(self.ttl())) => Err(Error::new(
                ErrorKind::Lost,
                format!(
                    "the work under {:?} was cancelled: its lease is lost, or could not be renewed in time; acquire the \
                     lock again before you go on",
                    self.name().as_str()
                ),
            )),
            result = body => Ok(result),
        }
    }
}

/// How long before the deadline a body is cancelled that nobody could renew the lease for.
fn margin(ttl: Ttl) -> Duration {
    (ttl.as_duration() / 10).clamp(Duration::from_millis(5), Duration::from_secs(1))
}
