//! Sentinels, which know the primary.
//!
//! They are asked for every connection, all at once, and the one with the newest configuration is believed: a Sentinel that
//! is cut off from the others may still name the primary from before the failover. What they name has to call itself a
//! primary as well, because in the middle of a failover it may be one no more, or not yet.
//!
//! As long as a connection stands, they are listened to as well: a server that was replaced may not know, and calls itself a
//! primary until a Sentinel reaches it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, PushInfo, PushKind, Value};
use ringfence_core::{Backoff, Error, ErrorKind, Result, Retry, nearest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::error;
use crate::options::Access;
use crate::route::{CONNECT_PATIENCE, Opened, entry, open};
use crate::scripts::{number, text};

/// How long Sentinels may take to answer, and a primary to accept a connection: short enough for a second and a third try.
const TRY_PATIENCE: Duration = Duration::from_secs(1);

/// The longest pause after a first try that led to no primary, and after any: in a failover many look for the next one together.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_millis(200);

/// The longest pause before a Sentinel that cannot be listened to is tried again.
const LISTEN_PAUSE_MOST: Duration = Duration::from_secs(5);

/// Where a Sentinel says that it names another primary.
const SWITCHES: &str = "+switch-master";

/// The Sentinels of a URL.
#[derive(Clone, Debug)]
pub(crate) struct Sentinels {
    pub(crate) addresses: Vec<ConnectionInfo>,
    /// As what they know the primary and its replicas.
    pub(crate) service: String,
    /// How the primary is spoken to, wherever it is.
    pub(crate) access: Access,
}

/// What one Sentinel says.
#[derive(Clone, Debug)]
pub(crate) struct Primary {
    host: String,
    port: u16,
    /// Counts the failovers that were agreed on.
    epoch: u64,
}

impl Sentinels {
    /// Opens a connection to the primary. Tries again while a failover may be under way.
    pub(crate) async fn open(&self, config: &AsyncConnectionConfig) -> Result<Opened> {
        let mut last = Error::new(ErrorKind::Unavailable, "its Sentinels lead to no primary in time");
        let mut pauses = Backoff::new(PAUSE_FIRST, PAUSE_MOST);
        let tries = async {
            loop {
                match self.try_to_open(config).await {
                    Err(error) if error.retry() == Retry::Later => last = error,
                    settled => return settled,
                }
                tokio::time::sleep(pauses.pause()).await;
            }
        };
        let opened = tokio::time::timeout(CONNECT_PATIENCE, tries).await;
        opened.unwrap_or(Err(last))
    }

    async fn try_to_open(&self, config: &AsyncConnectionConfig) -> Result<Opened> {
        let primary = self.primary().await?;
        let named = format!("{}:{}, which its Sentinels name as the primary", primary.host, primary.port);
        let server = self.access.at(primary.host.clone(), primary.port)?;
        let opened = open(&server, config, TRY_PATIENCE).await;
        let opened = opened.map_err(|error| error::of_connecting(error, &named))?;
        let mut opened = opened.into_primary().map_err(|error| error.about(named))?;
        opened.primary = Some(primary);
        Ok(opened)
    }

    /// Resolves when one of the Sentinels names a newer primary than this one. Not before, whatever becomes of them.
    pub(crate) async fn replaced(&self, primary: &Primary) {
        let mut listening = JoinSet::new();
        for sentinel in &self.addresses {
            listening.spawn(listen(sentinel.clone(), self.service.clone(), primary.clone()));
        }
        listening.join_next().await;
    }

    /// The primary, by the newest of what a majority of the Sentinels says, or of what can be had in time.
    async fn primary(&self) -> Result<Primary> {
        let mut asked = JoinSet::new();
        for sentinel in &self.addresses {
            asked.spawn(ask(sentinel.clone(), self.service.clone()));
        }
        let (mut named, mut errors) = (Vec::new(), Vec::new());
        while let Some(answer) = asked.join_next().await {
            match answer.expect("asking does not panic, and nobody aborts it") {
                Ok(primary) => named.push(primary),
                Err(error) => errors.push(error),
            }
            if named.len() > self.addresses.len() / 2 {
                break;
            }
        }
        // The worst one is of the kind that has to be mended.
        errors.sort_by_key(|error| (error.retry() == Retry::Later, error.kind() == ErrorKind::Refused));
        let newest = named.into_iter().max_by_key(|primary| primary.epoch);
        newest.ok_or_else(|| {
            let total = errors.len();
            let error = errors.into_iter().next().expect("each of them answered or failed");
            match error.retry() {
                Retry::Later => {
                    error.about(format!("none of its {total} Sentinels can be asked; one of them"))
                }
                Retry::Never => error,
            }
        })
    }
}

impl Primary {
    /// Whether this one took the place of another. A Sentinel that was cut off from the others names an older one.
    fn replaces(&self, other: &Self) -> bool {
        self.epoch > other.epoch && (&self.host, self.port) != (&other.host, other.port)
    }
}

/// Resolves when one Sentinel names a newer primary.
async fn listen(sentinel: ConnectionInfo, service: String, primary: Primary) {
    let mut pauses = Backoff::new(PAUSE_FIRST, LISTEN_PAUSE_MOST);
    loop {
        match listen_while_it_stands(&sentinel, &service, &primary, &mut pauses).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "a Sentinel cannot be listened to"),
        }
        tokio::time::sleep(pauses.pause()).await;
    }
}

