//! What users, other users and other clients can get wrong.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BootInstant, Clock, Effect, ErrorKind, Finding, HolderInfo,
    ListQuery, METADATA_MAX, Mode, RecordKey, Release, Renewal, Result, Retry, Severity, SystemClock, Ttl,
    Wait,
};
use ringfence_servers::{Ensemble, Proxy, ZooKeeperOptions, skip};
use ringfence_testkit::PATIENCE;
use ringfence_zookeeper::ZooKeeperBackend;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

async fn connect(url: &str) -> Result<ZooKeeperBackend> {
    ZooKeeperBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

fn as_user(servers: &Ensemble, login: &str) -> String {
    servers.url().replace("//", &format!("//{login}@"))
}

fn now() -> BootInstant {
    SystemClock::new().now()
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(3 * PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

fn request(name: &str, ttl: Duration) -> Result<AcquireRequest> {
    let holder = HolderInfo::new("bad input", "here", 1)?;
    Ok(AcquireRequest::new(name.parse()?, Mode::Exclusive, Ttl::new(ttl)?, Wait::No, holder))
}

async fn ask(client: &ZooKeeperBackend, name: &str, ttl: Duration) -> Result<Attempt> {
    client.acquire(request(name, ttl)?).await
}

#[tokio::test]
async fn a_users_locks_are_nobody_elses() {
    for path in ["", "/apps/orders"] {
        let Some(servers) = Ensemble::start().await else { return };
        nobody_elses(&servers, path).await;
    }
}

/// What is found of our rights.
async fn rights(client: &ZooKeeperBackend) -> Option<Finding> {
    let findings = client.examine().await.expect("an examination");
    findings.into_iter().find(|finding| finding.about == "rights")
}

async fn nobody_elses(servers: &Ensemble, path: &str) {
    let ann = connect(&(as_user(servers, "ann:s3cret") + path)).await.expect("any login is taken");
    let lease = match ask(&ann, "orders", Ttl::DEFAULT.as_duration()).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("a free lock is ann's: {other:?}"),
    };
    ann.records().open(&RecordKey::of(lease.key.name.clone()), lease.token).await.expect("her record");
    for stranger in [servers.url(), as_user(servers, "ann:guess")] {
        let stranger = connect(&(stranger + path)).await.expect("any login is taken");
        for name in ["orders", "another"] {
            let error = ask(&stranger, name, Ttl::DEFAULT.as_duration()).await.expect_err("it is not theirs");
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Refused, Effect::None), "{error:?}");
            assert!(!format!("{error:?}").contains("guess"), "{error:?}");
            assert!(
                error.to_string().contains(&format!("ringfence/locks/{name}: the access rules")),
                "{error}"
            );
        }
        let error = stranger.inspect(&lease.key.name).await.expect_err("it is not theirs to see");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        let error = stranger.evict(&lease.key.name, lease.key.nonce).await.expect_err("nor to remove");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        let rights = rights(&stranger).await.expect("what is there is not theirs");
        assert_eq!(rights.severity, Severity::Problem, "{rights:?}");
    }
    assert_eq!(rights(&ann).await.expect("it is hers").severity, Severity::Fine);
    let findings = ann.examine().await.expect("an examination");
    let access = findings.iter().find(|finding| finding.about == "access").expect("it looks at the access");
    assert_eq!(access.severity, Severity::Fine, "{access:?}");
    assert!(!format!("{ann} {ann:?}").contains("s3cret"));
}

/// A lock that one user keeps from the others is not theirs to see, and all others are.
#[tokio::test]
async fn what_a_user_keeps_from_others_is_left_out_of_their_listings() {
    let Some(servers) = Ensemble::start().await else { return };
    let (all, ann) = (
        connect(&servers.url()).await.expect("a server"),
        connect(&as_user(&servers, "ann:s3cret")).await.expect("any login is taken"),
    );
    let mut leases = Vec::new();
    for (client, name) in [(&all, "alpha"), (&ann, "beta"), (&all, "gamma")] {
        let Ok(Attempt::Granted(lease)) = ask(client, name, Ttl::DEFAULT.as_duration()).await else {
            panic!("{name} is free");
        };
        let record = RecordKey::of(lease.key.name.clone());
        client.records().open(&record, lease.token).await.expect("a record");
        client.records().write(&record, lease.token, name.into()).await.expect("a write");
        leases.push(lease);
    }
    let seen = async |client: &ZooKeeperBackend| {
        let locks = client.list(ListQuery::default()).await.expect("a listing").items;
        let records = client.records().list(ListQuery::default()).await.expect("a listing").items;
        let locks: Vec<String> = locks.iter().map(|state| state.name.to_string()).collect();
        let records: Vec<String> = records.iter().map(|key| key.lock().to_string()).collect();
        assert_eq!(locks, records);
        locks
    };
    assert_eq!(seen(&ann).await, ["alpha", "beta", "gamma"]);
    assert_eq!(seen(&all).await, ["alpha", "gamma"]);
}

