use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringfence_core::Backend;
use ringfence_testkit::{Cable, PATIENCE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// A network between clients and a server, in this process, with the faults that networks have.
///
/// It listens on a port of its own on 127.0.0.1 and carries every connection to the server's port; it begins whole. What
/// it is told holds for the connections that it has and for those to come, from the moment at which the call returns.
/// Dropping it closes all.
///
/// A real cut of a TCP connection loses no byte in its middle: what is under way when the network is cut arrives after
/// it is mended. So a connection of which something was swallowed is never carried on; it is reset when it is mended.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    line: watch::Sender<Line>,
    heard: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

/// How things are between the clients and the server.
#[derive(Clone, Copy, Debug)]
struct Line {
    requests: Flow,
    replies: Flow,
    delay: Duration,
    /// Connections of an earlier generation are reset.
    generation: u64,
    /// Whether anything was swallowed since it should be.
    has_swallowed: bool,
    /// Whether what clients send is lost from now on.
    loses: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Pass,
    Hold,
    Swallow,
}

impl Proxy {
    /// One before the server on this port of 127.0.0.1. The server need not be there yet.
    pub async fn start(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port of 127.0.0.1");
        let port = listener.local_addr().expect("a listener has an address").port();
        let (requests, replies) = (Flow::Pass, Flow::Pass);
        let delay = Duration::ZERO;
        let line = Line { requests, replies, delay, generation: 0, has_swallowed: false, loses: false };
        let line = watch::Sender::new(line);
        let heard = Arc::default();
        let task = tokio::spawn(listen(listener, server, line.clone(), Arc::clone(&heard)));
        Self { port, line, heard, task }
    }

    /// The port on 127.0.0.1 to connect to instead of the server's.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Nothing passes any more, in either direction, and nobody hangs up: every connection is half open. What is sent
    /// meanwhile arrives after [`Self::mend`], as it would when TCP sends it again. A new connection is accepted, as the
    /// kernel does it, and is as dead as the others.
    pub fn cut(&self) {
        self.set(Flow::Hold, Flow::Hold);
    }

    /// Everything passes again: what was held, and what comes. Connections of which something was swallowed are reset.
    pub fn mend(&self) {
        self.set(Flow::Pass, Flow::Pass);
    }

    /// Requests arrive, and the replies to them wait on their way until [`Self::mend`].
    pub fn hold_replies(&self) {
        self.set(Flow::Pass, Flow::Hold);
    }

    /// Requests arrive, and no reply ever does: the server does what it is told, and nobody learns of it.
    /// [`Self::swallowed`] says when it has happened; what a connection is asked after that does not arrive.
    pub fn swallow_replies(&self) {
        self.set(Flow::Pass, Flow::Swallow);
    }

    /// A server that accepts and never answers: nothing that is sent to it ever arrives, and it does not hang up.
    pub fn accept_and_be_silent(&self) {
        self.set(Flow::Swallow, Flow::Swallow);
    }

    /// What clients send from now on never arrives, not even their hanging up. What they have sent before arrives as it would have: after
    /// [`Self::mend`], where it is held. So a request is late of which its client knows no more.
    pub fn lose_what_is_sent(&self) {
        self.line.send_modify(|line| line.loses = true);
    }

    /// Resets every connection that there is now, at both ends. Those to come are not concerned.
    pub fn cut_connections(&self) {
        self.line.send_modify(|line| line.generation += 1);
    }

    /// From now on everything takes so much longer in each direction: a round trip, twice as much.
    pub fn delay(&self, delay: Duration) {
        self.line.send_modify(|line| line.delay = delay);
    }

    /// How many bytes of the server's clients have heard so far, on all connections.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Waits until something was swallowed since [`Self::swallow_replies`], so that the server has done something and its
    /// client does not know; or since [`Self::accept_and_be_silent`], so that a client waits in vain.
    ///
    /// Panics after [`PATIENCE`].
    ///
    /// # Cancel safety
    /// It only watches.
    pub async fn swallowed(&self) {
        let mut line = self.line.subscribe();
        let swallowed = line.wait_for(|line| line.has_swallowed);
        let swallowed = tokio::time::timeout(PATIENCE, swallowed).await;
        swallowed
            .unwrap_or_else(|_| panic!("nothing to swallow came within {PATIENCE:?}"))
            .expect("we have the sender");
    }

    /// The same as the conformance suite's idea of it, with the client that is connected through it.
    pub fn into_cable(self, client: Arc<dyn Backend>) -> Box<dyn Cable> {
        Box::new(ProxyCable { proxy: self, client })
    }

    fn set(&self, requests: Flow, replies: Flow) {
        self.line.send_modify(|line| *line = Line { requests, replies, has_swallowed: false, ..*line });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections are children of this task.
        self.task.abort();
    }
}

/// A client at the end of a proxy.
struct ProxyCable {
    proxy: Proxy,
    client: Arc<dyn Backend>,
}

impl Cable for ProxyCable {
    fn client(&self) -> Arc<dyn Backend> {
        self.client.clone()
    }

    fn cut(&self) {
        self.proxy.cut();
    }

    fn mend(&self) {
        self.proxy.mend();
    }
}

async fn listen(listener: TcpListener, server: u16, line: watch::Sender<Line>, heard: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (client, _) = accepted.expect("a listener accepts");
                let generation = line.borrow().generation;
                connections.spawn(connection(client, server, line.clone(), generation, Arc::clone(&heard)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What can be carried on no more, and is reset.
struct Broken;

async fn connection(
    mut client: TcpStream,
    port: u16,
    line: watch::Sender<Line>,
    generation: u64,
    heard: Arc<AtomicU64>,
) {
    let mut watched = line.subscribe();
    let is_wanted = |line: &Line| line.requests != Flow::Hold || line.generation != generation;
    let Ok(flow) = watched.wait_for(is_wanted).await.map(|line| line.requests) else { return };
    // Who connects while requests do not pass has connected to nobody.
    let mut server = match flow {
        Flow::Pass => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok(),
        Flow::Hold | Flow::Swallow => None,
    };
    let is_over = tokio::select! {
        // First: where the network is mended behind a reset, what was held is gone.
        biased;
        _ = watched.wait_for(|line| line.generation != generation) => false,
        carried = carry_both_ways(&mut client, server.as_mut(), &line, &heard) => carried.is_ok(),
    };
    if !is_over {
        for stream in server.iter().chain([&client]) {
            // Its other end may have reset it already.
            let _ = stream.set_zero_linger();
        }
    }
}

async fn carry_both_ways(
    client: &mut TcpStream,
    server: Option<&mut TcpStream>,
    line: &watch::Sender<Line>,
    heard: &AtomicU64,
) -> Result<(), Broken> {
    let carried = async {
        let server = server.ok_or(Broken)?;
        // Small packets go at once, as the client and the server meant them to.
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (client_reads, client_writes) = client.split();
        let (server_reads, server_writes) = server.split();
        let uncounted = AtomicU64::default();
        let requests =
            carry(client_reads, server_writes, line, |line| line.requests, |line| line.loses, &uncounted);
        let replies = carry(server_reads, client_writes, line, |line| line.replies, |_| false, heard);
        tokio::try_join!(requests, replies).map(drop)
    }
    .await;
    if carried.is_err() {
        // A reset is a packet as all others are: it passes when they do.
        let _ = line.subscribe().wait_for(|line| [line.requests, line.replies] == [Flow::Pass; 2]).await;
    }
    carried
}

impl From<std::io::Error> for Broken {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl From<watch::error::RecvError> for Broken {
    fn from(_: watch::error::RecvError) -> Self {
        Self
    }
}

/// Carries what comes from one end to the other, until it ends.
async fn carry(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    line: &watch::Sender<Line>,
    flow: impl Fn(&Line) -> Flow,
    loses: impl Fn(&Line) -> bool,
    carried: &AtomicU64,
) -> Result<(), Broken> {
    // What is under way: chunks, each with the moment at which it arrives. The end of the stream is an empty one, and
    // takes its time as all else does.
    let (sender, mut under_way) = mpsc::unbounded_channel();
    let depart = async {
        loop {
            let mut chunk = vec![0; 16 * 1024];
            let read = from.read(&mut chunk).await;
            if loses(&line.borrow()) {
                match read {
                    Ok(1..) => continue,
                    // The other end does not hear of the end either.
                    _ => return std::future::pending().await,
                }
            }
            let length = read?;
            chunk.truncate(length);
            let delay = line.borrow().delay;
            // Not even a sleep of zero: it may last until the timer's next tick, which is a millisecond away.
            let arrival = (!delay.is_zero()).then(|| sleep(delay));
            if sender.send((arrival, chunk)).is_err() || length == 0 {
                return Ok::<_, Broken>(());
            }
        }
    };
    let arrive = async {
        let mut watched = line.subscribe();
        while let Some((arrival, chunk)) = under_way.recv().await {
            if let Some(arrival) = arrival {
                arrival.await;
            }
            let now = *watched.wait_for(|line| flow(line) != Flow::Hold).await?;
            if flow(&now) == Flow::Swallow {
                line.send_modify(|line| line.has_swallowed = true);
                return Err(Broken);
            }
            if chunk.is_empty() {
                to.shutdown().await?;
                break;
            }
            to.write_all(&chunk).await?;
            carried.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    };
    tokio::try_join!(depart, arrive).map(drop)
}

#[cfg(test)]
mod tests {
    use ringfence_core::{Clock, SystemClock};

    use super::*;

    /// How long nothing must happen until we believe that nothing does.
    const A_WHILE: Duration = Duration::from_millis(50);

    /// A proxy, its client's end and its server's end.
    struct Ends {
        proxy: Proxy,
        listener: TcpListener,
        client: TcpStream,
        server: TcpStream,
    }

    async fn ends() -> Ends {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().port()).await;
        let client = connect(&proxy).await;
        let server = within(listener.accept()).await.unwrap().0;
        Ends { proxy, listener, client, server }
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap()
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future).await.expect("it happens in time")
    }

    async fn hears(stream: &mut TcpStream, expected: &str) {
        let mut heard = vec![0; expected.len()];
        within(stream.read_exact(&mut heard)).await.unwrap();
        assert_eq!(std::str::from_utf8(&heard), Ok(expected));
    }

    async fn says(stream: &mut TcpStream, words: &str) {
        stream.write_all(words.as_bytes()).await.unwrap();
    }

    async fn hears_nothing(stream: &mut TcpStream) {
        let heard = tokio::time::timeout(A_WHILE, stream.read_u8()).await;
        assert!(heard.is_err(), "nothing was to be heard: {heard:?}");
    }

    async fn is_reset(stream: &mut TcpStream) {
        let error = within(stream.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_is_said_is_heard_and_an_end_is_an_end() {
        let Ends { proxy, mut client, mut server, .. } = ends().await;
        says(&mut client, "ask").await;
        hears(&mut server, "ask").await;
        client.shutdown().await.unwrap();
        assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
        says(&mut server, "answer").await;
        hears(&mut client, "answer").await;
        drop(server);
        assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
        assert_eq!(proxy.heard(), 6, "what the client said is not counted");
    }

    #[tokio::test]
    async fn nothing_passes_a_cut_and_all_of_it_when_it_is_mended() {
        let Ends { proxy, listener, mut client, mut server } = ends().await;
        proxy.cut();
        says(&mut client, "ask").await;
        says(&mut server, "news").await;
        hears_nothing(&mut server).await;
        hears_nothing(&mut client).await;
        let mut late = connect(&proxy).await;
        says(&mut late, "late").await;
        assert!(tokio::time::timeout(A_WHILE, listener.accept()).await.is_err(), "nobody gets through");
        proxy.mend();
        hears(&mut server, "ask").await;
        hears(&mut client, "news").await;
        let mut server = within(listener.accept()).await.unwrap().0;
        hears(&mut server, "late").await;
    }

    #[tokio::test]
    async fn who_hangs_up_behind_a_cut_is_heard_after_it() {
        for is_reset_by_client in [false, true] {
            let Ends { proxy, client, mut server, .. } = ends().await;
            proxy.cut();
            if is_reset_by_client {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            hears_nothing(&mut server).await;
            proxy.mend();
            if is_reset_by_client {
                is_reset(&mut server).await;
            } else {
                assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
            }
        }
    }

    #[tokio::test]
    async fn what_was_sent_arrives_late_and_what_is_sent_afterwards_is_lost_with_the_end() {
        for is_reset_by_client in [false, true] {
            let Ends { proxy, mut client, mut server, .. } = ends().await;
            proxy.cut();
            says(&mut client, "ask").await;
            tokio::time::sleep(A_WHILE).await;
            proxy.lose_what_is_sent();
            says(&mut client, "more").await;
            if is_reset_by_client {
                client.set_zero_linger().unwrap();
            }
            drop(client);
            tokio::time::sleep(A_WHILE).await;
            proxy.mend();
            hears(&mut server, "ask").await;
            hears_nothing(&mut server).await;
        }
    }

    #[tokio::test]
    async fn replies_that_are_held_arrive_when_it_is_mended() {
        let Ends { proxy, mut client, mut server, .. } = ends().await;
        proxy.hold_replies();
        says(&mut client, "ask").await;
        hears(&mut server, "ask").await;
        says(&mut server, "answer").await;
        hears_nothing(&mut client).await;
        proxy.mend();
        hears(&mut client, "answer").await;
    }

    #[tokio::test]
    async fn what_is_held_on_a_connection_that_is_reset_never_arrives() {
        for _ in 0..20 {
            let Ends { proxy, mut client, mut server, .. } = ends().await;
            proxy.hold_replies();
            says(&mut server, "answer").await;
            tokio::task::yield_now().await;
            proxy.cut_connections();
            proxy.mend();
            is_reset(&mut client).await;
        }
    }

    #[tokio::test]
    async fn a_swallowed_reply_never_comes_and_its_connection_is_reset() {
        let Ends { proxy, listener, mut client, mut server } = ends().await;
        proxy.swallow_replies();
        says(&mut client, "ask").await;
        hears(&mut server, "ask").await;
        says(&mut server, "answer").await;
        proxy.swallowed().await;
        hears_nothing(&mut client).await;
        proxy.cut();
        hears_nothing(&mut client).await;
        proxy.mend();
        is_reset(&mut client).await;
        is_reset(&mut server).await;
        let (mut client, mut server) = (connect(&proxy).await, within(listener.accept()).await.unwrap().0);
        says(&mut server, "answer").await;
        hears(&mut client, "answer").await;
    }

    #[tokio::test]
    async fn a_connection_of_which_nothing_was_swallowed_goes_on() {
        let Ends { proxy, mut client, mut server, .. } = ends().await;
        proxy.swallow_replies();
        proxy.mend();
        says(&mut server, "answer").await;
        hears(&mut client, "answer").await;
    }

    #[tokio::test]
    async fn a_silent_server_accepts_and_hears_nothing() {
        let Ends { proxy, listener, mut client, mut server } = ends().await;
        proxy.accept_and_be_silent();
        let mut late = connect(&proxy).await;
        for stream in [&mut client, &mut late] {
            says(stream, "ask").await;
            hears_nothing(stream).await;
        }
        proxy.swallowed().await;
        hears_nothing(&mut server).await;
        assert!(tokio::time::timeout(A_WHILE, listener.accept()).await.is_err(), "nobody gets through");
        proxy.mend();
        is_reset(&mut client).await;
        is_reset(&mut late).await;
    }

    #[tokio::test]
    async fn all_connections_are_reset_at_both_ends_and_new_ones_are_made() {
        let Ends { proxy, listener, mut client, mut server } = ends().await;
        proxy.cut_connections();
        is_reset(&mut client).await;
        is_reset(&mut server).await;
        let (mut client, mut server) = (connect(&proxy).await, within(listener.accept()).await.unwrap().0);
        says(&mut client, "ask").await;
        hears(&mut server, "ask").await;
    }

    #[tokio::test]
    async fn a_delay_is_that_of_each_byte_and_not_of_all_together() {
        let Ends { proxy, mut client, mut server, .. } = ends().await;
        let (clock, delay) = (SystemClock::new(), Duration::from_millis(100));
        proxy.delay(delay);
        let begin = clock.now();
        for word in ["one", "two", "three", "four", "five"] {
            says(&mut client, word).await;
            tokio::task::yield_now().await;
        }
        hears(&mut server, "onetwothreefourfive").await;
        let took = clock.now().saturating_since(begin);
        assert!(took >= delay, "it took {took:?}");
        assert!(took < delay * 4, "one waits for the other: it took {took:?}");
    }

    #[tokio::test]
    async fn where_there_is_no_server_a_client_is_reset() {
        let Ends { proxy, listener, .. } = ends().await;
        drop(listener);
        is_reset(&mut connect(&proxy).await).await;
    }

    #[tokio::test]
    async fn dropping_it_closes_all() {
        let Ends { proxy, mut client, mut server, .. } = ends().await;
        let port = proxy.port();
        drop(proxy);
        assert_eq!(within(client.read(&mut [0])).await.unwrap(), 0);
        assert_eq!(within(server.read(&mut [0])).await.unwrap(), 0);
        within(async { while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() {} }).await;
    }
}
