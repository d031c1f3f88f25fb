use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringfence::{ErrorKind, Guard, LABEL_MAX, LockName, Locks};
use tokio::time::{sleep, timeout};

use crate::child::{Child, Ended, News, Start};
use crate::cli::{Global, OnLost, RunArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job_control::Terminal;
use crate::lock;
use crate::print;
use crate::signals::{self, Signals, Whom};

/// What `run` takes for itself: what it forwards, and the news of its command.
const SIGNALS: [Signal; 10] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
    Signal::SIGCHLD,
];

/// The longest time between SIGTERM and SIGKILL after an eviction: somebody else may have the lock already.
const GRACE_MAX: Duration = Duration::from_secs(5);

/// How often we look whether a process group that was told to end is gone: the kernel does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Gets the lock, runs the command, releases, and returns the command's exit code.
pub(crate) async fn run(args: RunArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.lock.name)?;
    let signals = Signals::take(&SIGNALS)?;
    let terminal = Terminal::controlling()?;
    let locks = signals.unless_interrupted(lock::connect(global.url()?)).await??;
    let outcome = run_locked(&locks, &name, &args, global, &signals, terminal.as_ref()).await;
    lock::close(&locks, &name, global.messages()).await;
    let interrupted = match &outcome {
        Ok(ended) => matches!(ended, Ended::Signalled(signal) if *signal == Signal::SIGINT as i32),
        Err(failure) => matches!(failure, Failure::Interrupted(Signal::SIGINT)),
    };
    if interrupted && terminal.is_some_and(|terminal| terminal.is_ours()) {
        signals::interrupt_our_group()?;
    }
    Ok(outcome?.code())
}

async fn run_locked(
    locks: &Locks,
    name: &LockName,
    args: &RunArgs,
    global: &Global,
    signals: &Signals,
    terminal: Option<&Terminal>,
) -> Result<Ended, Failure> {
    // With a name that begins with a dash the first `--` stands before the name, and a second one may stand here.
    let command = match args.command.as_slice() {
        [dashes, command @ ..] if dashes == "--" && !command.is_empty() => command,
        command => command,
    };
    let guard = lock::acquire(locks, name, &args.lock, label_of(command), signals, global.messages()).await?;
    let start = Start {
        command,
        environment: &[
            ("RINGFENCE_LOCK", name.to_string()),
            ("RINGFENCE_TOKEN", guard.token().to_string()),
            ("RINGFENCE_URL", global.url()?),
        ],
        lifeline: locks.lifeline()?,
        takes_terminal: terminal.is_some_and(Terminal::goes_to_command),
        json: global.json,
    };
    let ended = match Child::start(&start) {
        Ok(child) => {
            let mut job = Job {
                child,
                guard: &guard,
                signals,
                terminal,
                on_lost: args.on_lost,
                ending: false,
                ended: None,
            };
            job.supervise(global).await
        }
        Err(error) => Err(Failure::new(exit_codes::CANNOT_RUN, format!("cannot start a process: {error}"))),
    };
    match lock::release(guard).await {
        Err(error) if error.kind() == ErrorKind::Lost => ended.and(Err(error.into())),
        Err(error) => {
            global.messages().note(&format!("{name} stays held until its TTL is over: {error}"));
            ended
        }
        Ok(()) => ended,
    }
}

/// The command's file name, which is what a person looks for in `ringfence show`, if a label can be that.
fn label_of(command: &[OsString]) -> Option<&str> {
    let label = Path::new(command.first()?).file_name()?.to_str()?;
    (label.len() <= LABEL_MAX && !label.contains(char::is_control)).then_some(label)
}

/// A command that runs under a lease.
#[derive(Debug)]
struct Job<'a> {
    child: Child,
    guard: &'a Guard,
    signals: &'a Signals,
    terminal: Option<&'a Terminal>,
    on_lost: OnLost,
    /// It was told to end: from now on it is not suspended any more.
    ending: bool,
    ended: Option<Ended>,
}