#[tokio::test]
async fn a_ttl_is_within_the_range_of_the_servers() {
    let options = ZooKeeperOptions::new().set("minSessionTimeout", "1000").set("maxSessionTimeout", "9000");
    let Some(servers) = options.start().await else { return };
    let client = connect(&servers.url()).await.expect("a server");
    let range = (client.guarantees().ttl_min.as_millis(), client.guarantees().ttl_max.as_millis());
    assert_eq!(range, (1000, 9000), "the range is asked for");
    for ttl in [Duration::from_millis(999), Duration::from_secs(10)] {
        let error = ask(&client, "orders", ttl).await.expect_err("the servers would grant another one");
        assert_eq!((error.kind(), error.effect()), (ErrorKind::InvalidTtl, Effect::None), "{error:?}");
    }
    let findings = client.examine().await.expect("an examination");
    let sessions =
        findings.iter().find(|finding| finding.about == "sessions").expect("it looks at the range");
    assert_eq!(sessions.severity, Severity::Warning, "the usual TTL is not in it: {sessions:?}");
    let access = findings.iter().find(|finding| finding.about == "access").expect("it looks at the access");
    assert_eq!(access.severity, Severity::Fine, "nobody has made anything yet: {access:?}");
}

#[tokio::test]
async fn what_everybody_may_remove_is_said() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&servers.url()).await.expect("a server");
    assert!(matches!(ask(&client, "orders", Ttl::DEFAULT.as_duration()).await, Ok(Attempt::Granted(_))));
    let below = async || {
        let [all, locks, records] = ["", "/locks", "/records"].map(|below| format!("/ringfence{below}"));
        [servers.children(&all).await, servers.children(&locks).await, servers.children(&records).await]
    };
    let before = below().await;
    let findings = client.examine().await.expect("an examination");
    assert_eq!(below().await, before, "it changes nothing");
    let severity =
        |about| findings.iter().find(|finding| finding.about == about).map(|finding| finding.severity);
    assert_eq!(severity("access"), Some(Severity::Warning), "{findings:?}");
    assert_eq!(severity("rights"), Some(Severity::Fine), "{findings:?}");
    assert_eq!(severity("role"), Some(Severity::Warning), "one server is alone: {findings:?}");
    assert_eq!(severity("version"), Some(Severity::Fine), "{findings:?}");
}

#[tokio::test]
async fn a_verbatim_name_that_is_no_path_is_refused_before_anything_is_sent() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&format!("{}?keys=verbatim", servers.url())).await.expect("a server");
    for name in ["a//b", "a/", "..", "a\u{10000}", "ringfence/locks/x", "zookeeper/quota"] {
        let error = ask(&client, name, Ttl::DEFAULT.as_duration()).await.expect_err("it is no path");
        assert_eq!((error.kind(), error.effect()), (ErrorKind::InvalidName, Effect::None), "{error:?}");
    }
    assert_eq!(servers.children("/").await, ["zookeeper"], "nothing was made");
}

#[tokio::test]
async fn a_lock_whose_node_can_have_none_below_it_is_no_matter_of_trying_again() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&format!("{}?keys=verbatim", servers.url())).await.expect("a server");
    let ttl = Ttl::DEFAULT.as_duration();
    assert!(matches!(ask(&client, "orders", ttl).await, Ok(Attempt::Granted(_))));
    // A place in line ends with its session, as the nodes of many others do.
    let place = servers.children("/orders").await.pop().expect("somebody holds it");
    let error = ask(&client, &format!("orders/{place}"), ttl).await.expect_err("nothing can stand below it");
    let about = (error.kind(), error.retry(), error.effect());
    assert_eq!(about, (ErrorKind::Corrupt, Retry::Never, Effect::None), "{error:?}");
}

