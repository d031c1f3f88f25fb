use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Backoff, BootInstant, BoxFuture, Clock, Error, Eviction,
    FencedStore, Finding, Guarantees, LeaseClock, LeaseKey, ListQuery, LockName, LockState, LossListener,
    Nonce, Page, Queue, Records, Release, Renewal, Result, Scope, Tokens, Ttl, Wait, WallTime,
};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::checks;
use crate::error;
use crate::keys::{self, Keys, Known};
use crate::line::Line;
use crate::options::Options;
use crate::place::{Said, Step};
use crate::seek::Seeker;
use crate::servers::{Servers, silence};
use crate::session::{Failure, Pending, Session};
use crate::sessions::Sessions;
use crate::view;
use crate::wire::{self, Code, Data, Kind, Odd, Request};

/// The pauses of one that waits, and of a withdrawal, while there is no connection.
pub(crate) const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// For how long after its deadline one that waits tries to leave the line in the foreground, and one that does not after two servers
/// have had the time to answer.
const OVERDUE: Duration = Duration::from_secs(1);

/// The range of sessions that a server grants unless it is told otherwise: 2 to 20 ticks of 2 s.
const USUAL_RANGE: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(40)];

/// What ZooKeeper promises, with the TTLs that its servers grant unless they are told otherwise.
pub fn guarantees() -> Guarantees {
    let [shortest, longest] = USUAL_RANGE.map(|ttl| Ttl::new(ttl).expect("a lawful TTL"));
    guarantees_within((shortest, longest))
}

fn guarantees_within((shortest, longest): (Ttl, Ttl)) -> Guarantees {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::Durable;
    guarantees.queue = Queue::FirstComeFirstServedByLease;
    guarantees.lease_clock = LeaseClock::Session;
    guarantees.records = Records::Durable;
    guarantees.ttl_min = shortest;
    guarantees.ttl_max = longest;
    guarantees
}

/// Locks on a ZooKeeper server, or on an ensemble of them; see the crate's documentation.
///
/// Dropping it ends its sessions, and with them what it still holds.
pub struct ZooKeeperBackend {
    pub(crate) client: Arc<Client>,
    guarantees: Guarantees,
}

/// A release, which may have been answered.
enum Sent {
    UnderWay(Pending),
    Answered(Result<(), Failure>),
}

/// What the calls of one process share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) sessions: Sessions,
    pub(crate) keys: Keys,
    pub(crate) known: Known,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
    pub(crate) server_time: view::ServerTime,
}

impl ZooKeeperBackend {
    /// Connects to the servers of a URL, and learns which TTLs they grant. Two sessions begin; one of them ends at once.
    ///
    /// Must be called in a tokio runtime. Errors with [`InvalidUrl`](ringfence_core::ErrorKind::InvalidUrl),
    /// [`Unavailable`](ringfence_core::ErrorKind::Unavailable) where no server can be reached,
    /// [`Refused`](ringfence_core::ErrorKind::Refused) for a login that is refused.
    ///
    /// # Cancel safety
    /// If the future is dropped, sessions that were begun end.
    pub async fn connect(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Self> {
        let Options { servers, login, tls, keys, shown } = Options::parse(url)?;
        let sessions =
            Sessions::connect(Servers::new(servers, login, tls, shown), Arc::clone(&clock)).await?;
        let guarantees = guarantees_within(sessions.range);
        let runtime = Handle::current();
        let server_time = view::ServerTime::default();
        Ok(Self {
            client: Arc::new(Client { sessions, keys, known: Known::default(), clock, runtime, server_time }),
            guarantees,
        })
    }
}

impl Client {
    pub(crate) fn shown(&self) -> &str {
        self.sessions.servers.shown()
    }

    pub(crate) fn now(&self) -> BootInstant {
        self.clock.now()
    }

    /// The error of a call about a lock.
    pub(crate) fn error(&self, failure: Failure) -> Error {
        error::of_call(failure, self.shown())
    }

    /// As [`Self::error`], of a call about this node, which is named where its rules are in the way.
    pub(crate) fn error_at(&self, path: &str, failure: Failure) -> Error {
        match failure {
            Failure::Refused(code @ Code::NO_AUTH) => error::refused(code).about(path).about(self.shown()),
            failure => self.error(failure),
        }
    }

    pub(crate) fn odd(&self) -> Error {
        error::odd().about(self.shown())
    }

