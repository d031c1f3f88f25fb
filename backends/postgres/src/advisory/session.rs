//! A session of the server that has locks, or waits for one.
//!
//! A lock belongs to the session that took it, and the server gives a session what it has already, however often it asks, past
//! all who wait. So a session asks for a key once, and it is decided here who else of it may have the key.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringfence_core::{
    BootInstant, BoxFuture, Clock, Coalescer, Effect, Error, ErrorKind, Nonce, Result, Ttl,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::statements::Statements;
use crate::error;
use crate::link::{ANSWER_PATIENCE, Heard, Link, Setting, Sql};
use crate::options::Options;
use crate::rows;

/// How many changes go together. The server makes one after the other, and the first is answered with the last.
const BATCH: usize = 256;

/// One that waits is not given up on for its silence. A server that is gone shows by the keepalive of TCP.
const WITHOUT_END: Duration = Duration::from_hours(24 * 365);

/// How often it is tried to free what a session may have, before the session is ended.
const UNDO_TRIES: usize = 3;

/// How often the server is asked to cancel what it was asked to cancel.
const CANCEL_AGAIN: Duration = Duration::from_millis(200);

/// Begins sessions.
pub(super) struct Sessions {
    pub(super) options: Arc<Options>,
    pub(super) statements: Arc<Statements>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) runtime: Handle,
    /// Is told what sessions hear.
    pub(super) hears: Arc<dyn Fn(i64, Event) + Send + Sync>,
}

/// What a session hears.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// It is over, and everything that it had is lost.
    Ended,
    /// Somebody wants this lease to end.
    Evicted(Nonce),
}

/// A session. Dropping it ends it, and frees what it has.
pub(super) struct Session {
    wire: Wire,
    /// Among those in which somebody waits or has waited.
    _place: Option<OwnedSemaphorePermit>,
    /// Tells it from all other sessions there are or were.
    pub(super) sign: i64,
    pub(super) ttl: Ttl,
    changes: Coalescer<Change, Result<Option<i64>>>,
    grips: Mutex<HashMap<i64, Grip>>,
    /// A grip was settled.
    settled: Notify,
    /// Grants below this number need no reservation: it is on the server's disk.
    reserved: AtomicI64,
    /// When it was last used, in nanoseconds of the boot-time clock.
    used: AtomicU64,
    clock: Arc<dyn Clock>,
    runtime: Handle,
}

/// How a session has a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grip {
    /// The server is asked, or a lock is on its way back.
    Unsettled,
    Alone,
    /// For so many leases.
    Shared(usize),
}

/// A change of what a session has.
#[derive(Clone, Copy, Debug)]
struct Change {
    verb: Verb,
    key: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Take = 0,
    TakeShared = 1,
    Free = 2,
    FreeShared = 3,
    Undo = 4,
}

/// The connection of one session.
#[derive(Clone)]
struct Wire {
    link: Arc<Link>,
    serial: u64,
    is_over: Arc<AtomicBool>,
    statements: Arc<Statements>,
}

impl Sessions {
    /// Begins a session that the server ends when it has heard nothing for this long. 2 round trips, and those of a connection.
    ///
    /// # Cancel safety
    /// Dropped, it ends what it began.
    pub(super) async fn open(&self, ttl: Ttl, place: Option<OwnedSemaphorePermit>) -> Result<Arc<Session>> {
        let sign = rows::write_nonce(Nonce::random());
        let is_over = Arc::<AtomicBool>::default();
        let hears = {
            let (hears, is_over) = (Arc::clone(&self.hears), Arc::clone(&is_over));
            move |heard| match heard {
                Heard::Ended { .. } => {
                    is_over.store(true, Ordering::Release);
                    hears(sign, Event::Ended);
                }
                Heard::Notification { payload, .. } => {
                    let nonce = u64::from_str_radix(&payload, 16).ok().and_then(Nonce::from_u64);
                    // Anybody may say anything on a channel.
                    if let Some(nonce) = nonce {
                        hears(sign, Event::Evicted(nonce));
                    }
                }
            }
        };
        let link = Link::with_settings(Arc::clone(&self.options), self.runtime.clone(), settings(ttl), hears);
        link.connect().await?;
        let Some(open) = link.session() else {
            return Err(broken().without_effect().about(link.shown()));
        };
        if open.is_pooled {
            return Err(pooled().about(link.shown()));
        }
        let wire = Wire { link, serial: open.serial, is_over, statements: Arc::clone(&self.statements) };
        let ttl_ms = i32::try_from(ttl.as_millis()).expect("a TTL is at most a day");
        let begun = wire.ask(ANSWER_PATIENCE, &self.statements.begin, &[&sign, &ttl_ms]).await;
        let rows = begun.map_err(Error::without_effect)?;
        let reserved = wire.number(&rows)?.ok_or_else(|| wire.odd())?;
        let send = {
            let wire = wire.clone();
            move |changes| Box::pin(send_all(wire.clone(), changes)) as BoxFuture<'static, _>
        };
        let adopt = {
            let runtime = self.runtime.clone();
            move |changes| drop(runtime.spawn(changes))
        };
        Ok(Arc::new(Session {
            wire,
            _place: place,
            sign,
            ttl,
            // One at a time, so that the server hears of changes in the order in which they were asked for.
            changes: Coalescer::new(1, BATCH, send, adopt),
            grips: Mutex::default(),
            settled: Notify::new(),
            reserved: AtomicI64::new(reserved),
            used: AtomicU64::new(self.clock.now().as_nanos()),
            clock: Arc::clone(&self.clock),
            runtime: self.runtime.clone(),
        }))
    }
}

