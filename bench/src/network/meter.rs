//! The way from a server to its clients, with a count of what comes along it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// A port that leads to a server's, and a count of the bytes that the server's clients read there.
pub(crate) struct Meter {
    port: u16,
    bytes: Arc<AtomicUsize>,
    /// Its connections end with it.
    _runtime: Runtime,
}

impl Meter {
    pub(crate) fn before(server: u16) -> Self {
        let runtime = crate::runtime();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
        let port = listener.local_addr().expect("a listener has an address").port();
        let bytes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&bytes);
        runtime.spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                tokio::spawn(carry(client, server, Arc::clone(&counted)));
            }
        });
        Self { port, bytes, _runtime: runtime }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many bytes clients have read.
    pub(crate) fn read(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Carries one connection until either side ends it.
async fn carry(client: TcpStream, server: u16, counted: Arc<AtomicUsize>) {
    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await.expect("a server");
    for stream in [&client, &server] {
        stream.set_nodelay(true).expect("a connection");
    }
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = copy(&mut from_client, &mut to_server);
    let back = async {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
            counted.fetch_add(read, Ordering::Relaxed);
            if to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = there => {}
        () = back => {}
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
}
