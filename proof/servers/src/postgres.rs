use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ringfence_testkit::PATIENCE;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::port::Port;
use crate::process::{Process, run, state};
use crate::redis::{Instance, until};
use crate::require::{require, skip};
use crate::tls::Certificates;
use crate::wall_clock::WallClock;

/// Where Debian has the programs of each version, which it leaves out of the `PATH`.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The user that the server runs as where we are root: PostgreSQL refuses to be root.
pub(crate) const USER: &str = "postgres";

/// What the server says when it serves, a standby included.
const READY: &str = "database system is ready to accept";

/// As the leash of other servers, for one whose children lead sessions of their own: it shuts down at once, with all of
/// them, and is not killed, because it would leave a piece of shared memory to the machine. It takes five seconds to kill those
/// that are stopped.
const LEASH: &str = r#"
    trap '' HUP
    exec 3<&0
    { read -r _ <&3; kill -QUIT $$; } >/dev/null 2>&1 &
    exec "$0" "$@" 3<&- </dev/null 2>&1
"#;

/// What [`Postgres::start`] starts, where it is not the plainest server there is.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    programs: Option<PathBuf>,
    settings: Vec<(String, String)>,
    environment: Vec<(OsString, OsString)>,
    password: Option<String>,
    certificates: Option<Certificates>,
    asks_for_certificate: bool,
    data: Option<PathBuf>,
}

impl PostgresOptions {
    /// One server that believes everybody: what [`Postgres::start`] starts.
    pub fn new() -> Self {
        Self::default()
    }

    /// The folder of other programs than Debian's newest or those on the `PATH`, as [`postgres_18`](crate::postgres_18).
    #[must_use]
    pub fn programs(mut self, folder: impl Into<PathBuf>) -> Self {
        self.programs = Some(folder.into());
        self
    }

    /// A setting of postgresql.conf: `("synchronous_commit", "off")`. It stands in place of ours.
    #[must_use]
    pub fn set(mut self, setting: &str, value: &str) -> Self {
        self.settings.push((setting.to_owned(), value.to_owned()));
        self
    }

    /// A server that asks everybody on its port for a password (SCRAM), and this as that of the user `postgres`, which is
    /// part of [`Postgres::url`] as it is written here. On its Unix socket it believes everybody still.
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

    /// As [`Self::tls`], and it turns away whoever shows no certificate of its own authority.
    #[must_use]
    pub fn client_certificates(mut self) -> Self {
        self.asks_for_certificate = true;
        self.tls()
    }

    /// A server that tells the time by this clock.
    #[must_use]
    pub fn clock(mut self, clock: &WallClock) -> Self {
        self.environment.extend(clock.environment());
        self
    }

    /// Keeps the data in this folder, which does not exist yet and whose parents everybody may enter: on a file system whose
    /// power is to be cut.
    #[must_use]
    pub fn data(mut self, folder: impl Into<PathBuf>) -> Self {
        self.data = Some(folder.into());
        self
    }

    /// Starts the server, and returns when it accepts connections. `None`, and said as [`skip`] does, where PostgreSQL is not
    /// installed.
    ///
    /// Panics, with what the server said, when it does not start.
    pub async fn start(self) -> Option<Postgres> {
        let programs = self.found()?;
        let files = Files::new(self.data.clone());
        let template = template(&programs);
        run(Command::new("cp").arg("-a").arg(template).arg(&files.data));
        // Whatever happens to the power afterwards, it finds what it was given.
        run(Command::new("sync").arg("-f").arg(&files.data));
        let password = self.password.clone();
        let server = self.serve(programs, files).await;
        if let Some(password) = password {
            server.psql(&format!("ALTER ROLE postgres PASSWORD '{}'", password.replace('\'', "''"))).await;
        }
        Some(server)
    }

