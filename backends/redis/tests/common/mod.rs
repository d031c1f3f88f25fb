//! What several of these test programs say to the backend.

use std::sync::Arc;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, HolderInfo, Lease, LockName, Mode, Result, SystemClock,
    Ttl, Wait,
};
use ringfence_redis::RedisBackend;

pub(crate) async fn connect(url: &str) -> Result<RedisBackend> {
    RedisBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

pub(crate) fn name(name: &str) -> LockName {
    name.parse().expect("a lock name")
}

pub(crate) fn request(name: &LockName, mode: Mode, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(name.clone(), mode, Ttl::DEFAULT, wait, holder)
}

/// Asks without waiting.
pub(crate) async fn ask(client: &RedisBackend, name: &LockName, mode: Mode) -> Result<Attempt> {
    client.acquire(request(name, mode, Wait::No)).await
}

/// Gets a name that must be free.
pub(crate) async fn hold(client: &RedisBackend, name: &LockName, mode: Mode) -> Lease {
    match ask(client, name, mode).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("{mode} on {name} must be granted at once: {other:?}"),
    }
}
