//! A ZooKeeper server keeps the contract, and so does an ensemble of three: with clients in one process, in processes of their
//! own, and at the end of a cable.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_patterns::faults::Reach;
use ringfence_servers::{Ensemble, Proxy, Taker, ZooKeeperOptions};
use ringfence_testkit::{Cable, Harness, OtherProcess};
use ringfence_zookeeper::ZooKeeperBackend;

struct ZooKeeper(Ensemble);

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(ZooKeeperBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

impl ZooKeeper {
    /// The node of a lease. The suite's names need escaping for their slashes alone.
    async fn node(&self, lease: &Lease) -> String {
        let folder = format!("/ringfence/locks/{}", lease.key.name.as_str().replace('/', "%2F"));
        let who = format!("{:016x}", lease.key.nonce.get());
        let children = self.0.children(&folder).await;
        let child =
            children.iter().find(|child| child.contains(&who)).expect("a lease that is held has a node");
        format!("{folder}/{child}")
    }
}

impl Harness for ZooKeeper {
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
        Some(Box::pin(async {
            let proxy = Proxy::start(self.0.ports()[0]).await;
            let url = format!("zookeeper://127.0.0.1:{}", proxy.port());
            let client = connect(&url).await.expect("a server");
            proxy.into_cable(client)
        }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async { self.0.end_session_of(&self.node(lease).await).await }))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async { self.0.delete(&self.node(lease).await).await }))
    }
}

impl Reach for ZooKeeper {
    fn url(&self) -> String {
        self.0.url()
    }

    fn ports(&self) -> Vec<u16> {
        self.0.ports()
    }
}

/// Sessions of a second at least: what is shorter ends by itself where a busy machine leaves a server waiting.
async fn start(servers: usize) -> Option<ZooKeeper> {
    let options = ZooKeeperOptions::new().servers(servers).set("minSessionTimeout", "1000");
    options.start().await.map(ZooKeeper)
}

ringfence_testkit::conformance!(start(1).await);

mod in_an_ensemble {
    use super::start;

    ringfence_testkit::conformance!(start(3).await);
}

mod patterns {
    ringfence_patterns::patterns!(super::start(1).await);
}

mod under_faults {
    ringfence_patterns::faults!(super::start(1).await);
}
