//! `gate`: a fence before an HTTP server, as a process of its own.

mod alone;
mod connections;
mod head;
mod proxy;
mod worker;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use http_body_util::Either;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use nix::sys::signal::Signal;
use ringfence::{Error, ErrorKind, LockName, Locks, Result, parse_duration};
use ringfence_http::{FenceLayer, Gate};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};
use tower_layer::Layer;
use tower_service::Service;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, Messages};
use crate::signals::Signals;

use alone::Lookout;
use head::HEAD_BYTES_MAX;
use proxy::Proxy;
use worker::{Marks, Worker};

/// Put a fence before an HTTP server: no request without a token, none with an old one
///
/// A proxy that lets a request through only with the header Ringfence-Token: name;sequence.nonce of a lock's holder, and answers
/// 412 if it has seen a later token of that lock. It prints a line when it listens, and ends in order when it is told to.
///
/// The marks are kept in the records of --url, which is asked for each request, so that several gates can share them; when it does
/// not answer, nothing passes (503). A newer token waits until the requests of the older ones are answered, or until --drain is
/// over and they are cut. What has reached the upstream cannot be called back. Where the URL names a token_key_file, only tokens
/// that were sealed with that key pass.
#[derive(Debug, Args)]
pub(crate) struct GateArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// The server behind the gate, as in http://127.0.0.1:8080
    #[arg(long, value_name = "URL", value_parser = parse_upstream)]
    upstream: Authority,
    /// How long a newer token waits for the requests of an older one, and the end of the program for all
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    drain: Duration,
    /// How long the upstream may be silent
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
    /// Be the only gate of this name: hold the lock gate/NAME, and ask the store only for tokens not seen yet. The others
    /// of the name stand by and answer 503; all gates before one upstream have to have the name
    #[arg(long, value_name = "NAME", value_parser = parse_gate_name)]
    alone: Option<LockName>,
}

/// What ends the gate: in order the first time, at once the second time.
const SIGNALS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The most connections of clients. More of them wait in the kernel's line.
const CONNECTIONS_MAX: usize = 4096;

/// How long a client may take to send the head of a request, and a connection may lie idle.
const HEAD_WITHIN: Duration = Duration::from_secs(30);

/// How long to leave the kernel alone when it takes no more connections, for want of descriptors for one.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// How long the store may take when everything else has ended.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// What is printed, as a line of text or of JSON.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Listening { address: SocketAddr, upstream: &'a str },
    Alone { name: &'a LockName },
    StandingBy { name: &'a LockName },
}

impl Event<'_> {
    fn print(&self, json: bool) -> io::Result<()> {
        if json {
            return print::json(self);
        }
        print::line(&match self {
            Self::Listening { address, upstream } => format!("listening on {address}, before {upstream}"),
            Self::Alone { name } => format!("alone: has the lock {}", print::visible(name.as_str())),
            Self::StandingBy { name } => {
                format!("standing by for the lock {}", print::visible(name.as_str()))
            }
        })
    }
}

/// Listens until a signal comes, then lets what is under way end.
pub(crate) async fn run(args: GateArgs, global: &Global) -> Result<u8, Failure> {
    let signals = Signals::take(&SIGNALS)?;
    let (url, json, messages) = (global.url()?, global.json, global.messages());
    // The program's own thread waits for signals; here connections are accepted, and the lease of a gate that is alone is renewed.
    let gate =
        runtime::Builder::new_multi_thread().worker_threads(1).thread_name("gate").enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    let mut served = gate.spawn(serve(args, url, json, messages, stopped));
    let ended = tokio::select! {
        biased;
        ended = &mut served => ended,
        signal = signals.next() => {
            signal?;
            drop(stop);
            signals.unless_interrupted(served).await?
        }
    };
    // What hangs has had its time.
    gate.shutdown_background();
    ended.unwrap_or_else(|panicked| panic::resume_unwind(panicked.into_panic()))
}

async fn serve(
    args: GateArgs,
    url: String,
    json: bool,
    messages: Messages,
    mut stopped: oneshot::Receiver<()>,
) -> Result<u8, Failure> {
    let connected = async {
        let locks = Locks::connect(&url).await?;
        Ok::<_, Failure>((locks, Worker::start_all(&url, &args.upstream, args.timeout).await?))
    };
    let (locks, workers) = tokio::select! {
        connected = connected => connected?,
        // Whoever told us to stop has dropped its end. Nobody was served yet.
        _ = &mut stopped => return Ok(exit_codes::OK),
    };
    let mut gate = Gate::new(Arc::new(Marks::of(&workers))).drain(args.drain);
    if let Some(key) = locks.token_key() {
        gate = gate.key(key.clone());
    }
    let lookout = args.alone.clone().map(|name| Arc::new(Lookout::new(locks.clone(), name, json, messages)));
    if let Some(lookout) = lookout.clone() {
        gate = gate.alone(move || lookout.lease());
    }
    let gate = Arc::new(gate);
    let listener = TcpListener::bind(args.listen).await.map_err(|error| {
        Failure::new(exit_codes::IO, format!("cannot listen on {}: {error}", args.listen))
    })?;
    let address = listener.local_addr()?;
    Event::Listening { address, upstream: args.upstream.as_str() }.print(json)?;

    let clients = GracefulShutdown::new();
    let stays_alone = async {
        match &lookout {
            Some(lookout) => lookout.stand(&gate).await,
            None => pending().await,
        }
    };
    let fence = FenceLayer::new(Arc::clone(&gate));
    let failed = tokio::select! {
        never = accept(&listener, &fence, &workers, args.timeout, &clients) => match never {},
        failed = stays_alone => Some(failed),
        _ = &mut stopped => None,
    };
    drop(listener);
    if timeout(args.drain, clients.shutdown()).await.is_err() {
        gate.cut();
    }
    if let Some(lookout) = &lookout {
        lookout.leave();
    }
    if timeout(CLOSE_WITHIN, locks.close()).await.is_err() {
        messages.note("the store does not answer: what was held there ends at its TTL");
    }
    failed.map_or(Ok(exit_codes::OK), |failed| Err(failed.into()))
}

