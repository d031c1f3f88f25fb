//! Real ZooKeeper servers, one alone or an ensemble.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::interconnect::Interconnect;
use crate::port::Port;
use crate::process::Process;
use crate::redis::{LEASH, until_within};
use crate::require::{require, skip};
use crate::tls::Certificates;
use crate::wall_clock::WallClock;

/// Where Debian's package `zookeeper` has the server. What it needs it names itself.
const JAR: &str = "/usr/share/java/zookeeper.jar";

/// What it needs for TLS and does not name: its package brings it.
const NETTY: &str = "/usr/share/java/netty-codec.jar";

/// How long servers may take to start: each is a Java machine.
const START: Duration = Duration::from_mins(1);

/// What [`Ensemble::start`] starts, where it is not the plainest one there is.
#[derive(Clone, Debug)]
pub struct ZooKeeperOptions {
    servers: usize,
    settings: Vec<(String, String)>,
    properties: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    is_interconnected: bool,
    client_auth: Option<&'static str>,
}

impl Default for ZooKeeperOptions {
    fn default() -> Self {
        let (settings, properties, environment) = Default::default();
        let (is_interconnected, client_auth) = Default::default();
        Self { servers: 1, settings, properties, environment, is_interconnected, client_auth }
    }
}

impl ZooKeeperOptions {
    /// One server, which grants sessions of 400 ms to a minute, and whose tick is 200 ms.
    pub fn new() -> Self {
        Self::default()
    }

    /// So many servers, of which a majority has to agree.
    #[must_use]
    pub fn servers(mut self, servers: usize) -> Self {
        self.servers = servers;
        self
    }

    /// A setting of zoo.cfg: `("tickTime", "2000")`. It stands in place of ours.
    #[must_use]
    pub fn set(mut self, setting: &str, value: &str) -> Self {
        self.settings.push((setting.to_owned(), value.to_owned()));
        self
    }

    /// A property of the Java machine, for what cannot be set in zoo.cfg: `("znode.container.checkIntervalMs", "10")`.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push(format!("-D{name}={value}"));
        self
    }

    /// Servers between which the network can be cut, by [`Ensemble::cut_off`].
    #[must_use]
    pub fn interconnected(mut self) -> Self {
        self.is_interconnected = true;
        self
    }

    /// Servers that speak TLS on another port too, that of [`Ensemble::tls_url`]. Their certificate is for 127.0.0.1, and for no name.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.client_auth = Some("none");
        self
    }

    /// As [`Self::tls`], and clients have to show a certificate there.
    #[must_use]
    pub fn tls_for_known_clients(mut self) -> Self {
        self.client_auth = Some("need");
        self
    }

    /// Servers that tell the time by this clock.
    #[must_use]
    pub fn clock(mut self, clock: &WallClock) -> Self {
        self.environment = clock.environment();
        self
    }

    /// Starts the servers, and returns when each of them serves. `None`, and said as [`skip`] does, where ZooKeeper
    /// or Java is not installed.
    ///
    /// Panics when they do not start.
    pub async fn start(self) -> Option<Ensemble> {
        let java = require("java")?;
        if !Path::new(JAR).is_file() {
            skip("zookeeper", &format!("there is no {JAR}; install it, as with: apt-get install zookeeper"));
            return None;
        }
        let folder = TempDir::new().expect("a temporary directory");
        let ports: Vec<[Port; 3]> =
            (0..self.servers).map(|_| [Port::claim(), Port::claim(), Port::claim()]).collect();
        let mut lines = String::new();
        if self.servers > 1 {
            for (number, [_, peer, election]) in ports.iter().enumerate() {
                let (peer, election) = (peer.number(), election.number());
                // Writing to a string does not fail.
                let _ = writeln!(lines, "server.{}=127.0.0.1:{peer}:{election}", number + 1);
            }
        }
        let secure = self.client_auth.map(|client_auth| Secure::make(folder.path(), client_auth));
        let interconnect = if self.is_interconnected {
            let ports: Vec<_> =
                ports.iter().map(|ports| ports[1..].iter().map(Port::number).collect()).collect();
            Some(Interconnect::new(&ports).await)
        } else {
            None
        };
        let mut servers = Vec::new();
        for (at, ports) in ports.into_iter().enumerate() {
            let number = at + 1;
            let data = data_folder(folder.path(), at);
            fs::create_dir(&data).expect("a temporary directory can be written to");
            fs::write(data.join("myid"), number.to_string())
                .expect("a temporary directory can be written to");
            let config = folder.path().join(format!("zoo-{number}.cfg"));
            let mut text = self.config(&data, ports[0].number()) + &lines;
            let secure_port = secure.as_ref().map(|_| Port::claim());
            if let (Some(secure), Some(port)) = (&secure, &secure_port) {
                text += &secure.settings(port.number());
            }
            fs::write(&config, text).expect("a temporary directory can be written to");
            let entrance = interconnect.as_ref().map(|interconnect| interconnect.entrance(at));
            let (properties, environment) = (self.properties.clone(), self.environment.clone());
            let launch = Launch { java: java.clone(), properties, environment, entrance, config };
            servers.push(Server { process: launch.start(), launch, ports, secure_port });
        }
        let ensemble = Ensemble { servers, interconnect, secure, folder };
        ensemble.serves().await;
        Some(ensemble)
    }

    fn config(&self, data: &Path, port: u16) -> String {
        let ours = [
            ("tickTime", "200"),
            ("initLimit", "50"),
            ("syncLimit", "50"),
            ("clientPortAddress", "127.0.0.1"),
            ("admin.enableServer", "false"),
            ("4lw.commands.whitelist", "srvr,ruok,mntr"),
            ("maxClientCnxns", "0"),
            ("minSessionTimeout", "400"),
            ("maxSessionTimeout", "60000"),
            ("preAllocSize", "1024"),
        ];
        let is_replaced = |name: &str| self.settings.iter().any(|(setting, _)| setting == name);
        let ours = ours
            .iter()
            .filter(|(name, _)| !is_replaced(name))
            .map(|(name, value)| format!("{name}={value}\n"));
        let theirs = self.settings.iter().map(|(name, value)| format!("{name}={value}\n"));
        format!("dataDir={}\nclientPort={port}\n", data.display()) + &ours.chain(theirs).collect::<String>()
    }
}

