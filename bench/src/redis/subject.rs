//! Who runs in a case, and how its processes are started.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum;

use super::contender::{Outcome, Whose};
use crate::contest::Contest;

/// A program that takes locks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    /// This one.
    Here(Whose),
    /// redis-py.
    Python,
    /// node-redlock.
    Node,
}

/// A subject: a program and, for one that polls, its pause between two attempts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    pub(crate) name: &'static str,
    program: Program,
    pause: Option<Duration>,
}

impl Subject {
    pub(crate) const fn new(name: &'static str, program: Program) -> Self {
        Self { name, program, pause: None }
    }

    pub(crate) const fn pausing(self, millis: u64) -> Self {
        Self { pause: Some(Duration::from_millis(millis)), ..self }
    }

    /// Whether it waits as it does by default.
    pub(crate) fn has_own_pace(&self) -> bool {
        self.pause.is_none()
    }

    /// Runs processes with so many tasks each, whose tasks have a lock each.
    pub(crate) fn take_own(&self, servers: &[u16], tasks: u64, processes: u64, length: Duration) -> Outcome {
        run((0..processes).map(|at| self.process(servers, tasks, at * tasks + 1, length)).collect())
    }

    /// Runs so many clients, spread over so many processes, that want the same lock.
    pub(crate) fn take_same(
        &self,
        server: u16,
        clients: u64,
        processes: u64,
        inside: &Path,
        length: Duration,
    ) -> Outcome {
        let processes = (0..processes).map(|at| {
            let (first, end) = (clients * at / processes, clients * (at + 1) / processes);
            let mut process = self.process(&[server], end - first, first + 1, length);
            process.arg("--inside").arg(inside);
            process
        });
        run(processes.collect())
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
        if let Some(pause) = self.pause {
            command.args(["--pause-ms", &pause.as_millis().to_string()]);
        }
        command
    }

    fn command(&self) -> Option<Command> {
        let script = |name| Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(name);
        match self.program {
            Program::Here(whose) => {
                let mut command = Command::new(std::env::current_exe().expect("this program"));
                let whose = whose.to_possible_value().expect("a name");
                command.args(["redis-contender", "--whose", whose.get_name()]);
                Some(command)
            }
            Program::Python => {
                let mut command = ringfence_servers::python()?;
                command.arg(script("redis_py.py"));
                Some(command)
            }
            Program::Node => {
                let mut command = ringfence_servers::node()?;
                command.arg(script("node_redlock.js"));
                Some(command)
            }
        }
    }
}

/// Those whose programs are here; of the others it is said that they are not.
pub(crate) fn installed(subjects: &[Subject]) -> Vec<&Subject> {
    if cfg!(not(feature = "peers")) {
        ringfence_servers::skip("rslock, distributed-lock", "not built; build them by: --features peers");
    }
    subjects.iter().filter(|subject| subject.command().is_some()).collect()
}

/// Runs processes together, and puts together what they report.
fn run(processes: Vec<Command>) -> Outcome {
    let mut all = Outcome::default();
    for outcome in Contest::prepare(processes).go() {
        all.append(outcome);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::server::Server;

    const LENGTH: Duration = Duration::from_millis(200);

    /// Both scripts, as far as they are installed, and a server.
    fn scripts() -> Option<(Server, Vec<Subject>)> {
        let scripts =
            [Subject::new("redis-py", Program::Python), Subject::new("node-redlock", Program::Node)];
        let installed = scripts.into_iter().filter(|subject| subject.command().is_some()).collect();
        Some((Server::start()?, installed))
    }

    #[test]
    fn every_task_of_a_script_has_a_lock_of_its_own() {
        let Some((server, scripts)) = scripts() else { return };
        for script in scripts {
            for tasks in [1, 3] {
                let Outcome { counts, pairs, waits, handovers, lost } =
                    script.take_own(&[server.port()], tasks, 1, LENGTH);
                assert_eq!(counts.len() as u64, tasks, "{script:?}");
                assert_eq!(counts.iter().sum::<usize>(), pairs.len(), "{script:?}");
                assert!(counts.iter().all(|count| *count > 0), "{script:?} with {tasks} tasks: {counts:?}");
                assert_eq!((waits.len(), handovers.len(), lost), (0, 0, 0), "{script:?}");
            }
        }
    }

    #[test]
    fn scripts_contend_for_one_lock_and_see_who_was_there_before() {
        let Some((server, scripts)) = scripts() else { return };
        for script in scripts {
            let place = tempfile::tempdir().expect("a directory");
            let inside = place.path().join("inside");
            let Outcome { counts, waits, handovers, .. } =
                script.pausing(1).take_same(server.port(), 2, 2, &inside, LENGTH);
            assert_eq!(counts.len(), 2, "{script:?}");
            assert!(counts.iter().all(|count| *count > 0), "{script:?}: {counts:?}");
            // The second one came after the first, at least once.
            assert!(handovers.len() > 0 && handovers.len() == waits.len(), "{script:?}: {counts:?}");
            let last = std::fs::read(&inside).expect("what the lock protected");
            assert!(matches!(last[..8], [1 | 2, 0, ..]), "{script:?} left {last:?}");
        }
    }
}
