//! The example `charge_once`, driven over HTTP: an account is charged once under duplicate, concurrent and crashed requests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// One of the servers that share a store.
struct Server {
    process: Child,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

/// What came back.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    replayed: bool,
    body: Value,
}

impl Server {
    /// Starts the example, which is built with the tests, and pauses it where it is told to.
    fn start(store: &TempDir, pause: &str) -> Self {
        let test = std::env::current_exe().unwrap();
        let program = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/charge_once");
        assert!(
            program.exists(),
            "cargo build -p ringfence --example charge_once makes {}",
            program.display()
        );
        let mut process = Command::new(program)
            .args(["127.0.0.1:0", &format!("local:{}/store", store.path().display())])
            .env("PAUSE", pause)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").expect(&line).parse().unwrap();
        Self { process, output, address }
    }

    /// Sends a charge of 42 and leaves the connection open.
    fn send(&self, key: &str, amount: u32) -> TcpStream {
        let body = json!({ "account": "ann", "amount": amount }).to_string();
        let length = body.len();
        self.request(
            &format!("POST /charges HTTP/1.1\r\nidempotency-key: {key}\r\ncontent-length: {length}\r\n"),
            &body,
        )
    }

    fn charge(&self, key: &str, amount: u32) -> Answer {
        answer(self.send(key, amount))
    }

    fn balance(&self) -> Value {
        answer(self.request("GET /accounts/ann HTTP/1.1\r\n", "")).body["balance"].clone()
    }

    fn request(&self, head: &str, body: &str) -> TcpStream {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(connection, "{head}host: {}\r\nconnection: close\r\n\r\n{body}", self.address).unwrap();
        connection
    }

    /// Waits until it hangs where it was told to.
    fn paused(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "paused\n");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL: whatever it holds then, it holds as one that crashed.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn answer(mut connection: TcpStream) -> Answer {
    let mut text = String::new();
    connection.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect(head);
    let replayed = head.to_lowercase().contains("idempotent-replayed: true");
    Answer { status, replayed, body: serde_json::from_str(body).expect(body) }
}

fn receipt(amount: i64, balance: i64) -> Value {
    json!({ "account": "ann", "amount": amount, "balance": balance })
}

#[test]
fn a_duplicate_gets_the_same_answer_and_another_request_none() {
    let store = TempDir::new().unwrap();
    let server = Server::start(&store, "");
    let first = server.charge("one", 42);
    assert_eq!(first, Answer { status: 201, replayed: false, body: receipt(42, -42) });
    assert_eq!(server.charge("one", 42), Answer { status: 200, replayed: true, ..first });
    assert_eq!(server.charge("one", 43).status, 422, "it is another charge");
    assert_eq!(answer(server.request("POST /charges HTTP/1.1\r\n", "")).status, 400, "it has no key");
    assert_eq!(server.charge("two", 1).body, receipt(1, -43), "another key is another charge");
    assert_eq!(server.balance(), -43);
}

#[test]
fn concurrent_requests_charge_once_and_get_one_answer() {
    let store = TempDir::new().unwrap();
    let servers = [Server::start(&store, ""), Server::start(&store, "")];
    let sent: Vec<_> = (0..16).map(|number| servers[number % 2].send("one", 42)).collect();
    let answers: Vec<_> = sent.into_iter().map(answer).collect();
    for answer in &answers {
        assert_eq!(answer.body, receipt(42, -42), "{answer:?}");
    }
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1, "{answers:?}");
    assert_eq!(servers[1].balance(), -42);
}

#[test]
fn a_crash_before_the_charge_is_charged_once_by_the_next() {
    let store = TempDir::new().unwrap();
    let mut crashes = Server::start(&store, "before-charge");
    let unanswered = crashes.send("one", 42);
    crashes.paused();
    drop(crashes);
    let server = Server::start(&store, "");
    assert_eq!(server.balance(), 0);
    assert_eq!(server.charge("one", 42), Answer { status: 201, replayed: false, body: receipt(42, -42) });
    assert_eq!(server.balance(), -42);
    drop(unanswered);
}

/// The window that no lock closes: it was charged, and nobody has written down that it was done.
#[test]
fn a_crash_after_the_charge_is_not_charged_again() {
    let store = TempDir::new().unwrap();
    let mut crashes = Server::start(&store, "after-charge");
    let unanswered = crashes.send("one", 42);
    crashes.paused();
    drop(crashes);
    let server = Server::start(&store, "");
    assert_eq!(server.balance(), -42, "it was charged, and its client knows nothing of it");
    assert_eq!(server.charge("two", 1).body, receipt(1, -43));
    assert_eq!(server.charge("one", 42), Answer { status: 201, replayed: false, body: receipt(42, -42) });
    assert_eq!(server.balance(), -43);
    drop(unanswered);
}

#[test]
fn a_client_that_hangs_up_frees_its_key() {
    let store = TempDir::new().unwrap();
    let mut hangs = Server::start(&store, "before-charge");
    let unanswered = hangs.send("one", 42);
    hangs.paused();
    drop(unanswered);
    let server = Server::start(&store, "");
    assert_eq!(server.charge("one", 42).status, 201, "the hanging server still runs, and has let go");
    assert_eq!(server.balance(), -42);
}
