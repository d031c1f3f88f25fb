use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BoxFuture, Clock, Eviction, FencedStore, Finding,
    Guarantees, HolderDeath, LeaseClock, LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce, Page,
    Queue, Records, Release, Renewal, Result, Scope, Tokens,
};

use crate::checks::Checks;
use crate::leases::Leases;
use crate::options::{self, Options};
use crate::records::Records as RecordStore;

/// What a PostgreSQL server promises under a URL. Errors with [`ErrorKind::InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl) for
/// a recipe that there is not.
pub fn guarantees(url: &BackendUrl) -> Result<Guarantees> {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::Durable;
    guarantees.queue = Queue::FirstComeFirstServed;
    guarantees.lease_clock = LeaseClock::ServerWallClock;
    guarantees.records = Records::Durable;
    if options::reclaims(url)? {
        guarantees.holder_death = HolderDeath::Connection;
    }
    Ok(guarantees)
}

/// Locks in a PostgreSQL database; see the crate's documentation.
///
/// Dropping it closes its connections. What it still holds ends at its TTL.
pub struct PostgresBackend {
    leases: Leases,
    records: RecordStore,
    checks: Checks,
    clock: Arc<dyn Clock>,
    options: Arc<Options>,
    guarantees: Guarantees,
}

impl PostgresBackend {
    /// Connects to the primary among the servers of a URL, and makes the schema there if there is none: 3 round trips and those of
    /// the connection.
    ///
    /// Must be called in a tokio runtime. Errors with [`ErrorKind::InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl),
    /// [`Unavailable`](ringfence_core::ErrorKind::Unavailable) for servers that cannot be reached, or none of which is the
    /// primary, [`Refused`](ringfence_core::ErrorKind::Refused) for a wrong password or rights that are missing,
    /// [`Unsupported`](ringfence_core::ErrorKind::Unsupported) for a server that is too old, or a schema that is too new.
    pub async fn connect(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Self> {
        let options = Arc::new(Options::parse(url)?);
        let leases = Leases::new(&options, Arc::clone(&clock));
        leases.connect().await?;
        let records = RecordStore::new(Arc::clone(leases.affairs()), &options.schema, true);
        Ok(Self { leases, records, checks: Checks::default(), clock, guarantees: guarantees(url)?, options })
    }
}

impl Backend for PostgresBackend {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        Box::pin(self.leases.acquire(request))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        Box::pin(self.leases.renew(leases))
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        Box::pin(self.leases.release(leases))
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(self.leases.downgrade(lease))
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(self.leases.inspect(name))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(self.leases.list(query))
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(self.leases.evict(name, holder))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.checks.examine(self.leases.affairs(), &*self.clock))
    }

    fn records(&self) -> &dyn FencedStore {
        &self.records
    }

    fn on_loss(&self, listener: LossListener) {
        self.leases.on_loss(listener);
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.options.shown)
    }
}
