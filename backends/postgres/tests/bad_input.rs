//! What users, operators and other users of the database can get wrong.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Effect, Error, ErrorKind, Eviction,
    HolderInfo, LeaseKey, ListQuery, LockName, METADATA_MAX, Mode, Nonce, RecordKey, Release, Renewal,
    Result, Retry, SystemClock, Ttl, Wait,
};
use ringfence_postgres::PostgresBackend;
use ringfence_servers::{Postgres, PostgresOptions, Proxy};
use ringfence_testkit::PATIENCE;

async fn connect(url: &str) -> Result<PostgresBackend> {
    PostgresBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(2 * PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

fn name(text: &str) -> LockName {
    text.parse().expect("a lawful name")
}

fn holder() -> HolderInfo {
    HolderInfo::new("bad input", "here", 1).expect("lawful words")
}

fn request(text: &str, wait: Wait) -> AcquireRequest {
    AcquireRequest::new(name(text), Mode::Exclusive, Ttl::DEFAULT, wait, holder())
}

/// What must be refused, once and for all, and why.
fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T>, kind: ErrorKind, words: &[&str]) -> Error {
    let Err(error) = answer else { panic!("{what} must be refused: {answer:?}") };
    let said = (error.kind(), error.retry(), error.effect());
    assert_eq!(said, (kind, Retry::Never, Effect::None), "{what}: {error:?}");
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{what}: {word:?} is missing: {text}");
    }
    assert!(!text.contains('\n'), "an error is one line: {text}");
    error
}

/// Names that would be something else where they were written into a statement, a pattern, or a channel.
const NAMES: [&str; 12] = [
    "it's",
    "\"quoted\"",
    "back\\slash\\",
    "$1",
    "'; DROP SCHEMA ringfence CASCADE; --",
    "{a,\"b\",NULL}",
    "NULL",
    "100%_",
    " spaces ",
    "a:b:c",
    "é日本😀",
    "\u{10FFFF}",
];

#[tokio::test]
async fn a_name_is_a_name_whatever_is_in_it() {
    let Some(server) = Postgres::start().await else { return };
    let (ann, ben) =
        (connect(&server.url()).await.expect("a server"), connect(&server.url()).await.expect("a server"));
    let longest = "ü".repeat(127);
    for text in NAMES.into_iter().chain([&*longest]) {
        let Ok(Attempt::Granted(lease)) = ann.acquire(request(text, Wait::No)).await else {
            panic!("{text} is free")
        };
        let busy = ben.acquire(request(text, Wait::No)).await;
        assert!(matches!(busy, Ok(Attempt::Busy(_))), "{text}: {busy:?}");
        let key =
            RecordKey::new(name(text), text.chars().take(20).collect::<String>()).expect("a lawful field");
        ann.records().open(&key, lease.token).await.unwrap_or_else(|error| panic!("{text}: {error}"));
        ann.records().write(&key, lease.token, text.to_owned().into()).await.expect("it was opened");
        let record = ben.records().read(&key).await.expect("an answer").expect("it was written");
        assert_eq!(record.value, text);
        let listed = ben.list(ListQuery::new(text)).await.expect("an answer").items;
        assert_eq!(listed.iter().map(|state| state.name.as_str()).collect::<Vec<_>>(), [text]);
        let (waits, released) =
            tokio::join!(ben.acquire(request(text, Wait::Until(BootInstant::MAX))), async {
                while ann.inspect(&name(text)).await.expect("an answer").waiters.is_empty() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                assert_eq!(
                    ann.renew(std::slice::from_ref(&lease.key)).await.expect("an answer"),
                    [Renewal::Renewed]
                );
                ann.release(std::slice::from_ref(&lease.key)).await
            });
        assert_eq!(released.expect("an answer"), [Release::Released], "{text}");
        let Ok(Attempt::Granted(next)) = waits else { panic!("{text}: its turn has come: {waits:?}") };
        assert_eq!(ann.evict(&name(text), next.key.nonce).await.expect("an answer"), Eviction::Evicted);
        assert!(ann.inspect(&name(text)).await.expect("an answer").is_free(), "{text}");
    }
    let names = server.psql("SELECT count(*) FROM ringfence.locks").await;
    assert_eq!(names, (NAMES.len() + 1).to_string(), "each is one lock, and all are there");
}

