//! The records beside the locks: each change of one checks, in the same transaction, that the node of the token's lease is there.

use bytes::{BufMut, Bytes, BytesMut};
use ringfence_core::table::Refusal;
use ringfence_core::{
    BoxFuture, Error, ErrorKind, FencedStore, FencingToken, Opened, Record, RecordKey, Result, Version,
};

use crate::backend::{Client, ZooKeeperBackend};
use crate::session::{Failure, Session};
use crate::wire::{self, Code, Data, Kind, Request};

/// How often a change is made anew that another one came before: each time somebody else got on, so it is rare.
const TRIES_MAX: usize = 100;

/// A record as its node holds it: a line for its mark, one for how often it was written and with which token, then the value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kept {
    mark: FencingToken,
    record: Option<Record>,
}

impl Kept {
    fn write(&self) -> Bytes {
        let mut out = BytesMut::new();
        let line = match &self.record {
            None => format!("{}\n0\n", self.mark),
            Some(Record { version, written_with, .. }) => {
                format!("{}\n{} {written_with}\n", self.mark, version.0)
            }
        };
        out.put_slice(line.as_bytes());
        if let Some(record) = &self.record {
            out.put_slice(&record.value);
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
        let record = match written.split_once(' ') {
            None if written == "0" && rest.is_empty() => None,
            None => return None,
            Some((version, by)) => Some(Record::new(rest, Version(version.parse().ok()?), by.parse().ok()?)),
        };
        Some(Self { mark, record })
    }
}

/// What is done to a record, by the right of a token.
enum Step {
    Open,
    Write(Bytes),
}

impl Client {
    /// What a record holds as of no earlier than this call, and which version its node has.
    async fn kept(&self, session: &Session, path: &str) -> Result<Option<(Kept, i32)>> {
        let error = |failure| self.error(failure);
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

    /// The node of the lease that has this token. `None`: there is none. The error is the token that it is a twin of.
    async fn node_of(
        &self,
        session: &Session,
        folder: &str,
        token: FencingToken,
    ) -> Result<Result<String, Refusal>> {
        let error = |failure| self.error(failure);
        let line = match self.line(session, folder).await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(Err(Refusal::LeaseOver(None))),
            line => line.map_err(error)?,
        };
        let Some(place) = line.find(token.nonce()) else { return Ok(Err(Refusal::LeaseOver(None))) };
        let path = format!("{folder}/{}", place.name);
        let data = match session.call(Request::data(&path, false)).answer().await {
            Err(failure) if failure.is(Code::NO_NODE) => return Ok(Err(Refusal::LeaseOver(None))),
            data => Data::read(data.map_err(error)?).map_err(|_| self.odd())?,
        };
        let is_its = u64::try_from(data.stat.made_by) == Ok(token.grant());
        Ok(if is_its { Ok(path) } else { Err(Refusal::LeaseOver(None)) })
    }

    /// Changes a record by the right of a token, and returns it as it is then.
    async fn change(&self, key: &RecordKey, token: FencingToken, step: Step) -> Result<Option<Record>> {
        let session = self.sessions.any().await?;
        let (folder, path) = (self.keys.lock(key.lock())?, self.keys.record(key));
        let refuse = |refusal: Refusal| refusal.into_error(key, token);
        for _ in 0..TRIES_MAX {
            let found = self.kept(&session, &path).await?;
            let mark = found.as_ref().map(|(kept, _)| kept.mark);
            if let Some(mark) = mark {
                check_mark(mark, token).map_err(refuse)?;
            }
            let node = self.node_of(&session, &folder, token).await?.map_err(refuse)?;
            let is_open = mark == Some(token);
            let before = found.as_ref().and_then(|(kept, _)| kept.record.clone());
            let after = match &step {
                Step::Open if is_open => return Ok(before),
                Step::Open => Kept { mark: token, record: before },
                Step::Write(_) if !is_open => return Err(refuse(Refusal::NotOpened)),
                Step::Write(value) => {
                    let version = next_version(before.as_ref()).ok_or_else(|| self.not_ours(&path))?;
                    Kept { mark: token, record: Some(Record::new(value.clone(), version, token)) }
                }
            };
            let data = after.write();
            let changed = match found {
                Some((_, version)) => Request::set_data(&path, &data, version),
                None => Request::create(&path, &data, self.keys.access(), Kind::Persistent),
            };
            let done = session.call(Request::all(&[Request::check(&node), changed])).answer().await;
            let done =
                done.and_then(|answer| Ok(wire::all(answer)?)).map_err(|failure| self.error(failure))?;
            match done {
                Ok(_) => return Ok(after.record),
                // The lease ended in this moment; if it is over, the next look says so.
                Err((0, Code::NO_NODE) | (_, Code::BAD_VERSION | Code::NODE_EXISTS)) => {}
                Err((_, Code::NO_NODE)) => {
                    let made = self.make_parents(&session, &path, Kind::Persistent).await;
                    made.map_err(|failure| self.error(failure))?;
                }
                Err((_, code)) => return Err(self.error(Failure::Refused(code))),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("record {key}: too many change it at once: try again"),
        ))
    }
}

/// `None`: nobody writes a record that often.
fn next_version(before: Option<&Record>) -> Option<Version> {
    before.map_or(0, |record| record.version.0).checked_add(1).map(Version)
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

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            let session = self.client.sessions.any().await?;
            let kept = self.client.kept(&session, &self.client.keys.record(key)).await?;
            Ok(kept.and_then(|(kept, _)| kept.record))
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
            let record = Kept::read(&Bytes::from(data)).unwrap().record;
            next_version(record.as_ref())
        };
        assert_eq!(next_version(None), Some(Version(1)));
        assert_eq!(of("7"), Some(Version(8)));
        assert_eq!(of(&u64::MAX.to_string()), None);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_read_back(mark in token(), by in token(), version in 1..=u64::MAX, value: Vec<u8>, is_written: bool) {
            let record = is_written.then(|| Record::new(value.into(), Version(version), by));
            let kept = Kept { mark, record };
            prop_assert_eq!(Kept::read(&kept.write()), Some(kept));
        }

        #[test]
        fn what_anybody_keeps_is_a_record_or_none(data in "[0-9a-f.\n ]{0,40}") {
            let _ = Kept::read(&Bytes::from(data));
        }
    }
}
