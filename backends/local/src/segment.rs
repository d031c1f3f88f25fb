//! One file of the log: a header, a snapshot of the table, then the operations since.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringfence_core::table::{Op, Piece, Table};
use ringfence_core::{Error, ErrorKind, Nonce, Result};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::directory::Directory;
use crate::frame::{self, FRAME};

/// The format of the store, raised with every change that an older program could not read.
pub(crate) const FORMAT: u32 = 3;

/// What the header begins with: people who look at the file should see what it is.
const MAGIC: &str = "ringfence store ";

/// The names of segments: this, and their number in 16 hexadecimal digits.
const PREFIX: &str = "log-";

/// The names of segments that are not ready: this, the session that writes it, and a number.
const UNFINISHED: &str = "new-";

/// The names of segments whose end was lost with the power: this, and their number in 16 hexadecimal digits.
pub(crate) const DAMAGED: &str = "damaged-";

/// How many bytes of operations a segment takes before the next one begins, at least.
const SIZE: u64 = 2 * 1024 * 1024;

/// Disk that is reserved beyond that, so that a renewal finds room on a disk that is full.
const RESERVE: u64 = 1024 * 1024;

/// How much of a snapshot is written at once.
const WRITE_BUFFER: usize = 64 * 1024;

/// One entry of the log.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Line<'a> {
    /// A piece of the state that the segment begins with.
    Piece(Piece),
    /// An operation of a session, which knows it again by its number.
    Op { author: Nonce, id: u64, op: Cow<'a, Op> },
    /// The end: nothing after it counts, the log goes on in the next segment.
    Seal,
}

/// An open segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) number: u64,
    /// From this size on it is time for the next one.
    pub(crate) full_at: u64,
}

impl Segment {
    /// The newest segment, or a first one.
    pub(crate) fn newest(directory: &Directory, session: Nonce) -> Result<Self> {
        loop {
            let Some(number) = numbers(directory)?.into_iter().max() else {
                Self::create(directory, session, 1, &Table::default())?;
                continue;
            };
            // Another process may remove it between the look and the open, once there is a newer one.
            if let Some(segment) = Self::open(directory, number)? {
                return Ok(segment);
            }
        }
    }

    /// Opens a segment; `None` if there is none of this number.
    pub(crate) fn open(directory: &Directory, number: u64) -> Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOATIME | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(directory.fd(), name(number), flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(directory.error(errno, "cannot open the store's file")),
        };
        let stat = rustix::fs::fstat(&file)
            .map_err(|errno| directory.error(errno, "cannot look at the store's file"))?;
        if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
            let why = format!(
                "others can write to {} (mode {:o}); chmod 600 it once you know who did",
                name(number),
                stat.st_mode & 0o7777
            );
            return Err(Error::new(ErrorKind::Refused, why)
                .about(format_args!("the local store in {}", directory.path().display())));
        }
        let mut header = [0; FRAME];
        let size = rustix::io::pread(&file, &mut header, 0)
            .map_err(|errno| directory.error(errno, "cannot read the store's file"))?;
        check_header(&header[..size], number).map_err(|why| corrupt(directory, number, &why))?;
        let length = u64::try_from(stat.st_size).unwrap_or(0);
        Ok(Some(Self { file: Arc::new(file), number, full_at: full_at(length) }))
    }

    /// Writes the segment of this number to disk, complete with the table that it begins with, and only then gives it its
    /// name. If somebody else was faster that is as good, because everybody writes the same.
    pub(crate) fn create(directory: &Directory, session: Nonce, number: u64, table: &Table) -> Result<()> {
        let unfinished = format!("{UNFINISHED}{session}-{number:x}");
        let failed = |errno| directory.error(errno, "cannot write the store's next file");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(directory.fd(), &unfinished, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed)?;
        let written = write_snapshot(&file, number, table)
            .and_then(|size| reserve(&file, size))
            .and_then(|()| rustix::fs::fsync(&file))
            .and_then(|()| {
                match rustix::fs::linkat(
                    directory.fd(),
                    &unfinished,
                    directory.fd(),
                    name(number),
                    AtFlags::empty(),
                ) {
                    Err(Errno::EXIST) => Ok(()),
                    other => other,
                }
            });
        // Without its name it would be litter; with it, litter of the same inode.
        let _ = rustix::fs::unlinkat(directory.fd(), &unfinished, AtFlags::empty());
        written.map_err(failed)?;
        directory.sync()?;
        for old in numbers(directory)?.into_iter().filter(|old| *old < number) {
            // Another process may have been faster.
            let _ = rustix::fs::unlinkat(directory.fd(), name(old), AtFlags::empty());
        }
        Ok(())
    }

    /// Keeps a damaged segment under a second name, for a person to look at when the log has gone on without it.
    pub(crate) fn keep_damaged(&self, directory: &Directory) -> Result<()> {
        let aside = format!("{DAMAGED}{:016x}", self.number);
        match rustix::fs::linkat(directory.fd(), name(self.number), directory.fd(), aside, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(directory.error(errno, "cannot keep the damaged end of the log")),
        }
    }

    /// The checksums of frames begin with this.
    pub(crate) fn seed(&self) -> u32 {
        seed(self.number)
    }

    /// Whether the disk has room for a segment after this one.
    pub(crate) fn has_room_for_next(&self, directory: &Directory) -> bool {
        directory.free_space().is_ok_and(|free| free > 2 * self.full_at)
    }

    /// Whether its name was taken from it.
    pub(crate) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }
}

