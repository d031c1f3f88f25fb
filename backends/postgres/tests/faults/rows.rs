//! The tables: they keep their size, and what is forgotten keeps its numbers.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, ErrorKind, Mode, RecordKey, Release, Wait};
use ringfence_postgres::PostgresBackend;
use tokio::task::JoinSet;

use crate::stage::{LONG, NAME, Stage, exclusive, granted, its_turn, name, release, request_of, within};

const NAMES: usize = 1000;

/// Takes and gives back each of the names so many times; no two tasks want one name.
async fn pairs(stage: &Stage, rounds: usize) {
    let client = stage.client().await;
    let mut tasks = JoinSet::new();
    for task in 0..100 {
        let client = Arc::clone(&client);
        tasks.spawn(async move {
            for name in (0..rounds).flat_map(|_| (task..NAMES).step_by(100)) {
                let request = request_of(&format!("job/{name}"), Mode::Exclusive, LONG, Wait::No);
                let lease = match client.acquire(request).await {
                    Ok(Attempt::Granted(lease)) => lease,
                    other => panic!("nobody else wants it: {other:?}"),
                };
                let released = client.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
                assert_eq!(released, [Release::Released]);
            }
        });
    }
    tasks.join_all().await;
}

/// Every change of a lock is a new version of its row. If they did not go into the room of the old ones, the table would grow by a
/// row with each; and its index, if the row moved.
#[tokio::test]
async fn pairs_on_a_thousand_names_leave_the_tables_at_their_size() {
    const SIZES: &str = "SELECT pg_relation_size('ringfence.locks') + pg_relation_size('ringfence.locks_pkey') \
        + pg_total_relation_size('ringfence.places') + pg_total_relation_size('ringfence.sessions')";
    // A million pairs: RINGFENCE_PAIRS=1000000.
    let pairs_wanted =
        std::env::var("RINGFENCE_PAIRS").ok().map_or(20_000, |pairs| pairs.parse().expect("a number"));
    let Some(stage) = Stage::new().await else { return };
    pairs(&stage, 2).await;
    let before = stage.number(SIZES).await;
    pairs(&stage, pairs_wanted / NAMES).await;
    let after = stage.number(SIZES).await;
    let updates = "SELECT round(100.0 * n_tup_hot_upd / n_tup_upd) || ' % of ' || n_tup_upd || ' updates are HOT' \
        FROM pg_stat_user_tables WHERE relid = 'ringfence.locks'::regclass";
    let updates = stage.server.psql(updates).await;
    println!("{pairs_wanted} pairs on {NAMES} names: {before} bytes before, {after} after; {updates}");
    assert!(after <= before + before / 4, "{before} bytes before, {after} after; {updates}");
}

/// A name that nobody has used for an hour makes room, and its numbers rise all the same: without that a resource that is fenced
/// would refuse whoever comes next.
#[tokio::test]
async fn a_name_that_is_forgotten_keeps_its_numbers_rising() {
    const AGE: &str = "UPDATE ringfence.locks SET ends = ends - interval '2 hours'";
    let Some(stage) = Stage::new().await else { return };
    let (ann, other) = (stage.client().await, "orders/43");
    let mut last = 0;
    for _ in 0..5 {
        let lease = granted(&ann, exclusive(Wait::No)).await;
        last = lease.token.sequence();
        release(&ann, &lease).await.expect("an answer");
    }
    // What is held, and what somebody waits for, is not forgotten.
    let held = granted(&ann, request_of(other, Mode::Shared, LONG, Wait::No)).await;
    stage.server.psql(AGE).await;
    assert_eq!(stage.number("SELECT ringfence.tidy()").await, 1);
    assert_eq!(stage.server.psql("SELECT name FROM ringfence.locks").await, other);
    let again = granted(&ann, exclusive(Wait::No)).await;
    assert!(again.token.sequence() > last, "{last}, then {again:?}");
    release(&ann, &again).await.expect("an answer");
    assert_eq!(release(&ann, &held).await.expect("an answer"), Release::Released);

    // Nobody has to do it by hand: now and then somebody who meets a new name does.
    stage.server.psql(AGE).await;
    let ben = stage.client().await;
    granted(&ben, request_of("orders/44", Mode::Exclusive, LONG, Wait::No)).await;
    stage.says(&format!("SELECT count(*) FROM ringfence.locks WHERE name = '{NAME}'"), "0").await;
    let again_and_again = granted(&ann, exclusive(Wait::No)).await;
    assert!(again_and_again.token.sequence() > again.token.sequence(), "{again:?}, then {again_and_again:?}");
}