#[tokio::test]
async fn names_that_differ_in_anything_are_different_locks() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("a server");
    // The last two look alike, and a collation may well say that they are.
    for text in ["a", "A", "a ", " a", "a\u{301}", "\u{e1}"] {
        let attempt = ann.acquire(request(text, Wait::No)).await;
        assert!(matches!(attempt, Ok(Attempt::Granted(_))), "{text:?}: {attempt:?}");
    }
}

#[tokio::test]
async fn metadata_is_read_back_whatever_is_in_it() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("a server");
    let full = "\0".repeat(METADATA_MAX);
    for (number, metadata) in ["a\0b", "\0", "{\"json\": \"\\u0000\"}", "two\nlines\r\t", "it's \\ $1", &full]
        .into_iter()
        .enumerate()
    {
        let holder = holder().with_metadata(metadata).expect("lawful metadata");
        let text = format!("metadata {number}");
        for mode in [Mode::Exclusive, Mode::Shared] {
            let request = AcquireRequest::new(name(&text), mode, Ttl::DEFAULT, Wait::No, holder.clone());
            let Ok(Attempt::Granted(lease)) = ann.acquire(request).await else { panic!("{text} is free") };
            let state = ann.inspect(&name(&text)).await.expect("an answer");
            assert_eq!(state.holders[0].holder, holder, "{metadata:?}");
            ann.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
        }
    }
}

#[tokio::test]
async fn a_wrong_login_is_refused_and_nobody_sees_the_password() {
    let Some(server) = PostgresOptions::new().password("s3cret").start().await else { return };
    connect(&server.url()).await.expect("the right password");
    for (login, words) in [
        ("postgres:guess1", "refuses our user or password"),
        ("nobody:guess1", "refuses our user or password"),
        ("postgres", "has none"),
    ] {
        let error = refused(login, connect(&server.url_of(login)).await, ErrorKind::Refused, &[words]);
        assert!(!format!("{error} {error:?}").contains("guess1"), "{error:?}");
    }
    let client = connect(&server.url()).await.expect("the right password");
    assert!(!format!("{client} {client:?}").contains("s3cret"), "{client}");
}

#[tokio::test]
async fn a_database_that_is_not_there_is_named() {
    let Some(server) = Postgres::start().await else { return };
    let url = format!("postgres://postgres@127.0.0.1:{}/nowhere", server.port());
    refused("nowhere", connect(&url).await, ErrorKind::InvalidUrl, &["no such database", "nowhere"]);
}

#[tokio::test]
async fn a_database_that_is_not_in_utf_8_is_refused() {
    let Some(server) = Postgres::start().await else { return };
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let make = format!("CREATE DATABASE {encoding} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0");
        server.psql(&make).await;
        let database = encoding.to_lowercase();
        let url = format!("postgres://postgres@127.0.0.1:{}/{database}", server.port());
        refused(encoding, connect(&url).await, ErrorKind::Unsupported, &[encoding, "UTF8"]);
    }
}

