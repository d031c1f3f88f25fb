//! Two processes and what is between them and their store; and how long something takes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ringfence::{BootInstant, Clock, ErrorKind, FencingToken, LockName, Locks, RecordKey, SystemClock, Ttl};
use ringfence_servers::{EFFECTS, Event, Proxy, Taker};

use super::{Fault, Reach};
use crate::stage::{fresh, locks, ttl, within};

/// What the guides allow beside the TTL before somebody else goes on.
pub(super) const BESIDE_THE_TTL: Duration = Duration::from_secs(2);

/// How soon one looks again who cannot be called.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// One name on a store.
pub(super) struct Scene {
    pub(super) locks: Locks,
    pub(super) name: String,
    pub(super) ttl: Ttl,
    url: String,
    ports: Vec<u16>,
    metronome: Metronome,
}

/// Somebody to whom a fault happens.
pub(super) struct Victim {
    pub(super) process: Taker,
    fault: Fault,
    /// What is between it and each server.
    network: Vec<Proxy>,
}

impl Scene {
    pub(super) async fn new(reach: &dyn Reach) -> Self {
        let locks = locks(reach).await;
        let ttl = Ttl::new(ttl(&locks, Duration::from_secs(2))).expect("a TTL that the backend grants");
        // The names of partitions have no slash.
        let name = fresh("faults").replace('/', "-");
        Self { locks, name, ttl, url: reach.url(), ports: reach.ports(), metronome: Metronome::start() }
    }

    /// One who works by a pattern.
    pub(super) fn start(&self, pattern: &[&str]) -> Taker {
        self.start_at(&self.url, pattern)
    }

    /// One to whom the fault is to happen.
    pub(super) async fn victim(&self, fault: Fault, pattern: &[&str]) -> Victim {
        let (mut url, mut network) = (self.url.clone(), Vec::new());
        if fault == Fault::CutOff {
            for port in &self.ports {
                let proxy = Proxy::start(*port).await;
                url = url.replace(&format!(":{port}"), &format!(":{}", proxy.port()));
                network.push(proxy);
            }
        }
        Victim { process: self.start_at(&url, pattern), fault, network }
    }

    fn start_at(&self, url: &str, pattern: &[&str]) -> Taker {
        let ttl = self.ttl.to_string();
        let options: Vec<&str> = pattern.iter().copied().chain(["--ttl", &ttl]).collect();
        Taker::start(url, &self.name, &options)
    }

    /// The lock of that name.
    pub(super) fn lock(&self) -> LockName {
        LockName::new(&*self.name).expect("a short name")
    }

    /// Waits until somebody holds a lock, and says under which token.
    pub(super) async fn until_held(&self, lock: &LockName) -> FencingToken {
        self.holders(lock, |holders| holders.first().copied()).await
    }

    /// Waits until nobody holds [the lock](Self::lock) under a token any more. Returns an instant after that.
    pub(super) async fn until_gone(&self, token: FencingToken) -> BootInstant {
        self.holders(&self.lock(), |holders| (!holders.contains(&token)).then_some(())).await;
        SystemClock::new().now()
    }

