use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::num::NonZeroU8;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Backoff, BootInstant, BoxFuture, Clock, Contention, Effect,
    Error, ErrorKind, Eviction, FencedStore, FencingToken, Finding, Guarantees, Lease, LeaseClock, LeaseKey,
    ListQuery, LockName, LockState, LossListener, Mode, Nonce, Page, Queue, Records, Release, Renewal,
    Result, Retry, Scope, Tokens, Ttl, Wait, WallTime,
};
use tokio::runtime::Handle;

use crate::channels::{Channels, Listening};
use crate::checks::{self, Checks};
use crate::cluster::Cluster;
use crate::compare_and_delete::Written;
use crate::error;
use crate::keys::{Keys, LockKeys};
use crate::line::Line;
use crate::link::Link;
use crate::options::{Options, Target};
use crate::scripts::{self, Change, any_text, digits, number, text};
use crate::servers::{Answered, Servers};
use crate::view::{self, Seen};

/// How often the second in line looks whether the first one has taken its turn, and the first one whether another client has
/// gone. Those behind them look less often.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(250);

/// However far behind, a waiter looks after its place that often: it may have come to be the first one meanwhile.
const LOOK_EVERY_MOST: Duration = Duration::from_secs(1);

/// The first one in line looks when the lease of the holder ends, if nobody renews it: and that often, which is the net under a
/// message that was lost.
const LOOK_FIRST_MOST: Duration = Duration::from_secs(2);

/// So long after the end of a lease whose end is waited for.
const AFTER_ITS_END: Duration = Duration::from_millis(5);

/// For how long a turn stands that was given to a waiter, as the script has it.
const OFFER: Duration = Duration::from_millis(750);

/// With less than this left of its turn, a waiter asks first whether it still has it.
const OFFER_LEFT_MIN: Duration = Duration::from_millis(250);

/// The longest pause after a withdrawal that did not get through, doubled after each, up to [`LOOK_EVERY`].
pub(crate) const WITHDRAW_PAUSE: Duration = Duration::from_millis(20);

/// For how long a caller waits for the withdrawal of an attempt that failed. Then it goes on in the background.
const WITHDRAW_PATIENCE: Duration = Duration::from_secs(5);

/// Which part of a TTL a renewal of several leases waits for masters that do not answer, before it tells of the others.
const RENEWAL_PATIENCE: u32 = 4;

/// The bytes of an entry beside what its holder says of itself.
const ENTRY_BYTES: usize = 64;

/// What a Redis server promises.
pub fn guarantees() -> Guarantees {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::BestEffort;
    guarantees.queue = Queue::FirstComeFirstServed;
    guarantees.lease_clock = LeaseClock::ServerWallClock;
    guarantees.records = Records::AsTheServer;
    guarantees
}

/// Locks on a Redis or Valkey server, or on a cluster of them; see the crate's documentation.
///
/// Dropping it closes its connections. What it still holds ends at its TTL.
pub struct RedisBackend {
    pub(crate) client: Arc<Client>,
    guarantees: Guarantees,
    checks: Checks,
}

/// What the calls of one process share.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) servers: Servers,
    /// How many replicas have to confirm a lease.
    pub(crate) replicas: Option<NonZeroU8>,
    pub(crate) keys: Keys,
    /// Where others find this process.
    session: String,
    line: Arc<Line>,
    /// For releases by a command of the server's own, where there may be such.
    pub(crate) written: Option<Written>,
    clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
}

impl RedisBackend {
    /// Connects to the server of a URL, or to a cluster by its nodes. One round trip, and those of the connection; for a cluster
    /// two, and those of a connection to each node of the URL.
    ///
    /// Must be called in a tokio runtime. Errors with [`ErrorKind::InvalidUrl`], [`ErrorKind::Unavailable`] for a server that
    /// cannot be reached, [`ErrorKind::Refused`] for a wrong password or access rules that keep us out,
    /// [`ErrorKind::Unsupported`] for a server that is too old.
    pub async fn connect(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut client = Client::new(Options::parse(url)?, clock);
        // In a cluster nobody has seen it pay, and the value of a lock on several servers changes after its grant.
        client.written = (!client.servers.is_cluster()).then(Written::default);
        let client = Arc::new(client);
        client.servers.connect().await?;
        let looked_at = Arc::clone(&client);
        client.runtime.spawn(async move { checks::log_what_is_wrong(&looked_at).await });
        Ok(Self { client, guarantees: guarantees(), checks: Checks::default() })
    }
}

