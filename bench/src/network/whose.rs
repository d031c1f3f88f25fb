//! Whose locks the processes of a case take.

use clap::ValueEnum;
use ringfence::Locks;

use super::ours::Waiters;
use crate::contender::Contender;
use crate::{etcd, postgres, redis, zookeeper};

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
}

impl Taker {
    pub(crate) fn run(self) {
        let Self { whose, contender } = self;
        match whose {
            Whose::Ringfence => contender.run_with::<Locks>(),
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
            Whose::EtcdEvent => contender.signal::<etcd::clients::Signals>(false),
            Whose::EtcdEventAndWrite => contender.signal::<etcd::clients::Signals>(true),
            Whose::ZookeeperEvent => contender.signal::<zookeeper::clients::Signals>(false),
            Whose::ZookeeperEventAndWrite => contender.signal::<zookeeper::clients::Signals>(true),
        }
    }
}
