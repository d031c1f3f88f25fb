//! From a URL to a server.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::Arc;

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    TlsCertificates,
};
use ringfence_core::{BackendUrl, Error, ErrorKind, Quorum, Result, split_port};

use crate::keys::Keys;
use crate::route::Route;
use crate::sentinel::Sentinels;
use crate::tls;

/// The parameters of a Redis URL, beside those of the hall.
pub const PARAMS: &[&str] =
    &["keys", "db", "replicas", "tls", "ca", "cert", "key", "sentinel_user", "sentinel_password"];

/// The parameters of a `redlock:` URL.
pub const REDLOCK_PARAMS: &[&str] = &["keys", "db", "quorum", "tls", "ca", "cert", "key"];

/// With fewer nodes none may fail.
const NODES_MIN: usize = 3;

/// Why a user alone is refused: the driver would not say who we are, and the server would take us for another one.
const NEEDS_PASSWORD: &str =
    "whoever logs in names a password, and for a user who has none (nopass) any will do";

/// Parameters that only one scheme knows.
const SENTINEL_PARAMS: [&str; 2] = ["sentinel_user", "sentinel_password"];

/// The port of a server, and of a Sentinel, where the URL names none.
const SERVER_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Which server, as whom, and how names become keys.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) keys: Keys,
    /// How many replicas have to confirm a lease.
    pub(crate) replicas: Option<NonZeroU8>,
    /// The URL as it may be shown.
    pub(crate) shown: String,
}

/// Where the locks are.
#[derive(Debug)]
pub(crate) enum Target {
    /// On one server at a time.
    Server(Route),
    /// On a cluster, of which the URL names some nodes, and how each node is spoken to.
    Cluster { seeds: Vec<String>, access: Access },
}

impl Options {
    pub(crate) fn parse(url: &BackendUrl) -> Result<Self> {
        let keys = parse_keys(url)?;
        let replicas = url.param("replicas").map(|count| {
            count.parse().map_err(|_| {
                invalid(format!("replicas={count:?} is no number of replicas: it is from 1 to 255"))
            })
        });
        let replicas = replicas.transpose()?;
        let scheme = url.scheme();
        if scheme != "redis+sentinel"
            && let Some(param) = SENTINEL_PARAMS.iter().find(|param| url.param(param).is_some())
        {
            return Err(invalid(format!(
                "{scheme}: has no {param}=, which is about Sentinels: write redis+sentinel://host,host,host/service"
            )));
        }
        let path = url.path().strip_prefix('/').unwrap_or_default();
        let target = match scheme {
            "redis+unix" => Target::Server(Route::At(Access::parse(url, "")?.at_socket(socket(url)?)?)),
            "redis+sentinel" => Target::Server(Route::BySentinels(sentinels(url, path)?)),
            "redis+cluster" => cluster(url, path)?,
            scheme => {
                let [host] = url.hosts() else {
                    return Err(invalid(format!(
                        "{scheme}: takes one server, this one has {}: write {scheme}://host:6379",
                        url.hosts().len()
                    )));
                };
                let (host, port) = split_port(host, SERVER_PORT)?;
                Target::Server(Route::At(Access::parse(url, path)?.at(host, port)?))
            }
        };
        Ok(Self { target, keys, replicas, shown: url.to_string() })
    }

