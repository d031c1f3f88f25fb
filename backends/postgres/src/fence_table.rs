//! A table of the caller's that refuses whoever has no token.

use std::sync::Arc;

use ringfence_core::{BackendUrl, Result};
use tokio::runtime::Handle;
use tokio_postgres::types::Type;

use crate::error;
use crate::link::Link;
use crate::options::Options;

/// How long the transactions that write to the table now are waited for, in ms. Whoever comes to write meanwhile waits as well,
/// so that it is not long, and less than a statement of ours may take.
const LOCK_TIMEOUT: &str = "2000";

/// Fences a table: from now on an UPDATE or DELETE of a row is refused, whoever sends it, unless a token was admitted to the row in
/// the same transaction, by [`fence_in`](crate::transaction::fence_in) or by `SELECT ringfence.admit(…)`.
///
/// Returns what the names of the rows' resources begin with, as `public.orders/`; the row's key follows, as in `public.orders/42`. Table
/// and key are written as in SQL, `schema.table` and `column`: a name is folded to lower case unless it stands in double quotes. The
/// role of the URL has to own the table, or to have TRIGGER and UPDATE on it. What is fenced by this key already stays as it is.
///
/// - An INSERT needs a token only where one was ever admitted for its key, so that nobody stale puts back what was deleted; an
///   UPDATE that changes a key is both, a DELETE and an INSERT. TRUNCATE is refused, because it names no row.
/// - A token is good for its transaction, or the rest of it after a savepoint; and for the rows of its key.
/// - Whoever owns the table can drop the triggers `ringfence_fence` and `ringfence_truncate`, or disable them; who may set
///   `session_replication_role`, as a superuser may, passes them by, and so does what a subscription of logical replication writes. A
///   fence keeps out those who are late, and no thieves.
///
/// Errors with [`InvalidRequest`](ringfence_core::ErrorKind::InvalidRequest) for what is no ordinary table, or has no such column, or is
/// fenced by another key; with [`Refused`](ringfence_core::ErrorKind::Refused) where the role lacks a right; with
/// [`Unavailable`](ringfence_core::ErrorKind::Unavailable) where others write to the table for longer than 2 s; and as every connection
/// does.
///
/// # Cancel safety
/// Dropped, the table is fenced or not. Calling it again says so.
pub async fn fence_table(url: &BackendUrl, table: &str, key: &str) -> Result<String> {
    let options = Arc::new(Options::parse(url)?);
    let fence = options.schema.sql("SELECT @schema@.fence_table($1, $2)", &[Type::TEXT, Type::TEXT]);
    let settings = vec![("lock_timeout", LOCK_TIMEOUT.to_owned())];
    let link = Link::with_settings(options, Handle::current(), settings, |_| ());
    let rows = link.query(&fence, &[&table, &key]).await;
    let rows = rows.map_err(|error| error.about(format_args!("fencing {table}")))?;
    rows.first().and_then(|row| row.try_get(0).ok()).ok_or_else(|| error::odd_answer(link.shown()))
}
