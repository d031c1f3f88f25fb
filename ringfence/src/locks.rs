use std::cmp::Reverse;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    Backend, BackendUrl, BoxFuture, Clock, Error, ErrorKind, Eviction, FencedStore, FencingToken, Finding,
    Guarantees, HolderInfo, LABEL_MAX, LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce, Opened,
    Page, Record, RecordKey, Result, SystemClock, TokenKey, Ttl, Version, parse_duration,
};
use tokio::runtime::Handle;

use crate::all::AllRequest;
use crate::background::Background;
use crate::connect;
use crate::hall::{Hall, Settings};
use crate::holder::{Holder, Holders};
use crate::keeper::{Keeper, RENEW_BATCH_MAX};
use crate::meters::Meters;
use crate::record::RecordHandle;
use crate::request::{LockRequest, Terms};
use crate::token_key_file;
use crate::waiting_room::WaitingRooms;

/// The most hand-overs inside one process under one grant, unless you choose otherwise.
const HANDOVERS_DEFAULT: u8 = 64;

/// For how long a grant may be handed on inside one process, unless you choose otherwise.
const HANDOVER_TIME_DEFAULT: Duration = Duration::from_millis(50);

/// All locks of one backend, for all tasks of this process. Cloning is cheap, and clones are the same.
///
/// One `Locks` per backend and process is enough, and is best: its tasks queue as one for the server, and one keeper renews
/// everything they hold. It ends when the last clone and the last guard are gone; [`close`](Self::close) ends it in order.
#[derive(Clone)]
pub struct Locks {
    pub(crate) hall: Arc<Hall>,
}

impl Locks {
    /// Connects to the backend of a URL, such as `memory:`, `local:` or `local:/var/lib/locks?ttl=10s`.
    ///
    /// Every URL takes `ttl` (the default TTL, as in `ttl=10s`), `handovers` (0 to 255), `handover_time` and `token_key_file` (the
    /// absolute path of a file of at least 32 bytes that only its owner and group can read, as in
    /// `token_key_file=/etc/ringfence/key`); see [`LocksBuilder`]. Errors with [`ErrorKind::InvalidUrl`] for an unknown scheme or parameter, and names the nearest
    /// known one; and with what the backend says about itself.
    ///
    /// Call it inside of a tokio runtime with its timer enabled: renewals run there, so the runtime must live for as long
    /// as the locks. Install a metrics recorder, if you use one, before this.
    pub async fn connect(url: &str) -> Result<Self> {
        Self::builder().connect(url).await
    }

