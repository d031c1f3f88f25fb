//! The records beside the locks: each change of one checks, in the same transaction, that the node of the token's lease is there.

use bytes::{BufMut, Bytes, BytesMut};
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, Error, ErrorKind, FencedStore, FencingToken, HANDOVER_BITS, ListQuery, LockName, Mode, Opened,
    Page, Record, RecordKey, Result, Version,
};

use crate::backend::{Client, ZooKeeperBackend};
use crate::keys::Keys;
use crate::session::{Failure, Session};
use crate::view;
use crate::wire::{self, Code, Data, Kind, Request};

/// How often a change is made anew that another one came before: each time somebody else got on, so it is rare.
const TRIES_MAX: usize = 100;

/// A record as its node holds it: a line for its mark, one for how often it was written and with which token, then the value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    mark: FencingToken,
    version: Version,
    /// `None`: it was opened only, or removed.
    written: Option<(Bytes, FencingToken)>,
}

impl Kept {
    fn write(&self) -> Bytes {
        let mut out = BytesMut::new();
        let by = self.written.as_ref().map_or_else(String::new, |(_, by)| format!(" {by}"));
        out.put_slice(format!("{}\n{}{by}\n", self.mark, self.version.0).as_bytes());
        if let Some((value, _)) = &self.written {
            out.put_slice(value);
        }
        out.freeze()
    }

    /// `None`: that is no record.
    fn read(data: &Bytes) -> Option<Self> {
        let mut rest = data.clone();
        let mut line = || {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = rest.split_to(end);
            drop(rest.split_to(1));
            String::from_utf8(line.into()).ok()
        };
        let mark = line()?.parse().ok()?;
        let written = line()?;
        let (version, by) = match written.split_once(' ') {
            Some((version, by)) => (version, Some(by.parse().ok()?)),
            None if rest.is_empty() => (&*written, None),
            None => return None,
        };
        Some(Self { mark, version: Version(version.parse().ok()?), written: by.map(|by| (rest, by)) })
    }

    fn into_record(self) -> Option<Record> {
        let version = self.version;
        self.written.map(|(value, by)| Record::new(value, version, by))
    }
}

/// The node of a lease.
struct Holder {
    node: String,
    /// Whether it was granted when nobody else held.
    is_alone: bool,
}

/// What is done to a record, by the right of a token.
enum Step {
    Open,
    Write(Bytes),
    Remove,
}

