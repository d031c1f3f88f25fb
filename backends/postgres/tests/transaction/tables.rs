//! Tables of the caller's that refuse whoever has no token, from `psql` as from anywhere.

use ringfence::postgres::{Rows, fence_column, fence_in, fence_table};
use ringfence::{Effect, ErrorKind, Retry};
use ringfence_servers::{PostgresOptions, Psql, postgres_18};

use crate::stage::{CLERK, Stage, expect_error, outcome, token};

const REFUSED: &str = "without a token: the table is fenced";

impl Stage {
    /// The stage with its table fenced.
    async fn fenced() -> Option<Self> {
        let stage = Self::set().await?;
        assert_eq!(stage.fence("public.orders", "id").await.as_deref(), Ok("public.orders/"));
        Some(stage)
    }

    async fn fence(&self, table: &str, key: &str) -> Result<String, String> {
        let quote = |text: &str| text.replace('\'', "''");
        let call = format!("SELECT ringfence.fence_table('{}', '{}')", quote(table), quote(key));
        self.server.ask(&call).await.map(|prefix| prefix.trim().to_owned())
    }

    async fn orders(&self) -> String {
        self.server
            .psql("SELECT string_agg(id || ' ' || state, ', ' ORDER BY id) FROM orders")
            .await
            .trim()
            .to_owned()
    }
}

/// Has psql do it, and checks that it is done.
async fn does(psql: &mut Psql, sql: &str) {
    let said = psql.ask(sql).await;
    assert!(!said.contains("ERROR"), "{sql}: {said}");
}

/// Has psql try it, and checks that the fence refuses it in these words; the transaction around it, if any, is rolled back.
async fn is_refused(psql: &mut Psql, sql: &str, words: &str) {
    let said = psql.ask(sql).await;
    assert!(said.contains("ERROR") && said.contains(words), "{sql}: {said:?} does not say {words:?}");
    psql.ask("ROLLBACK").await;
}

const ADMIT_1: &str = "SELECT ringfence.admit('public.orders/1', 5, 'a')";
const ADMIT_2: &str = "SELECT ringfence.admit('public.orders/2', 5, 'a')";

#[tokio::test]
async fn a_row_is_changed_with_its_token_and_not_without() {
    let Some(stage) = Stage::fenced().await else { return };
    let mut psql = stage.server.session();
    for statement in [
        "UPDATE orders SET state = 'x' WHERE id = 1",
        "DELETE FROM orders WHERE id = 1",
        "DELETE FROM orders",
        "INSERT INTO orders VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        "WITH gone AS (DELETE FROM orders WHERE id = 1 RETURNING *) SELECT count(*) FROM gone",
        "MERGE INTO orders USING (VALUES (1)) AS v (id) ON orders.id = v.id WHEN MATCHED THEN UPDATE SET state = 'x'",
    ] {
        is_refused(&mut psql, statement, REFUSED).await;
        is_refused(
            &mut psql,
            &format!("BEGIN; {ADMIT_2}; {statement}"),
            &format!("public.orders/1 {REFUSED}"),
        )
        .await;
    }
    is_refused(&mut psql, "TRUNCATE orders", "TRUNCATE of public.orders: the table is fenced").await;
    is_refused(&mut psql, &format!("BEGIN; {ADMIT_1}; TRUNCATE orders"), "TRUNCATE").await;
    assert_eq!(stage.orders().await, "1 new, 2 new, 3 new, 4 new, 5 new");

    does(&mut psql, &format!("BEGIN; {ADMIT_1}; UPDATE orders SET state = 'paid' WHERE id = 1; COMMIT"))
        .await;
    does(&mut psql, &format!("BEGIN; {ADMIT_2}; DELETE FROM orders WHERE id = 2; COMMIT")).await;
    assert_eq!(stage.orders().await, "1 paid, 3 new, 4 new, 5 new");
    let of_all = "UPDATE orders SET state = 'x' WHERE id IN (1, 3)";
    is_refused(&mut psql, &format!("BEGIN; {ADMIT_1}; {of_all}"), "UPDATE of public.orders/3").await;
    let both =
        format!("BEGIN; {ADMIT_1}; SELECT ringfence.admit('public.orders/3', 9, 'c'); {of_all}; COMMIT");
    does(&mut psql, &both).await;
    assert_eq!(stage.orders().await, "1 x, 3 x, 4 new, 5 new");
}

