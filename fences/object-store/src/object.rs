//! One object: opened, written, read.

use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{
    Attributes, Error as StoreError, GetOptions, GetResult, PutMode, PutOptions, UpdateVersion,
};
use ringfence_core::{Backoff, Error, ErrorKind, FencingToken, Nonce, Result};

use crate::VALUE_MAX;
use crate::failure::{explain, is_condition, is_unknown};
use crate::objects::FencedObjects;
use crate::stamp::{SALT_BYTES, Stamp};

/// How often a put is tried whose answer was lost, and an opening where others were quicker.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An object of a store, with a fence. It holds no connection and no state: clones and other processes mean the same object.
///
/// It is guarded by one lock: tokens of several locks would not be in order.
#[derive(Clone, Debug)]
pub struct FencedObject {
    pub(crate) objects: FencedObjects,
    pub(crate) path: Path,
}

/// An object that was opened with a token, as it stands, to be written with that token.
///
/// Dropping it changes nothing: the mark stays raised.
#[derive(Debug)]
#[must_use = "it was opened to be written"]
pub struct OpenObject {
    object: FencedObject,
    token: FencingToken,
    version: UpdateVersion,
    attributes: Attributes,
    written: Option<(FencingToken, Nonce)>,
    value: Option<Bytes>,
}

/// An object as the store has it.
struct Found {
    version: UpdateVersion,
    attributes: Attributes,
    stamp: Option<Stamp>,
    value: Option<Bytes>,
}

/// What became of a put on condition.
enum Put {
    Landed(UpdateVersion),
    /// The condition did not hold; this is what there is, without its value. `None`: nothing is there.
    Overtaken(Option<Found>),
}

impl FencedObject {
    /// Raises the object's mark to this token, durably, then returns what the object holds. From then on whoever opened it
    /// with a lower token can write no more.
    ///
    /// Opening again with the same token returns the object as it stands. Where there is no object, an empty one is created, which counts
    /// as never written. Two round trips, which carry the whole object: it is got, and put again with the new mark; one where it
    /// has the mark already. Where others put at the same time it tries again, eight times at most.
    ///
    /// Errors with [`ErrorKind::Stale`] for a token below the mark, with [`ErrorKind::TokenCollision`] for one that has the mark's
    /// sequence and another nonce, with [`ErrorKind::InvalidRequest`] for an object above [`VALUE_MAX`], with [`ErrorKind::Corrupt`]
    /// for metadata that is not ours, with [`ErrorKind::Unavailable`] where the store does not answer or others do not let us come
    /// through, and with [`ErrorKind::Refused`] where a right is missing.
    ///
    /// # Cancel safety
    /// The mark may have been raised. Opening again is safe against that.
    pub async fn open(&self, token: FencingToken) -> Result<OpenObject> {
        self.try_open(token).await.map_err(|error| error.about(self.shown()))
    }

