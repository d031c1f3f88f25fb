//! Row locks, and the fence that is a column.

use std::time::Duration;

use ringfence::ErrorKind;
use ringfence::postgres::{Conflict, Key, RowLock, Rows, fence_column, lock_row, lock_rows, lock_timeout};
use sqlx::Connection;
use tokio_postgres::IsolationLevel;

use crate::stage::{CLERK, Stage, expect_conflict, expect_error, outcome, token};

fn orders() -> Rows {
    Rows::new("public", "orders", "id").expect("names")
}

fn integers(keys: &[i64]) -> Vec<Key> {
    keys.iter().copied().map(Key::Integer).collect()
}

#[tokio::test]
async fn each_way_to_lock_excludes_whom_it_has_to() {
    let Some(stage) = Stage::set().await else { return };
    stage.server.psql("CREATE TABLE parts (of bigint NOT NULL REFERENCES orders)").await;
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let ways = [RowLock::UPDATE, RowLock::NO_KEY_UPDATE, RowLock::SHARE];
    for (held, excludes_pointers) in ways.into_iter().zip([true, false, false]) {
        let mut holder = first.transaction().await.unwrap();
        assert!(lock_row(&mut holder, &orders(), 1, held).await.unwrap());
        for asked in ways {
            let is_shared = (held, asked) == (RowLock::SHARE, RowLock::SHARE);
            let mut tx = second.transaction().await.unwrap();
            let result = lock_row(&mut tx, &orders(), 1, asked.nowait()).await;
            if is_shared {
                assert!(result.unwrap(), "a row can be shared");
            } else {
                expect_conflict("a row that is held", result, Conflict::Busy);
            }
        }
        let mut tx = second.transaction().await.unwrap();
        lock_timeout(&mut tx, Duration::from_millis(1)).await.unwrap();
        let pointed_to = tx.execute("INSERT INTO parts VALUES (1)", &[]).await;
        assert_eq!(pointed_to.is_err(), excludes_pointers, "{held:?} and a foreign key: {pointed_to:?}");
    }
}

#[tokio::test]
async fn what_is_held_is_waited_for_or_skipped_as_was_asked() {
    let Some(stage) = Stage::set().await else { return };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let mut holder = first.transaction().await.unwrap();
    let locked = lock_rows(&mut holder, &orders(), [2, 4, 9], RowLock::UPDATE).await.unwrap();
    assert_eq!(locked, integers(&[2, 4]), "rows that are there");
    assert!(!lock_row(&mut holder, &orders(), 9, RowLock::UPDATE).await.unwrap(), "there is no such row");
    let none = lock_rows(&mut holder, &orders(), Vec::<i64>::new(), RowLock::UPDATE).await.unwrap();
    assert_eq!(none, [], "no keys, no rows");

    let mut tx = second.transaction().await.unwrap();
    let all = [5, 4, 3, 2, 1];
    let free = lock_rows(&mut tx, &orders(), all, RowLock::UPDATE.skip_locked()).await.unwrap();
    assert_eq!(free, integers(&[1, 3, 5]), "what is held is left out");
    let skipped = lock_row(&mut tx, &orders(), 2, RowLock::SHARE.skip_locked()).await.unwrap();
    assert!(!skipped, "somebody else has it");
    let mut savepoint = tx.transaction().await.unwrap();
    lock_timeout(&mut savepoint, Duration::from_millis(1)).await.unwrap();
    let late = lock_rows(&mut savepoint, &orders(), all, RowLock::UPDATE).await;
    expect_conflict("rows that are held", late, Conflict::Busy);
    savepoint.rollback().await.unwrap();
    tx.commit().await.unwrap();

    let waiter = tokio::spawn(async move {
        let mut tx = second.transaction().await.unwrap();
        lock_rows(&mut tx, &orders(), all, RowLock::UPDATE).await
    });
    stage.waiting(1).await;
    holder.commit().await.unwrap();
    assert_eq!(outcome("rows", waiter).await.unwrap(), integers(&[1, 2, 3, 4, 5]));
}

#[tokio::test]
async fn rows_are_locked_in_the_order_of_their_keys() {
    let Some(stage) = Stage::set().await else { return };
    // Where they lie in the table is another order.
    stage.server.psql("DELETE FROM orders WHERE id = 1; INSERT INTO orders VALUES (1, 'new')").await;
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    let mut holder = first.transaction().await.unwrap();
    assert!(lock_row(&mut holder, &orders(), 1, RowLock::UPDATE).await.unwrap());
    let waiter = tokio::spawn(async move {
        let mut tx = second.transaction().await.unwrap();
        lock_rows(&mut tx, &orders(), [3, 2, 1], RowLock::UPDATE).await
    });
    stage.waiting(1).await;
    let later = lock_rows(&mut holder, &orders(), [2, 3], RowLock::UPDATE.nowait()).await;
    assert_eq!(later.expect("whoever waits for 1 has neither 2 nor 3"), integers(&[2, 3]));
    holder.commit().await.unwrap();
    assert_eq!(outcome("rows", waiter).await.unwrap(), integers(&[1, 2, 3]));
}

