//! Acquire and release, each task a name of its own.

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use ringfence::Locks;

use crate::contender::samples::Samples;
use crate::peers::{Append, Flock};
use crate::report::{Figures, Goal, Report, per_second};

const OURS: &str = "ringfence local";
const FLOCK: &str = "flock + counter";
const FLOCK_SYNCED: &str = "flock + counter, fdatasync";

pub(crate) fn measure(report: &mut Report, directory: &Path, rounds: usize, length: Duration) {
    for tasks in [1, 16, 128] {
        let case = format!("uncontended, {tasks} tasks");
        let local = || {
            let store = tempfile::tempdir_in(directory).expect("a directory");
            with_ringfence(&format!("local:{}", store.path().display()), tasks, length)
        };
        let memory = || with_ringfence("memory:", tasks, length);
        let flock = |synced| {
            let store = tempfile::tempdir_in(directory).expect("a directory");
            with_threads(tasks, length, |task| {
                let lock = Flock::open(&store.path().join(task.to_string()), synced);
                move || {
                    lock.lock();
                    lock.unlock();
                }
            })
        };
        let append = |synced| {
            let store = tempfile::tempdir_in(directory).expect("a directory");
            with_threads(tasks, length, |_| {
                let log = Append::open(&store.path().join("log"), synced);
                move || log.append()
            })
        };
        report.interleave(
            &case,
            rounds,
            &[
                (OURS, &local),
                ("ringfence memory", &memory),
                (FLOCK, &|| flock(false)),
                (FLOCK_SYNCED, &|| flock(true)),
                ("one append of 64 bytes", &|| append(false)),
                ("one append of 64 bytes, fdatasync", &|| append(true)),
            ],
        );
        report.ratio(&case, "pairs/s", OURS, FLOCK_SYNCED, Goal::AtLeast(0.25));
        report.ratio(&case, "pairs/s", OURS, FLOCK, Goal::None("for comparison: it is durable, this is not"));
    }
}

fn with_ringfence(url: &str, tasks: usize, length: Duration) -> Figures {
    let url = url.to_owned();
    crate::runtime().block_on(async move {
        let locks = Locks::connect(&url).await.expect("a store");
        let start = Arc::new(tokio::sync::Barrier::new(tasks + 1));
        let run = |task: usize| {
            let (locks, start) = (locks.clone(), start.clone());
            tokio::spawn(async move {
                let name = format!("bench/{task}");
                // The first one is slower: it makes a range of numbers durable.
                locks.lock(&name).acquire().await.expect("a lock").release().await.expect("a release");
                start.wait().await;
                let (began, mut samples) = (Instant::now(), Samples::default());
                while began.elapsed() < length {
                    let pair = Instant::now();
                    locks.lock(&name).acquire().await.expect("a lock").release().await.expect("a release");
                    samples.push(pair.elapsed());
                    tokio::task::consume_budget().await;
                }
                samples
            })
        };
        let running: Vec<_> = (0..tasks).map(run).collect();
        start.wait().await;
        let began = Instant::now();
        let mut samples = Samples::default();
        for task in running {
            samples.append(task.await.expect("a task"));
        }
        figures(samples, began.elapsed())
    })
}

fn with_threads<Work: FnMut() + Send>(
    tasks: usize,
    length: Duration,
    prepare: impl Fn(usize) -> Work,
) -> Figures {
    let start = Barrier::new(tasks + 1);
    std::thread::scope(|scope| {
        let run = |task: usize| {
            let (mut work, start) = (prepare(task), &start);
            scope.spawn(move || {
                start.wait();
                let (began, mut samples) = (Instant::now(), Samples::default());
                while began.elapsed() < length {
                    let pair = Instant::now();
                    work();
                    samples.push(pair.elapsed());
                }
                samples
            })
        };
        let running: Vec<_> = (0..tasks).map(run).collect();
        start.wait();
        let began = Instant::now();
        let mut samples = Samples::default();
        for thread in running {
            samples.append(thread.join().expect("a thread"));
        }
        figures(samples, began.elapsed())
    })
}

fn figures(mut samples: Samples, elapsed: Duration) -> Figures {
    Figures::from([
        ("pairs/s", per_second(samples.len(), elapsed)),
        ("p50 us", samples.micros_at(0.5)),
        ("p99 us", samples.micros_at(0.99)),
    ])
}