    async fn try_open(&self, token: FencingToken) -> Result<OpenObject> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        for _ in 0..TRIES {
            let found = self.get(false).await?;
            let (version, attributes, stamp, value) = match found {
                Some(Found { version, attributes, stamp, value }) => {
                    (Some(version), attributes, stamp, value)
                }
                None => (None, Attributes::new(), None, None),
            };
            let is_open = stamp.as_ref().map_or(Ok(false), |stamp| stamp.judge(token))?;
            let written = stamp.and_then(|stamp| stamp.written);
            let object = self.clone();
            if let (true, Some(version)) = (is_open, &version) {
                let version = version.clone();
                return Ok(OpenObject { object, token, version, attributes, written, value });
            }
            let mode = version.map_or(PutMode::Create, PutMode::Update);
            let stamp = Stamp { mark: token, put: Nonce::random(), salt: self.objects.salt, written };
            let content = value.clone().unwrap_or_default();
            if let Put::Landed(version) = self.put(content, &stamp, &attributes, mode).await? {
                return Ok(OpenObject { object, token, version, attributes, written, value });
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("others put it all the time: given up after {TRIES} tries"),
        ))
    }

    /// The value as it stands, for anyone: not for modification, because no mark is raised. `None` if there is no object, or an
    /// empty one that was never written with a token. One round trip.
    ///
    /// Errors as [`Self::open`] does, but for those of tokens.
    pub async fn read(&self) -> Result<Option<Bytes>> {
        let found = self.get(false).await.map_err(|error| error.about(self.shown()))?;
        Ok(found.and_then(|found| found.value))
    }

    fn shown(&self) -> String {
        format!("object {}", self.path)
    }

    /// The object as it is, `None` if there is none. Without its value where only the `head` is asked for.
    async fn get(&self, head: bool) -> Result<Option<Found>> {
        let options = GetOptions { head, ..GetOptions::default() };
        let got = match self.objects.store.get_opts(&self.path, options).await {
            Ok(got) => got,
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(explain(error)),
        };
        let GetResult { meta, attributes, .. } = &got;
        let version = UpdateVersion { e_tag: meta.e_tag.clone(), version: meta.version.clone() };
        let (attributes, stamp) = (attributes.clone(), Stamp::of(attributes)?);
        let was_written = stamp.as_ref().is_some_and(|stamp| stamp.written.is_some());
        let mut value = None;
        if !head {
            if meta.size > (VALUE_MAX + SALT_BYTES) as u64 {
                return Err(too_large(meta.size));
            }
            let stored = got.bytes().await.map_err(explain)?;
            let whole = stamp.as_ref().map_or(Ok(stored.clone()), |stamp| stamp.unseal(stored))?;
            value = (was_written || !whole.is_empty()).then_some(whole);
        }
        Ok(Some(Found { version, attributes, stamp, value }))
    }

    /// Puts a value on condition. An answer that is lost is looked for: the same put once more changes nothing if the first
    /// one has landed, and what is there then says whose it is.
    async fn put(&self, value: Bytes, stamp: &Stamp, attributes: &Attributes, mode: PutMode) -> Result<Put> {
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut lost = None;
        for _ in 0..TRIES {
            let attributes = stamp.on(attributes);
            let options = PutOptions { mode: mode.clone(), attributes, ..PutOptions::default() };
            let payload = stamp.seal(value.clone());
            match self.objects.store.put_opts(&self.path, payload, options).await {
                Ok(done) => return Ok(Put::Landed(done.into())),
                Err(error) if is_condition(&error) => {
                    // The store's own client may have repeated it as well, so that we look in any case.
                    let found = self.get(true).await.map_err(Error::with_unknown_effect)?;
                    let is_own =
                        |found: &Found| found.stamp.as_ref().is_some_and(|seen| seen.put == stamp.put);
                    return Ok(match found {
                        Some(found) if is_own(&found) => Put::Landed(found.version),
                        found => Put::Overtaken(found),
                    });
                }
                Err(error) if is_unknown(&error) => {
                    tracing::debug!(%error, path = %self.path, "a put was not answered and is sent again");
                    lost = Some(error);
                }
                Err(error) => return Err(explain(error)),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
        let error = lost.map_or_else(|| Error::new(ErrorKind::Bug, "no put was tried"), explain);
        Err(error.with_unknown_effect())
    }
}

impl OpenObject {
    /// What the object holds, as it was opened or as it was written last. `None` if it was never written.
    pub fn value(&self) -> Option<&Bytes> {
        self.value.as_ref()
    }

    /// The token with which it was opened.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Replaces the value, durably, if nobody has put the object since it was opened or written by this. One round trip, which carries
    /// the whole value; another one to refuse.
    ///
    /// Where an answer is lost, it is found out what became of the put: it is sent again, eight times at most, with the same
    /// condition, so that it lands once.
    ///
    /// Errors with [`ErrorKind::Stale`] where a higher token has opened it, with [`ErrorKind::TokenCollision`] where one has that has
    /// the same sequence and another nonce, and with [`ErrorKind::NotOpened`] where it was put by somebody with the same token or
    /// without any, or deleted: open it again. These say that their effect is unknown where another write came after, which may
    /// have replaced this one. With [`ErrorKind::InvalidRequest`] for a value above [`VALUE_MAX`], and as [`FencedObject::open`].
    ///
    /// # Cancel safety
    /// The value may have been written, or may yet be. Open the object again to know.
    pub async fn write(&mut self, value: impl Into<Bytes>) -> Result<()> {
        let shown = self.object.shown();
        self.try_write(value.into()).await.map_err(|error| error.about(shown))
    }

    async fn try_write(&mut self, value: Bytes) -> Result<()> {
        if value.len() > VALUE_MAX {
            return Err(too_large(value.len() as u64));
        }
        let put = Nonce::random();
        let written = Some((self.token, put));
        let stamp = Stamp { mark: self.token, put, salt: self.object.objects.salt, written };
        let mode = PutMode::Update(self.version.clone());
        match self.object.put(value.clone(), &stamp, &self.attributes, mode).await? {
            Put::Landed(version) => self.version = version,
            // It landed, and then somebody opened what it left. His version is not ours: the next write is refused.
            Put::Overtaken(Some(Found { stamp: Some(seen), .. })) if seen.written == written => {}
            Put::Overtaken(found) => return Err(self.refusal(found.and_then(|found| found.stamp))),
        }
        (self.written, self.value) = (written, Some(value));
        Ok(())
    }

    /// Why the condition of a write did not hold.
    fn refusal(&self, seen: Option<Stamp>) -> Error {
        const AGAIN: &str = "has put or deleted it since it was opened: open it again";
        let not_opened = |who: &str| Error::new(ErrorKind::NotOpened, format!("{who} {AGAIN}"));
        let Some(seen) = seen else { return not_opened("somebody without the fence").with_unknown_effect() };
        let error = match seen.judge(self.token) {
            Err(error) => error,
            Ok(true) => not_opened("somebody with the same token"),
            Ok(false) => not_opened("somebody without the fence"),
        };
        // What we would have replaced is there still: so we have not.
        if seen.written == self.written { error } else { error.with_unknown_effect() }
    }
}

fn too_large(size: u64) -> Error {
    Error::new(
        ErrorKind::InvalidRequest,
        format!(
            "it has {size} bytes, and a fenced object at most {VALUE_MAX}: keep large data under names of their own, and their name here"
        ),
    )
}
