//! A suite that cannot fail proves nothing: for each case, a backend with one flaw that the case must find.
//!
//! The flawed backends are the memory backend behind a wrapper that breaks one line of the contract. The same wrapper
//! without a flaw passes every case, those for the faults that it can cause among them. All of it runs in virtual time,
//! so that a case that waits in vain costs nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, BoxFuture, Clock, Contention, Error, ErrorKind, Eviction,
    FencedStore, FencingToken, Finding, Guarantees, Lease, LeaseKey, ListQuery, LockName, LockState,
    LossListener, Mode, Nonce, Opened, Page, RECORD_VALUE_MAX, Record, RecordKey, Release, Renewal, Result,
    Ttl, Version, Wait, WallTime, abandonment,
};
use ringfence_memory::MemoryBackend;
use ringfence_testkit::cases::{CONTRACT, Case, FAULTS};
use ringfence_testkit::{Cable, Harness, Verdict};
use tokio::time::Instant;

/// What is wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    GrantsNothing,
    BusyIsAnError,
    DoesNotWait,
    WaitsTooShort,
    LeavesAPlaceBehind,
    CountsItself,
    IgnoresAbandonment,
    TokensStandStill,
    LastComeFirstServed,
    TryingOvertakes,
    ReadersAreWriters,
    ReadersOvertake,
    OnePermitTooMany,
    LeasesEndEarly,
    LeasesNeverEnd,
    NamesAreFolded,
    RenewsNothing,
    OneLossIsAll,
    ReleasesNothing,
    ReleasesByName,
    DowngradesNothing,
    ShowsNobody,
    ListsByPattern,
    EvictsNothing,
    ExaminesByTidying,
    TimeStandsStill,
    TellsAnotherTime,
    OpensForAnyone,
    WritesNothing,
    OpensByWriting,
    WritesForAnyone,
    CutsValues,
    RemovesNothing,
    RemovesForAnyone,
    ListsWhatIsOpened,
}

/// The clock that tokio's timers go by, which a test's runtime moves as soon as everybody sleeps.
#[derive(Debug)]
struct VirtualClock {
    boot: Instant,
}

impl Clock for VirtualClock {
    fn now(&self) -> BootInstant {
        BootInstant::from_nanos(0).saturating_add(self.boot.elapsed())
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(0).saturating_add(self.boot.elapsed())
    }
}

/// The memory backend with one flaw, at the end of a cable.
struct Flawed {
    flaw: Flaw,
    inner: Arc<MemoryBackend>,
    clock: Arc<VirtualClock>,
    cable_is_cut: AtomicBool,
}

/// A client and the harness's end of its cable.
struct Wired(Arc<Flawed>);

impl Cable for Wired {
    fn client(&self) -> Arc<dyn Backend> {
        Arc::clone(&self.0) as Arc<dyn Backend>
    }

    fn cut(&self) {
        self.0.cable_is_cut.store(true, Ordering::SeqCst);
    }

    fn mend(&self) {
        self.0.cable_is_cut.store(false, Ordering::SeqCst);
    }
}

fn invented_lease(request: &AcquireRequest, clock: &VirtualClock) -> Attempt {
    let key = LeaseKey::new(request.name.clone(), request.nonce, request.ttl);
    let token = FencingToken::of_grant(1 << 40, request.nonce).unwrap();
    Attempt::Granted(Lease::new(key, token, clock.now()))
}

