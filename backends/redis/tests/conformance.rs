//! One Redis server keeps the contract, with clients in one process, in processes of their own, and at the end of a cable;
//! and so do one that Sentinels lead to, a cluster, and Valkey, which releases by a command of its own.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_patterns::faults::Reach;
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisCluster, RedisOptions, RedisServer, Sentinels, Taker, valkey};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Redis<S>(S);

/// Servers that have the locks, and the way to them.
trait Servers: Send + Sync {
    fn url(&self) -> String;

    /// The one that has this key.
    fn server_of<'a>(&'a self, key: &'a str) -> BoxFuture<'a, &'a RedisServer>;

    /// The port of the only one, where the way to it can lead over a proxy.
    fn port(&self) -> Option<u16>;
}

impl Servers for RedisServer {
    fn url(&self) -> String {
        self.url()
    }

    fn server_of<'a>(&'a self, _: &'a str) -> BoxFuture<'a, &'a RedisServer> {
        Box::pin(async move { self })
    }

    fn port(&self) -> Option<u16> {
        Some(self.port())
    }
}

impl Servers for Sentinels {
    fn url(&self) -> String {
        self.url()
    }

    fn server_of<'a>(&'a self, _: &'a str) -> BoxFuture<'a, &'a RedisServer> {
        Box::pin(async move { &self.servers()[0] })
    }

    fn port(&self) -> Option<u16> {
        None
    }
}

impl Servers for RedisCluster {
    fn url(&self) -> String {
        self.url()
    }

    fn server_of<'a>(&'a self, key: &'a str) -> BoxFuture<'a, &'a RedisServer> {
        Box::pin(async move { &self.nodes()[self.master_of(self.slot_of(key).await).await] })
    }

    fn port(&self) -> Option<u16> {
        None
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
        Some(Box::pin(async move { Taker::asking(&self.0.url(), name, ttl).await }))
    }

    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        self.0.port().map(|port| -> BoxFuture<'_, _> {
            Box::pin(async move {
                let proxy = Proxy::start(port).await;
                let client = connect(&format!("redis://127.0.0.1:{}", proxy.port())).await.expect("a server");
                proxy.into_cable(client)
            })
        })
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let key = key(lease);
            self.0.server_of(&key).await.command(&["PEXPIRE", &key, "1"]).await;
        }))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let key = key(lease);
            self.0.server_of(&key).await.command(&["DEL", &key]).await;
        }))
    }
}

impl Reach for Redis<RedisServer> {
    fn url(&self) -> String {
        self.0.url()
    }

    fn ports(&self) -> Vec<u16> {
        vec![self.0.port()]
    }
}

/// The suite's names need no escaping.
fn key(lease: &Lease) -> String {
    format!("ringfence:{{{}}}", lease.key.name)
}

ringfence_testkit::conformance!(RedisServer::start().await.map(Redis));

mod on_valkey {
    use super::{Redis, RedisOptions, valkey};

    ringfence_testkit::conformance!(match valkey() {
        Some(program) => RedisOptions::new().program(program).start().await.map(Redis),
        None => None,
    });
}

mod by_sentinels {
    use super::{Redis, Sentinels};

    ringfence_testkit::conformance!(Sentinels::start().await.map(Redis));
}

mod in_a_cluster {
    use super::{Redis, RedisCluster};

    ringfence_testkit::conformance!(RedisCluster::start().await.map(Redis));
}

mod patterns {
    ringfence_patterns::patterns!(super::RedisServer::start().await.map(super::Redis));
}

mod under_faults {
    ringfence_patterns::faults!(super::RedisServer::start().await.map(super::Redis));
}
