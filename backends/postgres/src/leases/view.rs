//! Locks as they stand, for the person on call.

use std::time::Duration;

use ringfence_core::{FencingToken, HolderState, ListQuery, LockName, LockState, Page, Result, WaiterState};

use super::Client;
use super::calls::Shown;
use crate::{error, rows};

pub(super) async fn inspect(client: &Client, name: &LockName) -> Result<LockState> {
    let shown = client.calls.show(&client.affairs, name.as_str(), name.as_str(), None, 1).await?;
    let shown = shown.into_iter().filter(|shown| shown.name == name.as_str()).collect();
    state(name.clone(), shown).ok_or_else(|| error::odd_answer(client.affairs.shown()))
}

/// One round trip.
pub(super) async fn list(client: &Client, query: &ListQuery) -> Result<Page<LockState>> {
    let limit = query.page_size();
    let after = query.after.as_ref().map(LockName::as_str);
    let from = after.unwrap_or_default().max(&query.prefix);
    // One more than there is room for says whether there is another page.
    let most = i32::try_from(limit + 1).expect("PAGE_MAX is small");
    let mut rows =
        client.calls.show(&client.affairs, from, &query.prefix, after, most).await?.into_iter().peekable();
    let mut locks = Vec::new();
    while let Some(first) = rows.next() {
        let odd = || error::odd_answer(client.affairs.shown());
        let name = LockName::new(&first.name).map_err(|_| odd())?;
        let mut shown = vec![first];
        while let Some(row) = rows.next_if(|row| row.name == name.as_str()) {
            shown.push(row);
        }
        locks.push(state(name, shown).ok_or_else(odd)?);
    }
    let is_more = locks.len() > limit;
    locks.truncate(limit);
    let next = locks.last().filter(|_| is_more).map(|last| last.name.clone());
    Ok(Page::new(locks, next))
}

/// `None`: a row is none of ours.
fn state(name: LockName, rows: Vec<Shown>) -> Option<LockState> {
    let millis = |millis: i64| Duration::from_millis(millis.max(0).cast_unsigned());
    let (mut holders, mut waiters) = (Vec::new(), Vec::new());
    for row in rows {
        let (mode, who) = (rows::read_mode(row.mode).ok()?, rows::read_holder(&row.holder)?);
        if row.holds {
            let nonce = rows::read_nonce(row.nonce)?;
            let token = FencingToken::of_grant(u64::try_from(row.number?).ok()?, nonce).ok()?;
            // It was there when this was read: with less than a millisecond to live it lives.
            let remaining = millis(row.remaining?.max(1));
            holders.push(HolderState::new(who, mode, token, millis(row.age), remaining));
        } else {
            waiters.push(WaiterState::new(who, mode, millis(row.age)));
        }
    }
    Some(LockState::new(name, holders, waiters))
}
