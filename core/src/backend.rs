use std::fmt::{Debug, Display};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;

use crate::clock::WallTime;
use crate::error::Result;
use crate::fenced_store::FencedStore;
use crate::finding::Finding;
use crate::guarantees::Guarantees;
use crate::lease::{Attempt, Eviction, LeaseKey, ListQuery, LockState, Page, Release, Renewal};
use crate::name::LockName;
use crate::request::AcquireRequest;
use crate::token::Nonce;

/// A boxed future: the contract is object-safe, and a box is nothing beside a network.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Is told of a lease that the backend learned is gone, before a renewal would have said so.
pub type LossListener = Arc<dyn Fn(Nonce) + Send + Sync>;

/// The contract of a lock service, for those who implement one. Users hold a `Locks` of the crate `ringfence`.
///
/// A backend is mechanism without policy. It reports; it never renews on its own, never retries by a rule of its
/// own and never sleeps except in its server's own queue. It has no default methods on purpose: a default is
/// convenient for whoever forgets, and wrong for a lock.
///
/// Each line under *Behaviour* is a case of the conformance suite (`ringfence-testkit`), by the name in brackets.
///
/// `Display` is the URL without secrets.
pub trait Backend: Debug + Display + Send + Sync + 'static {
    /// What this backend promises, and under which faults, as data.
    fn guarantees(&self) -> &Guarantees;

    /// Tries to get a lease, or keeps a place in line until the request's deadline.
    ///
    /// # Behaviour
    /// - A free name is granted at once, also to a request whose deadline is now. `[grants_a_free_name]`
    /// - A name held by somebody else is `Busy` for a request that does not wait. `[busy_is_a_value]`
    /// - A request that waits is granted when the holder releases. `[waits_for_release]`
    /// - A request that waits until a deadline answers `Busy` at that deadline, not before, and leaves nothing
    ///   behind. `[wait_ends_at_its_deadline]`
    /// - An abandoned request withdraws and leaves nothing behind. `[abandoned_request_leaves_nothing]`
    /// - The sequence of every grant of a name is higher than that of every earlier grant.
    ///   `[sequences_rise]`
    /// - Waiters are served in the order in which they came, where `Guarantees::queue` says so. `[first_come_first_served]`
    /// - Where there is a line, a request that does not wait never overtakes it. `[trying_does_not_overtake]`
    /// - Shared holders hold together; an exclusive one holds alone. `[shared_holders_share]`
    /// - Where there is a line, a waiting writer is not overtaken by later readers. `[a_waiting_writer_is_not_starved]`
    /// - Where there is a line, readers behind a writer share one turn. `[readers_share_one_turn]`
    /// - At most `limit` permits are held at once, and the next one is granted when one is released.
    ///   `[permits_are_counted]`
    /// - A lease that is not renewed is free after its TTL, not before. `[a_lease_lapses_after_its_ttl]`
    /// - A permit that is not renewed comes back after its TTL. `[a_lapsed_permit_comes_back]`
    /// - Names that differ never contend, whatever they contain. `[names_do_not_collide]`
    ///
    /// The future is owned by a task of the hall and polled to its end; it is told through
    /// [`AcquireRequest::abandoned`] when nobody wants the answer.
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>>;

    /// Extends leases by their TTL, counted from before this call. One answer for each lease, in order.
    ///
    /// # Behaviour
    /// - A renewed lease outlives its first TTL. `[renewal_extends]`
    /// - A lease that lapsed, was released or was evicted is `Lost`, for good. `[renewal_tells_of_loss]`
    /// - One lost lease in a batch does not hurt its neighbours. `[renewal_is_a_batch]`
    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>>;

    /// Gives leases back. Compares the nonce, so it never frees a successor. One answer for each lease, in order.
    ///
    /// # Behaviour
    /// - A released name can be acquired at once. `[release_frees_the_name]`
    /// - Releasing twice is harmless and says `NotHeld`. `[release_is_idempotent]`
    /// - Releasing a lapsed lease does not free its successor. `[release_never_frees_a_successor]`
    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>>;

    /// Turns an exclusive lease into a shared one, with the same token and TTL, and lets waiting readers in.
    ///
    /// # Behaviour
    /// - A downgraded lease is held together with readers. `[downgrade_lets_readers_in]`
    /// - Downgrading a lease that is gone says `Lost`. `[downgrade_tells_of_loss]`
    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>>;

    /// The lock as it stands: holders, waiters, ages. A lock nobody uses is free, not an error.
    ///
    /// # Behaviour
    /// - Shows the holder, its token and the waiters in line. `[inspect_shows_holder_and_waiters]`
    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>>;

    /// The locks that are held or waited for, by name, a page at a time.
    ///
    /// # Behaviour
    /// - Lists by prefix, in byte order, page by page. `[list_pages_by_prefix]`
    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>>;

    /// An operator's force-release of one holder. Its token is stale from then on.
    ///
    /// # Behaviour
    /// - The evicted holder's next renewal is `Lost`, and the next in line is granted. `[eviction_frees_the_name]`
    /// - Evicting somebody who does not hold the name says `NotHeld`. `[eviction_names_a_holder]`
    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>>;

    /// Looks for what would break the guarantees here: a setting of the server, its version, its clock, the place of a
    /// store. For `ringfence doctor` and for alarms; it may take a few seconds. One finding for each thing it looked at,
    /// at least one.
    ///
    /// What it is not allowed to look at is a finding. It errors only where the service cannot be asked at all.
    ///
    /// # Behaviour
    /// - Leases, places in line and records stay as they are. `[examination_changes_nothing]`
    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>>;

    /// The time of day by the service's own clock, which all of its clients share; `None` where it has none that it tells.
    ///
    /// It steps when somebody sets that clock. So it names what people name by the calendar, and decides no lease and no order
    /// of two writes.
    ///
    /// # Behaviour
    /// - It is the time of day, and goes on. `[tells_the_time]`
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>>;

    /// The records that live beside the locks, each behind its lock's fence.
    fn records(&self) -> &dyn FencedStore;

    /// Registers who is told, at once, of a lease that turns out to be gone between two renewals. Called at most
    /// once, before the first acquire. A backend that cannot know drops the listener.
    fn on_loss(&self, listener: LossListener);

    /// A descriptor for a child process to inherit: while any process has it open, the leases of this backend
    /// lapse by their TTL and not at once with the death of their holder. `None` where a holder's death does not
    /// end its leases anyway.
    fn lifeline(&self) -> Result<Option<OwnedFd>>;
}
