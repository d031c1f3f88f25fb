//! `ZooKeeper` servers of the benchmark's own, with their data on the disk of this machine.

use std::io::{Read, Write};
use std::net::TcpStream;

use ringfence_servers::{Ensemble, ZooKeeperOptions};
use tokio::runtime::Runtime;

use crate::consensus::Server;

struct ZooKeeper {
    ensemble: Ensemble,
    _runtime: Runtime,
}

/// `None`, and said, where `ZooKeeper` is not installed.
pub(super) fn start(servers: usize) -> Option<Box<dyn Server>> {
    let runtime = crate::small_runtime();
    let ensemble = runtime.block_on(ZooKeeperOptions::new().servers(servers).start())?;
    Some(Box::new(ZooKeeper { ensemble, _runtime: runtime }))
}

impl Server for ZooKeeper {
    fn ports(&self) -> Vec<u16> {
        self.ensemble.ports()
    }

    /// It keeps nothing of what was deleted.
    fn forget(&self) {}

    /// It does not count them apart.
    fn keep_alives(&self) -> usize {
        self.calls()
    }

    fn calls(&self) -> usize {
        let received = |port| {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.write_all(b"mntr")?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            let line = said.lines().find_map(|line| line.strip_prefix("zk_packets_received"));
            Ok::<usize, std::io::Error>(line.and_then(|count| count.trim().parse().ok()).unwrap_or(0))
        };
        self.ports().into_iter().map(|port| received(port).expect("a server that says how it is")).sum()
    }
}
