//! What anybody may see of a lock of several nodes: what a quorum of them agrees on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{HolderState, ListQuery, LockName, LockState, Nonce, Page, Result};

use super::{EXAMINE_PATIENCE, PATIENCE_MOST, Redlock, claimable};
use crate::view;

/// What is left of a lease in its last moments: while it is there, it lives.
const LIFE_MIN: Duration = Duration::from_millis(1);

/// Those who hold on as many nodes as have to agree. Who waits stands in no line, and is not seen.
pub(super) async fn inspect(redlock: &Redlock, name: &LockName) -> Result<LockState> {
    let nodes = &redlock.nodes;
    let needed = usize::from(nodes.quorum.needed());
    let name = Arc::new(name.clone());
    // A holder may be on any of the nodes, so all are waited for.
    let mut round = nodes.ask(nodes.every(), PATIENCE_MOST, |node| {
        let name = Arc::clone(&name);
        async move { view::inspect(&node.client, &name).await }
    });
    let mut seen: BTreeMap<Nonce, Vec<HolderState>> = BTreeMap::new();
    let mut failures = Vec::new();
    while let Some((_, answer)) = round.next().await {
        match answer {
            Ok(state) => {
                for holder in state.holders {
                    seen.entry(holder.token.nonce()).or_default().push(holder);
                }
            }
            Err(error) => failures.push(error),
        }
    }
    if failures.len() > nodes.count() - needed {
        return Err(nodes.too_few(needed, failures));
    }
    let mut holders: Vec<HolderState> =
        seen.into_values().filter(|seen| seen.len() >= needed).map(|seen| agreed(seen, needed)).collect();
    holders.sort_by_key(|holder| holder.token.sequence());
    Ok(LockState::new(LockName::clone(&name), holders, Vec::new()))
}

/// What a quorum says of one holder.
fn agreed(mut seen: Vec<HolderState>, needed: usize) -> HolderState {
    // It holds for as long as a quorum keeps it.
    seen.sort_by_key(|holder| std::cmp::Reverse(holder.remaining));
    let mut holder = seen[needed - 1].clone();
    holder.remaining = holder.remaining.map(|remaining| claimable(remaining).max(LIFE_MIN));
    // Its number is from the clock that is furthest ahead: by that one it is as old as it is.
    holder.age = seen.iter().filter_map(|holder| holder.age).max();
    holder
}

pub(super) async fn list(redlock: &Redlock, query: ListQuery) -> Result<Page<LockState>> {
    let asked = Arc::new(query.clone());
    let names = redlock.nodes.ask_quorum(EXAMINE_PATIENCE, |node| {
        let query = Arc::clone(&asked);
        async move { view::names(&node.client, &query).await }
    });
    // Whatever a quorum holds is on one node at least of any other quorum.
    let names: BTreeSet<LockName> = names.await?.into_iter().flatten().collect();
    view::page(&query, names, |name| Box::pin(async move { inspect(redlock, &name).await })).await
}
