//! From a URL to members of a cluster.

use ringfence_core::{BackendUrl, Error, ErrorKind, Result, split_port};
use tonic::transport::{ClientTlsConfig, Endpoint};

use crate::keys::Keys;
use crate::servers::{CONNECT_PATIENCE, Login, Member};
use crate::tls;

/// The parameters of an etcd URL, beside those of the hall.
pub const PARAMS: &[&str] = &["keys", "ca", "cert", "key"];

/// The port for clients, where the URL names none.
const PORT: u16 = 2379;

/// What all keys of ours begin with, where the URL names nothing else.
const PREFIX: &str = "ringfence";

/// Which members, as whom, and how names become keys.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) members: Vec<Member>,
    pub(crate) login: Option<Login>,
    pub(crate) keys: Keys,
    /// The URL as it may be shown.
    pub(crate) shown: String,
}

impl Options {
    pub(crate) fn parse(url: &BackendUrl) -> Result<Self> {
        let is_tls = url.scheme() == "etcds";
        if !is_tls && let Some(param) = ringfence_tls::PARAMS.first_of(url) {
            return Err(invalid(format!("etcd: has no {param}=, which is about TLS: write etcds://host")));
        }
        let tls = is_tls.then(|| tls::config(url)).transpose()?;
        let members =
            url.hosts().iter().map(|host| member(host, tls.as_ref())).collect::<Result<Vec<_>>>()?;
        if members.is_empty() {
            return Err(invalid(format!(
                "{scheme}: takes a member of the cluster, or better all: write {scheme}://host:{PORT},host:{PORT}",
                scheme = url.scheme()
            )));
        }
        let login = match (url.user(), url.password()) {
            (None, None) => None,
            (Some(name), Some(password)) => Some(Login::new(name, password)),
            _ => {
                return Err(invalid(
                    "etcd knows its users by a name and a password: write user:password@ before the hosts"
                        .to_owned(),
                ));
            }
        };
        Ok(Self { members, login, keys: keys(url)?, shown: url.to_string() })
    }
}

fn keys(url: &BackendUrl) -> Result<Keys> {
    let prefix = match url.path().trim_matches('/') {
        "" => PREFIX,
        prefix => prefix,
    };
    let is_verbatim = url.choice("keys", ["encoded", "verbatim"])?;
    Ok(if is_verbatim { Keys::verbatim(prefix) } else { Keys::encoded(prefix) })
}

fn member(written: &str, tls: Option<&ClientTlsConfig>) -> Result<Member> {
    let (host, port) = split_port(written, PORT)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let no_host = || invalid(format!("{written:?} names no host: write host:{PORT}"));
    let endpoint =
        Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|error| no_host().because(error))?;
    let endpoint = endpoint.connect_timeout(CONNECT_PATIENCE).tcp_nodelay(true);
    let endpoint = match tls {
        None => endpoint,
        Some(tls) => endpoint
            .tls_config(tls.clone())
            .map_err(|error| invalid("its TLS parameters are of no use".to_owned()).because(error))?,
    };
    Ok(Member { endpoint, address })
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Options> {
        Options::parse(&BackendUrl::parse(url).unwrap())
    }

    #[test]
    fn a_url_says_which_members_and_as_whom() {
        let options = parse("etcd://ann:se%3Acret@one,two:7000,[::1],[fd00::1]:7001/locks").unwrap();
        let members: Vec<&str> = options.members.iter().map(|member| &*member.address).collect();
        assert_eq!(members, ["one:2379", "two:7000", "[::1]:2379", "[fd00::1]:7001"]);
        assert_eq!(options.keys, Keys::encoded("locks"));
        assert_eq!(options.shown, "etcd://ann:***@one,two:7000,[::1],[fd00::1]:7001/locks");
        assert!(!format!("{options:?}").contains("cret"), "{options:?}");
        assert_eq!(parse("etcd://one").unwrap().keys, Keys::encoded("ringfence"));
        assert_eq!(parse("etcd://one?keys=verbatim").unwrap().keys, Keys::verbatim("ringfence"));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, hint) in [
            ("etcd:", "takes a member"),
            ("etcd://one:port", "no port"),
            ("etcd://one:0", "no port"),
            ("etcd://:2379", "names no host"),
            ("etcd://o%20ne", "names no host"),
            ("etcd://ann@one", "user:password@"),
            ("etcd://one?keys=verbatin", "did you mean \"verbatim\"?"),
            ("etcd://one?ca=/ca.pem", "no ca=, which is about TLS: write etcds://"),
            ("etcds://one?ca=/no/such/file", "ca=/no/such/file cannot be read"),
            ("etcds://one?ca=/dev/null", "ca=/dev/null has no certificate"),
            ("etcds://one?cert=/dev/null", "cert= needs key="),
            ("etcds://one?key=/dev/null", "key= needs cert="),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
