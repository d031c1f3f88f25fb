//! A store, tried out.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use ringfence_core::{Error, ErrorKind, FencingToken, Nonce, Result};

use crate::failure::{ELSEWHERE, explain, is_condition};
use crate::object::FencedObject;
use crate::stamp::{SALT_BYTES, Stamp};

/// An object store that compares before it writes, so that its objects can be fenced. Clones share it.
#[derive(Clone, Debug)]
pub struct FencedObjects {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// How many bytes are added to a value, so that each put has an ETag of its own.
    pub(crate) salt: usize,
}

impl FencedObjects {
    /// Takes a store, if an object with a name of its own in `folder` shows that it does what a fence needs: keep metadata, create an
    /// object only where there is none, and replace one only if it is still the one that was seen. The object is deleted again. Six
    /// or seven round trips.
    ///
    /// It shows that the store looks at conditions. That it does so in one step with the write, for all at once, is its makers'
    /// word: S3, R2, Azure and GCS give it.
    ///
    /// Errors with [`ErrorKind::Unsupported`] for a store that does not do it, as directories of the local file system
    /// (`object_store` writes neither metadata nor on condition there) and servers that ignore `If-Match`: keep
    /// small values in the records of a backend instead, as `local:/some/dir?fence=mark` does in a directory. With
    /// [`ErrorKind::Refused`] where the right to get or to put is missing, or the bucket, with [`ErrorKind::InvalidRequest`] for a
    /// folder that can be none, and with [`ErrorKind::Unavailable`] where the store does not answer.
    ///
    /// # Cancel safety
    /// The object may stay behind. It is of no use to anybody.
    pub async fn new(store: impl ObjectStore, folder: &str) -> Result<Self> {
        let mut objects = Self { store: Arc::new(store), salt: 0 };
        let about = |error: Error| error.about(format_args!("object store {}", objects.store));
        let folder = Path::parse(folder).map_err(|error| about(explain(error.into())))?;
        let probe = Probe { store: &objects.store, path: folder.join(Nonce::random().to_string()) };
        let tried = probe.needs_salt().await.map_err(about);
        if let Err(error) = objects.store.delete(&probe.path).await {
            tracing::debug!(%error, path = %probe.path, "the object by which a store was tried out stays behind");
        }
        objects.salt = if tried? { SALT_BYTES } else { 0 };
        Ok(objects)
    }

    /// The object of this path, as in `reports/2026.json`, whether it is there or not. An object that was never put by this crate
    /// is as good as any: it has no mark yet.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for what can be no path.
    pub fn object(&self, path: &str) -> Result<FencedObject> {
        let path = Path::parse(path)
            .map_err(|error| explain(error.into()).about(format_args!("object {path:?}")))?;
        Ok(FencedObject { objects: self.clone(), path })
    }
}

impl fmt::Display for FencedObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

/// An object by which a store is tried out.
struct Probe<'a> {
    store: &'a Arc<dyn ObjectStore>,
    path: Path,
}

impl Probe<'_> {
    /// Whether another content is needed for another ETag. Errors where the store is of no use.
    async fn needs_salt(&self) -> Result<bool> {
        let refused = |what: &str| {
            let why = format!("{what}, so that it can refuse no stale write: {ELSEWHERE}");
            Err(Error::new(ErrorKind::Unsupported, why))
        };
        let Ok(first) = self.put("one", 1, PutMode::Create).await? else {
            return refused("it says that an object is there which is not");
        };
        if self.mark().await? != Some(1) {
            return refused("it does not keep the metadata of an object");
        }
        if self.put("one", 2, PutMode::Create).await?.is_ok() {
            return refused("it replaces an object where it was told to create one");
        }
        if self.put("one", 3, PutMode::Update(first.clone())).await?.is_err() {
            return refused("it does not replace an object that is the one which was seen");
        }
        // The object is another one by now. If that is seen where only the metadata is, nothing else has to be.
        if self.put("two", 4, PutMode::Update(first.clone())).await?.is_err() {
            return Ok(false);
        }
        if self.put("three", 5, PutMode::Update(first)).await?.is_ok() {
            return refused("it replaces an object that is not the one which was seen");
        }
        Ok(true)
    }

    /// Puts the object, if the condition holds. The inner error is that it does not.
    async fn put(
        &self,
        content: &'static str,
        mark: u64,
        mode: PutMode,
    ) -> Result<Result<UpdateVersion, ()>> {
        let put = Nonce::random();
        let stamp = Stamp { mark: FencingToken::new(mark, put)?, put, salt: 0, written: None };
        let attributes = stamp.on(&object_store::Attributes::new());
        let options = PutOptions { mode, attributes, ..PutOptions::default() };
        match self.store.put_opts(&self.path, Bytes::from_static(content.as_bytes()).into(), options).await {
            Ok(done) => Ok(Ok(done.into())),
            Err(error) if is_condition(&error) => Ok(Err(())),
            Err(error) => Err(explain(error)),
        }
    }

    async fn mark(&self) -> Result<Option<u64>> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let found = self.store.get_opts(&self.path, options).await.map_err(explain)?;
        Ok(Stamp::of(&found.attributes)?.map(|stamp| stamp.mark.sequence()))
    }
}
