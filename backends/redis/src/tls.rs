//! TLS: whose word we take for who the server is, and who we are ourselves.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use redis::{ClientTlsConfig, RedisError, TlsCertificates};
use ringfence_core::{BackendUrl, Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError};

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
    let param = ["ca", "cert", "key"].into_iter().find(|param| url.param(param).is_some());
    match param {
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
    let root_cert = url.param("ca").map(|path| certificates_in("ca", path)).transpose()?;
    let client_tls = match url.client_certificate()? {
        None => None,
        Some((cert, key)) => {
            Some(ClientTlsConfig { client_cert: certificates_in("cert", cert)?, client_key: key_in(key)? })
        }
    };
    Ok(TlsCertificates { client_tls, root_cert })
}

fn certificates_in(param: &str, path: &str) -> Result<Vec<u8>> {
    let pem = read(param, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(pem),
        Ok(_) => Err(invalid(format!("{param}={path} has no certificate in it, it should be a PEM file"))),
        Err(error) => {
            Err(invalid(format!("{param}={path} is no PEM file of certificates")).because(error.to_string()))
        }
    }
}

fn key_in(path: &str) -> Result<Vec<u8>> {
    let pem = read("key", path)?;
    // The error of a key says nothing of what is in it.
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| invalid(format!("key={path} has no private key in it, it should be a PEM file")))?;
    Ok(pem)
}

fn read(param: &str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| invalid(format!("{param}={path} cannot be read")).because(error))
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

/// What is wrong between us and a server, where it is the TLS, and what to do about it.
pub(crate) fn explain(error: &RedisError) -> Option<(ErrorKind, &'static str)> {
    // The driver wraps what it was told, which is an error of the stream, around that of TLS.
    let source = error.source()?.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()?;
    let trouble = match source.downcast_ref::<io::Error>() {
        Some(error) => error.get_ref()?.downcast_ref::<rustls::Error>()?,
        None => source.downcast_ref::<rustls::Error>()?,
    };
    Some(match trouble {
        rustls::Error::InvalidCertificate(why) => (ErrorKind::Refused, of_certificate(why)),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure,
        ) => (
            ErrorKind::Refused,
            "it does not accept who we are: name a certificate that it knows with ?cert=/path.pem&key=/path.pem",
        ),
        rustls::Error::InvalidMessage(_) => (
            ErrorKind::InvalidUrl,
            "it does not speak TLS on this port: name the port that does, or do without: redis: in place of rediss:, no tls=on",
        ),
        _ => (ErrorKind::Refused, "no trusted connection comes about"),
    })
}

fn of_certificate(why: &CertificateError) -> &'static str {
    match why {
        // The signature is wrong where an authority of the same name is known, with another key.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "its certificate is signed by an authority that we do not know: name the authority's PEM file with \
             ?ca=/path.pem, or have the system know it"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another host: write the URL with a host that the certificate names, and have Sentinels and \
             clusters name it by that as well (announce-hostnames, cluster-announce-hostname)"
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid today: renew it, or look at this machine's clock"
        }
        _ => "its certificate cannot be trusted",
    }
}
