//! Acquire and release on the majority of five nodes, beside the same on one.

use std::time::Duration;

use super::server::Server;
use crate::network::figures::uncontended as figures;
use crate::network::subject::{Program, Subject, installed, interleave};
#[cfg(feature = "peers")]
use crate::network::whose::Whose;
use crate::report::{Goal, Report};

const NODES: usize = 5;
const OURS: Subject = Subject::new("ringfence redlock", Program::Ours("redlock://HOSTS"));
const OURS_ON_ONE: Subject = Subject::new("ringfence redis, one server", Program::Ours("redis://HOSTS"));
const PEERS: &[Subject] = &[
    #[cfg(feature = "peers")]
    Subject::new("rslock", Program::Here(Whose::Rslock)),
    #[cfg(feature = "peers")]
    Subject::new("distributed-lock", Program::Here(Whose::DistributedLock)),
    Subject::new("node-redlock", Program::Node("node_redlock.js")),
];

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    let Some(nodes) = (0..NODES).map(|_| Server::start()).collect::<Option<Vec<_>>>() else { return };
    let ports: Vec<u16> = nodes.iter().map(Server::port).collect();
    let case = format!("redlock on {NODES} nodes, uncontended, 1 task");
    let take = |subject: &Subject| {
        nodes.iter().for_each(Server::forget);
        let servers = if subject.name == OURS_ON_ONE.name { &ports[..1] } else { &ports };
        figures(subject.take_own(servers, 1, 1, length), length)
    };
    let subjects: Vec<&Subject> = [&OURS, &OURS_ON_ONE].into_iter().chain(installed(PEERS)).collect();
    interleave(report, &case, rounds, &subjects, take, &[]);
    report.ratio(&case, "p50 us", OURS.name, OURS_ON_ONE.name, Goal::AtMost(2.5));
}
