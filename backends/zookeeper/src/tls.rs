//! TLS: whose word we take for who the servers are, and who we are ourselves.

use std::fmt;
use std::io;
use std::sync::Arc;

use ringfence_core::{BackendUrl, Error, ErrorKind, Result};
use ringfence_tls::{PARAMS, Trust};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How the servers are spoken to by TLS.
#[derive(Clone)]
pub(crate) struct Tls(TlsConnector);

impl Tls {
    /// Whether the servers of a URL, each of them, are spoken to by TLS, and with which certificates.
    pub(crate) fn of(url: &BackendUrl) -> Result<Option<Self>> {
        if url.choice("tls", ["off", "on"])? {
            let config = Arc::new(PARAMS.config(url, Trust::Roots(PARAMS.roots(url)?))?);
            return Ok(Some(Self(TlsConnector::from(config))));
        }
        match PARAMS.first_of(url) {
            None => Ok(None),
            Some(param) => {
                Err(invalid(format!("zookeeper: has {param}=, which is about TLS, and no tls=on")))
            }
        }
    }

    pub(crate) async fn greet(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        self.0.connect(name, stream).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

/// What is wrong between us and a server, where it is the TLS, and what to do about it.
pub(crate) fn explain(why: &io::Error) -> Option<(ErrorKind, String)> {
    Some(match ringfence_tls::trouble(why)? {
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::InvalidUrl,
            "it does not speak TLS on this port: name the one that does (secureClientPort), or do without tls=on".to_owned(),
        ),
        trouble => PARAMS.explain(trouble),
    })
}
