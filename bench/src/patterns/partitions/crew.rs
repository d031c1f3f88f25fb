//! The processes of members, and what is heard of them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::history::{Change, History};
use super::member::{News, What};
use crate::contest::{cores, spawn_on};
use crate::network::subject::PROCESSES_MAX;
use crate::network::whose::this_program;
use crate::patterns::place::Place;

/// After so long without news everything that was said is heard.
const QUIET: Duration = Duration::from_millis(100);

/// After so long it is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Members of several processes, and a newcomer in one of its own.
#[derive(Debug)]
pub(super) struct Crew {
    processes: Vec<Process>,
    newcomer: Process,
    /// How many are to be members.
    members: usize,
    history: History,
    news: Receiver<News>,
}

impl Crew {
    /// Starts the processes, which are dealt to the cores, and waits until all are connected.
    pub(super) fn prepare(place: &Place, members: u32, partitions: u32) -> Self {
        let several = members.min(u32::try_from(PROCESSES_MAX).expect("a few"));
        let shares = (0..several).map(|at| members * (at + 1) / several - members * at / several);
        let (sender, news) = channel();
        let start = |(at, share): (usize, u32)| Process::start(place, at, share, partitions);
        let mut processes: Vec<Process> = shares.chain([1]).enumerate().map(start).collect();
        for process in &mut processes {
            process.ready(sender.clone());
        }
        let newcomer = processes.pop().expect("one more");
        Self { processes, newcomer, members: members as usize, history: History::of(partitions), news }
    }

    pub(super) fn start(&mut self) {
        self.processes.iter_mut().for_each(Process::go);
    }

    pub(super) fn join(&mut self) {
        self.members += 1;
        self.newcomer.go();
    }

    pub(super) fn leave(&mut self) {
        self.members -= 1;
        self.history.newcomer_left();
        self.newcomer.input = None;
    }

    /// Waits until everybody has joined who is to, and every partition is owned by who should own it. `None`: that takes too long.
    pub(super) fn settle(&mut self) -> Option<Change> {
        let (began, mut news) = (Instant::now(), Vec::new());
        while began.elapsed() < PATIENCE {
            match self.news.recv_timeout(QUIET) {
                Ok(one) => {
                    if one.what == What::Joined {
                        self.history.joined(one.member);
                    }
                    news.push(one);
                }
                Err(_) => {
                    if self.history.members() == self.members && self.history.is_settled_by(&news) {
                        return Some(self.history.change(&news));
                    }
                }
            }
        }
        None
    }
}

/// One of the processes. It ends with this.
#[derive(Debug)]
struct Process {
    child: Child,
    input: Option<ChildStdin>,
}

impl Process {
    fn start(place: &Place, at: usize, members: u32, partitions: u32) -> Self {
        let mut command = this_program();
        command.arg("members");
        command.args(["--members", &members.to_string(), "--partitions", &partitions.to_string()]);
        place.tell(&mut command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = spawn_on(&mut command, at % cores());
        Self { input: child.stdin.take(), child }
    }

    /// Waits until it is ready, and passes on what it says from then on.
    fn ready(&mut self, news: Sender<News>) {
        let mut output = BufReader::new(self.child.stdout.take().expect("its output"));
        output.read_line(&mut String::new()).expect("a process that is ready");
        std::thread::spawn(move || {
            for line in output.lines() {
                let said = serde_json::from_str(&line.expect("a line")).expect("news");
                // Nobody listens to who is killed at the end.
                let _ = news.send(said);
            }
        });
    }

    fn go(&mut self) {
        self.input.as_mut().expect("its input").write_all(b"go\n").expect("a process that listens");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().expect("a process of ours");
        self.child.wait().expect("a process that was killed");
    }
}