/// What the server is to do otherwise in a session of ours. It ends one that is silent for a TTL, by a clock that nobody sets, so
/// that the locks of a process that is stopped or cut off are free then. It does not wait for its disk where we do not need it:
/// what has to be there says so itself.
fn settings(ttl: Ttl) -> Vec<Setting> {
    vec![
        ("idle_session_timeout", ttl.as_millis().to_string()),
        ("synchronous_commit", "off".to_owned()),
        ("statement_timeout", "0".to_owned()),
        ("lock_timeout", "0".to_owned()),
    ]
}

impl Drop for Session {
    fn drop(&mut self) {
        // A statement that is under way for somebody who went away has the link as well.
        self.wire.link.hang_up();
    }
}

/// Of a server that stands behind a pooler.
pub(super) fn pooled() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "advisory locks belong to a session of the server, and a pooler stands between that may give it to somebody else after \
         each transaction: connect to the server itself, or use leases (without recipe=advisory)",
    )
}

pub(super) fn broken() -> Error {
    error::ended("the session with the server is over", None)
}

impl Wire {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Asks the server in this session and in no other. An answer of another one, which the link may have begun meanwhile, is worth
    /// nothing, and what was done there ends with it.
    async fn ask(&self, patience: Duration, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        if self.is_over() {
            return Err(broken().about(self.link.shown()));
        }
        let answer = self.link.query_within(patience, sql, params).await;
        if self.link.session().is_some_and(|open| open.serial == self.serial) {
            return answer;
        }
        self.is_over.store(true, Ordering::Release);
        self.link.hang_up();
        Err(answer.err().unwrap_or_else(|| broken().about(self.link.shown())).with_unknown_effect())
    }

    /// The integer that a statement answers with.
    fn number(&self, rows: &[Row]) -> Result<Option<i64>> {
        rows.first().and_then(|row| row.try_get(0).ok()).ok_or_else(|| self.odd())
    }

    fn odd(&self) -> Error {
        error::odd_answer(self.link.shown())
    }

    async fn change(&self, Change { verb, key }: Change) -> Result<Option<i64>> {
        let sql = match verb {
            Verb::Take => &self.statements.take,
            Verb::TakeShared => &self.statements.take_shared,
            Verb::Free => &self.statements.free,
            Verb::FreeShared => &self.statements.free_shared,
            Verb::Undo => &self.statements.undo,
        };
        self.number(&self.ask(ANSWER_PATIENCE, sql, &[&key]).await?)
    }
}

/// Makes changes in one statement.
async fn send_all(wire: Wire, changes: Vec<Change>) -> Vec<Result<Option<i64>>> {
    if let [change] = &changes[..] {
        return vec![wire.change(*change).await];
    }
    let verbs: Vec<i32> = changes.iter().map(|change| change.verb as i32).collect();
    let keys: Vec<i64> = changes.iter().map(|change| change.key).collect();
    match wire.ask(ANSWER_PATIENCE, &wire.statements.several, &[&verbs, &keys]).await {
        Ok(rows) if rows.len() == changes.len() => {
            rows.iter().map(|row| row.try_get(0).map_err(|_| wire.odd())).collect()
        }
        Ok(_) => changes.iter().map(|_| Err(wire.odd().with_unknown_effect())).collect(),
        // The server undoes much of a statement that fails, but no locks. Nobody knows whose fault it was.
        Err(error) if error.effect() == Effect::None && !wire.is_over() => {
            let mut alone = Vec::with_capacity(changes.len());
            for change in changes {
                let made = async {
                    if matches!(change.verb, Verb::Take | Verb::TakeShared) {
                        wire.change(Change { verb: Verb::Undo, ..change }).await?;
                    }
                    wire.change(change).await
                };
                alone.push(made.await);
            }
            alone
        }
        Err(error) => changes.iter().map(|_| Err(error.clone())).collect(),
    }
}

