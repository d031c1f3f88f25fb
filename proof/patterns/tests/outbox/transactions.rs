//! A message shares the fate of its transaction.

use ringfence::ErrorKind;
use ringfence::patterns::outbox::{self, Grants, PAYLOAD_MAX};

use crate::on_both;
use crate::stage::{Database, Memory, Stage, message, text};

on_both!(
    a_message_is_sent_if_its_transaction_is_committed_and_not_otherwise,
    a_row_from_any_language_is_a_message,
    a_row_that_breaks_a_rule_is_refused,
    what_is_sent_is_gone,
);

async fn a_message_is_sent_if_its_transaction_is_committed_and_not_otherwise(stage: Stage) {
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay, &sink);
    stage.enqueue(&[message("a", "rolled back"), message(None, "rolled back")], false).await.unwrap();
    let ids = stage.put(&[message("a", "one"), message("a", "two"), message(None, "three")]).await;
    sink.until_taken(3).await;
    let done = relay.stop().await;
    assert_eq!(done.delivered, 3);
    let mut taken = sink.taken();
    taken.sort_by_key(|message| message.number);
    let sent: Vec<_> = taken.iter().map(|message| (message.id, text(message), message.attempt)).collect();
    let expected: Vec<_> =
        ids.into_iter().zip(["one", "two", "three"]).map(|(id, text)| (id, text.to_owned(), 1)).collect();
    assert_eq!(sent, expected);
}

async fn a_row_from_any_language_is_a_message(stage: Stage) {
    let (sink, table) = (Memory::new(), stage.table());
    let json = r#"{"path":"C:\\new","said":"\"no\"\n"}"#;
    let (text, bytes) = match stage.database {
        Database::Postgres(..) => (format!("convert_to('{json}', 'UTF8')"), r"'\x00ff'"),
        Database::Sqlite(_) => (format!("'{json}'"), "x'00ff'"),
    };
    let insert = format!(
        "INSERT INTO {table} (topic, key, payload) VALUES ('orders', '42', {text}), ('orders', NULL, {bytes})"
    );
    stage.sql(&insert).await.unwrap();
    let relay = stage.relay(|relay| relay, &sink);
    sink.until_taken(2).await;
    relay.stop().await;
    let mut taken = sink.taken();
    taken.sort_by_key(|message| message.number);
    assert_eq!((taken[0].topic.as_str(), taken[0].key.as_deref()), ("orders", Some("42")));
    assert_eq!((&taken[0].payload[..], &taken[1].payload[..]), (json.as_bytes(), &[0, 255][..]));
    assert_eq!(taken[1].key, None);
    assert!(taken[0].enqueued_at.as_millis() > 1_700_000_000_000, "{:?}", taken[0].enqueued_at);
}

async fn a_row_that_breaks_a_rule_is_refused(stage: Stage) {
    let table = stage.table();
    let long = "x".repeat(256);
    let huge = "x".repeat(PAYLOAD_MAX + 1);
    for (topic, key, payload) in [
        ("", "'k'", "p"),
        (long.as_str(), "'k'", "p"),
        ("a\nb", "'k'", "p"),
        ("a\u{7f}b", "'k'", "p"),
        ("t", "''", "p"),
        ("t", "'a\tb'", "p"),
        ("t", "'k'", huge.as_str()),
    ] {
        let insert =
            format!("INSERT INTO {table} (topic, key, payload) VALUES ('{topic}', {key}, '{payload}')");
        let shown: String = insert.chars().take(200).collect();
        let error = stage.sql(&insert).await.expect_err(&shown).to_string();
        assert!(error.to_lowercase().contains("check constraint"), "{shown:?}: {error}");
    }
    let longest = "ü".repeat(127);
    let insert = format!(
        "INSERT INTO {table} (topic, key, payload) VALUES ('{longest}', '{longest}', '{}')",
        &huge[1..]
    );
    stage.sql(&insert).await.unwrap();
}

async fn what_is_sent_is_gone(stage: Stage) {
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay.batch(10).unwrap(), &sink);
    let messages: Vec<_> = (0..35).map(|at| message("k", at)).collect();
    stage.put(&messages).await;
    sink.until_taken(35).await;
    relay.stop().await;
    assert_eq!(stage.number(&format!("SELECT count(*) FROM {}", stage.table())).await, 0);
    let status = stage.outbox().status().await.unwrap();
    assert_eq!((status.pending, status.oldest_ms, status.dead), (0, None, 0));
    // Nor does it have a claim any more.
    assert_eq!(status.relays, []);
}