/// What an operator chose for other programs holds for nobody's lock, not even while the schema is made by several at a time.
#[tokio::test]
async fn settings_that_are_for_other_programs_change_nothing() {
    let Some(server) = Postgres::start().await else { return };
    let settings = [
        ("default_transaction_isolation", "serializable"),
        ("default_transaction_read_only", "on"),
        ("lock_timeout", "1ms"),
        ("standard_conforming_strings", "off"),
    ];
    for (setting, value) in settings {
        let database = setting.replace("default_", "");
        server.psql(&format!("CREATE DATABASE {database}")).await;
        server.psql(&format!("ALTER DATABASE {database} SET {setting} = '{value}'")).await;
        let url = format!("postgres://postgres@127.0.0.1:{}/{database}", server.port());
        let all: Vec<_> = (0..4)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move { connect(&url).await })
            })
            .collect();
        for one in all {
            let client = one.await.unwrap().unwrap_or_else(|error| panic!("{setting}: {error}"));
            // Somebody else is at the row for longer than he who chose these settings would have waited.
            let Ok(Attempt::Granted(lease)) = client.acquire(request("a", Wait::No)).await else {
                panic!("{setting}: it is free")
            };
            let mut other = server.session_by(&url);
            other.ask("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await;
            other.ask("SELECT FROM ringfence.locks FOR UPDATE").await;
            let release = tokio::spawn(async move { client.release(&[lease.key]).await });
            let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
            while server.psql(waits).await == "0" && !release.is_finished() {}
            other.ask("COMMIT").await;
            let released = release.await.unwrap().unwrap_or_else(|error| panic!("{setting}: {error}"));
            assert_eq!(released, [Release::Released], "{setting}");
        }
    }
}

#[tokio::test]
async fn a_role_without_rights_is_told_which() {
    let Some(server) = Postgres::start().await else { return };
    server.psql("CREATE ROLE app LOGIN").await;
    // There is no schema, and it may not make one.
    let url = server.url_of("app");
    refused("making the schema", connect(&url).await, ErrorKind::Refused, &["ringfence setup", "--grant-to"]);

    let owner = connect(&server.url()).await.expect("it may do everything");
    refused(
        "its use",
        connect(&url).await,
        ErrorKind::Refused,
        &["GRANT USAGE ON SCHEMA", "\"ringfence\"", "\"app\""],
    );
    server.psql("GRANT USAGE ON SCHEMA ringfence TO app").await;
    let words = ["GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA", "\"ringfence\"", "\"app\""];
    refused("its functions", connect(&url).await, ErrorKind::Refused, &words);
    server.psql("GRANT EXECUTE ON FUNCTION ringfence.version() TO app").await;
    let words = ["GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA"];
    refused("the other functions", connect(&url).await, ErrorKind::Refused, &words);

    server.psql("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ringfence TO app").await;
    let app = connect(&url).await.expect("what it needs to connect");
    let Ok(Attempt::Granted(lease)) = app.acquire(request("orders/42", Wait::No)).await else {
        panic!("this is all that it takes")
    };
    app.records().open(&RecordKey::of(name("orders/42")), lease.token).await.expect("nor for records");
    assert!(matches!(owner.acquire(request("orders/42", Wait::No)).await, Ok(Attempt::Busy(_))));
    // And it gives nothing else.
    for forgery in [
        "UPDATE ringfence.locks SET nonce = 1",
        "SELECT * FROM ringfence.places",
        "INSERT INTO ringfence.sessions VALUES (1, clock_timestamp())",
        "DELETE FROM ringfence.forgotten",
        "UPDATE ringfence.records SET mark = 0",
        "DROP FUNCTION ringfence.tidy()",
        "CREATE TABLE ringfence.theirs ()",
    ] {
        let mut theirs = server.session_by(&url);
        let answer = theirs.ask(forgery).await;
        assert!(
            answer.contains("permission denied") || answer.contains("must be owner"),
            "{forgery}: {answer}"
        );
    }
}

