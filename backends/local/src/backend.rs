use std::collections::{HashMap, HashSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use ringfence_core::table::{Answer, Entry, Op, WAITERS_MAX};
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, BoxFuture, Clock, Error, ErrorKind, Eviction, FencedStore,
    Finding, Guarantees, HolderDeath, Lease, LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce,
    Page, RecordGuard, Records, Release, Renewal, Result, Scope, Tokens, Wait, WallTime,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::checks;
use crate::directory::Directory;
use crate::durable::Durable;
use crate::log::{Log, News, Position};
use crate::segment;
use crate::session::{self, Peer, Session};

/// How often a waiter looks at the log although nobody told it to: the net under a wake-up that was never sent.
const NET: Duration = Duration::from_millis(250);

/// How many grant numbers are made durable at once. The first range of a process is small, because many only ever want
/// one lease.
const FIRST_RANGE: u64 = 1 << 10;
const RANGE: u64 = 1 << 16;

/// The most pipes to other sessions that are kept open; the net catches what a closed one would have told.
const PEERS_MAX: usize = 512;

/// What the local store promises.
pub fn guarantees() -> Guarantees {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Machine;
    guarantees.tokens = Tokens::Durable;
    guarantees.holder_death = HolderDeath::AtOnce;
    guarantees.records = Records::Durable;
    guarantees
}

/// The embedded store of one machine; see the crate's documentation.
///
/// Dropping it ends its session: what it still holds is free at once for others, unless a lifeline was given out.
pub struct LocalBackend {
    pub(crate) store: Arc<Store>,
    pub(crate) guarantees: Guarantees,
}

impl LocalBackend {
    /// Opens the store in a directory, which is created for its owner only if it is not there.
    ///
    /// Must be called in a tokio runtime. It opens and reads files, which blocks for about a millisecond. Errors with
    /// [`ErrorKind::Refused`] for a place that cannot be trusted, [`ErrorKind::Corrupt`] for a store that is damaged or
    /// newer than this program, [`ErrorKind::Full`] for a full disk.
    pub fn open(directory: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self { store: Store::open(directory, clock)?, guarantees: guarantees() })
    }

    /// The same store, which from here on opens records with this guard: with [`RecordGuard::HighWaterMark`] for locks that
    /// live elsewhere, whose leases this store cannot know.
    ///
    /// Whoever opens a record first settles its guard for good, so that no process with another setting weakens it; opening
    /// it with another one is an error.
    #[must_use]
    pub fn with_record_guard(mut self, guard: RecordGuard) -> Self {
        self.guarantees.record_guard = guard;
        self
    }
}

/// The open store of one process.
#[derive(Debug)]
pub(crate) struct Store {
    directory: Arc<Directory>,
    session: Arc<Session>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    durable: Durable,
    /// Whether this process has begun a range of grant numbers.
    has_numbers: AtomicBool,
    /// Held while a range is made durable, so that one process makes one at a time.
    reserving: tokio::sync::Mutex<()>,
    /// Whether a descriptor of the session was given out for children.
    has_heirs: AtomicBool,
    listener: OnceLock<Listener>,
    mailman: OnceLock<AbortHandle>,
    state: Mutex<State>,
}

struct Listener(LossListener);

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) log: Log,
    /// The attempts of this process that wait, and how to wake each.
    waiters: HashMap<Nonce, Arc<Notify>>,
    /// The leases that were given out.
    held: HashSet<Nonce>,
    /// When it was last checked that the store is still where it was.
    place_checked: BootInstant,
    peers: HashMap<Nonce, KnownPeer>,
}

#[derive(Debug)]
struct KnownPeer {
    peer: Peer,
    watch: AbortHandle,
}

impl Drop for KnownPeer {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Store {
    fn open(directory: &Path, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        let directory = Arc::new(Directory::open(directory)?);
        session::sweep_unfinished(&directory)?;
        let session = Arc::new(Session::open(directory.clone())?);
        let alone = || session::others_alive(&directory, session.id()).map(|others| !others);
        let log = Log::open(directory.clone(), session.id(), alone)?;
        let store = Arc::new(Self {
            durable: Durable::new(directory.clone()),
            directory,
            clock,
            runtime: Handle::current(),
            has_numbers: AtomicBool::new(false),
            reserving: tokio::sync::Mutex::new(()),
            has_heirs: AtomicBool::new(false),
            listener: OnceLock::new(),
            mailman: OnceLock::new(),
            state: Mutex::new(State {
                log,
                waiters: HashMap::new(),
                held: HashSet::new(),
                place_checked: BootInstant::from_nanos(0),
                peers: HashMap::new(),
            }),
            session,
        });
        store.sweep()?;
        store.read_mail();
        Ok(store)
    }

