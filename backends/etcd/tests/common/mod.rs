//! What several of these test programs say to the backend.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, HolderInfo, Lease, LockName, Mode, Release, Renewal,
    Result, SystemClock, Ttl, Wait,
};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, etcd_3_5};
use ringfence_testkit::PATIENCE;

/// A TTL that no test outlives.
pub(crate) const LONG: Duration = Duration::from_mins(1);

pub(crate) async fn connect(url: &str) -> Result<EtcdBackend> {
    EtcdBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

/// A cluster of each version that is there: Debian's, and 3.5.
pub(crate) async fn of_each_version(options: EtcdOptions) -> Vec<EtcdCluster> {
    let mut clusters = Vec::from_iter(options.clone().start().await);
    if let Some(later) = etcd_3_5() {
        clusters.extend(options.program(later).start().await);
    }
    clusters
}

pub(crate) async fn client(url: &str) -> EtcdBackend {
    connect(url).await.expect("a cluster that runs")
}

pub(crate) fn name(name: &str) -> LockName {
    name.parse().expect("a lock name")
}

pub(crate) fn request(lock: &str, mode: Mode, ttl: Duration, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name(lock), mode, Ttl::new(ttl).expect("a TTL"), wait, holder)
}

/// Gets a name that must be free.
pub(crate) async fn hold(client: &EtcdBackend, lock: &str, ttl: Duration) -> Lease {
    granted(client, request(lock, Mode::Exclusive, ttl, Wait::No)).await
}

/// The lease that must come of a request.
pub(crate) async fn granted(client: &EtcdBackend, request: AcquireRequest) -> Lease {
    match within("a grant", client.acquire(request)).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("it must be granted: {other:?}"),
    }
}

pub(crate) async fn release(client: &EtcdBackend, lease: &Lease) -> Result<Release> {
    Ok(within("an answer to a release", client.release(slice::from_ref(&lease.key))).await?[0])
}

pub(crate) async fn renew(client: &EtcdBackend, lease: &Lease) -> Result<Renewal> {
    Ok(within("an answer to a renewal", client.renew(slice::from_ref(&lease.key))).await?[0])
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain: {what}"))
}
