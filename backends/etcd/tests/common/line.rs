//! What those test programs say that have somebody wait in line.

use ringfence_core::{Backend, BootInstant, Wait};
use ringfence_etcd::EtcdBackend;

use crate::common::{name, within};

pub(crate) const FOR_EVER: Wait = Wait::Until(BootInstant::MAX);

/// Waits until so many stand in line.
pub(crate) async fn sees_waiters(client: &EtcdBackend, lock: &str, count: usize) {
    within(&format!("a line of {count} for {lock}"), async {
        while client.inspect(&name(lock)).await.expect("the lock as it stands").waiters.len() != count {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}
