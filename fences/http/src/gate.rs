//! Who may pass: marks in a store, and the requests of an older token that are still on their way.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use ringfence_core::{
    BootInstant, BoxFuture, Clock as _, Coalescer, Error, ErrorKind, FencedStore, FencingToken, LockName,
    SystemClock, TokenKey,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::epoch::{Epochs, mark_key};
use crate::header::TokenHeader;
use crate::refusal::Refusal;

/// How long a newer token waits for the requests of an older one, unless you choose otherwise.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(10);

/// How long a request that was cut may take to let go. One whose client does not read its answer is not polled, and cannot.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);

/// For how long a gate may not have heard that a mark was started anew. A token that is refused makes it look at once.
const EPOCH_KNOWN_FOR: Duration = Duration::from_secs(1);

/// The most resources that are remembered when nobody is near. Beyond it the store is asked again.
const REMEMBERED_MAX: usize = 65_536;

/// How many questions about one resource may be under way, and how many requests may share one. With one question a request could
/// wait for all of another before its own; with more than two they are shared by fewer, and asking is what costs the most.
const QUESTIONS_MAX: usize = 2;
const SHARED_MAX: usize = 256;

/// Says whether a gate is alone before its resource, and by which lease: see [`Gate::alone`].
pub type Alone = dyn Fn() -> Option<FencingToken> + Send + Sync;

/// A fence before what knows nothing of tokens: it lets a request through only with a token that is not older than the highest seen.
///
/// The resource is the lock that the request's [header](TokenHeader) names. Its mark is that of the record `gate` of that lock, in
/// any store; where the store checks the lease as well ([`RecordGuard::LiveLease`](ringfence_core::RecordGuard::LiveLease)), a token
/// whose lease is over is refused even if no later one came. Whatever goes wrong with the store, nothing passes.
///
/// # Round trips
/// One to the store for each request, because there may be other gates; see [`alone`](Self::alone). Requests with one token that
/// come while the store is asked share the next one. After a wait for an older token one more. For a resource that it has not heard of for a second, it asks at the same time whether an operator has started the mark anew ([`Epochs`]).
///
/// # What it cannot promise
/// Between its look at the mark and the resource lies time. A request that has passed cannot be called back: it arrives even if
/// this process is paused in between, and a newer token passes meanwhile at another gate. At this gate a newer token waits until
/// the requests of the older ones are answered, or until the [drain](Self::drain) is over and they are cut.
pub struct Gate {
    store: Arc<dyn FencedStore>,
    drain: Duration,
    key: Option<TokenKey>,
    alone: Option<Box<Alone>>,
    /// Those that somebody is near, and others that are remembered.
    resources: Mutex<HashMap<LockName, Arc<Resource>>>,
}

impl Gate {
    /// A gate whose marks are kept in this store, as in `Gate::new(Arc::new(locks.clone()))` of a `Locks` of the hall.
    pub fn new(store: Arc<dyn FencedStore>) -> Self {
        Self { store, drain: DRAIN_DEFAULT, key: None, alone: None, resources: Mutex::default() }
    }

    /// How long a newer token waits for the requests of an older one before they are cut: [`DRAIN_DEFAULT`] unless you choose.
    #[must_use]
    pub fn drain(self, drain: Duration) -> Self {
        Self { drain, ..self }
    }

    /// Takes only tokens that are sealed with this key.
    #[must_use]
    pub fn key(self, key: TokenKey) -> Self {
        Self { key: Some(key), ..self }
    }

    /// Answers from memory while this gate is alone, so that only a token that it has not seen costs a round trip.
    ///
    /// `alone` says by which exclusive lease that can be proven right now, as in `|| guard.is_held().then(|| guard.token())`. While it
    /// says `None` every request is refused: another gate may be alone then, and remember what this one does not know. So all gates
    /// before one resource have to be alone in turn, by the same lock, or none. What was learned under one lease is not
    /// believed under the next. Call [`cut`](Self::cut) when the lease is lost.
    #[must_use]
    pub fn alone(self, alone: impl Fn() -> Option<FencingToken> + Send + Sync + 'static) -> Self {
        Self { alone: Some(Box::new(alone)), ..self }
    }

