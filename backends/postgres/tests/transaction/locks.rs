//! Locks by name that live as long as a transaction.

use std::time::Duration;

use ringfence::postgres::{Conflict, Schema, Snapshot, fence_in, lock_timeout, try_xact_lock, xact_lock};
use ringfence::{ErrorKind, Locks};
use sqlx::Connection;
use tokio_postgres::IsolationLevel;

use crate::stage::{CLERK, Stage, expect_conflict, expect_error, install, outcome, token, within};

/// Whether the lock could be had right now, as SQL says it.
async fn is_free(stage: &Stage, name: &str) -> bool {
    stage.server.psql(&format!("SELECT ringfence.try_xact_lock('{name}')")).await.trim() == "t"
}

#[tokio::test]
async fn a_lock_is_held_until_its_transaction_or_savepoint_ends() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    for commits in [true, false] {
        let mut tx = client.transaction().await.unwrap();
        assert_eq!(xact_lock(&mut tx, "a").await.unwrap(), Snapshot::AfterLock);
        let mut savepoint = tx.transaction().await.unwrap();
        assert_eq!(try_xact_lock(&mut savepoint, "b").await.unwrap(), Some(Snapshot::AfterLock));
        assert!(!is_free(&stage, "a").await && !is_free(&stage, "b").await, "both are held");
        savepoint.rollback().await.unwrap();
        assert!(is_free(&stage, "b").await, "a savepoint that is rolled back gives back what it took");
        assert!(!is_free(&stage, "a").await, "and nothing else");
        if commits {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
        assert!(is_free(&stage, "a").await, "it is free when the transaction has ended");
    }
}

#[tokio::test]
async fn a_lock_is_held_by_a_transaction_of_sqlx() {
    let Some(stage) = Stage::set().await else { return };
    let mut connection = stage.sqlx().await;
    let mut tx = connection.begin().await.unwrap();
    lock_timeout(&mut tx, Duration::from_millis(1)).await.unwrap();
    assert_eq!(xact_lock(&mut tx, "a").await.unwrap(), Snapshot::AfterLock);
    assert!(!is_free(&stage, "a").await, "it is held");

    let mut other = stage.sqlx().await;
    let mut busy = other.begin().await.unwrap();
    assert_eq!(try_xact_lock(&mut busy, "a").await.unwrap(), None, "somebody else has it");
    assert_eq!(try_xact_lock(&mut busy, "b").await.unwrap(), Some(Snapshot::AfterLock), "and it goes on");
    lock_timeout(&mut busy, Duration::from_millis(1)).await.unwrap();
    expect_conflict("waiting for what is held", xact_lock(&mut busy, "a").await, Conflict::Busy);
    let failed = xact_lock(&mut busy, "c").await;
    expect_error(
        "a transaction that has failed",
        failed,
        ErrorKind::InvalidRequest,
        &["roll it back", "25P02"],
    );
    busy.rollback().await.unwrap();
    tx.commit().await.unwrap();
    assert!(is_free(&stage, "a").await, "it is free when the transaction has ended");
}

#[tokio::test]
async fn whoever_waited_sees_what_the_holder_committed() {
    let Some(stage) = Stage::set().await else { return };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let mut holder = first.transaction().await.unwrap();
    assert_eq!(xact_lock(&mut holder, "a").await.unwrap(), Snapshot::AfterLock);
    holder.execute("UPDATE orders SET state = 'paid' WHERE id = 1", &[]).await.unwrap();
    let waiter = tokio::spawn(async move {
        let mut tx = second.transaction().await.unwrap();
        let snapshot = xact_lock(&mut tx, "a").await.unwrap();
        let row = tx.query_one("SELECT state FROM orders WHERE id = 1", &[]).await.unwrap();
        (snapshot, row.get::<_, String>(0))
    });
    stage.waiting(1).await;
    holder.commit().await.unwrap();
    let seen = outcome("lock", waiter).await;
    assert_eq!(seen, (Snapshot::AfterLock, "paid".to_owned()));
}

#[tokio::test]
async fn a_snapshot_that_is_older_than_the_lock_is_said() {
    for isolation in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let Some(stage) = Stage::set().await else { return };
        let (mut first, mut second) = (stage.client().await, stage.client().await);
        let mut holder = first.transaction().await.unwrap();
        assert_eq!(xact_lock(&mut holder, "a").await.unwrap(), Snapshot::AfterLock);
        holder.execute("UPDATE orders SET state = 'paid' WHERE id = 1", &[]).await.unwrap();
        let waiter = tokio::spawn(async move {
            // The lock is its first statement, and even so the snapshot is older.
            let mut tx = second.build_transaction().isolation_level(isolation).start().await.unwrap();
            let snapshot = xact_lock(&mut tx, "a").await.unwrap();
            let row = tx.query_one("SELECT state FROM orders WHERE id = 1", &[]).await.unwrap();
            (snapshot, row.get::<_, String>(0))
        });
        stage.waiting(1).await;
        holder.commit().await.unwrap();
        let seen = outcome("lock", waiter).await;
        assert_eq!(seen, (Snapshot::BeforeLock, "new".to_owned()), "{isolation:?} works on what is stale");
    }
}

