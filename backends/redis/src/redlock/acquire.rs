//! How a lease comes about: it is taken on a quorum, marked with its number on a quorum, where these have not given it all the
//! same one already, and only then granted.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Agreement, Attempt, Backoff, BootInstant, Contention, Effect, Error, ErrorKind,
    FencingToken, HolderInfo, Lease, LeaseKey, Mode, Nonce, Result, Ttl, Wait,
};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::nodes::Round;
use super::{Redlock, node_ttl, patience};
use crate::backend::{Answer, Mark, Waits};
use crate::keys::LockKeys;

/// The pauses of those who wait: there is no line, so they ask again and again.
const PAUSE_FIRST: Duration = Duration::from_millis(8);
const PAUSE_MOST: Duration = Duration::from_millis(250);

/// By how many microseconds the number that the nodes are asked for is ahead of what their clocks say, as far as we know: by so
/// much more a request may take to one of them than to another. Nothing but the second round depends on it.
const TAKE_AHEAD: u64 = 2000;

/// By how many microseconds the next number is ahead of one that turned out to be too low.
const MARK_AHEAD: u64 = 1000;

/// What came of one attempt.
enum Tried {
    Granted(Lease),
    Busy(Contention),
    /// There was no quorum, of those who answer. It may be there for the next attempt.
    Unavailable(Error),
}

impl Redlock {
    pub(super) async fn acquire(self: Arc<Self>, mut request: AcquireRequest) -> Result<Attempt> {
        let mut undone = Vec::new();
        let answer = self.seek(&mut request, &mut undone).await;
        if !matches!(answer, Ok(Attempt::Granted(_))) {
            // Nothing is left on any node that answers in time. The others are seen to in the background.
            let undoing = async {
                for undone in undone {
                    let _ = undone.await;
                }
            };
            let _ = tokio::time::timeout(patience(request.ttl), undoing).await;
        }
        answer
    }

    /// Makes attempts for as long as the request waits.
    async fn seek(
        self: &Arc<Self>,
        request: &mut AcquireRequest,
        undone: &mut Vec<JoinHandle<()>>,
    ) -> Result<Attempt> {
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MOST);
        let mut contention = Contention::default();
        let mut last_seen: Option<BootInstant> = None;
        for attempt in 1.. {
            let sent = self.clock.now();
            if attempt > 1 {
                // What is late of an attempt that was undone, be it a take or the undoing itself, cannot touch this one.
                request.nonce = Nonce::random();
            }
            undone.retain(|undone| !undone.is_finished());
            match self.attempt(request, attempt, undone).await? {
                Tried::Granted(lease) => return Ok(Attempt::Granted(lease)),
                Tried::Busy(others) => {
                    (contention, last_seen) = (others, Some(sent));
                }
                // Nodes that are away for a moment end no wait.
                Tried::Unavailable(error)
                    if last_seen
                        .is_some_and(|seen| sent.saturating_since(seen) < request.ttl.as_duration()) =>
                {
                    tracing::debug!(%error, "a waiter finds no quorum");
                }
                Tried::Unavailable(error) => return Err(error),
            }
            let Wait::Until(deadline) = request.wait else { break };
            let again = self.clock.now().saturating_add(backoff.pause()).min(deadline);
            while let Some(nap) = self.clock.nap(again) {
                tokio::select! {
                    biased;
                    () = &mut request.abandoned => return Ok(Attempt::Busy(contention)),
                    () = tokio::time::sleep(nap) => {}
                }
            }
            if self.clock.now() >= deadline {
                break;
            }
        }
        Ok(Attempt::Busy(contention))
    }

    /// One attempt: a round, or two. Errors where the request must not go on.
    async fn attempt(
        self: &Arc<Self>,
        request: &AcquireRequest,
        number: u32,
        undone: &mut Vec<JoinHandle<()>>,
    ) -> Result<Tried> {
        let mut attempt = Take::begin(self, request)?;
        let tried = attempt.try_it(request, number).await;
        match tried {
            Ok(Tried::Granted(_)) => attempt.held.fill(Held::Nothing),
            _ => undone.extend(attempt.undo()),
        }
        tried
    }

    /// Sees to the nodes that a grant without a second round did not wait for.
    async fn settle(
        self: Arc<Self>,
        mut rest: Round<Answer>,
        keys: Arc<LockKeys>,
        nonce: Nonce,
        ttl: Ttl,
        number: u64,
    ) {
        while let Some((node, answer)) = rest.next().await {
            let given = if let Ok(Answer::Granted { number, .. }) = answer { Some(number) } else { None };
            if Held::by(&answer) == Held::Nothing || given == Some(number) {
                continue;
            }
            let (node, keys) = (Arc::clone(self.nodes.get(node)), Arc::clone(&keys));
            self.nodes.runtime.spawn(async move {
                // One that gave another number knows the lease by the right one from now on. One that does not say must not take
                // the lock when that has been given back.
                if given.is_none() || node.client.mark(&keys, nonce, number).await.is_err() {
                    node.client.withdraw(&keys, nonce, ttl).await;
                }
            });
        }
    }
}

