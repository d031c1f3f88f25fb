//! Locks as they stand, for the person on call.

use std::collections::BTreeMap;
use std::time::Duration;

use ringfence_core::{
    Error, ErrorKind, Eviction, FencingToken, HolderInfo, HolderState, ListQuery, LockName, LockState, Mode,
    Nonce, Page, Result, WaiterState,
};

use super::Client;
use super::journal::WRITTEN_AFTER;
use crate::patience;
use crate::{error, rows};

/// How long one that looks waits for words about those who have none yet. Theirs may be a process that is stopped.
const WORDS_PATIENCE: Duration = WRITTEN_AFTER.saturating_mul(20);

/// How long a process may take to end a lease that it is told to end, until its session is ended.
const EVICTION_PATIENCE: Duration = Duration::from_secs(1);

/// Somebody who holds or waits, as the server knows him.
#[derive(Debug)]
pub(super) struct Seen {
    key: i64,
    pid: i32,
    pub(super) held: bool,
    shared: bool,
    waits: Option<i64>,
    /// `None`: the session is none of ours.
    ours: Option<(i64, i32)>,
    nonce: Option<Nonce>,
    pub(super) name: Option<String>,
    number: Option<i64>,
    age: Option<i64>,
    holder: Option<String>,
    application: Option<String>,
    idle: Option<i64>,
}

/// The token of a grant by its number.
pub(super) fn token(number: i64, nonce: Nonce) -> Option<FencingToken> {
    FencingToken::of_grant(u64::try_from(number).ok()?, nonce).ok()
}

/// Everybody at a key, or at all of them. One round trip.
pub(super) async fn look(client: &Client, key: Option<i64>) -> Result<Vec<Seen>> {
    let keys = key.map(|key| vec![key]);
    let rows = client.affairs.query(&client.statements.look, &[&keys]).await?;
    let read = |row: &tokio_postgres::Row| -> Option<Seen> {
        let (sign, ttl): (Option<i64>, Option<i32>) = (row.try_get("sign").ok()?, row.try_get("ttl").ok()?);
        let nonce: Option<i64> = row.try_get("nonce").ok()?;
        Some(Seen {
            key: row.try_get("key").ok()?,
            pid: row.try_get("pid").ok()?,
            held: row.try_get("held").ok()?,
            shared: row.try_get("shared").ok()?,
            waits: row.try_get("waits_ms").ok()?,
            ours: sign.zip(ttl),
            nonce: nonce.and_then(rows::read_nonce),
            name: row.try_get("name").ok()?,
            number: row.try_get("number").ok()?,
            age: row.try_get("age_ms").ok()?,
            holder: row.try_get("holder").ok()?,
            application: row.try_get("application_name").ok()?,
            idle: row.try_get("idle_ms").ok()?,
        })
    };
    rows.iter().map(read).collect::<Option<_>>().ok_or_else(|| error::odd_answer(client.affairs.shown()))
}

/// The same, when there are words about all of ours, or nobody can wait for them any longer.
async fn look_well(client: &Client, key: Option<i64>) -> Result<Vec<Seen>> {
    let ends = client.now().saturating_add(WORDS_PATIENCE);
    let mut pauses = patience::pauses();
    // Those who come meanwhile have their words later still.
    let mut without: Option<Vec<(i64, i32)>> = None;
    loop {
        let seen = look(client, key).await?;
        let is_without = |seen: &&Seen| seen.ours.is_some() && seen.nonce.is_none();
        let now: Vec<(i64, i32)> = seen.iter().filter(is_without).map(|seen| (seen.key, seen.pid)).collect();
        let still = match &without {
            None => now,
            Some(before) => now.into_iter().filter(|seen| before.contains(seen)).collect(),
        };
        if still.is_empty() || client.now() >= ends {
            return Ok(seen);
        }
        without = Some(still);
        tokio::time::sleep(pauses.pause()).await;
    }
}

impl Seen {
    /// What one of ours says of himself.
    pub(super) fn known_holder(&self) -> Option<HolderInfo> {
        rows::read_holder(self.holder.as_deref()?)
    }

    fn who(&self) -> HolderInfo {
        self.known_holder().unwrap_or_else(|| {
            let label = match (&self.application, self.ours) {
                (_, Some(_)) => "a client that has not said who it is",
                (Some(name), None) if !name.is_empty() => name,
                _ => "another client",
            };
            let pid = self.pid.cast_unsigned();
            let host = "unknown (the process is the server's)";
            HolderInfo::new(label, host, pid)
                .unwrap_or_else(|_| HolderInfo::new("another client", host, pid).expect("lawful words"))
        })
    }

    fn mode(&self) -> Mode {
        if self.shared { Mode::Shared } else { Mode::Exclusive }
    }

