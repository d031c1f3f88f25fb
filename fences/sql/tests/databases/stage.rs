//! What the cases need of any database.

use std::fmt::Debug;

use ringfence_core::{Error, ErrorKind, FencingToken, Result};
use ringfence_sql::Conflict;
use ringfence_testkit::PATIENCE;

/// What every database has: rows 1 to 3, one that has seen nothing yet, and a log.
pub(crate) const TABLES: [&str; 3] = [
    "CREATE TABLE parcels (id BIGINT PRIMARY KEY, code VARCHAR(40), state VARCHAR(40) NOT NULL, version BIGINT NOT NULL, \
     fence_token BIGINT, fence_nonce VARCHAR(16))",
    "INSERT INTO parcels (id, code, state, version) VALUES (1, 'one', 'new', 1), (2, 'two', 'new', 1), (3, 'two', 'new', 1)",
    "CREATE TABLE log (number BIGINT PRIMARY KEY, sequence BIGINT NOT NULL)",
];

pub(crate) fn token(text: &str) -> FencingToken {
    text.parse().expect("a token")
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"))
}

/// Checks that it failed in this way, which is no conflict, and that the error says these words.
pub(crate) fn expect_error<T: Debug>(
    what: &str,
    result: Result<T>,
    kind: ErrorKind,
    words: &[&str],
) -> Error {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), kind, "{what}: {error:?}");
    assert_eq!(Conflict::of(&error), None, "{what}: {error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "{what}: {error} does not say {word:?}");
    }
    error
}

/// Checks that it failed because other transactions were in the way.
pub(crate) fn expect_conflict<T: Debug>(what: &str, result: Result<T>, conflict: Conflict) {
    let error = result.expect_err(what);
    assert_eq!(Conflict::of(&error), Some(conflict), "{what}: {error:?}");
}
