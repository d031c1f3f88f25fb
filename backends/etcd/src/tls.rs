//! TLS: whose word we take for who the members are, and who we are ourselves.

use ringfence_core::{BackendUrl, Result};
use ringfence_tls::PARAMS;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Reads what the parameters name. Without `ca` the authorities are those that the system knows.
pub(crate) fn config(url: &BackendUrl) -> Result<ClientTlsConfig> {
    let config = match PARAMS.authorities(url)? {
        None => ClientTlsConfig::new().with_native_roots(),
        Some(authorities) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authorities.text)),
    };
    let Some((cert, key)) = PARAMS.identity(url)? else { return Ok(config) };
    Ok(config.identity(Identity::from_pem(cert.text, key.text)))
}
