//! What the tests have in common: a database of the test's own, relays in it, and a sink that remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence::patterns::outbox::{self, Delivery, Grants, Message, MessageId, Outbox, Relay, Relayed, Sink};
use ringfence::{BoxFuture, Error, ErrorKind, Result};
use ringfence_servers::Postgres;
use ringfence_testkit::PATIENCE;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, PgPool, SqlitePool};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// How long messages may take: each costs commits, and may have pauses between its tries, on a disk that others write to as well.
const DELIVERY: Duration = Duration::from_mins(1);

/// One test for each database: `on_both!(a_message_is_sent)` for an `async fn a_message_is_sent(stage: Stage)`.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
                let Some(stage) = $crate::stage::Stage::postgres().await else { return };
                super::$name(stage).await;
            })*
        }
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $name() {
                super::$name($crate::stage::Stage::sqlite().await).await;
            })*
        }
    };
}

/// A database with an outbox, which goes with the test.
pub(crate) struct Stage {
    pub(crate) url: String,
    pub(crate) database: Database,
    /// Where the file is, if it is one.
    _folder: Option<TempDir>,
}

pub(crate) enum Database {
    Postgres(Box<Postgres>, PgPool),
    Sqlite(SqlitePool),
}

impl Stage {
    pub(crate) async fn postgres() -> Option<Self> {
        let server = Postgres::start().await?;
        let stage = Self::of_server(server);
        stage.outbox().setup(&Grants::none()).await.unwrap();
        Some(stage)
    }

    /// Without an outbox.
    pub(crate) fn of_server(server: Postgres) -> Self {
        let url = server.url();
        let pool = PgPool::connect_lazy(&url).unwrap();
        Self { url, database: Database::Postgres(Box::new(server), pool), _folder: None }
    }

    pub(crate) async fn sqlite() -> Self {
        let stage = Self::of_file().await;
        stage.outbox().setup(&Grants::none()).await.unwrap();
        stage
    }

