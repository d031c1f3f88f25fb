use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ringfence_testkit::PATIENCE;
use tempfile::TempDir;

use crate::port::Port;
use crate::process::Process;
use crate::require::require;
use crate::tls::Certificates;
use crate::wall_clock::WallClock;

/// How long a server may take to start: one that crashed flushes every file first, on a disk that others write to as well.
const START: Duration = Duration::from_mins(1);

/// What [`RedisServer::start`] starts, where it is not the plainest server there is.
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    program: Option<PathBuf>,
    arguments: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    password: Option<String>,
    pub(crate) certificates: Option<Certificates>,
}

impl RedisOptions {
    /// One server that keeps nothing on disk and asks for no password: what [`RedisServer::start`] starts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another program than the `redis-server` on the `PATH`, as [`valkey`](crate::valkey).
    #[must_use]
    pub fn program(mut self, program: impl Into<PathBuf>) -> Self {
        self.program = Some(program.into());
        self
    }

    /// A setting of redis.conf and its values, each a word: `("maxmemory-policy", &["allkeys-lru"])`. It stands in
    /// place of ours.
    #[must_use]
    pub fn set(mut self, setting: &str, values: &[&str]) -> Self {
        self.arguments.push(format!("--{setting}"));
        self.arguments.extend(values.iter().map(ToString::to_string));
        self
    }

    /// A server that writes every command to its disk before it answers, and so comes back with its data.
    #[must_use]
    pub fn durable(self) -> Self {
        self.set("appendonly", &["yes"]).set("appendfsync", &["always"])
    }

    /// The password of the default user. It is part of [`RedisServer::url`].
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// A server that speaks TLS, and nothing else, on its port. Its certificate is for 127.0.0.1, and for no name. Those that
    /// are started with clones of these options have one certificate.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.certificates = Some(Certificates::make(Ipv4Addr::LOCALHOST));
        self
    }

    /// A server that tells the time by this clock.
    #[must_use]
    pub fn clock(mut self, clock: &WallClock) -> Self {
        self.environment.extend(clock.environment());
        self
    }

    /// Starts the server, and returns when it accepts connections. `None`, and said as [`skip`](crate::skip) does, where
    /// `redis-server` or `redis-cli` is not installed.
    ///
    /// Panics, with what the server said, when it does not start.
    pub async fn start(self) -> Option<RedisServer> {
        self.start_on(Port::claim()).await
    }

    /// As [`Self::start`], on a port that somebody else knows already.
    pub(crate) async fn start_on(self, port: Port) -> Option<RedisServer> {
        let cli = require("redis-cli")?;
        let program = match &self.program {
            Some(program) => program.clone(),
            None => require("redis-server")?,
        };
        let folder = TempDir::new().expect("a temporary directory");
        let cli = Cli {
            program: cli,
            port: port.number(),
            password: self.password.clone(),
            certificates: self.certificates.clone(),
        };
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("a temporary directory can be written to");
        let socket = folder.path().join("redis.sock");

        let word = |text: &str| OsString::from(text);
        let mut arguments: Vec<OsString> = vec![
            word("--bind"),
            word("127.0.0.1"),
            word("--unixsocket"),
            socket.clone().into(),
            word("--dir"),
            data.clone().into(),
        ];
        arguments.extend(["--save", "", "--appendonly", "no", "--daemonize", "no"].map(word));
        match &cli.certificates {
            None => arguments.extend([word("--port"), word(&port.number().to_string())]),
            Some(files) => arguments.extend(
                files
                    .settings(port.number())
                    .into_iter()
                    .flat_map(|(setting, value)| [format!("--{setting}").into(), value.into()]),
            ),
        }
        if let Some(password) = &self.password {
            arguments.extend(["--requirepass", password].map(word));
        }
        arguments.extend(self.arguments.iter().map(|argument| word(argument)));

        let mut command = Command::new("sh");
        command.args(["-c", LEASH]).arg(program).args(arguments).envs(self.environment);
        let instance = Instance::start(command, "Ready to accept connections").await;
        Some(RedisServer { instance, cli, data, socket, _port: port, _folder: folder })
    }
}

/// A real Redis server on a port of 127.0.0.1, with nothing in it and nobody else on it.
///
/// It takes about 15 ms to start, so that every test has its own. Dropping it kills it, whatever state it is in; it
/// ends with the test's process too, however that ends.
#[derive(Debug)]
pub struct RedisServer {
    instance: Instance,
    cli: Cli,
    data: PathBuf,
    socket: PathBuf,
    _port: Port,
    _folder: TempDir,
}

