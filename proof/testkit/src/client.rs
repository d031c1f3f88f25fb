use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    Abandoner, AcquireRequest, Attempt, Backend, BootInstant, Clock, Contention, Error, ErrorKind, Eviction,
    Guarantees, HolderInfo, Lease, LeaseKey, LockName, LockState, Mode, Nonce, Opened, Permits, Record,
    RecordKey, Release, Renewal, Result, Retry, SystemClock, Ttl, Version, Wait, abandonment,
};
use tokio::task::JoinHandle;

use crate::harness::Harness;

/// How long a case waits for an event that must come: 10 s, which is long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long a case waits where it must see that something does *not* happen and no event tells.
pub(crate) const QUIET: Duration = Duration::from_millis(50);

/// A TTL that no case outlives.
pub(crate) const LONG: Duration = Duration::from_mins(1);

/// A TTL that a case waits for.
pub(crate) const SHORT: Duration = Duration::from_millis(400);

/// A client with the vocabulary that the cases are written in. What does not go as the method's name says panics.
pub(crate) struct Client {
    pub(crate) backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    pub(crate) holder: HolderInfo,
}

/// So many clients of one store.
pub(crate) async fn clients<const N: usize>(harness: &dyn Harness) -> [Client; N] {
    let mut clients = Vec::new();
    for number in 1..=N {
        let backend = connected(harness).await;
        clients.push(Client::new(harness, backend, &format!("client {number}")));
    }
    clients.try_into().unwrap_or_else(|_| unreachable!("one client was pushed for each number"))
}

/// The backend of one more process. A machine that runs a dozen servers and processes may answer later than one wants to wait for it.
pub async fn connected(harness: &dyn Harness) -> Arc<dyn Backend> {
    let until = SystemClock::new().now().saturating_add(PATIENCE);
    loop {
        match harness.connect().await {
            Err(error) if error.retry() == Retry::Later && SystemClock::new().now() < until => {}
            connected => return connected.expect("the harness connects a client"),
        }
    }
}

/// A lock name that no other case and no other run uses.
pub(crate) fn fresh(case: &str) -> LockName {
    LockName::new(format!("testkit/{case}/{}", Nonce::random())).expect("the name of a case is short")
}

/// A mode with so many permits.
pub(crate) fn permit(limit: u32) -> Mode {
    Mode::permit(limit).expect("the cases use few permits")
}

/// The result of a future that must not take long.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}

/// Checks that an operation was refused for this reason, and says that it did nothing.
pub(crate) fn expect_refused<T: std::fmt::Debug>(what: &str, result: Result<T>, kinds: &[ErrorKind]) {
    match result {
        Ok(done) => panic!("{what} must be refused with {kinds:?}, but it was done: {done:?}"),
        Err(error) => {
            assert!(
                kinds.contains(&error.kind()),
                "{what} must be refused with {kinds:?}, not with {error:?}"
            );
            assert_eq!(error.effect(), ringfence_core::Effect::None, "{what}: what is refused has no effect");
        }
    }
}

impl Client {
    pub(crate) fn new(harness: &dyn Harness, backend: Arc<dyn Backend>, label: &str) -> Self {
        let holder = HolderInfo::new(label, "testkit-host", std::process::id())
            .expect("labels of the cases are short");
        Self { backend, clock: harness.clock(), holder }
    }

    pub(crate) fn guarantees(&self) -> &Guarantees {
        self.backend.guarantees()
    }

    /// Whether waiters stand in a line that can be seen.
    pub(crate) fn has_line(&self) -> bool {
        self.guarantees().queue.is_ordered()
    }

    /// Whether a name can have permits.
    pub(crate) fn has_permits(&self) -> bool {
        self.guarantees().permits == Permits::Counted
    }

    pub(crate) fn now(&self) -> BootInstant {
        self.clock.now()
    }

    /// The TTL nearest to this one that the backend grants.
    pub(crate) fn ttl(&self, wanted: Duration) -> Ttl {
        let wanted = Ttl::new(wanted).expect("the cases use lawful TTLs");
        wanted.clamp(self.guarantees().ttl_min, self.guarantees().ttl_max)
    }

    pub(crate) fn request(&self, name: &LockName, mode: Mode, ttl: Duration, wait: Wait) -> AcquireRequest {
        AcquireRequest::new(name.clone(), mode, self.ttl(ttl), wait, self.holder.clone())
    }

    /// Asks without waiting.
    pub(crate) async fn ask(&self, name: &LockName, mode: Mode, ttl: Duration) -> Attempt {
        let request = self.request(name, mode, ttl, Wait::No);
        within("the answer to a request that does not wait", self.backend.acquire(request))
            .await
            .unwrap_or_else(|error| {
                panic!("{mode} on {name:?} must be granted or busy, not an error: {error:?}")
            })
    }

    /// Gets a name that must be free.
    pub(crate) async fn hold(&self, name: &LockName, mode: Mode, ttl: Duration) -> Lease {
        match self.ask(name, mode, ttl).await {
            Attempt::Granted(lease) => lease,
            Attempt::Busy(contention) => {
                panic!("{mode} on {name:?} must be granted at once, but it is busy: {contention:?}")
            }
        }
    }

