//! The store's place: what it trusts, what it refuses, what survives.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, Error, ErrorKind, FencingToken, HolderInfo, Lease,
    LockName, Mode, Nonce, RecordGuard, RecordKey, Release, SystemClock, Ttl, Wait,
};
use ringfence_local::LocalBackend;
use ringfence_servers::skip;
use tempfile::TempDir;

fn open(directory: &Path) -> Result<LocalBackend, Error> {
    LocalBackend::open(directory, Arc::new(SystemClock::new()))
}

fn refusal(directory: &Path) -> Error {
    match open(directory) {
        Ok(backend) => panic!("{backend} was opened"),
        Err(error) => error,
    }
}

fn request(name: &str) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", std::process::id()).unwrap();
    AcquireRequest::new(LockName::new(name).unwrap(), Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder)
}

async fn take(backend: &LocalBackend, name: &str) -> Lease {
    match backend.acquire(request(name)).await.unwrap() {
        Attempt::Granted(lease) => lease,
        Attempt::Busy(who) => panic!("{name} is busy: {who:?}"),
    }
}

async fn take_and_release(backend: &LocalBackend, name: &str) -> FencingToken {
    let lease = take(backend, name).await;
    assert_eq!(backend.release(&[lease.key]).await.unwrap(), [Release::Released]);
    lease.token
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The one file of the store.
fn log_file(directory: &Path) -> PathBuf {
    let is_log = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("log-");
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).find(is_log).unwrap()
}

#[tokio::test]
async fn only_its_owner_can_enter_the_store() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("new/store");
    let backend = open(&directory).unwrap();
    let _lease = take(&backend, "a").await;
    assert_eq!(mode(&directory), 0o700);
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{path:?}");
    }
}

#[tokio::test]
async fn a_directory_that_others_can_write_is_refused() {
    let directory = TempDir::new().unwrap();
    for mode in [0o770, 0o702, 0o777] {
        set_mode(directory.path(), mode);
        let error = refusal(directory.path());
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("others can write"), "{error}");
    }
    set_mode(directory.path(), 0o755);
    open(directory.path()).unwrap();
}

#[tokio::test]
async fn a_directory_of_another_owner_is_refused() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        skip("chown", "only root can give a directory away");
        return;
    }
    let directory = TempDir::new().unwrap();
    drop(open(directory.path()).unwrap());
    tokio::task::yield_now().await;
    let files = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let before: Vec<_> = files().collect();
    chown(directory.path(), Some(NOBODY), None).unwrap();
    let error = refusal(directory.path());
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("belongs to user 65534, not to user 0"), "{error}");
    assert!(files().eq(before), "nothing was changed");
    chown(directory.path(), Some(0), None).unwrap();
    open(directory.path()).unwrap();
}

#[tokio::test]
async fn a_file_that_others_can_write_is_refused() {
    let directory = TempDir::new().unwrap();
    drop(open(directory.path()).unwrap());
    set_mode(&log_file(directory.path()), 0o666);
    let error = refusal(directory.path());
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("chmod 600"), "{error}");
}

