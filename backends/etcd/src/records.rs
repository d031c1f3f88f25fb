//! The records beside the locks: one transaction writes, if the lease lives and nobody has changed the record since it was read.

use bytes::Bytes;
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, Error, ErrorKind, FencedStore, FencingToken, ListQuery, Mode, Opened, Page, RECORD_VALUE_MAX,
    Record, RecordKey, Result, Version,
};

use crate::backend::{Client, EtcdBackend};
use crate::batch::{RANGE, TXN};
use crate::error;
use crate::keys::Range;
use crate::line::{self, Place};
use crate::ops;
use crate::proto::{KeyValue, RangeRequest, RangeResponse, TxnRequest, TxnResponse};

/// What a record begins with.
const OURS: &[u8] = b"ringfence1 ";

/// How many records a listing reads at a time: 2 MiB at the most.
const LIST_STEP: i64 = 32;

/// How often somebody else may open or write the record between our look and our write, before that is an error.
const TRIES: usize = 64;

/// What is kept under the key of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    mark: FencingToken,
    /// How often it was written.
    version: Version,
    /// Its value, and by whom that was written. `None`: it was opened only, or removed.
    written: Option<(Bytes, FencingToken)>,
}

impl Kept {
    /// A line with the mark, then the version and the last writer as far as there are any, and the value as it is.
    fn encode(&self) -> Vec<u8> {
        let mut bytes = OURS.to_vec();
        bytes.extend(self.mark.to_string().into_bytes());
        if self.version > Version(0) {
            bytes.extend(format!(" {}", self.version.0).into_bytes());
        }
        if let Some((_, by)) = &self.written {
            bytes.extend(format!(" {by}").into_bytes());
        }
        bytes.push(b'\n');
        if let Some((value, _)) = &self.written {
            bytes.extend_from_slice(value);
        }
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(OURS)?;
        let (head, value) = rest.split_at(rest.iter().position(|byte| *byte == b'\n')?);
        let mut words = std::str::from_utf8(head).ok()?.split(' ');
        let mark = words.next()?.parse().ok()?;
        let version = Version(words.next().map_or(Some(0), |version| version.parse().ok())?);
        let by = words.next().map(str::parse).transpose().ok()?;
        let written = by.map(|by| (Bytes::copy_from_slice(&value[1..]), by));
        words.next().is_none().then_some(Self { mark, version, written })
    }

    fn into_record(self) -> Option<Record> {
        let version = self.version;
        self.written.map(|(value, by)| Record::new(value, version, by))
    }
}

/// What is kept, if the token has opened it.
fn opened(kept: Option<Kept>, token: FencingToken) -> Result<Kept, Refusal> {
    kept.filter(|kept| kept.mark == token).ok_or(Refusal::NotOpened)
}

impl Client {
    /// Replaces what is kept by what `change` makes of it, if the fence lets the token pass. `None`: nothing is kept.
    async fn change_record(
        &self,
        key: &RecordKey,
        token: FencingToken,
        change: impl Fn(Option<Kept>, &Place) -> Result<Option<Kept>, Refusal>,
    ) -> Result<Option<Kept>> {
        self.keys.check(key.lock())?;
        let record = self.keys.record(key);
        for _ in 0..TRIES {
            let (kept, changed, place) = self.pass_fence(key, &record, token).await?;
            let kept = change(kept, &place).map_err(|refusal| refusal.into_error(key, token))?;
            let put = |kept: &Kept| ops::put(&record, kept.encode(), 0);
            let txn = TxnRequest {
                compare: vec![ops::created_at(&place.key, place.created), ops::changed_at(&record, changed)],
                success: vec![kept.as_ref().map_or_else(|| ops::delete(&record), put)],
                failure: Vec::new(),
            };
            let answer: TxnResponse = self
                .servers
                .call(TXN, &txn)
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
        let answer: TxnResponse = self.servers.call(TXN, &txn).await.map_err(Error::without_effect)?;
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

    /// Reads the records themselves, because only their values say whether they hold any.
    async fn list_records(&self, query: ListQuery) -> Result<Page<RecordKey>> {
        let Range { mut begin, end } = self.keys.all_records(&query.prefix);
        if let Some(after) = &query.after {
            begin = begin.max(self.keys.records(after).end);
        }
        let mut records = Vec::<RecordKey>::new();
        let mut locks = 0;
        // One lock more than there is room for says whether there is another page.
        while locks <= query.page_size() + 1 {
            let range =
                RangeRequest { limit: LIST_STEP, ..ops::get_range(&Range { begin, end: end.clone() }) };
            let found: RangeResponse = self.servers.call(RANGE, &range).await?;
            for found in &found.kvs {
                let Some(record) = self.keys.record_of(&found.key) else { continue };
                match self.read_kept(&record, found) {
                    Ok(kept) if kept.written.is_none() => {}
                    Ok(_) => {
                        let is_first = records.last().is_none_or(|last| last.lock() != record.lock());
                        locks += usize::from(is_first);
                        records.push(record);
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a record that cannot be read is left out of a listing");
                    }
                }
            }
            match found.kvs.last() {
                Some(last) if found.more => begin = [&last.key[..], &[0]].concat(),
                _ => break,
            }
        }
        Ok(Page::of_records(&query, records))
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
            let raise = |kept: Option<Kept>, _: &Place| {
                let new = Kept { mark: token, version: Version(0), written: None };
                Ok(Some(Kept { mark: token, ..kept.unwrap_or(new) }))
            };
            let kept = self.client.change_record(key, token, raise).await?;
            Ok(Opened::new(kept.and_then(Kept::into_record)))
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
            let write = |kept: Option<Kept>, _: &Place| {
                let version = Version(opened(kept, token)?.version.0 + 1);
                Ok(Some(Kept { mark: token, version, written: Some((value.clone(), token)) }))
            };
            let kept = self.client.change_record(key, token, write).await?;
            Ok(kept.map_or(Version(0), |kept| kept.version))
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let remove = |kept: Option<Kept>, place: &Place| {
                let kept = opened(kept, token)?;
                // Everybody who was in line before one that holds alone has left, so that its first token is the lowest that may
                // still pass, and nothing is left for a mark to refuse.
                let is_lowest = place.mode == Mode::Exclusive && place.token == Some(token);
                Ok((!is_lowest).then_some(Kept { written: None, ..kept }))
            };
            self.client.change_record(key, token, remove).await.map(drop)
        })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(self.client.list_records(query))
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            self.client.keys.check(key.lock())?;
            let range = ops::get(&self.client.keys.record(key));
            let found: RangeResponse = self.client.servers.call(RANGE, &range).await?;
            let kept = found.kvs.first().map(|found| self.client.read_kept(key, found)).transpose()?;
            Ok(kept.and_then(Kept::into_record))
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
            let written = value.map(|value| (value.into(), by));
            let version = Version(if written.is_some() { version.max(1) } else { version });
            let kept = Kept { mark, version, written };
            prop_assert_eq!(Kept::decode(&kept.encode()), Some(kept));
        }

        #[test]
        fn what_is_no_record_is_none(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[0-9a-f. ]{0,40}\n?.*") {
            prop_assert_eq!(Kept::decode(&bytes), None);
            let _ = Kept::decode(&[OURS, text.as_bytes()].concat());
        }
    }
}