/// ZooKeeper servers on ports of 127.0.0.1 that belong together, with nothing in them and nobody else on them.
///
/// One takes about half a second to start, three take two. Dropping them kills them, whatever state they are in; they end with the
/// test's process too, however that ends.
#[derive(Debug)]
pub struct Ensemble {
    servers: Vec<Server>,
    interconnect: Option<Interconnect>,
    secure: Option<Secure>,
    folder: TempDir,
}

#[derive(Debug)]
struct Server {
    process: Process,
    launch: Launch,
    ports: [Port; 3],
    secure_port: Option<Port>,
}

/// What servers that speak TLS show, and whom they trust.
#[derive(Debug)]
struct Secure {
    certificates: Certificates,
    /// The server's certificate and its key in one file, as a key store has them.
    both: PathBuf,
    client_auth: &'static str,
}

impl Secure {
    fn make(folder: &Path, client_auth: &'static str) -> Self {
        let certificates = Certificates::make(Ipv4Addr::LOCALHOST);
        let text = |file| fs::read_to_string(file).expect("a temporary file can be read");
        let both = folder.join("server.pem");
        fs::write(&both, text(&certificates.key) + &text(&certificates.certificate))
            .expect("a temporary directory can be written to");
        Self { certificates, both, client_auth }
    }

    fn settings(&self, port: u16) -> String {
        let (both, authority) = (self.both.display(), self.certificates.authority.display());
        let client_auth = self.client_auth;
        format!(
            "secureClientPort={port}\nsecureClientPortAddress=127.0.0.1\n\
             serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
             ssl.keyStore.location={both}\nssl.keyStore.type=PEM\n\
             ssl.trustStore.location={authority}\nssl.trustStore.type=PEM\nssl.clientAuth={client_auth}\n"
        )
    }
}

/// How a server is started, and started again.
#[derive(Debug)]
struct Launch {
    java: PathBuf,
    properties: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    /// The way to the other servers, where there is one of its own.
    entrance: Option<u16>,
    config: PathBuf,
}

impl Launch {
    fn start(&self) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", LEASH]).arg(&self.java);
        // It starts quickly and stays small.
        command.args(["-Xms32m", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        if let Some(entrance) = self.entrance {
            command.args(["-DsocksProxyHost=127.0.0.1", &format!("-DsocksProxyPort={entrance}")]);
            // Unless it is told that there are none, those of this machine are called directly.
            command.arg("-DsocksNonProxyHosts=");
        }
        command.args(&self.properties).args([
            "-Djava.net.preferIPv4Stack=true",
            "-cp",
            &[JAR, NETTY].join(":"),
        ]);
        command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&self.config);
        command.envs(self.environment.iter().cloned());
        // It complains there that nobody wants its log.
        command.stderr(Stdio::null());
        Process::start(command).expect("Java starts")
    }
}

