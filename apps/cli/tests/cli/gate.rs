//! `gate`: a real proxy before a real server, with real holders.

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::process::{ChildStdin, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::sys::signal::Signal;
use ringfence_servers::RedisServer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::support::{PATIENCE, RINGFENCE, Running, Store, eventually, now, read_all, since, with_input};

/// What is to wait, has to be seen waiting for so long.
const A_WHILE: Duration = Duration::from_millis(300);

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A request that reached the upstream, which answers when the test does.
pub(crate) struct Arrived {
    pub(crate) request: Request<Incoming>,
    pub(crate) answer: oneshot::Sender<Response<Body>>,
}

impl Arrived {
    pub(crate) fn answers(self, text: &str) {
        self.answer.send(Response::new(full(text))).expect("the gate still waits for the answer");
    }
}

/// A server of the test's own.
pub(crate) struct Upstream {
    address: SocketAddr,
    arrivals: mpsc::UnboundedReceiver<Arrived>,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (arrived, arrivals) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let arrived = arrived.clone();
                let service = service_fn(move |request| {
                    let (answer, answered) = oneshot::channel();
                    // A test that has ended asks for no more.
                    let _ = arrived.send(Arrived { request, answer });
                    answered
                });
                let mut server = http1::Builder::new();
                // The gate adds some to as many as it takes.
                server.max_headers(200);
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, arrivals }
    }

    pub(crate) async fn arrival(&mut self) -> Arrived {
        timeout(PATIENCE, self.arrivals.recv()).await.expect("a request arrives").unwrap()
    }

    pub(crate) async fn nothing_arrives(&mut self) {
        if let Ok(arrived) = timeout(A_WHILE, self.arrivals.recv()).await {
            panic!("{:?} arrived, which has to wait or was refused", arrived.unwrap().request);
        }
    }
}

/// The program as a gate.
pub(crate) struct GateProcess {
    running: Running,
    pub(crate) address: String,
}

impl GateProcess {
    pub(crate) fn start(store: &Store, upstream: &Upstream, flags: &[&str]) -> Self {
        Self::before(upstream.address, store, flags)
    }

    pub(crate) fn before(upstream: SocketAddr, store: &Store, flags: &[&str]) -> Self {
        let to = format!("http://{upstream}");
        let mut command = store.command(["gate", "--json", "--listen", "127.0.0.1:0", "--upstream", &to]);
        command.args(flags);
        let running = Running::start(command.env("RINGFENCE_LOG", "warn").stderr(Stdio::inherit()));
        let listening = event(&running);
        assert_eq!((&listening["event"], &listening["upstream"]), (&json!("listening"), &json!(to[7..])));
        Self { address: listening["address"].as_str().unwrap().to_owned(), running }
    }

    /// Sends a request with this token of the lock `a`.
    async fn sends(&self, token: &str) -> (u16, String) {
        self.send(request(&self.address, "/").header("ringfence-token", format!("a;{token}"))).await
    }

    async fn send(&self, request: http::request::Builder) -> (u16, String) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let answer = client.request(request.body(Full::default()).unwrap());
        let answer = timeout(PATIENCE, answer).await.expect("the gate answers").unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Sends one that passes, and answers it.
    pub(crate) async fn passes(&self, upstream: &mut Upstream, token: &str) {
        let sent = self.sends(token);
        let answered = async { upstream.arrival().await.answers("done") };
        let (answer, ()) = tokio::join!(sent, answered);
        assert_eq!(answer, (200, "done".to_owned()));
    }

    /// Sends one that is refused, and returns why.
    pub(crate) async fn refuses(&self, upstream: &mut Upstream, token: &str) -> (u16, Value) {
        let (status, body) = self.sends(token).await;
        upstream.nothing_arrives().await;
        (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
    }
}

/// The next line that a process prints, as JSON.
#[track_caller]
fn event(running: &Running) -> Value {
    serde_json::from_str(&running.line().expect("it prints a line")).unwrap()
}

fn request(address: &str, path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://{address}{path}"))
}

fn full(text: &str) -> Body {
    Full::from(text.to_owned()).boxed()
}

/// A holder of the lock `a`, and its token.
pub(crate) fn hold<'a>(
    store: &Store,
    flags: impl IntoIterator<Item = &'a str>,
) -> (Running, ChildStdin, String) {
    let args = ["hold", "a"].into_iter().chain(flags);
    let (running, input) = Running::start_with_input(&mut store.command(args));
    let token = event(&running)["token"].as_str().unwrap().to_owned();
    (running, input, token)
}

