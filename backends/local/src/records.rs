//! The records beside the locks: every operation is an entry of the same log, so that its order against grants, expiries
//! and evictions is the log's, and is on disk before it is confirmed.

use bytes::Bytes;
use ringfence_core::table::{Answer, Op, Refusal};
use ringfence_core::{
    BoxFuture, FencedStore, FencingToken, ListQuery, Opened, Page, Record, RecordKey, Result, Version,
};

use crate::backend::{LocalBackend, only};

impl FencedStore for LocalBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            self.store.check_disk()?;
            let (record, position) = self.store.with_log(|state| {
                self.store.check_place(state)?;
                let (guard, at) = (self.guarantees.record_guard, self.store.now());
                // A fence that asks for every request would fill the log, and wait for the disk each time.
                state.log.catch_up()?;
                if state.log.table().is_open(key, token, guard, at) {
                    return Ok((state.log.table().record(key), state.log.position()));
                }
                let open = Op::Open { key: key.clone(), token, guard, at };
                match only(state.log.commit(&[open])?) {
                    Answer::Opened => Ok((state.log.table().record(key), state.log.position())),
                    answer => Err(answer.into_record_error(key, token)),
                }
            })?;
            self.store.sync(position).await?;
            Ok(Opened::new(record))
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            // The table would say the same, but only after the value stood in the log.
            Refusal::of_size(&value).map_err(|refusal| refusal.into_error(key, token))?;
            self.store.check_disk()?;
            let (version, position) = self.store.with_log(|state| {
                self.store.check_place(state)?;
                let write = Op::Write { key: key.clone(), token, value, at: self.store.now() };
                match only(state.log.commit(&[write])?) {
                    Answer::Written(version) => Ok((version, state.log.position())),
                    answer => Err(answer.into_record_error(key, token)),
                }
            })?;
            self.store.sync(position).await?;
            Ok(version)
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.store.check_disk()?;
            let position = self.store.with_log(|state| {
                self.store.check_place(state)?;
                let remove = Op::Remove { key: key.clone(), token, at: self.store.now() };
                match only(state.log.commit(&[remove])?) {
                    Answer::Removed => Ok(state.log.position()),
                    answer => Err(answer.into_record_error(key, token)),
                }
            })?;
            self.store.sync(position).await
        })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(async move {
            self.store.with_log(|state| {
                state.log.catch_up()?;
                Ok(state.log.table().list_records(&query))
            })
        })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move {
            self.store.with_log(|state| {
                state.log.catch_up()?;
                Ok(state.log.table().record(key))
            })
        })
    }
}