    /// Asks for a name that must be busy.
    pub(crate) async fn meets_busy(&self, name: &LockName, mode: Mode) -> Contention {
        match self.ask(name, mode, LONG).await {
            Attempt::Busy(contention) => contention,
            Attempt::Granted(lease) => {
                panic!("{mode} on {name:?} must be busy, but it was granted: {lease:?}")
            }
        }
    }

    /// Begins to wait for a name, with a TTL and a wait that outlive the case.
    pub(crate) fn wait(&self, name: &LockName, mode: Mode) -> Waiter {
        self.wait_until(name, mode, self.now().saturating_add(2 * LONG))
    }

    /// Begins to wait for a name until a deadline.
    pub(crate) fn wait_until(&self, name: &LockName, mode: Mode, deadline: BootInstant) -> Waiter {
        self.begin(self.request(name, mode, LONG, Wait::Until(deadline)))
    }

    /// Begins to acquire, in a task of its own, as the hall does.
    pub(crate) fn begin(&self, request: AcquireRequest) -> Waiter {
        let what = format!("{} on {:?}", request.mode, request.name);
        let nonce = request.nonce;
        let (abandoner, signal) = abandonment();
        let request = request.abandoned_by(signal);
        let (backend, clock) = (Arc::clone(&self.backend), Arc::clone(&self.clock));
        let task = tokio::spawn(async move {
            let attempt = backend.acquire(request).await;
            let at = clock.now();
            // An offer is renewed at once, as the hall does.
            if let Ok(Attempt::Granted(lease)) = &attempt
                && lease.is_offer()
            {
                let renewed = backend.renew(std::slice::from_ref(&lease.key)).await;
                assert_eq!(
                    renewed.expect("a renewal"),
                    [Renewal::Renewed],
                    "an offer that is fresh can be renewed"
                );
            }
            (attempt, at)
        });
        Waiter { what, nonce, abandoner, task }
    }

    /// Waits until so many stand in line for a name. Where there is no line to see, gives them a moment to ask.
    pub(crate) async fn sees_in_line(&self, name: &LockName, count: usize) {
        if !self.has_line() {
            return tokio::time::sleep(QUIET).await;
        }
        let what = format!("a line of {count} for {name:?}");
        self.sees(name, &what, |state| state.waiters.len() == count).await;
    }

    /// Waits until a lease has lapsed.
    pub(crate) async fn sees_lapsed(&self, lease: &Lease) {
        let lives = |state: &LockState| {
            let mut holders = state.holders.iter();
            holders.any(|holder| holder.token == lease.token && !holder.has_lapsed())
        };
        self.sees(&lease.key.name, "the end of a lease that nobody renews", |state| !lives(state)).await;
    }

