//! Locks that a task takes and gives back.

use std::time::Duration;

/// Where the locks are, as a process is told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Servers {
    /// Our URL for them, with `HOSTS` where they are to stand.
    #[arg(long)]
    url: Option<String>,
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
        self.url_of(self.url.as_deref().expect("ours is told its URL"))
    }

    /// A URL in which they stand for `HOSTS`.
    pub(crate) fn url_of(&self, url: &str) -> String {
        let hosts: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        url.replace("HOSTS", &hosts.join(","))
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
