//! The calls to etcd that the subjects make, on the channel that ours uses.

use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
    #[prost(int64, tag = "3")]
    lease: i64,
}

/// Of `DeleteRange` and of `Unlock`.
#[derive(Clone, PartialEq, Message)]
struct KeyRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct GrantRequest {
    #[prost(int64, tag = "1")]
    ttl: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GrantResponse {
    #[prost(int64, tag = "2")]
    id: i64,
}

#[derive(Clone, PartialEq, Message)]
struct LockRequest {
    #[prost(bytes = "vec", tag = "1")]
    name: Vec<u8>,
    #[prost(int64, tag = "2")]
    lease: i64,
}

#[derive(Clone, PartialEq, Message)]
struct LockResponse {
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<KeyRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct WatchResponse {
    #[prost(bool, tag = "3")]
    created: bool,
}

/// One connection. Clones share it.
#[derive(Clone)]
pub(crate) struct Driver(Channel);

impl Driver {
    pub(crate) async fn connect(port: u16) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).expect("an address");
        Self(endpoint.tcp_nodelay(true).connect().await.expect("a server"))
    }

    /// A lease; nobody keeps it alive.
    pub(crate) async fn grant(&self, ttl: Duration) -> i64 {
        let request = GrantRequest { ttl: i64::try_from(ttl.as_secs()).expect("seconds") };
        self.call::<_, GrantResponse>("/etcdserverpb.Lease/LeaseGrant", request).await.id
    }

    pub(crate) async fn put(&self, key: Vec<u8>, lease: i64) {
        let value = b"somebody".to_vec();
        self.call::<_, ()>("/etcdserverpb.KV/Put", PutRequest { key, value, lease }).await;
    }

    pub(crate) async fn delete(&self, key: Vec<u8>) {
        self.call::<_, ()>("/etcdserverpb.KV/DeleteRange", KeyRequest { key }).await;
    }

    /// Waits for a lock, and returns its key.
    pub(crate) async fn lock(&self, name: &str, lease: i64) -> Vec<u8> {
        let request = LockRequest { name: name.as_bytes().to_vec(), lease };
        self.call::<_, LockResponse>("/v3lockpb.Lock/Lock", request).await.key
    }

    pub(crate) async fn unlock(&self, key: Vec<u8>) {
        self.call::<_, ()>("/v3lockpb.Lock/Unlock", KeyRequest { key }).await;
    }

    /// Watches a key from now on.
    pub(crate) async fn watch(&self, key: Vec<u8>) -> Events {
        let (questions, asked) = mpsc::unbounded_channel();
        questions.send(WatchRequest { create: Some(KeyRequest { key }) }).expect("a stream");
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.expect("a connection");
        let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
        let asked = Request::new(UnboundedReceiverStream::new(asked));
        let answers = grpc.streaming(asked, path, codec).await.expect("a stream").into_inner();
        let mut events = Events { answers, _questions: questions };
        assert!(events.next().await.created, "a watch that is not there");
        events
    }

    async fn call<Question, Answer>(&self, path: &'static str, question: Question) -> Answer
    where
        Question: Message + 'static,
        Answer: Message + Default + 'static,
    {
        let mut grpc = Grpc::new(self.0.clone());
        grpc.ready().await.expect("a connection");
        let codec = ProstCodec::<Question, Answer>::default();
        let path = PathAndQuery::from_static(path);
        grpc.unary(Request::new(question), path, codec).await.expect("an answer").into_inner()
    }
}

/// What a watch tells. It ends when this is dropped.
pub(crate) struct Events {
    answers: Streaming<WatchResponse>,
    _questions: mpsc::UnboundedSender<WatchRequest>,
}

impl Events {
    pub(crate) async fn heard(&mut self) {
        self.next().await;
    }

    async fn next(&mut self) -> WatchResponse {
        self.answers.message().await.expect("an answer").expect("a stream that goes on")
    }
}