/// What the server answered to an attempt.
pub(crate) enum Answer {
    Granted {
        number: u64,
        /// What time it is there, in microseconds, for one of several servers.
        time: Option<u64>,
    },
    Waits(Waits),
    /// It stands in line no more: its turn is over, or the server has forgotten it.
    Gone,
    Busy(Contention),
    /// It was granted, and too few replicas know.
    Unconfirmed(Error),
}

/// It stands in line.
pub(crate) struct Waits {
    /// No turn with this number or a lower one is its own any more.
    last: u64,
    /// How many stand before it.
    rank: u32,
    /// When the lease of one of us ends that has the lock alone. Zero where that is not known, or does not matter.
    ends_in: Duration,
    pub(crate) contention: Contention,
}

impl Waits {
    /// When to look again, if it is told of nothing until then.
    fn next_look(&self) -> Duration {
        let end = self.ends_in.saturating_add(AFTER_ITS_END);
        if self.rank == 0 && !self.ends_in.is_zero() {
            end.min(LOOK_FIRST_MOST)
        } else if self.rank > 0 && (AFTER_ITS_END..=OFFER).contains(&self.ends_in) {
            // Perhaps a turn that is not taken, and the next one is given when somebody looks.
            end.max(LOOK_EVERY / 2)
        } else {
            LOOK_EVERY.saturating_mul(self.rank).clamp(LOOK_EVERY, LOOK_EVERY_MOST)
        }
    }
}

/// What a server says of a mark.
pub(crate) enum Mark {
    Made,
    /// It is made, but somebody else may have this number, because the server knows this one.
    TooLow(u64),
    NotTaken,
}

impl Client {
    /// A client of a server. It connects when it is first used.
    pub(crate) fn new(options: Options, clock: Arc<dyn Clock>) -> Self {
        let Options { target, keys, replicas, shown } = options;
        let (runtime, waiting) = (Handle::current(), Arc::<Line>::default());
        let line = Arc::clone(&waiting);
        let (session, servers) = match target {
            Target::Server(route) => {
                let session = digits(Nonce::random());
                let pushed = move |_, push| waiting.pushed(&push);
                let way = Link::new(route, Some(format!("ringfence:{session}")), shown, pushed);
                (session, Servers::one(way, replicas, runtime.clone()))
            }
            Target::Cluster { seeds, access } => {
                // By its length the scripts know that it is told of its turn by a channel beside the lock.
                let session = format!("c{}", digits(Nonce::random()));
                let channels = Channels::new(waiting);
                let cluster = Cluster::new(seeds, access, shown, replicas, channels, runtime.clone());
                (session, Servers::Cluster(Arc::new(cluster)))
            }
        };
        Self { servers, replicas, keys, session, line, written: None, clock, runtime }
    }

    /// Asks for the lease: `acquire` for one that does not wait, `queue` to join the line, `look` to keep the place there.
    /// Idempotent by nonce.
    pub(crate) async fn enter(
        &self,
        request: &AcquireRequest,
        keys: &LockKeys,
        verb: &'static str,
    ) -> Result<Answer> {
        self.request(request, keys, verb, scripts::mode(request.mode)).await
    }

    /// Asks one of several servers for the lease, and for this number or a higher one. Idempotent by nonce.
    pub(crate) async fn take(
        &self,
        request: &AcquireRequest,
        keys: &LockKeys,
        least: Option<u64>,
    ) -> Result<Answer> {
        let mut mode = scripts::mode(request.mode).into_owned();
        mode.push(':');
        if let Some(least) = least {
            // Writing to a string does not fail.
            let _ = write!(mode, "{least}");
        }
        self.request(request, keys, "take", mode.into()).await
    }