    /// Starts a server on the data that is there.
    async fn serve(self, programs: PathBuf, files: Files) -> Postgres {
        let port = Port::claim();
        self.write_settings(&files, port.number());
        let mut command = Command::new("sh");
        command.args(["-c", LEASH]);
        let unprivileged = unprivileged(&programs.join("postgres"));
        command.arg(unprivileged.get_program()).args(unprivileged.get_args());
        command.arg("-D").arg(&files.data).envs(self.environment.iter().cloned());
        let instance = Instance::start(command, READY).await;
        let segment = segment(&files.data);
        Postgres { instance, segment, programs, options: self, port, files }
    }

    /// Where the programs are that this server is made of.
    fn found(&self) -> Option<PathBuf> {
        let programs = match &self.programs {
            Some(programs) => programs.clone(),
            None => debian().or_else(|| Some(require("postgres")?.parent()?.to_owned()))?,
        };
        let postgres = programs.join("postgres");
        if succeeds(unprivileged(Path::new("test")).arg("-x").arg(&postgres)) {
            return Some(programs);
        }
        skip(
            "postgres",
            &format!("the user {USER}, whom it would run as, may not execute {}", postgres.display()),
        );
        None
    }

    /// Writes what this server does otherwise than by default.
    fn write_settings(&self, files: &Files, port: u16) {
        let (data, folder) = (&files.data, files.folder.path());
        let mut settings: Vec<(String, String)> = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port.to_string()),
            ("unix_socket_directories", &folder.to_string_lossy()),
            ("shared_buffers", "16MB"),
            // Memory that a killed server leaves goes with its files.
            ("dynamic_shared_memory_type", "mmap"),
        ]
        .map(|(setting, value)| (setting.to_owned(), value.to_owned()))
        .into();
        let method = if self.password.is_some() { "scram-sha-256" } else { "trust" };
        let (mut kind, mut shown) = ("host", "");
        if let Some(certificates) = &self.certificates {
            let sources = [&certificates.authority, &certificates.certificate, &certificates.key];
            for (setting, source) in ["ssl_ca_file", "ssl_cert_file", "ssl_key_file"].into_iter().zip(sources)
            {
                let file = folder.join(source.file_name().expect("it is a file"));
                fs::copy(source, &file).expect("a temporary file can be copied");
                give_away(&file);
                settings.push((setting.to_owned(), file.to_string_lossy().into_owned()));
            }
            settings.push(("ssl".to_owned(), "on".to_owned()));
            kind = "hostssl";
            if self.asks_for_certificate {
                shown = "clientcert=verify-ca";
            }
        }
        settings.extend(self.settings.iter().cloned());
        let mut lines =
            vec![fs::read_to_string(data.join("postgresql.conf")).expect("the data has settings")];
        // The last one counts.
        lines.extend(
            settings.iter().map(|(setting, value)| format!("{setting} = '{}'", value.replace('\'', "''"))),
        );
        let text = lines.join("\n");
        let access = format!(
            "local all,replication all trust\n{kind} all,replication all 127.0.0.1/32 {method} {shown}\n"
        );
        for (file, text) in [("postgresql.conf", text), ("pg_hba.conf", access)] {
            fs::write(data.join(file), text).expect("a setting can be written");
        }
    }
}

/// A real PostgreSQL server on a port of 127.0.0.1, with nothing in it and nobody else on it.
///
/// It takes about 150 ms to start, so that every test has its own. Dropping it kills it, whatever state it is in; it
/// ends with the test's process too, however that ends.
#[derive(Debug)]
pub struct Postgres {
    instance: Instance,
    /// The number of its piece of shared memory, which only it would remove.
    segment: Option<String>,
    programs: PathBuf,
    options: PostgresOptions,
    port: Port,
    files: Files,
}

impl Postgres {
    /// Starts one with [`PostgresOptions::new`], as [`PostgresOptions::start`] does.
    pub async fn start() -> Option<Self> {
        PostgresOptions::new().start().await
    }

    /// Its TCP port on 127.0.0.1. It keeps it until it is dropped, whatever happens to it.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of its user `postgres`, who may do everything, as in `postgres://postgres@127.0.0.1:11042/postgres`. With TLS it
    /// asks for it, and names the files, as libpq does.
    pub fn url(&self) -> String {
        match &self.options.password {
            Some(password) => self.url_of(&format!("{USER}:{password}")),
            None => self.url_of(USER),
        }
    }

