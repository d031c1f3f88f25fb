//! One process whose tasks take locks: each one of its own, or all, with those of other processes, the same.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ringfence::Locks;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::clients::{LockClient, Ping, Raw};
#[cfg(feature = "peers")]
use super::crates::DistributedLock;
use crate::contest;
use crate::report::Samples;

/// Whose lock it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Whose {
    Ringfence,
    Raw,
    #[cfg(feature = "peers")]
    Rslock,
    #[cfg(feature = "peers")]
    DistributedLock,
    Ping,
}

/// One of the processes. The scripts in `bench/peers` take the same arguments, but for the first, and report the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Contender {
    #[arg(long, value_enum)]
    whose: Whose,
    /// The ports of the servers: one, or the nodes of a Redlock.
    #[arg(long, value_delimiter = ',')]
    servers: Vec<u16>,
    #[arg(long)]
    tasks: u64,
    #[arg(long)]
    millis: u64,
    /// The number of the first task; those of other processes have other numbers.
    #[arg(long, default_value_t = 1)]
    id: u64,
    /// What the one lock protects, that all of them want. Without it every task has a lock of its own.
    #[arg(long)]
    inside: Option<PathBuf>,
    /// How long who polls pauses between two attempts.
    #[arg(long)]
    pause_ms: Option<u64>,
}

/// What a process has to say at the end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// How often each task had its lock.
    pub(crate) counts: Vec<usize>,
    /// From asking for the lock to having given it back.
    pub(crate) pairs: Samples,
    /// From asking to having, where somebody else had it before.
    pub(crate) waits: Samples,
    /// From the release of one to the grant of another: from the moment before the release is called to the moment after
    /// the acquire has returned.
    pub(crate) handovers: Samples,
    /// How often a lock was gone when it was given back, where the client says so.
    #[serde(default)]
    pub(crate) lost: usize,
}

impl Outcome {
    pub(crate) fn append(&mut self, mut other: Self) {
        self.counts.append(&mut other.counts);
        self.pairs.append(other.pairs);
        self.waits.append(other.waits);
        self.handovers.append(other.handovers);
        self.lost += other.lost;
    }
}

impl Contender {
    pub(crate) fn run(self) {
        match self.whose {
            Whose::Ringfence => self.run_with::<Locks>(),
            Whose::Raw => self.run_with::<Raw>(),
            Whose::Ping => self.run_with::<Ping>(),
            #[cfg(feature = "peers")]
            Whose::Rslock => self.run_with::<rslock::LockManager>(),
            #[cfg(feature = "peers")]
            Whose::DistributedLock => self.run_with::<DistributedLock>(),
        }
    }

    fn run_with<Client: LockClient>(self) {
        // Who has one core needs no second thread.
        let has_one_core = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
        let runtime = if has_one_core { crate::small_runtime() } else { crate::runtime() };
        runtime.block_on(async {
            let pause = self.pause_ms.map(Duration::from_millis);
            let mut client = Client::connect(&self.servers, pause).await;
            let mut ready = Vec::new();
            for id in self.id..self.id + self.tasks {
                if self.inside.is_some() && id > self.id {
                    // Who contends is a client of its own, as if it were a process of its own.
                    client = Client::connect(&self.servers, pause).await;
                }
                let warm = client.acquire(&format!("bench/{id}")).await;
                client.release(warm).await;
                ready.push((id, client.clone()));
            }
            contest::wait_for_the_word();
            let length = Duration::from_millis(self.millis);
            let running: Vec<_> = ready
                .into_iter()
                .map(|(id, client)| match &self.inside {
                    None => tokio::spawn(take_own(client, id, length)),
                    Some(path) => tokio::spawn(take_same(client, Inside::open(path, id), length)),
                })
                .collect();
            let mut outcome = Outcome::default();
            for task in running {
                outcome.append(task.await.expect("a task"));
            }
            contest::report(&outcome);
        });
    }
}

async fn take_own<Client: LockClient>(client: Client, id: u64, length: Duration) -> Outcome {
    let (name, began) = (format!("bench/{id}"), Instant::now());
    let (mut pairs, mut lost) = (Samples::default(), 0);
    while began.elapsed() < length {
        let pair = Instant::now();
        let held = client.acquire(&name).await;
        lost += usize::from(!client.release(held).await);
        pairs.push(pair.elapsed());
        tokio::task::consume_budget().await;
    }
    Outcome { counts: vec![pairs.len()], pairs, lost, ..Outcome::default() }
}

async fn take_same<Client: LockClient>(client: Client, inside: Inside, length: Duration) -> Outcome {
    let (mut outcome, mut count, began) = (Outcome::default(), 0, Instant::now());
    while began.elapsed() < length {
        let asked = Instant::now();
        let held = client.acquire("bench").await;
        let (waited, entered) = (asked.elapsed(), now());
        if let Some(left) = inside.left_by_another() {
            outcome.waits.push(waited);
            outcome.handovers.push(entered.saturating_sub(left));
        }
        count += 1;
        inside.leave();
        outcome.lost += usize::from(!client.release(held).await);
        // A lock that nobody else wants would keep the thread to itself.
        tokio::task::consume_budget().await;
    }
    outcome.counts.push(count);
    outcome
}

/// What the lock protects, the same for every lock: a file that says who was here last, and when it left.
struct Inside {
    file: File,
    id: u64,
}

impl Inside {
    fn open(path: &Path, id: u64) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        Self { file: file.expect("a file to protect"), id }
    }

    /// When somebody else left, if nobody else was here since.
    fn left_by_another(&self) -> Option<Duration> {
        let mut last = [0; 16];
        let read = self.file.read_at(&mut last, 0).expect("who was here last");
        let (id, left) = last.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        (read == last.len() && number(id) != self.id).then(|| Duration::from_nanos(number(left)))
    }

    /// Says that we were here, and that the next thing is the release.
    fn leave(&self) {
        let left = u64::try_from(now().as_nanos()).expect("some centuries");
        let last = [self.id.to_le_bytes(), left.to_le_bytes()].concat();
        self.file.write_at(&last, 0).expect("who is here now");
    }
}

/// A clock that is the same in all processes of this machine.
fn now() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().expect("a time since the machine began")
}