    /// The nodes of a `redlock:` URL, each with the other options of the URL; and how many of them have to agree.
    pub(crate) fn parse_nodes(url: &BackendUrl) -> Result<(Vec<Self>, Quorum)> {
        let keys = parse_keys(url)?;
        let access = Access::parse(url, url.path().strip_prefix('/').unwrap_or_default())?;
        let scheme = if access.tls.is_some() { "rediss" } else { "redis" };
        let mut nodes: Vec<Self> = Vec::new();
        for written in url.hosts() {
            let (host, port) = split_port(written, SERVER_PORT)?;
            let shown = format!("{scheme}://{}", canonical(&host, port));
            if nodes.iter().any(|node| node.shown == shown) {
                return Err(invalid(format!(
                    "{written:?} stands among the nodes twice: it would vote twice; name {} servers that have nothing in \
                     common",
                    url.hosts().len()
                )));
            }
            let target = Target::Server(Route::At(access.at(host, port)?));
            nodes.push(Self { target, keys, replicas: None, shown });
        }
        let count = nodes.len();
        let (Ok(nodes_of_quorum), true) = (u8::try_from(count), count >= NODES_MIN) else {
            return Err(invalid(format!(
                "redlock: takes {NODES_MIN} to {} nodes, this one has {count}: write redlock://one,two,three; for one server \
                 it is redis:",
                u8::MAX
            )));
        };
        if count.is_multiple_of(2) {
            return Err(invalid(format!(
                "redlock: takes an odd number of nodes, this one has {count}: they bear no more failures than {} do",
                count - 1
            )));
        }
        let majority = nodes_of_quorum / 2 + 1;
        let needed = match url.param("quorum") {
            None => majority,
            Some(written) => written.parse().map_err(|_| out_of_range(written, majority, count))?,
        };
        let quorum = Quorum::new(needed, nodes_of_quorum)
            .ok_or_else(|| out_of_range(&needed.to_string(), majority, count))?;
        Ok((nodes, quorum))
    }
}

fn parse_keys(url: &BackendUrl) -> Result<Keys> {
    Ok(if url.choice("keys", ["encoded", "verbatim"])? { Keys::Verbatim } else { Keys::Encoded })
}

fn out_of_range(written: &str, majority: u8, count: usize) -> Error {
    invalid(format!(
        "quorum={written:?} is out of range: of {count} nodes it is {majority}, the majority, to {count}, all of them"
    ))
}

fn sentinels(url: &BackendUrl, path: &str) -> Result<Sentinels> {
    let (service, db) = path.split_once('/').unwrap_or((path, ""));
    if url.hosts().is_empty() || service.is_empty() {
        return Err(invalid(
            "redis+sentinel: takes the Sentinels, and the service that they know the primary by: write \
             redis+sentinel://host:26379,host:26379,host:26379/service"
                .to_owned(),
        ));
    }
    let access = Access::parse(url, db)?;
    let (user, password) = (url.param("sentinel_user"), url.param("sentinel_password"));
    if user.is_some() && password.is_none() {
        return Err(invalid(format!("sentinel_user= needs sentinel_password=: {NEEDS_PASSWORD}")));
    }
    let theirs = Access { settings: login(user, password), tls: access.tls.clone() };
    let (mut addresses, mut named) = (Vec::new(), Vec::new());
    for written in url.hosts() {
        let (host, port) = split_port(written, SENTINEL_PORT)?;
        let shown = canonical(&host, port);
        if named.contains(&shown) {
            return Err(invalid(format!(
                "{written:?} stands among the Sentinels twice: its word would count twice; name each of them once"
            )));
        }
        named.push(shown);
        addresses.push(theirs.at(host, port)?);
    }
    Ok(Sentinels { addresses, service: service.to_owned(), access, is_warned_of: Arc::default() })
}

