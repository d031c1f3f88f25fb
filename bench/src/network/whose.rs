//! Whose locks the processes of a case take.

use std::process::Command;

use clap::ValueEnum;
use ringfence::Locks;

use super::ours::{Tasks, Waiters};
use crate::contender::Contender;
use crate::{etcd, patterns, postgres, redis, zookeeper};

/// A process that takes locks on a server for a while.
#[derive(Debug, clap::Args)]
pub(crate) struct Taker {
    #[arg(long, value_enum)]
    whose: Whose,
    #[command(flatten)]
    contender: Contender,
}

/// Whose lock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Whose {
    Ringfence,
    /// Tasks that share a `Locks`.
    Tasks,
    /// Waiters that share one client of a backend of ours.
    Waiters,
    RedisCommands,
    RedisPing,
    #[cfg(feature = "peers")]
    Rslock,
    #[cfg(feature = "peers")]
    DistributedLock,
    EtcdWrites,
    EtcdLockService,
    Etcdctl,
    /// No lock: a write of one process, seen by the watch of another.
    EtcdEvent,
    /// The same, where whoever has seen it makes a write as well, and has its turn when that is answered.
    EtcdEventAndWrite,
    ZookeeperWrites,
    #[cfg(feature = "peers")]
    ZookeeperClient,
    ZookeeperEvent,
    ZookeeperEventAndWrite,
    PostgresLeases,
    PostgresAdvisory,
    PostgresRoundTrips,
    #[cfg(feature = "peers")]
    Sqlx,
    /// A job that is due whenever it is called for, and one that is not.
    OnceDue,
    OnceDone,
    /// A new key for each request, the same one after it is done, and the same one while somebody works on it.
    KeyNew,
    KeyDone,
    KeyInFlight,
    /// What a new key needs at least.
    RedisKey,
    PostgresKey,
}

impl Whose {
    /// This program, as one of its processes.
    pub(crate) fn program(self) -> Command {
        let mut command = this_program();
        let whose = self.to_possible_value().expect("a name");
        command.args(["contender", "--whose", whose.get_name()]);
        command
    }
}

/// A process of the benchmark.
pub(crate) fn this_program() -> Command {
    Command::new(std::env::current_exe().expect("this program"))
}

impl Taker {
    pub(crate) fn run(self) {
        let Self { whose, contender } = self;
        match whose {
            Whose::Ringfence => contender.run_with::<Locks>(),
            Whose::Tasks => contender.run_with::<Tasks>(),
            Whose::Waiters => contender.run_with::<Waiters>(),
            Whose::RedisCommands => contender.run_with::<redis::clients::Raw>(),
            Whose::RedisPing => contender.run_with::<redis::clients::Ping>(),
            #[cfg(feature = "peers")]
            Whose::Rslock => contender.run_with::<rslock::LockManager>(),
            #[cfg(feature = "peers")]
            Whose::DistributedLock => contender.run_with::<redis::crates::DistributedLock>(),
            Whose::EtcdWrites => contender.run_with::<etcd::clients::Raw>(),
            Whose::EtcdLockService => contender.run_with::<etcd::clients::LockService>(),
            Whose::Etcdctl => contender.run_with::<etcd::clients::Etcdctl>(),
            Whose::ZookeeperWrites => contender.run_with::<zookeeper::clients::Raw>(),
            #[cfg(feature = "peers")]
            Whose::ZookeeperClient => contender.run_with::<zookeeper::crates::Recipe>(),
            Whose::PostgresLeases => contender.run_with::<postgres::clients::Leases>(),
            Whose::PostgresAdvisory => contender.run_with::<postgres::clients::Advisory>(),
            Whose::PostgresRoundTrips => contender.run_with::<postgres::clients::RoundTrips>(),
            #[cfg(feature = "peers")]
            Whose::Sqlx => contender.run_with::<postgres::crates::Sqlx>(),
            Whose::OnceDue => contender.run_with::<patterns::clients::OnceDue>(),
            Whose::OnceDone => contender.run_with::<patterns::clients::OnceDone>(),
            Whose::KeyNew => contender.run_with::<patterns::clients::KeyNew>(),
            Whose::KeyDone => contender.run_with::<patterns::clients::KeyDone>(),
            Whose::KeyInFlight => contender.run_with::<patterns::clients::KeyInFlight>(),
            Whose::RedisKey => contender.run_with::<redis::clients::Key>(),
            Whose::PostgresKey => contender.run_with::<postgres::clients::Key>(),
            Whose::EtcdEvent => contender.signal::<etcd::clients::Signals>(false),
            Whose::EtcdEventAndWrite => contender.signal::<etcd::clients::Signals>(true),
            Whose::ZookeeperEvent => contender.signal::<zookeeper::clients::Signals>(false),
            Whose::ZookeeperEventAndWrite => contender.signal::<zookeeper::clients::Signals>(true),
        }
    }
}
