//! Optimistic updates: read, think for as long as it takes, and write only if nobody wrote in between.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    Backoff, Effect, Error, ErrorKind, FencingToken, LockName, Record, RecordKey, Result, Version,
};

use crate::guard::Guard;
use crate::hall::Hall;
use crate::locks::Locks;
use crate::record::RecordHandle;
use crate::request::{LockRequest, Terms};

/// How long a write waits for its turn, unless you choose: 10 seconds.
const WAIT_DEFAULT: Duration = Duration::from_secs(10);

/// How often [`Versioned::update`] tries, unless you choose: 16 times.
pub const TRIES_DEFAULT: u32 = 16;

/// The longest first pause of an update that came too late, and the longest of all.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

impl Locks {
    /// The record of a lock, to be changed by whoever read it last: no lock is held between a read and a write.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// use ringfence::patterns::Swap;
    ///
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let limits = locks.versioned("config/limits");
    /// let Swap::Swapped(first) = limits.compare_and_set(None, "rate=10").await? else { panic!("there was one") };
    ///
    /// // Somebody has it open in an editor, and somebody else is faster.
    /// assert!(matches!(limits.compare_and_set(Some(first), "rate=20").await?, Swap::Swapped(_)));
    /// match limits.compare_and_set(Some(first), "rate=11").await? {
    ///     Swap::Swapped(_) => panic!("this would have thrown away rate=20"),
    ///     Swap::Conflict(current) => assert_eq!(current.unwrap().value, "rate=20"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn versioned<N: TryInto<LockName, Error = Error>>(&self, name: N) -> Versioned {
        let terms = Terms { wait: Some(WAIT_DEFAULT), ..Terms::default() };
        Versioned {
            hall: Arc::clone(&self.hall),
            key: name.try_into().map(RecordKey::of),
            terms,
            tries: TRIES_DEFAULT,
        }
    }
}

/// A record with a version, which counts its writes.
///
/// It is the record of the lock of its name ([`Locks::record`]). Every write takes that lock for the moment it needs, opens
/// the record with the token it got, compares and writes. So it meets those who hold the lock for longer and write with their
/// tokens: their writes count, and while they hold it nobody writes here.
#[derive(Clone, Debug)]
#[must_use = "it reads and writes nothing on its own"]
pub struct Versioned {
    hall: Arc<Hall>,
    key: Result<RecordKey>,
    terms: Terms,
    tries: u32,
}

/// What became of a compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a conflict is a value: nothing was written"]
#[expect(clippy::exhaustive_enums, reason = "the version was the expected one or it was not")]
pub enum Swap {
    /// The value is written, with this version.
    Swapped(Version),
    /// The record has another version than was expected, and nothing was written. As it stands; `None` if it was never written.
    Conflict(Option<Record>),
}

impl Versioned {
    /// Another record of the same lock; see [`RecordKey::new`].
    pub fn field(mut self, field: &str) -> Self {
        self.key = self.key.and_then(|key| RecordKey::new(key.lock().clone(), field));
        self
    }

    /// For how long a write waits for its turn, instead of 10 seconds.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// How long the lease of a write lives, and so how long others wait for a writer that died in the middle; see
    /// [`LockRequest::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// How often [`update`](Self::update) tries, instead of [`TRIES_DEFAULT`] times; at least once.
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// The record as it stands, `None` if it was never written. One round trip.
    pub async fn read(&self) -> Result<Option<Record>> {
        self.record()?.read().await
    }