fn cluster(url: &BackendUrl, path: &str) -> Result<Target> {
    let access = Access::parse(url, path)?;
    if access.settings.db() != 0 {
        return Err(invalid(format!(
            "a cluster has one database, whose number is 0, and not {}: leave it out",
            access.settings.db()
        )));
    }
    let seeds = url.hosts().iter().map(|host| {
        let (host, port) = split_port(host, SERVER_PORT)?;
        Ok(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
    });
    let seeds: Vec<String> = seeds.collect::<Result<_>>()?;
    if seeds.is_empty() {
        return Err(invalid(
            "redis+cluster: takes a node of the cluster, or better several: write redis+cluster://host:6379,host:6379"
                .to_owned(),
        ));
    }
    Ok(Target::Cluster { seeds, access })
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
    pub(crate) fn parse(url: &BackendUrl, db: &str) -> Result<Self> {
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
        if url.user().is_some() && url.password().is_none() {
            // It is not shown, because it may be a password whose colon was forgotten.
            return Err(invalid(format!(
                "a user stands before the @ and no password: write user:password@, or :password@ without a user; {NEEDS_PASSWORD}"
            )));
        }
        let settings = login(url.user(), url.password()).set_db(db.into());
        Ok(Self { settings, tls: tls::of(url)? })
    }

    /// A server, written as `host:port`.
    pub(crate) fn at_address(&self, address: &str) -> Result<ConnectionInfo> {
        let (host, port) = split_port(address, SERVER_PORT)?;
        self.at(host, port)
    }

    /// A server on this host.
    pub(crate) fn at(&self, host: String, port: u16) -> Result<ConnectionInfo> {
        let Some(certificates) = &self.tls else { return self.to(ConnectionAddr::Tcp(host, port)) };
        let address = ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None };
        // The driver's own way to give certificates to an address.
        let client = Client::build_with_tls(self.to(address)?, certificates.clone())
            .map_err(|error| invalid("its TLS parameters are of no use".to_owned()).because(error))?;
        Ok(client.get_connection_info().clone())
    }

    fn at_socket(&self, path: &str) -> Result<ConnectionInfo> {
        self.to(ConnectionAddr::Unix(path.into()))
    }

    fn to(&self, address: ConnectionAddr) -> Result<ConnectionInfo> {
        let server = address
            .into_connection_info()
            .map_err(|error| invalid("it names no server".to_owned()).because(error))?;
        Ok(server.set_redis_settings(self.settings.clone()))
    }
}

fn login(user: Option<&str>, password: Option<&str>) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
    if let Some(user) = user {
        settings = settings.set_username(user);
    }
    if let Some(password) = password {
        settings = settings.set_password(password);
    }
    settings
}

