use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BoxFuture, Clock, Eviction, FencedStore, Finding,
    Guarantees, HolderDeath, LeaseClock, LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce, Page,
    Queue, Records, Release, Renewal, Result, Scope, Tokens, WallTime,
};

use crate::advisory::{self, Advisory};
use crate::checks::{self, Checks};
use crate::leases::Leases;
use crate::options::{self, Options};
use crate::records::Records as RecordStore;

/// What a PostgreSQL server promises under a URL. Errors with [`ErrorKind::InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl) for
/// a recipe that there is not.
pub fn guarantees(url: &BackendUrl) -> Result<Guarantees> {
    let reclaims = match options::recipe(url)? {
        options::Recipe::Advisory(_) => return Ok(advisory::guarantees()),
        options::Recipe::Leases { reclaims } => reclaims,
    };
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::Durable;
    guarantees.queue = Queue::FirstComeFirstServed;
    guarantees.lease_clock = LeaseClock::ServerWallClock;
    guarantees.records = Records::Durable;
    if reclaims {
        guarantees.holder_death = HolderDeath::Connection;
    }
    Ok(guarantees)
}

/// What the locks are made of.
enum Recipe {
    Leases(Leases),
    Advisory(Advisory),
}

/// Does the same with either recipe.
macro_rules! with {
    ($backend:expr, $recipe:ident => $does:expr) => {
        match &$backend.recipe {
            Recipe::Leases($recipe) => $does,
            Recipe::Advisory($recipe) => $does,
        }
    };
}

/// Locks in a PostgreSQL database; see the crate's documentation.
///
/// Dropping it closes its connections. What it still holds ends at its TTL.
pub struct PostgresBackend {
    recipe: Recipe,
    records: RecordStore,
    checks: Checks,
    clock: Arc<dyn Clock>,
    options: Arc<Options>,
    guarantees: Guarantees,
}

impl PostgresBackend {
    /// Connects to the primary among the servers of a URL, and makes the schema there if there is none: 4 round trips and those of
    /// the connection.
    ///
    /// Must be called in a tokio runtime. Errors with [`ErrorKind::InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl),
    /// [`Unavailable`](ringfence_core::ErrorKind::Unavailable) for servers that cannot be reached, or none of which is the
    /// primary, [`Refused`](ringfence_core::ErrorKind::Refused) for a wrong password or rights that are missing,
    /// [`Unsupported`](ringfence_core::ErrorKind::Unsupported) for a server that is too old, or a schema that is too new.
    pub async fn connect(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Self> {
        let (guarantees, options) = (guarantees(url)?, Arc::new(Options::parse(url)?));
        let (recipe, records) = match options.recipe {
            options::Recipe::Leases { reclaims } => {
                let leases = Leases::new(&options, reclaims, Arc::clone(&clock));
                leases.connect().await?;
                let records = RecordStore::new(Arc::clone(leases.affairs()), &options.schema, true);
                (Recipe::Leases(leases), records)
            }
            options::Recipe::Advisory(keys) => {
                let advisory = Advisory::new(&options, keys, Arc::clone(&clock));
                advisory.connect().await?;
                let records = RecordStore::new(Arc::clone(advisory.affairs()), &options.schema, false);
                (Recipe::Advisory(advisory), records)
            }
        };
        Ok(Self { recipe, records, checks: Checks::default(), clock, guarantees, options })
    }
}

impl Backend for PostgresBackend {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        with!(self, recipe => Box::pin(recipe.acquire(request)))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        with!(self, recipe => Box::pin(recipe.renew(leases)))
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        with!(self, recipe => Box::pin(recipe.release(leases)))
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        with!(self, recipe => Box::pin(recipe.downgrade(lease)))
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        with!(self, recipe => Box::pin(recipe.inspect(name)))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        with!(self, recipe => Box::pin(recipe.list(query)))
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        with!(self, recipe => Box::pin(recipe.evict(name, holder)))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.checks.examine(with!(self, recipe => recipe.affairs()), &*self.clock))
    }

    /// One round trip.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async move {
            let link = with!(self, recipe => recipe.affairs());
            Ok(Some(checks::read_clock(link, &*self.clock).await?.wall()))
        })
    }

    fn records(&self) -> &dyn FencedStore {
        &self.records
    }

    fn on_loss(&self, listener: LossListener) {
        with!(self, recipe => recipe.on_loss(listener));
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
