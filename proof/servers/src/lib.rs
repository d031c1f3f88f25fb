//! Real processes for tests and benches: found, started, stopped, killed, and gone at the end.
//!
//! - [`Process`] is a child with its whole process group, whose lines are awaited.
//! - [`require()`] finds a tool, or says on stderr that a test is skipped; under `RINGFENCE_REQUIRE=name,name` or `=all`
//!   what is missing is a failure.
//! - [`SystemCallFault`] makes system calls of a running thread fail, on one file.
//! - [`WallClock`] is a clock that is set forward and back under the processes that it governs.
//! - [`RedisServer`] is a real server of a test's own, [`Sentinels`] and [`RedisCluster`] are several that belong together;
//!   [`python`] and [`node`] run other people's clients of them, as [`go_etcd_lock`] and [`curator`] do of etcd and ZooKeeper.
//! - [`EtcdCluster`] is one of etcd, of one member or several, of the version of Debian or of [a later one](etcd_3_5).
//! - [`Ensemble`] is one ZooKeeper server of a test's own, or several.
//! - [`Postgres`] is a PostgreSQL server of a test's own, of the version of Debian or of [a later one](postgres_18), with standbys
//!   that are promoted; [`Pgbouncer`] is a pool of connections before it.
//! - [`MariaDb`] is a MariaDB server of a test's own, [`S3`] an object store that speaks S3.
//! - [`Hook`] is an HTTP server that keeps what it is sent.
//! - [`Disk`] is a file system whose power is cut.
//! - [`Proxy`] is the network between a client and a server, with its faults.
//! - [`Taker`] is a process that takes a lock and can be stopped or killed in any state.

mod cluster;
mod disk;
mod etcd;
mod hook;
mod interconnect;
mod links;
mod mariadb;
mod peers;
mod pgbouncer;
mod port;
mod postgres;
mod process;
mod proxy;
mod redis;
mod require;
mod s3;
mod sentinels;
mod system_calls;
mod taker;
mod tls;
mod wall_clock;
mod zookeeper;

pub use cluster::RedisCluster;
pub use disk::Disk;
pub use etcd::{EtcdCluster, EtcdOptions};
pub use hook::{Hook, Posted};
pub use mariadb::MariaDb;
pub use peers::{curator, etcd_3_5, go_etcd_lock, nginx, node, postgres_18, python, valkey};
pub use pgbouncer::Pgbouncer;
pub use postgres::{Postgres, PostgresOptions, Psql};
pub use process::Process;
pub use proxy::Proxy;
pub use redis::{RedisOptions, RedisServer};
pub use require::{require, skip};
pub use s3::S3;
pub use sentinels::Sentinels;
pub use system_calls::SystemCallFault;
pub use taker::{EFFECTS, Event, PARTITIONS, SEVERAL, Taker, one_of_several, taker};
pub use wall_clock::WallClock;
pub use zookeeper::{Ensemble, ZooKeeperOptions};
