//! A relay: claims a lane, sends its batch, says what became of it, and begins again.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{Counter, counter};
use ringfence_core::Backoff;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::database::{Calls, Connection, Kind, Place};
use super::schema;
use super::sinks::Sink;
use super::store::{self, Batch, Failed, Look, Outcome, Then};
use super::{Delivery, Outbox};
use crate::{BootInstant, Clock, Error, ErrorKind, Result, Retry, SystemClock};

/// How often a relay looks for messages that nobody told it of. PostgreSQL calls; a SQLite database cannot.
const POLL_POSTGRES: Duration = Duration::from_secs(1);
const POLL_SQLITE: Duration = Duration::from_millis(200);

/// The pauses of a relay whose sink, or whose database, is not there.
const DOWN_FIRST: Duration = Duration::from_millis(100);
const DOWN_MOST: Duration = Duration::from_secs(10);

/// How many messages are on their way to a sink at once.
const AT_ONCE: usize = 16;

/// How often a relay says in the log how far it has come.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What of a sink's error is kept with its message.
const WHY_MAX: usize = 500;

/// Sends what is in an outbox, at least once and in order per key. Any number of them share the work; [`Outbox::relay`] makes one.
#[derive(Clone, Debug)]
#[must_use = "a relay does nothing until it runs"]
pub struct Relay {
    place: Place,
    batch: NonZeroU32,
    claim: Duration,
    timeout: Duration,
    refusals: Option<NonZeroU32>,
    pauses: (Duration, Duration),
}

/// What a relay has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relayed {
    /// How many messages a sink has taken, those of a claim that was lost included.
    pub delivered: u64,
    /// How often a sink has refused one.
    pub refused: u64,
    /// How many are dead letters now.
    pub dead: u64,
    /// How many claims were over before they were settled, so that another relay sends again what was sent under them.
    pub lost_claims: u64,
}

