//! Job control: an interactive shell on a real terminal, which script(1) makes.

use std::io::Write;
use std::process::{ChildStdin, Command, Stdio};

use nix::sys::signal::Signal;
use ringfence_servers::require;

use crate::support::{HOLD, RINGFENCE, Running, Store, eventually};

const CTRL_C: &[u8] = b"\x03";
const CTRL_D: &[u8] = b"\x04";
const CTRL_Z: &[u8] = b"\x1a";

/// An interactive shell with job control.
struct Shell {
    running: Running,
    keyboard: ChildStdin,
}

impl Shell {
    /// `None`, and said so, where this machine has no script(1) or no bash(1).
    fn new(store: &Store) -> Option<Self> {
        for tool in ["script", "bash"] {
            require(tool)?;
        }
        let mut command = Command::new("script");
        command.args(["-qefc", "bash --noprofile --norc -i", "/dev/null"]);
        command.env("TERM", "dumb").env("R", RINGFENCE).env("RINGFENCE_URL", store.url());
        let (running, keyboard) = Running::start_with_input(command.stderr(Stdio::null()));
        let mut shell = Self { running, keyboard };
        // Before every prompt the code of what ended, and at once what becomes of jobs in the background.
        shell.types("stty -echo; set -b; PS1=; PROMPT_COMMAND='echo \"prompt after $?\"'");
        shell.prompts_after(0);
        Some(shell)
    }

    fn types(&mut self, line: &str) {
        self.presses(format!("{line}\n").as_bytes());
    }

    fn presses(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits until the shell has the terminal again, after something ended with this code. What is typed earlier may be
    /// thrown away, because Ctrl-C and Ctrl-Z flush the terminal.
    #[track_caller]
    fn prompts_after(&self, code: i32) {
        self.sees(&format!("prompt after {code}"));
    }

    /// Waits for a line with this in it.
    #[track_caller]
    fn sees(&self, wanted: &str) {
        let mut seen = Vec::new();
        while let Some(line) = self.running.line() {
            assert!(!line.contains("not reached"), "{line}");
            if line.contains(wanted) {
                return;
            }
            seen.push(line);
        }
        panic!("{wanted:?} never came, only {seen:?}");
    }
}

#[test]
fn ctrl_c_reaches_the_command_and_ends_a_loop_around_us() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types(
        "for i in 1 2 3; do \"$R\" run a -- sh -c 'echo round; exec sleep 1000'; done; echo not reached",
    );
    shell.sees("round");
    shell.presses(CTRL_C);
    shell.prompts_after(130);
}

#[test]
fn ctrl_c_ends_a_wait_and_a_script_around_us() {
    let store = Store::new();
    let _holder = store.run_script(["a"], HOLD);
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types("bash -c 'echo waiting; \"$R\" run a -- true; echo not reached'");
    eventually("it waits", || store.state("a")["waiters"].get(0).map(drop));
    shell.presses(CTRL_C);
    shell.prompts_after(130);
}

#[test]
fn a_command_is_suspended_and_resumed_with_its_terminal() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types("\"$R\" run --ttl 60s a -- sh -c 'echo started; while read line; do echo got $line; done'");
    shell.sees("started");
    shell.types("one");
    shell.sees("got one");
    shell.presses(CTRL_Z);
    shell.prompts_after(148);
    assert_eq!(store.holder("a")["label"], "sh", "it keeps its lease meanwhile");
    shell.types("fg");
    shell.types("two");
    shell.sees("got two");
    shell.presses(CTRL_D);
    shell.prompts_after(0);
}

#[test]
fn a_command_whose_lease_lapsed_while_it_was_suspended_ends_when_it_is_resumed() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types("\"$R\" run --ttl 500ms a -- sh -c 'echo started; while read line; do echo got $line; done'");
    shell.sees("started");
    shell.presses(CTRL_Z);
    shell.prompts_after(148);
    store.ringfence(["run", "a", "--", "true"]).with_code(0);
    shell.types("fg");
    shell.sees("the lease on a was lost while the command ran");
    shell.prompts_after(123);
}

#[test]
fn a_command_in_the_background_stops_when_it_wants_the_terminal() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types("\"$R\" run --ttl 60s a -- sh -c 'read line; echo got $line' &");
    shell.sees("Stopped");
    shell.types("fg");
    shell.types("three");
    shell.sees("got three");
    shell.prompts_after(0);
}

#[test]
fn a_pager_that_shows_the_commands_output_keeps_the_terminal() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    // Deaf to Ctrl-C, which may come before it has ended: the pipeline's exit code is its own.
    let pager = "sh -c 'trap : INT; read output; echo $output; read line </dev/tty; echo pager got $line'";
    shell.types(&format!("\"$R\" run a -- sh -c 'echo output; exec sleep 1000' | {pager}"));
    shell.sees("output");
    shell.types("four");
    shell.sees("pager got four");
    shell.presses(CTRL_C);
    shell.prompts_after(0);
}

#[test]
fn a_command_that_reads_a_pipe_has_the_terminal_when_it_asks() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types(
        "echo from the pipe | \"$R\" run a -- sh -c 'cat; read line </dev/tty; echo command got $line'",
    );
    shell.sees("from the pipe");
    shell.types("five");
    shell.sees("command got five");
    shell.prompts_after(0);
}

#[test]
fn a_long_wait_says_once_whom_it_waits_for() {
    let store = Store::new();
    let holder = store.run_script(["--label", "report", "a"], HOLD);
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types("\"$R\" run a -- echo my turn");
    shell.sees("ringfence: waiting for a: held for ");
    holder.signal(Signal::SIGTERM);
    shell.sees("my turn");
}

#[test]
fn advise_asks_whoever_sits_at_the_terminal() {
    let store = Store::new();
    let Some(mut shell) = Shell::new(&store) else { return };
    shell.types(
        "\"$R\" advise --idempotent no --in-transaction no --double-run waste --shard no --have redis",
    );
    shell.sees("How many contenders, for how long?");
    shell.sees("  5  some-at-once");
    shell.types("six");
    shell.sees("\"six\" is no answer to --contenders");
    shell.types("5");
    shell.sees("permits: up to so many at once");
    shell.prompts_after(0);
    shell.types("\"$R\" advise");
    shell.sees("  3  no");
    shell.presses(CTRL_D);
    shell.sees("no answer to --idempotent (yes, by-key, no)");
    shell.prompts_after(64);
}