/// Functions that run as their owner look things up where they say, and not where their caller has put others.
#[tokio::test]
async fn nobody_puts_functions_under_ours() {
    let Some(server) = Postgres::start().await else { return };
    connect(&server.url()).await.expect("it may make the schema");
    server
        .psql(
            "CREATE ROLE app LOGIN; CREATE SCHEMA theirs AUTHORIZATION app; GRANT USAGE ON SCHEMA ringfence TO app; \
             GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA ringfence TO app",
        )
        .await;
    let mut app = server.session_by(&server.url_of("app"));
    let traps = "
        CREATE FUNCTION theirs.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'as %', current_user; END $$;
        CREATE FUNCTION theirs.pg_notify(text, text) RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'as %', current_user; END $$;
        CREATE FUNCTION theirs.greatest_of(bigint, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint';
        CREATE TEMPORARY TABLE pg_proc (a int);
        CREATE TEMPORARY TABLE locks (LIKE pg_class);
        SET search_path = theirs, pg_temp, pg_catalog";
    assert_eq!(app.ask(&traps.replace('\n', " ")).await, "");
    let acquire = "SELECT verdict FROM ringfence.acquire(ARRAY[1::bigint], false, ARRAY['a'::\"char\"], ARRAY['x'], ARRAY[1::bigint], \
        ARRAY[0], ARRAY[60000], ARRAY['{}'])";
    assert_eq!(app.ask(acquire).await, "c");
    assert_eq!(app.ask("SELECT ringfence.release(ARRAY['x'], ARRAY[1::bigint])").await, "t");
    // Every function that runs as its owner has its path pinned, but for one that names the schema of all that it uses.
    let unpinned = "SELECT proname FROM pg_proc WHERE pronamespace = 'ringfence'::regnamespace AND prosecdef \
        AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(proconfig, '{}'))";
    assert_eq!(server.psql(unpinned).await, "advisory_number");
    let public = "SELECT proname FROM pg_proc WHERE pronamespace = 'ringfence'::regnamespace \
        AND has_function_privilege('public', oid, 'EXECUTE')";
    assert_eq!(server.psql(public).await, "", "nobody may call them who was not told so");
}

#[tokio::test]
async fn a_schema_of_a_newer_version_is_refused_and_left_alone() {
    let Some(server) = Postgres::start().await else { return };
    let before = connect(&server.url()).await.expect("it makes the schema");
    let lease = match before.acquire(request("orders/42", Wait::No)).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("a free lock: {other:?}"),
    };
    server.psql("UPDATE ringfence.meta SET version = version + 1").await;
    let version = server.psql("SELECT version FROM ringfence.meta").await;
    refused(
        "a newer schema",
        connect(&server.url()).await,
        ErrorKind::Unsupported,
        &["\"ringfence\"", &format!("version {version}"), "newer program", "?schema="],
    );
    assert_eq!(server.psql("SELECT version FROM ringfence.meta").await, version);
    // Another one beside it is another world.
    let other = connect(&format!("{}?schema=other", server.url())).await.expect("it makes the schema");
    assert!(matches!(other.acquire(request("orders/42", Wait::No)).await, Ok(Attempt::Granted(_))));
    assert_eq!(before.renew(std::slice::from_ref(&lease.key)).await.expect("an answer"), [Renewal::Renewed]);
}

#[tokio::test]
async fn a_schema_that_is_somebody_elses_is_left_alone() {
    let Some(server) = Postgres::start().await else { return };
    server.psql("CREATE SCHEMA ringfence; CREATE TABLE ringfence.rings (a int)").await;
    refused("theirs", connect(&server.url()).await, ErrorKind::Refused, &["ringfence", "?schema="]);
    assert_eq!(
        server.psql("SELECT count(*) FROM pg_class WHERE relnamespace = 'ringfence'::regnamespace").await,
        "1"
    );
    // One that somebody made for us is for us.
    server.psql("CREATE SCHEMA made_for_us").await;
    connect(&format!("{}?schema=made_for_us", server.url())).await.expect("an empty schema is taken");
}

#[tokio::test]
async fn a_schema_that_is_dropped_is_said_to_be_gone() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("it makes the schema");
    assert!(matches!(ann.acquire(request("orders/42", Wait::No)).await, Ok(Attempt::Granted(_))));
    server.psql("DROP SCHEMA ringfence CASCADE").await;
    let attempt = ann.acquire(request("orders/42", Wait::No)).await;
    refused("an attempt", attempt, ErrorKind::Corrupt, &["fencing tokens", "ringfence setup"]);
}

