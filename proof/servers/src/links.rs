//! The network between the members of an etcd cluster, in this process: it can be cut around any of them.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::proxy::Proxy;

/// Carries what the members say to each other, each way through a [`Proxy`] of its own.
///
/// A Go program cannot be led through an entrance of its own, as ZooKeeper's servers are ([`crate::interconnect`]): it asks no proxy
/// for what is on 127.0.0.1. All members know one of them by the same port. So it is ours, and who connects to it is told by the
/// process that has the other end of the connection.
#[derive(Debug)]
pub(crate) struct Links {
    /// By whom they lead to, and by whom they come from.
    ways: Arc<Vec<Vec<Proxy>>>,
    ports: Vec<u16>,
    /// The processes of the members, as long as they are known.
    processes: Arc<Mutex<Vec<u32>>>,
    _listening: JoinSet<()>,
}

impl Links {
    /// Those between members that listen on these ports of 127.0.0.1. Nothing passes before [`Self::lead_to`].
    pub(crate) async fn between(members: &[u16]) -> Self {
        let mut ways = Vec::new();
        for to in members {
            let mut from_each = Vec::new();
            for _ in members {
                from_each.push(Proxy::start(*to).await);
            }
            ways.push(from_each);
        }
        let (ways, processes) = (Arc::new(ways), Arc::new(Mutex::new(Vec::new())));
        let (mut ports, mut listening) = (Vec::new(), JoinSet::new());
        for to in 0..members.len() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port of 127.0.0.1");
            ports.push(listener.local_addr().expect("a listener has an address").port());
            listening.spawn(listen(listener, to, Arc::clone(&ways), Arc::clone(&processes)));
        }
        Self { ways, ports, processes, _listening: listening }
    }

    /// The ports by which the members know each other.
    pub(crate) fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// These are the processes of the members from now on.
    pub(crate) fn lead_to(&self, processes: Vec<u32>) {
        *self.processes.lock().unwrap_or_else(PoisonError::into_inner) = processes;
    }

    /// Nothing passes any more between a member and the others, as with [`Proxy::cut`].
    pub(crate) fn cut_off(&self, member: usize) {
        let ways = self.ways.iter().enumerate();
        let of_member = ways.flat_map(|(to, ways)| {
            ways.iter().enumerate().filter(move |(from, _)| to == member || *from == member)
        });
        of_member.for_each(|(_, way)| way.cut());
    }

    /// Everything passes again.
    pub(crate) fn mend(&self) {
        self.ways.iter().flatten().for_each(Proxy::mend);
    }
}

async fn listen(
    listener: TcpListener,
    to: usize,
    ways: Arc<Vec<Vec<Proxy>>>,
    processes: Arc<Mutex<Vec<u32>>>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (mut client, address) = accepted.expect("a listener accepts");
                let processes = processes.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // One that nobody has any more has nothing to say, and one that comes too early comes again.
                let Some(from) = owner(address.port(), &processes) else { continue };
                let way = ways[to][from].port();
                connections.spawn(async move {
                    let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, way)).await else { return };
                    let _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Which of these processes has the connection that begins at this port of 127.0.0.1.
fn owner(port: u16, processes: &[u32]) -> Option<usize> {
    let connections = fs::read_to_string("/proc/net/tcp").ok()?;
    // The address as the machine has it in memory.
    let address = u32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());
    let begin = format!("{address:08X}:{port:04X}");
    // The number of the connection, its two ends, and eight more; then the number of its socket.
    let sockets = connections.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let socket = sockets.filter(|fields| fields.get(1) == Some(&&*begin)).find_map(|fields| {
        fields.get(9).filter(|inode| **inode != "0").map(|inode| format!("socket:[{inode}]"))
    })?;
    processes.iter().position(|process| {
        let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.as_os_str() == &*socket)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_connects_is_told_by_its_process() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let port = client.local_addr().unwrap().port();
        assert_eq!(owner(port, &[1, std::process::id()]), Some(1));
        assert_eq!(owner(port, &[]), None);
    }
}
