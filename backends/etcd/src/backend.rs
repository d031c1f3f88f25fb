use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, BoxFuture, Clock, Error, ErrorKind, Eviction,
    FencedStore, Finding, Guarantees, LeaseClock, LeaseKey, ListQuery, LockName, LockState, LossListener,
    Nonce, Page, Queue, Records, Release, Renewal, Result, Retry, Scope, Tokens, Ttl, WallTime,
};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::batch::{Batch, DELETE_RANGE};
use crate::checks;
use crate::error;
use crate::held::{Held, Holding};
use crate::keys::Keys;
use crate::leases::Leases;
use crate::line::{self, Place};
use crate::ops;
use crate::options::Options;
use crate::proto::{DeleteRangeRequest, DeleteRangeResponse, TxnRequest, TxnResponse};
use crate::servers::Servers;
use crate::slots::Slots;
use crate::view;
use crate::watch::{Ear, Watches, Word};

/// The shortest TTL that etcd knows. A cluster's own minimum, which is higher by default, is learned when we connect to it.
const TTL_MIN_MS: u64 = 1000;

/// The pause between tries to end a lease that nobody renews.
const END_AGAIN: Duration = Duration::from_secs(1);

/// What an etcd cluster promises.
pub fn guarantees() -> Guarantees {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::Durable;
    guarantees.queue = Queue::FirstComeFirstServedByLease;
    guarantees.lease_clock = LeaseClock::Session;
    guarantees.records = Records::Durable;
    guarantees.ttl_min = ttl(TTL_MIN_MS);
    guarantees
}

fn ttl(millis: u64) -> Ttl {
    Ttl::new(Duration::from_millis(millis)).unwrap_or(Ttl::MAX)
}

/// Locks on an etcd cluster; see the crate's documentation.
///
/// Dropping it closes its connections. What it still holds ends at its TTL.
pub struct EtcdBackend {
    pub(crate) client: Arc<Client>,
    guarantees: Guarantees,
}

/// What the calls of one process share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) servers: Arc<Servers>,
    pub(crate) leases: Leases,
    pub(crate) batch: Batch,
    pub(crate) watches: Watches,
    pub(crate) held: Arc<Held>,
    pub(crate) slots: Slots,
    pub(crate) keys: Keys,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
}

impl EtcdBackend {
    /// Connects to the cluster of a URL: three round trips, and those of the connection. The first asks the member how it is, and two
    /// write: a lease is granted and revoked, to learn the shortest TTL that the cluster knows. Where its database is full that is not
    /// learned, and a shorter TTL than that is taken for it: the lock of a holder that dies is free that much later.
    ///
    /// Must be called in a tokio runtime. Errors with [`InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl),
    /// [`Unavailable`](ringfence_core::ErrorKind::Unavailable) where no member can be reached or there is no majority,
    /// [`Refused`](ringfence_core::ErrorKind::Refused) for a wrong password,
    /// [`Unsupported`](ringfence_core::ErrorKind::Unsupported) for a version that is too old.
    pub async fn connect(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Self> {
        let client = Arc::new(Client::new(Options::parse(url)?, clock));
        let mut guarantees = guarantees();
        match client.leases.grant(guarantees.ttl_min.as_duration()).await {
            Ok((shortest, seconds)) => {
                guarantees.ttl_min = ttl(seconds.saturating_mul(1000));
                let revoking = Arc::clone(&client);
                client.runtime.spawn(async move {
                    // It would end by itself.
                    let _ = revoking.leases.revoke(&shortest).await;
                });
            }
            // Who comes to see what is wrong may look. Who wants a lock is told so then.
            Err(error) if error.kind() == ErrorKind::Full => {
                tracing::warn!(%error, "the shortest TTL of the cluster is not known");
            }
            Err(error) => return Err(error),
        }
        Ok(Self { client, guarantees })
    }
}

impl Client {
    /// A client of a cluster. It connects when it is first used.
    fn new(options: Options, clock: Arc<dyn Clock>) -> Self {
        let Options { members, login, keys, shown } = options;
        let runtime = Handle::current();
        let servers = Arc::new(Servers::new(members, login, shown));
        Self {
            leases: Leases::new(Arc::clone(&servers), Arc::clone(&clock), runtime.clone()),
            batch: Batch::new(Arc::clone(&servers), runtime.clone()),
            watches: Watches::new(Arc::clone(&servers), runtime.clone()),
            held: Arc::default(),
            slots: Slots::default(),
            servers,
            keys,
            clock,
            runtime,
        }
    }

