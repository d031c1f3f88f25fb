//! TLS: whether we insist on it, and whose word we take for who the server is.

use std::fmt;
use std::sync::Arc;

use ringfence_core::{BackendUrl, Error, ErrorKind, Result, nearest};
use ringfence_tls::{Params, Trust};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::options::Host;
use crate::stream::Way;

/// The parameters that name files, as libpq calls them.
pub(crate) const PARAMS: Params =
    Params { authorities: "sslrootcert", certificate: "sslcert", key: "sslkey" };

/// What stands in `sslrootcert=` for the authorities that the system knows.
const SYSTEM: &str = "system";

/// How servers are spoken to, as libpq's `sslmode` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl Mode {
    const ALL: [(&str, Self); 6] = [
        ("disable", Self::Disable),
        ("allow", Self::Allow),
        ("prefer", Self::Prefer),
        ("require", Self::Require),
        ("verify-ca", Self::VerifyCa),
        ("verify-full", Self::VerifyFull),
    ];

    fn of(url: &BackendUrl) -> Result<Self> {
        let is_system = url.param(PARAMS.authorities) == Some(SYSTEM);
        let Some(written) = url.param("sslmode") else {
            return Ok(if is_system { Self::VerifyFull } else { Self::Prefer });
        };
        let known = Self::ALL.map(|(name, _)| name);
        Self::ALL.iter().find(|(name, _)| *name == written).map(|(_, mode)| *mode).ok_or_else(|| {
            let guess = nearest(written, &known)
                .map_or_else(|| ".".to_owned(), |near| format!(", did you mean {near:?}?"));
            invalid(format!("sslmode={written:?} is unknown{guess} Known: {}", known.join(", ")))
        })
    }
}

/// The ways to speak to a server, in the order in which they are tried.
#[derive(Clone)]
pub(crate) struct Tls {
    mode: Mode,
    connector: TlsConnector,
}