impl Held {
    /// What an answer to the first round says.
    fn by(answer: &Result<Answer>) -> Self {
        match answer {
            Ok(Answer::Granted { .. }) => Self::Taken,
            Ok(Answer::Busy(_) | Answer::Waits(..) | Answer::Gone) => Self::Nothing,
            Ok(Answer::Unconfirmed(error)) | Err(error) if error.effect() == Effect::None => Self::Nothing,
            Ok(Answer::Unconfirmed(_)) | Err(_) => Self::Unknown,
        }
    }
}

/// What one attempt has on the nodes. What is left of it when it is dropped is undone in the background.
struct Take<'a> {
    redlock: &'a Arc<Redlock>,
    keys: Arc<LockKeys>,
    nonce: Nonce,
    ttl: Ttl,
    /// For each node, what there is to undo.
    held: Vec<Held>,
    /// For each node, what it answers to the first round, however late.
    told: Vec<oneshot::Receiver<Held>>,
    /// Whether a mark may be under way.
    may_be_marked: bool,
}

/// What is known of an attempt on a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Taken,
    /// It was asked for, and there is no answer yet.
    Asked,
    /// The answer was lost, or did not come in time.
    Unknown,
}

impl<'a> Take<'a> {
    fn begin(redlock: &'a Arc<Redlock>, request: &AcquireRequest) -> Result<Self> {
        let keys = Arc::new(redlock.keys.of(&request.name));
        let held = vec![Held::Nothing; redlock.nodes.count()];
        let (nonce, ttl) = (request.nonce, node_ttl(request.ttl)?);
        Ok(Self { redlock, keys, nonce, ttl, held, told: Vec::new(), may_be_marked: false })
    }

    async fn try_it(&mut self, request: &AcquireRequest, attempt: u32) -> Result<Tried> {
        let Redlock { nodes, clock, .. } = &**self.redlock;
        let sent = clock.now();
        let needed = nodes.needed(limit(request.mode));
        let (round, rest) = self.take(request, needed, sent).await;
        let took = || clock.now().saturating_since(sent);
        tracing::debug!(
            attempt,
            nodes = nodes.count(),
            needed,
            taken = round.numbers.len(),
            busy = round.busy,
            failed = round.failures.len(),
            took = ?took(),
            "asked all nodes"
        );
        if round.numbers.len() < needed {
            return Ok(if round.failures.len() > nodes.count() - needed {
                Tried::Unavailable(nodes.too_few(needed, round.failures))
            } else {
                Tried::Busy(Contention::new(round.holders, 0))
            });
        }
        let answered = round.numbers.len() + round.busy;
        let (number, rest) = if let Some(number) = round.agreed() {
            (number, Some(rest))
        } else {
            drop(rest);
            (self.mark(round.highest(), needed).await?, None)
        };
        let token = FencingToken::of_grant(number, request.nonce)?;
        let agreement = Agreement::new(answered, nodes.count(), took(), attempt);
        let key = LeaseKey::new(request.name.clone(), request.nonce, request.ttl);
        let lease = Lease::new(key, token, sent).agreed(agreement);
        // Whatever happened meanwhile, to the nodes or to this process: nobody gets a lease that is over.
        if clock.now() >= lease.deadline() {
            let why = format!("a quorum agreed after {:?}, when the TTL of {} was over", took(), request.ttl);
            return Err(Error::new(
                ErrorKind::Unavailable,
                why + "; ask for a longer one, or look at the nodes",
            ));
        }
        if let Some(rest) = rest {
            let (redlock, keys) = (Arc::clone(self.redlock), Arc::clone(&self.keys));
            nodes.runtime.spawn(redlock.settle(rest, keys, self.nonce, self.ttl, number));
        }
        Ok(Tried::Granted(lease))
    }

