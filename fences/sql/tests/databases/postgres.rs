//! PostgreSQL.

use std::sync::Arc;

use ringfence_core::{Effect, ErrorKind};
use ringfence_servers::PostgresOptions;
use ringfence_sql::{Conflict, FenceColumn, Key, Rows, SideTable, commit};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::stage::{TABLES, expect_conflict, expect_error, token, within};

#[path = "cases.rs"]
#[expect(clippy::duplicate_mod, reason = "the cases are the same on every database, and their types are not")]
mod cases;

type Tx = sqlx::Transaction<'static, sqlx::Postgres>;

#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) pool: PgPool,
    server: Arc<ringfence_servers::Postgres>,
}

impl Stage {
    pub(crate) async fn set() -> Option<Self> {
        let server = PostgresOptions::new().set("deadlock_timeout", "50ms").start().await?;
        let pool = PgPoolOptions::new().max_connections(12).connect(&server.url()).await.unwrap();
        for sql in TABLES {
            sqlx::query(sql).execute(&pool).await.unwrap();
        }
        Some(Self { pool, server: Arc::new(server) })
    }

    async fn begin(&self) -> Tx {
        self.pool.begin().await.unwrap()
    }

    async fn begin_deferred(&self) -> Tx {
        self.begin().await
    }

    /// Returns when so many statements wait for locks.
    async fn waiting(&self, statements: usize) {
        let look = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let seen = async {
            while self.server.psql(look).await.trim() != statements.to_string() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within("statements that wait", seen).await;
    }
}

fn fences() -> SideTable {
    SideTable::new("ringfence_fences").unwrap()
}

async fn stage() -> Option<Stage> {
    let stage = Stage::set().await?;
    let mut tx = stage.begin().await;
    fences().create(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    Some(stage)
}

#[tokio::test]
async fn a_snapshot_that_is_older_than_the_mark_is_a_conflict() {
    let Some(stage) = stage().await else { return };
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let begin = if level == "SERIALIZABLE" {
            "BEGIN ISOLATION LEVEL SERIALIZABLE"
        } else {
            "BEGIN ISOLATION LEVEL REPEATABLE READ"
        };
        let mut old = stage.pool.begin_with(begin).await.unwrap();
        sqlx::query("SELECT 1 FROM parcels").fetch_all(&mut *old).await.unwrap();
        // The same token once more: that writes as well.
        let mut tx = stage.begin().await;
        fences().admit(&mut tx, "it", token("5.a")).await.unwrap();
        commit(tx).await.unwrap();
        let admitted = fences().admit(&mut old, "it", token("6.b")).await;
        expect_conflict(level, admitted, Conflict::SerializationFailure);
        old.rollback().await.unwrap();
    }
}

#[tokio::test]
async fn two_that_wait_for_each_other_are_told() {
    let Some(stage) = stage().await else { return };
    let mut one = stage.begin().await;
    fences().admit(&mut one, "a", token("1.a")).await.unwrap();
    let other = stage.clone();
    let two = tokio::spawn(async move {
        let mut two = other.begin().await;
        fences().admit(&mut two, "b", token("2.b")).await.unwrap();
        fences().admit(&mut two, "a", token("2.b")).await
    });
    stage.waiting(1).await;
    let first = fences().admit(&mut one, "b", token("1.a")).await;
    drop(one);
    let second = within("end of the circle", two).await.unwrap();
    let failed = if first.is_err() { first } else { second };
    expect_conflict("one of them fails", failed, Conflict::Deadlock);
}

#[tokio::test]
async fn a_killed_connection_takes_the_mark_back() {
    let Some(stage) = stage().await else { return };
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("9.a")).await.unwrap();
    stage.server.terminate_backends().await;
    let error = fences().admit(&mut tx, "it", token("9.a")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let error = commit(tx).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("8.b")).await.unwrap();
}

#[tokio::test]
async fn a_lock_timeout_is_told() {
    let Some(stage) = stage().await else { return };
    let mut one = stage.begin().await;
    fences().admit(&mut one, "it", token("1.a")).await.unwrap();
    let mut two = stage.begin().await;
    sqlx::query("SET LOCAL lock_timeout = '20ms'").execute(&mut *two).await.unwrap();
    expect_conflict("it waited", fences().admit(&mut two, "it", token("2.b")).await, Conflict::Busy);
}

#[tokio::test]
async fn keys_are_of_the_types_that_a_database_has() {
    let Some(stage) = stage().await else { return };
    for sql in [
        "CREATE SCHEMA \"My shop\"",
        "CREATE TABLE \"My shop\".things (id uuid PRIMARY KEY, raw bytea UNIQUE, small smallint UNIQUE, seen bigint)",
        "INSERT INTO \"My shop\".things VALUES ('01234567-89ab-cdef-0123-456789abcdef', '\\x00ff', 7)",
    ] {
        sqlx::query(sql).execute(&stage.pool).await.unwrap();
    }
    let keys = [
        ("id", Key::Uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)),
        ("raw", Key::from(&b"\x00\xff"[..])),
        ("small", Key::from(7)),
    ];
    let mut tx = stage.begin().await;
    for (column, key) in keys {
        let rows = Rows::new("things", column).unwrap().in_schema("My shop").unwrap();
        let fence = FenceColumn::new(rows, "seen").unwrap();
        fence.admit(&mut tx, key.clone(), token("5.a")).await.unwrap();
        let late = fence.admit(&mut tx, key, token("4.a")).await;
        expect_error(column, late, ErrorKind::Stale, &["row My shop.things/"]);
    }
    let wrong =
        FenceColumn::new(Rows::new("things", "id").unwrap().in_schema("My shop").unwrap(), "seen").unwrap();
    expect_error(
        "a number",
        wrong.admit(&mut tx, 7, token("5.a")).await,
        ErrorKind::InvalidRequest,
        &["another type"],
    );
}

#[tokio::test]
async fn a_missing_right_and_a_read_only_transaction_are_told() {
    let Some(stage) = stage().await else { return };
    let mut tx = stage.begin().await;
    sqlx::query("CREATE ROLE clerk").execute(&mut *tx).await.unwrap();
    sqlx::query("SET LOCAL ROLE clerk").execute(&mut *tx).await.unwrap();
    expect_error(
        "no right",
        fences().admit(&mut tx, "it", token("1.a")).await,
        ErrorKind::Refused,
        &["right"],
    );
    expect_error(
        "it has failed",
        fences().admit(&mut tx, "it", token("1.a")).await,
        ErrorKind::InvalidRequest,
        &["roll it back"],
    );
    drop(tx);
    let mut tx = stage.pool.begin_with("BEGIN READ ONLY").await.unwrap();
    expect_error(
        "read only",
        fences().admit(&mut tx, "it", token("1.a")).await,
        ErrorKind::InvalidRequest,
        &["read-only"],
    );
}
