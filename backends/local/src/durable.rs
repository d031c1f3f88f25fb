//! Getting what was appended onto the disk, once for all that wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringfence_core::{Error, ErrorKind, Result};
use tokio::sync::Mutex;

use crate::directory::Directory;
use crate::log::Position;

/// Syncs the log. The first who asks goes at once; those who come meanwhile share the next sync.
#[derive(Debug)]
pub(crate) struct Durable {
    directory: Arc<Directory>,
    /// Up to where everything is on disk: the segment, and the offset in it.
    synced: Mutex<(u64, u64)>,
    failed: AtomicBool,
}

impl Durable {
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        Self { directory, synced: Mutex::new((0, 0)), failed: AtomicBool::new(false) }
    }

    /// Errors if a sync has ever failed: the kernel may then have thrown away what it could not write, and a later sync
    /// that succeeds proves nothing.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "the disk failed to keep what was written, so nothing is granted any more; look at the disk, then \
             restart this process",
        )
        .about(format_args!("the local store in {}", self.directory.path().display())))
    }

    /// Returns when everything up to the place that `position` gives is on disk. `position` is asked when the sync begins,
    /// so that it takes along whatever was appended meanwhile.
    pub(crate) async fn sync(&self, wanted: Position, position: impl Fn() -> Position) -> Result<()> {
        let mut synced = self.synced.lock().await;
        self.check()?;
        // A later segment began with a snapshot that was on disk before anybody could use it.
        if *synced >= (wanted.segment, wanted.offset) {
            return Ok(());
        }
        let newest = position();
        let target = if newest.segment == wanted.segment { newest } else { wanted };
        let new_segment = target.segment > synced.0;
        let (file, directory) = (target.file.clone(), self.directory.clone());
        let outcome = tokio::task::spawn_blocking(move || {
            rustix::fs::fdatasync(&file)
                .map_err(|errno| directory.error(errno, "cannot sync the store's file"))?;
            // Whoever made the segment has synced its name, or is about to; we cannot tell which.
            if new_segment { directory.sync() } else { Ok(()) }
        })
        .await
        .map_err(|stopped| {
            Error::new(ErrorKind::Unavailable, "the runtime stopped during a sync").because(stopped)
        })
        .flatten();
        match outcome {
            Ok(()) => *synced = (*synced).max((target.segment, target.offset)),
            Err(_) => self.failed.store(true, Ordering::Relaxed),
        }
        outcome.map_err(Error::with_unknown_effect)
    }
}