    /// The first round: takes the lock on all nodes, and waits for the answers that decide. Also returns those that it did not
    /// wait for.
    ///
    /// All nodes are asked for one number that is above what each would give by itself, if our guess of their clocks is right and
    /// nobody else has been given a higher one.
    async fn take(
        &mut self,
        request: &AcquireRequest,
        needed: usize,
        sent: BootInstant,
    ) -> (Taken, Round<Answer>) {
        let nodes = &self.redlock.nodes;
        let time = nodes.every().filter_map(|node| nodes.get(node).time(sent)).max();
        let least = time.map(|time| time.saturating_add(TAKE_AHEAD));
        let mut ask = AcquireRequest::new(
            request.name.clone(),
            request.mode,
            self.ttl,
            Wait::No,
            HolderInfo::clone(&request.holder),
        );
        ask.nonce = self.nonce;
        let ask = Arc::new(ask);
        self.held.fill(Held::Asked);
        let told = RefCell::new(Vec::new());
        let mut round = nodes.ask(nodes.every(), patience(request.ttl), |node| {
            let (ask, keys) = (Arc::clone(&ask), Arc::clone(&self.keys));
            let (tell, is_told) = oneshot::channel();
            told.borrow_mut().push(is_told);
            async move {
                let answer = node.client.take(&ask, &keys, least).await;
                if let Ok(Answer::Granted { time: Some(time), .. }) = answer {
                    node.tells_time(sent, time);
                }
                // Nobody listens, unless it comes when the attempt is over.
                let _ = tell.send(Held::by(&answer));
                answer
            }
        });
        self.told = told.into_inner();
        let mut taken = Taken::default();
        while taken.numbers.len() < needed
            && nodes.count() - taken.busy - taken.failures.len() >= needed
            && let Some((node, answer)) = round.next().await
        {
            self.held[node] = Held::by(&answer);
            match answer {
                Ok(Answer::Granted { number, .. }) => taken.numbers.push(number),
                Ok(Answer::Busy(others) | Answer::Waits(Waits { contention: others, .. })) => {
                    taken.busy += 1;
                    let news = others.holders.into_iter().filter(|holder| !taken.holders.contains(holder));
                    let news: Vec<HolderInfo> = news.collect();
                    taken.holders.extend(news);
                }
                // Only a place in line can be gone, and nobody stands in one.
                Ok(Answer::Gone) => taken.busy += 1,
                Ok(Answer::Unconfirmed(error)) | Err(error) => taken.failures.push(error),
            }
        }
        (taken, round)
    }

    /// The second round: raises the counters to a number, and gives it to what was taken. What is late in the first round is
    /// taken, if at all, before it is marked.
    ///
    /// A mark counts where nobody else can have been given its number or a higher one. Of two grants the later one to be marked
    /// on a node that they have in common so has the higher number, whatever the clocks did. Only who shares the lock can find
    /// that another one was faster; then the number is too low, and a higher one is marked.
    async fn mark(&mut self, highest: u64, needed: usize) -> Result<u64> {
        self.may_be_marked = true;
        let (redlock, patience, mut number) = (self.redlock, patience(self.ttl), highest);
        let until = redlock.clock.now().saturating_add(patience);
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_MOST);
        while let Some(known) = self.mark_once(number, needed).await? {
            let told = redlock.clock.now();
            if told >= until {
                let why = format!("for {patience:?} others were given a higher number each time; try again");
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
            // Those who share a lock and come together are told so together. Who pauses for longer marks a higher number, so that
            // nobody is overtaken again.
            tokio::time::sleep(pauses.pause()).await;
            let later = redlock.clock.now().saturating_since(told).as_micros();
            number = known.max(number) + MARK_AHEAD + u64::try_from(later).unwrap_or(u64::MAX >> 16);
        }
        Ok(number)
    }