#[tokio::test]
async fn psql_is_warned_of_a_snapshot_that_is_older_than_the_lock() {
    let Some(stage) = Stage::set().await else { return };
    let mut psql = stage.server.session();
    for lock in ["xact_lock", "try_xact_lock"] {
        for (isolation, is_warned) in
            [("READ COMMITTED", false), ("REPEATABLE READ", true), ("SERIALIZABLE", true)]
        {
            let script = format!("BEGIN ISOLATION LEVEL {isolation}; SELECT ringfence.{lock}('a'); COMMIT");
            let said = psql.ask(&script).await;
            let warning = format!(
                "WARNING:  lock a is held, but the snapshot of this {isolation} transaction is older"
            );
            assert_eq!(said.contains(&warning), is_warned, "{lock} in {isolation}: {said}");
        }
    }
}

#[tokio::test]
async fn whoever_waits_too_long_loses_the_savepoint_and_not_the_transaction() {
    let Some(stage) = Stage::set().await else { return };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let mut holder = first.transaction().await.unwrap();
    let _ = xact_lock(&mut holder, "a").await.unwrap();
    let mut tx = second.transaction().await.unwrap();
    tx.execute("UPDATE orders SET state = 'paid' WHERE id = 2", &[]).await.unwrap();
    let mut savepoint = tx.transaction().await.unwrap();
    lock_timeout(&mut savepoint, Duration::from_millis(1)).await.unwrap();
    expect_conflict("a lock that is held", xact_lock(&mut savepoint, "a").await, Conflict::Busy);
    savepoint.rollback().await.unwrap();
    let row = tx.query_one("SHOW lock_timeout", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "0", "the limit ends with what it was set in");
    lock_timeout(&mut tx, Duration::from_mins(1)).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(stage.state(2).await, "paid");
    let row = second.query_one("SHOW lock_timeout", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "0", "the connection's next transaction knows nothing of it");
    for limit in [Duration::ZERO, Duration::from_hours(24 * 25)] {
        let mut tx = second.transaction().await.unwrap();
        let set = lock_timeout(&mut tx, limit).await;
        expect_error("a limit that is none", set, ErrorKind::InvalidRequest, &["out of range"]);
    }
}

#[tokio::test]
async fn of_transactions_that_wait_for_each_other_one_is_told_of_the_deadlock() {
    let Some(stage) = Stage::set().await else { return };
    let mut tasks = Vec::new();
    let both_hold_one = std::sync::Arc::new(tokio::sync::Barrier::new(2));
    for names in [["a", "b"], ["b", "a"]] {
        let (mut client, both_hold_one) = (stage.client().await, both_hold_one.clone());
        tasks.push(tokio::spawn(async move {
            let mut tx = client.transaction().await.unwrap();
            let _ = xact_lock(&mut tx, names[0]).await.unwrap();
            both_hold_one.wait().await;
            let result = xact_lock(&mut tx, names[1]).await;
            if result.is_ok() {
                tx.commit().await.unwrap();
            } else {
                tx.rollback().await.unwrap();
            }
            result
        }));
    }
    let mut results = Vec::new();
    for task in tasks {
        results.push(outcome("end of the deadlock", task).await);
    }
    results.sort_by_key(Result::is_err);
    let [granted, refused] = results.try_into().expect("two");
    assert_eq!(granted.unwrap(), Snapshot::AfterLock);
    expect_conflict("the one that the server chose", refused, Conflict::Deadlock);
}

#[tokio::test]
async fn every_name_is_a_lock_of_its_own_and_that_of_the_advisory_recipe() {
    let Some(stage) = Stage::set().await else { return };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let names = [
        "a",
        "A",
        "a'b",
        "a\"b",
        "a\\b",
        "'; DROP SCHEMA ringfence; --",
        "$1",
        "%",
        "日本",
        "a ",
        " a",
        "{}",
    ];
    let mut holder = first.transaction().await.unwrap();
    let mut other = second.transaction().await.unwrap();
    for (place, name) in names.iter().enumerate() {
        assert!(try_xact_lock(&mut holder, *name).await.unwrap().is_some(), "{name} is free");
        for (taken, other_name) in names.iter().enumerate() {
            let mut savepoint = other.transaction().await.unwrap();
            let got = try_xact_lock(&mut savepoint, *other_name).await.unwrap();
            assert_eq!(got.is_none(), taken <= place, "{other_name} while {name} is the last that was taken");
            savepoint.rollback().await.unwrap();
        }
        let by_key = "SELECT pg_try_advisory_xact_lock(ringfence.lock_key($1))";
        let row = other.query_one(by_key, &[name]).await.unwrap();
        assert!(!row.get::<_, bool>(0), "{name} is the advisory lock of its key");
    }
}

