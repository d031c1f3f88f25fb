//! The cases of etcd and `ZooKeeper`, whose locks are replicated writes.

use std::time::Duration;

use crate::network::figures;
use crate::network::hold::{Held, LEASE, LEASES, hold};
use crate::network::meter::Meter;
use crate::network::subject::{HOLD, Subject, held_for, installed, interleave};
use crate::report::{Better, Figure, Figures, Goal, Report};

/// A system: who runs on it, and what is to be reached.
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// Starts so many servers; `None`, and said, where they are not installed.
    pub(crate) start: fn(usize) -> Option<Box<dyn Server>>,
    pub(crate) ours: Subject,
    /// Ours, with the tasks of a process at one `Locks`.
    pub(crate) our_tasks: Subject,
    /// Ours, with the waiters of a process at one backend.
    pub(crate) our_waiters: Subject,
    /// One write for the lock and one for its release.
    pub(crate) raw: Subject,
    /// One write of a process, seen by the watch of another.
    pub(crate) event: Subject,
    /// The same, and then a write of the one that has seen it.
    pub(crate) event_and_write: Subject,
    pub(crate) peers: &'static [Subject],
    /// Those who can run no second task.
    pub(crate) peers_of_one_task: &'static [Subject],
    /// Those who contend.
    pub(crate) peers_in_line: &'static [Subject],
    /// Of 128 tasks, by those of the raw writes.
    pub(crate) pairs_by_raw: Goal,
    /// Of ours, by that of each.
    pub(crate) handover_by_peers: &'static [(Subject, Goal)],
}

/// Servers of the benchmark's own.
pub(crate) trait Server {
    fn ports(&self) -> Vec<u16>;

    /// Has the server forget what was deleted, between two subjects.
    fn forget(&self);

    /// How many messages came that keep leases or sessions alive, and maybe others with them.
    fn keep_alives(&self) -> usize;

    /// How many messages came.
    fn calls(&self) -> usize;
}

impl System {
    /// Acquire and release, each task a name of its own.
    pub(crate) fn uncontended(&self, report: &mut Report, servers: usize, rounds: usize, length: Duration) {
        let Some(server) = (self.start)(servers) else { return };
        let ports = server.ports();
        let peers = installed(self.peers);
        for tasks in [1, 16, 128] {
            let case = self.case(servers, &format!("uncontended, {tasks} tasks"));
            let mut subjects = vec![&self.ours, &self.raw];
            subjects.extend(&peers);
            if tasks == 1 {
                subjects.extend(installed(self.peers_of_one_task));
            }
            let take =
                |subject: &Subject| figures::uncontended(subject.take_own(&ports, tasks, 1, length), length);
            interleave(report, &case, rounds, &subjects, take, &[]);

            let (ours, raw) = (self.ours.name, self.raw.name);
            let (p50, p99, pairs) = match tasks {
                1 => (Goal::AtMost(1.15), COMPARED, COMPARED),
                128 => (COMPARED, Goal::AtMost(1.0), self.pairs_by_raw),
                _ => (COMPARED, COMPARED, COMPARED),
            };
            report.ratio(&case, "p50 us", ours, raw, p50);
            report.ratio(&case, "p99 us", ours, raw, p99);
            report.ratio(&case, "pairs/s", ours, raw, pairs);
            let names: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
            if let Some(best) = report.best(&case, "pairs/s", Better::More, &names) {
                report.ratio(&case, "pairs/s", ours, best, COMPARED);
            }
        }
    }

