//! One stream of watches for the whole process.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use foldhash::fast::RandomState;
use ringfence_core::Backoff;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;

use crate::keys::Range;
use crate::proto::watch_create_request::Filter;
use crate::proto::{
    Event, WatchCancelRequest, WatchCreateRequest, WatchRequest, WatchResponse, event, watch_request,
};
use crate::servers::{ANSWER_PATIENCE, Servers};

/// The pauses between tries to open the stream.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MOST: Duration = Duration::from_secs(1);

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
    /// Tells of keys that change as well as of keys that go.
    pub(crate) changes: bool,
}

impl What {
    /// One key going.
    pub(crate) fn end_of(key: &[u8]) -> Self {
        Self { range: Range { begin: key.to_vec(), end: Vec::new() }, changes: false }
    }
}

/// Who listens.
#[derive(Clone)]
pub(crate) enum Ear {
    /// One that waits, and looks again whenever something may have happened.
    Waiter(Arc<News>),
    /// One that holds, and wants to know that its key is gone.
    Holder(Arc<dyn Fn() + Send + Sync>),
}

/// What one that waits has heard.
#[derive(Debug, Default)]
pub(crate) struct News {
    notify: Notify,
    /// How often something was heard.
    heard: AtomicU64,
    /// The revision from which on everything is heard.
    hears_from: AtomicI64,
}

impl News {
    /// How often something was heard.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Whether something may have happened between a look at this revision and the watch, and was not heard.
    pub(crate) fn missed(&self, looked: i64) -> bool {
        self.hears_from.load(Ordering::Acquire) > looked
    }

    /// Waits until there is something to look at.
    pub(crate) async fn next(&self) {
        self.notify.notified().await;
    }

    fn tell(&self) {
        self.heard.fetch_add(1, Ordering::AcqRel);
        self.notify.notify_one();
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

    /// Watches from now on. It does not wait until the server does: whoever must not miss anything looks again when it does.
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

type Listening = HashMap<i64, (What, Ear), RandomState>;

/// Keeps the stream open until nobody can order any more.
async fn watch_all(servers: Arc<Servers>, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut listening = Listening::default();
    let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MOST);
    loop {
        // Nobody needs a stream that has nothing to say.
        while listening.is_empty() {
            match orders.recv().await {
                Some(order) => obey(&mut listening, order, None),
                None => return,
            }
        }
        match watch_on_one_stream(&servers, &mut orders, &mut listening).await {
            Ended::Unused => return,
            Ended::Worked => backoff = Backoff::new(PAUSE_FIRST, PAUSE_MOST),
            Ended::Failed => {}
        }
        // Something may have happened that nobody tells of any more.
        for (_, ear) in listening.values() {
            if let Ear::Waiter(news) = ear {
                news.tell();
            }
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
    for (id, (what, _)) in &*listening {
        let _ = questions.send(create(*id, what));
    }
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
                tell(listening, &answer);
            }
            order = orders.recv() => match order {
                Some(order) => obey(listening, order, Some(&questions)),
                None => return Ended::Unused,
            },
            () = &mut left => return ended,
        }
    }
}

fn obey(listening: &mut Listening, order: Order, questions: Option<&mpsc::UnboundedSender<WatchRequest>>) {
    let question = match order {
        Order::Watch(id, what, ear) => {
            let question = create(id, &what);
            listening.insert(id, (what, ear));
            question
        }
        // It was cancelled by the server before.
        Order::Cancel(id) if listening.remove(&id).is_none() => return,
        Order::Cancel(id) => {
            let request = Some(watch_request::Request::Cancel(WatchCancelRequest { watch_id: id }));
            WatchRequest { request }
        }
    };
    if let Some(questions) = questions {
        // A stream that has ended is noticed where its answers are read.
        let _ = questions.send(question);
    }
}

fn create(id: i64, What { range, changes }: &What) -> WatchRequest {
    let filters = if *changes { Vec::new() } else { vec![Filter::Noput.into()] };
    let request = Some(watch_request::Request::Create(WatchCreateRequest {
        key: range.begin.clone(),
        range_end: range.end.clone(),
        // Without a revision it begins now. One that has passed is served ten times a second, by a loop of the server.
        filters,
        watch_id: id,
    }));
    WatchRequest { request }
}

fn tell(listening: &mut Listening, answer: &WatchResponse) {
    let Some((_, ear)) = listening.get(&answer.watch_id) else { return };
    if answer.canceled {
        // The server does not want to; whoever waits looks again now and then.
        tracing::debug!(id = answer.watch_id, "a watch was cancelled by the server");
    }
    let is_gone = |event: &Event| event.r#type() == event::Type::Delete;
    match ear {
        Ear::Waiter(news) => {
            if answer.created {
                let revision = answer.header.as_ref().map_or(i64::MAX, |header| header.revision);
                news.hears_from.fetch_max(revision, Ordering::AcqRel);
                news.notify.notify_one();
            }
            if answer.canceled || !answer.events.is_empty() {
                news.tell();
            }
        }
        Ear::Holder(gone) if answer.events.iter().any(is_gone) => gone(),
        Ear::Holder(_) => {}
    }
    if answer.canceled {
        listening.remove(&answer.watch_id);
    }
}
