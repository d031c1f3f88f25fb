//! The records beside the locks: one script checks the mark and the life of the lease, in one step with the change.

use bytes::Bytes;
use redis::Value;
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, Error, FencedStore, FencingToken, HANDOVER_BITS, ListQuery, Opened, Page, Record, RecordKey,
    Result, Version,
};

use crate::backend::{Client, RedisBackend};
use crate::error;
use crate::keys;
use crate::scripts::{BYTES, RECORD, by_hash, digits, number, parse_nonce, text};
use crate::view;

impl Client {
    /// Calls the script of a record that is kept in this key, and returns what follows its `ok`. Errors where the record's fence
    /// refuses the token.
    pub(crate) async fn call_record(
        &self,
        verb: &str,
        key: &RecordKey,
        kept_in: &str,
        fenced: Option<Fenced<'_>>,
    ) -> Result<Vec<Value>> {
        let keys = self.keys.of(key.lock());
        let writes = fenced.map_or(&[][..], |fenced| fenced.writes);
        let bytes = writes.iter().map(|written| written.len()).sum::<usize>();
        let mut command = by_hash(&RECORD, 3, 7 + writes.len(), BYTES + bytes);
        command.arg(keys.lock()).arg(keys.beside()).arg(kept_in).arg(verb);
        if let Some(Fenced { token, .. }) = fenced {
            command.arg(digits(token.nonce())).arg(token.grant()).arg(handover(token)).arg(writes);
        }
        let called = self.servers.call(&keys, &RECORD, &command).await;
        let reply = called.map_err(|error| about(kept_in, error))?;
        let odd = || error::odd_reply(&reply, self.servers.shown());
        let Value::Array(parts) = &reply else { return Err(odd()) };
        let other = || parts.get(1).and_then(text).and_then(parse_token);
        let refusal = match (parts.first().and_then(text), fenced) {
            (Some("ok"), _) => return Ok(parts[1..].to_vec()),
            (Some("damaged"), _) => return Err(self.damaged(kept_in)),
            (Some("collision"), Some(_)) => Refusal::Collision(other().ok_or_else(odd)?),
            (Some("below"), Some(_)) => Refusal::BelowMark(other().ok_or_else(odd)?),
            (Some("over"), Some(_)) => Refusal::LeaseOver(other()),
            (Some("unopened"), Some(_)) => Refusal::NotOpened,
            _ => return Err(odd()),
        };
        Err(refusal.into_error(key, fenced.ok_or_else(odd)?.token))
    }

    /// The error of a record that is none.
    pub(crate) fn damaged(&self, kept_in: &str) -> Error {
        about(kept_in, error::damaged(self.servers.shown()))
    }
}

fn about(kept_in: &str, error: Error) -> Error {
    error.about(format_args!("record {kept_in:?}"))
}

/// What goes behind the fence.
#[derive(Clone, Copy)]
pub(crate) struct Fenced<'a> {
    pub(crate) token: FencingToken,
    pub(crate) writes: &'a [&'a [u8]],
}

impl RedisBackend {
    async fn call(&self, verb: &str, key: &RecordKey, fenced: Option<Fenced<'_>>) -> Result<Vec<Value>> {
        self.client.call_record(verb, key, &self.client.keys.of_record(key), fenced).await
    }

    fn damaged(&self, key: &RecordKey) -> Error {
        self.client.damaged(&self.client.keys.of_record(key))
    }
}

impl FencedStore for RedisBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            let found = self.call("open", key, Some(Fenced { token, writes: &[] })).await?;
            parse_record(&found).ok_or_else(|| self.damaged(key))
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            Refusal::of_size(&value).map_err(|refusal| refusal.into_error(key, token))?;
            let found = self.call("write", key, Some(Fenced { token, writes: &[&value] })).await?;
            found.first().and_then(number).map(Version).ok_or_else(|| self.damaged(key))
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.call("remove", key, Some(Fenced { token, writes: &[] })).await.map(drop) })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(async move {
            let records = view::records(&self.client, &query, keys::RECORD).await?;
            view::page_of_records(&query, records, |key| {
                Box::pin(async move {
                    let found = self.call("holds", &key, None).await?;
                    found.first().and_then(number).map(|holds| holds > 0).ok_or_else(|| self.damaged(&key))
                })
            })
            .await
        })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            let found = self.call("read", key, None).await?;
            Ok(parse_record(&found).ok_or_else(|| self.damaged(key))?.record)
        })
    }
}

/// `None`: that is no record.
pub(crate) fn parse_record(found: &[Value]) -> Option<Opened> {
    match found {
        [] | [Value::Nil, ..] => Some(Opened::new(None)),
        [Value::BulkString(value), version, by, ..] => {
            let (version, by) = (Version(number(version)?), parse_token(text(by)?)?);
            Some(Opened::new(Some(Record::new(Bytes::copy_from_slice(value), version, by))))
        }
        _ => None,
    }
}

pub(crate) fn handover(token: FencingToken) -> u64 {
    token.sequence() - (token.grant() << HANDOVER_BITS)
}

/// From `nonce:number:handover`.
pub(crate) fn parse_token(text: &str) -> Option<FencingToken> {
    let mut parts = text.split(':');
    let nonce = parse_nonce(parts.next()?)?;
    let (number, handover): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    FencingToken::new(number.checked_mul(1 << HANDOVER_BITS)?.checked_add(handover)?, nonce).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_core::Nonce;

    use super::*;

    proptest! {
        #[test]
        fn a_token_comes_back(grant in 0_u64..1 << 55, step in 0_u64..256, nonce in 1..=u64::MAX) {
            let nonce = Nonce::from_u64(nonce).unwrap();
            let token = FencingToken::new((grant << HANDOVER_BITS) + step, nonce).unwrap();
            let text = format!("{}:{}:{}", digits(nonce), token.grant(), handover(token));
            prop_assert_eq!(parse_token(&text), Some(token));
        }

        #[test]
        fn what_is_no_token_is_none(text in "[0-9a-fx]{0,17}:?[0-9+-]{0,21}:?[0-9+-]{0,21}:?") {
            if let Some(token) = parse_token(&text) {
                prop_assert!(token.sequence() < 1 << 63);
            }
        }
    }
}
