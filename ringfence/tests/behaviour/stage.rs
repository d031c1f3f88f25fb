//! A backend that fails on demand, a clock that jumps on demand, and small helpers.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ringfence::{
    AcquireRequest, Agreement, Attempt, Backend, BootInstant, BoxFuture, Clock, Error, ErrorKind, Eviction,
    FencedStore, FencingToken, Finding, Guarantees, LeaseKey, ListQuery, LockName, LockState, Locks,
    LocksBuilder, LossListener, Nonce, Opened, Page, Record, RecordKey, Release, Renewal, Result,
    SystemClock, Version, WallTime,
};
use ringfence_memory::MemoryBackend;
use tokio::sync::Semaphore;

/// Long enough for anything that happens at all.
pub(crate) const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Acquire,
    Renew,
    Release,
    Downgrade,
    Inspect,
    Open,
    Write,
    Read,
}

/// What becomes of a call.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// It does not arrive.
    Unreachable,
    /// It does not arrive, and nobody can tell that.
    Vanishes,
    /// It arrives, and its answer does not.
    ReplyLost,
    Arrives,
    /// It has that fate when the gate opens.
    After(Gate, Box<Fate>),
    /// It arrives, and its answer comes when the gate opens.
    ReplyHeldBack(Gate),
    /// It waits for other tasks, before it arrives and before it returns, and cannot do so outside of a runtime.
    Slow,
    Panics,
}

impl Fate {
    /// It arrives when the gate opens.
    pub(crate) fn held_back(gate: &Gate) -> Self {
        Self::Arrives.after(gate)
    }

    pub(crate) fn after(self, gate: &Gate) -> Self {
        Self::After(gate.clone(), Box::new(self))
    }
}

/// Stops calls, and tells that they have come.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    arrivals: Arc<Semaphore>,
    passes: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self { arrivals: Arc::new(Semaphore::new(0)), passes: Arc::new(Semaphore::new(0)) }
    }

    pub(crate) async fn somebody_is_there(&self) {
        self.arrivals.acquire().await.unwrap().forget();
    }

    pub(crate) fn open(&self) {
        self.passes.add_permits(1);
    }

    async fn pass(&self) {
        self.arrivals.add_permits(1);
        self.passes.acquire().await.unwrap().forget();
    }
}

/// The memory backend, behind a network that does as it is told.
#[derive(Debug)]
pub(crate) struct Stage {
    memory: MemoryBackend,
    fates: Mutex<HashMap<Call, Vec<Fate>>>,
    /// What becomes of every call of a kind for which nothing else was said.
    rule: Mutex<HashMap<Call, Fate>>,
    calls: Mutex<HashMap<Call, usize>>,
    batches: Mutex<Vec<usize>>,
    /// Whether it tells of losses before a renewal asks.
    tells: Arc<AtomicBool>,
    /// For how long what it grants lives at first, where that is not its TTL.
    offers: Mutex<Option<Duration>>,
    /// What it took to get what it grants, where several nodes had to agree.
    agreement: Mutex<Option<Agreement>>,
    /// Of which lock nobody can say what became of its renewals.
    silent: Mutex<Option<LockName>>,
}