impl Flawed {
    fn pass(&self) -> Result<()> {
        if self.cable_is_cut.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the cable is cut"));
        }
        Ok(())
    }

    /// The request as a flawed backend understands it.
    fn misread(&self, mut request: AcquireRequest) -> AcquireRequest {
        match self.flaw {
            Flaw::DoesNotWait => request.wait = Wait::No,
            Flaw::WaitsTooShort if matches!(request.wait, Wait::Until(_)) => {
                request.wait = Wait::Until(self.clock.now());
            }
            Flaw::IgnoresAbandonment => {
                let (abandoner, signal) = abandonment();
                std::mem::forget(abandoner);
                request = request.abandoned_by(signal);
            }
            Flaw::ReadersAreWriters if request.mode == Mode::Shared => request.mode = Mode::Exclusive,
            Flaw::OnePermitTooMany => {
                if let Mode::Permit(limit) = request.mode {
                    request.mode = Mode::permit(limit.get() + 1).unwrap();
                }
            }
            Flaw::LeasesEndEarly => request.ttl = Ttl::new(request.ttl.as_duration() / 2).unwrap(),
            Flaw::LeasesNeverEnd => request.ttl = Ttl::MAX,
            Flaw::NamesAreFolded => request.name = folded(&request.name),
            _ => {}
        }
        request
    }

    async fn acquire_wrongly(&self, request: AcquireRequest) -> Result<Attempt> {
        self.pass()?;
        let (name, ttl, waits) = (request.name.clone(), request.ttl, request.wait != Wait::No);
        let state = self.inner.inspect(&name).await?;
        let shared_only = state.holders.iter().all(|holder| holder.mode == Mode::Shared);
        match self.flaw {
            Flaw::GrantsNothing => return Ok(Attempt::Busy(Contention::default())),
            Flaw::TryingOvertakes if !waits && !state.waiters.is_empty() => {
                return Ok(invented_lease(&request, &self.clock));
            }
            Flaw::ReadersOvertake if waits && request.mode == Mode::Shared && shared_only => {
                return Ok(invented_lease(&request, &self.clock));
            }
            Flaw::LastComeFirstServed if waits && state.waiters.is_empty() && !state.is_free() => {
                self.yield_to_the_next(&request).await?;
            }
            _ => {}
        }
        let holder = request.holder.clone();
        let attempt = self.inner.acquire(self.misread(request)).await?;
        match (self.flaw, attempt) {
            (Flaw::BusyIsAnError, Attempt::Busy(_)) => Err(Error::new(ErrorKind::WaitElapsed, "busy")),
            (Flaw::LeavesAPlaceBehind, Attempt::Busy(contention)) if waits => {
                let wait = Wait::Until(self.clock.now().saturating_add(Duration::from_mins(1)));
                let request = AcquireRequest::new(name, Mode::Exclusive, ttl, wait, holder);
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move { inner.acquire(request).await });
                Ok(Attempt::Busy(contention))
            }
            (Flaw::CountsItself, Attempt::Busy(contention)) if waits => {
                Ok(Attempt::Busy(Contention::new(contention.holders, contention.waiters + 1)))
            }
            (flaw, Attempt::Granted(mut lease)) => {
                (lease.key.name, lease.key.ttl, lease.lasts) = (name, ttl, ttl.as_duration());
                if flaw == Flaw::TokensStandStill {
                    lease.token = FencingToken::of_grant(7, lease.token.nonce())?;
                }
                Ok(Attempt::Granted(lease))
            }
            (_, busy) => Ok(busy),
        }
    }

    /// Stands at the head of the line only until somebody stands behind it.
    async fn yield_to_the_next(&self, request: &AcquireRequest) -> Result<()> {
        let (abandoner, signal) = abandonment();
        let Wait::Until(_) = request.wait else { unreachable!("it waits") };
        let AcquireRequest { name, mode, ttl, wait, holder, .. } = request;
        let placeholder = AcquireRequest::new(name.clone(), *mode, *ttl, *wait, holder.clone());
        let in_line = self.inner.acquire(placeholder.abandoned_by(signal));
        let until_followed = async {
            while self.inner.inspect(name).await?.waiters.len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(abandoner);
            Ok(())
        };
        tokio::try_join!(in_line, until_followed).map(|_| ())
    }
}

fn folded(name: &LockName) -> LockName {
    let folded = name.as_str().to_lowercase();
    LockName::new(folded.trim_end_matches('/')).unwrap_or_else(|_| name.clone())
}