#[tokio::test]
async fn a_server_that_wants_to_know_everybody_says_so() {
    let options = ZooKeeperOptions::new()
        .property("zookeeper.enforce.auth.enabled", "true")
        .property("zookeeper.enforce.auth.schemes", "digest");
    let Some(servers) = options.start().await else { return };
    let ttl = Ttl::DEFAULT.as_duration();
    let nobody = connect(&servers.url()).await.expect("sessions may begin");
    let error = within("an answer", ask(&nobody, "orders", ttl)).await.expect_err("it does not know us");
    let about = (error.kind(), error.retry(), error.effect());
    assert_eq!(about, (ErrorKind::Refused, Retry::Never, Effect::None), "{error:?}");
    assert!(error.to_string().contains("user:password@"), "{error}");
    let ann = connect(&as_user(&servers, "ann:s3cret")).await.expect("any login is taken");
    assert!(matches!(ask(&ann, "orders", ttl).await, Ok(Attempt::Granted(_))));
}

#[tokio::test]
async fn locks_among_the_nodes_of_others_are_listed_page_by_page() {
    // Longer than it takes on any machine: nobody renews these leases.
    const TTL: Duration = Duration::from_mins(10);
    let options = ZooKeeperOptions::new().set("maxSessionTimeout", "600000");
    let Some(servers) = options.start().await else { return };
    // Somebody keeps a wide tree there and a deep one, more than one page looks into.
    let wide = (0..11_000).map(|number| format!("/wide/{number:05}"));
    let deep = (1..=100).map(|depth| "/d".repeat(depth));
    servers.create_all(["/wide".to_owned()].into_iter().chain(wide).chain(deep).collect()).await;
    let client = connect(&format!("{}?keys=verbatim", servers.url())).await.expect("a server");
    let names = ["a", &"/d".repeat(90)[1..], "wide/00007", "wide/05432", "wide/10999", "zoo"];
    for name in names {
        let attempt = ask(&client, name, TTL).await;
        assert!(matches!(attempt, Ok(Attempt::Granted(_))), "{name}: {attempt:?}");
    }
    for (prefix, expected) in [("", &names[..]), ("wide/1", &names[4..5])] {
        let mut query = ListQuery::new(prefix).limit(2);
        let mut listed = Vec::new();
        loop {
            let page = client.list(query.clone()).await.expect("a page");
            assert!(page.items.len() <= 2, "{page:?}");
            listed.extend(page.items.into_iter().map(|state| state.name.as_str().to_owned()));
            let Some(next) = page.next else { break };
            query = query.after(next);
        }
        assert_eq!(listed, expected, "of {prefix:?}");
    }
}

/// Renews the first lease of a TTL, for which a session begins.
async fn begins_a_session(client: &ZooKeeperBackend, ttl: Duration) {
    let attempt = ask(client, &format!("orders/{}", ttl.as_millis()), ttl).await;
    let Ok(Attempt::Granted(lease)) = attempt else { panic!("a free lock is granted: {attempt:?}") };
    let renewed = client.renew(std::slice::from_ref(&lease.key)).await.expect("an answer");
    assert_eq!(renewed, [Renewal::Renewed]);
}

#[tokio::test]
async fn a_dead_server_in_the_url_costs_nothing_after_the_first_try() {
    let Some(servers) = Ensemble::start().await else { return };
    let silent = Proxy::start(servers.ports()[0]).await;
    silent.accept_and_be_silent();
    // Nobody listens on the first port of all; the other one accepts and never answers, which takes five seconds to know.
    let url = servers.url().replace("//", &format!("//127.0.0.1:1,127.0.0.1:{},", silent.port()));
    let client = within("one server serves", connect(&url)).await.expect("one server serves");
    let begun = now();
    for seconds in 10..15 {
        begins_a_session(&client, Duration::from_secs(seconds)).await;
    }
    let took = now().saturating_since(begun);
    assert!(took < Duration::from_secs(4), "nobody waits for the silent one again: {took:?}");
}

