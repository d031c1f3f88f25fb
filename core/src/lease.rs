use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::BootInstant;
use crate::fenced_store::RecordKey;
use crate::holder::HolderInfo;
use crate::mode::Mode;
use crate::name::LockName;
use crate::request::Ttl;
use crate::token::{FencingToken, Nonce};

/// What one renewal or release names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct LeaseKey {
    /// The name that is held.
    pub name: LockName,
    /// Which attempt holds it.
    pub nonce: Nonce,
    /// For how long a renewal extends it.
    pub ttl: Ttl,
}

impl LeaseKey {
    /// The key of the lease that the attempt `nonce` got.
    pub fn new(name: LockName, nonce: Nonce, ttl: Ttl) -> Self {
        Self { name, nonce, ttl }
    }
}

/// What a backend grants: this name, this mode, to this holder, for this long.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// Names the lease; its TTL is the one that was *granted*.
    pub key: LeaseKey,
    /// The proof for the resource, given by the very step that granted.
    pub token: FencingToken,
    /// From when it counts: an instant *before* the step that granted or claimed the lease was sent.
    pub counted_from: BootInstant,
    /// For how long it lives until its first renewal, which makes it live for its TTL.
    pub lasts: Duration,
    /// What it took to get it, where several independent nodes had to agree.
    pub agreement: Option<Agreement>,
}

/// What it took until so many of several independent nodes agreed to a lease as had to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Agreement {
    /// How many nodes had answered when they were enough, whatever they said.
    pub answered: usize,
    /// How many nodes there are.
    pub nodes: usize,
    /// From the first request of the attempt that succeeded to the answer that was enough.
    pub took: Duration,
    /// How many attempts it took, the successful one included.
    pub attempts: u32,
}

impl Agreement {
    /// An agreement, as a backend reports it.
    pub fn new(answered: usize, nodes: usize, took: Duration, attempts: u32) -> Self {
        Self { answered, nodes, took, attempts }
    }
}

impl Lease {
    /// A lease that lives for its TTL, as a backend reports it.
    pub fn new(key: LeaseKey, token: FencingToken, counted_from: BootInstant) -> Self {
        let lasts = key.ttl.as_duration();
        Self { key, token, counted_from, lasts, agreement: None }
    }

    /// The same lease, with what it took to get it.
    #[must_use]
    pub fn agreed(mut self, agreement: Agreement) -> Self {
        self.agreement = Some(agreement);
        self
    }

    /// The same lease as an *offer*: a turn that was given to a waiter for less than its TTL, so that a waiter that died in
    /// line costs the next one that much and not a TTL. The hall renews it at once.
    #[must_use]
    pub fn offered_for(mut self, lasts: Duration) -> Self {
        self.lasts = lasts.min(self.lasts);
        self
    }

    /// Whether it lives for less than its TTL until it is renewed.
    pub fn is_offer(&self) -> bool {
        self.lasts < self.key.ttl.as_duration()
    }

    /// The instant after which nobody may claim to hold this lease unless it was renewed.
    pub fn deadline(&self) -> BootInstant {
        self.counted_from.saturating_add(self.lasts)
    }
}

/// The answer to an acquire. Contention is a value, never an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an attempt is granted or it is not")]
pub enum Attempt {
    /// The name is held, with this lease.
    Granted(Lease),
    /// Somebody else has it (or had it until the wait ended), and nothing of this attempt is left behind.
    Busy(Contention),
}

/// Who is in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Contention {
    /// The holders that were seen; empty where the backend cannot tell cheaply.
    pub holders: Vec<HolderInfo>,
    /// How many wait in line, this attempt not counted.
    pub waiters: usize,
}

impl Contention {
    /// These holders, and this many in line.
    pub fn new(holders: Vec<HolderInfo>, waiters: usize) -> Self {
        Self { holders, waiters }
    }
}

/// What became of one lease in a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a lease is renewed or gone, or nobody can say")]
pub enum Renewal {
    /// It lives for its TTL, counted from before the renewal was sent.
    Renewed,
    /// It is gone: expired, evicted, or never granted. No later renewal brings it back.
    Lost,
    /// It may be either, because the server that has it did not answer, as others did that have other leases of the batch. Renew
    /// it again. Where no lease of a batch has an answer, that is an error instead.
    Unknown,
}

/// What became of one lease in a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a lease was there or it was not")]
pub enum Release {
    /// It was held and is free now.
    Released,
    /// It was not held any more: expired, evicted, or released before. Releasing is idempotent.
    NotHeld,
}

