//! Several processes want one name. What counts are *real* hand-overs, from one process to another: a lock that the same
//! process takes again and again serves nobody else.
//!
//! The processes are dealt to the cores. Left to the kernel, two of them often share one core, where the one that runs never
//! meets the other: it takes and releases a free lock until its time slice ends, and nothing is contended.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ringfence::Locks;
use rustix::thread::{sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::contender::samples::Samples;
use crate::contender::word;
use crate::contest::{self, Contest};
use crate::peers::Flock;
use crate::report::{Figures, Goal, Report, fairness, per_second};

const LOCAL: &str = "ringfence local";
const PING_PONG: &str = "pipe ping-pong";
const PING_PONG_APART: &str = "pipe ping-pong, a core each";

pub(crate) fn measure(report: &mut Report, directory: &Path, rounds: usize, length: Duration) {
    for count in [2, 8, 32] {
        let case = format!("contended between {count} processes");
        let contend = |lock| {
            let place = tempfile::tempdir_in(directory).expect("a directory");
            contend(lock, count, place.path(), length)
        };
        report.interleave(
            &case,
            rounds,
            &[
                (LOCAL, &|| contend(Lock::Local)),
                ("flock + counter", &|| contend(Lock::Flock)),
                ("flock + counter, fdatasync", &|| contend(Lock::FlockSynced)),
                (PING_PONG, &|| ping_pong(length, None)),
                (PING_PONG_APART, &|| ping_pong(length, Some([0, 1]))),
            ],
        );
        report.ratio(&case, "handovers/s", LOCAL, PING_PONG, Goal::AtLeast(0.3));
        report.ratio(&case, "handovers/s", LOCAL, PING_PONG_APART, Goal::AtLeast(0.3));
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Lock {
    Local,
    Flock,
    FlockSynced,
    Pipe,
}

/// One of the processes.
#[derive(Debug, clap::Args)]
pub(crate) struct Contend {
    #[arg(long, value_enum)]
    lock: Lock,
    #[arg(long)]
    place: PathBuf,
    #[arg(long)]
    id: u64,
    #[arg(long)]
    millis: u64,
}

/// What a process has to say at the end.
#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    pairs: usize,
    handovers: usize,
    p50_us: f64,
    p99_us: f64,
}

impl Contend {
    pub(crate) fn run(self) {
        let length = Duration::from_millis(self.millis);
        match self.lock {
            Lock::Local => crate::small_runtime().block_on(async {
                let locks =
                    Locks::connect(&format!("local:{}", self.place.display())).await.expect("a store");
                // Whoever was never granted anything has yet to make its range of numbers durable.
                locks
                    .lock("warm")
                    .shared()
                    .acquire()
                    .await
                    .expect("a lock")
                    .release()
                    .await
                    .expect("a release");
                let mut inside = Inside::open(&self.place, self.id);
                inside.start();
                while inside.began.elapsed() < length {
                    let wait = Instant::now();
                    let guard = locks.lock("bench").acquire().await.expect("a lock");
                    inside.enter(wait.elapsed());
                    guard.release().await.expect("a release");
                }
                inside.report();
            }),
            Lock::Flock | Lock::FlockSynced => {
                let lock = Flock::open(&self.place.join("lock"), matches!(self.lock, Lock::FlockSynced));
                let mut inside = Inside::open(&self.place, self.id);
                inside.start();
                while inside.began.elapsed() < length {
                    let wait = Instant::now();
                    lock.lock();
                    inside.enter(wait.elapsed());
                    lock.unlock();
                }
                inside.report();
            }
            // The other half of a ping-pong: back with every byte that comes.
            Lock::Pipe => {
                let mut byte = [0];
                while rustix::io::read(std::io::stdin(), &mut byte).expect("a pipe") == 1 {
                    rustix::io::write(std::io::stdout(), &byte).expect("a pipe");
                }
            }
        }
    }
}

/// What the lock protects, the same for every lock: a file that says who was here last.
struct Inside {
    file: File,
    id: u64,
    began: Instant,
    handovers: usize,
    waits: Samples,
}

impl Inside {
    fn open(place: &Path, id: u64) -> Self {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(place.join("inside"));
        let file = file.expect("a file to protect");
        Self { file, id, began: Instant::now(), handovers: 0, waits: Samples::default() }
    }

    fn start(&mut self) {
        word::wait();
        self.began = Instant::now();
    }

    fn enter(&mut self, waited: Duration) {
        self.waits.push(waited);
        let mut last = [0; 8];
        let _ = self.file.read_at(&mut last, 0).expect("who was here last");
        if u64::from_le_bytes(last) != self.id {
            self.handovers += 1;
            self.file.write_at(&self.id.to_le_bytes(), 0).expect("who is here now");
        }
    }

    fn report(mut self) {
        let outcome = Outcome {
            pairs: self.waits.len(),
            handovers: self.handovers,
            p50_us: self.waits.micros_at(0.5),
            p99_us: self.waits.micros_at(0.99),
        };
        word::report(&outcome);
    }
}

fn contend(lock: Lock, count: u64, place: &Path, length: Duration) -> Figures {
    let commands = (1..=count).map(|id| worker(lock, id, place, length)).collect();
    let outcomes: Vec<Outcome> = Contest::prepare(commands).go().outcomes();
    let pairs: Vec<usize> = outcomes.iter().map(|outcome| outcome.pairs).collect();
    let worst = |figure: fn(&Outcome) -> f64| outcomes.iter().map(figure).fold(0.0, f64::max);
    Figures::from([
        ("handovers/s", per_second(outcomes.iter().map(|outcome| outcome.handovers).sum(), length)),
        ("pairs/s", per_second(pairs.iter().sum(), length)),
        ("fairness", fairness(&pairs)),
        ("p50 us", worst(|outcome| outcome.p50_us)),
        ("p99 us", worst(|outcome| outcome.p99_us)),
    ])
}

/// A byte to another process and back: what the kernel needs to wake two processes in turn. A hand-over is compared with one
/// such exchange; the passes of the byte in one direction are printed as well.
///
/// Left alone, the kernel often puts the two on one core, where a wake-up is a switch. Processes that contend are spread
/// over all cores, so the exchange is measured with a core for each as well.
fn ping_pong(length: Duration, cores: Option<[usize; 2]>) -> Figures {
    let mut command = worker(Lock::Pipe, 0, Path::new("/"), length);
    let own = sched_getaffinity(None).expect("the cores of this thread");
    let mut child = match cores {
        None => command.spawn().expect("a process"),
        Some([here, there]) => {
            let child = contest::spawn_on(&mut command, there);
            contest::run_on(here);
            child
        }
    };
    let (there, back) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let (began, mut exchanges, mut byte) = (Instant::now(), 0, [7]);
    while began.elapsed() < length {
        rustix::io::write(&there, &byte).expect("a pipe");
        rustix::io::read(&back, &mut byte).expect("a pipe");
        exchanges += 1;
    }
    let elapsed = began.elapsed();
    drop(there);
    child.wait().expect("a process that ends");
    sched_setaffinity(None, &own).expect("a choice of cores");
    Figures::from([
        ("handovers/s", per_second(exchanges, elapsed)),
        ("passes/s", per_second(2 * exchanges, elapsed)),
    ])
}

fn worker(lock: Lock, id: u64, place: &Path, length: Duration) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["contend", "--lock", lock.to_possible_value().expect("a name").get_name()])
        .args(["--id", &id.to_string(), "--millis", &length.as_millis().to_string()])
        .arg("--place")
        .arg(place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}
