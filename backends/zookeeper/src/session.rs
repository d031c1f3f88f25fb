//! A session with the servers: one connection at a time, and what outlives it.
//!
//! A task owns the connection. It sends what it is given in order, and hears the answers in that order. It never sends anything
//! twice: what was under way when a connection broke has failed, with an effect that nobody knows yet. Since a server hangs up
//! on a session's earlier connection before it welcomes the next one, and the leader listens to that one alone, a look through
//! the next connection knows: what it does not find will not come any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use ringfence_core::{Backoff, BootInstant, Clock, Error, ErrorKind, LossListener, Nonce, Result, Ttl};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::batch::{self, Change, Changed, Changes};
use crate::error;
use crate::servers::{SILENCE_MAX, Servers};
use crate::task::Task;
use crate::wire::{self, Code, Greeting, Odd, Request, Welcome};

/// For how long a lease is held until its node is watched: a lock that is given back sooner does not pay for that.
const WATCHED_AFTER: Duration = Duration::from_millis(100);

/// A server that has not begun a session by then is asked for another one.
const SOON: Duration = Duration::from_secs(1);

/// For how long servers that hang up are asked again: so they do while they elect a leader.
const ELECTION: Duration = Duration::from_secs(5);
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));

/// Why a call has no answer.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The server refused. It did nothing.
    Refused(Code),
    /// It was not sent, because there is no connection.
    NotSent(Error),
    /// It was sent, and the connection broke.
    Lost(Error),
    /// It was not sent, because the session is over.
    Over(Error),
    /// It was answered with something that is no answer to it.
    Odd,
}

impl From<Odd> for Failure {
    fn from(Odd: Odd) -> Self {
        Self::Odd
    }
}

impl Failure {
    pub(crate) fn is(&self, code: Code) -> bool {
        matches!(self, Self::Refused(refusal) if *refusal == code)
    }
}

/// A session. Dropping it ends it at the servers too, and with it all its places in lines.
#[derive(Debug)]
pub(crate) struct Session {
    orders: Orders,
    changes: Changes,
    shared: Arc<Shared>,
    runtime: Handle,
    /// What the servers granted.
    pub(crate) timeout: Ttl,
    /// As the servers name it: the owner of every node that was made in it.
    pub(crate) id: i64,
}

/// Where an answer is awaited.
pub(crate) type Reply = oneshot::Sender<Result<Bytes, Failure>>;

/// Where the task of a session is told what to do.
#[derive(Clone, Debug)]
pub(crate) struct Orders(mpsc::UnboundedSender<Order>);

impl Orders {
    /// Sends a request after all those before it.
    pub(crate) fn call(&self, request: Request) -> Pending {
        self.order(|reply| Order::Call(Call { request, reply, watch: None }))
    }

    fn order(&self, order: impl FnOnce(Reply) -> Order) -> Pending {
        let (reply, pending) = oneshot::channel();
        // Where the task is gone the reply is dropped, which says that the session is over.
        let _ = self.0.send(order(reply));
        Pending(pending)
    }
}

/// What the task of a session is told to do.
#[derive(Debug)]
pub(crate) enum Order {
    Call(Call),
    /// Look after a lease: its node is there or it is lost.
    Watch(Nonce, String),
    /// Give a lease back: remove its node, whoever waits for the answer.
    Release(Nonce, String, Reply),
    /// Have a majority agree that the session lives, for all who ask that at a time.
    Prove(Reply),
}

#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) reply: Reply,
    /// Where its answer leaves a watch.
    pub(crate) watch: Option<Watch>,
}

/// Word of a change, and that of what.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) path: String,
    pub(crate) of_children: bool,
    pub(crate) told: oneshot::Sender<wire::Change>,
}

/// What the session and its task share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) clock: Arc<dyn Clock>,
    state: Mutex<State>,
    pub(crate) listener: Listener,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The leases of this session, until their nodes are gone.
    pub(crate) held: HashMap<Nonce, Held>,
    /// Why it is over, once it is.
    pub(crate) over: Option<Error>,
}

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) path: String,
    /// Until when it lives unless it is renewed, however long the session lives on.
    pub(crate) deadline: BootInstant,
    /// Whether it has lapsed or was given back, and its node may be there until a server says that it is not.
    pub(crate) has_lapsed: bool,
    pub(crate) removal: Removal,
    /// Whether its node is watched, or about to be.
    pub(crate) is_watched: bool,
    /// Whether it has waited, and its node does not say yet that it holds: then it says so when it is watched, or when it leaves.
    pub(crate) is_unsaid: bool,
}

