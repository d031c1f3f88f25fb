//! The calls to `ZooKeeper` that the subjects make, on a bare socket: what is asked is sent at once, and answers come in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot};

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const EXISTS: i32 = 3;
const SET_DATA: i32 = 5;

/// The number of a message that answers nothing: the event of a watch.
const EVENT: i32 = -1;

/// A session. Clones share it; it has nothing to keep it alive but its calls.
#[derive(Clone)]
pub(crate) struct Driver {
    questions: mpsc::UnboundedSender<(BytesMut, oneshot::Sender<Bytes>)>,
    events: Arc<Notify>,
}

/// What kind of node is made.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Persistent = 0,
    EphemeralSequential = 3,
}

impl Driver {
    pub(crate) async fn connect(port: u16, timeout: Duration) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a server");
        stream.set_nodelay(true).expect("a connection");
        let mut greeting = BytesMut::new();
        greeting.put_i32(0);
        greeting.put_i64(0);
        greeting.put_i32(i32::try_from(timeout.as_millis()).expect("some seconds"));
        greeting.put_i64(0);
        put(&mut greeting, &[0; 16]);
        greeting.put_u8(0);
        stream.write_all(&framed(&greeting)).await.expect("a connection");
        let mut received = BytesMut::new();
        while message(&mut received).is_none() {
            assert!(stream.read_buf(&mut received).await.expect("a connection") > 0, "no welcome");
        }
        let (questions, asked) = mpsc::unbounded_channel();
        let events = Arc::new(Notify::new());
        tokio::spawn(converse(stream, received, asked, Arc::clone(&events)));
        Self { questions, events }
    }

    /// Makes a node, and returns its path.
    pub(crate) async fn create(&self, path: &str, kind: Kind) -> Vec<u8> {
        let mut body = BytesMut::new();
        put(&mut body, path.as_bytes());
        put(&mut body, b"somebody");
        // Everybody may do everything.
        body.put_i32(1);
        body.put_i32(31);
        put(&mut body, b"world");
        put(&mut body, b"anyone");
        body.put_i32(kind as i32);
        let mut answer = self.call(CREATE, &body).await;
        if answer.is_empty() { path.as_bytes().to_vec() } else { answer.split_off(4).to_vec() }
    }

    pub(crate) async fn delete(&self, path: &[u8]) {
        let mut body = BytesMut::new();
        put(&mut body, path);
        body.put_i32(-1);
        self.call(DELETE, &body).await;
    }

    pub(crate) async fn set(&self, path: &str) {
        let mut body = BytesMut::new();
        put(&mut body, path.as_bytes());
        put(&mut body, b"something");
        body.put_i32(-1);
        self.call(SET_DATA, &body).await;
    }

    /// Watches a node for its next change.
    pub(crate) async fn watch(&self, path: &str) {
        let mut body = BytesMut::new();
        put(&mut body, path.as_bytes());
        body.put_u8(1);
        self.call(EXISTS, &body).await;
    }

    /// Waits for the event of a watch.
    pub(crate) async fn heard(&self) {
        self.events.notified().await;
    }

    /// The body of the answer, which is empty where the server refuses.
    async fn call(&self, operation: i32, body: &[u8]) -> Bytes {
        let mut question = BytesMut::new();
        // No two are told apart by their number, because answers come in order.
        question.put_i32(1);
        question.put_i32(operation);
        question.put_slice(body);
        let (told, answer) = oneshot::channel();
        self.questions.send((framed(&question), told)).expect("a connection");
        answer.await.expect("an answer")
    }
}

async fn converse(
    mut stream: TcpStream,
    mut received: BytesMut,
    mut asked: mpsc::UnboundedReceiver<(BytesMut, oneshot::Sender<Bytes>)>,
    events: Arc<Notify>,
) {
    let mut waiting = VecDeque::new();
    let mut out = BytesMut::new();
    let (mut reader, mut writer) = stream.split();
    loop {
        tokio::select! {
            question = asked.recv() => {
                let Some(question) = question else { return };
                let mut next = Some(question);
                while let Some((question, told)) = next {
                    out.put_slice(&question);
                    waiting.push_back(told);
                    next = asked.try_recv().ok();
                }
                writer.write_all_buf(&mut out).await.expect("a connection");
            }
            read = reader.read_buf(&mut received) => {
                assert!(read.expect("a connection") > 0, "the server has ended the session");
                while let Some(mut answer) = message(&mut received) {
                    let (number, _seen, code) = (answer.get_i32(), answer.get_i64(), answer.get_i32());
                    if number == EVENT {
                        events.notify_one();
                    } else {
                        let body = if code == 0 { answer } else { Bytes::new() };
                        let told: oneshot::Sender<Bytes> = waiting.pop_front().expect("a question");
                        // Who asked may be gone.
                        let _ = told.send(body);
                    }
                }
            }
        }
    }
}

fn put(message: &mut BytesMut, bytes: &[u8]) {
    message.put_i32(i32::try_from(bytes.len()).expect("short names"));
    message.put_slice(bytes);
}

fn framed(message: &[u8]) -> BytesMut {
    let mut framed = BytesMut::with_capacity(4 + message.len());
    put(&mut framed, message);
    framed
}

/// A whole message, if there is one.
fn message(received: &mut BytesMut) -> Option<Bytes> {
    let length = usize::try_from(i32::from_be_bytes(*received.first_chunk()?)).expect("a length");
    if received.len() < 4 + length {
        return None;
    }
    received.advance(4);
    Some(received.split_to(length).freeze())
}
