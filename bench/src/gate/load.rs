//! Clients that send one request after the other, each on a connection of its own.
//!
//! It writes bytes that were made once and looks only for the end of each answer, because what it costs it takes from the subject, which is
//! on the same cores. (`wrk` would do that as well, but knows nothing of locks that change hands.)

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ringfence::Locks;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;

use crate::contender::samples::Samples;
use crate::contender::word;

const LOCK: &str = "orders/42";
const BODY: &str = "{\"order\":42,\"amount\":1999,\"currency\":\"EUR\",\"customer\":\"c-1024\"}\n";

/// The clients, as a process of their own.
#[derive(Debug, clap::Args)]
pub(crate) struct Load {
    #[arg(long)]
    port: u16,
    #[arg(long)]
    connections: usize,
    #[arg(long)]
    millis: u64,
    /// Where the lock is taken whose token is sent. Without it the token is anything.
    #[arg(long)]
    url: Option<String>,
    /// How often the lock changes hands.
    #[arg(long, requires = "url")]
    rises_every_ms: Option<u64>,
}

/// What there is to say at the end.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// How long those took that were answered with 200, in the time that counts.
    pub(crate) passed: Samples,
    /// How many were sent, in that time and before.
    pub(crate) all: usize,
    /// How many were refused because their token was older, in the time that counts.
    pub(crate) refused: usize,
    /// How long the time was that counts.
    pub(crate) lasted: Duration,
}

impl Load {
    pub(crate) fn run(self) {
        crate::small_runtime().block_on(async {
            let locks = match &self.url {
                Some(url) => Some(Locks::connect(url).await.expect("a store")),
                None => None,
            };
            let mut held = None;
            if let Some(locks) = &locks {
                held = Some(locks.lock(LOCK).acquire().await.expect("a lock"));
            }
            let token = held.as_ref().map_or_else(|| "1024.7b".to_owned(), |guard| guard.token().to_string());
            let (shown, tokens) = watch::channel(token);
            let mut streams = Vec::new();
            for _ in 0..self.connections {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.expect("a server");
                stream.set_nodelay(true).expect("a connection");
                streams.push(stream);
            }
            word::wait();
            let length = Duration::from_millis(self.millis);
            // A quarter of the time before anything counts: everybody has connections by then.
            let from = Instant::now() + length / 4;
            let until = from + length;
            let clients: Vec<_> = streams
                .into_iter()
                .map(|stream| tokio::spawn(ask(stream, tokens.clone(), from, until)))
                .collect();
            if let (Some(locks), Some(every)) = (&locks, self.rises_every_ms) {
                while Instant::now() < until {
                    sleep(Duration::from_millis(every)).await;
                    held.take().expect("it is held").release().await.expect("a release");
                    let guard = locks.lock(LOCK).acquire().await.expect("a lock");
                    shown.send_replace(guard.token().to_string());
                    held = Some(guard);
                }
            }
            let mut all = Outcome::default();
            for client in clients {
                let Outcome { passed, all: sent, refused, lasted } = client.await.expect("a task");
                all.passed.append(passed);
                all.all += sent;
                all.refused += refused;
                all.lasted = all.lasted.max(lasted);
            }
            drop(held);
            if let Some(locks) = locks {
                locks.close().await.expect("the end of a lease");
            }
            word::report(&all);
        });
    }
}

async fn ask(
    mut stream: TcpStream,
    mut tokens: watch::Receiver<String>,
    from: Instant,
    until: Instant,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut request = request(&tokens.borrow_and_update());
    let mut answer = Vec::with_capacity(4096);
    loop {
        if tokens.has_changed().unwrap_or(false) {
            request = self::request(&tokens.borrow_and_update());
        }
        let sent = Instant::now();
        // On a machine that is slow enough, one that began before anything counts takes all of the time.
        if sent >= until && outcome.passed.len() > 0 {
            return Outcome { lasted: sent - from, ..outcome };
        }
        stream.write_all(&request).await.expect("a server");
        let status = answered(&mut stream, &mut answer).await;
        outcome.all += 1;
        match status {
            _ if sent < from => {}
            200 => outcome.passed.push(sent.elapsed()),
            412 => outcome.refused += 1,
            _ => panic!("unexpected: {}", String::from_utf8_lossy(&answer)),
        }
    }
}

fn request(token: &str) -> Vec<u8> {
    let length = BODY.len();
    format!(
        "POST /orders/42/charge HTTP/1.1\r\nHost: resource.example\r\nUser-Agent: load\r\nAccept: */*\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\nRingfence-Token: {LOCK};{token}\r\n\r\n{BODY}"
    )
    .into_bytes()
}

/// Reads one answer to its end, and returns its status.
async fn answered(stream: &mut TcpStream, answer: &mut Vec<u8>) -> u16 {
    answer.clear();
    loop {
        let read = stream.read_buf(answer).await.expect("a server");
        assert!(read > 0, "the server closed the connection after {:?}", String::from_utf8_lossy(answer));
        let Some(head) = answer.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&answer[..head]).expect("a head of ASCII");
        let length: usize = text
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, length)| length.parse().ok())
            .expect("an answer with a length");
        if answer.len() >= head + 4 + length {
            let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
            return status.expect("a status");
        }
    }
}