    /// Writes the value if the record still has this version, `None` for one that was never written.
    ///
    /// Four round trips: to acquire the lock, to open the record, to write it and to release; three for a conflict. Where tasks of
    /// one process write together the lock goes from one to the next without the first and the last.
    ///
    /// Errors with [`ErrorKind::WaitElapsed`] when somebody held the lock for longer than the [wait](Self::wait), and as
    /// [`LockRequest::acquire`] and [`RecordHandle::open`] do. In each of these cases nothing was written.
    ///
    /// # Where an answer is lost
    /// A write whose answer did not come may have landed, and may land yet. It is found out before this returns: with a new
    /// token the record is opened once more, after which the fence refuses the first one, and its last writer says whether that
    /// was we. Only if that fails as well, or somebody else wrote in between, an error says that the effect is unknown
    /// ([`Error::effect`]) and names the token: if you read the record and it was
    /// [written with](Record::written_with) that one, it landed.
    ///
    /// # Cancel safety
    /// The value may have been written or not. The lock is released in the background.
    pub async fn compare_and_set(&self, expected: Option<Version>, value: impl Into<Bytes>) -> Result<Swap> {
        let turn = self.turn().await?;
        if turn.version() != expected {
            return Ok(Swap::Conflict(turn.done().await));
        }
        let token = turn.guard.token();
        match turn.record.write(token, value).await {
            Ok(version) => {
                turn.done().await;
                Ok(Swap::Swapped(version))
            }
            Err(error) if error.effect() == Effect::Unknown => {
                turn.done().await;
                self.settle(expected, token, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// Finds out what became of a write whose answer was lost.
    async fn settle(&self, expected: Option<Version>, lost: FencingToken, error: Error) -> Result<Swap> {
        let found = match self.turn().await {
            Ok(turn) => Some((turn.version(), turn.done().await)),
            Err(_) => None,
        };
        match found {
            Some((_, Some(record))) if record.written_with == lost => Ok(Swap::Swapped(record.version)),
            // The record stands open to a later token: what has not landed by now is refused.
            Some((version, _)) if version == expected => Err(error.without_effect()),
            _ => {
                let key = self.key.clone()?;
                Err(error.about(format_args!(
                    "the record {key} may have been written with token {lost} or not: read it, before you write again"
                )))
            }
        }
    }

    /// Reads the record, has `change` make a new value of it, and writes that if nobody wrote in between: else again, after a
    /// pause, from what there is then. Returns the version that was written.
    ///
    /// `change` is called once for each try, so what else it does it may do several times; an error of it ends the update and
    /// nothing is written. The pauses are drawn at random, of at most 5 ms at first and 200 ms at last. A try takes the round
    /// trips of [`read`](Self::read) and [`compare_and_set`](Self::compare_and_set).
    ///
    /// Errors with [`ErrorKind::Conflict`] when somebody was faster in every [try](Self::tries), with
    /// [`ErrorKind::InvalidRequest`] for no tries at all, and as `compare_and_set` does: no error is tried again, so that nothing
    /// is written twice.
    ///
    /// # Cancel safety
    /// As for [`compare_and_set`](Self::compare_and_set).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let counter = locks.versioned("visits");
    /// for _ in 0..3 {
    ///     counter.update(async |current| {
    ///         let visits = current.map_or(0, |record| record.value[0]);
    ///         Ok::<_, ringfence::Error>(vec![visits + 1])
    ///     }).await?;
    /// }
    /// assert_eq!(counter.read().await?.unwrap().value, [3].as_slice());
    /// # Ok(()) }
    /// ```
    #[doc(alias = "retry_on_conflict")]
    pub async fn update<V, E, F>(
        &self,
        // Not `AsyncFnMut`, whose future the compiler cannot see to be `Send` where it borrows: no web handler could call it.
        mut change: impl FnMut(Option<Record>) -> F,
    ) -> Result<Version, E>
    where
        V: Into<Bytes>,
        E: From<Error>,
        F: Future<Output = Result<V, E>>,
    {
        if self.tries == 0 {
            return Err(Error::new(ErrorKind::InvalidRequest, "an update takes at least one try").into());
        }
        let (first, most) = PAUSES;
        let mut backoff = Backoff::new(first, most);
        for tried in 1.. {
            let current = self.read().await?;
            let version = current.as_ref().map(|record| record.version);
            let value = change(current).await?;
            match self.compare_and_set(version, value).await? {
                Swap::Swapped(version) => return Ok(version),
                Swap::Conflict(_) if tried < self.tries => tokio::time::sleep(backoff.pause()).await,
                Swap::Conflict(_) => break,
            }
        }
        let key = self.key.clone()?;
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "the record {key} was written by somebody else between the read and the write, {} times in a row; try again \
                 later, or hold its lock while you change it",
                self.tries
            ),
        )
        .into())
    }

    /// Takes the lock and opens the record.
    async fn turn(&self) -> Result<Turn> {
        let record = self.record()?;
        let lock = record.key().lock().clone();
        let guard =
            LockRequest::new(Arc::clone(&self.hall), Ok(lock), self.terms.clone(), None).acquire().await?;
        let found = record.open(guard.token()).await?.record;
        Ok(Turn { guard, record, found })
    }

    fn record(&self) -> Result<RecordHandle> {
        Ok(RecordHandle::new(Arc::clone(&self.hall), self.key.clone()?))
    }
}

/// The moment in which nobody else writes.
struct Turn {
    guard: Guard,
    record: RecordHandle,
    found: Option<Record>,
}

impl Turn {
    fn version(&self) -> Option<Version> {
        self.found.as_ref().map(|record| record.version)
    }

    /// Gives the lock back and says what was found. A release that fails changes nothing of what the fence took or refused.
    async fn done(self) -> Option<Record> {
        let name = self.guard.name().clone();
        if let Err(error) = self.guard.release().await {
            tracing::warn!(%name, %error, "a versioned record's lock was not released");
        }
        self.found
    }
}
