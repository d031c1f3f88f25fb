use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    BootInstant, Clock, Contention, Error, ErrorKind, HolderInfo, LockName, Mode, Nonce, Result, Ttl,
};
use tokio::sync::oneshot;
use tracing::field::{self, Empty};
use tracing::{Instrument, Span};

use crate::guard::{Guard, sleep_until, upgrade_error};
use crate::hall::{Hall, Outcome, RoomKey};
use crate::holder::{Enrolment, covers};
use crate::quiet::answer_from;
use crate::stakes::Stakes;
use crate::stander::Stander;
use crate::waiting_room::Joined;

/// How long a request whose wait is over waits until its place in line is given up, before it leaves that to the
/// background.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

/// A request for a lock: say what you want, then [`acquire`](Self::acquire), [`try_acquire`](Self::try_acquire) or
/// [`run`](Self::run).
///
/// Nothing is sent before that, and whatever is wrong with the request is that call's error.
#[derive(Debug)]
#[must_use = "a request asks for nothing until it is acquired"]
pub struct LockRequest {
    hall: Arc<Hall>,
    name: Result<LockName>,
    terms: Terms,
    holder_id: Option<Arc<str>>,
}

/// What is wanted, beside the name. It is checked when the lock is acquired.
#[derive(Clone, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) shared: bool,
    pub(crate) permits: Option<u32>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) lock_delay: Duration,
    pub(crate) wait: Option<Duration>,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) stakes: Stakes,
    pub(crate) label: Option<String>,
    pub(crate) metadata: Option<String>,
    /// Stands in the backend's line itself, so that its grant is its own and never another task's before it.
    pub(crate) alone: bool,
}

/// For how long a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Not at all: it takes what is free, and stands in no line.
    None,
    Until(BootInstant),
    Unlimited,
}

impl Patience {
    /// The patience of a request that begins to wait now.
    pub(crate) fn of(wait: Option<Duration>, clock: &dyn Clock) -> Self {
        match wait {
            None => Self::Unlimited,
            Some(Duration::ZERO) => Self::None,
            Some(wait) => Self::Until(clock.now().saturating_add(wait)),
        }
    }
}

impl LockRequest {
    pub(crate) fn new(
        hall: Arc<Hall>,
        name: Result<LockName>,
        terms: Terms,
        holder_id: Option<Arc<str>>,
    ) -> Self {
        Self { hall, name, terms, holder_id }
    }

