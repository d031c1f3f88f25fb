//! A connection of this process to the primary: opened when it is needed, dropped when it is in doubt.

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use ringfence_core::{Error, ErrorKind, Finding, Result};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Connection, NoTls, Row, Statement};

use crate::error;
use crate::options::{Host, Options};
use crate::place::Place;
use crate::schema::{Role, Schema};
use crate::stream::{self, GONE_AFTER, KEEPALIVE_COUNT, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, Stream, Way};

/// How long an answer may take. After that the connection counts as broken, because nobody can tell a server that is slow
/// from one that is gone.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(3);

/// How long a statement may take on the server, which then says that it did nothing. Below the patience with its answer,
/// so that what stands in line behind a locked table fails without effect, and not with an unknown one.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(2500);

/// How long making the schema may take, and waiting for somebody who is making it.
const SETUP_PATIENCE: Duration = Duration::from_secs(30);

/// The oldest server that knows what we use.
const VERSION_MIN: i32 = 14;

/// A statement, with the types of its parameters, so that it can be sent where nothing can be prepared.
#[derive(Clone, Debug)]
pub(crate) struct Sql {
    text: Arc<str>,
    types: Vec<Type>,
}

impl Sql {
    pub(crate) fn new(text: &str, types: &[Type]) -> Self {
        Self { text: text.into(), types: types.to_vec() }
    }
}

/// What comes unasked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    Notification {
        channel: String,
        payload: String,
    },
    /// The connection of this serial number is over. Told once for each that was open.
    Ended {
        serial: u64,
    },
}

/// The connection that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    /// The server's process at its other end; behind a pooler that of the moment in which it was opened.
    pub(crate) pid: i32,
    /// Tells apart the connections of this process.
    pub(crate) serial: u64,
    /// A pooler stands between. It may give each statement to another session of the server: nothing that belongs to a
    /// session can be counted on, be it a lock, a setting, a channel or a prepared statement.
    pub(crate) is_pooled: bool,
}

/// What carries a connection's messages, TLS being spoken below it.
type Carrier = Connection<Box<dyn Stream>, NoTlsStream>;

type Hears = dyn Fn(Heard) + Send + Sync;

