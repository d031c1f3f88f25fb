//! How large the head of a request may be, and of an answer.

use http::{HeaderMap, Request, Response, StatusCode};

use crate::gate::proxy::{Answer, own_answer};

/// The largest head, in bytes: the first line and the headers, with the ends of their lines. Of headers there may be 100, which is
/// what hyper takes.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// The answer to a request whose head is too large. Hyper refuses one only if its buffer is full before the head ends, and reads
/// as much again into it at once.
pub(crate) fn refuse_too_large<B>(request: &Request<B>) -> Option<Response<Answer>> {
    let uri = request.uri();
    let before_path = uri.scheme_str().map_or(0, |scheme| scheme.len() + "://".len())
        + uri.authority().map_or(0, |authority| authority.as_str().len());
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let line = request.method().as_str().len() + before_path + path + "  HTTP/1.1\r\n".len();
    let why = "the head of a request may have 64 KiB: send less in headers and in the path";
    is_too_large(line, request.headers())
        .then(|| own_answer(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", why))
}

/// Whether this is too much beside a first line of so many bytes.
pub(crate) fn is_too_large(line: usize, headers: &HeaderMap) -> bool {
    let headers: usize =
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len()).sum();
    line + headers + "\r\n".len() > HEAD_BYTES_MAX
}