impl Relay {
    /// The longest batch.
    pub const BATCH_MAX: u32 = 1000;

    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            batch: NonZeroU32::new(100).expect("it is not zero"),
            claim: Duration::from_secs(30),
            timeout: Duration::from_secs(10),
            refusals: NonZeroU32::new(12),
            pauses: (Duration::from_millis(500), Duration::from_mins(5)),
        }
    }

    /// How many messages a claim is for at most, and so how many can come twice when a relay is killed: 1 to
    /// [`Self::BATCH_MAX`], 100 where nothing is said. Errors with [`ErrorKind::InvalidRequest`].
    pub fn batch(mut self, most: u32) -> Result<Self> {
        self.batch = NonZeroU32::new(most).filter(|most| most.get() <= Self::BATCH_MAX).ok_or_else(|| {
            invalid(format!("a batch of {most} is out of range: it is from 1 to {}", Self::BATCH_MAX))
        })?;
        Ok(self)
    }

    /// How long a claim lasts, and so how long the keys of a relay that was killed wait for another; and how long a sink may take for
    /// one message: 30 and 10 seconds where nothing is said. A claim is not renewed: nothing is begun under it that may take longer
    /// than it lasts.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`] for a claim of less than twice the timeout or of more than a day, and for a timeout
    /// below 10 ms.
    pub fn claim(mut self, length: Duration, timeout: Duration) -> Result<Self> {
        let is_wrong = timeout < Duration::from_millis(10)
            || length < timeout.saturating_mul(2)
            || length > Duration::from_hours(24);
        if is_wrong {
            return Err(invalid(format!(
                "a claim of {length:?} for messages that take up to {timeout:?} is out of range: it is at least twice as long, and \
                 at most a day; a message may take 10 ms or longer"
            )));
        }
        (self.claim, self.timeout) = (length, timeout);
        Ok(self)
    }

    /// After how many refusals a message is a dead letter: 12 where nothing is said, which takes about half an hour. `None` is never:
    /// then a message that is refused holds up its key until somebody mends it or its sink, and nothing of a key is ever overtaken.
    pub fn refusals(mut self, most: Option<NonZeroU32>) -> Self {
        self.refusals = most;
        self
    }

    /// How long a message that was refused waits: at most the first of these, then at most twice as much each time, and never more than
    /// the second; 500 ms and 5 minutes where nothing is said. What a sink that is not there was sent waits 10 seconds at most.
    pub fn pauses(mut self, first: Duration, most: Duration) -> Self {
        self.pauses = (first, most);
        self
    }

    /// Sends until `stop` is ready; then it ends what is under way, within the timeout of a message, and gives back its claim.
    ///
    /// A database that goes away is tried again, and a sink too. Errors where it cannot begin, and later with what another try does not
    /// mend: with [`ErrorKind::Refused`] where there is no outbox, or a right is missing, and with [`ErrorKind::Unsupported`] for an
    /// outbox of another version. What could not be said of a batch before an error is sent again when its claim is over.
    ///
    /// While there is something to send, a batch takes about ten statements; those with values are two round trips
    /// each on PostgreSQL, because a pooler may lie between and nothing is kept by name. An idle relay looks once a second, and is
    /// called by PostgreSQL; on SQLite it looks five times a second.
    ///
    /// # Panics
    /// Where the sink does.
    ///
    /// # Cancel safety
    /// Dropped, it is as if it were killed: what it has sent and not settled comes again, when its claim is over. Prefer `stop`.
    pub async fn run(self, sink: Arc<dyn Sink>, stop: impl Future<Output = ()>) -> Result<Relayed> {
        let (stopping, stopped) = watch::channel(false);
        let mut running = Running::begin(self, sink, stopped).await?;
        let stop = async {
            stop.await;
            stopping.send_replace(true);
            std::future::pending::<()>().await;
        };
        let ended = tokio::select! {
            ended = running.run() => ended,
            () = stop => unreachable!("it only says so"),
        };
        let done = running.done;
        tracing::info!(outbox = %running.relay.place, delivered = done.delivered, dead = done.dead, "relay ends");
        ended.map(|()| done)
    }

    /// How long after its n-th try a message waits, from 1.
    fn pause(&self, tries: u64, most: Duration) -> Duration {
        let doubled = u32::try_from(tries.saturating_sub(1)).ok().and_then(|tries| 2_u32.checked_pow(tries));
        Backoff::new(self.pauses.0.saturating_mul(doubled.unwrap_or(u32::MAX)), most.min(self.pauses.1))
            .pause()
    }

    /// What becomes of a message that was not taken.
    fn failed(&self, message: &Delivery, why: &Error) -> Failed {
        let refusals = message.refusals + 1;
        let then = if why.kind() == ErrorKind::Unavailable {
            Then::Retry { after: self.pause(message.attempt, DOWN_MOST), is_refused: false }
        } else if self.refusals.is_some_and(|most| refusals >= u64::from(most.get())) {
            Then::Dead
        } else {
            Then::Retry { after: self.pause(refusals, self.pauses.1), is_refused: true }
        };
        // PostgreSQL's text has no zero bytes.
        let why = why.to_string().chars().filter(|&character| character != '\0').take(WHY_MAX).collect();
        Failed { number: message.number, why, then }
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidRequest, why)
}

impl Outbox {
    /// A relay, to be told how, and to [run](Relay::run).
    pub fn relay(&self) -> Relay {
        Relay::new(self.place.clone())
    }
}

/// A relay at work.
struct Running {
    relay: Relay,
    name: String,
    sink: Arc<dyn Sink>,
    stopped: watch::Receiver<bool>,
    link: Option<Link>,
    done: Relayed,
    meters: Meters,
    /// How far it had come when it last said so, and when that was.
    said: (u64, BootInstant),
}

/// How it is connected.
struct Link {
    connection: Box<dyn Connection>,
    calls: Calls,
}

struct Meters {
    delivered: Counter,
    refused: Counter,
    dead: Counter,
}

