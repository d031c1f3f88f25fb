//! One Redis server keeps the contract, with clients in one process, in processes of their own, and at the end of a cable;
//! and so does one that Sentinels lead to.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisServer, Sentinels, Taker};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Redis<S>(S);

/// One server that has the locks, and the way to it.
trait Servers: Send + Sync {
    fn url(&self) -> String;

    fn primary(&self) -> &RedisServer;

    /// Whether the way to it can lead over a proxy.
    fn has_cable(&self) -> bool;
}

impl Servers for RedisServer {
    fn url(&self) -> String {
        self.url()
    }

    fn primary(&self) -> &RedisServer {
        self
    }

    fn has_cable(&self) -> bool {
        true
    }
}

impl Servers for Sentinels {
    fn url(&self) -> String {
        self.url()
    }

    fn primary(&self) -> &RedisServer {
        &self.servers()[0]
    }

    fn has_cable(&self) -> bool {
        false
    }
}

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(RedisBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

impl<S: Servers> Harness for Redis<S> {
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
        self.0.has_cable().then(|| -> BoxFuture<'_, _> {
            Box::pin(async {
                let proxy = Proxy::start(self.0.primary().port()).await;
                let client = connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.expect("a server");
                proxy.into_cable(client)
            })
        })
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            self.0.primary().command(&["PEXPIRE", &key(lease), "1"]).await;
        }))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            self.0.primary().command(&["DEL", &key(lease)]).await;
        }))
    }
}

/// The suite's names need no escaping.
fn key(lease: &Lease) -> String {
    format!("ringfence:{{{}}}", lease.key.name)
}

ringfence_testkit::conformance!(RedisServer::start().await.map(Redis));

mod by_sentinels {
    use super::{Redis, Sentinels};

    ringfence_testkit::conformance!(Sentinels::start().await.map(Redis));
}
