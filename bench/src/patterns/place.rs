//! Where patterns run: every backend, each on a server of the benchmark's own.

use std::fs;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use crate::network::meter::Meter;
use crate::{etcd, postgres, redis, zookeeper};

/// The nodes of a Redlock.
const NODES: usize = 5;

/// A backend, by a recipe of its own where it has several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum On {
    Memory,
    Local,
    Redis,
    Redlock,
    Etcd,
    Zookeeper,
    PostgresLeases,
    PostgresAdvisory,
}

/// A backend that is there.
pub(crate) struct Place {
    /// Its URL, with `HOSTS` where its servers are to stand.
    url: String,
    /// The ports of its servers, of which the backends of one machine have none.
    ports: Vec<u16>,
    forget: Box<dyn Fn()>,
}

impl On {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Local => "local",
            Self::Redis => "redis",
            Self::Redlock => "redlock on 5 nodes",
            Self::Etcd => "etcd",
            Self::Zookeeper => "zookeeper",
            Self::PostgresLeases => "postgres, leases",
            Self::PostgresAdvisory => "postgres, advisory",
        }
    }

    /// `None`, and said, where its server is not installed.
    pub(crate) fn start(self, directory: &Path) -> Option<Place> {
        let place =
            |url: &str, ports, forget: Box<dyn Fn()>| Some(Place { url: url.to_owned(), ports, forget });
        match self {
            Self::Memory => place("memory:", Vec::new(), Box::new(|| ())),
            Self::Local => {
                let store = tempfile::tempdir_in(directory).expect("a directory");
                place(
                    &format!("local:{}", store.path().display()),
                    Vec::new(),
                    Box::new(move || empty(store.path())),
                )
            }
            Self::Redis => {
                let server = redis::server::Server::start()?;
                place("redis://HOSTS", vec![server.port()], Box::new(move || server.forget()))
            }
            Self::Redlock => {
                let nodes = (0..NODES).map(|_| redis::server::Server::start()).collect::<Option<Vec<_>>>()?;
                let ports = nodes.iter().map(redis::server::Server::port).collect();
                place(
                    "redlock://HOSTS",
                    ports,
                    Box::new(move || nodes.iter().for_each(redis::server::Server::forget)),
                )
            }
            Self::Etcd => {
                let server = (etcd::SYSTEM.start)(1)?;
                place("etcd://HOSTS", server.ports(), Box::new(move || server.forget()))
            }
            Self::Zookeeper => {
                let server = (zookeeper::SYSTEM.start)(1)?;
                place("zookeeper://HOSTS", server.ports(), Box::new(move || server.forget()))
            }
            Self::PostgresLeases | Self::PostgresAdvisory => {
                let server = postgres::server::Server::start()?;
                let url =
                    if self == Self::PostgresLeases { postgres::LEASES_URL } else { postgres::ADVISORY_URL };
                place(url, vec![server.port()], Box::new(move || server.forget()))
            }
        }
    }
}

impl Place {
    /// Tells a process where it is.
    pub(super) fn tell(&self, process: &mut Command) {
        self.tell_ports(process, &self.ports);
    }

    /// The same, of a port that leads there.
    pub(super) fn tell_by_way_of(&self, process: &mut Command, meter: &Meter) {
        self.tell_ports(process, &[meter.port()]);
    }

    fn tell_ports(&self, process: &mut Command, ports: &[u16]) {
        process.args(["--url", &self.url]);
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            process.args(["--servers", &ports.join(",")]);
        }
    }

    /// A meter before its server, where it has one.
    pub(super) fn meter(&self) -> Option<Meter> {
        let [port] = self.ports[..] else { return None };
        Some(Meter::before(port))
    }

    /// Has it forget what a subject left behind.
    pub(super) fn forget(&self) {
        (self.forget)();
    }
}

/// Removes what is in a directory.
fn empty(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.expect("an entry that nobody uses");
    }
}