    /// Clients of several processes want one name.
    pub(crate) fn contended(&self, report: &mut Report, servers: usize, rounds: usize, length: Duration) {
        let Some(server) = (self.start)(servers) else { return };
        let ports = server.ports();
        let peers = installed(self.peers_in_line);
        for (waiters, hold) in [(1, Duration::ZERO), (16, Duration::ZERO), (1, HOLD), (16, HOLD)] {
            let case = self.case(servers, &format!("contended, {waiters} waiters{}", held_for(hold)));
            let contend = |subject: &Subject| {
                server.forget();
                let subject = subject.holding(hold);
                let (outcome, _) = subject.take_same(&ports, waiters + 1, length / 4, length, &|| 0);
                figures::contended(outcome, length)
            };
            let signal = |subject: &Subject| {
                let (mut outcome, _) = subject.holding(hold).take_same(&ports, 2, length / 4, length, &|| 0);
                Figures::from([("handover p50 us", outcome.handovers.micros_at(0.5))])
            };
            let (event, event_and_write) = (|| signal(&self.event), || signal(&self.event_and_write));
            let signals: [(&'static str, &dyn Fn() -> Figures); 2] =
                [(self.event.name, &event), (self.event_and_write.name, &event_and_write)];
            let subjects: Vec<&Subject> = [&self.ours].into_iter().chain(peers.iter().copied()).collect();
            interleave(report, &case, rounds, &subjects, contend, &signals);

            let ours = self.ours.name;
            report.ratio(&case, "handover p50 us", ours, self.event.name, Goal::AtMost(1.3));
            report.ratio(&case, "handover p50 us", ours, self.event_and_write.name, COMPARED);
            for (peer, goal) in self.handover_by_peers {
                if peers.iter().any(|here| here.name == peer.name) {
                    report.ratio(&case, "handover p50 us", ours, peer.name, *goal);
                    report.ratio(&case, "handovers/s", ours, peer.name, COMPARED);
                }
            }
            // Who holds it for long has it too seldom for that to say anything.
            if waiters > 1 && hold.is_zero() {
                report.check(Figure { case: &case, subject: ours, name: "fairness" }, Goal::AtMost(1.2));
            }
        }
        drop(server);
        self.read(report, servers, rounds, length);
    }

    /// What clients read of a server while a lock is handed over, by the length of the line.
    fn read(&self, report: &mut Report, servers: usize, rounds: usize, length: Duration) {
        let cases = [10, 100, 1000].map(|waiters: u64| {
            let case = self.case(servers, &format!("contended, {waiters} waiters, through a meter"));
            // A thousand have to come first, and to have their turn a few times.
            let (settle, length) =
                if waiters > 100 { (12 * length, 8 * length) } else { (length / 4, length) };
            #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
            let contend = |subject: &Subject| {
                // A new one, because what so many clients leave behind ends in the middle of the next run.
                let server = (self.start)(servers).expect("a server that was there before");
                let meter = Meter::before(server.ports()[0]);
                let (outcome, read) =
                    subject.take_same(&[meter.port()], waiters + 1, settle, length, &|| meter.read());
                let handovers = outcome.handovers.len();
                let mut figures = figures::contended(outcome, length);
                figures.insert("bytes read/handover", read as f64 / handovers as f64);
                figures
            };
            interleave(report, &case, rounds, &[&self.our_waiters, &self.our_tasks], contend, &[]);
            case
        });
        for subject in [self.our_waiters.name, self.our_tasks.name] {
            let read = |case| Figure { case, subject, name: "bytes read/handover" };
            report.compare(read(&cases[1]), read(&cases[0]), COMPARED);
            report.compare(read(&cases[2]), read(&cases[0]), Goal::AtMost(1.5));
        }
    }

    /// 10,000 leases, kept for five times their TTL.
    pub(crate) fn held(&self, report: &mut Report, servers: usize) {
        let Some(server) = (self.start)(servers) else { return };
        let length = 5 * LEASE;
        let what = format!("{LEASES} leases of {} s held for {} s", LEASE.as_secs(), length.as_secs());
        let case = self.case(servers, &what);
        // Ours renews at a third of the TTL or a little later, and together what was taken together.
        let renewals = length.as_secs_f64() / (LEASE.as_secs_f64() / 3.0);
        #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
        let ours = || {
            let Held { processor, lost, counted } =
                hold(server.ports()[0], &["--url", &format!("{}://HOSTS", self.name)], length, || {
                    vec![server.keep_alives(), server.calls()]
                });
            Figures::from([
                ("% of a core", processor),
                ("lost", lost as f64),
                ("keep-alives/renewal", counted[0] as f64 / renewals),
                ("messages/renewal", counted[1] as f64 / renewals),
            ])
        };
        report.interleave(&case, 1, &[(self.ours.name, &ours)]);
        for (name, goal) in [("keep-alives/renewal", Goal::AtMost(1.0)), ("lost", Goal::AtMost(0.0))] {
            report.check(Figure { case: &case, subject: self.ours.name, name }, goal);
        }
    }

    fn case(&self, servers: usize, what: &str) -> String {
        match servers {
            1 => format!("{}, {what}", self.name),
            several => format!("{}, {several} servers, {what}", self.name),
        }
    }
}

const COMPARED: Goal = Goal::None("for comparison");