    /// Cuts every request that has passed and is not answered yet.
    pub fn cut(&self) {
        for resource in self.resources().values() {
            if let Some(passing) = &resource.state().passing {
                passing.requests.cut.send_replace(true);
            }
        }
    }

    /// Lets a request through by its header, once no request of an older token is under way here any more.
    ///
    /// # Cancel safety
    /// The mark may have been raised; nothing else is left behind.
    pub async fn admit(&self, headers: &HeaderMap) -> Result<Pass, Refusal> {
        self.admit_holder(&Self::header(headers)?).await
    }

    pub(crate) fn header(headers: &HeaderMap) -> Result<TokenHeader, Refusal> {
        let header = TokenHeader::of(headers).map_err(|error| Refusal::malformed(&error))?;
        header.ok_or_else(Refusal::missing)
    }

    pub(crate) async fn admit_holder(&self, header: &TokenHeader) -> Result<Pass, Refusal> {
        let (name, shown) = (header.name(), header.token());
        let about = |refusal: Refusal| refusal.about(name, shown.token());
        let token = match &self.key {
            Some(key) => key.verify(name, &shown).map_err(|error| about(Refusal::forged(&error)))?,
            None => shown.token(),
        };
        self.admit_token(name, token).await.map_err(about)
    }

    async fn admit_token(&self, name: &LockName, token: FencingToken) -> Result<Pass, Refusal> {
        let resource = self.enter(name);
        let lease = self.lease()?;
        loop {
            // Again after each wait: a newer token may have passed at another gate meanwhile.
            let asked = self.ask(&resource, name, token, lease).await;
            let epoch = asked.map_err(|error| Refusal::by_store(&error))?;
            if self.lease()? != lease {
                return Err(Refusal::standing_by());
            }
            let raised = resource.raised.notified();
            let older = match resource.pass(token, lease, epoch)? {
                Turn::Now(cut, under_way) => {
                    let resource = Arc::clone(&resource);
                    return Ok(Pass(Arc::new(Passed {
                        token,
                        cut,
                        _under_way: under_way,
                        _resource: resource,
                    })));
                }
                Turn::After(older) => older,
                Turn::InAnotherEpoch => continue,
            };
            tokio::select! {
                () = older.under_way.closed() => {}
                () = raised => {}
                () = sleep(self.drain) => {
                    tracing::warn!(%name, %token, "requests of an older token are cut: they took longer than the drain");
                    older.cut.send_replace(true);
                    // What has not let go by then has been told all the same.
                    let _ = timeout(LET_GO_WITHIN, older.under_way.closed()).await;
                    resource.leave_behind(&older);
                }
            }
        }
    }

    /// Has the store raise the mark, unless this gate is alone and knows it, and returns the epoch of that mark.
    async fn ask(
        &self,
        resource: &Resource,
        name: &LockName,
        token: FencingToken,
        lease: Option<FencingToken>,
    ) -> Result<u64, Error> {
        let (guess, is_fresh, is_known) = {
            let state = resource.state();
            let now = SystemClock::new().now();
            let is_fresh = state.epoch_read.is_some_and(|read| now.saturating_since(read) < EPOCH_KNOWN_FOR);
            (state.epoch, is_fresh, lease.is_some() && state.known == Some((lease, token)))
        };
        let open = async |epoch| {
            let answer = resource.questions.request(Question { epoch, token }).await;
            answer.unwrap_or_else(|| {
                Err(Error::new(ErrorKind::Unavailable, "whoever asked the store went away"))
            })
        };
        let look = async || {
            let read = SystemClock::new().now();
            Ok::<_, Error>(resource.learn(Epochs::read(&*self.store, name).await?.epoch, read))
        };
        let guessed = async { if is_known { Ok(()) } else { open(guess).await } };
        let (opened, epoch) = if is_fresh {
            match guessed.await {
                Err(error) if matches!(error.kind(), ErrorKind::Stale | ErrorKind::TokenCollision) => {
                    (Err(error), look().await?)
                }
                opened => (opened, guess),
            }
        } else {
            let (opened, epoch) = tokio::join!(guessed, look());
            (opened, epoch?)
        };
        if epoch == guess {
            opened?;
        } else {
            open(epoch).await?;
        }
        Ok(epoch)
    }

