//! TLS as all backends that speak it have it: the PEM files that a URL names, and what is wrong where no trusted connection
//! comes about. How TLS begins is a matter of each backend's protocol.

use std::fmt;
use std::io;
use std::sync::Arc;

use ringfence_core::{BackendUrl, Error, ErrorKind, Result};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};

/// The parameters of a URL that name PEM files.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a backend names its parameters")]
pub struct Params {
    /// The authorities whose word we take.
    pub authorities: &'static str,
    /// The certificate by which we are known.
    pub certificate: &'static str,
    /// Its key.
    pub key: &'static str,
}

/// As most backends name them.
pub const PARAMS: Params = Params { authorities: "ca", certificate: "cert", key: "key" };

/// What is in a PEM file.
#[expect(clippy::exhaustive_structs, reason = "a file's text, and what is in it")]
pub struct Pem<T> {
    /// All of the file.
    pub text: Vec<u8>,
    /// What of it is of use.
    pub holds: T,
}

/// The certificate by which a client is known, with those that vouch for it, and its key.
pub type Identity = (Pem<Vec<CertificateDer<'static>>>, Pem<PrivateKeyDer<'static>>);

/// Without what it holds, which may be a key.
impl<T> fmt::Debug for Pem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

/// Which servers are trusted.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is no third way")]
pub enum Trust {
    /// Those whose certificate is for the host that was called, and signed by one of these.
    Roots(RootCertStore),
    /// Those that pass this.
    Verifier(Arc<dyn ServerCertVerifier>),
}

impl Params {
    /// The first of them that a URL has.
    pub fn first_of(&self, url: &BackendUrl) -> Option<&'static str> {
        [self.authorities, self.certificate, self.key].into_iter().find(|param| url.param(param).is_some())
    }

    /// Reads the certificates of the authorities that a URL names, if it does. Errors with [`ErrorKind::InvalidUrl`].
    pub fn authorities(&self, url: &BackendUrl) -> Result<Option<Pem<RootCertStore>>> {
        let Some(path) = url.param(self.authorities) else { return Ok(None) };
        let Pem { text, holds } = certificates(self.authorities, path)?;
        let mut roots = RootCertStore::empty();
        for certificate in holds {
            roots.add(certificate).map_err(|why| {
                invalid(format!("{}={path} has a certificate that is none", self.authorities)).because(why)
            })?;
        }
        Ok(Some(Pem { text, holds: roots }))
    }

    /// Whom we believe: the authorities that a URL names, or else those that the system knows. Errors with
    /// [`ErrorKind::InvalidUrl`].
    pub fn roots(&self, url: &BackendUrl) -> Result<RootCertStore> {
        Ok(self.authorities(url)?.map_or_else(roots_of_the_system, |authorities| authorities.holds))
    }

    /// Reads by which certificate we are known, if by one. Errors with [`ErrorKind::InvalidUrl`].
    pub fn identity(&self, url: &BackendUrl) -> Result<Option<Identity>> {
        let (cert, key) = match (url.param(self.certificate), url.param(self.key)) {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => (cert, key),
            (Some(_), None) => return Err(alone(self.certificate, self.key)),
            (None, Some(_)) => return Err(alone(self.key, self.certificate)),
        };
        let (chain, its_key) = (certificates(self.certificate, cert)?, private_key(self.key, key)?);
        // A driver that reads them for itself would not say which file is wrong.
        CertifiedKey::from_der(chain.holds.clone(), its_key.holds.clone_key(), &provider()).map_err(
            |why| {
                let trouble = match why {
                    rustls::Error::InconsistentKeys(_) => "do not belong together",
                    _ => "are of no use to make us known",
                };
                invalid(format!("{}={cert} and {}={key} {trouble}", self.certificate, self.key)).because(why)
            },
        )?;
        Ok(Some((chain, its_key)))
    }

    /// How we speak with servers that we trust in this way, and by which certificate we are known, if a URL names one. Errors with
    /// [`ErrorKind::InvalidUrl`].
    pub fn config(&self, url: &BackendUrl, trust: Trust) -> Result<ClientConfig> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|why| invalid("the cryptography of this program knows no TLS".into()).because(why))?;
        let config = match trust {
            Trust::Roots(roots) => config.with_root_certificates(roots),
            Trust::Verifier(verifier) => config.dangerous().with_custom_certificate_verifier(verifier),
        };
        let Some((cert, key)) = self.identity(url)? else { return Ok(config.with_no_client_auth()) };
        let useless = |why| invalid("the certificate of this client is of no use".into()).because(why);
        config.with_client_auth_cert(cert.holds, key.holds).map_err(useless)
    }

    /// What is wrong between us and a server by what TLS says of it, and what to do about it.
    pub fn explain(&self, trouble: &rustls::Error) -> (ErrorKind, String) {
        let Self { authorities, certificate, key } = self;
        let advice = match trouble {
            rustls::Error::InvalidCertificate(why) => match why {
                // The signature is wrong where an authority of the same name is known, with another key.
                CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                    "its certificate is signed by an authority that we do not know: name the authority's PEM file with \
                     ?{authorities}=/path.pem, or have the system know it"
                ),
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "its certificate is for another host: write the URL with a host that the certificate names".to_owned()
                }
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid today: renew it, or look at this machine's clock".to_owned()
                }
                _ => "its certificate cannot be trusted".to_owned(),
            },
            rustls::Error::AlertReceived(
                AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                // An authority of the same name is known there, with another key.
                | AlertDescription::DecryptError
                | AlertDescription::HandshakeFailure,
            ) => format!(
                "it does not accept who we are: name a certificate that it knows with \
                 ?{certificate}=/path.pem&{key}=/path.pem"
            ),
            _ => "no trusted connection comes about".to_owned(),
        };
        (ErrorKind::Refused, advice)
    }
}

