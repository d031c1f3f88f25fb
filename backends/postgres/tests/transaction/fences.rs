//! Tokens that are admitted in a transaction: the check and the work are one.

use std::sync::Arc;

use ringfence::postgres::{Conflict, fence_in, lock_timeout};
use ringfence::{Effect, ErrorKind, FencingToken, Locks};
use sqlx::Connection;
use tokio::sync::Barrier;
use tokio_postgres::{Client, IsolationLevel, Transaction};

use crate::stage::{CLERK, Stage, expect_conflict, expect_error, outcome, token, within};

const ORDER: &str = "order 1";

/// Opens a transaction, fences a token into it and writes.
async fn write<'a>(
    client: &'a mut Client,
    token: FencingToken,
    state: &str,
) -> ringfence::Result<Transaction<'a>> {
    let mut tx = client.transaction().await.unwrap();
    fence_in(&mut tx, ORDER, token).await?;
    tx.execute("UPDATE orders SET state = $1 WHERE id = 1", &[&state]).await.unwrap();
    Ok(tx)
}

async fn mark(stage: &Stage) -> String {
    let look = format!("SELECT sequence || '.' || nonce FROM ringfence.marks WHERE resource = '{ORDER}'");
    stage.server.psql(&look).await.trim().to_owned()
}

#[tokio::test]
async fn a_paused_holder_is_refused_from_the_moment_its_successor_was_admitted() {
    let Some(stage) = Stage::set().await else { return };
    let (mut old, mut new) = (stage.client().await, stage.client().await);
    let (first, second) = (token(5, "a"), token(6, "b"));
    write(&mut old, first, "old").await.unwrap().commit().await.unwrap();
    write(&mut old, first, "old again").await.expect("it is not overtaken yet").commit().await.unwrap();

    // It is paused before its next write, and loses the lock.
    write(&mut new, second, "new").await.unwrap().commit().await.unwrap();
    let late = write(&mut old, first, "late").await.map(drop);
    let error = expect_error("a token that was overtaken", late, ErrorKind::Stale, &["5.a", ORDER, "6.b"]);
    assert_eq!(error.effect(), Effect::None, "{error:?}");
    assert_eq!(stage.state(1).await, "new", "what is refused changes nothing");
    assert_eq!(mark(&stage).await, "6.b");
}

#[tokio::test]
async fn whoever_is_in_the_middle_of_it_is_first_in_all_or_in_nothing() {
    for commits in [true, false] {
        let Some(stage) = Stage::set().await else { return };
        let (mut old, mut new) = (stage.client().await, stage.client().await);
        let paused = write(&mut old, token(5, "a"), "old").await.unwrap();
        let next = tokio::spawn(async move {
            let mut tx = new.transaction().await.unwrap();
            fence_in(&mut tx, ORDER, token(6, "b")).await.unwrap();
            let seen: String =
                tx.query_one("SELECT state FROM orders WHERE id = 1", &[]).await.unwrap().get(0);
            tx.execute("UPDATE orders SET state = 'next' WHERE id = 1", &[]).await.unwrap();
            tx.commit().await.unwrap();
            seen
        });
        stage.waiting(1).await;
        if commits {
            paused.commit().await.unwrap();
        } else {
            paused.rollback().await.unwrap();
        }
        let seen = outcome("the next holder's turn", next).await;
        assert_eq!(seen, if commits { "old" } else { "new" }, "the next one sees all of it or nothing");
        assert_eq!((stage.state(1).await.as_str(), mark(&stage).await.as_str()), ("next", "6.b"));
    }
}

#[tokio::test]
async fn whoever_waits_behind_its_successor_is_stale_if_that_one_commits() {
    for commits in [true, false] {
        let Some(stage) = Stage::set().await else { return };
        let (mut old, mut new) = (stage.client().await, stage.client().await);
        let successor = write(&mut new, token(6, "b"), "new").await.unwrap();
        let late = tokio::spawn(async move {
            let written = write(&mut old, token(5, "a"), "old").await?;
            written.commit().await.unwrap();
            Ok(())
        });
        stage.waiting(1).await;
        if commits {
            successor.commit().await.unwrap();
        } else {
            successor.rollback().await.unwrap();
        }
        let late = outcome("an answer to the old holder", late).await;
        if commits {
            expect_error("a token that was overtaken", late, ErrorKind::Stale, &["6.b"]);
            assert_eq!((stage.state(1).await.as_str(), mark(&stage).await.as_str()), ("new", "6.b"));
        } else {
            late.expect("nobody has overtaken it after all");
            assert_eq!((stage.state(1).await.as_str(), mark(&stage).await.as_str()), ("old", "5.a"));
        }
    }
}