impl RedisServer {
    /// Starts one with [`RedisOptions::new`], as [`RedisOptions::start`] does.
    pub async fn start() -> Option<Self> {
        RedisOptions::new().start().await
    }

    /// Its TCP port on 127.0.0.1. It keeps it until it is dropped, whatever happens to it.
    pub fn port(&self) -> u16 {
        self.cli.port
    }

    /// Its Unix socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its URL, as in `redis://127.0.0.1:11042` or `rediss://:secret@127.0.0.1:11042`.
    pub fn url(&self) -> String {
        let scheme = if self.cli.certificates.is_some() { "rediss" } else { "redis" };
        let password = self.cli.password.as_ref().map(|password| format!(":{password}@"));
        format!("{scheme}://{}127.0.0.1:{}", password.unwrap_or_default(), self.port())
    }

    /// The certificate, in a PEM file, of the authority that signed the server's own. `None` without TLS.
    pub fn authority(&self) -> Option<&Path> {
        self.cli.certificates.as_ref().map(|files| files.authority.as_path())
    }

    /// The PEM files of its own certificate and of its key, in this order. A client may show them as well: they are of the
    /// same authority. `None` without TLS.
    pub fn certificate(&self) -> Option<(&Path, &Path)> {
        self.cli.certificates.as_ref().map(|files| (&*files.certificate, &*files.key))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.instance.process.id()
    }

    /// Has the server do something by `redis-cli`, as the default user, and returns its answer as `redis-cli` prints it
    /// into a file: elements of an array in lines, nil as nothing.
    ///
    /// Panics when the server answers with an error or not in time.
    ///
    /// # Cancel safety
    /// If the future is dropped, the server may have done it or not.
    pub async fn command(&self, words: &[&str]) -> String {
        self.cli.ask(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    /// As [`Self::command`]; the error is what the server or `redis-cli` says.
    pub async fn ask(&self, words: &[&str]) -> Result<String, String> {
        self.cli.ask(words).await
    }

    /// The value of one line of `INFO`, as in `info("role")`; `None` where there is no such line.
    pub async fn info(&self, field: &str) -> Option<String> {
        value_of(&self.command(&["info"]).await, field)
    }

    /// Stops it (SIGSTOP), and returns when it has stopped: connections to it are made, and nobody answers.
    pub fn stop(&self) {
        self.instance.process.stop().expect("a server that runs can be stopped");
    }

    /// Lets it run on (SIGCONT).
    pub fn resume(&self) {
        self.instance.process.resume().expect("a server that is stopped can be resumed");
    }

    /// Kills it (SIGKILL), and returns when it is dead: connections to it are refused.
    pub fn kill(&mut self) {
        self.instance.process.kill().expect("a server can be killed");
    }

    /// Kills it, unless it is dead, and starts it again on the same port, with what it had on its disk. That is nothing,
    /// unless [`RedisOptions`] say otherwise.
    pub async fn restart(&mut self) {
        self.kill();
        self.instance.start_again().await;
    }

    /// As [`Self::restart`], with an empty disk.
    pub async fn restart_empty(&mut self) {
        self.kill();
        fs::remove_dir_all(&self.data).expect("a temporary directory can be removed");
        fs::create_dir(&self.data).expect("a temporary directory can be made again");
        self.instance.start_again().await;
    }
}

/// The value in `field:value`, one of many lines.
pub(crate) fn value_of(lines: &str, field: &str) -> Option<String> {
    let values = lines.lines().filter_map(|line| line.split_once(':'));
    values.filter(|(name, _)| *name == field).map(|(_, value)| value.trim_end().to_owned()).next()
}

/// Has the shell become the program, beside a subshell that kills both when the test ends: then stdin, which nobody
/// writes to, is closed. A killed or interrupted test drops nothing, and would leave its servers behind.
///
/// When the servers are stopped at that moment, the kernel sends SIGHUP and SIGCONT to them, as to every stopped process
/// group that nobody is left to resume.
pub(crate) const LEASH: &str = r#"
    trap '' HUP
    exec 3<&0
    { read -r _ <&3; kill -KILL 0; } >/dev/null 2>&1 &
    exec "$0" "$@" 3<&- </dev/null
"#;

/// A server's process, and how to start it again.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) process: Process,
    command: Command,
    ready: &'static str,
}

impl Instance {
    /// Starts it, and returns when it prints a line that contains `ready`.
    ///
    /// Panics, with all that it printed, when it does not.
    pub(crate) async fn start(command: Command, ready: &'static str) -> Self {
        let process = Self::launch(&command, ready).await;
        Self { process, command, ready }
    }

