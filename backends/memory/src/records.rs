use bytes::Bytes;
use ringfence_core::table::{Answer, Op};
use ringfence_core::{
    BoxFuture, FencedStore, FencingToken, ListQuery, Opened, Page, Record, RecordGuard, RecordKey, Result,
    Version,
};

use crate::MemoryBackend;

impl FencedStore for MemoryBackend {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        Box::pin(async move {
            self.at_once(|world, at| {
                let guard = RecordGuard::LiveLease;
                match world.apply(Op::Open { key: key.clone(), token, guard, at }) {
                    Answer::Opened => Ok(Opened::new(world.table.record(key))),
                    answer => Err(answer.into_record_error(key, token)),
                }
            })
        })
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        Box::pin(async move {
            match self.apply(|at| Op::Write { key: key.clone(), token, value, at }) {
                Answer::Written(version) => Ok(version),
                answer => Err(answer.into_record_error(key, token)),
            }
        })
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match self.apply(|at| Op::Remove { key: key.clone(), token, at }) {
                Answer::Removed => Ok(()),
                answer => Err(answer.into_record_error(key, token)),
            }
        })
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        Box::pin(async move { Ok(self.at_once(|world, _| world.table.list_records(&query))) })
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        Box::pin(async move { Ok(self.at_once(|world, _| world.table.record(key))) })
    }
}