/// A setting of a session, and its value.
pub(crate) type Setting = (&'static str, String);

/// The way to the primary.
pub(crate) struct Link {
    options: Arc<Options>,
    runtime: Handle,
    settings: Vec<Setting>,
    hears: Arc<Hears>,
    open: Arc<Mutex<Open>>,
    /// Held while a connection is opened, so that one is.
    opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Open {
    live: Option<Arc<Live>>,
    /// Counts the tries that led to none, with what came of the last one.
    failures: u64,
    failure: Option<Error>,
    /// Where the last connection led, and what was wrong with coming there.
    place: Option<Place>,
    setback: Option<Finding>,
}

impl Link {
    /// A way to the primary, on which nothing is opened yet, and whose connection ends with it. `hears` is told what comes
    /// unasked; it must not block, nor own what owns the link.
    pub(crate) fn new(
        options: Arc<Options>,
        runtime: Handle,
        hears: impl Fn(Heard) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::with_settings(options, runtime, Vec::new(), hears)
    }

    /// The same, each of whose sessions has these settings, beside or in place of the usual ones. They are set where no
    /// pooler stands between.
    pub(crate) fn with_settings(
        options: Arc<Options>,
        runtime: Handle,
        settings: Vec<Setting>,
        hears: impl Fn(Heard) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let settings = with_usual(settings);
        let (open, opening) = (Arc::default(), tokio::sync::Mutex::default());
        Arc::new(Self { options, runtime, settings, hears: Arc::new(hears), open, opening })
    }

    /// The server, for people.
    pub(crate) fn shown(&self) -> &str {
        &self.options.shown
    }

    /// Where everything of ours is.
    pub(crate) fn schema(&self) -> &Schema {
        &self.options.schema
    }

    /// Opens the connection if there is none, and makes the schema if there is none: 4 round trips beside those of TCP, TLS and
    /// the password. Errors without effect: `Unavailable`, `Refused`, `Unsupported`, `InvalidUrl`.
    ///
    /// # Cancel safety
    /// Dropped, it opens nothing.
    pub(crate) async fn connect(&self) -> Result<()> {
        self.live().await.map(drop)
    }

    /// The connection that is open, if one is.
    pub(crate) fn session(&self) -> Option<Session> {
        self.lock().live.as_ref().map(|live| live.session)
    }

    /// Sends a statement and waits for its rows, for [`ANSWER_PATIENCE`]: 1 round trip, and the first time on a connection 1 to
    /// prepare it. It is a transaction of its own. Errors say whether it may have taken effect.
    ///
    /// # Cancel safety
    /// Dropped, it may still be carried out; nobody else gets its answer.
    pub(crate) async fn query(&self, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        self.query_within(ANSWER_PATIENCE, sql, params).await
    }

    /// The same with another patience, for what waits on the server. The session's `statement_timeout` has to allow it.
    ///
    /// # Cancel safety
    /// As [`Self::query`].
    pub(crate) async fn query_within(
        &self,
        patience: Duration,
        sql: &Sql,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>> {
        let live = self.live().await?;
        self.answer(patience, &live, live.ask(sql, params)).await
    }

    /// Carries out statements without parameters, which together are one transaction: 1 round trip. Errors as [`Self::query`] does.
    ///
    /// # Cancel safety
    /// As [`Self::query`].
    pub(crate) async fn script(&self, text: &str) -> Result<()> {
        let live = self.live().await?;
        let done = async { live.client.batch_execute(text).await.map_err(|why| live.unanswered(&why)) };
        self.answer(ANSWER_PATIENCE, &live, done).await
    }

    /// Waits for an answer on a connection, which is dropped where it does not come.
    async fn answer<T>(
        &self,
        patience: Duration,
        live: &Live,
        answer: impl Future<Output = Result<T, Unanswered>>,
    ) -> Result<T> {
        let answer = match tokio::time::timeout(patience, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(Unanswered { error: error::no_answer().with_unknown_effect(), ends_session: true }),
        };
        answer.map_err(|Unanswered { error, ends_session }| {
            if ends_session {
                self.discard(live);
            }
            error.about(self.shown())
        })
    }

    /// Has the server cancel what it does on this connection, by a connection of its own and best effort. Whatever comes next
    /// on this one may be what it hits.
    pub(crate) fn cancel(&self) {
        let Some(live) = self.lock().live.clone() else { return };
        let patience = self.options.connect_patience;
        self.runtime.spawn(async move {
            let cancelled = async {
                let stream = stream::open(&live.host, &live.way).await.map_err(|why| why.to_string())?;
                let token = live.client.cancel_token();
                token.cancel_query_raw(stream, NoTls).await.map_err(|why| why.to_string())
            };
            match tokio::time::timeout(patience, cancelled).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::debug!(why, "a statement could not be cancelled"),
                Err(_) => tracing::debug!("a statement could not be cancelled in time"),
            }
        });
    }

    /// Ends the connection, and with it all that belongs to the session. The next call opens another one.
    pub(crate) fn hang_up(&self) {
        let live = self.lock().live.clone();
        if let Some(live) = live {
            self.discard(&live);
        }
    }

    async fn live(&self) -> Result<Arc<Live>> {
        match self.current() {
            Some(live) => Ok(live),
            None => Box::pin(self.open()).await,
        }
    }

    fn current(&self) -> Option<Arc<Live>> {
        self.lock().live.clone()
    }

    async fn open(&self) -> Result<Arc<Live>> {
        let failures = self.lock().failures;
        let _one_at_a_time = self.opening.lock().await;
        if let Some(live) = self.current() {
            return Ok(live);
        }
        // Whoever waited for a try that failed has its answer: one try after the other, for each of them, would take long.
        if let Open { failures: now, failure: Some(failure), .. } = &*self.lock()
            && *now > failures
        {
            return Err(failure.clone());
        }
        let opened = self.open_one().await;
        let mut open = self.lock();
        match opened {
            Ok(live) => {
                open.live = Some(Arc::clone(&live));
                drop(open);
                if live.state.announce() {
                    return Ok(live);
                }
                self.discard(&live);
                Err(self.broken(&live))
            }
            Err(failure) => {
                open.failures += 1;
                open.failure = Some(failure.clone());
                Err(failure)
            }
        }
    }

    /// What a connection broke of as soon as it was open.
    fn broken(&self, live: &Live) -> Error {
        live.broken().without_effect().about(self.shown())
    }

    /// A connection to the first host that is a primary. Where there is none, what is wrong with the first that lets us hope
    /// for less than the others do.
    async fn open_one(&self) -> Result<Arc<Live>> {
        let mut failure: Option<Error> = None;
        for host in &self.options.hosts {
            let greeted = tokio::time::timeout(self.options.connect_patience, self.greet(host)).await;
            let opened = match greeted.unwrap_or_else(|_| Err(error::no_answer())) {
                Ok(greeted) => self.make_ready(greeted).await,
                Err(why) => Err(why),
            };
            match opened {
                Ok(live) => return Ok(live),
                Err(why) => {
                    let is_worse = failure.as_ref().is_none_or(|before| {
                        before.kind() == ErrorKind::Unavailable && why.kind() != ErrorKind::Unavailable
                    });
                    if is_worse {
                        failure = Some(why.without_effect().about(host));
                    }
                }
            }
        }
        Err(failure.expect("a URL names a host"))
    }

    /// Opens a connection to a host in the first way that it likes.
    async fn log_in(&self, host: &Host) -> Result<(Client, Carrier, Way)> {
        let mut failure = None;
        for way in self.options.tls.ways(host) {
            let error = match stream::open(host, &way).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => return Err(error),
                Err(error) => error,
                Ok(stream) => match self.options.login.connect_raw(stream, NoTls).await {
                    Ok((client, carrier)) => return Ok((client, carrier, way)),
                    Err(why) if !error::is_of_way(&why) => return Err(error::of_connecting(&why)),
                    Err(why) => error::of_connecting(&why),
                },
            };
            failure = failure.or(Some(error));
        }
        Err(failure.expect("there is a way"))
    }

    /// Opens a connection to a host, and asks what is at its other end.
    async fn greet(&self, host: &Host) -> Result<Greeted> {
        let (client, carrier, way) = self.log_in(host).await?;
        let serial = next_serial();
        let state = Arc::<State>::default();
        let driver = Driver {
            carrier,
            ending: Ending {
                serial,
                state: Arc::clone(&state),
                open: Arc::downgrade(&self.open),
                hears: Arc::clone(&self.hears),
            },
        };
        let task = AbortOnDrop(self.runtime.spawn(driver.run()).abort_handle());
        let schema = self.options.schema.name();
        let row = client
            .query_typed_one(LOOK, &[(&schema, Type::TEXT)])
            .await
            .map_err(|why| error::of_connecting(&why))?;
        let version: i32 = row.get("version");
        if version < VERSION_MIN * 10_000 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("it is PostgreSQL {}, and we need {VERSION_MIN} or later", version / 10_000),
            ));
        }
        if row.get("is_standby") {
            return Err(error::standby());
        }
        let encoding: &str = row.get("encoding");
        if encoding != "UTF8" {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "its database is encoded in {encoding}, in which not every lock has its name: use one in UTF8"
                ),
            ));
        }
        let pid = row.get("pid");
        let is_pooled = pid != pid_at_start(&client).await;
        if is_pooled {
            suits_us_unset(row.get("isolation"), row.get("is_read_only"))?;
        }
        let schema =
            Found { is_there: row.get("is_there"), may_use: row.get("may_use"), may_ask: row.get("may_ask") };
        let session = Session { pid, serial, is_pooled };
        Ok(Greeted {
            client,
            session,
            host: host.clone(),
            way,
            state,
            task,
            schema,
            role: Role::new(row.get("role"))?,
        })
    }

    /// Sets what the session needs, and makes the schema where it is not there.
    async fn make_ready(&self, mut greeted: Greeted) -> Result<Arc<Live>> {
        // First, so that the server itself gives up what stands in line behind a table of ours that somebody has locked.
        if !greeted.session.is_pooled {
            let (names, values): (Vec<&str>, Vec<&str>) =
                self.settings.iter().map(|(name, value)| (*name, value.as_str())).unzip();
            let params: [(&(dyn ToSql + Sync), Type); 2] =
                [(&names, Type::TEXT_ARRAY), (&values, Type::TEXT_ARRAY)];
            greeted.ask(SET, &params).await?;
        }
        let schema = &self.options.schema;
        let [usage, execute] = schema.grants(&greeted.role);
        let is_current = match greeted.schema {
            Found { is_there: true, may_use: false, .. } => return Err(lacks(&usage)),
            Found { may_ask: Some(false), .. } => return Err(lacks(&execute)),
            Found { may_ask: None, .. } => false,
            Found { may_ask: Some(true), .. } => {
                let rows = greeted.ask(&format!("SELECT {schema}.version()"), &[]).await?;
                schema.is_current(rows[0].get(0))?
            }
        };
        if !is_current {
            let install = schema.install(&mut greeted.client);
            tokio::time::timeout(SETUP_PATIENCE, install)
                .await
                .unwrap_or_else(|_| Err(error::no_answer()))?;
        }
        let rows = greeted.ask(&schema.sql(ARRIVE, &[]).text, &[]).await?;
        self.arrive(Place::of(&rows[0]))?;
        let Greeted { client, session, host, way, state, task, .. } = greeted;
        Ok(Arc::new(Live { session, client, host, way, state, task, statements: Mutex::default() }))
    }

    /// Takes note of where a connection leads. Errors for a primary that was overtaken.
    fn arrive(&self, place: Place) -> Result<()> {
        let mut open = self.lock();
        if let Some(before) = &open.place {
            place.refuse_the_past(before)?;
            if let Some(setback) = place.setback(before) {
                tracing::error!(server = self.shown(), advice = setback.advice, "{}", setback.what);
                open.setback = Some(setback);
            }
        }
        open.place = Some(place);
        Ok(())
    }

    /// What has become of the server, in the life of this process and before: 1 round trip.
    pub(crate) async fn history(&self) -> Result<Vec<Finding>> {
        let rows = self.query(&self.schema().sql(ARRIVE, &[]), &[]).await?;
        let place = Place::of(&rows[0]);
        self.arrive(place.clone())?;
        Ok(std::iter::once(place.examine()).chain(self.lock().setback.clone()).collect())
    }

    /// Drops a connection that is in doubt.
    fn discard(&self, live: &Live) {
        self.lock().forget(live.session.serial);
        live.task.0.abort();
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        lock(&self.open)
    }
}

