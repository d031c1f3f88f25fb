//! Ringfence on `ZooKeeper`, beside the bare writes and beside the locks of three clients.

pub(crate) mod clients;
#[cfg(feature = "peers")]
pub(crate) mod crates;
mod driver;
mod server;

use crate::consensus::System;
use crate::network::subject::{Program, Subject};
use crate::network::whose::Whose;
use crate::report::Goal;

pub(crate) const SYSTEM: System = System {
    name: "zookeeper",
    start: server::start,
    ours: Subject::new("ringfence zookeeper", Program::Ours("zookeeper://HOSTS")),
    our_tasks: Subject::new("ringfence zookeeper, tasks", Program::OurTasks("zookeeper://HOSTS")),
    our_waiters: Subject::new("ringfence zookeeper", Program::OurWaiters("zookeeper://HOSTS")),
    raw: Subject::new("create and delete, a bare socket", Program::Here(Whose::ZookeeperWrites)),
    event: Subject::new("a setData and its event", Program::Here(Whose::ZookeeperEvent)),
    event_and_write: Subject::new(
        "a setData, its event, a setData",
        Program::Here(Whose::ZookeeperEventAndWrite),
    ),
    peers: &[
        #[cfg(feature = "peers")]
        CRATE,
        CURATOR,
        KAZOO,
    ],
    peers_of_one_task: &[],
    peers_in_line: &[
        #[cfg(feature = "peers")]
        CRATE,
        CURATOR,
        KAZOO,
    ],
    pairs_by_raw: Goal::AtLeast(1.5),
    handover_by_peers: &[
        #[cfg(feature = "peers")]
        (CRATE, Goal::AtMost(1.0 / 1.5)),
        (CURATOR, Goal::AtMost(1.0 / 1.5)),
        (KAZOO, Goal::None("for comparison")),
    ],
};

#[cfg(feature = "peers")]
const CRATE: Subject = Subject::new("zookeeper-client's lock", Program::Here(Whose::ZookeeperClient));
const CURATOR: Subject = Subject::new("Curator's InterProcessMutex", Program::Java("Curator.java"));
const KAZOO: Subject = Subject::new("kazoo's Lock", Program::Python("kazoo_lock.py"));