    /// Of one that is not ours the number is none that was drawn, and the nonce is its process.
    fn token(&self) -> Option<FencingToken> {
        let nonce = self.nonce.or_else(|| Nonce::from_u64(self.pid.cast_unsigned().into()))?;
        token(self.number.unwrap_or(0), nonce)
    }

    /// How long the server goes on to keep the session if it hears nothing of it. A lock that is not ours has no end.
    fn remaining(&self) -> Duration {
        let Some((_, ttl)) = self.ours else { return Duration::MAX };
        let left = i64::from(ttl) - self.idle.unwrap_or(0);
        Duration::from_millis(left.max(1).cast_unsigned())
    }
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(millis.max(0).cast_unsigned())
}

/// `None`: one of them cannot be read.
fn state(name: LockName, seen: &[Seen]) -> Option<LockState> {
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for seen in seen {
        if seen.held {
            let (token, age) = (seen.token()?, seen.age.map(millis));
            holders.push(HolderState::new(seen.who(), seen.mode(), token, age, seen.remaining()));
        } else {
            waiters.push(WaiterState::new(seen.who(), seen.mode(), seen.waits.map(millis)));
        }
    }
    Some(LockState::new(name, holders, waiters))
}

pub(super) async fn inspect(client: &Client, name: &LockName) -> Result<LockState> {
    let seen = look_well(client, Some(client.keys.of(name)?)).await?;
    state(name.clone(), &seen).ok_or_else(|| error::odd_answer(client.affairs.shown()))
}

/// A key that nobody has given a name is no lock of ours.
pub(super) async fn list(client: &Client, query: &ListQuery) -> Result<Page<LockState>> {
    let limit = query.page_size();
    let mut keys: BTreeMap<i64, Vec<Seen>> = BTreeMap::new();
    for seen in look_well(client, None).await? {
        keys.entry(seen.key).or_default().push(seen);
    }
    let mut named: BTreeMap<String, (LockName, Vec<Seen>)> = BTreeMap::new();
    for (key, seen) in keys {
        let said =
            seen.iter().find_map(|seen| seen.name.as_deref()).and_then(|name| LockName::new(name).ok());
        let Some(name) = client.keys.name_of(key).or(said) else { continue };
        let is_asked = name.as_str().starts_with(&query.prefix)
            && query.after.as_ref().is_none_or(|after| name.as_str() > after.as_str());
        if is_asked {
            named.insert(name.as_str().to_owned(), (name, seen));
        }
    }
    let is_more = named.len() > limit;
    let states: Option<Vec<LockState>> =
        named.into_values().take(limit).map(|(name, seen)| state(name, &seen)).collect();
    let items = states.ok_or_else(|| error::odd_answer(client.affairs.shown()))?;
    let next = items.last().filter(|_| is_more).map(|last| last.name.clone());
    Ok(Page::new(items, next))
}

/// Tells the process that holds, which gives the lock back. One that does not has its session ended, with all that it has there.
pub(super) async fn evict(client: &Client, name: &LockName, nonce: Nonce) -> Result<Eviction> {
    let key = client.keys.of(name)?;
    let holds = |seen: &&Seen| seen.held && seen.token().is_some_and(|token| token.nonce() == nonce);
    let seen = look_well(client, Some(key)).await?;
    let Some(holder) = seen.iter().find(holds) else { return Ok(Eviction::NotHeld) };
    let Some((sign, _)) = holder.ours else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{:?} is held by another program: whoever may end that can do so by SELECT pg_terminate_backend({})",
                name.as_str(),
                holder.pid
            ),
        )
        .about(client.affairs.shown()));
    };
    client.affairs.query(&client.statements.evict, &[&sign, &rows::write_nonce(nonce)]).await?;
    let mut ends = client.now().saturating_add(EVICTION_PATIENCE);
    let (mut pauses, mut was_terminated) = (patience::pauses(), false);
    loop {
        if !look(client, Some(key)).await?.iter().any(|seen| holds(&seen)) {
            return Ok(Eviction::Evicted);
        }
        if client.now() >= ends {
            if was_terminated {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!(
                        "the session that holds {:?} does not end, although the server was told to end it",
                        name.as_str()
                    ),
                )
                .with_unknown_effect());
            }
            for row in client.affairs.query(&client.statements.lives, &[&sign]).await? {
                let pid: i32 = row.try_get(0).map_err(|_| error::odd_answer(client.affairs.shown()))?;
                client.affairs.query(&client.statements.terminate, &[&pid]).await?;
            }
            was_terminated = true;
            ends = client.now().saturating_add(EVICTION_PATIENCE);
        }
        tokio::time::sleep(pauses.pause()).await;
    }
}
