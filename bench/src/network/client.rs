//! Locks that a task takes and gives back.

use std::time::Duration;

use ringfence::{ErrorKind, Guard, Locks};

use super::TTL;

/// Where the locks are, as a process is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Servers {
    /// What our URL for them begins with.
    #[arg(long)]
    scheme: Option<String>,
    /// The ports of the servers: one, or several that are one system.
    #[arg(long = "servers", value_delimiter = ',')]
    pub(crate) ports: Vec<u16>,
    /// How long who polls pauses between two attempts.
    #[arg(long)]
    pause_ms: Option<u64>,
}

impl Servers {
    /// The URL by which ours connects.
    pub(crate) fn url(&self) -> String {
        let scheme = self.scheme.as_deref().expect("ours is told its scheme");
        let hosts: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("{scheme}://{}", hosts.join(","))
    }

    /// For clients that poll: the pause between two attempts. `None` is what the client itself prefers.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.pause_ms.map(Duration::from_millis)
    }
}

/// A client of a server, or of the several that are one system. Clones share their connections.
pub(crate) trait LockClient: Clone + Send + Sync + 'static {
    type Held: Send;

    /// Whether those of one process who contend share one client. Unless it says so, each has one of its own, as if it were a process
    /// of its own.
    const IS_SHARED: bool = false;

    fn connect(servers: &Servers) -> impl Future<Output = Self> + Send;

    /// Waits for the lock, for as long as it takes.
    fn acquire(&self, name: &str) -> impl Future<Output = Self::Held> + Send;

    /// Whether the lock was still held, as far as the client can tell.
    fn release(&self, held: Self::Held) -> impl Future<Output = bool> + Send;
}

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
