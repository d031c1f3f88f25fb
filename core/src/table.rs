//! The rules of sharing, as a pure state machine: who holds a name, who is next, which number the next grant gets,
//! which token a record takes.
//!
//! The memory backend keeps one [`Table`] behind a mutex. The local backend's processes each fold the same log of
//! [`Op`]s into one, and so agree without a server. The proofs use it as the oracle for every other backend.
//!
//! Nothing here reads a clock or draws a number: the time and the nonce come with the operation, so that the same
//! operations in the same order give the same table everywhere.
//!
//! The rules:
//! - The line of a name is first come, first served. Its head is granted as soon as it is compatible with the
//!   holders; whoever stands behind an incompatible head waits. So a writer is not starved by later readers, and
//!   readers that stand together are granted together.
//! - A request that does not wait is granted only if nobody waits and it is compatible.
//! - A lease that was not renewed ends when somebody looks at its name at or after its deadline.
//! - A grant to one who waits is an *offer*: it must be claimed (renewed) within [`CLAIM_WINDOW`], so that a waiter that
//!   is paused when its turn comes costs the next one a second and not a TTL.
//! - A record takes no token below its mark, and none but those of living leases unless it was first opened for a lock that
//!   lives elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::clock::BootInstant;
use crate::error::{Error, ErrorKind};
use crate::fenced_store::{RECORD_VALUE_MAX, Record, RecordKey, Version};
use crate::guarantees::RecordGuard;
use crate::holder::HolderInfo;
use crate::lease::{Contention, HolderState, ListQuery, LockState, Page, WaiterState};
use crate::mode::Mode;
use crate::name::LockName;
use crate::request::Ttl;
use crate::token::{FencingToken, Nonce};

/// How long an offer stands before it passes to the next in line.
pub const CLAIM_WINDOW: Duration = Duration::from_secs(1);

/// The most waiters in line for one name.
pub const WAITERS_MAX: usize = 10_000;

/// The most bytes that all records of one store hold together: 16 MiB.
pub const RECORDS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One operation on the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_enums,
    reason = "it is a wire format: a new operation is a new version of the store"
)]
pub enum Op {
    /// Asks for a lease. Idempotent by nonce.
    Enter(Entry),
    /// Claims an offer or renews a lease.
    Renew {
        /// Which attempt.
        nonce: Nonce,
        /// From when the TTL counts.
        at: BootInstant,
    },
    /// Gives a lease back, or leaves the line.
    Release {
        /// Which attempt.
        nonce: Nonce,
        /// When.
        at: BootInstant,
    },
    /// Turns an exclusive lease into a shared one.
    Downgrade {
        /// Which attempt.
        nonce: Nonce,
        /// When.
        at: BootInstant,
    },
    /// Ends a lease against its holder's will.
    Evict {
        /// Of which lock.
        name: LockName,
        /// Which attempt.
        nonce: Nonce,
        /// When.
        at: BootInstant,
    },
    /// Ends what has lapsed on a name.
    Settle {
        /// Of which lock.
        name: LockName,
        /// When.
        at: BootInstant,
    },
    /// Ends everything of a session whose process is dead, by the word of the kernel.
    Bury {
        /// Which session.
        session: Nonce,
        /// When.
        at: BootInstant,
    },
    /// Announces that grant numbers below `upto` are about to be made durable.
    Reserve {
        /// The first number that is not.
        upto: u64,
    },
    /// Says that they are, and that the next grant gets at least `from`.
    Commit {
        /// The lowest number of the next grant.
        from: u64,
        /// The first number that is not durable.
        upto: u64,
        /// When.
        at: BootInstant,
    },
    /// Raises a record's mark to a token.
    Open {
        /// Which record.
        key: RecordKey,
        /// By which right.
        token: FencingToken,
        /// What its fence is expected to check; the first opening of a record decides.
        guard: RecordGuard,
        /// When.
        at: BootInstant,
    },
    /// Replaces a record's value.
    Write {
        /// Which record.
        key: RecordKey,
        /// By which right.
        token: FencingToken,
        /// By what.
        value: Bytes,
        /// When.
        at: BootInstant,
    },
    /// Removes a record's value, and the record itself where its mark keeps nobody out any more.
    Remove {
        /// Which record.
        key: RecordKey,
        /// By which right.
        token: FencingToken,
        /// When.
        at: BootInstant,
    },
}

