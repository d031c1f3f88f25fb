use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use ringfence_core::{
    BootInstant, BoxFuture, Error, ErrorKind, FencingToken, LockName, Result, Ttl, Version,
};
use ringfence_testkit::{OtherProcess, PATIENCE};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// The field of a lock's records in which takers write down what they did, a line for each effect.
pub const EFFECTS: &str = "effects";

/// In how many partitions the work of takers is: so many that of two members none goes without.
pub const PARTITIONS: u32 = 16;

/// How many locks a taker takes together.
pub const SEVERAL: u32 = 3;

/// The name of one of the locks that takers of this name take together, from 0 on.
pub fn one_of_several(name: &str, number: u32) -> String {
    format!("{name}-{number}")
}

/// What a taker prints, one JSON object in a line. Instants are those of the machine's boot-time clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[expect(clippy::exhaustive_enums, reason = "the taker and its driver are built together")]
pub enum Event {
    /// It is about to ask for the lock.
    Waiting {
        /// When.
        at: BootInstant,
    },
    /// It holds.
    Held {
        /// By which token.
        token: FencingToken,
        /// An instant after the grant at which its guard could prove that it held; `None` if it could not any more,
        /// because the process was stopped in between.
        at: Option<BootInstant>,
    },
    /// Its guard says that the lease is lost.
    Lost {
        /// An instant after the loss.
        at: BootInstant,
    },
    /// It is about to give the lock back.
    Releasing {
        /// An instant before the release at which its guard could prove that it held; `None` if it could not any
        /// more.
        until: Option<BootInstant>,
    },
    /// It has given the lock back.
    Released,
    /// It has left the lock to lapse.
    Left,
    /// It has written the lock's record.
    Written {
        /// The version that it wrote.
        version: Version,
        /// What it wrote.
        value: String,
        /// When it knew.
        at: BootInstant,
    },
    /// It has done what its pattern is for.
    Ended,
    /// It takes part in partitions.
    Joined {
        /// As which member: its id.
        member: u64,
    },
    /// A partition is its own.
    Assigned {
        /// Which one.
        number: u32,
        /// Under which token.
        token: FencingToken,
        /// As of [`Self::Held`].
        at: Option<BootInstant>,
    },
    /// It has finished with a partition, because it was told to.
    Revoked {
        /// Which one.
        number: u32,
    },
    /// A partition is gone.
    Gone {
        /// Which one.
        number: u32,
    },
    /// The hall refused what it was told to do.
    Refused {
        /// The error's kind, as `Debug` prints it.
        kind: String,
        /// The error's message.
        message: String,
    },
}

/// The program `ringfence-taker`, built in the profile of the running test. Builds it on the first call, which takes a
/// moment where it is fresh.
///
/// Panics when it cannot be built.
pub fn taker() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(build_taker)
}

fn build_taker() -> PathBuf {
    const PACKAGE: &str = "ringfence-taker";
    // A test runs from target/PROFILE/deps, an example or a program from one level higher or beside.
    let test = std::env::current_exe().expect("a program knows its own file");
    let mut folders = test.ancestors().skip(1).filter_map(Path::file_name);
    let folder = folders.find(|folder| !["deps", "examples"].iter().any(|own| folder == own));
    let profile =
        folder.and_then(|folder| folder.to_str()).filter(|folder| *folder != "debug").unwrap_or("dev");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Without what cargo tells a test of its package: another cargo would build some packages anew for it, and the one after
    // that again.
    let told = std::env::vars_os().map(|(name, _)| name);
    for name in told.filter(|name| {
        ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|kind| name.to_string_lossy().starts_with(kind))
    }) {
        cargo.env_remove(name);
    }
    let output = cargo
        .args([
            "build",
            "--quiet",
            "--package",
            PACKAGE,
            "--profile",
            profile,
            "--message-format",
            "json-render-diagnostics",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("cargo is there, it has built this test");
    assert!(output.status.success(), "{PACKAGE} could not be built; cargo says above why");
    // Cargo says where it put the program: one JSON object in a line for each artifact.
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == PACKAGE)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .unwrap_or_else(|| panic!("cargo built {PACKAGE} and did not say where"))
}

/// A process that takes a lock: `ringfence-taker URL NAME`. Killed when it is dropped.
///
/// What it prints is awaited for at most [`PATIENCE`]; a method that waits in vain panics, with all that it printed.
#[derive(Debug)]
pub struct Taker {
    process: Process,
    /// Events that nobody has waited for yet, the oldest first.
    unseen: Vec<Event>,
    /// All that it has printed.
    printed: Vec<String>,
}

impl Taker {
    /// Starts one, with options as they stand on its command line.
    pub fn start(url: &str, name: &str, options: &[&str]) -> Self {
        Self::start_in(url, name, options, |_| {})
    }

    /// As [`Self::start`], in an environment that is prepared for it.
    pub fn start_in(url: &str, name: &str, options: &[&str], prepare: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(taker());
        command.args(options).args(["--", url, name]);
        prepare(&mut command);
        let process = Process::start(command).expect("the taker starts");
        Self { process, unseen: Vec::new(), printed: Vec::new() }
    }

    /// One that has begun to ask for a lock, as a harness of the conformance suite starts it.
    pub async fn asking(url: &str, name: &LockName, ttl: Ttl) -> Box<dyn OtherProcess> {
        let mut taker = Self::start(url, name.as_str(), &["--ttl", &ttl.to_string()]);
        taker.asks().await;
        Box::new(taker)
    }

    /// Tells it to do something: one of the orders that it knows by its pattern.
    pub fn tell(&mut self, order: &str) {
        self.process
            .send(order)
            .unwrap_or_else(|error| panic!("{order:?}: {error}; it printed {:?}", self.printed));
    }