#[tokio::test]
async fn a_key_that_was_ever_fenced_is_not_come_to_without_its_token() {
    let Some(stage) = Stage::fenced().await else { return };
    let mut psql = stage.server.session();
    does(&mut psql, "INSERT INTO orders VALUES (6, 'new'), (7, 'new')").await;
    does(&mut psql, &format!("BEGIN; {ADMIT_1}; DELETE FROM orders WHERE id = 1; COMMIT")).await;
    for back in [
        "INSERT INTO orders VALUES (8, 'new'), (1, 'back')",
        &format!("BEGIN; {ADMIT_2}; UPDATE orders SET id = 1 WHERE id = 2"),
        &format!("BEGIN; {ADMIT_2}; UPDATE orders SET id = id - 1 WHERE id = 2"),
        "COPY orders (id, state) FROM STDIN;\n1\tback\n\\.\n",
    ] {
        is_refused(&mut psql, back, &format!("public.orders/1 {REFUSED}")).await;
    }
    is_refused(&mut psql, "UPDATE orders SET id = 9 WHERE id = 2", "UPDATE of public.orders/2").await;
    does(&mut psql, &format!("BEGIN; {ADMIT_2}; UPDATE orders SET id = 9 WHERE id = 2; COMMIT")).await;
    does(&mut psql, &format!("BEGIN; {ADMIT_1}; INSERT INTO orders VALUES (1, 'back'); COMMIT")).await;
    assert_eq!(stage.orders().await, "1 back, 3 new, 4 new, 5 new, 6 new, 7 new, 9 new");
}

/// A snapshot that is older than the mark does not show it. What a successor has deleted is not put back by that either.
#[tokio::test]
async fn a_snapshot_from_before_a_token_puts_back_nothing() {
    let Some(stage) = Stage::fenced().await else { return };
    let (mut late, mut other) = (stage.server.session(), stage.server.session());
    for (id, isolation) in [(1, "REPEATABLE READ"), (2, "SERIALIZABLE")] {
        let begin = format!("BEGIN ISOLATION LEVEL {isolation}; SELECT FROM orders");
        let older = format!("older than the mark of public.orders/{id}");
        for back in [
            format!("INSERT INTO orders VALUES ({id}, 'back')"),
            format!(
                "SELECT ringfence.admit('public.orders/5', 1, 'a'); UPDATE orders SET id = {id} WHERE id = 5"
            ),
        ] {
            does(&mut other, "DELETE FROM ringfence.marks").await;
            does(&mut late, &begin).await;
            let admit = format!("SELECT ringfence.admit('public.orders/{id}', 5, 'a')");
            does(&mut other, &format!("BEGIN; {admit}; DELETE FROM orders WHERE id = {id}; COMMIT")).await;
            is_refused(&mut late, &back, &older).await;
            is_refused(&mut late, &format!("{begin}; {back}"), &format!("public.orders/{id} {REFUSED}"))
                .await;
        }
        // To a key that was never fenced anybody comes, and leaves no mark there.
        let new = format!("INSERT INTO orders VALUES ({id}0, 'new')");
        does(&mut late, &format!("{begin}; {new}; COMMIT")).await;
    }
    assert_eq!(stage.orders().await, "3 new, 4 new, 5 new, 10 new, 20 new");
    assert_eq!(stage.server.psql("SELECT resource FROM ringfence.marks").await, "public.orders/2");
}

