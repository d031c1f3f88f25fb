//! Locks of etcd itself, and the writes that any lock on it needs.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::driver::{Driver, Events};
use crate::contender::SignalClient;
use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};

/// A key that lives by a lease, put and deleted.
#[derive(Clone)]
pub(crate) struct Raw {
    driver: Driver,
    lease: i64,
}

impl LockClient for Raw {
    type Held = Vec<u8>;

    async fn connect(servers: &Servers) -> Self {
        let driver = Driver::connect(servers.ports[0]).await;
        let lease = driver.grant(TTL).await;
        Self { driver, lease }
    }

    async fn acquire(&self, name: &str) -> Vec<u8> {
        let key = format!("raw/{name}").into_bytes();
        self.driver.put(key.clone(), self.lease).await;
        key
    }

    async fn release(&self, key: Vec<u8>) -> bool {
        self.driver.delete(key).await;
        true
    }
}

/// The lock that the server has, by one lease for all.
#[derive(Clone)]
pub(crate) struct LockService {
    driver: Driver,
    lease: i64,
}

impl LockClient for LockService {
    type Held = Vec<u8>;

    async fn connect(servers: &Servers) -> Self {
        let driver = Driver::connect(servers.ports[0]).await;
        let lease = driver.grant(TTL).await;
        Self { driver, lease }
    }

    async fn acquire(&self, name: &str) -> Vec<u8> {
        self.driver.lock(&format!("service/{name}"), self.lease).await
    }

    async fn release(&self, key: Vec<u8>) -> bool {
        self.driver.unlock(key).await;
        true
    }
}

/// `etcdctl lock NAME`, which prints its key when it has the lock, and gives it back when it is interrupted.
#[derive(Clone)]
pub(crate) struct Etcdctl {
    endpoint: String,
}

impl LockClient for Etcdctl {
    type Held = Child;

    async fn connect(servers: &Servers) -> Self {
        Self { endpoint: format!("127.0.0.1:{}", servers.ports[0]) }
    }

    async fn acquire(&self, name: &str) -> Child {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint, "lock", "--ttl"]);
        command.arg(TTL.as_secs().to_string()).arg(format!("etcdctl/{name}"));
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("etcdctl");
        let mut output = BufReader::new(child.stdout.as_mut().expect("its output"));
        let mut key = String::new();
        output.read_line(&mut key).await.expect("a key");
        assert!(key.starts_with("etcdctl/"), "etcdctl has no lock: {key}");
        child
    }

    async fn release(&self, mut child: Child) -> bool {
        let id = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).expect("a process that runs");
        kill_process(id, Signal::INT).expect("a process that runs");
        child.wait().await.expect("a process that ends").success()
    }
}

/// Keys that are put, and heard of by a watch.
pub(crate) struct Signals {
    driver: Driver,
    ours: Vec<u8>,
    events: Events,
}

impl SignalClient for Signals {
    async fn connect(servers: &Servers, id: u64) -> Self {
        let driver = Driver::connect(servers.ports[0]).await;
        let key = |id: u64| format!("signal/{id}").into_bytes();
        let events = driver.watch(key(3 - id)).await;
        Self { driver, ours: key(id), events }
    }

    async fn watch(&mut self) {}

    async fn write(&mut self) {
        self.driver.put(self.ours.clone(), 0).await;
    }

    async fn write_quietly(&mut self) {
        let key = [b"quietly/", &self.ours[..]].concat();
        self.driver.put(key, 0).await;
    }

    async fn heard(&mut self) {
        self.events.heard().await;
    }
}