fn data_folder(folder: &Path, at: usize) -> PathBuf {
    folder.join(format!("data-{}", at + 1))
}

impl Ensemble {
    /// Starts one server with [`ZooKeeperOptions::new`], as [`ZooKeeperOptions::start`] does.
    pub async fn start() -> Option<Self> {
        ZooKeeperOptions::new().start().await
    }

    /// The client ports of the servers.
    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(|server| server.ports[0].number()).collect()
    }

    /// The URL that names all servers, as in `zookeeper://127.0.0.1:11042,127.0.0.1:11045`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("zookeeper://{}", hosts.join(","))
    }

    /// The URL that names the ports of all servers on which they speak TLS, without a parameter that says so.
    ///
    /// Panics where they speak none.
    pub fn tls_url(&self) -> String {
        let port = |server: &Server| server.secure_port.as_ref().expect("servers that speak TLS").number();
        let hosts: Vec<String> =
            self.servers.iter().map(|server| format!("127.0.0.1:{}", port(server))).collect();
        format!("zookeeper://{}", hosts.join(","))
    }

    /// The certificate, in a PEM file, of the authority that signed theirs, and theirs with its key. A client may show these as well:
    /// they are of the same authority. `None` without TLS.
    pub fn certificates(&self) -> Option<[&Path; 3]> {
        let files = &self.secure.as_ref()?.certificates;
        Some([&files.authority, &files.certificate, &files.key])
    }

    /// Which server leads; `None` while none does.
    pub async fn leader(&self) -> Option<usize> {
        for at in 0..self.servers.len() {
            if matches!(self.mode(at).await.as_deref(), Some("leader" | "standalone")) {
                return Some(at);
            }
        }
        None
    }

    /// Waits until each server serves.
    ///
    /// Panics when one does not.
    pub async fn serves(&self) {
        for at in 0..self.servers.len() {
            until_within(START, "a ZooKeeper server serves", async || self.mode(at).await).await;
            // The port for TLS is opened after the other one.
            if let Some(port) = &self.servers[at].secure_port {
                let opened = async || connect(port.number()).ok();
                until_within(START, "a ZooKeeper server speaks TLS", opened).await;
            }
        }
    }

    /// How many watches a server keeps for clients.
    ///
    /// Panics when it does not say.
    pub async fn watches(&self, at: usize) -> usize {
        let said = self.says(at, "mntr").await.expect("the server answers");
        let count = said.lines().find_map(|line| line.strip_prefix("zk_watch_count\t"));
        count.and_then(|count| count.trim().parse().ok()).expect("a server counts watches")
    }

    /// What a server says that it is.
    async fn mode(&self, at: usize) -> Option<String> {
        let said = self.says(at, "srvr").await?;
        said.lines().find_map(|line| line.strip_prefix("Mode: ")).map(str::to_owned)
    }

    async fn says(&self, at: usize, word: &'static str) -> Option<String> {
        let port = self.servers[at].ports[0].number();
        let said = tokio::task::spawn_blocking(move || four_letters(port, word)).await;
        said.expect("it does not panic").ok()
    }

    /// Stops a server (SIGSTOP), and returns when it has stopped: connections to it are made, and nobody answers.
    pub fn stop(&self, at: usize) {
        self.servers[at].process.stop().expect("a server that runs can be stopped");
    }

    /// Lets it run on (SIGCONT).
    pub fn resume(&self, at: usize) {
        self.servers[at].process.resume().expect("a server that is stopped can be resumed");
    }

    /// Kills a server (SIGKILL), and returns when it is dead: connections to it are refused.
    pub fn kill(&mut self, at: usize) {
        self.servers[at].process.kill().expect("a server can be killed");
    }

    /// Kills a server, unless it is dead, and starts it again on the same ports, with what it had on its disk. It may not serve yet
    /// when this returns.
    pub fn restart(&mut self, at: usize) {
        self.kill(at);
        let server = &mut self.servers[at];
        server.process = server.launch.start();
    }

    /// Changes a setting of a server's zoo.cfg, for its next start.
    pub fn set(&self, at: usize, setting: &str, value: &str) {
        let file = &self.servers[at].launch.config;
        let config = fs::read_to_string(file).expect("it was started by this file");
        // The last one of a name counts.
        fs::write(file, format!("{config}{setting}={value}\n")).expect("a temporary file can be written to");
    }

    /// The folder in which a server keeps what it knows.
    pub fn files(&self, at: usize) -> PathBuf {
        data_folder(self.folder.path(), at)
    }

    /// From now on nothing passes between this server and the others, in either direction, and nobody hangs up. Clients reach all
    /// of them.
    ///
    /// Panics unless they are [`interconnected`](ZooKeeperOptions::interconnected).
    pub fn cut_off(&self, at: usize) {
        self.interconnect().cut_off(at);
    }

    /// Everything passes again between the servers: what was sent meanwhile, and what comes.
    pub fn mend(&self) {
        self.interconnect().mend();
    }

    fn interconnect(&self) -> &Interconnect {
        self.interconnect.as_ref().expect("the servers are interconnected")
    }

    /// Makes a node that is everybody's, as a client of its own.
    ///
    /// Panics when the servers do not do it.
    pub async fn create(&self, path: &str) {
        self.create_all(vec![path.to_owned()]).await;
    }

    /// Makes many nodes as [`Self::create`] does, in this order, and all at once.
    pub async fn create_all(&self, paths: Vec<String>) {
        let anybody = for_anybody(EVERYTHING);
        let create = move |path: &String| {
            let persistent = 0_i32.to_be_bytes();
            request(1, &[&buffer(path.as_bytes())[..], &buffer(b""), &anybody, &persistent].concat())
        };
        let port = self.leader_port().await;
        let make = move || {
            let mut client = Client::greet(port, 0, &[0; 16], &[]).expect("the leader serves");
            // The answers to these fit into what the kernel keeps for us.
            for paths in paths.chunks(200) {
                let requests: Vec<u8> = paths.iter().flat_map(&create).collect();
                client.0.write_all(&requests).expect("the leader serves");
                for path in paths {
                    assert_eq!(client.answer().expect("the leader answers").0, 0, "{path} cannot be made");
                }
            }
            client.ask(-11, &[]).expect("a session can be ended");
        };
        tokio::task::spawn_blocking(make).await.expect("it does not panic");
    }

    /// From now on anybody may do this with a node that is everybody's: the sum of 1 to read, 2 to write, 4 to make children, 8 to
    /// remove them and 16 to change this.
    ///
    /// Panics when the servers do not do it.
    pub async fn allow(&self, path: &str, rights: i32) {
        let version = (-1_i32).to_be_bytes();
        let body = [&buffer(path.as_bytes())[..], &for_anybody(rights), &version].concat();
        let (code, _) = self.ask(7, body).await;
        assert_eq!(code, 0, "the rights to {path} cannot be changed");
    }

    /// Removes a node, whatever it holds, as a client of its own.
    ///
    /// Panics when the servers do not do it.
    pub async fn delete(&self, path: &str) {
        let mut body = buffer(path.as_bytes());
        body.extend((-1_i32).to_be_bytes());
        let (code, _) = self.ask(2, body).await;
        assert_eq!(code, 0, "{path} cannot be removed");
    }

    /// Writes what a node holds into it once more, as a client of its own: it changes, and is as it was.
    ///
    /// Panics when the servers do not do it.
    pub async fn touch(&self, path: &str) {
        let mut body = buffer(path.as_bytes());
        body.push(0);
        let (code, answer) = self.ask(4, body).await;
        assert_eq!(code, 0, "{path} cannot be read");
        let (length, rest) = answer.split_first_chunk().expect("a length");
        let length = usize::try_from(i32::from_be_bytes(*length)).expect("a node holds something");
        let mut body = buffer(path.as_bytes());
        body.extend(buffer(&rest[..length]));
        body.extend((-1_i32).to_be_bytes());
        let (code, _) = self.ask(5, body).await;
        assert_eq!(code, 0, "{path} cannot be written");
    }

    /// The names of a node's children; none where there is no such node.
    pub async fn children(&self, path: &str) -> Vec<String> {
        let mut body = buffer(path.as_bytes());
        body.push(0);
        let (code, answer) = self.ask(8, body).await;
        assert!(matches!(code, 0 | -101), "{path} cannot be listed: {code}");
        if code != 0 {
            return Vec::new();
        }
        let mut rest = &answer[4..];
        let count = i32::from_be_bytes(answer[..4].try_into().expect("four bytes"));
        let next = |rest: &mut &[u8]| {
            let (length, after) = rest.split_first_chunk().expect("a length");
            let length = usize::try_from(i32::from_be_bytes(*length)).expect("a name has a length");
            let (name, after) = after.split_at(length);
            *rest = after;
            String::from_utf8(name.to_vec()).expect("names are text")
        };
        (0..count).map(|_| next(&mut rest)).collect()
    }

    /// Ends the session that a node lives by, as a second client of the session that says goodbye. For its owner that is as if it
    /// had expired.
    ///
    /// Panics when there is no such node, or when it is nobody's.
    pub async fn end_session_of(&self, path: &str) {
        let owner = self.owner_of(path).await;
        // The owner connects again as soon as it loses its connection to us, and so takes the session back: the faster one wins.
        let password = password_of(owner);
        let ended = async {
            while self.stat(path).await.is_some() {
                let port = self.leader_port().await;
                let goodbye = move || Client::greet(port, owner, &password, &request(-11, &[]));
                // Whether that was in time is seen by the node.
                let _ = tokio::task::spawn_blocking(goodbye).await.expect("it does not panic");
            }
        };
        tokio::time::timeout(START, ended).await.expect("a session can be ended");
    }

    /// The server at which the session began that a node lives by.
    ///
    /// Panics when there is no such node, or when it is nobody's.
    pub async fn server_of(&self, path: &str) -> usize {
        // The highest byte of a session's number is that of the server that gave it.
        let [number, ..] = self.owner_of(path).await.to_be_bytes();
        usize::from(number) - 1
    }

    /// When a node was made, by the wall clock of the leader then, in milliseconds since 1970.
    ///
    /// Panics when there is no such node.
    pub async fn made_at(&self, path: &str) -> i64 {
        let stat = self.stat(path).await.unwrap_or_else(|| panic!("there is no node {path}"));
        i64::from_be_bytes(stat[16..24].try_into().expect("eight bytes"))
    }

    async fn owner_of(&self, path: &str) -> i64 {
        let stat = self.stat(path).await.unwrap_or_else(|| panic!("there is no node {path}"));
        let owner = i64::from_be_bytes(stat[44..52].try_into().expect("eight bytes"));
        assert_ne!(owner, 0, "{path} lives by no session");
        owner
    }

    async fn stat(&self, path: &str) -> Option<Vec<u8>> {
        let mut body = buffer(path.as_bytes());
        body.push(0);
        let (code, stat) = self.ask(3, body).await;
        assert!(matches!(code, 0 | -101), "{path} cannot be looked at: {code}");
        (code == 0).then_some(stat)
    }

    async fn leader_port(&self) -> u16 {
        self.servers[self.leader().await.expect("a leader")].ports[0].number()
    }

    /// The code and the body of the answer to one request, by a client of its own at the leader.
    async fn ask(&self, operation: i32, body: Vec<u8>) -> (i32, Vec<u8>) {
        let port = self.leader_port().await;
        tokio::task::spawn_blocking(move || {
            let mut client = Client::greet(port, 0, &[0; 16], &[]).expect("the leader serves");
            let answer = client.ask(operation, &body).expect("the leader answers");
            client.ask(-11, &[]).expect("a session can be ended");
            answer
        })
        .await
        .expect("it does not panic")
    }
}

