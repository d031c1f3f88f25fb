use std::convert::Infallible;
use std::fmt;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Agreement, BootInstant, Error, ErrorKind, FencingToken, LockName, Mode, PresentedToken, Renewal, Result,
    Ttl,
};

use crate::holder::Enrolment;
use crate::turn::Turn;

/// Holding a lock. Owning a guard is the proof.
///
/// A guard speaks for a *lease*, which the keeper renews for as long as the guard lives. A lease can be lost: this process
/// may be paused or cut off for longer than the TTL, or an operator may evict it. So a guard never promises that nobody
/// else holds the lock; it says whether holding can be *proven* ([`is_held`](Self::is_held)), tells when it no longer can
/// ([`lost`](Self::lost)), and carries a [token](Self::token) for the guarded resource to check, which is what stops the
/// write of a holder that was paused between the check and the write.
///
/// # Drop
/// Dropping a guard releases in the background, best effort: nobody learns of a failure (it is logged), and the name is
/// free a little later, at the TTL at the latest. [`release`](Self::release) is the real one. A guard whose lease is lost gives
/// nothing back where there is a [`lock_delay`](crate::LockRequest::lock_delay), which then runs its course.
#[must_use = "a lock whose guard is dropped is released at once"]
pub struct Guard {
    hold: Arc<Hold>,
}

/// What the guards of one turn share: `nested` ones have the same. The last guard to go ends the turn.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) turn: Turn,
    _enrolment: Option<Enrolment>,
}

impl Guard {
    pub(crate) fn new(turn: Turn, max_hold: Option<Duration>, enrolment: Option<Enrolment>) -> Self {
        if let Some(max_hold) = max_hold {
            turn.lease.set_renewed_until(turn.since().saturating_add(max_hold));
        }
        Self { hold: Arc::new(Hold { turn, _enrolment: enrolment }) }
    }

    pub(crate) fn of(hold: Arc<Hold>) -> Self {
        Self { hold }
    }

    pub(crate) fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// What is locked.
    pub fn name(&self) -> &LockName {
        self.hold.turn.lease.name()
    }

    /// How it is held.
    pub fn mode(&self) -> Mode {
        self.hold.turn.lease.mode()
    }

    /// The TTL that the backend granted: for how long a renewal extends the lease. A
    /// [`lock_delay`](crate::LockRequest::lock_delay) comes on top of it, for others.
    pub fn ttl(&self) -> Ttl {
        self.hold.turn.lease.ttl()
    }

    /// The fencing token, for the guarded resource to check. It never changes.
    pub fn token(&self) -> FencingToken {
        self.hold.turn.token
    }

    /// What it took to get the lease, where several independent nodes had to agree to it; `None` elsewhere.
    pub fn agreement(&self) -> Option<Agreement> {
        self.hold.turn.lease.agreement
    }

    /// The token as it is shown to a resource that may ask for a MAC: sealed with the key of these locks, where they have one, else
    /// bare.
    pub fn presented_token(&self) -> PresentedToken {
        let turn = &self.hold.turn;
        match &turn.hall.settings.token_key {
            Some(key) => key.seal(self.name(), turn.token),
            None => turn.token.into(),
        }
    }

    /// Whether holding can be proven right now: the lease is not known to be lost, and its deadline has not come.
    ///
    /// The deadline is on this machine's boot-time clock and counts from before the grant or the last renewal was asked
    /// for. Once this says `false` it never says `true` again. Between a `true` and the next line of code this process may
    /// be paused for as long as it pleases the machine: only the token protects the resource.
    pub fn is_held(&self) -> bool {
        self.hold.turn.is_held()
    }

    /// Like [`is_held`](Self::is_held), for the `?` operator. Errors with [`ErrorKind::Lost`].
    pub fn ensure_held(&self) -> Result<()> {
        if self.is_held() { Ok(()) } else { Err(self.hold.turn.lease.lost_error()) }
    }

    /// For how long holding is proven if nothing is renewed from now on: zero once the lease is lost. A moment after a
    /// hand-over it can be much less than the TTL; see [`confirmed`](Self::confirmed).
    pub fn remaining(&self) -> Duration {
        let turn = &self.hold.turn;
        turn.lease.state.remaining(turn.hall.clock.now())
    }

