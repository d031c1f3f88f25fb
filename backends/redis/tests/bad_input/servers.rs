//! Servers that are not what the URL says, or not now.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::slice;
use std::time::Duration;

use bytes::Bytes;
use insta::assert_snapshot;
use ringfence_core::{
    AcquireRequest, Backend, BootInstant, Clock, Effect, Error, ErrorKind, FencingToken, HolderInfo,
    LeaseKey, ListQuery, LockName, Mode, Nonce, RecordKey, Retry, SystemClock, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisOptions, RedisServer, skip};
use ringfence_testkit::PATIENCE;

use crate::common::{ask, connect, hold, name, request};
use crate::{expect, impostor, message};

/// The error of connecting to a port of this machine, which must not take long.
async fn refused(scheme: &str, port: u16) -> Error {
    let connected = tokio::time::timeout(PATIENCE, connect(&format!("{scheme}://127.0.0.1:{port}"))).await;
    connected.unwrap_or_else(|_| panic!("no answer in {PATIENCE:?}")).expect_err("that is no server for us")
}

#[tokio::test]
async fn nobody_listens() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of 127.0.0.1");
    let port = listener.local_addr().expect("a listener has an address").port();
    drop(listener);
    let error = refused("redis", port).await;
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert_snapshot!(message(&error, port), @r#"redis://127.0.0.1:PORT: it cannot be reached: see whether it runs, and whether the URL names it"#);
}

#[tokio::test]
async fn a_host_that_nobody_knows() {
    let connected = tokio::time::timeout(PATIENCE, connect("redis://no-such-host.invalid")).await;
    let error = connected.expect("an answer in time").expect_err("there is no such host");
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert!(error.to_string().starts_with("redis://no-such-host.invalid: "), "{error}");
}

