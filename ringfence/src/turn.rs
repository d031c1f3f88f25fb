//! A lease in this process, and the turn of one holder with it: from the grant to the release or the next hand-over.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringfence_core::{
    Agreement, Backend, Backoff, BootInstant, Clock, Error, ErrorKind, FencingToken, HANDOVER_BITS, LeaseKey,
    LockName, Mode, Release, Renewal, Result, Retry, Ttl,
};
use tokio::sync::Notify;

use crate::guard::sleep_until;
use crate::hall::{Hall, Outcome, RoomKey};
use crate::keeper::Keeper;
use crate::lease_state::LeaseState;
use crate::waiting_room::Next;

/// How often a task yields for a renewal to get out of a runtime of one thread: the renewal's task, the driver's, and once
/// more for the driver's writing.
const YIELDS_TO_SEND: usize = 3;

/// The pauses before a release that failed is made again: at first of at most this, and of this in the end.
const RELEASE_PAUSE: Duration = Duration::from_millis(20);
const RELEASE_PAUSE_MOST: Duration = Duration::from_secs(1);

/// What the keeper, the guards and those who watch for loss share of one lease.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) key: LeaseKey,
    pub(crate) state: LeaseState,
    /// Wakes those who watch for loss.
    pub(crate) gone: Notify,
    pub(crate) room: Arc<RoomKey>,
    /// What it took to get it, where several nodes had to agree.
    pub(crate) agreement: Option<Agreement>,
    /// For how long a renewal proves it. The backend keeps it for longer where there is a lock delay.
    ttl: Ttl,
    granted_at: BootInstant,
    /// For how long it was proven at first: for less than its TTL where it was an offer.
    lasted: Duration,
    /// Whether it is known to live for its TTL.
    confirmed: AtomicBool,
    renewed_until: AtomicU64,
    downgraded: AtomicBool,
    /// Whether its guard left it to lapse.
    left: AtomicBool,
}

impl Lease {
    pub(crate) fn new(granted: &ringfence_core::Lease, room: Arc<RoomKey>, granted_at: BootInstant) -> Self {
        let ttl = if room.has_lock_delay() { room.ttl.min(granted.key.ttl) } else { granted.key.ttl };
        let lasted = granted.lasts.min(ttl.as_duration());
        Self {
            key: granted.key.clone(),
            state: LeaseState::live_until(granted.counted_from.saturating_add(lasted)),
            gone: Notify::new(),
            room,
            agreement: granted.agreement,
            ttl,
            granted_at,
            lasted,
            confirmed: AtomicBool::new(!granted.is_offer()),
            renewed_until: AtomicU64::new(BootInstant::MAX.as_nanos()),
            downgraded: AtomicBool::new(false),
            left: AtomicBool::new(false),
        }
    }

    pub(crate) fn name(&self) -> &LockName {
        &self.key.name
    }

    /// For how long a renewal proves it.
    pub(crate) fn ttl(&self) -> Ttl {
        self.ttl
    }

    pub(crate) fn mode(&self) -> Mode {
        if self.downgraded.load(Ordering::SeqCst) { Mode::Shared } else { self.room.mode }
    }

    pub(crate) fn set_downgraded(&self, downgraded: bool) {
        self.downgraded.store(downgraded, Ordering::SeqCst);
    }

    /// Whether its guard left it to lapse, so that it outlives the locks that it was taken from.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether it is known to live for its TTL, and not only for as long as it was offered.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// A renewal was answered.
    pub(crate) fn confirm(&self) {
        if !self.confirmed.swap(true, Ordering::AcqRel) {
            self.gone.notify_waiters();
        }
    }

    /// Until when the keeper renews: the `max_hold` of the present holder.
    pub(crate) fn renewed_until(&self) -> BootInstant {
        BootInstant::from_nanos(self.renewed_until.load(Ordering::Relaxed))
    }

    pub(crate) fn set_renewed_until(&self, until: BootInstant) {
        self.renewed_until.store(until.as_nanos(), Ordering::Relaxed);
    }

    /// The error of whoever relied on the lease after it was lost.
    pub(crate) fn lost_error(&self) -> Error {
        Error::new(
            ErrorKind::Lost,
            format!(
                "the lease on {:?} is lost: it lapsed, or its holder was evicted; stop the work it guarded, and \
                 acquire the lock again",
                self.key.name.as_str()
            ),
        )
    }
}

