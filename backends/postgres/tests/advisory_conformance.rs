//! Advisory locks of a PostgreSQL server keep the contract: with clients in one process, in processes of their own, and at the end
//! of a cable.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_patterns::faults::Reach;
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Postgres, Proxy, Taker};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Advisory(Postgres);

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(PostgresBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

impl Advisory {
    fn url(&self) -> String {
        format!("{}?recipe=advisory", self.0.url())
    }

    /// Ends the session that has a lease.
    async fn end_session_of(&self, lease: &Lease) {
        let name = lease.key.name.as_str().replace('\'', "''");
        let ended = format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM ringfence.advisory_look(ARRAY[ringfence.lock_key('{name}')]) WHERE held"
        );
        assert_eq!(self.0.psql(&ended).await.trim(), "t", "one session has {lease:?}");
    }
}

impl Harness for Advisory {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { connect(&self.url()).await })
    }

    fn start_process<'a>(
        &'a self,
        name: &'a LockName,
        ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        Some(Box::pin(async move { Taker::asking(&self.url(), name, ttl).await }))
    }

    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        Some(Box::pin(async {
            let proxy = Proxy::start(self.0.port()).await;
            let url = format!("postgres://postgres@127.0.0.1:{}/postgres?recipe=advisory", proxy.port());
            let client = connect(&url).await.expect("a server");
            proxy.into_cable(client)
        }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(self.end_session_of(lease)))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(self.end_session_of(lease)))
    }
}

impl Reach for Advisory {
    fn url(&self) -> String {
        self.url()
    }

    fn ports(&self) -> Vec<u16> {
        vec![self.0.port()]
    }
}

ringfence_testkit::conformance!(Postgres::start().await.map(Advisory));

mod patterns {
    ringfence_patterns::patterns!(super::Postgres::start().await.map(super::Advisory));
}

mod under_faults {
    ringfence_patterns::faults!(super::Postgres::start().await.map(super::Advisory));
}