impl Client {
    /// What a record holds as of no earlier than this call, and which version its node has.
    async fn kept(&self, session: &Session, path: &str) -> Result<Option<(Kept, i32)>> {
        let error = |failure| self.error_at(path, failure);
        let synced = session.call(Request::sync(path));
        let asked = session.call(Request::data(path, false));
        synced.answer().await.map_err(error)?;
        let data = match asked.answer().await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(None),
            data => Data::read(data.map_err(error)?).map_err(|_| self.odd())?,
        };
        let kept = Kept::read(&data.bytes).ok_or_else(|| self.not_ours(path))?;
        Ok(Some((kept, data.stat.version)))
    }

    fn not_ours(&self, path: &str) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            "what is kept there is not what Ringfence writes: see who else writes there, then delete the node",
        )
        .about(format_args!("record {path:?}"))
        .about(self.shown())
    }

    /// The node of the lease that has this token. The error says why there is none.
    async fn holder_of(
        &self,
        session: &Session,
        folder: &str,
        token: FencingToken,
    ) -> Result<Result<Holder, Refusal>> {
        let error = |failure| self.error_at(folder, failure);
        let line = match self.line(session, folder).await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(Err(Refusal::LeaseOver(None))),
            line => line.map_err(error)?,
        };
        let Some(place) = line.find(token.nonce()) else { return Ok(Err(Refusal::LeaseOver(None))) };
        let node = format!("{folder}/{}", place.name);
        let data = match session.call(Request::data(&node, false)).answer().await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(Err(Refusal::LeaseOver(None))),
            data => Data::read(data.map_err(error)?).map_err(|_| self.odd())?,
        };
        let is_its = u64::try_from(data.stat.made_by) == Ok(token.grant());
        let holder = Holder { node, is_alone: place.mode == Mode::Exclusive };
        Ok(if is_its { Ok(holder) } else { Err(Refusal::LeaseOver(None)) })
    }

    /// Changes a record by the right of a token, and returns it as it is then.
    async fn change(&self, key: &RecordKey, token: FencingToken, step: Step) -> Result<Option<Record>> {
        let session = self.sessions.any().await?;
        let (folder, path) = (self.keys.lock(key.lock())?, self.keys.record(key));
        let refuse = |refusal: Refusal| refusal.into_error(key, token);
        for _ in 0..TRIES_MAX {
            let found = self.kept(&session, &path).await?;
            if let Some((kept, _)) = &found {
                check_mark(kept.mark, token).map_err(refuse)?;
            }
            let Holder { node, is_alone } =
                self.holder_of(&session, &folder, token).await?.map_err(refuse)?;
            let node_version = found.as_ref().map(|(_, version)| *version);
            let new = Kept { mark: token, version: Version(0), written: None };
            let before = found.map(|(kept, _)| kept);
            let is_open = before.as_ref().is_some_and(|kept| kept.mark == token);
            let before = before.unwrap_or(new);
            let after = match &step {
                Step::Open if is_open => return Ok(before.into_record()),
                Step::Open => Some(Kept { mark: token, ..before }),
                _ if !is_open => return Err(refuse(Refusal::NotOpened)),
                Step::Write(value) => {
                    let version = next(before.version).ok_or_else(|| self.not_ours(&path))?;
                    Some(Kept { mark: token, version, written: Some((value.clone(), token)) })
                }
                // Everybody who was in line before one that holds alone has left, so that its first token is the lowest that may
                // still pass, and nothing is left for a mark to refuse.
                Step::Remove if is_alone && token.grant() << HANDOVER_BITS == token.sequence() => None,
                Step::Remove => Some(Kept { written: None, ..before }),
            };
            let changed = match (&after, node_version) {
                (Some(after), Some(version)) => Request::set_data(&path, &after.write(), version),
                (Some(after), None) => {
                    Request::create(&path, &after.write(), self.keys.access(), Kind::Persistent)
                }
                (None, version) => Request::delete_at(&path, version.expect("it is open, so it is there")),
            };
            let done = session.call(Request::all(&[Request::check(&node), changed])).answer().await;
            let done = done
                .and_then(|answer| Ok(wire::all(answer)?))
                .map_err(|failure| self.error_at(&path, failure))?;
            match done {
                Ok(_) => {
                    if after.is_none() {
                        self.leave_folder(&session, &path).await;
                    }
                    return Ok(after.and_then(Kept::into_record));
                }
                // The lease ended in this moment; if it is over, the next look says so.
                Err((0, Code::NO_NODE) | (_, Code::BAD_VERSION | Code::NODE_EXISTS)) => {}
                Err((_, Code::NO_NODE)) => {
                    let made = self.make_parents(&session, &path, Kind::Persistent).await;
                    made.map_err(|failure| self.error_at(&path, failure))?;
                }
                Err((_, code)) => return Err(self.error_at(&path, Failure::Refused(code))),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("record {key}: too many change it at once: try again"),
        ))
    }
}

/// `None`: nobody writes a record that often.
fn next(version: Version) -> Option<Version> {
    version.0.checked_add(1).map(Version)
}

/// Whether a record with this mark takes the token.
fn check_mark(mark: FencingToken, token: FencingToken) -> Result<(), Refusal> {
    if mark.sequence() == token.sequence() && mark.nonce() != token.nonce() {
        return Err(Refusal::Collision(mark));
    }
    if token.sequence() < mark.sequence() {
        return Err(Refusal::BelowMark(mark));
    }
    Ok(())
}

impl Client {
    /// Takes away the node above the records of a lock, if this was the last one of them. Whoever writes another one makes it
    /// anew, and one that stays behind is in nobody's way.
    async fn leave_folder(&self, session: &Session, record: &str) {
        if let Some((folder, _)) = record.rsplit_once('/') {
            let _ = session.call(Request::delete(folder)).answer().await;
        }
    }