#[tokio::test]
async fn a_guard_of_the_advisory_recipe_and_a_transaction_exclude_each_other() {
    let Some(stage) = Stage::set().await else { return };
    let locks = Locks::connect(&format!("{}?recipe=advisory", stage.server.url())).await.unwrap();
    let mut client = stage.client().await;
    let guard = locks.lock("a").acquire().await.unwrap();
    let mut tx = client.transaction().await.unwrap();
    assert_eq!(try_xact_lock(&mut tx, "a").await.unwrap(), None, "a guard has it");
    tx.rollback().await.unwrap();
    guard.release().await.unwrap();

    let mut tx = client.transaction().await.unwrap();
    assert!(within("lock that was given back", xact_lock(&mut tx, "a")).await.is_ok());
    assert!(locks.lock("a").try_acquire().await.unwrap().is_none(), "a transaction has it");
    let waiter = tokio::spawn(async move { locks.lock("a").acquire().await.map(drop) });
    stage.waiting(1).await;
    tx.commit().await.unwrap();
    outcome("guard", waiter).await.expect("a lock that is free");
}

#[tokio::test]
async fn what_is_no_name_is_refused_and_locks_nothing() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    let mut tx = client.transaction().await.unwrap();
    let long = "x".repeat(256);
    for name in ["", "a\0b", "line\nbreak", &long] {
        let refused = xact_lock(&mut tx, name).await;
        expect_error("a name that is none", refused, ErrorKind::InvalidName, &[]);
        let refused = fence_in(&mut tx, name, token(1, "a")).await;
        expect_error("a resource that is none", refused, ErrorKind::InvalidRequest, &["is no resource"]);
    }
    assert!(xact_lock(&mut tx, "fine").await.is_ok(), "nothing was sent, so that the transaction goes on");
    // From other languages, where NULL would lock nothing and say nothing.
    for name in ["NULL", "''", "repeat('ä', 128)", "E'line\\nbreak'", "U&'\\0085'"] {
        for function in ["xact_lock", "try_xact_lock"] {
            let said = stage.server.ask(&format!("SELECT ringfence.{function}({name})")).await.unwrap_err();
            assert!(said.contains("is no lock name"), "{function}({name}): {said}");
        }
    }
}

#[tokio::test]
async fn a_schema_that_is_not_there_or_not_ours_to_use_is_said() {
    let Some(stage) = Stage::set().await else { return };
    let (mut client, mut clerk) = (stage.client().await, stage.client_of(CLERK).await);
    let mut tx = client.transaction().await.unwrap();
    let other = Schema::new("other").unwrap();
    let missing = other.xact_lock(&mut tx, "a").await;
    expect_error("a schema that is not there", missing, ErrorKind::Refused, &["lock a", "ringfence setup"]);
    tx.rollback().await.unwrap();
    stage.server.psql("CREATE SCHEMA other").await;
    let mut tx = client.transaction().await.unwrap();
    let missing = other.fence_in(&mut tx, "a", token(1, "a")).await;
    expect_error("a schema without our functions", missing, ErrorKind::Refused, &["ringfence setup"]);
    tx.rollback().await.unwrap();

    install(&stage.server, "other").await;
    let mut tx = client.transaction().await.unwrap();
    assert_eq!(other.xact_lock(&mut tx, "a").await.unwrap(), Snapshot::AfterLock);
    assert!(!is_free(&stage, "a").await, "a name is one lock of the database, whatever the schema");
    other.fence_in(&mut tx, "a", token(1, "a")).await.unwrap();
    tx.commit().await.unwrap();

    let mut tx = clerk.transaction().await.unwrap();
    let denied = other.xact_lock(&mut tx, "a").await;
    expect_error("a role without rights", denied, ErrorKind::Refused, &["GRANT USAGE", "42501"]);
    tx.rollback().await.unwrap();
    let mut tx = clerk.transaction().await.unwrap();
    assert!(xact_lock(&mut tx, "a").await.is_ok(), "a role with the rights that are granted");
    assert!(fence_in(&mut tx, "b", token(1, "a")).await.is_ok(), "a role with the rights that are granted");
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_nothing_behind() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    let mut tx = client.transaction().await.unwrap();
    assert!(xact_lock(&mut tx, "a").await.is_ok());
    tx.execute("UPDATE orders SET state = 'paid' WHERE id = 1", &[]).await.unwrap();
    stage.server.terminate_backends().await;
    let broken = fence_in(&mut tx, "a", token(1, "a")).await.expect_err("its connection is gone");
    assert_eq!(
        (broken.kind(), broken.effect()),
        (ErrorKind::Unavailable, ringfence::Effect::None),
        "{broken:?}"
    );
    assert!(is_free(&stage, "a").await, "the lock went with the connection");
    assert_eq!(stage.state(1).await, "new", "and so did the work");
}
