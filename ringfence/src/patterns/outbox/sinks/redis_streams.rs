use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind as RedisKind};
use tokio::sync::Mutex;

use super::Sink;
use crate::patterns::outbox::Delivery;
use crate::{BackendUrl, BoxFuture, Error, ErrorKind, Result};

/// Adds each message to a stream of Redis, which is named as its topic: `XADD orders * id … number … key … attempt … payload …`.
///
/// A stream of Redis forgets nothing by itself: whoever reads it trims it (`XTRIM`), by what its readers have acknowledged. An answer
/// that was lost is an entry that comes again, under the same `id`.
///
/// Where the server cannot take it now (no connection, loading, a replica, no memory left) it is tried again without end; any other
/// error, as of a topic whose name is a key of another type, is a refusal.
pub struct RedisStreams {
    client: Client,
    shown: String,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// Whether the connection may be broken: an answer was an error of it, or did not come in time.
    is_suspect: AtomicBool,
}

impl RedisStreams {
    /// Streams on one server, `redis://user:password@host:port/database`, or by TLS `rediss://`. It connects when there is something to
    /// send.
    ///
    /// Errors with [`ErrorKind::InvalidUrl`].
    pub fn new(url: &str) -> Result<Self> {
        let shown = BackendUrl::parse(url)?;
        shown.check_params(&[])?;
        if !["redis", "rediss"].contains(&shown.scheme()) {
            return Err(Error::new(
                ErrorKind::InvalidUrl,
                "streams of Redis are on redis://host or rediss://host",
            ));
        }
        let client = Client::open(url).map_err(|_| {
            Error::new(ErrorKind::InvalidUrl, format!("{shown}: is no URL of one Redis server"))
        })?;
        Ok(Self {
            client,
            shown: shown.to_string(),
            connection: Mutex::default(),
            is_suspect: AtomicBool::new(false),
        })
    }

    /// The connection that all share, made anew where the last one is suspect.
    async fn connection(&self) -> redis::RedisResult<MultiplexedConnection> {
        let mut shared = self.connection.lock().await;
        if self.is_suspect.swap(false, Ordering::Relaxed) {
            *shared = None;
        }
        if let Some(connection) = &*shared {
            return Ok(connection.clone());
        }
        // How long it may take is the relay's to say.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        Ok(shared.insert(connection).clone())
    }

    async fn add(&self, message: &Delivery) -> redis::RedisResult<()> {
        let mut connection = self.connection().await?;
        let mut add = redis::cmd("XADD");
        add.arg(&message.topic)
            .arg("*")
            .arg("id")
            .arg(message.id.to_string())
            .arg("number")
            .arg(message.number);
        if let Some(key) = &message.key {
            add.arg("key").arg(key);
        }
        add.arg("attempt").arg(message.attempt).arg("payload").arg(&message.payload[..]);
        let suspicion = Suspicion(&self.is_suspect);
        let added = add.exec_async(&mut connection).await;
        if added.as_ref().is_err_and(is_for_now) {
            return added;
        }
        std::mem::forget(suspicion);
        added
    }
}

/// Makes the connection suspect, unless it is forgotten: its answer was an error, or the relay no longer waits for it.
struct Suspicion<'a>(&'a AtomicBool);

impl Drop for Suspicion<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl fmt::Debug for RedisStreams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisStreams").field(&self.shown).finish_non_exhaustive()
    }
}

impl Sink for RedisStreams {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.add(message).await.map_err(|why| {
                let kind = if is_for_now(&why) { ErrorKind::Unavailable } else { ErrorKind::Refused };
                Error::new(kind, format!("{}: the stream {:?} does not take it", self.shown, message.topic))
                    .because(why)
            })
        })
    }
}

/// Whether an error tells of the server and not of the message.
fn is_for_now(why: &redis::RedisError) -> bool {
    if why.is_io_error() || why.is_timeout() || why.is_connection_dropped() || why.is_connection_refusal() {
        return true;
    }
    let says = why.code().unwrap_or_default();
    why.kind() == RedisKind::AuthenticationFailed
        || [
            "LOADING",
            "READONLY",
            "OOM",
            "MISCONF",
            "MASTERDOWN",
            "BUSY",
            "TRYAGAIN",
            "NOREPLICAS",
            "NOAUTH",
            "NOPERM",
            "WRONGPASS",
        ]
        .contains(&says)
}