impl Backend for Flawed {
    fn guarantees(&self) -> &Guarantees {
        self.inner.guarantees()
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        Box::pin(self.acquire_wrongly(request))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        Box::pin(async move {
            self.pass()?;
            if self.flaw == Flaw::RenewsNothing {
                return Ok(vec![Renewal::Renewed; leases.len()]);
            }
            let renewals = self.inner.renew(leases).await?;
            if self.flaw == Flaw::OneLossIsAll && renewals.contains(&Renewal::Lost) {
                return Ok(vec![Renewal::Lost; leases.len()]);
            }
            Ok(renewals)
        })
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        Box::pin(async move {
            self.pass()?;
            match self.flaw {
                Flaw::ReleasesNothing => return Ok(vec![Release::Released; leases.len()]),
                Flaw::ReleasesByName => {
                    for lease in leases {
                        for holder in self.inner.inspect(&lease.name).await?.holders {
                            self.inner.evict(&lease.name, holder.token.nonce()).await?;
                        }
                    }
                    return Ok(vec![Release::NotHeld; leases.len()]);
                }
                _ => {}
            }
            self.inner.release(leases).await
        })
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(async move {
            self.pass()?;
            match self.flaw {
                Flaw::DowngradesNothing => Ok(Renewal::Renewed),
                _ => self.inner.downgrade(lease).await,
            }
        })
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(async move {
            self.pass()?;
            let mut state = self.inner.inspect(name).await?;
            if self.flaw == Flaw::ShowsNobody {
                state.holders.clear();
            }
            Ok(state)
        })
    }

    fn list(&self, mut query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(async move {
            self.pass()?;
            if self.flaw == Flaw::ListsByPattern {
                query.prefix = query.prefix.split('*').next().unwrap_or_default().to_owned();
            }
            Backend::list(&*self.inner, query).await
        })
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(async move {
            self.pass()?;
            match self.flaw {
                Flaw::EvictsNothing => Ok(Eviction::Evicted),
                _ => self.inner.evict(name, holder).await,
            }
        })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(async move {
            self.pass()?;
            if self.flaw == Flaw::ExaminesByTidying {
                for state in Backend::list(&*self.inner, ListQuery::new("")).await?.items {
                    for holder in state.holders {
                        self.inner.evict(&state.name, holder.token.nonce()).await?;
                    }
                }
            }
            self.inner.examine().await
        })
    }

    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async move {
            self.pass()?;
            match self.flaw {
                Flaw::TimeStandsStill => Ok(Some(WallTime::from_millis(0))),
                Flaw::TellsAnotherTime => Ok(Some(self.clock.wall().saturating_add(Duration::from_hours(2)))),
                _ => self.inner.time().await,
            }
        })
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        self.inner.on_loss(listener);
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        self.inner.lifeline()
    }
}

impl FencedStore for Flawed {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            self.pass()?;
            let opened = self.inner.records().open(key, token).await;
            match (self.flaw, opened) {
                (Flaw::OpensForAnyone, Err(_)) => Ok(Opened::new(self.inner.records().read(key).await?)),
                (_, opened) => opened,
            }
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        mut value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            self.pass()?;
            match self.flaw {
                Flaw::WritesNothing => return Ok(Version(1)),
                Flaw::OpensByWriting => drop(self.inner.records().open(key, token).await?),
                Flaw::CutsValues => value.truncate(RECORD_VALUE_MAX),
                _ => {}
            }
            match (self.flaw, self.inner.records().write(key, token, value).await) {
                (Flaw::WritesForAnyone, Err(_)) => Ok(Version(1)),
                (_, written) => written,
            }
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.pass()?;
            if self.flaw == Flaw::RemovesNothing {
                return Ok(());
            }
            match (self.flaw, self.inner.records().remove(key, token).await) {
                (Flaw::RemovesForAnyone, Err(_)) => Ok(()),
                (_, removed) => removed,
            }
        })
    }

    fn list(&self, mut query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(async move {
            self.pass()?;
            if self.flaw == Flaw::ListsByPattern {
                query.prefix = query.prefix.split('*').next().unwrap_or_default().to_owned();
            }
            let mut page = self.inner.records().list(query).await?;
            if self.flaw == Flaw::ListsWhatIsOpened
                && let Some(last) = page.items.last()
            {
                page.items.push(RecordKey::new(last.lock().clone(), "opened")?);
            }
            Ok(page)
        })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            self.pass()?;
            self.inner.records().read(key).await
        })
    }
}