    /// Takes away what dead processes left behind.
    fn sweep(self: &Arc<Self>) -> Result<()> {
        let dead = session::dead(&self.directory)?;
        self.with_log(|state| {
            state.log.catch_up()?;
            self.bury(state, &dead)
        })?;
        segment::sweep_unfinished(&self.directory, |session| session::is_alive(&self.directory, session))
    }

    /// Looks at the log whenever somebody says that there is something to look at.
    fn read_mail(self: &Arc<Self>) {
        let (session, store) = (self.session.clone(), Arc::downgrade(self));
        let mailman = self.runtime.spawn(async move {
            while session.called().await.is_ok() {
                let Some(store) = store.upgrade() else { return };
                if let Err(error) = store.with_log(|state| state.log.catch_up()) {
                    tracing::error!(%error, "cannot follow the log of the local store");
                }
            }
        });
        self.mailman.set(mailman.abort_handle()).expect("the mail is read once");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it has the log")
    }

    /// Does something with the log, then passes on what it brought.
    pub(crate) fn with_log<T>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut lost = Vec::new();
        let outcome = {
            let mut state = self.state();
            let outcome = act(&mut state);
            self.spread(&mut state, &mut lost);
            outcome
        };
        // The listener has locks of its own, so ours is open by now.
        if let Some(Listener(listener)) = self.listener.get() {
            for nonce in lost {
                listener(nonce);
            }
        }
        outcome
    }

    /// Wakes the waiters of this process and the other sessions that the news is for. A session that turns out to be dead
    /// is buried, which may be news for the next one.
    fn spread(self: &Arc<Self>, state: &mut State, lost: &mut Vec<Nonce>) {
        loop {
            let News { own, tell, jumped } = state.log.take_news();
            if jumped {
                state.waiters.values().for_each(|waiter| waiter.notify_one());
            }
            let State { log, held, waiters, .. } = &mut *state;
            let mut note_loss = |nonce: &Nonce| {
                let gone = log.table().grant(*nonce).is_none();
                if gone {
                    lost.push(*nonce);
                }
                !gone
            };
            if jumped {
                held.retain(&mut note_loss);
            }
            for nonce in own {
                match waiters.get(&nonce) {
                    Some(waiter) => waiter.notify_one(),
                    None if held.contains(&nonce) && !note_loss(&nonce) => {
                        held.remove(&nonce);
                    }
                    None => {}
                }
            }
            let dead: Vec<Nonce> = tell
                .into_iter()
                .filter(|session| !self.peer(state, *session).is_none_or(|peer| peer.call()))
                .collect();
            if dead.is_empty() {
                return;
            }
            if let Err(error) = self.bury(state, &dead) {
                tracing::error!(%error, "cannot end what a dead process held; its TTL will");
                return;
            }
        }
    }

