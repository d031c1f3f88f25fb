//! One process whose tasks take locks: each one of its own, or all, with those of other processes, the same.

pub(crate) mod client;
pub(crate) mod samples;
pub(crate) mod word;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use self::client::{LockClient, Servers};
use self::samples::Samples;

/// The TTL of every lock, whoever takes it.
pub(crate) const TTL: Duration = Duration::from_secs(30);

/// One of the processes. The scripts in `bench/peers` take the same arguments, but for the first, and report the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Contender {
    #[command(flatten)]
    servers: Servers,
    #[arg(long)]
    tasks: u64,
    /// How long it runs before anything counts.
    #[arg(long, default_value_t = 0)]
    settle_ms: u64,
    #[arg(long)]
    millis: u64,
    /// How long the lock that all want is held each time, as one that protects some work; who has one of its own is idle for as
    /// long after each pair.
    #[arg(long, default_value_t = 0)]
    hold_ms: u64,
    /// The number of the first task; those of other processes have other numbers.
    #[arg(long, default_value_t = 1)]
    id: u64,
    /// What the one lock protects, that all of them want. Without it every task has a lock of its own.
    #[arg(long)]
    inside: Option<PathBuf>,
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
    pub(crate) fn run_with<Client: LockClient>(self) {
        runtime_of_these_cores().block_on(async {
            let mut client = Client::connect(&self.servers).await;
            let mut ready = Vec::new();
            for id in self.id..self.id + self.tasks {
                if self.inside.is_some() && id > self.id && !Client::IS_SHARED {
                    client = Client::connect(&self.servers).await;
                }
                let warm = client.acquire(&format!("bench/{id}")).await;
                client.release(warm).await;
                ready.push((id, client.clone()));
            }
            word::wait();
            let window = self.window();
            let running: Vec<_> = ready
                .into_iter()
                .map(|(id, client)| match &self.inside {
                    None => tokio::spawn(take_own(client, id, window)),
                    Some(path) => tokio::spawn(take_same(client, Inside::open(path, id), window)),
                })
                .collect();
            let mut outcome = Outcome::default();
            for task in running {
                outcome.append(task.await.expect("a task"));
            }
            word::report(&outcome);
        });
    }

    pub(crate) fn signal<Client: SignalClient>(self, writes_back: bool) {
        runtime_of_these_cores().block_on(async {
            let mut client = Client::connect(&self.servers, self.id).await;
            client.watch().await;
            let inside = Inside::open(self.inside.as_ref().expect("a file to protect"), self.id);
            word::wait();
            word::report(&take_turns(client, inside, writes_back, self.window()).await);
        });
    }

    /// Begins now.
    fn window(&self) -> Window {
        let from = Instant::now() + Duration::from_millis(self.settle_ms);
        let hold = Duration::from_millis(self.hold_ms);
        Window { from, until: from + Duration::from_millis(self.millis), hold }
    }
}

/// A runtime as a service of this machine would have.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// The runtime of a small program with one thread.
pub(crate) fn small_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// The runtime of a process that may be on one core.
pub(crate) fn runtime_of_these_cores() -> tokio::runtime::Runtime {
    // Who has one core needs no second thread.
    let has_one_core = std::thread::available_parallelism().is_ok_and(|cores| cores.get() == 1);
    if has_one_core { small_runtime() } else { runtime() }
}

/// The time that counts.
#[derive(Clone, Copy)]
struct Window {
    from: Instant,
    until: Instant,
    hold: Duration,
}

impl Window {
    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    fn has(&self, instant: Instant) -> bool {
        self.from <= instant && instant < self.until
    }

    /// Lets the time pass that a lock is held.
    async fn work(&self) {
        if !self.hold.is_zero() {
            tokio::time::sleep(self.hold).await;
        }
    }
}

async fn take_own<Client: LockClient>(client: Client, id: u64, window: Window) -> Outcome {
    let name = format!("bench/{id}");
    let (mut pairs, mut lost) = (Samples::default(), 0);
    // On a machine that is slow enough, one that began before anything counts takes all of the time.
    while !window.is_over() || pairs.len() == 0 {
        let pair = Instant::now();
        let held = client.acquire(&name).await;
        lost += usize::from(!client.release(held).await);
        if pair >= window.from {
            pairs.push(pair.elapsed());
        }
        window.work().await;
        tokio::task::consume_budget().await;
    }
    Outcome { counts: vec![pairs.len()], pairs, lost, ..Outcome::default() }
}

async fn take_same<Client: LockClient>(client: Client, inside: Inside, window: Window) -> Outcome {
    let (mut outcome, mut count) = (Outcome::default(), 0);
    while !window.is_over() {
        let asked = Instant::now();
        let acquired = client.acquire("bench");
        let held = if Client::IS_SHARED {
            // Who waits at the end goes, because a long line takes long to dissolve. What is left behind ends with its server.
            let Ok(held) = tokio::time::timeout(window.until - asked, acquired).await else { break };
            held
        } else {
            acquired.await
        };
        let (had, entered) = (Instant::now(), now());
        let counts = window.has(had);
        if let Some(left) = inside.left_by_another()
            && counts
        {
            outcome.waits.push(had - asked);
            outcome.handovers.push(entered.saturating_sub(left));
        }
        count += usize::from(counts);
        window.work().await;
        inside.leave();
        outcome.lost += usize::from(!client.release(held).await);
        // A lock that nobody else wants would keep the thread to itself.
        tokio::task::consume_budget().await;
    }
    outcome.counts.push(count);
    outcome
}

/// One of two clients, 1 and 2, that tell each other by writes of which each hears by a watch.
pub(crate) trait SignalClient: Sized {
    async fn connect(servers: &Servers, id: u64) -> Self;

    /// Watches for the other's next write, where it does not do so already. Returns when nothing can be missed.
    async fn watch(&mut self);

    /// Makes a write that the other one hears of.
    async fn write(&mut self);

    /// Makes a write that nobody hears of.
    async fn write_quietly(&mut self);

    /// Waits for the other's next write.
    async fn heard(&mut self);
}

/// How long the other one may take. It ends a moment before or after us.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(1);

async fn take_turns<Client: SignalClient>(
    mut client: Client,
    inside: Inside,
    writes_back: bool,
    window: Window,
) -> Outcome {
    let mut outcome = Outcome::default();
    if inside.id == 1 {
        inside.leave();
        client.write().await;
    }
    while !window.is_over() && tokio::time::timeout(SIGNAL_PATIENCE, client.heard()).await.is_ok() {
        if writes_back {
            client.write_quietly().await;
        }
        let entered = now();
        if let Some(left) = inside.left_by_another()
            && window.has(Instant::now())
        {
            outcome.handovers.push(entered.saturating_sub(left));
        }
        client.watch().await;
        window.work().await;
        inside.leave();
        client.write().await;
    }
    outcome.counts.push(outcome.handovers.len());
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
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::Monotonic).try_into().expect("a time since the machine began")
}
