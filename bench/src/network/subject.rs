//! Who runs in a case, and how its processes are started.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::whose::Whose;
use crate::contender::Outcome;
use crate::contest::Contest;
use crate::report::{Figures, Report};

/// A program that takes locks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    /// This one, with our own locks: their URL, with `HOSTS` where the servers are to stand.
    Ours(&'static str),
    /// The same, where the clients of a process are tasks that share its `Locks`.
    OurTasks(&'static str),
    /// The same, where the clients of a process are waiters of one backend.
    OurWaiters(&'static str),
    /// This one.
    Here(Whose),
    /// A program there for a crate that cannot be built beside ours.
    Rust(&'static str),
    /// Scripts there.
    Python(&'static str),
    Node(&'static str),
    /// A program for Curator there.
    Java(&'static str),
}

/// A subject: a program and, for one that polls, its pause between two attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    program: Program,
    pause: Option<Duration>,
    hold: Duration,
    processes_max: u64,
}

/// The most processes of clients that want the same lock, unless a subject says otherwise; more clients than these share one.
pub(crate) const PROCESSES_MAX: u64 = 17;

/// How long a lock is held that protects some work: long enough for who had it before to be in line again, which costs a server the most.
pub(crate) const HOLD: Duration = Duration::from_millis(5);

/// What the name of a case says of that.
pub(crate) fn held_for(hold: Duration) -> String {
    if hold.is_zero() { String::new() } else { format!(", held for {} ms", hold.as_millis()) }
}

/// Each machine of Java costs as much as all others together.
const JAVA_PROCESSES_MAX: u64 = 2;

impl Subject {
    pub(crate) const fn new(name: &'static str, program: Program) -> Self {
        let processes_max = if let Program::Java(_) = program { JAVA_PROCESSES_MAX } else { PROCESSES_MAX };
        Self { name, program, pause: None, hold: Duration::ZERO, processes_max }
    }

    pub(crate) const fn pausing(self, millis: u64) -> Self {
        Self { pause: Some(Duration::from_millis(millis)), ..self }
    }

    /// The same, where who has the lock that all want holds it for so long.
    pub(crate) fn holding(self, hold: Duration) -> Self {
        Self { hold, ..self }
    }

    /// The same, in up to so many processes.
    pub(crate) const fn in_processes(self, most: u64) -> Self {
        Self { processes_max: most, ..self }
    }

    /// Whether it waits as it does by default.
    pub(crate) fn has_own_pace(&self) -> bool {
        self.pause.is_none()
    }

    /// Runs processes with so many tasks each, whose tasks have a lock each.
    pub(crate) fn take_own(&self, servers: &[u16], tasks: u64, processes: u64, length: Duration) -> Outcome {
        let processes = (0..processes).map(|at| self.process(servers, tasks, at * tasks + 1, length));
        all(Contest::prepare(processes.collect()).go().outcomes())
    }

    /// Runs so many clients, spread over several processes, that want the same lock. What happens while they `settle` does not
    /// count. Returns what was counted from then on as well.
    pub(crate) fn take_same(
        &self,
        servers: &[u16],
        clients: u64,
        settle: Duration,
        length: Duration,
        count: &dyn Fn() -> usize,
    ) -> (Outcome, usize) {
        let place = tempfile::tempdir().expect("a directory");
        let processes = clients.min(self.processes_max);
        let processes = (0..processes).map(|at| {
            let (first, end) = (clients * at / processes, clients * (at + 1) / processes);
            let mut process = self.process(servers, end - first, first + 1, length);
            process.args(["--settle-ms", &settle.as_millis().to_string()]);
            process.arg("--inside").arg(place.path().join("inside"));
            process
        });
        let contest = Contest::prepare(processes.collect()).go();
        std::thread::sleep(settle);
        let before = count();
        std::thread::sleep(length);
        let counted = count() - before;
        (all(contest.outcomes()), counted)
    }

    fn process(&self, servers: &[u16], tasks: u64, id: u64, length: Duration) -> Command {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let mut command = self.command().expect("a program that was found");
        command.args([
            "--servers",
            &servers.join(","),
            "--tasks",
            &tasks.to_string(),
            "--id",
            &id.to_string(),
        ]);
        command.args(["--millis", &length.as_millis().to_string()]);
        if !self.hold.is_zero() {
            command.args(["--hold-ms", &self.hold.as_millis().to_string()]);
        }
        if let Some(pause) = self.pause {
            command.args(["--pause-ms", &pause.as_millis().to_string()]);
        }
        command
    }

    fn command(&self) -> Option<Command> {
        let script = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name);
        let ours = |whose: Whose, url| {
            let mut command = whose.program();
            command.args(["--url", url]);
            Some(command)
        };
        match self.program {
            Program::Ours(url) => ours(Whose::Ringfence, url),
            Program::OurTasks(url) => ours(Whose::Tasks, url),
            Program::OurWaiters(url) => ours(Whose::Waiters, url),
            Program::Here(Whose::Etcdctl) => {
                ringfence_servers::require("etcdctl").map(|_| Whose::Etcdctl.program())
            }
            Program::Here(whose) => Some(whose.program()),
            Program::Rust(name) => built(name),
            Program::Python(name) => {
                let mut command = ringfence_servers::python()?;
                command.arg(script(name));
                Some(command)
            }
            Program::Node(name) => {
                let mut command = ringfence_servers::node()?;
                command.arg(script(name));
                Some(command)
            }
            Program::Java(name) => {
                let mut command = ringfence_servers::curator()?;
                // As a service would run it, and not as a test does that is over in a moment.
                command.args(["-XX:TieredStopAtLevel=4", "-Xmx256m"]).arg(script(name));
                Some(command)
            }
        }
    }
}

/// A program of `bench/peers`, where `cargo xtask bench` could build it.
fn built(name: &str) -> Option<Command> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("it is in a workspace");
    let program = workspace.join("target/peers/rust/release").join(name);
    if !program.is_file() {
        ringfence_servers::skip(name, "not built; `cargo xtask bench` says why");
        return None;
    }
    Some(Command::new(program))
}

/// Those whose programs are here; of the others it is said that they are not.
pub(crate) fn installed(subjects: &[Subject]) -> Vec<&Subject> {
    if cfg!(not(feature = "peers")) {
        ringfence_servers::skip("other people's crates", "not built; build them by: --features peers");
    }
    subjects.iter().filter(|subject| subject.command().is_some()).collect()
}

/// What several processes report, together.
fn all(outcomes: Vec<Outcome>) -> Outcome {
    let mut all = Outcome::default();
    for outcome in outcomes {
        all.append(outcome);
    }
    all
}

/// Runs subjects of a case, and beside them others that are no contenders.
pub(crate) fn interleave(
    report: &mut Report,
    case: &str,
    rounds: usize,
    subjects: &[&Subject],
    run: impl Fn(&Subject) -> Figures,
    others: &[(&'static str, &dyn Fn() -> Figures)],
) {
    let run = &run;
    let runs: Vec<_> = subjects.iter().map(|subject| (subject.name, move || run(subject))).collect();
    let mut all: Vec<(&'static str, &dyn Fn() -> Figures)> =
        runs.iter().map(|(name, run)| (*name, run as &dyn Fn() -> Figures)).collect();
    all.extend_from_slice(others);
    report.interleave(case, rounds, &all);
}

#[cfg(test)]
mod tests {
    use ringfence_servers::{Ensemble, RedisServer};

    use super::*;

    const LENGTH: Duration = Duration::from_millis(500);

    /// The servers that the scripts need.
    struct Servers {
        redis: Option<RedisServer>,
        zookeeper: Option<Ensemble>,
        _runtime: tokio::runtime::Runtime,
    }

    impl Servers {
        fn start() -> Self {
            let runtime = crate::small_runtime();
            let redis = runtime.block_on(RedisServer::start());
            let zookeeper = runtime.block_on(Ensemble::start());
            Self { redis, zookeeper, _runtime: runtime }
        }

        /// The scripts, as far as they and their servers are installed, and where their server is.
        fn scripts(&self) -> Vec<(Subject, u16)> {
            let redis = self.redis.as_ref().map(RedisServer::port);
            let zookeeper = self.zookeeper.as_ref().map(|ensemble| ensemble.ports()[0]);
            let scripts = [
                (Subject::new("redis-py", Program::Python("redis_py.py")).pausing(1), redis),
                (Subject::new("node-redlock", Program::Node("node_redlock.js")).pausing(1), redis),
                (Subject::new("kazoo", Program::Python("kazoo_lock.py")), zookeeper),
                (Subject::new("Curator", Program::Java("Curator.java")), zookeeper),
            ];
            let is_here = |(script, port): (Subject, Option<u16>)| {
                port.filter(|_| script.command().is_some()).map(|port| (script, port))
            };
            scripts.into_iter().filter_map(is_here).collect()
        }
    }

    #[test]
    fn every_task_of_a_script_has_a_lock_of_its_own() {
        let servers = Servers::start();
        for (script, port) in servers.scripts() {
            for tasks in [1, 3] {
                let Outcome { counts, pairs, waits, handovers, lost } =
                    script.take_own(&[port], tasks, 1, LENGTH);
                assert_eq!(counts.len() as u64, tasks, "{script:?}");
                assert_eq!(counts.iter().sum::<usize>(), pairs.len(), "{script:?}");
                assert!(counts.iter().all(|count| *count > 0), "{script:?} with {tasks} tasks: {counts:?}");
                assert_eq!((waits.len(), handovers.len(), lost), (0, 0, 0), "{script:?}");
            }
        }
    }

    #[test]
    fn scripts_contend_for_one_lock_and_see_who_was_there_before() {
        let servers = Servers::start();
        for (script, port) in servers.scripts() {
            let (outcome, _) = script.take_same(&[port], 2, LENGTH, LENGTH, &|| 0);
            let Outcome { counts, waits, handovers, .. } = outcome;
            assert_eq!(counts.len(), 2, "{script:?}");
            assert!(counts.iter().all(|count| *count > 0), "{script:?}: {counts:?}");
            // The second one came after the first, at least once.
            assert!(handovers.len() > 0 && handovers.len() == waits.len(), "{script:?}: {counts:?}");
        }
    }

    #[test]
    fn what_settles_does_not_count() {
        let servers = Servers::start();
        for (script, port) in servers.scripts() {
            let (outcome, _) = script.take_same(&[port], 2, LENGTH, Duration::ZERO, &|| 0);
            assert_eq!((outcome.counts, outcome.waits.len()), (vec![0, 0], 0), "{script:?}");
        }
    }
}
