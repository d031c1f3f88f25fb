//! From a URL to a backend.

use std::sync::Arc;

#[cfg(feature = "local")]
use ringfence_core::RecordGuard;
use ringfence_core::{Backend, BackendUrl, BoxFuture, Clock, Error, ErrorKind, Guarantees, Result, nearest};
use ringfence_memory::MemoryBackend;

/// One kind of backend that is compiled in.
struct Scheme {
    name: &'static str,
    /// What is promised under a URL, which says what is asked for.
    guarantees: fn(&BackendUrl) -> Result<Guarantees>,
    /// The backend's own parameters, beside those of the hall.
    params: &'static [&'static str],
    open: fn(BackendUrl, Arc<dyn Clock>) -> Opening,
}

type Opening = BoxFuture<'static, Result<Arc<dyn Backend>>>;

/// A new backend joins here, under a feature of its scheme's name.
const SCHEMES: &[Scheme] = &[
    #[cfg(feature = "etcd")]
    Scheme { name: "etcd", ..ETCD },
    #[cfg(feature = "etcd")]
    Scheme { name: "etcds", ..ETCD },
    #[cfg(feature = "local")]
    Scheme {
        name: "local",
        guarantees: guarantees_of_local,
        params: &["fence"],
        open: |url, clock| Box::pin(async move { open_local(&url, clock) }),
    },
    Scheme {
        name: "memory",
        guarantees: |_| Ok(ringfence_memory::guarantees()),
        params: &[],
        open: |url, clock| Box::pin(async move { open_memory(&url, clock) }),
    },
    #[cfg(feature = "postgres")]
    Scheme { name: "postgres", ..POSTGRES },
    #[cfg(feature = "postgres")]
    Scheme { name: "postgresql", ..POSTGRES },
    #[cfg(feature = "redis")]
    Scheme { name: "redis", ..REDIS },
    #[cfg(feature = "redis")]
    Scheme { name: "redis+cluster", ..REDIS },
    #[cfg(feature = "redis")]
    Scheme { name: "redis+sentinel", ..REDIS },
    #[cfg(feature = "redis")]
    Scheme { name: "redis+unix", ..REDIS },
    #[cfg(feature = "redis")]
    Scheme { name: "rediss", ..REDIS },
    #[cfg(feature = "redis")]
    Scheme {
        name: "redlock",
        guarantees: ringfence_redis::redlock_guarantees,
        params: ringfence_redis::REDLOCK_PARAMS,
        open: |url, clock| {
            Box::pin(async move {
                Ok(Arc::new(ringfence_redis::RedlockBackend::connect(&url, clock).await?) as _)
            })
        },
    },
    #[cfg(feature = "zookeeper")]
    Scheme {
        name: "zookeeper",
        guarantees: |_| Ok(ringfence_zookeeper::guarantees()),
        params: ringfence_zookeeper::PARAMS,
        open: |url, clock| {
            Box::pin(async move {
                Ok(Arc::new(ringfence_zookeeper::ZooKeeperBackend::connect(&url, clock).await?) as _)
            })
        },
    },
];

#[cfg(feature = "etcd")]
const ETCD: Scheme = Scheme {
    name: "",
    guarantees: |_| Ok(ringfence_etcd::guarantees()),
    params: ringfence_etcd::PARAMS,
    open: |url, clock| {
        Box::pin(async move { Ok(Arc::new(ringfence_etcd::EtcdBackend::connect(&url, clock).await?) as _) })
    },
};

#[cfg(feature = "postgres")]
const POSTGRES: Scheme = Scheme {
    name: "",
    guarantees: ringfence_postgres::guarantees,
    params: ringfence_postgres::PARAMS,
    open: |url, clock| {
        Box::pin(async move {
            Ok(Arc::new(ringfence_postgres::PostgresBackend::connect(&url, clock).await?) as _)
        })
    },
};

#[cfg(feature = "redis")]
const REDIS: Scheme = Scheme {
    name: "",
    guarantees: |_| Ok(ringfence_redis::guarantees()),
    params: ringfence_redis::PARAMS,
    open: |url, clock| {
        Box::pin(async move { Ok(Arc::new(ringfence_redis::RedisBackend::connect(&url, clock).await?) as _) })
    },
};

