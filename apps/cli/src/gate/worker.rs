//! The threads that serve clients.

use std::io;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use ringfence::{
    BoxFuture, FencedStore, FencingToken, ListQuery, Locks, Opened, Page, Record, RecordKey, Result, Version,
};
use tokio::runtime::{self, Handle};
use tokio::sync::oneshot;

use crate::failure::Failure;
use crate::gate::proxy::Upstream;

/// A thread that serves clients, and has connections of its own to the upstream and to the store: what a request needs is done on
/// one processor, where tasks that wake each other wake no other thread. It ends with the program.
pub(crate) struct Worker {
    pub(crate) tasks: Handle,
    pub(crate) upstream: Arc<Upstream>,
    thread: ThreadId,
    locks: Locks,
}

impl Worker {
    /// One for each processor.
    pub(crate) async fn start_all(
        url: &str,
        upstream: &Authority,
        silence: Duration,
    ) -> Result<Vec<Self>, Failure> {
        let mut workers = Vec::new();
        for number in 0..thread::available_parallelism()?.get() {
            workers.push(Self::start(number, url, Upstream::new(upstream.clone(), silence)).await?);
        }
        Ok(workers)
    }

    async fn start(number: usize, url: &str, upstream: Upstream) -> Result<Self, Failure> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (tasks, upstream) = (runtime.handle().clone(), Arc::new(upstream));
        let (url, swept) = (url.to_owned(), Arc::clone(&upstream));
        let (tell, connected) = oneshot::channel();
        let work = move || {
            runtime.block_on(async move {
                // Whoever has given up waiting for it ends the program.
                let _ = tell.send(Locks::connect(&url).await);
                swept.sweep().await;
            });
        };
        let thread = thread::Builder::new().name(format!("gate-{number}")).spawn(work)?.thread().id();
        let locks = connected.await.map_err(io::Error::other)??;
        Ok(Self { tasks, upstream, thread, locks })
    }
}

/// The store of the marks, to which each worker speaks on its own thread.
pub(crate) struct Marks(Vec<(ThreadId, Locks)>);

impl Marks {
    pub(crate) fn of(workers: &[Worker]) -> Self {
        Self(workers.iter().map(|worker| (worker.thread, worker.locks.clone())).collect())
    }

    fn here(&self) -> &dyn FencedStore {
        let here = thread::current().id();
        let (_, locks) = self.0.iter().find(|(thread, _)| *thread == here).unwrap_or(&self.0[0]);
        locks.records()
    }
}

impl FencedStore for Marks {
    fn open<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<Opened>> {
        self.here().open(key, token)
    }

    fn write<'a>(
        &'a self,
        key: &'a RecordKey,
        token: FencingToken,
        value: Bytes,
    ) -> BoxFuture<'a, Result<Version>> {
        self.here().write(key, token, value)
    }

    fn remove<'a>(&'a self, key: &'a RecordKey, token: FencingToken) -> BoxFuture<'a, Result<()>> {
        self.here().remove(key, token)
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<RecordKey>>> {
        self.here().list(query)
    }

    fn read<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Record>>> {
        self.here().read(key)
    }
}
