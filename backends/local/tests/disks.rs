//! The local store on disks that are full, read-only or broken, and on file systems that are none of this machine's disks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, Clock, Effect, Error, ErrorKind, FencingToken, HolderInfo, Lease,
    LockName, Mode, RECORD_VALUE_MAX, RecordKey, Release, Renewal, SystemClock, Ttl, Wait,
};
use ringfence_local::LocalBackend;
use ringfence_servers::{SystemCallFault, Taker, require, skip, taker};
use tempfile::TempDir;
use tokio::runtime::Builder;

/// How long the leases are that a broken disk is in the way of.
const TTL: Duration = Duration::from_secs(1);

/// How soon what should have its effect at once must have it.
const AT_ONCE: Duration = Duration::from_secs(1);

/// A file system of its own.
struct Disk {
    place: TempDir,
}

impl Disk {
    /// One in memory, of this size. `None`, and said so, where this machine does not let us mount one.
    fn new(size: &str) -> Option<Self> {
        let options = format!("size={size},mode=700");
        Self::mount(require("mount")?, |mount, place| {
            mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(place);
        })
    }

    /// One whose server is a process: a second view of what lies below it.
    fn in_user_space() -> Option<Self> {
        Self::mount(require("bindfs")?, |bindfs, place| {
            bindfs.args([place, place]);
        })
    }

    fn mount(tool: PathBuf, how: impl FnOnce(&mut Command, &Path)) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("mount", "only root can mount a file system");
            return None;
        }
        require("umount")?;
        let place = TempDir::new().unwrap();
        let mut mount = Command::new(tool);
        how(&mut mount, place.path());
        run(&mut mount);
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
    let (name, ttl) = (LockName::new(name).unwrap(), Ttl::new(TTL).unwrap());
    let request = AcquireRequest::new(name.clone(), Mode::Exclusive, ttl, Wait::No, holder);
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

#[tokio::test]
async fn a_user_space_file_system_is_refused() {
    let Some(disk) = Disk::in_user_space() else { return };
    let error = open(&disk.store()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("network or user-space file system (FUSE)"), "{error}");
}

/// Not every machine can mount these, so the kernel's answer to `fstatfs` is replaced on its way to the process.
#[test]
fn a_network_file_system_is_refused() {
    let Some(strace) = require("strace") else { return };
    let directory = TempDir::new().unwrap();
    let url = format!("local:{}", directory.path().display());
    let connect_on = |magic: u64| -> Output {
        // strace wants the bytes as they lie in memory.
        let inject = format!("inject=fstatfs:poke_exit=@arg2={:016x}", magic.to_be());
        let mut command = Command::new(&strace);
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fstatfs", "-e", &inject]);
        command.arg(taker()).args(["--cycles", "0", "--", &url, "name"]);
        let mut taker =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It ends with its stdin, which has to stay open until it has said what it has to say.
        let _stdin = taker.stdin.take();
        taker.wait_with_output().unwrap()
    };
    let refused = [
        (0x6969, "NFS"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x0102_1997, "9P"),
        (0x00c3_6400, "Ceph"),
        (0x0bd0_0bd0, "Lustre"),
    ];
    for (magic, name) in refused {
        let output = connect_on(magic);
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = format!("network or user-space file system ({name})");
        assert!(!output.status.success() && said.contains("Refused") && said.contains(&expected), "{said}");
    }
    // It is the answer that counts, and not that somebody meddles with it: this one is ext4's.
    let output = connect_on(0xef53);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lets system calls of a thread on the store's file fail.
async fn break_disk(thread: u32, store: &Path, calls: &str) -> Option<SystemCallFault> {
    SystemCallFault::begin(thread, &store.join("log-0000000000000001"), calls).await
}

fn url(store: &TempDir) -> String {
    format!("local:{}", store.path().display())
}

/// A process that has held the lock and given it back, and the token that it had.
async fn taker_at_rest(store: &TempDir, name: &str) -> (Taker, FencingToken) {
    let mut taker = Taker::start(&url(store), name, &[]);
    let (token, _) = taker.holds().await;
    taker.releases().await;
    (taker, token)
}

#[tokio::test]
async fn an_acquire_that_fails_on_a_broken_disk_leaves_no_lease_beyond_its_ttl() {
    // The append itself, and the read after it that would bring the answer.
    for (calls, effect) in [("write", Effect::None), ("pread64", Effect::Unknown)] {
        let directory = TempDir::new().unwrap();
        let backend = open(directory.path()).unwrap();
        let lease = take(&backend, "job").await.unwrap();
        assert_eq!(backend.release(&[lease.key]).await.unwrap(), [Release::Released]);
        let (mut other, before) = taker_at_rest(&directory, "job").await;

        let thread = SystemCallFault::this_thread();
        let Some(fault) = break_disk(thread, directory.path(), calls).await else { return };
        let error = take(&backend, "job").await.unwrap_err();
        let failed = SystemClock::new().now();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, effect), "{calls}: {error}");
        assert!(error.to_string().contains("the store's file"), "{calls}: {error}");
        other.tell("acquire");
        let (token, granted) = other.holds().await;
        let took = granted.saturating_since(failed);
        assert!(took < TTL + AT_ONCE, "{calls}: the attempt that failed kept others out for {took:?}");
        assert!(token.sequence() > before.sequence(), "{calls}: {before}, then {token}");

        fault.end().await;
        other.releases().await;
        let after = take(&backend, "job").await.unwrap().token;
        assert!(after.sequence() > token.sequence(), "{calls}: {token}, then {after}");
    }
}