#[tokio::test]
async fn a_token_is_good_for_what_its_admission_is_part_of() {
    let Some(stage) = Stage::fenced().await else { return };
    let mut psql = stage.server.session();
    let update = "UPDATE orders SET state = 'x' WHERE id = 1";
    for over in [
        format!("BEGIN; {ADMIT_1}; COMMIT; {update}"),
        format!("{ADMIT_1}; {update}"),
        format!("BEGIN; {ADMIT_1}; COMMIT; BEGIN; {update}"),
        format!("BEGIN; {ADMIT_1}; COMMIT AND CHAIN; {update}"),
        format!("BEGIN; {ADMIT_1}; ROLLBACK AND CHAIN; {update}"),
        format!("BEGIN; SAVEPOINT s; {ADMIT_1}; ROLLBACK TO s; {update}"),
        format!("BEGIN; SAVEPOINT s; SAVEPOINT t; {ADMIT_1}; RELEASE t; ROLLBACK TO s; {update}"),
    ] {
        is_refused(&mut psql, &over, REFUSED).await;
    }
    for (within, state) in [
        (
            format!(
                "BEGIN; SAVEPOINT s; {ADMIT_1}; RELEASE s; UPDATE orders SET state = 'a' WHERE id = 1; COMMIT"
            ),
            "a",
        ),
        (format!("BEGIN; {ADMIT_1}; SAVEPOINT s; UPDATE orders SET state = 'b' WHERE id = 1; COMMIT"), "b"),
        (
            format!(
                "BEGIN; {ADMIT_1}; SAVEPOINT s; ROLLBACK TO s; UPDATE orders SET state = 'c' WHERE id = 1; COMMIT"
            ),
            "c",
        ),
        (format!("BEGIN; {ADMIT_1}; {ADMIT_1}; UPDATE orders SET state = 'd' WHERE id = 1; COMMIT"), "d"),
        (
            format!(
                "BEGIN ISOLATION LEVEL SERIALIZABLE; {ADMIT_1}; UPDATE orders SET state = 'e' WHERE id = 1; COMMIT"
            ),
            "e",
        ),
    ] {
        does(&mut psql, &within).await;
        assert_eq!(stage.state(1).await, state, "{within}");
    }
}

#[tokio::test]
async fn a_paused_holder_is_refused_by_the_table_itself() {
    let Some(stage) = Stage::fenced().await else { return };
    let row = "public.orders/1";
    let (mut old, mut new) = (stage.client().await, stage.client().await);
    let mut tx = old.transaction().await.unwrap();
    fence_in(&mut tx, row, token(5, "a")).await.unwrap();
    tx.commit().await.unwrap();

    // It forgets to fence in again, and waits for the row that its successor has.
    let mut successor = new.transaction().await.unwrap();
    fence_in(&mut successor, row, token(6, "b")).await.unwrap();
    successor.execute("UPDATE orders SET state = 'new holder' WHERE id = 1", &[]).await.unwrap();
    let late = tokio::spawn(async move {
        let written = old.execute("UPDATE orders SET state = 'late' WHERE id = 1", &[]).await;
        (old, written)
    });
    stage.waiting(1).await;
    successor.commit().await.unwrap();
    let (mut old, written) = outcome("an answer to the old holder", late).await;
    let refused = written.expect_err("nobody has admitted it");
    assert_eq!(refused.code().map(tokio_postgres::error::SqlState::code), Some("RF006"), "{refused}");

    let mut tx = old.transaction().await.unwrap();
    let refused = fence_in(&mut tx, row, token(5, "a")).await;
    expect_error("a token that was overtaken", refused, ErrorKind::Stale, &["6.b"]);
    tx.rollback().await.unwrap();
    assert_eq!(stage.state(1).await, "new holder");

    let mut tx = old.transaction().await.unwrap();
    let orders = Rows::new("public", "orders", "id").unwrap();
    let unfenced = fence_column(&mut tx, &orders, 1, "fence_token", token(9, "a")).await;
    expect_error("a write without a token", unfenced, ErrorKind::NotOpened, &[row, "admit("]);
}