    /// Locks on a backend of your own. The backend is this `Locks`' alone, because it tells one listener of losses.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self::builder().with_backend(backend).expect("nothing was chosen that could be wrong")
    }

    /// Locks with choices.
    pub fn builder() -> LocksBuilder {
        LocksBuilder::default()
    }

    /// A request for a lock. A name that is no lock name is an error when it is acquired.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # use std::time::Duration;
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let guard = locks.lock("orders/42").ttl(Duration::from_secs(10)).wait(Duration::from_secs(2)).acquire().await?;
    /// assert!(locks.lock("orders/42").try_acquire().await?.is_none());
    /// guard.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn lock<N: TryInto<LockName, Error = Error>>(&self, name: N) -> LockRequest {
        LockRequest::new(Arc::clone(&self.hall), name.try_into(), Terms::default(), None)
    }

    /// A request for several locks, all or nothing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// let guards = locks.all(["b", "a"]).acquire().await?;
    /// assert_eq!(guards.get("a").unwrap().name().as_str(), "a");
    /// guards.release().await?;
    /// # Ok(()) }
    /// ```
    pub fn all<I, N>(&self, names: I) -> AllRequest
    where
        I: IntoIterator<Item = N>,
        N: TryInto<LockName, Error = Error>,
    {
        AllRequest::new(Arc::clone(&self.hall), names.into_iter().map(TryInto::try_into))
    }

    /// A holder with an identity, for re-entry: what it acquires again while it holds it, it gets a nested guard for.
    pub fn holder(&self, id: &str) -> Holder {
        Holder::new(Arc::clone(&self.hall), id)
    }

    /// What the backend promises, and under which faults.
    pub fn guarantees(&self) -> &Guarantees {
        self.hall.backend.guarantees()
    }

    /// The URL of the backend, without secrets.
    pub fn backend_url(&self) -> String {
        self.hall.backend.to_string()
    }

    /// The key that tokens are sealed with, where there is one.
    pub fn token_key(&self) -> Option<&TokenKey> {
        self.hall.settings.token_key.as_ref()
    }

    /// The records that live beside the locks.
    pub fn records(&self) -> &dyn FencedStore {
        self.hall.backend.records()
    }

    /// The record of a lock, in the field of most records. Errors with [`ErrorKind::InvalidName`].
    pub fn record<N: TryInto<LockName, Error = Error>>(&self, name: N) -> Result<RecordHandle> {
        Ok(RecordHandle::new(Arc::clone(&self.hall), RecordKey::of(name.try_into()?)))
    }

    /// A lock as it stands: who holds it, since when, who waits. One round trip.
    ///
    /// The tasks of one process that want one exclusive name are one waiter to the backend, and so here.
    pub async fn inspect<N: TryInto<LockName, Error = Error>>(&self, name: N) -> Result<LockState> {
        self.hall.backend.inspect(&name.try_into()?).await
    }

    /// The locks that are held or waited for, a page at a time.
    pub async fn list(&self, query: ListQuery) -> Result<Page<LockState>> {
        self.hall.backend.list(query).await
    }

    /// An operator's force-release of one holder, named by the nonce of the token that [`inspect`](Self::inspect) shows. Its
    /// token is stale from then on, and it learns that it lost the lock: at once if it is of these locks.
    ///
    /// # Cancel safety
    /// The holder may have been evicted or not.
    pub async fn evict<N: TryInto<LockName, Error = Error>>(
        &self,
        name: N,
        nonce: Nonce,
    ) -> Result<Eviction> {
        let eviction = self.hall.backend.evict(&name.try_into()?, nonce).await?;
        if eviction == Eviction::Evicted {
            // The backend tells the holders of others, and ours only once it has got round to listening for them.
            self.hall.lost(nonce);
        }
        Ok(eviction)
    }

    /// Looks for what would break the promises of this backend here: a setting of its server, its clock, the place of a
    /// store. The worst comes first; [`Severity::Problem`](crate::Severity::Problem) is what to alarm on. What
    /// `ringfence doctor` prints; each backend's page says what it looks at.
    ///
    /// It changes nothing, takes several round trips and up to a few seconds, and errors only where the backend cannot
    /// be asked at all.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
    /// # let locks = ringfence::Locks::connect("memory:").await?;
    /// for finding in locks.examine().await? {
    ///     println!("{}: {}: {}", finding.severity, finding.about, finding.what);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn examine(&self) -> Result<Vec<Finding>> {
        let mut findings = self.hall.backend.examine().await?;
        findings.sort_by_key(|finding| Reverse(finding.severity));
        Ok(findings)
    }

    /// A descriptor for a child process to inherit: while a process has it open, the leases of this one end with their TTL
    /// and not at once with the death of this one. `None` where a holder's death does not end its leases anyway.
    pub fn lifeline(&self) -> Result<Option<OwnedFd>> {
        self.hall.backend.lifeline()
    }

    /// Ends in order: refuses new requests, turns those away that wait, releases everything still held and waits until
    /// whatever runs in the background is done.
    ///
    /// Guards that are still around have lost their lease. Errors with the first release that failed; the others are tried
    /// all the same. Closing again does nothing.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the releases.
    pub async fn close(&self) -> Result<()> {
        let (answers, withdrawals) = self.hall.rooms.close();
        drop(withdrawals);
        for answer in answers {
            // One that is not there any more does not mind.
            let _ = answer.send(Err(Hall::closed_error()));
        }
        let leases = self.hall.keeper.drain();
        for lease in &leases {
            lease.state.lose();
            lease.gone.notify_waiters();
        }
        let keys: Vec<LeaseKey> = leases.iter().map(|lease| lease.key.clone()).collect();
        let backend = Arc::clone(&self.hall.backend);
        let released = self.hall.background.finish(async move {
            let mut result = Ok(());
            for batch in keys.chunks(RENEW_BATCH_MAX) {
                result = result.and(backend.release(batch).await.map(|_| ()));
            }
            result
        });
        let released = released.await;
        self.hall.background.idle().await;
        released
    }
}

/// The [records](Locks::records), for a fence that wants a store of its own to keep its marks in.
impl FencedStore for Locks {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        self.records().open(key, token)
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        self.records().write(key, token, value)
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        self.records().remove(key, token)
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        self.records().list(query)
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        self.records().read(key)
    }
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks").field("backend", &self.backend_url()).finish_non_exhaustive()
    }
}

/// Chooses what a [`Locks`] does where a request does not say. What the URL says wins over what was chosen here.
#[derive(Clone, Debug, Default)]
#[must_use = "a builder opens nothing"]
pub struct LocksBuilder {
    label: Option<String>,
    metadata: Option<String>,
    handovers: Option<u8>,
    handover_time: Option<Duration>,
    default_ttl: Option<Duration>,
    token_key: Option<TokenKey>,
    clock: Option<Arc<dyn Clock>>,
}

