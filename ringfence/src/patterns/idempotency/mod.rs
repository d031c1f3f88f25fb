//! Idempotency keys: a request that comes twice is done once, and both get the same answer.

mod kept;
mod prune;
mod session;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    BootInstant, Clock, Contention, Error, ErrorKind, HolderInfo, LockName, NAME_MAX, Record, RecordKey,
    Result, WallTime,
};
use sha2::{Digest, Sha256};

use crate::guard::Guard;
use crate::hall::{Hall, Outcome};
use crate::locks::Locks;
use crate::record::RecordHandle;
use crate::request::{Ask, LockRequest, Patience, Terms};
use crate::stakes::Stakes;

use self::kept::Kept;
pub use self::kept::RESULT_MAX;
pub use self::prune::Pruned;
pub use self::session::Session;

/// What the names of these locks begin with.
const PREFIX: &str = "idempotency/";

/// The longest idempotency key, in bytes: 243, which is a lock name less `idempotency/`.
pub const KEY_MAX: usize = NAME_MAX - PREFIX.len();

/// How long a result is kept, unless you choose: 24 hours.
pub const RETENTION_DEFAULT: Duration = Duration::from_hours(24);

/// What the metadata of a holder begins with whose request has a fingerprint.
const FINGERPRINT: &str = "fingerprint=";

impl Locks {
    /// An idempotency key, which its caller drew for one request: 1 to [`KEY_MAX`] bytes of UTF-8 without control characters.
    /// Whoever sends that request again, because an answer was lost, sends the same key and gets the same answer, while the
    /// work behind it is done once.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// use ringfence::patterns::Begun;
    ///
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let request = b"POST /charges amount=4200";
    /// match locks.idempotency("9f1c-retry-me").fingerprint(request).begin().await? {
    ///     Begun::Started(mut session) => {
    ///         let receipt = "receipt 17";                        // the work, with session.token() for what it touches
    ///         session.complete(receipt).await?;
    ///     }
    ///     Begun::InFlight(others) => println!("{:?} works on it: try again later", others.holders),
    ///     Begun::Done(receipt) => println!("it was done before: {receipt:?}"),
    /// }
    /// let again = locks.idempotency("9f1c-retry-me").fingerprint(request).begin().await?;
    /// assert!(matches!(again, Begun::Done(receipt) if receipt == "receipt 17"));
    /// # Ok(()) }
    /// ```
    pub fn idempotency(&self, key: impl AsRef<str>) -> Idempotency {
        Idempotency {
            hall: Arc::clone(&self.hall),
            name: Idempotency::lock_of(key.as_ref()),
            terms: Terms::default(),
            fingerprint: None,
            retention: RETENTION_DEFAULT,
        }
    }
}

/// A request under an idempotency key: say what it is, then [`begin`](Self::begin) or [`run`](Self::run).
///
/// Nothing is sent before that, and whatever is wrong with it is that call's error.
///
/// The key is the lock `idempotency/KEY`, held while somebody works, and its record, which keeps the result: a line of JSON,
/// then the result as it is. A result is written behind the lock's fence, so that who was paused past its lease cannot overwrite
/// what its successor wrote.
///
/// # What a crash leaves
/// Work whose process ends before [`Session::complete`] is free to be started again at once, or when its lease ends
/// ([`Guarantees::holder_death`](crate::Guarantees)). **If it had taken effect by then, it is done and not recorded, and the next
/// one does it again.** No lock closes that window. Two things do: give the effect and the record of it one transaction, so that
/// the next one finds what was done; or hand the key on, to whoever takes effect, if that one knows such keys. The
/// [token](Session::token) is for the other fault, a holder that wakes up late.
#[derive(Debug)]
#[must_use = "a key asks for nothing until it is begun"]
pub struct Idempotency {
    hall: Arc<Hall>,
    name: Result<LockName>,
    terms: Terms,
    fingerprint: Option<String>,
    retention: Duration,
}

/// What there is to do for a request.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a request is new, in hand or done")]
pub enum Begun {
    /// It is new: do the work, then [complete](Session::complete) it.
    Started(Session),
    /// Somebody works on it. Who, as far as the backend knows.
    InFlight(Contention),
    /// It was done before, with this result.
    Done(Bytes),
}

impl Idempotency {
    /// The lock of a key: `idempotency/` and the key. Errors with [`ErrorKind::InvalidName`] for what is no key.
    pub fn lock_of(key: &str) -> Result<LockName> {
        if key.is_empty() || key.len() > KEY_MAX {
            return Err(Error::new(
                ErrorKind::InvalidName,
                format!("an idempotency key is 1 to {KEY_MAX} bytes of UTF-8, this one has {}", key.len()),
            ));
        }
        LockName::new(format!("{PREFIX}{key}")).map_err(|error| error.about("an idempotency key"))
    }

