use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot;
use serde::{Deserialize, Serialize};

use crate::clock::BootInstant;
use crate::error::{Error, ErrorKind};
use crate::holder::HolderInfo;
use crate::mode::Mode;
use crate::name::LockName;
use crate::token::Nonce;

/// How long a lease lives without renewal: [`Ttl::MIN`] to [`Ttl::MAX`], in whole milliseconds.
///
/// A part of a millisecond rounds up. Nothing is clamped: a duration outside the range is an error that names it.
///
/// ```
/// use std::time::Duration;
/// use ringfence_core::Ttl;
///
/// assert_eq!(Ttl::new(Duration::from_micros(100_001))?.as_millis(), 101);
/// assert!(Ttl::new(Duration::ZERO).is_err());
/// assert!(Ttl::new(Duration::MAX).is_err());
/// # Ok::<(), ringfence_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ttl(u32);

impl Ttl {
    /// The shortest lease: 100 ms. Below it a scheduler's hiccup would be a lost lease.
    pub const MIN: Self = Self(100);
    /// The longest lease: 24 hours. A longer one is a lock that nobody gets back after a crash.
    pub const MAX: Self = Self(24 * 60 * 60 * 1000);
    /// What a lock uses that names no TTL: 30 s, as most libraries for locks do.
    pub const DEFAULT: Self = Self(30_000);

    /// A TTL of this duration. Errors with [`ErrorKind::InvalidTtl`] outside the range.
    pub fn new(duration: Duration) -> Result<Self, Error> {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        match u32::try_from(millis) {
            Ok(millis) if (Self::MIN.0..=Self::MAX.0).contains(&millis) => Ok(Self(millis)),
            _ => Err(Error::new(
                ErrorKind::InvalidTtl,
                format!("a TTL is {} to {}, {duration:?} is not", Self::MIN, Self::MAX),
            )),
        }
    }

    /// The TTL as a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_millis(self.0.into())
    }

    /// The TTL in milliseconds.
    pub fn as_millis(self) -> u64 {
        self.0.into()
    }
}

impl fmt::Display for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", humantime::format_duration(self.as_duration()))
    }
}

impl fmt::Debug for Ttl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether to wait for a name that somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a backend must handle every way to wait")]
pub enum Wait {
    /// Answer at once: granted or busy. Never joins the queue, never overtakes it.
    No,
    /// Keep a place in line until this instant.
    Until(BootInstant),
}

/// One attempt to get a lease: what goes into a backend.
#[derive(Debug)]
#[non_exhaustive]
pub struct AcquireRequest {
    /// What to lock.
    pub name: LockName,
    /// How.
    pub mode: Mode,
    /// For how long without renewal. The hall has checked it against the backend's range.
    pub ttl: Ttl,
    /// Whether to wait.
    pub wait: Wait,
    /// For whom.
    pub holder: HolderInfo,
    /// Names this attempt and the lease that comes of it. A repeated attempt with one nonce is one attempt. A backend that has no
    /// line makes several attempts for one that waits, of which the later ones draw a nonce each.
    pub nonce: Nonce,
    /// Resolves when nobody wants the answer any more: withdraw the attempt, then answer
    /// [`Attempt::Busy`](crate::Attempt::Busy).
    pub abandoned: Abandoned,
}

impl AcquireRequest {
    /// A request with a nonce of its own that nobody can abandon.
    pub fn new(name: LockName, mode: Mode, ttl: Ttl, wait: Wait, holder: HolderInfo) -> Self {
        Self { name, mode, ttl, wait, holder, nonce: Nonce::random(), abandoned: Abandoned(None) }
    }

    /// The same request, abandoned when the other half of `abandoned` is dropped.
    #[must_use]
    pub fn abandoned_by(mut self, abandoned: Abandoned) -> Self {
        self.abandoned = abandoned;
        self
    }
}

/// A pair whose second half resolves when the first is dropped.
pub fn abandonment() -> (Abandoner, Abandoned) {
    let (sender, receiver) = oneshot::channel();
    (Abandoner(sender), Abandoned(Some(receiver)))
}

/// While this lives, somebody wants the lease that was asked for. Dropping it abandons the request.
#[derive(Debug)]
pub struct Abandoner(#[expect(dead_code, reason = "its drop is the signal")] oneshot::Sender<()>);

/// Resolves when the request's [`Abandoner`] is dropped; never, where there is none.
///
/// A backend that waits polls it beside its own wait. One that does not only makes the hall wait for the
/// request's deadline: the hall releases whatever comes too late.
#[derive(Debug)]
pub struct Abandoned(Option<oneshot::Receiver<()>>);

impl Future for Abandoned {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(receiver) => Pin::new(receiver).poll(context).map(|_| ()),
            None => Poll::Pending,
        }
    }
}
