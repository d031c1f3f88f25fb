//! The servers between which the load is compared.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringfence_servers::Process;
use rustix::param::clock_ticks_per_second;
use serde_json::Value;

/// How long a server may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// A server on a port of this machine, and all of its processes. It ends when this is dropped.
pub(crate) struct Server {
    process: Process,
    port: u16,
}

impl Server {
    pub(crate) fn new(process: Process, port: u16) -> Self {
        Self { process, port }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What its processes have had of the processor.
    pub(crate) fn processor_time(&self) -> Duration {
        let group = self.process.id().to_string();
        let ticks = fs::read_dir("/proc").expect("the processes").flatten().filter_map(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // After its name, which may be anything: state, parent, group; and the 12th and 13th are what it spent.
            let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
            let spent = |at: usize| fields.get(at)?.parse::<u64>().ok();
            (fields.get(2) == Some(&group.as_str())).then_some(spent(11)? + spent(12)?)
        });
        Duration::from_secs(ticks.sum()) / u32::try_from(clock_ticks_per_second()).expect("some hundreds")
    }
}

/// The program `ringfence`, as it was built beside this one. `None`, and said, where it was not.
pub(crate) fn ringfence() -> Option<PathBuf> {
    let program = std::env::current_exe().expect("this program").with_file_name("ringfence");
    if !program.is_file() {
        ringfence_servers::skip(
            "the gate",
            "not built; `cargo xtask bench` does, or: cargo build --release -p ringfence-cli",
        );
        return None;
    }
    Some(program)
}

/// A gate to be started.
pub(crate) struct Gate<'a> {
    pub(crate) program: &'a Path,
    pub(crate) url: &'a str,
    pub(crate) is_alone: bool,
}

impl Gate<'_> {
    /// Starts it before this upstream, and returns when it lets requests through.
    pub(crate) fn start(&self, upstream: u16) -> Server {
        let mut command = Command::new(self.program);
        command.args(["gate", "--json", "--listen", "127.0.0.1:0", "--url", self.url]);
        command.args(["--upstream", &format!("http://127.0.0.1:{upstream}")]);
        if self.is_alone {
            command.args(["--alone", "bench"]);
        }
        let mut process = Process::start(command).expect("a process");
        let mut event = |wanted: &str| -> Value {
            loop {
                let line = crate::small_runtime().block_on(process.line()).expect("it says what it does");
                let event: Value = serde_json::from_str(&line).expect("a line of JSON");
                if event["event"] == wanted {
                    return event;
                }
            }
        };
        let listening = event("listening");
        if self.is_alone {
            event("alone");
        }
        let (_, port) =
            listening["address"].as_str().and_then(|text| text.rsplit_once(':')).expect("an address");
        let port = port.parse().expect("a port");
        Server::new(process, port)
    }
}

/// A plain reverse proxy before this upstream: as many workers as there are cores, idle connections kept, nothing written to its disk.
/// `None`, and said, where it is not installed.
pub(crate) fn nginx(place: &Path, upstream: u16) -> Option<Server> {
    let program = ringfence_servers::nginx()?;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    let port = free.expect("a port").port();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let place = place.join("nginx");
    fs::create_dir_all(&place).expect("a directory");
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {what};\n"))
        .concat();
    let settings = format!(
        "daemon off; pid pid; error_log stderr; worker_processes {cores};
         events {{ worker_connections 1024; }}
         http {{
             {temporary}
             access_log off; tcp_nodelay on; keepalive_requests 1000000000;
             upstream resource {{
                 server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000;
             }}
             server {{
                 listen 127.0.0.1:{port};
                 location / {{
                     proxy_pass http://resource; proxy_http_version 1.1; proxy_set_header Connection '';
                     proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
                     proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Proto $scheme;
                 }}
             }}
         }}"
    );
    fs::write(place.join("nginx.conf"), settings).expect("its settings");
    let mut command = Command::new(program);
    command.arg("-p").arg(&place).args(["-c", "nginx.conf", "-e", "stderr"]);
    let process = Process::start(command).expect("a process");
    let started = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(started.elapsed() < LISTENS_WITHIN, "nginx does not listen; it says above why");
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(Server::new(process, port))
}
