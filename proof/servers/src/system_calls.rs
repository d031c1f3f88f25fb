use std::path::Path;
use std::process::Command;

use crate::process::Process;
use crate::require::{require, skip};

/// What strace says when it has a thread, and from then on nothing escapes it.
const ATTACHED: &str = " attached";

/// System calls of a running thread that fail, from [`Self::begin`] until [`Self::end`].
///
/// By ptrace, because a preloaded library sees nothing of a program that makes its system calls without libc. Of one
/// thread, because whatever a traced process starts would be traced as well: other tests would be in for it.
#[derive(Debug)]
pub struct SystemCallFault {
    strace: Process,
}

impl SystemCallFault {
    /// The thread that calls this, by its number in the system.
    pub fn this_thread() -> u32 {
        let thread = std::fs::read_link("/proc/thread-self").expect("a thread has a folder in /proc");
        let number = thread.file_name().and_then(|number| number.to_str()?.parse().ok());
        number.expect("it is named after the thread")
    }

    /// Lets these system calls of a thread on one file fail with EIO: as in `pread64` or `fdatasync,fsync`, by the names
    /// that strace has for them. The number of a process is that of its first thread.
    ///
    /// `None`, and said as [`skip`] does, where strace is not installed or may not trace the thread.
    pub async fn begin(thread: u32, file: &Path, calls: &str) -> Option<Self> {
        let strace = require("strace")?;
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EIO"));
        // Its word that it is ready comes on stderr.
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(strace);
        command.args(["-e", &trace, "-e", &inject, "-p", &thread.to_string(), "-P"]).arg(file);
        let mut strace = Process::start(command).expect("a shell starts");
        let mut said = String::new();
        while let Some(line) = strace.line().await {
            if line.contains(ATTACHED) {
                return Some(Self { strace });
            }
            said += &line;
        }
        skip("strace", &said);
        None
    }

    /// Lets the calls succeed again.
    pub async fn end(mut self) {
        self.strace.terminate().expect("strace runs as long as the thread");
        while self.strace.line().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use tempfile::TempDir;

    use super::*;

    #[tokio::test]
    async fn calls_on_one_file_fail_from_the_beginning_to_the_end() {
        let folder = TempDir::new().unwrap();
        let files = ["broken", "whole"].map(|name| {
            let path = folder.path().join(name);
            std::fs::write(&path, "content").unwrap();
            (File::open(&path).unwrap(), path)
        });
        let [(broken, path), (whole, _)] = &files;
        let read = |file: &File| file.read_at(&mut [0; 7], 0).map_err(|error| error.raw_os_error());
        assert_eq!((read(broken), read(whole)), (Ok(7), Ok(7)));
        let thread = SystemCallFault::this_thread();
        let Some(fault) = SystemCallFault::begin(thread, path, "pread64").await else { return };
        // EIO, on one file, in one thread.
        assert_eq!((read(broken), read(whole)), (Err(Some(5)), Ok(7)));
        let elsewhere = std::thread::scope(|scope| scope.spawn(|| read(broken)).join().unwrap());
        assert_eq!(elsewhere, Ok(7));
        fault.end().await;
        assert_eq!((read(broken), read(whole)), (Ok(7), Ok(7)));
    }
}