    async fn request(
        &self,
        request: &AcquireRequest,
        keys: &LockKeys,
        verb: &'static str,
        mode: Cow<'static, str>,
    ) -> Result<Answer> {
        let mut entry = String::with_capacity(entry_bytes(request));
        self.write_entry(&mut entry, request);
        let change = Change::new(keys.clone(), verb, request.nonce).lasting(request.ttl).asking(mode, entry);
        let Answered { value: reply, unconfirmed } = self.servers.change(change).await?;
        let odd = || error::odd_reply(&reply, self.servers.shown());
        let granted = match &reply {
            Value::Array(parts) if verb == "take" => number_at(parts, 0).zip(number_at(parts, 1).map(Some)),
            alone => number(alone).map(|number| (number, None)),
        };
        if let Some((number, time)) = granted {
            if FencingToken::of_grant(number, request.nonce).is_err() {
                return Err(odd());
            }
            return Ok(match unconfirmed {
                None => Answer::Granted { number, time },
                Some(error) => Answer::Unconfirmed(error),
            });
        }
        let Value::Array(parts) = &reply else { return Err(odd()) };
        let contention = |parts: &[Value], holders: usize| {
            let waiters = usize::try_from(number_at(parts, 1)?).ok()?;
            let holders =
                parts.get(holders..)?.iter().filter_map(any_text).filter_map(|seen| Seen::holding(&seen));
            Some(Contention::new(holders.map(|seen| seen.holder).collect(), waiters))
        };
        match parts.first().and_then(text) {
            Some("waits") => {
                let waits = || {
                    Some(Waits {
                        last: number_at(parts, 2)?,
                        rank: u32::try_from(number_at(parts, 3)?).ok()?,
                        ends_in: Duration::from_millis(number_at(parts, 4)?),
                        contention: contention(parts, 5)?,
                    })
                };
                Ok(Answer::Waits(waits().ok_or_else(odd)?))
            }
            Some("gone") => Ok(Answer::Gone),
            Some("busy") => Ok(Answer::Busy(contention(parts, 3).ok_or_else(odd)?)),
            Some("full") => Err(Error::new(
                ErrorKind::Full,
                format!("too many wait for {:?} already; try again later", request.name.as_str()),
            )),
            Some("withdrawn") => {
                Err(Error::new(ErrorKind::Unavailable, "the attempt was withdrawn meanwhile"))
            }
            _ => Err(odd()),
        }
    }

    /// What the scripts keep of an attempt.
    fn write_entry(&self, to: &mut String, request: &AcquireRequest) {
        let (holder, mode) = (&request.holder, scripts::mode(request.mode));
        // Writing to a string does not fail.
        let _ = write!(
            to,
            "{}:{mode}:{}:{}:{}\n{}\n{}",
            self.session,
            request.ttl.as_millis(),
            holder.pid(),
            holder.label(),
            holder.host(),
            holder.metadata()
        );
    }

    /// Keeps what the script wrote into a lock that was free, for the release by the server's own command. Not of a turn that
    /// came from the line: behind that one, too, somebody may wait.
    fn keep_written(&self, request: &AcquireRequest, number: u64, lease: &Lease) {
        let Some(written) = &self.written else { return };
        if request.mode != Mode::Exclusive || !self.servers.can_compare_and_delete() {
            return;
        }
        let mut value = String::with_capacity(ENTRY_BYTES + entry_bytes(request));
        let _ = write!(value, "{}:{number}:", digits(request.nonce));
        self.write_entry(&mut value, request);
        written.keep(request.nonce, value, lease.deadline(), self.now());
    }

    fn take_written(&self, nonce: Nonce) -> Option<String> {
        self.written.as_ref()?.take(nonce)
    }

    async fn acquire(self: Arc<Self>, mut request: AcquireRequest) -> Result<Attempt> {
        let keys = self.keys.of(&request.name);
        let standing = self.line.stand(request.nonce);
        let ear = match &self.servers {
            Servers::Cluster(cluster) if request.wait != Wait::No => {
                Some(Ear { cluster, listening: cluster.join(&keys, &self.session)? })
            }
            _ => None,
        };
        let mut place = Place {
            client: &self,
            keys: &keys,
            request: &mut request,
            ear,
            may_stand: false,
            settled: false,
        };
        // Of the two pieces each is small enough for what a thread's allocator keeps at hand, which the whole is not.
        let outcome = match Box::pin(place.seek(&standing)).await {
            Err(error) if place.may_stand => {
                let (nonce, ttl) = (place.request.nonce, place.request.ttl);
                let undone = Box::pin(self.withdraw(&keys, nonce, ttl));
                match tokio::time::timeout(WITHDRAW_PATIENCE, undone).await {
                    Ok(true) => Err(error.without_effect()),
                    Ok(false) => Err(error.with_unknown_effect()),
                    Err(_) => {
                        place.withdraw_in_background();
                        Err(error.with_unknown_effect())
                    }
                }
            }
            outcome => outcome,
        };
        place.settled = true;
        outcome
    }

