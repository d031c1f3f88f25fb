use std::fs::{self, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// PEM files of a server, or of several, and of the authority that vouches for it, made for one test.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    /// Where they are, until the last of those who use them is gone.
    _folder: Arc<TempDir>,
}

impl Certificates {
    /// Makes them for servers at this address.
    pub(crate) fn make(address: Ipv4Addr) -> Self {
        let new_key = || KeyPair::generate().expect("a key can be made");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Unlike the server's, which would seem to have signed itself.
        authority.distinguished_name.push(DnType::CommonName, "Ringfence tests");
        let authority =
            CertifiedIssuer::self_signed(authority, new_key()).expect("an authority signs itself");
        let (server, key) = (CertificateParams::new([address.to_string()]), new_key());
        let server = server.and_then(|server| server.signed_by(&key, &authority));
        let certificate = server.expect("an authority signs a server").pem();

        let folder = TempDir::new().expect("a temporary directory");
        let write = |name: &str, text: String| {
            let file = folder.path().join(name);
            fs::write(&file, text).expect("a temporary file can be written");
            file
        };
        let key = write("server.key", key.serialize_pem());
        // PostgreSQL and its clients would not have one that others may read.
        fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("a temporary file is ours");
        Self {
            authority: write("authority.pem", authority.pem()),
            certificate: write("server.pem", certificate),
            key,
            _folder: Arc::new(folder),
        }
    }

    /// The settings of redis.conf, each with its value, of a server that speaks TLS with them on this port, and nothing else.
    /// What it calls in turn, where its settings say that it does so by TLS, has to be of the same authority.
    pub(crate) fn settings(&self, port: u16) -> [(&'static str, String); 6] {
        let file = |file: &Path| file.display().to_string();
        [
            ("port", "0".to_owned()),
            ("tls-port", port.to_string()),
            ("tls-auth-clients", "no".to_owned()),
            ("tls-cert-file", file(&self.certificate)),
            ("tls-key-file", file(&self.key)),
            ("tls-ca-cert-file", file(&self.authority)),
        ]
    }
}
