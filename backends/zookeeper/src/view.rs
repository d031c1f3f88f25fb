//! A lock as it stands, for those who look.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence_core::{
    BootInstant, ErrorKind, Eviction, FencingToken, HolderState, ListQuery, LockName, LockState, Nonce, Page,
    Result, WaiterState,
};

use crate::backend::Client;
use crate::keys::{Keys, Naming};
use crate::line::{Line, Place};
use crate::place::{Said, Step, another_client};
use crate::session::{Failure, Session};
use crate::walk::{Limits, Walk};
use crate::wire::{self, Code, Data, Request, Stat};

/// What the leader's wall clock shows, roughly: it stamps every node with it, and nothing else tells it. Only ages are counted
/// by it, and only for people to look at.
#[derive(Debug, Default)]
pub(crate) struct ServerTime(Mutex<Option<(i64, BootInstant)>>);

impl ServerTime {
    /// The leader's clock showed this between two instants of ours.
    pub(crate) fn learn(&self, shown_ms: i64, before: BootInstant, after: BootInstant) {
        let middle = before.saturating_add(after.saturating_since(before) / 2);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((shown_ms, middle));
    }

    /// How long ago its clock showed this. Zero where it is not known.
    fn since(&self, shown_ms: i64, now: BootInstant) -> Duration {
        let known = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((then_ms, then)) = known else { return Duration::ZERO };
        let gone_ms = i64::try_from(now.saturating_since(then).as_millis()).unwrap_or(i64::MAX);
        let age_ms = then_ms.saturating_add(gone_ms).saturating_sub(shown_ms);
        Duration::from_millis(u64::try_from(age_ms).unwrap_or(0))
    }

