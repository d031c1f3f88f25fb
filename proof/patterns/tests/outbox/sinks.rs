//! The sinks that come with it, against real servers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ringfence::ErrorKind;
use ringfence::patterns::outbox::{Delivery, Message, RedisStreams, Sink, Webhook};
use ringfence_servers::{Hook, RedisOptions, RedisServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::stage::{Memory, Stage, message};

/// Sends these by a relay until the sink has taken all, and returns their ids.
async fn send(stage: &Stage, sink: Arc<impl Sink>, messages: &[Message]) -> Vec<String> {
    let ids = stage.put(messages).await.iter().map(ToString::to_string).collect();
    let gone = async {
        while stage.outbox().status().await.unwrap().pending > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let relay = stage.outbox().relay().pauses(Duration::from_millis(5), Duration::from_millis(20));
    Box::pin(relay.run(sink, gone)).await.unwrap();
    ids
}

#[tokio::test]
async fn a_webhook_is_told_what_a_message_is() {
    let stage = Stage::sqlite().await;
    let hook = Hook::taking_everything();
    let sink = Webhook::new(&format!("{}/orders?a=1", hook.url())).unwrap();
    let sink =
        sink.header("Authorization", "Bearer secret").unwrap().header("content-type", "text/plain").unwrap();
    assert!(!format!("{sink:?}").contains("secret"));
    let payload = Bytes::from_static(b"\0\xff{}");
    let first = Message::new("bestellung ü%", payload.clone()).unwrap().key("käse 1").unwrap();
    let ids = send(&stage, Arc::new(sink), &[first, message(None, "second")]).await;
    let mut posted = hook.posted();
    posted.sort_by_key(|posted| posted.headers["ringfence-outbox-number"].clone());
    let header = |at: usize, name: &str| posted[at].headers.get(name).map(String::as_str);
    assert_eq!(posted[0].request, "POST /orders?a=1");
    assert_eq!(posted[0].body, payload);
    assert_eq!(header(0, "idempotency-key"), Some(&*format!("\"{}\"", ids[0])));
    assert_eq!(header(0, "ringfence-outbox-number"), Some("1"));
    assert_eq!(header(0, "ringfence-outbox-attempt"), Some("1"));
    assert_eq!(header(0, "ringfence-outbox-topic"), Some("bestellung%20%C3%BC%25"));
    assert_eq!(header(0, "ringfence-outbox-key"), Some("k%C3%A4se%201"));
    assert_eq!(header(0, "authorization"), Some("Bearer secret"));
    assert_eq!(header(0, "content-type"), Some("text/plain"));
    assert_eq!((header(1, "ringfence-outbox-topic"), header(1, "ringfence-outbox-key")), (Some("t"), None));
}

/// A message as a relay gives it to a sink.
async fn a_delivery() -> Delivery {
    let memory = Memory::new();
    let stage = Stage::sqlite().await;
    stage.put(&[message("k", 1)]).await;
    let relay = stage.relay(|relay| relay, &memory);
    memory.until_taken(1).await;
    relay.stop().await;
    let (delivery, _) = memory.given().remove(0);
    delivery
}

#[tokio::test]
async fn an_answer_says_whether_it_is_the_messages_fault() {
    let delivery = a_delivery().await;
    for (status, kind) in [
        (200, None),
        (202, None),
        (204, None),
        (302, Some(ErrorKind::Refused)),
        (400, Some(ErrorKind::Refused)),
        (404, Some(ErrorKind::Refused)),
        (408, Some(ErrorKind::Unavailable)),
        (422, Some(ErrorKind::Refused)),
        (425, Some(ErrorKind::Unavailable)),
        (429, Some(ErrorKind::Unavailable)),
        (500, Some(ErrorKind::Refused)),
        (502, Some(ErrorKind::Unavailable)),
        (503, Some(ErrorKind::Unavailable)),
        (504, Some(ErrorKind::Unavailable)),
    ] {
        let hook = Hook::start(move |_| Some(status));
        let sink = Webhook::new(&hook.url()).unwrap();
        let answer = sink.deliver(&delivery).await;
        assert_eq!(answer.as_ref().err().map(ringfence::Error::kind), kind, "{status}: {answer:?}");
        if let Err(error) = answer {
            assert!(error.to_string().contains(&format!("answers {status}")), "{error}");
            assert!(error.to_string().ends_with("said"), "{error}");
        }
    }
    let nobody = Webhook::new("http://127.0.0.1:1/").unwrap().deliver(&delivery).await.unwrap_err();
    assert!(nobody.kind() == ErrorKind::Unavailable && nobody.to_string().contains("refused"), "{nobody:?}");
    for bad in ["ftp://host", "host", "http://user:secret@host/", "http://", "/path"] {
        let error = Webhook::new(bad).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidUrl && !error.to_string().contains("secret"),
            "{bad}: {error:?}"
        );
    }
    let error = Webhook::new("http://host").unwrap().header("a", "secret\n").unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidRequest && !error.to_string().contains("secret"), "{error:?}");
}

