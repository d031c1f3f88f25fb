//! An etcd cluster of the benchmark's own, with its data on the disk of this machine.

use std::io::{Read, Write};
use std::net::TcpStream;

use ringfence_servers::EtcdCluster;
use tokio::runtime::Runtime;

use crate::consensus::Server;

struct Etcd {
    cluster: EtcdCluster,
    runtime: Runtime,
}

/// `None`, and said, where etcd is not installed.
pub(super) fn start(members: usize) -> Option<Box<dyn Server>> {
    let runtime = crate::small_runtime();
    let cluster = runtime.block_on(EtcdCluster::start(members))?;
    Some(Box::new(Etcd { cluster, runtime }))
}

impl Server for Etcd {
    fn ports(&self) -> Vec<u16> {
        (0..self.cluster.count()).map(|member| self.cluster.port(member)).collect()
    }

    /// It compacts, as a cluster does that was told to: a read of a range passes over all that was ever deleted there.
    fn forget(&self) {
        self.runtime.block_on(async {
            let status = self.cluster.etcdctl(&["endpoint", "status", "--write-out", "json"]).await;
            let status: serde_json::Value = serde_json::from_str(&status).expect("a status");
            let revision = &status[0]["Status"]["header"]["revision"];
            // It refuses where nothing has happened since the last time.
            let _ = self.cluster.ask(&["compaction", "--physical", &revision.to_string()]).await;
        });
    }

    fn keep_alives(&self) -> usize {
        let metrics = self.metrics();
        let is_one = |line: &&str| {
            line.starts_with("grpc_server_msg_received_total{") && line.contains("\"LeaseKeepAlive\"")
        };
        metrics.lines().filter(is_one).map(value).sum()
    }

    fn calls(&self) -> usize {
        let metrics = self.metrics();
        metrics.lines().filter(|line| line.starts_with("grpc_server_msg_received_total{")).map(value).sum()
    }
}

impl Etcd {
    /// What all members say of themselves.
    fn metrics(&self) -> String {
        let ask = |port| {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
            let mut metrics = String::new();
            stream.read_to_string(&mut metrics)?;
            Ok::<_, std::io::Error>(metrics)
        };
        self.ports().into_iter().map(|port| ask(port).expect("a member that says how it is")).collect()
    }
}

/// The value of a counter.
fn value(line: &str) -> usize {
    let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a counter");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let count = value as usize;
    count
}