impl Job<'_> {
    /// Waits for the command's end, or ends it before its lease can lapse.
    async fn supervise(&mut self, global: &Global) -> Result<Ended, Failure> {
        let name = self.guard.name();
        let loss = loss(self.guard, self.on_lost);
        let loss = tokio::select! {
            biased;
            ended = self.ended() => return Ok(ended?),
            loss = loss => loss,
        };
        let consequence = match self.on_lost {
            OnLost::Term => "telling the command to end",
            OnLost::Kill => "killing the command",
            OnLost::Warn => "the command runs on without it",
        };
        global.messages().note(&format!("the lease on {name} {}: {consequence}", loss.how));
        match self.on_lost {
            OnLost::Term => self.end(loss.grace).await?,
            OnLost::Kill => self.end(Duration::ZERO).await?,
            OnLost::Warn => self.ended().await?,
        };
        Err(Failure::new(exit_codes::LOST, format!("the lease on {name} was lost while the command ran")))
    }

    /// Waits for the command's end, forwarding signals meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no news of the command and no signal is lost.
    async fn ended(&mut self) -> io::Result<Ended> {
        loop {
            if let Some(ended) = self.ended {
                return Ok(ended);
            }
            match self.signals.next().await? {
                Signal::SIGCHLD => self.hear()?,
                Signal::SIGCONT => self.go_on(),
                signal @ (Signal::SIGUSR1 | Signal::SIGUSR2) => self.child.signal(signal),
                signal => self.child.signal_group(signal),
            }
        }
    }

    /// Tells the command's whole process group to end, and makes it end when the grace is over.
    async fn end(&mut self, grace: Duration) -> io::Result<Ended> {
        self.ending = true;
        if !grace.is_zero() {
            self.child.signal_group(Signal::SIGTERM);
            // One that is stopped could not obey.
            self.child.signal_group(Signal::SIGCONT);
            let gone = async {
                let ended = self.ended().await?;
                while !self.child.group_is_gone() {
                    sleep(LOOK_EVERY).await;
                }
                Ok(ended)
            };
            if let Ok(ended) = timeout(grace, gone).await {
                return ended;
            }
        }
        self.child.signal_group(Signal::SIGKILL);
        self.ended().await
    }

    /// Takes in what became of the command.
    fn hear(&mut self) -> io::Result<()> {
        while self.ended.is_none()
            && let Some(news) = self.child.news()?
        {
            match news {
                News::Ended(ended) => {
                    self.ended = Some(ended);
                    if let Some(terminal) = self.terminal {
                        terminal.take_back(self.child.group());
                    }
                }
                News::Stopped(signal) => self.stopped(signal)?,
            }
        }
        Ok(())
    }

    /// The command is stopped: it wants the terminal, or we stop with it.
    fn stopped(&mut self, signal: i32) -> io::Result<()> {
        let wants_terminal = [Signal::SIGTTIN as i32, Signal::SIGTTOU as i32].contains(&signal);
        // Who is stopped with SIGSTOP is stopped alone, and on purpose: it keeps its lease.
        if self.ending || signal == Signal::SIGSTOP as i32 {
            return Ok(());
        }
        match self.terminal {
            Some(terminal) if wants_terminal && terminal.is_ours() => {
                terminal.give(self.child.group());
                self.child.signal_group(Signal::SIGCONT);
                return Ok(());
            }
            Some(terminal) => {
                terminal.take_back(self.child.group());
                signals::stop(Whom::OurGroup)?;
            }
            None => signals::stop(Whom::Us)?,
        }
        self.go_on();
        Ok(())
    }

    /// We are continued, and so is the command, unless it lost its lease meanwhile: then it is the loss that wakes it.
    fn go_on(&self) {
        if let Some(terminal) = self.terminal
            && terminal.goes_to_command()
        {
            terminal.give(self.child.group());
        }
        if self.guard.is_held() || self.on_lost == OnLost::Warn {
            self.child.signal_group(Signal::SIGCONT);
        }
    }
}

/// How a lease comes to its end under a command that still runs.
struct Loss {
    how: String,
    /// How long the command may take to end.
    grace: Duration,
}

/// Waits until the lease is lost, or so near to it that the command must end now.
///
/// A lease that cannot be renewed is left early: SIGTERM goes out when a quarter of the TTL is left, and SIGKILL when a
/// twentieth is. A renewal is due at two thirds, so a healthy lease never comes near a quarter.
async fn loss(guard: &Guard, on_lost: OnLost) -> Loss {
    let ttl = guard.ttl().as_duration();
    let last_moment = ttl / 20;
    let margin = match on_lost {
        OnLost::Term => ttl / 4,
        OnLost::Kill => last_moment,
        OnLost::Warn => Duration::ZERO,
    };
    let near_its_end = async {
        while let Some(spare) = guard.remaining().checked_sub(margin).filter(|spare| !spare.is_zero()) {
            sleep(spare).await;
        }
        guard.remaining()
    };
    tokio::select! {
        biased;
        () = guard.lost() => Loss { how: "is lost".to_owned(), grace: GRACE_MAX.min(ttl / 4) },
        remaining = near_its_end => Loss {
            how: format!("could not be renewed and ends in {}", print::duration(remaining)),
            grace: remaining.saturating_sub(last_moment),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for a twentieth of it to be more than a busy machine is late.
    const TTL: Duration = Duration::from_secs(10);

    /// A lease that nobody renews.
    async fn unrenewed(name: &str) -> Guard {
        let locks = Locks::connect("memory:").await.unwrap();
        let request = locks.lock(name).ttl(TTL).max_hold(Duration::ZERO);
        request.acquire().await.unwrap()
    }

    #[tokio::test]
    async fn a_lease_that_is_not_renewed_is_left_in_time() {
        let (term, kill, warn) = (unrenewed("term").await, unrenewed("kill").await, unrenewed("warn").await);
        let told = async {
            let loss = loss(&term, OnLost::Term).await;
            let left = term.remaining();
            assert!(left <= TTL / 4, "not before a quarter is left: {left:?}");
            assert!(loss.grace + TTL / 21 < left, "killed before the end: {:?}", loss.grace);
            assert!(loss.grace > TTL / 10, "with time to end by itself: {:?}", loss.grace);
        };
        let killed = async {
            let loss = loss(&kill, OnLost::Kill).await;
            assert!(loss.grace.is_zero());
            assert!(kill.is_held() && kill.remaining() <= TTL / 20, "{:?}", kill.remaining());
        };
        let warned = async {
            loss(&warn, OnLost::Warn).await;
            assert!(!warn.is_held(), "a warning says what is, not what may be");
        };
        tokio::join!(told, killed, warned);
    }

    #[tokio::test]
    async fn a_lease_that_is_renewed_is_not_left() {
        let locks = Locks::connect("memory:").await.unwrap();
        let guard = locks.lock("a").ttl(Duration::from_millis(500)).acquire().await.unwrap();
        assert!(timeout(Duration::from_secs(2), loss(&guard, OnLost::Term)).await.is_err());
    }

    #[test]
    fn the_label_is_the_commands_file_name() {
        let label = |command: &str| label_of(&[OsString::from(command)]).map(str::to_owned);
        assert_eq!(label("/usr/bin/report.sh").as_deref(), Some("report.sh"));
        assert_eq!(label(".."), None);
        assert_eq!(label("a\u{1b}b"), None);
        assert_eq!(label(&"x".repeat(256)), None);
    }
}
