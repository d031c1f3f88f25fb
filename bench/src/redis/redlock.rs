//! Acquire and release on the majority of five nodes, beside the same on one.

use std::time::Duration;

use super::contender::Whose;
use super::server::Server;
use super::subject::{Program, Subject, installed};
use super::uncontended::figures;
use crate::report::{Figures, Goal, Report};

const NODES: usize = 5;
const OURS: Subject = Subject::new("ringfence redlock", Program::Here(Whose::Ringfence));
const OURS_ON_ONE: Subject = Subject::new("ringfence redis, one server", Program::Here(Whose::Ringfence));
const PEERS: &[Subject] = &[
    #[cfg(feature = "peers")]
    Subject::new("rslock", Program::Here(Whose::Rslock)),
    #[cfg(feature = "peers")]
    Subject::new("distributed-lock", Program::Here(Whose::DistributedLock)),
    Subject::new("node-redlock", Program::Node),
];

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    let Some(nodes) = (0..NODES).map(|_| Server::start()).collect::<Option<Vec<_>>>() else { return };
    let ports: Vec<u16> = nodes.iter().map(Server::port).collect();
    let case = format!("redlock on {NODES} nodes, uncontended, 1 task");
    let take = |subject: Subject, servers| {
        let nodes = &nodes;
        move || {
            nodes.iter().for_each(Server::forget);
            figures(subject.take_own(servers, 1, 1, length), length)
        }
    };
    let mut runs =
        vec![(OURS.name, take(OURS, &ports[..])), (OURS_ON_ONE.name, take(OURS_ON_ONE, &ports[..1]))];
    runs.extend(installed(PEERS).into_iter().map(|peer| (peer.name, take(*peer, &ports[..]))));
    let subjects: Vec<(&'static str, &dyn Fn() -> Figures)> =
        runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> Figures)).collect();
    report.interleave(&case, rounds, &subjects);
    report.ratio(&case, "p50 us", OURS.name, OURS_ON_ONE.name, Goal::AtMost(2.5));
}
