//! From a URL to a server.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo};
use ringfence_core::{BackendUrl, Error, ErrorKind, Result, nearest};

use crate::keys::Keys;

/// The parameters of a Redis URL, beside those of the hall.
pub const PARAMS: &[&str] = &["keys", "db"];

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
        let (address, db) = match url.scheme() {
            "redis+unix" => {
                if !url.hosts().is_empty() {
                    return Err(invalid(
                        "redis+unix: takes the path of a socket and no host: write redis+unix:///run/redis.sock".to_owned(),
                    ));
                }
                if !url.path().starts_with('/') {
                    return Err(invalid(format!(
                        "redis+unix: takes the absolute path of a socket, {:?} is none",
                        url.path()
                    )));
                }
                (ConnectionAddr::Unix(url.path().into()), url.param("db").unwrap_or_default())
            }
            scheme => {
                let [host] = url.hosts() else {
                    return Err(invalid(format!(
                        "{scheme}: takes one server, this one has {}: write {scheme}://host:6379",
                        url.hosts().len()
                    )));
                };
                let (host, port) = split_port(host)?;
                let path = url.path().strip_prefix('/').unwrap_or_default();
                let db = match (path, url.param("db")) {
                    (path, None) => path,
                    ("", Some(db)) => db,
                    (_, Some(_)) => {
                        return Err(invalid(
                            "the database stands in the URL twice: in its path and as db=".to_owned(),
                        ));
                    }
                };
                (ConnectionAddr::Tcp(host, port), db)
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
        let server = address
            .into_connection_info()
            .map_err(|error| invalid("it names no server".to_owned()).because(error))?
            .set_redis_settings(settings);
        Ok(Self { server, keys, shown: url.to_string() })
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
            ("redis+unix://one/run/redis.sock", "no host"),
            ("redis+unix:run/redis.sock", "absolute"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