/// Takes away the segments that dead sessions began and did not finish.
pub(crate) fn sweep_unfinished(
    directory: &Directory,
    is_alive: impl Fn(Nonce) -> Result<bool>,
) -> Result<()> {
    for rest in directory.list(UNFINISHED)? {
        let session = rest.split('-').next().and_then(|session| session.parse().ok());
        if let Some(session) = session
            && !is_alive(session)?
        {
            let _ = rustix::fs::unlinkat(directory.fd(), format!("{UNFINISHED}{rest}"), AtFlags::empty());
        }
    }
    Ok(())
}

/// Appends an entry's frames for the segment of this number.
pub(crate) fn encode(line: &Line<'_>, number: u64, out: &mut Vec<u8>) {
    let payload = postcard::to_stdvec(line).expect("every entry has an encoding");
    frame::encode(&payload, seed(number), out);
}

/// Appends to a file opened for appending: in one call, because the kernel keeps one call together.
pub(crate) fn append(file: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
    let written = loop {
        match rustix::io::write(file, bytes) {
            Err(Errno::INTR) => {}
            other => break other?,
        }
    };
    // A part of it is on disk: whole frames without an end, which count for nothing.
    if written == bytes.len() { Ok(()) } else { Err(Errno::NOSPC) }
}

pub(crate) fn corrupt(directory: &Directory, number: u64, why: &str) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("{} is damaged or no store: {why}; nothing was changed. Stop its users, keep a copy, then remove it to start anew", name(number)),
    )
    .about(format_args!("the local store in {}", directory.path().display()))
}

/// Whether there is any segment.
pub(crate) fn is_any(directory: &Directory) -> Result<bool> {
    Ok(!numbers(directory)?.is_empty())
}

fn numbers(directory: &Directory) -> Result<Vec<u64>> {
    Ok(directory.list(PREFIX)?.iter().filter_map(|number| u64::from_str_radix(number, 16).ok()).collect())
}

fn name(number: u64) -> String {
    format!("{PREFIX}{number:016x}")
}

fn seed(number: u64) -> u32 {
    crc32fast::hash(&number.to_le_bytes())
}

/// A store with much to say takes more before it says it all again.
fn full_at(snapshot_size: u64) -> u64 {
    snapshot_size + SIZE.max(2 * snapshot_size)
}

fn header(number: u64) -> [u8; FRAME] {
    let mut header = [0; FRAME];
    let text = format!("{MAGIC}{FORMAT}\n");
    header[..text.len()].copy_from_slice(text.as_bytes());
    header[32..40].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn check_header(found: &[u8], number: u64) -> Result<(), String> {
    if found == header(number) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(found);
    let format: Option<u32> = text
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.split('\n').next())
        .and_then(|number| number.parse().ok());
    Err(match format {
        Some(format) if format > FORMAT => format!(
            "it has format {format} and this program knows format {FORMAT} only; use the newer program that wrote it"
        ),
        Some(format) if format < FORMAT => format!(
            "it has format {format}, and this program knows format {FORMAT} only; use the older program that wrote it, or \
             another directory"
        ),
        Some(_) => "its header does not agree with its name".to_owned(),
        None => "it has no header of a store".to_owned(),
    })
}

fn reserve(file: &OwnedFd, snapshot_size: u64) -> rustix::io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, full_at(snapshot_size) + RESERVE) {
        // A file system that cannot reserve: appends then fail when the disk is full, and nothing is granted.
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => other,
    }
}

/// Writes the header and the table; how much that was.
fn write_snapshot(file: &OwnedFd, number: u64, table: &Table) -> rustix::io::Result<u64> {
    let (mut bytes, mut size) = (header(number).to_vec(), 0);
    for piece in table.pieces() {
        encode(&Line::Piece(piece), number, &mut bytes);
        if bytes.len() >= WRITE_BUFFER {
            write_all(file, &bytes)?;
            size += bytes.len() as u64;
            bytes.clear();
        }
    }
    write_all(file, &bytes)?;
    Ok(size + bytes.len() as u64)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Err(Errno::INTR) => {}
            written => bytes = &bytes[written?..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A checksum says that a frame is as it was written, not that we wrote it.
        #[test]
        fn no_entry_of_any_bytes_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0_u8..4) {
            let _ = postcard::from_bytes::<Line<'_>>(&bytes);
            let _ = postcard::from_bytes::<Line<'_>>(&[&[kind], &bytes[..]].concat());
        }

        #[test]
        fn a_header_is_that_of_its_segment_or_refused(number: u64, other: u64, at in 0..FRAME, bit in 0_u8..8) {
            prop_assert_eq!(check_header(&header(number), number), Ok(()));
            prop_assert_eq!(check_header(&header(number), other).is_ok(), number == other);
            let mut damaged = header(number);
            damaged[at] ^= 1 << bit;
            prop_assert!(check_header(&damaged, number).is_err());
        }
    }
}