/// All rights to a node.
const EVERYTHING: i32 = 31;

fn for_anybody(rights: i32) -> Vec<u8> {
    [&1_i32.to_be_bytes()[..], &rights.to_be_bytes(), &buffer(b"world"), &buffer(b"anyone")].concat()
}

/// What every server takes for the password of a session: Java's random bytes, from its number.
fn password_of(session: i64) -> [u8; 16] {
    const SECRET: i64 = 0xB341_5C00;
    const MULTIPLIER: u64 = 0x5_DEEC_E66D;
    const MASK: u64 = (1 << 48) - 1;
    let mut seed = ((session ^ SECRET).cast_unsigned() ^ MULTIPLIER) & MASK;
    let mut password = [0; 16];
    for chunk in password.chunks_exact_mut(4) {
        seed = seed.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        let drawn = u32::try_from(seed >> 16).expect("32 of 48 bits are left");
        chunk.copy_from_slice(&drawn.to_le_bytes());
    }
    password
}

/// The simplest client there is: one request at a time.
struct Client(TcpStream);

const PATIENCE: Duration = Duration::from_secs(10);

impl Client {
    /// Takes up a session, or begins a new one, and sends something at once.
    fn greet(port: u16, session: i64, password: &[u8; 16], first: &[u8]) -> std::io::Result<Self> {
        let mut client = Self(connect(port)?);
        let mut greeting = Vec::new();
        greeting.extend(0_i32.to_be_bytes());
        greeting.extend(0_i64.to_be_bytes());
        greeting.extend(10_000_i32.to_be_bytes());
        greeting.extend(session.to_be_bytes());
        greeting.extend(buffer(password));
        greeting.push(0);
        client.0.write_all(&[&buffer(&greeting), first].concat())?;
        client.message()?;
        Ok(client)
    }

