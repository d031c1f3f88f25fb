//! From a URL to the servers.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use ringfence_core::{BackendUrl, Error, ErrorKind, Result, split_port};
use tokio_postgres::Config;
use tokio_postgres::config::SslMode;

use crate::advisory::Keys;
use crate::schema::Schema;
use crate::tls::Tls;

/// The parameters of a PostgreSQL URL, beside those of the hall.
pub const PARAMS: &[&str] = &[
    "schema",
    "reclaim",
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "application_name",
    "connect_timeout",
    "target_session_attrs",
    "recipe",
    "keys",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
];

/// The port of a server, where the URL names none.
const PORT: u16 = 5432;

/// What the server is told that we are.
const APPLICATION: &str = "ringfence";

/// How long one host may take until a connection to it is ready, where the URL does not say.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// The longest that it may say.
const CONNECT_PATIENCE_MAX: Duration = Duration::from_mins(1);

/// Which servers, as whom, and where among their data.
#[derive(Debug)]
pub(crate) struct Options {
    /// In the order of the URL. One of them is the primary.
    pub(crate) hosts: Vec<Host>,
    /// As whom, to which database. Its hosts and its TLS are not used.
    pub(crate) login: Config,
    pub(crate) tls: Tls,
    pub(crate) schema: Schema,
    pub(crate) connect_patience: Duration,
    pub(crate) recipe: Recipe,
    /// The URL as it may be shown.
    pub(crate) shown: String,
}

/// What a lock is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recipe {
    /// Rows. Where it `reclaims`, a lease ends with a connection of its process, and not with its TTL alone.
    Leases { reclaims: bool },
    /// The server's own locks.
    Advisory(Keys),
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Tcp(String, u16),
    /// The file of a socket.
    Unix(PathBuf),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Options {
    pub(crate) fn parse(url: &BackendUrl) -> Result<Self> {
        refuse_standbys(url)?;
        Ok(Self {
            hosts: hosts(url)?,
            login: login(url)?,
            tls: Tls::of(url)?,
            schema: Schema::new(url.param("schema").unwrap_or(Schema::DEFAULT))?,
            connect_patience: connect_patience(url)?,
            recipe: recipe(url)?,
            shown: url.to_string(),
        })
    }
}

/// The hosts of the URL or, as libpq has it, those of `host=`; each of them a name, an address or the directory of a socket.
fn hosts(url: &BackendUrl) -> Result<Vec<Host>> {
    let port = match url.param("port") {
        None => PORT,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err(invalid(format!("port={port:?} is no port: it is a number from 1 to 65535"))),
        },
    };
    let host = |written: &str| {
        let written = percent_decode_str(written)
            .decode_utf8()
            .map_err(|_| invalid(format!("the host {written:?} is not UTF-8")))?;
        if !written.starts_with('/') {
            let (host, port) = split_port(&written, port)?;
            return Ok(Host::Tcp(host, port));
        }
        // What may stand behind a directory is a port, because that is a part of the file's name.
        let (directory, port) = match written.rsplit_once(':') {
            Some((directory, port)) => (directory, split_port(&format!("socket:{port}"), PORT)?.1),
            None => (&*written, port),
        };
        Ok(Host::Unix(PathBuf::from(directory).join(format!(".s.PGSQL.{port}"))))
    };
    match (url.hosts(), url.param("host")) {
        ([], None) => Err(invalid(
            "postgres: takes a server: write postgres://user@host/database, or postgres:///database?host=/run/postgresql \
             for a socket"
                .to_owned(),
        )),
        ([], Some(written)) => written.split(',').map(host).collect(),
        (written, None) => written.iter().map(|written| host(written)).collect(),
        (_, Some(_)) => Err(invalid("the host stands in the URL twice: before its path and as host=".to_owned())),
    }
}

fn login(url: &BackendUrl) -> Result<Config> {
    let database = url.path().strip_prefix('/').filter(|path| !path.is_empty());
    let mut login = Config::new();
    // TLS is spoken below the driver.
    login.ssl_mode(SslMode::Disable);
    login.application_name(url.param("application_name").unwrap_or(APPLICATION));
    if let Some(user) = once("user", url.user(), url.param("user"))? {
        login.user(user);
    }
    if let Some(password) = once("password", url.password(), url.param("password"))? {
        login.password(password);
    }
    if let Some(database) = once("dbname", database, url.param("dbname"))? {
        login.dbname(database);
    }
    Ok(login)
}

/// What may stand in a URL in its own place or among the parameters.
fn once<'a>(param: &str, placed: Option<&'a str>, named: Option<&'a str>) -> Result<Option<&'a str>> {
    match (placed, named) {
        (Some(_), Some(_)) => {
            Err(invalid(format!("{param}= stands in the URL twice: in its own place and as a parameter")))
        }
        (placed, named) => Ok(placed.or(named)),
    }
}

