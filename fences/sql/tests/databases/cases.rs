//! What holds on every database. Each of them has this file once, with a stage of its own as `Stage`.

use std::cell::Cell;

use ringfence_core::{ErrorKind, FencingToken};
use ringfence_sql::{Conflict, FenceColumn, Key, Rows, SideTable, VersionColumn, commit, retry_on_conflict};
use sqlx::Row;

use super::{Stage, Tx};
use crate::stage::{expect_conflict, expect_error, token, within};

fn fences() -> SideTable {
    SideTable::new("ringfence_fences").unwrap()
}

fn parcels() -> Rows {
    Rows::new("parcels", "id").unwrap()
}

fn column() -> FenceColumn {
    FenceColumn::new(parcels(), "fence_token").unwrap().with_nonce("fence_nonce").unwrap()
}

/// A stage with the side table.
async fn stage() -> Option<Stage> {
    let stage = Stage::set().await?;
    let mut tx = stage.begin().await;
    fences().create(&mut tx).await.unwrap();
    fences().create(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    Some(stage)
}

async fn run(tx: &mut Tx, sql: &'static str) {
    sqlx::query(sql).execute(&mut **tx).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn state(tx: &mut Tx) -> String {
    let row = sqlx::query("SELECT state FROM parcels WHERE id = 1").fetch_one(&mut **tx).await.unwrap();
    row.get(0)
}

/// Either way in which a token is admitted to one thing.
#[derive(Clone, Copy, Debug)]
enum Fence {
    Side,
    Column,
}

const FENCES: [Fence; 2] = [Fence::Side, Fence::Column];

impl Fence {
    async fn admit(self, tx: &mut Tx, token: FencingToken) -> ringfence_core::Result<()> {
        match self {
            Self::Side => fences().admit(tx, "parcels/1", token).await,
            Self::Column => column().admit(tx, 1, token).await,
        }
    }
}

#[tokio::test]
async fn a_stale_token_and_a_collision_are_refused() {
    let Some(stage) = stage().await else { return };
    for fence in FENCES {
        let mut tx = stage.begin().await;
        fence.admit(&mut tx, token("5.ab")).await.unwrap();
        fence.admit(&mut tx, token("5.ab")).await.unwrap();
        commit(tx).await.unwrap();
        for (late, kind, words) in [
            ("4.ab", ErrorKind::Stale, ["4.ab is stale", "5.ab"]),
            ("5.cd", ErrorKind::TokenCollision, ["5.cd has the sequence of 5.ab", "1"]),
            ("0.ff", ErrorKind::Stale, ["0.ff is stale", "parcels"]),
        ] {
            let mut tx = stage.begin().await;
            let error = expect_error(late, fence.admit(&mut tx, token(late)).await, kind, &words);
            assert_eq!(error.mark(), Some(token("5.ab")), "{late}");
        }
        let mut tx = stage.begin().await;
        fence.admit(&mut tx, token("5.ab")).await.unwrap();
        fence.admit(&mut tx, token("9223372036854775807.ffffffffffffffff")).await.unwrap();
        expect_error(
            "its own past",
            fence.admit(&mut tx, token("5.ab")).await,
            ErrorKind::Stale,
            &["9223372036854775807"],
        );
        commit(tx).await.unwrap();
    }
}

#[tokio::test]
async fn the_older_of_two_waits_for_the_younger_and_is_refused() {
    let Some(stage) = stage().await else { return };
    for fence in FENCES {
        let mut young = stage.begin().await;
        fence.admit(&mut young, token("20.b")).await.unwrap();
        let other = stage.clone();
        let old = tokio::spawn(async move {
            let mut tx = other.begin().await;
            let admitted = fence.admit(&mut tx, token("10.a")).await;
            if admitted.is_ok() {
                run(&mut tx, "UPDATE parcels SET state = 'stale' WHERE id = 1").await;
                commit(tx).await.unwrap();
            }
            admitted
        });
        stage.waiting(1).await;
        run(&mut young, "UPDATE parcels SET state = 'young' WHERE id = 1").await;
        assert!(!old.is_finished(), "{fence:?}: the older one waits");
        commit(young).await.unwrap();
        let admitted = within("end of the wait", old).await.unwrap();
        expect_error("it is late", admitted, ErrorKind::Stale, &["10.a", "20.b"]);
        let mut tx = stage.begin().await;
        assert_eq!(state(&mut tx).await, "young", "{fence:?}");
    }
}

#[tokio::test]
async fn the_younger_of_two_waits_for_the_older_and_sees_what_it_wrote() {
    let Some(stage) = stage().await else { return };
    for (fence, [old, young]) in [(Fence::Side, ["10.a", "20.b"]), (Fence::Column, ["30.a", "40.b"])] {
        let mut first = stage.begin().await;
        fence.admit(&mut first, token(old)).await.unwrap();
        let other = stage.clone();
        let second = tokio::spawn(async move {
            let mut tx = other.begin().await;
            fence.admit(&mut tx, token(young)).await.unwrap();
            let seen = state(&mut tx).await;
            commit(tx).await.unwrap();
            seen
        });
        stage.waiting(1).await;
        run(&mut first, "UPDATE parcels SET state = 'old' WHERE id = 1").await;
        commit(first).await.unwrap();
        assert_eq!(within("end of the wait", second).await.unwrap(), "old", "{fence:?}");
        let mut tx = stage.begin().await;
        expect_error("it was overtaken", fence.admit(&mut tx, token(old)).await, ErrorKind::Stale, &[young]);
    }
}

/// Ten holders, each of whom believes that it holds, write in turns that nobody arranges.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stale_write_is_committed_however_holders_race() {
    let Some(stage) = stage().await else { return };
    for fence in FENCES {
        let mut tx = stage.begin().await;
        run(&mut tx, "DELETE FROM log").await;
        commit(tx).await.unwrap();
        let holders = (1..=10).map(|sequence| {
            let stage = stage.clone();
            tokio::spawn(async move {
                let token = token(&format!("{sequence}.{sequence:x}"));
                let mut written = 0;
                for _ in 0..8 {
                    let outcome = retry_on_conflict(50.try_into().unwrap(), || async {
                        let mut tx = stage.begin().await;
                        fence.admit(&mut tx, token).await?;
                        let last =
                            sqlx::query("SELECT COALESCE(MAX(number), 0) FROM log").fetch_one(&mut *tx).await;
                        let number: i64 = last.map_err(ringfence_sql::explain)?.get(0);
                        let write = format!("INSERT INTO log VALUES ({}, {sequence})", number + 1);
                        let write = sqlx::query(sqlx::AssertSqlSafe(write)).execute(&mut *tx).await;
                        write.map_err(ringfence_sql::explain)?;
                        commit(tx).await
                    });
                    match outcome.await {
                        Ok(()) => written += 1,
                        Err(error) if error.kind() == ErrorKind::Stale => break,
                        Err(error) => panic!("{error:?}"),
                    }
                    tokio::task::yield_now().await;
                }
                written
            })
        });
        let mut written = 0;
        for holder in holders.collect::<Vec<_>>() {
            written += within("end of a holder", holder).await.unwrap();
        }
        let mut tx = stage.begin().await;
        let log = sqlx::query("SELECT sequence FROM log ORDER BY number").fetch_all(&mut *tx).await.unwrap();
        let log: Vec<i64> = log.iter().map(|row| row.get(0)).collect();
        assert_eq!(log.len(), written, "{fence:?}: what was committed is there, once");
        assert!(log.is_sorted(), "{fence:?}: a stale write: {log:?}");
        assert_eq!(
            log.iter().filter(|sequence| **sequence == 10).count(),
            8,
            "{fence:?}: nobody overtakes the last"
        );
    }
}

#[tokio::test]
async fn a_mark_is_rolled_back_with_the_work() {
    let Some(stage) = stage().await else { return };
    for fence in FENCES {
        let mut tx = stage.begin().await;
        fence.admit(&mut tx, token("7.a")).await.unwrap();
        commit(tx).await.unwrap();
        let mut tx = stage.begin().await;
        fence.admit(&mut tx, token("9.b")).await.unwrap();
        tx.rollback().await.unwrap();
        let mut tx = stage.begin().await;
        fence.admit(&mut tx, token("7.a")).await.unwrap();
        commit(tx).await.unwrap();
    }
    // A future that is dropped, and a savepoint that is rolled back, leave no more.
    let mut tx = stage.begin().await;
    {
        use sqlx::Connection;
        let mut savepoint = tx.begin().await.unwrap();
        fences().admit(&mut savepoint, "parcels/1", token("9.b")).await.unwrap();
        savepoint.rollback().await.unwrap();
    }
    ringfence_testkit::drop_after(3, fences().admit(&mut tx, "parcels/1", token("9.b"))).await;
    drop(tx);
    let mut tx = stage.begin().await;
    fences().admit(&mut tx, "parcels/1", token("7.a")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_resources_are_admitted_in_the_order_of_their_names() {
    let Some(stage) = stage().await else { return };
    let workers = (1..=6u64).map(|worker| {
        let stage = stage.clone();
        tokio::spawn(async move {
            // Every other one has them the other way round.
            let mut resources = ["a", "b", "c", "d"];
            if worker % 2 == 0 {
                resources.reverse();
            }
            for round in 0..5 {
                let token = token(&format!("{}.1", round / 5));
                let mut tx = stage.begin().await;
                fences().admit_all(&mut tx, resources.map(|resource| (resource, token))).await.unwrap();
                commit(tx).await.unwrap();
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        within("end of a worker", worker).await.expect("nobody waits in a circle");
    }
    let mut tx = stage.begin().await;
    let late = [("d", token("0.1")), ("a", token("0.2"))];
    expect_error(
        "any is refused",
        fences().admit_all(&mut tx, late).await,
        ErrorKind::TokenCollision,
        &["into a"],
    );
}

#[tokio::test]
async fn names_are_taken_as_they_are_whatever_stands_in_them() {
    let Some(stage) = stage().await else { return };
    for name in [r#"we"ird"#, "we`ird", r"back\slash", "'; DROP TABLE parcels; --", "Ünïcode $1 ?"] {
        let table = SideTable::new(name).unwrap();
        let mut tx = stage.begin().await;
        table.create(&mut tx).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        table.admit(&mut tx, "it", token("2.a")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        expect_error(name, table.admit(&mut tx, "it", token("1.a")).await, ErrorKind::Stale, &["2.a"]);
        let rows = FenceColumn::new(Rows::new(name, "resource").unwrap(), "sequence").unwrap();
        rows.admit(&mut tx, "it", token("3.b")).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        commit(tx).await.unwrap();
    }
    for resource in ["it's", r#"a "b" `c`"#, r"a\'b", "%_", "d 'e' -- f", "A", "a", "a ", "ä", "$1?"] {
        let mut tx = stage.begin().await;
        fences()
            .admit(&mut tx, resource, token("3.a"))
            .await
            .unwrap_or_else(|error| panic!("{resource}: {error}"));
        commit(tx).await.unwrap();
    }
    let mut tx = stage.begin().await;
    let (longest, too_long) = ("ü".repeat(127), "x".repeat(256));
    fences().admit(&mut tx, &longest, token("1.a")).await.unwrap();
    for resource in ["", "nul\0", "new\nline", &too_long] {
        expect_error(
            resource,
            fences().admit(&mut tx, resource, token("1.a")).await,
            ErrorKind::InvalidRequest,
            &["resource"],
        );
    }
    // They were different ones.
    for resource in ["A", "a", "a ", "ä"] {
        fences().admit(&mut tx, resource, token("3.a")).await.unwrap();
    }
    fences().admit(&mut tx, " a", token("1.a")).await.expect("nobody was there");
}

#[tokio::test]
async fn what_is_not_there_is_told_from_what_is_stale() {
    let Some(stage) = stage().await else { return };
    let error = |what, kind, words: &'static [&'static str]| {
        move |result: ringfence_core::Result<()>| drop(expect_error(what, result, kind, words))
    };
    let invalid = ErrorKind::InvalidRequest;
    let mut tx = stage.begin().await;
    error("no row", invalid, &["row parcels/99", "no such row"])(
        column().admit(&mut tx, 99, token("1.a")).await,
    );
    // It is no error of the database: the transaction goes on.
    column().admit(&mut tx, 1, token("1.a")).await.unwrap();
    drop(tx);
    for (table, key, sequence) in [
        ("nothing", "id", "fence_token"),
        ("parcels", "nothing", "fence_token"),
        ("parcels", "id", "nothing"),
    ] {
        let wrong = FenceColumn::new(Rows::new(table, key).unwrap(), sequence).unwrap();
        let mut tx = stage.begin().await;
        error("no such name", invalid, &["nothing"])(wrong.admit(&mut tx, 1, token("1.a")).await);
    }
    let mut tx = stage.begin().await;
    let missing = SideTable::new("no fences here").unwrap();
    error("no table", invalid, &["no fences here"])(missing.admit(&mut tx, "it", token("1.a")).await);
    drop(tx);
    // `two` is the code of two rows.
    let codes = FenceColumn::new(Rows::new("parcels", "code").unwrap(), "fence_token").unwrap();
    let mut tx = stage.begin().await;
    error("two rows", invalid, &["several rows"])(codes.admit(&mut tx, "two", token("1.a")).await);
    drop(tx);
    let mut tx = stage.begin().await;
    codes.admit(&mut tx, Key::from("one".to_owned()), token("1.a")).await.unwrap();
}

#[tokio::test]
async fn a_column_without_nonces_knows_numbers_only() {
    let Some(stage) = stage().await else { return };
    let numbers = FenceColumn::new(parcels(), "fence_token").unwrap();
    let mut tx = stage.begin().await;
    numbers.admit(&mut tx, 1, token("5.a")).await.unwrap();
    numbers.admit(&mut tx, 1, token("5.b")).await.unwrap();
    expect_error(
        "late",
        numbers.admit(&mut tx, 1, token("4.a")).await,
        ErrorKind::Stale,
        &["4.a is stale: 5 was"],
    );
    // Who looks at nonces does not take a row on trust that was marked without one.
    expect_error(
        "no nonce",
        column().admit(&mut tx, 1, token("5.a")).await,
        ErrorKind::TokenCollision,
        &["of 5,"],
    );
    column().admit(&mut tx, 1, token("6.a")).await.unwrap();
}

#[tokio::test]
async fn a_version_that_was_not_read_is_a_conflict() {
    let Some(stage) = stage().await else { return };
    let versions = VersionColumn::new(parcels(), "version").unwrap();
    let mut tx = stage.begin().await;
    assert_eq!(versions.compare_and_set(&mut tx, 1, 1).await.unwrap(), 2);
    commit(tx).await.unwrap();
    let mut tx = stage.begin().await;
    let outdated = versions.compare_and_set(&mut tx, 1, 1).await;
    let said = outdated.as_ref().unwrap_err().to_string();
    assert!(said.contains("row parcels/1: it was read at version 1 and has 2 now"), "{said}");
    expect_conflict("it was changed", outdated, Conflict::Changed);
    let gone = versions.compare_and_set(&mut tx, 99, 1).await;
    expect_error("there is none", gone, ErrorKind::InvalidRequest, &["no such row"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conflicts_are_run_again_until_every_change_is_there() {
    let Some(stage) = stage().await else { return };
    let versions = VersionColumn::new(parcels(), "version").unwrap();
    let workers = (0..6).map(|_| {
        let (stage, versions) = (stage.clone(), versions.clone());
        tokio::spawn(async move {
            for _ in 0..5 {
                let change = retry_on_conflict(100.try_into().unwrap(), || async {
                    let mut tx = stage.begin_deferred().await;
                    let read =
                        sqlx::query("SELECT version FROM parcels WHERE id = 2").fetch_one(&mut *tx).await;
                    let version: i64 = read.map_err(ringfence_sql::explain)?.get(0);
                    versions.compare_and_set(&mut tx, 2, version).await?;
                    commit(tx).await
                });
                change.await.unwrap();
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        within("end of a worker", worker).await.unwrap();
    }
    let mut tx = stage.begin().await;
    assert_eq!(versions.compare_and_set(&mut tx, 2, 31).await.unwrap(), 32, "each change is counted once");
}

#[tokio::test]
async fn tries_have_an_end_and_other_errors_have_one_try() {
    let Some(stage) = stage().await else { return };
    let versions = VersionColumn::new(parcels(), "version").unwrap();
    for (key, expected) in [(1, 3), (99, 1)] {
        let tries = Cell::new(0);
        let outcome = retry_on_conflict(3.try_into().unwrap(), || async {
            tries.set(tries.get() + 1);
            let mut tx = stage.begin().await;
            versions.compare_and_set(&mut tx, key, 77).await
        });
        let error = outcome.await.unwrap_err();
        assert_eq!(tries.get(), expected, "{error}");
        assert_eq!(error.to_string().contains("given up after 3 tries"), expected == 3, "{error}");
    }
}
