//! The records beside the locks: one transaction writes, if the lease lives and nobody has changed the record since it was read.

use bytes::Bytes;
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, Error, ErrorKind, FencedStore, FencingToken, Opened, RECORD_VALUE_MAX, Record, RecordKey,
    Result, Version,
};

use crate::backend::{Client, EtcdBackend};
use crate::batch::{RANGE, TXN};
use crate::error;
use crate::line::{self, Place};
use crate::ops;
use crate::proto::{KeyValue, RangeRequest, RangeResponse, TxnRequest, TxnResponse};

/// What a record begins with.
const OURS: &[u8] = b"ringfence1 ";

/// How often somebody else may open or write the record between our look and our write, before that is an error.
const TRIES: usize = 64;

/// What is kept under the key of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    mark: FencingToken,
    /// Its value, how often it was written and by whom. `None`: it was opened only.
    written: Option<Record>,
}

impl Kept {
    /// A line with the mark, the version and the last writer, and the value as it is.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = OURS.to_vec();
        match &self.written {
            None => bytes.extend(format!("{}\n", self.mark).into_bytes()),
            Some(Record { value, version, written_with, .. }) => {
                bytes.extend(format!("{} {} {written_with}\n", self.mark, version.0).into_bytes());
                bytes.extend_from_slice(value);
            }
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(OURS)?;
        let (head, value) = rest.split_at(rest.iter().position(|byte| *byte == b'\n')?);
        let mut words = std::str::from_utf8(head).ok()?.split(' ');
        let mark = words.next()?.parse().ok()?;
        let written = match (words.next(), words.next()) {
            (None, _) => None,
            (Some(version), Some(by)) => {
                let version = Version(version.parse().ok()?);
                Some(Record::new(Bytes::copy_from_slice(&value[1..]), version, by.parse().ok()?))
            }
            (Some(_), None) => return None,
        };
        words.next().is_none().then_some(Self { mark, written })
    }
}

impl Client {
    /// Replaces what is kept by what `change` makes of it, if the fence lets the token pass.
    async fn change_record(
        &self,
        key: &RecordKey,
        token: FencingToken,
        change: impl Fn(Option<Kept>) -> Result<Kept, Refusal>,
    ) -> Result<Kept> {
        self.keys.check(key.lock())?;
        let record = self.keys.record(key);
        for _ in 0..TRIES {
            let (kept, changed, place) = self.pass_fence(key, &record, token).await?;
            let kept = change(kept).map_err(|refusal| refusal.into_error(key, token))?;
            let txn = TxnRequest {
                compare: vec![ops::created_at(&place.key, place.created), ops::changed_at(&record, changed)],
                success: vec![ops::put(&record, kept.encode(), 0)],
                failure: Vec::new(),
            };
            let answer: TxnResponse = self
                .servers
                .call(TXN, txn)
                .await
                .map_err(|error| error.about(format_args!("record {key}")))?;
            if answer.succeeded {
                return Ok(kept);
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "others change it faster than we can: try again")
            .about(format_args!("record {key}")))
    }

    /// What is kept, when it was changed last, and the place of the token's holder.
    async fn pass_fence(
        &self,
        key: &RecordKey,
        record: &[u8],
        token: FencingToken,
    ) -> Result<(Option<Kept>, i64, Place)> {
        let line = self.keys.line(key.lock());
        let grant = i64::try_from(token.grant()).unwrap_or(i64::MAX);
        let up_to = RangeRequest { max_create_revision: grant, ..ops::get_range(&line) };
        let first = RangeRequest { limit: 1, ..ops::oldest_first(ops::get_range(&line)) };
        let txn = TxnRequest {
            success: vec![
                ops::range(ops::get(record)),
                ops::range(ops::oldest_first(up_to)),
                ops::range(first),
            ],
            ..TxnRequest::default()
        };
        let answer: TxnResponse = self.servers.call(TXN, txn).await.map_err(Error::without_effect)?;
        let odd = || error::odd_answer("a transaction without its parts", self.servers.shown());
        let found = ops::found(&answer, 0).ok_or_else(odd)?.kvs.first();
        let kept = found.map(|found| self.read_kept(key, found)).transpose()?;
        let refused = |refusal: Refusal| Err(refusal.into_error(key, token));
        if let Some(Kept { mark, .. }) = kept {
            if mark.sequence() == token.sequence() && mark.nonce() != token.nonce() {
                return refused(Refusal::Collision(mark));
            }
            if token.sequence() < mark.sequence() {
                return refused(Refusal::BelowMark(mark));
            }
        }
        let ahead: Vec<Place> = ops::found(&answer, 1).ok_or_else(odd)?.kvs.iter().map(Place::read).collect();
        // A token whose grant number is zero asks for all of the line, and finds nobody in it.
        let mut holders = ahead[..line::holding(&ahead)].iter();
        let place = match holders.find(|place| place.created == grant).map(|place| (place, place.token)) {
            Some((place, Some(theirs))) if theirs.nonce() == token.nonce() => place.clone(),
            Some((_, Some(theirs))) => return refused(Refusal::Collision(theirs)),
            _ => {
                let first = ops::found(&answer, 2).ok_or_else(odd)?.kvs.first().map(Place::read);
                return refused(Refusal::LeaseOver(first.and_then(|first| first.token)));
            }
        };
        Ok((kept, found.map_or(0, |found| found.mod_revision), place))
    }

    fn read_kept(&self, key: &RecordKey, found: &KeyValue) -> Result<Kept> {
        Kept::decode(&found.value).ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                "what is kept there is not what Ringfence writes: see who else writes there, then delete the key",
            )
            .about(self.servers.shown())
            .about(format_args!("record {key}"))
        })
    }
}

impl FencedStore for EtcdBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            let raise =
                |kept: Option<Kept>| Ok(Kept { mark: token, written: kept.and_then(|kept| kept.written) });
            Ok(Opened::new(self.client.change_record(key, token, raise).await?.written))
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
            let write = |kept: Option<Kept>| {
                let kept = kept.filter(|kept| kept.mark == token).ok_or(Refusal::NotOpened)?;
                let version = Version(kept.written.map_or(0, |record| record.version.0) + 1);
                Ok(Kept { mark: token, written: Some(Record::new(value.clone(), version, token)) })
            };
            let kept = self.client.change_record(key, token, write).await?;
            Ok(kept.written.map_or(Version(0), |record| record.version))
        })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            self.client.keys.check(key.lock())?;
            let range = ops::get(&self.client.keys.record(key));
            let found: RangeResponse = self.client.servers.call(RANGE, range).await?;
            let kept = found.kvs.first().map(|found| self.client.read_kept(key, found)).transpose()?;
            Ok(kept.and_then(|kept| kept.written))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringfence_core::Nonce;

    use super::*;

    fn token() -> impl Strategy<Value = FencingToken> {
        (0_u64..1 << 63, 1..=u64::MAX).prop_map(|(sequence, nonce)| {
            FencingToken::new(sequence, Nonce::from_u64(nonce).unwrap()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_comes_back(
            mark in token(), by in token(), version in any::<u64>(),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        ) {
            let written = value.map(|value| Record::new(value.into(), Version(version), by));
            let kept = Kept { mark, written };
            prop_assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }

        #[test]
        fn what_is_no_record_is_none(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[0-9a-f. ]{0,40}\n?.*") {
            prop_assert_eq!(Kept::decode(&bytes), None);
            let _ = Kept::decode(&[OURS, text.as_bytes()].concat());
        }
    }
}
