//! A command that we run: how it starts, what becomes of it, how it is told to end.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, dup, getpgrp, getppid};
use rustix::process::{WaitOptions, waitpid};

use crate::exit_codes;
use crate::job_control::Terminal;
use crate::print::Messages;
use crate::signals;

/// The hidden verb behind which the program becomes the command, see [`exec`].
const EXEC: &str = "__exec";

/// A command in a process group of its own. It is not ended by dropping this, only by the end of this process.
#[derive(Debug)]
pub(crate) struct Child {
    pid: Pid,
}

/// What became of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum News {
    /// It is stopped by this signal.
    Stopped(i32),
    /// It is over.
    Ended(Ended),
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "with exit code {code}"),
            Self::Signalled(signal) => write!(f, "by signal {signal}"),
        }
    }
}

impl Ended {
    /// The exit code that tells of it.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Exited(code) => u8::try_from(code).unwrap_or(u8::MAX),
            Self::Signalled(signal) => exit_codes::of_signal(signal),
        }
    }
}

/// How to start a command.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    /// The program and its arguments.
    pub(crate) command: &'a [OsString],
    /// What it finds in its environment, beside ours.
    pub(crate) environment: &'a [(&'static str, String)],
    /// A descriptor that it and all its descendants keep open.
    pub(crate) lifeline: Option<OwnedFd>,
    /// Whether it has our standard input, or none.
    pub(crate) takes_input: bool,
    /// Where its standard output goes, if not where ours goes.
    pub(crate) output: Option<OwnedFd>,
    /// Whether it has the terminal from the start.
    pub(crate) takes_terminal: bool,
    /// In which form it says that the command cannot be run.
    pub(crate) json: bool,
}

impl Child {
    /// Starts a command that dies with the calling thread, which must therefore be the main one.
    pub(crate) fn start(start: &Start<'_>) -> io::Result<Self> {
        // A duplicate is inherited, unlike the original; it is ours only until the command has it.
        let inherited = start.lifeline.as_ref().map(dup).transpose()?;
        let output = start.output.as_ref().map(OwnedFd::try_clone).transpose()?;
        let child = Command::new("/proc/self/exe")
            .arg0("ringfence")
            .args([EXEC, &process::id().to_string()])
            .args([start.takes_terminal.to_string(), start.json.to_string()])
            .args(start.command)
            .envs(start.environment.iter().map(|(key, value)| (key, value)))
            .stdin(if start.takes_input { Stdio::inherit() } else { Stdio::null() })
            .stdout(output.map_or_else(Stdio::inherit, Stdio::from))
            .process_group(0)
            .spawn()?;
        drop(inherited);
        Ok(Self { pid: Pid::from_raw(child.id().cast_signed()) })
    }

    /// Its process group, whose number is its process id.
    pub(crate) fn group(&self) -> Pid {
        self.pid
    }

    /// What became of it since the last call, without waiting. After [`News::Ended`] there is no more news.
    pub(crate) fn news(&self) -> io::Result<Option<News>> {
        // Not `nix`, which loses the end of a process that was ended by a real-time signal.
        let pid = rustix::process::Pid::from_raw(self.pid.as_raw());
        let Some((_, status)) = waitpid(pid, WaitOptions::NOHANG | WaitOptions::UNTRACED)? else {
            return Ok(None);
        };
        let ended = status
            .exit_status()
            .map(Ended::Exited)
            .or_else(|| status.terminating_signal().map(Ended::Signalled))
            .map(News::Ended);
        Ok(ended.or_else(|| status.stopping_signal().map(News::Stopped)))
    }

    /// Sends a signal to the command alone. One that is gone does not need it.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(self.pid, signal);
    }

    /// Sends a signal to its process group. One that is gone does not need it.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _ = killpg(self.pid, signal);
    }

    /// Whether nobody is left in its process group. The command itself counts until its end was seen by
    /// [`Self::news`].
    pub(crate) fn group_is_gone(&self) -> bool {
        killpg(self.pid, None) == Err(Errno::ESRCH)
    }
}

/// Becomes the command, if the program was started by [`Child::start`]; returns only where it is not, or cannot.
///
/// A process can ask only for itself to be killed with its parent, and between fork and exec only unsafe code runs.
/// So the program starts itself, asks, and then takes on the command.
pub(crate) fn exec(arguments: &[OsString]) -> Option<ExitCode> {
    let [_, verb, parent, takes_terminal, json, program, arguments @ ..] = arguments else { return None };
    if verb != EXEC {
        return None;
    }
    let error = become_command(parent, takes_terminal == "true", program, arguments);
    let code = match error.kind() {
        io::ErrorKind::NotFound => exit_codes::NOT_FOUND,
        _ => exit_codes::CANNOT_RUN,
    };
    Messages::new(json == "true").error(&format!("cannot run {}: {error}", program.display()), code);
    Some(code.into())
}

fn become_command(
    parent: &OsStr,
    takes_terminal: bool,
    program: &OsStr,
    arguments: &[OsString],
) -> io::Error {
    let prepare = || -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        // Whoever died before that line was not noticed by it.
        if *parent != *getppid().to_string() {
            return Err(io::Error::other("the program that held its lock is gone"));
        }
        // Taking the terminal from the background would stop us; the parent has blocked that signal, and we inherit.
        if takes_terminal && let Some(terminal) = Terminal::controlling()? {
            terminal.give(getpgrp());
        }
        signals::let_through()
    };
    match prepare() {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    }
}
