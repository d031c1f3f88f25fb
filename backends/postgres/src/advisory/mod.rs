//! Advisory locks: the server's own, which live as long as the session that took them.
//!
//! All locks of one TTL that a process got without waiting are in one session, because an idle session is what the server can end
//! by its own clock (`idle_session_timeout`): a renewal is a statement in it, and proves that all of them are held. A session
//! cannot wait for one lock and go on with the others, so that one that waits does so in a session of its own, and keeps the
//! lock there.

mod acquire;
mod journal;
mod keys;
mod pool;
mod session;
mod statements;
mod view;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, BootInstant, Clock, Eviction, Guarantees, HolderDeath, Lease, LeaseClock,
    LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce, Page, Permits, Queue, RecordGuard,
    Records, Release, Renewal, Result, Scope, Tokens,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::journal::Journal;
pub(crate) use self::keys::Keys;
use self::pool::Pool;
use self::session::{Event, Session, Sessions};
use self::statements::Statements;
use crate::link::Link;
use crate::options::Options;
use crate::patience;

/// The least pause between two looks at what has lapsed, which look at everything that is held.
const SWEEP_PAUSE: Duration = Duration::from_millis(5);

/// What advisory locks promise.
pub(crate) fn guarantees() -> Guarantees {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::Durable;
    guarantees.queue = Queue::FirstComeFirstServedByLease;
    guarantees.permits = Permits::None;
    guarantees.holder_death = HolderDeath::Connection;
    guarantees.lease_clock = LeaseClock::Session;
    guarantees.records = Records::Durable;
    guarantees.record_guard = RecordGuard::HighWaterMark;
    guarantees
}

/// The recipe. Dropping it ends its sessions, and with them what it still holds.
#[derive(Debug)]
pub(crate) struct Advisory(Arc<Client>);

/// What the calls of one process share.
struct Client {
    keys: Keys,
    statements: Arc<Statements>,
    pool: Pool,
    /// For everything that is no lock.
    affairs: Arc<Link>,
    held: Mutex<Held>,
    /// There is something that lapses sooner than the one that looks after it thinks.
    sooner: Arc<Notify>,
    journal: Journal,
    listener: OnceLock<LossListener>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
}

/// What this process holds.
#[derive(Debug, Default)]
struct Held {
    leases: HashMap<Nonce, Holding>,
    /// When somebody looks again which of them have lapsed.
    looked_at: Option<BootInstant>,
}

/// A lease.
#[derive(Clone, Debug)]
struct Holding {
    session: Arc<Session>,
    key: i64,
    shared: bool,
    number: i64,
    words: Arc<journal::Words>,
    since: BootInstant,
    /// Until when it lives unless it is renewed, however long its session lives on.
    deadline: BootInstant,
}

impl Advisory {
    /// On a server that is connected to when it is first used. Must be called in a tokio runtime.
    pub(crate) fn new(options: &Arc<Options>, keys: Keys, clock: Arc<dyn Clock>) -> Self {
        let runtime = Handle::current();
        let client = Arc::new_cyclic(|client: &Weak<Client>| {
            let statements = Arc::new(Statements::new(&options.schema));
            let hears = {
                let client = Weak::clone(client);
                move |sign, event| {
                    if let Some(client) = client.upgrade() {
                        client.hears(sign, event);
                    }
                }
            };
            let sessions = Sessions {
                options: Arc::clone(options),
                statements: Arc::clone(&statements),
                clock: Arc::clone(&clock),
                runtime: runtime.clone(),
                hears: Arc::new(hears),
            };
            Client {
                keys,
                statements,
                pool: Pool::new(sessions),
                affairs: Link::new(Arc::clone(options), runtime.clone(), |_| {}),
                held: Mutex::default(),
                sooner: Arc::default(),
                journal: Journal::default(),
                listener: OnceLock::new(),
                clock,
                runtime: runtime.clone(),
            }
        });
        runtime.spawn(look_after(Arc::downgrade(&client)));
        runtime.spawn(journal::keep(Arc::downgrade(&client)));
        Self(client)
    }

    /// Connects, so that what is wrong is said now.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.0.affairs.connect().await?;
        if self.0.affairs.session().is_some_and(|open| open.is_pooled) {
            return Err(session::pooled().about(self.0.affairs.shown()));
        }
        Ok(())
    }

    /// The connection for everything that is no lock.
    pub(crate) fn affairs(&self) -> &Arc<Link> {
        &self.0.affairs
    }

    pub(crate) async fn acquire(&self, request: AcquireRequest) -> Result<Attempt> {
        acquire::acquire(&self.0, request).await
    }

    pub(crate) async fn renew(&self, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        self.0.renew(leases).await
    }

    pub(crate) async fn release(&self, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        self.0.release(leases).await
    }

    pub(crate) async fn downgrade(&self, lease: &LeaseKey) -> Result<Renewal> {
        self.0.downgrade(lease).await
    }

    pub(crate) async fn inspect(&self, name: &LockName) -> Result<LockState> {
        view::inspect(&self.0, name).await
    }

    pub(crate) async fn list(&self, query: ListQuery) -> Result<Page<LockState>> {
        view::list(&self.0, &query).await
    }

    pub(crate) async fn evict(&self, name: &LockName, holder: Nonce) -> Result<Eviction> {
        view::evict(&self.0, name, holder).await
    }

    pub(crate) fn on_loss(&self, listener: LossListener) {
        // The contract says that it is set once.
        let _ = self.0.listener.set(listener);
    }
}

