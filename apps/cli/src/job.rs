//! A command that runs under a lease, and ends before the lease can lapse: what `run`, `elect`, `once` and `partitions` have in common.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringfence::{Guard, LABEL_MAX, Locks};
use tokio::time::{sleep, timeout};

use crate::child::{Child, Ended, News, Start};
use crate::cli::{Global, OnLost};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job_control::Terminal;
use crate::lock;
use crate::print::{self, Messages};
use crate::signals::{self, Signals, Source, Whom};

/// What a program takes for itself that runs a command: what it forwards, and the news of the command.
pub(crate) const SIGNALS: [Signal; 10] = [
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

/// What asks a program to end.
pub(crate) const ENDING: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

/// The longest time between SIGTERM and SIGKILL after an eviction: somebody else may have the lock already.
const GRACE_MAX: Duration = Duration::from_secs(5);

/// How often we look whether a process group that was told to end is gone: the kernel does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What to run under leases, and what it runs with.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) locks: Locks,
    pub(crate) url: String,
    pub(crate) command: Vec<OsString>,
    pub(crate) on_lost: OnLost,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) json: bool,
}

impl Orders {
    /// What the verbs have in common: the locks of the URL, the command, and the terminal that it may want.
    pub(crate) async fn take(
        mut command: Vec<OsString>,
        on_lost: OnLost,
        global: &Global,
        signals: &Signals,
        patience: Option<Duration>,
    ) -> Result<Self, Failure> {
        // With a name that begins with a dash the first `--` stands before the name, and a second one may stand here.
        if command.len() > 1 && command[0] == "--" {
            command.remove(0);
        }
        let (url, json, terminal) = (global.url()?, global.json, Terminal::controlling()?);
        let locks = signals.unless_interrupted(lock::connect(url.clone(), patience)).await??;
        Ok(Self { locks, url, command, on_lost, terminal, json })
    }

    /// The command's file name, which is what a person looks for in `ringfence show`, if a label can be that.
    pub(crate) fn label(&self) -> Option<&str> {
        let label = Path::new(self.command.first()?).file_name()?.to_str()?;
        (label.len() <= LABEL_MAX && !label.contains(char::is_control)).then_some(label)
    }

    /// Starts the command under a lease. One of several commands has neither the terminal nor our standard input.
    pub(crate) fn start<'a>(
        &'a self,
        guard: &'a Guard,
        signals: Source<'a>,
        more: &[(&'static str, String)],
    ) -> Result<Job<'a>, Failure> {
        self.start_into(None, guard, signals, more)
    }

    /// The same, with its standard output going there, if not where ours goes.
    pub(crate) fn start_into<'a>(
        &'a self,
        output: Option<OwnedFd>,
        guard: &'a Guard,
        signals: Source<'a>,
        more: &[(&'static str, String)],
    ) -> Result<Job<'a>, Failure> {
        let terminal = self.terminal.as_ref().filter(|_| !signals.is_shared());
        let mut environment = vec![
            ("RINGFENCE_LOCK", guard.name().to_string()),
            ("RINGFENCE_TOKEN", guard.presented_token().reveal()),
            ("RINGFENCE_URL", self.url.clone()),
        ];
        environment.extend_from_slice(more);
        let start = Start {
            command: &self.command,
            environment: &environment,
            lifeline: self.locks.lifeline()?,
            takes_input: !signals.is_shared(),
            output,
            takes_terminal: terminal.is_some_and(Terminal::goes_to_command),
            json: self.json,
        };
        let child = Child::start(&start).map_err(|error| {
            Failure::new(exit_codes::CANNOT_RUN, format!("cannot start a process: {error}"))
        })?;
        let messages = Messages::new(self.json);
        let on_lost = self.on_lost;
        Ok(Job {
            child,
            guard,
            signals,
            terminal,
            on_lost,
            messages,
            ending: false,
            ended: None,
            interrupted: None,
        })
    }

    /// Ends as one that Ctrl-C ended, where it was that: the script or loop that called us ends too.
    pub(crate) fn pass_on_interrupt(&self, outcome: &Result<Ended, Failure>) -> io::Result<()> {
        let interrupted = match outcome {
            Ok(ended) => matches!(ended, Ended::Signalled(signal) if *signal == Signal::SIGINT as i32),
            Err(failure) => matches!(failure, Failure::Interrupted(Signal::SIGINT)),
        };
        if interrupted && self.terminal.as_ref().is_some_and(Terminal::is_ours) {
            signals::interrupt_our_group()?;
        }
        Ok(())
    }
}