    /// The way to another session. `None`: it cannot be opened for want of descriptors, and the net must do.
    fn peer(self: &Arc<Self>, state: &mut State, session: Nonce) -> Option<Peer> {
        if let Some(known) = state.peers.get(&session) {
            return Some(known.peer.clone());
        }
        if state.peers.len() >= PEERS_MAX {
            state.peers.clear();
        }
        let _context = self.runtime.enter();
        let peer = match Peer::open(&self.directory, session) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "cannot watch another session");
                return None;
            }
        };
        let (watched, store) = (peer.clone(), Arc::downgrade(self));
        let watch = self.runtime.spawn(async move {
            watched.gone().await;
            if let Some(store) = store.upgrade()
                && !watched.is_alive()
            {
                store.on_gone(session);
            }
        });
        state.peers.insert(session, KnownPeer { peer: peer.clone(), watch: watch.abort_handle() });
        Some(peer)
    }

    fn on_gone(self: &Arc<Self>, session: Nonce) {
        let buried = self.with_log(|state| {
            state.log.catch_up()?;
            self.bury(state, &[session])
        });
        if let Err(error) = buried {
            tracing::error!(%error, "cannot end what a dead process held; its TTL will");
        }
    }

    /// Ends what dead sessions held, and takes their names away.
    fn bury(&self, state: &mut State, dead: &[Nonce]) -> Result<()> {
        let at = self.clock.now();
        let known: Vec<Op> = dead
            .iter()
            .filter(|session| state.log.table().knows_session(**session))
            .map(|session| Op::Bury { session: *session, at })
            .collect();
        if !known.is_empty() {
            state.log.commit(&known)?;
        }
        for session in dead {
            state.peers.remove(session);
            session::remove(&self.directory, *session);
        }
        Ok(())
    }

    /// Ends what the dead among these sessions held. Whether there were any.
    fn bury_dead_of(self: &Arc<Self>, state: &mut State, sessions: Vec<Nonce>) -> Result<bool> {
        let own = self.session.id();
        let dead: Vec<Nonce> = sessions
            .into_iter()
            .filter(|session| *session != own)
            .filter(|session| self.peer(state, *session).is_some_and(|peer| !peer.is_alive()))
            .collect();
        self.bury(state, &dead)?;
        Ok(!dead.is_empty())
    }

    /// Errors if the store was removed under us; looks every quarter of a second at most.
    pub(crate) fn check_place(&self, state: &mut State) -> Result<()> {
        let now = self.now();
        if now.saturating_since(state.place_checked) >= NET {
            state.log.check_place()?;
            state.place_checked = now;
        }
        Ok(())
    }

    /// What would break the promises of this store.
    fn examine(self: &Arc<Self>) -> Result<Vec<Finding>> {
        let is_whole = self.durable.check().and_then(|()| self.with_log(|state| state.log.check_place()));
        let segment = self.state().log.segment().clone();
        checks::examine(&self.directory, &segment, is_whole)
    }

    pub(crate) fn now(&self) -> BootInstant {
        self.clock.now()
    }

    /// Errors if nothing can be confirmed any more, because a sync has failed.
    pub(crate) fn check_disk(&self) -> Result<()> {
        self.durable.check()
    }

    /// Returns when the log is on disk up to `wanted`.
    pub(crate) async fn sync(&self, wanted: Position) -> Result<()> {
        self.durable.sync(wanted, || self.state().log.position()).await
    }

    /// Makes grant numbers durable. The first range of a process also moves the next number up to it.
    async fn reserve_numbers(self: &Arc<Self>) -> Result<()> {
        let _one_at_a_time = self.reserving.lock().await;
        let first = !self.has_numbers.load(Ordering::Acquire);
        let size = if first { FIRST_RANGE } else { RANGE };
        let reserved = self.with_log(|state| {
            state.log.catch_up()?;
            if !first && state.log.table().numbers_left() > size / 4 {
                return Ok(None);
            }
            let from = state.log.table().numbers_reserved().max(1);
            state.log.commit(&[Op::Reserve { upto: from + size }])?;
            Ok(Some((from, state.log.position())))
        })?;
        let Some((from, position)) = reserved else { return Ok(()) };
        self.sync(position).await?;
        let commit = Op::Commit { from: if first { from } else { 0 }, upto: from + size, at: self.now() };
        self.with_log(|state| state.log.commit(&[commit]))?;
        self.has_numbers.store(true, Ordering::Release);
        Ok(())
    }

    /// Sees to it that there are numbers to grant with: at once where there are none, ahead of need where there are few.
    async fn ensure_numbers(self: &Arc<Self>) -> Result<()> {
        if !self.has_numbers.load(Ordering::Acquire) {
            return self.reserve_numbers().await;
        }
        if self.state().log.table().numbers_left() <= FIRST_RANGE / 4 && self.reserving.try_lock().is_ok() {
            let store = self.clone();
            self.runtime.spawn(async move {
                if let Err(error) = store.reserve_numbers().await {
                    tracing::error!(%error, "cannot make more grant numbers durable");
                }
            });
        }
        Ok(())
    }

    async fn acquire(self: Arc<Self>, mut request: AcquireRequest) -> Result<Attempt> {
        self.durable.check()?;
        self.ensure_numbers().await?;
        let nonce = request.nonce;
        let mut place = Place { store: &self, nonce, taken: false };
        let called = Arc::new(Notify::new());
        loop {
            let answer = self.enter(&request, &called)?;
            match answer {
                Entered::Granted(lease) => {
                    place.taken = true;
                    return Ok(Attempt::Granted(lease));
                }
                Entered::Busy(attempt) => return Ok(attempt),
                Entered::ShortOfNumbers => self.reserve_numbers().await?,
                Entered::Waiting => {}
            }
            let mut told = true;
            // In line, until our turn is claimed, or was missed because we were paused.
            while let Some(look_again_at) = match self.look(&request, told)? {
                Look::Granted(lease) => {
                    place.taken = true;
                    return Ok(Attempt::Granted(lease));
                }
                Look::Waiting(until) => Some(until),
                Look::OutOfLine => None,
            } {
                let Wait::Until(deadline) = request.wait else {
                    unreachable!("one that waits stands in line")
                };
                let nap = self.clock.nap(look_again_at.min(deadline)).unwrap_or(Duration::ZERO);
                told = tokio::select! {
                    biased;
                    () = &mut request.abandoned => return self.give_up(&request),
                    () = called.notified() => true,
                    () = tokio::time::sleep(nap) => {
                        if self.now() >= deadline {
                            return self.give_up(&request);
                        }
                        false
                    }
                };
            }
        }
    }

    /// Asks for the lease; joins the line where the request waits.
    fn enter(self: &Arc<Self>, request: &AcquireRequest, called: &Arc<Notify>) -> Result<Entered> {
        let waits = match request.wait {
            Wait::No => false,
            Wait::Until(deadline) => self.now() < deadline,
        };
        self.with_log(|state| {
            self.check_place(state)?;
            if waits {
                state.waiters.insert(request.nonce, called.clone());
            }
            loop {
                let at = self.now();
                let entry = Entry {
                    name: request.name.clone(),
                    mode: request.mode,
                    ttl: request.ttl,
                    waits,
                    nonce: request.nonce,
                    session: self.session.id(),
                    holder: request.holder.clone(),
                    at,
                };
                return Ok(match only(state.log.commit(&[Op::Enter(entry)])?) {
                    Answer::Held => match lease(state, request, at) {
                        Some(lease) => Entered::Granted(lease),
                        None => continue,
                    },
                    Answer::Waiting => Entered::Waiting,
                    Answer::ShortOfNumbers => Entered::ShortOfNumbers,
                    Answer::LineFull => return Err(line_full(&request.name)),
                    _ => {
                        // What keeps us out may be dead without anybody having noticed.
                        let sessions = state.log.table().sessions_of(&request.name);
                        if self.bury_dead_of(state, sessions)? {
                            continue;
                        }
                        Entered::Busy(Attempt::Busy(state.log.table().contention(&request.name)))
                    }
                });
            }
        })
    }

    /// Looks at our place in line: claims a turn that has come, ends a lease in front that has lapsed or whose holder is
    /// dead, and says when to look again. `told`: the log has just been read.
    fn look(self: &Arc<Self>, request: &AcquireRequest, told: bool) -> Result<Look> {
        let nonce = request.nonce;
        self.with_log(|state| {
            if !told {
                self.check_place(state)?;
                state.log.catch_up()?;
            }
            loop {
                let now = self.now();
                if state.log.table().grant(nonce).is_some() {
                    let claimed = only(state.log.commit(&[Op::Renew { nonce, at: now }])?) == Answer::Held;
                    if let Some(lease) = claimed.then(|| lease(state, request, now)).flatten() {
                        return Ok(Look::Granted(lease));
                    }
                }
                if !state.log.table().knows(nonce) {
                    return Ok(Look::OutOfLine);
                }
                let lapses = state.log.table().next_deadline(&request.name).unwrap_or(BootInstant::MAX);
                if lapses <= now {
                    state.log.commit(&[Op::Settle { name: request.name.clone(), at: now }])?;
                    continue;
                }
                // Those we know are watched; the death of a stranger would go unseen.
                let mut ahead = state.log.table().ahead_of(nonce);
                ahead.retain(|session| !state.peers.contains_key(session));
                if ahead.is_empty() || !self.bury_dead_of(state, ahead)? {
                    return Ok(Look::Waiting(lapses.min(now.saturating_add(NET))));
                }
            }
        })
    }

    /// Leaves the line; a turn that came in this moment is given back.
    fn give_up(self: &Arc<Self>, request: &AcquireRequest) -> Result<Attempt> {
        self.withdraw(request.nonce)?;
        Ok(Attempt::Busy(self.state().log.table().contention(&request.name)))
    }

    fn withdraw(self: &Arc<Self>, nonce: Nonce) -> Result<()> {
        self.with_log(|state| {
            state.waiters.remove(&nonce);
            if state.log.table().knows(nonce) {
                state.log.commit(&[Op::Release { nonce, at: self.now() }])?;
            }
            Ok(())
        })
    }

    /// One answer for each lease.
    fn for_each(
        self: &Arc<Self>,
        leases: &[LeaseKey],
        op: impl Fn(Nonce, BootInstant) -> Op,
        keep: bool,
    ) -> Result<Vec<bool>> {
        if leases.is_empty() {
            return Ok(Vec::new());
        }
        let at = self.now();
        let ops: Vec<Op> = leases.iter().map(|lease| op(lease.nonce, at)).collect();
        self.with_log(|state| {
            self.check_place(state)?;
            let held: Vec<bool> =
                state.log.commit(&ops)?.into_iter().map(|answer| answer == Answer::Held).collect();
            for (lease, held) in leases.iter().zip(&held) {
                if !held || !keep {
                    state.held.remove(&lease.nonce);
                }
            }
            Ok(held)
        })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(mailman) = self.mailman.get() {
            mailman.abort();
        }
        // A child that has the lifeline keeps the session: the kernel ends it when the child does.
        if self.has_heirs.load(Ordering::Relaxed) {
            return;
        }
        let (own, at) = (self.session.id(), self.clock.now());
        let Ok(State { log, .. }) = self.state.get_mut() else { return };
        if log.table().knows_session(own) {
            // Should it fail, the end of the process or the TTL will do the same.
            let _ = log.commit(&[Op::Bury { session: own, at }]);
            for session in log.take_news().tell {
                session::call(&self.directory, session);
            }
        }
        session::remove(&self.directory, own);
    }
}