    pub(crate) fn now(&self) -> BootInstant {
        self.clock.now()
    }

    /// Begins to end leases that nobody renews. The server's lease that they share with others may live on, so that nobody else
    /// would end them.
    pub(crate) fn look_after_leases(self: &Arc<Self>) {
        let (client, held) = (Arc::downgrade(self), Arc::clone(&self.held));
        let clock = Arc::clone(&self.clock);
        self.runtime.spawn(async move {
            loop {
                let overdue = held.overdue(clock.now());
                if !overdue.is_empty() {
                    let Some(client) = client.upgrade() else { return };
                    let end = |client: Arc<Self>, (nonce, holding)| async move {
                        client.end(nonce, &holding).await;
                        Ok(())
                    };
                    client.each(overdue.into_iter(), end).await;
                }
                let Some(next) = held.plan() else { return };
                tokio::select! {
                    () = tokio::time::sleep(clock.nap(next).unwrap_or_default()) => {}
                    () = held.sooner.notified() => {}
                }
            }
        });
    }

    /// Ends a lease that nobody has renewed. A key that cannot be deleted now is tried again, as long as the server's lease may live on
    /// for others: with that one it ends.
    async fn end(&self, nonce: Nonce, holding: &Holding) {
        match self.delete_held(holding).await {
            Err(error) if error.retry() == Retry::Later || self.now() < holding.lease.ends() => {
                tracing::debug!(%error, "a lease that nobody renews cannot be ended yet");
                self.held.lingers(nonce, self.now().saturating_add(END_AGAIN));
            }
            _ => self.held.lost(nonce),
        }
    }

    /// Who listens to what becomes of the key of a lease.
    pub(crate) fn ear_of(self: &Arc<Self>, nonce: Nonce) -> Ear {
        let client = Arc::downgrade(self);
        Ear::Holder(Arc::new(move |word| {
            let Some(client) = client.upgrade() else { return };
            match word {
                Word::Gone => client.held.lost(nonce),
                Word::Unwatched => {
                    let looking = Arc::clone(&client);
                    client.runtime.spawn(async move { looking.look_again(nonce).await });
                }
            }
        }))
    }

    /// Looks whether the key of a lease went while nobody watched it.
    async fn look_again(&self, nonce: Nonce) {
        let Some(holding) = self.held.get(nonce) else { return };
        match self.batch.look(holding.key).await {
            Ok(created) if created != holding.created => self.held.lost(nonce),
            Ok(_) => {}
            // Where the connection broke again, the next one has it looked at.
            Err(error) => tracing::debug!(%error, "a key that was not watched cannot be looked at"),
        }
    }

    /// Deletes the key of a lease, unless it is known to be gone. Says whether it was there.
    async fn delete_held(&self, Holding { name, key, slot, next, .. }: &Holding) -> Result<bool> {
        if !slot.leaves() {
            return Ok(false);
        }
        let was_there = match next.as_ref().and_then(|next| next.place()) {
            Some(next) => Box::pin(self.hand_over(name, key, next)).await?,
            None => self.delete(name, key).await?,
        };
        slot.is_gone();
        Ok(was_there)
    }

    /// Deletes the key of one that held alone, and gives the turn to the one directly behind it, if that still stands there as it was
    /// created at this revision: then nobody is ahead of it any more. Says whether the key was there.
    async fn hand_over(&self, name: &LockName, key: &[u8], (next, created): (Vec<u8>, i64)) -> Result<bool> {
        let txn = TxnRequest {
            compare: vec![ops::created_at(&next, created)],
            success: vec![ops::delete(key), ops::touch(&next)],
            failure: vec![ops::delete(key)],
        };
        match self.batch.change(name, txn).await {
            Err(error) if error.kind() == ErrorKind::Full => self.delete(name, key).await,
            answer => self.was_deleted(&answer?),
        }
    }

    fn was_deleted(&self, answer: &TxnResponse) -> Result<bool> {
        let odd = || error::odd_answer("a deletion without a count", self.servers.shown());
        ops::deleted(answer, 0).map(|deleted| deleted > 0).ok_or_else(odd)
    }

