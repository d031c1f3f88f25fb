//! The two databases that can have an outbox, as far as they differ: how one connects, the words of their SQL that are not the
//! same, what their errors mean, how they call a relay.

use std::fmt;
use std::future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions, PgSslMode};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Column as _, ConnectOptions as _, Executor as _};
use sqlx::{PgConnection, Postgres, Sqlite, SqliteConnection};

use super::schema;
use crate::{BackendUrl, BoxFuture, Clock, Error, ErrorKind, Result, SystemClock};

/// How long a relay and an operator wait for an answer of the database. A transaction of the caller's waits as its driver does.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// The parameters that a URL of PostgreSQL may have, in the words of libpq.
const POSTGRES_PARAMS: &[&str] =
    &["application_name", "host", "port", "sslcert", "sslkey", "sslmode", "sslrootcert"];

/// What an app may do without: all but to enqueue.
const APP_RIGHTS: &str = "to enqueue, a role needs GRANT USAGE ON SCHEMA ringfence_outbox and GRANT INSERT (id, topic, key, \
                          payload) ON ringfence_outbox.messages: `ringfence outbox setup URL --grant-to ROLE`";

const RELAY_RIGHTS: &str = "to relay, a role needs GRANT USAGE ON SCHEMA ringfence_outbox, GRANT SELECT, INSERT, UPDATE, DELETE ON \
     ringfence_outbox.messages, GRANT SELECT, UPDATE ON ringfence_outbox.lanes and GRANT SELECT ON ringfence_outbox.meta: \
     `ringfence outbox setup URL --grant-relay-to ROLE`";

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    Sqlite,
}

/// For whom a statement is carried out, so that an error says what that one needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    App,
    Relay,
}

/// What is bound to a statement, and what a row is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Bytes),
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

/// A row, whose columns are taken from the first on.
pub(super) type Row = std::vec::IntoIter<Value>;

/// A connection on which statements are carried out: one of ours, or that of a caller's transaction.
pub trait Connection: Send {
    fn kind(&self) -> Kind;

    /// Carries out a statement, and returns its rows. `@words@` are put in as [`Kind::sql`] has them.
    fn rows<'a>(
        &'a mut self,
        sql: &'a str,
        values: &'a [Value],
    ) -> BoxFuture<'a, Result<Vec<Row>, sqlx::Error>>;

    /// Carries out a statement, and returns how many rows it changed.
    fn change<'a>(&'a mut self, sql: &'a str, values: &'a [Value])
    -> BoxFuture<'a, Result<u64, sqlx::Error>>;

    /// Carries out a script without parameters.
    fn script<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<(), sqlx::Error>>;
}

/// A connection of a relay or an operator to PostgreSQL. Its statements have no names, because a pooler that lends a session for a
/// transaction would have another client meet them.
struct Nameless(PgConnection);

/// Both drivers have the same methods, and no trait of sqlx has them for both in a signature that one can read.
macro_rules! connection {
    ($connection:ty, $database:ty, $kind:expr, named: $named:expr, $this:ident => $driver:expr) => {
        impl Connection for $connection {
            fn kind(&self) -> Kind {
                $kind
            }

            fn rows<'a>(
                &'a mut self,
                sql: &'a str,
                values: &'a [Value],
            ) -> BoxFuture<'a, Result<Vec<Row>, sqlx::Error>> {
                Box::pin(async move {
                    let ($this, sql) = (self, AssertSqlSafe($kind.sql(sql)));
                    // One message, also where a pooler lends a session for a single one outside of a transaction.
                    let rows = if values.is_empty() {
                        ($driver).fetch_all(sqlx::raw_sql(sql)).await?
                    } else {
                        let query = bind::<$database>(sqlx::query(sql).persistent($named), values);
                        query.fetch_all($driver).await?
                    };
                    rows.iter().map(columns).collect()
                })
            }

            fn change<'a>(
                &'a mut self,
                sql: &'a str,
                values: &'a [Value],
            ) -> BoxFuture<'a, Result<u64, sqlx::Error>> {
                Box::pin(async move {
                    let ($this, sql) = (self, AssertSqlSafe($kind.sql(sql)));
                    let query = bind::<$database>(sqlx::query(sql).persistent($named), values);
                    Ok(query.execute($driver).await?.rows_affected())
                })
            }

            fn script<'a>(&'a mut self, sql: &'a str) -> BoxFuture<'a, Result<(), sqlx::Error>> {
                Box::pin(async move {
                    let $this = self;
                    ($driver).execute(sqlx::raw_sql(AssertSqlSafe($kind.sql(sql)))).await?;
                    Ok(())
                })
            }
        }
    };
}