/// The one way to write an address, of the many that there are.
fn canonical(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(address) => SocketAddr::new(address, port).to_string(),
        Err(_) => format!("{}:{port}", host.to_ascii_lowercase()),
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
    fn a_url_says_which_server_and_as_whom() {
        for (url, address, db) in [
            ("redis://one", "one:6379", 0),
            ("redis://one:7000/3", "one:7000", 3),
            ("redis://[::1]:7000", "::1:7000", 0),
            ("redis://ann:secret@one?db=2&keys=verbatim", "one:6379", 2),
            ("redis+unix:///run/redis.sock?db=1", "/run/redis.sock", 1),
        ] {
            let options = parse(url).unwrap();
            let Target::Server(Route::At(server)) = &options.target else { panic!("{options:?}") };
            assert_eq!(server.addr().to_string(), address, "{url}");
            assert_eq!(server.redis_settings().db(), db, "{url}");
            assert!(!format!("{options:?}").contains("secret"), "{options:?}");
        }
        let options = parse("redis://ann:se%3Acret@one").unwrap();
        let Target::Server(Route::At(server)) = &options.target else { panic!("{options:?}") };
        let settings = server.redis_settings();
        assert_eq!((settings.username(), settings.password()), (Some("ann"), Some("se:cret")));
        assert_eq!(options.shown, "redis://ann:***@one");
    }

    #[test]
    fn sentinels_have_a_service_and_users_of_their_own() {
        for url in [
            "redis+sentinel://ann:secret@one,two:7000,[::1]/orders/3?sentinel_user=ben&sentinel_password=hidden",
            "redis+sentinel://ann:secret@one,two:7000,[::1]/orders?sentinel_user=ben&sentinel_password=hidden&db=3",
        ] {
            let options = parse(url).unwrap();
            let Target::Server(Route::BySentinels(found)) = &options.target else { panic!("{options:?}") };
            let shown: Vec<_> = found.addresses.iter().map(|sentinel| sentinel.addr().to_string()).collect();
            assert_eq!(shown, ["one:26379", "two:7000", "::1:26379"]);
            assert_eq!(found.service, "orders");
            let theirs = found.addresses[0].redis_settings();
            assert_eq!((theirs.username(), theirs.password(), theirs.db()), (Some("ben"), Some("hidden"), 0));
            let server = found.access.at("three".to_owned(), 1).unwrap();
            let ours = server.redis_settings();
            assert_eq!((ours.username(), ours.password(), ours.db()), (Some("ann"), Some("secret"), 3));
            let shown = format!("{} {options:?}", options.shown);
            assert!(!shown.contains("secret") && !shown.contains("hidden"), "{shown}");
        }
    }

    fn servers(nodes: &[Options]) -> impl Iterator<Item = &ConnectionInfo> {
        nodes.iter().map(|node| match &node.target {
            Target::Server(Route::At(server)) => server,
            other => panic!("a node is one server: {other:?}"),
        })
    }

    #[test]
    fn every_node_has_the_options_of_the_url() {
        let url = "redlock://ann:secret@One,two:7000,[::1],four,five/3?keys=verbatim&quorum=4";
        let (nodes, quorum) = Options::parse_nodes(&BackendUrl::parse(url).unwrap()).unwrap();
        let addresses: Vec<String> = servers(&nodes).map(|server| server.addr().to_string()).collect();
        assert_eq!(addresses, ["One:6379", "two:7000", "::1:6379", "four:6379", "five:6379"]);
        assert_eq!((quorum.needed(), quorum.nodes()), (4, 5));
        for (node, server) in nodes.iter().zip(servers(&nodes)) {
            let settings = server.redis_settings();
            assert_eq!((settings.username(), settings.password()), (Some("ann"), Some("secret")));
            assert_eq!((settings.db(), node.keys), (3, Keys::Verbatim));
            assert!(!node.shown.contains("secret"), "{}", node.shown);
        }
        let (_, quorum) = Options::parse_nodes(&BackendUrl::parse("redlock://a,b,c").unwrap()).unwrap();
        assert_eq!(quorum.needed(), 2, "the majority, where nothing else is said");
    }

    #[test]
    fn what_is_wrong_with_the_nodes_is_said() {
        for (url, hint) in [
            ("redlock:", "this one has 0"),
            ("redlock://one", "for one server it is redis:"),
            ("redlock://one,two", "3 to 255 nodes, this one has 2"),
            ("redlock://a,b,c,d", "no more failures than 3 do"),
            ("redlock://one,two,one", "\"one\" stands among the nodes twice"),
            ("redlock://one,two,ONE:6379", "\"ONE:6379\" stands among the nodes twice"),
            ("redlock://[::1],two,[0:0:0:0:0:0:0:1]:6379", "twice"),
            ("redlock://a,b,c?quorum=1", "2, the majority, to 3, all of them"),
            ("redlock://a,b,c?quorum=4", "2, the majority, to 3, all of them"),
            ("redlock://a,b,c?quorum=most", "2, the majority, to 3, all of them"),
            ("redlock://a,b,c:0", "no port"),
            ("redlock://a,b,c/orders", "no database"),
            ("redlock://a,b,c?ca=/ca.pem", "redlock: has ca=, which is about TLS, and no tls=on"),
            ("redlock://a,b,c?keys=verbatin", "did you mean \"verbatim\"?"),
        ] {
            let error = Options::parse_nodes(&BackendUrl::parse(url).unwrap()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }

    #[test]
    fn a_cluster_is_found_by_any_of_its_nodes() {
        let options = parse("redis+cluster://ann:secret@one,two:7000,[fd00::1]/0").unwrap();
        let Target::Cluster { seeds, access } = &options.target else { panic!("{options:?}") };
        assert_eq!(seeds[..], ["one:6379", "two:7000", "[fd00::1]:6379"]);
        let node = access.at_address(&seeds[2]).unwrap();
        assert_eq!(node.addr().to_string(), "fd00::1:6379");
        assert_eq!(node.redis_settings().password(), Some("secret"));
        assert!(!format!("{options:?}").contains("secret"), "{options:?}");
    }

    #[test]
    fn whoever_a_url_leads_to_is_spoken_to_by_tls_or_nobody_is() {
        for (params, by_tls) in [("", false), ("tls=off", false), ("tls=on", true)] {
            let is_by_tls = |server: &ConnectionInfo| matches!(server.addr(), ConnectionAddr::TcpTls { .. });
            let options = parse(&format!("redis+sentinel://one,two/orders?{params}")).unwrap();
            let Target::Server(Route::BySentinels(found)) = &options.target else { panic!("{options:?}") };
            let primary = found.access.at("three".to_owned(), 1).unwrap();
            for server in found.addresses.iter().chain([&primary]) {
                assert_eq!(is_by_tls(server), by_tls, "{params:?}: {server:?}");
            }
            let options = parse(&format!("redis+cluster://one,two?{params}")).unwrap();
            let Target::Cluster { access, .. } = &options.target else { panic!("{options:?}") };
            assert_eq!(is_by_tls(&access.at_address("three:1").unwrap()), by_tls, "{params:?}");
        }
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
            ("redis://one?ca=/ca.pem", "redis: has no ca=, which is about TLS: write rediss://"),
            ("rediss://one?ca=/no/such/file", "ca=/no/such/file cannot be read"),
            ("rediss://one?ca=/dev/null", "ca=/dev/null has no certificate"),
            ("rediss://one?cert=/dev/null", "cert= needs key="),
            ("rediss://one?key=/dev/null", "key= needs cert="),
            ("redis://secret@one", ":password@"),
            ("redis+unix://ann@/run/redis.sock", "(nopass) any will do"),
            ("redis+sentinel://one/service?sentinel_user=ann", "needs sentinel_password="),
            ("redis+sentinel://one,two,ONE:26379/service", "\"ONE:26379\" stands among the Sentinels twice"),
            ("redis://one?replicas=0", "from 1 to 255"),
            ("redis://one?replicas=all", "from 1 to 255"),
            ("redis://one?sentinel_user=ann", "no sentinel_user=, which is about Sentinels"),
            ("redis://one?tls=on", "redis: has no tls=, one server is spoken to by TLS with rediss://"),
            ("rediss://one?tls=on", "rediss: has no tls="),
            ("redis+unix:///run/redis.sock?key=/dev/null", "redis+unix: has no key="),
            ("redis+sentinel://one/service?ca=/ca.pem", "ca=, which is about TLS, and no tls=on"),
            ("redis+sentinel://one/service?tls=yes", "neither \"off\" nor \"on\""),
            ("redis+cluster://one?tls=off&cert=/dev/null", "cert=, which is about TLS, and no tls=on"),
            ("redis+cluster://one?tls=on&ca=/no/such/file", "ca=/no/such/file cannot be read"),
            ("redis+sentinel://one,two", "/service"),
            ("redis+sentinel:/service", "redis+sentinel://host:26379"),
            ("redis+sentinel://one/service/orders", "no database"),
            ("redis+sentinel://one/service/1?db=2", "twice"),
            ("redis+cluster:", "takes a node"),
            ("redis+cluster://one/1", "one database"),
            ("redis+cluster://one?db=2", "one database"),
            ("redis+cluster://one,two:no", "no port"),
            ("redis+unix://one/run/redis.sock", "no host"),
            ("redis+unix:run/redis.sock", "absolute"),
        ] {
            let error = parse(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidUrl, "{url}");
            assert!(error.to_string().contains(hint), "{url}: {error}");
        }
    }
}
