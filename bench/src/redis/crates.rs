//! Other people's crates.

use std::sync::Arc;
use std::time::Duration;

use distributed_lock_core::traits::{DistributedLock as _, LockHandle, LockProvider};
use distributed_lock_redis::{RedisLockHandle, RedisLockProvider};
use rslock::{LockGuard, LockManager};

use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};

fn urls(servers: &[u16]) -> Vec<String> {
    servers.iter().map(|port| format!("redis://127.0.0.1:{port}")).collect()
}

/// rslock, which polls with pauses of a random length up to a limit.
impl LockClient for LockManager {
    type Held = LockGuard;

    async fn connect(servers: &Servers) -> Self {
        let mut manager = Self::new(urls(&servers.ports));
        if let Some(pause) = servers.pause() {
            manager.set_retry(u32::MAX, pause);
        }
        manager
    }

    async fn acquire(&self, name: &str) -> LockGuard {
        Self::acquire(self, name.as_bytes(), TTL).await.expect("a lock")
    }

    async fn release(&self, guard: LockGuard) -> bool {
        guard.release().await;
        true
    }
}

/// distributed-lock, which does not wait: who is refused asks again after a pause.
#[derive(Clone)]
pub(crate) struct DistributedLock {
    provider: Arc<RedisLockProvider>,
    pause: Duration,
}

impl LockClient for DistributedLock {
    type Held = RedisLockHandle;

    async fn connect(servers: &Servers) -> Self {
        let urls = urls(&servers.ports);
        let provider = RedisLockProvider::builder().urls(&urls).build().await.expect("a server");
        Self { provider: Arc::new(provider), pause: servers.pause().unwrap_or_default() }
    }

    async fn acquire(&self, name: &str) -> RedisLockHandle {
        let lock = self.provider.create_lock(name);
        loop {
            if let Some(handle) = lock.try_acquire().await.expect("an answer") {
                return handle;
            }
            tokio::time::sleep(self.pause).await;
        }
    }

    async fn release(&self, handle: RedisLockHandle) -> bool {
        handle.release().await.is_ok()
    }
}

/// Takes locks by rslock and keeps each by a task of its own, as its users do: it extends, and keeps nothing by itself.
pub(crate) async fn keep_by_tasks(servers: &Servers, names: Vec<String>, ttl: Duration) {
    let manager = LockManager::new(urls(&servers.ports));
    for name in names {
        let mut lock = manager.lock(name.as_bytes(), ttl).await.expect("a lock");
        let manager = manager.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(ttl / 3).await;
                lock = manager.extend(&lock, ttl).await.expect("an extension");
            }
        });
    }
}
