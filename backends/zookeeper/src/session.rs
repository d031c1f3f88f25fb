//! A session with the servers: one connection at a time, and what outlives it.
//!
//! A task owns the connection. It sends what it is given in order, and hears the answers in that order. It never sends anything
//! twice: what was under way when a connection broke has failed, with an effect that nobody knows yet. Since a server hangs up
//! on a session's earlier connection before it welcomes the next one, and the leader listens to that one alone, a look through
//! the next connection knows: what it does not find will not come any more.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringfence_core::{Backoff, BootInstant, Clock, Error, ErrorKind, LossListener, Nonce, Result, Ttl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::error;
use crate::options::Login;
use crate::wire::{self, Answer, Change, Code, Event, Greeting, Odd, Request, Welcome};

/// A connection on which nothing was said for this part of a session's timeout is pinged, so that the servers hear of us at least
/// three times in it.
const PING_PART: u32 = 4;

/// A connection that says nothing for this part of a session's timeout, while an answer is due, is given up.
const SILENCE_PART: u32 = 3;

/// However short a session is, a busy machine has this long to answer; and however long it is, no more than that.
const SILENCE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(5));

/// After the servers were heard of last, a session is given up when this many halves of its timeout have passed. They end it after
/// its timeout, and a tick of theirs.
const GIVEN_UP_AFTER_HALVES: u32 = 3;

const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

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

/// The servers of one ensemble, and as whom they are spoken to.
#[derive(Debug)]
pub(crate) struct Servers {
    addresses: Vec<(String, u16)>,
    login: Option<Login>,
    shown: String,
    /// Which one answered last: the next connection begins with it, so that a dead one costs nothing.
    preferred: AtomicUsize,
}

impl Servers {
    pub(crate) fn new(addresses: Vec<(String, u16)>, login: Option<Login>, shown: String) -> Self {
        // Clients spread over the servers, each from a place of its own.
        let place = usize::try_from(Nonce::random().get() % addresses.len().max(1) as u64).unwrap_or(0);
        Self { addresses, login, shown, preferred: AtomicUsize::new(place) }
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) fn addresses(&self) -> &[(String, u16)] {
        &self.addresses
    }

    /// Goes round the servers, from the one that answered last, until one welcomes us. `after` skips so many of them.
    async fn connect(
        &self,
        greeting: &Greeting,
        after: usize,
        patience: Duration,
    ) -> Result<(Connection, Welcome)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failed = None;
        for step in after..after + self.addresses.len() {
            let place = first.wrapping_add(step) % self.addresses.len();
            let (host, port) = &self.addresses[place];
            let greeted =
                tokio::time::timeout(patience, Connection::greet(host, *port, greeting, self.login.as_ref()));
            let error = match greeted.await {
                Ok(Ok(welcomed)) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Ok(welcomed);
                }
                Ok(Err(error)) => error,
                Err(_) => error::of_connecting(io::ErrorKind::TimedOut.into()),
            };
            failed = Some(error.about(format_args!("{host}:{port}")));
        }
        Err(failed.expect("there are servers").about(&self.shown))
    }
}

/// A connection that was greeted.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    received: BytesMut,
}

impl Connection {
    async fn greet(
        host: &str,
        port: u16,
        greeting: &Greeting,
        login: Option<&Login>,
    ) -> Result<(Self, Welcome)> {
        let stream = TcpStream::connect((host, port)).await.map_err(error::of_connecting)?;
        stream.set_nodelay(true).map_err(error::of_connecting)?;
        let mut connection = Self { stream, received: BytesMut::new() };
        let mut out = BytesMut::new();
        greeting.write(&mut out);
        if let Some(login) = login {
            Request::login(login.as_str()).write(wire::LOGIN, &mut out);
        }
        connection.stream.write_all(&out).await.map_err(error::of_connecting)?;
        let welcome = Welcome::read(connection.message().await?).map_err(|Odd| error::odd())?;
        if login.is_some() && welcome.session != 0 {
            let answer = Answer::read(connection.message().await?).map_err(|Odd| error::odd())?;
            if let Err(code) = answer.outcome {
                return Err(error::refused(code));
            }
        }
        Ok((connection, welcome))
    }

