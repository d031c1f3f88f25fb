//! What an examination says about real servers, and that the rights it asks for are those that are needed.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, Clock, Error, ErrorKind, Eviction, Finding, HolderInfo,
    Lease, LeaseKey, ListQuery, LockName, Mode, RecordKey, Release, Renewal, Result, Severity, SystemClock,
    Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{RedisOptions, RedisServer, Sentinels, WallClock, valkey};
use ringfence_testkit::PATIENCE;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;

async fn connect(url: &str) -> Result<RedisBackend> {
    RedisBackend::connect(&BackendUrl::parse(url)?, Arc::new(SystemClock::new())).await
}

/// A server may lack what we need although our user may do everything.
#[tokio::test]
async fn a_command_that_the_server_lacks_is_named() {
    for command in ["DEL", "PUBLISH", "ZRANGEBYSCORE"] {
        let without = RedisOptions::new().set("rename-command", &[command, ""]);
        let Some(server) = without.start().await else { return };
        let says = format!("the server has no {}", command.to_lowercase());
        assert_finding(&examined(&server).await, "access", Severity::Problem, &says);
    }
}

async fn examined(server: &RedisServer) -> Vec<Finding> {
    connect(&server.url()).await.unwrap().examine().await.unwrap()
}

#[track_caller]
fn finding<'a>(findings: &'a [Finding], about: &str) -> &'a Finding {
    findings.iter().find(|finding| finding.about == about).unwrap_or_else(|| panic!("{about}: {findings:?}"))
}

#[track_caller]
fn assert_finding(findings: &[Finding], about: &str, severity: Severity, says: &str) {
    let finding = finding(findings, about);
    assert!(finding.severity == severity && finding.what.contains(says), "{severity}, {says:?}: {finding:?}");
}

#[tokio::test]
async fn a_server_that_keeps_what_it_confirms_is_fine() {
    let Some(server) = RedisOptions::new().durable().start().await else { return };
    let findings = examined(&server).await;
    assert!(findings.iter().all(|finding| finding.severity == Severity::Fine), "{findings:?}");
    for (about, says) in [
        ("version", "Redis "),
        ("role", "primary"),
        ("eviction", "noeviction"),
        ("persistence", "appendfsync always"),
        ("replicas", "none"),
        ("access", "user \"default\" may do all"),
        ("clock", "went as ours did"),
    ] {
        assert_finding(&findings, about, Severity::Fine, says);
    }
    assert_eq!(server.command(&["dbsize"]).await, "0", "an examination leaves nothing behind");
}

#[tokio::test]
async fn valkey_is_told_apart() {
    let Some(valkey) = valkey() else { return };
    let Some(server) = RedisOptions::new().program(valkey).durable().start().await else { return };
    let findings = examined(&server).await;
    assert_finding(&findings, "version", Severity::Fine, "Valkey ");
    assert!(findings.iter().all(|finding| finding.severity == Severity::Fine), "{findings:?}");
}

#[tokio::test]
async fn a_server_that_forgets_to_make_room_is_a_problem() {
    for (policy, max, severity, says) in [
        ("allkeys-lru", "100mb", Severity::Problem, "records with their marks"),
        ("volatile-ttl", "100mb", Severity::Problem, "keys with a TTL, as every lock has"),
        ("allkeys-random", "0", Severity::Fine, "without a maxmemory"),
        ("noeviction", "1gb", Severity::Fine, "nothing is forgotten"),
        ("noeviction", "1mb", Severity::Warning, "% of maxmemory is in use"),
    ] {
        let options = RedisOptions::new().set("maxmemory", &[max]).set("maxmemory-policy", &[policy]);
        let Some(server) = options.start().await else { return };
        assert_finding(&examined(&server).await, "eviction", severity, says);
    }
}

#[tokio::test]
async fn what_a_restart_forgets_is_said() {
    for (settings, severity, says) in [
        (&[("save", "")][..], Severity::Warning, "nothing is written to disk"),
        (&[("save", "3600 1")], Severity::Warning, "snapshots only (save 3600 1)"),
        (&[("appendonly", "yes"), ("appendfsync", "no")], Severity::Warning, "half a minute"),
        (&[("appendonly", "yes"), ("appendfsync", "everysec")], Severity::Fine, "the last second or two"),
    ] {
        let mut options = RedisOptions::new();
        for (name, value) in settings {
            options = options.set(name, &[value]);
        }
        let Some(server) = options.start().await else { return };
        assert_finding(&examined(&server).await, "persistence", severity, says);
    }
}