impl fmt::Display for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Flawed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flawed").field("flaw", &self.flaw).finish_non_exhaustive()
    }
}

/// A harness of clients with one flaw, which can cause every fault that one process can suffer.
struct Flaws {
    flaw: Flaw,
    inner: Arc<MemoryBackend>,
    clock: Arc<VirtualClock>,
}

impl Flaws {
    #[expect(clippy::disallowed_methods, reason = "this is a clock, of a world whose time is tokio's")]
    fn new(flaw: Flaw) -> Self {
        let clock = Arc::new(VirtualClock { boot: Instant::now() });
        let inner = Arc::new(MemoryBackend::new(Arc::clone(&clock) as Arc<dyn Clock>));
        Self { flaw, inner, clock }
    }

    fn client(&self) -> Arc<Flawed> {
        let (flaw, inner, clock) = (self.flaw, Arc::clone(&self.inner), Arc::clone(&self.clock));
        Arc::new(Flawed { flaw, inner, clock, cable_is_cut: AtomicBool::new(false) })
    }
}

impl Harness for Flaws {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { Ok(self.client() as Arc<dyn Backend>) })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        Some(Box::pin(async { Box::new(Wired(self.client())) as Box<dyn Cable> }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(tokio::time::advance(lease.key.ttl.as_duration())))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let evicted = self.inner.evict(&lease.key.name, lease.key.nonce).await.unwrap();
            assert_eq!(evicted, Eviction::Evicted);
        }))
    }
}

/// Runs a case against a flaw, in virtual time.
fn run(flaw: Flaw, case: Case) -> Verdict {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async { case(&Flaws::new(flaw)).await })
}

#[test]
fn a_flawless_backend_passes_every_case() {
    let passed = |(_, case): &&(&str, Case)| run(Flaw::None, *case).is_ok();
    assert_eq!(CONTRACT.iter().filter(passed).count(), CONTRACT.len(), "every line of the contract applies");
    let faults: Vec<&str> = FAULTS.iter().filter(passed).map(|(name, _)| *name).collect();
    assert_eq!(faults.len(), 3, "the faults that one process can suffer: {faults:?}");
}

/// One test for each row: the case, run against the flaw, fails with this complaint.
macro_rules! detects {
    ($($test:ident: $case:ident finds $flaw:ident saying $complaint:literal;)*) => {
        $(
            #[test]
            #[should_panic(expected = $complaint)]
            fn $test() {
                let case: Case = |harness| Box::pin(ringfence_testkit::cases::$case(harness));
                assert_eq!(run(Flaw::$flaw, case), Ok(()), "the case must apply to be of use");
            }
        )*

        /// The cases that find a flaw.
        const SHARP: &[&str] = &[$(stringify!($case)),*];
    };
}