/// How the node of a lease that has lapsed or was given back is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// By the task.
    OfTheTask,
    /// By somebody who waits for the answer. A second removal on a new connection would come before that one, whose answer would then be
    /// that nothing was held.
    OfItsHolder,
    /// A server has refused it: the task asks again.
    Refused,
}

/// Who is told of leases that are lost.
#[derive(Clone, Default)]
pub(crate) struct Listener(Arc<OnceLock<LossListener>>);

impl Listener {
    pub(crate) fn set(&self, listener: LossListener) {
        // The contract says that it is set once.
        let _ = self.0.set(listener);
    }

    pub(crate) fn lost(&self, nonce: Nonce) {
        if let Some(listener) = self.0.get() {
            listener(nonce);
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("is_set", &self.0.get().is_some()).finish()
    }
}

/// An answer that is under way, and how it is awaited. Dropping it does not take the call back, unless it was not sent yet.
#[must_use = "nobody sees whether it went well"]
pub(crate) struct Pending(oneshot::Receiver<Result<Bytes, Failure>>);

impl Pending {
    pub(crate) async fn answer(self) -> Result<Bytes, Failure> {
        self.0.await.unwrap_or_else(|_| Err(Failure::Over(error::session_over())))
    }

    /// Whether a majority agreed that the session lives, of [`Request::agree`]. What they say to it stands in the answer's body.
    pub(crate) async fn agreement(self) -> Result<(), Failure> {
        match wire::all(self.answer().await?)? {
            // The leader looks at the session before it looks at who may read the node.
            Ok(_) | Err((_, Code::NO_AUTH)) => Ok(()),
            Err((_, Code::SESSION_EXPIRED)) => Err(Failure::Over(error::session_over())),
            Err((_, code)) => Err(Failure::Refused(code)),
        }
    }
}

/// Resolves when what was watched has changed, or when a change might have been missed.
pub(crate) struct News(oneshot::Receiver<wire::Change>);

impl News {
    /// What happened; `None`: perhaps nothing, and nobody would tell any more. It comes once.
    pub(crate) async fn come(&mut self) -> Option<wire::Change> {
        (&mut self.0).await.ok()
    }

    /// As [`Self::come`], without waiting for it.
    pub(crate) fn has_come(&mut self) -> Poll<Option<wire::Change>> {
        match self.0.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => Poll::Pending,
            news => Poll::Ready(news.ok()),
        }
    }
}

impl Session {
    /// Begins a session with a timeout as near to this one as the servers grant.
    pub(crate) async fn open(
        servers: &Arc<Servers>,
        clock: &Arc<dyn Clock>,
        listener: &Listener,
        timeout: Ttl,
    ) -> Result<Self> {
        let asked = i32::try_from(timeout.as_millis()).expect("a day has fewer milliseconds");
        let greeting = Greeting::new_session(asked);
        // The making of a session may be left lying too, and nothing can be sent before its answer: see `task::NUDGE_AFTER`.
        let mut patience = SOON;
        let (ends, mut pauses) = (clock.now().saturating_add(ELECTION), Backoff::new(PAUSES.0, PAUSES.1));
        let (connection, welcome) = loop {
            match servers.connect(&greeting, 0, patience).await {
                Err(error) if error.kind() == ErrorKind::Unavailable && patience < SILENCE_MAX => {
                    patience = SILENCE_MAX;
                    continue;
                }
                Err(error) if error::has_hung_up(&error) && clock.now() < ends => {}
                welcomed => break welcomed?,
            }
            tokio::time::sleep(pauses.pause()).await;
        };
        let granted = u64::try_from(welcome.timeout_ms).unwrap_or(0);
        let timeout = Ttl::new(Duration::from_millis(granted)).map_err(|error| {
            Error::new(ErrorKind::Unsupported, "a server grants sessions that are no leases")
                .about(servers.shown())
                .because(error)
        })?;
        let shared = Arc::new(Shared::new(Arc::clone(clock), listener.clone()));
        let (orders, receiver) = mpsc::unbounded_channel();
        let Welcome { timeout_ms, session: id, password } = welcome;
        // The next server is asked for what this one granted.
        let greeting = Greeting { timeout_ms, session: id, password, ..greeting };
        let task = Task::new(Arc::clone(&shared), Arc::clone(servers), receiver, greeting, timeout);
        tokio::spawn(task.run(connection));
        let (orders, runtime) = (Orders(orders), Handle::current());
        let changes = batch::new(orders.clone(), runtime.clone());
        Ok(Self { orders, changes, shared, runtime, timeout, id })
    }

