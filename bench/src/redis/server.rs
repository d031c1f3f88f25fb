//! The server that the subjects share: Redis on TCP of this machine, with nothing on its disk.

use ringfence_servers::RedisServer;
use tokio::runtime::Runtime;

pub(crate) struct Server {
    runtime: Runtime,
    redis: RedisServer,
}

impl Server {
    /// `None`, and said, where Redis is not installed.
    pub(crate) fn start() -> Option<Self> {
        let runtime = crate::small_runtime();
        let redis = runtime.block_on(RedisServer::start())?;
        Some(Self { runtime, redis })
    }

    pub(crate) fn port(&self) -> u16 {
        self.redis.port()
    }

    pub(crate) fn command(&self, words: &[&str]) -> String {
        self.runtime.block_on(self.redis.command(words))
    }

    /// Empties it between two subjects; it keeps the scripts that it knows.
    pub(crate) fn forget(&self) {
        self.command(&["flushall", "sync"]);
    }

    /// How many commands it has executed, those inside of scripts included: the work that it had.
    pub(crate) fn executed(&self) -> usize {
        let info = self.command(&["info", "stats"]);
        let line = info.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.and_then(|count| count.trim_end().parse().ok()).expect("a count of commands")
    }

    /// How many scripts clients have called, each of which is a round trip.
    pub(crate) fn called(&self) -> usize {
        let info = self.command(&["info", "commandstats"]);
        let count = |line: &str| -> Option<usize> {
            let calls =
                line.strip_prefix("cmdstat_eval:").or_else(|| line.strip_prefix("cmdstat_evalsha:"))?;
            calls.strip_prefix("calls=")?.split(',').next()?.parse().ok()
        };
        info.lines().filter_map(count).sum()
    }
}
