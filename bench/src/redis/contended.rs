//! Clients of several processes want one name.

use std::time::Duration;

use super::server::Server;
use crate::network::figures;
use crate::network::subject::{HOLD, Program, Subject, held_for, installed, interleave};
use crate::network::whose::Whose;
use crate::report::{Better, Figure, Figures, Goal, Report};

const OURS: Subject = Subject::new("ringfence redis", Program::Ours("redis://HOSTS"));
const PING: Subject = Subject::new("PING", Program::Here(Whose::RedisPing));
/// Two clients on a core each, as those that contend: left alone, the kernel puts client and server on one core.
const PING_APART: &str = "PING, from each of two cores";
/// Each with the pause that it has by default, where it has one, and with the shortest one that leaves the server room.
const PEERS: &[Subject] = &[
    Subject::new("SET and EVALSHA, every 1 ms", Program::Here(Whose::RedisCommands)).pausing(1),
    #[cfg(feature = "peers")]
    Subject::new("rslock", Program::Here(Whose::Rslock)),
    // It pauses for whole milliseconds less than this.
    #[cfg(feature = "peers")]
    Subject::new("rslock, up to 1 ms", Program::Here(Whose::Rslock)).pausing(2),
    #[cfg(feature = "peers")]
    Subject::new("distributed-lock, every 1 ms", Program::Here(Whose::DistributedLock)).pausing(1),
    Subject::new("redis-py", Program::Python("redis_py.py")),
    Subject::new("redis-py, every 1 ms", Program::Python("redis_py.py")).pausing(1),
    Subject::new("node-redlock", Program::Node("node_redlock.js")),
    Subject::new("node-redlock, every 1 ms", Program::Node("node_redlock.js")).pausing(1),
];

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    let Some(server) = Server::start() else { return };
    let few = contend(report, &server, rounds, length, 1, Duration::ZERO, &[]);

    let peers = installed(PEERS);
    let case = contend(report, &server, rounds, length, 16, Duration::ZERO, &peers);
    let held = contend(report, &server, rounds, length, 16, HOLD, &peers);
    for case in [&case, &held] {
        let ours = |name| Figure { case, subject: OURS.name, name };
        for (subject, goal) in [(PING.name, Goal::AtMost(1.5)), (PING_APART, Goal::None("for comparison"))] {
            report.compare(ours("handover p50 us"), Figure { case, subject, name: "p50 us" }, goal);
        }
    }
    report.check(Figure { case: &case, subject: OURS.name, name: "fairness" }, Goal::AtMost(1.2));
    let own_pace: Vec<&str> = peers.iter().filter(|peer| peer.has_own_pace()).map(|peer| peer.name).collect();
    if let Some(best) = report.best(&case, "handovers/s", Better::More, &own_pace) {
        report.ratio(
            &case,
            "handovers/s",
            OURS.name,
            best,
            Goal::None("for comparison: the best at its own pace"),
        );
    }
    let names: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
    if let Some(best) = report.best(&case, "handovers/s", Better::More, &names) {
        report.ratio(&case, "handovers/s", OURS.name, best, Goal::AtLeast(10.0));
    }
    if let Some(best) = report.best(&case, "wait p99 us", Better::Less, &names) {
        report.ratio(&case, "wait p99 us", OURS.name, best, Goal::AtMost(1.0 / 20.0));
    }

    // Longer, because a thousand have to come, and to have their turn a few times.
    let many = contend(report, &server, rounds, 3 * length, 1000, Duration::ZERO, &[]);
    let ours = |case, name| Figure { case, subject: OURS.name, name };
    report.compare(ours(&many, "handover p50 us"), ours(&few, "handover p50 us"), Goal::AtMost(1.5));
    report.compare(ours(&few, "handovers/s"), ours(&many, "handovers/s"), Goal::AtMost(1.5));
}

/// One holds the lock, for so long each time, and so many wait for it, all the time; the name of the case.
fn contend(
    report: &mut Report,
    server: &Server,
    rounds: usize,
    length: Duration,
    waiters: u64,
    hold: Duration,
    peers: &[&Subject],
) -> String {
    let case = format!("redis, contended, {waiters} waiters{}", held_for(hold));
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let take = |subject: &Subject| {
        server.forget();
        let executed = || server.executed();
        let (outcome, executed) =
            subject.holding(hold).take_same(&[server.port()], waiters + 1, length / 4, length, &executed);
        let handovers = outcome.handovers.len();
        let mut figures = figures::contended(outcome, length);
        figures.insert("commands/handover", executed as f64 / handovers as f64);
        figures
    };
    let ping = |processes| {
        let mut outcome = PING.holding(hold).take_own(&[server.port()], 1, processes, length);
        Figures::from([("p50 us", outcome.pairs.micros_at(0.5))])
    };
    let (ping_alone, ping_apart) = (|| ping(1), || ping(2));
    let subjects: Vec<&Subject> = [&OURS].into_iter().chain(peers.iter().copied()).collect();
    let pings: [(&'static str, &dyn Fn() -> Figures); 2] =
        [(PING.name, &ping_alone), (PING_APART, &ping_apart)];
    interleave(report, &case, rounds, &subjects, take, &pings);
    case
}
