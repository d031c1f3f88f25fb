//! Sentinels, which know the primary.
//!
//! They are asked for every connection, all at once, and the one with the newest configuration is believed: a Sentinel that
//! is cut off from the others may still name the primary from before the failover. What they name has to call itself a
//! primary as well, because in the middle of a failover it may be one no more, or not yet.
//!
//! As long as a connection stands, they are listened to as well: a server that was replaced may not know, and calls itself a
//! primary until a Sentinel reaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionInfo, PushInfo, PushKind, Value};
use ringfence_core::{Backoff, Error, ErrorKind, Finding, Result, Retry, nearest};
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

/// What somebody may do who can do all that we need at a Sentinel and nothing else, for `ACL SETUSER`.
pub(crate) const RULE: &str =
    "resetchannels &+switch-master +sentinel|get-master-addr-by-name +sentinel|masters +subscribe";

/// What follows where one does not let us listen.
const UNTOLD: &str = "a Sentinel does not tell us of a failover: a primary that was replaced, and that the Sentinels do not \
                      reach, would be used until they do";

/// The Sentinels of a URL.
#[derive(Clone, Debug)]
pub(crate) struct Sentinels {
    pub(crate) addresses: Vec<ConnectionInfo>,
    /// As what they know the primary and its replicas.
    pub(crate) service: String,
    /// How the primary is spoken to, wherever it is.
    pub(crate) access: Access,
    /// Whether it was said already that one of them does not tell us.
    pub(crate) is_warned_of: Arc<AtomicBool>,
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
            let is_warned_of = Arc::clone(&self.is_warned_of);
            listening.spawn(listen(sentinel.clone(), self.service.clone(), primary.clone(), is_warned_of));
        }
        listening.join_next().await;
    }

    /// Whether each Sentinel would tell us of another primary.
    pub(crate) async fn examine(&self) -> Vec<Finding> {
        let mut examined = JoinSet::new();
        for (place, sentinel) in self.addresses.iter().enumerate() {
            let (sentinel, service) = (sentinel.clone(), self.service.clone());
            examined.spawn(async move { (place, examine(&sentinel, &service).await) });
        }
        let mut findings = examined.join_all().await;
        findings.sort_by_key(|(place, _)| *place);
        findings.into_iter().map(|(_, finding)| finding).collect()
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
async fn listen(sentinel: ConnectionInfo, service: String, primary: Primary, is_warned_of: Arc<AtomicBool>) {
    let mut pauses = Backoff::new(PAUSE_FIRST, LISTEN_PAUSE_MOST);
    loop {
        match listen_while_it_stands(&sentinel, &service, &primary, &mut pauses).await {
            Ok(()) => return,
            // One that is away comes back. Who may not listen has to be allowed to, on all of them most likely.
            Err(error)
                if error.kind() == ErrorKind::Refused && !is_warned_of.swap(true, Ordering::Relaxed) =>
            {
                tracing::warn!(%error, advice = advice(), "{UNTOLD}");
            }
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
    let mut connection = hear(sentinel, configuration().set_push_sender(sender)).await?;
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

/// Opens a connection to one Sentinel that says when it names another primary.
async fn hear(sentinel: &ConnectionInfo, config: AsyncConnectionConfig) -> Result<MultiplexedConnection> {
    let mut connection = reach(sentinel, config).await?;
    connection.subscribe(SWITCHES).await.map_err(error::of_sentinel)?;
    Ok(connection)
}

fn advice() -> String {
    format!(
        "a user of the Sentinels who can do what is needed and nothing else: ACL SETUSER NAME reset on >PASSWORD {RULE}"
    )
}

/// Whether one Sentinel would tell us of another primary. Nothing is changed.
async fn examine(sentinel: &ConnectionInfo, service: &str) -> Finding {
    const ABOUT: &str = "sentinel";
    let asked = async {
        let mut connection = hear(sentinel, configuration()).await?;
        named(&mut connection, service).await
    };
    let finding = match asked.await {
        Ok(Primary { host, port, .. }) => {
            Finding::fine(ABOUT, format!("it names {host}:{port}, and would tell us of another one"))
        }
        Err(error) if error.kind() == ErrorKind::Refused => {
            Finding::warning(ABOUT, format!("{UNTOLD} ({error})"), advice())
        }
        Err(error) => Finding::warning(
            ABOUT,
            error.to_string(),
            "bring it back: a majority of all Sentinels has to agree to a failover, and each that is missing tells us of none",
        ),
    };
    finding.at(sentinel.addr())
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