#[tokio::test]
async fn nobody_can_say_that_a_token_was_admitted() {
    let Some(stage) = Stage::fenced().await else { return };
    let mut psql = stage.server.session_by(&stage.server.url_of(CLERK));
    does(&mut psql, &format!("BEGIN; {ADMIT_1}; UPDATE orders SET state = 'paid' WHERE id = 1; COMMIT"))
        .await;
    let update = "UPDATE orders SET state = 'x' WHERE id = 1";
    is_refused(&mut psql, update, REFUSED).await;
    is_refused(&mut psql, "ALTER TABLE orders DISABLE TRIGGER ringfence_fence", "must be owner").await;
    is_refused(&mut psql, "DROP TRIGGER ringfence_fence ON orders", "must be owner").await;
    is_refused(&mut psql, "SET session_replication_role = replica", "permission denied").await;
    // What would stand in place of the server's own functions, if they were looked for where a session says.
    let admitted = stage.server.psql("SELECT admitted_in, admitted_at FROM ringfence.marks").await;
    let (number, time) = admitted.trim().split_once('|').expect("two columns");
    stage.server.psql("CREATE SCHEMA clerks AUTHORIZATION clerk").await;
    does(
        &mut psql,
        &format!(
            "CREATE FUNCTION clerks.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '{time}'::timestamptz $$;
             CREATE FUNCTION clerks.pg_current_xact_id() RETURNS xid8 LANGUAGE sql AS $$ SELECT '{number}'::xid8 $$;
             SET search_path = clerks, pg_catalog, public"
        ),
    )
    .await;
    is_refused(&mut psql, update, REFUSED).await;
    assert_eq!(stage.state(1).await, "paid");
}

#[tokio::test]
async fn nobody_has_functions_run_with_the_rights_of_our_owner() {
    let Some(stage) = Stage::set().await else { return };
    stage.server.psql("CREATE SCHEMA clerks AUTHORIZATION clerk").await;
    let mut psql = stage.server.session_by(&stage.server.url_of(CLERK));
    does(
        &mut psql,
        "SET search_path = clerks;
         CREATE TYPE key AS (k int);
         CREATE FUNCTION as_text(key) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE 'ran as %', current_user; END $$;
         CREATE CAST (key AS text) WITH FUNCTION as_text(key);
         CREATE FUNCTION as_json(key) RETURNS json LANGUAGE plpgsql AS $$ BEGIN RAISE 'ran as %', current_user; END $$;
         CREATE CAST (key AS json) WITH FUNCTION as_json(key);
         CREATE TABLE own (key key, id int); INSERT INTO own VALUES (ROW (1), 1)",
    )
    .await;
    for key in ["key", "to_jsonb", "nothing"] {
        does(
            &mut psql,
            &format!(
                "CREATE OR REPLACE TRIGGER fence AFTER UPDATE ON own
                 FOR EACH ROW EXECUTE FUNCTION ringfence.check_row('a/', '{key}')"
            ),
        )
        .await;
        let words = format!("clerks.own is fenced by {key}, which is no key of it any more");
        is_refused(&mut psql, "UPDATE own SET id = 2", &words).await;
    }
}

#[tokio::test]
async fn a_mark_of_another_server_opens_nothing_here() {
    let Some(stage) = Stage::fenced().await else { return };
    let (mut psql, update) = (stage.server.session(), "UPDATE orders SET state = 'x' WHERE id = 1");
    stage.server.psql(ADMIT_1).await;
    // As from a dump: the number comes round again, or the time does.
    for same in ["admitted_in", "admitted_at"] {
        let begun = psql.ask("BEGIN; SELECT pg_current_xact_id(), now()").await;
        let (number, time) = begun.trim().split_once('|').expect("two columns");
        let value = if same == "admitted_in" { number } else { time };
        stage.server.psql(&format!("UPDATE ringfence.marks SET {same} = '{value}'")).await;
        is_refused(&mut psql, update, REFUSED).await;
        let other = "UPDATE ringfence.marks SET admitted_in = '3', admitted_at = '2000-01-01'";
        stage.server.psql(other).await;
    }
}

