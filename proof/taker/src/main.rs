//! `ringfence-taker URL NAME`: takes a lock, says so, and does as it is told, so that a test can stop or kill it in any
//! state.
//!
//! It prints one JSON object in a line for each [`Event`]. It obeys the lines of its stdin, one after the other:
//! - `acquire` and `release`;
//! - `leave`: the lock, to lapse;
//! - `write TEXT`: to the lock's record;
//! - `append TEXT`: a line to the lock's record of effects ([`EFFECTS`]);
//! - `end TEXT`: what the pattern is for, by which the lock is taken: a run's end, a leader's proclamation, a request's result.
//!
//! It writes with the token of its last grant, whether it still holds or not. With `--pattern versioned`, `--pattern partitions` and
//! `--pattern several` it does [other things](Pattern). When its stdin ends it ends too, at once and without a release, so that it never
//! outlives its test.

mod partitions;
mod several;
mod versioned;
mod work;

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use ringfence::{
    BootInstant, Clock, Error, ErrorKind, FencingToken, Guard, LockName, LockRequest, Locks, RecordHandle,
    RecordKey, Result, SystemClock, parse_duration,
};
use ringfence_servers::{EFFECTS, Event};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::work::Work;

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
    /// For how long nobody gets the lock after an unclean loss.
    #[arg(long, value_parser = parse_duration)]
    lock_delay: Option<Duration>,
    /// What it is taken for.
    #[arg(long, value_enum, default_value = "lock")]
    pattern: Pattern,
}

#[derive(Clone, Copy, ValueEnum)]
enum Pattern {
    /// As a lock.
    Lock,
    /// To run a job once: it waits until the job is due, which it is again after a run that crashed.
    Once,
    /// To lead.
    Leader,
    /// To do the work of an idempotency key.
    Idempotency,
    /// It counts in a versioned record until it ends, and obeys nobody.
    Versioned,
    /// It takes part in a work of so many partitions ([`PARTITIONS`](ringfence_servers::PARTITIONS)), and obeys `append NUMBER TEXT` alone.
    Partitions,
    /// It takes so many locks together ([`SEVERAL`](ringfence_servers::SEVERAL)), all or nothing, and obeys `append NUMBER TEXT` alone.
    Several,
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
    work: Option<Work>,
    /// The lock and the token of the last grant, for as long as the program runs: a stale one is to be tried, too.
    last: Option<(LockName, FencingToken)>,
    /// What says that the last grant was lost.
    watch: Option<AbortHandle>,
}

impl Taker {
    async fn new(arguments: Arguments) -> Result<Self> {
        let locks = Locks::connect(&arguments.url).await?;
        Ok(Self { arguments, locks, work: None, last: None, watch: None })
    }

    fn request(&self) -> LockRequest {
        let Arguments { name, ttl, wait, mode, lock_delay, .. } = &self.arguments;
        let request = self.locks.lock(name.as_str()).ttl(*ttl);
        let request = match *mode {
            Form::Exclusive => request,
            Form::Shared => request.shared(),
            Form::Permits(limit) => request.permits(limit),
        };
        let request = match *lock_delay {
            Some(delay) => request.lock_delay(delay),
            None => request,
        };
        match *wait {
            Some(wait) => request.wait(wait),
            None => request,
        }
    }

    async fn acquire(&mut self) -> Result<()> {
        say(&Event::Waiting { at: now() });
        let Arguments { pattern, name, ttl, .. } = &self.arguments;
        let work = match pattern {
            Pattern::Once => Work::run(&self.locks, name, *ttl).await?,
            Pattern::Leader => Work::lead(&self.locks, name, *ttl).await?,
            Pattern::Idempotency => Work::answer(&self.locks, name, *ttl).await?,
            Pattern::Lock | Pattern::Versioned | Pattern::Partitions | Pattern::Several => {
                Work::Lock(self.request().acquire().await?)
            }
        };
        let guard = work.guard();
        let token = guard.token();
        say(&Event::Held { token, at: provable(guard) });
        self.last = Some((guard.name().clone(), token));
        self.watch = Some(watch(guard.lost()));
        self.work = Some(work);
        Ok(())
    }

    /// What it holds, for it to hold no longer.
    fn let_go(&mut self) -> Result<Work> {
        let work = self.work.take().ok_or_else(holds_nothing)?;
        if let Some(watch) = self.watch.take() {
            watch.abort();
        }
        Ok(work)
    }

    async fn leave(&mut self) -> Result<()> {
        self.let_go()?.leave().await?;
        say(&Event::Left);
        Ok(())
    }