/// One that asks for a lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::exhaustive_structs,
    reason = "it is a wire format: a new field is a new version of the store"
)]
pub struct Entry {
    /// What to lock.
    pub name: LockName,
    /// How.
    pub mode: Mode,
    /// For how long without renewal.
    pub ttl: Ttl,
    /// Whether to stand in line if it is not free.
    pub waits: bool,
    /// Names the attempt and its lease.
    pub nonce: Nonce,
    /// Whose process it is: what [`Op::Bury`] ends.
    pub session: Nonce,
    /// For whom.
    pub holder: HolderInfo,
    /// When it came; from here its TTL counts if it is granted at once.
    pub at: BootInstant,
}

/// What an operation says to the one that made it.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "the backends over the table handle every answer")]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// The lease is granted, or claimed, or renewed, or downgraded.
    Held,
    /// The attempt stands in line.
    Waiting,
    /// The name is not free, and the attempt did not wait for it.
    Busy,
    /// The line is too long.
    LineFull,
    /// The name is free, but there is no durable number for its token: reserve some, then ask again.
    ShortOfNumbers,
    /// No such lease.
    NotHeld,
    /// The record is open with the token.
    Opened,
    /// The record was written.
    Written(Version),
    /// The record holds nothing any more.
    Removed,
    /// The record refused the token.
    Refused(Refusal),
}

/// Why a record refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "every refusal has its error")]
pub enum Refusal {
    /// The token is below the mark.
    BelowMark(FencingToken),
    /// The token's lease does not live, or is another lock's; this one is the holder's, if there is one.
    LeaseOver(Option<FencingToken>),
    /// Another holder has the same sequence.
    Collision(FencingToken),
    /// The record was first opened with this guard, which is not the one that is asked for.
    OtherGuard(RecordGuard),
    /// The token did not open the record.
    NotOpened,
    /// The value is too large.
    ValueTooLarge(usize),
    /// The store's records are too large together.
    StoreFull,
}

impl Answer {
    /// The error of a record's operation that was answered with this instead of success.
    pub fn into_record_error(self, key: &RecordKey, token: FencingToken) -> Error {
        match self {
            Self::Refused(refusal) => refusal.into_error(key, token),
            other => Error::new(ErrorKind::Bug, format!("a record answered {other:?}")),
        }
    }
}

impl Refusal {
    /// Refuses a value of more than [`RECORD_VALUE_MAX`] bytes.
    pub fn of_size(value: &[u8]) -> Result<(), Self> {
        if value.len() > RECORD_VALUE_MAX { Err(Self::ValueTooLarge(value.len())) } else { Ok(()) }
    }

    /// The error that a [`FencedStore`](crate::FencedStore) returns for it.
    pub fn into_error(self, key: &RecordKey, token: FencingToken) -> Error {
        let mark = match &self {
            Self::BelowMark(mark) | Self::Collision(mark) => Some(*mark),
            _ => None,
        };
        let (kind, why) = match self {
            Self::BelowMark(mark) => (
                ErrorKind::Stale,
                format!(
                    "token {token} is stale: the record has seen {mark}; stop, and acquire the lock again"
                ),
            ),
            Self::LeaseOver(holder) => (
                ErrorKind::Stale,
                match holder {
                    Some(holder) => format!(
                        "token {token} is stale: the lock is held with {holder}; stop, and acquire the lock again"
                    ),
                    None => format!(
                        "token {token} is stale: its lease on this lock is over or never was; stop, and acquire \
                         the lock again"
                    ),
                },
            ),
            Self::Collision(other) => (
                ErrorKind::TokenCollision,
                format!(
                    "token {token} has the sequence of {other}: two holders were given one number, so a lock \
                     service has lost its memory; stop both holders and look at the service"
                ),
            ),
            Self::OtherGuard(guard) => (
                ErrorKind::InvalidRequest,
                format!(
                    "it {guard}; that is settled for good by whoever opens a record first: open it through a store with \
                     this guard, or name another record"
                ),
            ),
            Self::NotOpened => (
                ErrorKind::NotOpened,
                format!(
                    "the record was not opened with token {token}; open it before you read it to modify it"
                ),
            ),
            Self::ValueTooLarge(size) => (
                ErrorKind::InvalidRequest,
                format!("a record holds at most {RECORD_VALUE_MAX} bytes, this value has {size}"),
            ),
            Self::StoreFull => (
                ErrorKind::Full,
                format!("all records of a store hold at most {RECORDS_BYTES_MAX} bytes together"),
            ),
        };
        let error = Error::new(kind, why).about(format_args!("record {key}"));
        mark.into_iter().fold(error, Error::with_mark)
    }
}