connection!(PgConnection, Postgres, Kind::Postgres, named: true, caller => &mut *caller);
connection!(Nameless, Postgres, Kind::Postgres, named: false, own => &mut own.0);
connection!(SqliteConnection, Sqlite, Kind::Sqlite, named: true, either => &mut *either);

type Query<'a, D> = sqlx::query::Query<'a, D, <D as sqlx::Database>::Arguments>;

fn bind<'a, D>(mut query: Query<'a, D>, values: &[Value]) -> Query<'a, D>
where
    D: sqlx::Database,
    for<'q> Option<String>: sqlx::Encode<'q, D> + sqlx::Type<D>,
    for<'q> i64: sqlx::Encode<'q, D> + sqlx::Type<D>,
    for<'q> Vec<u8>: sqlx::Encode<'q, D> + sqlx::Type<D>,
{
    for value in values {
        query = match value.clone() {
            Value::Null => query.bind(None::<String>),
            Value::Integer(number) => query.bind(number),
            Value::Text(text) => query.bind(Some(text)),
            Value::Bytes(bytes) => query.bind(Vec::from(bytes)),
        };
    }
    query
}

/// The columns of a row. Which type each has is in our statements: integers are `bigint`, and what is no integer is text unless
/// its name says that it is the payload.
fn columns<R>(row: &R) -> Result<Row, sqlx::Error>
where
    R: sqlx::Row,
    usize: sqlx::ColumnIndex<R>,
    for<'r> Option<String>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    for<'r> Option<i64>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
    for<'r> Vec<u8>: sqlx::Decode<'r, R::Database> + sqlx::Type<R::Database>,
{
    let columns = row.columns().iter().enumerate().map(|(at, column)| {
        if column.name() == "payload" {
            return Ok(Value::Bytes(row.try_get::<Vec<u8>, _>(at)?.into()));
        }
        if let Ok(number) = row.try_get::<Option<i64>, _>(at) {
            return Ok(number.map_or(Value::Null, Value::Integer));
        }
        Ok(row.try_get::<Option<String>, _>(at)?.into())
    });
    Ok(columns.collect::<Result<Vec<_>, sqlx::Error>>()?.into_iter())
}

impl Kind {
    /// A statement in the words of this database.
    fn sql(self, text: &str) -> String {
        let words = match self {
            Self::Postgres => POSTGRES,
            Self::Sqlite => SQLITE,
        };
        let mut sql = words.iter().fold(text.to_owned(), |sql, (word, meaning)| sql.replace(word, meaning));
        if self == Self::Sqlite {
            let now = SystemClock::new().now().as_nanos() / 1_000_000;
            sql = sql.replace("@lane_time@", &now.to_string());
        }
        sql
    }

    /// By which clock the claims of this database are timed: the server's, or that of this machine since it booted.
    pub(super) fn clock(self) -> Result<String> {
        match self {
            Self::Postgres => Ok(String::new()),
            Self::Sqlite => {
                let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_err(|why| {
                    Error::new(
                        ErrorKind::Unavailable,
                        "the kernel does not say which boot of the machine this is",
                    )
                    .because(why)
                })?;
                Ok(boot.trim().to_owned())
            }
        }
    }

