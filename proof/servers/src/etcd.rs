use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ringfence_testkit::PATIENCE;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::links::Links;
use crate::port::Port;
use crate::process::Process;
use crate::redis::{LEASH, until, until_within};
use crate::require::require;
use crate::tls::Certificates;
use crate::wall_clock::WallClock;

/// How long members may take to elect a leader on a busy machine.
const ELECTION_PATIENCE: Duration = PATIENCE.saturating_mul(3);

/// What [`EtcdCluster`] is started with, where it is not the plainest one there is.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    members: usize,
    program: Option<PathBuf>,
    settings: Vec<(String, String)>,
    environment: Vec<(OsString, OsString)>,
    by_tls: bool,
    separable: bool,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        Self {
            members: 1,
            program: None,
            settings: Vec::new(),
            environment: Vec::new(),
            by_tls: false,
            separable: false,
        }
    }
}

impl EtcdOptions {
    /// One member, whose leases live for a second at least.
    pub fn new() -> Self {
        Self::default()
    }

    /// So many members, of which a majority has to agree.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// Another program than the `etcd` on the `PATH`, with the `etcdctl` beside it, as [`etcd_3_5`](crate::etcd_3_5).
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// A flag of `etcd` and its value: `("quota-backend-bytes", "16777216")`. It stands in place of ours.
    #[must_use]
    pub fn set(mut self, flag: &str, value: &str) -> Self {
        self.settings.push((flag.to_owned(), value.to_owned()));
        self
    }

    /// Members that speak TLS, and nothing else, to clients, and ask them for a certificate. Their own is for 127.0.0.1, and for no
    /// name.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.by_tls = true;
        self
    }

    /// Members that tell the time by this clock. It reaches Debian's etcd, which is dynamically linked, and not
    /// [3.5](crate::etcd_3_5), which is not.
    #[must_use]
    pub fn clock(mut self, clock: &WallClock) -> Self {
        let mut governed = Command::new("etcd");
        clock.govern(&mut governed);
        let set = governed.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        self.environment.extend(set);
        self
    }

    /// Members that can be [cut off](EtcdCluster::cut_off) from each other.
    #[must_use]
    pub fn separable(mut self) -> Self {
        self.separable = true;
        self
    }

    /// Starts the members, and returns when all of them are healthy. `None`, and said as [`skip`](crate::skip) does, where `etcd`
    /// or `etcdctl` is not installed.
    ///
    /// Panics when they do not start.
    pub async fn start(self) -> Option<EtcdCluster> {
        let (etcd, etcdctl) = match self.program {
            Some(program) => (program.clone(), program.with_file_name("etcdctl")),
            None => (require("etcd")?, require("etcdctl")?),
        };
        let folder = TempDir::new().expect("a temporary directory");
        let ports: Vec<(Port, Port)> = (0..self.members).map(|_| (Port::claim(), Port::claim())).collect();
        let certificates = self.by_tls.then(|| Certificates::make(Ipv4Addr::LOCALHOST));
        let mut peer_ports: Vec<u16> = ports.iter().map(|(_, peer)| peer.number()).collect();
        let links = if self.separable { Some(Links::between(&peer_ports).await) } else { None };
        if let Some(links) = &links {
            peer_ports = links.ports().to_vec();
        }
        let peers =
            peer_ports.iter().enumerate().map(|(index, port)| format!("n{index}={}", url("http", *port)));
        let peers = peers.collect::<Vec<_>>().join(",");
        let start = |(index, (client, peer)): (usize, (Port, Port))| {
            let client_url = url(if self.by_tls { "https" } else { "http" }, client.number());
            let data = folder.path().join(format!("n{index}"));
            let mut flags: BTreeMap<&str, String> = [
                // Sooner than by default, so that tests do not wait for elections, and a lease can be as short as a second.
                ("heartbeat-interval", "50"),
                ("election-timeout", "500"),
                ("logger", "zap"),
                ("log-level", "fatal"),
                ("initial-cluster-state", "new"),
                ("name", &format!("n{index}")),
                ("data-dir", &data.to_string_lossy()),
                ("listen-client-urls", &client_url),
                ("advertise-client-urls", &client_url),
                ("listen-peer-urls", &url("http", peer.number())),
                ("initial-advertise-peer-urls", &url("http", peer_ports[index])),
                ("initial-cluster", &peers),
            ]
            .map(|(flag, value)| (flag, value.to_owned()))
            .into();
            if let Some(files) = &certificates {
                let [certificate, key, authority] = [&files.certificate, &files.key, &files.authority]
                    .map(|file| file.to_string_lossy().into_owned());
                flags.extend([
                    ("cert-file", certificate),
                    ("key-file", key),
                    ("trusted-ca-file", authority),
                    ("client-cert-auth", "true".to_owned()),
                ]);
            }
            flags.extend(self.settings.iter().map(|(flag, value)| (&**flag, value.clone())));
            let arguments: Vec<String> =
                flags.into_iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
            let process = launch(&etcd, &arguments, &self.environment);
            let (program, environment) = (etcd.clone(), self.environment.clone());
            Member { process, arguments, environment, program, client, _peer: peer }
        };
        let members = ports.into_iter().enumerate().map(start).collect();
        let cluster = EtcdCluster { members, etcdctl, links, login: None, certificates, _folder: folder };
        cluster.link();
        for index in 0..cluster.members.len() {
            if self.by_tls {
                // It says so to those only who show a certificate.
                until_within(ELECTION_PATIENCE, "a member is healthy", async || {
                    cluster.ask(&["endpoint", "health"]).await.ok()
                })
                .await;
            } else {
                cluster.is_healthy(index).await;
            }
        }
        Some(cluster)
    }
}