/// What an operation changed for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the backends over the table handle every effect")]
pub struct Effects {
    /// Those in line whose turn came: they were offered the lease.
    pub offered: Vec<Seat>,
    /// Those whose lease or offer ended without their doing.
    pub ended: Vec<Seat>,
    /// Those in line who should look again at whom they wait for.
    pub moved: Vec<Seat>,
}

/// An attempt and its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a pair")]
pub struct Seat {
    /// Which attempt.
    pub nonce: Nonce,
    /// Of which session.
    pub session: Nonce,
}

/// A lease as the table keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Grant {
    /// Which attempt has it.
    pub nonce: Nonce,
    /// Of which session.
    pub session: Nonce,
    /// The number of the grant: the upper bits of the token's sequence.
    pub number: u64,
    /// How it is held.
    pub mode: Mode,
    /// For how long a renewal extends it.
    pub ttl: Ttl,
    /// When it ends if nobody renews it.
    pub deadline: BootInstant,
    /// When it was granted.
    pub since: BootInstant,
    /// For whom.
    pub holder: HolderInfo,
}

impl Entry {
    fn seat(&self) -> Seat {
        Seat { nonce: self.nonce, session: self.session }
    }
}

impl StoredRecord {
    fn size(&self) -> usize {
        self.written.as_ref().map_or(0, |(value, _)| value.len())
    }
}

impl Grant {
    fn seat(&self) -> Seat {
        Seat { nonce: self.nonce, session: self.session }
    }

    /// The token of the grant.
    pub fn token(&self) -> FencingToken {
        FencingToken::of_grant(self.number, self.nonce).expect("numbers are bounded where they are reserved")
    }
}

/// The state of every lock and record of one store.
#[derive(Debug, Default)]
pub struct Table {
    lines: Slab<Line>,
    by_name: HashMap<LockName, LineId, foldhash::fast::RandomState>,
    /// Where each attempt stands or holds, and for which session.
    attempts: HashMap<Nonce, (LineId, Nonce), foldhash::fast::RandomState>,
    records: BTreeMap<RecordKey, StoredRecord>,
    record_bytes: usize,
    numbers: Numbers,
    /// Names whose head could be granted if there were durable numbers left.
    short_of_numbers: BTreeSet<LineId>,
}

/// Where a line is among the lines. Every process of a local store applies the operations of all of them, so an
/// operation finds its line without its name.
type LineId = usize;

/// A part of a [`Table`]. All parts together are the table, for a log to begin with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Piece(Part);

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Part {
    Numbers(Numbers),
    Line(Line),
    Record(RecordKey, StoredRecord),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    name: LockName,
    grants: Vec<Grant>,
    queue: VecDeque<Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct StoredRecord {
    guard: RecordGuard,
    mark: FencingToken,
    /// How often it was written.
    version: Version,
    /// What it holds, and which token wrote that.
    written: Option<(Bytes, FencingToken)>,
}

/// Grant numbers are handed out of a range that was made durable beforehand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Numbers {
    next: u64,
    durable: u64,
    reserved: u64,
}

/// The first grant number that a token cannot carry.
const NUMBERS_END: u64 = 1 << (63 - crate::token::HANDOVER_BITS);

impl Line {
    fn new(name: LockName) -> Self {
        Self { name, grants: Vec::new(), queue: VecDeque::new() }
    }