/// Deals the clients to the workers in turn; each is served in a task of its own.
async fn accept(
    listener: &TcpListener,
    fence: &FenceLayer,
    workers: &[Worker],
    silence: Duration,
    clients: &GracefulShutdown,
) -> std::convert::Infallible {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let server = server();
    let mut workers = workers.iter().cycle();
    loop {
        let seat = Arc::clone(&seats).acquire_owned().await.expect("nobody closes it");
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let stream = match prepare(&stream, silence).and_then(|()| stream.into_std()) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, %client, "a connection was gone before it began");
                continue;
            }
        };
        let worker = workers.next().expect("there is at least one");
        let fenced = fence.layer(Proxy::new(Arc::clone(&worker.upstream), client.ip()));
        let (server, watcher) = (server.clone(), clients.watcher());
        worker.tasks.spawn(async move {
            // From now on that thread is told when there is something to read.
            let stream = match TcpStream::from_std(stream) {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%error, "a connection could not be served"),
            };
            let service = service_fn(move |request| {
                let mut fenced = fenced.clone();
                async move {
                    match head::refuse_too_large(&request) {
                        Some(refused) => Ok(refused.map(Either::Right)),
                        None => fenced.call(request).await.map(|answer| answer.map(Either::Left)),
                    }
                }
            });
            let connection = watcher.watch(server.serve_connection(TokioIo::new(stream), service));
            if let Err(error) = connection.await {
                tracing::debug!(%error, %client, "a connection ended early");
            }
            drop(seat);
        });
    }
}

/// How HTTP is spoken to clients. One that says that it sends no more is answered still, as `nc -N` and old tools expect it; whether
/// it has gone altogether is seen when there is an answer to write.
fn server() -> http1::Builder {
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    server.half_close(true);
    server
}

/// Answers leave at once, and a client that takes none of an answer for so long is gone.
fn prepare(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let millis = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?)
}

fn parse_upstream(text: &str) -> Result<Authority> {
    let invalid = |why: &str| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{why}: write http://host:port, as in http://127.0.0.1:8080"),
        )
    };
    let uri: Uri = text.parse().map_err(|_| invalid("it is no URL"))?;
    let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(invalid("TLS to the upstream is not spoken, put the gate beside it")),
        _ => return Err(invalid("its scheme is not http")),
    }
    if authority.as_str().contains('@')
        || authority.as_str().ends_with(':')
        || !matches!(uri.path_and_query().map(PathAndQuery::as_str), None | Some("/"))
    {
        return Err(invalid(
            "a host and a port are all it can have, and the path of each request is the client's",
        ));
    }
    Ok(authority.clone())
}

fn parse_gate_name(name: &str) -> Result<LockName> {
    LockName::new(format!("gate/{name}"))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::body::{Bytes, Incoming};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinHandle;

    use super::*;

    /// A client of such a server, whose clock is the test's, and the server's end.
    fn client() -> (DuplexStream, JoinHandle<hyper::Result<()>>) {
        let (client, stream) = duplex(1024);
        let answer =
            |_: Request<Incoming>| async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) };
        let connection = server().serve_connection(TokioIo::new(stream), service_fn(answer));
        (client, tokio::spawn(connection))
    }

    /// That it is left at the end of the time that a head has, and not before.
    async fn is_left(mut served: JoinHandle<hyper::Result<()>>) {
        const MOMENT: Duration = Duration::from_millis(10);
        let early = timeout(HEAD_WITHIN.checked_sub(MOMENT).unwrap(), &mut served).await;
        assert!(early.is_err(), "left too early: {early:?}");
        timeout(2 * MOMENT, served).await.expect("left in time").unwrap().expect_err("told why");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_to_its_end_is_not_waited_for() {
        let (mut client, served) = client();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow").await.unwrap();
        is_left(served).await;

        // Not even one of which a piece comes now and then.
        let (mut client, mut served) = self::client();
        client.write_all(b"GET / HTTP/1.1\r\nX-Slow: ").await.unwrap();
        for _ in 0..HEAD_WITHIN.as_secs() - 1 {
            let second = timeout(Duration::from_secs(1), &mut served).await;
            assert!(second.is_err(), "left too early: {second:?}");
            client.write_all(b"x").await.unwrap();
        }
        timeout(Duration::from_secs(2), served).await.expect("left in time").unwrap().expect_err("told why");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_requests_is_not_kept() {
        let (mut client, mut served) = client();
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let early = timeout(HEAD_WITHIN / 2, &mut served).await;
        assert!(early.is_err(), "left too early: {early:?}");
        timeout(HEAD_WITHIN, served).await.expect("left in time").unwrap().expect_err("told why");
    }
}
