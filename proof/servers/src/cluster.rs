use std::fmt::Write as _;
use std::fs;

use tempfile::TempDir;

use crate::port::{BUS, Port};
use crate::redis::{RedisOptions, RedisServer, until, value_of};

/// A Redis Cluster of three masters, each with a third of the slots, and with a replica each where they are wanted.
///
/// A node is named by its index: the masters are 0, 1 and 2 when it is started. A node is taken for dead after two
/// seconds, and its replica takes its place about two seconds later. Starting it takes two seconds, because a master
/// waits so long before it believes in its cluster. Dropping it kills all.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<RedisServer>,
    /// Where each node keeps what it knows of the others.
    _folder: TempDir,
}

impl RedisCluster {
    /// With how many masters it starts.
    pub const MASTERS: usize = 3;

    /// Starts three masters, and returns when every node knows that all slots are served. `None`, and said as
    /// [`skip`](crate::skip) does, where `redis-server` or `redis-cli` is not installed.
    ///
    /// Panics when that takes too long.
    pub async fn start() -> Option<Self> {
        Self::start_with(RedisOptions::new(), 0).await
    }

    /// As [`Self::start`], with a replica for each master. It returns when every replica follows its master.
    pub async fn start_with_replicas() -> Option<Self> {
        Self::start_with(RedisOptions::new(), 1).await
    }

    /// As [`Self::start`], where all nodes speak TLS and nothing else, also with each other. They have one certificate, which is
    /// for 127.0.0.1 and for no name.
    pub async fn start_with_tls() -> Option<Self> {
        Self::start_with(RedisOptions::new().tls().set("tls-cluster", &["yes"]), 0).await
    }

    /// `plain` is what a node is beside what all of ours are.
    async fn start_with(plain: RedisOptions, replicas: usize) -> Option<Self> {
        let folder = TempDir::new().expect("a temporary directory");
        let ports: Vec<Port> = (0..Self::MASTERS * (1 + replicas)).map(|_| Port::claim()).collect();
        let numbers: Vec<u16> = ports.iter().map(Port::number).collect();
        let mut nodes = Vec::new();
        for port in ports {
            let file = folder.path().join(format!("{}.conf", port.number()));
            fs::write(&file, membership(port.number(), &numbers)).expect("a temporary file can be written");
            let options = plain
                .clone()
                .set("cluster-enabled", &["yes"])
                .set("cluster-config-file", &[&file.to_string_lossy()])
                .set("cluster-node-timeout", &["2000"])
                // By default a master waits five seconds for more replicas before it serves the first.
                .set("repl-diskless-sync-delay", &["0"]);
            nodes.push(options.start_on(port).await?);
        }
        let cluster = Self { nodes, _folder: folder };
        for node in &cluster.nodes {
            until("every node knows that the cluster is whole", async || is_whole(node).await).await;
            until("every replica follows its master", async || {
                let status = node.info("master_link_status").await;
                status.is_none_or(|status| status == "up").then_some(())
            })
            .await;
        }
        Some(cluster)
    }

    /// The URL, as in `redis+cluster://127.0.0.1:11042,127.0.0.1:11043,127.0.0.1:11044`.
    pub fn url(&self) -> String {
        format!("redis+cluster://{}", self.nodes.iter().map(address).collect::<Vec<_>>().join(","))
    }

    /// All nodes, the masters of the beginning first.
    pub fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// All nodes, to be killed and restarted. One that is restarted is the same node, and joins by itself.
    pub fn nodes_mut(&mut self) -> &mut [RedisServer] {
        &mut self.nodes
    }

    /// The slot of a key.
    pub async fn slot_of(&self, key: &str) -> u16 {
        let slot = self.living().await.command(&["cluster", "keyslot", key]).await;
        slot.parse().expect("a slot is a number")
    }

    /// The index of the master of a slot.
    pub async fn master_of(&self, slot: u16) -> usize {
        let view = self.living().await.command(&["cluster", "nodes"]).await;
        let master = view.lines().map(View::new).find(|node| node.serves(slot));
        self.index(master.unwrap_or_else(|| panic!("nobody serves slot {slot}:\n{view}")).port)
    }

    /// Begins to move a slot to another master. Who asks for a key that its old master has not got any more, or not
    /// yet, is told ASK; who asks for several of which only some are there, TRYAGAIN.
    pub async fn begin_migration(&self, slot: u16, to: usize) {
        let from = self.master_of(slot).await;
        assert_ne!(from, to, "slot {slot} is there already");
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let slot = slot.to_string();
        target.command(&["cluster", "setslot", &slot, "importing", &id(source).await]).await;
        source.command(&["cluster", "setslot", &slot, "migrating", &id(target).await]).await;
    }

