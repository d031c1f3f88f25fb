//! One stream of watches for the whole process.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use ringfence_core::Backoff;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::follower::Follower;
use crate::keys::Range;
use crate::line::Place;
use crate::proto::watch_create_request::Filter;
use crate::proto::{
    Event, KeyValue, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse, event,
    watch_request,
};
use crate::servers::{ANSWER_PATIENCE, Servers};

/// The pauses between tries to open the stream.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_secs(1);

/// The shortest time for which a key is held before it is watched, and half of the longest: who gives back sooner costs the server no
/// watch, which is more work for it than the lock.
const HELD_FOR: Duration = Duration::from_millis(50);

/// The watches of a process. It opens a stream when there is something to watch, and again when it breaks.
pub(crate) struct Watches {
    orders: Mutex<Option<mpsc::UnboundedSender<Order>>>,
    next: AtomicI64,
    servers: Arc<Servers>,
    runtime: Handle,
}

/// What is watched, and who listens.
enum Order {
    Watch(i64, What, Ear),
    Cancel(i64),
}

/// Which keys, and which events.
#[derive(Clone, Debug)]
pub(crate) struct What {
    pub(crate) range: Range,
    /// Tells only of what came after this revision. A member that is behind, as when it was cut off from the others, begins with what was:
    /// it tells of the end of a key that has been made anew since.
    pub(crate) after: i64,
    pub(crate) tells: Tells,
}

/// Which events of its keys a watch tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    /// Keys that go.
    Ends,
    /// The same, and how they were when they went.
    LastWords,
    /// Keys that change, and those that go.
    Changes,
    /// Keys that come or change.
    Arrivals,
}

impl What {
    /// One key going, as it was created at this revision.
    pub(crate) fn end_of(key: &[u8], created: i64) -> Self {
        let range = Range { begin: key.to_vec(), end: Vec::new() };
        Self { range, after: created, tells: Tells::Ends }
    }

    /// Whether an event is of what is watched, and not of what was there before.
    fn is_concerned_by(&self, event: &Event) -> bool {
        event.kv.as_ref().is_some_and(|key| key.mod_revision > self.after)
    }
}

/// Who listens.
#[derive(Clone)]
pub(crate) enum Ear {
    /// One that waits, and looks again whenever something may have happened.
    Waiter(Arc<News>),
    /// The same, of its own key, as it was created at this revision: by a change of it in the transaction by which the one ahead leaves, the
    /// turn is given to it.
    Turn(i64, Arc<News>),
    /// One that will hand over to the next one.
    Follower(Arc<Follower>),
    /// One that holds, and wants to know what becomes of its key.
    Holder(Arc<dyn Fn(Word) + Send + Sync>),
}

/// What one that holds is told of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Gone,
    /// Nobody watched it for a while: it has to be looked at.
    Unwatched,
}

/// What one that waits has heard.
#[derive(Debug, Default)]
pub(crate) struct News {
    notify: Notify,
    /// How often something was heard.
    heard: AtomicU64,
    /// The revision from which on everything is heard.
    hears_from: AtomicI64,
    /// Whether one that was directly ahead held alone until it left.
    is_front: AtomicBool,
    /// Notified when one of these has changed.
    turn: Notify,
    /// The revision at which one that was directly ahead left; zero until then.
    left_at: AtomicI64,
    /// The revision at which the own key was changed, and the lease that it lives by since; zero until then.
    changed_at: AtomicI64,
    lives_by: AtomicI64,
}

impl News {
    /// How often something was heard.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// The revision from which on everything is heard. What has happened between an earlier look and that was not.
    pub(crate) fn hears_from(&self) -> i64 {
        self.hears_from.load(Ordering::Acquire)
    }

    /// Whether one that was directly ahead held alone until it left: then nobody is ahead any more.
    pub(crate) fn is_front(&self) -> bool {
        self.is_front.load(Ordering::Acquire)
    }

    /// Waits until there is something to look at.
    pub(crate) async fn next(&self) {
        self.notify.notified().await;
    }

    /// Waits until the one ahead has given the turn to a key that lives by this lease.
    pub(crate) async fn turn(&self, lease: i64) {
        while !self.is_given() || self.lives_by.load(Ordering::Acquire) != lease {
            self.turn.notified().await;
        }
    }

