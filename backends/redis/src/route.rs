//! How the server is found: it has one address, or Sentinels know it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisError, Value};
use ringfence_core::{Error, ErrorKind, Result};

use crate::compare_and_delete::CompareAndDelete;
use crate::error;
use crate::scripts::text;
use crate::sentinel::{Primary, Sentinels};

/// How long a connection may take to open, and Sentinels to lead to a primary.
pub(crate) const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// Where the server is.
#[derive(Debug)]
pub(crate) enum Route {
    At(ConnectionInfo),
    BySentinels(Sentinels),
    /// A node of a cluster, whatever it is: it says itself where a call belongs that does not belong to it.
    ToNode(ConnectionInfo),
}

impl Route {
    /// Opens a connection to the server, which is a primary at this moment. Errors without effect.
    pub(crate) async fn open(&self, config: &AsyncConnectionConfig, shown: &str) -> Result<Opened> {
        match self {
            Self::At(server) | Self::ToNode(server) => {
                let opened = open(server, config, CONNECT_PATIENCE)
                    .await
                    .map_err(|error| error::of_connecting(error, shown))?;
                if matches!(self, Self::ToNode(_)) {
                    return Ok(opened);
                }
                opened.into_primary().map_err(|error| error.about(shown))
            }
            Self::BySentinels(sentinels) => sentinels.open(config).await.map_err(|error| error.about(shown)),
        }
    }

    /// What resolves when whoever knows the server names another one in its place. `None` where nobody does.
    pub(crate) fn replaced(&self, opened: &Opened) -> Option<impl Future<Output = ()> + Send + use<>> {
        let (Self::BySentinels(sentinels), Some(primary)) = (self, &opened.primary) else { return None };
        let (sentinels, primary) = (sentinels.clone(), primary.clone());
        Some(async move { sentinels.replaced(&primary).await })
    }
}

/// A connection, and what the server says it is.
pub(crate) struct Opened {
    pub(crate) connection: MultiplexedConnection,
    role: String,
    pub(crate) compare_and_delete: Option<CompareAndDelete>,
    /// What Sentinels named, where they did.
    pub(crate) primary: Option<Primary>,
}

/// Opens a connection to a server, in about this time.
pub(crate) async fn open(
    server: &ConnectionInfo,
    config: &AsyncConnectionConfig,
    patience: Duration,
) -> Result<Opened, RedisError> {
    let config = config.clone().set_connection_timeout(Some(patience));
    let mut connection =
        Client::open(server.clone())?.get_multiplexed_async_connection_with_config(&config).await?;
    // The greeting says the role and the version, and unlike ROLE and INFO needs no permission.
    let greeting = redis::cmd("HELLO").query_async(&mut connection).await?;
    // A Sentinel has a mode and no role.
    let role = entry(&greeting, "role").or_else(|| entry(&greeting, "mode"));
    let role = role.and_then(text).unwrap_or_default().to_owned();
    Ok(Opened { connection, role, compare_and_delete: CompareAndDelete::of(&greeting), primary: None })
}

impl Opened {
    /// The same, unless the server says that it is no primary.
    pub(crate) fn into_primary(self) -> Result<Self> {
        match &*self.role {
            "replica" | "slave" => Err(Error::new(ErrorKind::Unavailable, error::REPLICA)),
            "sentinel" => Err(Error::new(
                ErrorKind::InvalidUrl,
                "it is a Sentinel, which keeps no locks: a Sentinel is reached by redis+sentinel://host/service",
            )),
            // A server of another make may call itself otherwise, or not at all.
            _ => Ok(self),
        }
    }

    /// The connection, where it is one to a Sentinel.
    pub(crate) fn into_sentinel(self) -> Result<MultiplexedConnection> {
        if self.role == "sentinel" {
            return Ok(self.connection);
        }
        Err(Error::new(
            ErrorKind::InvalidUrl,
            "it is no Sentinel but a server: name the Sentinels, whose port is 26379 where it is not another",
        ))
    }
}

/// The value under a key of a reply that is a map.
pub(crate) fn entry<'a>(reply: &'a Value, key: &str) -> Option<&'a Value> {
    let Value::Map(entries) = reply else { return None };
    entries.iter().find(|(name, _)| text(name) == Some(key)).map(|(_, value)| value)
}
