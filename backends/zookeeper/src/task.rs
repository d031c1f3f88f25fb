//! What keeps a session: the task that owns its connection, one at a time.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringfence_core::{Backoff, BootInstant, Error, Nonce, Result, Ttl};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

use crate::error;
use crate::place::{Said, Step};
use crate::servers::{Connection, Servers, send_all, silence};
use crate::session::{Call, Failure, Held, Order, Removal, Reply, Shared, Watch};
use crate::wire::{self, Answer, Change, Code, Data, Event, Greeting, Odd, Request, Welcome};

/// A connection on which nothing was said for this part of a session's timeout is pinged, so that the servers hear of us at least
/// three times in it.
const PING_PART: u32 = 4;

/// However long a session is, it is pinged that often. A server whose last request was missed as below misses a change that we
/// watch in the same way, and learns of it with the next request.
const PING_EVERY_MAX: Duration = Duration::from_secs(1);

/// A server that owes an answer for so long is pinged, and again each time that this time has doubled.
///
/// The thread in the servers (3.8, and their main branch of 2026) that matches requests with what the ensemble has agreed to looks whether
/// there is anything to do, and then begins to wait without a second look. What comes between the two is left lying until the next request
/// to that server, whosesoever it is. On a quiet follower that was seen with one in 2,000 to 50,000 requests.
const NUDGE_AFTER: Duration = Duration::from_millis(20);

/// After the servers were heard of last, a session is given up when this many halves of its timeout have passed. They end it after
/// its timeout, and a tick of theirs.
const GIVEN_UP_AFTER_HALVES: u32 = 3;

/// The pause before a node is to be removed again that a server has refused to remove.
const REMOVED_AGAIN: Duration = Duration::from_secs(5);

/// The pauses between connections: those who have lost one server do not come to the next one all at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// A request on its way.
#[derive(Debug)]
enum Sent {
    Call(i32, Call),
    /// The node of a lease is looked at, and watched.
    Watch(i32, Nonce, String),
    /// The word that a lease is held, which is written into its node.
    Word(i32, Nonce),
    /// The node of a lease that has lapsed is removed, or of one that was given back, whose holder waits for the answer.
    Lapse(i32, Nonce, Option<Reply>),
    /// The question whether the session lives.
    Proof(i32, Vec<Reply>),
}

impl Sent {
    fn number(&self) -> i32 {
        match self {
            Self::Call(number, _)
            | Self::Watch(number, ..)
            | Self::Word(number, _)
            | Self::Lapse(number, ..)
            | Self::Proof(number, _) => *number,
        }
    }
}

/// Who is told when something happens to a node.
#[derive(Debug, Default)]
struct Watchers {
    data: Vec<oneshot::Sender<Change>>,
    children: Vec<oneshot::Sender<Change>>,
    holder: Option<Nonce>,
}

/// Why a connection is served no more.
enum End {
    /// Nobody has the session any more.
    Dropped,
    Broken(Error),
}

pub(crate) struct Task {
    shared: Arc<Shared>,
    servers: Arc<Servers>,
    orders: mpsc::UnboundedReceiver<Order>,
    timeout: Duration,
    /// What the next connection begins with.
    greeting: Greeting,
    last_sent: BootInstant,
    /// Since when the server owes an answer, and has said nothing.
    owed_since: Option<BootInstant>,
    /// Before this instant no lease lapses.
    next_lapse: BootInstant,
    number: i32,
    out: BytesMut,
    /// Those who want to know whether the session lives, and for whom that is not asked yet.
    doubting: Vec<Reply>,
    unanswered: VecDeque<Sent>,
    watches: HashMap<String, Watchers>,
}

impl Task {
    pub(crate) fn new(
        shared: Arc<Shared>,
        servers: Arc<Servers>,
        orders: mpsc::UnboundedReceiver<Order>,
        greeting: Greeting,
        timeout: Ttl,
    ) -> Self {
        let (now, timeout) = (shared.clock.now(), timeout.as_duration());
        Self {
            shared,
            servers,
            orders,
            timeout,
            greeting,
            last_sent: now,
            owed_since: None,
            next_lapse: now.saturating_add(timeout),
            number: 0,
            out: BytesMut::new(),
            doubting: Vec::new(),
            unanswered: VecDeque::new(),
            watches: HashMap::new(),
        }
    }

