//! Other people's crates.

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockGuard, PgPool, PgPoolOptions, Postgres};

use super::LEASES_URL;
use crate::contender::client::{LockClient, Servers};

/// What sqlx's users have, if they say nothing.
const CONNECTIONS: u32 = 10;

/// The advisory lock of sqlx, each held by a connection of a pool.
#[derive(Clone)]
pub(crate) struct Sqlx(PgPool);

impl LockClient for Sqlx {
    type Held = PgAdvisoryLockGuard<PoolConnection<Postgres>>;

    async fn connect(servers: &Servers) -> Self {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
        Self(pool.connect(&servers.url_of(LEASES_URL)).await.expect("a server"))
    }

    async fn acquire(&self, name: &str) -> Self::Held {
        let connection = self.0.acquire().await.expect("a connection");
        PgAdvisoryLock::new(name).acquire(connection).await.expect("a lock")
    }

    async fn release(&self, lock: Self::Held) -> bool {
        lock.release_now().await.is_ok()
    }
}
