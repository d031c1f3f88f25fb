//! The records beside the locks: one script checks the mark and the life of the lease, in one step with the change.

use bytes::Bytes;
use redis::Value;
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, FencedStore, FencingToken, HANDOVER_BITS, Opened, RECORD_VALUE_MAX, Record, RecordKey, Result,
    Version,
};

use crate::backend::RedisBackend;
use crate::error;
use crate::scripts::{BYTES, RECORD, by_hash, digits, number, parse_nonce, text};

impl RedisBackend {
    async fn fenced(
        &self,
        verb: &str,
        key: &RecordKey,
        token: FencingToken,
        value: Option<&[u8]>,
    ) -> Result<Vec<Value>> {
        let client = &self.client;
        let keys = client.keys.of(key.lock());
        let mut command = by_hash(&RECORD, 3, 8, BYTES + value.map_or(0, <[u8]>::len));
        command.arg(keys.lock()).arg(keys.beside()).arg(client.keys.of_record(key));
        command.arg(verb).arg(digits(token.nonce())).arg(token.grant()).arg(handover(token));
        command.arg(value);
        let reply = client.link.call(&RECORD, &command).await?;
        let odd = || error::odd_reply(&reply, client.link.server());
        let Value::Array(parts) = &reply else { return Err(odd()) };
        let other = || parts.get(1).and_then(text).and_then(parse_token);
        let refusal = match parts.first().and_then(text) {
            Some("ok") => return Ok(parts[1..].to_vec()),
            Some("collision") => Refusal::Collision(other().ok_or_else(odd)?),
            Some("below") => Refusal::BelowMark(other().ok_or_else(odd)?),
            Some("over") => Refusal::LeaseOver(other()),
            Some("unopened") => Refusal::NotOpened,
            _ => return Err(odd()),
        };
        Err(refusal.into_error(key, token))
    }
}

impl FencedStore for RedisBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            let found = self.fenced("open", key, token, None).await?;
            let record = parse_record(&found);
            let odd = || error::odd_reply(&Value::Array(found.clone()), self.client.link.server());
            record.ok_or_else(odd)
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            if value.len() > RECORD_VALUE_MAX {
                return Err(Refusal::ValueTooLarge(value.len()).into_error(key, token));
            }
            let found = self.fenced("write", key, token, Some(&value)).await?;
            let version = found.first().and_then(number);
            let odd = || error::odd_reply(&Value::Array(found.clone()), self.client.link.server());
            Ok(Version(version.ok_or_else(odd)?))
        })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            let mut command = redis::cmd("HMGET");
            command.arg(self.client.keys.of_record(key)).arg("value").arg("version").arg("by");
            let reply = self.client.link.query(&command).await?;
            let record = match &reply {
                Value::Array(found) => parse_record(found),
                _ => None,
            };
            let odd = || error::odd_reply(&reply, self.client.link.server());
            Ok(record.ok_or_else(odd)?.record)
        })
    }
}

/// `None`: that is no record.
fn parse_record(found: &[Value]) -> Option<Opened> {
    match found {
        [] | [Value::Nil, Value::Nil, Value::Nil] => Some(Opened::new(None)),
        [Value::BulkString(value), version, by] => {
            let (version, by) = (Version(number(version)?), parse_token(text(by)?)?);
            Some(Opened::new(Some(Record::new(Bytes::copy_from_slice(value), version, by))))
        }
        _ => None,
    }
}

fn handover(token: FencingToken) -> u64 {
    token.sequence() - (token.grant() << HANDOVER_BITS)
}

/// From `nonce:number:handover`.
fn parse_token(text: &str) -> Option<FencingToken> {
    let mut parts = text.split(':');
    let nonce = parse_nonce(parts.next()?)?;
    let (number, handover): (u64, u64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    FencingToken::new(number.checked_mul(1 << HANDOVER_BITS)?.checked_add(handover)?, nonce).ok()
}