fn sequence(token: &str) -> u64 {
    token.split_once('.').unwrap().0.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_arrives_as_it_was_sent_but_for_its_connection() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = GateProcess::start(&store, &upstream, &[]);
    let (_holder, _input, token) = hold(&store, []);
    let sent = gate.send(
        request(&gate.address, "/orders/42?x=%20y")
            .method("PATCH")
            .header("ringfence-token", format!("a;{token}"))
            .header("connection", "X-Mine, close")
            .header("x-mine", "1")
            .header("te", "trailers")
            .header("x-forwarded-for", "192.0.2.7")
            .header("x-other", "2"),
    );
    let answered = async {
        let arrived = upstream.arrival().await;
        let (head, _) = arrived.request.into_parts();
        assert_eq!((head.method.as_str(), head.uri.to_string().as_str()), ("PATCH", "/orders/42?x=%20y"));
        let header = |name: &str| {
            let values: Vec<_> =
                head.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
            values.join("|")
        };
        assert_eq!(header("host"), upstream.address.to_string());
        assert_eq!(header("x-forwarded-host"), gate.address);
        assert_eq!(header("x-forwarded-for"), "192.0.2.7|127.0.0.1");
        assert_eq!((header("x-forwarded-proto"), header("x-other")), ("http".to_owned(), "2".to_owned()));
        assert_eq!(header("ringfence-token"), format!("a;{token}"));
        assert_eq!(["connection", "x-mine", "te"].map(header), ["", "", ""]);
        let answer = Response::builder().status(201).header("connection", "x-hop").header("x-hop", "1");
        arrived.answer.send(answer.header("x-end", "2").body(full("made")).unwrap()).unwrap();
    };
    let (answer, ()) = tokio::join!(sent, answered);
    assert_eq!(answer, (201, "made".to_owned()));
}

/// What the upstream has read before the client has sent it all, and the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_passed_on_as_they_come() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = GateProcess::start(&store, &upstream, &[]);
    let (_holder, _input, token) = hold(&store, []);
    let (mut sends, body) = Channel::<Bytes, Infallible>::new(1);
    let client = Client::builder(TokioExecutor::new()).build_http();
    // Even of a GET, with which hardly anybody sends a body.
    let request = request(&gate.address, "/")
        .header("ringfence-token", format!("a;{token}"))
        .header("transfer-encoding", "chunked")
        .body(body)
        .unwrap();
    let answer = tokio::spawn(client.request(request));
    sends.send_data(Bytes::from("one")).await.unwrap();
    let Arrived { request, answer: answers } = upstream.arrival().await;
    let mut received = request.into_body();
    assert_eq!(received.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    let (mut answering, body): (Sender<Bytes>, _) = Channel::new(1);
    answers.send(Response::new(body.boxed())).unwrap();
    answering.send_data(Bytes::from("1")).await.unwrap();
    let mut answer = answer.await.unwrap().unwrap().into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "1");
    sends.send_data(Bytes::from("two")).await.unwrap();
    assert_eq!(received.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
    drop((sends, answering));
    assert!(received.frame().await.is_none() && answer.frame().await.is_none(), "both end in order");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_nothing_passes() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = GateProcess::start(&store, &upstream, &[]);
    let (status, body) = gate.send(request(&gate.address, "/")).await;
    assert!(status == 428 && body.contains("Ringfence-Token: name;sequence.nonce"), "{status} {body}");
    let (status, why) = gate.refuses(&mut upstream, "nonsense").await;
    assert_eq!((status, &why["error"]), (400, &json!("malformed")));
}

