//! The local store on disks that are full or read-only, and on file systems that are none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, Error, ErrorKind, HolderInfo, Lease, LockName, Mode, RECORD_VALUE_MAX,
    RecordKey, Release, Renewal, SystemClock, Ttl, Wait,
};
use ringfence_local::LocalBackend;
use ringfence_servers::{require, skip};
use tempfile::TempDir;

/// A file system in memory, of a size of its own.
struct Disk {
    place: TempDir,
}

impl Disk {
    /// `None`, and said so, where this machine does not let us mount one.
    fn new(size: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("mount", "only root can mount a file system");
            return None;
        }
        let (mount, _) = (require("mount")?, require("umount")?);
        let place = TempDir::new().unwrap();
        let options = format!("size={size},mode=700");
        run(Command::new(mount).args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place.path()));
        Some(Self { place })
    }

    fn make_read_only(&self) {
        run(Command::new(require("mount").unwrap()).args(["-o", "remount,ro"]).arg(self.place.path()));
    }

    fn store(&self) -> PathBuf {
        self.place.path().join("store")
    }

    /// Leaves no byte of room; the room comes back when the file is removed.
    fn fill(&self) -> PathBuf {
        let path = self.place.path().join("filler");
        let mut filler = File::create(&path).unwrap();
        let written = std::io::copy(&mut std::io::repeat(0), &mut filler);
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy", "--quiet"]).arg(self.place.path()).output();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn open(directory: &Path) -> Result<LocalBackend, Error> {
    LocalBackend::open(directory, Arc::new(SystemClock::new()))
}

async fn take(backend: &LocalBackend, name: &str) -> Result<Lease, Error> {
    let holder = HolderInfo::new("test", "host", 1).unwrap();
    let request =
        AcquireRequest::new(LockName::new(name).unwrap(), Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder);
    match backend.acquire(request).await? {
        Attempt::Granted(lease) => Ok(lease),
        Attempt::Busy(who) => panic!("{name} is busy: {who:?}"),
    }
}

#[tokio::test]
async fn no_store_begins_on_a_full_disk() {
    let Some(disk) = Disk::new("1m") else { return };
    let filler = disk.fill();
    let error = open(&disk.store()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(error.to_string().contains("make room"), "{error}");
    fs::remove_file(filler).unwrap();
    let error = open(&disk.store()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "a segment does not fit: {error}");
}

#[tokio::test]
async fn a_disk_that_fills_up_fails_closed_and_loses_nothing() {
    let Some(disk) = Disk::new("8m") else { return };
    let backend = open(&disk.store()).unwrap();
    let held = take(&backend, "held").await.unwrap();
    let key = RecordKey::of(LockName::new("held").unwrap());
    backend.records().open(&key, held.token).await.unwrap();
    let filler = disk.fill();

    // What was reserved is enough to go on for a while; then every write fails, and says why.
    let value = Bytes::from(vec![b'x'; RECORD_VALUE_MAX]);
    let mut confirmed = 0;
    let error = loop {
        match backend.records().write(&key, held.token, value.clone()).await {
            Ok(version) => confirmed = version.0,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert!(confirmed > 10, "only {confirmed} writes fitted into the reserved space");
    let renewed = async || backend.renew(std::slice::from_ref(&held.key)).await;
    // A renewal is small and may still fit; once it does not, it says so.
    let error = loop {
        match renewed().await {
            Ok(renewals) => assert_eq!(renewals, [Renewal::Renewed]),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    assert_eq!(take(&backend, "other").await.unwrap_err().kind(), ErrorKind::Full);

    // With room again it goes on by itself, and so does another process: a write that was cut short is no damage.
    fs::remove_file(filler).unwrap();
    assert_eq!(renewed().await.unwrap(), [Renewal::Renewed]);
    let other = open(&disk.store()).unwrap();
    let record = other.records().read(&key).await.unwrap().unwrap();
    assert!(record.version.0 >= confirmed, "{} of {confirmed}", record.version.0);
    let token = take(&other, "other").await.unwrap().token;
    assert!(token.sequence() > held.token.sequence());
    assert_eq!(backend.release(&[held.key]).await.unwrap(), [Release::Released]);
}

#[tokio::test]
async fn a_read_only_disk_is_refused() {
    let Some(disk) = Disk::new("8m") else { return };
    drop(open(&disk.store()).unwrap());
    tokio::task::yield_now().await;
    disk.make_read_only();
    let error = open(&disk.store()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("read-only"), "{error}");
}

/// /proc and /sys take no store, whatever their owner may do there.
#[tokio::test]
async fn what_is_no_disk_is_refused() {
    for place in ["/proc/ringfence", "/sys/ringfence"] {
        let error = open(Path::new(place)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Refused | ErrorKind::Unavailable), "{place}: {error}");
        assert!(error.to_string().contains(place), "{error}");
    }
}
