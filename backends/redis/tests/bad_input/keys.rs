//! Keys of a lock that hold what none of us wrote.

use std::slice;
use std::time::Duration;

use bytes::Bytes;
use insta::assert_snapshot;
use ringfence_core::{
    Attempt, Backend, BootInstant, Clock, Effect, ErrorKind, Eviction, FencingToken, Lease, LeaseKey,
    ListQuery, LockName, Mode, Nonce, RecordKey, Release, Renewal, Result, Retry, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{RedisOptions, RedisServer};

use crate::common::{ask, connect, hold, name, request};
use crate::{expect, message};

const LOCK: &str = "ringfence:{orders/42}";

/// What stands beside a lock, and the type that we give it.
const BESIDE: [(&str, &str); 7] = [
    ("t", "string"),
    ("q", "zset"),
    ("w", "hash"),
    ("h", "hash"),
    ("s", "zset"),
    ("l", "zset"),
    ("x", "zset"),
];

async fn stage() -> Option<(RedisServer, RedisBackend)> {
    let server = RedisServer::start().await?;
    let client = connect(&server.url()).await.expect("a server that runs");
    Some((server, client))
}

fn lock() -> LockName {
    name("orders/42")
}

/// A lease that somebody of us might have, for calls that name one.
fn lease() -> LeaseKey {
    LeaseKey::new(lock(), Nonce::random(), Ttl::DEFAULT)
}

/// Every call that names the lock, with its answer where it has one.
async fn every_call(client: &RedisBackend) -> Vec<(&'static str, Result<String>)> {
    fn shown<T: std::fmt::Debug>(result: Result<T>) -> Result<String> {
        result.map(|done| format!("{done:?}"))
    }
    let soon = SystemClock::new().now().saturating_add(Duration::from_millis(20));
    let permit = Mode::permit(2).expect("two permits");
    let lease = lease();
    vec![
        ("acquire", shown(ask(client, &lock(), Mode::Exclusive).await)),
        ("acquire shared", shown(ask(client, &lock(), Mode::Shared).await)),
        ("acquire a permit", shown(ask(client, &lock(), permit).await)),
        ("wait", shown(client.acquire(request(&lock(), Mode::Exclusive, Wait::Until(soon))).await)),
        ("renew", shown(client.renew(slice::from_ref(&lease)).await)),
        ("release", shown(client.release(slice::from_ref(&lease)).await)),
        ("downgrade", shown(client.downgrade(&lease).await)),
        ("evict", shown(client.evict(&lock(), lease.nonce).await)),
        ("inspect", shown(client.inspect(&lock()).await)),
    ]
}

/// Checks that a neighbour's lock works, in calls that travel together with those of the damaged one.
async fn neighbour_works(client: &RedisBackend) {
    let (damaged, neighbour) = (lock(), name("neighbour"));
    let (_, lease) =
        tokio::join!(ask(client, &damaged, Mode::Exclusive), hold(client, &neighbour, Mode::Exclusive));
    let own = slice::from_ref(&lease.key);
    let (_, renewed) = tokio::join!(client.inspect(&damaged), client.renew(own));
    assert_eq!(renewed.expect("an answer"), [Renewal::Renewed]);
    let (_, released) = tokio::join!(ask(client, &damaged, Mode::Shared), client.release(own));
    assert_eq!(released.expect("an answer"), [Release::Released]);
}

#[tokio::test]
async fn a_key_of_another_type_is_named_and_hurts_nobody_else() {
    let Some((server, client)) = stage().await else { return };
    let keys = BESIDE.map(|(key, kind)| (format!("{LOCK}:{key}"), kind));
    for (key, kind) in keys.into_iter().chain([(LOCK.to_owned(), "string")]) {
        // A shared holder beside whom a second one would be let in, so that every key is looked at.
        let held = hold(&client, &lock(), Mode::permit(2).expect("two permits")).await;
        server.command(&["DEL", &key]).await;
        let strange: &[&str] =
            if kind == "hash" { &["RPUSH", &key, "theirs"] } else { &["HSET", &key, "of", "theirs"] };
        server.command(strange).await;
        let strange = server.command(&["TYPE", &key]).await;

        let mut refused = 0;
        for (call, answer) in every_call(&client).await {
            let Err(error) = answer else { continue };
            refused += 1;
            let effect =
                if call.starts_with("acquire") || call == "wait" { Effect::None } else { Effect::Unknown };
            expect(&error, ErrorKind::Corrupt, Retry::Never, effect);
            let said = format!("{key} is a {strange} and no {kind}");
            assert!(error.to_string().contains(&said), "{call} of a lock with a strange {key}: {error}");
        }
        assert!(refused > 0, "somebody must say that {key} is not ours");
        neighbour_works(&client).await;
        assert_eq!(server.command(&["TYPE", &key]).await, strange, "nothing of ours removes it");

        // As the message says.
        server.command(&["DEL", &key]).await;
        client.release(slice::from_ref(&held.key)).await.expect("an answer");
        server.command(&["DEL", LOCK]).await;
        let again = hold(&client, &lock(), Mode::Exclusive).await;
        client.release(slice::from_ref(&again.key)).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_damaged_lock_says_which_key_it_is_and_what_to_do() {
    let Some((server, client)) = stage().await else { return };
    server.command(&["RPUSH", LOCK, "theirs"]).await;
    let error = ask(&client, &lock(), Mode::Exclusive).await.expect_err("that is no lock");
    assert_snapshot!(message(&error, server.port()), @r#"lock "ringfence:{orders/42}": redis://127.0.0.1:PORT: what is kept there is not what Ringfence writes: see who else writes there, then delete the key"#);
    server.command(&["DEL", LOCK]).await;
    let counter = format!("{LOCK}:t");
    let no_numbers = [
        "theirs",
        "1",
        "99999999999999999999",
        "9999999999999999",
        "1790000000000000x",
        "1790000000000000++",
    ];
    for (value, mode) in
        no_numbers.iter().flat_map(|value| [(*value, Mode::Exclusive), (*value, Mode::Shared)])
    {
        server.command(&["SET", &counter, value]).await;
        for _ in 0..2 {
            let error = ask(&client, &lock(), mode).await.expect_err("that is no number");
            assert!(error.to_string().contains("ringfence:{orders/42}:t holds no grant number"), "{error}");
            assert_eq!(server.command(&["GET", &counter]).await, value, "it is left to be looked at");
        }
    }
    let error = ask(&client, &lock(), Mode::Exclusive).await.expect_err("that is no number");
    assert_snapshot!(message(&error, server.port()), @r#"lock "ringfence:{orders/42}": redis://127.0.0.1:PORT: what is kept there is not what Ringfence writes: see who else writes there, then delete the key"#);
    assert_eq!(server.command(&["EXISTS", LOCK]).await, "0", "what was refused has taken nothing");
    server.command(&["DEL", &counter]).await;
    server.command(&["RPUSH", &counter, "theirs"]).await;
    let error = ask(&client, &lock(), Mode::Exclusive).await.expect_err("that is no number");
    assert!(error.to_string().contains("ringfence:{orders/42}:t is a list and no string"), "{error}");
    assert_eq!(server.command(&["EXISTS", LOCK]).await, "0", "what was refused has taken nothing");
}

#[tokio::test]
async fn a_counter_that_is_damaged_while_somebody_waits_is_named() {
    let Some((server, client)) = stage().await else { return };
    let held = hold(&client, &lock(), Mode::Exclusive).await;
    let counter = format!("{LOCK}:t");
    let damaged = async {
        while server.command(&["ZCARD", &format!("{LOCK}:q")]).await != "1" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.command(&["SET", &counter, "theirs"]).await;
    };
    let waits = client.acquire(request(&lock(), Mode::Exclusive, Wait::Until(BootInstant::MAX)));
    let (error, ()) = tokio::join!(waits, damaged);
    let error = error.expect_err("that is no number");
    assert!(error.to_string().contains("ringfence:{orders/42}:t holds no grant number"), "{error}");
    // Who holds is not disturbed, and what is damaged stays.
    let released = client.release(slice::from_ref(&held.key)).await.expect("an answer");
    assert_eq!(released, [Release::Released]);
    assert_eq!(server.command(&["GET", &counter]).await, "theirs", "it is left to be looked at");
}

#[tokio::test]
async fn a_listing_shows_what_can_be_read() {
    let Some((server, client)) = stage().await else { return };
    server.command(&["RPUSH", "ringfence:{damaged}", "theirs"]).await;
    hold(&client, &name("damaged beside"), Mode::Exclusive).await;
    server.command(&["SET", "ringfence:{damaged%20beside}:q", "theirs"]).await;
    hold(&client, &lock(), Mode::Exclusive).await;
    for url in [server.url(), format!("{}?keys=verbatim", server.url())] {
        let client = connect(&url).await.expect("a server that runs");
        server.command(&["SET", "a string of somebody's", "x"]).await;
        server.command(&["RPUSH", "a list of somebody's", "x"]).await;
        let page = client.list(ListQuery::default()).await.expect("a listing");
        let names: Vec<_> = page.items.iter().map(|state| state.name.as_str()).collect();
        assert_eq!(names, if url == server.url() { &["orders/42"][..] } else { &[] }, "{url}");
    }
}

#[tokio::test]
async fn a_listing_of_verbatim_names_asks_for_strings_only() {
    let Some(server) = RedisServer::start().await else { return };
    let client = connect(&format!("{}?keys=verbatim", server.url())).await.expect("a server that runs");
    server.command(&["RPUSH", "a list of somebody's", "x"]).await;
    server.command(&["SET", "a string of somebody's", "x"]).await;
    assert_eq!(client.list(ListQuery::default()).await.expect("a listing").items, []);
    let calls = server.command(&["INFO", "commandstats"]).await;
    assert!(
        calls.contains("cmdstat_evalsha:calls=2,"),
        "one that loads the script, one for the string: {calls}"
    );
}

#[tokio::test]
async fn a_last_number_that_is_none_is_refused_and_never_counted_from() {
    let Some((server, client)) = stage().await else { return };
    let key = format!("{LOCK}:t");
    for strange in ["theirs", "7", "-1", "9999999999999999", "99999999999999999999", "\u{ff}"] {
        server.command(&["SET", &key, strange]).await;
        match ask(&client, &lock(), Mode::Exclusive).await {
            // It was lower than the server's clock, which is where numbers go on.
            Ok(Attempt::Granted(lease)) => {
                let number = lease.token.grant();
                assert!(
                    (1_000_000_000_000_000..10_000_000_000_000_000).contains(&number),
                    "{strange}: {number}"
                );
                client.release(slice::from_ref(&lease.key)).await.expect("an answer");
            }
            Err(error) => {
                expect(&error, ErrorKind::Corrupt, Retry::Never, Effect::None);
                assert!(
                    error.to_string().contains("ringfence:{orders/42}:t holds no grant number"),
                    "{error}"
                );
            }
            Ok(busy) => panic!("{strange}: {busy:?}"),
        }
    }
}

/// What nobody of us writes, although it looks like it at first.
fn imitations() -> Vec<Vec<u8>> {
    let ours = |nonce: &str, number: &str, pid: &str, metadata: &str| {
        format!("{nonce}:{number}:00000000000000aa:x:30000:{pid}:label\nhost\n{metadata}").into_bytes()
    };
    let (nonce, number) = ("00000000000000ff", "1700000000000000");
    let mut values = vec![
        b"00000000000000ff:".to_vec(),
        b"00000000000000ff+rubbish".to_vec(),
        b"00000000000000ff:1700000000000000:aa:x:30000:1:no host".to_vec(),
        ours(nonce, "18446744073709551616", "1", ""),
        ours(nonce, "9223372036854775807", "1", ""),
        ours(nonce, number, "4294967296", ""),
        ours(nonce, number, "-1", ""),
        ours(nonce, number, "1", &"m".repeat(1025)),
        ours(nonce, number, "1", &"m".repeat(1 << 20)),
        ours("0000000000000000", number, "1", ""),
        ours("00000000000000FF", number, "1", ""),
        ours("ff", number, "1", ""),
        ours("fffffffffffffffff", number, "1", ""),
        b"ringfence:shared ".to_vec(),
        b"\0".to_vec(),
        b"\xff\xfe:+\xff".to_vec(),
    ];
    let mut no_text = ours(nonce, number, "1", "metadata");
    no_text.push(0xff);
    values.push(no_text);
    values
}

/// Sets a key to bytes of any kind, which `redis-cli` takes from nobody but a script.
async fn set(server: &RedisServer, key: &str, value: &[u8]) {
    let value = value.iter().fold(String::new(), |text, byte| text + &format!("\\{byte:03}"));
    let mut script = "return redis.call('SET', KEYS[1], ARGV[1])".to_owned();
    if value.len() > 100_000 {
        // Too long for an argument of a program: all imitations that long repeat one letter.
        script =
            format!("return redis.call('SET', KEYS[1], '{}' .. string.rep('m', 1048576))", &value[..400]);
    } else {
        script = script.replace("ARGV[1]", &format!("'{value}'"));
    }
    server.command(&["EVAL", &script, "1", key]).await;
}

#[tokio::test]
async fn a_value_that_only_looks_like_ours_is_another_clients() {
    let Some((server, client)) = stage().await else { return };
    for value in imitations() {
        let shown = String::from_utf8_lossy(&value[..value.len().min(80)]).into_owned();
        set(&server, LOCK, &value).await;
        for mode in [Mode::Exclusive, Mode::Shared] {
            match ask(&client, &lock(), mode).await {
                Ok(Attempt::Busy(contention)) => assert_eq!(contention.holders.len(), 1, "{shown:?}"),
                other => panic!("{shown:?} must keep {mode} out: {other:?}"),
            }
        }
        let state = client.inspect(&lock()).await.unwrap_or_else(|error| panic!("{shown:?}: {error}"));
        let [holder] = &state.holders[..] else { panic!("{shown:?}: {state:?}") };
        let evicted = client.evict(&lock(), holder.token.nonce()).await.expect("an answer");
        assert_eq!(evicted, Eviction::Evicted, "{shown:?}");
        let lease = hold(&client, &lock(), Mode::Exclusive).await;
        client.release(slice::from_ref(&lease.key)).await.expect("an answer");
    }
}

#[tokio::test]
async fn malformed_entries_of_the_line_are_passed_over() {
    let Some((server, client)) = stage().await else { return };
    let (line, entries) = (format!("{LOCK}:q"), format!("{LOCK}:w"));
    for strange in [
        "",
        "rubbish",
        "1:aa:x:30000",
        "1:aa:y:30000:1:label\nhost\n",
        "1:aa:p:30000:1:label\nhost\n",
        "1:aa:p0:30000:1:label\nhost\n",
        "1:aa:x9:30000:1:label\nhost\n",
        "1:aa:x:99999999999999999999999:1:label\nhost\n",
        "99999999999999999999999:aa:x:30000:1:label\nhost\n",
        "-1:aa:x:30000:1:label\nhost\n",
    ] {
        let held = hold(&client, &lock(), Mode::Exclusive).await;
        for member in ["00000000000000ee", "nobody", ""] {
            server.command(&["ZADD", &line, "1", member]).await;
            server.command(&["HSET", &entries, member, strange]).await;
        }
        // Somebody who waits makes the holder look at the line.
        server.command(&["ZADD", &line, "2", "without an entry"]).await;
        let state = client.inspect(&lock()).await.unwrap_or_else(|error| panic!("{strange:?}: {error}"));
        assert_eq!(state.holders.len(), 1, "{strange:?}: {state:?}");
        let next = async { client.acquire(request(&lock(), Mode::Exclusive, in_a_while())).await };
        let release = async {
            while !server.command(&["GET", LOCK]).await.contains('+') {}
            client.release(slice::from_ref(&held.key)).await.expect("an answer")
        };
        let (next, released) = tokio::join!(next, release);
        assert_eq!(released, [Release::Released], "{strange:?}");
        match next {
            Ok(Attempt::Granted(next)) => {
                drop(client.release(slice::from_ref(&next.key)).await.expect("an answer"));
            }
            other => panic!("{strange:?} must not be in anybody's way: {other:?}"),
        }
        assert_eq!(server.command(&["EXISTS", &line, LOCK]).await, "0", "{strange:?}");
        server.command(&["DEL", &entries]).await;
    }
}

fn in_a_while() -> Wait {
    Wait::Until(SystemClock::new().now().saturating_add(Duration::from_secs(10)))
}

#[tokio::test]
async fn malformed_holders_of_a_group_are_no_panic() {
    let Some((server, client)) = stage().await else { return };
    let (holders, ends) = (format!("{LOCK}:h"), format!("{LOCK}:s"));
    for (member, entry) in [
        ("00000000000000ee", None),
        ("00000000000000ee", Some("rubbish")),
        ("00000000000000ee", Some("99999999999999999999999:aa:s:1:1:label\nhost\n")),
        ("0000000000000000", Some("")),
        ("nobody", Some("1:aa:s:1:1:label\nhost\n")),
    ] {
        let shown = format!("{member} with {entry:?}");
        let held = hold(&client, &lock(), Mode::Shared).await;
        server.command(&["ZADD", &ends, "99999999999999", member]).await;
        if let Some(entry) = entry {
            server.command(&["HSET", &holders, member, entry]).await;
        }
        let beside = hold(&client, &lock(), Mode::Shared).await;
        let busy = ask(&client, &lock(), Mode::Exclusive).await;
        assert!(matches!(busy, Ok(Attempt::Busy(_))), "{shown}: {busy:?}");
        match client.inspect(&lock()).await {
            Ok(state) => {
                assert_eq!(state.holders.len(), 3, "{shown}: {state:?}");
                let nonce = Nonce::from_u64(0xee).expect("not zero");
                let evicted = client.evict(&lock(), nonce).await;
                assert!(evicted.is_ok(), "{shown}: {evicted:?}");
            }
            // A holder without a number that names it.
            Err(error) => expect(&error, ErrorKind::Corrupt, Retry::Never, Effect::None),
        }
        for lease in [held, beside] {
            let released = client.release(slice::from_ref(&lease.key)).await.expect("an answer");
            assert_eq!(released, [Release::Released], "{shown}");
        }
        server.command(&["DEL", LOCK]).await;
    }
}

/// 1 GiB, as long as a string may be where a server is told to allow it.
const HUGE: u64 = 1 << 30;

/// Where the huge string is kept while it is in nobody's way.
const PARKED: &str = "huge";

/// Puts a string of 1 GiB under a key. To fill so much memory takes most of a second, so that one is moved around.
async fn put_huge(server: &RedisServer, key: &str) {
    if server.command(&["EXISTS", PARKED]).await == "0" {
        server.command(&["SETRANGE", PARKED, &(HUGE - 1).to_string(), "x"]).await;
    }
    server.command(&["RENAME", PARKED, key]).await;
}

/// Takes it away again, if it is still there.
async fn take_huge(server: &RedisServer, key: &str) {
    if server.command(&["STRLEN", key]).await == HUGE.to_string() {
        server.command(&["RENAME", key, PARKED]).await;
    }
}

/// What grows where a value is copied or carried, each at its highest so far.
#[derive(Debug)]
struct Effort {
    /// Bytes that the server has sent.
    carried: u64,
    /// The server's memory, in bytes, and ours.
    theirs: u64,
    ours: u64,
    /// How long the server has worked, as its processor counts it, however busy the machine is.
    worked: Duration,
}

impl Effort {
    async fn so_far(server: &RedisServer) -> Self {
        let number = async |field| -> u64 {
            server.info(field).await.and_then(|value| value.parse().ok()).expect("every server counts")
        };
        let after = |text: &str, word: &str| -> u64 {
            let value =
                text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in {text:?}")).1.trim_start();
            value
                .split(|end: char| !end.is_ascii_digit())
                .next()
                .unwrap_or_default()
                .parse()
                .expect("a number")
        };
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux says how a process is");
        let seconds = async |field| -> f64 {
            server.info(field).await.and_then(|value| value.parse().ok()).expect("every server counts")
        };
        let worked = seconds("used_cpu_user").await + seconds("used_cpu_sys").await;
        Self {
            carried: number("total_net_output_bytes").await,
            theirs: number("used_memory_peak").await,
            ours: after(&status, "VmHWM:") * 1024,
            worked: Duration::from_secs_f64(worked),
        }
    }
}

/// Neither the answers nor anybody's memory grow with a value that is no lock of ours.
#[tokio::test]
async fn a_huge_value_is_neither_copied_nor_carried() {
    let Some(server) = RedisOptions::new().set("proto-max-bulk-len", &["2gb"]).start().await else { return };
    let client = connect(&server.url()).await.expect("a server that runs");
    let beside = |key| format!("{LOCK}:{key}");
    // Connections, scripts and what else is only there once somebody has used it.
    hold(&client, &name("warm"), Mode::Exclusive).await;
    put_huge(&server, LOCK).await;
    let before = Effort::so_far(&server).await;
    for mode in [Mode::Exclusive, Mode::Shared] {
        assert!(matches!(ask(&client, &lock(), mode).await, Ok(Attempt::Busy(_))), "{mode}");
    }
    client.list(ListQuery::default()).await.expect("a listing");
    neighbour_works(&client).await;
    take_huge(&server, LOCK).await;
    for key in ["q", "h", "r:value"] {
        put_huge(&server, &beside(key)).await;
        drop(every_call(&client).await);
        take_huge(&server, &beside(key)).await;
        server.command(&["DEL", &beside(key), LOCK]).await;
    }
    let held = hold(&client, &lock(), Mode::Exclusive).await;
    let key = RecordKey::of(lock());
    put_huge(&server, &beside("r:value")).await;
    for refused in record_calls(&client, &key, &held).await {
        expect(&refused.expect_err("that is no record"), ErrorKind::Corrupt, Retry::Never, Effect::None);
    }
    take_huge(&server, &beside("r:value")).await;
    client.records().open(&key, held.token).await.expect("an open record");
    client.records().write(&key, held.token, Bytes::from_static(b"ours")).await.expect("a write");
    // What stands in a hash is sent there whole, so that this one is as long as is quickly sent.
    server.command(&["EVAL", GROW, "1", &beside("r:value")]).await;
    let read = client.records().read(&key).await;
    expect(&read.expect_err("no record is as long"), ErrorKind::Corrupt, Retry::Never, Effect::None);
    let open = client.records().open(&key, held.token).await;
    expect(&open.expect_err("no record is as long"), ErrorKind::Corrupt, Retry::Never, Effect::None);
    put_huge(&server, LOCK).await;
    let state = client.inspect(&lock()).await.expect("a state");
    let evicted = client.evict(&lock(), state.holders[0].token.nonce()).await.expect("an answer");
    assert_eq!(evicted, Eviction::Evicted);
    hold(&client, &lock(), Mode::Exclusive).await;
    let after = Effort::so_far(&server).await;
    assert!(after.carried - before.carried < 1 << 20, "it was carried: {before:?} {after:?}");
    assert!(after.theirs - before.theirs < HUGE / 8, "it was copied by the server: {before:?} {after:?}");
    assert!(after.ours - before.ours < HUGE / 8, "it was copied by us: {before:?} {after:?}");
    // For a script to copy it takes seconds; without that, to make the long value of the record and to free all takes half of one.
    let worked = after.worked.saturating_sub(before.worked);
    assert!(worked < Duration::from_secs(2), "it was looked through: {before:?} {after:?}");
}

/// Makes a huge value of a record.
const GROW: &str = "return redis.call('HSET', KEYS[1], 'value', string.rep('x', 16777216))";

/// The counter is read in the command that replaces it, on the way of every grant: to look first how long it is would cost
/// everybody, for the sake of a key that nobody else has any use for. So a huge one is read once, by the server, and is gone.
#[tokio::test]
async fn a_huge_counter_is_not_carried_and_is_replaced() {
    let Some((server, client)) = stage().await else { return };
    hold(&client, &name("warm"), Mode::Exclusive).await;
    let counter = format!("{LOCK}:t");
    server.command(&["SETRANGE", &counter, &(8 << 20).to_string(), "x"]).await;
    let before = Effort::so_far(&server).await;
    client.inspect(&lock()).await.expect("a state");
    // One that shares does not replace it before it has looked at it.
    let error = ask(&client, &lock(), Mode::Shared).await.expect_err("that is no number");
    assert!(error.to_string().contains("ringfence:{orders/42}:t holds no grant number"), "{error}");
    let lease = hold(&client, &lock(), Mode::Exclusive).await;
    let after = Effort::so_far(&server).await;
    assert!(after.carried - before.carried < 1 << 20, "it was carried: {before:?} {after:?}");
    assert_eq!(server.command(&["STRLEN", &counter]).await, "16");
    client.release(slice::from_ref(&lease.key)).await.expect("an answer");
}

/// Every call of a record, without its answer.
async fn record_calls(client: &RedisBackend, key: &RecordKey, held: &Lease) -> [Result<()>; 3] {
    let records = client.records();
    [
        records.open(key, held.token).await.map(drop),
        records.write(key, held.token, Bytes::from_static(b"x")).await.map(drop),
        records.read(key).await.map(drop),
    ]
}

#[tokio::test]
async fn a_record_that_is_none_is_named_and_left_alone() {
    let Some((server, client)) = stage().await else { return };
    let held = hold(&client, &lock(), Mode::Exclusive).await;
    let (key, stored) = (RecordKey::of(lock()), format!("{LOCK}:r:value"));
    let strange: [&[&str]; 6] = [
        &["HSET", &stored, "of", "theirs"],
        &["SET", &stored, "theirs"],
        &["HSET", &stored, "nonce", "ff", "number", "rubbish", "handover", "0"],
        &["HSET", &stored, "nonce", "ff"],
        &["HSET", &stored, "value", "theirs"],
        &["HSET", &stored, "value", "theirs", "version", "many", "by", "nobody"],
    ];
    for strange in strange {
        server.command(strange).await;
        let before = server.command(&["DUMP", &stored]).await;
        let mut refused = 0;
        for error in record_calls(&client, &key, &held).await.into_iter().filter_map(Result::err) {
            if error.kind() == ErrorKind::NotOpened {
                continue;
            }
            refused += 1;
            expect(&error, ErrorKind::Corrupt, Retry::Never, Effect::None);
            assert!(error.to_string().contains(&stored), "{strange:?}: {error}");
        }
        assert!(refused > 0, "{strange:?}");
        assert_eq!(server.command(&["DUMP", &stored]).await, before, "{strange:?}: it was changed");
        server.command(&["DEL", &stored]).await;
    }
    server.command(&["SET", &stored, "theirs"]).await;
    let error = client.records().read(&key).await.expect_err("that is no record");
    assert_snapshot!(message(&error, server.port()), @r#"record "ringfence:{orders/42}:r:value": redis://127.0.0.1:PORT: what is kept there is not what Ringfence writes: see who else writes there, then delete the key"#);
}

#[tokio::test]
async fn messages_of_somebody_else_are_ignored() {
    let Some((server, client)) = stage().await else { return };
    let lock = lock();
    let held = hold(&client, &lock, Mode::Exclusive).await;
    let mut waits = request(&lock, Mode::Exclusive, in_a_while());
    waits.nonce = Nonce::from_u64(0xee).expect("not zero");
    let mut next = std::pin::pin!(client.acquire(waits));
    let channel = async {
        loop {
            let channels = server.command(&["PUBSUB", "CHANNELS", "ringfence:*"]).await;
            if server.command(&["GET", LOCK]).await.contains('+') {
                break channels;
            }
        }
    };
    let channel = tokio::select! {
        next = &mut next => panic!("the lock is held: {next:?}"),
        channel = channel => channel,
    };
    let huge = "x".repeat(100_000);
    let messages = [
        "",
        "turn",
        "turn:",
        "turn:00000000000000ee",
        "turn:00000000000000ee:",
        "turn:00000000000000ee:rubbish",
        "turn:00000000000000ee:-1",
        "turn:00000000000000ee:0",
        "turn:00000000000000ee:18446744073709551616",
        "turn:00000000000000ee:18446744073709551615",
        "turn:0000000000000000:1",
        "turn:rubbish:1",
        "turn:00000000000000dd:1700000000000000",
        "lost",
        "lost:rubbish:0",
        "\u{ff}",
        &huge,
    ];
    for message in messages {
        assert_eq!(server.command(&["PUBLISH", &channel, message]).await, "1", "we listen on {channel}");
    }
    // They have all arrived when the answer to a later call has.
    tokio::select! {
        biased;
        next = &mut next => panic!("nobody of us has given it its turn: {next:?}"),
        state = client.inspect(&lock) => assert_eq!(state.expect("a state").waiters.len(), 1),
    }
    let released = client.release(slice::from_ref(&held.key));
    let (next, released) = tokio::join!(next, released);
    assert_eq!(released.expect("an answer"), [Release::Released]);
    assert!(matches!(next, Ok(Attempt::Granted(_))), "its own turn comes all the same: {next:?}");
}

#[tokio::test]
async fn a_token_that_nobody_was_given_opens_nothing() {
    let Some((_server, client)) = stage().await else { return };
    let held = hold(&client, &lock(), Mode::Exclusive).await;
    let forged = FencingToken::new((1 << 63) - 1, held.token.nonce()).expect("a token");
    let refused = client.records().open(&RecordKey::of(lock()), forged).await;
    expect(&refused.expect_err("no lease has it"), ErrorKind::Stale, Retry::Never, Effect::None);
    client.records().open(&RecordKey::of(lock()), held.token).await.expect("nobody was fenced out");
}
