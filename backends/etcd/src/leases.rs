//! The server's leases: one for each TTL, shared by all locks of the process.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringfence_core::{BootInstant, BoxFuture, Clock, Coalescer, Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tonic::Status;

use crate::error;
use crate::proto::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    LeaseRevokeResponse,
};
use crate::servers::{ANSWER_PATIENCE, Servers};

/// A keep-alive is waited for this part of a lease's life, so that another member can be asked before it ends.
const PATIENCE_PART: u32 = 6;

/// What a keep-alive is waited for at least.
const PATIENCE_MIN: Duration = Duration::from_millis(250);

/// A lease of the server that keys live by.
#[derive(Debug)]
pub(crate) struct ServerLease {
    life: Arc<Life>,
    /// Keep-alives, each asked for by whoever wants one that was sent at this instant or later.
    keeping: Coalescer<BootInstant, Result<bool>>,
}

/// What is known of the life of a lease.
#[derive(Debug)]
struct Life {
    id: i64,
    lasts: Duration,
    /// When the last keep-alive that was answered had been sent, in nanoseconds of the boot-time clock.
    renewed: AtomicU64,
    is_over: AtomicBool,
}

impl Life {
    fn renewed(&self) -> BootInstant {
        BootInstant::from_nanos(self.renewed.load(Ordering::Acquire))
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Keeps it alive by a message that is sent at this instant or later. Says whether it lives.
    async fn keep(&self, servers: &Servers, clock: &dyn Clock, since: BootInstant) -> Result<bool> {
        // Those who are about to ask as well are spared a message of their own.
        tokio::task::yield_now().await;
        if self.is_over() || self.renewed() >= since {
            return Ok(!self.is_over());
        }
        let sent = clock.now();
        let patience = (self.lasts / PATIENCE_PART).clamp(PATIENCE_MIN, ANSWER_PATIENCE);
        let id = self.id;
        let kept = servers.with_link(patience, |link| async move {
            let questions = tokio_stream::once(LeaseKeepAliveRequest { id });
            let mut answers = link.converse("/etcdserverpb.Lease/LeaseKeepAlive", questions).await?;
            let answer: Option<LeaseKeepAliveResponse> = answers.message().await?;
            answer.ok_or_else(|| Status::unavailable("the member ended the keep-alive without an answer"))
        });
        // Done twice or not at all, it does no harm.
        let kept = kept.await.map_err(Error::without_effect)?;
        if kept.ttl > 0 {
            self.renewed.store(sent.as_nanos(), Ordering::Release);
        } else {
            self.is_over.store(true, Ordering::Release);
        }
        Ok(kept.ttl > 0)
    }
}

impl ServerLease {
    pub(crate) fn id(&self) -> i64 {
        self.life.id
    }

    /// From when its life counts, as far as we can prove.
    pub(crate) fn renewed(&self) -> BootInstant {
        self.life.renewed()
    }

    /// Until when we can prove that it lives.
    pub(crate) fn ends(&self) -> BootInstant {
        self.life.renewed().saturating_add(self.life.lasts)
    }

    /// How long it lives without a keep-alive.
    pub(crate) fn lasts(&self) -> Duration {
        self.life.lasts
    }

    /// Whether the server said that it is no more.
    pub(crate) fn is_over(&self) -> bool {
        self.life.is_over()
    }

    /// The server said that it is no more.
    pub(crate) fn end(&self) {
        self.life.is_over.store(true, Ordering::Release);
    }

    /// Keeps it alive by a message that is sent at this instant or later; one that somebody else has sent since then is enough.
    /// Says whether it lives.
    pub(crate) async fn keep(&self, since: BootInstant) -> Result<bool> {
        self.keeping.request(since).await.unwrap_or_else(|| {
            Err(Error::new(
                ErrorKind::Unavailable,
                "a keep-alive has no answer, because the program is shutting down",
            ))
        })
    }
}

/// The leases of a process.
pub(crate) struct Leases {
    servers: Arc<Servers>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    /// By their life in seconds.
    pool: Mutex<HashMap<u64, Arc<ServerLease>>>,
    granting: tokio::sync::Mutex<()>,
}

impl Leases {
    pub(crate) fn new(servers: Arc<Servers>, clock: Arc<dyn Clock>, runtime: Handle) -> Self {
        Self { servers, clock, runtime, pool: Mutex::default(), granting: tokio::sync::Mutex::default() }
    }

