//! Leases: rows that one statement arbitrates, by the server's clock.
//!
//! A process has three connections at most: one for attempts, one for everything else, and one on which it hears of its turns.

mod calls;
mod ears;
mod line;
mod seek;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backoff, BootInstant, BoxFuture, Clock, Eviction, LeaseKey, ListQuery, LockName,
    LockState, LossListener, Nonce, Page, Release, Renewal, Result, Retry,
};
use tokio::runtime::Handle;

use self::calls::{Answer, Asked, Calls};
use self::ears::Ears;
use self::line::Line;
use crate::link::Link;
use crate::options::Options;
use crate::together::{BATCH, Together};

/// The longest pause after a withdrawal that did not get through, doubled after each up to the second.
const WITHDRAW_PAUSE: Duration = Duration::from_millis(20);
const WITHDRAW_PAUSE_MAX: Duration = Duration::from_millis(500);

/// After so many new names, those are forgotten that nobody has used for long.
const TIDY_EVERY: u64 = 1000;

/// The recipe.
#[derive(Debug)]
pub(crate) struct Leases(Arc<Client>);

/// What the calls of one process share.
#[derive(Debug)]
struct Client {
    calls: Arc<Calls>,
    /// For attempts, which may have to wait for a disk or for a row.
    attempts: Together<Asked, Answer>,
    releases: Together<ByName, bool>,
    /// For everything else.
    affairs: Arc<Link>,
    ears: Ears,
    line: Arc<Line>,
    new_names: AtomicU64,
    clock: Arc<dyn Clock>,
    runtime: Handle,
}

/// A lease, in the order of its lock.
#[derive(Clone, Debug)]
struct ByName(LeaseKey);

impl AsRef<str> for ByName {
    fn as_ref(&self) -> &str {
        self.0.name.as_str()
    }
}

fn keys(leases: Vec<ByName>) -> Vec<LeaseKey> {
    leases.into_iter().map(|ByName(lease)| lease).collect()
}

/// A call on a connection, which has both for itself.
fn call<Request, Answer, Make>(
    calls: &Arc<Calls>,
    link: &Arc<Link>,
    make: Make,
) -> impl Fn(Vec<Request>) -> BoxFuture<'static, Result<Vec<Answer>>> + use<Request, Answer, Make>
where
    Make: Fn(Arc<Calls>, Arc<Link>, Vec<Request>) -> BoxFuture<'static, Result<Vec<Answer>>>,
{
    let (calls, link) = (Arc::clone(calls), Arc::clone(link));
    move |requests| make(Arc::clone(&calls), Arc::clone(&link), requests)
}

impl Leases {
    /// On a server that is connected to when it is first used. Must be called in a tokio runtime.
    pub(crate) fn new(options: &Arc<Options>, reclaims: bool, clock: Arc<dyn Clock>) -> Self {
        let runtime = Handle::current();
        let calls = Arc::new(Calls::new(&options.schema, reclaims));
        let connection = || Link::new(Arc::clone(options), runtime.clone(), |_| {});
        let (attempts, affairs) = (connection(), connection());
        let attempts = Together::new(
            runtime.clone(),
            call(&calls, &attempts, |calls, link, asked: Vec<Asked>| {
                Box::pin(async move { calls.acquire_free(&link, &asked).await })
            }),
            call(&calls, &attempts, |calls, link, asked| {
                Box::pin(async move { calls.acquire(&link, &asked).await })
            }),
        );
        let releases = Together::new(
            runtime.clone(),
            call(&calls, &affairs, |calls, link, leases| {
                Box::pin(async move { calls.release_free(&link, &keys(leases)).await })
            }),
            call(&calls, &affairs, |calls, link, leases| {
                Box::pin(async move { calls.release(&link, &keys(leases)).await })
            }),
        );
        let line = Arc::<Line>::default();
        let ears = Ears::new(options, reclaims, Arc::clone(&line), &runtime);
        Self(Arc::new(Client {
            attempts,
            releases,
            calls,
            affairs,
            ears,
            line,
            new_names: AtomicU64::new(0),
            clock,
            runtime,
        }))
    }