/// What others wrote into our tables, or called our functions with, costs nobody a panic.
#[tokio::test]
async fn rows_that_none_of_us_wrote_are_said_to_be_odd() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("a server");
    for (number, change) in ["holder = 'no JSON'", "nonce = 0", "number = -1", "number = 9223372036854775807"]
        .into_iter()
        .enumerate()
    {
        let text = format!("odd/{number}");
        let Ok(Attempt::Granted(lease)) = ann.acquire(request(&text, Wait::No)).await else {
            panic!("{text} is free")
        };
        server.psql(&format!("UPDATE ringfence.locks SET {change} WHERE name = '{text}'")).await;
        let error = within(change, ann.inspect(&name(&text))).await.expect_err("nobody of us wrote it");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{change}: {error:?}");
        assert!(error.to_string().contains("ringfence setup"), "{error}");
        // Whoever only wants the lock is told that it is busy.
        let asked = within(change, ann.acquire(request(&text, Wait::No))).await;
        assert!(matches!(asked, Ok(Attempt::Busy(_))), "{change}: {asked:?}");
        within(change, ann.release(std::slice::from_ref(&lease.key))).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_number_at_its_end_is_refused_and_not_begun_again() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("a server");
    let Ok(Attempt::Granted(lease)) = ann.acquire(request("orders/42", Wait::No)).await else {
        panic!("a free lock")
    };
    ann.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
    for last in [(1_i64 << 55) - 1, i64::MAX] {
        server.psql(&format!("UPDATE ringfence.locks SET number = {last}, nonce = NULL")).await;
        let asked = within("an answer", ann.acquire(request("orders/42", Wait::No))).await;
        assert!(asked.is_err(), "no number is left after {last}: {asked:?}");
    }
}

/// Anybody who may connect may send a message on any channel.
#[tokio::test]
async fn what_others_say_on_our_channel_is_no_turn() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("a server");
    let ben = Arc::new(connect(&server.url()).await.expect("a server"));
    let Ok(Attempt::Granted(lease)) = ann.acquire(request("orders/42", Wait::No)).await else {
        panic!("a free lock")
    };
    let waiting = tokio::spawn({
        let ben = Arc::clone(&ben);
        async move { ben.acquire(request("orders/42", Wait::Until(BootInstant::MAX))).await }
    });
    let place = "SELECT to_hex(session), to_hex(nonce) FROM ringfence.places WHERE kind = 'w'";
    let place = within("a place in line", async {
        loop {
            let place = server.psql(place).await;
            if !place.is_empty() {
                break place;
            }
        }
    })
    .await;
    let listens = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND state = 'idle'";
    within("two that listen", async { while server.psql(listens).await != "2" {} }).await;
    let (session, nonce) = place.split_once('|').expect("two columns");
    let low = lease.token.grant();
    for payload in [
        "",
        ":",
        "turn",
        "turn:",
        &format!("turn:{nonce}:"),
        &format!("turn:{nonce}:-1"),
        &format!("turn:{nonce}:0"),
        &format!("turn:{nonce}:{low}"),
        &format!("turn:{nonce}:99999999999999999999999"),
        "turn:0:1",
        "lost:0:0",
        &format!("lost:{nonce}"),
        "héhé",
    ] {
        server.psql(&format!("SELECT pg_notify('ringfence_{session}', '{payload}')")).await;
    }
    // It is there still, and has its turn when it comes.
    assert_eq!(ann.inspect(&name("orders/42")).await.expect("an answer").waiters.len(), 1);
    assert!(!waiting.is_finished());
    ann.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
    let next = within("its turn", waiting).await.expect("no panic");
    assert!(matches!(next, Ok(Attempt::Granted(_))), "{next:?}");
}

