//! A PostgreSQL server keeps the contract, of the oldest version that we test and of the newest, and behind a pooler that lends
//! its connections for a transaction: with clients in one process, in processes of their own, and at the end of a cable.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_patterns::faults::Reach;
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Pgbouncer, Postgres, PostgresOptions, Proxy, Taker, postgres_18};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Leases {
    server: Postgres,
    /// Where the clients connect to.
    url: String,
    port: u16,
    /// What the URL asks for beside.
    parameters: &'static str,
    _pooler: Option<Pgbouncer>,
}

impl Leases {
    fn new(server: Postgres) -> Self {
        Self { url: server.url(), port: server.port(), server, parameters: "", _pooler: None }
    }
}

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(PostgresBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

/// What picks the row of a lease.
fn row(lease: &Lease) -> String {
    let name = lease.key.name.as_str().replace('\'', "''");
    format!("name = '{name}' AND nonce = {}", lease.key.nonce.get().cast_signed())
}

impl Harness for Leases {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { connect(&self.url).await })
    }

    fn start_process<'a>(
        &'a self,
        name: &'a LockName,
        ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        Some(Box::pin(async move { Taker::asking(&self.url, name, ttl).await }))
    }

    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        Some(Box::pin(async {
            let proxy = Proxy::start(self.port).await;
            let url = format!("postgres://postgres@127.0.0.1:{}/postgres{}", proxy.port(), self.parameters);
            let client = connect(&url).await.expect("a server");
            proxy.into_cable(client)
        }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let row = row(lease);
            self.server
                .psql(&format!("UPDATE ringfence.locks SET ends = clock_timestamp() WHERE {row}"))
                .await;
            self.server
                .psql(&format!("UPDATE ringfence.places SET ends = clock_timestamp() WHERE {row}"))
                .await;
        }))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let row = row(lease);
            self.server.psql(&format!("UPDATE ringfence.locks SET nonce = NULL WHERE {row}")).await;
            self.server.psql(&format!("DELETE FROM ringfence.places WHERE {row}")).await;
        }))
    }
}

impl Reach for Leases {
    fn url(&self) -> String {
        self.url.clone()
    }

    fn ports(&self) -> Vec<u16> {
        vec![self.port]
    }
}

ringfence_testkit::conformance!(Postgres::start().await.map(Leases::new));

mod of_version_18 {
    use super::{Leases, PostgresOptions, postgres_18};

    async fn start() -> Option<Leases> {
        PostgresOptions::new().programs(postgres_18()?).start().await.map(Leases::new)
    }

    ringfence_testkit::conformance!(start().await);
}

mod that_end_with_a_connection {
    use super::{Leases, Postgres};

    async fn start() -> Option<Leases> {
        let parameters = "?reclaim=connection";
        let leases = Leases::new(Postgres::start().await?);
        Some(Leases { url: format!("{}{parameters}", leases.url), parameters, ..leases })
    }

    ringfence_testkit::conformance!(start().await);
}

mod behind_a_pooler {
    use super::{Leases, Pgbouncer, Postgres};

    async fn start() -> Option<Leases> {
        let server = Postgres::start().await?;
        let pooler = Pgbouncer::start(&server, "transaction").await?;
        Some(Leases { url: pooler.url(), port: pooler.port(), server, parameters: "", _pooler: Some(pooler) })
    }

    ringfence_testkit::conformance!(start().await);
}

mod patterns {
    ringfence_patterns::patterns!(super::Postgres::start().await.map(super::Leases::new));
}

mod under_faults {
    ringfence_patterns::faults!(super::Postgres::start().await.map(super::Leases::new));
}
