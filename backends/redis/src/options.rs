//! From a URL to a server.

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    TlsCertificates,
};
use ringfence_core::{BackendUrl, Error, ErrorKind, Result, nearest};

use crate::keys::Keys;
use crate::tls::{self, TLS_PARAMS};

/// The parameters of a Redis URL, beside those of the hall.
pub const PARAMS: &[&str] = &["keys", "db", "ca", "cert", "key"];

const DEFAULT_PORT: u16 = 6379;

/// Which server, as whom, and how names become keys.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) server: ConnectionInfo,
    pub(crate) keys: Keys,
    /// The URL as it may be shown.
    pub(crate) shown: String,
}

impl Options {
    pub(crate) fn parse(url: &BackendUrl) -> Result<Self> {
        let keys = match url.param("keys") {
            None | Some("encoded") => Keys::Encoded,
            Some("verbatim") => Keys::Verbatim,
            Some(other) => {
                let guess = nearest(other, &["verbatim", "encoded"])
                    .map(|near| format!(", did you mean {near:?}?"))
                    .unwrap_or_default();
                return Err(invalid(format!(
                    "keys={other:?} is neither \"encoded\" nor \"verbatim\"{guess}"
                )));
            }
        };
        let server = match url.scheme() {
            "redis+unix" => Access::parse(url, "", false)?.at_socket(socket(url)?)?,
            scheme => {
                let [host] = url.hosts() else {
                    return Err(invalid(format!(
                        "{scheme}: takes one server, this one has {}: write {scheme}://host:6379",
                        url.hosts().len()
                    )));
                };
                let path = url.path().strip_prefix('/').unwrap_or_default();
                Access::parse(url, path, scheme == "rediss")?.at_host(host)?
            }
        };
        Ok(Self { server, keys, shown: url.to_string() })
    }
}

fn socket(url: &BackendUrl) -> Result<&str> {
    if !url.hosts().is_empty() {
        return Err(invalid(
            "redis+unix: takes the path of a socket and no host: write redis+unix:///run/redis.sock"
                .to_owned(),
        ));
    }
    if !url.path().starts_with('/') {
        return Err(invalid(format!(
            "redis+unix: takes the absolute path of a socket, {:?} is none",
            url.path()
        )));
    }
    Ok(url.path())
}

/// How each server of a URL is spoken to: as whom, about which database, and whether by TLS.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    settings: RedisConnectionInfo,
    tls: Option<TlsCertificates>,
}

impl Access {
    /// From a URL, in whose path the database may stand.
    pub(crate) fn parse(url: &BackendUrl, db: &str, has_tls: bool) -> Result<Self> {
        let db = match (db, url.param("db")) {
            (path, None) => path,
            ("", Some(db)) => db,
            (_, Some(_)) => {
                return Err(invalid(
                    "the database stands in the URL twice: in its path and as db=".to_owned(),
                ));
            }
        };
        let db: u16 = if db.is_empty() { Ok(0) } else { db.parse() }
            .map_err(|_| invalid(format!("{db:?} is no database: it is a number, as in redis://host/0")))?;
        let mut settings =
            RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3).set_db(db.into());
        if let Some(user) = url.user() {
            settings = settings.set_username(user);
        }
        if let Some(password) = url.password() {
            settings = settings.set_password(password);
        }
        if !has_tls && let Some(param) = TLS_PARAMS.iter().find(|param| url.param(param).is_some()) {
            let scheme = url.scheme();
            return Err(invalid(format!(
                "{param}= is about TLS, which {scheme}: has not: write rediss://host"
            )));
        }
        let tls = has_tls.then(|| tls::certificates(url)).transpose()?;
        Ok(Self { settings, tls })
    }

    /// A server on a host, which is written with its port or without.
    pub(crate) fn at_host(&self, host: &str) -> Result<ConnectionInfo> {
        let (host, port) = split_port(host)?;
        let Some(certificates) = &self.tls else { return self.at(ConnectionAddr::Tcp(host, port)) };
        let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
        // The driver's own way to give certificates to an address.
        let client = Client::build_with_tls(self.at(address)?, certificates.clone())
            .map_err(|error| invalid("its TLS parameters are of no use".to_owned()).because(error))?;
        Ok(client.get_connection_info().clone())
    }

    fn at_socket(&self, path: &str) -> Result<ConnectionInfo> {
        self.at(ConnectionAddr::Unix(path.into()))
    }

    fn at(&self, address: ConnectionAddr) -> Result<ConnectionInfo> {
        let server = address
            .into_connection_info()
            .map_err(|error| invalid("it names no server".to_owned()).because(error))?;
        Ok(server.set_redis_settings(self.settings.clone()))
    }
}

fn split_port(host: &str) -> Result<(String, u16)> {
    let (name, port) = match host.rsplit_once(':') {
        // The colons of an address of version 6 stand in brackets.
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(invalid(format!("{port:?} is no port: it is a number from 1 to 65535"))),
        },
    };
    let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    if name.is_empty() {
        return Err(invalid(format!("{host:?} names no host: write redis://host:6379")));
    }
    Ok((name.to_owned(), port))
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
    fn a_url_says_which_server_and_as_whom() {
        for (url, address, db) in [
            ("redis://one", "one:6379", 0),
            ("redis://one:7000/3", "one:7000", 3),
            ("redis://[::1]:7000", "::1:7000", 0),
            ("redis://ann:secret@one?db=2&keys=verbatim", "one:6379", 2),
            ("redis+unix:///run/redis.sock?db=1", "/run/redis.sock", 1),
        ] {
            let options = parse(url).unwrap();
            assert_eq!(options.server.addr().to_string(), address, "{url}");
            assert_eq!(options.server.redis_settings().db(), db, "{url}");
            assert!(!format!("{options:?}").contains("secret"), "{options:?}");
        }
        let options = parse("redis://ann:se%3Acret@one").unwrap();
        let settings = options.server.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("ann"), Some("se:cret")));
        assert_eq!(options.shown, "redis://ann:***@one");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, hint) in [
            ("redis:", "takes one server"),
            ("redis://one,two", "takes one server, this one has 2"),
            ("redis://one:port", "no port"),
            ("redis://one:0", "no port"),
            ("redis://:6379", "names no host"),
            ("redis://one/orders", "no database"),
            ("redis://one/1?db=2", "twice"),
            ("redis://one?keys=verbatin", "did you mean \"verbatim\"?"),
            ("redis://one?ca=/ca.pem", "ca= is about TLS, which redis: has not: write rediss://"),
            ("rediss://one?ca=/no/such/file", "ca=/no/such/file cannot be read"),
            ("rediss://one?ca=/dev/null", "ca=/dev/null has no certificate"),
            ("rediss://one?cert=/dev/null", "cert= needs key="),
            ("rediss://one?key=/dev/null", "key= needs cert="),
            ("redis+unix://one/run/redis.sock", "no host"),
            ("redis+unix:run/redis.sock", "absolute"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
