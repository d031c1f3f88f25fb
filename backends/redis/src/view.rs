//! Locks as they stand, for the person on call.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::Value;
use ringfence_core::{
    BoxFuture, ErrorKind, FencingToken, HolderInfo, HolderState, ListQuery, LockName, LockState, Mode, Nonce,
    Page, RecordKey, Result, WaiterState,
};

use crate::backend::Client;
use crate::error;
use crate::scripts::{Change, any_text, number, parse_mode, parse_nonce, text};

/// How many keys the server looks at in one step of a listing.
const SCAN_STEP: usize = 1000;

/// What is left of a lease that somebody else's client took without an end: as good as for ever.
const FOR_EVER_MS: u64 = 1000 * 60 * 60 * 24 * 365 * 100;

/// One that holds or waits, as the script has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its number of microseconds since 1970: of the grant, or of the beginning of the wait in milliseconds.
    pub(crate) number: u64,
    pub(crate) mode: Mode,
    pub(crate) holder: HolderInfo,
    pub(crate) nonce: Option<Nonce>,
}

impl Seen {
    /// From `nonce:number:session:mode:ttl:pid:text`; or from what somebody else's client wrote.
    pub(crate) fn holding(value: &str) -> Option<Self> {
        let (nonce, rest) = value.split_once([':', '+']).unwrap_or((value, ""));
        let nonce = parse_nonce(nonce);
        let is_token = |number| nonce.is_some_and(|nonce| FencingToken::of_grant(number, nonce).is_ok());
        match Self::waiting(rest) {
            Some(ours) if ours.is_ours() && is_token(ours.number) => Some(Self { nonce, ..ours }),
            _ if value.is_empty() => None,
            _ => Some(Self {
                number: 0,
                mode: Mode::Exclusive,
                holder: HolderInfo::new("another client", "unknown", 0).ok()?,
                nonce,
            }),
        }
    }

    /// From `since:session:mode:ttl:pid:text`.
    fn waiting(value: &str) -> Option<Self> {
        let mut parts = value.splitn(6, ':');
        let number = parts.next()?.parse().ok()?;
        let (_session, mode, _ttl) = (parts.next()?, parse_mode(parts.next()?)?, parts.next()?);
        let pid = parts.next()?.parse().ok()?;
        let mut text = parts.next()?.splitn(3, '\n');
        let (label, host, metadata) = (text.next()?, text.next()?, text.next()?);
        let holder =
            HolderInfo::new(label, host, pid).and_then(|holder| holder.with_metadata(metadata)).ok()?;
        Some(Self { number, mode, holder, nonce: None })
    }

    fn is_ours(&self) -> bool {
        self.number != 0
    }
}

pub(crate) async fn inspect(client: &Client, name: &LockName) -> Result<LockState> {
    // The verb looks at everybody, whatever the nonce.
    let nobody = Nonce::from_u64(u64::MAX).expect("not zero");
    let reply = client.change(Change::new(client.keys.of(name), "inspect", nobody)).await?;
    parse_state(name, &reply)
        .ok_or_else(|| error::damaged(client.servers.shown()).about(format_args!("lock {:?}", name.as_str())))
}

fn parse_state(name: &LockName, reply: &Value) -> Option<LockState> {
    let Value::Array(parts) = reply else { return None };
    let [now, Value::Array(held), Value::Array(line)] = &parts[..] else { return None };
    let now = number(now)?;
    let mut holders = Vec::new();
    for pair in held.chunks_exact(2) {
        let seen = Seen::holding(&any_text(&pair[0])?)?;
        let age = seen.is_ours().then(|| Duration::from_micros(now.saturating_sub(seen.number)));
        // The lock was there when this was read: with less than a millisecond to live it lives, and without an end for ever.
        let remaining = number(&pair[1]).map_or(FOR_EVER_MS, |millis| millis.max(1));
        let token = FencingToken::of_grant(seen.number, seen.nonce?).ok()?;
        holders.push(HolderState::new(seen.holder, seen.mode, token, age, Duration::from_millis(remaining)));
    }
    holders.sort_by_key(|holder| holder.token.sequence());
    let waiters = line.iter().filter_map(any_text).filter_map(|seen| Seen::waiting(&seen)).map(|seen| {
        let since = seen.number.saturating_mul(1000);
        WaiterState::new(seen.holder, seen.mode, Duration::from_micros(now.saturating_sub(since)))
    });
    Some(LockState::new(name.clone(), holders, waiters.collect()))
}

/// The names that a listing goes through.
pub(crate) async fn names(client: &Client, query: &ListQuery) -> Result<BTreeSet<LockName>> {
    let name = |key: &str| client.keys.name_of(key).filter(|name| query.asks_for(name));
    // Whatever else there is under such a key is no lock.
    scan(client, &client.keys.pattern(&query.prefix), "string", name).await
}

/// The records of this kind that a listing goes through, those among them that hold nothing.
pub(crate) async fn records(client: &Client, query: &ListQuery, kind: char) -> Result<BTreeSet<RecordKey>> {
    let record = |key: &str| client.keys.record_of(kind, key).filter(|record| query.asks_for(record.lock()));
    scan(client, &client.keys.pattern_of_records(&query.prefix), "hash", record).await
}

