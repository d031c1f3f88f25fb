use std::collections::HashSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Backoff, BootInstant, BoxFuture, Clock, Contention, Error,
    ErrorKind, Eviction, FencedStore, FencingToken, Finding, Guarantees, Lease, LeaseClock, LeaseKey,
    ListQuery, LockName, LockState, LossListener, Mode, Nonce, Page, Queue, Records, Release, Renewal,
    Result, Scope, Tokens, Ttl, Wait,
};
use tokio::runtime::Handle;

use crate::checks;
use crate::error;
use crate::keys::{self, Keys};
use crate::line::{self, Line, Turn};
use crate::options::Options;
use crate::place::{self, Said};
use crate::servers::Servers;
use crate::session::{Changed, Failure, Session};
use crate::sessions::Sessions;
use crate::view;
use crate::wire::{self, Code, Created, Data, Kind, Odd, Request};

/// How often a waiter looks at the line, whatever happens: the net under a message that was lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The pauses of one that waits, and of a withdrawal, while there is no connection.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// For how long after its deadline one that waits tries to leave the line in the foreground.
const OVERDUE: Duration = Duration::from_secs(1);

/// How often a node is made anew whose parent vanished meanwhile.
const PARENTS_MADE_MAX: usize = 4;

/// How many of those in the way are looked up for one who is told that it is busy.
const SHOWN_MAX: usize = 8;

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