/// What became of an operator's force-release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "there was a holder or there was not")]
pub enum Eviction {
    /// The holder is out; its token is stale from now on.
    Evicted,
    /// No such holder.
    NotHeld,
}

/// One holder of a name, as [`Backend::inspect`](crate::Backend::inspect) sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HolderState {
    /// Who.
    pub holder: HolderInfo,
    /// How.
    pub mode: Mode,
    /// The token of its grant. After hand-overs inside its process its guard carries a slightly higher one.
    pub token: FencingToken,
    /// Since when. `None` where nobody knows: the backend keeps no times, or it is somebody else's client that holds.
    pub age: Option<Duration>,
    /// Until when, if it is not renewed. Zero: it has lapsed and the next one that wants the name gets it. Many years: it is another
    /// client's, and has no end of its own. `None` where nobody knows: it is another client's, and ends with it.
    pub remaining: Option<Duration>,
}

impl HolderState {
    /// One holder, as a backend reports it.
    pub fn new(
        holder: HolderInfo,
        mode: Mode,
        token: FencingToken,
        age: impl Into<Option<Duration>>,
        remaining: impl Into<Option<Duration>>,
    ) -> Self {
        Self { holder, mode, token, age: age.into(), remaining: remaining.into() }
    }

    /// Whether the next one that wants the name gets it.
    pub fn has_lapsed(&self) -> bool {
        self.remaining == Some(Duration::ZERO)
    }
}

/// One that waits in line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WaiterState {
    /// Who.
    pub holder: HolderInfo,
    /// What it wants.
    pub mode: Mode,
    /// Since when it waits. `None` where nobody knows.
    pub age: Option<Duration>,
}

impl WaiterState {
    /// One waiter, as a backend reports it.
    pub fn new(holder: HolderInfo, mode: Mode, age: impl Into<Option<Duration>>) -> Self {
        Self { holder, mode, age: age.into() }
    }
}

/// A lock as it stands: who holds it, since when, who waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LockState {
    /// The lock.
    pub name: LockName,
    /// Its holders, in the order of their grants.
    pub holders: Vec<HolderState>,
    /// Those in line, the next one first.
    pub waiters: Vec<WaiterState>,
}

impl LockState {
    /// The state of a lock, as a backend reports it.
    pub fn new(name: LockName, holders: Vec<HolderState>, waiters: Vec<WaiterState>) -> Self {
        Self { name, holders, waiters }
    }

    /// Whether nobody holds it and nobody waits.
    pub fn is_free(&self) -> bool {
        self.holders.is_empty() && self.waiters.is_empty()
    }
}

/// The most locks on one page of a listing.
pub const PAGE_MAX: usize = 1000;

/// Which locks to list.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ListQuery {
    /// Only names that begin with this.
    pub prefix: String,
    /// Only names after this one, in byte order: where the last page ended.
    pub after: Option<LockName>,
    /// How many at most; zero or more than [`PAGE_MAX`] means [`PAGE_MAX`].
    pub limit: usize,
}

impl ListQuery {
    /// The first page of the names that begin with `prefix`.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: PAGE_MAX }
    }

    /// The page after this name.
    #[must_use]
    pub fn after(mut self, name: LockName) -> Self {
        self.after = Some(name);
        self
    }

    /// At most this many.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// How many locks a page has at most.
    pub fn page_size(&self) -> usize {
        if self.limit == 0 { PAGE_MAX } else { self.limit.min(PAGE_MAX) }
    }

    /// Whether a lock of this name is asked for.
    pub fn asks_for(&self, name: &LockName) -> bool {
        name.as_str().starts_with(&self.prefix) && self.after.as_ref().is_none_or(|after| name > after)
    }
}

/// A page of a listing, in byte order of the names.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// The name to list after, where there is more.
    pub next: Option<LockName>,
}

impl Page<RecordKey> {
    /// The page that a query asks for, of records in the order of their keys. All records of a lock are on one page.
    pub fn of_records(query: &ListQuery, records: impl IntoIterator<Item = RecordKey>) -> Self {
        let mut page = Self::new(Vec::new(), None);
        let mut locks = 0;
        for record in records.into_iter().filter(|record| query.asks_for(record.lock())) {
            let last = page.items.last().map(RecordKey::lock);
            if last != Some(record.lock()) {
                if locks == query.page_size() {
                    page.next = last.cloned();
                    break;
                }
                locks += 1;
            }
            page.items.push(record);
        }
        page
    }
}

impl<T> Page<T> {
    /// A page, and where the next one begins.
    pub fn new(items: Vec<T>, next: Option<LockName>) -> Self {
        Self { items, next }
    }
}