    /// What an error of this database means to whom it comes.
    pub(super) fn explain(self, why: sqlx::Error, whom: Whom) -> Error {
        let code = why.as_database_error().and_then(sqlx::error::DatabaseError::code).unwrap_or_default();
        let (kind, advice) = match (self, &why) {
            (Self::Postgres, sqlx::Error::Database(_)) => of_postgres(&code, whom),
            (Self::Sqlite, sqlx::Error::Database(said)) => of_sqlite(&code, said.message()),
            (Self::Sqlite, _) => (ErrorKind::Unavailable, "the database file cannot be used"),
            (Self::Postgres, sqlx::Error::Configuration(_)) => {
                (ErrorKind::InvalidUrl, "the database's URL names files for TLS that cannot be used")
            }
            (Self::Postgres, sqlx::Error::Tls(_)) => (
                ErrorKind::Refused,
                "the database and we cannot agree about TLS: see sslmode and sslrootcert",
            ),
            (Self::Postgres, _) => {
                (ErrorKind::Unavailable, "the database cannot be reached, or its connection broke")
            }
        };
        Error::new(kind, format!("outbox: {advice}")).because(why)
    }
}

/// What is said otherwise in PostgreSQL.
const POSTGRES: &[(&str, &str)] = &[
    ("@messages@", "ringfence_outbox.messages"),
    ("@lanes@", "ringfence_outbox.lanes"),
    ("@meta@", "ringfence_outbox.meta"),
    // What is sent is on the disk before, the message and the number of its claim: a crash that took them back would give both numbers
    // to others.
    (
        "@begin_on_disk@",
        "@begin@; SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'",
    ),
    // It claims and settles by what others have committed, and writes, whatever the database's defaults are.
    ("@begin@", "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; @not_idle@"),
    ("@begin_snapshot@", "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; @not_idle@"),
    // Who is stopped or cut off in the middle of a transaction keeps its locks until the server ends its session: longer than any of
    // ours is idle between two statements, and shorter than others wait for an answer.
    ("@not_idle@", "SET LOCAL idle_in_transaction_session_timeout = '5s'"),
    ("@skip_locked@", "FOR UPDATE SKIP LOCKED"),
    ("@lane_time@", "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"),
    // The same for all rows of a statement: if the time came between two of a key, the second would be sent before the first.
    ("@now@", "(extract(epoch FROM statement_timestamp()) * 1000)::bigint"),
    ("@numbers_of_$1@", "(SELECT value::bigint FROM jsonb_array_elements_text($1::text::jsonb))"),
    ("@id@", "id::text"),
    ("@new_id@", "$1::text::uuid"),
    ("@bytes@", "payload"),
    ("@integer@", "::bigint"),
];

/// And in SQLite, whose transactions are for one writer at a time in any case.
const SQLITE: &[(&str, &str)] = &[
    ("@messages@", "ringfence_outbox_messages"),
    ("@lanes@", "ringfence_outbox_lanes"),
    ("@meta@", "ringfence_outbox_meta"),
    // Whether it is on the disk is for whoever opens the database to choose, outside of transactions.
    ("@begin_on_disk@", "BEGIN IMMEDIATE"),
    ("@begin@", "BEGIN IMMEDIATE"),
    ("@begin_snapshot@", "BEGIN IMMEDIATE"),
    ("@skip_locked@", ""),
    ("@now@", "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"),
    ("@numbers_of_$1@", "(SELECT value FROM json_each($1))"),
    ("@id@", "id"),
    ("@new_id@", "$1"),
    ("@bytes@", "CAST(payload AS BLOB)"),
    ("@integer@", ""),
];