#[tokio::test]
async fn whatever_leads_to_the_rows_is_refused() {
    let Some(stage) = Stage::fenced().await else { return };
    let mut psql = stage.server.session();
    does(
        &mut psql,
        "CREATE TABLE parts (id int PRIMARY KEY, of bigint REFERENCES orders ON DELETE CASCADE ON UPDATE CASCADE);
         INSERT INTO parts VALUES (1, 1);
         SELECT ringfence.fence_table('public.parts', 'id');
         CREATE VIEW open_orders AS SELECT * FROM orders WHERE state = 'new';
         CREATE TABLE shops (id int PRIMARY KEY); INSERT INTO shops VALUES (1);
         CREATE TABLE shelves (id int PRIMARY KEY, of int REFERENCES shops ON DELETE CASCADE);
         INSERT INTO shelves VALUES (1, 1);
         SELECT ringfence.fence_table('public.shelves', 'id')",
    )
    .await;
    is_refused(&mut psql, "UPDATE open_orders SET state = 'x' WHERE id = 1", "UPDATE of public.orders/1")
        .await;
    is_refused(&mut psql, "DELETE FROM shops", "DELETE of public.shelves/1").await;
    is_refused(&mut psql, "TRUNCATE shops CASCADE", "TRUNCATE of public.shelves").await;
    is_refused(&mut psql, &format!("BEGIN; {ADMIT_1}; DELETE FROM orders WHERE id = 1"), "public.parts/1")
        .await;
    let both = format!(
        "BEGIN; {ADMIT_1}; SELECT ringfence.admit('public.parts/1', 1, 'a'); DELETE FROM orders WHERE id = 1; COMMIT"
    );
    does(&mut psql, &both).await;
    assert_eq!(stage.server.psql("SELECT count(*) FROM parts").await.trim(), "0");

    // A trigger of the table's owner that has the last word on what is written.
    does(
        &mut psql,
        "CREATE FUNCTION to_3() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id = 3; RETURN NEW; END';
         CREATE TRIGGER zzz BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION to_3();
         BEGIN; SELECT ringfence.admit('public.orders/3', 1, 'a'); DELETE FROM orders WHERE id = 3; COMMIT",
    )
    .await;
    is_refused(
        &mut psql,
        &format!("BEGIN; {ADMIT_2}; UPDATE orders SET state = 'x' WHERE id = 2"),
        "public.orders/3",
    )
    .await;
}

#[tokio::test]
async fn partitions_are_fenced_one_by_one() {
    let Some(stage) = Stage::set().await else { return };
    let mut psql = stage.server.session();
    does(
        &mut psql,
        "CREATE TABLE events (id int NOT NULL, year int NOT NULL, PRIMARY KEY (id, year)) PARTITION BY LIST (year);
         CREATE TABLE events_25 PARTITION OF events FOR VALUES IN (25);
         CREATE TABLE events_26 PARTITION OF events FOR VALUES IN (26);
         INSERT INTO events VALUES (1, 25), (2, 26);
         CREATE TABLE parent (id int NOT NULL); CREATE TABLE child () INHERITS (parent)",
    )
    .await;
    for (table, why) in [("public.events", "partition"), ("public.parent", "partition")] {
        let refused = stage.fence(table, "id").await.unwrap_err();
        assert!(
            refused.contains("cannot be fenced as a whole") && refused.contains(why),
            "{table}: {refused}"
        );
    }
    for partition in ["public.events_25", "public.events_26"] {
        stage.fence(partition, "id").await.unwrap();
    }
    stage.fence("public.child", "id").await.unwrap();
    does(&mut psql, "INSERT INTO child VALUES (1)").await;
    is_refused(&mut psql, "UPDATE parent SET id = 2", "UPDATE of public.child/1").await;
    is_refused(&mut psql, "DELETE FROM events WHERE id = 1", "DELETE of public.events_25/1").await;
    is_refused(&mut psql, "UPDATE events SET year = 26 WHERE id = 1", "public.events_25/1").await;
    is_refused(&mut psql, "TRUNCATE events", "TRUNCATE of public.events_25").await;
    does(&mut psql, "BEGIN; SELECT ringfence.admit('public.events_26/1', 1, 'a'); COMMIT").await;
    let one = "BEGIN; SELECT ringfence.admit('public.events_25/1', 1, 'a')";
    let moves = "UPDATE events SET year = 26 WHERE id = 1";
    is_refused(&mut psql, &format!("{one}; {moves}"), "INSERT of public.events_26/1").await;
    does(&mut psql, &format!("{one}; SELECT ringfence.admit('public.events_26/1', 1, 'a'); {moves}; COMMIT"))
        .await;
}