    /// How long the lease lives without renewal, instead of the default of the [`Locks`](crate::Locks). The keeper renews
    /// it for as long as the guard lives; the TTL is how long others wait for a holder that died or is cut off.
    ///
    /// A part of a millisecond rounds up. `acquire` errors with [`ErrorKind::InvalidTtl`] outside the range of the backend.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// Keeps everybody else out for this long after an unclean loss: a holder that was killed, hangs, or cannot renew has lost the
    /// lock at its deadline, as ever, and nobody gets it before this time has passed as well. A part of a millisecond rounds up;
    /// zero, which is the default, is no delay.
    ///
    /// It is the only help for a resource that cannot check a [token](Guard::token): what the lost holder has sent has this long
    /// to arrive. It is no fence, and a holder that was paused for longer than TTL and delay together still does its damage.
    /// A guard that is released or dropped while it holds gives the lock to the next one at once, and so does an operator's
    /// [eviction](crate::Locks::evict).
    ///
    /// No round trip more. `acquire` errors with [`ErrorKind::InvalidTtl`] where TTL and delay together are longer than the
    /// longest TTL of the backend, and with [`ErrorKind::Unsupported`] on one that ends the leases of a dead holder at once:
    /// there it would not hold.
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.terms.lock_delay = delay;
        self
    }

    /// Waits for at most this long, instead of without a limit. Zero takes what is free and waits for nothing but the
    /// backend's answer. The error of who waited in vain says who has the lock, as far as that is known: where the backend does not
    /// tell who leaves its line, the last one of this process to leave asks, by an [inspection](crate::Locks::inspect).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// Holds the lock together with other shared holders and never beside an exclusive one: for readers.
    pub fn shared(mut self) -> Self {
        self.terms.shared = true;
        self
    }

    /// Takes one of `limit` permits: at most so many hold the lock at once. 1 to 65,536. Where requests for one name
    /// give different limits, the smallest one counts.
    pub fn permits(mut self, limit: u32) -> Self {
        self.terms.permits = Some(limit);
        self
    }

    /// Stops renewing after this long, so that a worker that hangs loses the lock: at most a TTL later.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.terms.max_hold = Some(max_hold);
        self
    }

    /// What a double run costs. With [`Stakes::Correctness`] a backend whose tokens are not durable is refused.
    pub fn stakes(mut self, stakes: Stakes) -> Self {
        self.terms.stakes = stakes;
        self
    }

    /// What the holder calls itself to whoever [inspects](crate::Locks::inspect) the lock. 1 to 255 bytes.
    pub fn label(mut self, label: &str) -> Self {
        self.terms.label = Some(label.to_owned());
        self
    }

    /// Free text for whoever inspects the lock, at most 1 KiB. Put no secret into it.
    pub fn metadata(mut self, metadata: &str) -> Self {
        self.terms.metadata = Some(metadata.to_owned());
        self
    }

    /// Acquires the lock, waiting for it as long as [`wait`](Self::wait) says, else without a limit.
    ///
    /// One round trip where the lock is free; none where another task of this process hands it on. Who waits is served in
    /// the order in which it came, as far as the backend's [guarantees](crate::Guarantees) go.
    ///
    /// Errors with [`ErrorKind::WaitElapsed`] when the wait is over, and names who is in the way as far as that is known.
    /// Errors about the request itself come before anything is sent: [`InvalidName`](ErrorKind::InvalidName),
    /// [`InvalidTtl`](ErrorKind::InvalidTtl), [`InvalidRequest`](ErrorKind::InvalidRequest),
    /// [`Unsupported`](ErrorKind::Unsupported). Whatever the error, nothing was acquired.
    ///
    /// # Cancel safety
    /// Dropping the future gives the place in line up, and a lease that was granted meanwhile goes to the next one.
    pub async fn acquire(self) -> Result<Guard> {
        let patience = Patience::of(self.terms.wait, &*self.hall.clock);
        self.checked(patience)?.guard().await
    }

    /// Acquires the lock if it is free: `None` if somebody else has it or waits for it, in this process or elsewhere.
    ///
    /// It stands in no line and overtakes nobody. At most one round trip. A [`wait`](Self::wait) of the request is not for
    /// this call and is refused with [`ErrorKind::InvalidRequest`]. Otherwise errors as [`acquire`](Self::acquire) does.
    ///
    /// # Cancel safety
    /// As for [`acquire`](Self::acquire).
    pub async fn try_acquire(self) -> Result<Option<Guard>> {
        if self.terms.wait.is_some() {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "try_acquire does not wait: use acquire with this wait, or leave the wait out",
            ));
        }
        match self.checked(Patience::None)?.outcome().await? {
            Outcome::Granted(guard) => Ok(Some(guard)),
            Outcome::Busy(_) => Ok(None),
        }
    }

    /// Checks everything that can be checked before anything is sent.
    pub(crate) fn checked(self, patience: Patience) -> Result<Ask> {
        let Self { hall, name, terms, holder_id } = self;
        let room = terms.check(&hall, name?)?;
        Ok(Ask { hall, room, patience, wait: terms.wait, max_hold: terms.max_hold, holder_id })
    }
}

impl Terms {
    fn check(&self, hall: &Hall, name: LockName) -> Result<RoomKey> {
        let mode = match (self.permits, self.shared) {
            (None, false) => Mode::Exclusive,
            (None, true) => Mode::Shared,
            (Some(limit), false) => Mode::permit(limit)?,
            (Some(_), true) => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    "a lock is either shared or one of a number of permits: ask for one of the two",
                ));
            }
        };
        let guarantees = hall.backend.guarantees();
        let ttl = self.ttl.map_or(Ok(hall.settings.default_ttl), Ttl::new)?;
        if ttl < guarantees.ttl_min || ttl > guarantees.ttl_max {
            return Err(Error::new(
                ErrorKind::InvalidTtl,
                format!(
                    "a TTL on {} is {} to {}, {ttl} is not",
                    hall.backend, guarantees.ttl_min, guarantees.ttl_max
                ),
            ));
        }
        let kept = self.kept(hall, ttl)?;
        self.stakes.check(&hall.backend, guarantees)?;
        let mut holder = Arc::clone(&hall.settings.holder);
        if let Some(label) = &self.label {
            holder = Arc::new(HolderInfo::clone(&holder).with_label(label)?);
        }
        if let Some(metadata) = &self.metadata {
            holder = Arc::new(HolderInfo::clone(&holder).with_metadata(metadata)?);
        }
        let alone = (self.alone || mode != Mode::Exclusive).then(Nonce::random);
        Ok(RoomKey { name, mode, ttl, kept, holder, alone })
    }

    /// For how long the backend is to keep others out without a renewal.
    fn kept(&self, hall: &Hall, ttl: Ttl) -> Result<Ttl> {
        let (delay, guarantees) = (self.lock_delay, hall.backend.guarantees());
        if delay.is_zero() {
            return Ok(ttl);
        }
        if guarantees.holder_death.is_at_once() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "a lock delay would not hold on {}: if a holder dies, {}; leave it out and have the resource check the \
                     token, or use a backend whose leases end by their TTL alone",
                    hall.backend, guarantees.holder_death
                ),
            ));
        }
        let kept = Ttl::new(ttl.as_duration().saturating_add(delay)).ok();
        kept.filter(|kept| *kept <= guarantees.ttl_max).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidTtl,
                format!(
                    "a TTL and its lock delay on {} are at most {} together, {ttl} and {delay:?} are more",
                    hall.backend, guarantees.ttl_max
                ),
            )
        })
    }
}

