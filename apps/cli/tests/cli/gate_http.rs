//! `gate` between clients and upstreams that speak HTTP as it is spoken: byte by byte, early, late, twice, or not to the end.

use bytes::Bytes;
use http::Response;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Empty, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::gate::{GateProcess, Upstream};
use crate::support::{PATIENCE, Store};

/// A drain that no test waits for.
const LONG: [&str; 2] = ["--drain", "1h"];

/// A gate that looks at the mark alone, with this upstream.
fn gate(store: &Store, upstream: &Upstream, flags: &[&str]) -> GateProcess {
    let url = format!("{}?fence=mark", store.url());
    GateProcess::start(store, upstream, &[&["--url", &url], flags].concat())
}

/// A connection whose bytes the test writes and reads.
struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    async fn to(address: &str) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), read: Vec::new() }
    }

    async fn writes(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// What is read up to and with this.
    async fn reads_to(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.read.windows(end.len()).position(|read| read == end.as_bytes()) {
                let rest = self.read.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.read)).await;
            let read = read.unwrap_or_else(|_| panic!("no {end:?} after {}", self.shown())).unwrap();
            assert!(read > 0, "closed before {end:?}, after {}", self.shown());
        }
    }

    /// What is read until the connection is closed; a reset is an end as well.
    async fn reads_all(mut self) -> String {
        let end = timeout(PATIENCE, self.stream.read_to_end(&mut self.read)).await;
        assert!(end.is_ok(), "the connection stays open after {}", self.shown());
        self.shown()
    }

    fn shown(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}

/// A request with this token of the lock `a`, its headers and its body.
fn request(line: &str, token: &str, rest: &str) -> String {
    format!("{line}\r\nHost: a\r\nRingfence-Token: a;{token}\r\n{rest}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_is_answered_in_its_way() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let mut client = Raw::to(&gate.address).await;
    client.writes("GET / HTTP/1.0\r\nRingfence-Token: a;256.1\r\n\r\n").await;
    let arrived = upstream.arrival().await;
    assert_eq!(arrived.request.version(), http::Version::HTTP_11);
    // Without a length: such a client knows nothing of chunks, and reads to the end of the connection.
    let (mut sender, body) = Channel::new(1);
    arrived.answer.send(Response::new(body.boxed())).unwrap();
    sender.send_data(Bytes::from("to the end")).await.unwrap();
    drop(sender);
    let answer = client.reads_all().await;
    assert!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with("\r\n\r\nto the end"), "{answer:?}");
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer:?}");

    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("POST / HTTP/1.0", "256.1", "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")).await;
    let answer = client.reads_all().await;
    assert!(answer.starts_with("HTTP/1.0 400 ") || answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    upstream.nothing_arrives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_requests_that_come_at_once_is_looked_at() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let mut client = Raw::to(&gate.address).await;
    let requests = [
        request("POST /one HTTP/1.1", "512.2", "Content-Length: 3\r\n\r\none"),
        request("GET /two HTTP/1.1", "256.1", "\r\n"),
        "GET /three HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        request("GET /four HTTP/1.1", "512.2", "Connection: close\r\n\r\n"),
    ];
    client.writes(&requests.concat()).await;
    for path in ["/one", "/four"] {
        let arrived = upstream.arrival().await;
        assert_eq!(arrived.request.uri(), path);
        arrived.answers(path);
    }
    let answers = client.reads_all().await;
    let statuses: Vec<&str> = answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "412", "428", "200"], "{answers}");
}

