//! MariaDB, whose protocol and dialect are MySQL's.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Effect, ErrorKind};
use ringfence_servers::MariaDb;
use ringfence_sql::{Conflict, FenceColumn, Key, Rows, SideTable, commit};
use sqlx::Row;
use sqlx::mysql::{MySqlPool, MySqlPoolOptions};

use crate::stage::{TABLES, expect_conflict, expect_error, token, within};

#[path = "cases.rs"]
#[expect(clippy::duplicate_mod, reason = "the cases are the same on every database, and their types are not")]
mod cases;

type Tx = sqlx::Transaction<'static, sqlx::MySql>;

/// As a user has it who sets it for his pool, or for the server.
const READ_COMMITTED: &str = "--transaction-isolation=READ-COMMITTED";

#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) pool: MySqlPool,
    _server: Arc<MariaDb>,
}

impl Stage {
    pub(crate) async fn set() -> Option<Self> {
        Self::set_with(&[READ_COMMITTED]).await
    }

    async fn set_with(settings: &[&str]) -> Option<Self> {
        let server = MariaDb::start(settings).await?;
        let pool = MySqlPoolOptions::new().max_connections(12).connect(&server.url()).await.unwrap();
        for sql in TABLES {
            sqlx::query(sql).execute(&pool).await.unwrap();
        }
        Some(Self { pool, _server: Arc::new(server) })
    }

    async fn begin(&self) -> Tx {
        self.pool.begin().await.unwrap()
    }

    async fn begin_deferred(&self) -> Tx {
        self.begin().await
    }

    /// Returns when so many statements wait for locks.
    async fn waiting(&self, statements: usize) {
        let look = "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'";
        let seen = async {
            let waits = || sqlx::query(look).fetch_one(&self.pool);
            while waits().await.unwrap().get::<String, _>(1) != statements.to_string() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within("statements that wait", seen).await;
    }
}

fn fences() -> SideTable {
    SideTable::new("ringfence_fences").unwrap()
}

async fn stage(settings: &[&str]) -> Option<Stage> {
    let stage = Stage::set_with(settings).await?;
    let mut tx = stage.begin().await;
    fences().create(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    Some(stage)
}

async fn state(tx: &mut Tx, sql: &'static str) -> String {
    sqlx::query(sql).fetch_one(&mut **tx).await.unwrap().get(0)
}

/// In the server's own isolation, REPEATABLE READ.
#[tokio::test]
async fn who_admits_first_sees_what_the_last_holder_committed() {
    let Some(stage) = stage(&[]).await else { return };
    let column = FenceColumn::new(Rows::new("parcels", "id").unwrap(), "fence_token").unwrap();
    for round in ["side", "column"] {
        let (old, young) = (token("5.a"), token("6.b"));
        let mut first = stage.begin().await;
        let (fence, other) = (column.clone(), stage.clone());
        let by_column = round == "column";
        if by_column {
            fence.admit(&mut first, 1, old).await.unwrap();
        } else {
            fences().admit(&mut first, "it", old).await.unwrap();
        }
        let second = tokio::spawn(async move {
            let mut tx = other.begin().await;
            if by_column {
                fence.admit(&mut tx, 1, young).await.unwrap();
            } else {
                fences().admit(&mut tx, "it", young).await.unwrap();
            }
            state(&mut tx, "SELECT state FROM parcels WHERE id = 1").await
        });
        stage.waiting(1).await;
        sqlx::query("UPDATE parcels SET state = ? WHERE id = 1")
            .bind(round)
            .execute(&mut *first)
            .await
            .unwrap();
        commit(first).await.unwrap();
        assert_eq!(within("end of the wait", second).await.unwrap(), round);
    }
}

/// The hazard that the page names, and the ways around it.
#[tokio::test]
async fn who_reads_first_sees_the_past_but_for_update() {
    let Some(stage) = stage(&[]).await else { return };
    let mut late = stage.begin().await;
    state(&mut late, "SELECT state FROM parcels WHERE id = 2").await;
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("5.a")).await.unwrap();
    sqlx::query("UPDATE parcels SET state = 'sent' WHERE id = 1").execute(&mut *tx).await.unwrap();
    commit(tx).await.unwrap();
    fences().admit(&mut late, "it", token("6.b")).await.unwrap();
    assert_eq!(
        state(&mut late, "SELECT state FROM parcels WHERE id = 1").await,
        "new",
        "the snapshot is older"
    );
    assert_eq!(state(&mut late, "SELECT state FROM parcels WHERE id = 1 FOR UPDATE").await, "sent");
    // Stale it is refused all the same: the mark is looked at as it is.
    let mut tx = stage.begin().await;
    state(&mut tx, "SELECT state FROM parcels WHERE id = 2").await;
    commit(late).await.unwrap();
    expect_error("late", fences().admit(&mut tx, "it", token("5.a")).await, ErrorKind::Stale, &["6.b"]);
}

/// As from MariaDB 11.6.2 on.
#[tokio::test]
async fn with_snapshot_isolation_who_reads_first_has_a_conflict() {
    let Some(stage) = stage(&["--innodb-snapshot-isolation=ON"]).await else { return };
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("5.a")).await.unwrap();
    commit(tx).await.unwrap();
    let mut late = stage.begin().await;
    state(&mut late, "SELECT state FROM parcels WHERE id = 2").await;
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("6.b")).await.unwrap();
    commit(tx).await.unwrap();
    let admitted = fences().admit(&mut late, "it", token("7.c")).await;
    expect_conflict("its snapshot is older", admitted, Conflict::SerializationFailure);
}

