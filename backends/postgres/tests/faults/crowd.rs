//! Several who take one lock in turns and count in its record, while something happens to them; and what they saw.

use std::time::Duration;

use ringfence::{Guard, Locks};
use ringfence_core::{BootInstant, Clock, Effect, Error, ErrorKind, Retry, SystemClock};
use ringfence_testkit::{Hold, check_exclusive};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::stage::{NAME, locks, within};

/// Who takes the lock until it is told to stop.
pub(crate) struct Crowd {
    members: JoinSet<Seen>,
    stop: watch::Sender<bool>,
}

/// What one of them saw, or all of them.
#[derive(Default)]
pub(crate) struct Seen {
    holds: Vec<Hold>,
    /// How often it added one to the record, for certain.
    counted: u64,
    /// How often it may have.
    doubtful: u64,
}

/// This instant, if the guard held at it.
fn provable(guard: &Guard) -> Option<BootInstant> {
    // The clock first: what can be proven after an instant was true at it.
    let at = SystemClock::new().now();
    guard.is_held().then_some(at)
}

/// An outage may be the end of any call, which then says whether to try again.
fn is_of_the_outage(error: &Error) {
    let said = (error.kind(), error.retry());
    assert!(
        said == (ErrorKind::Unavailable, Retry::Later)
            || [ErrorKind::Stale, ErrorKind::Lost].contains(&error.kind()),
        "{error:?}"
    );
}

impl Crowd {
    /// So many, each with connections of its own.
    pub(crate) async fn gathers(url: &str, members: usize, ttl: Duration) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut crowd = JoinSet::new();
        for _ in 0..members {
            let (locks, stopped) = (locks(url).await, stopped.clone());
            crowd.spawn(takes_turns(locks, ttl, stopped));
        }
        Self { members: crowd, stop }
    }

    /// Waits until everybody is done, and checks what they saw: no two held at a time, tokens rise, and nobody's sum is lost.
    /// Says how often they held.
    pub(crate) async fn disperses(self, url: &str) -> usize {
        self.stop.send_replace(true);
        let mut all = Seen::default();
        for seen in within("the end of their turns", self.members.join_all()).await {
            all.holds.extend(seen.holds);
            all.counted += seen.counted;
            all.doubtful += seen.doubtful;
        }
        let holds = all.holds.len();
        if let Err(contradiction) = check_exclusive(all.holds) {
            panic!("{contradiction}");
        }
        let number = number_in_record(&locks(url).await).await;
        let sums = all.counted..=all.counted + all.doubtful;
        assert!(sums.contains(&number), "{number} in the record, where they added {sums:?}");
        holds
    }
}

async fn number_in_record(locks: &Locks) -> u64 {
    let record = locks.record(NAME).expect("a name").read().await.expect("an answer");
    record.map_or(0, |record| std::str::from_utf8(&record.value).expect("text").parse().expect("a number"))
}

async fn takes_turns(locks: Locks, ttl: Duration, stopped: watch::Receiver<bool>) -> Seen {
    let mut seen = Seen::default();
    let record = locks.record(NAME).expect("a name");
    while !*stopped.borrow() {
        let guard = match locks.lock(NAME).ttl(ttl).acquire().await {
            Ok(guard) => guard,
            Err(error) => {
                is_of_the_outage(&error);
                assert_eq!(error.effect(), Effect::None, "what came of it is undone: {error:?}");
                continue;
            }
        };
        let Some(from) = provable(&guard) else { continue };
        let token = guard.token();
        let added = async {
            let opened = record.open(token).await?;
            let number: u64 = opened.record.map_or(0, |record| {
                std::str::from_utf8(&record.value).expect("text").parse().expect("a number")
            });
            record.write(token, (number + 1).to_string()).await
        };
        match added.await {
            Ok(_) => seen.counted += 1,
            Err(error) => {
                is_of_the_outage(&error);
                seen.doubtful += u64::from(error.effect() == Effect::Unknown);
            }
        }
        let until = provable(&guard).unwrap_or(from);
        seen.holds.push(Hold { token, from, until });
        if let Err(error) = guard.release().await {
            is_of_the_outage(&error);
        }
    }
    seen
}