    async fn message(&mut self) -> Result<Bytes> {
        loop {
            if let Some(message) = wire::take_message(&mut self.received).map_err(|Odd| error::odd())? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.received).await.map_err(error::of_connecting)? == 0 {
                return Err(error::of_connecting(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// A session. Dropping it ends it at the servers too, and with it all its places in lines.
#[derive(Debug)]
pub(crate) struct Session {
    orders: mpsc::UnboundedSender<Order>,
    shared: Arc<Shared>,
    /// What the servers granted.
    pub(crate) timeout: Ttl,
}

/// What the task of a session is told to do.
#[derive(Debug)]
enum Order {
    Call(Call),
    /// Send it, although nobody waits for an answer.
    Tell(Request),
    /// Look after a lease: its node is there or it is lost.
    Watch(Nonce, String),
}

#[derive(Debug)]
struct Call {
    request: Request,
    reply: oneshot::Sender<Result<Bytes, Failure>>,
    /// Where its answer leaves a watch.
    watch: Option<Watch>,
}

/// Word of a change, and that of what.
#[derive(Debug)]
struct Watch {
    path: String,
    of_children: bool,
    told: oneshot::Sender<()>,
}

/// What the session and its task share.
#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    listener: Listener,
}

#[derive(Debug, Default)]
struct State {
    /// The leases of this session, until they are given back or lost.
    held: HashMap<Nonce, Held>,
    /// Why it is over, once it is.
    over: Option<Error>,
}

#[derive(Debug)]
struct Held {
    path: String,
    /// Until when it lives unless it is renewed, however long the session lives on.
    deadline: BootInstant,
}

/// Who is told of leases that are lost.
#[derive(Clone, Default)]
pub(crate) struct Listener(Arc<OnceLock<LossListener>>);

impl Listener {
    pub(crate) fn set(&self, listener: LossListener) {
        // The contract says that it is set once.
        let _ = self.0.set(listener);
    }

    fn lost(&self, nonce: Nonce) {
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
}

/// Resolves when what was watched has changed, or when a change might have been missed.
pub(crate) struct Changed(oneshot::Receiver<()>);

impl Changed {
    pub(crate) async fn changed(&mut self) {
        let _ = (&mut self.0).await;
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
        let (connection, welcome) = servers.connect(&greeting, 0, silence(timeout.as_duration())).await?;
        let granted = u64::try_from(welcome.timeout_ms).unwrap_or(0);
        let timeout = Ttl::new(Duration::from_millis(granted)).map_err(|error| {
            Error::new(ErrorKind::Unsupported, "a server grants sessions that are no leases")
                .about(servers.shown())
                .because(error)
        })?;
        let shared = Arc::new(Shared {
            clock: Arc::clone(clock),
            state: Mutex::default(),
            listener: listener.clone(),
        });
        let (orders, receiver) = mpsc::unbounded_channel();
        let now = clock.now();
        let task = Task {
            shared: Arc::clone(&shared),
            servers: Arc::clone(servers),
            orders: receiver,
            timeout: timeout.as_duration(),
            greeting: Greeting { session: welcome.session, password: welcome.password, ..greeting },
            last_sent: now,
            last_heard: now,
            next_lapse: now.saturating_add(timeout.as_duration()),
            number: 0,
            out: BytesMut::new(),
            unanswered: VecDeque::new(),
            watches: HashMap::new(),
        };
        tokio::spawn(task.run(connection));
        Ok(Self { orders, shared, timeout })
    }

    /// Sends a request after all those before it.
    pub(crate) fn call(&self, request: Request) -> Pending {
        self.order(request, None)
    }

    /// As [`Self::call`], for a request that leaves a watch on this node, if it is answered.
    pub(crate) fn watch(&self, request: Request, path: &str, of_children: bool) -> (Pending, Changed) {
        let (told, changed) = oneshot::channel();
        let watch = Watch { path: path.to_owned(), of_children, told };
        (self.order(request, Some(watch)), Changed(changed))
    }

    /// Sends a request of which nobody cares whether it arrives.
    pub(crate) fn tell(&self, request: Request) {
        let _ = self.orders.send(Order::Tell(request));
    }

    fn order(&self, request: Request, watch: Option<Watch>) -> Pending {
        let (reply, pending) = oneshot::channel();
        // Where the task is gone the reply is dropped, which says that the session is over.
        let _ = self.orders.send(Order::Call(Call { request, reply, watch }));
        Pending(pending)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.shared.state().over.is_some() || self.orders.is_closed()
    }

    /// Whether nothing would be lost with it.
    pub(crate) fn is_idle(&self) -> bool {
        self.shared.state().held.is_empty()
    }

    /// Looks after a lease from now on: until its deadline, or that of its renewals. `false`: the session is over.
    pub(crate) fn hold(&self, nonce: Nonce, path: &str, deadline: BootInstant) -> bool {
        let held = Held { path: path.to_owned(), deadline };
        {
            let mut state = self.shared.state();
            if state.over.is_some() {
                return false;
            }
            state.held.insert(nonce, held);
        }
        self.orders.send(Order::Watch(nonce, path.to_owned())).is_ok()
    }

    /// The node of a lease that is held.
    pub(crate) fn path_of(&self, nonce: Nonce) -> Option<String> {
        self.shared.state().held.get(&nonce).map(|held| held.path.clone())
    }

    /// Looks after a lease no more, and says which node was its.
    pub(crate) fn let_go(&self, nonce: Nonce) -> Option<String> {
        self.shared.state().held.remove(&nonce).map(|held| held.path)
    }

    /// Prolongs a lease, by the word of the leader that the session lives, which was asked for at this instant. `false`: it is
    /// lost.
    pub(crate) fn prolong(&self, nonce: Nonce, asked: BootInstant) -> bool {
        let mut state = self.shared.state();
        match state.held.get_mut(&nonce) {
            Some(held) if self.shared.clock.now() < held.deadline => {
                held.deadline = held.deadline.max(asked.saturating_add(self.timeout.as_duration()));
                true
            }
            _ => false,
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn silence(timeout: Duration) -> Duration {
    (timeout / SILENCE_PART).clamp(SILENCE.0, SILENCE.1)
}

/// A request on its way.
#[derive(Debug)]
enum Sent {
    Call(i32, Call),
    /// The node of a lease is looked at, and watched.
    Watch(i32, Nonce, String),
    /// Nobody waits for its answer.
    Tell(i32),
}

impl Sent {
    fn number(&self) -> i32 {
        match self {
            Self::Call(number, _) | Self::Watch(number, ..) | Self::Tell(number) => *number,
        }
    }
}

/// Who is told when something happens to a node.
#[derive(Debug, Default)]
struct Watchers {
    data: Vec<oneshot::Sender<()>>,
    children: Vec<oneshot::Sender<()>>,
    holder: Option<Nonce>,
}

/// Why a connection is served no more.
enum End {
    /// Nobody has the session any more.
    Dropped,
    Broken(Error),
}

struct Task {
    shared: Arc<Shared>,
    servers: Arc<Servers>,
    orders: mpsc::UnboundedReceiver<Order>,
    timeout: Duration,
    /// What the next connection begins with.
    greeting: Greeting,
    last_sent: BootInstant,
    last_heard: BootInstant,
    /// Before this instant no lease lapses. Those taken since it was set end later.
    next_lapse: BootInstant,
    number: i32,
    out: BytesMut,
    unanswered: VecDeque<Sent>,
    watches: HashMap<String, Watchers>,
}

impl Task {
    async fn run(mut self, connection: Connection) {
        let mut connection = connection;
        loop {
            let why = match self.serve(connection).await {
                End::Dropped => return,
                End::Broken(why) => why,
            };
            tracing::debug!(%why, "a connection of a session is lost");
            self.fail_what_was_sent(&why);
            connection = match self.connect_again().await {
                Ok(connection) => connection,
                Err(why) => return self.end(why),
            };
            self.watch_what_is_held();
        }
    }

    /// Serves a connection until it breaks.
    async fn serve(&mut self, connection: Connection) -> End {
        let Connection { stream, mut received } = connection;
        let (mut reader, mut writer) = stream.into_split();
        let (ping_after, silence) = (self.timeout / PING_PART, silence(self.timeout));
        let mut is_pinged = false;
        loop {
            loop {
                match wire::take_message(&mut received) {
                    Ok(Some(message)) => {
                        is_pinged = false;
                        if let Err(why) = self.hear(message) {
                            return End::Broken(why);
                        }
                    }
                    Ok(None) => break,
                    Err(Odd) => return End::Broken(error::odd()),
                }
            }
            let now = self.shared.clock.now();
            if now >= self.next_lapse {
                self.remove_what_lapsed(now);
            }
            let is_owed = is_pinged || !self.unanswered.is_empty();
            // What was sent late is not awaited since earlier.
            let silent_at = self.last_heard.max(self.last_sent).saturating_add(silence);
            if is_owed && now >= silent_at {
                return End::Broken(error::of_connecting(io::ErrorKind::TimedOut.into()));
            }
            let ping_at = self.last_sent.saturating_add(ping_after);
            if now >= ping_at && !is_pinged {
                Request::ping().write(wire::PING, &mut self.out);
                self.last_sent = now;
                is_pinged = true;
            }
            let wake_at = if is_pinged { silent_at } else { ping_at };
            let wake_at = if is_owed { wake_at.min(silent_at) } else { wake_at };
            let nap = self.shared.clock.nap(wake_at.min(self.next_lapse)).unwrap_or(Duration::from_millis(1));
            tokio::select! {
                read = reader.read_buf(&mut received) => match read {
                    Ok(0) => return End::Broken(error::of_connecting(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => self.last_heard = self.shared.clock.now(),
                    Err(why) => return End::Broken(error::of_connecting(why)),
                },
                written = writer.write_buf(&mut self.out), if !self.out.is_empty() => if let Err(why) = written {
                    return End::Broken(error::of_connecting(why));
                },
                order = self.orders.recv() => match order {
                    Some(order) => {
                        self.send(order);
                        while let Ok(order) = self.orders.try_recv() {
                            self.send(order);
                        }
                    }
                    None => {
                        Request::close().write(self.number.wrapping_add(1), &mut self.out);
                        // Where it does not arrive, the session ends at its timeout.
                        let _ = tokio::time::timeout(silence, writer.write_all(&self.out)).await;
                        return End::Dropped;
                    }
                },
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    fn next_number(&mut self) -> i32 {
        // Numbers below one are those of what is no call.
        self.number = self.number.checked_add(1).unwrap_or(1);
        self.last_sent = self.shared.clock.now();
        self.number
    }

    fn send(&mut self, order: Order) {
        match order {
            // Nobody wants it any more, and it was not sent: now it never is.
            Order::Call(call) if call.reply.is_closed() => {}
            Order::Call(call) => {
                let number = self.next_number();
                call.request.write(number, &mut self.out);
                self.unanswered.push_back(Sent::Call(number, call));
            }
            Order::Tell(request) => self.tell_server(&request),
            Order::Watch(nonce, path) => self.watch_lease(nonce, path),
        }
    }

    fn tell_server(&mut self, request: &Request) {
        let number = self.next_number();
        request.write(number, &mut self.out);
        self.unanswered.push_back(Sent::Tell(number));
    }

    fn watch_lease(&mut self, nonce: Nonce, path: String) {
        let number = self.next_number();
        Request::data(&path, true).write(number, &mut self.out);
        self.unanswered.push_back(Sent::Watch(number, nonce, path));
    }

    fn hear(&mut self, message: Bytes) -> Result<()> {
        let answer = Answer::read(message).map_err(|Odd| error::odd())?;
        self.greeting.seen = self.greeting.seen.max(answer.seen);
        match answer.number {
            wire::PING => return Ok(()),
            wire::EVENT => {
                let event = answer.outcome.map_err(error::refused)?;
                self.spread(&Event::read(event).map_err(|Odd| error::odd())?);
                return Ok(());
            }
            _ => {}
        }
        let sent = self.unanswered.pop_front().filter(|sent| sent.number() == answer.number);
        let sent = sent.ok_or_else(error::odd)?;
        if let Err(code @ (Code::SESSION_EXPIRED | Code::SESSION_MOVED)) = answer.outcome {
            // The next connection learns whether it is over.
            self.unanswered.push_front(sent);
            return Err(error::refused(code));
        }
        match sent {
            Sent::Call(_, Call { reply, watch, .. }) => {
                if answer.outcome.is_ok()
                    && let Some(Watch { path, of_children, told }) = watch
                {
                    let watchers = self.watches.entry(path).or_default();
                    let list = if of_children { &mut watchers.children } else { &mut watchers.data };
                    list.retain(|told| !told.is_closed());
                    list.push(told);
                }
                // Who went away meanwhile needs no answer.
                let _ = reply.send(answer.outcome.map_err(Failure::Refused));
            }
            Sent::Watch(_, nonce, path) => match answer.outcome {
                Ok(_) => self.watches.entry(path).or_default().holder = Some(nonce),
                Err(_) => self.lose(nonce),
            },
            Sent::Tell(_) => {}
        }
        Ok(())
    }

    /// Tells those who watch it. Each watch is told once.
    fn spread(&mut self, Event { path, what }: &Event) {
        let Some(mut watchers) = self.watches.remove(path) else { return };
        let (data, children) = match what {
            Change::Deleted => (true, true),
            Change::Data => (true, false),
            Change::Children => (false, true),
            Change::Other => (true, true),
        };
        if data {
            for told in watchers.data.drain(..) {
                let _ = told.send(());
            }
            if let Some(nonce) = watchers.holder.take() {
                match what {
                    Change::Deleted => self.lose(nonce),
                    _ => self.watch_lease(nonce, path.clone()),
                }
            }
        }
        if children {
            for told in watchers.children.drain(..) {
                let _ = told.send(());
            }
        }
        let is_watched =
            !watchers.data.is_empty() || !watchers.children.is_empty() || watchers.holder.is_some();
        if is_watched {
            self.watches.insert(path.clone(), watchers);
        }
    }

    /// The node of a lease is gone. If that was not our doing, it is lost.
    fn lose(&self, nonce: Nonce) {
        let lost = self.shared.state().held.remove(&nonce);
        if lost.is_some() {
            self.shared.listener.lost(nonce);
        }
    }

    /// Removes the nodes of leases that were not renewed: a lease ends at its TTL even where its session lives on for others.
    fn remove_what_lapsed(&mut self, now: BootInstant) {
        let mut next = now.saturating_add(self.timeout);
        let mut lapsed = Vec::new();
        self.shared.state().held.retain(|nonce, held| {
            if now < held.deadline {
                next = next.min(held.deadline);
                return true;
            }
            lapsed.push((*nonce, std::mem::take(&mut held.path)));
            false
        });
        for (nonce, path) in lapsed {
            self.tell_server(&Request::delete(&path));
            self.shared.listener.lost(nonce);
        }
        self.next_lapse = next;
    }

    /// What was under way has failed, and what was watched may have changed meanwhile.
    fn fail_what_was_sent(&mut self, why: &Error) {
        self.out.clear();
        self.watches.clear();
        for sent in self.unanswered.drain(..) {
            if let Sent::Call(_, Call { reply, .. }) = sent {
                let _ = reply.send(Err(Failure::Lost(why.clone())));
            }
        }
    }

    /// The next connection of the session. The error is why the session is over.
    async fn connect_again(&mut self) -> Result<Connection> {
        let given_up_at = self.last_sent.saturating_add(self.timeout * GIVEN_UP_AFTER_HALVES / 2);
        let mut backoff = Backoff::new(PAUSE_FIRST, PAUSE_MAX.min(self.timeout / 4));
        let patience = silence(self.timeout);
        let mut after = 0;
        loop {
            let connected = self.servers.connect(&self.greeting, after, patience).await;
            match connected {
                Ok((_, Welcome { session: 0, .. })) => return Err(error::session_over()),
                Ok((connection, welcome)) => {
                    self.greeting.password = welcome.password;
                    let now = self.shared.clock.now();
                    (self.last_sent, self.last_heard) = (now, now);
                    return Ok(connection);
                }
                Err(why) if why.kind() == ErrorKind::Refused => return Err(why),
                Err(why) => self.fail_what_waits(&why),
            }
            if self.orders.is_closed() || self.shared.clock.now() >= given_up_at {
                return Err(error::session_over());
            }
            // The one that answered last has had its chance.
            after = 1;
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Those that would wait for a connection are told that there is none.
    fn fail_what_waits(&mut self, why: &Error) {
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Call(Call { reply, .. }) = order {
                let _ = reply.send(Err(Failure::NotSent(why.clone())));
            }
        }
    }

    /// On a new connection nothing is watched yet.
    fn watch_what_is_held(&mut self) {
        let held: Vec<(Nonce, String)> =
            self.shared.state().held.iter().map(|(nonce, held)| (*nonce, held.path.clone())).collect();
        for (nonce, path) in held {
            self.watch_lease(nonce, path);
        }
    }

    /// The session is over: every lease of it is lost.
    fn end(mut self, why: Error) {
        tracing::warn!(%why, "a session is over, and with it what was held in it");
        let held = {
            let mut state = self.shared.state();
            state.over = Some(why.clone());
            std::mem::take(&mut state.held)
        };
        for nonce in held.into_keys() {
            self.shared.listener.lost(nonce);
        }
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Call(Call { reply, .. }) = order {
                let _ = reply.send(Err(Failure::Over(why.clone())));
            }
        }
    }
}
