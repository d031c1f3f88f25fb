use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use ringfence_core::{FencingToken, Opened, Record, RecordKey, Result, Version};

use crate::hall::Hall;

/// One record of the backend's [`FencedStore`](crate::FencedStore): a small value that refuses a stale token.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
/// # let locks = ringfence::Locks::connect("memory:").await?;
/// let guard = locks.lock("stock/7").acquire().await?;
/// let stock = locks.record("stock/7")?;
/// let before = stock.open(guard.token()).await?;            // first the mark, then the value
/// assert!(before.record.is_none());
/// stock.write(guard.token(), "41").await?;
/// assert_eq!(stock.read().await?.unwrap().value, "41");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct RecordHandle {
    hall: Arc<Hall>,
    key: RecordKey,
}

impl RecordHandle {
    pub(crate) fn new(hall: Arc<Hall>, key: RecordKey) -> Self {
        Self { hall, key }
    }

    /// Which record it is.
    pub fn key(&self) -> &RecordKey {
        &self.key
    }

    /// Raises the record's mark to this token, then returns what it holds: before anything is read to be modified. See
    /// [`FencedStore::open`](crate::FencedStore::open). One round trip; two on etcd, and four or five on ZooKeeper.
    pub async fn open(&self, token: FencingToken) -> Result<Opened> {
        self.hall.backend.records().open(&self.key, token).await
    }

    /// Replaces the value. Refused unless this token opened the record and nobody came after it. See
    /// [`FencedStore::write`](crate::FencedStore::write). One round trip; two on etcd, and four or five on ZooKeeper.
    ///
    /// # Cancel safety
    /// The value may have been written or not; the record says which.
    pub async fn write(&self, token: FencingToken, value: impl Into<Bytes>) -> Result<Version> {
        self.hall.backend.records().write(&self.key, token, value.into()).await
    }

    /// Removes the record: its value, and its mark where nobody stale is left whom it would keep out. Refused as a write. See
    /// [`FencedStore::remove`](crate::FencedStore::remove). One round trip; two on etcd, and four or five on ZooKeeper.
    ///
    /// # Cancel safety
    /// It may have been removed or not; the record says which.
    pub async fn remove(&self, token: FencingToken) -> Result<()> {
        self.hall.backend.records().remove(&self.key, token).await
    }

    /// The record as it stands, `None` if it was never written, or removed: for anyone, but not for modification. One round trip.
    pub async fn read(&self) -> Result<Option<Record>> {
        self.hall.backend.records().read(&self.key).await
    }
}

impl fmt::Debug for RecordHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordHandle").field("key", &self.key).finish_non_exhaustive()
    }
}
