use std::fmt;

use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use super::Sink;
use crate::patterns::outbox::Delivery;
use crate::{BoxFuture, Error, ErrorKind, Result};

/// Writes a line of JSON for each message, as in
/// `{"id":"2f1c…","number":7,"topic":"orders","key":"42","attempt":1,"enqueued_at":1764000000000,"payload":"{\"state\":\"paid\"}"}`.
/// A payload that is not UTF-8 is written in hexadecimal digits, as `payload_hex`.
///
/// A message counts as taken when its line is flushed. A line that was torn by a timeout is ended before the next one: it is no JSON,
/// and its message comes again.
pub struct JsonLines<W>(Mutex<Lines<W>>);

struct Lines<W> {
    out: W,
    /// Whether a line was begun and not ended.
    is_torn: bool,
}

impl<W> JsonLines<W> {
    /// Lines to here, as to `tokio::io::stdout()`.
    pub fn new(out: W) -> Self {
        Self(Mutex::new(Lines { out, is_torn: false }))
    }
}

impl<W> fmt::Debug for JsonLines<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonLines").finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    number: u64,
    topic: &'a str,
    key: Option<&'a str>,
    attempt: u64,
    enqueued_at: u64,
    #[serde(flatten)]
    payload: Payload<'a>,
}

#[derive(Serialize)]
enum Payload<'a> {
    #[serde(rename = "payload")]
    Text(&'a str),
    #[serde(rename = "payload_hex")]
    Hex(String),
}

impl<W: AsyncWrite + Unpin + Send + 'static> Sink for JsonLines<W> {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let line = Line {
                id: message.id.to_string(),
                number: message.number,
                topic: &message.topic,
                key: message.key.as_deref(),
                attempt: message.attempt,
                enqueued_at: message.enqueued_at.as_millis(),
                payload: match std::str::from_utf8(&message.payload) {
                    Ok(text) => Payload::Text(text),
                    Err(_) => Payload::Hex(format!("{:x}", message.payload)),
                },
            };
            let mut line = serde_json::to_vec(&line).expect("it has string keys and finite numbers");
            line.push(b'\n');
            let mut lines = self.0.lock().await;
            lines.write(&line).await.map_err(|why| {
                Error::new(ErrorKind::Unavailable, "the output takes no more lines").because(why)
            })
        })
    }
}

impl<W: AsyncWrite + Unpin> Lines<W> {
    async fn write(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.is_torn {
            self.out.write_all(b"\n").await?;
        }
        self.is_torn = true;
        self.out.write_all(line).await?;
        self.out.flush().await?;
        self.is_torn = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;
    use crate::WallTime;

    fn message(payload: &[u8]) -> Delivery {
        Delivery {
            id: "2f1c6a0e-9d3b-4a57-8a35-0c6f5f1d9e77".parse().unwrap(),
            number: 7,
            topic: "orders".to_owned(),
            key: Some("42".to_owned()),
            payload: payload.to_vec().into(),
            attempt: 1,
            enqueued_at: WallTime::from_millis(5),
            refusals: 0,
        }
    }

    #[tokio::test]
    async fn a_message_is_a_line() {
        let (ours, theirs) = tokio::io::duplex(1000);
        let sink = JsonLines::new(ours);
        sink.deliver(&message(b"{\"a\":\n1}")).await.unwrap();
        sink.deliver(&message(&[0xff, 0])).await.unwrap();
        let mut lines = BufReader::new(theirs).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        assert_eq!(
            first,
            r#"{"id":"2f1c6a0e-9d3b-4a57-8a35-0c6f5f1d9e77","number":7,"topic":"orders","key":"42","attempt":1,"enqueued_at":5,"payload":"{\"a\":\n1}"}"#
        );
        let second = lines.next_line().await.unwrap().unwrap();
        assert!(second.ends_with(r#""payload_hex":"ff00"}"#), "{second}");
    }

    #[tokio::test]
    async fn a_torn_line_spoils_no_other() {
        let (ours, theirs) = tokio::io::duplex(10);
        let sink = JsonLines::new(ours);
        let first = message(b"torn");
        // Nobody reads, so that ten bytes are written and no more.
        assert!(futures_poll_once(sink.deliver(&first)).await.is_none());
        let mut lines = BufReader::new(theirs).lines();
        let second = message(b"whole");
        let (written, torn) = tokio::join!(sink.deliver(&second), async {
            let torn = lines.next_line().await.unwrap().unwrap();
            let whole = lines.next_line().await.unwrap().unwrap();
            (torn, whole)
        });
        written.unwrap();
        assert_eq!(torn.0, r#"{"id":"2f1"#);
        assert!(torn.1.starts_with("{\"id\"") && torn.1.ends_with("\"payload\":\"whole\"}"), "{torn:?}");
    }

    /// What it is ready with at once; else it is dropped.
    async fn futures_poll_once<T>(work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = std::future::ready(()) => None,
        }
    }
}