    /// Makes the nodes above one whose parent was missed; the parent itself as the last kind says.
    pub(crate) async fn make_parents(
        &self,
        session: &Session,
        path: &str,
        last: Kind,
    ) -> Result<(), Failure> {
        let parents: Vec<&str> = keys::above(path).collect();
        let kinds = (1..parents.len()).map(|_| Kind::Persistent).chain([last]);
        let send = |(parent, kind)| session.call(Request::create(parent, b"", self.keys.access(), kind));
        let pending: Vec<_> = parents.iter().copied().zip(kinds).map(send).collect();
        let mut made = Ok(Bytes::new());
        for pending in pending {
            made = match pending.answer().await {
                // Who may not make a node that is there already is told of that first. Only the last one was missed.
                Err(failure @ Failure::Refused(_)) => Err(failure),
                made => Ok(made?),
            };
        }
        match made {
            Ok(_) => Ok(()),
            Err(failure) if failure.is(Code::NODE_EXISTS) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    async fn acquire(self: Arc<Self>, mut request: AcquireRequest) -> Result<Attempt> {
        let folder = self.keys.lock(&request.name)?;
        let waits_until = match request.wait {
            // A server that falls silent is left, and the next one has as long to answer.
            Wait::No => self.now().saturating_add(2 * silence(request.ttl.as_duration())),
            Wait::Until(deadline) => deadline,
        };
        let overdue = waits_until.saturating_add(OVERDUE);
        let mut seeker = Seeker::new(&self, &folder, &mut request);
        let outcome = tokio::select! {
            outcome = Box::pin(seeker.seek()) => Some(outcome),
            () = self.pass(overdue) => None,
        };
        match outcome {
            None => seeker.ends_unanswered().await,
            Some(Ok(attempt)) => {
                seeker.is_settled = true;
                Ok(attempt)
            }
            Some(Err(error)) => {
                if let Some(session) = &seeker.session {
                    tokio::select! {
                        // Where that is refused, it is tried again in the background.
                        withdrawn = self.withdraw(session, &folder, seeker.request.nonce) => {
                            seeker.is_settled = withdrawn.is_ok();
                        }
                        () = self.pass(overdue) => return seeker.ends_unanswered().await,
                    }
                }
                Err(error.without_effect())
            }
        }
    }

    /// Resolves when this instant has passed.
    pub(crate) async fn pass(&self, instant: BootInstant) {
        while let Some(nap) = self.clock.nap(instant) {
            tokio::time::sleep(nap).await;
        }
    }

    /// Removes what is left of an attempt. Returns when nothing is, or when the session is over in which it was made: then the
    /// servers have removed it, or will when they know. The error is why they refuse.
    pub(crate) async fn withdraw(&self, session: &Session, folder: &str, nonce: Nonce) -> Result<()> {
        session.let_go(nonce);
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            match self.remove(session, folder, nonce).await {
                Ok(_) => {
                    session.forget(nonce);
                    return Ok(());
                }
                Err(Failure::Over(_)) => return Ok(()),
                Err(Failure::NotSent(_) | Failure::Lost(_)) => {}
                Err(failure) => return Err(self.error_at(folder, failure)),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Removes the nodes of an attempt, whichever there are, and says whether there was one.
    async fn remove(&self, session: &Session, folder: &str, nonce: Nonce) -> Result<bool, Failure> {
        let line = match self.line(session, folder).await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(false),
            line => line?,
        };
        let mut was_there = false;
        for place in line.places.iter().filter(|place| place.nonce == nonce && place.is_ours) {
            match session.call(Request::delete(&format!("{folder}/{}", place.name))).answer().await {
                Ok(_) => was_there = true,
                Err(failure) if failure.is(Code::NO_NODE) => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(was_there)
    }

    /// The line for a lock, as of no earlier than this call.
    pub(crate) async fn line(&self, session: &Session, folder: &str) -> Result<Line, Failure> {
        let synced = session.call(Request::sync(folder));
        let listed = session.call(Request::children(folder, false));
        synced.answer().await?;
        Ok(Line::of(&wire::children(listed.answer().await?)?))
    }

    /// The line for a lock, and that the session lives: a majority agreed to both after this call. [`Self::line`] is cheaper, but
    /// a leader that has lost the others answers it, until it knows.
    pub(crate) async fn proven_line(&self, session: &Session, folder: &str) -> Result<Line, Failure> {
        let agreed = session.call(Request::agree());
        let listed = session.call(Request::children(folder, false));
        agreed.agreement().await?;
        Ok(Line::of(&wire::children(listed.answer().await?)?))
    }

    async fn renew(&self, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let mut ttls: Vec<Ttl> = leases.iter().map(|lease| lease.ttl).collect();
        ttls.sort_unstable();
        ttls.dedup();
        let mut proofs = JoinSet::new();
        for ttl in ttls {
            let Some(session) = self.sessions.find(ttl) else { continue };
            for lease in leases.iter().filter(|lease| lease.ttl == ttl) {
                session.watch_held(lease.nonce);
            }
            proofs.spawn(async move { (ttl, session.lived().await, session) });
        }
        let mut renewals = vec![Renewal::Lost; leases.len()];
        let mut failed = None;
        for (ttl, lived, session) in proofs.join_all().await {
            let lived = match lived {
                // Its leases are lost.
                Err(Failure::Over(_)) => continue,
                lived => lived.map_err(|failure| self.error(failure)),
            };
            for (lease, renewal) in leases.iter().zip(&mut renewals).filter(|(lease, _)| lease.ttl == ttl) {
                *renewal = match lived {
                    Ok(lived) if session.prolong(lease.nonce, lived) => Renewal::Renewed,
                    Err(_) if session.path_of(lease.nonce).is_some() => Renewal::Unknown,
                    _ => Renewal::Lost,
                };
            }
            failed = lived.err().or(failed);
        }
        match failed {
            Some(error) if renewals.iter().all(|renewal| *renewal == Renewal::Unknown) => Err(error),
            _ => Ok(renewals),
        }
    }

    async fn release(&self, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        let mut under_way = Vec::with_capacity(leases.len());
        for lease in leases {
            let sent = match (self.sessions.find(lease.ttl), leases) {
                (None, _) => None,
                (Some(session), [_]) => session.release_together(lease.nonce).await.map(Sent::Answered),
                (Some(session), _) => session.release(lease.nonce).map(Sent::UnderWay),
            };
            under_way.push((lease, sent));
        }
        let mut releases = Vec::with_capacity(leases.len());
        let mut failed = None;
        for (lease, sent) in under_way {
            let removed = match sent {
                Some(Sent::Answered(answer)) => answer.map(|()| true),
                Some(Sent::UnderWay(pending)) => pending.answer().await.map(|_| true),
                // It is not held as far as we know. Its node may be there all the same.
                None => match self.sessions.any().await {
                    Ok(session) => self.remove(&session, &self.keys.lock(&lease.name)?, lease.nonce).await,
                    Err(error) => Err(Failure::NotSent(error)),
                },
            };
            releases.push(match removed {
                Ok(true) => Release::Released,
                Ok(false) | Err(Failure::Refused(Code::NO_NODE) | Failure::Over(_)) => Release::NotHeld,
                Err(failure) => {
                    failed = Some(self.error_at(&self.keys.lock(&lease.name)?, failure));
                    Release::NotHeld
                }
            });
        }
        failed.map_or(Ok(releases), Err)
    }

    /// Says in the node of an exclusive lease that it shares by now, which lets those in who wait to share.
    async fn downgrade(&self, lease: &LeaseKey) -> Result<Renewal> {
        let Some(session) = self.sessions.find(lease.ttl) else { return Ok(Renewal::Lost) };
        let Some(path) = session.path_of(lease.nonce) else { return Ok(Renewal::Lost) };
        loop {
            let asked = self.now();
            let found = match session.call(Request::data(&path, false)).answer().await {
                Err(failure) if failure.is(Code::NO_NODE) => return Ok(Renewal::Lost),
                found => Data::read(found.map_err(|failure| self.error_at(&path, failure))?)
                    .map_err(|Odd| self.odd())?,
            };
            let said = Said::read(&found.bytes).ok_or_else(|| self.odd())?;
            let said = Said { step: Step::Shares, ..said }.write();
            let version = found.stat.version;
            return match session.call(Request::set_data(&path, said.as_bytes(), version)).answer().await {
                Ok(_) if session.prolong(lease.nonce, asked) => Ok(Renewal::Renewed),
                Ok(_) => Ok(Renewal::Lost),
                Err(failure) if failure.is(Code::NO_NODE) => Ok(Renewal::Lost),
                // The session has said in this moment that it holds, which it does once.
                Err(failure) if failure.is(Code::BAD_VERSION) => continue,
                Err(failure) => Err(self.error_at(&path, failure)),
            };
        }
    }
}

impl Backend for ZooKeeperBackend {
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
        Box::pin(self.client.release(leases))
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
        Box::pin(view::evict(&self.client, name, holder))
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(checks::examine(&self.client))
    }

    /// None: ZooKeeper tells the time of a write and of nothing else.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(None) })
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        self.client.sessions.on_loss(listener);
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl fmt::Debug for ZooKeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ZooKeeperBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.client.shown())
    }
}
