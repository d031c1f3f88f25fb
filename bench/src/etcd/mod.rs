//! Ringfence on etcd, beside the bare writes and beside etcd's own locks.

pub(crate) mod clients;
mod driver;
mod server;

use crate::consensus::System;
use crate::network::subject::{Program, Subject};
use crate::network::whose::Whose;
use crate::report::Goal;

pub(crate) const SYSTEM: System = System {
    name: "etcd",
    start: server::start,
    ours: Subject::new("ringfence etcd", Program::Ours("etcd://HOSTS")),
    our_tasks: Subject::new("ringfence etcd, tasks", Program::OurTasks("etcd://HOSTS")),
    our_waiters: Subject::new("ringfence etcd", Program::OurWaiters("etcd://HOSTS")),
    raw: Subject::new("Put and DeleteRange, tonic", Program::Here(Whose::EtcdWrites)),
    event: Subject::new("a Put and its event", Program::Here(Whose::EtcdEvent)),
    event_and_write: Subject::new("a Put, its event, a Put", Program::Here(Whose::EtcdEventAndWrite)),
    peers: &[LOCK_SERVICE],
    peers_of_one_task: &[ETCDCTL],
    peers_in_line: &[LOCK_SERVICE, ETCDCTL],
    pairs_by_raw: Goal::AtLeast(3.0),
    handover_by_peers: &[(LOCK_SERVICE, Goal::AtMost(1.0 / 10.0)), (ETCDCTL, Goal::AtMost(1.0 / 10.0))],
};

const LOCK_SERVICE: Subject =
    Subject::new("etcd's lock service, tonic", Program::Here(Whose::EtcdLockService));
const ETCDCTL: Subject = Subject::new("etcdctl lock, a process each", Program::Here(Whose::Etcdctl));
