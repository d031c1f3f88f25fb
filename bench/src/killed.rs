//! From SIGKILL of the holder to the next grant, between processes.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ringfence::Locks;

use crate::contender::samples::Samples;
use crate::report::{Figures, Report};

/// How many holders are killed.
const DEATHS: usize = 200;

/// A process that holds the lock until it is killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Victim {
    #[arg(long)]
    place: PathBuf,
}

impl Victim {
    pub(crate) fn run(self) {
        crate::small_runtime().block_on(async {
            let locks = Locks::connect(&format!("local:{}", self.place.display())).await.expect("a store");
            let _guard = locks.lock("bench").acquire().await.expect("a lock");
            println!("held");
            std::future::pending::<()>().await;
        });
    }
}

pub(crate) fn measure(report: &mut Report, directory: &Path) {
    let place = tempfile::tempdir_in(directory).expect("a directory");
    let deaths = || {
        crate::runtime().block_on(async {
            let locks = Locks::connect(&format!("local:{}", place.path().display())).await.expect("a store");
            let mut samples = Samples::default();
            for _ in 0..DEATHS {
                let mut victim = Command::new(std::env::current_exe().expect("this program"))
                    .args(["victim", "--place"])
                    .arg(place.path())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("a process");
                let mut output = BufReader::new(victim.stdout.take().expect("its output"));
                output.read_line(&mut String::new()).expect("a process that holds the lock");
                let waiter = locks.clone();
                let waiting = tokio::spawn(async move {
                    let guard = waiter.lock("bench").acquire().await.expect("a lock");
                    let granted = Instant::now();
                    guard.release().await.expect("a release");
                    granted
                });
                while locks.inspect("bench").await.expect("a state").waiters.is_empty() {
                    tokio::task::yield_now().await;
                }
                let killed = Instant::now();
                victim.kill().expect("a death");
                samples.push(waiting.await.expect("a task").duration_since(killed));
                victim.wait().expect("a process that ended");
            }
            Figures::from([
                ("p50 us", samples.micros_at(0.5)),
                ("p99 us", samples.micros_at(0.99)),
                ("max us", samples.micros_at(1.0)),
            ])
        })
    };
    report.interleave(
        "SIGKILL of the holder to the next grant (goal: p99 under 50 ms)",
        1,
        &[("ringfence local", &deaths)],
    );
}
