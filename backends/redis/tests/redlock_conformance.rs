//! Five Redis servers of which three have to agree keep the contract, as one server does.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_patterns::faults::Reach;
use ringfence_redis::RedlockBackend;
use ringfence_servers::{Proxy, RedisServer, Taker};
use ringfence_testkit::{Cable, Harness, OtherProcess};

const NODES: usize = 5;

struct Redlock(Vec<RedisServer>);

impl Redlock {
    async fn start() -> Option<Self> {
        let mut nodes = Vec::new();
        for _ in 0..NODES {
            nodes.push(RedisServer::start().await?);
        }
        Some(Self(nodes))
    }

    fn url(&self) -> String {
        url(self.0.iter().map(RedisServer::port))
    }

    /// Has every node that has a lease do something to it. The nodes come one after the other, so that the last ones may have the
    /// next lease already.
    async fn change(&self, lease: &Lease, change: &str) {
        let script = format!(
            "if string.sub(redis.call('GET', KEYS[1]) or '', 1, 16) == ARGV[1] then redis.call({change}) end"
        );
        let nonce = format!("{:016x}", lease.key.nonce.get());
        for node in &self.0 {
            node.command(&["EVAL", &script, "1", &key(lease), &nonce]).await;
        }
    }
}

fn url(ports: impl Iterator<Item = u16>) -> String {
    let nodes: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redlock://{}", nodes.join(","))
}

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(RedlockBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

impl Harness for Redlock {
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
            let mut proxies = Vec::new();
            for node in &self.0 {
                proxies.push(Proxy::start(node.port()).await);
            }
            let client = connect(&url(proxies.iter().map(Proxy::port))).await.expect("five nodes");
            Box::new(Cables { proxies, client }) as Box<dyn Cable>
        }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(self.change(lease, "'PEXPIRE', KEYS[1], '1'")))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(self.change(lease, "'DEL', KEYS[1]")))
    }
}

impl Reach for Redlock {
    fn url(&self) -> String {
        self.url()
    }

    fn ports(&self) -> Vec<u16> {
        self.0.iter().map(RedisServer::port).collect()
    }
}

/// A cable to every node.
struct Cables {
    proxies: Vec<Proxy>,
    client: Arc<dyn Backend>,
}

impl Cable for Cables {
    fn client(&self) -> Arc<dyn Backend> {
        self.client.clone()
    }

    fn cut(&self) {
        self.proxies.iter().for_each(Proxy::cut);
    }

    fn mend(&self) {
        self.proxies.iter().for_each(Proxy::mend);
    }
}

/// The suite's names need no escaping.
fn key(lease: &Lease) -> String {
    format!("ringfence:{{{}}}", lease.key.name)
}

ringfence_testkit::conformance!(Redlock::start().await);

mod patterns {
    ringfence_patterns::patterns!(super::Redlock::start().await);
}

mod under_faults {
    ringfence_patterns::faults!(super::Redlock::start().await);
}