/// Those who end without a word leave their rows. Where each name is used once, and nobody takes them away, they are there for ever.
#[tokio::test]
async fn what_the_dead_have_left_is_forgotten_too() {
    const AGE: &str = "UPDATE ringfence.locks SET ends = ends - interval '2 hours'; \
        UPDATE ringfence.sessions SET seen = seen - interval '2 hours'";
    const LEFT: &str = "SELECT name FROM ringfence.locks UNION SELECT name FROM ringfence.places ORDER BY 1";
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let short = Duration::from_millis(300);
    // Who held with others, and is dead.
    granted(&ann, request_of("shared", Mode::Shared, short, Wait::No)).await;
    // Who waited, and is dead.
    granted(&ann, request_of("wanted", Mode::Exclusive, short, Wait::No)).await;
    let place = "INSERT INTO ringfence.places (name, nonce, kind, mode, ttl, since, session, holder) \
        VALUES ('wanted', 1, 'w', 0, 60000, clock_timestamp(), 1, '')";
    stage
        .server
        .psql(&format!("{place}; UPDATE ringfence.locks SET crowd = true, waiters = 1 WHERE name = 'wanted'"))
        .await;
    // Who gave up before it was answered.
    let withdraw = format!("SELECT ringfence.withdraw(1, 'given up', 2, {})", short.as_millis());
    stage.server.psql(&withdraw).await;
    // Who holds with others, and lives.
    let living = granted(&ben, request_of("living", Mode::Shared, LONG, Wait::No)).await;
    tokio::time::sleep(short).await;
    assert_eq!(stage.server.psql(LEFT).await, "given up\nliving\nshared\nwanted");
    stage.server.psql(AGE).await;
    assert_eq!(stage.number("SELECT ringfence.tidy()").await, 3);
    assert_eq!(stage.server.psql(LEFT).await, "living");
    assert_eq!(release(&ben, &living).await.expect("an answer"), Release::Released);
}

/// The rows of processes that are gone are removed by whoever waits for the first time, in the middle of its other work: two who
/// do so at once, each with a lock that the other one wants next, would wait for each other.
#[tokio::test]
async fn who_removes_what_others_left_waits_for_nobody() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    for name in ["one", "other"] {
        granted(&ann, request_of(name, Mode::Exclusive, LONG, Wait::No)).await;
    }
    stage
        .server
        .psql("INSERT INTO ringfence.sessions VALUES (1, clock_timestamp() - interval '1 day')")
        .await;
    let waits = |session: i64, name: &str| {
        format!(
            "BEGIN; SELECT verdict FROM ringfence.acquire(ARRAY[{session}::bigint], false, ARRAY['q'::\"char\"], ARRAY['{name}'], \
             ARRAY[{session}::bigint], ARRAY[0], ARRAY[60000], ARRAY['{{}}'])"
        )
    };
    let (mut one, mut other) = (stage.server.session(), stage.server.session());
    assert_eq!(one.ask(&waits(2, "one")).await, "w");
    assert_eq!(
        within("an answer while the other's transaction lasts", other.ask(&waits(3, "other"))).await,
        "w"
    );
    assert_eq!(one.ask("COMMIT").await + &other.ask("COMMIT").await, "");
    assert_eq!(stage.number("SELECT count(*) FROM ringfence.sessions WHERE session = 1").await, 0);
}

