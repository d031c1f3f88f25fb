use std::sync::Arc;
use std::time::Duration;

use ringfence::{Backend, Locks, Nonce};
use ringfence_testkit::{Harness, PATIENCE, connected};

/// The hall of one more process, as far as the store can tell.
pub(crate) async fn locks(harness: &dyn Harness) -> Locks {
    hall(harness, connected(harness).await)
}

/// The hall of a process whose backend is this one.
pub(crate) fn hall(harness: &dyn Harness, backend: Arc<dyn Backend>) -> Locks {
    Locks::builder()
        .clock(harness.clock())
        .with_backend(backend)
        .expect("nothing was chosen that could be wrong")
}

/// A name that no other case and no other run uses.
pub(crate) fn fresh(case: &str) -> String {
    format!("{case}/{}", Nonce::random())
}

/// The TTL nearest to this one that the backend grants.
pub(crate) fn ttl(locks: &Locks, wanted: Duration) -> Duration {
    let guarantees = locks.guarantees();
    wanted.clamp(guarantees.ttl_min.as_duration(), guarantees.ttl_max.as_duration())
}

/// The result of a future that must not take long beside the TTLs of the case.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let patience = 3 * PATIENCE;
    tokio::time::timeout(patience, future)
        .await
        .unwrap_or_else(|_| panic!("waited {patience:?} in vain: {what}"))
}