    /// Undoes an attempt, and sees to it that it cannot come back. Tries until it is answered, at most for as long as the
    /// attempt's lease could live. Says whether nothing is left of it.
    pub(crate) async fn withdraw(&self, keys: &LockKeys, nonce: Nonce, ttl: Ttl) -> bool {
        let ends = self.now().saturating_add(ttl.as_duration());
        let mut pauses = Backoff::new(WITHDRAW_PAUSE, LOOK_EVERY);
        loop {
            let change = Change::new(keys.clone(), "withdraw", nonce).lasting(ttl);
            let withdrawn = self.change(change).await.and_then(|reply| self.is_yes(&reply));
            let Err(error) = withdrawn else { break };
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

    /// Makes a change that nobody counts on.
    pub(crate) async fn change(&self, change: Change) -> Result<Value> {
        Ok(self.servers.change(change).await?.value)
    }

    /// The same change of many leases; for each, zero if it was not made.
    pub(crate) async fn change_all(&self, verb: &'static str, leases: &[LeaseKey]) -> Result<Vec<u64>> {
        self.change_each(verb, leases, Duration::MAX).await.into_iter().collect()
    }

    /// As [`Self::change_all`], with an answer of its own for each that comes within the patience.
    async fn change_each(
        &self,
        verb: &'static str,
        leases: &[LeaseKey],
        patience: Duration,
    ) -> Vec<Result<u64>> {
        let change = |lease: &LeaseKey| {
            // Whatever it is, the lock may hold something else from now on, or be held for long.
            let written = self.take_written(lease.nonce).filter(|_| verb == "release");
            Change::new(self.keys.of(&lease.name), verb, lease.nonce).lasting(lease.ttl).releasing(written)
        };
        let replies = match leases {
            [] => Vec::new(),
            leases => Box::pin(self.servers.change_all(leases.iter().map(change).collect(), patience)).await,
        };
        let made = |reply: Result<Answered>| {
            let Answered { value, unconfirmed } = reply?;
            let made = number(&value).ok_or_else(|| error::odd_reply(&value, self.servers.shown()))?;
            unconfirmed.filter(|_| made > 0 && verb != "release").map_or(Ok(made), Err)
        };
        replies.into_iter().map(made).collect()
    }

    async fn release(&self, leases: &[LeaseKey]) -> Result<Vec<Release>> {
        let made = self.change_all("release", leases).await?;
        Ok(made.into_iter().map(|made| if made > 0 { Release::Released } else { Release::NotHeld }).collect())
    }

    async fn renew(&self, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let shortest = leases.iter().map(|lease| lease.ttl.as_duration()).min().unwrap_or_default();
        let made = self.change_each("renew", leases, shortest / RENEWAL_PATIENCE).await;
        if let Some(Err(error)) = made.first()
            && made.iter().all(Result::is_err)
        {
            return Err(error.clone());
        }
        let renewal = |made| match made {
            Ok(0) => Renewal::Lost,
            Ok(_) => Renewal::Renewed,
            Err(error) => {
                tracing::warn!(%error, "some leases of a renewal have no answer");
                Renewal::Unknown
            }
        };
        Ok(made.into_iter().map(renewal).collect())
    }

    /// Gives back what an attempt took.
    pub(crate) async fn give_back(&self, keys: &LockKeys, nonce: Nonce) -> Result<bool> {
        Ok(self.change(Change::new(keys.clone(), "release", nonce)).await? != Value::Int(0))
    }

    /// The second step of a lock of several servers: what was taken has this number from now on.
    pub(crate) async fn mark(&self, keys: &LockKeys, nonce: Nonce, number: u64) -> Result<Mark> {
        let change =
            Change::new(keys.clone(), "mark", nonce).asking(number.to_string().into(), String::new());
        let reply = self.change(change).await?;
        match scripts::number(&reply) {
            Some(0) => Ok(Mark::NotTaken),
            Some(1) => Ok(Mark::Made),
            Some(known) => Ok(Mark::TooLow(known)),
            None => Err(error::odd_reply(&reply, self.servers.shown())),
        }
    }

    /// An answer that is yes or no.
    fn is_yes(&self, reply: &Value) -> Result<bool> {
        match reply {
            Value::Int(1) => Ok(true),
            Value::Int(0) => Ok(false),
            odd => Err(error::odd_reply(odd, self.servers.shown())),
        }
    }

    pub(crate) fn now(&self) -> BootInstant {
        self.clock.now()
    }
}

fn entry_bytes(AcquireRequest { holder, .. }: &AcquireRequest) -> usize {
    ENTRY_BYTES + holder.label().len() + holder.host().len() + holder.metadata().len()
}

fn number_at(parts: &[Value], index: usize) -> Option<u64> {
    parts.get(index).and_then(number)
}

/// An attempt under way; withdrawn in the background if its future is dropped.
struct Place<'a> {
    client: &'a Arc<Client>,
    keys: &'a LockKeys,
    request: &'a mut AcquireRequest,
    /// In a cluster, where it hears of its turn.
    ear: Option<Ear<'a>>,
    /// Whether the server may know of it.
    may_stand: bool,
    settled: bool,
}

/// The channel of a lock of a cluster.
struct Ear<'a> {
    cluster: &'a Arc<Cluster>,
    listening: Listening,
}

