//! What users, other users and other clients can get wrong.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Effect, ErrorKind, HolderInfo, ListQuery, LockName, Mode,
    RecordKey, Result, Severity, SystemClock, Ttl, Wait,
};
use ringfence_servers::{Ensemble, ZooKeeperOptions};
use ringfence_zookeeper::ZooKeeperBackend;

async fn connect(url: &str) -> Result<ZooKeeperBackend> {
    ZooKeeperBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

fn as_user(servers: &Ensemble, login: &str) -> String {
    servers.url().replace("//", &format!("//{login}@"))
}

async fn ask(client: &ZooKeeperBackend, name: &str, ttl: Duration) -> Result<Attempt> {
    let holder = HolderInfo::new("bad input", "here", 1).expect("lawful words");
    let name: LockName = name.parse().expect("a lawful name");
    client.acquire(AcquireRequest::new(name, Mode::Exclusive, Ttl::new(ttl)?, Wait::No, holder)).await
}

#[tokio::test]
async fn a_users_locks_are_nobody_elses() {
    let Some(servers) = Ensemble::start().await else { return };
    let ann = connect(&as_user(&servers, "ann:s3cret")).await.expect("any login is taken");
    let lease = match ask(&ann, "orders", Ttl::DEFAULT.as_duration()).await {
        Ok(Attempt::Granted(lease)) => lease,
        other => panic!("a free lock is ann's: {other:?}"),
    };
    ann.records().open(&RecordKey::of(lease.key.name.clone()), lease.token).await.expect("her record");
    for stranger in [servers.url(), as_user(&servers, "ann:guess")] {
        let stranger = connect(&stranger).await.expect("any login is taken");
        for name in ["orders", "another"] {
            let error = ask(&stranger, name, Ttl::DEFAULT.as_duration()).await.expect_err("it is not theirs");
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Refused, Effect::None), "{error:?}");
            assert!(!format!("{error:?}").contains("guess"), "{error:?}");
        }
        let error = stranger.inspect(&lease.key.name).await.expect_err("it is not theirs to see");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        let error = stranger.evict(&lease.key.name, lease.key.nonce).await.expect_err("nor to remove");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    }
    let findings = ann.examine().await.expect("an examination");
    let access = findings.iter().find(|finding| finding.about == "access").expect("it looks at the access");
    assert_eq!(access.severity, Severity::Fine, "{access:?}");
    assert!(!format!("{ann} {ann:?}").contains("s3cret"));
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
    let findings = client.examine().await.expect("an examination");
    let severity =
        |about| findings.iter().find(|finding| finding.about == about).map(|finding| finding.severity);
    assert_eq!(severity("access"), Some(Severity::Warning), "{findings:?}");
    assert_eq!(severity("role"), Some(Severity::Warning), "one server is alone: {findings:?}");
    assert_eq!(severity("version"), Some(Severity::Fine), "{findings:?}");
}

#[tokio::test]
async fn a_verbatim_name_that_is_no_path_is_refused_before_anything_is_sent() {
    let Some(servers) = Ensemble::start().await else { return };
    let client = connect(&format!("{}?keys=verbatim", servers.url())).await.expect("a server");
    for name in ["a//b", "a/", "..", "ringfence/locks/x", "zookeeper/quota"] {
        let error = ask(&client, name, Ttl::DEFAULT.as_duration()).await.expect_err("it is no path");
        assert_eq!((error.kind(), error.effect()), (ErrorKind::InvalidName, Effect::None), "{error:?}");
    }
    assert_eq!(servers.children("/").await, ["zookeeper"], "nothing was made");
}

#[tokio::test]
async fn locks_among_the_nodes_of_others_are_listed_page_by_page() {
    let Some(servers) = Ensemble::start().await else { return };
    // Somebody keeps a wide tree there and a deep one, more than one page looks into.
    let wide = (0..25_000).map(|number| format!("/wide/{number:05}"));
    let deep = (1..=100).map(|depth| "/d".repeat(depth));
    servers.create_all(["/wide".to_owned()].into_iter().chain(wide).chain(deep).collect()).await;
    let client = connect(&format!("{}?keys=verbatim", servers.url())).await.expect("a server");
    let names = ["a", &"/d".repeat(90)[1..], "wide/00007", "wide/12345", "wide/24999", "zoo"];
    for name in names {
        let attempt = ask(&client, name, Ttl::DEFAULT.as_duration()).await;
        assert!(matches!(attempt, Ok(Attempt::Granted(_))), "{name}: {attempt:?}");
    }
    for (prefix, expected) in [("", &names[..]), ("wide/", &names[2..5]), ("wide/2", &names[4..5])] {
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

#[tokio::test]
async fn a_dead_server_in_the_url_costs_nothing_and_no_server_is_an_error() {
    let Some(servers) = Ensemble::start().await else { return };
    // Nobody listens on the first port of all.
    let url = servers.url().replace("//", "//127.0.0.1:1,");
    for _ in 0..4 {
        let client = connect(&url).await.expect("one server serves");
        assert!(matches!(ask(&client, "orders", Ttl::DEFAULT.as_duration()).await, Ok(Attempt::Granted(_))));
    }
    let error = connect("zookeeper://127.0.0.1:1").await.expect_err("nobody is there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}");
}

#[tokio::test]
async fn a_server_of_another_kind_is_an_error() {
    use tokio::io::AsyncWriteExt;

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
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