impl Client {
    fn now(&self) -> BootInstant {
        self.clock.now()
    }

    /// Resolves when this instant has passed.
    async fn pass(&self, instant: BootInstant) {
        while let Some(nap) = self.clock.nap(instant) {
            tokio::time::sleep(nap).await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds a lease from now on. Errors where the session is over: then it is lost before it was held.
    fn hold(&self, key: LeaseKey, holding: Holding, asked: BootInstant) -> Result<Lease> {
        let token = view::token(holding.number, key.nonce)
            .ok_or_else(|| crate::error::odd_answer(self.affairs.shown()))?;
        let lease = Lease::new(key, token, asked);
        let (nonce, deadline) = (lease.key.nonce, holding.deadline);
        let is_sooner = {
            let mut held = self.held();
            // Whoever ends a session says so first, and then looks what it had.
            if holding.session.is_over() {
                return Err(session::broken().about(self.affairs.shown()));
            }
            held.leases.insert(nonce, holding);
            held.looked_at.is_none_or(|looked_at| deadline < looked_at)
        };
        if is_sooner {
            self.sooner.notify_one();
        }
        self.journal.grants(nonce, self.now());
        Ok(lease)
    }

    /// Holds a lease no more. Whoever has it back frees its key.
    fn let_go(&self, nonce: Nonce) -> Option<Holding> {
        let holding = self.held().leases.remove(&nonce);
        self.journal.forget(nonce);
        holding
    }

    fn lost(&self, nonce: Nonce) {
        if let Some(listener) = self.listener.get() {
            listener(nonce);
        }
    }

    fn hears(self: &Arc<Self>, sign: i64, event: Event) {
        match event {
            Event::Ended => {
                let lost: Vec<Nonce> = {
                    let mut held = self.held();
                    held.leases
                        .extract_if(|_, holding| holding.session.sign == sign)
                        .map(|(nonce, _)| nonce)
                        .collect()
                };
                for nonce in lost {
                    self.journal.forget(nonce);
                    self.lost(nonce);
                }
            }
            Event::Evicted(nonce) => {
                if self.held().leases.get(&nonce).is_some_and(|holding| holding.session.sign == sign) {
                    self.end(nonce);
                }
            }
        }
    }

    /// Ends a lease that its holder has not given back.
    fn end(self: &Arc<Self>, nonce: Nonce) {
        // Its words go last: whoever wanted it to end waits for that.
        let Some(holding) = self.held().leases.remove(&nonce) else { return };
        self.lost(nonce);
        let client = Arc::clone(self);
        self.runtime.spawn(async move {
            // Where that fails, the session is over, and the lock free.
            let _ = client.free(&holding).await;
            client.journal.forget(nonce);
        });
    }

    async fn free(&self, holding: &Holding) -> Result<bool> {
        let freed = holding.session.free(holding.key).await;
        self.pool.give_back(&holding.session);
        freed
    }

    /// One round trip for each session.
    async fn renew(&self, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let mut sessions: HashMap<i64, Arc<Session>> = HashMap::new();
        let of: Vec<Option<i64>> = {
            let held = self.held();
            let sign = |lease: &LeaseKey| {
                let holding = held.leases.get(&lease.nonce)?;
                sessions.entry(holding.session.sign).or_insert_with(|| Arc::clone(&holding.session));
                Some(holding.session.sign)
            };
            leases.iter().map(sign).collect()
        };
        let mut pings = JoinSet::new();
        for (sign, session) in sessions {
            let asked = self.now();
            pings.spawn(async move { (sign, asked, session.ping().await) });
        }
        let answers: HashMap<i64, (BootInstant, Result<()>)> =
            pings.join_all().await.into_iter().map(|(sign, asked, answer)| (sign, (asked, answer))).collect();
        let mut failed = None;
        let renewals: Vec<Renewal> = leases
            .iter()
            .zip(of)
            .map(|(lease, sign)| match sign.and_then(|sign| answers.get(&sign)) {
                Some((asked, Ok(()))) => self.prolong(lease.nonce, *asked),
                Some((_, Err(error))) if self.held().leases.contains_key(&lease.nonce) => {
                    failed = Some(error.clone());
                    Renewal::Unknown
                }
                // It was lost with its session, if not before.
                _ => Renewal::Lost,
            })
            .collect();
        match failed {
            Some(error) if renewals.iter().all(|renewal| *renewal == Renewal::Unknown) => Err(error),
            _ => Ok(renewals),
        }
    }

    /// Prolongs a lease, because the session answered what was asked at this instant.
    fn prolong(&self, nonce: Nonce, asked: BootInstant) -> Renewal {
        let now = self.now();
        match self.held().leases.get_mut(&nonce) {
            Some(holding) if now < holding.deadline => {
                let ttl = holding.session.ttl.as_duration();
                holding.deadline = holding.deadline.max(asked.saturating_add(ttl));
                Renewal::Renewed
            }
            _ => Renewal::Lost,
        }
    }

    async fn release(self: &Arc<Self>, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        // Dead from now on, all of them.
        let given: Vec<Option<Holding>> = leases.iter().map(|lease| self.let_go(lease.nonce)).collect();
        if let ([lease], [holding]) = (leases, &given[..]) {
            return Ok(vec![self.give_back(lease, holding.as_ref()).await?]);
        }
        let mut under_way = JoinSet::new();
        for (place, (lease, holding)) in leases.iter().cloned().zip(given).enumerate() {
            let client = Arc::clone(self);
            under_way.spawn(async move { (place, client.give_back(&lease, holding.as_ref()).await) });
        }
        let mut answers = under_way.join_all().await;
        answers.sort_unstable_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Frees the lock of a lease. Where the server does not answer, the session is over, and so is the lease. One that is not held
    /// as far as we know may be another client's, who is asked for it.
    async fn give_back(&self, lease: &LeaseKey, holding: Option<&Holding>) -> Result<Release> {
        let Some(holding) = holding else {
            let evicted = view::evict(self, &lease.name, lease.nonce).await?;
            return Ok(if evicted == Eviction::Evicted { Release::Released } else { Release::NotHeld });
        };
        match self.free(holding).await {
            Ok(true) => Ok(Release::Released),
            Ok(false) => Ok(Release::NotHeld),
            Err(error) => {
                tracing::debug!(%error, "a lock ends with its session");
                Ok(Release::NotHeld)
            }
        }
    }

    /// Goes on to its end if the future is dropped: a lease is one thing or the other.
    async fn downgrade(self: &Arc<Self>, lease: &LeaseKey) -> Result<Renewal> {
        let (client, nonce) = (Arc::clone(self), lease.nonce);
        let downgraded = self.runtime.spawn(async move {
            let asked = client.now();
            let holding = client.held().leases.get(&nonce).cloned();
            let Some(holding) = holding.filter(|holding| asked < holding.deadline) else {
                return Ok(Renewal::Lost);
            };
            let shares = match holding.session.downgrade(holding.key).await {
                Ok(shares) => shares,
                // It was given back, to leave nothing in doubt.
                Err(error) => {
                    client.end(nonce);
                    return Err(error);
                }
            };
            if !shares {
                return Ok(Renewal::Lost);
            }
            if let Some(holding) = client.held().leases.get_mut(&nonce) {
                holding.shared = true;
            }
            client.journal.changes(nonce, client.now());
            Ok(client.prolong(nonce, asked))
        });
        downgraded.await.unwrap_or_else(|_| Err(session::broken().with_unknown_effect()))
    }

    /// Waits until the server has ended a session that we have lost sight of, and has it do so: at most for as long as the server
    /// keeps a session of which it hears nothing.
    async fn bury(&self, session: &Session) {
        session.hang_up();
        let ends = self.now().saturating_add(session.ttl.as_duration());
        let mut pauses = patience::pauses();
        while self.now() < ends {
            match self.affairs.query(&self.statements.lives, &[&session.sign]).await {
                Ok(rows) => match rows.first().map(|row| row.try_get::<_, i32>(0)) {
                    None => return,
                    // It is our own role's. Where that is not enough, its time ends it.
                    Some(Ok(pid)) => drop(self.affairs.query(&self.statements.terminate, &[&pid]).await),
                    Some(Err(_)) => {}
                },
                Err(error) => tracing::debug!(%error, "nobody says whether a session is over"),
            }
            tokio::time::sleep(pauses.pause()).await;
        }
    }

    /// Ends what has lapsed, and the sessions that nobody has used for long. When to look again.
    fn sweep(self: &Arc<Self>) -> BootInstant {
        let now = self.now();
        let lapsed: Vec<Nonce> = {
            let held = self.held();
            let is_over = |holding: &Holding| holding.deadline <= now;
            held.leases.iter().filter(|(_, holding)| is_over(holding)).map(|(nonce, _)| *nonce).collect()
        };
        for nonce in lapsed {
            self.end(nonce);
        }
        let idle = self.pool.sweep(now);
        let mut held = self.held();
        let next =
            held.leases.values().map(|holding| holding.deadline).min().unwrap_or(BootInstant::MAX).min(idle);
        held.looked_at = Some(next);
        next
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("held", &*self.held())
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

/// Looks after what lapses, while there is somebody to do so for.
async fn look_after(client: Weak<Client>) {
    loop {
        let (sooner, nap) = {
            let Some(client) = client.upgrade() else { return };
            let next = client.sweep().max(client.now().saturating_add(SWEEP_PAUSE));
            (Arc::clone(&client.sooner), client.clock.nap(next))
        };
        tokio::select! {
            () = sooner.notified() => {}
            () = tokio::time::sleep(nap.unwrap_or_default()) => {}
        }
    }
}