/// The turn of one holder with a lease; the only turn, until it is over.
///
/// It ends in one of four ways: the lease is handed to the next one in the waiting room, or given back to the backend, or left
/// to lapse, or the turn is just dropped, which does one of the first two in the background.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(crate) hall: Arc<Hall>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) token: FencingToken,
    since: BootInstant,
    over: AtomicBool,
}

impl Turn {
    fn begin(hall: &Arc<Hall>, lease: &Arc<Lease>, token: FencingToken, since: BootInstant) -> Self {
        lease.set_renewed_until(BootInstant::MAX);
        Self { hall: Arc::clone(hall), lease: Arc::clone(lease), token, since, over: AtomicBool::new(false) }
    }

    /// Whether the lease can be proven right now.
    pub(crate) fn is_held(&self) -> bool {
        self.lease.state.deadline(self.hall.clock.now()).is_some()
    }

    /// Resolves when the lease is known to live for its whole TTL, or is lost.
    pub(crate) async fn confirmed(&self) {
        let Self { hall, lease, .. } = self;
        loop {
            let changed = lease.gone.notified();
            if lease.is_confirmed() {
                return;
            }
            let deadline = lease.state.deadline(hall.clock.now());
            let Some(nap) = deadline.and_then(|deadline| hall.clock.nap(deadline)) else { return };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    pub(crate) fn since(&self) -> BootInstant {
        self.since
    }

    /// Ends the turn. Errors with [`ErrorKind::Lost`] if the lease was lost before.
    pub(crate) async fn end(mut self) -> Result<()> {
        if *self.over.get_mut() {
            return Err(self.lease.lost_error());
        }
        if self.hand_over() {
            return Ok(());
        }
        let given_back = give_back(Arc::clone(&self.hall), Arc::clone(&self.lease));
        let background = self.hall.background.clone();
        drop(self);
        background.finish(given_back).await
    }

    /// Ends the turn, and nobody gets the lease before a TTL has gone by since it began. Until then the keeper keeps it, because
    /// where several share a lease of the server, as on etcd, it began long before and may end as much sooner. Nor does anybody get
    /// it before its lock delay is over, which begins when it would have been lost, however long ago its turn began.
    ///
    /// Errors with [`ErrorKind::Lost`] if the lease was lost before.
    pub(crate) fn lapse(self) -> Result<()> {
        let now = self.hall.clock.now();
        let Some(deadline) = self.lease.state.deadline(now) else {
            return Err(self.lease.lost_error());
        };
        self.over.store(true, Ordering::Release);
        self.lease.left.store(true, Ordering::Release);
        // How long somebody may hold it says nothing about how long nobody else may.
        self.lease.set_renewed_until(BootInstant::MAX);
        self.hall.meters.hold.record(now.saturating_since(self.since));
        // What the backend keeps it for, because left to itself it would live for its lock delay as well.
        let mut lapses = self.since.saturating_add(self.lease.key.ttl.as_duration());
        if self.lease.room.has_lock_delay() {
            lapses = lapses.max(deadline.saturating_add(self.lease.room.lock_delay()));
        }
        let (hall, lease) = (Arc::clone(&self.hall), Arc::clone(&self.lease));
        // Nobody waits for it, not even the end of the hall.
        self.hall.background.runtime().spawn(async move {
            sleep_until(&*hall.clock, lapses).await;
            if let Err(error) = give_back(hall, Arc::clone(&lease)).await {
                tracing::debug!(name = %lease.name(), %error, "what was left to lapse was not given back");
            }
        });
        Ok(())
    }

    /// Ends the turn although others still have guards of it: for them the lease is lost, from before this is polled.
    pub(crate) fn take_back(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        self.over.store(true, Ordering::Release);
        self.hall.meters.hold.record(self.hall.clock.now().saturating_since(self.since));
        let given_back = give_back(Arc::clone(&self.hall), Arc::clone(&self.lease));
        self.lease.gone.notify_waiters();
        let background = self.hall.background.clone();
        async move { background.finish(given_back).await }
    }

    /// Ends the turn in favour of the next one in the waiting room, without a round trip. `false`: nobody waits there, or
    /// other processes have their turn now; this turn is over all the same, and its lease has to be given back.
    fn hand_over(&mut self) -> bool {
        let Self { hall, lease, token, since, over } = self;
        *over.get_mut() = true;
        let now = hall.clock.now();
        hall.meters.hold.record(now.saturating_since(*since));
        let Some(next) = token.handed_over() else {
            return false;
        };
        let handovers = token.sequence() - (token.grant() << HANDOVER_BITS);
        let fair = handovers < u64::from(hall.settings.handovers)
            && now.saturating_since(lease.granted_at) < hall.settings.handover_time;
        let healthy = lease.state.remaining(now) > lease.lasted / 2
            && now < lease.renewed_until()
            && lease.mode() == Mode::Exclusive;
        let handed_over = fair && healthy && seat_next(hall, lease, next, now);
        if handed_over {
            hall.meters.handovers.increment(1);
        }
        handed_over
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if *self.over.get_mut() || self.hand_over() {
            return;
        }
        let lease = Arc::clone(&self.lease);
        let given_back = give_back(Arc::clone(&self.hall), Arc::clone(&self.lease));
        self.hall.background.let_go(async move {
            if let Err(error) = given_back.await {
                tracing::warn!(name = %lease.name(), %error, "the release of a dropped guard failed");
            }
        });
    }
}

/// The backend granted a lease to a room: begins the turn of the first one there. `Err`: nobody wants it any more, or it
/// cannot be told; then it has to be given back.
pub(crate) async fn begin_first(
    hall: &Arc<Hall>,
    room: &Arc<RoomKey>,
    granted: &ringfence_core::Lease,
) -> Result<(), Arc<Lease>> {
    let renewed = renewed_beside_a_delay(hall, room, granted).await;
    let granted = renewed.as_ref().unwrap_or(granted);
    let now = hall.clock.now();
    let lease = Arc::new(Lease::new(granted, Arc::clone(room), now));
    hall.rooms.granted(room, lease.key.nonce);
    if granted.is_offer() {
        Keeper::confirm(hall, &lease);
        // The renewal is under way before the holder runs, even if it never yields to this runtime again.
        for _ in 0..YIELDS_TO_SEND {
            tokio::task::yield_now().await;
        }
    } else {
        hall.keeper.keep(&lease, granted.counted_from);
    }
    if seat_next(hall, &lease, granted.token, now) { Ok(()) } else { Err(lease) }
}

/// A lease with a lock delay that has its TTL before it, where half of that was over when it was granted.
///
/// A lease may count from before it was asked for, where those of one process share a life that is renewed in time for TTL and
/// delay together. The guard has the TTL alone: to it such a lease may be lost on arrival, and its delay would begin.
async fn renewed_beside_a_delay(
    hall: &Arc<Hall>,
    room: &Arc<RoomKey>,
    granted: &ringfence_core::Lease,
) -> Option<ringfence_core::Lease> {
    let sent = hall.clock.now();
    if !room.has_lock_delay() || sent.saturating_since(granted.counted_from) < room.ttl.as_duration() / 2 {
        return None;
    }
    let renewals = hall.backend.renew(std::slice::from_ref(&granted.key)).await.ok()?;
    (renewals == [Renewal::Renewed]).then(|| {
        let mut renewed = ringfence_core::Lease::new(granted.key.clone(), granted.token, sent);
        renewed.agreement = granted.agreement;
        renewed
    })
}

/// Begins the turn of the first one in the room who is still there. `false`: there is nobody.
fn seat_next(hall: &Arc<Hall>, lease: &Arc<Lease>, token: FencingToken, now: BootInstant) -> bool {
    while let Next::Seat(answer) = hall.rooms.next(&lease.room, lease.key.nonce) {
        match answer.send(Ok(Outcome::Granted(Turn::begin(hall, lease, token, now)))) {
            Ok(()) => return true,
            // That one has gone. Nobody has seen the token, so the next one gets the same.
            Err(Ok(Outcome::Granted(mut unseen))) => *unseen.over.get_mut() = true,
            Err(_) => unreachable!("what comes back is what was sent"),
        }
    }
    false
}

/// Gives a lease back to the backend; whoever still waits in its room stands in line again, at the end of it.
///
/// The lease is dead when this returns, before the future is polled: a release may arrive at any time once it is sent. One that
/// failed and may succeed later is made again in the background, because whoever has lost the guard cannot.
///
/// One that was lost before is not given back where there is a lock delay: what its holder has sent may be on its way.
pub(crate) fn give_back(hall: Arc<Hall>, lease: Arc<Lease>) -> impl Future<Output = Result<()>> + Send {
    let lived = lease.state.release(hall.clock.now());
    let known = hall.keeper.forget(lease.key.nonce).is_some();
    let unreleased = Unreleased(Arc::clone(&lease));
    async move {
        if !lived && lease.room.has_lock_delay() {
            std::mem::forget(unreleased);
            if known {
                hall.meters.lost.increment(1);
            }
            hall.stand_again(&lease);
            let over = hall.clock.now().saturating_add(lease.room.lock_delay());
            let lost = lease.lost_error();
            tidy_up(hall, lease, over);
            return Err(lost);
        }
        let answer = hall.backend.release(std::slice::from_ref(&lease.key)).await;
        std::mem::forget(unreleased);
        if answer.as_ref().is_err_and(|error| error.retry() == Retry::Later) {
            let again = release_again(Arc::clone(&hall.backend), Arc::clone(&hall.clock), Arc::clone(&lease));
            // Nobody waits for it, not even the end of the hall.
            hall.background.runtime().spawn(again);
        }
        hall.stand_again(&lease);
        match answer?.first() {
            Some(Release::Released) if lived => Ok(()),
            _ => {
                if known {
                    hall.meters.lost.increment(1);
                }
                Err(lease.lost_error())
            }
        }
    }
}

/// Gives a lease back that nobody renews any more, when it has lapsed: on some backends it is gone by then, on others it would
/// live for as long as other leases of this process. Nobody waits for it, not even the end of the hall, which it keeps: with some
/// backends the leases would end.
fn tidy_up(hall: Arc<Hall>, lease: Arc<Lease>, lapses: BootInstant) {
    let runtime = hall.background.runtime().clone();
    runtime.spawn(async move {
        sleep_until(&*hall.clock, lapses).await;
        let _ = hall.backend.release(std::slice::from_ref(&lease.key)).await;
        hall.stand_again(&lease);
    });
}

/// Releases a lease once more, whose release may not have arrived: until there is an answer, or the lease has ended by itself.
async fn release_again(backend: Arc<dyn Backend>, clock: Arc<dyn Clock>, lease: Arc<Lease>) {
    let ends = clock.now().saturating_add(lease.key.ttl.as_duration());
    let mut pauses = Backoff::new(RELEASE_PAUSE, RELEASE_PAUSE_MOST);
    while clock.now() < ends {
        tokio::time::sleep(pauses.pause()).await;
        match backend.release(std::slice::from_ref(&lease.key)).await {
            Err(error) if error.retry() == Retry::Later => {}
            Err(error) => {
                tracing::warn!(name = %lease.name(), %error, "a release that failed before failed for good");
                return;
            }
            Ok(_) => return,
        }
    }
}

/// Says that a release was cut short by the end of its runtime.
struct Unreleased(Arc<Lease>);

impl Drop for Unreleased {
    fn drop(&mut self) {
        tracing::warn!(
            name = %self.0.name(),
            ttl = %self.0.key.ttl,
            "the runtime ended before a lease was released; it ends at its TTL"
        );
    }
}

#[cfg(test)]
mod tests {
    use ringfence_core::Nonce;
    use tokio::sync::oneshot;

    use super::*;
    use crate::Locks;

    /// Somebody who goes away between the moment its seat is taken out and the moment it is told.
    #[tokio::test]
    async fn a_turn_that_nobody_has_seen_is_the_next_ones_with_the_same_token() {
        let hall = Locks::connect("memory:").await.unwrap().hall;
        let (name, mode, ttl) = ("a".parse().unwrap(), Mode::Exclusive, Ttl::DEFAULT);
        let room =
            RoomKey { name, mode, ttl, kept: ttl, holder: Arc::clone(&hall.settings.holder), alone: None };
        let (gone, _) = oneshot::channel();
        let (second, mut is_second) = oneshot::channel();
        let (third, mut is_third) = oneshot::channel();
        for answer in [gone, second, third] {
            hall.rooms.join(room.clone(), answer, false);
        }
        let nonce = Nonce::random();
        let key = LeaseKey::new(room.name.clone(), nonce, ttl);
        let token = FencingToken::of_grant(7, nonce).unwrap();
        let granted = ringfence_core::Lease::new(key, token, hall.clock.now());
        begin_first(&hall, &Arc::new(room), &granted).await.unwrap();
        let Ok(Ok(Outcome::Granted(turn))) = is_second.try_recv() else { panic!("it is the second one's") };
        assert_eq!(turn.token, token);
        assert!(is_third.try_recv().is_err(), "and nobody else's");
    }
}
