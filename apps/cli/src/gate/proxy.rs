//! What has passed the gate goes to the upstream, and its answer comes back, neither held in memory as a whole.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderName};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use ringfence_http::{PassedBody, TOKEN_HEADER};
use serde_json::json;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use crate::gate::connections::{Connections, Failed, Lent};
use crate::gate::head;

/// What concerns one connection only, beside what its header `Connection` names.
static HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// A body of a request on its way to the upstream.
type Outgoing = Moving<PassedBody<Incoming>>;

/// A body of an answer: the upstream's, or our own.
pub(crate) type Answer = Either<Attended<Incoming>, Full<Bytes>>;

/// The server behind the gate, and the connections to it.
pub(crate) struct Upstream {
    authority: Authority,
    /// Its name, as the header `Host` says it.
    host: HeaderValue,
    /// How long nothing may move.
    silence: Duration,
    connections: Arc<Connections<Outgoing>>,
}

impl Upstream {
    pub(crate) fn new(authority: Authority, silence: Duration) -> Self {
        // The port that goes without saying is not said.
        let host = match authority.port_u16() {
            None | Some(80) => authority.host(),
            Some(_) => authority.as_str(),
        };
        let host = host.parse().expect("a host is a header's value");
        let connections = Arc::new(Connections::new(&authority));
        Self { authority, host, silence, connections }
    }

    /// Closes connections that have been idle for long, for ever.
    pub(crate) async fn sweep(&self) {
        self.connections.sweep().await;
    }

    async fn forward(&self, request: Request<PassedBody<Incoming>>, client: HeaderValue) -> Response<Answer> {
        if asks_for_a_connection(&request) {
            let why = "the gate passes single requests on, and no connection: leave out the header Upgrade";
            return own_answer(StatusCode::NOT_IMPLEMENTED, "upgrade_refused", why);
        }
        let moves = Arc::new(AtomicBool::new(false));
        let outgoing = self.outgoing(request, client, &moves);
        let mut answer = std::pin::pin!(self.connections.send(outgoing));
        let answered = loop {
            tokio::select! {
                biased;
                answered = &mut answer => break answered,
                () = sleep(self.silence) => {
                    if !moves.swap(false, Ordering::Relaxed) {
                        let why = "the upstream did not answer in time: the request may have taken effect";
                        return own_answer(StatusCode::GATEWAY_TIMEOUT, "upstream_silent", why);
                    }
                }
            }
        };
        match answered {
            Ok((answer, _)) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
                tracing::warn!(upstream = %self.authority, "the upstream changes the protocol, and nobody has asked it to");
                let why = "the upstream speaks another protocol now, which nobody has asked for: the request may have taken effect";
                own_answer(StatusCode::BAD_GATEWAY, "upstream_broke_off", why)
            }
            Ok((answer, _)) if head::is_too_large("HTTP/1.1 200 \r\n".len(), answer.headers()) => {
                tracing::warn!(upstream = %self.authority, "the head of the upstream's answer is too large");
                let why = "the head of the upstream's answer is too large: the request may have taken effect";
                own_answer(StatusCode::BAD_GATEWAY, "upstream_broke_off", why)
            }
            Ok((answer, connection)) => {
                let (mut parts, body) = answer.into_parts();
                strip(&mut parts.headers);
                parts.version = Version::HTTP_11;
                let (silence, alarm) = (self.silence, None);
                let body = Attended { body, silence, moves, alarm, _connection: connection };
                Response::from_parts(parts, Either::Left(body))
            }
            Err(Failed::Unreachable(error)) => {
                tracing::warn!(%error, upstream = %self.authority, "the upstream cannot be reached");
                own_answer(
                    StatusCode::BAD_GATEWAY,
                    "upstream_unreachable",
                    "the upstream cannot be reached: nothing was sent",
                )
            }
            Err(Failed::BrokeOff(error)) => {
                tracing::warn!(%error, upstream = %self.authority, "the upstream broke off");
                let why = "the connection to the upstream broke: the request may have taken effect";
                own_answer(StatusCode::BAD_GATEWAY, "upstream_broke_off", why)
            }
        }
    }

    /// The request as the upstream gets it.
    fn outgoing(
        &self,
        request: Request<PassedBody<Incoming>>,
        client: HeaderValue,
        moves: &Arc<AtomicBool>,
    ) -> Request<Outgoing> {
        let (mut parts, body) = request.into_parts();
        strip(&mut parts.headers);
        // Whichever host a client names there.
        let path = parts.uri.into_parts().path_and_query;
        parts.uri = path.unwrap_or_else(|| PathAndQuery::from_static("/")).into();
        parts.version = Version::HTTP_11;
        if let Some(host) = parts.headers.insert(header::HOST, self.host.clone()) {
            parts.headers.entry(FORWARDED_HOST).or_insert(host);
        }
        parts.headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
        parts.headers.append(FORWARDED_FOR, client);
        // Of a GET hyper would send no body that has no length, unless it is told to.
        if !body.is_end_stream() && body.size_hint().exact().is_none() {
            parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        Request::from_parts(parts, Moving { body, moves: Arc::clone(moves) })
    }
}

