//! The locks of distributed-lock on PostgreSQL as a contender of the benchmark.
#![expect(clippy::disallowed_methods, reason = "a benchmark measures time")]

#[path = "../../../src/contender/mod.rs"]
#[expect(dead_code, reason = "the benchmark uses the rest")]
mod contender;

use std::sync::Arc;

use clap::Parser;
use distributed_lock_core::traits::{DistributedLock as _, LockHandle, LockProvider};
use distributed_lock_postgres::PostgresLockProvider;
use distributed_lock_postgres::handle::PostgresLockHandle;

use contender::Contender;
use contender::client::{LockClient, Servers};

#[derive(Parser)]
struct Options {
    #[command(flatten)]
    contender: Contender,
}

/// Clones share its pool of connections, of which each lock that is held or waited for has one.
#[derive(Clone)]
struct Provider(Arc<PostgresLockProvider>);

impl LockClient for Provider {
    type Held = PostgresLockHandle;

    async fn connect(servers: &Servers) -> Self {
        let url = servers.url_of("postgres://postgres@HOSTS/postgres");
        Self(Arc::new(PostgresLockProvider::new(url).await.expect("a server")))
    }

    async fn acquire(&self, name: &str) -> PostgresLockHandle {
        self.0.create_lock(name).acquire(None).await.expect("a lock")
    }

    async fn release(&self, handle: PostgresLockHandle) -> bool {
        handle.release().await.is_ok()
    }
}

fn main() {
    Options::parse().contender.run_with::<Provider>();
}
