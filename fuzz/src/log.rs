use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use ringfence::{ErrorKind, Locks, Result};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// The size of a frame of the log: a checksum of four bytes, then what it covers.
const FRAME: usize = 64;

/// The number of the segment that is fed, and the file that it is in. It is the second of its store, because that one
/// begins with a snapshot.
const NUMBER: u64 = 2;
const FILE: &str = "log-0000000000000002";

/// Far longer than anything takes here: nothing of the store's may go on without end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store is opened and works, or is refused as corrupt and left as it was found.
///
/// The input is a whole file after an even first byte; after an odd one it is edits of a file that is in order. That file
/// has other nonces in every process, so the same edits may hit something else in the next one.
pub fn log(data: &[u8]) {
    let file = match data.split_first() {
        Some((kind, edits)) if kind % 2 == 1 => edited(edits),
        Some((_, file)) => file.to_vec(),
        None => Vec::new(),
    };
    let directory = in_memory();
    std::fs::write(directory.path().join(FILE), &file).expect("a temporary file can be written");
    let runtime = runtime();
    runtime.block_on(async {
        let before = files(directory.path());
        let open = tokio::time::timeout(PATIENCE, connect(&directory));
        match open.await.expect("a store that cannot be opened is refused") {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(files(directory.path()) == before, "what is corrupt was changed: {error}");
            }
            Ok(locks) => {
                // Whether they are free, and the store of use at all, depends on what its entries say.
                for name in ["job", "held"] {
                    let used = tokio::time::timeout(PATIENCE, uses(&locks, name)).await;
                    if let Err(error) = used.expect("a store that cannot be used says so") {
                        assert_ne!(error.kind(), ErrorKind::Bug, "{error}");
                    }
                }
            }
        }
    });
}

/// Takes a lock and writes its record, as far as what it finds allows.
async fn uses(locks: &Locks, name: &str) -> Result<()> {
    locks.list(ringfence::ListQuery::default()).await?;
    let Some(guard) = locks.lock(name).try_acquire().await? else { return Ok(()) };
    let record = locks.record(name)?;
    record.open(guard.token()).await?;
    record.write(guard.token(), name.to_owned()).await?;
    guard.release().await
}

/// A file of a real store in order: a snapshot, then operations, up to a moment at which much is going on.
fn in_order() -> &'static [u8] {
    static FILE_IN_ORDER: OnceLock<Vec<u8>> = OnceLock::new();
    FILE_IN_ORDER.get_or_init(|| {
        let made = async {
            const FIRST: &str = "log-0000000000000001";
            let before = in_use(&in_memory(), FIRST).await?;
            // What a power cut leaves: the log goes on in the next segment, behind a snapshot.
            let directory = in_memory();
            std::fs::write(directory.path().join(FIRST), [before, vec![0; FRAME]].concat())
                .expect("a temporary file can be written");
            in_use(&directory, FILE).await
        };
        runtime().block_on(made).expect("a store in memory works")
    })
}

/// A store's file, read while locks are held and waited for, as a process that is killed would leave it.
async fn in_use(directory: &TempDir, file: &str) -> Result<Vec<u8>> {
    let locks = connect(directory).await?;
    for name in ["job", "another", "job"] {
        uses(&locks, name).await?;
        locks.lock(name).acquire().await?.downgrade().await?.release().await?;
    }
    let _exclusive = locks.lock("held").acquire().await?;
    let _shared = locks.lock("read").shared().acquire().await?;
    let _permit = locks.lock("permit").permits(3).acquire().await?;
    // Of another session: within one, the store sees no line.
    let mut waits = std::pin::pin!(connect(directory).await?.lock("held").acquire());
    let waited = tokio::time::timeout(Duration::from_millis(10), waits.as_mut()).await;
    assert!(waited.is_err(), "it stands in line");
    Ok(std::fs::read(directory.path().join(file)).expect("the store has this file"))
}

/// The file in order after edits of four bytes each: what to do, to which frame, where in it or with which other one,
/// and by what.
fn edited(edits: &[u8]) -> Vec<u8> {
    let mut frames: Vec<[u8; FRAME]> = in_order().as_chunks().0.to_vec();
    for [what, frame, at, value] in edits.as_chunks::<4>().0 {
        let (frame, other) = (usize::from(*frame) % frames.len(), usize::from(*at) % frames.len());
        match what % 8 {
            0 => frames[frame][usize::from(*at) % FRAME] ^= value,
            // As if it had been written like this: the frame's place in its entry or its length, or what it carries.
            kind @ 1..=3 => {
                let covered = if kind == 1 { 4..6 } else { 6..FRAME };
                frames[frame][covered.start + usize::from(*at) % covered.len()] ^= value;
                let checksum = checksum(&frames[frame]);
                frames[frame][..4].copy_from_slice(&checksum);
            }
            4 => frames.swap(frame, other),
            5 => frames.insert(other, frames[frame]),
            6 => frames[frame..].fill([0; FRAME]),
            _ => frames.truncate(frame.max(1)),
        }
    }
    let mut file = frames.concat();
    // The end of a file that is no end of a frame.
    file.truncate(file.len() - edits.len() % 4);
    file
}

/// The checksum of a frame in this segment.
fn checksum(frame: &[u8; FRAME]) -> [u8; 4] {
    let mut checksum = crc32fast::Hasher::new_with_initial(crc32fast::hash(&NUMBER.to_le_bytes()));
    checksum.update(&frame[4..]);
    checksum.finalize().to_le_bytes()
}

async fn connect(directory: &TempDir) -> Result<Locks> {
    Locks::connect(&format!("local:{}", directory.path().display())).await
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime starts")
}

/// A directory without a disk below it, where there is one: each input has a store of its own.
fn in_memory() -> TempDir {
    let shared_memory = Path::new("/dev/shm");
    let parent = if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("ringfence-fuzz-").tempdir_in(parent).expect("a temporary directory")
}

/// The files of a directory and what is in them.
fn files(directory: &Path) -> BTreeMap<std::ffi::OsString, Vec<u8>> {
    let entries = std::fs::read_dir(directory).expect("the store's directory is there");
    let entries = entries.map(|entry| entry.expect("the store's directory can be read"));
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files.map(|file| (file.file_name(), std::fs::read(file.path()).expect("a file can be read"))).collect()
}