    /// Starts it again after it was killed, as it was started before.
    pub(crate) async fn start_again(&mut self) {
        self.process = Self::launch(&self.command, self.ready).await;
    }

    async fn launch(command: &Command, ready: &str) -> Process {
        let mut process = Process::start(again(command)).expect("a server starts");
        let mut printed = Vec::new();
        let is_ready = tokio::time::timeout(START, async {
            while let Some(line) = process.line().await {
                let is_ready = line.contains(ready);
                printed.push(line);
                if is_ready {
                    return true;
                }
            }
            false
        })
        .await;
        let said = || format!("{command:?} printed:\n{}", printed.join("\n"));
        match is_ready {
            Ok(true) => process,
            Ok(false) => panic!("the server ended before it was ready; {}", said()),
            Err(elapsed) => panic!("{elapsed}: waited {START:?} until the server was ready; {}", said()),
        }
    }
}

/// The same command once more: a [`Command`] cannot be cloned.
fn again(command: &Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args());
    again.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    again
}

/// Asks again and again, until there is an answer.
///
/// Panics after [`PATIENCE`].
pub(crate) async fn until<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    until_within(PATIENCE, what, ask).await
}

/// As [`until`], for this long.
pub(crate) async fn until_within<T>(patience: Duration, what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                break answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(patience, asked)
        .await
        .unwrap_or_else(|_| panic!("waited {patience:?} in vain until {what}"))
}

/// How `redis-cli` reaches a server.
#[derive(Clone, Debug)]
pub(crate) struct Cli {
    pub(crate) program: PathBuf,
    pub(crate) port: u16,
    pub(crate) password: Option<String>,
    pub(crate) certificates: Option<Certificates>,
}

