//! What 10,000 held leases cost while nothing happens to them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringfence::Locks;
use serde::{Deserialize, Serialize};

use crate::report::{Figures, Report};

const LEASES: usize = 10_000;

/// A process that holds many leases for a while.
#[derive(Debug, clap::Args)]
pub(crate) struct Hold {
    #[arg(long)]
    place: PathBuf,
    #[arg(long)]
    seconds: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Outcome {
    cpu_percent: f64,
    process_mib: f64,
    leases_mib: f64,
    still_held: usize,
}

impl Hold {
    pub(crate) fn run(self) {
        crate::small_runtime().block_on(async {
            let locks = Locks::connect(&format!("local:{}", self.place.display())).await.expect("a store");
            let before = resident_mib();
            let mut guards = Vec::with_capacity(LEASES);
            for number in 0..LEASES {
                let name = format!("bench/held/{number}");
                guards.push(locks.lock(name).acquire().await.expect("a lock"));
            }
            let (began, cpu) = (Instant::now(), cpu_seconds());
            tokio::time::sleep(Duration::from_secs(self.seconds)).await;
            let used = cpu_seconds() - cpu;
            let process_mib = resident_mib();
            let outcome = Outcome {
                cpu_percent: 100.0 * used / began.elapsed().as_secs_f64(),
                process_mib,
                leases_mib: process_mib - before,
                still_held: guards.iter().filter(|guard| guard.is_held()).count(),
            };
            println!("{}", serde_json::to_string(&outcome).expect("figures have a JSON form"));
        });
    }
}

pub(crate) fn measure(report: &mut Report, directory: &Path, length: Duration) {
    let place = tempfile::tempdir_in(directory).expect("a directory");
    let hold = || {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["hold", "--seconds", &length.as_secs().to_string(), "--place"])
            .arg(place.path())
            .output()
            .expect("a process");
        let outcome: Outcome = serde_json::from_slice(&output.stdout).expect("an outcome");
        assert_eq!(outcome.still_held, LEASES, "leases were lost");
        Figures::from([
            ("% of a core", outcome.cpu_percent),
            ("MiB, process", outcome.process_mib),
            ("MiB, leases", outcome.leases_mib),
        ])
    };
    let case = format!(
        "{LEASES} leases of 30 s held for {} s (goals: under 1 % of a core, under 20 MiB)",
        length.as_secs()
    );
    report.interleave(&case, 1, &[("ringfence local", &hold)]);
}

/// The processor time of all threads of this process.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds of a minute")]
pub(crate) fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("the threads of this process");
    let nanos: u64 = tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|stat| stat.split(' ').next()?.parse::<u64>().ok())
        .sum();
    nanos as f64 / 1e9
}

fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the state of this process");
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|line| line.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<f64>().ok()).expect("the resident size") / 1024.0
}
