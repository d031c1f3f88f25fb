//! Where patterns run: every backend, each on a server of the benchmark's own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use clap::ValueEnum;

use crate::consensus::Server;
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
    /// How many messages its server has had, where that is what round trips are counted by.
    messages: Option<Box<dyn Fn() -> usize>>,
}

/// Counts round trips on the way to a server.
pub(super) struct Counter<'a> {
    meter: Meter,
    messages: Option<&'a dyn Fn() -> usize>,
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

    /// How many round trips the time of day takes: none where the server tells none.
    pub(super) fn asked_for_the_time(self) -> u32 {
        u32::from(!matches!(self, Self::Memory | Self::Local | Self::Etcd | Self::Zookeeper))
    }

    /// How many it takes to open a record, and to write it.
    pub(super) fn asked_to_change_a_record(self) -> u32 {
        match self {
            Self::Etcd => 2,
            Self::Zookeeper => 4,
            _ => 1,
        }
    }

    /// How many more are needed where the name of a lock and its record are new.
    pub(super) fn asked_to_make_a_lock(self) -> u32 {
        if self == Self::Zookeeper { 7 } else { 0 }
    }

    /// `None`, and said, where its server is not installed.
    pub(crate) fn start(self, directory: &Path) -> Option<Place> {
        let place = |url: &str, ports, forget: Box<dyn Fn()>| {
            Some(Place { url: url.to_owned(), ports, forget, messages: None })
        };
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
                let server: Rc<dyn Server> = Rc::from((etcd::SYSTEM.start)(1)?);
                let forgets = Rc::clone(&server);
                let place = place("etcd://HOSTS", server.ports(), Box::new(move || forgets.forget()));
                // It pings who writes to it, and the answer to that looks like a question.
                Some(Place { messages: Some(Box::new(move || server.calls())), ..place? })
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
    pub(super) fn tell_by_way_of(&self, process: &mut Command, counter: &Counter<'_>) {
        self.tell_ports(process, &[counter.meter.port()]);
    }

    fn tell_ports(&self, process: &mut Command, ports: &[u16]) {
        process.args(["--url", &self.url]);
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
            process.args(["--servers", &ports.join(",")]);
        }
    }

    /// A counter before its server, where it has one.
    pub(super) fn counter(&self) -> Option<Counter<'_>> {
        let [port] = self.ports[..] else { return None };
        Some(Counter { meter: Meter::before(port), messages: self.messages.as_deref() })
    }

    /// Has it forget what a subject left behind.
    pub(super) fn forget(&self) {
        (self.forget)();
    }
}

impl Counter<'_> {
    /// Of one client that does one thing after the other.
    pub(super) fn round_trips(&self) -> usize {
        self.messages.map_or_else(|| self.meter.round_trips(), |messages| messages())
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
