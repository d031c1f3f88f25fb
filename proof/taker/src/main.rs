//! `ringfence-taker URL NAME`: takes a lock, says so, and does as it is told, so that a test can stop or kill it in any
//! state.
//!
//! It prints one JSON object in a line for each [`Event`]. It obeys the lines of its stdin, one after the other:
//! `acquire`, `release` and `write TEXT` (to the lock's record, with the token of its last grant, whether it still holds or
//! not). When its stdin ends it ends too, at once and without a release, so that it never outlives its test.

use std::future::{Future, pending};
use std::pin::Pin;
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use ringfence::{
    BootInstant, Clock, Error, ErrorKind, FencingToken, Guard, LockRequest, Locks, RecordHandle, Result,
    SystemClock, parse_duration,
};
use ringfence_servers::Event;
use tokio::sync::mpsc;

#[derive(Parser)]
struct Arguments {
    /// Where the lock is.
    url: String,
    /// What to lock.
    name: String,
    /// How long the lease lives without renewal.
    #[arg(long, value_parser = parse_duration, default_value = "30s")]
    ttl: Duration,
    /// How long to wait for it; without limit if it is not given.
    #[arg(long, value_parser = parse_duration)]
    wait: Option<Duration>,
    /// exclusive, shared or permits:N.
    #[arg(long, default_value = "exclusive")]
    mode: Form,
    /// So many times: acquires, adds one to the number in the lock's record, releases; then ends. It obeys nobody
    /// meanwhile.
    #[arg(long)]
    cycles: Option<u64>,
}

#[derive(Clone, Copy)]
enum Form {
    Exclusive,
    Shared,
    Permits(u32),
}

impl FromStr for Form {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.split_once(':') {
            None if text == "exclusive" => Ok(Self::Exclusive),
            None if text == "shared" => Ok(Self::Shared),
            Some(("permits", limit)) => limit.parse().map(Self::Permits).map_err(|error| error.to_string()),
            _ => Err("expected exclusive, shared or permits:N".to_owned()),
        }
    }
}

fn say(event: &Event) {
    println!("{}", serde_json::to_string(event).expect("events are plain data"));
}

fn now() -> BootInstant {
    SystemClock::new().now()
}

/// This instant, if the guard held at it.
fn provable(guard: &Guard) -> Option<BootInstant> {
    // The clock first: what can be proven after an instant was true at it, whenever the process is stopped in between.
    let at = now();
    guard.is_held().then_some(at)
}

/// The orders on stdin.
fn orders() -> mpsc::UnboundedReceiver<String> {
    let (sender, orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for order in std::io::stdin().lines().map_while(std::result::Result::ok) {
            // Where nobody obeys any more, the program is about to end anyway.
            let _ = sender.send(order);
        }
        std::process::exit(0);
    });
    orders
}

struct Taker {
    arguments: Arguments,
    locks: Locks,
    record: RecordHandle,
    guard: Option<Guard>,
    /// The token of the last grant, for as long as the program runs: a stale one is to be tried, too.
    token: Option<FencingToken>,
    /// Resolves when the lease of the guard is lost; never, once that was said.
    lost: Pin<Box<dyn Future<Output = ()>>>,
}

impl Taker {
    async fn new(arguments: Arguments) -> Result<Self> {
        let locks = Locks::connect(&arguments.url).await?;
        let record = locks.record(arguments.name.as_str())?;
        Ok(Self { arguments, locks, record, guard: None, token: None, lost: Box::pin(pending()) })
    }

    fn request(&self) -> LockRequest {
        let Arguments { name, ttl, wait, mode, .. } = &self.arguments;
        let request = self.locks.lock(name.as_str()).ttl(*ttl);
        let request = match *mode {
            Form::Exclusive => request,
            Form::Shared => request.shared(),
            Form::Permits(limit) => request.permits(limit),
        };
        match *wait {
            Some(wait) => request.wait(wait),
            None => request,
        }
    }

    async fn acquire(&mut self) -> Result<()> {
        say(&Event::Waiting { at: now() });
        let guard = self.request().acquire().await?;
        let token = guard.token();
        say(&Event::Held { token, at: provable(&guard) });
        (self.token, self.lost) = (Some(token), Box::pin(guard.lost()));
        self.guard = Some(guard);
        Ok(())
    }

    async fn release(&mut self) -> Result<()> {
        let guard = self.guard.take().ok_or_else(holds_nothing)?;
        self.lost = Box::pin(pending());
        say(&Event::Releasing { until: provable(&guard) });
        match guard.release().await {
            Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
            _ => say(&Event::Released),
        }
        Ok(())
    }

    async fn write(&self, value: &str) -> Result<()> {
        let token = self.token.ok_or_else(holds_nothing)?;
        self.record.open(token).await?;
        self.put(token, value.to_owned()).await
    }

    /// Adds one to the number in the record: what goes wrong if two do it at once.
    async fn count(&self) -> Result<()> {
        let token = self.token.ok_or_else(holds_nothing)?;
        let number = match self.record.open(token).await?.record {
            Some(record) => std::str::from_utf8(&record.value).ok().and_then(|number| number.parse().ok()),
            None => Some(0),
        };
        let number: u64 =
            number.ok_or_else(|| Error::new(ErrorKind::InvalidRequest, "the record holds no number"))?;
        self.put(token, (number + 1).to_string()).await
    }

    async fn put(&self, token: FencingToken, value: String) -> Result<()> {
        let version = self.record.write(token, value.clone()).await?;
        say(&Event::Written { version, value });
        Ok(())
    }

    async fn cycle(&mut self, cycles: u64) {
        for _ in 0..cycles {
            report(self.acquire().await);
            report(self.count().await);
            report(self.release().await);
        }
    }

    async fn obey(&mut self, mut orders: mpsc::UnboundedReceiver<String>) {
        report(self.acquire().await);
        loop {
            let order = tokio::select! {
                () = &mut self.lost => {
                    say(&Event::Lost { at: now() });
                    self.lost = Box::pin(pending());
                    continue;
                }
                order = orders.recv() => order,
            };
            report(match order.as_deref().map(|order| order.split_once(' ').unwrap_or((order, ""))) {
                None => return,
                Some(("acquire", "")) => self.acquire().await,
                Some(("release", "")) => self.release().await,
                Some(("write", value)) => self.write(value).await,
                Some((order, _)) => Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!("{order:?} is no order: expected acquire, release or write TEXT"),
                )),
            });
        }
    }
}

fn holds_nothing() -> Error {
    Error::new(ErrorKind::InvalidRequest, "nothing is held: acquire first")
}

/// Says what was refused. Nothing that is refused ends the program: the test decides.
fn report(outcome: Result<()>) {
    if let Err(error) = outcome {
        say(&Event::Refused { kind: format!("{:?}", error.kind()), message: error.to_string() });
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cycles = arguments.cycles;
    let orders = orders();
    let mut taker = Taker::new(arguments).await?;
    match cycles {
        Some(cycles) => taker.cycle(cycles).await,
        None => taker.obey(orders).await,
    }
    taker.locks.close().await
}
