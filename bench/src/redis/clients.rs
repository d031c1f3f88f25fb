//! The two commands that any lock on Redis needs, and a round trip without any.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Client, Script, Value};
use ringfence::patterns::RETENTION_DEFAULT;

use crate::contender::TTL;
use crate::contender::client::{LockClient, Servers};
use crate::patterns::clients::RECEIPT;

/// The release that everybody writes.
pub(crate) const COMPARE_AND_DELETE: &str =
    "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

/// `SET NX PX`, and compare-and-delete by its hash, on one multiplexed connection of redis-rs.
#[derive(Clone)]
pub(crate) struct Raw {
    connection: MultiplexedConnection,
    release: Arc<Script>,
    attempts: Arc<AtomicU64>,
    pause: Duration,
}

impl LockClient for Raw {
    type Held = (String, String);

    async fn connect(servers: &Servers) -> Self {
        let [port] = servers.ports[..] else { panic!("the bare commands are for one server") };
        Self {
            connection: connection(port).await,
            release: Arc::new(Script::new(COMPARE_AND_DELETE)),
            attempts: Arc::new(AtomicU64::new(u64::from(std::process::id()) << 32)),
            pause: servers.pause().unwrap_or_default(),
        }
    }

    async fn acquire(&self, name: &str) -> (String, String) {
        let mut connection = self.connection.clone();
        let value = format!("{:016x}", self.attempts.fetch_add(1, Ordering::Relaxed));
        let mut set = redis::cmd("SET");
        set.arg(name).arg(&value).arg("NX").arg("PX").arg(TTL.as_secs() * 1000);
        while set.query_async::<Value>(&mut connection).await.expect("an answer") != Value::Okay {
            tokio::time::sleep(self.pause).await;
        }
        (name.to_owned(), value)
    }

    async fn release(&self, (name, value): (String, String)) -> bool {
        let mut connection = self.connection.clone();
        let deleted: u64 =
            self.release.key(name).arg(value).invoke_async(&mut connection).await.expect("an answer");
        deleted == 1
    }
}

/// An idempotency key as many have it: `SET NX PX` when a request comes, and `SET` with its result. Nothing is behind a fence, and who is
/// slow overwrites what its successor wrote.
#[derive(Clone)]
pub(crate) struct Key {
    connection: MultiplexedConnection,
    attempts: Arc<AtomicU64>,
}

impl LockClient for Key {
    type Held = String;

    async fn connect(servers: &Servers) -> Self {
        Self { connection: connection(servers.ports[0]).await, attempts: Arc::default() }
    }

    async fn acquire(&self, name: &str) -> String {
        let name = format!("{name}/{}", self.attempts.fetch_add(1, Ordering::Relaxed));
        let mut set = redis::cmd("SET");
        set.arg(&name).arg("in flight").arg("NX").arg("PX").arg(TTL.as_secs() * 1000);
        let set: Value = set.query_async(&mut self.connection.clone()).await.expect("an answer");
        assert_eq!(set, Value::Okay, "{name} is new");
        name
    }

    async fn release(&self, name: String) -> bool {
        let mut set = redis::cmd("SET");
        set.arg(name).arg(RECEIPT).arg("PX").arg(RETENTION_DEFAULT.as_millis());
        set.query_async::<Value>(&mut self.connection.clone()).await.expect("an answer") == Value::Okay
    }
}

/// No lock: one round trip, and no work for the server.
#[derive(Clone)]
pub(crate) struct Ping(MultiplexedConnection);

impl LockClient for Ping {
    type Held = ();

    async fn connect(servers: &Servers) -> Self {
        Self(connection(servers.ports[0]).await)
    }

    async fn acquire(&self, _: &str) {
        let _: Value = redis::cmd("PING").query_async(&mut self.0.clone()).await.expect("an answer");
    }

    async fn release(&self, (): ()) -> bool {
        true
    }
}

async fn connection(port: u16) -> MultiplexedConnection {
    let client = Client::open(format!("redis://127.0.0.1:{port}")).expect("the address of a server");
    client.get_multiplexed_async_connection().await.expect("a server")
}