    /// Deletes a key. Says whether it was there. Whoever calls this has the slot of the key, so that it is nobody else's.
    pub(crate) async fn delete(&self, name: &LockName, key: &[u8]) -> Result<bool> {
        let txn = TxnRequest { success: vec![ops::delete(key)], ..TxnRequest::default() };
        match self.batch.change(name, txn).await {
            // Before version 3.5.7 a member whose database is full refuses every transaction, and deletes all the same.
            Err(error) if error.kind() == ErrorKind::Full => {
                let question = DeleteRangeRequest { key: key.to_vec() };
                let asked = Box::pin(self.servers.call::<DeleteRangeResponse>(DELETE_RANGE, &question));
                Ok(asked.await?.deleted > 0)
            }
            answer => self.was_deleted(&answer?),
        }
    }

    async fn release(&self, lease: &LeaseKey) -> Result<Release> {
        let Some(holding) = self.held.giving_back(lease.nonce) else {
            return Box::pin(self.release_of_another(lease)).await;
        };
        let was_there = self.delete_held(&holding).await?;
        self.held.remove(lease.nonce);
        Ok(if was_there { Release::Released } else { Release::NotHeld })
    }

    /// Gives back a lease that this client did not get, which is looked for in the line.
    async fn release_of_another(&self, lease: &LeaseKey) -> Result<Release> {
        let line = view::line(self, &lease.name).await.map_err(Error::without_effect)?;
        let is_meant = |place: &&Place| place.ttl.is_some() && is_of(place, lease.nonce);
        let Some(place) = line.iter().find(is_meant) else { return Ok(Release::NotHeld) };
        let was_there = self.delete_as_seen(&lease.name, place).await?;
        Ok(if was_there { Release::Released } else { Release::NotHeld })
    }

    /// Deletes a key that may be another client's, if it is still the one that was seen. Says whether it was.
    async fn delete_as_seen(&self, name: &LockName, place: &Place) -> Result<bool> {
        let txn = TxnRequest {
            compare: vec![ops::created_at(&place.key, place.created)],
            success: vec![ops::delete(&place.key)],
            failure: Vec::new(),
        };
        Ok(self.batch.change(name, txn).await?.succeeded)
    }

    async fn release_all(self: &Arc<Self>, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        if let [lease] = leases {
            return Ok(vec![self.release(lease).await?]);
        }
        let released =
            self.each(leases.iter().cloned(), |client, lease| async move { client.release(&lease).await });
        released.await.into_iter().collect()
    }

    async fn evict(&self, name: &LockName, holder: Nonce) -> Result<Eviction> {
        let line = view::line(self, name).await?;
        let holding = line::holding(&line);
        let is_meant = |place: &&Place| is_of(place, holder);
        let Some(place) = line[..holding].iter().find(is_meant) else { return Ok(Eviction::NotHeld) };
        let was_there = self.delete_as_seen(name, place).await?;
        Ok(if was_there { Eviction::Evicted } else { Eviction::NotHeld })
    }

    /// Does the same with each, all at the same time.
    pub(crate) async fn each<T, A, F>(
        self: &Arc<Self>,
        items: impl Iterator<Item = T>,
        act: impl Fn(Arc<Self>, T) -> F,
    ) -> Vec<Result<A>>
    where
        A: Send + 'static,
        F: Future<Output = Result<A>> + Send + 'static,
    {
        let mut acting = JoinSet::new();
        for (place, item) in items.enumerate() {
            let acted = act(Arc::clone(self), item);
            acting.spawn_on(async move { (place, acted.await) }, &self.runtime);
        }
        let mut acted = acting.join_all().await;
        acted.sort_by_key(|(place, _)| *place);
        acted.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

fn is_of(place: &Place, nonce: Nonce) -> bool {
    place.token.is_some_and(|token| token.nonce() == nonce)
}

impl Backend for EtcdBackend {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        Box::pin(Arc::clone(&self.client).acquire(request))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        Box::pin(self.client.renew(leases))
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        Box::pin(self.client.release_all(leases))
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(self.client.downgrade(lease))
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(view::inspect(&self.client, name))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(view::list(&self.client, query))
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(self.client.evict(name, holder))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(checks::examine(&self.client))
    }

    /// None: etcd tells its clients no time of day.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(None) })
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        self.client.held.listen(listener);
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.client.servers.shown())
    }
}