/// What a session can do for one that wants a key.
pub(super) enum Seized {
    /// It does not have the key. Nobody else of it asks until this is settled.
    Free(Unsettled),
    /// It shares the key, and has it for one lease more.
    Shared(Sharing),
    /// Somebody else of it has the key, or is about to.
    Taken,
}

impl Session {
    pub(super) fn is_over(&self) -> bool {
        self.wire.is_over()
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_idle(&self) -> bool {
        self.grips().is_empty()
    }

    /// When it was last used.
    pub(super) fn used(&self) -> BootInstant {
        BootInstant::from_nanos(self.used.load(Ordering::Relaxed))
    }

    pub(super) fn hang_up(&self) {
        self.wire.is_over.store(true, Ordering::Release);
        self.wire.link.hang_up();
    }

    fn touch(&self) {
        self.used.store(self.clock.now().as_nanos(), Ordering::Relaxed);
    }

    /// Decides who of this session may ask the server for a key.
    ///
    /// # Cancel safety
    /// Dropped, it has changed nothing.
    pub(super) async fn seize(self: &Arc<Self>, key: i64, shared: bool) -> Seized {
        self.touch();
        loop {
            let settled = self.settled.notified();
            match self.grips().entry(key) {
                Entry::Vacant(free) => {
                    free.insert(Grip::Unsettled);
                    return Seized::Free(Unsettled { session: Arc::clone(self), key, is_settled: false });
                }
                Entry::Occupied(mut grip) => match grip.get_mut() {
                    Grip::Shared(leases) if shared => {
                        *leases += 1;
                        return Seized::Shared(Sharing { session: Arc::clone(self), key, is_kept: false });
                    }
                    // It may turn out to be shared.
                    Grip::Unsettled if shared => {}
                    _ => return Seized::Taken,
                },
            }
            settled.await;
        }
    }

    /// Waits for a key in the server's line, however long that takes.
    ///
    /// # Cancel safety
    /// Dropped, the server goes on to wait: then [`Unsettled::clear`] is what is left to do.
    pub(super) async fn wait(&self, key: i64, shared: bool) -> Result<()> {
        self.touch();
        let statements = &self.wire.statements;
        let sql = if shared { &statements.wait_shared } else { &statements.wait };
        self.wire.ask(WITHOUT_END, sql, &[&key]).await.map(drop)
    }

    /// The number of a grant of a lock that it has. 1 round trip, and one grant in 65,536 another one that waits for the disk.
    pub(super) async fn number(&self) -> Result<i64> {
        self.touch();
        let rows = self.wire.ask(ANSWER_PATIENCE, &self.wire.statements.number, &[]).await?;
        let number = self.wire.number(&rows)?.ok_or_else(|| self.wire.odd())?;
        self.confirm(number).await
    }

    /// A number, when it is certain that no later grant has a lower one, whatever becomes of the server.
    async fn confirm(&self, number: i64) -> Result<i64> {
        if number >= self.reserved.load(Ordering::Acquire) {
            let rows = self.wire.ask(ANSWER_PATIENCE, &self.wire.statements.reserve, &[&number]).await?;
            let reserved = self.wire.number(&rows)?.filter(|reserved| *reserved > number);
            self.reserved.fetch_max(reserved.ok_or_else(|| self.wire.odd())?, Ordering::AcqRel);
        }
        Ok(number)
    }

    /// Whether the session lives. 1 round trip.
    pub(super) async fn ping(&self) -> Result<()> {
        self.touch();
        self.wire.ask(ANSWER_PATIENCE, &self.wire.statements.ping, &[]).await.map(drop)
    }

    /// Gives a key back for one lease; the server hears of it when that was the last one. Whether it had it. At most 1 round trip.
    ///
    /// # Cancel safety
    /// Dropped, it is given back all the same.
    pub(super) async fn free(self: &Arc<Self>, key: i64) -> Result<bool> {
        self.touch();
        let (unsettled, verb) = {
            let mut grips = self.grips();
            let verb = match grips.get_mut(&key) {
                Some(Grip::Shared(leases)) if *leases > 1 => {
                    *leases -= 1;
                    return Ok(true);
                }
                Some(Grip::Shared(_)) => Verb::FreeShared,
                Some(Grip::Alone) => Verb::Free,
                Some(Grip::Unsettled) | None => return Ok(false),
            };
            grips.insert(key, Grip::Unsettled);
            (Unsettled { session: Arc::clone(self), key, is_settled: false }, verb)
        };
        match self.change(verb, key).await {
            Ok(freed) => {
                unsettled.settle(None);
                Ok(freed == Some(1))
            }
            Err(error) => {
                unsettled.undo().await;
                Err(error)
            }
        }
    }

    /// Shares a key that it has alone. 1 round trip.
    ///
    /// # Cancel safety
    /// Dropped, the key is given back.
    pub(super) async fn downgrade(self: &Arc<Self>, key: i64) -> Result<bool> {
        self.touch();
        let unsettled = {
            let mut grips = self.grips();
            let Some(grip) = grips.get_mut(&key).filter(|grip| **grip == Grip::Alone) else {
                return Ok(false);
            };
            *grip = Grip::Unsettled;
            Unsettled { session: Arc::clone(self), key, is_settled: false }
        };
        let answer = self.wire.ask(ANSWER_PATIENCE, &self.wire.statements.downgrade, &[&key]).await;
        match answer {
            Ok(_) => {
                unsettled.settle(Some(Grip::Shared(1)));
                Ok(true)
            }
            Err(error) => {
                unsettled.undo().await;
                Err(error)
            }
        }
    }

    async fn change(&self, verb: Verb, key: i64) -> Result<Option<i64>> {
        let made = self.changes.request(Change { verb, key }).await;
        made.unwrap_or_else(|| Err(error::shutting_down()))
    }

    /// Frees a key, however the session has it: after all changes that were asked for before, whatever became of them. A session
    /// that cannot even do that is ended, which frees it too.
    async fn undo(&self, key: i64) {
        for _ in 0..UNDO_TRIES {
            match self.change(Verb::Undo, key).await {
                // A cancel that was meant for what came before.
                Err(_) if !self.is_over() => {}
                _ => return,
            }
        }
        tracing::warn!("a session with the server is ended, because nobody knows which locks it has");
        self.hang_up();
    }

    fn grips(&self) -> MutexGuard<'_, HashMap<i64, Grip>> {
        self.grips.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("ttl", &self.ttl)
            .field("grips", &*self.grips())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").field("server", &self.options.shown).finish_non_exhaustive()
    }
}

