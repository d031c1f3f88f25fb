//! Ringfence beside raw locks and stores, and beside other people's locks: every case runs all its subjects in turn, for
//! several rounds, in one run, and prints medians and the ratios that matter. Absolute figures are those of one machine;
//! ratios travel better.
//!
//! `cargo xtask bench` runs everything; `cargo xtask bench -- --only processes --rounds 3` a part of it.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark measures time; the product reads it through its clock only"
)]

mod consensus;
mod contender;
mod contest;
mod etcd;
mod gate;
mod held;
mod killed;
mod network;
mod one_process;
mod patterns;
mod peers;
mod postgres;
mod processes;
mod redis;
mod report;
mod uncontended;
mod zookeeper;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::contender::{runtime, small_runtime};
use crate::patterns::place::On;
use crate::report::Report;

#[derive(Debug, Parser)]
#[command(name = "bench", about = "Ringfence beside raw locks and stores, as ratios in one run")]
struct Options {
    /// Run these cases only.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Case>,
    /// How often every subject of a case is run; the medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one run of one subject lasts, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
    /// How long the held leases are kept, in seconds.
    #[arg(long, default_value_t = 60)]
    held_seconds: u64,
    /// How many servers etcd and `ZooKeeper` have, each of which is told everything.
    #[arg(long, default_value_t = 1)]
    servers: usize,
    /// The backends that patterns run on.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = On::value_variants().to_vec())]
    on: Vec<On>,
    /// How many members share partitions, before one joins and leaves.
    #[arg(long, value_delimiter = ',', default_value = "2,10,50")]
    members: Vec<u32>,
    /// How many partitions they share.
    #[arg(long, value_delimiter = ',', default_value = "64,1000")]
    partitions: Vec<u32>,
    /// Where to put the stores: a directory on the disk to be measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    directory: PathBuf,
    /// Where to write the figures as JSON.
    #[arg(long, default_value = "bench/results/latest.json")]
    json: PathBuf,
    /// What this process does for a benchmark that needs several; for the benchmark itself only.
    #[command(subcommand)]
    worker: Option<Worker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Case {
    /// Acquire and release, each task a name of its own.
    Uncontended,
    /// Many tasks of one process want one name.
    OneProcess,
    /// Several processes want one name.
    Processes,
    /// 10,000 leases, kept for a minute.
    Held,
    /// From SIGKILL of the holder to the next grant.
    Killed,
    /// Acquire and release on Redis, each task a name of its own.
    RedisUncontended,
    /// Clients of several processes want one name on Redis.
    RedisContended,
    /// 10,000 leases on Redis, kept for a minute.
    RedisHeld,
    /// Acquire and release on five nodes of a Redlock, and on one.
    Redlock,
    /// Acquire and release on etcd, each task a name of its own.
    EtcdUncontended,
    /// Clients of several processes want one name on etcd.
    EtcdContended,
    /// 10,000 leases on etcd.
    EtcdHeld,
    /// Acquire and release on `ZooKeeper`, each task a name of its own.
    ZookeeperUncontended,
    /// Clients of several processes want one name on `ZooKeeper`.
    ZookeeperContended,
    /// 10,000 leases on `ZooKeeper`.
    ZookeeperHeld,
    /// Acquire and release on PostgreSQL, each task a name of its own.
    PostgresUncontended,
    /// Clients of several processes want one name on PostgreSQL.
    PostgresContended,
    /// 10,000 leases on PostgreSQL, kept for a minute.
    PostgresHeld,
    /// A job that is due, and one that is not, on every backend.
    Once,
    /// Requests that are new, done and in flight, on every backend.
    Idempotency,
    /// A member joins those who share partitions, and leaves, on every backend of several processes.
    Partitions,
    /// Requests through `ringfence gate`, and through a plain proxy.
    Gate,
}

#[derive(Debug, clap::Subcommand)]
enum Worker {
    /// Contends for a lock until told to stop.
    #[command(hide = true)]
    Contend(processes::Contend),
    /// Holds many leases.
    #[command(hide = true)]
    Hold(held::Hold),
    /// Holds one lease until killed.
    #[command(hide = true)]
    Victim(killed::Victim),
    /// Takes locks on a server for a while.
    #[command(hide = true)]
    Contender(network::whose::Taker),
    /// Holds many leases on a server.
    #[command(hide = true)]
    HoldOnServer(network::hold::Hold),
    /// Shares partitions.
    #[command(hide = true)]
    Members(patterns::partitions::Members),
    /// Answers HTTP requests until killed.
    #[command(hide = true)]
    GateUpstream(gate::Upstream),
    /// Sends HTTP requests for a while.
    #[command(hide = true)]
    GateLoad(gate::Load),
}

fn main() {
    let options = Options::parse();
    match options.worker {
        Some(Worker::Contend(contend)) => return contend.run(),
        Some(Worker::Hold(hold)) => return hold.run(),
        Some(Worker::Victim(victim)) => return victim.run(),
        Some(Worker::Contender(contender)) => return contender.run(),
        Some(Worker::HoldOnServer(hold)) => return hold.run(),
        Some(Worker::Members(members)) => return members.run(),
        Some(Worker::GateUpstream(gate::Upstream {})) => return gate::Upstream::run(),
        Some(Worker::GateLoad(load)) => return load.run(),
        None => {}
    }
    let wanted = |case| options.only.is_empty() || options.only.contains(&case);
    let length = Duration::from_millis(options.millis);
    let mut report = Report::default();
    if wanted(Case::Uncontended) {
        uncontended::measure(&mut report, &options.directory, options.rounds, length);
    }
    if wanted(Case::OneProcess) {
        one_process::measure(&mut report, &options.directory, options.rounds, length);
    }
    if wanted(Case::Processes) {
        processes::measure(&mut report, &options.directory, options.rounds, length);
    }
    if wanted(Case::Killed) {
        killed::measure(&mut report, &options.directory);
    }
    if wanted(Case::Held) {
        held::measure(&mut report, &options.directory, Duration::from_secs(options.held_seconds));
    }
    if wanted(Case::RedisUncontended) {
        redis::uncontended::measure(&mut report, options.rounds, length);
    }
    if wanted(Case::RedisContended) {
        redis::contended::measure(&mut report, options.rounds, length);
    }
    if wanted(Case::RedisHeld) {
        redis::held::measure(&mut report, Duration::from_secs(options.held_seconds));
    }
    if wanted(Case::Redlock) {
        redis::redlock::measure(&mut report, options.rounds, length);
    }
    for (system, [uncontended, contended, held]) in [
        (&etcd::SYSTEM, [Case::EtcdUncontended, Case::EtcdContended, Case::EtcdHeld]),
        (&zookeeper::SYSTEM, [Case::ZookeeperUncontended, Case::ZookeeperContended, Case::ZookeeperHeld]),
    ] {
        if wanted(uncontended) {
            system.uncontended(&mut report, options.servers, options.rounds, length);
        }
        if wanted(contended) {
            system.contended(&mut report, options.servers, options.rounds, length);
        }
        if wanted(held) {
            system.held(&mut report, options.servers);
        }
    }
    if wanted(Case::PostgresUncontended) {
        postgres::uncontended::measure(&mut report, options.rounds, length);
    }
    if wanted(Case::PostgresContended) {
        postgres::contended::measure(&mut report, options.rounds, length);
    }
    if wanted(Case::PostgresHeld) {
        postgres::held::measure(&mut report, Duration::from_secs(options.held_seconds));
    }
    let Options { on, directory, rounds, members, partitions, .. } = &options;
    if wanted(Case::Once) {
        patterns::once::measure(&mut report, on, directory, *rounds, length);
    }
    if wanted(Case::Idempotency) {
        patterns::idempotency::measure(&mut report, on, directory, *rounds, length);
    }
    if wanted(Case::Partitions) {
        patterns::partitions::measure(&mut report, on, directory, *rounds, members, partitions);
    }
    if wanted(Case::Gate) {
        gate::measure(&mut report, &options.directory, options.rounds, length);
    }
    report.write(&options.json);
}
