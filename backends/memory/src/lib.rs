//! `memory:`, the backend in one process: for tests, doctests, and tasks that only contend with each other.
//!
//! It is [`ringfence_core::table::Table`], the rules of sharing, behind one mutex. Who waits sleeps on a notification
//! of its own; the call that frees a name wakes the one whose turn it is, and no other. There are no round trips.
//!
//! Every [`MemoryBackend`] is a world of its own: two of them share no lock and no record, and both end with the
//! process. What it promises is [`guarantees`].
//!
//! Waiting needs a tokio runtime with its timer; everything else runs anywhere.
//!
//! Users write `Locks::connect("memory:")` of the crate `ringfence`, which renews and releases. Bare, it is the contract:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence_core::Result<()> {
//! use std::sync::Arc;
//!
//! use ringfence_core::{AcquireRequest, Attempt, Backend, HolderInfo, Mode, SystemClock, Ttl, Wait};
//! use ringfence_memory::MemoryBackend;
//!
//! let memory = MemoryBackend::new(Arc::new(SystemClock::new()));
//! let holder = HolderInfo::new("docs", "host", 1)?;
//! let request = || AcquireRequest::new("a".parse().unwrap(), Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder.clone());
//! let Attempt::Granted(lease) = memory.acquire(request()).await? else { panic!("it is free") };
//! assert!(matches!(memory.acquire(request()).await?, Attempt::Busy(_)));
//! memory.release(&[lease.key]).await?;
//! # Ok(()) }
//! ```

mod place;
mod records;

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ringfence_core::table::{Answer, Effects, Entry, Op, Table, WAITERS_MAX};
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, BoxFuture, Clock, Contention, Error, ErrorKind, Eviction,
    FencedStore, Finding, Guarantees, Lease, LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce,
    Page, Release, Renewal, Result, Wait, WallTime,
};
use tokio::sync::Notify;

use crate::place::Place;

/// What the memory backend promises: exclusion, order and fencing among the tasks of one process, while it runs.
pub fn guarantees() -> Guarantees {
    Guarantees::of_one_process()
}

/// Locks and records in the memory of this process.
pub struct MemoryBackend {
    guarantees: Guarantees,
    clock: Arc<dyn Clock>,
    session: Nonce,
    listener: OnceLock<LossListener>,
    world: Mutex<World>,
}

struct World {
    table: Table,
    /// How to wake each attempt that stands in line.
    sleepers: HashMap<Nonce, Arc<Notify>>,
    /// What the step under way changed for others.
    effects: Effects,
}

impl World {
    fn apply(&mut self, op: Op) -> Answer {
        let (answer, effects) = self.table.apply(op);
        self.effects.offered.extend(effects.offered);
        self.effects.ended.extend(effects.ended);
        answer
    }
}

/// What a request for a lease comes to at one instant.
enum Asked {
    Granted(Lease),
    InLine(Arc<Notify>),
    Busy(Contention),
    LineFull,
}

