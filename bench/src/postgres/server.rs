//! The server that the subjects share: PostgreSQL on TCP of this machine, as it is by default, with its data on the disk.

use std::path::PathBuf;

use ringfence_servers::{Postgres, PostgresOptions};
use tokio::runtime::Runtime;

use super::clients::TABLE;

/// For all processes of a case: 17 that wait for advisory locks have up to 18 each. By default it has room for 100.
const CONNECTIONS: &str = "400";

pub(crate) struct Server {
    runtime: Runtime,
    postgres: Postgres,
}

impl Server {
    /// `None`, and said, where PostgreSQL is not installed.
    pub(crate) fn start() -> Option<Self> {
        let runtime = crate::small_runtime();
        let options = PostgresOptions::new().set("max_connections", CONNECTIONS);
        let postgres = runtime.block_on(options.start())?;
        runtime.block_on(postgres.psql(TABLE));
        Some(Self { runtime, postgres })
    }

    pub(crate) fn port(&self) -> u16 {
        self.postgres.port()
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.postgres.program(name)
    }

    pub(super) fn psql(&self, sql: &str) -> String {
        self.runtime.block_on(self.postgres.psql(sql))
    }

    /// Ends what a subject has left behind, and forgets it.
    pub(crate) fn forget(&self) {
        self.runtime.block_on(self.postgres.terminate_backends());
        self.psql("DROP SCHEMA IF EXISTS ringfence CASCADE; TRUNCATE bare, bare_keys; CHECKPOINT");
    }

    /// How many transactions that write have begun.
    pub(super) fn writes(&self) -> usize {
        self.psql("SELECT pg_snapshot_xmax(pg_current_snapshot())").parse().expect("a count")
    }

    /// How many transactions it has finished, as far as its processes have said so, which they do every second.
    pub(super) fn transactions(&self) -> usize {
        const COUNT: &str =
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'";
        self.psql(COUNT).parse().expect("a count")
    }
}
