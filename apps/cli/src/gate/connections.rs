//! Connections to the upstream, kept for one request after the other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::client::legacy::connect::HttpConnector;
use ringfence::{BootInstant, Clock as _, SystemClock};
use tokio::time::sleep;
use tower_service::Service as _;

use crate::gate::head::HEAD_BYTES_MAX;

/// How long a connection to the upstream may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The most idle connections to the upstream that are kept.
const IDLE_MAX: usize = 256;

/// How long they are kept: most servers close them after more than this.
const IDLE_FOR: Duration = Duration::from_secs(15);

/// What goes wrong on the way to the upstream.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The connections to one server. All of them are used in one runtime.
pub(crate) struct Connections<B> {
    server: Uri,
    connector: HttpConnector,
    http: http1::Builder,
    /// The one that was used last is the last.
    idle: Mutex<Vec<Idle<B>>>,
}

struct Idle<B> {
    sender: SendRequest<B>,
    since: BootInstant,
}

/// Why there is no answer.
pub(crate) enum Failed {
    /// Nothing was sent.
    Unreachable(BoxError),
    BrokeOff(hyper::Error),
}

impl<B> Connections<B>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    pub(crate) fn new(to: &Authority) -> Self {
        let server = Uri::builder().scheme(Scheme::HTTP).authority(to.clone());
        let server = server.path_and_query(PathAndQuery::from_static("/"));
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(CONNECT_WITHIN));
        let mut http = http1::Builder::new();
        http.max_buf_size(HEAD_BYTES_MAX);
        Self {
            server: server.build().expect("a scheme, a host and a path make a URL"),
            connector,
            http,
            idle: Mutex::default(),
        }
    }

    /// Sends a request, and returns the answer with the connection that it comes by, to be kept until the answer is read.
    ///
    /// It is sent again only where a connection that was kept turned out to be closed before a byte of it was written.
    pub(crate) async fn send(
        self: &Arc<Self>,
        mut request: Request<B>,
    ) -> Result<(Response<Incoming>, Lent<B>), Failed> {
        loop {
            let (kept, mut sender) = match self.take_idle() {
                Some(sender) => (true, sender),
                None => (false, self.connect().await.map_err(Failed::Unreachable)?),
            };
            match sender.try_send_request(request).await {
                Ok(answer) => return Ok((answer, Lent { sender: Some(sender), home: Arc::clone(self) })),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if kept => request = unsent,
                    _ => return Err(Failed::BrokeOff(error.into_error())),
                },
            }
        }
    }

    async fn connect(&self) -> Result<SendRequest<B>, BoxError> {
        let stream = self.connector.clone().call(self.server.clone()).await?;
        let (sender, connection) = self.http.handshake(stream).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the upstream ended early");
            }
        });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<B>> {
        let now = SystemClock::new().now();
        let kept = std::iter::from_fn(|| self.idle().pop());
        kept.filter(|idle| idle.is_fresh(now)).map(|idle| idle.sender).next()
    }

    /// Closes those that have been idle for long, for ever.
    pub(crate) async fn sweep(&self) {
        loop {
            sleep(IDLE_FOR).await;
            let now = SystemClock::new().now();
            self.idle().retain(|idle| idle.is_fresh(now));
        }
    }
}

impl<B> Connections<B> {
    fn idle(&self) -> MutexGuard<'_, Vec<Idle<B>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B> Idle<B> {
    fn is_fresh(&self, now: BootInstant) -> bool {
        now.saturating_since(self.since) < IDLE_FOR && !self.sender.is_closed()
    }
}

/// A connection while one request has it.
pub(crate) struct Lent<B> {
    sender: Option<SendRequest<B>>,
    home: Arc<Connections<B>>,
}

impl<B> Drop for Lent<B> {
    /// Keeps it for the next request, if this one is over. Otherwise it ends with this one.
    fn drop(&mut self) {
        let Some(sender) = self.sender.take().filter(SendRequest::is_ready) else { return };
        let mut idle = self.home.idle();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { sender, since: SystemClock::new().now() });
        }
    }
}