impl Place<'_> {
    /// Asks, and waits for the turn as long as the request does.
    async fn seek(&mut self, standing: &crate::line::Standing) -> Result<Attempt> {
        let client = self.client;
        // When the last answer was asked for, and the last number granted then. A turn with a higher number was given after
        // that instant; one with a lower number was over before it, whenever we come to hear of it.
        let mut seen: Option<(BootInstant, u64)> = None;
        let mut contention = Contention::default();
        loop {
            let asked = client.now();
            let deadline = match self.request.wait {
                Wait::Until(deadline) if asked < deadline => Some(deadline),
                _ => None,
            };
            if deadline.is_none() && seen.is_some() {
                return Box::pin(self.give_up(contention)).await;
            }
            let verb = match (deadline, seen) {
                (None, _) => "acquire",
                (Some(_), None) => "queue",
                // One that comes late, when this attempt is over, must not begin it again.
                (Some(_), Some(_)) => "look",
            };
            let (sent, answer) = self.ask(verb).await;
            self.may_stand |=
                answer.as_ref().map_or_else(|error| error.effect() == Effect::Unknown, |_| true);
            let next_look = match answer {
                Ok(Answer::Granted { number, .. }) => {
                    let lease = self.lease(number, sent)?;
                    if seen.is_none() {
                        client.keep_written(self.request, number, &lease);
                    }
                    return Ok(Attempt::Granted(lease));
                }
                Ok(Answer::Busy(contention)) => return Ok(Attempt::Busy(contention)),
                Ok(Answer::Waits(waits)) => {
                    let next_look = waits.next_look();
                    seen = Some((sent, waits.last));
                    contention = waits.contention;
                    next_look
                }
                Ok(Answer::Gone) => {
                    seen = None;
                    continue;
                }
                // The place stands for a while without us, so a server that is away for a moment, or can write nothing, costs
                // nobody a place.
                Err(error)
                    if error.retry() == Retry::Later
                        && seen.is_some_and(|(seen_at, _)| {
                            sent.saturating_since(seen_at) < self.request.ttl.as_duration()
                        }) =>
                {
                    tracing::debug!(%error, "a waiter cannot look after its place");
                    LOOK_EVERY
                }
                Ok(Answer::Unconfirmed(error)) | Err(error) => return Err(error),
            };
            let Some(deadline) = deadline else { continue };
            let look_at = client.now().saturating_add(next_look).min(deadline);
            let nap = client.clock.nap(look_at).unwrap_or_default();
            let unheard = async {
                match &mut self.ear {
                    Some(ear) => ear.listening.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut self.request.abandoned => return Box::pin(self.give_up(contention)).await,
                () = standing.called() => {}
                () = unheard => {}
                () = tokio::time::sleep(nap) => {}
            }
            // Nobody but who asks learns whether the replicas have it, so that a turn is asked for once more.
            if client.replicas.is_none()
                && let (Some(number), Some((seen_at, last))) = (standing.turn(), seen)
                && number > last
            {
                let lease = self.lease(number, seen_at)?.offered_for(OFFER);
                if lease.deadline().saturating_since(client.now()) >= OFFER_LEFT_MIN {
                    return Ok(Attempt::Granted(lease));
                }
            }
        }
    }

    /// Asks for the lease, with the instant before that was sent. Who stands in line has to hear of its turn, or is passed
    /// over. So one that would join it and does not listen yet asks without waiting first, which is enough where the lock is
    /// free; then it listens, and then it joins.
    async fn ask(&mut self, verb: &'static str) -> (BootInstant, Result<Answer>) {
        let sent = self.client.now();
        if verb != "acquire"
            && let Some(Ear { cluster, listening }) = &mut self.ear
            && !cluster.hears(listening)
        {
            if verb == "queue" {
                match self.client.enter(self.request, self.keys, "acquire").await {
                    Ok(Answer::Busy(_)) => {}
                    answer => return (sent, answer),
                }
            }
            if let Err(error) = Box::pin(cluster.listen(listening)).await {
                return (sent, Err(error));
            }
        }
        let sent = self.client.now();
        (sent, self.client.enter(self.request, self.keys, verb).await)
    }

    fn lease(&self, number: u64, counted_from: BootInstant) -> Result<Lease> {
        let AcquireRequest { name, nonce, ttl, .. } = &*self.request;
        let token = FencingToken::of_grant(number, *nonce)?;
        Ok(Lease::new(LeaseKey::new(name.clone(), *nonce, *ttl), token, counted_from))
    }

    /// Leaves the line; a turn that came in this moment is given back.
    async fn give_up(&mut self, contention: Contention) -> Result<Attempt> {
        let lease = LeaseKey::new(self.request.name.clone(), self.request.nonce, self.request.ttl);
        match self.client.release(&[lease]).await {
            Ok(_) => Ok(Attempt::Busy(contention)),
            // The line is left in the background, where nobody waits for it: by a server that is there again, or can write again.
            Err(error) if error.retry() == Retry::Later => {
                self.withdraw_in_background();
                Ok(Attempt::Busy(contention))
            }
            Err(error) => Err(error),
        }
    }

    fn withdraw_in_background(&self) {
        let client = Arc::clone(self.client);
        let (name, nonce, ttl) = (self.request.name.clone(), self.request.nonce, self.request.ttl);
        self.client.runtime.spawn(async move {
            client.withdraw(&client.keys.of(&name), nonce, ttl).await;
        });
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.withdraw_in_background();
        }
    }
}