#[tokio::test]
async fn a_lease_that_is_somebody_elses_is_neither_renewed_nor_released() {
    let Some(server) = Postgres::start().await else { return };
    let ann = connect(&server.url()).await.expect("a server");
    let Ok(Attempt::Granted(lease)) = ann.acquire(request("orders/42", Wait::No)).await else {
        panic!("a free lock")
    };
    for key in [
        LeaseKey::new(name("orders/42"), Nonce::random(), Ttl::DEFAULT),
        LeaseKey::new(name("orders/43"), lease.key.nonce, Ttl::DEFAULT),
    ] {
        let key = std::slice::from_ref(&key);
        assert_eq!(ann.renew(key).await.expect("an answer"), [Renewal::Lost]);
        assert_eq!(ann.release(key).await.expect("an answer"), [Release::NotHeld]);
        assert_eq!(ann.evict(&key[0].name, key[0].nonce).await.expect("an answer"), Eviction::NotHeld);
    }
    assert_eq!(ann.renew(std::slice::from_ref(&lease.key)).await.expect("an answer"), [Renewal::Renewed]);
}

#[tokio::test]
async fn who_does_not_answer_is_named_in_time() {
    let Some(server) = Postgres::start().await else { return };
    let silent = Proxy::start(server.port()).await;
    silent.accept_and_be_silent();
    let Some(redis) = ringfence_servers::RedisServer::start().await else { return };
    for (url, hint) in [
        (format!("postgres://postgres@127.0.0.1:{}/postgres", silent.port()), "does not answer in time"),
        ("postgres://postgres@127.0.0.1:1/postgres".to_owned(), "cannot be reached"),
        ("postgres://postgres@no-such-host.invalid/postgres".to_owned(), "no-such-host.invalid:5432"),
        (format!("postgres://postgres@127.0.0.1:{}/postgres", redis.port()), ""),
    ] {
        let error = within(&url, connect(&url)).await.expect_err("nobody is there");
        assert_eq!(error.effect(), Effect::None, "{error:?}");
        assert!(error.to_string().contains(hint), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_standby_is_said_to_be_one_and_the_primary_is_found_beside_it() {
    let Some(primary) = Postgres::start().await else { return };
    connect(&primary.url()).await.expect("it makes the schema");
    let standby = primary.standby().await;
    let error = connect(&standby.url()).await.expect_err("nothing is granted there");
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later), "{error:?}");
    assert!(error.to_string().contains("standby"), "{error}");
    let both =
        format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", standby.port(), primary.port());
    let client = connect(&both).await.expect("one of them is the primary");
    assert!(matches!(client.acquire(request("orders/42", Wait::No)).await, Ok(Attempt::Granted(_))));
}

/// The largest that a process asks for at a time, and what an operator lists.
#[tokio::test]
async fn a_list_of_many_names_comes_in_pages() {
    let Some(server) = Postgres::start().await else { return };
    let ann = Arc::new(connect(&server.url()).await.expect("a server"));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..250 {
        let ann = Arc::clone(&ann);
        tasks.spawn(async move { ann.acquire(request(&format!("page/{number:04}"), Wait::No)).await });
    }
    for answer in within("grants", tasks.join_all()).await {
        assert!(matches!(answer, Ok(Attempt::Granted(_))), "{answer:?}");
    }
    ann.acquire(request("pagf", Wait::No)).await.expect("a free lock");
    ann.acquire(request("pag", Wait::No)).await.expect("a free lock");
    let mut query = ListQuery::new("page/").limit(100);
    let mut listed = Vec::new();
    loop {
        let page = ann.list(query.clone()).await.expect("a page");
        assert!(page.items.len() <= 100);
        listed.extend(page.items.into_iter().map(|state| state.name.as_str().to_owned()));
        let Some(next) = page.next else { break };
        query = query.after(next);
    }
    assert_eq!(listed, (0..250).map(|number| format!("page/{number:04}")).collect::<Vec<_>>());
}
