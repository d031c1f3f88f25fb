//! Locks as they stand, for people.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{HolderState, ListQuery, LockName, LockState, Page, Result, WaiterState};

use crate::backend::Client;
use crate::batch::RANGE;
use crate::keys::Range;
use crate::line::{self, Place};
use crate::ops;
use crate::proto::{LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, RangeRequest, RangeResponse};

/// How many keys a listing reads at a time.
const STEP: i64 = 1000;

/// What a lease has left of which the server says that it has less than a second.
const SOME: Duration = Duration::from_millis(1);

/// etcd keeps no times, so that nobody knows since when somebody holds or waits.
const NO_AGE: Option<Duration> = None;

/// Everybody in line for a lock, the first one first.
pub(crate) async fn line(client: &Client, name: &LockName) -> Result<Vec<Place>> {
    let range = ops::oldest_first(ops::get_range(&client.keys.line(name)));
    let found: RangeResponse = client.servers.call(RANGE, &range).await?;
    Ok(found.kvs.iter().map(Place::read).collect())
}

pub(crate) async fn inspect(client: &Arc<Client>, name: &LockName) -> Result<LockState> {
    client.keys.check(name)?;
    let lines = BTreeMap::from([(name.clone(), line(client, name).await?)]);
    let mut states = states(client, lines).await?;
    Ok(states.pop().unwrap_or_else(|| LockState::new(name.clone(), Vec::new(), Vec::new())))
}

/// A page of the locks that somebody holds or waits for.
pub(crate) async fn list(client: &Arc<Client>, query: ListQuery) -> Result<Page<LockState>> {
    let limit = query.page_size();
    let Range { mut begin, end } = client.keys.all(&query.prefix);
    let is_ordered = client.keys.are_in_order();
    if is_ordered && let Some(after) = &query.after {
        begin = begin.max(client.keys.line(after).end);
    }
    let mut lines: BTreeMap<LockName, Vec<Place>> = BTreeMap::new();
    loop {
        let range = RangeRequest { limit: STEP, ..ops::get_range(&Range { begin, end: end.clone() }) };
        let found: RangeResponse = client.servers.call(RANGE, &range).await?;
        for key in &found.kvs {
            let Some(name) = client.keys.name_of(&key.key) else { continue };
            let is_meant = name.as_str().starts_with(&query.prefix)
                && query.after.as_ref().is_none_or(|after| name > *after);
            if is_meant {
                lines.entry(name).or_default().push(Place::read(key));
            }
        }
        // A name more than is asked for: all before it are complete.
        let is_enough = is_ordered && lines.len() > limit;
        match found.kvs.last() {
            Some(last) if found.more && !is_enough => begin = [&last.key[..], &[0]].concat(),
            _ => break,
        }
    }
    // Under verbatim keys anything of anybody looks like a lock: only what one of us holds or waits for is one.
    lines.retain(|_, line| is_ordered || line.iter().any(|place| place.ttl.is_some()));
    let is_more = lines.len() > limit;
    let lines: BTreeMap<_, _> = lines.into_iter().take(limit).collect();
    let next = lines.keys().last().filter(|_| is_more).cloned();
    Ok(Page::new(states(client, lines).await?, next))
}

/// The states of locks by who stands in line for them.
async fn states(client: &Arc<Client>, lines: BTreeMap<LockName, Vec<Place>>) -> Result<Vec<LockState>> {
    let mut lines: Vec<(LockName, Vec<Place>)> = lines.into_iter().collect();
    for (_, line) in &mut lines {
        line.sort_by_key(|place| place.created);
    }
    let holders = lines.iter().flat_map(|(_, line)| &line[..line::holding(line)]);
    let leases: HashSet<i64> = holders.map(|place| place.lease).filter(|lease| *lease != 0).collect();
    let asked = client.each(leases.into_iter(), |client, id| async move {
        let question = LeaseTimeToLiveRequest { id };
        let answer: LeaseTimeToLiveResponse =
            client.servers.call("/etcdserverpb.Lease/LeaseTimeToLive", &question).await?;
        // Less than a second is none, and less than none is no lease.
        let left =
            u64::try_from(answer.ttl).map_or(Duration::ZERO, |left| Duration::from_secs(left).max(SOME));
        Ok((id, left))
    });
    let left: HashMap<i64, Duration> = asked.await.into_iter().collect::<Result<_>>()?;
    let state = |(name, line): (LockName, Vec<Place>)| {
        let (holders, waiters) = line.split_at(line::holding(&line));
        let holders = holders.iter().filter_map(|place| {
            // A key without a lease lives until somebody deletes it.
            let left = left.get(&place.lease).copied().unwrap_or(Duration::MAX);
            let left = place.ttl.map_or(left, |ttl| left.min(ttl));
            Some(HolderState::new(place.holder.clone(), place.mode, place.token?, NO_AGE, left))
        });
        let waiters = waiters.iter().map(|place| WaiterState::new(place.holder.clone(), place.mode, NO_AGE));
        LockState::new(name, holders.collect(), waiters.collect())
    };
    Ok(lines.into_iter().map(state).collect())
}