/// Errors with [`ErrorKind::InvalidUrl`].
pub(crate) fn recipe(url: &BackendUrl) -> Result<Recipe> {
    let is_verbatim = url.choice("keys", ["encoded", "verbatim"])?;
    let reclaims = url.choice("reclaim", ["ttl", "connection"])?;
    match (url.choice("recipe", ["leases", "advisory"])?, url.param("keys")) {
        (true, _) if reclaims => Err(invalid(
            "reclaim=connection says nothing to recipe=advisory, whose locks end with their connection anyway: leave it out"
                .to_owned(),
        )),
        (true, _) => Ok(Recipe::Advisory(if is_verbatim { Keys::Verbatim } else { Keys::Hashed })),
        (false, None) => Ok(Recipe::Leases { reclaims }),
        (false, Some(_)) => {
            Err(invalid("keys= is for advisory locks: leave it out, or write recipe=advisory".to_owned()))
        }
    }
}

fn connect_patience(url: &BackendUrl) -> Result<Duration> {
    let Some(written) = url.param("connect_timeout") else { return Ok(CONNECT_PATIENCE) };
    let patience = written.parse().ok().map(Duration::from_secs);
    patience.filter(|patience| !patience.is_zero() && *patience <= CONNECT_PATIENCE_MAX).ok_or_else(|| {
        invalid(format!(
            "connect_timeout={written:?} is out of range: it is from 1 to {} seconds, without a unit",
            CONNECT_PATIENCE_MAX.as_secs()
        ))
    })
}

/// URLs made for libpq may say that they mean the primary. That is what we look for in any case, and nothing else would do.
fn refuse_standbys(url: &BackendUrl) -> Result<()> {
    match url.param("target_session_attrs") {
        None | Some("primary" | "read-write") => Ok(()),
        Some(other) => Err(invalid(format!(
            "target_session_attrs={other:?} will not do: locks are taken on the primary; leave it out, or write read-write"
        ))),
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
        for (url, hosts) in [
            ("postgres://one", "one:5432"),
            ("postgresql://ann@one:7,[::1]/db", "one:7 [::1]:5432"),
            ("postgres://one,two:8/db?port=9", "one:9 two:8"),
            ("postgres:///db?host=one,two:8", "one:5432 two:8"),
            ("postgres:///db?host=/run/postgresql", "/run/postgresql/.s.PGSQL.5432"),
            ("postgres://ann@/db?host=/run/pg&port=7", "/run/pg/.s.PGSQL.7"),
            ("postgres://%2Frun%2Fpg:7/db", "/run/pg/.s.PGSQL.7"),
        ] {
            let options = parse(url).expect(url);
            let shown: Vec<_> = options.hosts.iter().map(Host::to_string).collect();
            assert_eq!(shown.join(" "), hosts, "{url}");
        }
        for url in ["postgres://ann:s%3Acret@one/db", "postgres://one?user=ann&password=s:cret&dbname=db"] {
            let options = parse(url).unwrap();
            assert_eq!((options.login.get_user(), options.login.get_dbname()), (Some("ann"), Some("db")));
            assert_eq!(options.login.get_password(), Some(&b"s:cret"[..]));
            assert_eq!(options.login.get_application_name(), Some("ringfence"));
            assert!(!format!("{options:?}").contains("cret"), "{options:?}");
        }
        let options = parse("postgres://one?connect_timeout=7&target_session_attrs=read-write").unwrap();
        assert_eq!(options.connect_patience, Duration::from_secs(7));
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said() {
        for (url, hint) in [
            ("postgres:", "takes a server"),
            ("postgres:///db", "takes a server"),
            ("postgres://one:port", "no port"),
            ("postgres://one?port=0", "no port"),
            ("postgres://one?host=two", "stands in the URL twice"),
            ("postgres://%2Frun:x/db", "no port"),
            ("postgres://ann@one?user=bob", "user= stands in the URL twice"),
            ("postgres://ann:a@one?password=b", "password= stands in the URL twice"),
            ("postgres://one/db?dbname=other", "dbname= stands in the URL twice"),
            ("postgres://one?connect_timeout=0", "from 1 to 60 seconds"),
            ("postgres://one?connect_timeout=5s", "from 1 to 60 seconds"),
            ("postgres://one?connect_timeout=61", "from 1 to 60 seconds"),
            ("postgres://one?target_session_attrs=standby", "locks are taken on the primary"),
            ("postgres://one?schema=a-b", "lower-case letters"),
            ("postgres://one?reclaim=conection", "did you mean \"connection\"?"),
            ("postgres://one?recipe=advisory&reclaim=connection", "says nothing to recipe=advisory"),
            ("postgres://one?keys=verbatim", "write recipe=advisory"),
        ] {
            let error = parse(url).expect_err(url);
            let is_said = error.kind() == ErrorKind::InvalidUrl && error.to_string().contains(hint);
            assert!(is_said, "{url}: {error}");
        }
    }
}