fn of_postgres(code: &str, whom: Whom) -> (ErrorKind, &'static str) {
    match (code, whom) {
        ("42501", Whom::App) => (ErrorKind::Refused, APP_RIGHTS),
        ("42501", Whom::Relay) => (ErrorKind::Refused, RELAY_RIGHTS),
        ("42P01" | "3F000", _) => (ErrorKind::Refused, schema::MISSING),
        ("25P02", _) => {
            (ErrorKind::InvalidRequest, "the transaction has failed before: roll it back, and begin again")
        }
        ("25P03", _) => (
            ErrorKind::Unavailable,
            "the transaction was idle for longer than the database lets it: run it again",
        ),
        // The second is how a standby refuses one of ours, which says when it begins that it is to write.
        ("25006", _) | ("0A000", Whom::Relay) => (
            ErrorKind::InvalidRequest,
            "the transaction cannot write: it is READ ONLY, or its server is a standby",
        ),
        ("40001" | "40P01" | "55P03", _) => (
            ErrorKind::Unavailable,
            "other transactions were in the way: roll back, and run the transaction again",
        ),
        (code, _) if code.starts_with("28") => (ErrorKind::Refused, "the database does not let us in"),
        ("3D000", _) => (ErrorKind::Refused, "there is no such database"),
        ("53100" | "53200", _) => (ErrorKind::Full, "the database's server has no room left"),
        (code, _) if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => {
            (ErrorKind::Unavailable, "the database cannot serve us now")
        }
        _ => (ErrorKind::Refused, "the database refuses it"),
    }
}

/// By SQLite's result codes, whose low byte is the kind.
fn of_sqlite(code: &str, message: &str) -> (ErrorKind, &'static str) {
    match code.parse::<u32>().map_or(0, |code| code & 0xff) {
        1 if message.contains("no such table") => (ErrorKind::Refused, schema::MISSING),
        5 | 6 => (ErrorKind::Unavailable, "somebody else is writing to the database"),
        8 => (ErrorKind::Refused, "the database, or its folder, may not be written to"),
        11 | 26 => (ErrorKind::Corrupt, "the file is damaged, or no SQLite database"),
        13 => (ErrorKind::Full, "the disk is full"),
        14 => (
            ErrorKind::Refused,
            "there is no such database file, or it may not be opened: an outbox stands in your own",
        ),
        _ => (ErrorKind::Refused, "the database refuses it"),
    }
}

/// Where an outbox is, and how one gets there.
#[derive(Clone)]
pub(super) struct Place {
    url: BackendUrl,
    options: Options,
}

#[derive(Clone)]
enum Options {
    Postgres(Box<PgConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

impl Place {
    /// Errors with [`ErrorKind::InvalidUrl`].
    pub(super) fn parse(url: &str) -> Result<Self> {
        let url = BackendUrl::parse(url)?;
        let options = match url.scheme() {
            "postgres" | "postgresql" => Options::Postgres(Box::new(postgres(&url)?)),
            "sqlite" => Options::Sqlite(Box::new(sqlite(&url)?)),
            other => {
                return Err(invalid(format!(
                    "{other}: has no outbox, which stands in the database of your transactions: write \
                     postgres://user@host/database or sqlite:/some/file.db"
                )));
            }
        };
        Ok(Self { url, options })
    }

    pub(super) fn kind(&self) -> Kind {
        match self.options {
            Options::Postgres(_) => Kind::Postgres,
            Options::Sqlite(_) => Kind::Sqlite,
        }
    }

    /// A connection of our own.
    pub(super) async fn connect(&self) -> Result<Box<dyn Connection>> {
        let connect = async {
            Ok::<Box<dyn Connection>, sqlx::Error>(match &self.options {
                Options::Postgres(options) => Box::new(Nameless(options.connect().await?)),
                Options::Sqlite(options) => Box::new(options.connect().await?),
            })
        };
        self.in_time(connect).await.map_err(|error| error.about(&self.url))
    }

    /// What is carried out by a relay or an operator, who do not wait for a database for ever.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T> {
        match tokio::time::timeout(PATIENCE, work).await {
            Ok(done) => done.map_err(|why| self.kind().explain(why, Whom::Relay)),
            Err(_) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("outbox: the database has not answered within {} s", PATIENCE.as_secs()),
            )),
        }
    }

    /// What tells a relay that something was enqueued, where the database can.
    pub(super) async fn listen(&self) -> Result<Calls> {
        let Options::Postgres(options) = &self.options else { return Ok(Calls(None)) };
        let listen = async {
            let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with((**options).clone());
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen("ringfence_outbox").await?;
            Ok(listener)
        };
        Ok(Calls(Some(self.in_time(listen).await?)))
    }
}

