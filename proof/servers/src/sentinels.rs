use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::port::Port;
use crate::redis::{Cli, Instance, LEASH, RedisOptions, RedisServer, until, until_within};
use crate::require::require;
use crate::tls::Certificates;

/// As which user the servers and the Sentinels talk to each other, so that they can be cut off and the clients not.
const INTERNAL: &str = "internal";

/// That user's password.
const INTERNAL_PASSWORD: &str = "between-us";

/// How many servers and how many Sentinels there are.
const COUNT: usize = 3;

/// How many Sentinels must agree: a majority.
const QUORUM: usize = 2;

/// How long a failover may take. Sentinels that split their votes vote again after four or five seconds, and may do so twice.
const FAILOVER_PATIENCE: Duration = Duration::from_secs(30);

/// A primary, two replicas, and three Sentinels that watch them.
///
/// A primary is taken for dead after half a second; another one is there two or three seconds after its death. Starting
/// them takes about a fifth of a second. Dropping it kills all.
#[derive(Debug)]
pub struct Sentinels {
    servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

#[derive(Debug)]
struct Sentinel {
    /// Held for the sake of its process.
    _instance: Instance,
    cli: Cli,
    _port: Port,
    _folder: TempDir,
}

impl Sentinels {
    /// As what the Sentinels know the primary and its replicas.
    pub const SERVICE: &str = "ringfence";

    /// Starts them, and returns when every replica follows and every Sentinel sees them all and knows the others. `None`, and said as
    /// [`skip`](crate::skip) does, where `redis-server` or `redis-cli` is not installed.
    ///
    /// Panics when that takes too long.
    pub async fn start() -> Option<Self> {
        Self::start_with(RedisOptions::new(), "127.0.0.1", None).await
    }

    /// As [`Self::start`], where the servers ask for one password and the Sentinels for another.
    pub async fn start_with_passwords(servers: &str, sentinels: &str) -> Option<Self> {
        Self::start_with(RedisOptions::new().password(servers), "127.0.0.1", Some(sentinels)).await
    }

    /// As [`Self::start`], where all of them speak TLS and nothing else, also with each other. They have one certificate, which
    /// is for 127.0.0.1 and for no name. The Sentinels name the primary of the beginning by this host: 127.0.0.1 or a name that
    /// leads there.
    pub async fn start_with_tls(host: &str) -> Option<Self> {
        Self::start_with(RedisOptions::new().tls().set("tls-replication", &["yes"]), host, None).await
    }

    /// `plain` is what a server is beside what all of ours are.
    async fn start_with(plain: RedisOptions, host: &str, sentinels_password: Option<&str>) -> Option<Self> {
        let certificates = plain.certificates.clone();
        let program = require("redis-server")?;
        let mut servers: Vec<RedisServer> = Vec::new();
        for _ in 0..COUNT {
            let mut options = options(plain.clone());
            if let Some(primary) = servers.first() {
                options = options.set("replicaof", &["127.0.0.1", &primary.port().to_string()]);
            }
            let server = options.start().await?;
            if !servers.is_empty() {
                // One after the other: a primary that serves one makes the next one wait a second. And before there are
                // Sentinels, which ask for news every ten seconds only: what they do not see at first, they see late.
                let follows =
                    async || server.info("master_link_status").await.filter(|status| status == "up");
                until("a replica follows its primary", follows).await;
            }
            servers.push(server);
        }
        let server_ports: Vec<u16> = servers.iter().map(RedisServer::port).collect();
        let ports: Vec<Port> = (0..COUNT).map(|_| Port::claim()).collect();
        let sentinel_ports: Vec<u16> = ports.iter().map(Port::number).collect();
        let mut sentinels = Vec::new();
        for port in ports {
            let folder = TempDir::new().expect("a temporary directory");
            let file = folder.path().join("sentinel.conf");
            let mut lines = configuration(port.number(), host, &server_ports, &sentinel_ports, folder.path());
            lines.extend(greeting(port.number(), sentinels_password, certificates.as_ref()));
            fs::write(&file, lines.join("\n") + "\n").expect("a temporary file can be written");
            let mut command = Command::new("sh");
            command.args(["-c", LEASH]).arg(&program).arg(&file).arg("--sentinel");
            let instance = Instance::start(command, "+monitor").await;
            let password = sentinels_password.map(str::to_owned);
            let certificates = certificates.clone();
            let cli = Cli { program: require("redis-cli")?, port: port.number(), password, certificates };
            sentinels.push(Sentinel { _instance: instance, cli, _port: port, _folder: folder });
        }
        let started = Self { servers, sentinels };
        for sentinel in &started.sentinels {
            until("a Sentinel sees all servers", async || sentinel.sees_all().await).await;
        }
        Some(started)
    }