    /// By which lease this gate is alone; `None` where it need not be.
    fn lease(&self) -> Result<Option<FencingToken>, Refusal> {
        let Some(alone) = &self.alone else { return Ok(None) };
        alone().map(Some).ok_or_else(Refusal::standing_by)
    }

    /// The resource's memory, which stays while a request is anywhere near it: for as long as somebody has this.
    fn enter(&self, name: &LockName) -> Arc<Resource> {
        let mut resources = self.resources();
        if let Some(known) = resources.get(name) {
            return Arc::clone(known);
        }
        if resources.len() >= REMEMBERED_MAX {
            // Nobody comes near meanwhile, because that takes the same lock.
            resources.retain(|_, known| Arc::strong_count(known) > 1);
        }
        let new = Arc::new(Resource::new(Arc::clone(&self.store), name.clone()));
        resources.insert(name.clone(), Arc::clone(&new));
        new
    }

    fn resources(&self) -> MutexGuard<'_, HashMap<LockName, Arc<Resource>>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { drain, key, .. } = self;
        f.debug_struct("Gate").field("drain", drain).field("key", key).finish_non_exhaustive()
    }
}

/// A request that has passed, for as long as somebody has this: its body, its answer and the answer's body each have one.
#[derive(Clone, Debug)]
pub struct Pass(Arc<Passed>);

#[derive(Debug)]
struct Passed {
    token: FencingToken,
    cut: watch::Receiver<bool>,
    /// As long as one of these is there, a newer token waits.
    _under_way: watch::Receiver<()>,
    /// After that: whoever waits for the last request of a token finds its resource still there.
    _resource: Arc<Resource>,
}

impl Pass {
    /// The token that it passed with.
    pub fn token(&self) -> FencingToken {
        self.0.token
    }

    /// Resolves when the request is to be cut: a newer token has waited long enough, or the gate is no longer alone. The future
    /// does not keep the pass.
    ///
    /// # Cancel safety
    /// Cancel safe: a cut stays one.
    pub fn cut(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut cut = self.0.cut.clone();
        async move {
            // The sender goes only after it has said so, or after every pass is gone.
            let _ = cut.wait_for(|cut| *cut).await;
        }
    }

    /// Whether that is so already.
    pub(crate) fn is_cut(&self) -> bool {
        *self.0.cut.borrow()
    }
}

/// What this gate knows of one resource.
#[derive(Debug)]
struct Resource {
    state: Mutex<State>,
    /// What the store is asked.
    questions: Coalescer<Question, Result<(), Error>>,
    /// A newer token came: whoever waits with an older one need not.
    raised: Notify,
}

/// Whether the store lets a token through in this epoch.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Question {
    epoch: u64,
    token: FencingToken,
}

#[derive(Debug, Default)]
struct State {
    /// The highest token that the store let through here. The answer for a lower one may still be on its way.
    mark: Option<FencingToken>,
    /// The lease by which this gate was alone when the store last answered, and what it let through then.
    known: Option<(Option<FencingToken>, FencingToken)>,
    /// How often the mark was started anew, and when that was read.
    epoch: u64,
    epoch_read: Option<BootInstant>,
    /// The requests under way. They are all of one token, because a newer one waits for them.
    passing: Option<Passing>,
}

/// The requests of one token that are under way.
#[derive(Debug)]
struct Passing {
    token: FencingToken,
    requests: Arc<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    /// That they are to end. Whoever only wants to hear of it is not under way.
    cut: watch::Sender<bool>,
    /// Each has a receiver, so it is known when the last one has gone.
    under_way: watch::Sender<()>,
}