#[tokio::test]
async fn a_holder_on_a_broken_disk_says_that_it_lost_before_the_next_one_holds() {
    let directory = TempDir::new().unwrap();
    let mut holder = Taker::start(&url(&directory), "job", &["--ttl", "1s"]);
    let (old_token, _) = holder.holds().await;
    let mut next = Taker::start(&url(&directory), "job", &["--ttl", "1m"]);
    next.asks().await;

    let Some(fault) = break_disk(holder.id(), directory.path(), "pread64").await else { return };
    let lost = holder.loses().await;
    let (token, granted) = next.holds().await;
    assert!(lost <= granted, "{lost:?}, but the next one held at {granted:?}");
    let idle = granted.saturating_since(lost);
    assert!(idle < TTL + AT_ONCE, "nobody held for {idle:?}");
    assert!(token.sequence() > old_token.sequence(), "{old_token}, then {token}");

    fault.end().await;
    let late = holder.writes("late").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Stale, "{late}");
    next.writes("after").await.unwrap();
}

/// After a failed sync nobody knows what the kernel still has to write: a later one that succeeds proves nothing.
#[test]
fn after_a_sync_that_failed_the_process_confirms_nothing_more() {
    // One thread for all calls that block, and so for all syncs.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(fail_a_sync());
}

async fn fail_a_sync() {
    let directory = TempDir::new().unwrap();
    let backend = open(directory.path()).unwrap();
    let (mut other, _) = taker_at_rest(&directory, "job").await;
    let held = take(&backend, "job").await.unwrap();
    let key = RecordKey::of(LockName::new("job").unwrap());
    backend.records().open(&key, held.token).await.unwrap();
    let confirmed = backend.records().write(&key, held.token, Bytes::from("confirmed")).await.unwrap();

    let thread = tokio::task::spawn_blocking(SystemCallFault::this_thread).await.unwrap();
    let Some(fault) = break_disk(thread, directory.path(), "fdatasync").await else { return };
    let write = async || backend.records().write(&key, held.token, Bytes::from("perhaps")).await;
    let error = write().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error}");
    assert!(error.to_string().contains("cannot sync"), "{error}");
    fault.end().await;
    let record = async || backend.records().read(&key).await.unwrap().unwrap();
    let before = record().await;
    let opened = backend.records().open(&key, held.token).await.map(|_| ());
    for error in [write().await.map(|_| ()), opened, take(&backend, "else").await.map(|_| ())] {
        let error = error.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
        assert!(error.to_string().contains("restart this process"), "{error}");
    }
    assert_eq!(record().await, before, "what had no effect changed it");
    // What it holds it may keep, and give back.
    let held_key = std::slice::from_ref(&held.key);
    assert_eq!(backend.renew(held_key).await.unwrap(), [Renewal::Renewed]);
    assert_eq!(backend.release(held_key).await.unwrap(), [Release::Released]);

    // The others go on, and so does it once it is started again.
    other.tell("acquire");
    let (token, _) = other.holds().await;
    assert!(token.sequence() > held.token.sequence(), "{}, then {token}", held.token);
    assert!(before.version >= confirmed && ["confirmed", "perhaps"].map(Bytes::from).contains(&before.value));
    assert!(other.writes("after").await.unwrap() > before.version);
    assert_eq!(record().await.value, "after");
    drop(backend);
    let restarted = open(directory.path()).unwrap();
    assert!(take(&restarted, "else").await.unwrap().token.sequence() > token.sequence());
}