/// What came with a length as well as in chunks leaves in chunks alone, so that whoever is behind the gate sees where it ends as
/// the gate does; and nothing that follows on the connection is taken for a request.
#[tokio::test(flavor = "multi_thread")]
async fn two_ways_to_say_where_a_body_ends_become_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = Store::new();
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::before(listener.local_addr().unwrap(), &store, &["--url", &url]);
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\nRingfence-Token: a;256.1\r\n\r\n";
    for headers in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 6\r\nTransfer-Encoding: chunked\r\nConnection: Transfer-Encoding",
    ] {
        let mut client = Raw::to(&gate.address).await;
        let body = format!("{headers}\r\n\r\n5\r\nhello\r\n0\r\n\r\n{smuggled}");
        client.writes(&request("POST / HTTP/1.1", "256.1", &body)).await;
        let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it arrives").unwrap();
        let mut server = Raw { stream, read: Vec::new() };
        let arrived = server.reads_to("\r\n0\r\n\r\n").await.to_ascii_lowercase();
        assert!(arrived.contains("transfer-encoding: chunked") && arrived.contains("hello"), "{arrived}");
        assert!(!arrived.contains("content-length"), "{headers}: {arrived}");
        server.writes("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        let answer = client.reads_all().await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{headers}: {answer:?}");
        let more = server.reads_all().await;
        assert!(!more.contains("smuggled"), "{headers}: {more}");
    }
    // Once more is not another one.
    let mut client = Raw::to(&gate.address).await;
    let twice = "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
    client.writes(&request("POST / HTTP/1.1", "256.1", twice)).await;
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it arrives").unwrap();
    let arrived = Raw { stream, read: Vec::new() }.reads_to("hello").await.to_ascii_lowercase();
    assert_eq!(arrived.matches("content-length: 5\r\n").count(), 1, "{arrived}");
}

/// Java's client offers HTTP/2 with every request, and takes an answer without it.
#[tokio::test(flavor = "multi_thread")]
async fn an_offer_of_http_2_is_declined_by_an_answer() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let mut client = Raw::to(&gate.address).await;
    let offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n";
    client
        .writes(&request("POST / HTTP/1.1", "256.1", &format!("{offer}Content-Length: 5\r\n\r\nhello")))
        .await;
    let arrived = upstream.arrival().await;
    let offered = ["connection", "upgrade", "http2-settings"];
    let headers = arrived.request.headers();
    assert!(offered.iter().all(|name| !headers.contains_key(*name)), "{headers:?}");
    arrived.answers("in HTTP/1.1");
    assert!(client.reads_to("in HTTP/1.1").await.starts_with("HTTP/1.1 200 "));

    let both = format!("{offer}Upgrade: websocket\r\n\r\n");
    client.writes(&request("GET / HTTP/1.1", "256.1", &both)).await;
    assert!(client.reads_to("}").await.starts_with("HTTP/1.1 501 "), "one of them asks for a connection");
    upstream.nothing_arrives().await;
}

/// What follows such an answer is no HTTP, and nobody has asked for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_changes_the_protocol_unasked_is_said_to_have_broken_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = Store::new();
    let url = format!("{}?fence=mark", store.url());
    let gate = GateProcess::before(listener.local_addr().unwrap(), &store, &["--url", &url]);
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("GET / HTTP/1.1", "256.1", "\r\n")).await;
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it arrives").unwrap();
    let mut server = Raw { stream, read: Vec::new() };
    server.reads_to("\r\n\r\n").await;
    server
        .writes("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let answer = client.reads_to("}").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upstream_broke_off"), "{answer}");
}

