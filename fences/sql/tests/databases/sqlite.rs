//! SQLite, in a file.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::ErrorKind;
use ringfence_servers::{Process, require};
use ringfence_sql::{Conflict, FenceColumn, Key, Rows, SideTable, commit};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use tempfile::TempDir;

use crate::stage::{TABLES, expect_conflict, expect_error, token, within};

#[path = "cases.rs"]
#[expect(clippy::duplicate_mod, reason = "the cases are the same on every database, and their types are not")]
mod cases;

type Tx = sqlx::Transaction<'static, sqlx::Sqlite>;

#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) pool: SqlitePool,
    folder: Arc<TempDir>,
}

impl Stage {
    pub(crate) async fn set() -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let options =
            SqliteConnectOptions::new().filename(folder.path().join("shop.db")).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).busy_timeout(ringfence_testkit::PATIENCE);
        let pool = SqlitePoolOptions::new().max_connections(12).connect_with(options).await.unwrap();
        for sql in TABLES {
            sqlx::query(sql).execute(&pool).await.unwrap();
        }
        Some(Self { pool, folder: Arc::new(folder) })
    }

    async fn begin(&self) -> Tx {
        self.pool.begin_with("BEGIN IMMEDIATE").await.unwrap()
    }

    async fn begin_deferred(&self) -> Tx {
        self.pool.begin().await.unwrap()
    }

    /// Who waits here asks again and again; nobody can see that.
    #[expect(clippy::unused_async, reason = "the other databases are asked")]
    async fn waiting(&self, _: usize) {}
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
async fn a_read_that_becomes_a_write_too_late_is_a_conflict() {
    let Some(stage) = stage().await else { return };
    let mut late = stage.begin_deferred().await;
    sqlx::query("SELECT 1 FROM parcels").fetch_all(&mut *late).await.unwrap();
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "it", token("5.a")).await.unwrap();
    commit(tx).await.unwrap();
    let admitted = fences().admit(&mut late, "it", token("6.b")).await;
    expect_conflict("its snapshot is older", admitted, Conflict::SerializationFailure);
    drop(late);
    // Where nothing was read before, it is the same as to begin immediately.
    let mut tx = stage.begin_deferred().await;
    fences().admit(&mut tx, "it", token("6.b")).await.unwrap();
    commit(tx).await.unwrap();
}

#[tokio::test]
async fn a_busy_timeout_is_told() {
    let Some(stage) = stage().await else { return };
    let mut one = stage.begin().await;
    fences().admit(&mut one, "it", token("1.a")).await.unwrap();
    let file = SqliteConnectOptions::new().filename(stage.folder.path().join("shop.db"));
    let hasty = SqlitePool::connect_with(file.busy_timeout(Duration::from_millis(20))).await.unwrap();
    let mut two = hasty.begin().await.unwrap();
    expect_conflict("it waited", fences().admit(&mut two, "it", token("2.b")).await, Conflict::Busy);
}

#[tokio::test]
async fn keys_are_of_the_types_that_a_database_has() {
    let Some(stage) = stage().await else { return };
    for sql in [
        "CREATE TABLE things (id TEXT PRIMARY KEY, raw BLOB UNIQUE, small INTEGER UNIQUE, seen INTEGER)",
        "INSERT INTO things VALUES ('01234567-89ab-cdef-0123-456789abcdef', x'00ff', 7, NULL)",
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
        let rows = Rows::new("things", column).unwrap().in_schema("main").unwrap();
        let fence = FenceColumn::new(rows, "seen").unwrap();
        fence.admit(&mut tx, key.clone(), token("5.a")).await.unwrap();
        let late = fence.admit(&mut tx, key, token("4.a")).await;
        expect_error(column, late, ErrorKind::Stale, &["row main.things/"]);
    }
}

/// Another process, in another language, by the SQL that the page has: it holds the mark, is killed in the middle, and is late.
#[tokio::test]
async fn another_language_joins_by_the_same_statements() {
    const PROGRAM: &str = r#"
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
def admit(sequence, nonce):
    connection.execute(sys.argv[2], ("it", sequence, nonce))
    return connection.execute("SELECT changes()").fetchone()[0] == 1
for line in sys.stdin:
    word, *rest = line.split()
    if word == "admit":
        connection.execute("BEGIN IMMEDIATE")
        print("admitted" if admit(int(rest[0]), rest[1]) else "stale", flush=True)
    elif word == "commit":
        connection.execute("COMMIT")
        print("committed", flush=True)
"#;
    let Some(python) = require("python3") else { return };
    let Some(stage) = stage().await else { return };
    let start = || {
        let mut command = Command::new(&python);
        command
            .args(["-c", PROGRAM])
            .arg(stage.folder.path().join("shop.db"))
            .arg(crate::page::sqlite_admits());
        Process::start(command).unwrap()
    };
    let mut program = start();
    let mut ask = async |line: &'static str| {
        program.send(line).unwrap();
        within("answer", program.line()).await.expect("it goes on")
    };
    assert_eq!(ask("admit 5 ab").await, "admitted");
    assert_eq!(ask("commit").await, "committed");
    let mut tx = stage.begin().await;
    expect_error("late", fences().admit(&mut tx, "it", token("4.cd")).await, ErrorKind::Stale, &["5.ab"]);
    fences().admit(&mut tx, "it", token("6.cd")).await.unwrap();
    commit(tx).await.unwrap();
    assert_eq!(ask("admit 5 ab").await, "stale");
    assert_eq!(ask("commit").await, "committed");
    assert_eq!(ask("admit 9 ef").await, "admitted");
    program.kill().unwrap();
    let mut tx = stage.begin().await;
    fences()
        .admit(&mut tx, "it", token("7.a"))
        .await
        .expect("what was not committed is gone with its process");
}
