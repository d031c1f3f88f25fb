//! TLS: whose word we take for who the servers are, and who we are ourselves.

use std::fmt;
use std::io;
use std::sync::Arc;

use ringfence_core::{BackendUrl, Error, ErrorKind, Result};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
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
            let config = Arc::new(config(url)?);
            return Ok(Some(Self(TlsConnector::from(config))));
        }
        match ["ca", "cert", "key"].into_iter().find(|param| url.param(param).is_some()) {
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

fn config(url: &BackendUrl) -> Result<ClientConfig> {
    // Where the program has chosen its cryptography, that is ours too.
    let provider =
        CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|why| invalid("the cryptography of this program knows no TLS".into()).because(why))?
        .with_root_certificates(authorities(url)?);
    let Some((cert, key)) = url.client_certificate()? else { return Ok(config.with_no_client_auth()) };
    config
        .with_client_auth_cert(certificates_in("cert", cert)?, key_in(key)?)
        .map_err(|why| invalid(format!("cert={cert} and key={key} do not belong together")).because(why))
}

/// Those of `ca=`, or else those that the system knows.
fn authorities(url: &BackendUrl) -> Result<RootCertStore> {
    let mut authorities = RootCertStore::empty();
    let Some(path) = url.param("ca") else {
        authorities.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(authorities);
    };
    for certificate in certificates_in("ca", path)? {
        authorities
            .add(certificate)
            .map_err(|why| invalid(format!("ca={path} has a certificate that is none")).because(why))?;
    }
    Ok(authorities)
}

fn certificates_in(param: &str, path: &str) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(param, path)?;
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(invalid(format!("{param}={path} has no certificate in it, it should be a PEM file"))),
        Err(why) => {
            Err(invalid(format!("{param}={path} is no PEM file of certificates")).because(why.to_string()))
        }
    }
}

fn key_in(path: &str) -> Result<PrivateKeyDer<'static>> {
    // What the file holds is not said: it may be a key after all.
    PrivateKeyDer::from_pem_slice(&read("key", path)?)
        .map_err(|_| invalid(format!("key={path} has no private key in it, it should be a PEM file")))
}

fn read(param: &str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|why| invalid(format!("{param}={path} cannot be read")).because(why))
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

/// What is wrong between us and a server, where it is the TLS, and what to do about it.
pub(crate) fn explain(why: &io::Error) -> Option<(ErrorKind, &'static str)> {
    Some(match why.get_ref()?.downcast_ref::<rustls::Error>()? {
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
            "it does not speak TLS on this port: name the one that does (secureClientPort), or do without tls=on",
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
            "its certificate is for another host: write the URL with a host that the certificate names"
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