#[tokio::test]
async fn two_that_wait_for_each_other_are_told() {
    let Some(stage) = stage(&[]).await else { return };
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
    let Some(stage) = stage(&[]).await else { return };
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("9.a")).await.unwrap();
    let id: u64 = sqlx::query("SELECT CONNECTION_ID()").fetch_one(&mut *tx).await.unwrap().get(0);
    let kill = sqlx::AssertSqlSafe(format!("KILL {id}"));
    sqlx::query(kill).execute(&stage.pool).await.unwrap();
    let error = fences().admit(&mut tx, "it", token("9.a")).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    let error = commit(tx).await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::Unknown), "{error:?}");
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("8.b")).await.unwrap();
}

#[tokio::test]
async fn a_lock_wait_timeout_is_told() {
    let Some(stage) = stage(&["--innodb-lock-wait-timeout=1"]).await else { return };
    let mut one = stage.begin().await;
    fences().admit(&mut one, "it", token("1.a")).await.unwrap();
    let mut two = stage.begin().await;
    expect_conflict("it waited", fences().admit(&mut two, "it", token("2.b")).await, Conflict::Busy);
}

#[tokio::test]
async fn keys_are_of_the_types_that_a_database_has() {
    let Some(stage) = stage(&[]).await else { return };
    for sql in [
        "CREATE TABLE things (id UUID PRIMARY KEY, raw BINARY(2) UNIQUE, small SMALLINT UNIQUE, seen BIGINT)",
        "INSERT INTO things VALUES ('01234567-89ab-4def-8123-456789abcdef', x'00ff', 7, NULL)",
    ] {
        sqlx::query(sql).execute(&stage.pool).await.unwrap();
    }
    let keys = [
        ("id", Key::Uuid(0x0123_4567_89ab_4def_8123_4567_89ab_cdef)),
        ("raw", Key::from(&b"\x00\xff"[..])),
        ("small", Key::from(7)),
    ];
    let mut tx = stage.begin().await;
    for (column, key) in keys {
        let rows = Rows::new("things", column).unwrap().in_schema("shop").unwrap();
        let fence = FenceColumn::new(rows, "seen").unwrap();
        fence.admit(&mut tx, key.clone(), token("5.a")).await.unwrap();
        let late = fence.admit(&mut tx, key, token("4.a")).await;
        expect_error(column, late, ErrorKind::Stale, &["row shop.things/"]);
    }
}
