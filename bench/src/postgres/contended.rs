//! Clients of several processes want one name.

use std::time::Duration;

use super::server::Server;
use super::{COMPARED, DISTRIBUTED_LOCK, RECIPES};
use crate::network::figures;
use crate::network::subject::{HOLD, Program, Subject, held_for, installed, interleave};
use crate::network::whose::Whose;
use crate::report::{Figure, Figures, Goal, Report};

/// The most processes that contend, each with a client of its own.
const PROCESSES: u64 = 32;

const PEERS: &[Subject] = &[
    #[cfg(feature = "peers")]
    super::SQLX.in_processes(PROCESSES),
    DISTRIBUTED_LOCK.in_processes(PROCESSES),
    Subject::new("upsert and release, every 1 ms", Program::Here(Whose::PostgresLeases))
        .in_processes(PROCESSES)
        .pausing(1),
];

const BOUND: Subject = Subject::new("2 round trips and a commit", Program::Here(Whose::PostgresRoundTrips));
/// Two clients on a core each, as those that contend: left alone, the kernel puts client and server on one core.
const BOUND_APART: &str = "2 round trips and a commit, on each of two cores";

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    between_processes(report, rounds, length);
    in_line(report, rounds, length);
}

/// Each client is a process.
fn between_processes(report: &mut Report, rounds: usize, length: Duration) {
    let Some(server) = Server::start() else { return };
    let peers = installed(PEERS);
    let ours = RECIPES.each_ref().map(|recipe| recipe.ours.in_processes(PROCESSES));
    let sizes = [2, 8, PROCESSES];
    let cases = [Duration::ZERO, HOLD].into_iter().flat_map(|hold| sizes.map(|processes| (processes, hold)));
    for (processes, hold) in cases {
        let case = format!("postgres, contended, {processes} processes{}", held_for(hold));
        let take = |subject: &Subject| {
            server.forget();
            let subject = subject.holding(hold);
            let (outcome, _) = subject.take_same(&[server.port()], processes, length / 4, length, &|| 0);
            figures::contended(outcome, length)
        };
        let bound = |clients| {
            server.forget();
            let mut outcome = BOUND.holding(hold).take_own(&[server.port()], 1, clients, length);
            Figures::from([("p50 us", outcome.pairs.micros_at(0.5))])
        };
        let (alone, apart) = (|| bound(1), || bound(2));
        let bounds: [(&'static str, &dyn Fn() -> Figures); 2] = [(BOUND.name, &alone), (BOUND_APART, &apart)];
        let subjects: Vec<&Subject> = ours.iter().chain(peers.iter().copied()).collect();
        interleave(report, &case, rounds, &subjects, take, &bounds);

        for Subject { name: subject, .. } in ours {
            let ours = |name| Figure { case: &case, subject, name };
            for (bound, goal) in [(BOUND.name, Goal::AtMost(1.0)), (BOUND_APART, COMPARED)] {
                let bound = Figure { case: &case, subject: bound, name: "p50 us" };
                report.compare(ours("handover p50 us"), bound, goal);
            }
            // Who holds it for long has it too seldom for that to say anything.
            if hold.is_zero() {
                report.check(ours("fairness"), Goal::AtMost(1.2));
            }
            for peer in &peers {
                report.ratio(&case, "handovers/s", subject, peer.name, COMPARED);
            }
        }
    }
}

/// Many clients of a few processes, whose connections they share.
fn in_line(report: &mut Report, rounds: usize, length: Duration) {
    let Some(server) = Server::start() else { return };
    let cases = [1, 10, 100, 1000].map(|waiters: u64| {
        let case = format!("postgres, contended, {waiters} waiters");
        // A thousand have to come first, and to have their turn a few times.
        let (settle, length) = if waiters > 100 { (2 * length, 3 * length) } else { (length / 4, length) };
        #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
        let take = |subject: &Subject| {
            server.forget();
            let (outcome, writes) =
                subject.take_same(&[server.port()], waiters + 1, settle, length, &|| server.writes());
            let handovers = outcome.handovers.len();
            let mut figures = figures::contended(outcome, length);
            figures.insert("writes/handover", writes as f64 / handovers as f64);
            figures
        };
        let subjects: Vec<&Subject> =
            RECIPES.iter().flat_map(|recipe| [&recipe.our_waiters, &recipe.our_tasks]).collect();
        interleave(report, &case, rounds, &subjects, take, &[]);
        case
    });
    for subject in RECIPES.iter().flat_map(|recipe| [recipe.our_waiters.name, recipe.our_tasks.name]) {
        let figure = |case, name| Figure { case, subject, name };
        let [few, .., many] = &cases;
        report.compare(figure(many, "handover p50 us"), figure(few, "handover p50 us"), Goal::AtMost(1.5));
        report.compare(figure(few, "handovers/s"), figure(many, "handovers/s"), Goal::AtMost(1.5));
    }
}