/// A command that runs under a lease.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    child: Child,
    guard: &'a Guard,
    signals: Source<'a>,
    terminal: Option<&'a Terminal>,
    on_lost: OnLost,
    messages: Messages,
    /// It was told to end: from now on it is not suspended any more.
    ending: bool,
    ended: Option<Ended>,
    /// A signal that asked it to end was passed on to it.
    interrupted: Option<Signal>,
}

/// Why a command does not run any more.
#[derive(Debug)]
pub(crate) enum End {
    /// It ended by itself. With the signal that asked it to, if one did.
    ByItself(Ended, Option<Signal>),
    /// It was told to, in time.
    Told,
    /// Its lease was lost, or nearly. With the signal that would have ended it anyway.
    Lost(Option<Signal>),
}

impl Job<'_> {
    /// Waits for the command's end, or ends it before its lease can lapse; or once it is `told` to, within so much time.
    pub(crate) async fn supervise(mut self, told: impl Future<Output = Duration>) -> Result<End, Failure> {
        let alarm = loss(self.guard, self.on_lost);
        let lost = tokio::select! {
            biased;
            ended = self.ended() => {
                let ended = ended?;
                return Ok(End::ByItself(ended, self.interrupted));
            }
            lost = alarm => lost,
            grace = told => return self.end_in_time(grace).await,
        };
        let name = self.guard.name();
        let consequence = match self.on_lost {
            OnLost::Term => "telling the command to end",
            OnLost::Kill => "killing the command",
            OnLost::Warn => "the command runs on without it",
        };
        self.messages.note(&format!("the lease on {name} {}: {consequence}", lost.how));
        match self.on_lost {
            OnLost::Term => self.end(lost.grace).await?,
            OnLost::Kill => self.end(Duration::ZERO).await?,
            OnLost::Warn => self.ended().await?,
        };
        Ok(End::Lost(self.interrupted))
    }

    /// Ends the command within the grace, or before its lease can lapse.
    async fn end_in_time(&mut self, grace: Duration) -> Result<End, Failure> {
        let alarm = loss(self.guard, OnLost::Kill);
        let lost = tokio::select! {
            biased;
            ended = self.end(grace) => {
                ended?;
                return Ok(End::Told);
            }
            lost = alarm => lost,
        };
        self.messages.note(&format!("the lease on {} {}: killing the command", self.guard.name(), lost.how));
        self.end(Duration::ZERO).await?;
        Ok(End::Lost(self.interrupted))
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
                signal if ENDING.contains(&signal) => {
                    self.interrupted = Some(signal);
                    self.ask_to_end(signal);
                }
                signal => self.child.signal_group(signal),
            }
        }
    }

    /// Tells the command's whole process group to end, also where it is stopped: it could not obey.
    fn ask_to_end(&self, signal: Signal) {
        self.child.signal_group(signal);
        self.child.signal_group(Signal::SIGCONT);
    }

    /// Tells the command's whole process group to end, and makes it end when the grace is over.
    async fn end(&mut self, grace: Duration) -> io::Result<Ended> {
        self.ending = true;
        if !grace.is_zero() {
            self.ask_to_end(Signal::SIGTERM);
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
        // Who is stopped with SIGSTOP, or as one of several, is stopped alone, and on purpose: it keeps its lease.
        if self.ending || signal == Signal::SIGSTOP as i32 || self.signals.is_shared() {
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
        let guard = locks.lock("a").ttl(Duration::from_secs(3)).acquire().await.unwrap();
        assert!(timeout(Duration::from_secs(4), loss(&guard, OnLost::Term)).await.is_err());
    }

    #[tokio::test]
    async fn the_label_is_the_commands_file_name() {
        let mut orders = Orders {
            locks: Locks::connect("memory:").await.unwrap(),
            url: String::new(),
            command: Vec::new(),
            on_lost: OnLost::Term,
            terminal: None,
            json: false,
        };
        let mut label = |command: &str| {
            orders.command = vec![OsString::from(command)];
            orders.label().map(str::to_owned)
        };
        assert_eq!(label("/usr/bin/report.sh").as_deref(), Some("report.sh"));
        assert_eq!(label(".."), None);
        assert_eq!(label("a\u{1b}b"), None);
        assert_eq!(label(&"x".repeat(256)), None);
    }
}
