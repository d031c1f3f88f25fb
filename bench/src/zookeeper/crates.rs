//! Other people's crates.

use std::sync::Arc;

use zookeeper_client::{Acls, Client, CreateMode, LockOptions, LockPrefix, OwnedLockClient};

use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};

/// The lock of zookeeper-client, on the nodes of Curator's.
#[derive(Clone)]
pub(crate) struct Recipe(Arc<Client>);

impl LockClient for Recipe {
    type Held = OwnedLockClient;

    async fn connect(servers: &Servers) -> Self {
        let connector = Client::connector().with_session_timeout(TTL);
        let client = connector.connect(&format!("127.0.0.1:{}", servers.ports[0])).await.expect("a server");
        Self(Arc::new(client))
    }

    async fn acquire(&self, name: &str) -> OwnedLockClient {
        let folder = format!("/recipe/{name}");
        let prefix = LockPrefix::new_curator(&folder, "lock-").expect("a lawful name");
        let parents = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let options = LockOptions::new(Acls::anyone_all()).with_ancestor_options(parents);
        let options = options.expect("lawful options");
        self.0.lock(prefix, b"", options).await.expect("a lock").into_owned()
    }

    async fn release(&self, lock: OwnedLockClient) -> bool {
        // Dropping it would do as much in the background, where nobody sees when it is done.
        let released = self.0.delete(lock.lock_path(), None).await.is_ok();
        std::mem::forget(lock);
        released
    }
}