/// A header that names another is for one connection only; but the resource may have to look at the token.
#[tokio::test(flavor = "multi_thread")]
async fn no_client_takes_the_token_from_its_request() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let mut client = Raw::to(&gate.address).await;
    let named = "Connection: close, Ringfence-Token, Content-Length\r\nContent-Length: 5\r\n\r\nhello";
    client.writes(&request("POST / HTTP/1.1", "256.1", named)).await;
    let arrived = upstream.arrival().await;
    assert_eq!(arrived.request.headers()["ringfence-token"], "a;256.1");
    let (_, body) = arrived.request.into_parts();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_answers_before_it_has_read_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let store = Store::new();
    let url = format!("{}?fence=mark", store.url());
    let gate =
        GateProcess::before(listener.local_addr().unwrap(), &store, &["--url", &url, LONG[0], LONG[1]]);
    let mut client = Raw::to(&gate.address).await;
    let head = "Content-Length: 1000000\r\n\r\nthe beginning of it";
    client.writes(&request("POST / HTTP/1.1", "256.1", head)).await;
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("it arrives").unwrap();
    let mut server = Raw { stream, read: Vec::new() };
    // All that has come: what is closed with something unread takes its answer back.
    server.reads_to("the beginning of it").await;
    let answer = "HTTP/1.1 413 Payload Too Large\r\nContent-Length: 8\r\nConnection: close\r\n\r\ntoo much";
    server.writes(answer).await;
    drop(server);
    let answer = client.reads_to("too much").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    drop(client);

    // It has gone from the drain as well: a newer token need not wait.
    let mut newer = Raw::to(&gate.address).await;
    newer.writes(&request("GET / HTTP/1.1", "512.2", "\r\n")).await;
    let (stream, _) = timeout(PATIENCE, listener.accept()).await.expect("a newer one passes").unwrap();
    let mut server = Raw { stream, read: Vec::new() };
    server.reads_to("\r\n\r\n").await;
    // And one that closes without a word, or in the middle of one.
    server.writes("HTTP/1.1 200 OK\r\nContent-Le").await;
    drop(server);
    let answer = newer.reads_to("}").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upstream_broke_off"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_to_be_asked_for_its_body_is_asked_only_if_it_passes() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let expects = "Expect: 100-continue\r\nContent-Length: 5\r\n\r\n";
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("POST / HTTP/1.1", "512.2", expects)).await;
    let arrived = upstream.arrival().await;
    let (request_parts, body) = arrived.request.into_parts();
    let body = tokio::spawn(body.collect());
    client.reads_to("HTTP/1.1 100 Continue\r\n\r\n").await;
    client.writes("hello").await;
    assert_eq!(body.await.unwrap().unwrap().to_bytes(), "hello", "{request_parts:?}");
    arrived.answer.send(Response::new(Full::from("done").boxed())).unwrap();
    let answer = client.reads_to("done").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");

    let mut late = Raw::to(&gate.address).await;
    late.writes(&request("POST / HTTP/1.1", "256.1", expects)).await;
    let answer = late.reads_to("}").await;
    assert!(answer.starts_with("HTTP/1.1 412 "), "{answer}");
    upstream.nothing_arrives().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_in_the_middle_holds_nobody_up() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &LONG);
    // In the middle of its request, in the middle of its answer.
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("POST / HTTP/1.1", "512.2", "Content-Length: 10\r\n\r\nhalf")).await;
    let half = upstream.arrival().await;
    drop(client);
    assert!(half.request.into_body().collect().await.is_err(), "half a body is no whole one");

    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("GET / HTTP/1.1", "768.3", "\r\n")).await;
    let arrived = upstream.arrival().await;
    let (mut sender, body) = Channel::new(1);
    arrived.answer.send(Response::new(body.boxed())).unwrap();
    sender.send_data(Bytes::from("half")).await.unwrap();
    client.reads_to("half").await;
    drop(client);
    // What is left of the answer finds nobody.
    let rest = async { while sender.send_data(Bytes::from("half")).await.is_ok() {} };
    timeout(PATIENCE, rest).await.expect("the upstream's answer is dropped");

    let mut newest = Raw::to(&gate.address).await;
    newest.writes(&request("GET / HTTP/1.1", "1024.4", "\r\n")).await;
    upstream.arrival().await.answers("done");
    newest.reads_to("done").await;
}

