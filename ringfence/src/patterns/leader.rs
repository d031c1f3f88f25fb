//! Leader election: one of several candidates leads, for a term that has a fencing token.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    Error, ErrorKind, FencingToken, HolderInfo, LockName, RECORD_VALUE_MAX, Record, RecordKey, Result,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::guard::Guard;
use crate::locks::Locks;
use crate::patterns::lock_of;
use crate::record::RecordHandle;
use crate::request::{LockRequest, Terms};
use crate::stakes::Stakes;

/// How often an [`Observation`] looks. A look is two round trips, one after the other.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Locks {
    /// An election that is held under this name. What is wrong with the name is an error of its first use.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let election = locks.leader("scheduler");
    /// let mut observation = election.observe();
    /// assert_eq!(observation.next().await?, None);                        // nobody leads
    ///
    /// let leadership = election.campaign("10.0.0.7:8080").await?;         // waits in line until it leads
    /// let leader = observation.next().await?.unwrap();
    /// assert_eq!((leader.value.as_str(), leader.term), ("10.0.0.7:8080", leadership.term()));
    ///
    /// leadership.resign().await?;
    /// assert_eq!(observation.next().await?, None);
    /// # Ok(()) }
    /// ```
    pub fn leader<N: TryInto<LockName, Error = Error>>(&self, name: N) -> Election {
        let lock = lock_of("leader", name.try_into());
        Election { locks: self.clone(), lock, terms: Terms { alone: true, ..Terms::default() } }
    }
}

/// One election: candidates [campaign](Self::campaign) for it, anybody may [observe](Self::observe) it.
///
/// Whoever holds the lock `leader/NAME` leads, and the token of that grant is the *term*: a later term is a higher token.
/// What the leader proclaims stands in the lock's record, written behind its fence.
#[derive(Clone, Debug)]
#[must_use = "an election has no candidate until one campaigns"]
pub struct Election {
    locks: Locks,
    lock: Result<LockName>,
    terms: Terms,
}

impl Election {
    /// How long a term outlives a leader that died or is cut off; see [`LockRequest::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// Lets nobody lead for this long after a term that did not end by [resignation](Leadership::resign), once its TTL is over; see
    /// [`LockRequest::lock_delay`]. Until then the lost leader is who [`current`](Self::current) sees.
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.terms.lock_delay = delay;
        self
    }

    /// Lets a leader lead for at most this long and a TTL, as if it hung; see [`LockRequest::max_hold`].
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.terms.max_hold = Some(max_hold);
        self
    }

    /// What two leaders at once would cost; see [`LockRequest::stakes`].
    pub fn stakes(mut self, stakes: Stakes) -> Self {
        self.terms.stakes = stakes;
        self
    }

    /// What the candidate calls itself; see [`LockRequest::label`].
    pub fn label(mut self, label: &str) -> Self {
        self.terms.label = Some(label.to_owned());
        self
    }

    /// Waits in line until this candidate leads, and proclaims `value`: an address, say. Two round trips beside those of the lock.
    ///
    /// Two candidates of one process stand in line as two. A candidate that loses its lease between the grant and the
    /// proclamation, because it was paused there, goes to the end of the line.
    ///
    /// Errors as [`LockRequest::acquire`] and [`RecordHandle::write`] do; with [`ErrorKind::InvalidRequest`], before anything is
    /// sent, if the value takes more than [`RECORD_VALUE_MAX`] bytes as JSON. Whatever the error, this candidate does not lead.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws the candidacy; a term that had begun ends.
    pub async fn campaign(&self, value: &str) -> Result<Leadership> {
        let lock = self.lock.clone()?;
        let proclamation = Proclamation::encode(value)?;
        loop {
            let guard = self.request(&lock).acquire().await?;
            guard.confirmed().await;
            let leadership = Leadership { record: self.record(lock.clone()), guard };
            match leadership.begin(proclamation.clone()).await {
                Ok(()) => return Ok(leadership),
                Err(error) if !leadership.guard.is_held() => {
                    tracing::warn!(name = %lock, %error, "a term was over before it was proclaimed, campaigning again");
                }
                Err(error) => {
                    // What went wrong first is what the caller has to know.
                    let _ = leadership.resign().await;
                    return Err(error);
                }
            }
        }
    }

    /// Who leads now, `None` if nobody does. Two round trips.
    ///
    /// A leader is one whose lease is held, and whose term is the token that the record was written with: somebody who was
    /// paused past its lease is none, and somebody who has yet to proclaim its value is none yet. By the time this returns it may
    /// have changed.
    pub async fn current(&self) -> Result<Option<Leader>> {
        let lock = self.lock.clone()?;
        // In this order: if the writer of the record holds the lock afterwards, it held it at the time of the record.
        let Some(record) = self.record(lock.clone()).read().await? else { return Ok(None) };
        let state = self.locks.inspect(&lock).await?;
        let leads = state
            .holders
            .into_iter()
            .find(|holder| holder.token == record.written_with && !holder.has_lapsed());
        leads
            .map(|seen| {
                let value = Proclamation::decode(&lock, &record)?;
                Ok(Leader { value, term: record.written_with, holder: seen.holder })
            })
            .transpose()
    }

    /// Watches who leads.
    pub fn observe(&self) -> Observation {
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Observation { election: self.clone(), looks, newest: None, reported: None, begun: false }
    }

    fn request(&self, lock: &LockName) -> LockRequest {
        LockRequest::new(Arc::clone(&self.locks.hall), Ok(lock.clone()), self.terms.clone(), None)
    }

    fn record(&self, lock: LockName) -> RecordHandle {
        RecordHandle::new(Arc::clone(&self.locks.hall), RecordKey::of(lock))
    }
}

