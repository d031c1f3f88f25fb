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

    /// Transactions, of which a renewal is one. Pings, which one server answers alone, are among the calls.
    fn keep_alives(&self) -> usize {
        let transaction = |said: &str| {
            let number = said.lines().find_map(|line| line.strip_prefix("Zxid: 0x"))?;
            // What stands above these bits counts leaders.
            usize::try_from(u64::from_str_radix(number, 16).ok()? & u64::from(u32::MAX)).ok()
        };
        self.ask("srvr").iter().filter_map(|said| transaction(said)).max().expect("a server that counts")
    }

    fn calls(&self) -> usize {
        let received = |said: &String| {
            let line = said.lines().find_map(|line| line.strip_prefix("zk_packets_received"));
            line.and_then(|count| count.trim().parse::<usize>().ok()).unwrap_or(0)
        };
        self.ask("mntr").iter().map(received).sum()
    }
}

impl ZooKeeper {
    /// What each server says to a word of four letters.
    fn ask(&self, word: &str) -> Vec<String> {
        let ask = |port| {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.write_all(word.as_bytes())?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            Ok::<_, std::io::Error>(said)
        };
        self.ports().into_iter().map(|port| ask(port).expect("a server that says how it is")).collect()
    }
}