    /// Its next event that is `wanted`. Those before it stay for those who wait for them.
    ///
    /// # Cancel safety
    /// No event is lost when the future is dropped.
    pub async fn event<T>(&mut self, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
        self.event_within(PATIENCE, what, wanted).await
    }

    /// As [`Self::event`], for those who have less patience, or more.
    ///
    /// # Cancel safety
    /// No event is lost when the future is dropped.
    pub async fn event_within<T>(
        &mut self,
        patience: Duration,
        what: &str,
        wanted: impl Fn(&Event) -> Option<T>,
    ) -> T {
        if let Some(place) = self.unseen.iter().position(|event| wanted(event).is_some()) {
            return wanted(&self.unseen.remove(place)).expect("it was just wanted");
        }
        let found = tokio::time::timeout(patience, async {
            loop {
                let event = self.next_event().await?;
                match wanted(&event) {
                    Some(found) => break Some(found),
                    None => self.unseen.push(event),
                }
            }
        })
        .await;
        match found {
            Ok(Some(found)) => found,
            Ok(None) => panic!("the taker ended before it {what}; it printed {:?}", self.printed),
            Err(elapsed) => {
                panic!("{elapsed}: waited {patience:?} until the taker {what}; it printed {:?}", self.printed)
            }
        }
    }

    /// Every event that nobody has waited for, until it ends: all that is left to know of one that was killed.
    pub async fn last_events(&mut self) -> Vec<Event> {
        while let Some(event) = self.next_event().await {
            self.unseen.push(event);
        }
        std::mem::take(&mut self.unseen)
    }

    async fn next_event(&mut self) -> Option<Event> {
        let line = self.process.line().await?;
        self.printed.push(line.clone());
        let event = serde_json::from_str(&line);
        Some(event.unwrap_or_else(|error| panic!("the taker printed no event: {error}; {:?}", self.printed)))
    }

    /// Waits until it asks for the lock, and says since when.
    pub async fn asks(&mut self) -> BootInstant {
        let waiting = |event: &Event| match *event {
            Event::Waiting { at } => Some(at),
            _ => None,
        };
        self.event("asks for the lock", waiting).await
    }

    /// Waits until it holds, and says by which token and since when.
    pub async fn holds(&mut self) -> (FencingToken, BootInstant) {
        let held = |event: &Event| match *event {
            Event::Held { token, at: Some(at) } => Some((token, at)),
            _ => None,
        };
        self.event("holds", held).await
    }

    /// Tells it to open the lock's record with its token and to write, and waits for what came of it.
    pub async fn writes(&mut self, value: &str) -> Result<Version> {
        self.tell(&format!("write {value}"));
        let written = |event: &Event| match event {
            Event::Written { version, .. } => Some(Ok(*version)),
            Event::Refused { kind, message } => Some(Err(Error::new(refusal(kind), message.clone()))),
            _ => None,
        };
        self.event("has written or was refused", written).await
    }

    /// Waits until it says that its lease is lost, and says when it knew.
    pub async fn loses(&mut self) -> BootInstant {
        let lost = |event: &Event| match *event {
            Event::Lost { at } => Some(at),
            _ => None,
        };
        self.event("says that it lost", lost).await
    }

    /// Tells it to give the lock back, and waits until it has.
    pub async fn releases(&mut self) {
        self.tell("release");
        self.event("has released", |event| matches!(event, Event::Released).then_some(())).await;
    }

    /// Tells it to leave the lock to lapse, and waits until it has.
    pub async fn leaves(&mut self) {
        self.tell("leave");
        self.event("has left", |event| matches!(event, Event::Left).then_some(())).await;
    }

    /// As [`Self::releases`], of what it holds; and says when it could still prove that it did.
    pub async fn gives_back(&mut self) -> BootInstant {
        self.releases().await;
        let releasing = |event: &Event| match *event {
            Event::Releasing { until: Some(until) } => Some(until),
            _ => None,
        };
        self.event("held until it released", releasing).await
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops it (SIGSTOP), and returns when it has stopped.
    pub fn stop(&mut self) {
        self.process.stop().unwrap_or_else(|error| panic!("{error}; it printed {:?}", self.printed));
    }

    /// Lets it run on (SIGCONT).
    pub fn resume(&mut self) {
        self.process.resume().unwrap_or_else(|error| panic!("{error}; it printed {:?}", self.printed));
    }

    /// Kills it (SIGKILL), and returns when it is dead.
    pub fn kill(&mut self) {
        self.process.kill().unwrap_or_else(|error| panic!("{error}; it printed {:?}", self.printed));
    }
}

/// The kind of a refusal, by its name. A taker can be refused for reasons that no test expects: those are bugs.
fn refusal(name: &str) -> ErrorKind {
    let expected =
        [ErrorKind::Stale, ErrorKind::NotOpened, ErrorKind::TokenCollision, ErrorKind::WaitElapsed];
    expected.into_iter().find(|kind| format!("{kind:?}") == name).unwrap_or(ErrorKind::Bug)
}

impl OtherProcess for Taker {
    fn held(&mut self) -> BoxFuture<'_, FencingToken> {
        Box::pin(async { self.holds().await.0 })
    }

    fn write<'a>(&'a mut self, value: &'a str) -> BoxFuture<'a, Result<Version>> {
        Box::pin(self.writes(value))
    }

    fn lost(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.loses().await;
        })
    }

    fn stop(&mut self) {
        self.stop();
    }

    fn resume(&mut self) {
        self.resume();
    }

    fn kill(&mut self) {
        self.kill();
    }
}
