//! The stream of bytes to a server, before the first word of PostgreSQL's protocol is spoken on it.

use std::io;
use std::time::Duration;

use ringfence_core::{Error, ErrorKind, Result};
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use crate::error;
use crate::options::Host;

/// When a peer counts as gone that says nothing at all, on a connection that carries nothing: it is asked after the first,
/// then each time after the second, and is gone after so many questions without an answer. On one that carries something,
/// after the last. All of it is 6 s, on both sides.
pub(crate) const KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
pub(crate) const KEEPALIVE_COUNT: u32 = 3;
pub(crate) const GONE_AFTER: Duration = Duration::from_secs(6);

/// Asks a server whether it speaks TLS: a length, and a code that is no version of the protocol.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What bytes come and go by.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How bytes go to a server that is not on this machine's own sockets, which nobody else reads.
#[derive(Clone)]
pub(crate) enum Way {
    Plain,
    Encrypted(TlsConnector),
    /// By TLS with those that speak it.
    EncryptedIfSpoken(TlsConnector),
}

/// Opens a stream. Errors without effect.
pub(crate) async fn open(host: &Host, way: &Way) -> Result<Box<dyn Stream>> {
    let (mut stream, host) = match host {
        Host::Unix(path) => {
            return Ok(Box::new(UnixStream::connect(path).await.map_err(error::unreachable)?));
        }
        Host::Tcp(host, port) => (call(host, *port).await.map_err(error::unreachable)?, host),
    };
    match way {
        Way::Encrypted(connector) | Way::EncryptedIfSpoken(connector) if speaks_tls(&mut stream).await? => {
            encrypt(stream, connector, host).await
        }
        Way::Encrypted(_) => Err(Error::new(
            ErrorKind::InvalidUrl,
            "it speaks no TLS: have it do so (ssl = on), or write sslmode=disable where nobody can listen",
        )),
        Way::Plain | Way::EncryptedIfSpoken(_) => Ok(Box::new(stream)),
    }
}

async fn call(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_COUNT)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(&stream, u32::try_from(GONE_AFTER.as_millis()).unwrap_or(u32::MAX))?;
    Ok(stream)
}

async fn speaks_tls(stream: &mut TcpStream) -> Result<bool> {
    stream.write_all(&TLS_REQUEST).await.map_err(|why| error::of_stream(&why))?;
    // Exactly one byte: what somebody between has put behind it is read as TLS, and so refused.
    match stream.read_u8().await.map_err(|why| error::of_stream(&why))? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(error::odd()),
    }
}

async fn encrypt(stream: TcpStream, connector: &TlsConnector, host: &str) -> Result<Box<dyn Stream>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|why| Error::new(ErrorKind::InvalidUrl, "no certificate is for such a host").because(why))?;
    Ok(Box::new(connector.connect(name, stream).await.map_err(|why| error::of_stream(&why))?))
}