    /// When the session lived, by the word of a majority, which was asked for at no earlier instant than this. Those who ask at a time
    /// share the question.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub(crate) async fn lived(&self) -> Result<BootInstant, Failure> {
        let asked = self.shared.clock.now();
        self.orders.order(Order::Prove).agreement().await.map(|()| asked)
    }

    /// Sends a request after all those before it.
    pub(crate) fn call(&self, request: Request) -> Pending {
        self.orders.call(request)
    }

    /// Makes a change of a line, together with others that come while earlier ones are under way.
    ///
    /// # Cancel safety
    /// What was not sent when the future is dropped never is.
    pub(crate) async fn change(&self, change: Change) -> Result<Changed, Failure> {
        batch::make(&self.changes, &self.orders, change).await
    }

    /// As [`Self::change`], in a write of its own.
    pub(crate) async fn change_alone(&self, change: Change) -> Result<Changed, Failure> {
        batch::make_alone(&self.orders, change).await
    }

    /// As [`Self::call`], for a request that leaves a watch on this node, if it is answered.
    pub(crate) fn watch(&self, request: Request, path: &str, of_children: bool) -> (Pending, News) {
        let (told, news) = oneshot::channel();
        let watch = Watch { path: path.to_owned(), of_children, told };
        let pending = self.orders.order(|reply| Order::Call(Call { request, reply, watch: Some(watch) }));
        (pending, News(news))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.shared.state().over.is_some() || self.orders.0.is_closed()
    }

    /// Whether nothing would be lost with it.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.state().held.is_empty()
    }

    /// Looks after a lease from now on: until its deadline, or that of its renewals. `false`: the session is over.
    pub(crate) fn hold(
        self: &Arc<Self>,
        nonce: Nonce,
        path: &str,
        deadline: BootInstant,
        is_unsaid: bool,
    ) -> bool {
        let held = Held {
            path: path.to_owned(),
            deadline,
            has_lapsed: false,
            removal: Removal::OfTheTask,
            is_watched: false,
            is_unsaid,
        };
        {
            let mut state = self.shared.state();
            if state.over.is_some() {
                return false;
            }
            state.held.insert(nonce, held);
        }
        let session = Arc::downgrade(self);
        self.runtime.spawn(async move {
            tokio::time::sleep(WATCHED_AFTER).await;
            if let Some(session) = session.upgrade() {
                session.watch_held(nonce);
            }
        });
        true
    }

    /// Has the node of a lease watched, if it is not yet. All that is sent after this is answered after it is known whether the
    /// node is there.
    pub(crate) fn watch_held(&self, nonce: Nonce) {
        let mut state = self.shared.state();
        if let Some(held) = state.held.get_mut(&nonce).filter(|held| !held.is_watched && !held.has_lapsed) {
            held.is_watched = true;
            // Where the task is gone, it has told of all losses.
            let _ = self.orders.0.send(Order::Watch(nonce, held.path.clone()));
        }
    }

    /// The node of a lease that is held.
    pub(crate) fn path_of(&self, nonce: Nonce) -> Option<String> {
        self.held(nonce, |held| held.path.clone())
    }

    /// This of a lease that is held.
    fn held<T>(&self, nonce: Nonce, of: impl FnOnce(&Held) -> T) -> Option<T> {
        self.shared.state().held.get(&nonce).filter(|held| !held.has_lapsed).map(of)
    }

    /// Gives a lease back. Where that fails, its node is removed as soon as a server answers. `None`: it is not held.
    pub(crate) fn release(&self, nonce: Nonce) -> Option<Pending> {
        let path = self.path_of(nonce)?;
        Some(self.orders.order(|reply| Order::Release(nonce, path, reply)))
    }

    /// As [`Self::release`], together with other changes of lines.
    ///
    /// # Cancel safety
    /// If the future is dropped, it is given back all the same.
    pub(crate) async fn release_together(&self, nonce: Nonce) -> Option<Result<(), Failure>> {
        let (path, is_unsaid) = self.held(nonce, |held| (held.path.clone(), held.is_unsaid))?;
        self.shared.let_go(nonce, Removal::OfItsHolder);
        let change = if is_unsaid { Change::leave_as_holder(&path) } else { Change::leave(&path) };
        let letting_go = LettingGo { orders: &self.orders, nonce, path: Some(path) };
        let left = self.change(change).await;
        if matches!(left, Ok(_) | Err(Failure::Refused(Code::NO_NODE))) {
            letting_go.has_ended();
            self.forget(nonce);
        }
        Some(left.map(drop))
    }

    /// Holds a lease no more, if it was held, and goes on to look after its node until it is [forgotten](Self::forget).
    pub(crate) fn let_go(&self, nonce: Nonce) {
        self.shared.let_go(nonce, Removal::OfTheTask);
    }

    /// The node of a lease that was let go is gone.
    pub(crate) fn forget(&self, nonce: Nonce) {
        self.shared.state().held.remove(&nonce);
    }

    /// Prolongs a lease, by the word of the servers that the session lives, which was asked for at this instant. `false`: it is
    /// lost.
    pub(crate) fn prolong(&self, nonce: Nonce, asked: BootInstant) -> bool {
        let mut state = self.shared.state();
        match state.held.get_mut(&nonce) {
            Some(held) if !held.has_lapsed && self.shared.clock.now() < held.deadline => {
                held.deadline = held.deadline.max(asked.saturating_add(self.timeout.as_duration()));
                true
            }
            _ => false,
        }
    }
}