/// A request that has been checked.
pub(crate) struct Ask {
    hall: Arc<Hall>,
    room: RoomKey,
    patience: Patience,
    wait: Option<Duration>,
    max_hold: Option<Duration>,
    holder_id: Option<Arc<str>>,
}

impl Ask {
    /// The guard, or the error of a wait that is over.
    pub(crate) async fn guard(&self) -> Result<Guard> {
        match self.outcome().await? {
            Outcome::Granted(guard) => Ok(guard),
            Outcome::Busy(contention) => Err(self.wait_elapsed(&contention)),
        }
    }

    /// The guard, or who is in the way.
    pub(crate) async fn outcome(&self) -> Result<Outcome<Guard>> {
        let Self { hall, room, .. } = self;
        let span = tracing::debug_span!(
            "ringfence.acquire",
            name = %room.name,
            mode = %room.mode,
            backend = %hall.backend,
            answered = Empty,
            nodes = Empty,
            quorum_time = Empty,
            attempts = Empty,
        );
        async {
            let asked = hall.clock.now();
            let outcome = match &self.holder_id {
                None => self.fresh(None).await,
                Some(id) => self.as_holder(Arc::clone(id)).await,
            };
            self.report(&outcome, asked);
            outcome
        }
        .instrument(span)
        .await
    }

    /// Gets a lease of its own.
    async fn fresh(&self, enrolment: Option<Enrolment>) -> Result<Outcome<Guard>> {
        loop {
            match self.sit().await? {
                Outcome::Busy(contention) => return Ok(Outcome::Busy(contention)),
                Outcome::Granted(turn) => {
                    // An offer that is not confirmed ends without a lock delay, so nobody is to work under one.
                    if self.room.has_lock_delay() {
                        turn.confirmed().await;
                    }
                    if turn.is_held() {
                        return Ok(Outcome::Granted(Guard::new(turn, self.max_hold, enrolment)));
                    }
                    // This process was paused between the grant and now for longer than the TTL.
                    tracing::warn!("the lease lapsed before its guard was made, acquiring again");
                    // It is lost already, and that is all the answer could say.
                    let _ = turn.end().await;
                }
            }
        }
    }

    /// Gets a nested guard on what the holder holds, or a lease of its own where it holds nothing.
    async fn as_holder(&self, id: Arc<str>) -> Result<Outcome<Guard>> {
        let (enrolment, held) = Enrolment::new(&self.hall, id, self.room.name.clone());
        let busy = Ok(Outcome::Busy(Contention::default()));
        let mut held = match self.patience {
            Patience::None => match held.try_lock() {
                Ok(held) => held,
                Err(_) => return busy,
            },
            Patience::Unlimited => held.lock().await,
            Patience::Until(deadline) => tokio::select! {
                biased;
                held = held.lock() => held,
                () = sleep_until(&*self.hall.clock, deadline) => return busy,
            },
        };
        if let Some(guard) = held.upgrade().map(Guard::of)
            && guard.is_held()
        {
            return if covers(guard.mode(), self.room.mode) {
                Ok(Outcome::Granted(guard))
            } else {
                Err(upgrade_error(guard.name()))
            };
        }
        let outcome = self.fresh(Some(enrolment)).await?;
        if let Outcome::Granted(guard) = &outcome {
            *held = Arc::downgrade(guard.hold());
        }
        Ok(outcome)
    }