impl Tls {
    pub(crate) fn of(url: &BackendUrl) -> Result<Self> {
        let mode = Mode::of(url)?;
        let authorities = url.param(PARAMS.authorities);
        let trust = match (mode, authorities) {
            (Mode::Disable, _) if let Some(param) = PARAMS.first_of(url) => {
                return Err(invalid(format!("{param}= is about TLS, and sslmode=disable does without")));
            }
            (Mode::VerifyFull, Some(SYSTEM)) => Trust::Roots(ringfence_tls::roots_of_the_system()),
            (Mode::VerifyFull, _) => Trust::Roots(PARAMS.roots(url)?),
            (Mode::VerifyCa | Mode::Require, Some(path)) if path != SYSTEM => {
                Verifier::trust(Some(PARAMS.roots(url)?))
            }
            (Mode::VerifyCa, _) => {
                return Err(invalid(
                    "sslmode=verify-ca needs sslrootcert=/path.pem: the authorities that the system knows vouch for everybody, \
                     so name one of yours, or write sslmode=verify-full"
                        .to_owned(),
                ));
            }
            (_, Some(path)) => {
                return Err(invalid(format!(
                    "sslrootcert={path} says whom to believe, and {} believes everybody: write sslmode=verify-full",
                    if url.param("sslmode").is_some() {
                        "the sslmode"
                    } else {
                        "sslmode=prefer, the usual one,"
                    }
                )));
            }
            (_, None) => Verifier::trust(None),
        };
        let config = PARAMS.config(url, trust)?;
        Ok(Self { mode, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Each but the first is gone where the server does not like the one before.
    pub(crate) fn ways(&self, host: &Host) -> Vec<Way> {
        let connector = self.connector.clone();
        match self.mode {
            // Nobody else can read what goes by a socket of this machine.
            _ if matches!(host, Host::Unix(_)) => vec![Way::Plain],
            Mode::Disable => vec![Way::Plain],
            Mode::Allow => vec![Way::Plain, Way::Encrypted(connector)],
            Mode::Prefer => vec![Way::EncryptedIfSpoken(connector), Way::Plain],
            Mode::Require | Mode::VerifyCa | Mode::VerifyFull => vec![Way::Encrypted(connector)],
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.mode, f)
    }
}

/// Believes what one of these authorities has signed, for whatever host; or everybody, where there are none. That the server
/// has the key of its certificate is checked in any case.
#[derive(Debug)]
struct Verifier {
    roots: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn trust(roots: Option<RootCertStore>) -> Trust {
        let algorithms = ringfence_tls::provider().signature_verification_algorithms;
        Trust::Verifier(Arc::new(Self { roots, algorithms }))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let certificate = ParsedCertificate::try_from(certificate)?;
            let known = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, known)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

#[cfg(test)]
mod tests {
    use ringfence_servers::{Postgres, PostgresOptions};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::link::tests::{ask, link};

    /// Whether a connection by this URL is encrypted, by the server's own account.
    async fn is_encrypted(url: &str) -> Result<bool> {
        let sql = "SELECT ssl::text FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()";
        Ok(ask(&*link(url)?, sql).await? == "true")
    }

    async fn refusal(url: &str) -> Error {
        is_encrypted(url).await.expect_err(url)
    }

    fn shown(files: [&std::path::Path; 3]) -> [String; 3] {
        files.map(|file| file.display().to_string())
    }

    /// What stands before the parameters of a server's URL, by the name or the address of this machine.
    fn place(server: &Postgres, host: &str) -> String {
        format!("postgres://postgres@{host}:{}/postgres", server.port())
    }

    #[tokio::test]
    async fn a_server_is_believed_as_the_mode_says() {
        let Some(server) = PostgresOptions::new().tls().start().await else { return };
        let Some(other) = PostgresOptions::new().tls().start().await else { return };
        let [ca, ..] = shown(server.certificates().unwrap());
        let [strange, ..] = shown(other.certificates().unwrap());
        // Its certificate is for the address, and not for the name.
        let (address, name) = (place(&server, "127.0.0.1"), place(&server, "localhost"));
        for url in [
            server.url(),
            format!("{name}?sslmode=verify-ca&sslrootcert={ca}"),
            format!("{name}?sslmode=require&sslrootcert={ca}"),
            format!("{name}?sslmode=require"),
            format!("{name}?sslmode=prefer"),
            // It turns away whoever comes without, and is tried again with it.
            format!("{name}?sslmode=allow"),
            name.clone(),
        ] {
            assert!(is_encrypted(&url).await.expect(&url), "{url}");
        }
        for (url, said) in [
            (format!("{name}?sslmode=verify-full&sslrootcert={ca}"), "is for another host"),
            (format!("{address}?sslmode=verify-full&sslrootcert={strange}"), "?sslrootcert=/path.pem"),
            (format!("{address}?sslmode=verify-ca&sslrootcert={strange}"), "?sslrootcert=/path.pem"),
            (format!("{address}?sslmode=require&sslrootcert={strange}"), "?sslrootcert=/path.pem"),
            (format!("{address}?sslmode=verify-full"), "?sslrootcert=/path.pem"),
            (format!("{address}?sslrootcert=system"), "?sslrootcert=/path.pem"),
            (format!("{address}?sslmode=disable"), "pg_hba.conf"),
        ] {
            let error = refusal(&url).await;
            let is_refused = error.kind() == ErrorKind::Refused && error.to_string().contains(said);
            assert!(is_refused, "{url}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_server_without_tls_is_spoken_to_where_the_mode_allows_it() {
        let Some(server) = Postgres::start().await else { return };
        let url = server.url();
        for mode in ["disable", "allow", "prefer"] {
            assert!(!is_encrypted(&format!("{url}?sslmode={mode}")).await.expect(mode), "{mode}");
        }
        let error = refusal(&format!("{url}?sslmode=require")).await;
        assert!(error.kind() == ErrorKind::InvalidUrl && error.to_string().contains("ssl = on"), "{error:?}");
        let socket = format!("{}&sslmode=verify-full", server.socket_url());
        assert!(!is_encrypted(&socket).await.expect(&socket), "nobody listens on a socket of this machine");
    }

    #[tokio::test]
    async fn a_server_may_ask_who_we_are() {
        let Some(server) = PostgresOptions::new().client_certificates().start().await else { return };
        let Some(other) = PostgresOptions::new().tls().start().await else { return };
        assert!(is_encrypted(&server.url()).await.unwrap());
        let [ca, ..] = shown(server.certificates().unwrap());
        let [_, cert, key] = shown(other.certificates().unwrap());
        let url = format!("{}?sslmode=verify-full&sslrootcert={ca}", place(&server, "127.0.0.1"));
        for url in [url.clone(), format!("{url}&sslcert={cert}&sslkey={key}")] {
            let error = refusal(&url).await;
            let is_refused = error.kind() == ErrorKind::Refused && error.to_string().contains("sslcert=");
            assert!(is_refused, "{url}: {error:?}");
        }
    }

    /// Somebody between us and the server says what he likes before the encryption begins.
    #[tokio::test]
    async fn what_is_said_before_the_encryption_is_not_listened_to() {
        for (said, kind) in [
            (&b"SN\0\0\0\x05Z"[..], ErrorKind::Refused),
            (&b"E\0\0\0\x05"[..], ErrorKind::Corrupt),
            (&b""[..], ErrorKind::Unavailable),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("postgres://ann@{}/db?sslmode=require", listener.local_addr().unwrap());
            let between = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 8];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(request, [0, 0, 0, 8, 4, 210, 22, 47]);
                stream.write_all(said).await.unwrap();
            };
            let (error, ()) = tokio::join!(refusal(&url), between);
            assert_eq!(error.kind(), kind, "{said:?}: {error:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_parameters_is_said() {
        for (params, said) in [
            (
                "sslmode=verify-fall",
                "sslmode=\"verify-fall\" is unknown, did you mean \"verify-full\"? Known: disable, allow",
            ),
            ("sslmode=on", "sslmode=\"on\" is unknown. Known: disable, allow"),
            ("sslmode=disable&sslcert=/c", "sslcert= is about TLS, and sslmode=disable does without"),
            ("sslmode=verify-ca", "verify-ca needs sslrootcert="),
            ("sslmode=verify-ca&sslrootcert=system", "verify-ca needs sslrootcert="),
            ("sslmode=require&sslrootcert=system", "write sslmode=verify-full"),
            ("sslrootcert=/dev/null", "sslmode=prefer, the usual one, believes everybody"),
            ("sslmode=allow&sslrootcert=/dev/null", "write sslmode=verify-full"),
            ("sslmode=verify-full&sslrootcert=/no/such", "sslrootcert=/no/such cannot be read"),
            ("sslmode=verify-full&sslrootcert=/dev/null", "has no certificate in it"),
            ("sslcert=/dev/null", "sslcert= needs sslkey= beside it"),
        ] {
            let error =
                Tls::of(&BackendUrl::parse(&format!("postgres://one?{params}")).unwrap()).unwrap_err();
            let is_said = error.kind() == ErrorKind::InvalidUrl && error.to_string().contains(said);
            assert!(is_said, "{params}: {error}");
        }
    }
}