/// What the calls of one process share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) sessions: Sessions,
    pub(crate) keys: Keys,
    pub(crate) clock: Arc<dyn Clock>,
    runtime: Handle,
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
        let Options { servers, login, keys, shown } = Options::parse(url)?;
        let sessions = Sessions::connect(Servers::new(servers, login, shown), Arc::clone(&clock)).await?;
        let guarantees = guarantees_within(sessions.range);
        let runtime = Handle::current();
        let server_time = view::ServerTime::default();
        Ok(Self { client: Arc::new(Client { sessions, keys, clock, runtime, server_time }), guarantees })
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
        let overdue = match request.wait {
            Wait::No => BootInstant::MAX,
            Wait::Until(deadline) => deadline.saturating_add(OVERDUE),
        };
        let mut seeker = Seeker {
            client: &self,
            folder: &folder,
            request: &mut request,
            session: None,
            is_abandoned: false,
            is_settled: false,
        };
        let outcome = tokio::select! {
            outcome = Box::pin(seeker.seek()) => Some(outcome),
            () = self.pass(overdue) => None,
        };
        match outcome {
            // Nobody answers, and the wait is over: the line is left in the background.
            None => Ok(Attempt::Busy(Contention::default())),
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
                        () = self.pass(overdue) => return Ok(Attempt::Busy(Contention::default())),
                    }
                }
                Err(error.without_effect())
            }
        }
    }

    /// Resolves when this instant has passed.
    async fn pass(&self, instant: BootInstant) {
        while let Some(nap) = self.clock.nap(instant) {
            tokio::time::sleep(nap).await;
        }
    }

    /// Removes what is left of an attempt. Returns when nothing is, or when the session is over in which it was made: then the
    /// servers have removed it, or will when they know. The error is why they refuse.
    async fn withdraw(&self, session: &Session, folder: &str, nonce: Nonce) -> Result<()> {
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
                Err(failure) => return Err(self.error(failure)),
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
    async fn proven_line(&self, session: &Session, folder: &str) -> Result<Line, Failure> {
        let agreed = session.call(Request::agree());
        let listed = session.call(Request::children(folder, false));
        agreed.agreement().await?;
        Ok(Line::of(&wire::children(listed.answer().await?)?))
    }

    async fn renew(&self, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let mut ttls: Vec<Ttl> = leases.iter().map(|lease| lease.ttl).collect();
        ttls.sort_unstable();
        ttls.dedup();
        let asked = self.now();
        let proofs: Vec<_> = ttls
            .into_iter()
            .map(|ttl| {
                let session = self.sessions.find(ttl);
                let pending = session.as_ref().map(|session| session.call(Request::agree()));
                (ttl, session, pending)
            })
            .collect();
        let mut renewals = vec![Renewal::Lost; leases.len()];
        let mut failed = None;
        for (ttl, session, pending) in proofs {
            let (Some(session), Some(pending)) = (session, pending) else { continue };
            let unknown = match pending.agreement().await {
                Ok(()) => None,
                // Its leases are lost.
                Err(Failure::Over(_)) => continue,
                Err(failure) => Some(self.error(failure)),
            };
            for (lease, renewal) in leases.iter().zip(&mut renewals).filter(|(lease, _)| lease.ttl == ttl) {
                *renewal = match &unknown {
                    None if session.prolong(lease.nonce, asked) => Renewal::Renewed,
                    Some(_) if session.path_of(lease.nonce).is_some() => Renewal::Unknown,
                    _ => Renewal::Lost,
                };
            }
            failed = unknown.or(failed);
        }
        match failed {
            Some(error) if renewals.iter().all(|renewal| *renewal == Renewal::Unknown) => Err(error),
            _ => Ok(renewals),
        }
    }

    async fn release(&self, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        let mut under_way = Vec::with_capacity(leases.len());
        for lease in leases {
            let session = self.sessions.find(lease.ttl);
            under_way.push((lease, session.and_then(|session| session.release(lease.nonce))));
        }
        let mut releases = Vec::with_capacity(leases.len());
        let mut failed = None;
        for (lease, sent) in under_way {
            let removed = match sent {
                Some(pending) => pending.answer().await.map(|_| true),
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
                    failed = Some(self.error(failure));
                    Release::NotHeld
                }
            });
        }
        failed.map_or(Ok(releases), Err)
    }

    /// Says in the node of an exclusive lease that it shares by now, which lets those in who wait to share.
    async fn downgrade(&self, lease: &LeaseKey) -> Result<Renewal> {
        let asked = self.now();
        let Some(session) = self.sessions.find(lease.ttl) else { return Ok(Renewal::Lost) };
        let Some(path) = session.path_of(lease.nonce) else { return Ok(Renewal::Lost) };
        let found = match session.call(Request::data(&path, false)).answer().await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(Renewal::Lost),
            found => Data::read(found.map_err(|failure| self.error(failure))?).map_err(|Odd| self.odd())?,
        };
        let said = Said::read(&found.bytes).ok_or_else(|| self.odd())?;
        let said = Said { is_downgraded: true, ..said }.write();
        match session.call(Request::set_data(&path, said.as_bytes(), found.stat.version)).answer().await {
            Ok(_) if session.prolong(lease.nonce, asked) => Ok(Renewal::Renewed),
            Ok(_) => Ok(Renewal::Lost),
            Err(failure) if failure.is(Code::NO_NODE) => Ok(Renewal::Lost),
            Err(failure) => Err(self.error(failure)),
        }
    }
}

/// An attempt under way; withdrawn in the background if its future is dropped.
struct Seeker<'a> {
    client: &'a Arc<Client>,
    folder: &'a str,
    request: &'a mut AcquireRequest,
    /// Where the servers may know of it: in this session.
    session: Option<Arc<Session>>,
    /// Whether nobody wants the lease any more.
    is_abandoned: bool,
    is_settled: bool,
}

/// A place in line, by the server's word.
struct Standing {
    session: Arc<Session>,
    /// The name of its node.
    name: String,
    /// The transaction that made it.
    made_by: i64,
    /// Since when the session is proven to live.
    proven: BootInstant,
    line: Line,
}

