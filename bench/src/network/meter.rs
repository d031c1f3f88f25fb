//! The way from a server to its clients, with a count of what comes along it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// A port that leads to a server's, and a count of what passes there.
pub(crate) struct Meter {
    port: u16,
    count: Arc<Count>,
    /// Its connections end with it.
    _runtime: Runtime,
}

#[derive(Default)]
struct Count {
    /// That clients have read.
    bytes: AtomicUsize,
    /// How often a client has sent something after a server had, which begins a round trip.
    round_trips: AtomicUsize,
    /// Whether the last that passed, on any connection, came from a client.
    asked: AtomicBool,
}

impl Count {
    fn sent(&self, _: usize) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            self.round_trips.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn answered(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
    }
}

impl Meter {
    pub(crate) fn before(server: u16) -> Self {
        let runtime = crate::runtime();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let count = Arc::new(Count::default());
        let counting = Arc::clone(&count);
        runtime.spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                tokio::spawn(carry(client, server, Arc::clone(&counting)));
            }
        });
        Self { port, count, _runtime: runtime }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many bytes clients have read.
    pub(crate) fn read(&self) -> usize {
        self.count.bytes.load(Ordering::Relaxed)
    }

    /// How many round trips there were, if one client was alone here and did one thing after the other: what it asks for at a time,
    /// on whatever connections, is one.
    pub(crate) fn round_trips(&self) -> usize {
        self.count.round_trips.load(Ordering::Relaxed)
    }
}

/// Carries one connection until either side ends it.
async fn carry(client: TcpStream, server: u16, count: Arc<Count>) {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await.expect("a server");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a connection");
    }
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pass(from_client, to_server, |bytes| count.sent(bytes)) => {}
        () = pass(from_server, to_client, |bytes| count.answered(bytes)) => {}
    }
}

/// Carries one direction, and counts first: who reads the last byte finds it counted.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: impl Fn(usize)) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        count(read);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn it_carries_both_ways_and_counts_what_comes_back() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let meter = Meter::before(listener.local_addr().unwrap().port());
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, meter.port())).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"asked").unwrap();
        let mut asked = [0; 5];
        server.read_exact(&mut asked).unwrap();
        assert_eq!((&asked, meter.read()), (b"asked", 0));
        server.write_all(b"an answer").unwrap();
        let mut answer = [0; 9];
        client.read_exact(&mut answer).unwrap();
        assert_eq!((&answer, meter.read()), (b"an answer", 9));
        drop(server);
        assert_eq!(client.read(&mut answer).unwrap(), 0, "it ends with the server");
    }

    #[test]
    fn what_is_asked_for_at_a_time_is_one_round_trip() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let meter = Meter::before(listener.local_addr().unwrap().port());
        let connect = || {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, meter.port())).unwrap();
            (client, listener.accept().unwrap().0)
        };
        let mut connections = [connect(), connect()];
        for round_trips in 1..=3 {
            for (client, server) in &mut connections {
                client.write_all(b"a").unwrap();
                server.read_exact(&mut [0]).unwrap();
            }
            assert_eq!(meter.round_trips(), round_trips);
            for (client, server) in &mut connections {
                server.write_all(b"b").unwrap();
                client.read_exact(&mut [0]).unwrap();
            }
        }
    }
}