/// Leading, for one term. Owning it is the proof, as far as a [`Guard`] is one.
///
/// # Drop
/// Dropping it ends the term in the background, best effort; [`resign`](Self::resign) is the real one.
#[derive(Debug)]
#[must_use = "a leadership that is dropped is resigned at once"]
pub struct Leadership {
    record: RecordHandle,
    guard: Guard,
}

impl Leadership {
    /// The term: the fencing token for whatever the leader does, higher than that of every leader before.
    pub fn term(&self) -> FencingToken {
        self.guard.token()
    }

    /// The guard of the lock `leader/NAME`, which says for how long the term is proven.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Resolves when the term is over or can no longer be proven; see [`Guard::lost`].
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.guard.lost()
    }

    /// Errors with [`ErrorKind::Lost`] unless the term can be proven right now; see [`Guard::ensure_held`].
    pub fn ensure_held(&self) -> Result<()> {
        self.guard.ensure_held()
    }

    /// Replaces what the leader proclaims. One round trip.
    ///
    /// Errors with [`ErrorKind::Lost`] where this process knows that the term is over, and with [`ErrorKind::Stale`] where the
    /// record knows: then a later leader's value stands there, and stays. With [`ErrorKind::InvalidRequest`] as
    /// [`campaign`](Election::campaign) does.
    ///
    /// # Cancel safety
    /// The value may have been written or not.
    pub async fn proclaim(&self, value: &str) -> Result<()> {
        let proclamation = Proclamation::encode(value)?;
        self.ensure_held()?;
        self.record.write(self.term(), proclamation).await?;
        Ok(())
    }

    /// Ends the term: the next in line leads. One round trip. Errors as [`Guard::release`] does.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop it.
    pub async fn resign(self) -> Result<()> {
        self.guard.release().await
    }

    /// Ends the term for this process, and for the others not before its TTL and the [lock delay](Election::lock_delay) are over: for a
    /// leader whose work may still be on its way. Errors as [`Guard::leave_to_lapse`] does.
    ///
    /// # Cancel safety
    /// Dropping the future before it resolves resigns.
    pub async fn leave_to_lapse(self) -> Result<()> {
        self.guard.leave_to_lapse().await
    }

    /// Opens the record to this term, so that no earlier leader can write any more, then writes.
    async fn begin(&self, proclamation: Bytes) -> Result<()> {
        self.record.open(self.term()).await?;
        self.record.write(self.term(), proclamation).await?;
        Ok(())
    }
}