    /// Whether the own key was changed as the one ahead left. A change alone is somebody else's.
    fn is_given(&self) -> bool {
        let changed_at = self.changed_at.load(Ordering::Acquire);
        changed_at != 0 && changed_at == self.left_at.load(Ordering::Acquire)
    }

    fn tell(&self) {
        self.heard.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_one();
    }

    /// One that was ahead is gone.
    fn has_left(&self, revision: i64) {
        self.left_at.store(revision, Ordering::Release);
        self.turn.notify_one();
    }

    /// The own key was changed. What that means is known when it is heard that somebody has left: this alone is nothing to look at.
    fn has_changed(&self, key: &KeyValue) {
        self.lives_by.store(key.lease, Ordering::Release);
        self.changed_at.store(key.mod_revision, Ordering::Release);
        if self.is_given() {
            self.turn.notify_one();
            self.notify.notify_one();
        }
    }
}

/// A watch; dropping it ends it.
pub(crate) struct Watch {
    id: i64,
    orders: mpsc::UnboundedSender<Order>,
}

impl Watches {
    pub(crate) fn new(servers: Arc<Servers>, runtime: Handle) -> Self {
        Self { orders: Mutex::default(), next: AtomicI64::new(1), servers, runtime }
    }

    /// Watches from now on; a holder's key, from when it was held for a moment. It does not wait until the server does: whoever must
    /// not miss anything looks again when it does, and a holder is told to.
    pub(crate) fn watch(&self, what: What, ear: Ear) -> Watch {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut current = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = current.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            self.runtime.spawn(watch_all(Arc::clone(&self.servers), receiver));
            sender
        });
        // The task ends only with us.
        let _ = orders.send(Order::Watch(id, what, ear));
        Watch { id, orders: orders.clone() }
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Cancel(self.id));
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.id).finish()
    }
}

type Listening = HashMap<i64, Listener, RandomState>;

/// A watch, as the server has it or is to have it.
struct Listener {
    what: What,
    ear: Ear,
    /// It is not watched, although it should be: what happens meanwhile nobody tells.
    has_missed: bool,
    /// Whether the stream at hand was asked for it.
    is_asked: bool,
}