    /// `Some`: the number is too low, because a node knows this one.
    async fn mark_once(&mut self, number: u64, needed: usize) -> Result<Option<u64>> {
        let nodes = &self.redlock.nodes;
        let whom: Vec<usize> = nodes.every().filter(|&node| self.held[node] != Held::Nothing).collect();
        let (nonce, ttl) = (self.nonce, self.ttl);
        let mut left = whom.len();
        let mut round = nodes.ask(whom, patience(ttl), |node| {
            let keys = Arc::clone(&self.keys);
            async move {
                let marked = node.client.mark(&keys, nonce, number).await;
                if matches!(marked, Err(_) | Ok(Mark::NotTaken)) {
                    // It was not taken, or not yet.
                    let runtime = node.client.runtime.clone();
                    runtime.spawn(async move { node.client.withdraw(&keys, nonce, ttl).await });
                }
                marked
            }
        });
        let (mut marked, mut known, mut failures) = (0, Vec::new(), Vec::new());
        while marked < needed
            && marked + known.len() + left >= needed
            && let Some((_, answer)) = round.next().await
        {
            left -= 1;
            match answer {
                Ok(Mark::Made) => marked += 1,
                Ok(Mark::TooLow(higher)) => known.push(higher),
                Ok(Mark::NotTaken) => {}
                Err(error) => failures.push(error),
            }
        }
        if marked >= needed {
            return Ok(None);
        }
        if marked + known.len() >= needed {
            return Ok(known.into_iter().max());
        }
        let why = format!("{needed} of {} nodes agreed, and then did not confirm it", nodes.count());
        let error = Error::new(ErrorKind::Unavailable, why + ": they lost it, or cannot be reached any more");
        Err(match failures.pop() {
            Some(failure) => error.because(failure),
            None => error,
        })
    }

    /// Undoes it on all nodes, in tasks of their own that go on until they are answered, or until its end. Returns those of the
    /// nodes that may answer soon.
    fn undo(&mut self) -> Vec<JoinHandle<()>> {
        let Self { redlock, keys, nonce, ttl, held, told, may_be_marked } = self;
        let mut undone = Vec::new();
        for (number, (held, told)) in held.iter_mut().zip(told.drain(..)).enumerate() {
            let known = std::mem::replace(held, Held::Nothing);
            if known == Held::Nothing {
                continue;
            }
            let (node, keys) = (Arc::clone(redlock.nodes.get(number)), Arc::clone(keys));
            let (nonce, ttl, may_be_marked) = (*nonce, *ttl, *may_be_marked);
            let undoing = redlock.nodes.runtime.spawn(async move {
                if !may_be_marked {
                    let known = match known {
                        Held::Asked => told_in_time(told, patience(ttl)).await,
                        known => known,
                    };
                    // What is there, or is not, cannot come late, and no mark is to be left behind against that.
                    let is_over = match known {
                        Held::Nothing => true,
                        Held::Taken => node.client.give_back(&keys, nonce).await.is_ok(),
                        Held::Asked | Held::Unknown => false,
                    };
                    if is_over {
                        return;
                    }
                }
                node.client.withdraw(&keys, nonce, ttl).await;
            });
            if known != Held::Unknown {
                undone.push(undoing);
            }
        }
        undone
    }
}

/// What a node answers to the first round, if it does so in time.
async fn told_in_time(told: oneshot::Receiver<Held>, patience: Duration) -> Held {
    tokio::time::timeout(patience, told).await.ok().and_then(Result::ok).unwrap_or(Held::Unknown)
}

impl Drop for Take<'_> {
    fn drop(&mut self) {
        drop(self.undo());
    }
}

/// What the first round came to.
#[derive(Default)]
struct Taken {
    /// What the nodes that took it would number it.
    numbers: Vec<u64>,
    /// How many have somebody else there, and whom.
    busy: usize,
    holders: Vec<HolderInfo>,
    failures: Vec<Error>,
}

impl Taken {
    /// The number, where all gave the same one. Each gave it to this nonce and to nobody before, and keeps no lower one, which is
    /// all that a mark with it would come to.
    fn agreed(&self) -> Option<u64> {
        let (first, others) = self.numbers.split_first()?;
        others.iter().all(|number| number == first).then_some(*first)
    }

    /// Each node answers with a number above every one that it knows of, so this one is above all that a quorum knows.
    fn highest(&self) -> u64 {
        self.numbers.iter().copied().max().unwrap_or_default()
    }
}

/// How many leases of a mode there may be at a time beside each other that exclude one more.
fn limit(mode: Mode) -> u64 {
    match mode {
        Mode::Exclusive | Mode::Shared => 1,
        Mode::Permit(limit) => limit.get().into(),
    }
}