/// Somebody who leads, as seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Leader {
    /// What it proclaims.
    pub value: String,
    /// Its term.
    pub term: FencingToken,
    /// Who it is.
    pub holder: HolderInfo,
}

/// Watches an election; see [`Election::observe`].
///
/// It looks once a second, two round trips each, because no backend calls those who only watch: what lasted for less than
/// a second may never be seen. It never reports a leader older than one it reported, whatever an old replica or a store that lost
/// its memory says: then it reports that nobody leads, until there is a later leader.
#[derive(Debug)]
#[must_use = "an observation looks at nothing until it is asked"]
pub struct Observation {
    election: Election,
    looks: Interval,
    newest: Option<FencingToken>,
    reported: Option<Leader>,
    begun: bool,
}

impl Observation {
    /// Who leads, as soon as that is something else than what this said before: another leader, another value, or nobody (`None`).
    /// The first call answers at once.
    ///
    /// Errors with what a look errors with; the next call looks again, a second later.
    ///
    /// # Cancel safety
    /// Nothing is lost but the look that is under way.
    pub async fn next(&mut self) -> Result<Option<Leader>> {
        loop {
            self.looks.tick().await;
            let seen = self.election.current().await?.filter(|leader| self.admits(leader.term));
            if self.begun && seen == self.reported {
                continue;
            }
            self.begun = true;
            self.newest = seen.as_ref().map(|leader| leader.term).or(self.newest);
            self.reported.clone_from(&seen);
            return Ok(seen);
        }
    }

    /// Whether a term is the newest that was reported, or later.
    fn admits(&self, term: FencingToken) -> bool {
        let admitted = self.newest.is_none_or(|newest| term == newest || term.sequence() > newest.sequence());
        if !admitted {
            tracing::warn!(%term, newest = ?self.newest, "a leader older than one before is not reported");
        }
        admitted
    }
}

/// What stands in the record.
#[derive(Debug, Serialize, Deserialize)]
struct Proclamation {
    value: String,
}

impl Proclamation {
    fn encode(value: &str) -> Result<Bytes> {
        let json = serde_json::to_vec(&Self { value: value.to_owned() }).expect("a string is JSON");
        if json.len() > RECORD_VALUE_MAX {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "what a leader proclaims is at most {RECORD_VALUE_MAX} bytes of JSON, this is {}: proclaim where to find it",
                    json.len()
                ),
            ));
        }
        Ok(json.into())
    }

    fn decode(lock: &LockName, record: &Record) -> Result<String> {
        let Self { value } = serde_json::from_slice(&record.value).map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the record of {lock:?} is no proclamation of a leader: something else was written there"
                ),
            )
            .because(error)
        })?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use ringfence_core::Nonce;

    use super::*;

    async fn observation() -> Observation {
        Locks::connect("memory:").await.unwrap().leader("a").observe()
    }

    fn term(sequence: u64, nonce: u64) -> FencingToken {
        FencingToken::new(sequence, Nonce::from_u64(nonce).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn an_older_leader_than_the_newest_is_not_admitted() {
        let observation = Observation { newest: Some(term(7, 1)), ..observation().await };
        assert!(observation.admits(term(7, 1)), "the same one, with another value");
        assert!(observation.admits(term(8, 2)));
        assert!(!observation.admits(term(6, 3)), "from a store that lost its memory");
        assert!(
            !observation.admits(term(7, 2)),
            "nobody can say which of two with one number is the older one"
        );
    }

    #[test]
    fn a_value_that_no_record_holds_is_refused() {
        assert!(Proclamation::encode(&"x".repeat(RECORD_VALUE_MAX - 12)).is_ok());
        let error = Proclamation::encode(&"x".repeat(RECORD_VALUE_MAX - 11)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    }
}
