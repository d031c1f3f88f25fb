use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::require::{require, skip};

/// What is preloaded, in C because it stands in for functions of the C library's world.
const SHIM: &str = include_str!("../shims/wall_clock.c");

/// A wall clock for processes under test, to be set forward and back while they run. The clocks that nobody can set stay
/// true.
///
/// It reaches every dynamically linked program for x86-64 or `AArch64` that reads the time as libc does, through the vDSO.
#[derive(Debug)]
pub struct WallClock {
    library: PathBuf,
    offset: File,
    folder: TempDir,
}

impl WallClock {
    /// A clock that is right. `None`, and said as [`skip`] does, where there is no C compiler or the kernel does not
    /// let a process have a clock of its own.
    pub fn new() -> Option<Self> {
        let compiler = require("cc")?;
        let folder = TempDir::new().expect("a temporary directory");
        // It governs servers of other users as well.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let (source, library) = (folder.path().join("wall_clock.c"), folder.path().join("wall_clock.so"));
        std::fs::write(&source, SHIM).expect("a temporary file can be written");
        let mut compile = Command::new(compiler);
        compile.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&library);
        let output = compile.arg(&source).arg("-ldl").output().expect("the C compiler starts");
        let offset = File::create(folder.path().join("offset")).expect("a temporary file can be written");
        let clock = Self { library, offset, folder };
        clock.step(0);
        let works = |output: &Output| output.status.success();
        let tried = if works(&output) {
            let mut nothing = Command::new("true");
            clock.govern(&mut nothing);
            nothing.output().expect("`true` starts")
        } else {
            output
        };
        if !works(&tried) {
            skip("wall clock", String::from_utf8_lossy(&tried.stderr).trim());
            return None;
        }
        Some(clock)
    }

    /// Lets a process that is yet to be started, and all that it starts, tell the time by this clock.
    pub fn govern(&self, command: &mut Command) {
        command.envs(self.environment());
    }

    /// What [`Self::govern`] sets in a process's environment.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        vec![
            ("LD_PRELOAD".into(), self.library.clone().into()),
            ("RINGFENCE_WALL_CLOCK".into(), self.folder.path().join("offset").into()),
        ]
    }

    /// Sets the clock so many seconds before (below zero) or after the right time, at once and for every process.
    pub fn step(&self, seconds: i64) {
        self.offset.write_all_at(&seconds.to_ne_bytes(), 0).expect("a temporary file can be written");
    }
}

#[cfg(test)]
mod tests {
    use rustix::time::{ClockId, clock_gettime};

    use super::*;
    use crate::process::Process;

    /// Runs in a process of its own, under a clock of its own: says what it takes for the time, again for each line.
    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    #[expect(clippy::disallowed_methods, reason = "it is the wall clock that is tested")]
    fn child_tells_the_time() {
        for _ in std::io::stdin().lines() {
            let by_libc = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let around_libc = clock_gettime(ClockId::Realtime).tv_sec;
            let untouched = clock_gettime(ClockId::Boottime).tv_sec;
            println!("\ntime {} {around_libc} {untouched}", by_libc.as_secs());
        }
    }

    async fn time(process: &mut Process) -> [i64; 3] {
        process.send("what time is it?").unwrap();
        loop {
            let line = process.line().await.expect("the child tells the time");
            if let Some(times) = line.strip_prefix("time ") {
                let times: Vec<i64> = times.split(' ').map(|time| time.parse().unwrap()).collect();
                return times.try_into().unwrap();
            }
        }
    }

    fn assert_near(time: i64, expected: i64) {
        assert!((expected..expected + 60).contains(&time), "expected {expected} or a little later: {time}");
    }

    #[tokio::test]
    async fn the_wall_clock_of_a_running_process_is_stepped_and_no_other_clock() {
        const STEP: i64 = 3600;
        let Some(clock) = WallClock::new() else { return };
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "wall_clock::tests::child_tells_the_time", "--ignored", "--nocapture"]);
        clock.govern(&mut command);
        let mut process = Process::start(command).unwrap();
        let now = || [ClockId::Realtime, ClockId::Boottime].map(|clock| clock_gettime(clock).tv_sec);
        for step in [0, STEP, -STEP, 10 * 365 * 24 * STEP, 0] {
            clock.step(step);
            let [wall, boot] = now();
            let [by_libc, around_libc, untouched] = time(&mut process).await;
            assert_near(by_libc, wall + step);
            assert_near(around_libc, wall + step);
            assert_near(untouched, boot);
        }
    }

    #[test]
    fn what_it_starts_has_the_same_clock() {
        let Some(clock) = WallClock::new() else { return };
        clock.step(-3600);
        // The shell's own child: neither of them was told anything but its environment.
        let mut command = Command::new("sh");
        command.args(["-c", "date +%s; :"]);
        clock.govern(&mut command);
        let wall = clock_gettime(ClockId::Realtime).tv_sec;
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_near(said.trim().parse().unwrap(), wall - 3600);
    }
}