impl Stage {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_clock(Arc::new(SystemClock::new()))
    }

    pub(crate) fn with_clock(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryBackend::new(clock),
            fates: Mutex::default(),
            rule: Mutex::default(),
            calls: Mutex::default(),
            batches: Mutex::default(),
            tells: Arc::new(AtomicBool::new(true)),
            offers: Mutex::default(),
            agreement: Mutex::default(),
            silent: Mutex::default(),
        })
    }

    /// From now on what it grants lives for so long until it is renewed.
    pub(crate) fn offer_for(&self, lasts: Duration) {
        *self.offers.lock().unwrap() = Some(lasts);
    }

    /// From now on several nodes agree to what it grants.
    pub(crate) fn agree(&self, agreement: Agreement) {
        *self.agreement.lock().unwrap() = Some(agreement);
    }

    /// From now on renewals of this lock do not arrive, and the others of their batch do.
    pub(crate) fn silence(&self, name: &str) {
        *self.silent.lock().unwrap() = Some(name.parse().unwrap());
    }

    /// From now on it tells of a loss only when a renewal asks.
    pub(crate) fn tell_nothing(&self) {
        self.tells.store(false, Ordering::SeqCst);
    }

    /// What becomes of the next calls of this kind.
    pub(crate) fn next(&self, call: Call, fates: impl IntoIterator<Item = Fate>) {
        self.fates.lock().unwrap().entry(call).or_default().extend(fates);
    }

    /// What becomes of all calls of this kind from now on.
    pub(crate) fn always(&self, call: Call, fate: impl Into<Option<Fate>>) {
        let mut rule = self.rule.lock().unwrap();
        match fate.into() {
            Some(fate) => rule.insert(call, fate),
            None => rule.remove(&call),
        };
    }

    /// How many calls of this kind came in.
    pub(crate) fn calls(&self, call: Call) -> usize {
        self.calls.lock().unwrap().get(&call).copied().unwrap_or_default()
    }

    /// How many calls of these kinds came in since the last time that this was asked.
    pub(crate) fn took<const N: usize>(&self, calls: [Call; N]) -> [usize; N] {
        let mut counted = self.calls.lock().unwrap();
        calls.map(|call| counted.remove(&call).unwrap_or_default())
    }

    /// The sizes of the renewals that came in.
    pub(crate) fn batches(&self) -> Vec<usize> {
        self.batches.lock().unwrap().clone()
    }

    async fn suffer<T>(&self, call: Call, arrives: impl Future<Output = Result<T>>) -> Result<T> {
        *self.calls.lock().unwrap().entry(call).or_default() += 1;
        let mut fate = {
            let mut fates = self.fates.lock().unwrap();
            let told = fates.get_mut(&call).filter(|fates| !fates.is_empty()).map(|fates| fates.remove(0));
            told.or_else(|| self.rule.lock().unwrap().get(&call).cloned()).unwrap_or(Fate::Arrives)
        };
        while let Fate::After(gate, then) = fate {
            gate.pass().await;
            fate = *then;
        }
        let unreachable = || Error::new(ErrorKind::Unavailable, "the stage is cut off");
        match fate {
            Fate::Arrives => arrives.await,
            Fate::Unreachable => Err(unreachable()),
            Fate::Vanishes => Err(unreachable().with_unknown_effect()),
            Fate::ReplyLost => {
                arrives.await?;
                Err(unreachable().with_unknown_effect())
            }
            Fate::ReplyHeldBack(gate) => {
                let answer = arrives.await;
                gate.pass().await;
                answer
            }
            Fate::Slow => {
                drop(tokio::runtime::Handle::current());
                tokio::task::yield_now().await;
                let answer = arrives.await;
                tokio::task::yield_now().await;
                answer
            }
            Fate::Panics => panic!("the stage was told to panic"),
            Fate::After(..) => unreachable!("its gate was passed"),
        }
    }
}

impl Backend for Stage {
    fn guarantees(&self) -> &Guarantees {
        self.memory.guarantees()
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        let acquired = async {
            let mut lease = match self.memory.acquire(request).await? {
                Attempt::Granted(lease) => lease,
                busy @ Attempt::Busy(_) => return Ok(busy),
            };
            if let Some(lasts) = *self.offers.lock().unwrap() {
                lease = lease.offered_for(lasts);
            }
            lease.agreement = *self.agreement.lock().unwrap();
            Ok(Attempt::Granted(lease))
        };
        Box::pin(self.suffer(Call::Acquire, acquired))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        self.batches.lock().unwrap().push(leases.len());
        let silent = self.silent.lock().unwrap().clone();
        let is_silent = move |lease: &LeaseKey| silent.as_ref() == Some(&lease.name);
        let renewed = async move {
            let heard: Vec<LeaseKey> = leases.iter().filter(|lease| !is_silent(lease)).cloned().collect();
            let mut answers = self.memory.renew(&heard).await?.into_iter();
            let answer = |lease| if is_silent(lease) { Renewal::Unknown } else { answers.next().unwrap() };
            Ok(leases.iter().map(answer).collect())
        };
        Box::pin(self.suffer(Call::Renew, renewed))
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        Box::pin(self.suffer(Call::Release, self.memory.release(leases)))
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(self.suffer(Call::Downgrade, self.memory.downgrade(lease)))
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(self.suffer(Call::Inspect, self.memory.inspect(name)))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Backend::list(&self.memory, query)
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        self.memory.evict(name, holder)
    }