/// A real etcd cluster on ports of 127.0.0.1, with nothing in it and nobody else on it.
///
/// Dropping it kills its members, whatever state they are in; they end with the test's process too, however that ends.
#[derive(Debug)]
pub struct EtcdCluster {
    members: Vec<Member>,
    etcdctl: PathBuf,
    /// Between the members, where they can be cut off from each other.
    links: Option<Links>,
    /// What `etcdctl` says of who we are, beside the members.
    login: Option<String>,
    certificates: Option<Certificates>,
    _folder: TempDir,
}

#[derive(Debug)]
struct Member {
    process: Process,
    arguments: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    program: PathBuf,
    client: Port,
    _peer: Port,
}

impl EtcdCluster {
    /// Starts one of so many members with [`EtcdOptions::new`], as [`EtcdOptions::start`] does.
    pub async fn start(members: usize) -> Option<Self> {
        EtcdOptions::new().members(members).start().await
    }

    /// Its URL, as in `etcd://127.0.0.1:11042,127.0.0.1:11044`.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "etcds" } else { "etcd" };
        format!("{scheme}://{}", self.addresses())
    }

    /// The certificate, in a PEM file, of the authority that signed its own, and its own with its key. A client may show these as
    /// well: they are of the same authority. `None` without TLS.
    pub fn certificates(&self) -> Option<[&Path; 3]> {
        let files = self.certificates.as_ref()?;
        Some([&files.authority, &files.certificate, &files.key])
    }

    /// How many members it has.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// The port of a member for clients. It keeps it until the cluster is dropped, whatever happens to it.
    pub fn port(&self, member: usize) -> u16 {
        self.members[member].client.number()
    }

    fn addresses(&self) -> String {
        let members: Vec<String> = (0..self.members.len()).map(|index| self.address(index)).collect();
        members.join(",")
    }

    fn address(&self, member: usize) -> String {
        format!("127.0.0.1:{}", self.port(member))
    }

    /// From now on `etcdctl` says that it is this user, written as `user:password`.
    pub fn log_in(&mut self, login: &str) {
        self.login = Some(login.to_owned());
    }

    /// The command `etcdctl` for these members, for a test to add to.
    pub fn etcdctl_command(&self) -> Command {
        self.etcdctl_at(&self.addresses())
    }

    fn etcdctl_at(&self, addresses: &str) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command.env("ETCDCTL_API", "3").args(["--endpoints", addresses]);
        if let Some([authority, certificate, key]) = self.certificates() {
            command.arg("--cacert").arg(authority).arg("--cert").arg(certificate).arg("--key").arg(key);
        }
        if let Some(login) = &self.login {
            command.arg("--user").arg(login);
        }
        command
    }

    /// Has the cluster do something by `etcdctl`, and returns what that prints.
    ///
    /// Panics when it fails or takes too long.
    ///
    /// # Cancel safety
    /// If the future is dropped, the cluster may have done it or not.
    pub async fn etcdctl(&self, words: &[&str]) -> String {
        self.ask(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// As [`Self::etcdctl`]; the error is what `etcdctl` says.
    pub async fn ask(&self, words: &[&str]) -> Result<String, String> {
        self.ask_at(&self.addresses(), words).await
    }

    async fn ask_at(&self, addresses: &str, words: &[&str]) -> Result<String, String> {
        let mut command = tokio::process::Command::from(self.etcdctl_at(addresses));
        command.args(words).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_| format!("no answer within {PATIENCE:?}"))?
            .expect("etcdctl starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// The member that leads, as soon as those that answer agree on one.
    pub async fn leader(&self) -> usize {
        until_within(ELECTION_PATIENCE, "the members have a leader", async || {
            for index in 0..self.members.len() {
                let mut command = tokio::process::Command::from(self.etcdctl_at(&self.address(index)));
                command.args(["--command-timeout", "1s"]);
                command.args(["endpoint", "status", "--write-out", "json"]).kill_on_drop(true);
                let Ok(output) = command.output().await else { continue };
                let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { continue };
                let status = &status[0]["Status"];
                if status["leader"].is_u64() && status["leader"] == status["header"]["member_id"] {
                    return Some(index);
                }
            }
            None
        })
        .await
    }

    /// The number of a member's process.
    pub fn process(&self, member: usize) -> u32 {
        self.members[member].process.id()
    }

    /// Stops a member (SIGSTOP), and returns when it has stopped: connections to it are made, and nobody answers.
    pub fn stop(&self, member: usize) {
        self.members[member].process.stop().expect("a member that runs can be stopped");
    }

    /// Lets a member run on (SIGCONT).
    pub fn resume(&self, member: usize) {
        self.members[member].process.resume().expect("a member that is stopped can be resumed");
    }

    /// Kills a member (SIGKILL), and returns when it is dead: connections to it are refused.
    pub fn kill(&mut self, member: usize) {
        self.members[member].process.kill().expect("a member can be killed");
    }

    /// Starts a member that was killed again, on the same ports and with its data. Returns at once.
    pub fn start_again(&mut self, member: usize) {
        let Member { process, arguments, environment, program, .. } = &mut self.members[member];
        *process = launch(program, arguments, environment);
        self.link();
    }

    /// Cuts a member off from the others, in both directions: nobody hangs up, and what is sent meanwhile arrives after
    /// [`Self::mend`]. Its clients still reach it.
    ///
    /// Panics where the members are not [separable](EtcdOptions::separable).
    pub fn cut_off(&self, member: usize) {
        self.links.as_ref().expect("members that are separable").cut_off(member);
    }

    /// Has all members reach each other again.
    ///
    /// Panics where they are not [separable](EtcdOptions::separable).
    pub fn mend(&self) {
        self.links.as_ref().expect("members that are separable").mend();
    }

    /// Tells the links who the members are.
    fn link(&self) {
        if let Some(links) = &self.links {
            links.lead_to(self.members.iter().map(|member| member.process.id()).collect());
        }
    }

    /// Waits until a member says that it is healthy: it runs, and it has a leader.
    pub async fn is_healthy(&self, member: usize) {
        let port = self.port(member);
        until_within(ELECTION_PATIENCE, "a member is healthy", async || {
            let asked = tokio::time::timeout(Duration::from_secs(1), health(port)).await;
            asked.ok()?.ok()?.contains(r#""health":"true""#).then_some(())
        })
        .await;
    }

    /// How many leases there are.
    pub async fn leases(&self) -> usize {
        self.etcdctl(&["lease", "list"]).await.lines().count().saturating_sub(1)
    }

    /// The key that begins with this and whose value has that in it.
    ///
    /// Panics if there is none, as [`Self::etcdctl`] does otherwise.
    pub async fn key_of(&self, prefix: &str, in_value: &str) -> String {
        let keys = self.etcdctl(&["get", "--prefix", "--keys-only", prefix]).await;
        for key in keys.lines().filter(|key| !key.is_empty()) {
            if self.etcdctl(&["get", "--print-value-only", key]).await.contains(in_value) {
                return key.to_owned();
            }
        }
        panic!("no value has {in_value:?} of {keys:?}")
    }

    /// Waits until no key begins with this.
    pub async fn has_none(&self, prefix: &str) {
        until("all keys are gone", async || {
            self.etcdctl(&["get", "--prefix", "--keys-only", prefix]).await.is_empty().then_some(())
        })
        .await;
    }
}

fn url(scheme: &str, port: u16) -> String {
    format!("{scheme}://127.0.0.1:{port}")
}

fn launch(program: &PathBuf, arguments: &[String], environment: &[(OsString, OsString)]) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", LEASH]).arg(program).args(arguments).envs(environment.iter().cloned());
    if cfg!(target_arch = "aarch64") {
        // Etcd 3.4 starts on it only where it is asked to.
        command.env("ETCD_UNSUPPORTED_ARCH", "arm64");
    }
    Process::start(command).expect("etcd starts")
}

async fn health(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_comes_back_with_its_data_and_a_dead_leader_is_followed_by_another() {
        let Some(mut cluster) = EtcdCluster::start(3).await else { return };
        cluster.etcdctl(&["put", "key", "value"]).await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        let next = cluster.leader().await;
        assert_ne!(next, leader);
        cluster.start_again(leader);
        cluster.is_healthy(leader).await;
        assert_eq!(cluster.etcdctl(&["get", "key"]).await, "key\nvalue");
    }

    #[tokio::test]
    async fn every_cluster_is_alone() {
        let Some(one) = EtcdCluster::start(1).await else { return };
        let Some(two) = EtcdCluster::start(1).await else { return };
        one.etcdctl(&["put", "key", "value"]).await;
        assert_eq!(two.etcdctl(&["get", "key"]).await, "");
        assert_eq!((one.count(), one.leader().await, one.leases().await), (1, 0, 0));
        one.etcdctl(&["del", "key"]).await;
        one.has_none("key").await;
    }

    #[tokio::test]
    async fn who_is_cut_off_is_followed_by_another_leader_and_comes_back() {
        let Some(cluster) = EtcdOptions::new().members(3).separable().start().await else { return };
        let leader = cluster.leader().await;
        cluster.cut_off(leader);
        let put = ["--command-timeout", "1s", "put", "key", "value"];
        until_within(ELECTION_PATIENCE, "the others go on without it", async || {
            cluster.ask_at(&cluster.address((leader + 1) % 3), &put).await.ok()
        })
        .await;
        let alone = cluster.ask_at(&cluster.address(leader), &put).await;
        assert!(alone.is_err(), "it reaches nobody, and says {alone:?}");
        cluster.mend();
        cluster.is_healthy(leader).await;
        let found = cluster.ask_at(&cluster.address(leader), &["get", "key"]).await;
        assert_eq!(found.as_deref(), Ok("key\nvalue"));
    }
}