    /// Connects, so that what is wrong is said now.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.0.affairs.connect().await?;
        self.0.ears.refuse_poolers(&self.0.affairs)
    }

    /// The connection for everything but attempts.
    pub(crate) fn affairs(&self) -> &Arc<Link> {
        &self.0.affairs
    }

    pub(crate) async fn acquire(&self, request: AcquireRequest) -> Result<Attempt> {
        seek::acquire(&self.0, request).await
    }

    /// One round trip for each 128 leases.
    pub(crate) async fn renew(&self, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let mut renewals = Vec::with_capacity(leases.len());
        for leases in in_order(leases).chunks(BATCH) {
            let some: Vec<LeaseKey> = leases.iter().map(|(_, lease)| (*lease).clone()).collect();
            let answers = match self.0.calls.renew(&self.0.affairs, &some).await {
                Ok(lives) => lives
                    .into_iter()
                    .map(|lives| if lives { Renewal::Renewed } else { Renewal::Lost })
                    .collect(),
                // Those that were answered are told of all the same.
                Err(error) if renewals.is_empty() => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "some leases of a renewal have no answer");
                    vec![Renewal::Unknown; some.len()]
                }
            };
            renewals.extend(leases.iter().map(|(place, _)| *place).zip(answers));
        }
        Ok(in_place(renewals))
    }

    pub(crate) async fn release(&self, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        self.0.release(leases).await
    }

    pub(crate) async fn downgrade(&self, lease: &LeaseKey) -> Result<Renewal> {
        let lives = self.0.calls.downgrade(&self.0.affairs, lease).await?;
        Ok(if lives { Renewal::Renewed } else { Renewal::Lost })
    }

    pub(crate) async fn inspect(&self, name: &LockName) -> Result<LockState> {
        view::inspect(&self.0, name).await
    }

    pub(crate) async fn list(&self, query: ListQuery) -> Result<Page<LockState>> {
        view::list(&self.0, &query).await
    }

    pub(crate) async fn evict(&self, name: &LockName, holder: Nonce) -> Result<Eviction> {
        let was_there = self.0.calls.evict(&self.0.affairs, name, holder).await?;
        Ok(if was_there { Eviction::Evicted } else { Eviction::NotHeld })
    }

    pub(crate) fn on_loss(&self, listener: LossListener) {
        self.0.line.listen(listener);
    }
}

impl Client {
    fn now(&self) -> BootInstant {
        self.clock.now()
    }

    async fn release(&self, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        self.ears.forget(leases);
        let freed = |freed| if freed { Release::Released } else { Release::NotHeld };
        if let [lease] = leases {
            return Ok(vec![freed(self.releases.send(ByName(lease.clone())).await?)]);
        }
        let mut releases = Vec::with_capacity(leases.len());
        for leases in in_order(leases).chunks(BATCH) {
            let some: Vec<LeaseKey> = leases.iter().map(|(_, lease)| (*lease).clone()).collect();
            let answers = self.calls.release(&self.affairs, &some).await?;
            releases.extend(leases.iter().map(|(place, _)| *place).zip(answers.into_iter().map(freed)));
        }
        Ok(in_place(releases))
    }

    /// Undoes an attempt, and sees to it that it cannot come back. Tries until it is answered, at most for as long as the
    /// attempt's lease could live. Says whether nothing is left of it.
    async fn withdraw(&self, lease: &LeaseKey) -> bool {
        let ends = self.now().saturating_add(lease.ttl.as_duration());
        let mut pauses = Backoff::new(WITHDRAW_PAUSE, WITHDRAW_PAUSE_MAX);
        while let Err(error) = self.calls.withdraw(&self.affairs, self.ears.session(), lease).await {
            if error.retry() == Retry::Never {
                tracing::warn!(%error, "an attempt could not be withdrawn; what came of it ends at its TTL");
                return false;
            }
            if self.now() >= ends {
                break;
            }
            tokio::time::sleep(pauses.pause().min(ends.saturating_since(self.now()))).await;
        }
        true
    }

    /// A name was new to the server. Now and then that is a reason to forget others.
    fn met_a_new_name(self: &Arc<Self>) {
        if self.new_names.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIDY_EVERY) {
            let client = Arc::clone(self);
            self.runtime.spawn(async move {
                if let Err(error) = client.calls.tidy(&client.affairs).await {
                    tracing::debug!(%error, "names that nobody uses stay for now");
                }
            });
        }
    }
}

/// Leases in the order of their locks, each with its place.
fn in_order(leases: &[LeaseKey]) -> Vec<(usize, &LeaseKey)> {
    let mut order: Vec<_> = leases.iter().enumerate().collect();
    order.sort_by(|(_, one), (_, other)| one.name.cmp(&other.name));
    order
}

/// Answers in the order of their places.
fn in_place<Answer>(mut answers: Vec<(usize, Answer)>) -> Vec<Answer> {
    answers.sort_by_key(|(place, _)| *place);
    answers.into_iter().map(|(_, answer)| answer).collect()
}