/// The length of a line is written down, so that nobody has to count it. It is right whatever those do who stand there: a lock that
/// counts too few is never handed on.
#[tokio::test]
async fn the_length_of_a_line_is_what_stands_there() {
    const LENGTHS: &str = "SELECT l.waiters || ' ' || (SELECT count(*) FROM ringfence.places p WHERE p.name = l.name AND p.kind = 'w') \
        FROM ringfence.locks l WHERE l.name = 'orders/42'";
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    let mut lease = granted(&ann, exclusive(Wait::No)).await;
    // Those who join behind one that holds alone, and those who join behind several.
    let mut line = Vec::new();
    for joined in 1..=3 {
        line.push(crate::stage::waits(&ben));
        stage.sees_waiters(joined).await;
    }
    let shared = |client: &Arc<PostgresBackend>| {
        let (client, request) =
            (Arc::clone(client), request_of(NAME, Mode::Shared, LONG, crate::stage::FOR_EVER));
        tokio::spawn(async move { client.acquire(request).await })
    };
    line.extend([shared(&ben), shared(&ben)]);
    stage.says(LENGTHS, "5 5").await;
    // One goes away.
    line.remove(1).abort();
    stage.says(LENGTHS, "4 4").await;
    for left in ["3 3", "2 2"] {
        assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::Released);
        lease = its_turn(line.remove(0)).await;
        assert_eq!(stage.server.psql(LENGTHS).await, left);
    }
    // Two come in together, and one stands behind both.
    assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::Released);
    let sharing = [its_turn(line.remove(0)).await, its_turn(line.remove(0)).await];
    let last = crate::stage::waits(&ann);
    stage.says(LENGTHS, "1 1").await;
    // The end of a process that nobody hears of.
    let place = "INSERT INTO ringfence.places (name, nonce, kind, mode, ttl, since, session, holder) \
        VALUES ('orders/42', 1, 'w', 0, 60000, clock_timestamp(), 1, ''); UPDATE ringfence.locks SET waiters = waiters + 1";
    stage.server.psql(place).await;
    for lease in &sharing {
        assert_eq!(release(&ben, lease).await.expect("an answer"), Release::Released);
    }
    let lease = its_turn(last).await;
    assert_eq!(stage.server.psql(LENGTHS).await, "1 1");
    assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::Released);
    assert_eq!(stage.server.psql(LENGTHS).await, "0 0");
}

/// A statement for many locks has the rows of some while it waits for another. Two that take them in different orders wait for each
/// other, until the server ends one of them after a second.
#[tokio::test]
async fn many_locks_are_taken_and_given_back_in_the_order_of_their_names() {
    let Some(stage) = Stage::new().await else { return };
    // In the table they lie the other way round.
    let names = "INSERT INTO ringfence.locks (name, number, ends, since) \
        SELECT 'n' || n, 1, now(), now() FROM generate_series(199, 100, -1) n; ANALYZE ringfence.locks";
    stage.server.psql(names).await;
    let acquire = "SELECT count(f.*) FROM (SELECT array_agg('n' || n) AS names, array_agg(n::bigint) AS nonces, \
        array_agg(60000) AS ttls FROM generate_series(100, 199) n) a, \
        ringfence.acquire_free(nonces, false, names, nonces, ttls, names) f";
    let give_back = "SELECT count(f.*) FROM (SELECT array_agg('n' || n) AS names, array_agg(n::bigint) AS nonces \
        FROM generate_series(100, 199) n) a, ringfence.release_free(names, nonces) f";
    for many in [acquire, give_back] {
        let (mut one, mut other) = (stage.server.session(), stage.server.session());
        one.ask("BEGIN; SELECT FROM ringfence.locks WHERE name = 'n150' FOR UPDATE").await;
        other.send(many);
        stage.says("SELECT count(*) FROM pg_locks WHERE NOT granted", "1").await;
        let free = "SELECT min(name) || ' to ' || max(name) FROM (SELECT name FROM ringfence.locks FOR UPDATE SKIP LOCKED) l";
        assert_eq!(stage.server.psql(free).await, "n151 to n199", "{many}");
        one.ask("COMMIT").await;
        assert_eq!(within("an answer", other.answer()).await, "100");
    }
}