    /// Moves at most so many keys of a slot that is being moved, and says how many it has moved.
    pub async fn migrate_keys(&self, slot: u16, to: usize, limit: usize) -> usize {
        let (source, port) = (&self.nodes[self.master_of(slot).await], self.nodes[to].port().to_string());
        let keys = source.command(&["cluster", "getkeysinslot", &slot.to_string(), &limit.to_string()]).await;
        let keys: Vec<&str> = keys.lines().collect();
        if !keys.is_empty() {
            let mut migrate = vec!["migrate", "127.0.0.1", &port, "", "0", "5000", "keys"];
            migrate.extend(&keys);
            source.command(&migrate).await;
        }
        keys.len()
    }

    /// Moves what is left in a slot, and makes the other master its master. Who asks the old one for any of its keys is
    /// told MOVED.
    pub async fn end_migration(&self, slot: u16, to: usize) {
        while self.migrate_keys(slot, to, 1000).await > 0 {}
        let (from, target) = (self.master_of(slot).await, id(&self.nodes[to]).await);
        // The new master first: if the old one were, nobody would own the slot in between.
        let others = (0..Self::MASTERS).filter(|other| ![from, to].contains(other));
        for node in [to, from].into_iter().chain(others) {
            self.nodes[node].command(&["cluster", "setslot", &slot.to_string(), "node", &target]).await;
        }
    }

    /// Moves a slot with its keys: [`Self::begin_migration`] and [`Self::end_migration`].
    pub async fn move_slot(&self, slot: u16, to: usize) {
        self.begin_migration(slot, to).await;
        self.end_migration(slot, to).await;
    }

    /// Kills a node. Without a replica its slots are nobody's, and then the whole cluster stops serving, two seconds
    /// later.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Waits until all living nodes know that the slots of a node that was killed are served by another one.
    ///
    /// Panics when that takes too long, as it does without replicas.
    pub async fn wait_for_failover(&self, killed: usize) {
        let killed = self.nodes[killed].port();
        for node in self.nodes.iter().filter(|node| node.port() != killed) {
            until("a replica takes the place of its master", async || {
                let view = node.ask(&["cluster", "nodes"]).await.ok()?;
                let serves_none =
                    view.lines().map(View::new).all(|node| node.port != killed || node.slots.is_empty());
                if serves_none { is_whole(node).await } else { None }
            })
            .await;
        }
    }

    /// A node that answers.
    async fn living(&self) -> &RedisServer {
        for node in &self.nodes {
            if node.ask(&["ping"]).await.is_ok() {
                return node;
            }
        }
        panic!("no node of the cluster answers");
    }

    fn index(&self, port: u16) -> usize {
        let index = self.nodes.iter().position(|node| node.port() == port);
        index.unwrap_or_else(|| panic!("the cluster names port {port}, which is none of our nodes'"))
    }
}

/// What a node knows of its cluster from the start, as it would write it down itself: `redis-cli --cluster create` has the
/// nodes find each other, which takes two seconds, or ten.
fn membership(myself: u16, nodes: &[u16]) -> String {
    const SLOTS: usize = 16384;
    // Forty hexadecimal digits, made from the port.
    let id = |port: u16| format!("{port:040x}");
    let mut lines = String::new();
    for (index, port) in nodes.iter().enumerate() {
        let own = if *port == myself { "myself," } else { "" };
        let master = index % RedisCluster::MASTERS;
        let place = if index == master {
            let slot = |master: usize| master * SLOTS / RedisCluster::MASTERS;
            format!("{own}master - 0 0 {} connected {}-{}", index + 1, slot(index), slot(index + 1) - 1)
        } else {
            format!("{own}slave {} 0 0 {} connected", id(nodes[master]), master + 1)
        };
        writeln!(lines, "{} 127.0.0.1:{port}@{} {place}", id(*port), port + BUS)
            .expect("a string is written to");
    }
    lines + &format!("vars currentEpoch {} lastVoteEpoch 0\n", RedisCluster::MASTERS)
}

fn address(node: &RedisServer) -> String {
    format!("127.0.0.1:{}", node.port())
}

async fn id(node: &RedisServer) -> String {
    node.command(&["cluster", "myid"]).await
}

async fn is_whole(node: &RedisServer) -> Option<()> {
    let state = value_of(&node.ask(&["cluster", "info"]).await.ok()?, "cluster_state");
    (state.as_deref() == Some("ok")).then_some(())
}

/// A node in the view of another: a line of CLUSTER NODES.
struct View<'a> {
    port: u16,
    /// Each as in `0-5460` or `5461`; a slot that is being moved stands, besides, in brackets.
    slots: Vec<&'a str>,
}

