//! Words about who holds and who waits, for others to read. They are written a moment later, several at a time and apart from the
//! locks: a lock that is given back soon costs no write, and a table that is locked (VACUUM FULL) holds up nobody's lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ringfence_core::{BootInstant, HolderInfo, LockName, Nonce, Result};
use tokio::sync::Notify;

use super::Client;
use crate::patience;
use crate::rows;

/// For how long somebody holds or waits until that is written. Those who look wait for it.
pub(super) const WRITTEN_AFTER: Duration = Duration::from_millis(50);

/// How many are written about in one statement.
const BATCH: usize = 256;

/// What is written about an attempt, whatever becomes of it.
#[derive(Clone, Debug)]
pub(super) struct Words {
    pub(super) name: LockName,
    pub(super) holder: HolderInfo,
}

/// One that waits.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) sign: i64,
    pub(super) key: i64,
    pub(super) shared: bool,
    pub(super) words: Arc<Words>,
    pub(super) since: BootInstant,
}

#[derive(Debug, Default)]
pub(super) struct Journal {
    state: Mutex<State>,
    /// There is something to write where there was nothing.
    wanted: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// What is to be written about, and when.
    due: VecDeque<(BootInstant, Nonce)>,
    waiting: HashMap<Nonce, Waiting>,
    /// What may stand in the table.
    written: HashSet<Nonce>,
    /// What may stand in the table and should not.
    gone: Vec<Nonce>,
}

impl Journal {
    /// Somebody waits from now on.
    pub(super) fn waits(&self, nonce: Nonce, waiting: Waiting) {
        let due = waiting.since.saturating_add(WRITTEN_AFTER);
        let mut state = self.state();
        state.waiting.insert(nonce, waiting);
        self.put(&mut state, due, nonce);
    }

    /// Somebody holds from now on, who may have waited before.
    pub(super) fn grants(&self, nonce: Nonce, now: BootInstant) {
        let mut state = self.state();
        state.waiting.remove(&nonce);
        let is_known = state.written.contains(&nonce);
        let due = if is_known { now } else { now.saturating_add(WRITTEN_AFTER) };
        self.put(&mut state, due, nonce);
    }

    /// Something is different about one that holds.
    pub(super) fn changes(&self, nonce: Nonce, now: BootInstant) {
        self.put(&mut self.state(), now, nonce);
    }

    /// Somebody neither holds nor waits any more.
    pub(super) fn forget(&self, nonce: Nonce) {
        let mut state = self.state();
        state.waiting.remove(&nonce);
        if state.written.remove(&nonce) {
            state.gone.push(nonce);
            self.wanted.notify_one();
        }
    }

    fn put(&self, state: &mut State, due: BootInstant, nonce: Nonce) {
        let is_sooner = state.due.front().is_none_or(|(first, _)| due < *first);
        if is_sooner {
            state.due.push_front((due, nonce));
            self.wanted.notify_one();
        } else {
            state.due.push_back((due, nonce));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes into one statement.
#[derive(Default)]
struct Page {
    gone: Vec<i64>,
    nonces: Vec<i64>,
    signs: Vec<i64>,
    keys: Vec<i64>,
    names: Vec<String>,
    numbers: Vec<Option<i64>>,
    shares: Vec<bool>,
    ages: Vec<i64>,
    holders: Vec<String>,
}

impl Client {
    /// What is to be written now; if nothing is, when.
    fn page(&self) -> std::result::Result<Page, BootInstant> {
        let now = self.now();
        let mut page = Page::default();
        // Locks are taken in this order everywhere.
        let held = self.held();
        let mut state = self.journal.state();
        page.gone = state.gone.drain(..).map(rows::write_nonce).collect();
        while page.nonces.len() < BATCH
            && let Some((_, nonce)) = state.due.pop_front_if(|(due, _)| *due <= now)
        {
            // Due as one that waits and again as one that holds: a statement can write one row once.
            if page.nonces.contains(&rows::write_nonce(nonce)) {
                continue;
            }
            let waiting = state.waiting.get(&nonce);
            let holding = held.leases.get(&nonce);
            let (sign, key, number, shared, since, words) = match (holding, waiting) {
                (Some(holding), _) => (
                    holding.session.sign,
                    holding.key,
                    Some(holding.number),
                    holding.shared,
                    holding.since,
                    &holding.words,
                ),
                (None, Some(waiting)) => {
                    (waiting.sign, waiting.key, None, waiting.shared, waiting.since, &waiting.words)
                }
                (None, None) => continue,
            };
            page.nonces.push(rows::write_nonce(nonce));
            page.signs.push(sign);
            page.keys.push(key);
            page.names.push(words.name.as_str().to_owned());
            page.numbers.push(number);
            page.shares.push(shared);
            page.ages.push(i64::try_from(now.saturating_since(since).as_millis()).unwrap_or(i64::MAX));
            page.holders.push(rows::write_holder(&words.holder));
            state.written.insert(nonce);
        }
        if page.gone.is_empty() && page.nonces.is_empty() {
            return Err(state.due.front().map_or(BootInstant::MAX, |(due, _)| *due));
        }
        Ok(page)
    }

    async fn write(&self, page: &Page) -> Result<()> {
        let Page { gone, nonces, signs, keys, names, numbers, shares, ages, holders } = page;
        let sql = &self.statements.write;
        self.affairs
            .query(sql, &[gone, nonces, signs, keys, names, numbers, shares, ages, holders])
            .await
            .map(drop)
    }

    /// What could not be written is written later, if it is still true.
    fn again(&self, page: &Page) {
        let nonces =
            |bits: &[i64]| -> Vec<Nonce> { bits.iter().filter_map(|bits| rows::read_nonce(*bits)).collect() };
        let now = self.now();
        let mut state = self.journal.state();
        state.gone.extend(nonces(&page.gone));
        state.due.extend(nonces(&page.nonces).into_iter().map(|nonce| (now, nonce)));
    }
}

/// Writes what is to be written, while there is somebody to do so for.
pub(super) async fn keep(client: Weak<Client>) {
    let mut pauses = patience::pauses();
    loop {
        let (wanted, nap) = {
            let Some(client) = client.upgrade() else { return };
            let nap = match client.page() {
                Ok(page) => match client.write(&page).await {
                    Ok(()) => {
                        pauses = patience::pauses();
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "others are not told who holds which lock");
                        client.again(&page);
                        drop(client);
                        tokio::time::sleep(pauses.pause()).await;
                        continue;
                    }
                },
                Err(due) => client.clock.nap(due),
            };
            (Arc::clone(&client.journal.wanted), nap)
        };
        tokio::select! {
            () = wanted.notified() => {}
            () = tokio::time::sleep(nap.unwrap_or_default()) => {}
        }
    }
}
