//! The network between servers that belong together, in this process: it can be cut around any of them.

use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::proxy::Proxy;

/// Carries what the servers say to each other, each way through a [`Proxy`] of its own.
///
/// Who calls whom is known because each server calls through an entrance of its own, which speaks SOCKS 5: a Java machine does so
/// by itself where it is told to (`socksProxyHost`), whatever addresses its servers tell each other.
#[derive(Debug)]
pub(crate) struct Interconnect {
    ways: Arc<Vec<Way>>,
    entrances: Vec<Entrance>,
}

/// From one server to a port of another one.
#[derive(Debug)]
struct Way {
    from: usize,
    to: usize,
    port: u16,
    proxy: Proxy,
}

#[derive(Debug)]
struct Entrance {
    port: u16,
    task: JoinHandle<()>,
}

impl Interconnect {
    /// Between servers that call each other on these ports.
    pub(crate) async fn new(ports: &[Vec<u16>]) -> Self {
        let mut ways = Vec::new();
        for from in 0..ports.len() {
            for (to, ports) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                for port in ports {
                    ways.push(Way { from, to, port: *port, proxy: Proxy::start(*port).await });
                }
            }
        }
        let ways = Arc::new(ways);
        let mut entrances = Vec::new();
        for from in 0..ports.len() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port of 127.0.0.1");
            let port = listener.local_addr().expect("a listener has an address").port();
            let task = tokio::spawn(listen(listener, from, Arc::clone(&ways)));
            entrances.push(Entrance { port, task });
        }
        Self { ways, entrances }
    }

    /// The port of 127.0.0.1 through which a server has to call the others.
    pub(crate) fn entrance(&self, server: usize) -> u16 {
        self.entrances[server].port
    }

    /// Nothing passes any more between this server and the others, as with [`Proxy::cut`].
    pub(crate) fn cut_off(&self, server: usize) {
        for way in self.ways.iter().filter(|way| way.from == server || way.to == server) {
            way.proxy.cut();
        }
    }

    /// Everything passes again between all of them.
    pub(crate) fn mend(&self) {
        for way in self.ways.iter() {
            way.proxy.mend();
        }
    }
}

impl Drop for Interconnect {
    fn drop(&mut self) {
        for entrance in &self.entrances {
            entrance.task.abort();
        }
    }
}

async fn listen(listener: TcpListener, from: usize, ways: Arc<Vec<Way>>) {
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (caller, _) = accepted.expect("a listener accepts");
                let ways = Arc::clone(&ways);
                // Who hangs up in the middle of a call has ended it.
                calls.spawn(async move { drop(carry(caller, from, &ways).await) });
            }
            Some(_) = calls.join_next() => {}
        }
    }
}

/// Learns whom a server calls, and leads it there. Its words are those of SOCKS 5 (RFC 1928), of which it says the fewest.
async fn carry(mut caller: TcpStream, from: usize, ways: &[Way]) -> std::io::Result<()> {
    const VERSION: u8 = 5;
    let [_version, methods] = read(&mut caller).await?;
    caller.read_exact(&mut vec![0; methods.into()]).await?;
    // Nobody has to say who it is.
    caller.write_all(&[VERSION, 0]).await?;
    let [_version, _connect, _, kind] = read(&mut caller).await?;
    let address_bytes = match kind {
        1 => 4,
        3 => usize::from(caller.read_u8().await?),
        _ => 16,
    };
    caller.read_exact(&mut vec![0; address_bytes]).await?;
    let port = caller.read_u16().await?;
    let way = ways.iter().find(|way| way.from == from && way.port == port);
    let way = way.expect("servers call each other, and nobody else");
    let mut answerer = TcpStream::connect((Ipv4Addr::LOCALHOST, way.proxy.port())).await?;
    caller.write_all(&[VERSION, 0, 0, 1, 127, 0, 0, 1, 0, 0]).await?;
    caller.set_nodelay(true)?;
    answerer.set_nodelay(true)?;
    copy_bidirectional(&mut caller, &mut answerer).await.map(drop)
}

async fn read<const N: usize>(caller: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    caller.read_exact(&mut bytes).await?;
    Ok(bytes)
}
