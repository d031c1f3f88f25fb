//! TLS: whose word we take for who the server is, and who we are ourselves.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use redis::{ClientTlsConfig, RedisError, TlsCertificates};
use ringfence_core::{BackendUrl, Error, ErrorKind, Result};
use ringfence_tls::PARAMS;
use rustls::CertificateError;

/// Whether the servers of a URL, each of them, are spoken to by TLS, and with which certificates.
pub(crate) fn of(url: &BackendUrl) -> Result<Option<TlsCertificates>> {
    let scheme = url.scheme();
    let is_one_server = matches!(scheme, "redis" | "rediss" | "redis+unix");
    let is_on = match url.param("tls") {
        Some(_) if is_one_server => {
            return Err(invalid(format!(
                "{scheme}: has no tls=, one server is spoken to by TLS with rediss://host"
            )));
        }
        _ => url.choice("tls", ["off", "on"])? || scheme == "rediss",
    };
    match PARAMS.first_of(url) {
        _ if is_on => certificates(url).map(Some),
        None => Ok(None),
        Some(param) if is_one_server => {
            Err(invalid(format!("{scheme}: has no {param}=, which is about TLS: write rediss://host")))
        }
        Some(param) => Err(invalid(format!("{scheme}: has {param}=, which is about TLS, and no tls=on"))),
    }
}

/// Reads what the parameters name. Without `ca` the authorities are those that the system knows.
fn certificates(url: &BackendUrl) -> Result<TlsCertificates> {
    // The driver takes its cryptography from a place that the process shares. Where the program has put one there, it stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let root_cert = PARAMS.authorities(url)?.map(|authorities| authorities.text);
    let client_tls = PARAMS
        .identity(url)?
        .map(|(cert, key)| ClientTlsConfig { client_cert: cert.text, client_key: key.text });
    Ok(TlsCertificates { client_tls, root_cert })
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

/// What is wrong between us and a server, where it is the TLS, and what to do about it.
pub(crate) fn explain(error: &RedisError) -> Option<(ErrorKind, String)> {
    // The driver wraps what it was told, which is an error of the stream, around that of TLS.
    let source = error.source()?.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()?;
    let trouble = match source.downcast_ref::<io::Error>() {
        Some(error) => ringfence_tls::trouble(error)?,
        None => source.downcast_ref::<rustls::Error>()?,
    };
    Some(match trouble {
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::InvalidUrl,
            "it does not speak TLS on this port: name the port that does, or do without: redis: in place of rediss:, no tls=on"
                .to_owned(),
        ),
        trouble @ rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            let (kind, advice) = PARAMS.explain(trouble);
            let also = "have Sentinels and clusters name it by that as well (announce-hostnames, cluster-announce-hostname)";
            (kind, format!("{advice}, and {also}"))
        }
        trouble => PARAMS.explain(trouble),
    })
}