detects! {
    grants: grants_a_free_name finds GrantsNothing saying "must be granted at once";
    busy: busy_is_a_value finds BusyIsAnError saying "granted or busy, not an error";
    waits: waits_for_release finds DoesNotWait saying "a line of 1";
    wait_too_short: wait_ends_at_its_deadline finds WaitsTooShort saying "ends at its deadline, not before";
    wait_leftover: wait_ends_at_its_deadline finds LeavesAPlaceBehind saying "a line of 0";
    wait_miscounted: wait_ends_at_its_deadline finds CountsItself saying "nobody waits but the one that gave up";
    abandoned_unheard: abandoned_request_leaves_nothing finds IgnoresAbandonment saying "the withdrawal of";
    abandoned_leftover: abandoned_request_leaves_nothing finds LeavesAPlaceBehind saying "a line of 0";
    sequences: sequences_rise finds TokensStandStill saying "sequences rise";
    order: first_come_first_served finds LastComeFirstServed saying "waited 10s in vain";
    overtaking: trying_does_not_overtake finds TryingOvertakes saying "must be busy";
    sharing: shared_holders_share finds ReadersAreWriters saying "must be granted at once";
    starving: a_waiting_writer_is_not_starved finds ReadersOvertake saying "a line of 2";
    one_by_one: readers_share_one_turn finds ReadersAreWriters saying "waited 10s in vain";
    permits: permits_are_counted finds OnePermitTooMany saying "must be busy";
    early: a_lease_lapses_after_its_ttl finds LeasesEndEarly saying "not free before its TTL";
    never: a_lease_lapses_after_its_ttl finds LeasesNeverEnd saying "waited 10s in vain";
    permit_early: a_lapsed_permit_comes_back finds LeasesEndEarly saying "does not come back before";
    permit_never: a_lapsed_permit_comes_back finds LeasesNeverEnd saying "waited 10s in vain";
    folding: names_do_not_collide finds NamesAreFolded saying "must be granted at once";
    extending: renewal_extends finds RenewsNothing saying "must be busy";
    resurrecting: renewal_tells_of_loss finds RenewsNothing saying "is lost";
    batch: renewal_is_a_batch finds OneLossIsAll saying "only the second one is lost";
    releasing: release_frees_the_name finds ReleasesNothing saying "must be granted at once";
    twice: release_is_idempotent finds ReleasesNothing saying "what was released is not held";
    successor: release_never_frees_a_successor finds ReleasesByName saying "must be busy";
    downgrading: downgrade_lets_readers_in finds DowngradesNothing saying "waited 10s in vain";
    downgrading_nothing: downgrade_tells_of_loss finds DowngradesNothing saying "cannot be downgraded";
    showing: inspect_shows_holder_and_waiters finds ShowsNobody saying "one client holds";
    listing: list_pages_by_prefix finds ListsByPattern saying "begin with";
    evicting: eviction_frees_the_name finds EvictsNothing saying "waited 10s in vain";
    evicting_nobody: eviction_names_a_holder finds EvictsNothing saying "nobody holds a free name";
    examining: examination_changes_nothing finds ExaminesByTidying saying "nobody lost anything";
    standing_still: tells_the_time finds TimeStandsStill saying "time goes on";
    another_time: tells_the_time finds TellsAnotherTime saying "one and the same clock";
    stale_open: records_refuse_a_stale_open finds OpensForAnyone saying "must be refused";
    collision: records_refuse_a_collision finds OpensForAnyone saying "must be refused";
    stranger: records_refuse_a_token_of_another_lock finds OpensForAnyone saying "must be refused";
    forgetting: records_keep_what_was_written finds WritesNothing saying "record that was written is there";
    unopened: records_refuse_an_unopened_write finds OpensByWriting saying "must be refused";
    stale_write: records_refuse_a_stale_write finds WritesForAnyone saying "must be refused";
    ended: records_refuse_the_token_of_a_lease_that_ended finds WritesForAnyone saying "must be refused";
    limit: records_have_a_limit finds CutsValues saying "must be refused";
    unremoved: records_can_be_removed finds RemovesNothing saying "what was removed is not there";
    stale_removal: records_refuse_a_stale_removal finds RemovesForAnyone saying "must be refused";
    stale_after_removal: records_refuse_a_stale_removal finds OpensForAnyone saying "must be refused";
    record_prefix: records_are_listed_by_prefix finds ListsByPattern saying "begin with";
    record_listing: records_are_listed_by_prefix finds ListsWhatIsOpened saying "in byte order";
    cut_off: a_cut_off_holder_keeps_its_lease_until_its_ttl_and_its_token_is_refused finds RenewsNothing
        saying "a lease that ended is lost";
    expired: an_expired_lease_is_lost_and_the_next_in_line_is_granted finds RenewsNothing saying "is lost";
    removed: a_lease_removed_behind_its_back_is_lost finds WritesForAnyone saying "must be refused";
}

#[test]
fn every_line_of_the_contract_is_sharp() {
    let sharp: BTreeSet<&str> = SHARP.iter().copied().collect();
    let blunt: Vec<&str> =
        CONTRACT.iter().map(|(name, _)| *name).filter(|name| !sharp.contains(name)).collect();
    assert!(blunt.is_empty(), "cases that were never seen to fail: {blunt:?}");
}