/// As `nc -N` does, and what speaks HTTP/1.0 of old: the end of the request is the end of what is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_no_more_is_answered_still() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &LONG);
    for (line, rest) in [
        ("GET / HTTP/1.0", "\r\n"),
        ("GET / HTTP/1.1", "\r\n"),
        ("POST / HTTP/1.1", "Content-Length: 5\r\n\r\nhello"),
    ] {
        let mut client = Raw::to(&gate.address).await;
        client.writes(&request(line, "256.1", rest)).await;
        client.stream.shutdown().await.unwrap();
        let arrived = upstream.arrival().await;
        upstream.nothing_arrives().await;
        arrived.answers("done");
        let answer = client.reads_all().await;
        assert!(answer.contains(" 200 OK\r\n") && answer.ends_with("done"), "{line}: {answer:?}");
    }
    let mut late = Raw::to(&gate.address).await;
    late.writes("GET / HTTP/1.0\r\n\r\n").await;
    late.stream.shutdown().await.unwrap();
    let answer = late.reads_all().await;
    assert!(answer.starts_with("HTTP/1.0 428 "), "{answer:?}");
    // One that ends before its body does has sent half a request.
    let mut half = Raw::to(&gate.address).await;
    half.writes(&request("POST / HTTP/1.1", "256.1", "Content-Length: 10\r\n\r\nhalf")).await;
    half.stream.shutdown().await.unwrap();
    let arrived = upstream.arrival().await;
    assert!(arrived.request.into_body().collect().await.is_err(), "half a body is no whole one");
    let answer = half.reads_all().await;
    assert!(!answer.contains(" 200 "), "{answer:?}");
}

/// What it has asked for is under way, and a newer token waits for it as for any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_before_its_answer_is_waited_for_until_the_drain_ends() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &["--drain", "1s"]);
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("GET / HTTP/1.1", "256.1", "\r\n")).await;
    let mut unanswered = upstream.arrival().await;
    drop(client);
    let mut newer = Raw::to(&gate.address).await;
    newer.writes(&request("GET / HTTP/1.1", "512.2", "\r\n")).await;
    upstream.nothing_arrives().await;
    timeout(PATIENCE, unanswered.answer.closed()).await.expect("its connection to the upstream is gone");
    upstream.arrival().await.answers("done");
    newer.reads_to("done").await;
}

/// Of bytes and of headers; and an answer has no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_its_limits() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let of_bytes = |bytes: usize, path: &str| {
        let head = request(&format!("GET {path} HTTP/1.1"), "256.1", "Connection: close\r\nX-Large: ");
        let large = "x".repeat(bytes - head.len() - 4);
        format!("{head}{large}\r\n\r\n")
    };
    let of_headers = |count: usize| {
        // Those beside them are Host, Ringfence-Token and Connection.
        let more = "X-More: x\r\n".repeat(count - 3);
        request("GET / HTTP/1.1", "256.1", &format!("Connection: close\r\n{more}\r\n"))
    };
    let long = format!("/{}", "x".repeat(40_000));
    for largest in [of_bytes(64 * 1024, "/"), of_bytes(64 * 1024, &long), of_headers(100)] {
        let mut client = Raw::to(&gate.address).await;
        client.writes(&largest).await;
        upstream.arrival().await.answers("done");
        let answer = client.reads_all().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    let too_large = [
        of_bytes(64 * 1024 + 1, "/"),
        of_bytes(64 * 1024 + 1, &long),
        of_bytes(70_000, "/"),
        of_bytes(1 << 20, "/"),
        of_headers(101),
    ];
    for too_large in too_large {
        let mut client = Raw::to(&gate.address).await;
        // Its end need not have been read when the answer comes.
        let _ = client.stream.write_all(too_large.as_bytes()).await;
        let answer = client.reads_all().await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{} bytes: {answer}", too_large.len());
    }
    upstream.nothing_arrives().await;

    let headers = (0..101).fold(Response::builder(), |answer, _| answer.header("x-more", "x"));
    let large_answers = [Response::builder().header("x-large", "x".repeat(70_000)), headers];
    for answer in large_answers {
        let mut client = Raw::to(&gate.address).await;
        client.writes(&request("GET / HTTP/1.1", "256.1", "Connection: close\r\n\r\n")).await;
        let arrived = upstream.arrival().await;
        arrived.answer.send(answer.body(Empty::new().boxed()).unwrap()).unwrap();
        let answer = client.reads_all().await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("upstream_broke_off"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_or_takes_nothing_for_too_long_is_left() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &["--timeout", "500ms", LONG[0], LONG[1]]);
    // A client that stops in the middle of its request.
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("POST / HTTP/1.1", "256.1", "Content-Length: 10\r\n\r\nhalf")).await;
    let half = upstream.arrival().await;
    let answer = client.reads_to("}").await;
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(half.request.into_body().collect().await.is_err(), "half a body is no whole one");

    // An upstream that stops in the middle of its answer.
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("GET / HTTP/1.1", "512.2", "\r\n")).await;
    let arrived = upstream.arrival().await;
    let (mut sender, body) = Channel::new(1);
    arrived.answer.send(Response::new(body.boxed())).unwrap();
    sender.send_data(Bytes::from("half")).await.unwrap();
    let answer = client.reads_all().await;
    assert!(
        answer.contains("half") && !answer.ends_with("0\r\n\r\n"),
        "it is not a whole answer: {answer:?}"
    );
    drop(sender);

    // A client that takes nothing of its answer, of which there is more than all the buffers on the way hold.
    let mut client = Raw::to(&gate.address).await;
    client.writes(&request("GET / HTTP/1.1", "768.3", "\r\n")).await;
    let arrived = upstream.arrival().await;
    let (mut sender, body) = Channel::new(1);
    arrived.answer.send(Response::new(body.boxed())).unwrap();
    let piece = Bytes::from(vec![b'x'; 1 << 20]);
    let fills = async { while sender.send_data(piece.clone()).await.is_ok() {} };
    timeout(PATIENCE, fills).await.expect("the client is dropped, and the upstream's answer with it");
    let mut newest = Raw::to(&gate.address).await;
    newest.writes(&request("GET / HTTP/1.1", "1024.4", "\r\n")).await;
    upstream.arrival().await.answers("done");
    newest.reads_to("done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_end_at_the_gate() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let mut client = Raw::to(&gate.address).await;
    let body = "TE: trailers\r\nTrailer: Ringfence-Token\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\nRingfence-Token: a;9.9\r\n\r\n";
    client.writes(&request("POST / HTTP/1.1", "256.1", body)).await;
    let arrived = upstream.arrival().await;
    let (head, body) = arrived.request.into_parts();
    assert!(["te", "trailer"].iter().all(|name| !head.headers.contains_key(*name)), "{head:?}");
    let body = timeout(PATIENCE, body.collect()).await.expect("it ends").unwrap();
    assert!(body.trailers().is_none(), "{:?}", body.trailers());
    assert_eq!(body.to_bytes(), "hello");
    arrived.answer.send(Response::new(Full::from("done").boxed())).unwrap();
    client.reads_to("done").await;
}