/// What has said yes has taken it, and what has said no has refused it: else it would be sent again without end.
#[tokio::test]
async fn a_webhook_that_does_not_come_to_the_end_of_its_answer_has_answered() {
    let delivery = a_delivery().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sink = Webhook::new(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    for (status, kind) in [(200, None), (400, Some(ErrorKind::Refused)), (503, Some(ErrorKind::Unavailable))]
    {
        let hook = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(&delivery.payload) {
                assert!(stream.read_buf(&mut read).await.unwrap() > 0, "the whole request comes");
            }
            let answer = format!("HTTP/1.1 {status} Status\r\nContent-Length: 9\r\n\r\nno");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        let answer = tokio::time::timeout(Duration::from_secs(10), sink.deliver(&delivery));
        let (answer, _open) = tokio::join!(answer, hook);
        let answer = answer.expect("it does not wait for the rest");
        assert_eq!(answer.as_ref().err().map(ringfence::Error::kind), kind, "{status}: {answer:?}");
        if let Err(error) = answer {
            assert!(error.to_string().ends_with(": no"), "{error}");
        }
    }
}

#[tokio::test]
async fn streams_of_redis_have_what_was_sent() {
    let Some(server) = RedisServer::start().await else { return };
    let stage = Stage::sqlite().await;
    let sink = Arc::new(RedisStreams::new(&server.url()).unwrap());
    let ids =
        send(&stage, Arc::clone(&sink), &[message("k", "one"), message("k", "two"), message(None, "three")])
            .await;
    let mut entries = server.command(&["XRANGE", "t", "-", "+"]).await;
    entries = entries.replace('"', "").replace('\n', " ");
    for (id, payload) in ids.iter().zip(["one", "two", "three"]) {
        assert!(entries.contains(id) && entries.contains(payload), "{entries}");
    }
    assert!(entries.find("one") < entries.find("two"), "{entries}");
    for field in ["number", "attempt", "key", "payload"] {
        assert!(entries.contains(field), "{field}: {entries}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_goes_away_and_a_key_that_is_no_stream() {
    let Some(mut server) = RedisOptions::new().durable().start().await else { return };
    server.command(&["SET", "text", "no stream"]).await;
    let stage = Stage::sqlite().await;
    let sink = Arc::new(RedisStreams::new(&server.url()).unwrap());
    let refusals = std::num::NonZeroU32::new(2);
    let relay = stage.relay(|relay| relay.refusals(refusals), &sink);
    stage.put(&[Message::new("text", "").unwrap().key("k").unwrap(), message("k", 1)]).await;
    let until = async |pending| {
        let gone = async {
            while stage.outbox().status().await.unwrap().pending != pending {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(ringfence_testkit::PATIENCE, gone).await.unwrap_or_else(|_| panic!("{pending}"));
    };
    until(0).await;
    let status = stage.outbox().status().await.unwrap();
    assert_eq!(status.dead, 1);
    assert!(status.dead_letters[0].error.contains("WRONGTYPE"), "{status:?}");
    server.kill();
    stage.put(&[message("k", 2)]).await;
    until(1).await;
    let away = async {
        while stage.outbox().status().await.unwrap().waiting.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(ringfence_testkit::PATIENCE, away).await.unwrap();
    server.restart().await;
    until(0).await;
    let done = relay.stop().await;
    assert_eq!((done.delivered, done.dead), (2, 1));
    assert_eq!(server.command(&["XLEN", "t"]).await.trim_start_matches("(integer) ").trim(), "2");
}

#[test]
fn a_url_that_is_no_redis_is_said_without_its_secret() {
    for bad in [
        "redis:",
        "redis+cluster://host",
        "redis://:secret@host?x=1",
        "http://host",
        "redis://:secret@host:port",
    ] {
        let error = RedisStreams::new(bad).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidUrl && !error.to_string().contains("secret"),
            "{bad}: {error:?}"
        );
    }
}
