//! A server with the schema and a table of the caller's, and connections of either driver to it.

use std::fmt::Debug;
use std::time::Duration;

use ringfence::postgres::Conflict;
use ringfence::{Error, ErrorKind, FencingToken, Locks, Result, Retry};
use ringfence_servers::{Postgres, PostgresOptions};
use ringfence_testkit::PATIENCE;
use sqlx::Connection;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

/// A role that may use the schema, and nothing else.
pub(crate) const CLERK: &str = "clerk";

pub(crate) struct Stage {
    pub(crate) server: Postgres,
}

impl Stage {
    /// A server with our schema, and a table `orders` with the rows 1 to 5 that everybody may write to.
    pub(crate) async fn set() -> Option<Self> {
        // A deadlock is found sooner than after the usual second.
        let server = PostgresOptions::new().set("deadlock_timeout", "50ms").start().await?;
        install(&server, "ringfence").await;
        server
            .psql(
                "CREATE TABLE orders (id bigint PRIMARY KEY, state text NOT NULL, fence_token bigint);
                 INSERT INTO orders SELECT id, 'new' FROM generate_series(1, 5) AS id;
                 CREATE ROLE clerk LOGIN;
                 GRANT USAGE ON SCHEMA ringfence TO clerk;
                 GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ringfence TO clerk;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO PUBLIC",
            )
            .await;
        Some(Self { server })
    }

    pub(crate) async fn client(&self) -> Client {
        self.client_of("postgres").await
    }

    pub(crate) async fn client_of(&self, role: &str) -> Client {
        let config: Config = self.server.url_of(role).parse().expect("a URL");
        let stream = TcpStream::connect(("127.0.0.1", self.server.port())).await.expect("a server that runs");
        let (client, connection) = config.connect_raw(stream, NoTls).await.expect("a server that lets us in");
        tokio::spawn(connection);
        client
    }

    pub(crate) async fn sqlx(&self) -> sqlx::PgConnection {
        sqlx::PgConnection::connect(&self.server.url()).await.expect("a server that runs")
    }

    /// Returns when so many statements wait for locks.
    pub(crate) async fn waiting(&self, statements: usize) {
        let look = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let seen = async {
            while self.server.psql(look).await.trim() != statements.to_string() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("statements that wait for locks", seen).await;
    }

    pub(crate) async fn state(&self, order: i64) -> String {
        self.server.psql(&format!("SELECT state FROM orders WHERE id = {order}")).await.trim().to_owned()
    }
}

/// Makes our schema, under this name.
pub(crate) async fn install(server: &Postgres, schema: &str) {
    let url = format!("{}?schema={schema}", server.url());
    Locks::connect(&url).await.expect("a server that lets its owner make a schema");
}

pub(crate) fn token(sequence: u64, nonce: &str) -> FencingToken {
    FencingToken::new(sequence, nonce.parse().expect("a nonce")).expect("a sequence")
}

pub(crate) async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"))
}

/// What a task comes to that is not to be waited for for ever.
pub(crate) async fn outcome<T>(what: &str, task: JoinHandle<T>) -> T {
    within(what, task).await.expect("a task that does not panic")
}

/// Checks that it failed because other transactions were in the way, and says so everywhere it is asked.
pub(crate) fn expect_conflict<T: Debug>(what: &str, result: Result<T>, conflict: Conflict) {
    let error = result.expect_err(what);
    assert_eq!(Conflict::of(&error), Some(conflict), "{what}: {error:?}");
    let kind = if conflict == Conflict::Busy { ErrorKind::WaitElapsed } else { ErrorKind::Unavailable };
    assert_eq!((error.kind(), error.retry()), (kind, Retry::Later), "{what}: {error:?}");
}

/// Checks that it failed in this way, and that the error says these words.
pub(crate) fn expect_error<T: Debug>(
    what: &str,
    result: Result<T>,
    kind: ErrorKind,
    words: &[&str],
) -> Error {
    let error = result.expect_err(what);
    assert_eq!(error.kind(), kind, "{what}: {error:?}");
    assert_eq!(Conflict::of(&error), None, "{what}: {error:?}");
    for word in words {
        assert!(error.to_string().contains(word), "{what}: {error} does not say {word:?}");
    }
    error
}
