//! The servers of an ensemble, and how a connection to one of them begins.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ringfence_core::{Nonce, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error;
use crate::options::Login;
use crate::tls::Tls;
use crate::wire::{self, Answer, Greeting, Odd, Request, Welcome};

/// The servers of one ensemble, and as whom they are spoken to.
#[derive(Debug)]
pub(crate) struct Servers {
    addresses: Vec<(String, u16)>,
    login: Option<Login>,
    tls: Option<Tls>,
    shown: String,
    /// Which one answered last: the next connection begins with it, so that a dead one costs nothing.
    preferred: AtomicUsize,
}

impl Servers {
    pub(crate) fn new(
        addresses: Vec<(String, u16)>,
        login: Option<Login>,
        tls: Option<Tls>,
        shown: String,
    ) -> Self {
        // Clients spread over the servers, each from a place of its own.
        let place = usize::try_from(Nonce::random().get() % addresses.len().max(1) as u64).unwrap_or(0);
        Self { addresses, login, tls, shown, preferred: AtomicUsize::new(place) }
    }

    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    pub(crate) fn addresses(&self) -> &[(String, u16)] {
        &self.addresses
    }

    /// Goes round the servers, from the one that answered last, until one welcomes us. `after` skips so many of them. Where none
    /// does, the error is that of one that hung up, if there is such.
    pub(crate) async fn connect(
        &self,
        greeting: &Greeting,
        after: usize,
        patience: Duration,
    ) -> Result<(Connection, Welcome)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failed = None;
        for step in after..after + self.addresses.len() {
            let place = first.wrapping_add(step) % self.addresses.len();
            let (host, port) = &self.addresses[place];
            let greeted = tokio::time::timeout(patience, self.greet(place, greeting));
            let error = match greeted.await {
                Ok(Ok(welcomed)) => {
                    self.preferred.store(place, Ordering::Relaxed);
                    return Ok(welcomed);
                }
                Ok(Err(error)) => error,
                Err(_) => error::of_connecting(io::ErrorKind::TimedOut.into()),
            };
            if !failed.as_ref().is_some_and(error::has_hung_up) {
                failed = Some(error.about(format_args!("{host}:{port}")));
            }
        }
        Err(failed.expect("there are servers").about(&self.shown))
    }

    /// Begins or continues a session at one of them, by its place among the addresses.
    pub(crate) async fn greet(&self, place: usize, greeting: &Greeting) -> Result<(Connection, Welcome)> {
        let stream = self.open(place).await.map_err(error::of_connecting)?;
        let mut connection = Connection { stream, received: BytesMut::new(), place };
        let mut out = BytesMut::new();
        greeting.write(&mut out);
        if let Some(login) = &self.login {
            Request::login(login.as_str()).write(wire::LOGIN, &mut out);
        }
        send_all(&mut connection.stream, &out).await.map_err(error::of_connecting)?;
        let welcome = Welcome::read(connection.message().await?).map_err(|Odd| error::odd())?;
        if self.login.is_some() && welcome.session != 0 {
            let answer = Answer::read(connection.message().await?).map_err(|Odd| error::odd())?;
            if let Err(code) = answer.outcome {
                return Err(error::refused(code));
            }
        }
        Ok((connection, welcome))
    }

    /// A connection to one of them, by its place among the addresses, on which nothing has been said yet.
    pub(crate) async fn open(&self, place: usize) -> io::Result<Box<dyn Stream>> {
        let (host, port) = &self.addresses[place];
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        Ok(match &self.tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.greet(host, stream).await?),
        })
    }

    /// This one fell silent: the next connection begins with another one, unless it does already.
    pub(crate) fn avoid(&self, place: usize) {
        let next = (place + 1) % self.addresses.len();
        let _ = self.preferred.compare_exchange(place, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// What is said on a connection, whether by TLS or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + fmt::Debug> Stream for T {}

/// Sends all of it. What is written by TLS is sent when it is flushed.
pub(crate) async fn send_all(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes).await?;
    stream.flush().await
}

/// A connection that was greeted.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) received: BytesMut,
    /// Which server it is with, by its place among the addresses.
    pub(crate) place: usize,
}

impl Connection {
    pub(crate) async fn message(&mut self) -> Result<Bytes> {
        loop {
            if let Some(message) = wire::take_message(&mut self.received).map_err(|Odd| error::odd())? {
                return Ok(message);
            }
            if self.stream.read_buf(&mut self.received).await.map_err(error::of_connecting)? == 0 {
                return Err(error::of_connecting(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

/// A server that says nothing for this part of a session's timeout, while an answer is due, is given up.
const SILENCE_PART: u32 = 3;

/// However short a session is, a busy machine has this long to answer.
const SILENCE_MIN: Duration = Duration::from_millis(500);

/// However long a session is, an answer is not awaited for longer; and for so long where there is no session yet.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(5);

/// For how long an answer is awaited in a session of this timeout.
pub(crate) fn silence(timeout: Duration) -> Duration {
    (timeout / SILENCE_PART).clamp(SILENCE_MIN, SILENCE_MAX)
}
