use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// PEM files of a server and of the authority that vouches for it, made for one test.
#[derive(Clone, Debug)]
pub(crate) struct Certificates {
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Makes them in a folder, for a server at this address.
    pub(crate) fn make(folder: &Path, address: Ipv4Addr) -> Self {
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

        let write = |name: &str, text: String| {
            let file = folder.join(name);
            std::fs::write(&file, text).expect("a temporary file can be written");
            file
        };
        Self {
            authority: write("authority.pem", authority.pem()),
            certificate: write("server.pem", certificate),
            key: write("server.key", key.serialize_pem()),
        }
    }
}