    pub(crate) async fn run(mut self, connection: Connection) {
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
                Err(why) => return self.end(&why),
            };
            self.watch_what_is_held();
        }
    }

    /// Serves a connection until it breaks.
    async fn serve(&mut self, connection: Connection) -> End {
        let Connection { stream, mut received, place } = connection;
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (ping_every, silence) = ((self.timeout / PING_PART).min(PING_EVERY_MAX), silence(self.timeout));
        // So many pings are not answered yet.
        let mut pings = 0_u32;
        let mut is_sent = true;
        let mut nudge_at = BootInstant::MAX;
        loop {
            loop {
                match wire::take_message(&mut received) {
                    Ok(Some(message)) => {
                        if let Err(why) = self.hear(message, &mut pings) {
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
            let is_owed = pings > 0 || !self.unanswered.is_empty();
            match self.owed_since {
                _ if !is_owed => self.owed_since = None,
                None => (self.owed_since, nudge_at) = (Some(now), now.saturating_add(NUDGE_AFTER)),
                Some(_) => {}
            }
            let silent_at = self.owed_since.map_or(BootInstant::MAX, |since| since.saturating_add(silence));
            if now >= silent_at {
                self.servers.avoid(place);
                return End::Broken(error::of_connecting(io::ErrorKind::TimedOut.into()));
            }
            let ping_at = if is_owed { nudge_at } else { self.last_sent.saturating_add(ping_every) };
            if now >= ping_at {
                Request::ping().write(wire::PING, &mut self.out);
                self.last_sent = now;
                pings += 1;
                let waited = self.owed_since.map_or(Duration::ZERO, |since| now.saturating_since(since));
                nudge_at = now.saturating_add(waited.max(NUDGE_AFTER));
                continue;
            }
            let wake_at = ping_at.min(self.next_lapse).min(silent_at);
            let nap = self.shared.clock.nap(wake_at).unwrap_or_default();
            tokio::select! {
                read = reader.read_buf(&mut received) => match read {
                    Ok(0) => return End::Broken(error::of_connecting(io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => self.owed_since = None,
                    Err(why) => return End::Broken(error::of_connecting(why)),
                },
                written = send_some(&mut writer, &mut self.out, &mut is_sent), if !is_sent || !self.out.is_empty() => if let Err(why) = written {
                    return End::Broken(error::of_connecting(why));
                },
                order = self.orders.recv() => {
                    let Some(order) = order else {
                        Request::close().write(self.next_number(), &mut self.out);
                        // Where it does not arrive, the session ends at its timeout.
                        let _ = tokio::time::timeout(silence, send_all(&mut writer, &self.out)).await;
                        return End::Dropped;
                    };
                    self.send(order);
                    while let Ok(order) = self.orders.try_recv() {
                        self.send(order);
                    }
                    self.prove();
                }
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
            Order::Watch(nonce, path) => self.watch_lease(nonce, path),
            Order::Release(nonce, path, reply) => {
                self.shared.let_go(nonce, Removal::OfTheTask);
                self.remove_lapsed(nonce, &path, Some(reply));
            }
            Order::Prove(reply) => self.doubting.push(reply),
        }
    }

    /// Asks once whether the session lives, for all who want to know.
    fn prove(&mut self) {
        self.doubting.retain(|reply| !reply.is_closed());
        if !self.doubting.is_empty() {
            let number = self.next_number();
            Request::agree().write(number, &mut self.out);
            self.unanswered.push_back(Sent::Proof(number, std::mem::take(&mut self.doubting)));
        }
    }

    fn watch_lease(&mut self, nonce: Nonce, path: String) {
        match self.shared.state().held.get(&nonce) {
            Some(held) if !held.has_lapsed => self.next_lapse = self.next_lapse.min(held.deadline),
            // It says that it held, and leaves.
            _ => return,
        }
        let number = self.next_number();
        Request::data(&path, true).write(number, &mut self.out);
        self.unanswered.push_back(Sent::Watch(number, nonce, path));
    }

    /// One that has waited, and whose node does not say yet that it holds, says so: to those who look how long it has been holding, and to the
    /// one behind it.
    fn say_who_holds(&mut self, nonce: Nonce, path: &str, data: Bytes) {
        let is_unsaid = |held: &Held| held.is_unsaid && !held.has_lapsed;
        if !self.shared.state().held.get(&nonce).is_some_and(is_unsaid) {
            return;
        }
        let Ok(Data { bytes, stat }) = Data::read(data) else { return };
        if let Some(said) = Said::read(&bytes).filter(|said| said.step == Step::Asked) {
            let number = self.next_number();
            let said = Said { step: Step::Holds, ..said }.write();
            // Where it has come to share meanwhile, that stands.
            Request::set_data(path, said.as_bytes(), stat.version).write(number, &mut self.out);
            self.unanswered.push_back(Sent::Word(number, nonce));
        }
    }

    fn hear(&mut self, message: Bytes, pings: &mut u32) -> Result<()> {
        let answer = Answer::read(message).map_err(|Odd| error::odd())?;
        self.greeting.seen = self.greeting.seen.max(answer.seen);
        match answer.number {
            wire::PING => {
                *pings = pings.saturating_sub(1);
                return Ok(());
            }
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
            Sent::Proof(_, doubting) => {
                for reply in doubting {
                    let _ = reply.send(answer.outcome.clone().map_err(Failure::Refused));
                }
            }
            Sent::Watch(_, nonce, path) => match answer.outcome {
                Ok(data) => {
                    self.say_who_holds(nonce, &path, data);
                    self.watches.entry(path).or_default().holder = Some(nonce);
                }
                Err(Code::NO_NODE) => self.lose(nonce),
                // It may be there all the same, and what is not known to be gone is not left standing. The next renewal has it watched.
                Err(code) => {
                    tracing::warn!(error = %error::refused(code), "the node of a lease cannot be looked at");
                    if let Some(held) = self.shared.state().held.get_mut(&nonce) {
                        held.is_watched = false;
                    }
                }
            },
            Sent::Word(_, nonce) => {
                // Otherwise it is said when it is given back.
                if let Some(held) = self.shared.state().held.get_mut(&nonce)
                    && answer.outcome.is_ok()
                {
                    held.is_unsaid = false;
                }
            }
            Sent::Lapse(_, nonce, reply) => {
                match answer.outcome {
                    Ok(_) | Err(Code::NO_NODE) => drop(self.shared.state().held.remove(&nonce)),
                    Err(code) => {
                        tracing::warn!(error = %error::refused(code), "the node of a lease that is over cannot be removed yet");
                        if let Some(held) = self.shared.state().held.get_mut(&nonce) {
                            held.removal = Removal::Refused;
                        }
                        self.next_lapse =
                            self.next_lapse.min(self.shared.clock.now().saturating_add(REMOVED_AGAIN));
                    }
                }
                if let Some(reply) = reply {
                    let _ = reply.send(answer.outcome.map_err(Failure::Refused));
                }
            }
        }
        Ok(())
    }

    /// Tells those who watch it. Each watch is told once.
    fn spread(&mut self, Event { path, what }: &Event) {
        let Some(mut watchers) = self.watches.remove(path) else { return };
        let (data, children) = match what {
            Change::Data => (true, false),
            Change::Children => (false, true),
            Change::Deleted | Change::Other => (true, true),
        };
        if data {
            for told in watchers.data.drain(..) {
                let _ = told.send(*what);
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
                let _ = told.send(*what);
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
        if lost.is_some_and(|held| !held.has_lapsed) {
            self.shared.listener.lost(nonce);
        }
    }

    /// Removes the nodes of leases that were not renewed: a lease ends at its TTL even where its session lives on for others. And those
    /// that a server has refused to remove.
    fn remove_what_lapsed(&mut self, now: BootInstant) {
        self.next_lapse = now.saturating_add(self.timeout);
        let mut lapsed = Vec::new();
        for (nonce, held) in &mut self.shared.state().held {
            let was_held = !held.has_lapsed;
            if was_held && now < held.deadline {
                self.next_lapse = self.next_lapse.min(held.deadline);
                continue;
            }
            if was_held || held.removal == Removal::Refused {
                held.has_lapsed = true;
                held.removal = Removal::OfTheTask;
                lapsed.push((*nonce, held.path.clone(), was_held));
            }
        }
        for (nonce, path, was_held) in lapsed {
            self.remove_lapsed(nonce, &path, None);
            if was_held {
                self.shared.listener.lost(nonce);
            }
        }
    }

    fn remove_lapsed(&mut self, nonce: Nonce, path: &str, reply: Option<Reply>) {
        let number = self.next_number();
        Request::delete(path).write(number, &mut self.out);
        self.unanswered.push_back(Sent::Lapse(number, nonce, reply));
    }

    /// What was under way has failed, and what was watched may have changed meanwhile.
    fn fail_what_was_sent(&mut self, why: &Error) {
        self.out.clear();
        self.watches.clear();
        for sent in self.unanswered.drain(..) {
            let waiting = match sent {
                Sent::Call(_, Call { reply, .. }) | Sent::Lapse(_, _, Some(reply)) => vec![reply],
                Sent::Proof(_, doubting) => doubting,
                Sent::Watch(..) | Sent::Word(..) | Sent::Lapse(_, _, None) => Vec::new(),
            };
            for reply in waiting {
                let _ = reply.send(Err(Failure::Lost(why.clone())));
            }
        }
    }

    /// The next connection of the session. The error is why the session is over.
    async fn connect_again(&mut self) -> Result<Connection> {
        let given_up_at = self.last_sent.saturating_add(self.timeout * GIVEN_UP_AFTER_HALVES / 2);
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1.min(self.timeout / 4));
        let patience = silence(self.timeout);
        let mut after = 0;
        loop {
            tokio::time::sleep(backoff.pause()).await;
            let connected = self.servers.connect(&self.greeting, after, patience).await;
            match connected {
                Ok((_, Welcome { session: 0, .. })) => return Err(error::session_over()),
                Ok((mut connection, welcome)) => {
                    let granted = Duration::from_millis(u64::try_from(welcome.timeout_ms).unwrap_or(0));
                    if granted < self.timeout {
                        // Its leases would outlive it. Where this does not arrive, it ends at its timeout.
                        Request::close().write(self.next_number(), &mut self.out);
                        let closed = send_all(&mut connection.stream, &self.out);
                        let _ = tokio::time::timeout(patience, closed).await;
                        return Err(error::session_shortened());
                    }
                    self.greeting.password = welcome.password;
                    self.last_sent = self.shared.clock.now();
                    self.owed_since = None;
                    return Ok(connection);
                }
                // Others may be away for a moment, and who refuses us, by a certificate that was just replaced, may be set right in time.
                Err(why) => self.fail_what_waits(&why),
            }
            if self.orders.is_closed() || self.shared.clock.now() >= given_up_at {
                return Err(error::session_over());
            }
            // The one that answered last has had its chance.
            after = 1;
        }
    }

    /// Those that would wait for a connection are told that there is none.
    fn fail_what_waits(&mut self, why: &Error) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Order::Call(Call { reply, .. }) | Order::Prove(reply) => {
                    let _ = reply.send(Err(Failure::NotSent(why.clone())));
                }
                Order::Release(nonce, _, reply) => {
                    // The next connection removes its node.
                    self.shared.let_go(nonce, Removal::OfTheTask);
                    let _ = reply.send(Err(Failure::NotSent(why.clone())));
                }
                Order::Watch(..) => {}
            }
        }
    }

    /// On a new connection nothing is watched yet, and nobody knows whether what lapsed was removed.
    fn watch_what_is_held(&mut self) {
        let held = |(nonce, held): (&Nonce, &Held)| (*nonce, held.path.clone(), held.has_lapsed);
        let all: Vec<_> = self
            .shared
            .state()
            .held
            .iter()
            .filter(|(_, held)| held.removal != Removal::OfItsHolder)
            .map(held)
            .collect();
        for (nonce, path, has_lapsed) in all {
            if has_lapsed {
                self.remove_lapsed(nonce, &path, None);
            } else {
                self.watch_lease(nonce, path);
            }
        }
    }

    /// The session is over: every lease of it is lost.
    fn end(mut self, why: &Error) {
        tracing::warn!(%why, "a session is over, and with it what was held in it");
        let held = {
            let mut state = self.shared.state();
            state.over = Some(why.clone());
            std::mem::take(&mut state.held)
        };
        for (nonce, _) in held.into_iter().filter(|(_, held)| !held.has_lapsed) {
            self.shared.listener.lost(nonce);
        }
        self.orders.close();
        while let Ok(order) = self.orders.try_recv() {
            if let Order::Call(Call { reply, .. }) | Order::Release(_, _, reply) | Order::Prove(reply) = order
            {
                let _ = reply.send(Err(Failure::Over(why.clone())));
            }
        }
    }
}

/// Sends some of these bytes. What is written by TLS is on its way only when `is_sent` says so. Nothing is lost where the future is
/// dropped.
async fn send_some(
    writer: &mut (impl AsyncWrite + Unpin),
    bytes: &mut BytesMut,
    is_sent: &mut bool,
) -> io::Result<()> {
    if !bytes.is_empty() {
        *is_sent = false;
        writer.write_buf(bytes).await?;
    }
    if bytes.is_empty() {
        writer.flush().await?;
        *is_sent = true;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, BufMut};
    use ringfence_core::SystemClock;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::session::Listener;

    /// The number of the next request that comes.
    async fn number_of_next(stream: &mut TcpStream) -> i32 {
        let length = stream.read_i32().await.expect("a request");
        let mut request = vec![0; usize::try_from(length).expect("a length")];
        stream.read_exact(&mut request).await.expect("a whole request");
        request.as_slice().get_i32()
    }

    fn answer_to(number: i32) -> BytesMut {
        let mut answer = BytesMut::new();
        answer.put_i32(16);
        answer.put_i32(number);
        answer.put_i64(1);
        answer.put_i32(0);
        answer
    }

    /// The real servers do that by chance, so this one is ours: it leaves a request lying until it is asked for something else.
    #[tokio::test]
    async fn what_is_written_is_on_its_way_however_slowly_it_is_taken() {
        // It keeps what is written until it is flushed, as TLS may, and its other end takes three bytes at a time.
        let (near, mut far) = tokio::io::duplex(3);
        let mut writer = tokio::io::BufWriter::new(near);
        let (mut bytes, mut is_sent) = (BytesMut::from(&b"seven b"[..]), true);
        let mut taken = Vec::new();
        while !is_sent || !bytes.is_empty() {
            tokio::select! {
                biased;
                // Dropped whenever there is something to take.
                read = far.read_buf(&mut taken) => drop(read.expect("somebody writes")),
                sent = send_some(&mut writer, &mut bytes, &mut is_sent) => sent.expect("somebody reads"),
            }
        }
        drop(writer);
        far.read_to_end(&mut taken).await.expect("an end");
        assert_eq!(taken, b"seven b");
    }

    /// A session that is served, the way to its task, and its server.
    async fn served() -> (mpsc::UnboundedSender<Order>, TcpStream) {
        const MINUTE: Duration = Duration::from_mins(1);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("somebody listens");
        let (server, _) = listener.accept().await.expect("somebody connects");
        let clock = Arc::new(SystemClock::new());
        let shared = Arc::new(Shared::new(clock, Listener::default()));
        let address = (address.ip().to_string(), address.port());
        let servers = Arc::new(Servers::new(vec![address], None, None, String::new()));
        let (orders, receiver) = mpsc::unbounded_channel();
        let timeout = Ttl::new(MINUTE).expect("a lawful TTL");
        let task = Task::new(shared, servers, receiver, Greeting::new_session(60_000), timeout);
        tokio::spawn(task.run(Connection { stream: Box::new(stream), received: BytesMut::new(), place: 0 }));
        (orders, server)
    }

    /// However many batches of leases are renewed, one transaction says that their session lives.
    #[tokio::test]
    async fn who_asks_at_a_time_whether_a_session_lives_shares_the_question() {
        let (orders, mut server) = served().await;
        let ask = || {
            let (reply, answered) = oneshot::channel();
            orders.send(Order::Prove(reply)).expect("the task serves");
            answered
        };
        let (first, gone, last) = (ask(), ask(), ask());
        drop(gone);
        let number = number_of_next(&mut server).await;
        let later = ask();
        assert_eq!(
            number_of_next(&mut server).await,
            number + 1,
            "it may not be answered by the earlier one"
        );
        server.write_all(&answer_to(number)).await.expect("a client");
        for answered in [first, last] {
            assert!(answered.await.expect("the task serves").is_ok());
        }
        drop(server);
        let failed = later.await.expect("the task serves");
        assert!(matches!(failed, Err(Failure::Lost(_))), "{failed:?}");
    }

    #[tokio::test]
    async fn a_server_that_leaves_a_request_lying_is_asked_again() {
        let (orders, mut server) = served().await;
        let (reply, answered) = oneshot::channel();
        let call = Call { request: Request::sync("/"), reply, watch: None };
        orders.send(Order::Call(call)).expect("the task serves");
        let number = number_of_next(&mut server).await;
        assert_eq!(number_of_next(&mut server).await, wire::PING, "it is asked for something else");
        // The ping is left lying too.
        assert_eq!(number_of_next(&mut server).await, wire::PING, "and once more");
        server
            .write_all(&[answer_to(number), answer_to(wire::PING), answer_to(wire::PING)].concat())
            .await
            .expect("a client");
        assert!(answered.await.expect("the task serves").is_ok(), "the request is answered in the end");
    }
}