    /// Without an outbox.
    pub(crate) async fn of_file() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app.db");
        let options =
            SqliteConnectOptions::new().filename(&file).create_if_missing(true).busy_timeout(PATIENCE);
        let pool = SqlitePool::connect_with(options).await.unwrap();
        Self {
            url: format!("sqlite:{}", file.display()),
            database: Database::Sqlite(pool),
            _folder: Some(folder),
        }
    }

    pub(crate) fn outbox(&self) -> Outbox {
        Outbox::open(&self.url).unwrap()
    }

    /// Where the messages are.
    pub(crate) fn table(&self) -> &'static str {
        match self.database {
            Database::Postgres(..) => "ringfence_outbox.messages",
            Database::Sqlite(_) => "ringfence_outbox_messages",
        }
    }

    pub(crate) async fn sql(&self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        match &self.database {
            Database::Postgres(_, pool) => sql.execute(pool).await.map(|_| ()),
            Database::Sqlite(pool) => sql.execute(pool).await.map(|_| ()),
        }
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.database {
            Database::Postgres(_, pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
            Database::Sqlite(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
        }
    }

    /// Enqueues these in a transaction of their own, which is committed or rolled back.
    pub(crate) async fn enqueue(&self, messages: &[Message], commits: bool) -> Result<Vec<MessageId>> {
        let mut ids = Vec::new();
        match &self.database {
            Database::Postgres(_, pool) => {
                let mut tx = pool.begin().await.unwrap();
                for message in messages {
                    ids.push(outbox::enqueue(&mut tx, message).await?);
                }
                if commits { tx.commit().await } else { tx.rollback().await }.unwrap();
            }
            Database::Sqlite(pool) => {
                let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
                for message in messages {
                    ids.push(outbox::enqueue(&mut tx, message).await?);
                }
                if commits { tx.commit().await } else { tx.rollback().await }.unwrap();
            }
        }
        Ok(ids)
    }

    pub(crate) async fn put(&self, messages: &[Message]) -> Vec<MessageId> {
        self.enqueue(messages, true).await.unwrap()
    }

    /// A relay that goes on until it is told to stop.
    pub(crate) fn relay(&self, how: impl FnOnce(Relay) -> Relay, sink: &Arc<impl Sink>) -> Running {
        let relay = how(self.outbox().relay().pauses(Duration::from_millis(5), Duration::from_millis(20)));
        let (stop, stopped) = oneshot::channel::<()>();
        let sink = Arc::clone(sink) as Arc<dyn Sink>;
        let task = tokio::spawn(async move { relay.run(sink, async { drop(stopped.await) }).await });
        Running { stop, task }
    }
}

pub(crate) struct Running {
    stop: oneshot::Sender<()>,
    pub(crate) task: JoinHandle<Result<Relayed>>,
}

impl Running {
    pub(crate) async fn stop(self) -> Relayed {
        drop(self.stop);
        self.task.await.unwrap().unwrap()
    }
}

pub(crate) fn message(key: impl Into<Option<&'static str>>, payload: impl Display) -> Message {
    let message = Message::new("t", payload.to_string()).unwrap();
    match key.into() {
        Some(key) => message.key(key).unwrap(),
        None => message,
    }
}

/// What a sink is to answer.
pub(crate) type Answer = Box<dyn Fn(&Delivery) -> Result<()> + Send + Sync>;

/// A sink that remembers what it was given, and answers as it is told.
pub(crate) struct Memory {
    answer: Answer,
    /// How long each takes.
    takes: Duration,
    given: watch::Sender<Vec<(Delivery, bool)>>,
    /// The keys of which a message is on its way.
    under_way: Mutex<BTreeSet<String>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    pub(crate) fn new() -> Arc<Self> {
        Self::answering(|_| Ok(()))
    }

    pub(crate) fn answering(answer: impl Fn(&Delivery) -> Result<()> + Send + Sync + 'static) -> Arc<Self> {
        Self::slow(Duration::ZERO, answer)
    }

    pub(crate) fn slow(
        takes: Duration,
        answer: impl Fn(&Delivery) -> Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            answer: Box::new(answer),
            takes,
            given: watch::Sender::default(),
            under_way: Mutex::default(),
        })
    }

    /// What it was given, and whether it took it.
    pub(crate) fn given(&self) -> Vec<(Delivery, bool)> {
        self.given.borrow().clone()
    }

    /// What it took.
    pub(crate) fn taken(&self) -> Vec<Delivery> {
        self.given().into_iter().filter(|(_, is_taken)| *is_taken).map(|(message, _)| message).collect()
    }

    /// The payloads that it took, by key.
    pub(crate) fn payloads(&self) -> BTreeMap<Option<String>, Vec<String>> {
        let mut payloads: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for message in self.taken() {
            payloads.entry(message.key.clone()).or_default().push(text(&message));
        }
        payloads
    }

    /// Waits until what it was given is so.
    pub(crate) async fn until(&self, what: &str, mut is_so: impl FnMut(&[(Delivery, bool)]) -> bool) {
        let mut given = self.given.subscribe();
        let came = tokio::time::timeout(DELIVERY, given.wait_for(|given| is_so(given))).await;
        assert!(came.is_ok(), "not within {DELIVERY:?}: {what}; given: {:?}", self.given());
    }

    /// Waits until it has taken so many.
    pub(crate) async fn until_taken(&self, count: usize) {
        let what = format!("{count} are taken");
        self.until(&what, |given| given.iter().filter(|(_, is_taken)| *is_taken).count() >= count).await;
    }
}

pub(crate) fn text(message: &Delivery) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

pub(crate) fn refused() -> Error {
    Error::new(ErrorKind::Refused, "no, thank you")
}

pub(crate) fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "nobody is here")
}

impl Sink for Memory {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            if let Some(key) = &message.key {
                let is_alone = self.under_way.lock().unwrap().insert(key.clone());
                assert!(is_alone, "two messages of the key {key:?} are on their way at once");
            }
            tokio::time::sleep(self.takes).await;
            let answer = (self.answer)(message);
            if let Some(key) = &message.key {
                self.under_way.lock().unwrap().remove(key);
            }
            self.given.send_modify(|given| given.push((message.clone(), answer.is_ok())));
            answer
        })
    }
}