/// Without what is secret.
impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.url, f)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.url, f)
    }
}

/// What a database says when something was enqueued.
pub(super) struct Calls(Option<PgListener>);

impl Calls {
    /// The next call, of which one may be lost with a connection; never, where the database does not call.
    ///
    /// # Cancel safety
    /// A call that came while nobody asked is there for who asks next.
    pub(super) async fn next(&mut self) -> Result<()> {
        let Some(listener) = &mut self.0 else { return future::pending().await };
        // Also when the connection broke and stands again.
        listener.try_recv().await.map_err(|why| Kind::Postgres.explain(why, Whom::Relay))?;
        while listener.next_buffered().is_some() {}
        Ok(())
    }
}

fn invalid(why: String) -> Error {
    Error::new(ErrorKind::InvalidUrl, why)
}

fn postgres(url: &BackendUrl) -> Result<PgConnectOptions> {
    url.check_params(POSTGRES_PARAMS)?;
    let mut options = PgConnectOptions::new_without_pgpass();
    let host = match (url.hosts(), url.param("host")) {
        ([host], None) => percent(host)?,
        ([], Some(host)) => host.to_owned(),
        _ => {
            return Err(invalid(
                "postgres: takes one server here: write postgres://user@host/database, or \
                 postgres:///database?host=/run/postgresql for a socket"
                    .to_owned(),
            ));
        }
    };
    let port = match url.param("port") {
        None => 5432,
        Some(port) => port.parse().map_err(|_| invalid(format!("port={port:?} is no port")))?,
    };
    options = if host.starts_with('/') {
        options.socket(host).port(port)
    } else {
        let (host, port) = ringfence_core::split_port(&host, port)?;
        options.host(&host).port(port)
    };
    if let Some(user) = url.user() {
        options = options.username(user);
    }
    if let Some(password) = url.password() {
        options = options.password(password);
    }
    if let Some(database) = url.path().strip_prefix('/').filter(|path| !path.is_empty()) {
        options = options.database(database);
    }
    if let Some(mode) = url.param("sslmode") {
        let mode: PgSslMode = mode.parse().map_err(|_| {
            invalid(format!(
                "sslmode={mode:?} is none: disable, allow, prefer, require, verify-ca or verify-full"
            ))
        })?;
        options = options.ssl_mode(mode);
    }
    if let Some(file) = url.param("sslrootcert") {
        options = options.ssl_root_cert(file);
    }
    if let Some(file) = url.param("sslcert") {
        options = options.ssl_client_cert(file);
    }
    if let Some(file) = url.param("sslkey") {
        options = options.ssl_client_key(file);
    }
    // A pooler refuses a parameter of a session that it does not know, and we have no floats.
    let options = options.extra_float_digits(None);
    Ok(options.application_name(url.param("application_name").unwrap_or("ringfence outbox")))
}

fn percent(host: &str) -> Result<String> {
    let host = percent_encoding::percent_decode_str(host).decode_utf8();
    Ok(host.map_err(|_| invalid("the host is not UTF-8".to_owned()))?.into_owned())
}

fn sqlite(url: &BackendUrl) -> Result<SqliteConnectOptions> {
    url.check_params(&[])?;
    if !url.hosts().is_empty() || url.path().is_empty() {
        return Err(invalid("sqlite: takes a file: write sqlite:/some/file.db".to_owned()));
    }
    // The app that enqueues chooses how its database is kept; we change nothing of that.
    Ok(SqliteConnectOptions::new().filename(Path::new(url.path())).busy_timeout(PATIENCE / 2))
}