/// The holder is stopped past its lease; its successor comes to the gate, then the late request does.
async fn a_late_request_is_refused(store: &Store, url: &str) {
    let mut upstream = Upstream::start().await;
    let gate = GateProcess::start(store, &upstream, &["--url", url]);
    let (first, _input, old) = hold(store, ["--url", url, "--ttl", "1s"]);
    gate.passes(&mut upstream, &old).await;
    first.signal(Signal::SIGSTOP);
    let (_second, _second_input, new) = hold(store, ["--url", url]);
    gate.passes(&mut upstream, &new).await;
    first.signal(Signal::SIGCONT);
    let (status, why) = gate.refuses(&mut upstream, &old).await;
    assert_eq!((status, &why["error"], &why["mark"]), (412, &json!("stale"), &json!(sequence(&new))));
    gate.passes(&mut upstream, &new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_request_of_a_stopped_holder_is_refused_by_the_local_store() {
    let store = Store::new();
    a_late_request_is_refused(&store, &store.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_request_of_a_stopped_holder_is_refused_by_redis() {
    let Some(server) = RedisServer::start().await else { return };
    a_late_request_is_refused(&Store::new(), &server.url()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_token_waits_for_the_older_one_which_is_cut_after_the_drain() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::start(&store, &upstream, &["--url", &url, "--drain", "2s"]);
    let test = async |late: Option<&str>, old: &str, new: &str| {
        let older = gate.sends(old);
        let newer = async {
            let mut first = upstream.arrival().await;
            let newer = gate.sends(new);
            let meanwhile = async {
                upstream.nothing_arrives().await;
                match late {
                    Some(text) => first.answers(text),
                    None => first.answer.closed().await,
                }
                upstream.arrival().await.answers("newer");
            };
            tokio::join!(newer, meanwhile).0
        };
        let (older, newer) = tokio::join!(older, newer);
        assert_eq!(newer, (200, "newer".to_owned()));
        older
    };
    let mut test = test;
    assert_eq!(test(Some("older"), "256.1", "512.2").await, (200, "older".to_owned()));
    let (status, why) = test(None, "512.2", "768.3").await;
    assert!(status == 412 && why.contains("it may have taken effect"), "{status} {why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_gates_share_their_marks_and_nothing_passes_without_the_store() {
    let Some(mut server) = RedisServer::start().await else { return };
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = server.url();
    let [one, two] = [0; 2].map(|_| GateProcess::start(&store, &upstream, &["--url", &url]));
    let (first, input, old) = hold(&store, ["--url", &url]);
    one.passes(&mut upstream, &old).await;
    two.passes(&mut upstream, &old).await;
    drop(input);
    assert!(first.end().success());
    let (_second, _input, new) = hold(&store, ["--url", &url]);
    two.passes(&mut upstream, &new).await;
    let (status, why) = one.refuses(&mut upstream, &old).await;
    assert_eq!((status, &why["mark"]), (412, &json!(sequence(&new))));
    server.kill();
    let (status, why) = one.refuses(&mut upstream, &new).await;
    assert_eq!((status, &why["error"]), (503, &json!("unavailable")));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_several_gates_is_alone_and_another_takes_its_place() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?ttl=1s&fence=mark", store.url());
    let start = || GateProcess::start(&store, &upstream, &["--url", &url, "--alone", "web"]);
    let (one, two) = (start(), start());
    assert_eq!(event(&one.running)["event"], "standing_by");
    let alone = event(&one.running);
    assert_eq!((&alone["event"], &alone["name"]), (&json!("alone"), &json!("gate/web")));
    one.passes(&mut upstream, "256.1").await;
    one.passes(&mut upstream, "256.1").await;
    let (status, why) = two.refuses(&mut upstream, "256.1").await;
    assert_eq!((status, &why["error"]), (503, &json!("standing_by")));

    one.running.signal(Signal::SIGSTOP);
    assert_eq!(event(&two.running)["event"], "standing_by");
    assert_eq!(event(&two.running)["event"], "alone");
    two.passes(&mut upstream, "512.2").await;
    one.running.signal(Signal::SIGCONT);
    let (status, why) = one.refuses(&mut upstream, "256.1").await;
    assert_eq!((status, &why["error"]), (503, &json!("standing_by")), "what it remembers is not believed");
    two.running.signal(Signal::SIGTERM);
    assert!(two.running.end().success());
    assert_eq!(event(&one.running)["event"], "standing_by");
    assert_eq!(event(&one.running)["event"], "alone");
    let (status, why) = one.refuses(&mut upstream, "256.1").await;
    assert_eq!((status, &why["mark"]), (412, &json!(512)));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_only_sealed_tokens_pass_and_no_mac_is_logged() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let key = store.path("key");
    fs::write(&key, [7; 32]).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let url = format!("{}?fence=mark&token_key_file={}", store.url(), key.display());
    let to = format!("http://{}", upstream.address);
    let mut command =
        store.command(["gate", "--json", "--url", &url, "--listen", "127.0.0.1:0", "--upstream", &to]);
    let mut running = Running::start(command.env("RINGFENCE_LOG", "trace").stderr(Stdio::piped()));
    let log = running.process.stderr.take().unwrap();
    let log = std::thread::spawn(move || read_all(log));
    let address = event(&running)["address"].as_str().unwrap().to_owned();
    let gate = GateProcess { running, address };

    let (status, why) = gate.refuses(&mut upstream, "9223372036854775807.1").await;
    assert_eq!((status, &why["error"]), (403, &json!("forged")));
    let (_holder, _input, token) = hold(&store, ["--url", &url]);
    let (bare, mac) = token.rsplit_once('.').unwrap();
    assert_eq!(mac.len(), 32, "{token}");
    gate.passes(&mut upstream, &token).await;
    assert_eq!(gate.refuses(&mut upstream, bare).await.0, 403);

    gate.running.signal(Signal::SIGTERM);
    assert!(gate.running.end().success());
    let log = log.join().unwrap();
    assert!(log.contains("forged") && !log.contains(mac), "{log}");
}

#[test]
fn every_verb_takes_a_sealed_token() {
    let store = Store::new();
    let key = store.path("key");
    fs::write(&key, [7; 32]).unwrap();
    fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let url = format!("{}?token_key_file={}", store.url(), key.display());
    let put = "echo $RINGFENCE_TOKEN; \"$0\" record put a </dev/null";
    let done = store.ringfence(["run", "--url", &url, "a", "--", "sh", "-c", put, RINGFENCE]).with_code(0);
    let token = done.stdout.trim();
    assert_eq!(token.split('.').count(), 3, "{token}");
    store.ringfence(["record", "get", "a"]).with_code(0);
    with_input(&mut store.command(["record", "put", "--token", token, "a"]), b"late").with_code(77);
    let (holder, _input, token) = hold(&store, ["--url", &url]);
    store.ringfence(["evict", "--yes", "--holder", &token, "a"]).with_code(0);
    assert_eq!(holder.end().code(), Some(123));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_answer_is_said_to_do_so() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::start(&store, &upstream, &["--url", &url, "--timeout", "500ms"]);
    let (status, why) = gate.sends("256.1").await;
    assert!(status == 504 && why.contains("upstream_silent"), "{status} {why}");
    let mut arrived = upstream.arrival().await;
    timeout(PATIENCE, arrived.answer.closed()).await.expect("its connection is gone");

    let upgrade =
        request(&gate.address, "/").header("ringfence-token", "a;256.1").header("upgrade", "websocket");
    let (status, why) = gate.send(upgrade.header("connection", "upgrade")).await;
    assert!(status == 501 && why.contains("upgrade_refused"), "{status} {why}");
    upstream.nothing_arrives().await;

    // Nobody listens at this one.
    upstream.address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gate = GateProcess::start(&store, &upstream, &["--url", &url]);
    let (status, why) = gate.sends("256.1").await;
    assert!(status == 502 && why.contains("upstream_unreachable"), "{status} {why}");
}

/// What one parser takes for one request and another for two, is none.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_proper_request_never_arrives() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::start(&store, &upstream, &["--url", &url]);
    let long = "x".repeat(300_000);
    for (headers, status) in [
        ("Content-Length: 5\r\nContent-Length: 6", "400"),
        ("Content-Length: 5, 6", "400"),
        ("Content-Length: 5\r\nX-Folded: a\r\n b", "400"),
        ("Content-Length: 5\r\nX-Bare: a\rTransfer-Encoding: chunked", "400"),
        ("Content-Length: 5\r\nTransfer-Encoding: gzip", "400"),
        ("Content-Length: +5", "400"),
        ("Transfer-Encoding : chunked", "400"),
        (&format!("X-Long: {long}"), "431"),
        (&"X-Many: a\r\n".repeat(200), "431"),
    ] {
        let mut stream = TcpStream::connect(&gate.address).await.unwrap();
        let text =
            format!("POST / HTTP/1.1\r\nHost: a\r\nRingfence-Token: a;256.1\r\n{headers}\r\n\r\nhello");
        // It may have been refused before it was sent.
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = Vec::new();
        let shown = &headers[..headers.len().min(60)];
        let closed = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(closed.is_ok(), "{shown}: the connection stays open after {answer:?}");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown}: {answer:?}");
    }
    upstream.nothing_arrives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_what_is_under_way_has_ended() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?fence=mark", store.url());
    let GateProcess { mut running, address } = GateProcess::start(&store, &upstream, &["--url", &url]);
    let request =
        request(&address, "/").header("ringfence-token", "a;256.1").body(Full::<Bytes>::default()).unwrap();
    let answer = tokio::spawn(Client::builder(TokioExecutor::new()).build_http().request(request));
    let arrived = upstream.arrival().await;
    running.signal(Signal::SIGTERM);
    eventually("it listens no more", || std::net::TcpStream::connect(&address).is_err().then_some(()));
    assert!(running.process.try_wait().unwrap().is_none(), "it waits for the answer");
    arrived.answers("done");
    let answer = answer.await.unwrap().unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(answer, "done");
    assert_eq!(running.end().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_after_the_drain_whatever_is_under_way() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::start(&store, &upstream, &["--url", &url, "--drain", "100ms"]);
    let answer = gate.sends("256.1");
    let ends = async {
        let hanging = upstream.arrival().await;
        gate.running.signal(Signal::SIGTERM);
        eventually("it listens no more", || {
            std::net::TcpStream::connect(&gate.address).is_err().then_some(())
        });
        hanging
    };
    tokio::select! {
        (status, why) = answer => panic!("answered {status} {why}"),
        _hanging = ends => {}
    }
    assert_eq!(gate.running.end().code(), Some(0));
}

#[test]
fn one_that_is_not_connected_yet_ends_at_the_first_signal() {
    let store = Store::new();
    // Their kernel takes connections, and nobody is there to answer.
    let silent = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let hosts = silent.each_ref().map(|server| server.local_addr().unwrap().to_string()).join(",");
    let url = format!("zookeeper://{hosts}");
    let args = ["gate", "--url", &url, "--listen", "127.0.0.1:0", "--upstream", "http://127.0.0.1:9"];
    let gate = Running::start(&mut store.command(args));
    eventually("it connects", || {
        silent.iter().find_map(|server| {
            server.set_nonblocking(true).unwrap();
            server.accept().ok()
        })
    });
    let told = now();
    gate.signal(Signal::SIGTERM);
    assert_eq!(gate.end().code(), Some(0));
    // All of them are waited for twice, a second and five.
    assert!(since(told) < Duration::from_secs(9), "after {:?}", since(told));
}

#[test]
fn what_is_wrong_with_its_flags_is_said() {
    let store = Store::new();
    let gate =
        |listen: &str, upstream: &str| store.ringfence(["gate", "--listen", listen, "--upstream", upstream]);
    for (upstream, why) in [
        ("127.0.0.1:80", "write http://host:port"),
        ("https://one", "TLS to the upstream is not spoken"),
        ("http://one/path", "the path of each request is the client's"),
        ("http://me:secret@one", "a host and a port are all"),
        ("http://one:", "a host and a port are all"),
        ("ftp://one", "its scheme is not http"),
    ] {
        let done = gate("127.0.0.1:0", upstream).with_code(64).saying(why);
        assert!(done.stdout.is_empty());
    }
    gate("8080", "http://one").with_code(64);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    gate(&address, "http://one").with_code(74).saying(&format!("cannot listen on {address}"));
}