#[tokio::test]
async fn replicas_that_are_missed_are_a_problem() {
    let Some(primary) = RedisServer::start().await else { return };
    assert_finding(&examined(&primary).await, "replicas", Severity::Fine, "none");
    let of = ["127.0.0.1", &primary.port().to_string()];
    let Some(replica) = RedisOptions::new().set("replicaof", &of).start().await else { return };
    eventually(async || replica.info("master_link_status").await.as_deref() == Some("up")).await;
    assert_finding(
        &examined(&primary).await,
        "replicas",
        Severity::Warning,
        "1, and min-replicas-to-write is 0",
    );

    for (wanted, severity, says) in
        [("1", Severity::Fine, "of which 1 must be in step"), ("2", Severity::Problem, "it takes no changes")]
    {
        primary.command(&["config", "set", "min-replicas-to-write", wanted]).await;
        eventually(async || primary.info("min_slaves_good_slaves").await.as_deref() == Some("1")).await;
        assert_finding(&examined(&primary).await, "replicas", severity, says);
    }
}

#[tokio::test]
async fn replicas_that_have_to_confirm_and_are_not_there_are_a_problem() {
    let Some(server) = RedisServer::start().await else { return };
    let mut rule = rule(&examined(&server).await);
    rule.extend(["+info", "+config|get"].map(str::to_owned));
    let findings = connect_as(&server, &rule, "?replicas=1").await.unwrap().examine().await.unwrap();
    assert_finding(&findings, "replicas", Severity::Problem, "1 have to confirm a lease, and 0 follow");
    assert_finding(&findings, "access", Severity::Problem, "may not wait 0 0");
    rule.push("+wait".to_owned());
    let findings = connect_as(&server, &rule, "?replicas=1").await.unwrap().examine().await.unwrap();
    assert_finding(&findings, "access", Severity::Fine, "may do all that is needed");
}

#[tokio::test]
async fn a_primary_that_became_a_replica_is_a_problem() {
    let (Some(other), Some(server)) = (RedisServer::start().await, RedisServer::start().await) else {
        return;
    };
    let backend = connect(&server.url()).await.unwrap();
    assert_finding(&backend.examine().await.unwrap(), "role", Severity::Fine, "primary");
    server.command(&["replicaof", "127.0.0.1", &other.port().to_string()]).await;
    let findings = backend.examine().await.unwrap();
    let says = format!("a replica of 127.0.0.1:{}", other.port());
    assert_finding(&findings, "role", Severity::Problem, &says);
    assert!(findings.iter().all(|finding| finding.about != "replicas"), "{findings:?}");
}

async fn eventually(is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it should have come about by now");
}

#[tokio::test]
async fn a_node_of_a_cluster_is_a_problem() {
    let Some(server) = RedisOptions::new().set("cluster-enabled", &["yes"]).start().await else { return };
    assert_finding(&examined(&server).await, "cluster", Severity::Problem, "one node of a cluster");
}

#[tokio::test]
async fn a_clock_that_is_set_is_seen_from_one_examination_to_the_next() {
    let Some(clock) = WallClock::new() else { return };
    let Some(server) = RedisOptions::new().clock(&clock).start().await else { return };
    let backend = connect(&server.url()).await.unwrap();
    assert_finding(&backend.examine().await.unwrap(), "clock", Severity::Fine, "went as ours did");
    clock.step(30);
    assert_finding(&backend.examine().await.unwrap(), "clock", Severity::Problem, "set forward by 30 s");
    assert_finding(&backend.examine().await.unwrap(), "clock", Severity::Fine, "went as ours did");
    clock.step(-30);
    assert_finding(&backend.examine().await.unwrap(), "clock", Severity::Problem, "set back by 60 s");
}

#[tokio::test]
async fn a_clock_that_was_never_set_is_a_problem() {
    const FIFTY_YEARS: i64 = 50 * 365 * 24 * 3600;
    let Some(clock) = WallClock::new() else { return };
    clock.step(-FIFTY_YEARS);
    let Some(server) = RedisOptions::new().durable().clock(&clock).start().await else { return };
    assert_finding(&examined(&server).await, "clock", Severity::Problem, "says that it is 19");
    let log = logged_after_connecting(&server.url(), 1).await;
    assert!(log.contains("WARN") && log.contains("about=\"clock\""), "{log}");
}

/// The rule that an examination prints, word by word.
fn rule(findings: &[Finding]) -> Vec<String> {
    let advice = finding(findings, "access").advice.as_deref().unwrap();
    let rule =
        advice.split_once("ACL SETUSER NAME reset on >PASSWORD ").unwrap().1.split_once(';').unwrap().0;
    rule.split(' ').map(str::to_owned).collect()
}

