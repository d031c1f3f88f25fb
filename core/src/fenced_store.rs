use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::backend::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::{ListQuery, Page};
use crate::name::{LockName, check_text};
use crate::token::FencingToken;

/// The largest value of a record, in bytes: 64 KiB. A record is a small fact, not a file.
pub const RECORD_VALUE_MAX: usize = 64 * 1024;

/// The longest field of a record key, in bytes.
const FIELD_MAX: usize = 64;

/// Names a record: the lock that guards it, and a field.
///
/// A record is guarded by that lock and by no other. A store that keeps the lock as well refuses the tokens of others
/// ([`RecordGuard::LiveLease`](crate::RecordGuard::LiveLease)); one that checks the mark alone takes the caller's word.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecordKey {
    lock: LockName,
    field: String,
}

impl RecordKey {
    /// The field of most records.
    pub const DEFAULT_FIELD: &'static str = "value";

    /// The record of a lock in a field of 1 to 64 bytes without control characters.
    pub fn new(lock: LockName, field: impl Into<String>) -> Result<Self> {
        let field = field.into();
        check_text("a record's field", &field, FIELD_MAX)
            .map_err(|why| Error::new(ErrorKind::InvalidRequest, why))?;
        Ok(Self { lock, field })
    }

    /// The record of a lock in the field [`Self::DEFAULT_FIELD`].
    pub fn of(lock: LockName) -> Self {
        Self { lock, field: Self::DEFAULT_FIELD.to_owned() }
    }

    /// The lock that guards the record.
    pub fn lock(&self) -> &LockName {
        &self.lock
    }

    /// Which record of that lock.
    pub fn field(&self) -> &str {
        &self.field
    }
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.lock, self.field)
    }
}

/// Counts the writes of a record, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version(pub u64);

/// A record as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Its value.
    pub value: Bytes,
    /// How often it was written.
    pub version: Version,
    /// The token it was last written with.
    pub written_with: FencingToken,
}

impl Record {
    /// A record, as a store reports it.
    pub fn new(value: Bytes, version: Version, written_with: FencingToken) -> Self {
        Self { value, version, written_with }
    }
}

/// What [`FencedStore::open`] found: the mark is raised, and this is what there is to modify.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Opened {
    /// The record, `None` if it was never written, or removed.
    pub record: Option<Record>,
}

impl Opened {
    /// What was found behind the raised mark.
    pub fn new(record: Option<Record>) -> Self {
        Self { record }
    }
}

/// Small values behind a fence: a store that refuses a stale token.
///
/// `open` before `write` closes the fence-first gap: until the new holder has touched the resource, the old holder's
/// lower token would still pass a naive check, even after the new holder has read what it is about to modify. So a
/// record is opened (its mark raised, durably) before it is read for modification, and a write with a token that
/// never opened is refused.
pub trait FencedStore: Send + Sync {
    /// Raises the record's mark to this token, durably, then returns what the record holds.
    ///
    /// Idempotent: opening again with the same token returns the record as it stands.
    ///
    /// # Behaviour
    /// - A lower token than the mark is refused with [`ErrorKind::Stale`], and [`Error::mark`] is the mark.
    ///   `[records_refuse_a_stale_open]`
    /// - An equal sequence with another nonce is refused with [`ErrorKind::TokenCollision`].
    ///   `[records_refuse_a_collision]`
    /// - Where `Guarantees::record_guard` says so, a token of another lock is refused.
    ///   `[records_refuse_a_token_of_another_lock]`
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>>;

    /// Replaces the value, durably, and counts the write.
    ///
    /// # Behaviour
    /// - What was written is read back. `[records_keep_what_was_written]`
    /// - A token that did not open is refused with [`ErrorKind::NotOpened`]. `[records_refuse_an_unopened_write]`
    /// - A token that was overtaken is refused with [`ErrorKind::Stale`]. `[records_refuse_a_stale_write]`
    /// - Where `Guarantees::record_guard` says so, the token of a lease that ended is refused even if no successor
    ///   came near the record. `[records_refuse_the_token_of_a_lease_that_ended]`
    /// - A value above [`RECORD_VALUE_MAX`] is refused and nothing is lost. `[records_have_a_limit]`
    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>>;

    /// Removes the record, durably, by the right of a token that opened it, as a write.
    ///
    /// Its value goes, and with it the mark where no token below it could pass any more: where the token is the first of an
    /// exclusive lease, and the lease has to live. Otherwise the mark stays behind without a value, or a stale token could
    /// begin the record anew; the documentation of each backend says when, and what it takes up. Where the mark stays, the
    /// count of the versions goes on; where it goes, it begins at 1 again. Open the record again before it is written anew.
    ///
    /// # Behaviour
    /// - What was removed reads as if it had never been written, and can be opened and written anew.
    ///   `[records_can_be_removed]`
    /// - A token is refused as by `write`, and what was stale before a removal is refused after it.
    ///   `[records_refuse_a_stale_removal]`
    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>>;

    /// The records that hold a value, in the byte order of their locks' names and then of their fields, a page at a time. The
    /// query's limit counts locks: all records of a lock are on one page.
    ///
    /// # Behaviour
    /// - Lists by prefix, in byte order, page by page. `[records_are_listed_by_prefix]`
    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>>;

    /// The record as it stands, for anyone: not for modification, because no mark is raised.
    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>>;
}