#[tokio::test]
async fn keys_and_names_of_every_kind_are_fenced() {
    let Some(stage) = Stage::set().await else { return };
    let mut psql = stage.server.session();
    for (kind, key) in [
        ("smallint", "-7"),
        ("integer", "7"),
        ("text", "it''s \"a\\b\" $1 %s %I/日本"),
        ("varchar(30)", "'); DROP TABLE orders; --"),
        ("uuid", "01234567-89ab-cdef-0123-456789abcdef"),
    ] {
        let key = key.replace("''", "'").replace('\'', "''");
        does(
            &mut psql,
            &format!(
                r#"CREATE SCHEMA "S '%s ""q\"; CREATE TABLE "S '%s ""q\"."T ""t\'$1" ("K ""k\'" {kind} PRIMARY KEY);
                   INSERT INTO "S '%s ""q\"."T ""t\'$1" VALUES ('{key}')"#
            ),
        )
        .await;
        let prefix = stage.fence(r#""S '%s ""q\"."T ""t\'$1""#, r#""K ""k\'""#).await.unwrap();
        assert_eq!(prefix, r#""S '%s ""q\"."T ""t\'$1"/"#, "as SQL writes it");
        let delete = r#"DELETE FROM "S '%s ""q\"."T ""t\'$1""#;
        is_refused(&mut psql, delete, REFUSED).await;
        let resource = format!("{}{key}", prefix.replace('\'', "''"));
        does(&mut psql, &format!("BEGIN; SELECT ringfence.admit('{resource}', 1, 'a'); {delete}; COMMIT"))
            .await;
        does(&mut psql, r#"DROP SCHEMA "S '%s ""q\" CASCADE; SET client_min_messages = error"#).await;
    }
    assert_eq!(stage.orders().await, "1 new, 2 new, 3 new, 4 new, 5 new");
}

#[tokio::test]
async fn what_cannot_be_fenced_is_said() {
    let Some(stage) = Stage::set().await else { return };
    stage
        .server
        .psql(
            "CREATE TABLE odd (id int PRIMARY KEY, d date NOT NULL, n numeric NOT NULL, maybe int, gone int);
             ALTER TABLE odd DROP COLUMN gone; CREATE VIEW seen AS SELECT * FROM odd; CREATE SEQUENCE counted",
        )
        .await;
    for (table, key, words) in [
        ("public.nowhere", "id", &["no table public.nowhere", "schema.table"][..]),
        ("nowhere.odd", "id", &["no table nowhere.odd"]),
        ("odd", "id", &["no table odd", "schema.table"]),
        ("public.Odd\"", "id", &["no table public.Odd\""]),
        ("public.\"Odd\"", "id", &["no table public.\"Odd\"", "double quotes"]),
        ("", "id", &["invalid name syntax"]),
        ("a.b.public.odd", "id", &["improper", "schema.table"]),
        ("public.odd; DROP TABLE orders", "id", &["invalid name syntax"]),
        ("public.seen", "id", &["cannot be fenced as a whole", "ordinary tables"]),
        ("public.counted", "id", &["cannot be fenced as a whole"]),
        ("public.odd", "key", &["table public.odd has no column key"]),
        ("public.odd", "\"ID\"", &["has no column"]),
        ("public.odd", "gone", &["has no column"]),
        ("public.odd", "ctid", &["has no column"]),
        ("public.odd", "odd.id", &["has no column"]),
        ("public.odd", "i\"d", &["not a valid identifier"]),
        ("public.odd", "", &["not a valid identifier"]),
        ("public.odd", "maybe", &["cannot name rows", "integer and may be NULL"]),
        ("public.odd", "d", &["cannot name rows: it is date", "uuid"]),
        ("public.odd", "n", &["cannot name rows: it is numeric"]),
    ] {
        let refused = stage.fence(table, key).await.expect_err(&format!("{table} by {key}"));
        for word in words {
            assert!(refused.contains(word), "{table} by {key}: {refused} does not say {word:?}");
        }
    }
    let mut clerk = stage.server.session_by(&stage.server.url_of(CLERK));
    let denied = "role clerk may not fence public.odd";
    for rights in ["SELECT", "TRIGGER"] {
        stage.server.psql(&format!("GRANT {rights} ON odd TO clerk")).await;
        is_refused(&mut clerk, "SELECT ringfence.fence_table('public.odd', 'id')", denied).await;
    }
    assert_eq!(stage.server.psql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").await.trim(), "0");
}

/// PostgreSQL 18 computes such a column when it is read: a trigger sees nothing in it.
#[tokio::test]
async fn a_key_that_is_not_stored_is_none() {
    let Some(programs) = postgres_18() else { return };
    let Some(server) = PostgresOptions::new().programs(programs).start().await else { return };
    crate::stage::install(&server, "ringfence").await;
    let stage = Stage { server };
    stage
        .server
        .psql(
            "CREATE TABLE odd (id int PRIMARY KEY, read text NOT NULL GENERATED ALWAYS AS (id::text) VIRTUAL,
             written text NOT NULL GENERATED ALWAYS AS ('n' || id::text) STORED)",
        )
        .await;
    let refused = stage.fence("public.odd", "read").await.expect_err("nobody could write to it");
    assert!(refused.contains("cannot name rows: it is text and not stored"), "{refused}");
    stage.fence("public.odd", "written").await.unwrap();
    let mut psql = stage.server.session();
    does(&mut psql, "INSERT INTO odd VALUES (7)").await;
    is_refused(&mut psql, "DELETE FROM odd", &format!("public.odd/n7 {REFUSED}")).await;
}

#[tokio::test]
async fn a_table_that_is_fenced_stays_fenced_by_what_it_was() {
    let Some(stage) = Stage::fenced().await else { return };
    let mut psql = stage.server.session();
    does(&mut psql, &format!("BEGIN; {ADMIT_1}; UPDATE orders SET state = 'paid' WHERE id = 1; COMMIT"))
        .await;
    assert_eq!(
        stage.fence("public.orders", "id").await.as_deref(),
        Ok("public.orders/"),
        "again is no change"
    );
    let other = stage.fence("public.orders", "state").await.unwrap_err();
    assert!(other.contains("fenced already, by another key"), "{other}");
    does(&mut psql, "ALTER TABLE orders RENAME TO purchases").await;
    assert_eq!(
        stage.fence("public.purchases", "id").await.as_deref(),
        Ok("public.orders/"),
        "and so its marks stay"
    );
    is_refused(&mut psql, "UPDATE purchases SET state = 'x' WHERE id = 1", "UPDATE of public.orders/1").await;
    let below = "BEGIN; SELECT ringfence.admit('public.orders/1', 4, 'a')";
    is_refused(&mut psql, below, "token 4.a is stale: public.orders/1 has seen 5.a").await;
    // A key that is not there any more leaves nothing open.
    does(&mut psql, "ALTER TABLE purchases RENAME COLUMN id TO number").await;
    is_refused(
        &mut psql,
        "UPDATE purchases SET state = 'x' WHERE number = 2",
        "fenced by id, which is no key of it any more",
    )
    .await;
}

/// Backslashes that mean something else, and quotes around every name.
#[tokio::test]
async fn a_table_is_fenced_by_the_same_names_whatever_a_session_chose() {
    let Some(stage) = Stage::set().await else { return };
    let mut psql = stage.server.session();
    does(&mut psql, "SET standard_conforming_strings = off; SET quote_all_identifiers = on").await;
    for time in ["first", "second"] {
        let prefix = psql.ask("SELECT ringfence.fence_table('public.orders', 'id')").await;
        assert_eq!(prefix, "public.orders/", "the {time} time");
    }
    let paid =
        psql.ask(&format!("BEGIN; {ADMIT_1}; UPDATE orders SET state = 'paid' WHERE id = 1; COMMIT")).await;
    assert_eq!(paid, "", "there is nothing to warn of");
    is_refused(&mut psql, "UPDATE orders SET state = 'x' WHERE id = 1", REFUSED).await;
    assert_eq!(stage.fence("public.orders", "id").await.as_deref(), Ok("public.orders/"));
}

#[tokio::test]
async fn a_table_is_fenced_between_the_transactions_that_write_to_it() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    let writer = client.transaction().await.unwrap();
    writer.execute("UPDATE orders SET state = 'paid' WHERE id = 1", &[]).await.unwrap();
    let mut fencing = [stage.server.session(), stage.server.session()];
    for (waiting, psql) in (1..).zip(&mut fencing) {
        psql.send("SELECT ringfence.fence_table('public.orders', 'id')");
        stage.waiting(waiting).await;
    }
    writer.execute("UPDATE orders SET state = 'sent' WHERE id = 1", &[]).await.unwrap();
    writer.commit().await.unwrap();
    for psql in &mut fencing {
        assert_eq!(psql.answer().await, "public.orders/", "two who fence it at once do it once");
    }
    is_refused(&mut fencing[0], "UPDATE orders SET state = 'x' WHERE id = 1", REFUSED).await;
    assert_eq!(stage.state(1).await, "sent");
}

#[tokio::test]
async fn a_table_is_fenced_by_a_url() {
    let Some(stage) = Stage::set().await else { return };
    let url = stage.server.url();
    assert_eq!(fence_table(&url, "public.orders", "id").await.unwrap(), "public.orders/");
    assert_eq!(fence_table(&url, "public.orders", "id").await.unwrap(), "public.orders/");
    let invalid = ErrorKind::InvalidRequest;
    let missing = fence_table(&url, "public.nothing", "id").await;
    expect_error("a table that is not there", missing, invalid, &["fencing public.nothing", "schema.table"]);
    let keyless = fence_table(&url, "public.orders", "number").await;
    expect_error("a table without the key", keyless, invalid, &["has no column number"]);
    let other = fence_table(&url, "public.orders", "state").await;
    expect_error("a table with another fence", other, invalid, &["another key", "ringfence_truncate"]);
    let denied = fence_table(&stage.server.url_of(CLERK), "public.orders", "id").await;
    expect_error(
        "a role without rights",
        denied,
        ErrorKind::Refused,
        &["GRANT TRIGGER, UPDATE ON public.orders TO clerk"],
    );
    let elsewhere = fence_table("memory:", "public.orders", "id").await;
    expect_error("another backend", elsewhere, ErrorKind::InvalidUrl, &["memory", "postgres://"]);
    let unknown = fence_table(&format!("{url}?shema=x"), "public.orders", "id").await;
    expect_error("a parameter that is none", unknown, ErrorKind::InvalidUrl, &["schema"]);
    for (table, key) in [("public.nul\0", "id"), ("public.orders", "nul\0")] {
        let nul = fence_table(&url, table, key).await;
        expect_error("NUL", nul, invalid, &[]);
    }
}

#[tokio::test]
async fn a_table_that_others_write_to_is_not_waited_for_for_long() {
    let Some(stage) = Stage::set().await else { return };
    let mut client = stage.client().await;
    let writer = client.transaction().await.unwrap();
    writer.execute("UPDATE orders SET state = 'paid' WHERE id = 1", &[]).await.unwrap();
    let fenced = fence_table(&stage.server.url(), "public.orders", "id").await;
    let error = expect_error("a table in use", fenced, ErrorKind::Unavailable, &["lock timeout"]);
    assert_eq!((error.retry(), error.effect()), (Retry::Later, Effect::None), "{error:?}");
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    assert_eq!(stage.server.psql(waits).await.trim(), "0", "nobody waits behind it");
    writer.commit().await.unwrap();
    fence_table(&stage.server.url(), "public.orders", "id").await.unwrap();
}

#[tokio::test]
async fn a_mark_is_on_the_disk_whatever_the_session_says() {
    let Some(stage) = Stage::set().await else { return };
    let mut psql = stage.server.session();
    does(&mut psql, "SET synchronous_commit = off").await;
    let said = psql
        .ask(&format!("BEGIN; {ADMIT_1}; SHOW synchronous_commit; COMMIT; SHOW synchronous_commit"))
        .await;
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["on", "off"]);
}