    /// As [`Self::url`], for another login, written as `user` or `user:password`.
    pub fn url_of(&self, login: &str) -> String {
        let url = format!("postgres://{login}@127.0.0.1:{}/postgres", self.port());
        let Some(files) = &self.options.certificates else { return url };
        let url = format!("{url}?sslmode=verify-full&sslrootcert={}", files.authority.display());
        if !self.options.asks_for_certificate {
            return url;
        }
        format!("{url}&sslcert={}&sslkey={}", files.certificate.display(), files.key.display())
    }

    /// Its URL by its Unix socket.
    pub fn socket_url(&self) -> String {
        let folder = self.files.folder.path().display();
        format!("postgres://{USER}@/postgres?host={folder}&port={}", self.port())
    }

    /// The certificate, in a PEM file, of the authority that signed its own, and its own with its key. A client may show these as
    /// well: they are of the same authority. `None` without TLS.
    pub fn certificates(&self) -> Option<[&Path; 3]> {
        let files = self.options.certificates.as_ref()?;
        Some([&files.authority, &files.certificate, &files.key])
    }

    /// The program of this name of the server's version, as in `program("pgbench")`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// What its user `postgres` is asked for.
    pub(crate) fn password(&self) -> Option<&str> {
        self.options.password.as_deref()
    }