/// The same, on one connection, whose end is an error.
async fn listen_while_it_stands(
    sentinel: &ConnectionInfo,
    service: &str,
    primary: &Primary,
    pauses: &mut Backoff,
) -> Result<()> {
    let (sender, mut pushed) = mpsc::unbounded_channel::<PushInfo>();
    let mut connection = reach(sentinel, configuration().set_push_sender(sender)).await?;
    connection.subscribe(SWITCHES).await.map_err(error::of_sentinel)?;
    *pauses = Backoff::new(PAUSE_FIRST, LISTEN_PAUSE_MOST);
    loop {
        // It is asked at first, because it may have said so before we listened; and then, because only its answer has the epoch.
        if named(&mut connection, service).await?.replaces(primary) {
            return Ok(());
        }
        loop {
            match pushed.recv().await.map(|push| push.kind) {
                Some(PushKind::Message) => break,
                None | Some(PushKind::Disconnection) => {
                    return Err(Error::new(ErrorKind::Unavailable, "it has hung up"));
                }
                Some(_) => {}
            }
        }
    }
}

/// How Sentinels are spoken to.
fn configuration() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_response_timeout(Some(TRY_PATIENCE))
}

/// Opens a connection to one Sentinel.
async fn reach(sentinel: &ConnectionInfo, config: AsyncConnectionConfig) -> Result<MultiplexedConnection> {
    let opened = open(sentinel, &config, TRY_PATIENCE).await;
    opened.map_err(error::of_sentinel)?.into_sentinel()
}

/// Asks one Sentinel.
async fn ask(sentinel: ConnectionInfo, service: String) -> Result<Primary> {
    let asked = async { named(&mut reach(&sentinel, configuration()).await?, &service).await };
    asked.await.map_err(|error: Error| error.about(format!("the Sentinel {}", sentinel.addr())))
}

/// The primary that a Sentinel names.
async fn named(connection: &mut MultiplexedConnection, service: &str) -> Result<Primary> {
    // In the middle of a failover the address is that of the next primary, and the list has the last one still.
    let mut both = redis::pipe();
    both.cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(service).cmd("SENTINEL").arg("MASTERS");
    let (address, services) = both.query_async(connection).await.map_err(error::of_sentinel)?;
    find(&address, &services, service)
}

/// The primary of a service, by its address and by all services that a Sentinel knows.
fn find(address: &Value, services: &Value, service: &str) -> Result<Primary> {
    let odd = || Error::new(ErrorKind::Corrupt, "its answer makes no sense: is this a Sentinel?");
    let Value::Array(services) = services else { return Err(odd()) };
    let name_of = |of: &Value| entry(of, "name").and_then(text).map(str::to_owned);
    let Some(found) = services.iter().find(|of| name_of(of).as_deref() == Some(service)) else {
        let all: Vec<String> = services.iter().filter_map(name_of).collect();
        let known: Vec<&str> = all.iter().map(String::as_str).collect();
        let guess = nearest(service, &known).map(|near| format!(", did you mean {near:?}?"));
        return Err(Error::new(
            ErrorKind::InvalidUrl,
            format!(
                "it knows no service {service:?}{} It knows: {}",
                guess.unwrap_or_else(|| ".".to_owned()),
                if known.is_empty() { "none".to_owned() } else { known.join(", ") }
            ),
        ));
    };
    let primary = (|| {
        let Value::Array(parts) = address else { return None };
        let [host, port] = &parts[..] else { return None };
        let epoch = entry(found, "config-epoch").and_then(number)?;
        Some(Primary { host: text(host)?.to_owned(), port: number(port)?.try_into().ok()?, epoch })
    })();
    primary.ok_or_else(odd)
}