/// An attempt's place in the table, given back unless the lease was handed on: by a future that was dropped, or an error.
struct Place<'a> {
    store: &'a Arc<Store>,
    nonce: Nonce,
    taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.taken
            && let Err(error) = self.store.withdraw(self.nonce)
        {
            tracing::error!(%error, "cannot withdraw an attempt; it ends with this process or its TTL");
        }
    }
}

enum Entered {
    Granted(Lease),
    Busy(Attempt),
    Waiting,
    ShortOfNumbers,
}

enum Look {
    Granted(Lease),
    Waiting(BootInstant),
    /// The turn came and passed while we were paused.
    OutOfLine,
}

/// The lease that was granted, for us to keep.
fn lease(state: &mut State, request: &AcquireRequest, at: BootInstant) -> Option<Lease> {
    let token = state.log.table().grant(request.nonce)?.token();
    state.waiters.remove(&request.nonce);
    state.held.insert(request.nonce);
    let key = LeaseKey::new(request.name.clone(), request.nonce, request.ttl);
    Some(Lease::new(key, token, at))
}

/// The answer to a commit of one operation.
pub(crate) fn only(answers: Vec<Answer>) -> Answer {
    answers.into_iter().next().expect("a commit answers every operation")
}

fn line_full(name: &LockName) -> Error {
    Error::new(
        ErrorKind::Full,
        format!("{WAITERS_MAX} others wait for {name:?} already, which is the most; try again later"),
    )
}