impl LocksBuilder {
    /// What holders call themselves, instead of the name of this program. 1 to 255 bytes.
    pub fn label(mut self, label: &str) -> Self {
        self.label = Some(label.to_owned());
        self
    }

    /// Free text that every holder carries, at most 1 KiB.
    pub fn metadata(mut self, metadata: &str) -> Self {
        self.metadata = Some(metadata.to_owned());
        self
    }

    /// How often one grant is handed on inside this process before other processes have their turn: 64 unless you choose;
    /// 0 hands nothing on.
    pub fn handovers(mut self, handovers: u8) -> Self {
        self.handovers = Some(handovers);
        self
    }

    /// For how long after its grant a lease is handed on inside this process: 50 ms unless you choose.
    pub fn handover_time(mut self, time: Duration) -> Self {
        self.handover_time = Some(time);
        self
    }

    /// The TTL of requests that name none: 30 s unless you choose.
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.default_ttl = Some(ttl);
        self
    }

    /// The key that tokens are sealed with when they are shown to a resource: none unless you choose.
    pub fn token_key(mut self, key: TokenKey) -> Self {
        self.token_key = Some(key);
        self
    }

    /// Another clock than the machine's, for tests.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Connects to the backend of a URL; see [`Locks::connect`]. Errors with [`ErrorKind::InvalidRequest`] or
    /// [`ErrorKind::InvalidTtl`] for a choice that is out of range.
    pub async fn connect(mut self, url: &str) -> Result<Locks> {
        let url = BackendUrl::parse(url)?;
        let about = |key: &str| format!("the parameter {key} of the {}: URL", url.scheme());
        let duration = |key: &str| {
            url.param(key).map(parse_duration).transpose().map_err(|error| error.about(about(key)))
        };
        self.default_ttl = duration("ttl")?.or(self.default_ttl);
        self.handover_time = duration("handover_time")?.or(self.handover_time);
        if let Some(handovers) = url.param("handovers") {
            let number = handovers.parse().map_err(|_| {
                Error::new(
                    ErrorKind::InvalidUrl,
                    format!("expected a number from 0 to 255, not {handovers:?}"),
                )
                .about(about("handovers"))
            })?;
            self.handovers = Some(number);
        }
        if let Some(path) = url.param("token_key_file") {
            self.token_key = Some(token_key_file::read(path)?);
        }
        let backend = connect::open(url, self.the_clock()).await?;
        self.with_backend(backend)
    }

    /// Opens locks on a backend of your own; see [`Locks::new`].
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn with_backend(self, backend: Arc<dyn Backend>) -> Result<Locks> {
        let mut holder = this_process();
        if let Some(label) = &self.label {
            holder = holder.with_label(label)?;
        }
        if let Some(metadata) = &self.metadata {
            holder = holder.with_metadata(metadata)?;
        }
        let settings = Settings {
            default_ttl: self.default_ttl.map_or(Ok(Ttl::DEFAULT), Ttl::new)?,
            handovers: self.handovers.unwrap_or(HANDOVERS_DEFAULT),
            handover_time: self.handover_time.unwrap_or(HANDOVER_TIME_DEFAULT),
            holder: Arc::new(holder),
            token_key: self.token_key.clone(),
        };
        let hall = Arc::new_cyclic(|hall: &std::sync::Weak<Hall>| {
            let told = hall.clone();
            let listener: LossListener = Arc::new(move |nonce| {
                if let Some(hall) = told.upgrade() {
                    hall.lost(nonce);
                }
            });
            backend.on_loss(listener);
            Hall {
                settings,
                rooms: WaitingRooms::new(),
                keeper: Keeper::new(),
                holders: Holders::default(),
                meters: Meters::of(&*backend),
                background: Background::on(Handle::current()),
                clock: self.the_clock(),
                backend,
            }
        });
        Keeper::start(&hall);
        Ok(Locks { hall })
    }

    fn the_clock(&self) -> Arc<dyn Clock> {
        self.clock.clone().unwrap_or_else(|| Arc::new(SystemClock::new()))
    }
}

/// This process, as a holder, by the name of its program.
pub(crate) fn this_process() -> HolderInfo {
    let program = std::env::current_exe().ok();
    let label = program
        .as_deref()
        .and_then(|path| path.file_name()?.to_str())
        .filter(|name| name.len() <= LABEL_MAX && !name.contains(char::is_control))
        .unwrap_or("ringfence");
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let pid = std::process::id();
    HolderInfo::new(label, host, pid)
        .or_else(|_| HolderInfo::new(label, "localhost", pid))
        .expect("the label was checked, and localhost is a host name")
}