#[tokio::test]
async fn a_socket_that_is_not_there() {
    let error = connect("redis+unix:///no/such/socket").await.expect_err("there is no such socket");
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert_snapshot!(error.message(), @r#"redis+unix:/no/such/socket: it cannot be reached: see whether it runs, and whether the URL names it"#);
}

#[tokio::test]
async fn a_server_that_accepts_and_never_answers() {
    let proxy = Proxy::start(1).await;
    proxy.accept_and_be_silent();
    let error = refused("redis", proxy.port()).await;
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert!(message(&error, proxy.port()).starts_with("redis://127.0.0.1:PORT: it "), "{error}");
}

#[tokio::test]
async fn a_web_server() {
    let port = impostor::says(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let error = refused("redis", port).await;
    expect(&error, ErrorKind::Corrupt, Retry::Never, Effect::None);
    assert_eq!(error.to_string().lines().count(), 1, "{error}");
    assert_snapshot!(message(&error, port), @r#"redis://127.0.0.1:PORT: its answer makes no sense: is this a Redis server?"#);
}

#[tokio::test]
async fn a_server_that_speaks_nonsense() {
    let nonsense: [&'static [u8]; 9] = [
        b"\0\0\0\0\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"$-99\r\n",
        b"$99999999999999999999\r\n",
        b"*-5\r\n",
        b":one\r\n",
        b"*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n!\r\n",
        b"%1\r\n+key\r\n\r\n",
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
    ];
    for words in nonsense {
        let error = refused("redis", impostor::says(words)).await;
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable), "{words:?}: {error:?}");
        assert_eq!(error.effect(), Effect::None, "{words:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_server_that_hangs_up() {
    let error = refused("redis", impostor::hangs_up()).await;
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
}

fn short(lock: &LockName, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    AcquireRequest::new(lock.clone(), Mode::Exclusive, Ttl::MIN, wait, holder)
}

/// Every call there is, with the error of each that has one.
async fn every_call(client: &RedisBackend) -> Vec<(&'static str, Option<Error>)> {
    let lock = name("orders/42");
    let lease = LeaseKey::new(lock.clone(), Nonce::random(), Ttl::MIN);
    let (leases, two) = (slice::from_ref(&lease), [lease.clone(), lease.clone()]);
    let (record, token) =
        (RecordKey::of(lock.clone()), FencingToken::of_grant(1, lease.nonce).expect("a token"));
    let soon = Wait::Until(SystemClock::new().now().saturating_add(Duration::from_millis(50)));
    let records = client.records();
    vec![
        ("acquire", client.acquire(short(&lock, Wait::No)).await.err()),
        ("wait", client.acquire(short(&lock, soon)).await.err()),
        ("renew", client.renew(leases).await.err()),
        ("renew two", client.renew(&two).await.err()),
        ("release", client.release(leases).await.err()),
        ("downgrade", client.downgrade(&lease).await.err()),
        ("evict", client.evict(&lock, lease.nonce).await.err()),
        ("inspect", client.inspect(&lock).await.err()),
        ("list", client.list(ListQuery::default()).await.err()),
        ("open", records.open(&record, token).await.err()),
        ("write", records.write(&record, token, Bytes::new()).await.err()),
        ("read", records.read(&record).await.err()),
    ]
}

#[tokio::test]
async fn replies_of_the_wrong_shape() {
    let replies: [&[u8]; 26] = [
        b"+OK\r\n",
        b"$-1\r\n",
        b"_\r\n",
        b"*0\r\n",
        b":5\r\n",
        b"#t\r\n",
        b",3.14\r\n",
        b"%0\r\n",
        b"~0\r\n",
        b"*1\r\n*0\r\n",
        b"*1\r\n:-1\r\n",
        b"*1\r\n:9223372036854775807\r\n",
        b"*1\r\n+OK\r\n",
        b"*1\r\n$0\r\n\r\n",
        b"*1\r\n_\r\n",
        b"*1\r\n%0\r\n",
        b"*1\r\n*1\r\n$4\r\nbusy\r\n",
        b"*1\r\n*2\r\n$4\r\nbusy\r\n:0\r\n",
        b"*1\r\n*3\r\n$4\r\nbusy\r\n:-1\r\n:0\r\n",
        b"*1\r\n*1\r\n$5\r\nwaits\r\n",
        b"*1\r\n*2\r\n$5\r\nwaits\r\n:1\r\n",
        b"*1\r\n*1\r\n$7\r\nunknown\r\n",
        b"*1\r\n*3\r\n:1\r\n:1\r\n:1\r\n",
        b"*2\r\n:1\r\n:1\r\n",
        b"*2\r\n$1\r\n0\r\n*1\r\n*0\r\n",
        b"*2\r\n$2\r\nok\r\n$3\r\nodd\r\n",
    ];
    for reply in replies {
        let shown = String::from_utf8_lossy(reply).into_owned();
        let port = impostor::answers(move |_| Some(reply.to_vec()));
        let client = connect(&format!("redis://127.0.0.1:{port}")).await.expect("it takes us in");
        let mut refused = 0;
        for (call, error) in every_call(&client).await {
            let Some(error) = error else { continue };
            refused += 1;
            assert_eq!(
                (error.kind(), error.retry()),
                (ErrorKind::Corrupt, Retry::Never),
                "{call}, {shown:?}: {error:?}"
            );
            assert!(
                error.to_string().contains(&format!("redis://127.0.0.1:{port}: ")),
                "{call}, {shown:?}: {error}"
            );
            if ["acquire", "wait", "renew", "release", "downgrade", "evict"].contains(&call) {
                assert_eq!(error.effect(), Effect::Unknown, "{call}, {shown:?}: who knows what it did");
            }
        }
        assert!(refused >= 8, "{shown:?} is no answer to most calls");
    }
    // As one of several servers says it, and nobody asked for that.
    let port = impostor::answers(|_| Some(b"*1\r\n*2\r\n:5\r\n:6\r\n".to_vec()));
    let client = connect(&format!("redis://127.0.0.1:{port}")).await.expect("it takes us in");
    let error = ask(&client, &name("orders/42"), Mode::Exclusive).await.expect_err("that is no answer");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    let port = impostor::answers(|_| Some(b"+PONG\r\n".to_vec()));
    let client = connect(&format!("redis://127.0.0.1:{port}")).await.expect("it takes us in");
    let error = ask(&client, &name("orders/42"), Mode::Exclusive).await.expect_err("that is no answer");
    assert_snapshot!(message(&error, port), @r#"redis://127.0.0.1:PORT: an answer of the wrong shape: simple-string("PONG"); is this a Redis server, version 6.2 or later?"#);
}

#[tokio::test]
async fn a_server_that_takes_us_in_and_then_never_answers() {
    let port = impostor::answers(|_| None);
    let client = connect(&format!("redis://127.0.0.1:{port}")).await.expect("it takes us in");
    let soon = Wait::Until(SystemClock::new().now().saturating_add(Duration::from_millis(50)));
    let lock = name("orders/42");
    let lease = LeaseKey::new(lock.clone(), Nonce::random(), Ttl::MIN);
    let record = RecordKey::of(lock.clone());
    // For an answer, and for an attempt that is withdrawn until its lease would have ended.
    let patience = 2 * PATIENCE;
    let calls = async {
        tokio::join!(
            client.acquire(short(&lock, Wait::No)),
            client.acquire(short(&lock, soon)),
            client.renew(slice::from_ref(&lease)),
            client.release(slice::from_ref(&lease)),
            client.records().read(&record),
        )
    };
    let calls = tokio::time::timeout(patience, calls).await.expect("every call has an end");
    for (call, error, effect) in [
        ("acquire", calls.0.err(), Effect::None),
        ("wait", calls.1.err(), Effect::None),
        ("renew", calls.2.err(), Effect::Unknown),
        ("release", calls.3.err(), Effect::Unknown),
        ("read", calls.4.err(), Effect::Unknown),
    ] {
        let error = error.unwrap_or_else(|| panic!("{call} must not succeed"));
        expect(&error, ErrorKind::Unavailable, Retry::Later, effect);
        assert!(error.to_string().contains(&format!("redis://127.0.0.1:{port}: it ")), "{call}: {error}");
    }
}

#[tokio::test]
async fn a_replica() {
    let Some(primary) = RedisServer::start().await else { return };
    let port = primary.port().to_string();
    let replica =
        RedisOptions::new().set("replicaof", &["127.0.0.1", &port]).start().await.expect("a replica");
    let error = refused("redis", replica.port()).await;
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert_snapshot!(message(&error, replica.port()), @"redis://127.0.0.1:PORT: it is a replica: locks are taken on the primary, name that one");
    // The same once it is a primary, and when it is demoted under a client that is connected.
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    let client = connect(&replica.url()).await.expect("a primary");
    let lease = hold(&client, &name("orders/42"), Mode::Exclusive).await;
    client.release(slice::from_ref(&lease.key)).await.expect("an answer");
    replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    let error = ask(&client, &name("orders/42"), Mode::Exclusive).await.expect_err("it takes no changes");
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert!(error.to_string().contains("it is a replica"), "{error}");
    // One that is told to say nothing before it follows.
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
    let client = connect(&replica.url()).await.expect("a primary");
    replica.command(&["CONFIG", "SET", "replica-serve-stale-data", "no"]).await;
    replica.command(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let error = client.renew(slice::from_ref(&lease.key)).await.expect_err("it takes no changes");
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert!(error.to_string().contains("it is a replica"), "{error}");
    replica.command(&["REPLICAOF", "NO", "ONE"]).await;
}

#[tokio::test]
async fn a_server_that_reads_its_data() {
    // 500 keys, of 10 ms each, between which it looks at its connections.
    let slow = RedisOptions::new()
        .set("enable-debug-command", &["yes"])
        .set("key-load-delay", &["10000"])
        .set("loading-process-events-interval-bytes", &["1024"]);
    let Some(server) = slow.start().await else { return };
    let client = connect(&server.url()).await.expect("a server that runs");
    server.command(&["DEBUG", "POPULATE", "500"]).await;
    let reload = server.command(&["DEBUG", "RELOAD"]);
    let lock = name("orders/42");
    let asked = async {
        loop {
            match ask(&client, &lock, Mode::Exclusive).await {
                Err(error) => break error,
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    };
    let (_, error) = tokio::join!(reload, asked);
    expect(&error, ErrorKind::Unavailable, Retry::Later, Effect::None);
    assert_snapshot!(message(&error, server.port()), @r#"redis://127.0.0.1:PORT: it is reading its data: try again soon"#);
    client.acquire(request(&lock, Mode::Shared, Wait::Until(BootInstant::MAX))).await.expect("it is back");
}

#[tokio::test]
async fn a_server_that_protects_itself() {
    // The address by which this machine would speak to others; nothing is sent.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let Ok(outside) = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()) else {
        return skip("network", "this machine has no address but its own");
    };
    let Some(server) = RedisOptions::new().set("bind", &["*"]).start().await else { return };
    let url = format!("redis://{}:{}", outside.ip(), server.port());
    let error = connect(&url).await.expect_err("it is in protected mode");
    // Its own words are lost where it has hung up before they are read.
    assert_eq!((error.retry(), error.effect()), (Retry::Later, Effect::None), "{error:?}");
    assert!(error.to_string().contains("protected mode"), "{error}");
}

#[tokio::test]
async fn a_server_that_speaks_tls_and_is_spoken_to_without() {
    let Some(server) = RedisOptions::new().tls().start().await else { return };
    let error = refused("redis", server.port()).await;
    assert_eq!((error.retry(), error.effect()), (Retry::Later, Effect::None), "{error:?}");
    assert!(error.to_string().contains("speak TLS (rediss:, or tls=on"), "{error}");
}

#[tokio::test]
async fn a_server_without_memory() {
    let Some(server) = RedisOptions::new().set("maxmemory", &["1"]).start().await else { return };
    let client = connect(&server.url()).await.expect("a server that runs");
    let error = ask(&client, &name("orders/42"), Mode::Exclusive).await.expect_err("it takes nothing more");
    expect(&error, ErrorKind::Full, Retry::Later, Effect::None);
    assert_snapshot!(message(&error, server.port()), @r#"lock "ringfence:{orders/42}": redis://127.0.0.1:PORT: it is out of memory: make room, or raise its maxmemory"#);
}

/// Whoever runs a server may take commands away, and one who is told to try again soon, or to delete the key, looks in vain.
#[tokio::test]
async fn a_server_without_a_command_that_we_need() {
    for command in ["HELLO", "SUBSCRIBE", "SCRIPT", "EVALSHA", "TIME", "GETRANGE"] {
        let without = RedisOptions::new().set("rename-command", &[command, ""]);
        let Some(server) = without.start().await else { return };
        let asked = async { ask(&connect(&server.url()).await?, &name("orders/42"), Mode::Shared).await };
        let error = asked.await.expect_err("there is nothing to do without it");
        expect(&error, ErrorKind::Unsupported, Retry::Never, Effect::None);
        assert!(error.to_string().contains("rename-command"), "{command}: {error}");
    }
}

#[tokio::test]
async fn a_database_that_is_not_there() {
    let Some(server) = RedisServer::start().await else { return };
    let error = connect(&format!("{}/99", server.url())).await.expect_err("there are 16");
    assert_snapshot!(format!("{:?} {}", error.kind(), message(&error, server.port())), @r#"InvalidUrl redis://127.0.0.1:PORT/99: it has no such database: check the URL"#);
}