/// What is read out of the keys that match a pattern. They are gathered from all keys of the database, because Redis keeps no
/// order of them.
async fn scan<T: Ord>(
    client: &Client,
    pattern: &str,
    kind: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<BTreeSet<T>> {
    let mut found = BTreeSet::new();
    for server in client.servers.all().await? {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_STEP).arg("TYPE").arg(kind);
            let reply = server.query(&scan).await?;
            let odd = || error::odd_reply(&reply, server.server());
            let Value::Array(parts) = &reply else { return Err(odd()) };
            let [next, Value::Array(keys)] = &parts[..] else { return Err(odd()) };
            found.extend(keys.iter().filter_map(text).filter_map(&read));
            text(next).ok_or_else(odd)?.clone_into(&mut cursor);
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(found)
}

/// The page that a listing asks for, of those of these records that hold a value.
pub(crate) async fn page_of_records<'a>(
    query: &ListQuery,
    records: BTreeSet<RecordKey>,
    holds: impl Fn(RecordKey) -> BoxFuture<'a, Result<bool>>,
) -> Result<Page<RecordKey>> {
    let (mut held, mut locks) = (Vec::<RecordKey>::new(), 0);
    for record in records {
        let is_first = held.last().is_none_or(|last| last.lock() != record.lock());
        // One lock more than there is room for says whether there is another page.
        if is_first && locks > query.page_size() {
            break;
        }
        match holds(record.clone()).await {
            Ok(false) => {}
            Ok(true) => {
                locks += usize::from(is_first);
                held.push(record);
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::warn!(%error, "a record that cannot be read is left out of a listing");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Page::of_records(query, held))
}

/// The page that a listing asks for, of these names.
pub(crate) async fn page<'a>(
    query: &ListQuery,
    names: BTreeSet<LockName>,
    inspect: impl Fn(LockName) -> BoxFuture<'a, Result<LockState>>,
) -> Result<Page<LockState>> {
    let limit = query.page_size();
    let mut page = Vec::new();
    let mut names = names.into_iter().peekable();
    while page.len() < limit
        && let Some(name) = names.next()
    {
        let state = match inspect(name).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::warn!(%error, "a lock that cannot be read is left out of a listing");
                continue;
            }
            state => state?,
        };
        // Under verbatim keys any string of anybody looks like a lock: only what one of us holds or waits for is one.
        let is_lock =
            !state.waiters.is_empty() || state.holders.iter().any(|holder| holder.token.grant() != 0);
        if is_lock {
            page.push(state);
        }
    }
    let next = names.peek().and_then(|_| page.last()).map(|last: &LockState| last.name.clone());
    Ok(Page::new(page, next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_one_of_us_wrote_is_read_back() {
        let holder = HolderInfo::new("cron: nightly", "web-1", 42).unwrap().with_metadata("a:b\nc").unwrap();
        let seen =
            Seen::holding("00000000000000ff:1700000000000000:0123:p4:30000:42:cron: nightly\nweb-1\na:b\nc");
        let expected = Seen {
            number: 1_700_000_000_000_000,
            mode: Mode::permit(4).unwrap(),
            holder,
            nonce: Nonce::from_u64(255),
        };
        assert_eq!(seen, Some(expected));
    }

    /// What one of us might write, with parts that nobody of us would.
    fn nearly() -> impl Strategy<Value = String> {
        let parts = (
            "[0-9a-fA-F]{14,18}|0{16}",
            "[:+]",
            "[0-9]{0,21}",
            "[0-9a-f]{0,16}",
            "[xsp][0-9]{0,11}",
            "-?[0-9]{1,11}",
            "[^:]{0,3}(\n[^\n]{0,3}){0,3}",
        );
        parts.prop_map(|(nonce, mark, number, session, mode, pid, text)| {
            format!("{nonce}{mark}{number}:{session}:{mode}:30000:{pid}:{text}")
        })
    }

    proptest! {
        #[test]
        fn what_anybody_wrote_is_a_holder(value in prop_oneof!["\\PC{1,80}", "[0-9a-f:+xsp\n]{1,60}", nearly()]) {
            let seen = Seen::holding(&value).unwrap();
            if seen.is_ours() {
                prop_assert!(FencingToken::of_grant(seen.number, seen.nonce.unwrap()).is_ok());
            } else {
                prop_assert_eq!(seen.holder.label(), "another client");
            }
        }

        #[test]
        fn a_state_of_anything_is_read_without_a_panic(
            holders in prop::collection::vec(prop_oneof!["\\PC{0,40}", nearly()], 0..3),
            left in prop_oneof![Just(Value::Nil), any::<i64>().prop_map(Value::Int)],
            waiters in prop::collection::vec(prop_oneof!["\\PC{0,40}", nearly()], 0..3),
        ) {
            let text = |text: String| Value::BulkString(text.into_bytes());
            let held = holders.into_iter().flat_map(|holder| [text(holder), left.clone()]).collect();
            let line = waiters.into_iter().map(text).collect();
            let reply = Value::Array(vec![Value::Int(1), Value::Array(held), Value::Array(line)]);
            let _ = parse_state(&"orders/42".parse().unwrap(), &reply);
        }
    }
}