impl Open {
    fn forget(&mut self, serial: u64) {
        if self.live.as_ref().is_some_and(|live| live.session.serial == serial) {
            self.live = None;
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("nothing panics while it has the connection")
}

fn next_serial() -> u64 {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("server", &self.shown()).finish_non_exhaustive()
    }
}

/// Who and what is at the other end, and what is there of our schema: everything that can be known before anything of it
/// may be used.
const LOOK: &str = "
    SELECT pg_catalog.pg_backend_pid() AS pid,
        pg_catalog.pg_is_in_recovery() AS is_standby,
        pg_catalog.current_setting('server_version_num')::integer AS version,
        pg_catalog.current_setting('server_encoding') AS encoding,
        current_user::text AS role,
        pg_catalog.current_setting('default_transaction_isolation') AS isolation,
        pg_catalog.current_setting('default_transaction_read_only')::boolean AS is_read_only,
        s.oid IS NOT NULL AS is_there,
        coalesce(pg_catalog.has_schema_privilege(s.oid, 'USAGE'), false) AS may_use,
        (SELECT pg_catalog.has_function_privilege(p.oid, 'EXECUTE') FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = s.oid AND p.proname = 'version') AS may_ask
    FROM (SELECT pg_catalog.to_regnamespace($1)::oid) AS s(oid)";

/// Where the connection has led.
const ARRIVE: &str = "SELECT * FROM @schema@.arrive()";

/// Gives settings to a session, those that this version of the server has.
const SET: &str = "
    SELECT pg_catalog.set_config(s.name, s.value, false)
    FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS s(name, value)
    WHERE pg_catalog.current_setting(s.name, true) IS NOT NULL";

/// The settings of every session of ours, where these say nothing else: that the server sees when we are gone, gives up
/// before we do, and that what an operator chose for other programs does not get in our way.
fn with_usual(mut settings: Vec<Setting>) -> Vec<Setting> {
    let usual = [
        ("search_path", "pg_catalog".to_owned()),
        ("default_transaction_isolation", "read committed".to_owned()),
        ("default_transaction_read_only", "off".to_owned()),
        ("statement_timeout", STATEMENT_TIMEOUT.as_millis().to_string()),
        ("lock_timeout", "0".to_owned()),
        // From PostgreSQL 17 on; a statement of ours is a transaction, and one that waits is in one for as long.
        ("transaction_timeout", "0".to_owned()),
        ("idle_session_timeout", "0".to_owned()),
        ("tcp_keepalives_idle", KEEPALIVE_IDLE.as_secs().to_string()),
        ("tcp_keepalives_interval", KEEPALIVE_INTERVAL.as_secs().to_string()),
        ("tcp_keepalives_count", KEEPALIVE_COUNT.to_string()),
        ("tcp_user_timeout", GONE_AFTER.as_millis().to_string()),
        ("client_connection_check_interval", KEEPALIVE_INTERVAL.as_millis().to_string()),
    ];
    for (name, value) in usual {
        if settings.iter().all(|(own, _)| *own != name) {
            settings.push((name, value));
        }
    }
    settings
}

/// Refuses, where nothing can be set because a pooler stands between, what an operator chose for transactions and keeps ours from
/// doing what they do: in another isolation whoever comes second is an error and no waiter, and what is read-only grants nothing.
fn suits_us_unset(isolation: &str, is_read_only: bool) -> Result<()> {
    let (setting, value, right) = if isolation != "read committed" {
        ("default_transaction_isolation", isolation, "read committed")
    } else if is_read_only {
        ("default_transaction_read_only", "on", "off")
    } else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "its {setting} is {value:?} for us, where locks need {right:?}, and behind a pooler we cannot set it: ALTER ROLE … SET \
             {setting} = '{right}' for the role of the URL, or connect to the server itself"
        ),
    ))
}