    /// Takes a seat in the waiting room, and stands for the room if it is the first there.
    async fn sit(&self) -> Result<Outcome> {
        let tries = self.patience == Patience::None;
        let (answer, mut outcome) = oneshot::channel();
        let (room, number, first) = match self.hall.rooms.join(self.room.clone(), answer, tries) {
            Joined::Seated { room, number, first } => (room, number, first),
            Joined::Busy => return Ok(Outcome::Busy(Contention::default())),
            Joined::Closed => return Err(Hall::closed_error()),
        };
        let mut seat = Seat { hall: &self.hall, room, number, taken: true };
        let mut errand = None;
        if first {
            let stander = Stander::new(Arc::clone(&self.hall), Arc::clone(&seat.room));
            errand = self.hall.background.begin(stander.stand()).await.err();
        }
        let told = async {
            match &mut errand {
                Some(errand) => answer_from(errand, &mut outcome).await,
                None => (&mut outcome).await,
            }
        };
        let answer = match self.patience {
            Patience::None | Patience::Unlimited => Some(told.await),
            Patience::Until(deadline) => tokio::select! {
                biased;
                answer = told => Some(answer),
                () = sleep_until(&*self.hall.clock, deadline) => None,
            },
        };
        // Whatever is left of it goes on without us.
        drop(errand);
        match answer {
            Some(answer) => {
                seat.taken = false;
                answer.unwrap_or_else(|_| Err(self.cut_off()))
            }
            None => Ok(Outcome::Busy(seat.leave().await)),
        }
    }

    fn cut_off(&self) -> Error {
        Error::new(
            ErrorKind::Bug,
            format!(
                "the request for {:?} ended without an answer: the backend panicked, or the runtime was shut down",
                self.room.name.as_str()
            ),
        )
    }

    fn wait_elapsed(&self, contention: &Contention) -> Error {
        let (name, wait) = (self.room.name.as_str(), self.wait.unwrap_or_default());
        let holder = match contention.holders.as_slice() {
            [] => String::new(),
            [holder] => format!(": {holder} has it"),
            [holder, others @ ..] => format!(": {holder} and {} more have it", others.len()),
        };
        let line = match contention.waiters {
            0 => String::new(),
            1 => ", and one waits in line".to_owned(),
            waiters => format!(", and {waiters} wait in line"),
        };
        let state = match wait {
            Duration::ZERO => "is not free".to_owned(),
            wait => format!("was not free within {wait:?}"),
        };
        Error::new(
            ErrorKind::WaitElapsed,
            format!("{name:?} {state}{holder}{line}; try again later, or wait longer"),
        )
    }

    fn report(&self, outcome: &Result<Outcome<Guard>>, asked: BootInstant) {
        let meters = &self.hall.meters;
        match outcome {
            Ok(Outcome::Granted(guard)) => {
                meters.granted.increment(1);
                meters.wait.record(guard.hold().turn.since().saturating_since(asked));
                if let Some(agreement) = guard.agreement() {
                    Span::current()
                        .record("answered", agreement.answered)
                        .record("nodes", agreement.nodes)
                        .record("quorum_time", field::debug(agreement.took))
                        .record("attempts", agreement.attempts);
                }
                tracing::debug!(token = %guard.token(), "granted");
            }
            Ok(Outcome::Busy(_)) if self.patience == Patience::None => {
                meters.busy.increment(1);
                tracing::debug!("busy");
            }
            Ok(Outcome::Busy(_)) => {
                meters.wait_elapsed.increment(1);
                tracing::debug!("the wait is over");
            }
            Err(error) => {
                meters.failed.increment(1);
                tracing::debug!(%error, "failed");
            }
        }
    }
}

/// A seat in a waiting room; left when it is dropped.
struct Seat<'a> {
    hall: &'a Arc<Hall>,
    room: Arc<RoomKey>,
    number: u64,
    taken: bool,
}

impl Seat<'_> {
    /// Leaves at the end of the wait. The last one to leave sees the room's place in line given up; with who was in the way.
    async fn leave(mut self) -> Contention {
        self.taken = false;
        let Some(withdrawal) = self.hall.rooms.leave(&self.room, self.number) else {
            return Contention::default();
        };
        drop(withdrawal.abandoner);
        let who = async {
            // A grant that crossed the withdrawal was given back without a word.
            let contention = withdrawal.left.await.unwrap_or_default();
            if !contention.holders.is_empty() {
                return contention;
            }
            // Not every backend says so to one that leaves its line.
            match self.hall.backend.inspect(&self.room.name).await {
                Ok(state) => {
                    let holders = state.holders.into_iter().map(|one| one.holder).collect();
                    Contention::new(holders, state.waiters.len())
                }
                Err(_) => contention,
            }
        };
        tokio::time::timeout(FAREWELL_MAX, who).await.unwrap_or_default()
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        if self.taken {
            drop(self.hall.rooms.leave(&self.room, self.number));
        }
    }
}