/// The right to ask the server for a key in a session. Dropped unsettled, whatever came of it is undone in the background.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) session: Arc<Session>,
    key: i64,
    is_settled: bool,
}

impl Unsettled {
    /// Asks for the key: the number of the grant, if it was free. 1 round trip.
    pub(super) async fn take(&self, shared: bool) -> Result<Option<i64>> {
        let verb = if shared { Verb::TakeShared } else { Verb::Take };
        match self.session.change(verb, self.key).await? {
            Some(number) => self.session.confirm(number).await.map(Some),
            None => Ok(None),
        }
    }

    /// This is how the session has the key from now on.
    pub(super) fn settle(mut self, grip: Option<Grip>) {
        self.is_settled = true;
        match grip {
            Some(grip) => self.session.grips().insert(self.key, grip),
            None => self.session.grips().remove(&self.key),
        };
        self.session.settled.notify_waiters();
    }

    /// Sees to it that the session does not have the key.
    pub(super) async fn undo(self) {
        self.session.undo(self.key).await;
        self.settle(None);
    }

    /// The same while the server may be waiting for the key: has it cancelled, until it has got to the undoing. Whether it did: then
    /// nothing is left. The session is of no use after that, because a cancel that comes late would hit what comes next.
    pub(super) async fn clear(self) -> bool {
        let session = Arc::clone(&self.session);
        let undone = self.undo();
        tokio::pin!(undone);
        loop {
            session.wire.link.cancel();
            if tokio::time::timeout(CANCEL_AGAIN, &mut undone).await.is_ok() {
                break;
            }
        }
        let is_clean = !session.is_over();
        session.hang_up();
        is_clean
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if !self.is_settled {
            let (session, key) = (Arc::clone(&self.session), self.key);
            self.session.runtime.spawn(async move {
                session.undo(key).await;
                // Made when all is done: a runtime that ends drops this task, and what is dropped must not start another one.
                Self { session, key, is_settled: true }.settle(None);
            });
        }
    }
}

/// One lease more on a key that the session shares. Dropped unless kept, it is given back.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) session: Arc<Session>,
    key: i64,
    is_kept: bool,
}

impl Sharing {
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Sharing {
    fn drop(&mut self) {
        if !self.is_kept {
            let (session, key) = (Arc::clone(&self.session), self.key);
            self.session.runtime.spawn(async move { session.free(key).await });
        }
    }
}