#[tokio::test]
async fn a_row_that_was_changed_since_the_snapshot_is_a_serialization_failure() {
    let Some(stage) = Stage::set().await else { return };
    let (mut client, mut connection) = (stage.client().await, stage.sqlx().await);
    let mut tx =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).start().await.unwrap();
    tx.query("SELECT FROM orders", &[]).await.unwrap();
    let mut by_sqlx = connection.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await.unwrap();
    sqlx::query("SELECT FROM orders").fetch_all(&mut *by_sqlx).await.unwrap();
    stage.server.psql("UPDATE orders SET state = 'paid' WHERE id = 1").await;

    let same = lock_row(&mut tx, &orders(), 2, RowLock::UPDATE).await;
    assert!(same.unwrap(), "a row that is as it was seen");
    let changed = lock_row(&mut tx, &orders(), 1, RowLock::UPDATE).await;
    expect_conflict("a row that is not", changed, Conflict::SerializationFailure);
    let changed = lock_row(&mut by_sqlx, &orders(), 1, RowLock::SHARE).await;
    expect_conflict("a row that is not", changed, Conflict::SerializationFailure);
}

#[tokio::test]
async fn of_transactions_that_wait_for_each_others_rows_one_is_told_of_the_deadlock() {
    let Some(stage) = Stage::set().await else { return };
    let (mut client, mut connection) = (stage.client().await, stage.sqlx().await);
    let mut tx = client.transaction().await.unwrap();
    let mut by_sqlx = connection.begin().await.unwrap();
    // The one that waits last looks for the deadlock first.
    sqlx::query("SET LOCAL deadlock_timeout = '1h'").execute(&mut *by_sqlx).await.unwrap();
    assert!(lock_row(&mut tx, &orders(), 1, RowLock::UPDATE).await.unwrap());
    assert!(lock_row(&mut by_sqlx, &orders(), 2, RowLock::UPDATE).await.unwrap());
    let orders = orders();
    let (locked, failed) = tokio::join!(lock_row(&mut by_sqlx, &orders, 1, RowLock::UPDATE), async {
        stage.waiting(1).await;
        let failed = lock_row(&mut tx, &orders, 2, RowLock::UPDATE).await;
        tx.rollback().await.unwrap();
        failed
    });
    expect_conflict("the one that the server chose", failed, Conflict::Deadlock);
    assert!(locked.unwrap(), "the other goes on");
}

#[tokio::test]
async fn keys_are_integers_texts_and_uuids() {
    let Some(stage) = Stage::set().await else { return };
    let uuid = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef_u128;
    let injection = "'); DROP TABLE orders; --";
    let mut client = stage.client().await;
    let cases = [
        ("smallint", "-7", Key::from(-7_i16)),
        ("integer", "7", Key::from(7_i32)),
        ("bigint", "9223372036854775807", Key::from(i64::MAX)),
        ("text", "a'b\"c\\d ", Key::from("a'b\"c\\d ")),
        ("varchar(40)", injection, Key::from(injection.to_owned())),
        ("uuid", "01234567-89ab-cdef-0123-456789abcdef", Key::Uuid(uuid)),
    ];
    for (kind, text, key) in cases {
        let mut tx = client.transaction().await.unwrap();
        tx.batch_execute(&format!(
            "CREATE TEMP TABLE keyed (key {kind} PRIMARY KEY, fence bigint) ON COMMIT DROP"
        ))
        .await
        .unwrap();
        tx.execute(&format!("INSERT INTO keyed VALUES ('{}')", text.replace('\'', "''")), &[]).await.unwrap();
        let row = tx.query_one("SELECT pg_my_temp_schema()::regnamespace::text", &[]).await.unwrap();
        let keyed = Rows::new(row.get(0), "keyed", "key").unwrap();
        let locked = lock_rows(&mut tx, &keyed, [key.clone()], RowLock::UPDATE).await.unwrap();
        assert_eq!(locked, std::slice::from_ref(&key), "{kind}");
        fence_column(&mut tx, &keyed, key, "fence", token(5, "a")).await.unwrap();
        let fence: i64 = tx.query_one("SELECT fence FROM keyed", &[]).await.unwrap().get(0);
        assert_eq!(fence, 5, "{kind}");
    }
    assert_eq!(stage.state(1).await, "new", "nobody has dropped it");
}

#[tokio::test]
async fn names_are_taken_as_they_are() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    for name in
        ["Orders", "we\"ird", "back\\slash", "it's", "a b", "select", "日本", "\"; DROP TABLE orders; --"]
    {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        let mut tx = client.transaction().await.unwrap();
        tx.batch_execute(&format!(
            "CREATE SCHEMA {quoted}; CREATE TABLE {quoted}.{quoted} ({quoted} bigint); INSERT INTO {quoted}.{quoted} VALUES (1)"
        ))
        .await
        .unwrap();
        let rows = Rows::new(name, name, name).unwrap();
        assert!(lock_row(&mut tx, &rows, 1, RowLock::UPDATE).await.unwrap(), "{name}");
    }
    for name in ["", "nul\0", &"x".repeat(64)] {
        for names in [[name, "a", "b"], ["a", name, "b"], ["a", "b", name]] {
            let refused = Rows::new(names[0], names[1], names[2]);
            expect_error("what is no name", refused, ErrorKind::InvalidRequest, &["is no name"]);
        }
    }
    assert_eq!(stage.state(1).await, "new", "nobody has dropped it");
}

