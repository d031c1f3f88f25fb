//! TLS: whose word we take for who the members are, and who we are ourselves.

use ringfence_core::{BackendUrl, Error, ErrorKind, Result};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// The parameters of a URL that are about TLS.
pub(crate) const TLS_PARAMS: [&str; 3] = ["ca", "cert", "key"];

/// Reads what the parameters name. Without `ca` the authorities are those that the system knows.
pub(crate) fn config(url: &BackendUrl) -> Result<ClientTlsConfig> {
    let config = match url.param("ca") {
        None => ClientTlsConfig::new().with_native_roots(),
        Some(path) => {
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca", path, "CERTIFICATE")?))
        }
    };
    let Some((cert, key)) = url.client_certificate()? else { return Ok(config) };
    let (cert, key) = (read("cert", cert, "CERTIFICATE")?, read("key", key, "PRIVATE KEY")?);
    Ok(config.identity(Identity::from_pem(cert, key)))
}

/// A PEM file with at least one thing of this kind in it.
fn read(param: &str, path: &str, kind: &str) -> Result<String> {
    let pem = std::fs::read_to_string(path)
        .map_err(|error| invalid(format!("{param}={path} cannot be read")).because(error))?;
    let is_there = pem.lines().any(|line| line.starts_with("-----BEGIN ") && line.contains(kind));
    // What the file holds is not said: it may be a key.
    is_there.then_some(pem).ok_or_else(|| {
        invalid(format!(
            "{param}={path} has no {} in it, it should be a PEM file",
            if kind == "CERTIFICATE" { "certificate" } else { "private key" }
        ))
    })
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}
