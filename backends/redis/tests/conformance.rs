//! One Redis server keeps the contract, with clients in one process, in processes of their own, and at the end of a cable.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisServer, Taker};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Redis(RedisServer);

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(RedisBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

impl Harness for Redis {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { connect(&self.0.url()).await })
    }

    fn start_process<'a>(
        &'a self,
        name: &'a LockName,
        ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        Some(Box::pin(async move {
            let mut taker = Taker::start(&self.0.url(), name.as_str(), &["--ttl", &ttl.to_string()]);
            taker.asks().await;
            Box::new(taker) as Box<dyn OtherProcess>
        }))
    }

    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        Some(Box::pin(async {
            let proxy = Proxy::start(self.0.port()).await;
            let client = connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.expect("a server");
            proxy.into_cable(client)
        }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            self.0.command(&["PEXPIRE", &key(lease), "1"]).await;
        }))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            self.0.command(&["DEL", &key(lease)]).await;
        }))
    }
}

/// The suite's names need no escaping.
fn key(lease: &Lease) -> String {
    format!("ringfence:{{{}}}", lease.key.name)
}

ringfence_testkit::conformance!(RedisServer::start().await.map(Redis));