    /// Has the server do something by `psql`, as the user `postgres` and by the Unix socket, and returns what that prints: rows
    /// in lines, columns with `|` between.
    ///
    /// Panics when the server answers with an error or not in time.
    ///
    /// # Cancel safety
    /// If the future is dropped, the server may have done it or not.
    pub async fn psql(&self, sql: &str) -> String {
        self.ask(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`Self::psql`]; the error is what `psql` says.
    pub async fn ask(&self, sql: &str) -> Result<String, String> {
        psql(&self.programs, &self.socket_url(), sql).await
    }

    /// A session of `psql`, as the user `postgres`, that lasts until it is dropped.
    pub fn session(&self) -> Psql {
        self.session_by(&self.socket_url())
    }

    /// As [`Self::session`], by this URL.
    pub fn session_by(&self, url: &str) -> Psql {
        Psql::start(&self.programs, url)
    }

    /// Takes all the room that the server has for messages (`NOTIFY`), for as long as the session lives that this returns: it
    /// listens, and stays in a transaction. To be done with a server whose `max_notify_queue_pages` is small (PostgreSQL 17 or later),
    /// because the room is 8 GB otherwise.
    ///
    /// Panics where there is room left.
    pub async fn without_room_for_messages(&self) -> Psql {
        let mut listener = self.session();
        listener.ask("LISTEN nothing").await;
        listener.ask("BEGIN").await;
        let tell = "DO $$ BEGIN FOR i IN 1 .. 1000 LOOP PERFORM pg_notify('nothing', i || repeat('x', 7000)); COMMIT; END LOOP; END $$";
        let said = self.ask(tell).await;
        assert!(said.as_ref().is_err_and(|said| said.contains("too many notifications")), "{said:?}");
        listener
    }

    /// Ends the connections of all clients (`pg_terminate_backend`), and returns how many there were, when they are gone.
    pub async fn terminate_backends(&self) -> usize {
        const TERMINATE: &str = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity \
            WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.psql(TERMINATE).await.parse().expect("a number")
    }

    /// Stops all of its processes (SIGSTOP), and returns when they have stopped: connections to it are made, and nobody answers.
    pub fn stop(&self) {
        self.instance.process.stop().expect("a server that runs can be stopped");
        // The one that starts them has stopped: there will be no others.
        let children = self.children();
        signal(&children, Signal::STOP);
        wait_until("its children stop", || {
            children.iter().all(|child| state(child).is_none_or(|state| state == 'T'))
        });
    }

    /// Lets all of its processes run on (SIGCONT).
    pub fn resume(&self) {
        signal(&self.children(), Signal::CONT);
        self.instance.process.resume().expect("a server that is stopped can be resumed");
    }

    /// Kills all of its processes (SIGKILL), as if its machine had crashed with its disk in order, and returns when they
    /// are dead: connections to it are refused. Killing it again does nothing.
    pub fn kill(&mut self) {
        if self.instance.process.is_dead() {
            return;
        }
        // It may have ended by itself; then there are no children either.
        let _ = self.instance.process.stop();
        let children = self.children();
        signal(&children, Signal::KILL);
        self.instance.process.kill().expect("a server can be killed");
        wait_until("its children die", || children.iter().all(|child| state(child).is_none()));
        if let Some(segment) = self.segment.take() {
            // A server that ended by itself has removed it.
            let _ = Command::new("ipcrm").args(["-m", &segment]).output();
        }
    }

    /// Shuts it down at once (SIGQUIT), as for a machine that goes off: it ends connections with a word to the client, finishes
    /// nothing, and recovers when it [starts again](Self::restart). Returns when it has ended.
    ///
    /// Panics when it does not end.
    pub async fn shut_down(&mut self) {
        let postmaster = Pid::from_raw(self.instance.process.id().cast_signed());
        kill_process(postmaster.expect("it has a number"), Signal::QUIT)
            .expect("a server that runs can be told");
        let ended = async { while self.instance.process.line().await.is_some() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the server ends when it is told to");
        self.kill();
    }

    /// Kills it, unless it is dead, and starts it again on the same port, with the data that it had confirmed.
    pub async fn restart(&mut self) {
        self.kill();
        self.instance.start_again().await;
        self.segment = segment(&self.files.data);
    }

    /// A server that follows this one, on a port of its own, with the same options but for the data's folder. Returns when it has
    /// caught up. This one confirms what it has written itself, whether or not the standby has it.
    ///
    /// To let a standby fall behind, kill it and start it again when this one is dead: what is under way to one that is
    /// stopped would reach it still.
    pub async fn standby(&self) -> Self {
        let files = Files::new(None);
        let mut copy = unprivileged(&self.program("pg_basebackup"));
        copy.args(["-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", &self.socket_url(), "-D"]);
        run(copy.arg(&files.data));
        let follow = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND application_name <> 'pg_basebackup'";
        let before = self.psql(follow).await;
        let standby = self.options.clone().serve(self.programs.clone(), files).await;
        // What came with the copy it has before it follows.
        until("the standby follows", async || (self.psql(follow).await != before).then_some(())).await;
        // Whoever is told of a commit from now on finds it there.
        let written = self.psql("SELECT pg_current_wal_flush_lsn()").await;
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
        until("the standby has caught up", async || (standby.psql(&has_it).await == "t").then_some(())).await;
        standby
    }

    /// As [`Self::standby`], and this server confirms nothing from now on that the standby has not on its disk.
    pub async fn synchronous_standby(&self) -> Self {
        let standby = self.standby().await;
        self.psql("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        self.psql("SELECT pg_reload_conf()").await;
        until("the standby is synchronous", async || {
            let state = self.psql("SELECT sync_state FROM pg_stat_replication").await;
            (state == "sync").then_some(())
        })
        .await;
        standby
    }

    /// Makes a standby a server in its own right, and returns when it accepts writes.
    pub async fn promote(&self) {
        assert_eq!(self.psql("SELECT pg_promote()").await, "t", "a standby is promoted");
    }

    /// The numbers of the processes that the first one has started.
    fn children(&self) -> Vec<String> {
        let first = self.instance.process.id();
        let children = fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap_or_default();
        children.split_whitespace().map(str::to_owned).collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A session of `psql` by a connection of its own, which ends when it is dropped.
#[derive(Debug)]
pub struct Psql(Process);

impl Psql {
    /// What it prints after an answer.
    const END: &str = "-- that was all --";

    fn start(programs: &Path, url: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", r#"exec "$0" "$@" 2>&1"#]).arg(programs.join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-d", url]);
        Self(Process::start(command).expect("psql starts"))
    }

    /// Has the server do something, and returns what `psql` prints, errors included, as in `ERROR:  deadlock detected`.
    ///
    /// Panics when there is no answer in time.
    pub async fn ask(&mut self, sql: &str) -> String {
        self.send(sql);
        self.answer().await
    }

    /// Has the server do something, and does not wait for it: [`Self::answer`] does. SQL is ended by `;` where it has to be.
    ///
    /// Panics when the session has ended.
    pub fn send(&mut self, sql: &str) {
        // What goes to stderr is printed at once.
        self.0.send(&format!("{sql};\n\\warn '{}'", Self::END)).expect("psql reads what it is told");
    }

    /// What `psql` prints for the first of what was [sent](Self::send) that was not answered yet. Where the connection is lost,
    /// `psql` says so and ends.
    ///
    /// Panics when there is no answer in time.
    pub async fn answer(&mut self) -> String {
        let mut lines = Vec::new();
        let read = async {
            loop {
                match self.0.line().await {
                    Some(line) if line == Self::END => return true,
                    Some(line) => lines.push(line),
                    None => return false,
                }
            }
        };
        let has_answered = tokio::time::timeout(PATIENCE, read).await;
        let answer = lines.join("\n");
        match has_answered {
            Ok(false) if answer.is_empty() => panic!("psql has ended"),
            Ok(_) => answer,
            Err(elapsed) => panic!("{elapsed}: psql did not answer within {PATIENCE:?}; it said:\n{answer}"),
        }
    }
}

/// Where a server's files are.
#[derive(Debug)]
struct Files {
    data: PathBuf,
    /// With the socket, and the data if it is nowhere else.
    folder: TempDir,
}

impl Files {
    fn new(data: Option<PathBuf>) -> Self {
        let folder = folder_of_the_server();
        Self { data: data.unwrap_or_else(|| folder.path().join("data")), folder }
    }
}

/// A temporary folder that belongs to the user that the server runs as.
pub(crate) fn folder_of_the_server() -> TempDir {
    let folder = TempDir::new().expect("a temporary directory");
    give_away(folder.path());
    folder
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes it the property of the user that the server runs as.
pub(crate) fn give_away(path: &Path) {
    if is_root() {
        run(Command::new("chown").arg(format!("{USER}:{USER}")).arg(path));
    }
}

/// The program, to be run as the user that the server runs as.
pub(crate) fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.arg(format!("--reuid={USER}")).arg(format!("--regid={USER}")).arg("--clear-groups").arg(program);
    command
}

/// The programs of the newest version that Debian has here.
fn debian() -> Option<PathBuf> {
    let versions = fs::read_dir(DEBIAN).ok()?.filter_map(|entry| {
        let version: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let programs = Path::new(DEBIAN).join(version.to_string()).join("bin");
        programs.join("postgres").is_file().then_some((version, programs))
    });
    versions.max().map(|(_, programs)| programs)
}

/// The data of a server that has never run, to be copied: made once for each version, because it takes longer than everything
/// else that a server does to start.
fn template(programs: &Path) -> PathBuf {
    let version = Command::new(programs.join("postgres")).arg("--version").output().expect("postgres starts");
    let version = String::from_utf8_lossy(&version.stdout);
    let version = version.split(' ').nth(2).expect("postgres says its version").trim();
    let templates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the workspace")
        .join("target/postgres");
    // Only its owner may read it.
    let template = templates.join(format!("{version}-of-{}", rustix::process::geteuid().as_raw()));
    if !template.exists() {
        let folder = folder_of_the_server();
        let made = folder.path().join("data");
        let mut initdb = unprivileged(&programs.join("initdb"));
        initdb.args(["-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "-D"]);
        run(initdb.arg(&made));
        fs::create_dir_all(&templates).expect("the target folder can be written to");
        // Nobody sees half of one. If somebody else was quicker, theirs is as good.
        let copy = TempDir::new_in(&templates).expect("the target folder can be written to");
        run(Command::new("cp").arg("-a").arg(made).arg(copy.path()));
        let _ = fs::rename(copy.path().join("data"), &template);
    }
    template
}

/// What the server has written of its piece of shared memory.
fn segment(data: &Path) -> Option<String> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    text.lines().nth(6)?.split_whitespace().nth(1).map(str::to_owned)
}

/// What `psql` prints, or says on stderr.
pub(crate) async fn psql(programs: &Path, url: &str, sql: &str) -> Result<String, String> {
    let mut command = tokio::process::Command::new(programs.join("psql"));
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", sql]);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .map_err(|_| format!("no answer within {PATIENCE:?}"))?
        .expect("psql starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Signals processes of a server, which may be gone.
fn signal(processes: &[String], signal: Signal) {
    for process in processes {
        let pid = process.parse().ok().and_then(Pid::from_raw).expect("the kernel writes numbers");
        let _ = kill_process(pid, signal);
    }
}

/// Waits for what happens to processes that are not our children: the kernel does not tell us.
///
/// Panics after [`PATIENCE`].
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    const PAUSE: Duration = Duration::from_millis(1);
    for _ in 0..PATIENCE.as_millis() {
        if is_so() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
    panic!("waited {PATIENCE:?} in vain until {what}");
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;
    use crate::disk::Disk;
    use crate::peers::postgres_18;
    use crate::process::orphans::{ends_with_its_test, is_to_be_stopped, wait_to_be_killed};

    async fn is_dead(server: &Postgres, children: &[String]) -> bool {
        let is_refused = TcpStream::connect(("127.0.0.1", server.port())).await.is_err();
        is_refused && children.iter().all(|child| state(child).is_none())
    }

    /// Whether the machine has this piece of shared memory.
    fn is_left(segment: &str) -> bool {
        succeeds(Command::new("sh").args(["-c", r#"ipcs -m | grep -q "^[^ ]* $0 ""#, segment]))
    }

    #[tokio::test]
    async fn a_server_answers_on_its_port_and_its_socket_and_is_alone() {
        let Some(server) = Postgres::start().await else { return };
        let Some(other) = Postgres::start().await else { return };
        assert_eq!(server.url(), format!("postgres://postgres@127.0.0.1:{}/postgres", server.port()));
        for url in [server.url(), server.socket_url()] {
            let answer = psql(&server.programs, &url, "SELECT current_user, 6 * 7").await;
            assert_eq!(answer.as_deref(), Ok("postgres|42"), "{url}");
        }
        server.psql("CREATE TABLE mine (a int)").await;
        let error = other.ask("SELECT * FROM mine").await.unwrap_err();
        assert!(error.contains(r#"relation "mine" does not exist"#), "{error}");
    }

    #[tokio::test]
    async fn a_server_comes_back_with_what_it_confirmed() {
        let Some(mut server) = Postgres::start().await else { return };
        let port = server.port();
        server.psql("CREATE TABLE numbers AS SELECT 1").await;
        for number in 2..4 {
            let children = server.children();
            let segment = server.segment.clone().expect("it has a piece of shared memory");
            assert!(children.len() > 3 && is_left(&segment), "{children:?} {segment}");
            if number == 2 {
                server.kill();
                server.kill();
            } else {
                server.shut_down().await;
            }
            // One that was told to end may be seen for a moment longer than the server.
            crate::redis::until("all of it is gone", async || {
                is_dead(&server, &children).await.then_some(())
            })
            .await;
            assert!(!is_left(&segment), "shared memory is left");
            server.restart().await;
            server.psql(&format!("INSERT INTO numbers VALUES ({number})")).await;
        }
        let numbers = server.psql("SELECT * FROM numbers").await;
        assert_eq!((server.port(), &*numbers), (port, "1\n2\n3"));
    }

    #[tokio::test]
    async fn a_stopped_server_is_silent() {
        let Some(mut server) = Postgres::start().await else { return };
        let mut session = server.session();
        let backend = session.ask("SELECT pg_backend_pid()").await;
        server.stop();
        assert_eq!(state(&backend), Some('T'));
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
        session.send("SELECT 42");
        let read = tokio::time::timeout(Duration::from_millis(100), session.0.line());
        assert!(read.await.is_err(), "a stopped server answers");
        server.resume();
        assert_eq!(session.answer().await, "42");
        server.stop();
        server.kill();
        assert!(is_dead(&server, &[backend]).await);
        assert_eq!(stream.read(&mut [0]).await.unwrap_or_default(), 0, "it has nothing to say any more");
    }

    #[tokio::test]
    async fn a_session_holds_what_it_has_until_it_is_terminated() {
        let Some(server) = Postgres::start().await else { return };
        let (mut one, mut two) = (server.session(), server.session());
        assert_eq!(one.ask("SELECT pg_advisory_lock(1)").await, "");
        assert_eq!(two.ask("SELECT pg_try_advisory_lock(1)").await, "f");
        two.send("SELECT pg_advisory_lock(1), 42");
        until("the other waits", async || {
            (server.psql("SELECT count(*) FROM pg_locks WHERE NOT granted").await == "1").then_some(())
        })
        .await;
        drop(one);
        assert_eq!(two.answer().await, "|42");
        assert_eq!(server.terminate_backends().await, 1);
        assert_eq!(server.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").await, "0");
        let said = two.ask("SELECT 42").await;
        assert!(said.contains("terminating connection due to administrator command"), "{said}");
    }

    #[tokio::test]
    async fn settings_and_password_are_the_servers() {
        let options = PostgresOptions::new().set("idle_session_timeout", "60s").set("fsync", "off");
        let Some(server) = options.password("it's").start().await else { return };
        assert_eq!(server.url(), format!("postgres://postgres:it's@127.0.0.1:{}/postgres", server.port()));
        let settings = "SELECT current_setting('idle_session_timeout'), current_setting('fsync')";
        assert_eq!(psql(&server.programs, &server.url(), settings).await.as_deref(), Ok("1min|off"));
        server.psql("CREATE ROLE other LOGIN PASSWORD 'mine'").await;
        for (login, is_right) in [("other:mine", true), ("other:its", false), ("postgres:its", false)] {
            let answer = psql(&server.programs, &server.url_of(login), "SELECT 42").await;
            assert_eq!(answer.is_ok(), is_right, "{login}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn a_server_with_tls_speaks_nothing_else_and_is_vouched_for() {
        let ask = async |server: &Postgres, url: &str| {
            psql(&server.programs, url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await
        };
        for options in [PostgresOptions::new().tls(), PostgresOptions::new().client_certificates()] {
            let Some(server) = options.start().await else { return };
            assert_eq!(ask(&server, &server.url()).await.as_deref(), Ok("t"));
            let [authority, ..] = server.certificates().unwrap();
            let address = format!("postgres://postgres@127.0.0.1:{}/postgres", server.port());
            let unencrypted = ask(&server, &format!("{address}?sslmode=disable")).await.unwrap_err();
            assert!(unencrypted.contains("no encryption"), "{unencrypted}");
            let strangers = Certificates::make(Ipv4Addr::LOCALHOST);
            let stranger =
                format!("{address}?sslmode=verify-full&sslrootcert={}", strangers.authority.display());
            let unknown = ask(&server, &stranger).await.unwrap_err();
            assert!(unknown.contains("SSL error"), "{unknown}");
            let nameless = format!("{address}?sslmode=verify-full&sslrootcert={}", authority.display());
            let nameless = ask(&server, &nameless).await;
            assert_eq!(nameless.is_err(), server.options.asks_for_certificate, "{nameless:?}");
        }
    }

    #[tokio::test]
    async fn a_server_tells_the_time_by_its_clock() {
        let Some(clock) = WallClock::new() else { return };
        let Some(server) = PostgresOptions::new().clock(&clock).start().await else { return };
        let mut session = server.session();
        let mut seconds = async || -> f64 {
            session.ask("SELECT extract(epoch FROM clock_timestamp())").await.parse().expect("seconds")
        };
        let before = seconds().await;
        clock.step(3600);
        let after = seconds().await;
        assert!((3600.0..3610.0).contains(&(after - before)), "{before} {after}");
    }

    #[tokio::test]
    async fn a_standby_follows_and_is_promoted() {
        let Some(mut server) = Postgres::start().await else { return };
        server.psql("CREATE TABLE numbers AS SELECT 1").await;
        let mut standby = server.standby().await;
        assert_eq!(standby.psql("SELECT pg_is_in_recovery(), count(*) FROM numbers").await, "t|1");
        // What it does not get is lost.
        standby.kill();
        server.psql("INSERT INTO numbers VALUES (2)").await;
        server.kill();
        standby.restart().await;
        standby.promote().await;
        standby.psql("INSERT INTO numbers VALUES (3)").await;
        assert_eq!(standby.psql("SELECT * FROM numbers").await, "1\n3");
        let timeline = "SELECT timeline_id FROM pg_control_checkpoint()";
        until("there is a new timeline", async || (standby.psql(timeline).await == "2").then_some(())).await;
    }

    #[tokio::test]
    async fn nothing_is_confirmed_that_a_synchronous_standby_has_not() {
        let Some(mut server) = Postgres::start().await else { return };
        let mut standby = server.synchronous_standby().await;
        server.psql("CREATE TABLE numbers AS SELECT 1").await;
        standby.kill();
        let mut session = server.session();
        session.send("INSERT INTO numbers VALUES (2)");
        until("the write waits for the standby", async || {
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            (server.psql(waits).await == "1").then_some(())
        })
        .await;
        standby.restart().await;
        assert_eq!(session.answer().await, "");
        server.kill();
        standby.promote().await;
        assert_eq!(standby.psql("SELECT * FROM numbers").await, "1\n2");
    }

    #[tokio::test]
    async fn a_power_cut_leaves_what_was_confirmed() {
        let Some(disk) = Disk::new(512) else { return };
        for (fsync, is_kept) in [("on", true), ("off", false)] {
            disk.mount();
            let data = disk.path().join(fsync);
            // Unlike the writer of the log, nobody else takes what was confirmed to the disk in this time.
            let options =
                PostgresOptions::new().data(data).set("fsync", fsync).set("checkpoint_timeout", "1d");
            let Some(mut server) = options.start().await else { return };
            server.psql("CREATE TABLE numbers AS SELECT 42").await;
            disk.cut_power();
            server.kill();
            disk.unmount();
            disk.mount();
            server.restart().await;
            let kept = server.ask("SELECT * FROM numbers").await;
            assert_eq!(kept.as_deref() == Ok("42"), is_kept, "fsync {fsync}: {kept:?}");
            server.kill();
            disk.unmount();
        }
    }

    #[tokio::test]
    async fn version_18_is_started_as_well() {
        let Some(programs) = postgres_18() else { return };
        let Some(server) = PostgresOptions::new().programs(programs).start().await else { return };
        assert!(server.psql("SHOW server_version").await.starts_with("18."), "another version");
        let standby = server.standby().await;
        standby.promote().await;
        assert_eq!(standby.psql("SELECT pg_is_in_recovery()").await, "f");
    }

    #[tokio::test]
    #[should_panic(expected = "no_such_setting")]
    async fn a_server_that_does_not_start_says_why() {
        let options = PostgresOptions::new().set("no_such_setting", "1");
        assert!(options.start().await.is_some(), "no_such_setting: there is nothing to start here");
    }

    /// Starts a server in a process of its own and is killed: it drops nothing.
    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn child_starts_a_server_and_waits() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let server = runtime.block_on(Postgres::start()).expect("the parent has looked");
        if is_to_be_stopped() {
            server.stop();
        }
        let mut processes = server.children();
        processes.push(server.instance.process.id().to_string());
        wait_to_be_killed(&processes);
    }

    #[tokio::test]
    async fn a_server_ends_with_a_test_that_is_killed() {
        if PostgresOptions::new().found().is_none() {
            return;
        }
        ends_with_its_test("postgres::tests::child_starts_a_server_and_waits").await;
    }
}