    async fn release(&mut self) -> Result<()> {
        let work = self.let_go()?;
        say(&Event::Releasing { until: provable(work.guard()) });
        match work.release().await {
            Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
            _ => say(&Event::Released),
        }
        Ok(())
    }

    fn last(&self) -> Result<(RecordHandle, FencingToken)> {
        let (lock, token) = self.last.as_ref().ok_or_else(holds_nothing)?;
        Ok((self.locks.record(lock)?, *token))
    }

    async fn write(&self, value: &str) -> Result<()> {
        let (record, token) = self.last()?;
        record.open(token).await?;
        put(&record, token, value.to_owned()).await
    }

    /// Adds one to the number in the record: what goes wrong if two do it at once.
    async fn count(&self) -> Result<()> {
        let (record, token) = self.last()?;
        let number = match record.open(token).await?.record {
            Some(record) => std::str::from_utf8(&record.value).ok().and_then(|number| number.parse().ok()),
            None => Some(0),
        };
        let number: u64 =
            number.ok_or_else(|| Error::new(ErrorKind::InvalidRequest, "the record holds no number"))?;
        put(&record, token, (number + 1).to_string()).await
    }

    async fn append(&self, text: &str) -> Result<()> {
        let (lock, token) = self.last.as_ref().ok_or_else(holds_nothing)?;
        append(&self.locks, lock, *token, text).await
    }

    async fn end(&mut self, text: &str) -> Result<()> {
        let work = self.work.take().ok_or_else(holds_nothing)?;
        let (work, ended) = work.end(text).await;
        self.work = work;
        ended.map(|()| say(&Event::Ended))
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
        while let Some(order) = orders.recv().await {
            report(match order.split_once(' ').unwrap_or((&order, "")) {
                ("acquire", "") => self.acquire().await,
                ("release", "") => self.release().await,
                ("leave", "") => self.leave().await,
                ("write", value) => self.write(value).await,
                ("append", text) => self.append(text).await,
                ("end", text) => self.end(text).await,
                (order, _) => Err(Error::new(
                    ErrorKind::InvalidRequest,
                    format!(
                        "{order:?} is no order: expected acquire, release, leave, write, append or end TEXT"
                    ),
                )),
            });
        }
    }
}

/// Says when a lease is lost.
fn watch(lost: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    let watch = tokio::spawn(async move {
        lost.await;
        say(&Event::Lost { at: now() });
    });
    watch.abort_handle()
}

async fn put(record: &RecordHandle, token: FencingToken, value: String) -> Result<()> {
    let version = record.write(token, value.clone()).await?;
    say(&Event::Written { version, value, at: now() });
    Ok(())
}

/// Adds a line to the effects of a lock, behind its fence: the token's sequence, and what was done under it.
async fn append(locks: &Locks, lock: &LockName, token: FencingToken, text: &str) -> Result<()> {
    let key = RecordKey::new(lock.clone(), EFFECTS)?;
    let opened = locks.records().open(&key, token).await?;
    let mut effects = opened.record.map_or_else(Vec::new, |record| record.value.to_vec());
    effects.extend(format!("{} {text}\n", token.sequence()).bytes());
    let version = locks.records().write(&key, token, effects.into()).await?;
    say(&Event::Written { version, value: text.to_owned(), at: now() });
    Ok(())
}

/// By its number, what was had last: a lock, and under which token.
type Numbered = BTreeMap<u32, (LockName, FencingToken)>;

/// `append NUMBER TEXT`: to the effects of one of several locks, under the token by which it was last this process's.
async fn append_to(locks: &Locks, last: &Numbered, order: &str) -> Result<()> {
    let wanted = order.strip_prefix("append ").and_then(|rest| rest.split_once(' '));
    let found = wanted.and_then(|(number, text)| Some((last.get(&number.parse().ok()?)?, text)));
    let Some(((lock, token), text)) = found else {
        return Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("{order:?} is no order: expected append NUMBER TEXT, of a number that it had"),
        ));
    };
    append(locks, lock, *token, text).await
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
    let (pattern, cycles) = (arguments.pattern, arguments.cycles);
    let orders = orders();
    let mut taker = Taker::new(arguments).await?;
    let Arguments { name, ttl, .. } = &taker.arguments;
    match (pattern, cycles) {
        (Pattern::Versioned, _) => versioned::count(&taker.locks, name, *ttl).await,
        (Pattern::Partitions, _) => partitions::take_part(&taker.locks, name, *ttl, orders).await?,
        (Pattern::Several, _) => several::hold(&taker.locks, name, *ttl, orders).await,
        (_, Some(cycles)) => taker.cycle(cycles).await,
        (_, None) => taker.obey(orders).await,
    }
    taker.locks.close().await
}