impl Cli {
    /// The server's answer, or its error.
    pub(crate) async fn ask(&self, words: &[&str]) -> Result<String, String> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["-e", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some(files) = &self.certificates {
            command.arg("--tls").arg("--cacert").arg(&files.authority);
        }
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        command.args(words).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output())
            .await
            .map_err(|_| format!("no answer within {PATIENCE:?}"))?
            .expect("redis-cli starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            let answer = text(&output.stdout);
            Ok(answer.strip_suffix('\n').map(str::to_owned).unwrap_or(answer))
        } else {
            Err(format!("{}{}", text(&output.stdout), text(&output.stderr)).trim().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::peers::valkey;
    use crate::process::orphans::{ends_with_its_test, is_to_be_stopped, wait_to_be_killed};

    #[tokio::test]
    async fn a_server_answers_on_its_port_and_its_socket() {
        let Some(server) = RedisServer::start().await else { return };
        assert_eq!(server.command(&["ping"]).await, "PONG");
        assert_eq!(server.url(), format!("redis://127.0.0.1:{}", server.port()));
        assert_eq!(server.info("role").await.as_deref(), Some("master"));
        assert_eq!(server.info("roll").await, None);
        let mut stream = UnixStream::connect(server.socket()).await.unwrap();
        stream.write_all(b"PING\r\n").await.unwrap();
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
    }

    #[tokio::test]
    async fn every_server_is_alone() {
        let Some(one) = RedisServer::start().await else { return };
        let Some(two) = RedisServer::start().await else { return };
        one.command(&["set", "key", "one"]).await;
        assert_eq!(two.command(&["get", "key"]).await, "");
    }

    #[tokio::test]
    async fn an_error_of_the_server_is_one() {
        let Some(server) = RedisServer::start().await else { return };
        server.command(&["set", "key", "text"]).await;
        let error = server.ask(&["incr", "key"]).await.unwrap_err();
        assert!(error.contains("not an integer"), "{error}");
    }

    #[tokio::test]
    async fn a_restarted_server_has_what_it_wrote_to_its_disk() {
        for (options, expected) in [(RedisOptions::new(), ""), (RedisOptions::new().durable(), "value")] {
            let Some(mut server) = options.start().await else { return };
            let port = server.port();
            server.command(&["set", "key", "value"]).await;
            server.restart().await;
            assert_eq!((server.port(), &*server.command(&["get", "key"]).await), (port, expected));
            server.command(&["set", "key", "value"]).await;
            server.restart_empty().await;
            assert_eq!(server.command(&["get", "key"]).await, "");
        }
    }

    #[tokio::test]
    async fn a_killed_server_refuses_and_a_stopped_one_is_silent() {
        let Some(mut server) = RedisServer::start().await else { return };
        server.stop();
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
        stream.write_all(b"PING\r\n").await.unwrap();
        let mut answer = [0; 7];
        let read = tokio::time::timeout(Duration::from_millis(100), stream.read_exact(&mut answer));
        assert!(read.await.is_err(), "a stopped server answered {answer:?}");
        server.resume();
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"+PONG\r\n");
        server.stop();
        server.kill();
        TcpStream::connect(("127.0.0.1", server.port())).await.unwrap_err();
    }

    #[tokio::test]
    async fn settings_and_password_are_the_servers() {
        let options = RedisOptions::new().set("maxmemory-policy", &["allkeys-lru"]).password("secret");
        let Some(server) = options.start().await else { return };
        assert_eq!(server.url(), format!("redis://:secret@127.0.0.1:{}", server.port()));
        assert_eq!(server.info("maxmemory_policy").await.as_deref(), Some("allkeys-lru"));
        let stranger = Cli { password: None, ..server.cli.clone() };
        let error = stranger.ask(&["get", "key"]).await.unwrap_err();
        assert!(error.contains("NOAUTH"), "{error}");
    }

    #[tokio::test]
    async fn a_server_with_tls_speaks_nothing_else_and_is_vouched_for() {
        let Some(server) = RedisOptions::new().tls().start().await else { return };
        assert_eq!(server.url(), format!("rediss://127.0.0.1:{}", server.port()));
        assert_eq!(server.command(&["ping"]).await, "PONG");
        let strangers = Certificates::make(Ipv4Addr::LOCALHOST);
        for certificates in [None, Some(strangers)] {
            let error = Cli { certificates, ..server.cli.clone() }.ask(&["ping"]).await.unwrap_err();
            assert!(!error.is_empty(), "a failure says something");
        }
    }

    #[tokio::test]
    async fn a_server_tells_the_time_by_its_clock() {
        let Some(clock) = WallClock::new() else { return };
        let Some(mut server) = RedisOptions::new().clock(&clock).start().await else { return };
        let seconds = async |server: &RedisServer| -> i64 {
            server.command(&["time"]).await.lines().next().expect("two lines").parse().expect("seconds")
        };
        let before = seconds(&server).await;
        clock.step(3600);
        let after = seconds(&server).await;
        assert!((3600..3610).contains(&(after - before)), "{before} {after}");
        server.restart().await;
        let again = seconds(&server).await;
        assert!((0..10).contains(&(again - after)), "{after} {again}");
    }

    #[tokio::test]
    async fn valkey_is_started_as_well() {
        let Some(valkey) = valkey() else { return };
        let Some(server) = RedisOptions::new().program(valkey).start().await else { return };
        assert_eq!(server.info("server_name").await.as_deref(), Some("valkey"));
        server.command(&["set", "key", "mine"]).await;
        assert_eq!(server.command(&["delifeq", "key", "mine"]).await, "1");
    }

    #[tokio::test]
    #[should_panic(expected = "no-such-setting")]
    async fn a_server_that_does_not_start_says_why() {
        let options = RedisOptions::new().set("include", &["/no/such/file"]).set("no-such-setting", &["1"]);
        assert!(options.start().await.is_some(), "no-such-setting: there is nothing to start here");
    }

    /// Starts a server in a process of its own and is killed: it drops nothing.
    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn child_starts_a_server_and_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(RedisServer::start()).expect("the parent has looked");
        if is_to_be_stopped() {
            server.stop();
        }
        wait_to_be_killed(&[server.id().to_string()]);
    }

    #[tokio::test]
    async fn a_server_ends_with_a_test_that_is_killed() {
        if require("redis-server").is_none() || require("redis-cli").is_none() {
            return;
        }
        ends_with_its_test("redis::tests::child_starts_a_server_and_waits").await;
    }
}