    async fn list_records(&self, query: ListQuery) -> Result<Page<RecordKey>> {
        let session = self.sessions.any().await?;
        let records = self.keys.records();
        let error = |failure| self.error_at(&records, failure);
        let names = view::names(&session, &records, &query).await.map_err(error)?;
        let (mut kept, mut locks) = (Vec::new(), 0);
        for name in names {
            // One more than there is room for says whether there is another page.
            if locks > query.page_size() {
                break;
            }
            let before = kept.len();
            kept.extend(self.records_of(&session, &name).await?);
            locks += usize::from(kept.len() > before);
        }
        Ok(Page::of_records(&query, kept))
    }

    /// The records of a lock that hold a value, in order.
    async fn records_of(&self, session: &Session, lock: &LockName) -> Result<Vec<RecordKey>> {
        let folder = self.keys.records_of(lock);
        let children = match view::children(session, &folder).await {
            Err(failure) if failure.is(Code::NO_AUTH) => {
                tracing::warn!(%lock, "records that we may not look at are left out of a listing");
                Vec::new()
            }
            children => children.map_err(|failure| self.error(failure))?,
        };
        let mut keys: Vec<RecordKey> =
            children.iter().filter_map(|child| Keys::field_of(lock, child)).collect();
        keys.sort_unstable();
        let asked: Vec<_> = keys
            .into_iter()
            .map(|key| {
                let pending = session.call(Request::data(&self.keys.record(&key), false));
                (key, pending)
            })
            .collect();
        let mut records = Vec::new();
        for (key, pending) in asked {
            let data = match pending.answer().await {
                // It is gone meanwhile.
                Err(failure) if failure.is(Code::NO_NODE) => continue,
                Err(failure) if failure.is(Code::NO_AUTH) => {
                    tracing::warn!(%key, "a record that we may not look at is left out of a listing");
                    continue;
                }
                data => Data::read(data.map_err(|failure| self.error(failure))?).map_err(|_| self.odd())?,
            };
            match Kept::read(&data.bytes) {
                None => tracing::warn!(%key, "a record that cannot be read is left out of a listing"),
                Some(kept) if kept.written.is_some() => records.push(key),
                Some(_) => {}
            }
        }
        Ok(records)
    }
}

impl FencedStore for ZooKeeperBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move { Ok(Opened::new(self.client.change(key, token, Step::Open).await?)) })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            Refusal::of_size(&value).map_err(|refusal| refusal.into_error(key, token))?;
            let written = self.client.change(key, token, Step::Write(value)).await?;
            Ok(written.expect("what was written is there").version)
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.client.change(key, token, Step::Remove).await.map(drop) })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(self.client.list_records(query))
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            let session = self.client.sessions.any().await?;
            let kept = self.client.kept(&session, &self.client.keys.record(key)).await?;
            Ok(kept.and_then(|(kept, _)| kept.into_record()))
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

    #[test]
    fn a_version_that_nobody_can_have_written_has_no_next_one() {
        let of = |version: &str| {
            let data =
                format!("{0}\n{version} {0}\n", FencingToken::new(1, Nonce::from_u64(1).unwrap()).unwrap());
            next(Kept::read(&Bytes::from(data)).unwrap().version)
        };
        assert_eq!(of("0"), Some(Version(1)));
        assert_eq!(of("7"), Some(Version(8)));
        assert_eq!(of(&u64::MAX.to_string()), None);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_back(mark in token(), by in token(), version in any::<u64>(), value: Vec<u8>, is_written: bool) {
            let written = is_written.then(|| (value.into(), by));
            let kept = Kept { mark, version: Version(version), written };
            prop_assert_eq!(Kept::read(&kept.write()), Some(kept));
        }

        #[test]
        fn what_anybody_keeps_is_a_record_or_none(data in "[0-9a-f.\n ]{0,40}") {
            let _ = Kept::read(&Bytes::from(data));
        }
    }
}