    fn ask(&mut self, operation: i32, body: &[u8]) -> std::io::Result<(i32, Vec<u8>)> {
        self.0.write_all(&request(operation, body))?;
        self.answer()
    }

    fn answer(&mut self) -> std::io::Result<(i32, Vec<u8>)> {
        let answer = self.message()?;
        let code = i32::from_be_bytes(answer[12..16].try_into().expect("four bytes"));
        Ok((code, answer[16..].to_vec()))
    }

    fn message(&mut self) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let mut message =
            vec![0; usize::try_from(i32::from_be_bytes(length)).map_err(std::io::Error::other)?];
        self.0.read_exact(&mut message)?;
        Ok(message)
    }
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn request(operation: i32, body: &[u8]) -> Vec<u8> {
    buffer(&[&1_i32.to_be_bytes()[..], &operation.to_be_bytes(), body].concat())
}

/// Bytes, with their length before them.
fn buffer(bytes: &[u8]) -> Vec<u8> {
    let length = i32::try_from(bytes.len()).expect("it is short");
    [&length.to_be_bytes()[..], bytes].concat()
}

/// What a server says of itself. One that has just begun may never answer, and is asked again.
fn four_letters(port: u16, word: &str) -> std::io::Result<String> {
    const SOON: Duration = Duration::from_millis(500);
    let mut stream = connect(port)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(word.as_bytes())?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_leader_that_is_cut_off_is_followed_by_another_and_follows_it_afterwards() {
        // Two seconds after the others are silent, a server knows.
        let options = ZooKeeperOptions::new().set("syncLimit", "10");
        let Some(ensemble) = options.servers(3).interconnected().start().await else { return };
        let leader = ensemble.leader().await.expect("servers that serve have a leader");
        ensemble.cut_off(leader);
        let others = (0..3).filter(|at| *at != leader);
        let next = until_within(START, "there is another leader", async || {
            for at in others.clone() {
                if ensemble.mode(at).await.as_deref() == Some("leader") {
                    return Some(at);
                }
            }
            None
        })
        .await;
        until_within(START, "the old one knows", async || {
            (ensemble.mode(leader).await.as_deref() != Some("leader")).then_some(())
        })
        .await;
        assert_eq!(ensemble.mode(leader).await, None, "it serves nobody");
        ensemble.mend();
        ensemble.serves().await;
        assert_eq!(ensemble.mode(next).await.as_deref(), Some("leader"));
    }

    #[tokio::test]
    async fn servers_tell_the_time_by_their_clock() {
        let Some(clock) = WallClock::new() else { return };
        let Some(ensemble) = ZooKeeperOptions::new().clock(&clock).start().await else { return };
        let mut made = Vec::new();
        for (step, path) in [(0, "/now"), (3_600, "/ahead"), (-3_600, "/behind")] {
            clock.step(step);
            ensemble.create(path).await;
            made.push(ensemble.made_at(path).await / 1_000);
        }
        let [now, ahead, behind] = made[..] else { panic!("three nodes") };
        assert!(
            (3_500..3_700).contains(&(ahead - now)) && (3_500..3_700).contains(&(now - behind)),
            "{made:?}"
        );
    }

    #[tokio::test]
    async fn three_servers_have_one_leader_and_another_after_it_is_killed() {
        let Some(mut ensemble) = ZooKeeperOptions::new().servers(3).start().await else { return };
        let leader = ensemble.leader().await.expect("servers that serve have a leader");
        ensemble.kill(leader);
        until_within(START, "there is another leader", async || ensemble.leader().await).await;
        ensemble.restart(leader);
        ensemble.serves().await;
        assert_ne!(ensemble.leader().await, None);
        assert_eq!(ensemble.children("/").await, ["zookeeper"]);
    }
}