/// The error of a role that was not given what it needs.
fn lacks(grant: &str) -> Error {
    let advice = "or have the schema's owner run `ringfence setup URL --grant-to ROLE`";
    Error::new(ErrorKind::Refused, format!("our role lacks a right: {grant}; {advice}"))
}

/// A connection of which we know what is at its other end.
struct Greeted {
    client: Client,
    session: Session,
    host: Host,
    way: Way,
    state: Arc<State>,
    task: AbortOnDrop,
    schema: Found,
    role: Role,
}

impl Greeted {
    /// Carries out a statement on the way to a connection that is ready, for no longer than an answer is waited for.
    async fn ask(&self, text: &str, params: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<Row>> {
        let rows = tokio::time::timeout(ANSWER_PATIENCE, self.client.query_typed(text, params)).await;
        rows.map_err(|_| error::no_answer())?.map_err(|why| error::of_connecting(&why))
    }
}

/// What there is of our schema.
#[derive(Clone, Copy)]
struct Found {
    is_there: bool,
    may_use: bool,
    /// Whether we may ask for its version, where it has one.
    may_ask: Option<bool>,
}

/// A connection that is ready.
struct Live {
    session: Session,
    client: Client,
    /// Where it leads, and how.
    host: Host,
    way: Way,
    state: Arc<State>,
    task: AbortOnDrop,
    statements: Mutex<HashMap<Arc<str>, Statement>>,
}

/// Why a statement has no rows to show, and whether the session is of any more use.
struct Unanswered {
    error: Error,
    ends_session: bool,
}

impl Live {
    async fn ask(&self, sql: &Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Unanswered> {
        if self.session.is_pooled {
            let params: Vec<_> = params.iter().copied().zip(sql.types.iter().cloned()).collect();
            return self.client.query_typed(&sql.text, &params).await.map_err(|why| self.unanswered(&why));
        }
        let statement = self.statement(sql).await.map_err(|why| {
            let Unanswered { error, ends_session } = self.unanswered(&why);
            Unanswered { error: error.without_effect(), ends_session }
        })?;
        self.client.query(&statement, params).await.map_err(|why| self.unanswered(&why))
    }

    /// Prepares a statement the first time. Several that come first at a time do so each for itself.
    async fn statement(&self, sql: &Sql) -> Result<Statement, error::Theirs> {
        let known = lock(&self.statements).get(&sql.text).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare_typed(&sql.text, &sql.types).await?;
        lock(&self.statements).insert(Arc::clone(&sql.text), statement.clone());
        Ok(statement)
    }

    fn unanswered(&self, why: &error::Theirs) -> Unanswered {
        if why.is_closed() {
            return Unanswered { error: self.broken(), ends_session: true };
        }
        Unanswered { ends_session: error::ends_session(why), error: error::of_call(why) }
    }

    /// Why the connection broke, which may have been said to nobody in particular.
    fn broken(&self) -> Error {
        let why = match self.state.why.get() {
            Some(why) if why.kind() != ErrorKind::Unavailable || error::is_end_of_connection(why) => {
                why.clone()
            }
            why => error::ended(error::BROKE, why),
        };
        why.with_unknown_effect()
    }
}

struct AbortOnDrop(AbortHandle);

/// Nobody waits for the answers that were still to come: a statement that waits on the server must not outlive the interest in it.
impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What becomes of a connection.
#[derive(Default)]
struct State {
    stage: Mutex<Stage>,
    why: OnceLock<Error>,
}

#[derive(Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Opening,
    Open,
    Ended,
}

impl State {
    /// The connection is in use from now on, and its end is told. `false` if it has ended before.
    fn announce(&self) -> bool {
        let mut stage = lock(&self.stage);
        let is_there = *stage == Stage::Opening;
        if is_there {
            *stage = Stage::Open;
        }
        is_there
    }
}

/// Carries a connection's messages, in a task of its own.
struct Driver {
    // Dropped before its end is told: whoever waits for an answer has none by then.
    carrier: Carrier,
    ending: Ending,
}

impl Driver {
    async fn run(mut self) {
        while let Some(message) = poll_fn(|context| self.carrier.poll_message(context)).await {
            match message {
                Ok(AsyncMessage::Notification(said)) => {
                    let (channel, payload) = (said.channel().to_owned(), said.payload().to_owned());
                    (self.ending.hears)(Heard::Notification { channel, payload });
                }
                Ok(AsyncMessage::Notice(said)) => {
                    tracing::debug!(code = said.code().code(), "{}", said.message());
                }
                Ok(_) => {}
                Err(why) => {
                    let _ = self.ending.state.why.set(error::of_call(&why));
                    return;
                }
            }
        }
    }
}

struct Ending {
    serial: u64,
    state: Arc<State>,
    /// Weak, because a connection ends when its link is gone.
    open: Weak<Mutex<Open>>,
    hears: Arc<Hears>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if let Some(open) = self.open.upgrade() {
            lock(&open).forget(self.serial);
        }
        let stage = std::mem::replace(&mut *lock(&self.state.stage), Stage::Ended);
        if stage == Stage::Open {
            (self.hears)(Heard::Ended { serial: self.serial });
        }
    }
}

