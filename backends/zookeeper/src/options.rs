//! From a URL to the servers.

use std::fmt;

use ringfence_core::{BackendUrl, Error, ErrorKind, Result, split_port};

use crate::keys::{Keys, Naming};
use crate::tls::Tls;
use crate::wire::Access;

/// The parameters of a ZooKeeper URL, beside those of the hall.
pub const PARAMS: &[&str] = &["keys", "tls", "ca", "cert", "key"];

/// The port of a server, where the URL names none.
const PORT: u16 = 2181;

/// Which servers, as whom, and where among their nodes.
#[derive(Debug)]
pub(crate) struct Options {
    /// Hosts and ports, in the order of the URL.
    pub(crate) servers: Vec<(String, u16)>,
    pub(crate) login: Option<Login>,
    pub(crate) tls: Option<Tls>,
    pub(crate) keys: Keys,
    /// The URL as it may be shown.
    pub(crate) shown: String,
}

/// A user and a password, with a colon between.
#[derive(Clone)]
pub(crate) struct Login(String);

impl Login {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Options {
    pub(crate) fn parse(url: &BackendUrl) -> Result<Self> {
        let is_verbatim = url.choice("keys", ["encoded", "verbatim"])?;
        let naming = if is_verbatim { Naming::Verbatim } else { Naming::Encoded };
        if url.hosts().is_empty() {
            return Err(invalid(
                "zookeeper: takes a server, or better all of an ensemble: write zookeeper://host:2181,host:2181".into(),
            ));
        }
        let servers: Vec<_> = url.hosts().iter().map(|host| split_port(host, PORT)).collect::<Result<_>>()?;
        let login = match (url.user(), url.password()) {
            (None, None) => None,
            (Some(user), Some(_)) if user.contains(':') => {
                return Err(invalid("a user of ZooKeeper's has no colon in the name".into()));
            }
            (Some(user), Some(password)) => Some(Login(format!("{user}:{password}"))),
            (_, _) => {
                return Err(invalid(
                    "a user and a password go together: write zookeeper://user:password@host".into(),
                ));
            }
        };
        let access = if login.is_some() { Access::Creator } else { Access::Anyone };
        let keys = Keys::new(naming, url.path().trim_end_matches('/'), access)?;
        Ok(Self { servers, login, tls: Tls::of(url)?, keys, shown: url.to_string() })
    }
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
    fn a_url_says_which_servers_and_as_whom() {
        let options = parse("zookeeper://ann:s%3Acret@one,two:7000,[::1]:7001/apps/locks/").unwrap();
        let servers = [("one".to_owned(), 2181), ("two".to_owned(), 7000), ("::1".to_owned(), 7001)];
        assert_eq!(options.servers, servers);
        assert_eq!(options.login.as_ref().map(Login::as_str), Some("ann:s:cret"));
        assert_eq!(options.shown, "zookeeper://ann:***@one,two:7000,[::1]:7001/apps/locks/");
        assert!(!format!("{options:?}").contains("cret"), "{options:?}");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, hint) in [
            ("zookeeper:", "takes a server"),
            ("zookeeper://one:port", "no port"),
            ("zookeeper://one,two:0", "no port"),
            ("zookeeper://one,:2181", "names no host"),
            ("zookeeper://ann@one", "go together"),
            ("zookeeper://:secret@one", "go together"),
            ("zookeeper://a%3Ab:secret@one", "no colon"),
            ("zookeeper://one?keys=verbatin", "did you mean \"verbatim\"?"),
            ("zookeeper://one?ca=/ca.pem", "ca=, which is about TLS, and no tls=on"),
            ("zookeeper://one?tls=yes", "neither \"off\" nor \"on\""),
            ("zookeeper://one?tls=on&ca=/no/such/file", "ca=/no/such/file cannot be read"),
            ("zookeeper://one?tls=on&ca=/dev/null", "has no certificate in it"),
            ("zookeeper://one?tls=on&cert=/dev/null", "cert= needs key= beside it"),
            ("zookeeper://one//locks", "no name between two slashes"),
            ("zookeeper://one/locks/..", "\"..\""),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
