//! Acquire and release, each task a name of its own.

use std::process::Command;
use std::time::Duration;

use super::clients::COMPARE_AND_DELETE;
use super::server::Server;
use crate::network::figures::uncontended as figures;
use crate::network::subject::{Program, Subject, installed, interleave};
use crate::network::whose::Whose;
use crate::report::{Better, Figures, Goal, Report};

const OURS: Subject = Subject::new("ringfence redis", Program::Ours("redis://HOSTS"));
const RAW: Subject = Subject::new("SET and EVALSHA, redis-rs", Program::Here(Whose::RedisCommands));
const PEERS: &[Subject] = &[
    #[cfg(feature = "peers")]
    Subject::new("rslock", Program::Here(Whose::Rslock)),
    #[cfg(feature = "peers")]
    Subject::new("distributed-lock", Program::Here(Whose::DistributedLock)),
    Subject::new("redis-py", Program::Python("redis_py.py")),
    Subject::new("node-redlock", Program::Node("node_redlock.js")),
];

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    let Some(server) = Server::start() else { return };
    let release = server.command(&["script", "load", COMPARE_AND_DELETE]);
    let peers = installed(PEERS);
    let has_limit = ringfence_servers::require("redis-benchmark").is_some();
    for tasks in [1, 16, 128] {
        let case = format!("redis, uncontended, {tasks} tasks");
        let take = |subject: &Subject| {
            server.forget();
            figures(subject.take_own(&[server.port()], tasks, 1, length), length)
        };
        let limit = |connections, pipelined| {
            server.forget();
            limit(server.port(), &release, connections, pipelined, length)
        };
        let (each, one) = (|| limit(tasks, 1), || limit(1, tasks));
        let mut limits: Vec<(&'static str, &dyn Fn() -> Figures)> = Vec::new();
        if has_limit {
            limits.push(("redis-benchmark, a connection each", &each));
            if tasks > 1 {
                limits.push(("redis-benchmark, all on one", &one));
            }
        }
        let subjects: Vec<&Subject> = [&OURS, &RAW].into_iter().chain(peers.iter().copied()).collect();
        interleave(report, &case, rounds, &subjects, take, &limits);

        if tasks == 1 {
            report.ratio(&case, "p50 us", OURS.name, RAW.name, Goal::AtMost(1.15));
        }
        let (of_raw, of_peers) = match tasks {
            128 => (Goal::AtLeast(0.9), Goal::AtLeast(1.3)),
            _ => (Goal::None("for comparison"), Goal::None("for comparison")),
        };
        report.ratio(&case, "pairs/s", OURS.name, RAW.name, of_raw);
        let names: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
        if let Some(best) = report.best(&case, "pairs/s", Better::More, &names) {
            report.ratio(&case, "pairs/s", OURS.name, best, of_peers);
        }
    }
}

/// What the server can do when the client costs next to nothing: the raw pair's two commands, one after the other for as
/// many names, by a program in C. A pair takes what its two commands take.
fn limit(port: u16, release: &str, connections: u64, pipelined: u64, length: Duration) -> Figures {
    let requests = (length.as_millis() * 50).max(1000);
    let rate = |command: &[&str]| -> f64 {
        let output = Command::new("redis-benchmark")
            .args(["-p", &port.to_string(), "-n", &requests.to_string(), "-r", "100000", "--csv"])
            .args(["-c", &connections.to_string(), "-P", &pipelined.to_string()])
            .args(command)
            .output()
            .expect("redis-benchmark");
        let text = String::from_utf8_lossy(&output.stdout);
        let fields: Vec<&str> = text.lines().last().unwrap_or_default().split("\",\"").collect();
        fields.get(1).and_then(|rate| rate.parse().ok()).unwrap_or_else(|| panic!("no rate in {text}"))
    };
    let name = "bench/__rand_int__";
    let set = rate(&["SET", name, "value", "NX", "PX", "30000"]);
    let delete = rate(&["EVALSHA", release, "1", name, "value"]);
    Figures::from([("pairs/s", 1.0 / (1.0 / set + 1.0 / delete))])
}