    /// Resolves when the lease is known to live for its whole TTL, or is lost.
    ///
    /// That is at once, but for a lock that another process has just handed over: some backends give a turn to a waiter for
    /// a second at first, so that one that died in line does not hold up the others, and [`remaining`](Self::remaining)
    /// says so until the first renewal is answered, one round trip later.
    pub async fn confirmed(&self) {
        self.hold.turn.confirmed().await;
    }

    /// Resolves when the lease is lost: when the backend says so, or at the local deadline, whatever the keeper does. Never
    /// while holding can be proven.
    ///
    /// The future does not borrow the guard and may go to another task. After the guard has been released or dropped it
    /// never resolves: there is nothing left to lose.
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        self.lost_but_for(Duration::ZERO)
    }

    /// Resolves when the lease is lost, or can be proven for no longer than `margin`.
    pub(crate) fn lost_but_for(&self, margin: Duration) -> impl Future<Output = ()> + Send + use<> {
        let lease = Arc::clone(&self.hold.turn.lease);
        let clock = Arc::clone(&self.hold.turn.hall.clock);
        let hold = Arc::downgrade(&self.hold);
        async move {
            loop {
                let gone = lease.gone.notified();
                let now = clock.now();
                let deadline = lease.state.deadline(now);
                // Counted, not upgraded: a borrowed guard here could turn out to be the last one. And counted after the look: the last
                // one is gone before the lease is given back, which looks like a loss.
                if hold.strong_count() == 0 {
                    return pending().await;
                }
                let Some(deadline) = deadline else { return };
                let spare = deadline.saturating_since(now).saturating_sub(margin);
                let Some(nap) = clock.nap(now.saturating_add(spare)) else { return };
                tokio::select! {
                    () = gone => {}
                    () = tokio::time::sleep(nap) => {}
                }
            }
        }
    }

    /// Gives the lock back, to the next one in line.
    ///
    /// From the moment this is called the guard claims nothing. One round trip; none where the lock is handed to another
    /// task of this process, or where a [nested](Self::nested) guard still holds it: the last one out releases.
    ///
    /// Errors with [`ErrorKind::Lost`] if the lease turned out to be lost before: what was done under it may have
    /// overlapped with somebody else's work. On any other error the release may have arrived or not
    /// ([`Effect::Unknown`](ringfence_core::Effect)); it is released again in the background until there is an
    /// answer, and the lease ends at its TTL at the latest.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the release.
    pub async fn release(self) -> Result<()> {
        match Arc::into_inner(self.hold) {
            Some(hold) => hold.turn.end().await,
            None => Ok(()),
        }
    }

    /// Leaves the lock without releasing it: nobody else gets it before a TTL has gone by since the grant. That makes a limit on a
    /// *rate* of a limit on how many hold at once: a permit that is left to lapse is one of `limit` in a TTL. With a
    /// [lock delay](crate::LockRequest::lock_delay) nobody gets it before that has gone by as well, counted from when this guard would
    /// have been lost without another renewal: for a holder whose work may still be on its way.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # use std::time::Duration;
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let one_of_ten = locks.lock("api").permits(10).ttl(Duration::from_secs(60)).acquire().await?;
    /// one_of_ten.leave_to_lapse().await?;                             // at most ten in a minute get past this line
    /// # Ok(()) }
    /// ```
    ///
    /// From the moment this is called the guard claims nothing. The lease is kept in the background and given back when that time is
    /// over, or at once where it is over already. Neither dropping nor [closing](crate::Locks::close) the `Locks` ends it sooner.
    /// What does, as it would of any lease: an eviction, a server that forgets, and, where
    /// [`HolderDeath`](crate::HolderDeath) says so, the death of this process; elsewhere a process that dies leaves it for up to a
    /// TTL after its last renewal.
    ///
    /// No round trip, but for [`confirmed`](Self::confirmed), which is waited for; in the background its renewals, and one to give it
    /// back. Errors with [`ErrorKind::Lost`] if the lease turned out to be lost, and with [`ErrorKind::InvalidRequest`] while
    /// [nested](Self::nested) guards rely on it. On an error this guard is released as if it were dropped.
    ///
    /// # Cancel safety
    /// Dropping the future before it resolves drops the guard: the lock is released.
    pub async fn leave_to_lapse(self) -> Result<()> {
        self.confirmed().await;
        let name = self.name().clone();
        let hold = Arc::into_inner(self.hold).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidRequest,
                format!("{name:?} has nested guards that rely on its lease: release them before you leave it to lapse"),
            )
        })?;
        hold.turn.lapse()
    }

    /// Gives the lock back although there are [nested](Self::nested) guards: they have lost it from now on.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the release.
    pub(crate) async fn take_back(self) -> Result<()> {
        self.hold.turn.take_back().await
    }

    /// A second guard on the same lease, with the same token: for code that needs a guard of its own inside of code that
    /// has one. The last one out releases.
    pub fn nested(&self) -> Guard {
        Guard { hold: Arc::clone(&self.hold) }
    }

    /// Turns an exclusive hold into a shared one and lets waiting readers in. The lease and the token stay. One round trip.
    ///
    /// A shared hold is returned as it is. Errors with [`ErrorKind::InvalidRequest`] while [nested](Self::nested) guards
    /// rely on the exclusive hold, and with [`ErrorKind::Lost`] if the lease turned out to be lost. On an error this guard
    /// is released as if it were dropped.
    ///
    /// # Cancel safety
    /// Dropping the future drops the guard: the lock is released.
    pub async fn downgrade(self) -> Result<Guard> {
        let turn = &self.hold.turn;
        match turn.lease.mode() {
            Mode::Exclusive => {}
            Mode::Shared => return Ok(self),
            permit @ Mode::Permit(_) => {
                return Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!(
                        "{:?} is held as a {permit}: only an exclusive hold can be downgraded",
                        self.name()
                    ),
                ));
            }
        }
        // First the flag, then the count: a nested guard that is being made meanwhile sees the one or is seen by the other.
        turn.lease.set_downgraded(true);
        if Arc::strong_count(&self.hold) > 1 {
            turn.lease.set_downgraded(false);
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!(
                    "{:?} has nested guards that rely on its exclusive hold: release them first",
                    self.name()
                ),
            ));
        }
        let (hall, lease) = (Arc::clone(&turn.hall), Arc::clone(&turn.lease));
        let background = hall.background.clone();
        background
            .finish(async move {
                match hall.backend.downgrade(&lease.key).await {
                    Ok(Renewal::Renewed) => {
                        // Readers come by way of the backend; who wants it exclusively waits there from now on.
                        hall.stand_again(&lease);
                        Ok(self)
                    }
                    Ok(Renewal::Lost) => {
                        hall.lost(lease.key.nonce);
                        Err(lease.lost_error())
                    }
                    Ok(Renewal::Unknown) => Err(Error::new(
                        ErrorKind::Unavailable,
                        format!(
                            "nobody can say whether {:?} is shared by now: its server did not answer",
                            lease.name()
                        ),
                    )
                    .with_unknown_effect()),
                    Err(error) => Err(error),
                }
            })
            .await
    }

    /// Always refused, with [`ErrorKind::Unsupported`]: a shared hold cannot become an exclusive one.
    ///
    /// Two readers that both want to upgrade would wait for each other for ever. Release, acquire exclusively, and read
    /// again what the decision was based on: in between somebody else may have written.
    pub fn upgrade(&self) -> Result<Infallible> {
        Err(upgrade_error(self.name()))
    }
}

pub(crate) fn upgrade_error(name: &LockName) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!(
            "the hold on {name:?} cannot become an exclusive one: two holders that upgrade wait for each other for ever; \
             release it, acquire it exclusively, then read again what you read before"
        ),
    )
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard")
            .field("name", self.name())
            .field("mode", &self.mode())
            .field("token", &self.token())
            .field("remaining", &self.remaining())
            .finish()
    }
}

/// Sleeps until an instant of the boot-time clock.
pub(crate) async fn sleep_until(clock: &dyn ringfence_core::Clock, instant: BootInstant) {
    while let Some(nap) = clock.nap(instant) {
        tokio::time::sleep(nap).await;
    }
}