/// A lease whose node is removed by the session's task if that does not happen otherwise.
struct LettingGo<'a> {
    orders: &'a Orders,
    nonce: Nonce,
    path: Option<String>,
}

impl LettingGo<'_> {
    fn has_ended(mut self) {
        self.path = None;
    }
}

impl Drop for LettingGo<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _ = self.orders.order(|reply| Order::Release(self.nonce, path, reply));
        }
    }
}

impl Shared {
    pub(crate) fn new(clock: Arc<dyn Clock>, listener: Listener) -> Self {
        Self { clock, state: Mutex::default(), listener }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn let_go(&self, nonce: Nonce, removal: Removal) {
        if let Some(held) = self.state().held.get_mut(&nonce) {
            held.has_lapsed = true;
            held.removal = removal;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;

    /// What the servers say to [`Request::agree`]: in the body, whatever it is.
    fn body(code: i32) -> Bytes {
        let mut body = BytesMut::new();
        body.put_i32(if code == 0 { 13 } else { -1 });
        body.put_u8(0);
        body.put_i32(code);
        if code != 0 {
            body.put_i32(code);
        }
        body.put_i32(-1);
        body.put_u8(1);
        body.put_i32(-1);
        body.freeze()
    }

    async fn agreement(answer: Result<Bytes, Failure>) -> Result<(), Failure> {
        let (reply, pending) = oneshot::channel();
        reply.send(answer).unwrap();
        Pending(pending).agreement().await
    }

    #[tokio::test]
    async fn only_what_the_servers_agree_to_is_agreement() {
        for code in [0, Code::NO_AUTH.0] {
            assert!(agreement(Ok(body(code))).await.is_ok(), "{code}");
        }
        let expired = agreement(Ok(body(Code::SESSION_EXPIRED.0))).await;
        assert!(matches!(expired, Err(Failure::Over(_))), "{expired:?}");
        // A server that is overloaded, and one that cannot agree to anything.
        for code in [-127, -1, Code::SESSION_MOVED.0] {
            let refused = agreement(Ok(body(code))).await;
            assert!(matches!(refused, Err(Failure::Refused(Code(why))) if why == code), "{refused:?}");
        }
        let refused = agreement(Err(Failure::Refused(Code(-127)))).await;
        assert!(matches!(refused, Err(Failure::Refused(_))), "{refused:?}");
        let odd = agreement(Ok(Bytes::new())).await;
        assert!(matches!(odd, Err(Failure::Odd)), "{odd:?}");
    }
}