/// What TLS says of a stream that failed, where it is that.
pub fn trouble(why: &io::Error) -> Option<&rustls::Error> {
    why.get_ref()?.downcast_ref()
}

/// The cryptography of this program: where it has chosen one, that is ours too.
pub fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(ring::default_provider()))
}

/// The authorities that the system knows.
pub fn roots_of_the_system() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn certificates(param: &str, path: &str) -> Result<Pem<Vec<CertificateDer<'static>>>> {
    let text = read(param, path)?;
    match CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>() {
        Ok(holds) if !holds.is_empty() => Ok(Pem { text, holds }),
        Ok(_) => Err(invalid(format!("{param}={path} has no certificate in it, it should be a PEM file"))),
        Err(why) => {
            Err(invalid(format!("{param}={path} is no PEM file of certificates")).because(why.to_string()))
        }
    }
}

fn private_key(param: &str, path: &str) -> Result<Pem<PrivateKeyDer<'static>>> {
    let text = read(param, path)?;
    // What the file holds is not said: it may be a key after all.
    let holds = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| invalid(format!("{param}={path} has no private key in it, it should be a PEM file")))?;
    Ok(Pem { text, holds })
}

fn read(param: &str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|why| invalid(format!("{param}={path} cannot be read")).because(why))
}

fn alone(given: &str, missing: &str) -> Error {
    invalid(format!("{given}= needs {missing}= beside it: a client is known by a certificate and its key"))
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tempfile::TempDir;

    use super::*;

    /// A certificate and its key, in files of this folder.
    fn made(folder: &TempDir, name: &str) -> [String; 2] {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["host".to_owned()]).unwrap();
        [("pem", cert.pem()), ("key", signing_key.serialize_pem())].map(|(extension, text)| {
            let path = folder.path().join(format!("{name}.{extension}"));
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        })
    }

    fn config(params: &str) -> Result<ClientConfig> {
        let url = BackendUrl::parse(&format!("tide://host?{params}"))?;
        PARAMS.config(&url, Trust::Roots(PARAMS.roots(&url)?))
    }

    #[test]
    fn a_url_names_whom_we_believe_and_who_we_are() {
        let folder = TempDir::new().unwrap();
        let ([one, one_key], [other, _]) = (made(&folder, "one"), made(&folder, "other"));
        let none = folder.path().join("none.pem").display().to_string();
        std::fs::write(&none, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        assert!(!config(&format!("ca={other}")).unwrap().client_auth_cert_resolver.has_certs());
        let known = config(&format!("ca={other}&cert={one}&key={one_key}")).unwrap();
        assert!(known.client_auth_cert_resolver.has_certs());
        for (params, said) in [
            (format!("cert={other}&key={one_key}"), "do not belong together"),
            (format!("cert={one}"), "cert= needs key= beside it"),
            (format!("key={one_key}"), "key= needs cert= beside it"),
            (format!("ca={one_key}"), "has no certificate in it"),
            (format!("cert={one}&key={one}"), "has no private key in it"),
            ("ca=/no/such/file".to_owned(), "ca=/no/such/file cannot be read"),
            (format!("ca={none}"), "has a certificate that is none"),
            (format!("cert={none}&key={one_key}"), "are of no use to make us known"),
        ] {
            // Both for those whose TLS is ours and for drivers that read the files for themselves.
            let url = BackendUrl::parse(&format!("tide://host?{params}")).unwrap();
            let read = PARAMS.authorities(&url).and(PARAMS.identity(&url).map(drop));
            for error in [config(&params).unwrap_err(), read.unwrap_err()] {
                let is_said = error.kind() == ErrorKind::InvalidUrl && error.to_string().contains(said);
                assert!(is_said, "{params}: {error}");
            }
        }
        let url = BackendUrl::parse(&format!("tide://host?cert={one}&key={one_key}")).unwrap();
        let (_, key) = PARAMS.identity(&url).unwrap().unwrap();
        assert_eq!(format!("{key:?}"), "Pem { .. }", "a key is never shown");
    }
}