impl Requests {
    /// One more is under way. While the resource's state is locked, or a newer token could slip through in between.
    fn join(&self) -> Turn {
        Turn::Now(self.cut.subscribe(), self.under_way.subscribe())
    }
}

/// When a request may pass.
enum Turn {
    Now(watch::Receiver<bool>, watch::Receiver<()>),
    After(Arc<Requests>),
    /// The mark was started anew since the store was asked.
    InAnotherEpoch,
}

impl Resource {
    fn new(store: Arc<dyn FencedStore>, name: LockName) -> Self {
        let ask = move |questions| ask_once(Arc::clone(&store), name.clone(), questions);
        // Without a runtime nobody is left who could be served.
        let adopt = |asking| drop(Handle::try_current().map(|runtime| runtime.spawn(asking)));
        Self {
            state: Mutex::default(),
            questions: Coalescer::new(QUESTIONS_MAX, SHARED_MAX, ask, adopt),
            raised: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in which epoch the store says it is, and returns the latest that is known.
    fn learn(&self, epoch: u64, read: BootInstant) -> u64 {
        let mut state = self.state();
        if epoch > state.epoch {
            (state.epoch, state.mark, state.known) = (epoch, None, None);
        }
        state.epoch_read = Some(read);
        state.epoch
    }

    /// The turn of a token that the store lets through in this epoch.
    fn pass(&self, token: FencingToken, lease: Option<FencingToken>, epoch: u64) -> Result<Turn, Refusal> {
        let mut state = self.state();
        if state.epoch != epoch {
            return Ok(Turn::InAnotherEpoch);
        }
        match state.mark {
            Some(mark) if mark == token => {}
            Some(mark) if mark.sequence() >= token.sequence() => return Err(Refusal::overtaken(token, mark)),
            _ => {
                state.mark = Some(token);
                self.raised.notify_waiters();
            }
        }
        state.known = Some((lease, token));
        match &state.passing {
            Some(Passing { token: same, requests }) if *same == token && !*requests.cut.borrow() => {
                Ok(requests.join())
            }
            Some(Passing { token: other, requests })
                if *other != token && !requests.under_way.is_closed() =>
            {
                Ok(Turn::After(Arc::clone(requests)))
            }
            _ => {
                let requests = Arc::<Requests>::default();
                let now = requests.join();
                state.passing = Some(Passing { token, requests });
                Ok(now)
            }
        }
    }

    /// Waits no longer for requests that were cut and have not let go.
    fn leave_behind(&self, cut: &Arc<Requests>) {
        let mut state = self.state();
        if state.passing.as_ref().is_some_and(|passing| Arc::ptr_eq(&passing.requests, cut)) {
            state.passing = None;
        }
    }
}

/// Asks each question once, however many requests have it, and all of them at a time.
fn ask_once(
    store: Arc<dyn FencedStore>,
    name: LockName,
    questions: Vec<Question>,
) -> BoxFuture<'static, Vec<Result<(), Error>>> {
    Box::pin(async move {
        // Most of the time there is no other, and nobody has to be found.
        if questions.iter().all(|question| *question == questions[0]) {
            let (_, answer) = ask_one(store, name, questions[0]).await;
            return vec![answer; questions.len()];
        }
        let mut others = JoinSet::new();
        let mut different = Vec::new();
        for question in &questions[1..] {
            if *question != questions[0] && !different.contains(question) {
                different.push(*question);
                let (store, name) = (Arc::clone(&store), name.clone());
                others.spawn(ask_one(store, name, *question));
            }
        }
        let first = ask_one(store, name, questions[0]).await;
        let mut answers = others.join_all().await;
        answers.push(first);
        let answer = |question| answers.iter().find(|(asked, _)| asked == question).expect("all were asked");
        questions.iter().map(|question| answer(question).1.clone()).collect()
    })
}

async fn ask_one(
    store: Arc<dyn FencedStore>,
    name: LockName,
    question: Question,
) -> (Question, Result<(), Error>) {
    let opened = store.open(&mark_key(&name, question.epoch), question.token).await;
    (question, opened.map(drop))
}

impl Refusal {
    /// This gate has let a later token through, while the store's answer for this one was on its way.
    fn overtaken(token: FencingToken, mark: FencingToken) -> Self {
        let kind =
            if mark.sequence() == token.sequence() { ErrorKind::TokenCollision } else { ErrorKind::Stale };
        let why = format!(
            "token {token} was overtaken: the gate has seen {mark}; stop, and acquire the lock again"
        );
        Self::by_store(&Error::new(kind, why).with_mark(mark))
    }
}

#[cfg(test)]
mod tests {
    use ringfence::Locks;

