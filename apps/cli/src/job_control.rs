//! Who has the terminal: we, or the command in its own process group.

use std::fs::File;
use std::io;

use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};
use rustix::fs::{FileType, fstat};

/// The terminal that this session is controlled from.
#[derive(Debug)]
pub(crate) struct Terminal {
    tty: File,
    in_pipeline: bool,
}

impl Terminal {
    /// The controlling terminal, where there is one.
    pub(crate) fn controlling() -> io::Result<Option<Self>> {
        let Ok(tty) = File::options().read(true).write(true).open("/dev/tty") else { return Ok(None) };
        let is_pipe = |file_type| matches!(file_type, FileType::Fifo | FileType::Socket);
        let in_pipeline = is_pipe(FileType::from_raw_mode(fstat(io::stdin())?.st_mode))
            || is_pipe(FileType::from_raw_mode(fstat(io::stdout())?.st_mode));
        Ok(Some(Self { tty, in_pipeline }))
    }

    /// Whether our own process group has the terminal.
    pub(crate) fn is_ours(&self) -> bool {
        tcgetpgrp(&self.tty) == Ok(getpgrp())
    }

    /// Whether the command should have the terminal from the start, and not only once it asks for it.
    ///
    /// In a pipeline the terminal belongs to its other parts as much: taking it from a pager that shows the command's
    /// output would stop the pager.
    pub(crate) fn goes_to_command(&self) -> bool {
        !self.in_pipeline && self.is_ours()
    }

    /// Gives the terminal to a process group of this session. One that is gone does not need it.
    pub(crate) fn give(&self, group: Pid) {
        let _ = tcsetpgrp(&self.tty, group);
    }

    /// Takes the terminal back from a process group; returns whether it had it.
    pub(crate) fn take_back(&self, group: Pid) -> bool {
        let had_it = tcgetpgrp(&self.tty) == Ok(group);
        if had_it {
            self.give(getpgrp());
        }
        had_it
    }
}