    fn is_known(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A place in line, with what its node holds.
struct Seen {
    place: Place,
    /// `None`: it is another client's.
    said: Option<Said>,
    stat: Stat,
}

/// All who stand in line, and how many of them hold.
async fn look(client: &Client, session: &Session, folder: &str) -> Result<(Vec<Seen>, usize), Failure> {
    let line = match client.line(session, folder).await {
        Err(failure) if failure.is(Code::NO_NODE) => Line::default(),
        line => line?,
    };
    let asked: Vec<_> = line
        .places
        .into_iter()
        .map(|place| {
            let pending = session.call(Request::data(&format!("{folder}/{}", place.name), false));
            (place, pending)
        })
        .collect();
    let mut seen = Vec::with_capacity(asked.len());
    for (place, pending) in asked {
        let data = match pending.answer().await {
            // It has left meanwhile.
            Err(failure) if failure.is(Code::NO_NODE) => continue,
            data => Data::read(data?)?,
        };
        seen.push(Seen { place, said: Said::read(&data.bytes), stat: data.stat });
    }
    let is_downgraded = |seen: &&Seen| seen.said.as_ref().is_some_and(|said| said.step == Step::Shares);
    let downgraded: HashSet<String> =
        seen.iter().filter(is_downgraded).map(|seen| seen.place.name.clone()).collect();
    let line = Line::of_places(seen.iter().map(|seen| seen.place.clone()).collect());
    Ok((seen, line.holders(&downgraded)))
}

pub(crate) async fn inspect(client: &Client, name: &LockName) -> Result<LockState> {
    let session = client.sessions.any().await?;
    if !client.server_time.is_known() {
        learn_the_time(client, &session).await;
    }
    let folder = client.keys.lock(name)?;
    let (seen, holders) =
        look(client, &session, &folder).await.map_err(|failure| client.error_at(&folder, failure))?;
    let now = client.now();
    let mut state = LockState::new(name.clone(), Vec::new(), Vec::new());
    for (at, Seen { place, said, stat }) in seen.into_iter().enumerate() {
        let is_holder = at < holders;
        // One that has waited wrote into its node when it came to hold, and one that has not holds since it is there.
        let since = if is_holder { stat.changed_at } else { stat.made_at };
        let age = client.server_time.since(since, now);
        let is_downgraded = said.as_ref().is_some_and(|said| said.step == Step::Shares);
        let mode = if is_downgraded { ringfence_core::Mode::Shared } else { place.mode };
        // Of another client's session nobody tells how long it is.
        let remaining = said.as_ref().map(|said| at_least_left(said.ttl.as_duration()));
        let holder = said.map_or_else(another_client, |said| said.holder);
        if !is_holder {
            state.waiters.push(WaiterState::new(holder, mode, age));
            continue;
        }
        let number = u64::try_from(stat.made_by).unwrap_or(u64::MAX);
        let token = FencingToken::of_grant(number, place.nonce)?;
        state.holders.push(HolderState::new(holder, mode, token, age, remaining));
    }
    Ok(state)
}

/// What a holder has left at least, whose session is alive: no server tells when it heard of a session last, but it hears of
/// ours three times in each timeout.
fn at_least_left(ttl: Duration) -> Duration {
    ttl * 2 / 3
}

/// Has the leader stamp a node of ours. Where that cannot be done, ages are not known.
async fn learn_the_time(client: &Client, session: &Session) {
    let before = client.now();
    let stamped = session.call(Request::set_data(&client.keys.root(), b"", wire::ANY_VERSION)).answer().await;
    if let Ok(mut stamped) = stamped
        && let Ok(stat) = Stat::read(&mut stamped)
    {
        client.server_time.learn(stat.changed_at, before, client.now());
    }
}

pub(crate) async fn evict(client: &Client, name: &LockName, holder: Nonce) -> Result<Eviction> {
    let session = client.sessions.any().await?;
    let folder = client.keys.lock(name)?;
    let error = |failure| client.error_at(&folder, failure);
    let (seen, holders) = look(client, &session, &folder).await.map_err(error)?;
    let Some(seen) = seen[..holders].iter().find(|seen| seen.place.nonce == holder) else {
        return Ok(Eviction::NotHeld);
    };
    match session.call(Request::delete(&format!("{folder}/{}", seen.place.name))).answer().await {
        Ok(_) => Ok(Eviction::Evicted),
        Err(failure) if failure.is(Code::NO_NODE) => Ok(Eviction::NotHeld),
        Err(failure) => Err(error(failure)),
    }
}

pub(crate) async fn list(client: &Arc<Client>, query: ListQuery) -> Result<Page<LockState>> {
    let session = client.sessions.any().await?;
    let limit = query.page_size();
    let walked = match client.keys.naming() {
        Naming::Encoded => names(&session, &client.keys.locks(), &query).await.map(|names| (names, None)),
        Naming::Verbatim => walk(client, &session, &query, limit).await,
    };
    let (names, rest) = walked.map_err(|failure| client.error_at(&client.keys.locks(), failure))?;
    let mut page = Vec::new();
    let mut names = names.into_iter();
    while page.len() < limit
        && let Some(name) = names.next()
    {
        match inspect(client, &name).await {
            Ok(state) if state.is_free() => {}
            Ok(state) => page.push(state),
            // Somebody else's, who lets nobody look, is no reason to show none.
            Err(error) if error.kind() == ErrorKind::Refused => {
                tracing::warn!(%error, "a lock that we may not look at is left out of a listing");
            }
            Err(error) => return Err(error),
        }
    }
    let next = if names.len() > 0 { page.last().map(|last| last.name.clone()) } else { rest };
    Ok(Page::new(page, next))
}

/// The names that a query asks for, of the locks that have a node below this one, in order.
pub(crate) async fn names(
    session: &Session,
    below: &str,
    query: &ListQuery,
) -> Result<Vec<LockName>, Failure> {
    let children = children(session, below).await?;
    let mut names: Vec<LockName> = children.iter().filter_map(|child| Keys::name_of(child)).collect();
    names.retain(|name| query.asks_for(name));
    names.sort_unstable();
    Ok(names)
}

/// The names of the next locks that have a node and are asked for, and where to go on. Below the path of verbatim names anybody's
/// nodes are, so that each is looked into.
async fn walk(
    client: &Client,
    session: &Session,
    query: &ListQuery,
    limit: usize,
) -> Result<(Vec<LockName>, Option<LockName>), Failure> {
    let locks = client.keys.locks();
    session.call(Request::sync(if locks.is_empty() { "/" } else { &locks })).answer().await?;
    let mut walk = Walk::new(query, limit, Limits::OF_A_PAGE);
    loop {
        let next = walk.next();
        if next.is_empty() {
            return Ok(walk.end());
        }
        let ask = |below: String| {
            let path = if below.is_empty() { locks.clone() } else { format!("{locks}/{below}") };
            let path = if path.is_empty() { "/" } else { &path };
            let pending = session.call(Request::children(path, false));
            (below, pending)
        };
        for (below, pending) in next.into_iter().map(ask).collect::<Vec<_>>() {
            let children = match pending.answer().await {
                // It is gone meanwhile, or not ours to see.
                Err(Failure::Refused(_)) => continue,
                children => wire::children(children?)?,
            };
            let is_lock = !Line::of(&children).places.is_empty();
            let others = children.into_iter().filter(|child| {
                Place::parse(child).is_none() && !(below.is_empty() && Keys::is_reserved(child))
            });
            walk.saw(&below, others, is_lock);
        }
    }
}

pub(crate) async fn children(session: &Session, path: &str) -> Result<Vec<String>, Failure> {
    let synced = session.call(Request::sync(path));
    let listed = session.call(Request::children(path, false));
    synced.answer().await?;
    match listed.answer().await {
        Err(failure) if failure.is(Code::NO_NODE) => Ok(Vec::new()),
        listed => Ok(wire::children(listed?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_counted_by_the_leaders_clock() {
        let at = |seconds: u64| BootInstant::from_nanos(seconds * 1_000_000_000);
        let time = ServerTime::default();
        assert_eq!(time.since(5_000, at(9)), Duration::ZERO);
        time.learn(100_000, at(10), at(12));
        assert_eq!(time.since(100_000, at(13)), Duration::from_secs(2));
        assert_eq!(time.since(90_000, at(11)), Duration::from_secs(10));
        assert_eq!(time.since(200_000, at(13)), Duration::ZERO, "its clock went back");
    }
}