/// Whether it wants more than one answer. HTTP/2 is an offer, which Java's client makes with every request and which is declined by
/// answering without it.
fn asks_for_a_connection<B>(request: &Request<B>) -> bool {
    let mut wanted = request.headers().get_all(header::UPGRADE).iter();
    request.method() == Method::CONNECT
        || wanted.any(|protocol| !protocol.as_bytes().eq_ignore_ascii_case(b"h2c"))
}

/// Takes out what concerned only the connection that it came by. The token is for whoever is behind the gate, whatever a client says.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != TOKEN_HEADER)
        .collect();
    let is_of_the_hop = |name: &&HeaderName| HOP_BY_HOP.contains(name) || named.contains(name);
    let of_the_hop: Vec<HeaderName> = headers.keys().filter(is_of_the_hop).cloned().collect();
    for name in of_the_hop {
        headers.remove(name);
    }
}

/// An answer that is not the upstream's, in the form of the gate's refusals.
pub(crate) fn own_answer(status: StatusCode, error: &str, message: &str) -> Response<Answer> {
    let body = json!({"error": error, "message": message}).to_string();
    let mut response = Response::new(Either::Right(Full::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The upstream, for the requests of one client.
#[derive(Clone)]
pub(crate) struct Proxy {
    upstream: Arc<Upstream>,
    /// Its address, as a header says it.
    client: HeaderValue,
}

impl Proxy {
    pub(crate) fn new(upstream: Arc<Upstream>, client: IpAddr) -> Self {
        let client = client.to_string().parse().expect("an address is a header's value");
        Self { upstream, client }
    }
}

impl Service<Request<PassedBody<Incoming>>> for Proxy {
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<PassedBody<Incoming>>) -> Self::Future {
        let (upstream, client) = (Arc::clone(&self.upstream), self.client.clone());
        Box::pin(async move { Ok(upstream.forward(request, client).await) })
    }
}

/// A body that says that it moves: while a client sends, the upstream has no reason to answer.
pub(crate) struct Moving<B> {
    body: B,
    moves: Arc<AtomicBool>,
}

impl<B: Body + Unpin> Body for Moving<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.moves.store(true, Ordering::Relaxed);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A body that fails when nothing moves for too long, neither here nor in the body of the request.
pub(crate) struct Attended<B> {
    body: B,
    /// It is kept for the next request once the body is read.
    _connection: Lent<Outgoing>,
    silence: Duration,
    moves: Arc<AtomicBool>,
    /// Made only where there is something to wait for.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<B: Body + Unpin> Body for Attended<B>
where
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.alarm = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let silence = self.silence;
        loop {
            ready!(self.alarm.get_or_insert_with(|| Box::pin(sleep(silence))).as_mut().poll(cx));
            self.alarm = None;
            if !self.moves.swap(false, Ordering::Relaxed) {
                return Poll::Ready(Some(Err("the upstream was silent for too long".into())));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