/// The process that a server said it had for us when the connection began. A pooler says a number of its own.
///
/// The driver keeps it to itself, but writes it where it asks for a cancel: after a length and a code, of four bytes each.
async fn pid_at_start(client: &Client) -> i32 {
    let (ours, mut theirs) = tokio::io::duplex(64);
    let (token, mut request) = (client.cancel_token(), [0; 12]);
    let (written, read) = tokio::join!(token.cancel_query_raw(ours, NoTls), theirs.read_exact(&mut request));
    written
        .and(Ok(read))
        .map_or(0, |_| i32::from_be_bytes([request[8], request[9], request[10], request[11]]))
}

#[cfg(test)]
pub(crate) mod tests {
    use ringfence_core::{BackendUrl, Effect};
    use ringfence_servers::{Pgbouncer, Postgres, PostgresOptions};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// A link to the server of a URL that hears nothing.
    pub(crate) fn link(url: &str) -> Result<Arc<Link>> {
        Ok(hearing_link(url)?.0)
    }

    /// A link to the server of a URL, and what it hears.
    fn hearing_link(url: &str) -> Result<(Arc<Link>, UnboundedReceiver<Heard>)> {
        let options = Options::parse(&BackendUrl::parse(url)?)?;
        let (ear, heard) = unbounded_channel();
        let link = Link::new(Arc::new(options), Handle::current(), move |what| drop(ear.send(what)));
        Ok((link, heard))
    }