    /// Worse and worse: whoever sorts them has something to do.
    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        let findings = [
            Finding::fine("scenery", "it stands"),
            Finding::warning("light", "it flickers", "change the bulb"),
            Finding::problem("trapdoor", "it is open", "close it"),
            Finding::fine("curtain", "it is up"),
        ];
        Box::pin(async move { Ok(findings.to_vec()) })
    }

    /// None, as of a service without a clock.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(None) })
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        let tells = Arc::clone(&self.tells);
        self.memory.on_loss(Arc::new(move |nonce| {
            if tells.load(Ordering::SeqCst) {
                listener(nonce);
            }
        }));
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        self.memory.lifeline()
    }
}

impl FencedStore for Stage {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(self.suffer(Call::Open, self.memory.records().open(key, token)))
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(self.suffer(Call::Write, self.memory.records().write(key, token, value)))
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.suffer(Call::Write, self.memory.records().remove(key, token)))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        self.memory.records().list(query)
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(self.suffer(Call::Read, self.memory.records().read(key)))
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stage:")
    }
}

/// The machine's clock, which can be set forward: what a process sees that was paused.
#[derive(Debug, Default)]
pub(crate) struct JumpingClock(AtomicU64);

impl JumpingClock {
    pub(crate) fn jump(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    fn ahead(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

impl Clock for JumpingClock {
    fn now(&self) -> BootInstant {
        SystemClock::new().now().saturating_add(self.ahead())
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall().saturating_add(self.ahead())
    }
}

/// Locks on a stage, which are handed on however late a busy machine is, and the stage.
pub(crate) fn staged() -> (Locks, Arc<Stage>) {
    on_stage(Locks::builder().handover_time(Duration::MAX))
}

/// Such locks on a stage, and the stage.
pub(crate) fn on_stage(builder: LocksBuilder) -> (Locks, Arc<Stage>) {
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    (builder.with_backend(backend).expect("a lawful choice"), stage)
}

pub(crate) async fn memory() -> Locks {
    Locks::connect("memory:").await.unwrap()
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits until `name` has this many in line at the backend.
pub(crate) async fn in_line(locks: &Locks, name: &str, waiters: usize) {
    eventually(async || locks.inspect(name).await.unwrap().waiters.len() == waiters).await;
}

/// Waits until `name` is free at the backend, which must be long before any TTL.
pub(crate) async fn free(locks: &Locks, name: &str) {
    eventually(async || locks.inspect(name).await.unwrap().is_free()).await;
}

/// Waits until something that other tasks bring about is so.
pub(crate) async fn eventually(is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.expect("it should have come about by now");
}

/// Waits for something that must come.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.expect("it should have come by now")
}

/// Whether a future is ready right now.
pub(crate) async fn is_ready<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context).is_ready())).await
}

/// Polls a future so often, letting other tasks take so many steps after each time, and drops it. What it came to, if it came
/// to something.
pub(crate) async fn poll_and_drop<T>(
    future: impl Future<Output = T>,
    polls: usize,
    steps: usize,
) -> Option<T> {
    let mut future = Box::pin(future);
    for _ in 0..polls {
        let poll = |context: &mut Context<'_>| Poll::Ready(future.as_mut().poll(context));
        if let Poll::Ready(result) = std::future::poll_fn(poll).await {
            return Some(result);
        }
        for _ in 0..steps {
            tokio::task::yield_now().await;
        }
    }
    None
}