    /// The lease of this TTL, in whole seconds rounded up, if we can prove that it lives.
    pub(crate) fn present(&self, ttl: Duration) -> Option<Arc<ServerLease>> {
        let now = self.clock.now();
        self.pool().get(&seconds(ttl)).filter(|lease| !lease.life.is_over() && now < lease.ends()).cloned()
    }

    /// The lease of this TTL, or a new one.
    pub(crate) async fn get(&self, ttl: Duration) -> Result<Arc<ServerLease>> {
        match self.present(ttl) {
            Some(lease) => Ok(lease),
            None => Box::pin(self.grant_for_all(ttl)).await,
        }
    }

    async fn grant_for_all(&self, ttl: Duration) -> Result<Arc<ServerLease>> {
        let _granting = self.granting.lock().await;
        if let Some(lease) = self.present(ttl) {
            return Ok(lease);
        }
        let lease = Arc::new(self.grant(ttl).await?.0);
        self.pool().insert(seconds(ttl), Arc::clone(&lease));
        Ok(lease)
    }

    /// A lease of its own, and the life in seconds that the cluster gave it. What comes of a grant whose answer is lost ends by
    /// itself.
    pub(crate) async fn grant(&self, ttl: Duration) -> Result<(ServerLease, u64)> {
        let sent = self.clock.now();
        let question = LeaseGrantRequest { ttl: i64::try_from(seconds(ttl)).unwrap_or(i64::MAX) };
        let granted: LeaseGrantResponse =
            self.servers.call("/etcdserverpb.Lease/LeaseGrant", &question).await?;
        let life = u64::try_from(granted.ttl).ok().filter(|life| *life >= seconds(ttl) && granted.id != 0);
        let Some(life) = life else {
            return Err(error::odd_answer("a lease shorter than was asked for", self.servers.shown()));
        };
        let lease = Arc::new(Life {
            id: granted.id,
            lasts: Duration::from_secs(seconds(ttl)),
            renewed: AtomicU64::new(sent.as_nanos()),
            is_over: AtomicBool::new(false),
        });
        let (keeping, servers, clock) =
            (Arc::clone(&lease), Arc::clone(&self.servers), Arc::clone(&self.clock));
        let keep = move |since: Vec<BootInstant>| {
            let (keeping, servers, clock) = (Arc::clone(&keeping), Arc::clone(&servers), Arc::clone(&clock));
            Box::pin(async move {
                let last = since.iter().max().copied().unwrap_or(BootInstant::MAX);
                let kept = keeping.keep(&servers, &*clock, last).await;
                since.iter().map(|_| kept.clone()).collect()
            }) as BoxFuture<'static, Vec<Result<bool>>>
        };
        let runtime = self.runtime.clone();
        let adopt = move |round_trip| drop(runtime.spawn(round_trip));
        let lease = ServerLease { life: lease, keeping: Coalescer::new(1, usize::MAX, keep, adopt) };
        Ok((lease, life))
    }

    /// Ends a lease, and with it every key that lives by it.
    pub(crate) async fn revoke(&self, lease: &ServerLease) -> Result<()> {
        lease.end();
        let question = LeaseRevokeRequest { id: lease.id() };
        let _: LeaseRevokeResponse = self.servers.call("/etcdserverpb.Lease/LeaseRevoke", &question).await?;
        Ok(())
    }

    /// Keeps a lease alive, where the last time is longer ago than a part of its life.
    pub(crate) async fn refresh(&self, lease: &ServerLease, part: u32) -> Result<bool> {
        let now = self.clock.now();
        let due = lease.renewed().saturating_add(lease.lasts() / part);
        if now < due && !lease.life.is_over() { Ok(true) } else { lease.keep(now).await }
    }

    /// Keeps a lease alive as often as this, for as long as it is polled.
    pub(crate) async fn keep_on(&self, lease: &ServerLease, every: Duration, part: u32) -> Infallible {
        loop {
            tokio::time::sleep(every).await;
            // Whoever lives by it asks again when it is done.
            let _ = self.refresh(lease, part).await;
        }
    }

    fn pool(&self) -> MutexGuard<'_, HashMap<u64, Arc<ServerLease>>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("pool", &self.pool()).finish_non_exhaustive()
    }
}

/// The server counts in seconds.
fn seconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_nanos().div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
}