#[tokio::test]
async fn who_does_not_answer_is_named_in_time() {
    let Some(servers) = Ensemble::start().await else { return };
    let silent = Proxy::start(servers.ports()[0]).await;
    silent.accept_and_be_silent();
    for (url, hint) in [
        (format!("zookeeper://127.0.0.1:{}", silent.port()), "does not answer in time"),
        ("zookeeper://127.0.0.1:1".to_owned(), "cannot be reached"),
        ("zookeeper://[::1]:1".to_owned(), "cannot be reached"),
        ("zookeeper://no-such-host.invalid".to_owned(), "no-such-host.invalid:2181: it cannot be reached"),
    ] {
        let error = within(&url, connect(&url)).await.expect_err("nobody is there");
        let about = (error.kind(), error.retry(), error.effect());
        assert_eq!(about, (ErrorKind::Unavailable, Retry::Later, Effect::None), "{error:?}");
        assert!(error.to_string().contains(hint), "{url}: {error}");
    }
}

#[tokio::test]
async fn a_host_is_an_address_of_version_6_too() {
    let Some(servers) = Ensemble::start().await else { return };
    let listener = match TcpListener::bind("[::1]:0").await {
        Ok(listener) => listener,
        Err(why) => return skip("IPv6", &format!("this machine has no [::1]: {why}")),
    };
    let port = listener.local_addr().expect("an address").port();
    let server = servers.ports()[0];
    let carrying = tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.expect("a client");
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.expect("a server");
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let client = connect(&format!("zookeeper://[::1]:{port}")).await.expect("a server");
    begins_a_session(&client, Ttl::DEFAULT.as_duration()).await;
    carrying.abort();
}

#[tokio::test]
async fn every_name_is_kept_apart_and_metadata_comes_back_whole() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&servers.url()).await.expect("a server");
    let longest = "\u{f8ff}".repeat(85);
    let metadata = "\0\n:\"!/\u{202e}".repeat(100);
    let metadata = &metadata[..metadata.floor_char_boundary(METADATA_MAX)];
    // What a server refuses in a path, and what looks like the nodes of places in line.
    let names = [
        "a",
        "a/b",
        "a/",
        "/",
        "//",
        ".",
        "..",
        "zookeeper",
        "%2F",
        "\u{e000}",
        "\u{fff0}",
        "\u{ffff}",
        "_c_0000000000000001-lock-0000000001",
        " ",
        &longest,
    ];
    for name in names {
        let mut request = request(name, Ttl::DEFAULT.as_duration()).expect("lawful words");
        request.holder = request.holder.with_metadata(metadata).expect("as much as there may be");
        let attempt = client.acquire(request).await;
        assert!(matches!(attempt, Ok(Attempt::Granted(_))), "{name:?} is nobody else's: {attempt:?}");
    }
    let page = client.list(ListQuery::new("")).await.expect("a page");
    let mut expected = names;
    expected.sort_unstable();
    let listed: Vec<&str> = page.items.iter().map(|state| state.name.as_str()).collect();
    assert_eq!(listed, expected);
    for state in &page.items {
        assert_eq!(state.holders.len(), 1, "{state:?}");
        assert_eq!(state.holders[0].holder.metadata(), metadata, "{:?}", state.name);
    }
}

#[tokio::test]
async fn what_a_server_takes_no_connection_or_message_for_is_an_error_that_says_so() {
    let Some(servers) = ZooKeeperOptions::new().set("maxClientCnxns", "1").start().await else { return };
    let error = connect(&servers.url()).await.expect_err("it takes one connection, and we need two");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    assert!(error.to_string().contains("maxClientCnxns"), "{error}");

    let options = ZooKeeperOptions::new().property("jute.maxbuffer", "500");
    let Some(servers) = options.start().await else { return };
    let client = connect(&servers.url()).await.expect("a server");
    let mut large = request("orders", Ttl::DEFAULT.as_duration()).expect("lawful words");
    large.holder = large.holder.with_metadata(&"x".repeat(METADATA_MAX)).expect("as much as there may be");
    let error = within("an answer", client.acquire(large)).await.expect_err("it takes less");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
    assert!(error.to_string().contains("jute.maxbuffer"), "{error}");
    begins_a_session(&client, Ttl::DEFAULT.as_duration()).await;
}