    /// What tells this request from others, as its method, path and body: the same key with another fingerprint is refused
    /// with [`ErrorKind::KeyReused`], whether that other request is done or in flight. Compared where both gave one.
    ///
    /// Its SHA-256 is kept with the result and shown as the holder's metadata, never the bytes. Who can guess a request can tell
    /// that it was that one.
    pub fn fingerprint(mut self, request: impl AsRef<[u8]>) -> Self {
        let hash = Sha256::digest(request.as_ref());
        self.fingerprint = Some(format!("{:x}", Bytes::copy_from_slice(&hash)));
        self
    }

    /// For how long a result is kept, from its completion on: [`RETENTION_DEFAULT`] unless you choose. After it the key is new, and
    /// [`Locks::prune_idempotency_keys`] removes what is left of it.
    ///
    /// By the time of day of the backend's server, or of this machine where the backend has no server: a clock that is set
    /// changes how long that is.
    pub fn retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Waits at most this long for whoever works on the request, instead of saying [`Begun::InFlight`] at once.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// How long the lease lives without renewal, which is for how long others wait for a worker that died or is cut off; see
    /// [`LockRequest::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// Stops renewing after this long, so that work that hangs gives the key up: at most a TTL later.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.terms.max_hold = Some(max_hold);
        self
    }

    /// What it costs to do the work twice. With [`Stakes::Correctness`] a backend whose tokens are not durable is refused.
    pub fn stakes(mut self, stakes: Stakes) -> Self {
        self.terms.stakes = stakes;
        self
    }

    /// What the one who works calls itself to whoever inspects the lock. 1 to 255 bytes.
    pub fn label(mut self, label: &str) -> Self {
        self.terms.label = Some(label.to_owned());
        self
    }

    /// Starts the work, or says that it is done or in flight.
    ///
    /// Where it is done: one round trip, in which the record and the time of day are asked for together. Where it is new: three,
    /// to read, to acquire and to open the record, and two more in [`Session::complete`], where a record is opened and written by
    /// one, as [`RecordHandle`] says. Where it is in flight: two, and a third where the backend does not say on its own who is in
    /// the way. After a [wait](Self::wait) another two. Those who wait are served one after another, each with one round trip to find
    /// the result, and one in the background to let the next one look.
    ///
    /// Errors with [`ErrorKind::KeyReused`] where the key is another request's, with [`ErrorKind::InvalidName`] for a key that can
    /// be none, with [`ErrorKind::Corrupt`] where the record is not one of ours, and as [`LockRequest::acquire`] does.
    /// [`ErrorKind::Stale`] says that this process was paused for so long between two steps that it lost the lease; nothing was
    /// started.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing behind: a lease that was granted is released in the background.
    pub async fn begin(self) -> Result<Begun> {
        let Self { hall, name, terms, fingerprint, retention } = self;
        let name = name?;
        let wait = terms.wait.unwrap_or_default();
        let patience = Patience::of(Some(wait), &*hall.clock);
        let terms = Terms { metadata: fingerprint.as_deref().map(in_metadata), ..terms };
        let ask = |patience| -> Result<Ask> {
            LockRequest::new(Arc::clone(&hall), Ok(name.clone()), terms.clone(), None).checked(patience)
        };
        let at_once = ask(Patience::None)?;
        let record = RecordHandle::new(Arc::clone(&hall), RecordKey::of(name.clone()));
        let (found, now) = tokio::try_join!(record.read(), Calendar::of(&hall))?;
        let work = Work { hall: Arc::clone(&hall), record, fingerprint, retention, calendar: now };
        if let Some(result) = work.result_in(found)? {
            return Ok(Begun::Done(result));
        }
        // At first without waiting: whoever has the key may have it for another request.
        let mut outcome = at_once.outcome().await?;
        if let Outcome::Busy(contention) = outcome {
            let seen = work.compare_with_holders(contention).await?;
            outcome = match patience {
                Patience::None => Outcome::Busy(seen),
                patience => match ask(patience)?.outcome().await? {
                    Outcome::Busy(later) if later.holders.is_empty() => Outcome::Busy(seen),
                    outcome => outcome,
                },
            };
        }
        match outcome {
            Outcome::Busy(contention) => Ok(Begun::InFlight(contention)),
            Outcome::Granted(guard) => work.start(guard).await,
        }
    }

    /// Does the work under the key and returns its result, or returns the result that there is.
    ///
    /// The work is cancelled (its future is dropped) before its lease can be lost, as [`LockRequest::run`] does, with
    /// [`ErrorKind::Lost`]. Where the work itself errors nothing is stored: the key is released and the error returned.
    ///
    /// Errors as [`begin`](Self::begin) and [`Session::complete`] do, and with [`ErrorKind::WaitElapsed`] where somebody else
    /// still works on it.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work and releases the key in the background.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// for _ in 0..2 {
    ///     let receipt = locks.idempotency("order 17").run(async |session| {
    ///         Ok::<_, ringfence::Error>(format!("charged under {}", session.token().sequence()))
    ///     }).await?;
    ///     assert_eq!(receipt, "charged under 256");
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn run<R, E>(self, work: impl AsyncFnOnce(&Session) -> Result<R, E>) -> Result<Bytes, E>
    where
        R: Into<Bytes>,
        E: From<Error>,
    {
        let wait = self.terms.wait.unwrap_or_default();
        let name = self.name.clone();
        match self.begin().await? {
            Begun::Done(result) => Ok(result),
            Begun::InFlight(contention) => Err(in_flight(&name?, wait, &contention.holders).into()),
            Begun::Started(mut session) => {
                let result = session.while_held(work(&session)).await??.into();
                session.complete(&result).await?;
                Ok(result)
            }
        }
    }
}

