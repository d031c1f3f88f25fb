//! The writes that any lock on `ZooKeeper` needs.

use super::driver::{Driver, Kind};
use crate::contender::SignalClient;
use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};

/// An ephemeral, sequential node, created and deleted.
#[derive(Clone)]
pub(crate) struct Raw(Driver);

impl LockClient for Raw {
    type Held = Vec<u8>;

    async fn connect(servers: &Servers) -> Self {
        Self(Driver::connect(servers.ports[0], TTL).await)
    }

    async fn acquire(&self, name: &str) -> Vec<u8> {
        // A node of the root, because the writes are to be bare.
        let path = format!("/raw-{}-", name.replace('/', "-"));
        self.0.create(&path, Kind::EphemeralSequential).await
    }

    async fn release(&self, path: Vec<u8>) -> bool {
        self.0.delete(&path).await;
        true
    }
}

/// Nodes that are changed, and heard of by a watch.
pub(crate) struct Signals {
    driver: Driver,
    ours: String,
    theirs: String,
}

impl SignalClient for Signals {
    async fn connect(servers: &Servers, id: u64) -> Self {
        let driver = Driver::connect(servers.ports[0], TTL).await;
        let path = |id: u64| format!("/signal-{id}");
        // Both, so that neither is made while somebody watches it. One of the two clients finds them there.
        for node in [path(1), path(2), quiet(&path(id))] {
            driver.create(&node, Kind::Persistent).await;
        }
        Self { driver, ours: path(id), theirs: path(3 - id) }
    }

    async fn watch(&mut self) {
        self.driver.watch(&self.theirs).await;
    }

    async fn write(&mut self) {
        self.driver.set(&self.ours).await;
    }

    async fn write_quietly(&mut self) {
        self.driver.set(&quiet(&self.ours)).await;
    }

    async fn heard(&mut self) {
        self.driver.heard().await;
    }
}

fn quiet(path: &str) -> String {
    format!("{path}-quiet")
}