    fn plain(sql: &str) -> Sql {
        Sql::new(sql, &[])
    }

    /// Asks for one value, which is text.
    pub(crate) async fn ask(link: &Link, sql: &str) -> Result<String> {
        let rows = link.query(&plain(sql), &[]).await?;
        Ok(rows[0].get(0))
    }

    const WHO: &str = "SELECT pg_catalog.pg_backend_pid()::text";
    const SLEEP: &str = "SELECT pg_catalog.pg_sleep(60)::text";

    /// Waits until a statement of ours that sleeps has begun.
    async fn it_sleeps(server: &Postgres) {
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        while server.psql(asleep).await == "0" {}
    }

    fn assert_error(error: &Error, kind: ErrorKind, effect: Effect, said: &str) {
        let is_so = error.kind() == kind && error.effect() == effect && error.to_string().contains(said);
        assert!(is_so, "expected {kind:?} with effect {effect:?} and {said:?}: {error:?}");
    }

    #[tokio::test]
    async fn a_link_opens_itself_by_port_and_socket_and_through_a_pooler() {
        let Some(server) = Postgres::start().await else { return };
        let Some(pooler) = Pgbouncer::start(&server, "transaction").await else { return };
        for (url, is_pooled) in [(server.url(), false), (server.socket_url(), false), (pooler.url(), true)] {
            let link = link(&url).unwrap();
            assert_eq!(link.session(), None);
            let double = Sql::new("SELECT $1::bigint * 2", &[Type::INT8]);
            for half in 1..4_i64 {
                let rows = link.query(&double, &[&half]).await.unwrap();
                assert_eq!(rows[0].get::<_, i64>(0), 2 * half, "{url}");
            }
            assert_eq!(link.session().unwrap().is_pooled, is_pooled, "{url}");
        }
    }

