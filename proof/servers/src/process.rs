use std::io::{BufRead, BufReader, Result, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::sync::mpsc;

/// A child process that leads a process group of its own, spoken to by lines.
///
/// Dropping it kills the whole group, stopped or not, and waits until the child is gone.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::UnboundedReceiver<String>,
    is_dead: bool,
}

impl Process {
    /// Starts a command. Its stdin and stdout are pipes; its stderr is the caller's.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let (sender, lines) = mpsc::unbounded_channel();
        // A thread, because a pipe is read by blocking; it ends with the last process that has the pipe open.
        std::thread::spawn(move || {
            let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
            lines.try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, stdin, lines, is_dead: false })
    }

    /// Its process id, which is that of its group too.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its next line on stdout; `None` when there will be no more, because it has ended or closed its stdout.
    ///
    /// # Cancel safety
    /// A line is never lost: if the future is dropped, the next call returns it.
    pub async fn line(&mut self) -> Option<String> {
        self.lines.recv().await
    }

    /// Writes a line to its stdin. Errors when it has ended or its stdin is closed.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or(std::io::ErrorKind::BrokenPipe)?;
        // In one piece: it may end when it has read the line, and before it could read another piece.
        stdin.write_all(format!("{line}\n").as_bytes())
    }

    /// Closes its stdin: it reads an end of file.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Whether it was [killed](Self::kill).
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Stops the group (SIGSTOP), and returns when the child has stopped. Errors when it has ended.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        // The signal is under way when `kill` returns. NOWAIT leaves the state for whoever waits for the child.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid()), options)? {
            Some(status) if status.stopped() => Ok(()),
            _ => Err(std::io::Error::other(format!("process {} has ended, it cannot be stopped", self.id()))),
        }
    }

    /// Lets a stopped group run on (SIGCONT).
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills the group (SIGKILL), and returns when the child is dead. What it had printed can still be read.
    /// Killing it again does nothing.
    pub fn kill(&mut self) -> Result<()> {
        if !self.is_dead {
            // Until it is waited for, its number is not given to anybody else.
            self.signal(Signal::KILL)?;
            self.child.wait()?;
            self.is_dead = true;
        }
        Ok(())
    }

    /// Asks the group to end (SIGTERM).
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process_group(self.pid(), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a child that cannot be killed, and a panic here would hide the test's own.
        let _ = self.kill();
    }
}

/// Runs a command to its end.
///
/// Panics, with what it said, when it fails.
pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The third field of `/proc/PID/stat`, as `T` for one that is stopped; `None` when there is no such process, or only its
/// corpse.
pub(crate) fn state(id: &str) -> Option<char> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(id).join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next().filter(|state| !matches!(state, 'Z' | 'X'))
}

/// What becomes of a server whose test is killed.
#[cfg(test)]
pub(crate) mod orphans {
    use ringfence_testkit::PATIENCE;
    use tempfile::TempDir;

    use super::*;
    use crate::redis::until;

    /// Tells the child that its server is to be stopped when the child is killed.
    const STOPPED: &str = "RINGFENCE_STOPPED";

    /// Runs a test in a process of its own until it [waits](wait_to_be_killed), kills it, and waits until its server is gone,
    /// whether that runs or is stopped.
    pub(crate) async fn ends_with_its_test(test: &str) {
        for is_stopped in [false, true] {
            let folder = TempDir::new().unwrap();
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.env("TMPDIR", folder.path()).args(["--exact", test, "--ignored", "--nocapture"]);
            if is_stopped {
                command.env(STOPPED, "1");
            }
            let mut child = Process::start(command).unwrap();
            let processes = loop {
                let line = tokio::time::timeout(PATIENCE, child.line()).await.expect("it starts in time");
                let line = line.expect("the child says what it has started");
                if let Some(processes) = line.strip_prefix("started ") {
                    break processes.split(' ').map(str::to_owned).collect::<Vec<_>>();
                }
            };
            assert!(processes.iter().all(|process| state(process).is_some()), "{processes:?} are there");
            child.kill().unwrap();
            until("nobody is left to own the server", async || {
                processes.iter().all(|process| state(process).is_none()).then_some(())
            })
            .await;
        }
    }

    /// In such a process: whether the server is to be stopped.
    pub(crate) fn is_to_be_stopped() -> bool {
        std::env::var_os(STOPPED).is_some()
    }

    /// In such a process, which then drops nothing: says which processes the server has.
    pub(crate) fn wait_to_be_killed(processes: &[String]) {
        println!("\nstarted {}", processes.join(" "));
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command).unwrap()
    }

    async fn line(process: &mut Process) -> Option<String> {
        tokio::time::timeout(Duration::from_secs(10), process.line()).await.expect("a line in time")
    }

    #[tokio::test]
    async fn lines_go_both_ways() {
        let mut process = shell("read word; echo \"heard $word\"; cat");
        process.send("this").unwrap();
        assert_eq!(line(&mut process).await.as_deref(), Some("heard this"));
        process.close_stdin();
        assert_eq!(line(&mut process).await, None);
    }

    #[tokio::test]
    async fn a_stopped_process_is_stopped_when_the_call_returns_and_runs_on() {
        let mut process = shell("while read word; do echo $word; done");
        let id = process.id().to_string();
        process.send("before").unwrap();
        assert_eq!(line(&mut process).await.as_deref(), Some("before"));
        process.stop().unwrap();
        assert_eq!(state(&id), Some('T'));
        process.send("meanwhile").unwrap();
        process.resume().unwrap();
        assert_eq!(line(&mut process).await.as_deref(), Some("meanwhile"));
    }

    #[tokio::test]
    async fn dropping_kills_the_whole_group_even_if_it_is_stopped() {
        let mut process = shell("sleep 1000 & echo $!; wait");
        let (leader, member) = (process.id().to_string(), line(&mut process).await.unwrap());
        assert!(state(&leader).is_some() && state(&member).is_some());
        process.stop().unwrap();
        drop(process);
        assert_eq!(state(&leader), None);
        // The grandchild is not ours to wait for: its death is near, not done.
        tokio::time::timeout(Duration::from_secs(10), async {
            while state(&member).is_some() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("the grandchild dies");
    }

    #[tokio::test]
    async fn what_was_printed_before_the_kill_is_read_after_it() {
        let mut process = shell("echo last words; exec sleep 1000");
        let first = line(&mut process).await;
        process.kill().unwrap();
        process.kill().unwrap();
        assert_eq!((first.as_deref(), line(&mut process).await), (Some("last words"), None));
        assert!(process.stop().is_err(), "what is dead cannot be stopped");
    }
}