/// Work under one key.
#[derive(Debug)]
struct Work {
    hall: Arc<Hall>,
    record: RecordHandle,
    fingerprint: Option<String>,
    retention: Duration,
    calendar: Calendar,
}

impl Work {
    /// The result, where there is one that is still kept, of the same request.
    fn result_in(&self, record: Option<Record>) -> Result<Option<Bytes>> {
        let Some(record) = record else { return Ok(None) };
        let kept = Kept::of_value(self.name(), &record.value)?;
        if kept.is_over(self.calendar.time(&*self.hall.clock)) {
            return Ok(None);
        }
        self.compare(kept.head.fingerprint.as_deref(), "was done")?;
        Ok(Some(kept.result))
    }

    /// Refuses to wait for another request's work, and says whose it waits for.
    async fn compare_with_holders(&self, mut seen: Contention) -> Result<Contention> {
        if seen.holders.is_empty() {
            let state = self.hall.backend.inspect(self.name()).await?;
            seen = Contention::new(
                state.holders.into_iter().map(|held| held.holder).collect(),
                state.waiters.len(),
            );
        }
        for holder in &seen.holders {
            self.compare(holder.metadata().strip_prefix(FINGERPRINT), "is in flight")?;
        }
        Ok(seen)
    }

    fn compare(&self, other: Option<&str>, how: &str) -> Result<()> {
        match (self.fingerprint.as_deref(), other) {
            (Some(ours), Some(other)) if ours != other => Err(Error::new(
                ErrorKind::KeyReused,
                format!(
                    "the idempotency key {:?} is another request's, which {how}: that one's fingerprint begins with {:.12}, this \
                     one's with {ours:.12}; draw a new key for each request, and send it again only with the same request",
                    key_of(self.name()),
                    other
                ),
            )),
            _ => Ok(()),
        }
    }

    /// The lock is ours: the work begins, unless somebody was done with it before we had the lock.
    async fn start(self, guard: Guard) -> Result<Begun> {
        let opened = self.record.open(guard.token()).await?;
        // Where there is a result the guard is dropped, and those behind us look next.
        match self.result_in(opened.record)? {
            Some(result) => Ok(Begun::Done(result)),
            None => Ok(Begun::Started(Session::new(self, guard))),
        }
    }

    fn name(&self) -> &LockName {
        self.record.key().lock()
    }
}

/// The time of day when it was asked for, and when that was by the clock that does not step: so that one question serves all
/// that one call has to know.
#[derive(Clone, Copy, Debug)]
struct Calendar {
    asked: BootInstant,
    time: WallTime,
}

impl Calendar {
    async fn of(hall: &Hall) -> Result<Self> {
        let asked = hall.clock.now();
        Ok(Self { asked, time: hall.time().await? })
    }

    /// The time of day now.
    fn time(&self, clock: &dyn Clock) -> WallTime {
        self.time.saturating_add(clock.now().saturating_since(self.asked))
    }
}

fn key_of(name: &LockName) -> &str {
    name.as_str().strip_prefix(PREFIX).unwrap_or(name.as_str())
}

fn in_metadata(fingerprint: &str) -> String {
    format!("{FINGERPRINT}{fingerprint}")
}

fn in_flight(name: &LockName, wait: Duration, holders: &[HolderInfo]) -> Error {
    let who = match holders {
        [] => "somebody".to_owned(),
        [holder, ..] => holder.to_string(),
    };
    let waited = match wait {
        Duration::ZERO => String::new(),
        wait => format!(" and was not done within {wait:?}"),
    };
    Error::new(
        ErrorKind::WaitElapsed,
        format!(
            "{who} works on the request with the idempotency key {:?}{waited}; send it again later, with the same key",
            key_of(name)
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_limits_and_says_them() {
        assert_eq!(Idempotency::lock_of("a/b").unwrap().as_str(), "idempotency/a/b");
        assert!(Idempotency::lock_of(&"x".repeat(KEY_MAX)).is_ok());
        for (key, says) in [("", "1 to 243 bytes"), (&"x".repeat(KEY_MAX + 1), "has 244"), ("a\nb", "U+000A")]
        {
            let error = Idempotency::lock_of(key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName);
            assert!(error.message().contains(says), "expected {says:?}: {error}");
        }
    }

    #[test]
    fn a_fingerprint_is_the_sha256_of_the_request() {
        let hash = format!("{:x}", Bytes::copy_from_slice(&Sha256::digest("abc")));
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
