//! Processes that begin together: each says that it is ready, waits for the word to go, and reports in one line of JSON.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::de::DeserializeOwned;

/// Processes that are all ready.
#[derive(Debug)]
pub(crate) struct Contest {
    running: Vec<(Child, BufReader<ChildStdout>)>,
}

impl Contest {
    /// Starts the processes and waits until all are ready. Several are dealt to the cores in turn; one has them all.
    pub(crate) fn prepare(commands: Vec<Command>) -> Self {
        let several = commands.len() > 1;
        let start = |(at, mut command): (usize, Command)| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = if several {
                spawn_on(&mut command, at % cores())
            } else {
                command.spawn().expect("a process")
            };
            let output = BufReader::new(child.stdout.take().expect("its output"));
            (child, output)
        };
        let mut running: Vec<_> = commands.into_iter().enumerate().map(start).collect();
        for (_, output) in &mut running {
            output.read_line(&mut String::new()).expect("a process that is ready");
        }
        Self { running }
    }

    /// Gives the word.
    pub(crate) fn go(mut self) -> Running {
        for (child, _) in &mut self.running {
            child.stdin.take().expect("its input").write_all(b"go\n").expect("a process that listens");
        }
        Running(self.running)
    }
}

/// Processes that were given the word.
#[derive(Debug)]
pub(crate) struct Running(Vec<(Child, BufReader<ChildStdout>)>);

impl Running {
    /// Collects what they report at their end.
    pub(crate) fn outcomes<Outcome: DeserializeOwned>(self) -> Vec<Outcome> {
        let outcomes = self.0.into_iter().map(|(mut child, mut output)| {
            let mut line = String::new();
            output.read_line(&mut line).expect("an outcome");
            let ended = child.wait().expect("a process that ends");
            assert!(ended.success(), "a process has failed; it says above why");
            serde_json::from_str(&line).expect("an outcome")
        });
        outcomes.collect()
    }
}

/// Starts a process that runs on one core only.
pub(crate) fn spawn_on(command: &mut Command, core: usize) -> Child {
    // It inherits the cores of the thread that starts it, whatever program it is.
    let own = sched_getaffinity(None).expect("the cores of this thread");
    run_on(core);
    let child = command.spawn().expect("a process");
    sched_setaffinity(None, &own).expect("a choice of cores");
    child
}

/// Runs this thread on one core only.
pub(crate) fn run_on(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).expect("a choice of cores");
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
