//! Where the store lives, and what must be true of that place before we trust it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ringfence_core::{Error, ErrorKind, Result};
use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

/// Who may enter the store's directory: its owner.
const DIRECTORY_MODE: Mode = Mode::RWXU;

const CANNOT_LOOK: &str = "cannot look at the store's directory";

/// Network and user-space file systems by their magic number: there an append by one machine is not an append for all,
/// and the kernel cannot tell us of a death on another one.
const FOREIGN_FILE_SYSTEMS: [(u32, &str); 14] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "kAFS"),
    (0x7375_7245, "Coda"),
    (0x0bd0_0bd0, "Lustre"),
    (0x7461_636f, "OCFS2"),
    (0x0116_1970, "GFS2"),
    (0x564c, "NCP"),
];

/// The store of this machine: `/var/lib/ringfence` for root, `$XDG_STATE_HOME/ringfence` for anyone else, where
/// `XDG_STATE_HOME` is `~/.local/state` unless it is set to an absolute path.
///
/// It is the *state* directory because sequences must survive a reboot. Errors with [`ErrorKind::Refused`] where
/// there is no home directory.
pub fn default_directory() -> Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/ringfence"));
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("ringfence"))
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Refused,
                "there is no directory for the local store: neither XDG_STATE_HOME nor HOME is an absolute path; \
                 name one with local:/some/dir",
            )
        })
}

/// A directory that was found fit to hold a store.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory, or creates it for its owner only, and checks it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            create(path)?;
        }
        let fd = rustix::fs::openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| match errno {
            Errno::NOTDIR => refused(path, "it is not a directory; name one for the store".to_owned()),
            _ => io_error(errno, path, "cannot open the store's directory"),
        })?;
        let directory = Self { fd, path: path.to_owned() };
        directory.check()?;
        Ok(directory)
    }

    /// Errors unless it is its owner's alone and on a disk of this machine.
    pub(crate) fn check(&self) -> Result<()> {
        let (stat, path) = (self.stat()?, &self.path);
        let user = rustix::process::geteuid();
        if stat.st_uid != user.as_raw() {
            return Err(refused(
                path,
                format!(
                    "it belongs to user {}, not to user {}, who runs this; a store has one owner",
                    stat.st_uid,
                    user.as_raw()
                ),
            ));
        }
        if Mode::from_raw_mode(stat.st_mode).intersects(Mode::WGRP | Mode::WOTH) {
            return Err(refused(
                path,
                format!(
                    "others can write to it (mode {:o}), so anyone could forge a lock; chmod 700 it or name another one",
                    stat.st_mode & 0o7777
                ),
            ));
        }
        let kind = self.file_system()?;
        match FOREIGN_FILE_SYSTEMS.iter().find(|(magic, _)| *magic == kind) {
            None => Ok(()),
            Some((_, name)) => Err(refused(
                path,
                format!(
                    "it is on a network or user-space file system ({name}), where a local store cannot keep its \
                     promises; name a directory on a disk of this machine"
                ),
            )),
        }
    }

    /// Whose it is, and who may enter.
    pub(crate) fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.fd).map_err(|errno| self.error(errno, CANNOT_LOOK))
    }

    /// The magic number of its file system.
    pub(crate) fn file_system(&self) -> Result<u32> {
        let system = rustix::fs::fstatfs(&self.fd).map_err(|errno| self.error(errno, CANNOT_LOOK))?;
        // The field has another type on every architecture, and 32 bits of content.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the magic numbers have 32 bits"
        )]
        Ok(system.f_type as u32)
    }

    /// The bytes that are left on its disk for us.
    pub(crate) fn free_space(&self) -> Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.fd).map_err(|errno| self.error(errno, CANNOT_LOOK))?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes names that were linked or removed durable.
    pub(crate) fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.fd).map_err(|errno| self.error(errno, "cannot sync the store's directory"))
    }

    /// The names in the directory that begin with `prefix`, and what follows it.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let failed = |errno| self.error(errno, "cannot list the store's directory");
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd).map_err(failed)? {
            let name = entry.map_err(failed)?;
            if let Some(rest) = name.file_name().to_str().ok().and_then(|name| name.strip_prefix(prefix)) {
                found.push(rest.to_owned());
            }
        }
        Ok(found)
    }

    /// Our error for an error of the operating system in this directory.
    pub(crate) fn error(&self, errno: Errno, what: &str) -> Error {
        io_error(errno, &self.path, what)
    }
}

fn create(path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            io_error(errno, path, "cannot create the store's directory")
        })?;
    }
    match rustix::fs::mkdirat(CWD, path, DIRECTORY_MODE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(io_error(errno, path, "cannot create the store's directory")),
    }
}

fn refused(path: &Path, why: String) -> Error {
    Error::new(ErrorKind::Refused, why).about(format_args!("the local store in {}", path.display()))
}

/// Our error for an error of the operating system: a full disk, a read-only one, and the rest.
fn io_error(errno: Errno, path: &Path, what: &str) -> Error {
    let (kind, hint) = match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => {
            (ErrorKind::Full, "; make room on its disk: until then no lease is granted")
        }
        Errno::ROFS => (ErrorKind::Refused, "; it is on a read-only file system, name another directory"),
        Errno::ACCESS | Errno::PERM => (ErrorKind::Refused, "; look at its owner and mode"),
        _ => (ErrorKind::Unavailable, ""),
    };
    Error::new(kind, format!("{what}{hint}"))
        .because(std::io::Error::from(errno))
        .about(format_args!("the local store in {}", path.display()))
}