    /// Looks at the tokens under which a lock is held until they are as wanted: nobody calls those who only look.
    async fn holders<T>(&self, lock: &LockName, wanted: impl Fn(&[FencingToken]) -> Option<T>) -> T {
        let looks = async {
            loop {
                let state = self.locks.inspect(lock.as_str()).await.expect("a look");
                let alive = state.holders.iter().filter(|holder| !holder.has_lapsed());
                if let Some(found) = wanted(&alive.map(|holder| holder.token).collect::<Vec<_>>()) {
                    break found;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        within("the lock's holders are as wanted", looks).await
    }

    /// What was done under a lock.
    pub(super) async fn effects(&self, lock: &LockName) -> String {
        let key = RecordKey::new(lock.clone(), EFFECTS).expect("a name of a field");
        let record = self.locks.records().read(&key).await.expect("the effects can be read");
        let effects = record.expect("something was done").value;
        String::from_utf8(effects.to_vec()).expect("lines")
    }

    /// Checks that what began so long after a fault began in time. The machine's own lateness does not count.
    pub(super) fn in_time(
        &self,
        what: &str,
        struck: BootInstant,
        began: BootInstant,
        beside_the_ttl: Duration,
    ) {
        let took = began.saturating_since(struck);
        let (most, late) =
            (self.ttl.as_duration() + beside_the_ttl, self.metronome.late_between(struck, began));
        assert!(
            took <= most + late,
            "{what}: {took:?} after the fault, and not within {most:?}, for {late:?} of which this machine was busy"
        );
    }
}

impl Victim {
    /// The fault happens. Returns an instant before it.
    pub(super) fn strike(&mut self) -> BootInstant {
        let before = self.holds_still();
        if self.fault == Fault::Killed {
            self.process.kill();
        }
        before
    }

    /// As [`Self::strike`], but that who is to be killed is stopped and can still go on.
    pub(super) fn holds_still(&mut self) -> BootInstant {
        let before = SystemClock::new().now();
        match self.fault {
            Fault::Stopped | Fault::Killed => self.process.stop(),
            Fault::CutOff => self.network.iter().for_each(Proxy::cut),
        }
        before
    }

    /// The end of holding still.
    pub(super) fn moves_again(&mut self) {
        match self.fault {
            Fault::Stopped | Fault::Killed => self.process.resume(),
            Fault::CutOff => self.network.iter().for_each(Proxy::mend),
        }
    }

    /// The fault is over, for those whom it leaves alive.
    pub(super) fn goes_on(&mut self) {
        if self.fault != Fault::Killed {
            self.moves_again();
        }
    }

    /// Has it give back what it has lost, whether anybody hears of it or not.
    pub(super) async fn gives_back_late(&mut self) {
        self.process.tell("release");
        let answer = |event: &Event| match event {
            Event::Released => Some(None),
            Event::Refused { kind, message } => Some(Some((kind.clone(), message.clone()))),
            _ => None,
        };
        if let Some((kind, message)) = self.process.event("has released, or could not", answer).await {
            // A server may not be believed to be there again yet.
            let is_expected = self.fault == Fault::CutOff && kind == format!("{:?}", ErrorKind::Unavailable);
            assert!(is_expected, "one that was {:?} gives back: {kind}: {message}", self.fault);
        }
    }

    /// Waits until one of its orders is refused, as it must be of one that is late.
    pub(super) async fn is_refused(&mut self) {
        let refused = |event: &Event| match event {
            Event::Refused { kind, message } => Some((kind.clone(), message.clone())),
            Event::Written { value, .. } if value == LATE => Some(("nothing".to_owned(), String::new())),
            Event::Ended => Some(("nothing".to_owned(), String::new())),
            _ => None,
        };
        let (kind, message) = self.process.event("is refused", refused).await;
        let mut expected = vec![ErrorKind::Stale, ErrorKind::Lost];
        if self.fault == Fault::CutOff {
            expected.push(ErrorKind::Unavailable);
        }
        let is_expected = expected.iter().any(|expected| format!("{expected:?}") == kind);
        assert!(
            is_expected,
            "one that was {:?} is refused as {expected:?}, not {kind}: {message}",
            self.fault
        );
    }
}

/// What one does that is late.
pub(super) const LATE: &str = "late";

/// Tells a process to do something under its lock, and waits until it is done.
pub(super) async fn appends(process: &mut Taker, order: &str, text: &str) {
    process.tell(&format!("{order} {text}"));
    let done = |event: &Event| matches!(event, Event::Written { value, .. } if value == text).then_some(());
    process.event("has written", done).await;
}

/// A line of the effects.
pub(super) fn line(token: FencingToken, text: &str) -> String {
    format!("{} {text}\n", token.sequence())
}

/// A thread that does nothing but wake up, and so knows when this machine had no time: a bound that is to hold where it has, is
/// longer by as much where it has not.
struct Metronome(Arc<Mutex<Vec<BootInstant>>>);

/// How often it wakes up.
const BEAT: Duration = Duration::from_millis(5);

impl Metronome {
    fn start() -> Self {
        let beats = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::downgrade(&beats);
        std::thread::spawn(move || {
            while let Some(beats) = kept.upgrade() {
                beats.lock().unwrap_or_else(PoisonError::into_inner).push(SystemClock::new().now());
                drop(beats);
                std::thread::sleep(BEAT);
            }
        });
        Self(beats)
    }

    /// For how long in all it was asleep for longer than two beats, but for one.
    fn late_between(&self, from: BootInstant, until: BootInstant) -> Duration {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen: Vec<BootInstant> =
            beats.iter().copied().filter(|beat| (from..=until).contains(beat)).collect();
        let pauses = seen.windows(2).map(|pair| pair[1].saturating_since(pair[0]));
        pauses.filter(|pause| *pause > 2 * BEAT).map(|pause| pause.saturating_sub(BEAT)).sum()
    }
}