    /// Whether somebody new may hold beside the holders.
    fn admits(&self, mode: Mode) -> bool {
        match mode {
            Mode::Exclusive => self.grants.is_empty(),
            Mode::Shared => self.grants.iter().all(|grant| grant.mode == Mode::Shared),
            Mode::Permit(own) => {
                // The smallest limit among the holders and the one that asks.
                let limit = self.grants.iter().try_fold(own, |limit, grant| match grant.mode {
                    Mode::Permit(other) => Some(limit.min(other)),
                    Mode::Exclusive | Mode::Shared => None,
                });
                limit.is_some_and(|limit| self.grants.len() < limit.get() as usize)
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.grants.is_empty() && self.queue.is_empty()
    }
}

impl Table {
    /// Applies one operation: what it says to its maker, and what it changed for others.
    pub fn apply(&mut self, op: Op) -> (Answer, Effects) {
        let mut effects = Effects::default();
        let answer = match op {
            Op::Enter(entry) => self.enter(entry, &mut effects),
            Op::Renew { nonce, at } => self.on_held(nonce, at, &mut effects, |grant| {
                grant.deadline = at.saturating_add(grant.ttl.as_duration());
            }),
            Op::Release { nonce, at } => self.release(nonce, at, &mut effects),
            Op::Downgrade { nonce, at } => {
                let answer = self.on_held(nonce, at, &mut effects, |grant| {
                    if grant.mode == Mode::Exclusive {
                        grant.mode = Mode::Shared;
                    }
                });
                if let Some(&(line, _)) = self.attempts.get(&nonce) {
                    self.pump(line, at, &mut effects);
                }
                answer
            }
            Op::Evict { name, nonce, at } => self.evict(&name, nonce, at, &mut effects),
            Op::Settle { name, at } => {
                self.settle_name(&name, at, &mut effects);
                Answer::Done
            }
            Op::Bury { session, at } => {
                self.bury(session, at, &mut effects);
                Answer::Done
            }
            Op::Reserve { upto } => {
                self.numbers.reserved = self.numbers.reserved.max(upto.min(NUMBERS_END));
                Answer::Done
            }
            Op::Commit { from, upto, at } => {
                self.numbers.next = self.numbers.next.max(from);
                self.numbers.durable = self.numbers.durable.max(upto.min(NUMBERS_END));
                let short = std::mem::take(&mut self.short_of_numbers);
                for line in self.by_their_names(short) {
                    self.pump(line, at, &mut effects);
                }
                Answer::Done
            }
            Op::Open { key, token, guard, at } => self.open_record(key, token, guard, at, &mut effects),
            Op::Write { key, token, value, at } => self.write_record(&key, token, value, at, &mut effects),
            Op::Remove { key, token, at } => self.remove_record(&key, token, at, &mut effects),
        };
        (answer, effects)
    }

    /// How many grants can be numbered before more numbers must be made durable.
    pub fn numbers_left(&self) -> u64 {
        self.numbers.durable.saturating_sub(self.numbers.next)
    }

    /// The first grant number that nobody has reserved.
    pub fn numbers_reserved(&self) -> u64 {
        self.numbers.reserved
    }

    /// Whether a record is open with this token already, and opening it once more ([`Op::Open`]) would change nothing.
    pub fn is_open(&self, key: &RecordKey, token: FencingToken, guard: RecordGuard, at: BootInstant) -> bool {
        let is_marked =
            self.records.get(key).is_some_and(|record| record.guard == guard && record.mark == token);
        let has_settled =
            self.line(key.lock()).is_none_or(|line| line.grants.iter().all(|grant| grant.deadline > at));
        is_marked && has_settled && self.check_token(key, token, guard).is_ok()
    }

    /// The lease that an attempt holds or is offered.
    pub fn grant(&self, nonce: Nonce) -> Option<&Grant> {
        let (line, _) = self.attempts.get(&nonce)?;
        self.lines[*line].grants.iter().find(|grant| grant.nonce == nonce)
    }

    /// Whether an attempt holds, is offered or waits for anything.
    pub fn knows(&self, nonce: Nonce) -> bool {
        self.attempts.contains_key(&nonce)
    }

    /// Whether a session holds or waits for anything.
    pub fn knows_session(&self, session: Nonce) -> bool {
        self.attempts.values().any(|(_, owner)| *owner == session)
    }

    /// Every session that holds or waits for anything.
    pub fn sessions(&self) -> Vec<Nonce> {
        let sessions: HashSet<Nonce> = self.attempts.values().map(|(_, session)| *session).collect();
        sessions.into_iter().collect()
    }

    /// The sessions that hold or wait for a name.
    pub fn sessions_of(&self, name: &LockName) -> Vec<Nonce> {
        let Some(line) = self.line(name) else { return Vec::new() };
        let grants = line.grants.iter().map(|grant| grant.session);
        let sessions: HashSet<Nonce> = grants.chain(line.queue.iter().map(|entry| entry.session)).collect();
        sessions.into_iter().collect()
    }

    /// The sessions whose death would bring this waiter's turn nearer: the one in front of it in line or, for the first
    /// in line, all holders.
    pub fn ahead_of(&self, nonce: Nonce) -> Vec<Nonce> {
        let Some((line, _)) = self.attempts.get(&nonce) else { return Vec::new() };
        let line = &self.lines[*line];
        match line.queue.iter().position(|entry| entry.nonce == nonce) {
            Some(0) => line.grants.iter().map(|grant| grant.session).collect(),
            Some(place) => vec![line.queue[place - 1].session],
            None => Vec::new(),
        }
    }

    /// When the first lease on a name lapses if it is not renewed.
    pub fn next_deadline(&self, name: &LockName) -> Option<BootInstant> {
        self.line(name)?.grants.iter().map(|grant| grant.deadline).min()
    }

    /// Who holds a name and how many wait.
    pub fn contention(&self, name: &LockName) -> Contention {
        self.line(name).map_or_else(Contention::default, |line| {
            Contention::new(line.grants.iter().map(|grant| grant.holder.clone()).collect(), line.queue.len())
        })
    }

    /// A lock as it stands.
    pub fn state(&self, name: &LockName, now: BootInstant) -> LockState {
        let Some(line) = self.line(name) else {
            return LockState::new(name.clone(), Vec::new(), Vec::new());
        };
        let holder = |grant: &Grant| {
            HolderState::new(
                grant.holder.clone(),
                grant.mode,
                grant.token(),
                now.saturating_since(grant.since),
                grant.deadline.saturating_since(now),
            )
        };
        let waiter = |entry: &Entry| {
            WaiterState::new(entry.holder.clone(), entry.mode, now.saturating_since(entry.at))
        };
        LockState::new(
            name.clone(),
            line.grants.iter().map(holder).collect(),
            line.queue.iter().map(waiter).collect(),
        )
    }

    /// The locks that are held or waited for, a page at a time.
    pub fn list(&self, query: &ListQuery, now: BootInstant) -> Page<LockState> {
        let limit = query.page_size();
        let mut names: Vec<&LockName> = self.by_name.keys().filter(|name| query.asks_for(name)).collect();
        names.sort_unstable();
        let next = (names.len() > limit).then(|| names[limit - 1].clone());
        Page::new(names.into_iter().take(limit).map(|name| self.state(name, now)).collect(), next)
    }

    /// A record as it stands.
    pub fn record(&self, key: &RecordKey) -> Option<Record> {
        let record = self.records.get(key)?;
        let (value, token) = record.written.as_ref()?;
        Some(Record::new(value.clone(), record.version, *token))
    }

    /// The records that hold a value, a page at a time.
    pub fn list_records(&self, query: &ListQuery) -> Page<RecordKey> {
        let written = self.records.iter().filter(|(_, record)| record.written.is_some());
        Page::of_records(query, written.map(|(key, _)| key.clone()))
    }

    /// Everything, piece by piece, so that a large table is never there twice.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> {
        let numbers = std::iter::once(Part::Numbers(self.numbers));
        let lines = self.lines.iter().map(|(_, line)| Part::Line(line.clone()));
        let records = self.records.iter().map(|(key, record)| Part::Record(key.clone(), record.clone()));
        numbers.chain(lines).chain(records).map(Piece)
    }

    /// Puts a piece of another table into this one, which began empty.
    pub fn restore(&mut self, Piece(part): Piece) {
        match part {
            Part::Numbers(numbers) => self.numbers = numbers,
            Part::Line(line) => {
                let vacant = self.lines.vacant_entry();
                let id = vacant.key();
                let grants = line.grants.iter().map(|grant| (grant.nonce, grant.session));
                let queue = line.queue.iter().map(|entry| (entry.nonce, entry.session));
                self.attempts.extend(grants.chain(queue).map(|(nonce, session)| (nonce, (id, session))));
                if !line.queue.is_empty() {
                    // A line whose head waits for a number looks like any other; the next commit finds it here.
                    self.short_of_numbers.insert(id);
                }
                self.by_name.insert(line.name.clone(), id);
                vacant.insert(line);
            }
            Part::Record(key, record) => {
                self.record_bytes += record.size();
                self.records.insert(key, record);
            }
        }
    }

    fn line(&self, name: &LockName) -> Option<&Line> {
        self.by_name.get(name).map(|line| &self.lines[*line])
    }

    fn enter(&mut self, entry: Entry, effects: &mut Effects) -> Answer {
        if self.knows(entry.nonce) {
            return if self.grant(entry.nonce).is_some() { Answer::Held } else { Answer::Waiting };
        }
        self.settle_name(&entry.name, entry.at, effects);
        let (nonce, session, at) = (entry.nonce, entry.session, entry.at);
        let known = self.by_name.get(&entry.name).copied();
        let free = known.is_none_or(|line| {
            let line = &self.lines[line];
            line.queue.is_empty() && line.admits(entry.mode)
        });
        if free && self.numbers.next >= self.numbers.durable {
            return Answer::ShortOfNumbers;
        }
        if !free && !entry.waits {
            return Answer::Busy;
        }
        let id = known.unwrap_or_else(|| {
            let id = self.lines.insert(Line::new(entry.name.clone()));
            self.by_name.insert(entry.name.clone(), id);
            id
        });
        let line = &mut self.lines[id];
        if free {
            line.grants.push(self.numbers.grant(entry, at, None));
        } else if line.queue.len() >= WAITERS_MAX {
            return Answer::LineFull;
        } else {
            line.queue.push_back(entry);
        }
        self.attempts.insert(nonce, (id, session));
        if free { Answer::Held } else { Answer::Waiting }
    }

    /// Does something to a lease that lives at `at`.
    fn on_held(
        &mut self,
        nonce: Nonce,
        at: BootInstant,
        effects: &mut Effects,
        change: impl FnOnce(&mut Grant),
    ) -> Answer {
        let Some(id) = self.settle_attempt(nonce, at, effects) else {
            return Answer::NotHeld;
        };
        match self.lines[id].grants.iter_mut().find(|grant| grant.nonce == nonce) {
            Some(grant) => {
                change(grant);
                Answer::Held
            }
            None => Answer::NotHeld,
        }
    }

    fn release(&mut self, nonce: Nonce, at: BootInstant, effects: &mut Effects) -> Answer {
        // A lease that has lapsed is not one to give back, even if nobody has noticed yet.
        let Some(id) = self.settle_attempt(nonce, at, effects) else {
            return Answer::NotHeld;
        };
        let line = &mut self.lines[id];
        let held = line.grants.iter().position(|grant| grant.nonce == nonce);
        if let Some(index) = held {
            line.grants.remove(index);
        } else if let Some(place) = line.queue.iter().position(|entry| entry.nonce == nonce) {
            line.queue.remove(place);
            if let Some(behind) = line.queue.get(place) {
                effects.moved.push(behind.seat());
            }
        }
        self.attempts.remove(&nonce);
        self.pump(id, at, effects);
        if held.is_some() { Answer::Held } else { Answer::NotHeld }
    }

    fn evict(&mut self, name: &LockName, nonce: Nonce, at: BootInstant, effects: &mut Effects) -> Answer {
        self.settle_name(name, at, effects);
        let Some(id) = self.by_name.get(name).copied() else {
            return Answer::NotHeld;
        };
        let grants = &mut self.lines[id].grants;
        let Some(index) = grants.iter().position(|grant| grant.nonce == nonce) else {
            return Answer::NotHeld;
        };
        effects.ended.push(grants.remove(index).seat());
        self.attempts.remove(&nonce);
        self.pump(id, at, effects);
        Answer::Held
    }

    fn bury(&mut self, session: Nonce, at: BootInstant, effects: &mut Effects) {
        let lines: BTreeSet<LineId> =
            self.attempts.extract_if(|_, (_, owner)| *owner == session).map(|(_, (line, _))| line).collect();
        for id in self.by_their_names(lines) {
            let line = &mut self.lines[id];
            line.grants.retain(|grant| grant.session != session);
            // Whoever stood behind a dead one has somebody else in front now.
            let behind = line.queue.iter().zip(line.queue.iter().skip(1));
            effects.moved.extend(
                behind
                    .filter(|(front, back)| front.session == session && back.session != session)
                    .map(|(_, back)| back.seat()),
            );
            line.queue.retain(|entry| entry.session != session);
            self.pump(id, at, effects);
        }
    }

    /// Numbers are given in the order of the names, because every process must give the same ones.
    fn by_their_names(&self, lines: BTreeSet<LineId>) -> Vec<LineId> {
        let mut lines: Vec<LineId> = lines.into_iter().collect();
        lines.sort_unstable_by_key(|line| &self.lines[*line].name);
        lines
    }

    /// Ends what has lapsed on an attempt's line; where it still stands or holds after that.
    fn settle_attempt(&mut self, nonce: Nonce, at: BootInstant, effects: &mut Effects) -> Option<LineId> {
        let &(id, _) = self.attempts.get(&nonce)?;
        let lapsed = self.settle(id, at, effects);
        (!lapsed || self.knows(nonce)).then_some(id)
    }

    fn settle_name(&mut self, name: &LockName, at: BootInstant, effects: &mut Effects) {
        if let Some(id) = self.by_name.get(name) {
            self.settle(*id, at, effects);
        }
    }

    /// Ends what has lapsed on a line, and serves it. Whether anything had.
    fn settle(&mut self, id: LineId, at: BootInstant, effects: &mut Effects) -> bool {
        let line = &mut self.lines[id];
        if line.grants.iter().all(|grant| grant.deadline > at) {
            return false;
        }
        for grant in line.grants.extract_if(.., |grant| grant.deadline <= at) {
            self.attempts.remove(&grant.nonce);
            effects.ended.push(grant.seat());
        }
        self.pump(id, at, effects);
        true
    }

    /// Grants the head of a line for as long as it is compatible with the holders; takes the line away if nobody is left.
    fn pump(&mut self, id: LineId, at: BootInstant, effects: &mut Effects) {
        let line = &mut self.lines[id];
        let before = line.grants.len();
        while let Some(head) = line.queue.front().filter(|head| line.admits(head.mode)) {
            if self.numbers.next >= self.numbers.durable {
                self.short_of_numbers.insert(id);
                break;
            }
            effects.offered.push(head.seat());
            let head = line.queue.pop_front().expect("the head was just seen");
            line.grants.push(self.numbers.grant(head, at, Some(CLAIM_WINDOW)));
        }
        // The new head watched only the one in front of it; where several hold together it must watch them all.
        if line.grants.len() > before
            && line.grants.len() > 1
            && let Some(head) = line.queue.front()
        {
            effects.moved.push(head.seat());
        }
        if line.is_idle() {
            self.short_of_numbers.remove(&id);
            let line = self.lines.remove(id);
            self.by_name.remove(&line.name);
        }
    }

    fn open_record(
        &mut self,
        key: RecordKey,
        token: FencingToken,
        guard: RecordGuard,
        at: BootInstant,
        effects: &mut Effects,
    ) -> Answer {
        self.settle_name(key.lock(), at, effects);
        if let Some(record) = self.records.get(&key)
            && record.guard != guard
        {
            return Answer::Refused(Refusal::OtherGuard(record.guard));
        }
        if let Err(refusal) = self.check_token(&key, token, guard) {
            return Answer::Refused(refusal);
        }
        let new = StoredRecord { guard, mark: token, version: Version(0), written: None };
        self.records.entry(key).or_insert(new).mark = token;
        Answer::Opened
    }

    fn write_record(
        &mut self,
        key: &RecordKey,
        token: FencingToken,
        value: Bytes,
        at: BootInstant,
        effects: &mut Effects,
    ) -> Answer {
        self.settle_name(key.lock(), at, effects);
        if let Err(refusal) = self.check_open(key, token).and_then(|()| Refusal::of_size(&value)) {
            return Answer::Refused(refusal);
        }
        let record = self.records.get_mut(key).expect("it is open");
        let bytes = self.record_bytes - record.size() + value.len();
        if bytes > RECORDS_BYTES_MAX {
            return Answer::Refused(Refusal::StoreFull);
        }
        self.record_bytes = bytes;
        record.version = Version(record.version.0 + 1);
        record.written = Some((value, token));
        Answer::Written(record.version)
    }

    fn remove_record(
        &mut self,
        key: &RecordKey,
        token: FencingToken,
        at: BootInstant,
        effects: &mut Effects,
    ) -> Answer {
        self.settle_name(key.lock(), at, effects);
        if let Err(refusal) = self.check_open(key, token) {
            return Answer::Refused(refusal);
        }
        let is_lowest = self.is_lowest_of_living(key.lock(), token);
        let record = self.records.get_mut(key).expect("it is open");
        self.record_bytes -= record.size();
        record.written = None;
        if is_lowest && record.guard == RecordGuard::LiveLease {
            self.records.remove(key);
        }
        Answer::Removed
    }

    /// Whether no token of a living lease of this lock is below this one: then no mark is needed to refuse one.
    fn is_lowest_of_living(&self, lock: &LockName, token: FencingToken) -> bool {
        let grants = self.line(lock).map_or(&[][..], |line| &line.grants);
        matches!(grants, [grant] if grant.mode == Mode::Exclusive && grant.token() == token)
    }

    /// Whether a token may change what a record holds: it has opened it, and nobody came after it.
    fn check_open(&self, key: &RecordKey, token: FencingToken) -> Result<(), Refusal> {
        let record = self.records.get(key).ok_or(Refusal::NotOpened)?;
        self.check_token(key, token, record.guard)?;
        if record.mark == token { Ok(()) } else { Err(Refusal::NotOpened) }
    }

    /// The fence: first the mark, then the life of the lease, where it is a lease of this table.
    fn check_token(&self, key: &RecordKey, token: FencingToken, guard: RecordGuard) -> Result<(), Refusal> {
        if let Some(record) = self.records.get(key) {
            if record.mark.sequence() == token.sequence() && record.mark.nonce() != token.nonce() {
                return Err(Refusal::Collision(record.mark));
            }
            if token.sequence() < record.mark.sequence() {
                return Err(Refusal::BelowMark(record.mark));
            }
        }
        if guard == RecordGuard::HighWaterMark {
            return Ok(());
        }
        let grants = self.line(key.lock()).map_or(&[][..], |line| &line.grants);
        if grants.iter().any(|grant| grant.number == token.grant() && grant.nonce == token.nonce()) {
            return Ok(());
        }
        match grants.iter().find(|grant| grant.number == token.grant()) {
            Some(other) => Err(Refusal::Collision(other.token())),
            None => Err(Refusal::LeaseOver(grants.last().map(Grant::token))),
        }
    }
}

impl Numbers {
    /// The grant of the next number. An offer stands for its window; any other grant for its TTL.
    fn grant(&mut self, entry: Entry, at: BootInstant, window: Option<Duration>) -> Grant {
        let number = self.next;
        self.next += 1;
        let ttl = entry.ttl.as_duration();
        Grant {
            nonce: entry.nonce,
            session: entry.session,
            number,
            mode: entry.mode,
            ttl: entry.ttl,
            deadline: at.saturating_add(window.map_or(ttl, |window| window.min(ttl))),
            since: at,
            holder: entry.holder,
        }
    }
}

impl FromIterator<Piece> for Table {
    fn from_iter<I: IntoIterator<Item = Piece>>(pieces: I) -> Self {
        let mut table = Self::default();
        for piece in pieces {
            table.restore(piece);
        }
        table
    }
}