    #[tokio::test]
    async fn all_callers_share_one_connection() {
        let Some(server) = Postgres::start().await else { return };
        let link = link(&server.url()).unwrap();
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let link = Arc::clone(&link);
                tokio::spawn(async move { ask(&link, WHO).await.unwrap() })
            })
            .collect();
        let pid = link.session().map(|session| session.pid);
        assert_eq!(pid, None, "nothing is opened before it is needed");
        for call in calls {
            let pid = call.await.unwrap();
            assert_eq!(pid, link.session().unwrap().pid.to_string());
        }
        let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ringfence'";
        assert_eq!(server.psql(ours).await, "1");
    }

    /// A pooler gives statements of one client to several sessions of the server, which know nothing of what the others prepared.
    #[tokio::test]
    async fn behind_a_pooler_a_statement_needs_no_session() {
        let Some(server) = Postgres::start().await else { return };
        let Some(pooler) = Pgbouncer::start(&server, "transaction").await else { return };
        let link = link(&pooler.url()).unwrap();
        link.connect().await.unwrap();
        let text = "SELECT pg_catalog.pg_backend_pid()::text || $1::text";
        let who = Sql::new(text, &[Type::TEXT]);
        let mut pids = std::collections::BTreeSet::new();
        // As long as somebody keeps a session for a transaction, it is not lent to us.
        let mut others = Vec::new();
        for _ in 0..3 {
            let rows = link.query(&who, &[&"!"]).await.unwrap();
            pids.insert(rows[0].get::<_, String>(0));
            let mut other = server.session_by(&pooler.url());
            other.ask("BEGIN").await;
            others.push(other);
        }
        assert_eq!(pids.len(), 3, "{pids:?}");
    }

    /// There nothing can be set for a session, and whoever came second would be an error and no waiter.
    #[tokio::test]
    async fn behind_a_pooler_settings_that_keep_us_from_working_are_named() {
        let Some(server) = Postgres::start().await else { return };
        let settings =
            [("default_transaction_isolation", "serializable"), ("default_transaction_read_only", "on")];
        for (setting, value) in settings {
            server.psql("ALTER ROLE postgres RESET ALL").await;
            server.psql(&format!("ALTER ROLE postgres SET {setting} = '{value}'")).await;
            let Some(pooler) = Pgbouncer::start(&server, "transaction").await else { return };
            let error = link(&pooler.url()).unwrap().connect().await.unwrap_err();
            assert_error(&error, ErrorKind::Unsupported, Effect::None, &format!("SET {setting} = "));
            link(&server.url()).unwrap().connect().await.expect("without a pooler we set it ourselves");
        }
    }

    #[tokio::test]
    async fn what_the_server_refuses_had_no_effect_and_costs_no_connection() {
        let Some(server) = Postgres::start().await else { return };
        let link = link(&server.url()).unwrap();
        let before = ask(&link, WHO).await.unwrap();
        let error = ask(&link, "SELECT (1 / (pg_backend_pid() * 0))::text").await.unwrap_err();
        assert_error(&error, ErrorKind::Unavailable, Effect::None, "22012");
        // It is of a server that is slow, or of a table that is locked.
        let error = ask(&link, SLEEP).await.unwrap_err();
        assert_error(&error, ErrorKind::Unavailable, Effect::None, "locked our tables");
        assert_eq!(ask(&link, WHO).await.unwrap(), before);
    }

    #[tokio::test]
    async fn a_connection_that_is_ended_is_told_and_replaced() {
        let Some(server) = Postgres::start().await else { return };
        let (link, mut heard) = hearing_link(&server.url()).unwrap();
        link.connect().await.unwrap();
        let first = link.session().unwrap();
        // While nothing is under way, nobody fails on it.
        assert_eq!(server.terminate_backends().await, 1);
        assert_eq!(heard.recv().await, Some(Heard::Ended { serial: first.serial }));
        ask(&link, WHO).await.unwrap();
        let second = link.session().unwrap();
        assert!(second.serial > first.serial && second.pid != first.pid, "{first:?} {second:?}");
        // What was under way may have been done.
        let (asked, ()) = tokio::join!(ask(&link, SLEEP), async {
            it_sleeps(&server).await;
            server.terminate_backends().await;
        });
        let said = "somebody there, ended our connection (57P01";
        assert_error(&asked.unwrap_err(), ErrorKind::Unavailable, Effect::Unknown, said);
        assert_eq!(heard.recv().await, Some(Heard::Ended { serial: second.serial }));
        ask(&link, WHO).await.unwrap();
        assert!(heard.try_recv().is_err(), "the end of a connection is told once");
    }

    #[tokio::test]
    async fn a_server_that_is_silent_is_given_up() {
        let Some(server) = Postgres::start().await else { return };
        let (link, mut heard) = hearing_link(&server.url()).unwrap();
        link.connect().await.unwrap();
        let serial = link.session().unwrap().serial;
        server.stop();
        let error = ask(&link, WHO).await.unwrap_err();
        assert_error(&error, ErrorKind::Unavailable, Effect::Unknown, "does not answer in time");
        assert_eq!(heard.recv().await, Some(Heard::Ended { serial }));
        let error = link.connect().await.unwrap_err();
        assert_error(&error, ErrorKind::Unavailable, Effect::None, "does not answer in time");
        server.resume();
        ask(&link, WHO).await.unwrap();
    }

    /// A `VACUUM FULL` of the whole database comes to these tables as well, and waits there for whoever reads them.
    #[tokio::test]
    async fn who_connects_while_a_table_of_ours_is_locked_is_told_so() {
        let Some(server) = Postgres::start().await else { return };
        link(&server.url()).unwrap().connect().await.unwrap();
        for table in ["meta", "histories"] {
            let mut theirs = server.session();
            let lock = format!("BEGIN; LOCK TABLE ringfence.{table} IN ACCESS EXCLUSIVE MODE");
            assert_eq!(theirs.ask(&lock).await, "");
            let late = link(&server.url()).unwrap();
            let told = tokio::time::timeout(10 * ANSWER_PATIENCE, late.connect()).await;
            let error = told.unwrap_or_else(|_| panic!("{table}: nobody says anything")).unwrap_err();
            assert_error(&error, ErrorKind::Unavailable, Effect::None, "in time");
            // Nobody is left on the server who waits for it.
            let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
            while server.psql(waits).await != "0" {}
            assert_eq!(theirs.ask("COMMIT").await, "");
            late.connect().await.expect(table);
        }
    }

    #[tokio::test]
    async fn what_waits_is_cancelled_and_what_is_dropped_is_nobodys() {
        // A server may signal twice, the process and its group, and the second signal may hit what comes next: 15 does.
        let was_hit = |error: &Error| assert_error(error, ErrorKind::Unavailable, Effect::None, "57014");
        let sleep_and_drop = async |link: &Link, server: &Postgres| {
            loop {
                tokio::select! {
                    asked = ask(link, SLEEP) => was_hit(&asked.expect_err("it sleeps for long")),
                    () = it_sleeps(server) => return,
                }
            }
        };
        for options in [PostgresOptions::new(), PostgresOptions::new().tls()] {
            let Some(server) = options.start().await else { return };
            let options = Options::parse(&BackendUrl::parse(&server.url()).unwrap()).unwrap();
            let patient = vec![("statement_timeout", "0".to_owned())];
            let link = Link::with_settings(Arc::new(options), Handle::current(), patient, |_| ());
            let sleep = plain(SLEEP);
            let (asked, ()) = tokio::join!(link.query_within(Duration::MAX, &sleep, &[]), async {
                it_sleeps(&server).await;
                link.cancel();
            });
            was_hit(&asked.unwrap_err());
            let session = link.session();
            sleep_and_drop(&link, &server).await;
            link.cancel();
            let answer = loop {
                match ask(&link, "SELECT 'mine'").await {
                    Ok(answer) => break answer,
                    Err(error) => was_hit(&error),
                }
            };
            assert_eq!(answer, "mine");
            assert_eq!(link.session(), session);
            // A session that is hung up ends, whatever it waits for.
            sleep_and_drop(&link, &server).await;
            link.hang_up();
            assert_eq!(link.session(), None);
            let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ringfence'";
            while server.psql(ours).await != "0" {}
        }
    }

    #[tokio::test]
    async fn what_is_notified_is_heard() {
        let Some(server) = Postgres::start().await else { return };
        let (link, mut heard) = hearing_link(&server.url()).unwrap();
        link.query(&plain("LISTEN news"), &[]).await.unwrap();
        server.psql("NOTIFY news, 'it rains'").await;
        let expected = Heard::Notification { channel: "news".to_owned(), payload: "it rains".to_owned() };
        assert_eq!(heard.recv().await, Some(expected));
    }

    #[tokio::test]
    async fn the_primary_is_found_among_the_hosts() {
        let Some(mut server) = Postgres::start().await else { return };
        let standby = server.standby().await;
        let [one, other] = [&server, &standby].map(|server| format!("127.0.0.1:{}", server.port()));
        let url = format!("postgres://postgres@{other},{one}/postgres?target_session_attrs=read-write");
        let link = link(&url).unwrap();
        let port = "SELECT pg_catalog.current_setting('port')";
        assert_eq!(ask(&link, port).await.unwrap(), server.port().to_string());
        let error = super::tests::link(&standby.url()).unwrap().connect().await.unwrap_err();
        assert_error(&error, ErrorKind::Unavailable, Effect::None, "it is a standby");
        server.kill();
        let error = ask(&link, WHO).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
        standby.promote().await;
        assert_eq!(ask(&link, port).await.unwrap(), standby.port().to_string());
    }

    #[tokio::test]
    async fn who_is_not_let_in_learns_why() {
        let Some(server) = PostgresOptions::new().password("it's").start().await else { return };
        server.psql("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0").await;
        let place = format!("127.0.0.1:{}", server.port());
        let free = format!("postgres://postgres:it's@{place}");
        for (url, kind, said) in [
            (format!("postgres://postgres:its@{place}/postgres"), ErrorKind::Refused, "our user or password"),
            (format!("postgres://nobody:its@{place}/postgres"), ErrorKind::Refused, "our user or password"),
            (format!("postgres://postgres@{place}/postgres"), ErrorKind::Refused, "the URL has none"),
            (format!("{free}/none"), ErrorKind::InvalidUrl, "no such database"),
            (format!("{free}/latin"), ErrorKind::Unsupported, "encoded in LATIN1"),
            ("postgres://ann@127.0.0.1:1/db".to_owned(), ErrorKind::Unavailable, "cannot be reached"),
            ("postgres:///db?host=/no/such/folder".to_owned(), ErrorKind::Unavailable, "cannot be reached"),
        ] {
            let error = link(&url).unwrap().connect().await.unwrap_err();
            assert_error(&error, kind, Effect::None, said);
            assert!(!error.to_string().contains("it's"), "a secret is shown: {error}");
        }
        let passwords =
            [format!("{free}/postgres"), format!("postgres://{place}?user=postgres&password=it's")];
        for url in passwords {
            link(&url).unwrap().connect().await.expect(&url);
        }
    }

    #[tokio::test]
    async fn a_server_without_a_connection_left_says_so() {
        let options = PostgresOptions::new().set("max_connections", "5");
        let Some(server) = options.set("superuser_reserved_connections", "1").start().await else { return };
        server.psql("CREATE ROLE ann LOGIN").await;
        server.psql("GRANT CREATE ON DATABASE postgres TO ann").await;
        let links: Vec<_> = (0..4).map(|_| link(&server.url_of("ann")).unwrap()).collect();
        for link in &links {
            link.connect().await.unwrap();
        }
        let late = link(&server.url_of("ann")).unwrap();
        let error = late.connect().await.unwrap_err();
        assert_error(&error, ErrorKind::Unavailable, Effect::None, "no connection left");
        drop(links);
        // Each takes its connection along, which the server notices when it looks.
        while late.connect().await.is_err() {}
    }
}