    /// The ports of the Sentinels, on 127.0.0.1.
    pub fn sentinel_ports(&self) -> Vec<u16> {
        self.sentinels.iter().map(|sentinel| sentinel.cli.port).collect()
    }

    /// Has each Sentinel do something, as its default user.
    ///
    /// Panics when one answers with an error or not in time.
    pub async fn tell_sentinels(&self, words: &[&str]) {
        for Sentinel { cli, .. } in &self.sentinels {
            cli.ask(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
    }

    /// The URL, as in `redis+sentinel://127.0.0.1:11042,127.0.0.1:11043,127.0.0.1:11044/ringfence`. No password is part of
    /// it.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinel_ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Self::SERVICE)
    }

    /// All three servers. The first one was the primary when they were started.
    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    /// All three servers, to be killed and restarted. One that was the primary comes back as one, until the Sentinels,
    /// some ten seconds later, make a replica of it.
    pub fn servers_mut(&mut self) -> &mut [RedisServer] {
        &mut self.servers
    }

    /// The primary, if one asks the Sentinels.
    pub async fn primary(&self) -> &RedisServer {
        let port = self.sentinels[0].primary().await;
        self.server(port.expect("a Sentinel knows a primary"))
    }

    /// Kills the primary, and returns its port.
    pub async fn kill_primary(&mut self) -> u16 {
        let port = self.primary().await.port();
        let server = self.servers.iter_mut().find(|server| server.port() == port);
        server.expect("it was just found").kill();
        port
    }

    /// Cuts the primary off from its replicas and from the Sentinels, but not from its clients, and returns its port. It
    /// goes on as a primary beside the one that is soon chosen.
    pub async fn cut_off_primary(&self) -> u16 {
        let primary = self.primary().await;
        primary.command(&["acl", "setuser", INTERNAL, "-@all"]).await;
        primary.command(&["client", "kill", "user", INTERNAL]).await;
        primary.port()
    }

    /// Lets a primary that was cut off be reached again. If there is another one, the Sentinels, some ten seconds later,
    /// make a replica of this one, and it forgets what only it knew.
    pub async fn mend(&self, port: u16) {
        self.server(port).command(&["acl", "setuser", INTERNAL, "+@all"]).await;
    }

    /// Waits until all Sentinels name another primary than the one on this port, and that one knows that it is. Returns
    /// it.
    ///
    /// Panics when that takes too long.
    pub async fn wait_for_failover(&self, from: u16) -> &RedisServer {
        for sentinel in &self.sentinels {
            until_within(FAILOVER_PATIENCE, "every Sentinel names another primary", async || {
                sentinel.primary().await.filter(|port| *port != from)
            })
            .await;
        }
        let primary = self.primary().await;
        until("the new primary is one", async || primary.info("role").await.filter(|role| role == "master"))
            .await;
        primary
    }

    fn server(&self, port: u16) -> &RedisServer {
        let server = self.servers.iter().find(|server| server.port() == port);
        server.unwrap_or_else(|| panic!("the Sentinels name port {port}, which is none of our servers'"))
    }
}

impl Sentinel {
    /// The port of the primary, in its view.
    async fn primary(&self) -> Option<u16> {
        let answer = self.cli.ask(&["sentinel", "get-master-addr-by-name", Sentinels::SERVICE]).await.ok()?;
        answer.lines().nth(1)?.parse().ok()
    }

    async fn sees_all(&self) -> Option<()> {
        self.cli.ask(&["sentinel", "ckquorum", Sentinels::SERVICE]).await.ok()?;
        let sees_all = self.count("replicas", "flags", "slave").await == COUNT - 1
            && self.count("replicas", "master-link-status", "ok").await == COUNT - 1;
        sees_all.then_some(())
    }