#[tokio::test]
async fn the_mark_and_the_work_are_undone_together() {
    let Some(stage) = Stage::set().await else { return };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    write(&mut first, token(5, "a"), "paid").await.unwrap().rollback().await.unwrap();
    assert_eq!((stage.state(1).await.as_str(), mark(&stage).await.as_str()), ("new", ""));

    let mut tx = first.transaction().await.unwrap();
    let mut savepoint = tx.transaction().await.unwrap();
    fence_in(&mut savepoint, ORDER, token(7, "a")).await.unwrap();
    savepoint.rollback().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(mark(&stage).await, "", "the mark is undone with the savepoint");

    let broken = write(&mut second, token(6, "a"), "paid").await.unwrap();
    stage.server.terminate_backends().await;
    broken.commit().await.expect_err("its connection is gone");
    assert_eq!((stage.state(1).await.as_str(), mark(&stage).await.as_str()), ("new", ""));
}

#[tokio::test]
async fn one_number_of_two_holders_is_refused_whoever_came_first() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    for (resource, first, second) in [("one", "a", "b"), ("other", "b", "a")] {
        let mut tx = client.transaction().await.unwrap();
        fence_in(&mut tx, resource, token(5, first)).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = client.transaction().await.unwrap();
        let twin = fence_in(&mut tx, resource, token(5, second)).await;
        let words = [&*format!("5.{second}"), &format!("5.{first}"), "memory"];
        expect_error("the twin of a token", twin, ErrorKind::TokenCollision, &words);
    }
    let mut connection = stage.sqlx().await;
    let mut tx = connection.begin().await.unwrap();
    let twin = fence_in(&mut tx, "one", token(5, "c")).await;
    expect_error("the twin of a token", twin, ErrorKind::TokenCollision, &["5.c", "5.a"]);
    tx.rollback().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    let refused = fence_in(&mut tx, "one", token(4, "a")).await;
    expect_error("a stale token", refused, ErrorKind::Stale, &["4.a", "5.a"]);
    tx.rollback().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    fence_in(&mut tx, "one", token(6, "c")).await.unwrap();
}

#[tokio::test]
async fn a_guard_of_any_backend_is_fenced_in() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    let locks = Locks::connect("memory:").await.unwrap();
    let old = locks.lock("orders/1").acquire().await.unwrap();
    write(&mut client, old.token(), "old").await.unwrap().commit().await.unwrap();
    let overtaken = old.token();
    old.release().await.unwrap();
    let new = locks.lock("orders/1").acquire().await.unwrap();
    write(&mut client, new.token(), "new").await.unwrap().commit().await.unwrap();
    let late = write(&mut client, overtaken, "late").await.map(drop);
    expect_error("a token that was overtaken", late, ErrorKind::Stale, &[]);
    let largest = token(i64::MAX.cast_unsigned(), "ffffffffffffffff");
    write(&mut client, largest, "largest").await.expect("tokens have room").commit().await.unwrap();
    assert_eq!(mark(&stage).await, largest.to_string(), "the token as people know it");
}

#[tokio::test]
async fn a_mark_that_was_raised_since_the_snapshot_is_a_serialization_failure() {
    let Some(stage) = Stage::set().await else { return };
    let (mut first, mut second) = (stage.client().await, stage.client().await);
    write(&mut second, token(5, "a"), "first").await.unwrap().commit().await.unwrap();
    for isolation in [IsolationLevel::RepeatableRead, IsolationLevel::Serializable] {
        let mut tx = first.build_transaction().isolation_level(isolation).start().await.unwrap();
        tx.query("SELECT FROM orders", &[]).await.unwrap();
        write(&mut second, token(5, "a"), "second").await.unwrap().commit().await.unwrap();
        let unseen = fence_in(&mut tx, ORDER, token(6, "b")).await;
        expect_conflict("what the snapshot does not show", unseen, Conflict::SerializationFailure);
    }
}