impl<'a> View<'a> {
    fn new(line: &'a str) -> Self {
        let mut words = line.split(' ');
        // As in `127.0.0.1:11042@21042`.
        let address = words.nth(1).and_then(|address| address.split('@').next());
        let port = address.and_then(|address| address.rsplit(':').next()?.parse().ok());
        // After the flags, the master, two times, the epoch and the state of the link.
        let slots = words.skip(6).filter(|slots| !slots.starts_with('[')).collect();
        Self { port: port.unwrap_or_else(|| panic!("not a node of a cluster: {line:?}")), slots }
    }

    fn serves(&self, slot: u16) -> bool {
        self.slots.iter().any(|slots| {
            let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
            let number = |text: &str| text.parse::<u16>().expect("a slot is a number");
            (number(first)..=number(last)).contains(&slot)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_about_a_node_is_read() {
        let view = View::new(
            "07c3 127.0.0.1:11042@21042 myself,master - 0 1426238317239 2 connected 0-10 12 [13->-67ed]",
        );
        assert_eq!(view.port, 11042);
        let served: Vec<u16> = (0..20).filter(|slot| view.serves(*slot)).collect();
        assert_eq!(served, (0..=10).chain([12]).collect::<Vec<_>>());
        let view = View::new("07c3 127.0.0.1:11043@21043 slave 67ed 0 1426238317239 2 connected");
        assert!(view.slots.is_empty());
    }

    #[tokio::test]
    async fn a_slot_is_moved_key_by_key() {
        let Some(cluster) = RedisCluster::start().await else { return };
        let (one, two) = ("{lock}one", "{lock}two");
        let slot = cluster.slot_of(one).await;
        assert_eq!(slot, cluster.slot_of(two).await);
        let from = cluster.master_of(slot).await;
        let to = (from + 1) % RedisCluster::MASTERS;
        let (source, target) = (&cluster.nodes()[from], &cluster.nodes()[to]);
        for key in [one, two] {
            source.command(&["set", key, "value"]).await;
        }
        let told = async |node: &RedisServer, words: &[&str]| node.ask(words).await.unwrap_err();
        assert!(told(target, &["get", one]).await.starts_with("MOVED"));

        cluster.begin_migration(slot, to).await;
        assert_eq!(source.command(&["mget", one, two]).await, "value\nvalue");
        assert_eq!(cluster.migrate_keys(slot, to, 1).await, 1);
        assert!(told(source, &["mget", one, two]).await.starts_with("TRYAGAIN"));
        assert_eq!(cluster.migrate_keys(slot, to, 1).await, 1);
        assert!(told(source, &["get", one]).await.starts_with("ASK"));
        assert!(told(target, &["get", one]).await.starts_with("MOVED"));

        cluster.end_migration(slot, to).await;
        assert_eq!(cluster.master_of(slot).await, to);
        assert_eq!(target.command(&["mget", one, two]).await, "value\nvalue");
        assert!(told(source, &["get", one]).await.starts_with("MOVED"));
        cluster.move_slot(slot, from).await;
        assert_eq!(source.command(&["mget", one, two]).await, "value\nvalue");
    }

    #[tokio::test]
    async fn by_tls_a_slot_is_moved_as_well() {
        let Some(cluster) = RedisCluster::start_with_tls().await else { return };
        let slot = cluster.slot_of("key").await;
        let from = cluster.master_of(slot).await;
        let to = (from + 1) % RedisCluster::MASTERS;
        assert!(cluster.nodes()[from].url().starts_with("rediss://"));
        cluster.nodes()[from].command(&["set", "key", "value"]).await;
        cluster.move_slot(slot, to).await;
        assert_eq!(cluster.nodes()[to].command(&["get", "key"]).await, "value");
    }

    #[tokio::test]
    async fn a_killed_master_is_replaced_by_its_replica_and_comes_back_as_one() {
        let Some(mut cluster) = RedisCluster::start_with_replicas().await else { return };
        let slot = cluster.slot_of("key").await;
        let killed = cluster.master_of(slot).await;
        assert!(killed < RedisCluster::MASTERS, "the first ones are the masters");
        cluster.kill(killed);
        cluster.wait_for_failover(killed).await;
        let next = cluster.master_of(slot).await;
        assert!(next >= RedisCluster::MASTERS, "it was a replica");
        cluster.nodes()[next].command(&["set", "key", "value"]).await;
        cluster.nodes_mut()[killed].restart().await;
        until("it follows the one that took its place", async || {
            cluster.nodes()[killed].info("role").await.filter(|role| role == "slave")
        })
        .await;
    }
}