    /// How many of its `sentinels` or `replicas` have a field of this value.
    async fn count(&self, which: &str, field: &str, value: &str) -> usize {
        let answer = self.cli.ask(&["sentinel", which, Sentinels::SERVICE]).await.unwrap_or_default();
        let lines: Vec<&str> = answer.lines().collect();
        lines.chunks(2).filter(|pair| pair == &[field, value]).count()
    }
}

/// Any of the servers may become the primary, so they are all alike.
fn options(plain: RedisOptions) -> RedisOptions {
    plain
        // By default a primary waits five seconds for more replicas before it serves the first.
        .set("repl-diskless-sync-delay", &["0"])
        .set("user", &[INTERNAL, "on", &format!(">{INTERNAL_PASSWORD}"), "~*", "&*", "+@all"])
        .set("masteruser", &[INTERNAL])
        .set("masterauth", &[INTERNAL_PASSWORD])
}

/// The configuration of one Sentinel, which names all servers and all other Sentinels: they would find each other within
/// some seconds, and the tests need not wait for it.
fn configuration(port: u16, host: &str, servers: &[u16], sentinels: &[u16], folder: &Path) -> Vec<String> {
    let service = Sentinels::SERVICE;
    // Forty hexadecimal digits, made from the port.
    let id = |port: u16| format!("{port:040x}");
    let mut lines = vec![
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", folder.display()),
        format!("sentinel myid {}", id(port)),
        "sentinel resolve-hostnames yes".to_owned(),
        "sentinel announce-hostnames yes".to_owned(),
        format!("sentinel monitor {service} {host} {} {QUORUM}", servers[0]),
        format!("sentinel auth-user {service} {INTERNAL}"),
        format!("sentinel auth-pass {service} {INTERNAL_PASSWORD}"),
        format!("sentinel down-after-milliseconds {service} 500"),
        format!("sentinel failover-timeout {service} 2000"),
        format!("sentinel parallel-syncs {service} 1"),
    ];
    let replicas = servers[1..].iter();
    lines.extend(replicas.map(|port| format!("sentinel known-replica {service} 127.0.0.1 {port}")));
    let others = sentinels.iter().filter(|other| **other != port);
    lines.extend(
        others.map(|other| format!("sentinel known-sentinel {service} 127.0.0.1 {other} {}", id(*other))),
    );
    lines
}

/// How one Sentinel is spoken to, and speaks to the others.
fn greeting(port: u16, password: Option<&str>, certificates: Option<&Certificates>) -> Vec<String> {
    let mut lines = match certificates {
        None => vec![format!("port {port}")],
        Some(files) => {
            let settings = files.settings(port).into_iter().chain([("tls-replication", "yes".to_owned())]);
            settings.map(|(setting, value)| format!("{setting} {value}")).collect()
        }
    };
    if let Some(password) = password {
        lines.push(format!("requirepass {password}"));
        lines.push(format!("sentinel sentinel-pass {password}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_killed_primary_is_replaced() {
        let Some(mut sentinels) = Sentinels::start().await else { return };
        let first = sentinels.servers()[0].port();
        assert_eq!(sentinels.primary().await.port(), first);
        assert_eq!(sentinels.primary().await.info("connected_slaves").await.as_deref(), Some("2"));
        assert_eq!(sentinels.kill_primary().await, first);
        let primary = sentinels.wait_for_failover(first).await;
        assert_ne!(primary.port(), first);
        primary.command(&["set", "key", "value"]).await;
        until("the other replica follows", async || {
            primary.info("connected_slaves").await.filter(|count| count == "1")
        })
        .await;
    }

    #[tokio::test]
    async fn a_primary_that_is_cut_off_goes_on_beside_the_next_one_until_it_is_reached_again() {
        let Some(sentinels) = Sentinels::start().await else { return };
        let old = sentinels.cut_off_primary().await;
        let new = sentinels.wait_for_failover(old).await;
        let old = &sentinels.servers()[0];
        for (server, value) in [(old, "old"), (new, "new")] {
            server.command(&["set", "key", value]).await;
        }
        for (server, value) in [(old, "old"), (new, "new")] {
            assert_eq!(server.info("role").await.as_deref(), Some("master"));
            assert_eq!(server.command(&["get", "key"]).await, value);
        }
        // A server that is down has that among its flags.
        let is_reached = async |count| {
            let sentinel = &sentinels.sentinels[0];
            (sentinel.count("replicas", "flags", "slave").await == count).then_some(())
        };
        until("a Sentinel does not reach one of the two", async || is_reached(1).await).await;
        sentinels.mend(old.port()).await;
        until("a Sentinel reaches both", async || is_reached(2).await).await;
    }

    #[tokio::test]
    async fn by_tls_a_killed_primary_is_replaced_as_well() {
        let Some(mut sentinels) = Sentinels::start_with_tls("localhost").await else { return };
        let sentinel = &sentinels.sentinels[0].cli;
        let named = sentinel.ask(&["sentinel", "get-master-addr-by-name", Sentinels::SERVICE]).await.unwrap();
        assert_eq!(named.lines().next(), Some("localhost"));
        let stranger = Cli { certificates: None, ..sentinel.clone() };
        stranger.ask(&["ping"]).await.expect_err("it speaks nothing but TLS");
        let old = sentinels.kill_primary().await;
        sentinels.wait_for_failover(old).await.command(&["set", "key", "value"]).await;
    }

    #[tokio::test]
    async fn passwords_are_asked_for_and_do_not_hinder_a_failover() {
        let Some(mut sentinels) = Sentinels::start_with_passwords("one", "two").await else { return };
        let stranger = Cli { password: None, ..sentinels.sentinels[0].cli.clone() };
        let error = stranger.ask(&["sentinel", "masters"]).await.unwrap_err();
        assert!(error.contains("NOAUTH"), "{error}");
        assert!(sentinels.primary().await.url().starts_with("redis://:one@"));
        let old = sentinels.kill_primary().await;
        sentinels.wait_for_failover(old).await.command(&["set", "key", "value"]).await;
    }
}
