//! Our own locks, as a program takes them, and as a server sees many who wait.

use std::sync::Arc;

use ringfence::{ErrorKind, Guard, Locks};
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, HolderInfo, Lease, LockName, Mode, Release,
    Retry, SystemClock, Ttl, Wait,
};
use ringfence_etcd::EtcdBackend;
use ringfence_postgres::PostgresBackend;
use ringfence_zookeeper::ZooKeeperBackend;

use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};

impl LockClient for Locks {
    type Held = Guard;

    async fn connect(servers: &Servers) -> Self {
        Self::connect(&servers.url()).await.expect("a server")
    }

    async fn acquire(&self, name: &str) -> Guard {
        self.lock(name).ttl(TTL).acquire().await.expect("a lock")
    }

    async fn release(&self, guard: Guard) -> bool {
        match guard.release().await {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::Lost => false,
            Err(error) => panic!("a release: {error}"),
        }
    }
}

/// Many tasks of one process, as a service has them: they share its `Locks`, and are one waiter to the server.
#[derive(Clone)]
pub(crate) struct Tasks(Locks);

impl LockClient for Tasks {
    type Held = Guard;

    const IS_SHARED: bool = true;

    async fn connect(servers: &Servers) -> Self {
        Self(<Locks as LockClient>::connect(servers).await)
    }

    async fn acquire(&self, name: &str) -> Guard {
        LockClient::acquire(&self.0, name).await
    }

    async fn release(&self, guard: Guard) -> bool {
        LockClient::release(&self.0, guard).await
    }
}

/// Many waiters of one process, as the server sees them when it has a thousand: tasks of one `Locks` that want one name are one waiter
/// to it, so these ask the backend itself. They share its connection and what keeps them alive.
#[derive(Clone)]
pub(crate) struct Waiters(Arc<dyn Backend>);

impl LockClient for Waiters {
    type Held = Lease;

    const IS_SHARED: bool = true;

    async fn connect(servers: &Servers) -> Self {
        let url = BackendUrl::parse(&servers.url()).expect("a URL");
        let clock = Arc::new(SystemClock::new());
        Self(match url.scheme() {
            "etcd" => Arc::new(EtcdBackend::connect(&url, clock).await.expect("a server")),
            "postgres" => Arc::new(PostgresBackend::connect(&url, clock).await.expect("a server")),
            "zookeeper" => Arc::new(ZooKeeperBackend::connect(&url, clock).await.expect("a server")),
            other => panic!("{other} has no line of this kind"),
        })
    }

    async fn acquire(&self, name: &str) -> Lease {
        let name = LockName::new(name).expect("a lawful name");
        let ttl = Ttl::new(TTL).expect("a lawful TTL");
        let holder = HolderInfo::new("bench", "here", std::process::id()).expect("lawful words");
        let wait = Wait::Until(BootInstant::MAX);
        let request = || AcquireRequest::new(name.clone(), Mode::Exclusive, ttl, wait, holder.clone());
        loop {
            match self.0.acquire(request()).await {
                Ok(Attempt::Granted(lease)) => return lease,
                // A thousand waiters may be more than the server can do; who is told so stands in line again.
                Err(error) if error.retry() == Retry::Later => {}
                other => panic!("no lock, but {other:?}"),
            }
        }
    }

    async fn release(&self, lease: Lease) -> bool {
        self.0.release(&[lease.key]).await.is_ok_and(|released| released == [Release::Released])
    }
}