/// Makes a user of these rules, and connects as that one.
async fn connect_as(server: &RedisServer, rules: &[String], options: &str) -> Result<RedisBackend> {
    let mut command = vec!["acl", "setuser", "ann", "reset", "on", ">secret"];
    command.extend(rules.iter().map(String::as_str));
    server.command(&command).await;
    server.command(&["script", "flush"]).await;
    connect(&format!("redis://ann:secret@127.0.0.1:{}/1{options}", server.port())).await
}

fn request(name: &str, mode: Mode, wait: Wait) -> AcquireRequest {
    let holder = HolderInfo::new("test", "host", std::process::id()).unwrap();
    AcquireRequest::new(LockName::new(name).unwrap(), mode, Ttl::DEFAULT, wait, holder)
}

fn within(time: Duration) -> Wait {
    Wait::Until(SystemClock::new().now().saturating_add(time))
}

fn in_a_minute() -> Wait {
    within(Duration::from_mins(1))
}

async fn granted(backend: &RedisBackend, request: AcquireRequest) -> Result<Lease> {
    match backend.acquire(request).await? {
        Attempt::Granted(lease) => Ok(lease),
        Attempt::Busy(contention) => panic!("it is busy: {contention:?}"),
    }
}

/// Everything that one can do, each thing as soon as possible.
async fn do_everything(backend: &RedisBackend) -> Result<()> {
    for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(2)?] {
        let name = format!("orders/{mode}");
        let lease = granted(backend, request(&name, mode, Wait::No)).await?;
        let key = [lease.key.clone()];
        assert_eq!(backend.renew(&key).await?, [Renewal::Renewed]);
        let record = RecordKey::of(key[0].name.clone());
        let open = backend.records().open(&record, lease.token).await?;
        assert_eq!(open.record, None);
        backend.records().write(&record, lease.token, "value".into()).await?;
        assert_eq!(backend.records().read(&record).await?.unwrap().value, "value");
        // In line, and granted by the release.
        let asks = granted(backend, request(&name, Mode::Exclusive, in_a_minute()));
        let releases = async {
            while backend.inspect(&key[0].name).await?.waiters.is_empty() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(backend.release(&key).await?, [Release::Released]);
            Ok(())
        };
        let (next, ()) = tokio::try_join!(asks, releases)?;
        // What is offered is renewed.
        assert_eq!(backend.renew(std::slice::from_ref(&next.key)).await?, [Renewal::Renewed]);
        assert_eq!(backend.downgrade(&next.key).await?, Renewal::Renewed);
        let reader = granted(backend, request(&name, Mode::Shared, Wait::No)).await?;
        assert_eq!(backend.list(ListQuery::new("orders/")).await?.items[0].holders.len(), 2);
        assert_eq!(backend.evict(&next.key.name, next.key.nonce).await?, Eviction::Evicted);
        assert_eq!(backend.release(std::slice::from_ref(&reader.key)).await?, [Release::Released]);
        let alone = granted(backend, request(&name, Mode::Exclusive, Wait::No)).await?;
        assert_eq!(backend.evict(&alone.key.name, alone.key.nonce).await?, Eviction::Evicted);
        give_up(backend, &alone.key).await?;
    }
    Ok(())
}