    /// Looks at a lock until it is as it should be.
    async fn sees(&self, name: &LockName, what: &str, right: impl Fn(&LockState) -> bool) {
        const LOOK_AGAIN: Duration = Duration::from_millis(2);
        within(what, async {
            while !right(&self.inspect(name).await) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
        .await;
    }

    /// Learns that it lost a lease, from the first answer after connections that broke.
    pub(crate) async fn sees_lost(&self, lease: &Lease) {
        const ASK_AGAIN: Duration = Duration::from_millis(50);
        let keys = [lease.key.clone()];
        let renewals = within("an answer to a renewal", async {
            loop {
                match self.backend.renew(&keys).await {
                    Ok(renewals) => break renewals,
                    Err(error) => {
                        assert_eq!(error.retry(), Retry::Later, "a broken connection passes: {error:?}");
                    }
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        })
        .await;
        assert_eq!(renewals, [Renewal::Lost], "a lease that ended is lost");
    }

    pub(crate) async fn renew(&self, lease: &Lease) -> Renewal {
        self.renew_all(&[lease]).await[0]
    }

    pub(crate) async fn renew_all(&self, leases: &[&Lease]) -> Vec<Renewal> {
        let keys: Vec<LeaseKey> = leases.iter().map(|lease| lease.key.clone()).collect();
        let renewals = within("the answer to a renewal", self.backend.renew(&keys)).await.expect("a renewal");
        assert_eq!(renewals.len(), keys.len(), "a renewal answers once for each lease");
        renewals
    }

    /// Renews leases that must be held.
    pub(crate) async fn keeps(&self, leases: &[&Lease]) {
        let renewals = self.renew_all(leases).await;
        let are_held = renewals.iter().all(|renewal| *renewal == Renewal::Renewed);
        assert!(are_held, "leases that are held can be renewed: {renewals:?} of {leases:?}");
    }

    pub(crate) async fn release(&self, lease: &Lease) -> Release {
        self.release_all(&[lease]).await[0]
    }

    pub(crate) async fn release_all(&self, leases: &[&Lease]) -> Vec<Release> {
        let keys: Vec<LeaseKey> = leases.iter().map(|lease| lease.key.clone()).collect();
        let releases =
            within("the answer to a release", self.backend.release(&keys)).await.expect("a release");
        assert_eq!(releases.len(), keys.len(), "a release answers once for each lease");
        releases
    }

    /// Gives back a lease that must be held.
    pub(crate) async fn gives_back(&self, lease: &Lease) {
        assert_eq!(
            self.release(lease).await,
            Release::Released,
            "a lease that is held can be released: {lease:?}"
        );
    }

    pub(crate) async fn downgrade(&self, lease: &Lease) -> Renewal {
        within("the answer to a downgrade", self.backend.downgrade(&lease.key)).await.expect("a downgrade")
    }

    pub(crate) async fn inspect(&self, name: &LockName) -> LockState {
        let state = within("the state of a lock", self.backend.inspect(name)).await.expect("an inspection");
        assert_eq!(state.name, *name, "a state is that of the lock that was asked for");
        state
    }

    pub(crate) async fn evict(&self, name: &LockName, holder: Nonce) -> Eviction {
        within("the answer to an eviction", self.backend.evict(name, holder)).await.expect("an eviction")
    }

    pub(crate) async fn open(&self, key: &RecordKey, lease: &Lease) -> Result<Opened> {
        within("the opening of a record", self.backend.records().open(key, lease.token)).await
    }

    /// Opens a record that must open, and returns what it holds.
    pub(crate) async fn opens(&self, key: &RecordKey, lease: &Lease) -> Option<Record> {
        self.open(key, lease)
            .await
            .unwrap_or_else(|error| panic!("{key} must open for {lease:?}: {error:?}"))
            .record
    }

    pub(crate) async fn write(
        &self,
        key: &RecordKey,
        lease: &Lease,
        value: impl Into<Bytes>,
    ) -> Result<Version> {
        within("the writing of a record", self.backend.records().write(key, lease.token, value.into())).await
    }

    /// Writes to a record that must take it.
    pub(crate) async fn writes(&self, key: &RecordKey, lease: &Lease, value: impl Into<Bytes>) -> Version {
        let written = self.write(key, lease, value).await;
        written.unwrap_or_else(|error| panic!("{key} must take a write of {lease:?}: {error:?}"))
    }

    pub(crate) async fn remove(&self, key: &RecordKey, lease: &Lease) -> Result<()> {
        within("the removal of a record", self.backend.records().remove(key, lease.token)).await
    }

    /// Removes a record that must let it.
    pub(crate) async fn removes(&self, key: &RecordKey, lease: &Lease) {
        let removed = self.remove(key, lease).await;
        removed.unwrap_or_else(|error| panic!("{key} must be removed by {lease:?}: {error:?}"));
    }

    pub(crate) async fn read(&self, key: &RecordKey) -> Option<Record> {
        within("the reading of a record", self.backend.records().read(key)).await.expect("a reading")
    }

    /// The value of a record, `None` where it was never written.
    pub(crate) async fn value(&self, key: &RecordKey) -> Option<Bytes> {
        self.read(key).await.map(|record| record.value)
    }
}

/// A request that waits, in a task of its own.
pub(crate) struct Waiter {
    what: String,
    pub(crate) nonce: Nonce,
    abandoner: Abandoner,
    task: JoinHandle<(Result<Attempt, Error>, BootInstant)>,
}

impl Waiter {
    /// Waits for its answer, and says when it came.
    async fn answer(self) -> (Attempt, BootInstant) {
        let Self { what, abandoner, task, .. } = self;
        let (attempt, at) =
            within(&format!("an answer to {what}"), task).await.expect("a waiting request does not panic");
        drop(abandoner);
        (attempt.unwrap_or_else(|error| panic!("waiting for {what} must not be an error: {error:?}")), at)
    }

    /// Its lease, which must be granted, and the instant when it was.
    pub(crate) async fn granted_at(self) -> (Lease, BootInstant) {
        let what = self.what.clone();
        match self.answer().await {
            (Attempt::Granted(lease), at) => (lease, at),
            (Attempt::Busy(contention), _) => {
                panic!("{what} must be granted to one who waits, but its wait ended: {contention:?}")
            }
        }
    }

    /// Its lease, which must be granted.
    pub(crate) async fn granted(self) -> Lease {
        self.granted_at().await.0
    }

    /// Who was in its way, and the instant when its wait ended, which must be in vain.
    pub(crate) async fn gave_up_at(self) -> (Contention, BootInstant) {
        let what = self.what.clone();
        match self.answer().await {
            (Attempt::Busy(contention), at) => (contention, at),
            (Attempt::Granted(lease), _) => panic!("{what} must not be granted, but it was: {lease:?}"),
        }
    }

    /// Abandons the request, and says what it came to.
    pub(crate) async fn abandon(self) -> Attempt {
        let Self { what, abandoner, task, .. } = self;
        drop(abandoner);
        let (attempt, _) = within(&format!("the withdrawal of {what}"), task).await.expect("no panic");
        attempt.unwrap_or_else(|error| panic!("abandoning {what} must not be an error: {error:?}"))
    }

    /// Checks that it has no answer yet.
    pub(crate) fn still_waits(&self) {
        assert!(!self.task.is_finished(), "{} must still wait, but it has its answer", self.what);
    }
}