#[tokio::test]
async fn what_does_not_fit_is_said() {
    let Some(stage) = Stage::set().await else { return };
    stage.server.psql("REVOKE ALL ON orders FROM PUBLIC; GRANT SELECT ON orders TO clerk").await;
    let (mut client, mut clerk) = (stage.client().await, stage.client_of(CLERK).await);
    let refused = ErrorKind::InvalidRequest;
    let cases = [
        (["nowhere", "orders", "id"], Key::from(1), "there is no such table"),
        (["public", "Orders", "id"], Key::from(1), "there is no such table"),
        (["public", "orders", "ID"], Key::from(1), "no such column"),
        (["public", "orders", "state"], Key::from(1), "another type"),
        (["public", "orders", "id"], Key::from("1"), "another type"),
    ];
    for ([schema, table, column], key, words) in cases {
        let mut tx = client.transaction().await.unwrap();
        let rows = Rows::new(schema, table, column).unwrap();
        let result = lock_row(&mut tx, &rows, key, RowLock::UPDATE).await;
        expect_error("what does not fit", result, refused, &[&format!("rows of {schema}.{table}"), words]);
    }
    let mut tx = client.transaction().await.unwrap();
    let mixed = lock_rows(&mut tx, &orders(), [Key::from(1), Key::from("a")], RowLock::UPDATE).await;
    expect_error("keys of two types", mixed, refused, &["several types"]);
    tx.rollback().await.unwrap();
    for (column, words) in [("state", "another type"), ("nothing", "no such column")] {
        let mut tx = client.transaction().await.unwrap();
        let result = fence_column(&mut tx, &orders(), 1, column, token(1, "a")).await;
        expect_error("a column for no tokens", result, refused, &["row public.orders/1", words]);
    }
    let mut tx = clerk.transaction().await.unwrap();
    let denied = lock_row(&mut tx, &orders(), 1, RowLock::UPDATE).await;
    expect_error("a role that may only read", denied, ErrorKind::Refused, &["SELECT and UPDATE", "42501"]);
}

#[tokio::test]
async fn a_column_refuses_whoever_was_overtaken() {
    let Some(stage) = Stage::set().await else { return };
    let (mut old, mut new) = (stage.client().await, stage.client().await);
    let fence = "fence_token";
    let mut tx = old.transaction().await.unwrap();
    fence_column(&mut tx, &orders(), 1, fence, token(5, "a")).await.expect("NULL is below every token");
    fence_column(&mut tx, &orders(), 1, fence, token(5, "a")).await.expect("its own token is no older");
    tx.commit().await.unwrap();

    // The old holder is in the middle of it when the new one comes, which has to wait, and then goes first for good.
    let mut paused = old.transaction().await.unwrap();
    fence_column(&mut paused, &orders(), 1, fence, token(5, "a")).await.unwrap();
    let next = tokio::spawn(async move {
        let mut tx = new.transaction().await.unwrap();
        fence_column(&mut tx, &orders(), 1, fence, token(6, "b")).await.unwrap();
        tx.execute("UPDATE orders SET state = state || ', then new' WHERE id = 1", &[]).await.unwrap();
        tx.commit().await.unwrap();
    });
    stage.waiting(1).await;
    paused.execute("UPDATE orders SET state = 'old' WHERE id = 1", &[]).await.unwrap();
    paused.commit().await.unwrap();
    outcome("the next holder's turn", next).await;
    assert_eq!(stage.state(1).await, "old, then new", "the one that was first was first in all");
    let mut tx = old.transaction().await.unwrap();
    let refused = fence_column(&mut tx, &orders(), 1, fence, token(5, "a")).await;
    expect_error(
        "a token that was overtaken",
        refused,
        ErrorKind::Stale,
        &["public.orders/1", "5.a", "has seen 6"],
    );
    tx.rollback().await.unwrap();

    let mut connection = stage.sqlx().await;
    let mut tx = connection.begin().await.unwrap();
    let refused = fence_column(&mut tx, &orders(), 1, fence, token(4, "a")).await;
    expect_error("a token that was overtaken", refused, ErrorKind::Stale, &["has seen 6"]);
    fence_column(&mut tx, &orders(), 1, fence, token(7, "a")).await.expect("a row that is seen by sqlx");
    let by_state = Rows::new("public", "orders", "state").unwrap();
    stage.server.psql("UPDATE orders SET fence_token = 8 WHERE id = 3").await;
    let refused = fence_column(&mut tx, &by_state, "new", fence, token(7, "a")).await;
    expect_error("rows one of which has seen more", refused, ErrorKind::Stale, &["has seen 8"]);
    let nowhere = fence_column(&mut tx, &orders(), 9, fence, token(7, "a")).await;
    expect_error("a row that is not there", nowhere, ErrorKind::InvalidRequest, &["no such row"]);
}
