//! The local store under faults: real processes that hold or wait, stopped and killed, at random too.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Backend, BootInstant, Clock, ErrorKind, Eviction, FencingToken, LockName, LockState, Nonce, RecordKey,
    SystemClock,
};
use ringfence_local::LocalBackend;
use ringfence_servers::{Event, Taker, WallClock};
use ringfence_testkit::{Hold, PATIENCE, check_exclusive};
use tempfile::TempDir;

const NAME: &str = "job";

/// How soon a death or an eviction must have its effect. It takes milliseconds; a TTL here is a minute.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Ten years, in seconds.
const TEN_YEARS: i64 = 10 * 365 * 24 * 3600;

/// A store, and a client of it in this process, that looks on.
struct Store {
    directory: TempDir,
    client: LocalBackend,
}

impl Store {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let client =
            LocalBackend::open(directory.path(), Arc::new(SystemClock::new())).expect("a new store opens");
        Self { directory, client }
    }

    fn url(&self) -> String {
        format!("local:{}", self.directory.path().display())
    }

    /// A process that asks for the lock.
    fn taker(&self, options: &[&str]) -> Taker {
        Taker::start(&self.url(), NAME, options)
    }

    /// A process that asks for the lock and tells the time by this clock.
    fn taker_by(&self, clock: &WallClock, options: &[&str]) -> Taker {
        Taker::start_in(&self.url(), NAME, options, |command| clock.govern(command))
    }

    /// A process that holds the lock, and its token.
    async fn holder(&self, options: &[&str]) -> (Taker, FencingToken) {
        let mut taker = self.taker(options);
        let (token, _) = taker.holds().await;
        (taker, token)
    }

    /// A process that stands in line as the last of so many.
    async fn waiter(&self, options: &[&str], place: usize) -> Taker {
        let taker = self.taker(options);
        self.sees(&format!("a line of {place}"), |state| state.waiters.len() == place).await;
        taker
    }

    async fn state(&self) -> LockState {
        self.client.inspect(&name()).await.expect("the lock can be looked at")
    }

    async fn sees(&self, what: &str, right: impl Fn(&LockState) -> bool) {
        let looked = tokio::time::timeout(PATIENCE, async {
            while !right(&self.state().await) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(looked.await.is_ok(), "waited {PATIENCE:?} for {what}: {:?}", self.state().await);
    }

    /// How often the record was written, and what it holds.
    async fn record(&self) -> (u64, String) {
        let record =
            self.client.records().read(&RecordKey::of(name())).await.expect("the record can be read");
        record.map_or((0, String::new()), |record| {
            (record.version.0, String::from_utf8(record.value.to_vec()).expect("takers write text"))
        })
    }

    /// Waits until the record was written again, for that is what the takers do all the time.
    async fn goes_on(&self, within: Duration, after: &str) {
        let (before, _) = self.record().await;
        let progress = tokio::time::timeout(within, async {
            while self.record().await.0 == before {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(
            progress.await.is_ok(),
            "nobody got on within {within:?} after {after}: {:?}",
            self.state().await
        );
    }
}

fn name() -> LockName {
    LockName::new(NAME).expect("a lawful name")
}

fn now() -> BootInstant {
    SystemClock::new().now()
}

/// A number below this one.
fn draw(below: usize) -> usize {
    usize::try_from(Nonce::random().get() % below as u64).expect("it is below a usize")
}

fn assert_stale<T: std::fmt::Debug>(result: ringfence_core::Result<T>, what: &str) {
    match result {
        Err(error) if error.kind() == ErrorKind::Stale => {}
        other => panic!("{what} must be refused as stale: {other:?}"),
    }
}

/// What the first holder has left.
fn left(state: &LockState) -> Duration {
    state.holders.first().and_then(|holder| holder.remaining).expect("a stopped holder still holds")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_next_holds_within_a_second_of_a_kill() {
    let store = Store::new();
    let (mut holder, mut token) = store.holder(&["--ttl", "1m"]).await;
    let mut line = Vec::new();
    for place in 1..=5 {
        line.push(store.waiter(&["--ttl", "1m"], place).await);
    }
    for mut next in line {
        let killed = now();
        holder.kill();
        let (next_token, granted) = next.holds().await;
        let took = granted.saturating_since(killed);
        assert!(took < AT_ONCE, "the next one held {took:?} after the kill");
        assert!(next_token.sequence() > token.sequence(), "{token}, then {next_token}");
        (holder, token) = (next, next_token);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_waiter_in_the_middle_of_the_line_costs_nothing() {
    let store = Store::new();
    let (mut holder, _) = store.holder(&["--ttl", "1m"]).await;
    let mut first = store.waiter(&["--ttl", "1m"], 1).await;
    let mut killed = store.waiter(&["--ttl", "1m"], 2).await;
    let mut last = store.waiter(&["--ttl", "1m"], 3).await;
    killed.kill();
    store.sees("a line without the dead one", |state| state.waiters.len() == 2).await;

    holder.releases().await;
    let _ = first.holds().await;
    let released = now();
    first.releases().await;
    let (_, granted) = last.holds().await;
    let took = granted.saturating_since(released);
    // The turn of one that is stopped costs a second.
    assert!(took < AT_ONCE, "the dead one's turn cost {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_holder_keeps_its_lease_until_its_ttl_and_is_refused_afterwards() {
    let store = Store::new();
    let (mut stopped, old_token) = store.holder(&["--ttl", "1s"]).await;
    stopped.writes("before").await.expect("a holder writes");
    let mut next = store.waiter(&["--ttl", "1m"], 1).await;

    stopped.stop();
    let looked = now();
    let remaining = left(&store.state().await);
    let (new_token, granted) = next.holds().await;
    let kept = granted.saturating_since(looked);
    assert!(kept >= remaining, "it had {remaining:?} left and lost it after {kept:?}");
    assert!(kept < remaining + AT_ONCE, "it had {remaining:?} left and kept it for {kept:?}");
    assert!(new_token.sequence() > old_token.sequence(), "{old_token}, then {new_token}");

    // Nobody has come near the record yet: the lease is over, and that is enough.
    let resumed = now();
    stopped.resume();
    assert_stale(stopped.writes("late").await, "the write of a lease that is over");
    let learned = stopped.loses().await.saturating_since(resumed);
    assert!(learned < AT_ONCE, "it learned that it lost after {learned:?}");
    next.writes("after").await.expect("the new holder writes");
    assert_stale(stopped.writes("later").await, "the write of a token that was overtaken");
    assert_eq!(store.record().await, (2, "after".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_waiter_costs_the_next_one_about_a_second() {
    let store = Store::new();
    let (mut holder, _) = store.holder(&["--ttl", "1m"]).await;
    let mut stopped = store.waiter(&["--ttl", "1m"], 1).await;
    let mut next = store.waiter(&["--ttl", "1m"], 2).await;

    stopped.stop();
    let released = now();
    holder.releases().await;
    let (token, granted) = next.holds().await;
    let took = granted.saturating_since(released);
    assert!(took < Duration::from_secs(1) + AT_ONCE, "the stopped one's turn cost {took:?}");

    stopped.resume();
    store.sees("the one that slept in line again", |state| state.waiters.len() == 1).await;
    next.writes("still mine").await.expect("the one that slept takes nothing back");
    next.releases().await;
    let (later_token, _) = stopped.holds().await;
    assert!(later_token.sequence() > token.sequence(), "{token}, then {later_token}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_holder_learns_at_once_that_it_lost() {
    let store = Store::new();
    let (mut evicted, token) = store.holder(&["--ttl", "1m"]).await;
    evicted.writes("before").await.expect("a holder writes");
    let mut next = store.waiter(&["--ttl", "1m"], 1).await;

    let at = now();
    let eviction = store.client.evict(&name(), token.nonce()).await.expect("the operator evicts");
    assert_eq!(eviction, Eviction::Evicted);
    let learned = evicted.loses().await.saturating_since(at);
    assert!(learned < AT_ONCE, "the evicted one learned of it after {learned:?}");
    let (next_token, granted) = next.holds().await;
    let took = granted.saturating_since(at);
    assert!(took < AT_ONCE, "the next one held after {took:?}");
    assert!(next_token.sequence() > token.sequence(), "{token}, then {next_token}");
    assert_stale(evicted.writes("late").await, "the write of the evicted holder");
    assert_eq!(store.record().await.1, "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_rise_through_every_way_to_go_away() {
    let Store { directory, client } = Store::new();
    let url = format!("local:{}", directory.path().display());
    drop(client);
    let mut tokens: Vec<FencingToken> = Vec::new();
    for round in 0..9 {
        // Nobody else has the store open: whatever carries the numbers on is on the disk.
        let mut taker = Taker::start(&url, NAME, &["--ttl", "1m"]);
        let (token, _) = taker.holds().await;
        tokens.push(token);
        match round % 3 {
            0 => taker.kill(),
            1 => taker.releases().await,
            _ => taker.tell("write a value, and be killed meanwhile"),
        }
    }
    assert!(
        tokens.is_sorted_by(|earlier, later| earlier.sequence() < later.sequence()),
        "sequences rise: {tokens:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_rise_whatever_the_wall_clock_says() {
    let Some(clock) = WallClock::new() else { return };
    let store = Store::new();
    let mut old = store.taker_by(&clock, &["--ttl", "1m"]);
    let mut tokens = vec![old.holds().await.0];
    for step in [-TEN_YEARS, TEN_YEARS, 0, -TEN_YEARS] {
        clock.step(step);
        old.writes("still mine").await.expect("a step of the wall clock takes nothing from a holder");
        old.releases().await;
        // One that has never seen another time, then one that goes on through all of them.
        let mut new = store.taker_by(&clock, &["--ttl", "1m"]);
        tokens.push(new.holds().await.0);
        new.releases().await;
        old.tell("acquire");
        tokens.push(old.holds().await.0);
    }
    assert!(
        tokens.is_sorted_by(|earlier, later| earlier.sequence() < later.sequence()),
        "sequences rise: {tokens:?}"
    );
    old.writes("mine").await.expect("the last one holds");
    let (_, earlier) = tokens.split_last().expect("there are tokens");
    for token in earlier {
        assert_stale(store.client.records().open(&RecordKey::of(name()), *token).await, "an earlier token");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_in_time_whatever_the_wall_clock_says() {
    let Some(clock) = WallClock::new() else { return };
    for step in [-TEN_YEARS, TEN_YEARS] {
        let store = Store::new();
        clock.step(0);
        let mut stopped = store.taker_by(&clock, &["--ttl", "1s"]);
        let _ = stopped.holds().await;
        let mut next = store.taker_by(&clock, &["--ttl", "1m"]);
        store.sees("one in line", |state| state.waiters.len() == 1).await;

        stopped.stop();
        let looked = now();
        let remaining = left(&store.state().await);
        clock.step(step);
        let (_, granted) = next.holds().await;
        let kept = granted.saturating_since(looked);
        assert!(kept >= remaining, "{step}: it had {remaining:?} left and lost it after {kept:?}");
        assert!(kept < remaining + AT_ONCE, "{step}: it had {remaining:?} left and kept it for {kept:?}");

        stopped.resume();
        assert_stale(stopped.writes("late").await, "the write of a lease that is over");
        let _ = stopped.loses().await;
    }
}

/// What is known of a crowd of processes that each acquire, count and release, again and again.
#[derive(Default)]
struct Chronicle {
    holds: Vec<Hold>,
    counted: Vec<u64>,
    refused: Vec<String>,
    /// How many leases ended under a holder that was not looking.
    slept_through: usize,
}

impl Chronicle {
    /// Adds what a process that is dead now has printed. A hold that it did not end lasted until `held_until`, where that
    /// is known.
    async fn add(&mut self, taker: &mut Taker, held_until: Option<BootInstant>) {
        let mut open: Option<Hold> = None;
        for event in taker.last_events().await {
            match event {
                Event::Held { token, at: Some(at) } => open = Some(Hold { token, from: at, until: at }),
                Event::Held { at: None, .. } => self.slept_through += 1,
                Event::Releasing { until } => {
                    self.slept_through += usize::from(until.is_none());
                    if let Some(hold) = open.take() {
                        self.holds.push(Hold { until: until.unwrap_or(hold.from), ..hold });
                    }
                }
                Event::Written { value, .. } => {
                    self.counted.push(value.parse().expect("takers write numbers"));
                }
                Event::Refused { kind, message } => self.refused.push(format!("{kind}: {message}")),
                _ => {}
            }
        }
        self.holds.extend(open.map(|hold| Hold { until: held_until.unwrap_or(hold.from), ..hold }));
    }

    /// Checks what must be true whatever was done to the processes: nobody held beside another one, tokens rose, and no
    /// count was lost. A process that was killed may have counted once without saying so.
    fn check(&self, last: u64, kills: usize) {
        check_exclusive(self.holds.iter().copied()).unwrap_or_else(|why| panic!("{why}"));
        let distinct: BTreeSet<u64> = self.counted.iter().copied().collect();
        assert_eq!(distinct.len(), self.counted.len(), "no number is counted twice: an update was lost");
        let unsaid = last.checked_sub(self.counted.len() as u64).expect("what was counted is in the record");
        assert!(unsaid <= kills as u64, "{last} counted, {} said so, {kills} killed", self.counted.len());
    }
}

const CROWD: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_lose_nothing_and_stall_nobody() {
    const KILLS: usize = 40;
    let store = Store::new();
    let start = || store.taker(&["--ttl", "1m", "--cycles", "1000000"]);
    let mut crowd: Vec<Taker> = (0..CROWD).map(|_| start()).collect();
    let mut chronicle = Chronicle::default();
    store.goes_on(PATIENCE, "the start").await;
    for kill in 1..=KILLS {
        tokio::time::sleep(Duration::from_millis(draw(50) as u64)).await;
        let mut victim = std::mem::replace(&mut crowd[draw(CROWD)], start());
        let killed = now();
        victim.kill();
        store.goes_on(2 * AT_ONCE, &format!("kill {kill}")).await;
        chronicle.add(&mut victim, Some(killed)).await;
    }
    for mut survivor in crowd {
        let killed = now();
        survivor.kill();
        chronicle.add(&mut survivor, Some(killed)).await;
    }
    assert_eq!(chronicle.refused, Vec::<String>::new(), "nobody was refused anything");
    let (_, last) = store.record().await;
    chronicle.check(last.parse().expect("a number"), KILLS + CROWD);
    assert!(chronicle.holds.len() > 2 * KILLS, "a test of {} holds proves little", chronicle.holds.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_at_random_stall_nobody_and_no_late_write_is_taken() {
    const STOPS: usize = 24;
    // A stopped holder costs its TTL, and a stopped waiter whose turn comes a second.
    const PAUSE_AT_MOST: Duration = Duration::from_secs(3);
    let store = Store::new();
    let mut crowd: Vec<Taker> =
        (0..CROWD).map(|_| store.taker(&["--ttl", "400ms", "--cycles", "1000000"])).collect();
    let mut holders_stopped = 0;
    store.goes_on(PATIENCE, "the start").await;
    for stop in 1..=STOPS {
        tokio::time::sleep(Duration::from_millis(draw(30) as u64)).await;
        // Every other stop is aimed at whoever holds.
        let holds = |state: &LockState, taker: &Taker| {
            state.holders.iter().any(|holder| holder.holder.pid() == taker.id())
        };
        let state = store.state().await;
        let holder = crowd.iter().position(|taker| holds(&state, taker)).filter(|_| stop % 2 == 0);
        let victim = &mut crowd[holder.unwrap_or_else(|| draw(CROWD))];
        victim.stop();
        let hit = holds(&store.state().await, victim);
        store
            .goes_on(
                PAUSE_AT_MOST,
                &format!("stop {stop}, {}", if hit { "of the holder" } else { "of a waiter" }),
            )
            .await;
        holders_stopped += usize::from(hit);
        victim.resume();
        store.goes_on(PAUSE_AT_MOST, &format!("the end of stop {stop}")).await;
    }
    let mut chronicle = Chronicle::default();
    for taker in &mut crowd {
        taker.kill();
        chronicle.add(taker, None).await;
    }
    let (_, last) = store.record().await;
    chronicle.check(last.parse().expect("a number"), CROWD);
    let is_stale = |refused: &&String| refused.starts_with("Stale") || refused.starts_with("Lost");
    let strange: Vec<&String> = chronicle.refused.iter().filter(|refused| !is_stale(refused)).collect();
    assert!(strange.is_empty(), "nothing but stale tokens is refused: {strange:?}");
    assert!(chronicle.slept_through > 0, "of {holders_stopped} stopped holders none slept through its TTL");
}