impl Backend for RedisBackend {
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
        Box::pin(async move {
            let made = self.client.change_all("downgrade", slice::from_ref(lease)).await?;
            Ok(if made[0] > 0 { Renewal::Renewed } else { Renewal::Lost })
        })
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(view::inspect(&self.client, name))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(async move {
            let names = view::names(&self.client, &query).await?;
            view::page(&query, names, |name| {
                Box::pin(async move { view::inspect(&self.client, &name).await })
            })
            .await
        })
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(async move {
            drop(self.client.take_written(holder));
            let change = Change::new(self.client.keys.of(name), "evict", holder);
            let reply = self.client.change(change).await?;
            Ok(if self.client.is_yes(&reply)? { Eviction::Evicted } else { Eviction::NotHeld })
        })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.checks.examine(&self.client))
    }

    /// One round trip. In a cluster two, one of which learns of the masters: the time is that of the first master that answers.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(checks::time(&self.client))
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        self.client.line.listen(listener);
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.client.servers.shown())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_first_looks_when_a_lease_ends_and_who_stands_behind_when_its_turn_may_have_come() {
        for (rank, ends_in_ms, looks_after_ms) in [
            (0, 0, 250),
            (0, 1, 6),
            (0, 1_500, 1_505),
            (0, 30_000, 2_000),
            (1, 0, 250),
            (1, 700, 705),
            (1, 5, 125),
            (1, 30_000, 250),
            (3, 30_000, 750),
            (3, 400, 405),
            (9, 30_000, 1_000),
            (9, 0, 1_000),
            // What only a server that is none would say.
            (u32::MAX, 0, 1_000),
            (0, u64::MAX, 2_000),
            (u32::MAX, u64::MAX, 1_000),
        ] {
            let ends_in = Duration::from_millis(ends_in_ms);
            let waits = Waits { last: 1, rank, ends_in, contention: Contention::default() };
            let expected = Duration::from_millis(looks_after_ms);
            assert_eq!(waits.next_look(), expected, "{rank} before it, {ends_in_ms} ms");
        }
    }
}