/// Keeps the stream open until nobody can order any more.
async fn watch_all(servers: Arc<Servers>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut listening = Listening::default();
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MOST);
    loop {
        // Nobody needs a stream that has nothing to say.
        while listening.is_empty() {
            match orders.recv().await {
                Some(order) => drop(obey(&mut listening, order, None)),
                None => return,
            }
        }
        match watch_on_one_stream(&servers, &mut orders, &mut listening).await {
            Ended::Unused => return,
            Ended::Worked => backoff = Backoff::new(PAUSE_FIRST, PAUSE_MOST),
            Ended::Failed => {}
        }
        // What happens now nobody tells of. Whoever waits looks when it is watched again, at what is in its way alone: if all of them asked
        // whether their turn has come, a thousand of them would keep a server so busy that the next stream breaks as well.
        for listener in listening.values_mut() {
            listener.has_missed = true;
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

enum Ended {
    /// Nobody can order any more.
    Unused,
    /// After it had told something.
    Worked,
    Failed,
}

async fn watch_on_one_stream(
    servers: &Servers,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    listening: &mut Listening,
) -> Ended {
    let Ok(link) = servers.link().await else { return Ended::Failed };
    let (questions, asked) = mpsc::unbounded_channel();
    for (id, listener) in &mut *listening {
        listener.is_asked = true;
        let _ = questions.send(create(*id, &listener.what));
    }
    // Keys that are held and not watched yet: since the last tick, and since the one before.
    let (mut held, mut held_longer) = (Vec::new(), Vec::new());
    let mut ticks = tokio::time::interval(HELD_FOR);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let opening = link.converse("/etcdserverpb.Watch/Watch", UnboundedReceiverStream::new(asked));
    let mut answers: Streaming<WatchResponse> = match tokio::time::timeout(ANSWER_PATIENCE, opening).await {
        Ok(Ok(answers)) => answers,
        failed => {
            if let Ok(Err(error)) = failed {
                tracing::debug!(%error, "the stream of watches does not open");
            }
            servers.leave(&link);
            return Ended::Failed;
        }
    };
    let mut ended = Ended::Failed;
    let left = link.is_left();
    tokio::pin!(left);
    loop {
        tokio::select! {
            answer = answers.message() => {
                let Ok(Some(answer)) = answer else {
                    servers.leave(&link);
                    return ended;
                };
                ended = Ended::Worked;
                match tell(listening, &answer) {
                    Told::Goes => {}
                    Told::Enough => drop(obey(listening, Order::Cancel(answer.watch_id), Some(&questions))),
                    Told::Broken => return ended,
                }
            }
            order = orders.recv() => match order {
                Some(order) => held.extend(obey(listening, order, Some(&questions))),
                None => return Ended::Unused,
            },
            _ = ticks.tick(), if !held.is_empty() || !held_longer.is_empty() => {
                for id in std::mem::replace(&mut held_longer, std::mem::take(&mut held)) {
                    // It may have been given back.
                    if let Some(listener) = listening.get_mut(&id) {
                        listener.is_asked = true;
                        let _ = questions.send(create(id, &listener.what));
                    }
                }
            }
            () = &mut left => return ended,
        }
    }
}

/// Does what it is told, and asks the stream at hand, if there is one. Returns a watch for which that is to be asked later.
fn obey(
    listening: &mut Listening,
    order: Order,
    questions: Option<&mpsc::UnboundedSender<WatchRequest>>,
) -> Option<i64> {
    let question = match order {
        Order::Watch(id, what, ear) => {
            let is_held = matches!(ear, Ear::Holder(_));
            let is_asked = questions.is_some() && !is_held;
            let question = create(id, &what);
            listening.insert(id, Listener { what, ear, has_missed: is_held, is_asked });
            if is_held {
                return Some(id);
            }
            question
        }
        Order::Cancel(id) => {
            // It was cancelled by the server before, or it never had it.
            listening.remove(&id).filter(|listener| listener.is_asked)?;
            let request = Some(watch_request::Request::Cancel(WatchCancelRequest { watch_id: id }));
            WatchRequest { request }
        }
    };
    if let Some(questions) = questions {
        // A stream that has ended is noticed where its answers are read.
        let _ = questions.send(question);
    }
    None
}

fn create(id: i64, What { range, tells, .. }: &What) -> WatchRequest {
    let filters = match tells {
        Tells::Ends | Tells::LastWords => vec![Filter::Noput.into()],
        Tells::Changes => Vec::new(),
        Tells::Arrivals => vec![Filter::Nodelete.into()],
    };
    let request = Some(watch_request::Request::Create(WatchCreateRequest {
        key: range.begin.clone(),
        range_end: range.end.clone(),
        // Without a revision it begins now. One that has passed is served ten times a second, by a loop of the server.
        filters,
        prev_kv: *tells == Tells::LastWords,
        watch_id: id,
    }));
    WatchRequest { request }
}

/// What becomes of a watch that has told something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Goes,
    /// Who listened knows all it wanted to.
    Enough,
    /// The stream cannot be kept: a server ends watches that would begin before what it has compacted, as when it was given a snapshot
    /// after it had been cut off, and does not take their numbers again on the same stream.
    Broken,
}

/// Tells who listens.
fn tell(listening: &mut Listening, answer: &WatchResponse) -> Told {
    let Some(listener) = listening.get_mut(&answer.watch_id) else { return Told::Goes };
    if answer.canceled {
        tracing::debug!(id = answer.watch_id, "a watch was cancelled by the server");
    }
    if answer.canceled && !answer.created {
        return Told::Broken;
    }
    let revision = answer.header.as_ref().map_or(i64::MAX, |header| header.revision);
    let is_news = |event: &Event| listener.what.is_concerned_by(event);
    let is_gone = |event: &Event| is_news(event) && event.r#type() == event::Type::Delete;
    let puts = answer.events.iter().filter(|event| is_news(event) && event.r#type() == event::Type::Put);
    let written = puts.filter_map(|event| event.kv.as_ref());
    let mut told = Told::Goes;
    match &listener.ear {
        Ear::Waiter(news) | Ear::Turn(_, news) => {
            if answer.created {
                news.hears_from.fetch_max(revision, Ordering::AcqRel);
                news.notify.notify_one();
            }
            let held_alone = |event: &Event| event.prev_kv.as_ref().is_some_and(Place::held_alone);
            if answer.events.iter().any(|event| is_gone(event) && held_alone(event)) {
                news.is_front.store(true, Ordering::Release);
            }
            let mut is_told = answer.canceled;
            for event in answer.events.iter().filter(|event| is_news(event)) {
                match (&listener.ear, &event.kv) {
                    (Ear::Turn(created, _), Some(key)) if !is_gone(event) => {
                        if key.create_revision == *created {
                            news.has_changed(key);
                        }
                    }
                    (Ear::Waiter(_), Some(key)) if is_gone(event) => {
                        news.has_left(key.mod_revision);
                        is_told = true;
                    }
                    _ => is_told = true,
                }
            }
            if is_told {
                news.tell();
            }
        }
        Ear::Follower(follower) => {
            if answer.created {
                follower.is_listened_for(revision);
            }
            written.for_each(|key| follower.heard(key));
            if follower.has_heard() {
                told = Told::Enough;
            }
        }
        Ear::Holder(tell) if answer.events.iter().any(is_gone) => tell(Word::Gone),
        // From now on it is watched again, so that nothing comes between the look and the watch.
        Ear::Holder(tell) if answer.created && listener.has_missed => tell(Word::Unwatched),
        Ear::Holder(_) => {}
    }
    listener.has_missed = false;
    if answer.canceled {
        // It does not want to: whoever listens looks now and then.
        listening.remove(&answer.watch_id);
        told = Told::Goes;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: i64 = 7;

    /// The revision at which the key was created.
    const CREATED: i64 = 20;

    /// One that is told of the key's end at this revision.
    fn gone_at(mod_revision: i64, prev_kv: Option<KeyValue>) -> WatchResponse {
        let kv = Some(KeyValue { key: b"key".to_vec(), mod_revision, ..KeyValue::default() });
        let gone = Event { r#type: event::Type::Delete.into(), kv, prev_kv };
        WatchResponse { watch_id: ID, events: vec![gone], ..WatchResponse::default() }
    }

    /// A holder's watch that the server has, and all that the holder was told.
    struct Stage {
        listening: Listening,
        told: Arc<Mutex<Vec<Word>>>,
    }

    impl Stage {
        fn new() -> Self {
            let told = Arc::<Mutex<Vec<Word>>>::default();
            let ear = Ear::Holder(Arc::new({
                let told = Arc::clone(&told);
                move |word| told.lock().unwrap().push(word)
            }));
            let mut listening = Listening::default();
            obey(&mut listening, Order::Watch(ID, What::end_of(b"key", CREATED), ear), None);
            let mut stage = Self { listening, told };
            // What happened since the key was made nobody has told.
            stage.hears(&WatchResponse { created: true, ..WatchResponse::default() }, &[Word::Unwatched]);
            stage
        }

        /// Says whether the stream can be kept.
        fn hears(&mut self, answer: &WatchResponse, expected: &[Word]) -> bool {
            let answer = WatchResponse { watch_id: ID, ..answer.clone() };
            let is_kept = tell(&mut self.listening, &answer) != Told::Broken;
            assert_eq!(std::mem::take(&mut *self.told.lock().unwrap()), expected, "{answer:?}");
            is_kept
        }
    }

    #[test]
    fn a_key_that_is_given_back_at_once_is_never_asked_for() {
        let (questions, mut asked) = mpsc::unbounded_channel();
        let mut listening = Listening::default();
        let ear = Ear::Holder(Arc::new(|_| {}));
        let later =
            obey(&mut listening, Order::Watch(ID, What::end_of(b"key", CREATED), ear), Some(&questions));
        assert_eq!(later, Some(ID));
        assert_eq!(obey(&mut listening, Order::Cancel(ID), Some(&questions)), None);
        assert!(asked.try_recv().is_err() && listening.is_empty());
    }

    #[test]
    fn a_holder_is_told_of_the_end_of_its_key_and_of_none_before() {
        let mut stage = Stage::new();
        assert!(stage.hears(&gone_at(CREATED - 1, None), &[]));
        assert!(stage.hears(&gone_at(CREATED + 1, None), &[Word::Gone]));
    }

    #[test]
    fn a_watch_that_the_server_cancels_costs_the_stream() {
        let mut stage = Stage::new();
        let cancelled = WatchResponse { canceled: true, ..WatchResponse::default() };
        assert!(!stage.hears(&cancelled, &[]) && stage.listening.contains_key(&ID));
        let of_nobody = WatchResponse { watch_id: ID + 1, ..cancelled };
        assert_eq!(tell(&mut stage.listening, &of_nobody), Told::Goes, "we have cancelled that one");
    }

    #[test]
    fn a_waiter_hears_whether_the_one_ahead_has_held_alone() {
        use ringfence_core::{HolderInfo, Mode, Nonce};

        let (nonce, holder) = (Nonce::from_u64(0xff).unwrap(), HolderInfo::new("cron", "web-1", 42).unwrap());
        let before = |mod_revision| KeyValue {
            key: b"lock/694d-0.0".to_vec(),
            create_revision: 7,
            mod_revision,
            value: crate::line::value(Mode::Exclusive, Duration::from_secs(30), nonce, &holder),
            lease: 0x694d,
        };
        for (prev_kv, expected) in [(None, false), (Some(before(7)), false), (Some(before(8)), true)] {
            let news = Arc::new(News::default());
            let mut listening = Listening::default();
            let what = What { tells: Tells::LastWords, ..What::end_of(b"key", CREATED) };
            obey(&mut listening, Order::Watch(ID, what, Ear::Waiter(Arc::clone(&news))), None);
            tell(&mut listening, &gone_at(CREATED - 1, Some(before(8))));
            assert_eq!((news.heard(), news.is_front()), (0, false), "it had the key before");
            let answer = gone_at(CREATED + 1, prev_kv);
            tell(&mut listening, &answer);
            assert_eq!((news.heard(), news.is_front()), (1, expected), "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_waiter_is_given_its_turn_by_a_change_of_its_key_as_the_one_ahead_leaves() {
        const PLACE: i64 = 0x694d;
        const OWN: i64 = ID + 1;
        const TURN: i64 = CREATED + 5;
        for (create_revision, lease, left_at, expected) in [
            (CREATED, PLACE, Some(TURN), true),
            (CREATED, PLACE, None, false),
            (CREATED, PLACE, Some(TURN - 1), false),
            (CREATED, PLACE, Some(TURN + 1), false),
            (CREATED - 2, PLACE, Some(TURN), false),
            (CREATED, 0, Some(TURN), false),
        ] {
            let kv = KeyValue {
                key: b"key".to_vec(),
                create_revision,
                mod_revision: TURN,
                lease,
                ..KeyValue::default()
            };
            let put = Event { r#type: event::Type::Put.into(), kv: Some(kv), prev_kv: None };
            let change = WatchResponse { watch_id: OWN, events: vec![put], ..WatchResponse::default() };
            let leaves = left_at.map(|revision| gone_at(revision, None));
            for changes_first in [true, false] {
                let news = Arc::new(News::default());
                let mut listening = Listening::default();
                let own = What { tells: Tells::Changes, ..What::end_of(b"key", CREATED) };
                obey(&mut listening, Order::Watch(OWN, own, Ear::Turn(CREATED, Arc::clone(&news))), None);
                let ahead = What { tells: Tells::LastWords, ..What::end_of(b"ahead", CREATED - 1) };
                obey(&mut listening, Order::Watch(ID, ahead, Ear::Waiter(Arc::clone(&news))), None);
                let mut answers: Vec<&WatchResponse> = leaves.iter().chain([&change]).collect();
                if changes_first {
                    answers.reverse();
                }
                for answer in answers {
                    assert_eq!(tell(&mut listening, answer), Told::Goes);
                }
                let given = tokio::time::timeout(Duration::ZERO, news.turn(PLACE)).await;
                assert_eq!(given.is_ok(), expected, "{change:?}, {leaves:?}");
                assert_eq!(news.heard(), left_at.iter().len() as u64, "a change alone is nothing to look at");
            }
        }
    }

    #[test]
    fn a_watch_that_the_server_refuses_is_not_asked_for_again() {
        let mut stage = Stage::new();
        let refused = WatchResponse { created: true, canceled: true, ..WatchResponse::default() };
        assert!(stage.hears(&refused, &[]) && stage.listening.is_empty());
    }
}