#[tokio::test]
async fn a_file_is_no_directory_for_a_store() {
    let parent = TempDir::new().unwrap();
    let file = parent.path().join("file");
    fs::write(&file, "mine").unwrap();
    let error = refusal(&file);
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("not a directory"), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

#[tokio::test]
async fn a_link_in_place_of_the_log_is_not_followed() {
    let directory = TempDir::new().unwrap();
    drop(open(directory.path()).unwrap());
    let log = log_file(directory.path());
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(&log, &elsewhere).unwrap();
    symlink(&elsewhere, &log).unwrap();
    refusal(directory.path());
}

#[tokio::test]
async fn a_store_of_another_format_is_refused_and_kept() {
    let directory = TempDir::new().unwrap();
    drop(open(directory.path()).unwrap());
    let log = log_file(directory.path());
    let ours = String::from_utf8_lossy(&fs::read(&log).unwrap()[..64]).into_owned();
    for (format, program) in [(2, "older"), (4, "newer")] {
        let theirs = ours.replace("store 3\n", &format!("store {format}\n")).into_bytes();
        fs::write(&log, &theirs).unwrap();
        let error = refusal(directory.path());
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        for part in [format!("format {format}"), format!("the {program} program")] {
            assert!(error.to_string().contains(&part), "{part}: {error}");
        }
        assert_eq!(fs::read(&log).unwrap(), theirs);
    }
}

#[tokio::test]
async fn a_damaged_store_is_refused_and_kept() {
    let directory = TempDir::new().unwrap();
    let backend = open(directory.path()).unwrap();
    for _ in 0..10 {
        let _token = take_and_release(&backend, "a").await;
    }
    drop(backend);
    let log = log_file(directory.path());
    let whole = fs::read(&log).unwrap();
    let (header, middle, end) = (0, whole.len() / 2, whole.len() - 1);
    let damages: [(&str, Vec<u8>); 6] = [
        ("a bit in the header", flipped(&whole, header)),
        ("a bit in the middle", flipped(&whole, middle)),
        ("a bit at the end", flipped(&whole, end)),
        ("half a frame", whole[..whole.len() - 30].to_vec()),
        ("nothing", Vec::new()),
        ("something else", b"#!/bin/sh\n".repeat(100)),
    ];
    for (what, damaged) in damages {
        fs::write(&log, &damaged).unwrap();
        let error = refusal(directory.path());
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains("nothing was changed"), "{what}: {error}");
        assert_eq!(fs::read(&log).unwrap(), damaged, "{what}");
    }
    fs::write(&log, &whole).unwrap();
    let _token = take_and_release(&open(directory.path()).unwrap(), "a").await;
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// A power cut can leave zeros where the last pages did not reach the disk.
#[tokio::test]
async fn an_end_that_was_lost_with_the_power_is_cut_off_and_sequences_go_on_above_it() {
    let directory = TempDir::new().unwrap();
    let backend = open(directory.path()).unwrap();
    let lease = take(&backend, "a").await;
    let key = RecordKey::of(LockName::new("a").unwrap());
    backend.records().open(&key, lease.token).await.unwrap();
    backend.records().write(&key, lease.token, Bytes::from_static(b"kept")).await.unwrap();
    let durable = fs::metadata(log_file(directory.path())).unwrap().len();
    let mut last = lease.token;
    for _ in 0..100 {
        last = take_and_release(&backend, "b").await;
    }
    drop(backend);

    let log = log_file(directory.path());
    let mut bytes = fs::read(&log).unwrap();
    bytes[usize::try_from(durable).unwrap()..].fill(0);
    fs::write(&log, &bytes).unwrap();
    let backend = open(directory.path()).unwrap();
    assert!(take_and_release(&backend, "b").await.sequence() > last.sequence());
    assert_eq!(backend.records().read(&key).await.unwrap().unwrap().value, "kept");
    let aside = fs::read_dir(directory.path()).unwrap().any(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str().unwrap().starts_with("damaged-")
    });
    assert!(aside, "the damaged file is kept for a person to look at");
}

#[tokio::test]
async fn sequences_rise_through_every_reopening() {
    let directory = TempDir::new().unwrap();
    let mut last = 0;
    for _ in 0..20 {
        let backend = open(directory.path()).unwrap();
        for _ in 0..3 {
            let sequence = take_and_release(&backend, "a").await.sequence();
            assert!(sequence > last, "{sequence} after {last}");
            last = sequence;
        }
    }
}

#[tokio::test]
async fn many_segments_are_one_log() {
    let directory = TempDir::new().unwrap();
    let (one, two) = (open(directory.path()).unwrap(), open(directory.path()).unwrap());
    let held = take(&one, "held").await;
    let key = RecordKey::of(LockName::new("held").unwrap());
    one.records().open(&key, held.token).await.unwrap();
    // Each of these writes takes a good part of a segment.
    let value = Bytes::from(vec![b'x'; ringfence_core::RECORD_VALUE_MAX]);
    for _ in 0..100 {
        one.records().write(&key, held.token, value.clone()).await.unwrap();
    }
    let logs = fs::read_dir(directory.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_str().unwrap().starts_with("log-")
    });
    assert_eq!(logs.count(), 1, "old segments are gone");
    assert!(!log_file(directory.path()).ends_with("log-0000000000000001"), "there was more than one");
    // The other one slept through all of it.
    assert!(matches!(two.acquire(request("held")).await.unwrap(), Attempt::Busy(_)));
    assert_eq!(two.records().read(&key).await.unwrap().unwrap().version.0, 100);
    assert_eq!(one.release(&[held.key]).await.unwrap(), [Release::Released]);
    let _token = take_and_release(&two, "held").await;
}

