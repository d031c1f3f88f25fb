//! An etcd cluster keeps the contract, with clients in one process, in processes of their own, and at the end of a cable: one of a
//! single member, and one of three, of Debian's version and of a later one.

use std::sync::Arc;

use ringfence_core::{Backend, BackendUrl, BoxFuture, Lease, LockName, Result, SystemClock, Ttl};
use ringfence_etcd::EtcdBackend;
use ringfence_patterns::faults::Reach;
use ringfence_servers::{EtcdCluster, EtcdOptions, Proxy, Taker, etcd_3_5};
use ringfence_testkit::{Cable, Harness, OtherProcess};

struct Etcd(EtcdCluster);

async fn connect(url: &str) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(EtcdBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await?))
}

impl Etcd {
    /// What `etcdctl` says of the key of a lease. The suite's names need no escaping.
    async fn key(&self, lease: &Lease) -> String {
        let line = format!("ringfence/lock/{}!", lease.key.name);
        self.0.key_of(&line, &format!("{:016x}", lease.token.nonce().get())).await
    }
}

impl Harness for Etcd {
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
            let proxy = Proxy::start(self.0.port(0)).await;
            let client = connect(&format!("etcd://127.0.0.1:{}", proxy.port())).await.expect("a cluster");
            proxy.into_cable(client)
        }))
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let key = self.key(lease).await;
            let (_, place) = key.rsplit_once('!').expect("the name ends so");
            let (session, _) = place.split_once('-').expect("the lease of the server stands first");
            self.0.etcdctl(&["lease", "revoke", session]).await;
        }))
    }

    fn remove_behind_its_back<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async {
            let key = self.key(lease).await;
            assert_eq!(self.0.etcdctl(&["del", &key]).await, "1", "{key}");
        }))
    }
}

impl Reach for Etcd {
    fn url(&self) -> String {
        self.0.url()
    }

    fn ports(&self) -> Vec<u16> {
        vec![self.0.port(0)]
    }
}

ringfence_testkit::conformance!(EtcdCluster::start(1).await.map(Etcd));

mod of_three {
    use super::{Etcd, EtcdCluster};

    ringfence_testkit::conformance!(EtcdCluster::start(3).await.map(Etcd));
}

mod of_3_5 {
    use super::{Etcd, EtcdOptions, etcd_3_5};

    ringfence_testkit::conformance!(EtcdOptions::new().program(etcd_3_5()?).start().await.map(Etcd));

    mod of_three {
        use super::{Etcd, EtcdOptions, etcd_3_5};

        ringfence_testkit::conformance!(
            EtcdOptions::new().members(3).program(etcd_3_5()?).start().await.map(Etcd)
        );
    }
}

mod patterns {
    ringfence_patterns::patterns!(super::EtcdCluster::start(1).await.map(super::Etcd));
}

mod under_faults {
    ringfence_patterns::faults!(super::EtcdCluster::start(1).await.map(super::Etcd));
}
