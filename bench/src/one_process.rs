//! Many tasks of one process want one name.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringfence::Locks;
use tokio::sync::Mutex;

use crate::contender::samples::Samples;
use crate::report::{Figures, Goal, Report, fairness, per_second};

const LOCAL: &str = "ringfence local";
const MUTEX: &str = "tokio::sync::Mutex";

pub(crate) fn measure(report: &mut Report, directory: &Path, rounds: usize, length: Duration) {
    for tasks in [16, 128] {
        let case = format!("contended in one process, {tasks} tasks");
        let ringfence = |url: String| {
            crate::runtime().block_on(async move {
                contend(tasks, length, Locks::connect(&url).await.expect("a store")).await
            })
        };
        let local = || {
            let store = tempfile::tempdir_in(directory).expect("a directory");
            ringfence(format!("local:{}", store.path().display()))
        };
        let memory = || ringfence("memory:".to_owned());
        let mutex = || crate::runtime().block_on(contend(tasks, length, Arc::new(Mutex::new(()))));
        report.interleave(&case, rounds, &[(LOCAL, &local), ("ringfence memory", &memory), (MUTEX, &mutex)]);
        report.ratio(&case, "handovers/s", LOCAL, MUTEX, Goal::AtLeast(0.2));
    }
}

/// What the lock protects: who was here last, and how often somebody else was.
#[derive(Debug, Default)]
struct Inside {
    last: AtomicUsize,
    handovers: AtomicUsize,
}

impl Inside {
    fn enter(&self, task: usize) {
        if self.last.swap(task, Ordering::Relaxed) != task {
            self.handovers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A lock that a task takes, once, to be inside for a moment.
trait Contended: Clone + Send + Sync + 'static {
    fn turn(&self, inside: &Inside, task: usize) -> impl Future<Output = ()> + Send;
}

impl Contended for Locks {
    async fn turn(&self, inside: &Inside, task: usize) {
        let guard = self.lock("bench").acquire().await.expect("a lock");
        inside.enter(task);
        guard.release().await.expect("a release");
    }
}

impl Contended for Arc<Mutex<()>> {
    async fn turn(&self, inside: &Inside, task: usize) {
        let guard = self.lock().await;
        inside.enter(task);
        drop(guard);
    }
}

async fn contend(tasks: usize, length: Duration, lock: impl Contended) -> Figures {
    let inside = Arc::new(Inside::default());
    let start = Arc::new(tokio::sync::Barrier::new(tasks + 1));
    let run = |task: usize| {
        let (inside, start, lock) = (inside.clone(), start.clone(), lock.clone());
        tokio::spawn(async move {
            start.wait().await;
            let (began, mut samples) = (Instant::now(), Samples::default());
            while began.elapsed() < length {
                let wait = Instant::now();
                lock.turn(&inside, task).await;
                samples.push(wait.elapsed());
            }
            samples
        })
    };
    let running: Vec<_> = (1..=tasks).map(run).collect();
    start.wait().await;
    let began = Instant::now();
    let (mut samples, mut counts) = (Samples::default(), Vec::new());
    for task in running {
        let own = task.await.expect("a task");
        counts.push(own.len());
        samples.append(own);
    }
    Figures::from([
        ("handovers/s", per_second(inside.handovers.load(Ordering::Relaxed), began.elapsed())),
        ("pairs/s", per_second(samples.len(), began.elapsed())),
        ("p99 us", samples.micros_at(0.99)),
        ("fairness", fairness(&counts)),
    ])
}