    use super::*;

    #[tokio::test]
    async fn who_is_near_is_counted() {
        let locks = Locks::connect("memory:").await.unwrap();
        let guard = locks.lock("a").acquire().await.unwrap();
        let gate = Arc::new(Gate::new(Arc::new(locks.clone())));
        let visits =
            || gate.resources().values().map(|known| Arc::strong_count(known) - 1).collect::<Vec<_>>();
        let first = gate.admit_token(guard.name(), guard.token()).await.unwrap();
        let second = gate.admit_token(guard.name(), guard.token()).await.unwrap();
        drop(first.clone());
        drop(first);
        assert_eq!(visits(), [1], "one is still near");
        drop(second);
        assert_eq!(visits(), [0]);
    }

    #[tokio::test]
    async fn requests_that_ask_together_have_their_own_answers() {
        let locks = Locks::connect("memory:").await.unwrap();
        let old = locks.lock("a").acquire().await.unwrap();
        let name = old.name().clone();
        let late = Question { epoch: 0, token: old.token() };
        old.release().await.unwrap();
        let new = locks.lock("a").acquire().await.unwrap();
        let right = Question { epoch: 0, token: new.token() };
        let answers = ask_once(Arc::new(locks), name, vec![right, late, right, late]).await;
        let passes: Vec<bool> = answers.iter().map(Result::is_ok).collect();
        assert_eq!(passes, [true, false, true, false]);
    }

    #[tokio::test]
    async fn whoever_waits_to_hear_of_a_cut_is_not_waited_for() {
        let locks = Locks::connect("memory:").await.unwrap();
        let gate = Arc::new(Gate::new(Arc::new(locks.clone())).drain(Duration::from_hours(1)));
        let old = locks.lock("a").acquire().await.unwrap();
        let pass = gate.admit_token(old.name(), old.token()).await.unwrap();
        let mut cut = std::pin::pin!(pass.cut());
        let heard = timeout(Duration::from_millis(1), &mut cut).await;
        assert!(heard.is_err(), "nobody has cut it");
        drop(pass);
        old.release().await.unwrap();
        let new = locks.lock("a").acquire().await.unwrap();
        let newer = timeout(Duration::from_secs(30), gate.admit_token(new.name(), new.token())).await;
        newer.expect("nothing of the older one is under way").unwrap();
    }

    #[tokio::test]
    async fn what_is_remembered_has_a_limit() {
        let locks = Locks::connect("memory:").await.unwrap();
        let guard = locks.lock("a").acquire().await.unwrap();
        let token = guard.token();
        let gate = Arc::new(Gate::new(Arc::new(locks)).alone(move || Some(token)));
        let _near = gate.enter(guard.name());
        for number in 1..REMEMBERED_MAX {
            gate.enter(&number.to_string().parse().unwrap());
        }
        assert_eq!(gate.resources().len(), REMEMBERED_MAX);
        gate.enter(&"one more".parse().unwrap());
        let left: Vec<LockName> = gate.resources().keys().cloned().collect();
        assert_eq!(left.len(), 2, "who is near stays, and the new one comes: {left:?}");
        assert!(left.contains(guard.name()));
    }
}