/// A wait that ends, and a lease that is not there.
async fn give_up(backend: &RedisBackend, gone: &LeaseKey) -> Result<()> {
    let lease = granted(backend, request("other", Mode::Exclusive, Wait::No)).await?;
    let waited = backend.acquire(request("other", Mode::Exclusive, within(Duration::from_millis(1)))).await?;
    assert!(matches!(waited, Attempt::Busy(_)), "{waited:?}");
    let asks = backend.acquire(request("other", Mode::Exclusive, in_a_minute()));
    let dropped = tokio::time::timeout(Duration::from_millis(100), asks).await;
    assert!(dropped.is_err(), "{dropped:?}");
    // It is withdrawn in the background, where a refusal is only logged.
    let mut looks = 0;
    while !backend.inspect(&lease.key.name).await?.waiters.is_empty() {
        looks += 1;
        if looks == 300 {
            return Err(Error::new(ErrorKind::WaitElapsed, "who gave up is still in line"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(backend.renew(std::slice::from_ref(gone)).await?, [Renewal::Lost]);
    assert_eq!(backend.release(&[gone.clone(), lease.key]).await?, [Release::NotHeld, Release::Released]);
    Ok(())
}

#[tokio::test]
async fn the_rule_that_is_printed_is_enough() {
    let plain = RedisOptions::new();
    for options in valkey().map(|program| plain.clone().program(program)).into_iter().chain([plain.clone()]) {
        let Some(server) = options.start().await else { return };
        let mut rule = rule(&examined(&server).await);
        let backend = connect_as(&server, &rule, "").await.unwrap();
        server.command(&["acl", "log", "reset"]).await;
        do_everything(&backend).await.unwrap();
        assert_eq!(server.command(&["acl", "log"]).await, "", "nothing that it tried was refused");
        assert_finding(
            &backend.examine().await.unwrap(),
            "access",
            Severity::Fine,
            "may do all that is needed",
        );

        // What only saves time may be missing: that is said, and all else goes on.
        for helpful in ["delifeq", "delex"] {
            let Some(place) = rule.iter().position(|word| *word == format!("+{helpful}")) else { continue };
            rule.remove(place);
            server.command(&["flushall"]).await;
            let backend = connect_as(&server, &rule, "").await.unwrap();
            do_everything(&backend).await.unwrap();
            let findings = backend.examine().await.unwrap();
            let said = format!("may do all that is needed, and not {helpful} ringfence:{{doctor}}:t, which");
            assert_finding(&findings, "access", Severity::Fine, &said);
            let advice = finding(&findings, "access").advice.as_deref().unwrap();
            assert!(advice.contains(&format!("+{helpful}")), "{advice}");
        }

        server.command(&["flushall"]).await;
        rule.retain(|word| word != "+zadd");
        let without_zadd = do_everything(&connect_as(&server, &rule, "").await.unwrap()).await.unwrap_err();
        rule.retain(|word| word != "+select");
        let without_select = connect_as(&server, &rule, "").await.unwrap_err();
        for error in [without_zadd, without_select] {
            assert!(
                error.kind() == ErrorKind::Refused && error.to_string().contains("ringfence doctor"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn the_rule_that_is_printed_is_enough_for_names_as_they_stand() {
    let Some(server) = RedisServer::start().await else { return };
    let url = format!("{}?keys=verbatim", server.url());
    let mut rule = rule(&connect(&url).await.unwrap().examine().await.unwrap());
    for word in &mut rule {
        if word == "~YOUR_LOCK_NAMES" {
            "~o*".clone_into(word);
        }
    }
    let backend = connect_as(&server, &rule, "?keys=verbatim").await.unwrap();
    do_everything(&backend).await.unwrap();
    assert_finding(&backend.examine().await.unwrap(), "access", Severity::Fine, "may do all that is needed");
    let refused = backend.acquire(request("not ours", Mode::Exclusive, Wait::No)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
}

#[tokio::test]
async fn without_any_one_word_of_the_rule_something_is_refused() {
    let Some(server) = RedisServer::start().await else { return };
    let rule = rule(&examined(&server).await);
    for word in &rule {
        let rest: Vec<_> = rule.iter().filter(|other| *other != word).cloned().collect();
        server.command(&["flushall"]).await;
        let done = async { do_everything(&connect_as(&server, &rest, "").await?).await };
        let done =
            tokio::time::timeout(PATIENCE, done).await.unwrap_or_else(|_| panic!("without {word} it hangs"));
        // A new user has no channels that could be taken away, a damaged lock is only described less well, and a lock is
        // released by the script.
        assert_eq!(
            done.is_ok(),
            ["resetchannels", "+type", "+delex"].contains(&word.as_str()),
            "{word}: {done:?}"
        );
        if let Err(error) = done {
            assert_eq!(error.kind(), ErrorKind::Refused, "{word}: {error}");
        }
    }
}

#[tokio::test]
async fn what_is_missing_is_named_and_what_may_not_be_looked_at_is_said() {
    let Some(server) = RedisServer::start().await else { return };
    let mut rule = rule(&examined(&server).await);
    rule.retain(|word| word != "+zscore" && word != "+publish");
    let backend = connect_as(&server, &rule, "").await.unwrap();
    let findings = backend.examine().await.unwrap();
    assert_finding(&findings, "access", Severity::Problem, "zscore ringfence:{doctor}:t");
    assert_finding(&findings, "access", Severity::Problem, "publish ringfence:doctor");
    assert_finding(&findings, "server", Severity::Warning, "not allowed to look");
    assert!(findings.iter().all(|finding| finding.about != "version"), "{findings:?}");

    server.command(&["acl", "setuser", "ann", "+info"]).await;
    let findings = backend.examine().await.unwrap();
    assert_finding(&findings, "settings", Severity::Warning, "not allowed to look");
    assert_finding(&findings, "version", Severity::Fine, "Redis");

    server.command(&["acl", "setuser", "ann", "-script|load"]).await;
    assert_finding(
        &backend.examine().await.unwrap(),
        "access",
        Severity::Problem,
        "may not load and call scripts",
    );
}

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// What is logged by this thread, as long as the guard is there.
    fn begin(level: LevelFilter) -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn read(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// Connects, and waits for so many lines of the log.
async fn logged_after_connecting(url: &str, lines: usize) -> String {
    let (log, _guard) = Log::begin(LevelFilter::INFO);
    let _backend = connect(url).await.unwrap();
    eventually(async || log.read().lines().count() >= lines).await;
    log.read()
}

#[tokio::test]
async fn what_is_wrong_is_logged_after_connecting() {
    let options = RedisOptions::new().set("maxmemory", &["100mb"]).set("maxmemory-policy", &["allkeys-lru"]);
    let Some(server) = options.set("save", &[""]).password("secret").start().await else { return };
    let log = logged_after_connecting(&server.url(), 2).await;
    assert_eq!(log.lines().count(), 2, "what is fine is not logged: {log}");
    for part in [
        ["WARN", "about=\"eviction\"", "maxmemory-policy is allkeys-lru", "noeviction"],
        ["INFO", "about=\"persistence\"", "a restart forgets", "appendonly"],
    ] {
        let is_said = |line: &str| part.iter().all(|part| line.contains(part));
        assert!(log.lines().any(is_said), "{part:?}: {log}");
    }
    assert!(!log.contains("secret"), "{log}");
}

/// A right that is missing there is missed only in a failover, when it is too late.
#[tokio::test]
async fn sentinels_that_would_not_tell_of_a_failover_are_named_and_warned_of_once() {
    let Some(sentinels) = Sentinels::start().await else { return };
    let url = format!("{}?sentinel_user=ann&sentinel_password=secret", sentinels.url());
    let allow = async |rule: &str| {
        let words: Vec<_> =
            ["acl", "setuser", "ann", "reset", "on", ">secret"].into_iter().chain(rule.split(' ')).collect();
        sentinels.tell_sentinels(&words).await;
    };
    allow("&* +@all -subscribe").await;
    let (log, _guard) = Log::begin(LevelFilter::DEBUG);
    let ann = connect(&url).await.unwrap();
    let is_about = |line: &&str| line.contains("a Sentinel");
    eventually(async || log.read().lines().filter(is_about).count() > 3).await;
    let read = log.read();
    let warnings: Vec<_> =
        read.lines().filter(|line| line.contains("WARN") && line.contains("a Sentinel")).collect();
    let [warning] = warnings[..] else { panic!("once for all of them: {read}") };
    assert!(warning.contains("+subscribe") && warning.contains("&+switch-master"), "{warning}");
    let of_sentinels = |findings: Vec<Finding>| -> Vec<Finding> {
        findings.into_iter().filter(|finding| finding.about == "sentinel").collect()
    };
    let findings = of_sentinels(ann.examine().await.unwrap());
    let advice = findings[0].advice.clone().unwrap();
    assert_eq!(findings.len(), sentinels.sentinel_ports().len());
    for (finding, port) in findings.iter().zip(sentinels.sentinel_ports()) {
        assert_eq!(finding.severity, Severity::Warning, "{finding:?}");
        let says = format!("127.0.0.1:{port}: a Sentinel does not tell us of a failover");
        assert!(finding.what.starts_with(&says), "{finding:?}");
    }

    // The rule that is printed is enough, and no word of it too much.
    let rule = advice.split_once("reset on >PASSWORD ").unwrap().1;
    allow(rule).await;
    let findings = of_sentinels(connect(&url).await.unwrap().examine().await.unwrap());
    for finding in &findings {
        assert_eq!(finding.severity, Severity::Fine, "{finding:?}");
        assert!(finding.what.contains("would tell us of another one"), "{finding:?}");
    }
    for word in rule.split(' ').skip(1) {
        let rest: Vec<_> = rule.split(' ').filter(|other| *other != word).collect();
        allow(&rest.join(" ")).await;
        match connect(&url).await {
            Ok(ann) => assert_eq!(
                of_sentinels(ann.examine().await.unwrap())[0].severity,
                Severity::Warning,
                "{word}"
            ),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Refused, "{word}: {error}"),
        }
    }
}
