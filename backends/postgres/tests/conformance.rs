//! A PostgreSQL server keeps the contract: with clients in one process, in processes of their own, and at the end of a cable.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Postgres, Proxy, Taker};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Leases {
    server: Postgres,
    /// What is asked for beside.
    parameters: &'static str,
}

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(PostgresBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

/// What picks the row of a lease.
fn row(lease: &Lease) -> String {
    let name = lease.key.name.as_str().replace('\'', "''");
    format!("name = '{name}' AND nonce = {}", lease.key.nonce.get().cast_signed())
}

impl Leases {
    async fn start(parameters: &'static str) -> Option<Self> {
        Some(Self { server: Postgres::start().await?, parameters })
    }

    fn url(&self) -> String {
        format!("{}{}", self.server.url(), self.parameters)
    }
}

impl Harness for Leases {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { connect(&self.url()).await })
    }

    fn start_process<'a>(
        &'a self,
        name: &'a LockName,
        ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        Some(Box::pin(async move {
            let mut taker = Taker::start(&self.url(), name.as_str(), &["--ttl", &ttl.to_string()]);
            taker.asks().await;
            Box::new(taker) as Box<dyn OtherProcess>
        }))
    }

    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        Some(Box::pin(async {
            let proxy = Proxy::start(self.server.port()).await;
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

ringfence_testkit::conformance!(Leases::start("").await);

mod that_end_with_a_connection {
    use super::Leases;

    ringfence_testkit::conformance!(Leases::start("?reclaim=connection").await);
}
