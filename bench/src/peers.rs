//! What we are measured against: the kernel's own lock with a counter beside it, and the smallest writes of our storage.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::FlockOperation;

/// `flock` on a file, with a counter in it that makes a fencing token.
#[derive(Debug)]
pub(crate) struct Flock {
    file: File,
    synced: bool,
}

impl Flock {
    pub(crate) fn open(path: &Path, synced: bool) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        Self { file: file.expect("a file to lock"), synced }
    }

    /// Locks, counts, and returns the count.
    pub(crate) fn lock(&self) -> u64 {
        rustix::fs::flock(&self.file, FlockOperation::LockExclusive).expect("flock");
        let mut counter = [0; 8];
        let _ = self.file.read_at(&mut counter, 0).expect("a counter");
        let token = u64::from_le_bytes(counter) + 1;
        self.file.write_at(&token.to_le_bytes(), 0).expect("a counter");
        if self.synced {
            rustix::fs::fdatasync(&self.file).expect("fdatasync");
        }
        token
    }

    pub(crate) fn unlock(&self) {
        rustix::fs::flock(&self.file, FlockOperation::Unlock).expect("flock");
    }
}

/// The smallest transaction of a log: one frame at its end.
#[derive(Debug)]
pub(crate) struct Append {
    file: File,
    synced: bool,
}

impl Append {
    pub(crate) fn open(path: &Path, synced: bool) -> Self {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Self { file: file.expect("a file to append to"), synced }
    }

    pub(crate) fn append(&self) {
        rustix::io::write(&self.file, &[7; 64]).expect("an append");
        if self.synced {
            rustix::fs::fdatasync(&self.file).expect("fdatasync");
        }
    }
}