impl Backend for LocalBackend {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        Box::pin(self.store.clone().acquire(request))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        let renewal = |held| if held { Renewal::Renewed } else { Renewal::Lost };
        Box::pin(async move {
            let held = self.store.for_each(leases, |nonce, at| Op::Renew { nonce, at }, true)?;
            Ok(held.into_iter().map(renewal).collect())
        })
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        let release = |held| if held { Release::Released } else { Release::NotHeld };
        Box::pin(async move {
            let held = self.store.for_each(leases, |nonce, at| Op::Release { nonce, at }, false)?;
            Ok(held.into_iter().map(release).collect())
        })
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(async move {
            let leases = std::slice::from_ref(lease);
            let held = self.store.for_each(leases, |nonce, at| Op::Downgrade { nonce, at }, true)?;
            Ok(if held[0] { Renewal::Renewed } else { Renewal::Lost })
        })
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(async move {
            self.store.with_log(|state| {
                state.log.catch_up()?;
                let sessions = state.log.table().sessions_of(name);
                self.store.bury_dead_of(state, sessions)?;
                Ok(state.log.table().state(name, self.store.now()))
            })
        })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(async move {
            self.store.with_log(|state| {
                state.log.catch_up()?;
                let sessions = state.log.table().sessions();
                self.store.bury_dead_of(state, sessions)?;
                Ok(state.log.table().list(&query, self.store.now()))
            })
        })
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(async move {
            let evict = Op::Evict { name: name.clone(), nonce: holder, at: self.store.now() };
            let answer = self.store.with_log(|state| Ok(only(state.log.commit(&[evict])?)))?;
            Ok(if answer == Answer::Held { Eviction::Evicted } else { Eviction::NotHeld })
        })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async { self.store.examine() })
    }

    /// This machine's, because the store has no other clients.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(Some(self.store.clock.wall())) })
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        // The contract allows one call; a second listener would be told of leases that are not its own.
        let _ = self.store.listener.set(Listener(listener));
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        let lifeline = self.store.session.lifeline()?;
        self.store.has_heirs.store(true, Ordering::Relaxed);
        Ok(Some(lifeline))
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl fmt::Debug for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for LocalBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local:{}", self.store.directory.path().display())?;
        match self.guarantees.record_guard {
            RecordGuard::HighWaterMark => f.write_str("?fence=mark"),
            _ => Ok(()),
        }
    }
}
