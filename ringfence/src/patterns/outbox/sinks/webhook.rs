use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tokio::time::timeout;

use super::Sink;
use crate::patterns::outbox::Delivery;
use crate::{BoxFuture, Error, ErrorKind, Result};

/// What of an answer that says no is read, to be shown.
const SHOWN_MAX: usize = 500;

/// How long the rest of an answer is waited for. Then its connection serves nobody else.
const REST_WITHIN: Duration = Duration::from_millis(250);

/// What a header cannot carry as it is. The percent sign is among it, so that it reads back the same.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// Posts each message to a URL: its payload as the body, and in headers what it is.
///
/// | header | |
/// |---|---|
/// | `Idempotency-Key` | the message's id, in quotes, as the IETF's draft of that header has it. It is the same whenever it is sent again |
/// | `Ringfence-Outbox-Number` | rises with every message of a key |
/// | `Ringfence-Outbox-Topic`, `Ringfence-Outbox-Key` | percent-encoded where they are not visible ASCII; no key, no header |
/// | `Ringfence-Outbox-Attempt` | from 2 on it may have come before |
/// | `Content-Type` | `application/octet-stream`, unless [`Self::header`] says otherwise |
///
/// | answer | means |
/// |---|---|
/// | 2xx | taken |
/// | 408, 425, 429, 502, 503, 504; no connection; a broken one | not now: tried again without end, and the relay pauses |
/// | any other, 3xx and 500 included: redirects are not followed | refused: tried again, and dead after so many refusals |
///
/// A 4xx is tried again as well, because a wrong path or secret would else kill whatever is there, within seconds.
pub struct Webhook {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
}

impl Webhook {
    /// Posts to this URL, `http://` or `https://`. The authorities are the system's.
    ///
    /// Errors with [`ErrorKind::InvalidUrl`] for a URL of another kind and for one with a login in it, and with
    /// [`ErrorKind::Unavailable`] where the system's authorities cannot be read.
    pub fn new(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().map_err(|why| {
            Error::new(ErrorKind::InvalidUrl, "the webhook's URL is none").because(Box::new(why) as Box<_>)
        })?;
        let is_http = ["http", "https"].contains(&uri.scheme_str().unwrap_or_default());
        let has_login = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        if !is_http || has_login {
            return Err(Error::new(
                ErrorKind::InvalidUrl,
                "a webhook is http://host/path or https://host/path, and a login for it stands in a header",
            ));
        }
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|why| {
                Error::new(ErrorKind::Unavailable, "the system's authorities cannot be read").because(why)
            })?
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let content = (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Ok(Self { client, uri, headers: HeaderMap::from_iter([content]) })
    }

    /// With this header as well, as `Authorization` or `Content-Type`. It is never shown.
    ///
    /// Errors with [`ErrorKind::InvalidRequest`], without the value, for what is no header.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self> {
        let name_of: Result<HeaderName, _> = name.parse();
        let (Ok(name), Ok(value)) = (name_of, HeaderValue::from_str(value)) else {
            let why =
                format!("{name:?} with its value is no header: a name is a token, and a value visible ASCII");
            return Err(Error::new(ErrorKind::InvalidRequest, why));
        };
        self.headers.insert(name, value);
        Ok(self)
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A query may be a secret.
        f.debug_tuple("Webhook").field(&self.uri.authority().map(ToString::to_string)).finish_non_exhaustive()
    }
}

impl Sink for Webhook {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut request = Request::new(Full::new(message.payload.clone()));
            *request.method_mut() = Method::POST;
            *request.uri_mut() = self.uri.clone();
            *request.headers_mut() = self.headers.clone();
            let mut set = |name, value: &str| {
                let value = HeaderValue::from_str(value).expect("what is not visible ASCII is encoded");
                request.headers_mut().insert(HeaderName::from_static(name), value);
            };
            set("idempotency-key", &format!("\"{}\"", message.id));
            set("ringfence-outbox-number", &message.number.to_string());
            set("ringfence-outbox-attempt", &message.attempt.to_string());
            set("ringfence-outbox-topic", &utf8_percent_encode(&message.topic, ESCAPED).to_string());
            if let Some(key) = &message.key {
                set("ringfence-outbox-key", &utf8_percent_encode(key, ESCAPED).to_string());
            }
            let unavailable = |why| {
                Error::new(ErrorKind::Unavailable, "the webhook cannot be reached")
                    .because(Box::new(Chain(why)) as Box<_>)
            };
            let answer = self.client.request(request).await.map_err(unavailable)?;
            let status = answer.status();
            let mut body = Limited::new(answer.into_body(), 64 * 1024);
            let mut said = Vec::new();
            // Read to its end, so that its connection serves the next request as well.
            let rest = async {
                while let Some(Ok(frame)) = body.frame().await {
                    said.extend(frame.into_data().unwrap_or_default());
                }
            };
            // The status is the answer, whatever else is said, and however slowly.
            let _ = timeout(REST_WITHIN, rest).await;
            if status.is_success() {
                return Ok(());
            }
            let said: String = String::from_utf8_lossy(&said).chars().take(SHOWN_MAX).collect();
            let kind = if is_for_now(status) { ErrorKind::Unavailable } else { ErrorKind::Refused };
            Err(Error::new(kind, format!("the webhook answers {status}: {said}")))
        })
    }
}

/// Whether an answer tells of the server and not of the message.
fn is_for_now(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 502 | 503 | 504)
}

/// An error of hyper says in its sources what happened.
#[derive(Debug)]
struct Chain(hyper_util::client::legacy::Error);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = std::error::Error::source(&self.0);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl std::error::Error for Chain {}