impl MemoryBackend {
    /// A world without locks and records.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let mut table = Table::default();
        // Nothing here outlives the process, so every grant number is as durable as it will ever be.
        table.apply(Op::Commit { from: 1, upto: u64::MAX, at: clock.now() });
        Self {
            guarantees: guarantees(),
            clock,
            session: Nonce::random(),
            listener: OnceLock::new(),
            world: Mutex::new(World { table, sleepers: HashMap::new(), effects: Effects::default() }),
        }
    }

    /// Looks at the world, or changes it, at one instant, and tells those whom the change concerns.
    fn at_once<T>(&self, step: impl FnOnce(&mut World, BootInstant) -> T) -> T {
        // A panic cannot leave the table half changed: between two operations it is consistent, and no operation
        // calls foreign code.
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the mutex, so that time goes forward from one operation to the next.
        let at = self.clock.now();
        let result = step(&mut world, at);
        let Effects { offered, ended, .. } = std::mem::take(&mut world.effects);
        let mut lost = Vec::new();
        for seat in offered {
            if let Some(sleeper) = world.sleepers.get(&seat.nonce) {
                sleeper.notify_one();
            }
        }
        for seat in ended {
            match world.sleepers.get(&seat.nonce) {
                // An offer that lapsed before it was claimed is no loss: whoever slept through it asks again.
                Some(sleeper) => sleeper.notify_one(),
                None => lost.push(seat.nonce),
            }
        }
        drop(world);
        if let Some(listener) = self.listener.get() {
            for nonce in lost {
                listener(nonce);
            }
        }
        result
    }

    fn apply(&self, op: impl FnOnce(BootInstant) -> Op) -> Answer {
        self.at_once(|world, at| world.apply(op(at)))
    }

    /// Asks for the lease, or claims it where it was offered since the last time.
    fn ask(&self, request: &AcquireRequest) -> Asked {
        let AcquireRequest { name, mode, ttl, wait, holder, nonce, .. } = request;
        self.at_once(|world, at| {
            let entry = Entry {
                name: name.clone(),
                mode: *mode,
                ttl: *ttl,
                waits: *wait != Wait::No,
                nonce: *nonce,
                session: self.session,
                holder: holder.clone(),
                at,
            };
            // An offer that has lapsed, unnoticed until now, is not one to claim.
            world.apply(Op::Settle { name: name.clone(), at });
            match world.apply(Op::Enter(entry)) {
                Answer::Held => {
                    // What was offered stands for a short window; the claim makes it last for its TTL.
                    world.apply(Op::Renew { nonce: *nonce, at });
                    let token = world.table.grant(*nonce).expect("it was just claimed").token();
                    Asked::Granted(Lease::new(LeaseKey::new(name.clone(), *nonce, *ttl), token, at))
                }
                Answer::LineFull => Asked::LineFull,
                Answer::Waiting => Asked::InLine(Arc::clone(world.sleepers.entry(*nonce).or_default())),
                _ => Asked::Busy(world.table.contention(name)),
            }
        })
    }

    async fn stand_in_line(&self, mut request: AcquireRequest) -> Result<Attempt> {
        let mut place: Option<Place> = None;
        loop {
            let turn = match self.ask(&request) {
                Asked::Granted(lease) => {
                    if let Some(place) = place {
                        place.keep();
                    }
                    return Ok(Attempt::Granted(lease));
                }
                Asked::Busy(contention) => return Ok(Attempt::Busy(contention)),
                Asked::LineFull => {
                    return Err(Error::new(
                        ErrorKind::Full,
                        format!(
                            "{WAITERS_MAX} requests wait for {:?} already, no more are let in; try again later",
                            request.name
                        ),
                    ));
                }
                Asked::InLine(turn) => turn,
            };
            let taken = place.get_or_insert_with(|| Place::new(self, request.nonce));
            if !taken.turn_comes(&turn, &mut request).await {
                drop(place);
                let contention = self.at_once(|world, _| world.table.contention(&request.name));
                return Ok(Attempt::Busy(contention));
            }
        }
    }
}

impl Backend for MemoryBackend {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        Box::pin(self.stand_in_line(request))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        Box::pin(async {
            Ok(self.at_once(|world, at| {
                let renew = |lease: &LeaseKey| match world.apply(Op::Renew { nonce: lease.nonce, at }) {
                    Answer::Held => Renewal::Renewed,
                    _ => Renewal::Lost,
                };
                leases.iter().map(renew).collect()
            }))
        })
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        Box::pin(async {
            Ok(self.at_once(|world, at| {
                let release = |lease: &LeaseKey| match world.apply(Op::Release { nonce: lease.nonce, at }) {
                    Answer::Held => Release::Released,
                    _ => Release::NotHeld,
                };
                leases.iter().map(release).collect()
            }))
        })
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(async {
            Ok(match self.apply(|at| Op::Downgrade { nonce: lease.nonce, at }) {
                Answer::Held => Renewal::Renewed,
                _ => Renewal::Lost,
            })
        })
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(async {
            Ok(self.at_once(|world, at| {
                world.apply(Op::Settle { name: name.clone(), at });
                world.table.state(name, at)
            }))
        })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(async move { Ok(self.at_once(|world, at| world.table.list(&query, at))) })
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(async move {
            Ok(match self.apply(|at| Op::Evict { name: name.clone(), nonce: holder, at }) {
                Answer::Held => Eviction::Evicted,
                _ => Eviction::NotHeld,
            })
        })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        let what = "the locks and records of this process, and of no other; they end with it";
        Box::pin(async move { Ok(vec![Finding::fine("store", what)]) })
    }

    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(Some(self.clock.wall())) })
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    fn on_loss(&self, listener: LossListener) {
        // Called at most once; a second listener would be a bug of the caller, and the first one stays.
        let _ = self.listener.set(listener);
    }

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl fmt::Display for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory:")
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").field("session", &self.session).finish_non_exhaustive()
    }
}