#[tokio::test]
async fn a_store_that_was_removed_under_us_grants_nothing() {
    let directory = TempDir::new().unwrap();
    let backend = open(directory.path()).unwrap();
    let _token = take_and_release(&backend, "a").await;
    fs::remove_file(log_file(directory.path())).unwrap();
    // It looks every quarter of a second.
    let error = loop {
        match backend.acquire(request("a")).await {
            Ok(Attempt::Granted(lease)) => {
                let _ = backend.release(&[lease.key]).await;
                tokio::task::yield_now().await;
            }
            Ok(Attempt::Busy(who)) => panic!("{who:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("removed"), "{error}");
}

#[tokio::test]
async fn a_store_that_was_removed_under_us_does_not_come_back_with_the_next_segment() {
    let directory = TempDir::new().unwrap();
    let backend = open(directory.path()).unwrap();
    let held = take(&backend, "held").await;
    let key = RecordKey::of(LockName::new("held").unwrap());
    backend.records().open(&key, held.token).await.unwrap();
    fs::remove_file(log_file(directory.path())).unwrap();
    // Far more than a segment takes.
    let value = Bytes::from(vec![b'x'; ringfence_core::RECORD_VALUE_MAX]);
    let mut written = 0;
    let error = loop {
        match backend.records().write(&key, held.token, value.clone()).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "{written} writes went nowhere");
    };
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let is_log = |name: &str| name.starts_with("log-");
    let mut names = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.any(|name| is_log(name.to_str().unwrap())), "the store came back");
}

#[tokio::test]
async fn a_session_leaves_nothing_behind() {
    let directory = TempDir::new().unwrap();
    let backend = open(directory.path()).unwrap();
    let _token = take_and_release(&backend, "a").await;
    drop(backend);
    let names: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[tokio::test]
async fn what_a_dropped_client_held_is_free_at_once() {
    let directory = TempDir::new().unwrap();
    let (one, two) = (open(directory.path()).unwrap(), open(directory.path()).unwrap());
    let _held = take(&one, "a").await;
    drop(one);
    let waiting = AcquireRequest::new(
        LockName::new("a").unwrap(),
        Mode::Exclusive,
        Ttl::DEFAULT,
        Wait::Until(BootInstant::MAX),
        HolderInfo::new("test", "host", 1).unwrap(),
    );
    assert!(matches!(two.acquire(waiting).await.unwrap(), Attempt::Granted(_)));
}

#[tokio::test]
async fn a_lifeline_keeps_the_lease_of_a_dropped_client_until_its_ttl() {
    let directory = TempDir::new().unwrap();
    let (one, two) = (open(directory.path()).unwrap(), open(directory.path()).unwrap());
    let _held = take(&one, "a").await;
    let lifeline = one.lifeline().unwrap().unwrap();
    drop(one);
    // Its task ends, and with it its own descriptor of the session, when the runtime comes to it.
    tokio::task::yield_now().await;
    assert!(matches!(two.acquire(request("a")).await.unwrap(), Attempt::Busy(_)));
    drop(lifeline);
    let _lease = take(&two, "a").await;
}

#[tokio::test]
async fn a_record_for_a_lock_elsewhere_keeps_its_mark_and_its_guard() {
    let directory = TempDir::new().unwrap();
    let open = |guard| open(directory.path()).unwrap().with_record_guard(guard);
    let key = RecordKey::of(LockName::new("a").unwrap());
    let token = |sequence| FencingToken::new(sequence, Nonce::random()).unwrap();
    let (low, mark) = (token(6), token(7));
    let refusal = async |store: &LocalBackend, token| store.records().open(&key, token).await.unwrap_err();

    let store = open(RecordGuard::HighWaterMark);
    assert_eq!(store.guarantees().record_guard, RecordGuard::HighWaterMark);
    assert!(store.to_string().ends_with("?fence=mark"), "{store}");
    store.records().open(&key, mark).await.unwrap();
    drop(store);
    let store = open(RecordGuard::HighWaterMark);
    assert_eq!(refusal(&store, low).await.kind(), ErrorKind::Stale);
    assert_eq!(refusal(&store, token(7)).await.kind(), ErrorKind::TokenCollision);
    store.records().write(&key, mark, Bytes::from("kept")).await.unwrap();

    // A process with another setting is told, and changes nothing.
    let other = open(RecordGuard::LiveLease);
    let error = refusal(&other, token(8)).await;
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert!(error.to_string().contains("below the record's mark"), "{error}");
    assert_eq!(other.records().read(&key).await.unwrap().unwrap().value, "kept");
    store.records().write(&key, mark, Bytes::from("kept on")).await.unwrap();
}

/// A gate opens a record for each of its requests.
#[tokio::test]
async fn opening_what_is_open_writes_nothing_and_is_refused_when_the_lease_is_over() {
    let directory = TempDir::new().unwrap();
    let (backend, other) = (open(directory.path()).unwrap(), open(directory.path()).unwrap());
    let lease = take(&backend, "a").await;
    let key = RecordKey::of("a".parse().unwrap());
    backend.records().open(&key, lease.token).await.unwrap();
    let size = || fs::metadata(log_file(directory.path())).unwrap().len();
    let before = size();
    for backend in [&backend, &other] {
        let opened = backend.records().open(&key, lease.token).await.unwrap();
        assert!(opened.record.is_none());
    }
    assert_eq!(size(), before);
    backend.records().write(&key, lease.token, Bytes::from_static(b"value")).await.unwrap();
    let opened = other.records().open(&key, lease.token).await.unwrap();
    assert_eq!(opened.record.unwrap().value, "value", "what another process wrote is seen");
    assert_eq!(backend.release(&[lease.key]).await.unwrap(), [Release::Released]);
    let error = other.records().open(&key, lease.token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stale);
}