#[tokio::test]
async fn a_line_longer_than_other_clients_can_read_is_read() {
    const COUNT: usize = 30_000;
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&format!("{}?keys=verbatim", servers.url())).await.expect("a server");
    // Their names alone are more than jute.maxbuffer is, unless it is set.
    let places = (0..COUNT).map(|number| format!("/orders/_c_{:016x}-lock-{number:010}", number + 1));
    servers.create_all(["/orders".to_owned()].into_iter().chain(places).collect()).await;
    let attempt = within("an answer", ask(&client, "orders", Ttl::DEFAULT.as_duration())).await;
    let Ok(Attempt::Busy(contention)) = attempt else { panic!("somebody holds it: {attempt:?}") };
    assert_eq!(contention.waiters, COUNT - 1);
}

#[tokio::test]
async fn what_others_leave_among_our_nodes_is_no_place_in_line_and_no_record() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&servers.url()).await.expect("a server");
    let folder = "/ringfence/locks/orders";
    let lease = match ask(&client, "orders", Ttl::DEFAULT.as_duration()).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("a free lock is granted: {other:?}"),
    };
    let strange =
        ["lock-", "_c_-lock-99999999999", "_c_x-lock-", "_c_x-lock-5", "_c_x-0-lease-0000000000", "leases"];
    let strange = strange.map(|name| format!("{folder}/{name}")).into_iter();
    let record = ["/ringfence/records", "/ringfence/records/orders", "/ringfence/records/orders/value"];
    servers.create_all(strange.chain(record.map(str::to_owned)).collect()).await;
    let key = RecordKey::of(lease.key.name.clone());
    for error in [
        client.records().read(&key).await.expect_err("that is no record"),
        client.records().open(&key, lease.token).await.expect_err("nor to be opened"),
        client.records().write(&key, lease.token, "x".into()).await.expect_err("nor to be replaced"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
    let state = client.inspect(&lease.key.name).await.expect("a state");
    assert_eq!((state.holders.len(), state.waiters.len()), (1, 0), "{state:?}");
    let released = client.release(std::slice::from_ref(&lease.key)).await.expect("an answer");
    assert_eq!(released, [Release::Released]);
    assert!(matches!(ask(&client, "orders", Ttl::DEFAULT.as_duration()).await, Ok(Attempt::Granted(_))));
}

#[tokio::test]
async fn a_server_of_another_kind_is_an_error() {
    use tokio::io::AsyncWriteExt;

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let impostor = tokio::spawn(async move {
        for reply in ["HTTP/1.1 400 Bad Request\r\n\r\n", "-ERR unknown command\r\n", "\0\0\0\x03abc"] {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_all(reply.as_bytes()).await.expect("a client that listens");
        }
    });
    for _ in 0..3 {
        let error =
            connect(&format!("zookeeper://127.0.0.1:{port}")).await.expect_err("that is no ZooKeeper");
        assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unavailable), "{error:?}");
    }
    impostor.await.expect("it does not panic");
}

#[tokio::test]
async fn servers_of_two_ensembles_in_one_url_are_said() {
    let three = ZooKeeperOptions::new().servers(3);
    let (Some(three), Some(alone)) = (three.start().await, Ensemble::start().await) else { return };
    let ensemble = async |url: &str| {
        let client = connect(url).await.expect("a server");
        let findings = client.examine().await.expect("an examination");
        findings.into_iter().find(|finding| finding.about == "ensemble").expect("it is looked at")
    };
    let leader = three.leader().await.expect("one leads");
    let (follower, stranger) = (three.ports()[(leader + 1) % 3], alone.ports()[0]);
    let mixed = format!("zookeeper://127.0.0.1:{follower},127.0.0.1:{stranger}");
    // One of them leads nobody, and nobody has locked anything.
    assert_eq!(ensemble(&mixed).await.severity, Severity::Fine);
    let client = connect(&three.url()).await.expect("a server");
    assert!(matches!(ask(&client, "orders", Ttl::DEFAULT.as_duration()).await, Ok(Attempt::Granted(_))));
    let finding = ensemble(&mixed).await;
    assert_eq!(finding.severity, Severity::Problem, "the lock is in one of them only: {finding:?}");
    assert!(finding.what.contains(&follower.to_string()) && finding.what.contains(&stranger.to_string()));
    assert_eq!(ensemble(&three.url()).await.severity, Severity::Fine, "they are of one");
    let finding = ensemble(&format!("{},127.0.0.1:{stranger}", three.url())).await;
    assert_eq!(finding.severity, Severity::Problem, "two of them lead: {finding:?}");
}