#[tokio::test]
async fn of_transactions_that_wait_for_each_others_resources_one_is_told_of_the_deadlock() {
    let Some(stage) = Stage::set().await else { return };
    let both_have_one = Arc::new(Barrier::new(2));
    let mut tasks = Vec::new();
    for resources in [["a", "b"], ["b", "a"]] {
        let (mut client, both_have_one) = (stage.client().await, Arc::clone(&both_have_one));
        tasks.push(tokio::spawn(async move {
            let mut tx = client.transaction().await.unwrap();
            fence_in(&mut tx, resources[0], token(1, "a")).await.unwrap();
            both_have_one.wait().await;
            let result = fence_in(&mut tx, resources[1], token(1, "a")).await;
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
    let [admitted, refused] = results.try_into().expect("two");
    assert!(admitted.is_ok(), "{admitted:?}");
    expect_conflict("the one that the server chose", refused, Conflict::Deadlock);
}

#[tokio::test]
async fn a_holder_that_is_paused_in_its_transaction_keeps_the_next_one_no_longer_than_it_says() {
    let Some(stage) = Stage::set().await else { return };
    let (mut old, mut new) = (stage.client().await, stage.client().await);
    old.batch_execute("SET idle_in_transaction_session_timeout = '200ms'").await.unwrap();
    let paused = write(&mut old, token(5, "a"), "old").await.unwrap();
    let mut tx = new.transaction().await.unwrap();
    lock_timeout(&mut tx, std::time::Duration::from_millis(1)).await.unwrap();
    let busy = fence_in(&mut tx, ORDER, token(6, "b")).await;
    expect_conflict("a mark that is held", busy, Conflict::Busy);
    tx.rollback().await.unwrap();
    let next = within("end of the pause", write(&mut new, token(6, "b"), "new")).await.unwrap();
    next.commit().await.unwrap();
    paused.commit().await.expect_err("its session was ended");
    assert_eq!(stage.state(1).await, "new");
}

#[tokio::test]
async fn of_many_holders_at_once_no_write_comes_after_that_of_a_higher_token() {
    const HOLDERS: u64 = 6;
    const WRITES: u64 = 40;
    let Some(stage) = Stage::set().await else { return };
    stage.server.psql("CREATE TABLE writes (place bigserial, sequence bigint)").await;
    let mut tasks = Vec::new();
    for holder in 1..=HOLDERS {
        let mut client = stage.client().await;
        tasks.push(tokio::spawn(async move {
            let (mut written, mut refused) = (0, 0);
            for write in 0..WRITES {
                // Everybody's tokens rise, and everybody is often behind the others.
                let token = token(write * HOLDERS + (holder * write) % HOLDERS, &format!("{holder:x}"));
                let mut tx = client.transaction().await.unwrap();
                match fence_in(&mut tx, ORDER, token).await {
                    Ok(()) => {
                        let sequence = i64::try_from(token.sequence()).unwrap();
                        tx.execute("INSERT INTO writes (sequence) VALUES ($1)", &[&sequence]).await.unwrap();
                        tx.commit().await.unwrap();
                        written += 1;
                    }
                    Err(error) => {
                        let lawful = [ErrorKind::Stale, ErrorKind::TokenCollision];
                        assert!(lawful.contains(&error.kind()), "{error:?}");
                        refused += 1;
                    }
                }
            }
            (written, refused)
        }));
    }
    let (mut written, mut refused) = (0, 0);
    for task in tasks {
        let (more_written, more_refused) = outcome("end of the writes", task).await;
        written += more_written;
        refused += more_refused;
    }
    let count = "SELECT count(*) FILTER (WHERE sequence < highest), count(*) FROM
        (SELECT sequence, max(sequence) OVER (ORDER BY place) AS highest FROM writes) AS history";
    assert_eq!(stage.server.psql(count).await.trim(), format!("0|{written}"), "stale writes, and all writes");
    assert!(refused > 0, "somebody was late, or nothing was shown");
}

#[tokio::test]
async fn what_is_no_token_is_refused_from_any_language() {
    let Some(stage) = Stage::set().await else { return };
    for (arguments, words) in [
        ("NULL, 1, 'a'", "NULL is no resource"),
        ("'', 1, 'a'", "is no resource"),
        ("E'line\\nbreak', 1, 'a'", "is no resource"),
        ("repeat('x', 256), 1, 'a'", "is no resource"),
        ("'a', NULL, 'a'", "(NULL, 'a') is no token"),
        ("'a', -1, 'a'", "(-1, 'a') is no token"),
        ("'a', 1, NULL", "is no token"),
        ("'a', 1, ''", "is no token"),
        ("'a', 1, '0a'", "is no token"),
        ("'a', 1, 'A'", "is no token"),
        ("'a', 1, '10000000000000000'", "is no token"),
        ("'a', 1, E'a\\n'", "is no token"),
        ("'a', 9223372036854775808, 'a'", "does not exist"),
    ] {
        let said = stage.server.ask(&format!("SELECT ringfence.admit({arguments})")).await.unwrap_err();
        assert!(said.contains(words), "admit({arguments}): {said}");
    }
    for resource in ["it's", "a\\b", "\"", "$1", "日本", "'); DELETE FROM orders; --"] {
        let mut client = stage.client().await;
        let mut tx = client.transaction().await.unwrap();
        fence_in(&mut tx, resource, token(1, "a")).await.unwrap();
        let kept: String = tx.query_one("SELECT resource FROM ringfence.marks", &[]).await.unwrap().get(0);
        assert_eq!(kept, resource);
    }
}

#[tokio::test]
async fn a_role_can_admit_and_do_nothing_else_to_marks() {
    let Some(stage) = Stage::set().await else { return };
    let mut clerk = stage.client_of(CLERK).await;
    write(&mut clerk, token(5, "a"), "paid").await.unwrap().commit().await.unwrap();
    for forgery in [
        "UPDATE ringfence.marks SET sequence = 0",
        "DELETE FROM ringfence.marks",
        "SELECT * FROM ringfence.marks",
        "ALTER TABLE orders DISABLE TRIGGER ALL",
    ] {
        let denied = clerk.batch_execute(forgery).await.expect_err(forgery);
        assert_eq!(
            denied.code().map(tokio_postgres::error::SqlState::code),
            Some("42501"),
            "{forgery}: {denied}"
        );
    }
    let mut tx = clerk.build_transaction().read_only(true).start().await.unwrap();
    let refused = fence_in(&mut tx, ORDER, token(6, "a")).await;
    expect_error("a transaction that cannot write", refused, ErrorKind::InvalidRequest, &["READ ONLY"]);
}