impl Seeker<'_> {
    /// Takes a place in line, and waits for the turn as long as the request does.
    async fn seek(&mut self) -> Result<Attempt> {
        // Those who were exclusive and share by now.
        let mut downgraded = HashSet::new();
        let mut has_waited = false;
        let mut standing = self.stand_in_line().await?;
        loop {
            let Some(at) = standing.line.places.iter().position(|place| place.name == standing.name) else {
                // Somebody removed it, and it stands in line again, at the end.
                standing = self.stand_in_line().await?;
                continue;
            };
            if standing.line.places[at].is_beyond_the_last() {
                return Err(Error::new(
                    ErrorKind::Full,
                    "the servers have given all numbers of this line: remove its node when nobody stands below it, and its \
                     numbers begin again",
                )
                .about(self.folder)
                .about(self.client.shown()));
            }
            let mut news = None;
            match standing.line.turn(at, &downgraded) {
                Turn::Now => {
                    if let Some(lease) = self.take(&standing, has_waited)? {
                        return Ok(Attempt::Granted(lease));
                    }
                    // That took longer than a lease lives: it has to be proven anew.
                }
                Turn::BehindSeveral if self.is_impatient() => {
                    return self.give_up(&standing, &downgraded).await;
                }
                Turn::BehindSeveral => {
                    let listed = Request::children(self.folder, true);
                    let (asked, changed) = standing.session.watch(listed, self.folder, true);
                    match asked.answer().await.map(wire::children) {
                        // What it watches is what it knows, unless it has changed since.
                        Ok(Ok(children)) if Line::of(&children).places == standing.line.places => {
                            news = Some(changed);
                        }
                        Ok(_) => {}
                        Err(failure) => self.bear(failure, &mut standing).await?,
                    }
                }
                Turn::Behind(place) => {
                    let may_share = self.request.mode == Mode::Shared && place.mode == Mode::Exclusive;
                    if self.is_impatient() && !may_share {
                        return self.give_up(&standing, &downgraded).await;
                    }
                    let path = format!("{}/{}", self.folder, place.name);
                    let (asked, changed) = standing.session.watch(Request::data(&path, true), &path, false);
                    match asked.answer().await.map(Data::read) {
                        Ok(Ok(data)) if may_share && place::is_downgraded(&data.bytes) => {
                            downgraded.insert(place.name.clone());
                            continue;
                        }
                        Ok(_) if self.is_impatient() => return self.give_up(&standing, &downgraded).await,
                        Ok(_) => news = Some(changed),
                        // It has left in this moment.
                        Err(failure) if failure.is(Code::NO_NODE) => {}
                        Err(failure) => self.bear(failure, &mut standing).await?,
                    }
                }
            }
            has_waited = true;
            if let Some(changed) = news {
                self.wait(changed).await;
            }
            self.look(&mut standing).await?;
        }
    }

    /// Whether it does not wait, or no longer.
    fn is_impatient(&self) -> bool {
        self.is_abandoned
            || match self.request.wait {
                Wait::No => true,
                Wait::Until(deadline) => self.client.now() >= deadline,
            }
    }

    /// Waits for news, or until it is time to look anyway.
    async fn wait(&mut self, mut changed: Changed) {
        let look_at = self.client.now().saturating_add(LOOK_EVERY);
        let look_at = match self.request.wait {
            Wait::Until(deadline) => look_at.min(deadline),
            Wait::No => look_at,
        };
        tokio::select! {
            () = &mut self.request.abandoned => self.is_abandoned = true,
            () = changed.changed() => {}
            () = self.client.pass(look_at) => {}
        }
    }

    /// Makes the node, and sees who stands before it: in one round trip where the lock is in use.
    async fn stand_in_line(&mut self) -> Result<Standing> {
        let client = self.client;
        let AcquireRequest { mode, ttl, nonce, ref holder, .. } = *self.request;
        let said = Said::new(ttl, holder.clone()).write();
        let path = format!("{}/{}", self.folder, line::name_of(nonce, mode));
        for _ in 0..PARENTS_MADE_MAX {
            let session = client.sessions.of(ttl).await?;
            self.session = Some(Arc::clone(&session));
            let proven = client.now();
            let made =
                session.call(Request::create(&path, said.as_bytes(), client.keys.access(), Kind::InLine));
            let listed = session.call(Request::children(self.folder, false));
            let created = match made.answer().await {
                Ok(created) => Created::read(created).map_err(|Odd| client.odd())?,
                Err(failure) if failure.is(Code::NO_NODE) => {
                    // The container was never there, or was removed because it was empty.
                    let parents = client.make_parents(&session, &path, Kind::Container).await;
                    parents.map_err(|failure| client.error(failure))?;
                    continue;
                }
                Err(Failure::Lost(why)) => return self.find(session, why).await,
                Err(failure) => {
                    // It was not made.
                    self.session = None;
                    return Err(client.error(failure));
                }
            };
            client.server_time.learn(created.stat.made_at, proven, client.now());
            let name = created.path.rsplit('/').next().unwrap_or_default().to_owned();
            let children = match listed.answer().await {
                Ok(children) => wire::children(children).map_err(|Odd| client.odd())?,
                Err(Failure::Lost(why) | Failure::NotSent(why)) => return self.find(session, why).await,
                Err(failure) => return Err(client.error(failure)),
            };
            let line = Line::of(&children);
            return Ok(Standing { session, name, made_by: created.stat.made_by, proven, line });
        }
        Err(error::refused(Code::NO_NODE).about(client.shown()))
    }

    /// Finds the node of this attempt, after the connection broke before its place was known. What the next connection does not
    /// see will never be.
    async fn find(&mut self, session: Arc<Session>, why: Error) -> Result<Standing> {
        let client = self.client;
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            let proven = client.now();
            match self.look_for_ours(&session).await {
                Ok(Some((line, name, made_by))) => {
                    return Ok(Standing { session, name, made_by, proven, line });
                }
                Ok(None) => return Err(why.about(client.shown())),
                Err(failure) if failure.is(Code::NO_NODE) => return Err(why.about(client.shown())),
                Err(Failure::Lost(_) | Failure::NotSent(_)) => {}
                Err(failure) => return Err(client.error(failure)),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// The line, and in it the name of the node that this attempt made in this session, and the transaction that made it. One of
    /// an earlier session may stand there with the same nonce, until the servers have ended that one.
    async fn look_for_ours(&self, session: &Session) -> Result<Option<(Line, String, i64)>, Failure> {
        let line = self.client.proven_line(session, self.folder).await?;
        let mut found = None;
        for place in line.places.iter().filter(|place| place.nonce == self.request.nonce && place.is_ours) {
            let path = format!("{}/{}", self.folder, place.name);
            match session.call(Request::data(&path, false)).answer().await {
                // It has left in this moment.
                Err(failure) if failure.is(Code::NO_NODE) => {}
                data => {
                    let stat = Data::read(data?)?.stat;
                    if stat.owner == session.id {
                        found = Some((place.name.clone(), stat.made_by));
                    }
                }
            }
        }
        Ok(found.map(|(name, made_by)| (line, name, made_by)))
    }

    /// Looks at the line once more. While there is no connection it goes on waiting: its place stands as long as its session.
    async fn look(&mut self, standing: &mut Standing) -> Result<()> {
        let proven = self.client.now();
        match self.client.proven_line(&standing.session, self.folder).await {
            Ok(line) => {
                (standing.line, standing.proven) = (line, proven);
                Ok(())
            }
            Err(failure) if failure.is(Code::NO_NODE) => {
                standing.line = Line::default();
                Ok(())
            }
            Err(failure) => self.bear(failure, standing).await,
        }
    }

    /// Goes on after a call that failed, where that does not end the attempt.
    async fn bear(&mut self, failure: Failure, standing: &mut Standing) -> Result<()> {
        match failure {
            // The place went with the session. It stands in line again, at the end.
            Failure::Over(_) => {
                *standing = self.stand_in_line().await?;
                Ok(())
            }
            Failure::Lost(why) | Failure::NotSent(why) if self.request.wait != Wait::No => {
                tracing::debug!(%why, "a waiter cannot look at the line");
                let pause = Backoff::new(PAUSES.1, PAUSES.1).pause();
                tokio::select! {
                    () = &mut self.request.abandoned, if !self.is_abandoned => self.is_abandoned = true,
                    () = tokio::time::sleep(pause) => {}
                }
                Ok(())
            }
            failure => Err(self.client.error(failure)),
        }
    }

    /// The lease, if it is still proven.
    fn take(&mut self, standing: &Standing, has_waited: bool) -> Result<Option<Lease>> {
        let AcquireRequest { name, nonce, ttl, mode, .. } = &*self.request;
        let number = u64::try_from(standing.made_by).unwrap_or(u64::MAX);
        let token =
            FencingToken::of_grant(number, *nonce).map_err(|error| error.about(self.client.shown()))?;
        let lease = Lease::new(LeaseKey::new(name.clone(), *nonce, *ttl), token, standing.proven);
        if self.client.now() >= lease.deadline() {
            return Ok(None);
        }
        let path = format!("{}/{}", self.folder, standing.name);
        if !standing.session.hold(*nonce, &path, lease.deadline()) {
            return Ok(None);
        }
        if has_waited && matches!(mode, Mode::Permit(_)) {
            // The one behind learns that it is the first of those who wait. Where that is lost, it looks by itself.
            let said = Said::new(*ttl, self.request.holder.clone()).write();
            standing.session.tell(Request::set_data(&path, said.as_bytes(), 0));
        }
        Ok(Some(lease))
    }

    /// Leaves the line.
    async fn give_up(&mut self, standing: &Standing, downgraded: &HashSet<String>) -> Result<Attempt> {
        let (client, session) = (self.client, &standing.session);
        let holders = standing.line.holders(downgraded);
        let others = standing.line.places.iter().filter(|place| place.name != standing.name).count();
        let shown: Vec<_> = standing.line.places[..holders.min(SHOWN_MAX)]
            .iter()
            .map(|place| session.call(Request::data(&format!("{}/{}", self.folder, place.name), false)))
            .collect();
        let left = session.call(Request::delete(&format!("{}/{}", self.folder, standing.name)));
        let mut contention = Contention::new(Vec::new(), others.saturating_sub(holders));
        for pending in shown {
            if let Ok(data) = pending.answer().await
                && let Ok(data) = Data::read(data)
            {
                let said = Said::read(&data.bytes);
                let said = said.unwrap_or_else(|| Said::by_another_client(client.sessions.range.0));
                contention.holders.push(said.holder);
            }
        }
        match left.answer().await {
            Ok(_) | Err(Failure::Refused(Code::NO_NODE) | Failure::Over(_)) => {}
            // The line is left in the background, where nobody waits for it.
            Err(Failure::Lost(_) | Failure::NotSent(_)) => self.withdraw_in_background(),
            Err(failure) => return Err(client.error(failure)),
        }
        Ok(Attempt::Busy(contention))
    }

    fn withdraw_in_background(&mut self) {
        let Some(session) = self.session.take() else { return };
        let (client, session) = (Arc::downgrade(self.client), Arc::downgrade(&session));
        let (folder, nonce) = (self.folder.to_owned(), self.request.nonce);
        self.client.runtime.spawn(async move {
            let mut backoff = Backoff::new(PAUSES.1, LOOK_EVERY);
            // Where the client or the session is dropped, the servers remove the node.
            while let (Some(client), Some(session)) = (client.upgrade(), session.upgrade()) {
                let Err(error) = client.withdraw(&session, &folder, nonce).await else { return };
                tracing::warn!(%error, "an attempt could not be withdrawn yet; what came of it ends with its session");
                drop((client, session));
                tokio::time::sleep(backoff.pause()).await;
            }
        });
    }
}

impl Drop for Seeker<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.withdraw_in_background();
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
