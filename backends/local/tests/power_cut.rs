//! The local store through power cuts: a file system of its own, shut down under the processes that use it, as if the
//! power had gone: what was synced is there afterwards, what was not is gone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, HolderInfo, LockName, Mode, RecordKey, SystemClock, Ttl, Wait,
};
use ringfence_local::LocalBackend;
use ringfence_servers::{Event, Taker, require, skip};
use tempfile::TempDir;

const NAME: &str = "job";

/// How often the power goes.
const CUTS: usize = 6;

/// How many processes it hits.
const TAKERS: usize = 3;

/// The tools of the test, in the order of their use.
const TOOLS: [&str; 4] = ["mkfs.ext4", "mount", "xfs_io", "umount"];

/// A file system in a file.
struct Disk {
    image: PathBuf,
    mounted_on: PathBuf,
    _directory: TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let (image, mounted_on) = (directory.path().join("image"), directory.path().join("disk"));
        std::fs::create_dir(&mounted_on).unwrap();
        std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run(Command::new(tool("mkfs.ext4")).arg("-q").arg(&image));
        Self { image, mounted_on, _directory: directory }
    }

    fn mount(&self) {
        run(Command::new(tool("mount")).args(["-o", "loop"]).arg(&self.image).arg(&self.mounted_on));
    }

    fn unmount(&self) {
        run(Command::new(tool("umount")).arg(&self.mounted_on));
    }

    /// Without flushing anything, the journal included.
    fn cut_power(&self) {
        run(Command::new(tool("xfs_io")).args(["-x", "-c", "shutdown"]).arg(&self.mounted_on));
    }

    fn store(&self) -> PathBuf {
        self.mounted_on.join("store")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever state the test ended in, nothing of it stays mounted.
        let _ = Command::new(tool("umount")).args(["--lazy", "--quiet"]).arg(&self.mounted_on).output();
    }
}

fn tool(name: &str) -> PathBuf {
    require(name).expect("the test looked for it first")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the processes had been told by the time the power went.
#[derive(Debug, Default)]
struct Known {
    sequence: u64,
    version: u64,
    count: u64,
}

impl Known {
    fn learn(&mut self, event: &Event) {
        match event {
            Event::Held { token, .. } => self.sequence = self.sequence.max(token.sequence()),
            Event::Written { version, value } => {
                self.version = self.version.max(version.0);
                self.count = self.count.max(value.parse().unwrap());
            }
            _ => {}
        }
    }
}

/// Whether this machine lets us cut the power of a file system.
fn is_possible() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("power cut", "only root can mount a file system");
        return false;
    }
    TOOLS.iter().all(|tool| require(tool).is_some())
}

/// Without a record to write nothing but the range of numbers is ever synced.
#[tokio::test]
async fn sequences_survive_power_cuts_without_a_record() {
    if !is_possible() {
        return;
    }
    let disk = Disk::new();
    let mut known = Known::default();
    for _ in 0..CUTS {
        disk.mount();
        let mut taker = Taker::start(&format!("local:{}", disk.store().display()), NAME, &[]);
        for _ in 0..20 {
            let (token, _) = taker.holds().await;
            assert!(token.sequence() > known.sequence, "{token} after {known:?}");
            known.sequence = token.sequence();
            taker.releases().await;
            taker.tell("acquire");
        }
        disk.cut_power();
        taker.kill();
        taker.last_events().await.iter().for_each(|event| known.learn(event));
        disk.unmount();
    }
}

#[tokio::test]
async fn sequences_and_records_survive_power_cuts() {
    if !is_possible() {
        return;
    }
    let disk = Disk::new();
    let mut known = Known::default();
    for cut in 0..CUTS {
        disk.mount();
        let before = check(&disk.store(), &mut known).await;
        let url = format!("local:{}", disk.store().display());
        let mut takers: Vec<Taker> =
            (0..TAKERS).map(|_| Taker::start(&url, NAME, &["--cycles", "1000000000"])).collect();
        // Each cut comes at another moment of somebody's work.
        for _ in 0..20 + 7 * cut {
            let event = takers[cut % TAKERS].event("goes on", |event| Some(event.clone())).await;
            known.learn(&event);
        }
        // A name of its own: ext4 writes out at once what replaces a file.
        let unsynced = disk.mounted_on.join(format!("unsynced-{cut}"));
        std::fs::write(&unsynced, "never synced").unwrap();
        disk.cut_power();
        for mut taker in takers {
            taker.kill();
            taker.last_events().await.iter().for_each(|event| known.learn(event));
        }
        disk.unmount();
        assert!(known.version > before, "the processes wrote nothing before cut {cut}: {known:?}");
        disk.mount();
        let kept = std::fs::read(&unsynced).unwrap_or_default();
        assert!(kept.is_empty(), "what was not synced is there: this was no power cut");
        disk.unmount();
    }
    disk.mount();
    check(&disk.store(), &mut known).await;
    disk.unmount();
}

/// The store is there, its record holds at least what was confirmed, and the next sequence is above all that were granted.
/// Returns the record's version.
async fn check(store: &Path, known: &mut Known) -> u64 {
    let backend = LocalBackend::open(store, Arc::new(SystemClock::new())).unwrap();
    let name = LockName::new(NAME).unwrap();
    let record = backend.records().read(&RecordKey::of(name.clone())).await.unwrap();
    let (version, count) = record.map_or((0, 0), |record| {
        (record.version.0, std::str::from_utf8(&record.value).unwrap().parse().unwrap())
    });
    assert!(version >= known.version && count >= known.count, "version {version}, {count} of {known:?}");
    let holder = HolderInfo::new("test", "host", 1).unwrap();
    let request = AcquireRequest::new(name, Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder);
    let Attempt::Granted(lease) = backend.acquire(request).await.unwrap() else {
        panic!("the dead hold the lock");
    };
    let sequence = lease.token.sequence();
    assert!(sequence > known.sequence, "sequence {sequence} after {known:?}");
    known.sequence = sequence;
    backend.release(&[lease.key]).await.unwrap();
    drop(backend);
    // Its task ends, and with it the last descriptor on the disk, when the runtime comes to it.
    tokio::task::yield_now().await;
    version
}