#[tokio::test]
async fn there_is_an_outbox_or_it_is_said_how_to_make_one() {
    let Some(server) = ringfence_servers::Postgres::start().await else { return };
    for stage in [Stage::of_server(server), Stage::of_file().await] {
        let advice = "`ringfence outbox setup URL`";
        let error = stage.outbox().status().await.unwrap_err();
        assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(advice), "{error:?}");
        let error = stage.enqueue(&[message("a", 1)], false).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(advice), "{error:?}");
        let run = stage.outbox().relay().run(Memory::new(), std::future::pending());
        assert_eq!(run.await.unwrap_err().kind(), ErrorKind::Refused);
        // Several at once, and again: one makes it.
        let setups: Vec<_> = (0..4)
            .map(|_| {
                let outbox = stage.outbox();
                tokio::spawn(async move { outbox.setup(&Grants::none()).await })
            })
            .collect();
        for setup in setups {
            setup.await.unwrap().unwrap();
        }
        stage.put(&[message("a", 1)]).await;
        stage.outbox().setup(&Grants::none()).await.unwrap();
        assert_eq!(stage.outbox().status().await.unwrap().pending, 1);
        let meta = stage.table().replace("messages", "meta");
        stage.sql(&format!("UPDATE {meta} SET version = 2")).await.unwrap();
        for error in [
            stage.outbox().setup(&Grants::none()).await.unwrap_err(),
            stage.outbox().relay().run(Memory::new(), std::future::pending()).await.unwrap_err(),
        ] {
            let is_so = error.kind() == ErrorKind::Unsupported && error.to_string().contains("newer program");
            assert!(is_so, "{error:?}");
        }
    }
}

#[tokio::test]
async fn the_script_makes_what_setup_makes() {
    let Some(server) = ringfence_servers::Postgres::start().await else { return };
    let sqlite = Stage::of_file().await;
    let script = sqlite.outbox().setup_script(&Grants::none()).unwrap();
    sqlite.sql(&script).await.unwrap();
    server.psql("CREATE ROLE app LOGIN; CREATE ROLE relay LOGIN").await;
    let postgres = Stage::of_server(server);
    let script = postgres.outbox().setup_script(&Grants::none().to_app("app").to_relay("relay")).unwrap();
    let Database::Postgres(server, _) = &postgres.database else { unreachable!() };
    server.psql(&script).await;
    let app = server.url_of("app");
    let pool = sqlx::PgPool::connect(&app).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue(&mut tx, &message("k", 1)).await.unwrap();
    tx.commit().await.unwrap();
    sqlite.put(&[message("k", 1)]).await;
    for stage in [postgres, sqlite] {
        let sink = Memory::new();
        let relay = stage.relay(|relay| relay, &sink);
        sink.until_taken(1).await;
        relay.stop().await;
    }
}

#[tokio::test]
async fn a_role_may_do_what_it_is_for_and_is_told_what_it_lacks() {
    let Some(stage) = Stage::postgres().await else { return };
    let Database::Postgres(server, _) = &stage.database else { unreachable!() };
    server.psql("CREATE ROLE app LOGIN; CREATE ROLE \"re\"\"lay\" LOGIN").await;
    let pool = sqlx::PgPool::connect(&server.url_of("app")).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    let error = outbox::enqueue(&mut tx, &message("k", 1)).await.unwrap_err();
    let grant = "GRANT INSERT (id, topic, key, payload) ON ringfence_outbox.messages";
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(grant), "{error:?}");
    drop(tx);
    let relay = outbox::Outbox::open(&server.url_of("re%22lay")).unwrap();
    let error = relay.status().await.unwrap_err();
    let grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON";
    assert!(error.kind() == ErrorKind::Refused && error.to_string().contains(grant), "{error:?}");

    stage.outbox().setup(&Grants::none().to_app("app").to_relay("re\"lay")).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    outbox::enqueue(&mut tx, &message("k", 1)).await.unwrap();
    tx.commit().await.unwrap();
    for forbidden in [
        "SELECT 1 FROM ringfence_outbox.messages",
        "DELETE FROM ringfence_outbox.messages",
        "UPDATE ringfence_outbox.lanes SET token = 9",
        "INSERT INTO ringfence_outbox.messages (topic, payload, number) VALUES ('t', '', 1)",
        "INSERT INTO ringfence_outbox.messages (topic, payload, dead_at) VALUES ('t', '', 1)",
        "SELECT nextval('ringfence_outbox.numbers')",
    ] {
        let error = sqlx::raw_sql(forbidden).execute(&pool).await.expect_err(forbidden).to_string();
        assert!(error.contains("permission denied"), "{forbidden}: {error}");
    }
    let sink = Memory::answering(|_| Err(crate::stage::refused()));
    let stop = sink.until("one is refused", |given| !given.is_empty());
    let refusals = std::num::NonZeroU32::new(1);
    let done = relay.relay().refusals(refusals).run(std::sync::Arc::clone(&sink) as _, stop).await.unwrap();
    assert_eq!(done.dead, 1);
    assert_eq!(relay.retry(&outbox::Which::All).await.unwrap(), 1);
    let unknown = stage.outbox().setup(&Grants::none().to_app("bob")).await.unwrap_err();
    assert!(unknown.to_string().contains("role \"bob\" does not exist"), "{unknown}");
    let error = stage.outbox().setup(&Grants::none().to_app("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[tokio::test]
async fn sqlite_has_no_roles() {
    let stage = Stage::sqlite().await;
    let error = stage.outbox().setup(&Grants::none().to_app("app")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::InvalidRequest && error.to_string().contains("no roles"), "{error:?}");
}