/// The parameters that the hall knows for every scheme.
pub(crate) const HALL_PARAMS: [&str; 4] = ["ttl", "handovers", "handover_time", "token_key_file"];

/// The URL schemes that are compiled in, in alphabetical order.
pub fn schemes() -> Vec<&'static str> {
    SCHEMES.iter().map(|scheme| scheme.name).collect()
}

/// What the backend of a URL promises, without connecting to one. Errors with [`ErrorKind::InvalidUrl`] for a scheme that is
/// not compiled in and for parameters that it does not know.
///
/// ```
/// assert!(!ringfence::guarantees_of("memory:")?.tokens_are_durable());
/// # Ok::<(), ringfence::Error>(())
/// ```
pub fn guarantees_of(url: &str) -> Result<Guarantees> {
    let url = BackendUrl::parse(url)?;
    (known(&url)?.guarantees)(&url)
}

/// Opens the backend of a URL, whose parameters have to be its own or the hall's.
pub(crate) async fn open(url: BackendUrl, clock: Arc<dyn Clock>) -> Result<Arc<dyn Backend>> {
    let scheme = known(&url)?;
    (scheme.open)(url, clock).await
}

/// A URL of PostgreSQL, for what no other backend has.
#[cfg(feature = "postgres")]
pub(crate) fn of_postgres(url: &str) -> Result<BackendUrl> {
    let url = BackendUrl::parse(url)?;
    if !known(&url)?.name.starts_with("postgres") {
        let why = format!("{}: is not PostgreSQL: write postgres://user@host/database", url.scheme());
        return Err(Error::new(ErrorKind::InvalidUrl, why));
    }
    Ok(url)
}

/// The scheme of a URL, which has to be one of ours, with parameters of its own or of the hall.
fn known(url: &BackendUrl) -> Result<&'static Scheme> {
    let scheme = find(url.scheme())?;
    url.check_params(&[scheme.params, &HALL_PARAMS].concat())?;
    Ok(scheme)
}

fn find(name: &str) -> Result<&'static Scheme> {
    SCHEMES.iter().find(|scheme| scheme.name == name).ok_or_else(|| {
        let known = schemes();
        let guess = nearest(name, &known).map(|near| format!(", did you mean {near}:?")).unwrap_or_default();
        Error::new(
            ErrorKind::InvalidUrl,
            format!("no backend has the scheme {name:?}{guess} Compiled in: {}", known.join(", ")),
        )
    })
}

fn open_memory(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Arc<dyn Backend>> {
    refuse_host(url)?;
    if !url.path().is_empty() {
        return Err(Error::new(
            ErrorKind::InvalidUrl,
            format!("memory: takes no path, this one has {:?}: write memory:", url.path()),
        ));
    }
    Ok(Arc::new(MemoryBackend::new(clock)))
}

#[cfg(feature = "local")]
fn open_local(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Arc<dyn Backend>> {
    refuse_host(url)?;
    let directory = match url.path() {
        "" => ringfence_local::default_directory()?,
        path if path.starts_with('/') => path.into(),
        // It would be another store in every working directory, so two processes could miss each other.
        path => {
            return Err(Error::new(
                ErrorKind::InvalidUrl,
                format!("local: takes an absolute directory, {path:?} is relative: write local:/some/dir"),
            ));
        }
    };
    let guard = guarantees_of_local(url)?.record_guard;
    Ok(Arc::new(ringfence_local::LocalBackend::open(&directory, clock)?.with_record_guard(guard)))
}

#[cfg(feature = "local")]
fn guarantees_of_local(url: &BackendUrl) -> Result<Guarantees> {
    let mut guarantees = ringfence_local::guarantees();
    let is_mark = url.choice("fence", ["lease", "mark"])?;
    guarantees.record_guard = if is_mark { RecordGuard::HighWaterMark } else { RecordGuard::LiveLease };
    Ok(guarantees)
}

fn refuse_host(url: &BackendUrl) -> Result<()> {
    match url.hosts().first() {
        None => Ok(()),
        Some(host) => Err(Error::new(
            ErrorKind::InvalidUrl,
            format!(
                "{scheme}: takes no host, this one has {host:?}: write {scheme}: without the two slashes",
                scheme = url.scheme()
            ),
        )),
    }
}