/// Whoever comes while a name is being forgotten is granted it with a number above all before, and nobody is granted it twice.
#[tokio::test]
async fn a_name_that_is_taken_while_it_is_forgotten_keeps_its_numbers_rising() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    let mut forgotten = 0;
    let tidies = async {
        // In one transaction: whoever wants the name meanwhile waits for its row, and finds none.
        const TIDY: &str = "UPDATE ringfence.locks SET ends = ends - interval '2 hours' WHERE nonce IS NULL; \
            SELECT ringfence.tidy()";
        loop {
            forgotten += stage.number(TIDY).await;
        }
    };
    let takes = async {
        let mut last = 0;
        for _ in 0..200 {
            let lease = granted(&ann, exclusive(Wait::No)).await;
            assert!(lease.token.sequence() > last, "{last}, then {lease:?}");
            last = lease.token.sequence();
            assert_eq!(release(&ann, &lease).await.expect("an answer"), Release::Released);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = tidies => {}
        () = within("two hundred turns", takes) => {}
    }
    assert!(forgotten > 0, "it was never forgotten");
}

/// Without an end to the line, whoever never releases fills the server's disk.
#[tokio::test]
async fn a_line_of_ten_thousand_takes_nobody_more() {
    use ringfence_core::{Effect, ErrorKind, Retry};
    let Some(stage) = Stage::new().await else { return };
    let (ann, ben) = (stage.client().await, stage.client().await);
    granted(&ben, exclusive(Wait::No)).await;
    let waiting = crate::stage::waits(&stage.client().await);
    stage.sees_waiters(1).await;
    let fill = "INSERT INTO ringfence.places (name, nonce, kind, mode, ttl, since, session, holder) \
        SELECT name, -n, 'w', mode, ttl, since, session, holder FROM ringfence.places, generate_series(2, 10000) n";
    stage.server.psql(&format!("{fill}; UPDATE ringfence.locks SET waiters = 10000")).await;
    let error = ann.acquire(exclusive(crate::stage::FOR_EVER)).await.expect_err("there is no room");
    assert_eq!((error.kind(), error.retry(), error.effect()), (ErrorKind::Full, Retry::Later, Effect::None));
    waiting.abort();
}

/// So asks a gate for each request: no row is locked for that, and no commit waits for the disk.
#[tokio::test]
async fn a_mark_that_stands_is_asked_for_without_a_write() {
    const ROWS: &str = "SELECT (SELECT string_agg(xmin || ' ' || xmax, ',') FROM ringfence.locks) || ';' \
        || (SELECT string_agg(xmin || ' ' || xmax, ',') FROM ringfence.records)";
    let Some(stage) = Stage::new().await else { return };
    let (client, key) = (stage.client().await, RecordKey::of(name()));
    let lease = granted(&client, exclusive(Wait::No)).await;
    let open = async || client.records().open(&key, lease.token).await;
    assert_eq!(open().await.expect("its lease lives").record, None);
    let rows = stage.server.psql(ROWS).await;
    assert_eq!(open().await.expect("its lease lives").record, None);
    assert_eq!(stage.server.psql(ROWS).await, rows);
    client.records().write(&key, lease.token, "kept".into()).await.expect("an open record");
    let rows = stage.server.psql(ROWS).await;
    assert_eq!(open().await.expect("its lease lives").record.expect("what was written").value, "kept");
    assert_eq!(stage.server.psql(ROWS).await, rows);
    release(&client, &lease).await.expect("an answer");
    assert_eq!(open().await.expect_err("its lease is over").kind(), ErrorKind::Stale);
}
