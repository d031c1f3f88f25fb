//! What a request that may not pass is told.

use std::fmt;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use ringfence_core::{Error, ErrorKind, FencingToken, LockName};
use serde::Serialize;

/// Why a request may not pass, as a status and a body of JSON:
///
/// | status | `error` | means |
/// |---|---|---|
/// | 400 | `malformed` | the header is not of the form, or stands there twice |
/// | 403 | `forged` | the gate has a key, and the token no MAC that was made with it for this lock |
/// | 412 | `stale` | a later token was seen, or the token's lease is over: stop, and acquire the lock again |
/// | 412 | `collision` | two holders were given one number: a lock service has lost its memory |
/// | 428 | `missing` | there is no header |
/// | 503 | `unavailable` | the store of the marks does not answer, so nothing passes |
/// | 503 | `standing_by` | another gate is the one that lets requests through, or may be |
///
/// Beside `error` the body has a `message` for people and, where they are known, `name`, `token` (without its MAC) and `mark`, the
/// sequence of the highest token seen.
#[derive(Clone, Debug, Serialize)]
pub struct Refusal {
    #[serde(skip)]
    status: StatusCode,
    error: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<LockName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<FencingToken>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mark: Option<u64>,
}

impl Refusal {
    fn new(status: StatusCode, error: &'static str, message: impl Into<String>) -> Self {
        Self { status, error, message: message.into(), name: None, token: None, mark: None }
    }

    pub(crate) fn missing() -> Self {
        let why = "only a holder of a lock may pass: send the header Ringfence-Token: name;sequence.nonce";
        Self::new(StatusCode::PRECONDITION_REQUIRED, "missing", why)
    }

    pub(crate) fn malformed(error: &Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", error.to_string())
    }

    pub(crate) fn forged(error: &Error) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forged", error.message())
    }

    pub(crate) fn standing_by() -> Self {
        let why =
            "this gate cannot prove that it is alone, so another one may be: ask that one, or try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "standing_by", why)
    }

    /// What the store said to the token.
    pub(crate) fn by_store(error: &Error) -> Self {
        let (status, what) = match error.kind() {
            ErrorKind::Stale => (StatusCode::PRECONDITION_FAILED, "stale"),
            ErrorKind::TokenCollision => (StatusCode::PRECONDITION_FAILED, "collision"),
            ErrorKind::InvalidName => (StatusCode::BAD_REQUEST, "malformed"),
            // Its text may say more of the store than a stranger should know: it is for the log.
            _ => {
                tracing::warn!(%error, "the store of the marks cannot be used: nothing passes");
                let why = "the store of the marks cannot be used, so nothing passes: try again";
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", why);
            }
        };
        Self { mark: error.mark().map(FencingToken::sequence), ..Self::new(status, what, error.message()) }
    }

    /// It had passed with this token, and was cut.
    pub(crate) fn cut(token: FencingToken) -> Self {
        let why = "the request was cut while it was under way, for a later token or for another gate: it may have taken effect";
        Self { token: Some(token), ..Self::new(StatusCode::PRECONDITION_FAILED, "stale", why) }
    }

    /// The same, said of this token.
    pub(crate) fn about(self, name: &LockName, token: FencingToken) -> Self {
        Self { name: Some(name.clone()), token: Some(token), ..self }
    }

    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Why, in one word that is the same every time.
    pub fn error(&self) -> &'static str {
        self.error
    }

    /// The sequence of the highest token seen, where that was in the way and is known.
    pub fn mark(&self) -> Option<u64> {
        self.mark
    }

    /// The answer.
    pub fn into_response(self) -> Response<Bytes> {
        let body = serde_json::to_vec(&self).expect("it has string keys");
        let mut response = Response::new(body.into());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