impl Running {
    async fn begin(relay: Relay, sink: Arc<dyn Sink>, stopped: watch::Receiver<bool>) -> Result<Self> {
        let this = crate::locks::this_process();
        let name = format!("{}/{}", this.host(), this.pid());
        let link = Some(Link::open(&relay.place).await?);
        tracing::info!(outbox = %relay.place, %name, ?sink, "relay begins");
        let meters = Meters {
            delivered: counter!("ringfence_outbox_delivered_total"),
            refused: counter!("ringfence_outbox_refused_total"),
            dead: counter!("ringfence_outbox_dead_total"),
        };
        let said = (0, SystemClock::new().now());
        Ok(Self { relay, name, sink, stopped, link, done: Relayed::default(), meters, said })
    }

    async fn run(&mut self) -> Result<()> {
        let mut down = Backoff::new(DOWN_FIRST, DOWN_MOST);
        let mut was_down = false;
        while !*self.stopped.borrow() {
            let pause = match self.round().await {
                Ok(Round::Nothing) => {
                    // The database is there.
                    if !was_down {
                        down = Backoff::new(DOWN_FIRST, DOWN_MOST);
                    }
                    continue;
                }
                Ok(Round::Sent { is_down: false }) => {
                    if was_down {
                        tracing::info!("the sink takes messages again");
                    }
                    was_down = false;
                    down = Backoff::new(DOWN_FIRST, DOWN_MOST);
                    continue;
                }
                Ok(Round::Sent { is_down: true }) => {
                    was_down = true;
                    down.pause()
                }
                Err(error) if error.retry() == Retry::Later => {
                    tracing::warn!(%error, "relay tries again");
                    self.link = None;
                    down.pause()
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
        }
        Ok(())
    }

    /// Sends a batch, or waits until there may be one.
    async fn round(&mut self) -> Result<Round> {
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(Link::open(&self.relay.place).await?),
        };
        let (place, connection) = (&self.relay.place, &mut *link.connection);
        if let Look::Nothing(next) = store::look(place, connection).await? {
            let poll = match place.kind() {
                Kind::Postgres => POLL_POSTGRES,
                Kind::Sqlite => POLL_SQLITE,
            };
            tokio::select! {
                called = link.calls.next() => called?,
                () = tokio::time::sleep(next.map_or(poll, |next| next.min(poll))) => {}
                _ = self.stopped.wait_for(|stopped| *stopped) => {}
            }
            return Ok(Round::Nothing);
        }
        // The database's end of the claim is later than ours, because it begins to count later.
        let deadline = SystemClock::new().now().saturating_add(self.relay.claim);
        let claim = store::claim(place, connection, &self.name, self.relay.claim, self.relay.batch.get());
        let Some(batch) = claim.await? else { return Ok(Round::Nothing) };
        let sending = Sending {
            relay: self.relay.clone(),
            sink: Arc::clone(&self.sink),
            stopped: self.stopped.clone(),
            deadline,
            is_down: AtomicBool::new(false),
            at_once: Semaphore::new(AT_ONCE),
        };
        let (outcome, is_down) = Arc::new(sending).batch(&batch).await;
        self.count(&batch, &outcome);
        self.settle(&batch, &outcome, deadline).await?;
        Ok(Round::Sent { is_down })
    }

    /// Says what became of a batch, by another connection where this one breaks, for as long as the claim lasts.
    async fn settle(&mut self, batch: &Batch, outcome: &Outcome, deadline: BootInstant) -> Result<()> {
        let mut backoff = Backoff::new(DOWN_FIRST, DOWN_MOST);
        loop {
            let settled = match &mut self.link {
                Some(link) => store::settle(&self.relay.place, &mut *link.connection, batch, outcome).await,
                none => match Link::open(&self.relay.place).await {
                    Ok(link) => {
                        *none = Some(link);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match settled {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Lost => {
                    self.done.lost_claims += 1;
                    tracing::warn!(%error, "a claim is lost");
                    return Ok(());
                }
                Err(error) if error.retry() == Retry::Later && SystemClock::new().now() < deadline => {
                    tracing::warn!(%error, "what became of a batch cannot be said yet");
                    self.link = None;
                    tokio::time::sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn count(&mut self, batch: &Batch, outcome: &Outcome) {
        let delivered = outcome.delivered.len() as u64;
        self.meters.delivered.increment(delivered);
        self.done.delivered += delivered;
        for failed in &outcome.failed {
            let message = batch.deliveries.iter().find(|message| message.number == failed.number);
            let id = message.map(|message| message.id.to_string());
            match failed.then {
                Then::Retry { is_refused: false, .. } => {
                    tracing::warn!(id, why = failed.why, "the sink is not there");
                }
                Then::Retry { is_refused: true, after } => {
                    self.done.refused += 1;
                    self.meters.refused.increment(1);
                    tracing::info!(id, why = failed.why, ?after, "a message is refused");
                }
                Then::Dead => {
                    self.done.refused += 1;
                    self.done.dead += 1;
                    self.meters.refused.increment(1);
                    self.meters.dead.increment(1);
                    tracing::warn!(id, why = failed.why, "a message is dead");
                }
            }
        }
        let now = SystemClock::new().now();
        if now.saturating_since(self.said.1) >= SAY_EVERY && self.done.delivered > self.said.0 {
            tracing::info!(delivered = self.done.delivered, dead = self.done.dead, "relay goes on");
            self.said = (self.done.delivered, now);
        }
    }
}

impl Link {
    async fn open(place: &Place) -> Result<Self> {
        let mut connection = place.connect().await?;
        schema::require(place, &mut *connection).await?;
        Ok(Self { connection, calls: place.listen().await? })
    }
}

enum Round {
    /// There was nothing to send, which says nothing of the sink.
    Nothing,
    Sent {
        /// Whether the sink is not there.
        is_down: bool,
    },
}

/// The messages of a batch in lines, of which each is sent in its order: one for each key, and one for each message without.
fn lines_of(messages: &[Delivery]) -> Vec<Vec<Delivery>> {
    let mut lines: Vec<Vec<Delivery>> = Vec::new();
    let mut by_key = HashMap::new();
    for message in messages {
        let at = match &message.key {
            Some(key) => *by_key.entry(key).or_insert(lines.len()),
            None => lines.len(),
        };
        match lines.get_mut(at) {
            Some(line) => line.push(message.clone()),
            None => lines.push(vec![message.clone()]),
        }
    }
    lines
}

/// A batch on its way.
struct Sending {
    relay: Relay,
    sink: Arc<dyn Sink>,
    stopped: watch::Receiver<bool>,
    deadline: BootInstant,
    is_down: AtomicBool,
    at_once: Semaphore,
}

impl Sending {
    /// Sends what can be sent until the deadline, each key's messages one after the other, and says whether the sink is down.
    async fn batch(self: Arc<Self>, batch: &Batch) -> (Outcome, bool) {
        let mut lines = JoinSet::new();
        for line in lines_of(&batch.deliveries) {
            lines.spawn(Arc::clone(&self).line(line));
        }
        let mut outcome = Outcome::default();
        while let Some(line) = lines.join_next().await {
            match line {
                Ok(line) => {
                    outcome.delivered.extend(line.delivered);
                    outcome.failed.extend(line.failed);
                }
                Err(why) => std::panic::resume_unwind(why.into_panic()),
            }
        }
        (outcome, self.is_down.load(Ordering::Relaxed))
    }

    /// Sends a line up to its first message that is not taken.
    async fn line(self: Arc<Self>, line: Vec<Delivery>) -> Outcome {
        let mut outcome = Outcome::default();
        let _permit = self.at_once.acquire().await.expect("it is never closed");
        for message in &line {
            if !self.goes_on() {
                break;
            }
            let delivery = tokio::time::timeout(self.relay.timeout, self.sink.deliver(message)).await;
            let delivery = delivery.unwrap_or_else(|_| {
                let why = format!("the sink has not taken it within {:?}", self.relay.timeout);
                Err(Error::new(ErrorKind::Unavailable, why))
            });
            match delivery {
                Ok(()) => outcome.delivered.push(message.number),
                Err(why) => {
                    if why.kind() == ErrorKind::Unavailable {
                        self.is_down.store(true, Ordering::Relaxed);
                    }
                    outcome.failed.push(self.relay.failed(message, &why));
                    break;
                }
            }
        }
        outcome
    }

    /// Whether another message may be sent: it would be taken, or given up, before the claim is over.
    fn goes_on(&self) -> bool {
        let ends = SystemClock::new().now().saturating_add(self.relay.timeout);
        ends <= self.deadline && !self.is_down.load(Ordering::Relaxed) && !*self.stopped.borrow()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::WallTime;
    use crate::patterns::outbox::MessageId;

    fn message(number: u64, key: Option<&str>) -> Delivery {
        Delivery {
            id: MessageId::random().unwrap(),
            number,
            topic: "t".to_owned(),
            key: key.map(str::to_owned),
            payload: Bytes::new(),
            attempt: 1,
            enqueued_at: WallTime::from_millis(0),
            refusals: 0,
        }
    }

    fn relay() -> Relay {
        Outbox::open("sqlite:/nowhere.db").unwrap().relay()
    }

    #[test]
    fn a_line_is_a_key_or_a_message_without() {
        let batch: Vec<_> =
            [(1, Some("a")), (2, None), (3, Some("b")), (4, Some("a")), (5, None), (6, Some("a"))]
                .map(|(number, key)| message(number, key))
                .into();
        let numbers: Vec<Vec<u64>> =
            lines_of(&batch).iter().map(|line| line.iter().map(|message| message.number).collect()).collect();
        assert_eq!(numbers, [vec![1, 4, 6], vec![2], vec![3], vec![5]]);
    }

    #[test]
    fn what_is_refused_waits_longer_each_time_and_is_dead_at_last() {
        let relay =
            relay().pauses(Duration::from_secs(1), Duration::from_secs(5)).refusals(NonZeroU32::new(5));
        let refused = Error::new(ErrorKind::Refused, "no\0!");
        for (refusals, longest) in [(0, 1), (1, 2), (2, 4), (3, 5)] {
            let failed = relay.failed(&Delivery { refusals, ..message(1, None) }, &refused);
            let Then::Retry { after, is_refused: true } = failed.then else { panic!("{failed:?}") };
            let longest = Duration::from_secs(longest);
            assert!((longest / 4..=longest).contains(&after), "{refusals}: {after:?} of {longest:?}");
            assert_eq!(failed.why, "no!");
        }
        let last = Delivery { refusals: 4, ..message(1, None) };
        assert_eq!(relay.failed(&last, &refused).then, Then::Dead);
        let endless = relay.refusals(None).failed(&Delivery { refusals: u64::MAX / 2, ..last }, &refused);
        assert!(matches!(endless.then, Then::Retry { is_refused: true, .. }), "{endless:?}");
    }

    #[test]
    fn nobody_is_dead_because_the_sink_is_not_there() {
        let away = Error::new(ErrorKind::Unavailable, "connection refused");
        let late = Delivery { attempt: 1_000_000, refusals: 1_000_000, ..message(1, None) };
        let Then::Retry { after, is_refused: false } = relay().failed(&late, &away).then else { panic!() };
        assert!(after <= DOWN_MOST, "{after:?}");
    }

    #[test]
    fn what_a_relay_is_told_has_limits() {
        let seconds = Duration::from_secs;
        for most in [0, Relay::BATCH_MAX + 1] {
            assert_eq!(relay().batch(most).unwrap_err().kind(), ErrorKind::InvalidRequest, "{most}");
        }
        assert!(relay().batch(Relay::BATCH_MAX).is_ok());
        for (claim, timeout) in
            [(seconds(1), seconds(1)), (seconds(100_000), seconds(1)), (seconds(1), Duration::ZERO)]
        {
            let error = relay().claim(claim, timeout).unwrap_err();
            assert!(error.to_string().contains("at least twice as long"), "{error}");
        }
        assert!(relay().claim(seconds(2), seconds(1)).is_ok());
    }
}