/// Such answers have headers that speak of a body, and none: what follows is the next answer.
#[tokio::test(flavor = "multi_thread")]
async fn answers_without_a_body_have_none() {
    let (store, mut upstream) = (Store::new(), Upstream::start().await);
    let gate = gate(&store, &upstream, &[]);
    let mut client = Raw::to(&gate.address).await;
    for (method, status, length) in [("HEAD", 200, Some("7")), ("GET", 204, None), ("GET", 304, None)] {
        client.writes(&request(&format!("{method} / HTTP/1.1"), "256.1", "\r\n")).await;
        let arrived = upstream.arrival().await;
        assert_eq!(arrived.request.method(), method);
        let mut answer = Response::builder().status(status).header("etag", "\"1\"");
        if let Some(length) = length {
            answer = answer.header("content-length", length);
        }
        arrived.answer.send(answer.body(Empty::new().boxed()).unwrap()).unwrap();
        let answer = client.reads_to("\r\n\r\n").await.to_ascii_lowercase();
        assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{answer}");
        assert!(answer.contains("etag: \"1\"") && !answer.contains("transfer-encoding"), "{answer}");
        let said = length.map(|length| format!("content-length: {length}\r\n"));
        match &said {
            Some(said) => assert!(answer.contains(said.as_str()), "{method} {status}: {answer}"),
            None => assert!(!answer.contains("content-length"), "{method} {status}: {answer}"),
        }
    }
    client.writes(&request("GET / HTTP/1.1", "256.1", "\r\n")).await;
    upstream.arrival().await.answers("a whole one");
    assert!(client.reads_to("a whole one").await.starts_with("HTTP/1.1 200 "));
}
