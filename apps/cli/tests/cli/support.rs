//! What the tests have in common: a store, processes that end with the test, and waiting for what they print.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringfence::{BootInstant, Clock, SystemClock};
use serde_json::Value;
use tempfile::TempDir;

/// How long a test waits for something that should come at once, on a machine that is busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) const RINGFENCE: &str = env!("CARGO_BIN_EXE_ringfence");

/// A script that says that it has the lock, and keeps it until it is killed.
pub(crate) const HOLD: &str = "echo ready; exec sleep 1000";

/// A local store of the test's own; it goes with the test.
pub(crate) struct Store {
    directory: TempDir,
}

impl Store {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    /// A directory of the test's own, in which the store is as well.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("local:{}/store", self.directory().display())
    }

    /// The program, on this store, with these arguments.
    pub(crate) fn command<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(RINGFENCE);
        command.args(args).env("RINGFENCE_URL", self.url()).env("COLUMNS", "100").stdin(Stdio::null());
        for variable in ["RINGFENCE_LOCK", "RINGFENCE_TOKEN", "RINGFENCE_LOG"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs the program to its end.
    pub(crate) fn ringfence<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// The state of a lock, as `show --json` prints it.
    pub(crate) fn state(&self, name: &str) -> Value {
        self.ringfence(["show", "--json", "--", name]).json()
    }

    /// The one holder of a lock.
    pub(crate) fn holder(&self, name: &str) -> Value {
        self.state(name)["holders"][0].clone()
    }

    /// Starts `run` with a shell script, and returns once the script has printed `ready`.
    pub(crate) fn run_script<'a>(
        &self,
        flags: impl IntoIterator<Item = &'a str>,
        script: &'a str,
    ) -> Running {
        let mut args = vec!["run"];
        args.extend(flags);
        args.extend(["--", "sh", "-c", script]);
        let running = Running::start(&mut self.command(args));
        running.expect("ready");
        running
    }
}

/// A process that ended, and what it said.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts the exit code and returns what was said.
    #[track_caller]
    pub(crate) fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    /// Asserts that a part of standard error is there.
    #[track_caller]
    pub(crate) fn saying(self, what: &str) -> Self {
        assert!(self.stderr.contains(what), "expected {what:?}: {self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A process that runs; it is killed with the test.
pub(crate) struct Running {
    pub(crate) process: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts a process whose standard output is read line by line.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { process, lines }
    }

    /// The same, with a pipe for its standard input.
    pub(crate) fn start_with_input(command: &mut Command) -> (Self, ChildStdin) {
        let mut running = Self::start(command.stdin(Stdio::piped()));
        let input = running.process.stdin.take().unwrap();
        (running, input)
    }

    /// The next line that it prints; `None` when it has closed its standard output.
    #[track_caller]
    pub(crate) fn line(&self) -> Option<String> {
        use std::sync::mpsc::RecvTimeoutError;
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("no line within {PATIENCE:?}"),
        }
    }

    /// Waits for a line that is exactly this.
    #[track_caller]
    pub(crate) fn expect(&self, wanted: &str) {
        let mut seen = Vec::new();
        while let Some(line) = self.line() {
            if line == wanted {
                return;
            }
            seen.push(line);
        }
        panic!("{wanted:?} never came, only {seen:?}");
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn end(mut self) -> ExitStatus {
        eventually("the process ends", || self.process.try_wait().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended does not mind.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until something is there that no event tells of.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(since(start) < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for the end of a process that is not our child.
#[track_caller]
pub(crate) fn until_gone(pid: i32) {
    eventually("the process is gone", || {
        // A zombie whose parent has yet to look is gone as well.
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        (status.is_empty() || status.contains("State:\tZ")).then_some(())
    });
}

pub(crate) fn now() -> BootInstant {
    SystemClock::new().now()
}

pub(crate) fn since(start: BootInstant) -> Duration {
    now().saturating_since(start)
}

/// Runs a command to its end with this standard input.
pub(crate) fn with_input(command: &mut Command, input: &[u8]) -> Done {
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading.
    let _ = process.stdin.take().unwrap().write_all(input);
    Done::of(process.wait_with_output().unwrap())
}

/// Everything that can be read from here until the end.
pub(crate) fn read_all(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}
