//! What is wrong with a URL, a name, a login or a cluster is said, with what to do about it, and without secrets.

mod common;
#[path = "common/full.rs"]
mod full;

use std::sync::Arc;
use std::time::Duration;

use common::{LONG, client, connect, hold, name, of_each_version, release, renew, request};
use full::{fill, revision};
use ringfence::{Locks, Stakes};
use ringfence_core::{
    Attempt, Backend, BootInstant, Clock, Effect, ErrorKind, Eviction, FencingToken, Finding, HolderInfo,
    ListQuery, METADATA_MAX, Mode, Nonce, RecordKey, Release, Renewal, Severity, SystemClock, Wait,
};
use ringfence_etcd::EtcdBackend;
use ringfence_servers::{EtcdCluster, EtcdOptions, Proxy};
use ringfence_testkit::PATIENCE;
use tokio::task::JoinSet;

const SECRET: &str = "hunter2-secret";

#[tokio::test]
async fn a_ttl_below_the_clusters_minimum_is_an_error_that_names_it() {
    // By default an election takes a second, and a lease lives for two at least.
    let slow = EtcdOptions::new().set("heartbeat-interval", "100").set("election-timeout", "1000");
    let Some(cluster) = slow.start().await else { return };
    let locks = Locks::connect(&cluster.url()).await.unwrap();
    let error = locks.lock("orders").ttl(Duration::from_secs(1)).try_acquire().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTtl, "{error:?}");
    assert!(error.to_string().contains("2s"), "{error}");
    let guard = locks.lock("orders").ttl(Duration::from_secs(2)).try_acquire().await.unwrap();
    guard.expect("it is free").release().await.unwrap();
    assert_eq!(cluster.leases().await, 1, "what was granted to learn the minimum is given back");
}

#[tokio::test]
async fn correctness_may_be_asked_for() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let locks = Locks::connect(&cluster.url()).await.unwrap();
    let guard = locks.lock("orders").stakes(Stakes::Correctness).try_acquire().await.unwrap();
    guard.expect("it is free").release().await.unwrap();
}

#[tokio::test]
async fn every_name_is_kept_apart_and_metadata_comes_back_whole() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&cluster.url()).await;
    let longest = "ü".repeat(127);
    let metadata = "\0\n:\"!/\u{202e}".repeat(100);
    let metadata = &metadata[..metadata.floor_char_boundary(METADATA_MAX)];
    for lock in ["a", "a/b", "a/", "/", "//", ".", "..", "a!", "a!6", "\"", "{a}", "*", "a b", " ", &longest]
    {
        let mut request = request(lock, Mode::Exclusive, LONG, Wait::No);
        request.holder = HolderInfo::new("a:b", "host", 7).unwrap().with_metadata(metadata).unwrap();
        let attempt = ann.acquire(request).await.unwrap();
        assert!(matches!(attempt, Attempt::Granted(_)), "{lock:?} is nobody else's: {attempt:?}");
        let state = ann.inspect(&name(lock)).await.unwrap();
        assert_eq!(state.holders.len(), 1, "{lock:?}: {state:?}");
        assert_eq!(state.holders[0].holder.metadata(), metadata, "{lock:?}");
        assert_eq!(state.holders[0].age, None, "etcd keeps no times");
    }
}

#[tokio::test]
async fn a_verbatim_name_among_our_own_keys_is_refused() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&format!("{}/apps/locks?keys=verbatim", cluster.url())).await;
    for name in ["apps/locks/record/a!b", "apps/locks", "apps"] {
        let error = ann.acquire(request(name, Mode::Exclusive, LONG, Wait::No)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{name}: {error:?}");
    }
    hold(&ann, "orders", LONG).await;
}

/// From now on the cluster asks who we are: root, and somebody who may use our prefix and nothing else.
async fn guard(cluster: &mut EtcdCluster) {
    for words in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "locks"],
        &["role", "grant-permission", "locks", "--prefix=true", "readwrite", "ringfence/"],
        &["user", "add", &format!("ann:{SECRET}")],
        &["user", "grant-role", "ann", "locks"],
    ] {
        // The role of root may be there already.
        let _ = cluster.ask(words).await;
    }
    cluster.etcdctl(&["auth", "enable"]).await;
    cluster.log_in("root:root");
}

/// A password costs a tenth of a second by default, and seconds on a busy machine.
fn with_cheap_passwords() -> EtcdOptions {
    EtcdOptions::new().set("bcrypt-cost", "4")
}

fn url_of(cluster: &EtcdCluster, login: &str, rest: &str) -> String {
    cluster.url().replace("etcd://", &format!("etcd://{login}")) + rest
}

#[tokio::test]
async fn a_role_on_our_prefix_is_enough_and_every_other_one_is_refused() {
    for mut cluster in of_each_version(with_cheap_passwords()).await {
        guard(&mut cluster).await;
        let ann = client(&url_of(&cluster, &format!("ann:{SECRET}@"), "")).await;
        let lease = hold(&ann, "orders", LONG).await;
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
        let key = RecordKey::of(name("orders"));
        ann.records().open(&key, lease.token).await.unwrap();
        assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released);
        assert_eq!(rights(&ann).await.severity, Severity::Fine);

        for (login, rest, hint) in [
            ("", "", "user:password@"),
            ("ann:wrong@", "", "refuses our user or password"),
            ("nobody:wrong@", "", "refuses our user or password"),
            (&*format!("ann:{SECRET}@"), "/elsewhere", "docs/etcd.md"),
        ] {
            let url = url_of(&cluster, login, rest);
            let error = match connect(&url).await {
                Err(error) => error,
                Ok(client) => {
                    let rights = rights(&client).await;
                    assert_eq!(rights.severity, Severity::Problem, "{login}{rest}: {rights:?}");
                    client.acquire(request("orders", Mode::Exclusive, LONG, Wait::No)).await.unwrap_err()
                }
            };
            assert_eq!(error.kind(), ErrorKind::Refused, "{login}{rest}: {error:?}");
            assert!(error.to_string().contains(hint), "{login}{rest}: {error}");
            assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
        }
        assert!(
            !format!("{ann} {ann:?} {:?}", ann.acquire(request("x", Mode::Exclusive, LONG, Wait::No)).await)
                .contains(SECRET)
        );
    }
}

/// What is found of our rights.
async fn rights(client: &EtcdBackend) -> Finding {
    let findings = client.examine().await.unwrap();
    findings.into_iter().find(|finding| finding.about == "rights").expect("they are looked at")
}

/// Grants our user all rights to what begins so, or revokes them.
async fn change_rights(cluster: &EtcdCluster, verb: &str, prefix: &str) {
    let mut words = vec!["role", verb, "locks", "--prefix=true"];
    words.extend((verb == "grant-permission").then_some("readwrite"));
    words.push(prefix);
    cluster.etcdctl(&words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_we_may_not_withdraw_for_a_while_is_withdrawn_afterwards() {
    let Some(mut cluster) = with_cheap_passwords().start().await else { return };
    guard(&mut cluster).await;
    for name in ["kept/", "left/"] {
        change_rights(&cluster, "grant-permission", name).await;
    }
    let proxy = Proxy::start(cluster.port(0)).await;
    let url = format!("etcd://ann:{SECRET}@127.0.0.1:{}?keys=verbatim", proxy.port());
    let ann = Arc::new(client(&url).await);
    // They share a lease of the server, which outlives the test.
    let kept = hold(&ann, "kept", LONG).await;
    let left = || cluster.ask(&["get", "--prefix", "--keys-only", "left/"]);
    proxy.hold_replies();
    let attempt = tokio::spawn({
        let ann = Arc::clone(&ann);
        async move { ann.acquire(request("left", Mode::Exclusive, LONG, Wait::No)).await }
    });
    common::within("it is granted", async { while left().await.unwrap().is_empty() {} }).await;
    change_rights(&cluster, "revoke-permission", "left/").await;
    proxy.cut_connections();
    proxy.mend();
    let error = common::within("nobody waits for the end of that", attempt).await.unwrap().unwrap_err();
    assert_eq!(error.effect(), Effect::Unknown, "{error:?}");
    assert!(!left().await.unwrap().is_empty(), "we may not delete it");
    change_rights(&cluster, "grant-permission", "left/").await;
    common::within("it is withdrawn", async { while !left().await.unwrap().is_empty() {} }).await;
    assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed);
}

#[tokio::test]
async fn what_we_may_not_delete_for_a_while_is_deleted_afterwards() {
    const TTL: Duration = Duration::from_secs(3);
    let Some(mut cluster) = with_cheap_passwords().start().await else { return };
    guard(&mut cluster).await;
    let rights_to = async |verb: &str, name: &str| change_rights(&cluster, verb, name).await;
    for name in ["kept/", "left/"] {
        rights_to("grant-permission", name).await;
    }
    let ann = client(&url_of(&cluster, &format!("ann:{SECRET}@"), "?keys=verbatim")).await;
    // They share a lease of the server.
    let (left, kept) = (hold(&ann, "left", TTL).await, hold(&ann, "kept", TTL).await);
    rights_to("revoke-permission", "left/").await;
    let clock = SystemClock::new();
    let mut is_refused = true;
    common::within("the key of what nobody renews is gone", async {
        while is_refused || !cluster.etcdctl(&["get", "--prefix", "--keys-only", "left/"]).await.is_empty() {
            assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed);
            tokio::time::sleep(TTL / 6).await;
            // By then its deletion was refused.
            if is_refused && clock.now() > left.deadline().saturating_add(TTL / 2) {
                rights_to("grant-permission", "left/").await;
                is_refused = false;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_login_that_the_cluster_has_forgotten_is_made_again() {
    for mut cluster in of_each_version(with_cheap_passwords()).await {
        guard(&mut cluster).await;
        let ann = client(&url_of(&cluster, &format!("ann:{SECRET}@"), "")).await;
        let lease = hold(&ann, "orders", LONG).await;
        // It forgets everybody who had logged in, as it does after five minutes, and leaves the connections alone.
        cluster.etcdctl(&["auth", "disable"]).await;
        cluster.etcdctl(&["auth", "enable"]).await;
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
        assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released);
    }
}

/// Authentication is turned off and on while fleets run; etcd's own client goes on without a token meanwhile, and so do we. With an error
/// in place of that every lease would be lost when the connection next breaks.
#[tokio::test]
async fn a_login_that_nobody_asks_for_is_made_when_somebody_does() {
    for mut cluster in of_each_version(with_cheap_passwords()).await {
        let proxy = Proxy::start(cluster.port(0)).await;
        let ann = client(&format!("etcd://ann:{SECRET}@127.0.0.1:{}", proxy.port())).await;
        let lease = hold(&ann, "orders", LONG).await;
        let is_warned = async || {
            let findings = ann.examine().await.unwrap();
            findings.iter().any(|one| one.about == "login" && one.severity == Severity::Warning)
        };
        assert!(is_warned().await, "a password that nobody asks for is said");

        guard(&mut cluster).await;
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
        assert!(!is_warned().await);

        cluster.etcdctl(&["auth", "disable"]).await;
        // What was on its way may be lost. The next call makes a connection, and finds nobody who asks.
        proxy.cut_connections();
        let renewed = async {
            loop {
                match renew(&ann, &lease).await {
                    Ok(renewal) => return renewal,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
                }
            }
        };
        let renewal = tokio::time::timeout(PATIENCE, renewed).await.expect("an answer");
        assert_eq!(renewal, Renewal::Renewed);
        assert!(is_warned().await);

        cluster.etcdctl(&["auth", "enable"]).await;
        assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released);
        let error = connect(&url_of(&cluster, "ann:wrong@", "")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
        assert!(!format!("{ann:?} {error:?}").contains(SECRET), "{ann:?} {error:?}");
    }
}

#[tokio::test]
async fn a_full_database_refuses_locks_and_takes_them_back() {
    let small = EtcdOptions::new().set("quota-backend-bytes", "2097152");
    for cluster in of_each_version(small).await {
        let ann = client(&cluster.url()).await;
        let lease = hold(&ann, "orders", LONG).await;
        fill(&cluster).await;
        let error = ann.acquire(request("another", Mode::Exclusive, LONG, Wait::No)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
        assert!(error.to_string().contains("defrag"), "{error}");
        let findings = ann.examine().await.unwrap();
        let alarm = findings.iter().find(|finding| finding.about == "alarms").unwrap();
        assert_eq!(alarm.severity, Severity::Problem, "{alarm:?}");
        assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed, "holders hold on");
        assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released, "what is held can be given back");
    }
}

/// Does what the error of a full database says.
async fn make_room(cluster: &EtcdCluster) {
    cluster.etcdctl(&["del", "--prefix", "large/"]).await;
    let revision = revision(cluster).await.to_string();
    cluster.etcdctl(&["compact", &revision]).await;
    cluster.etcdctl(&["defrag"]).await;
    cluster.etcdctl(&["alarm", "disarm"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_when_the_database_is_full_may_look_and_who_has_its_turn_is_told_so_after_its_ttl() {
    const TTL: Duration = Duration::from_secs(3);
    let small = EtcdOptions::new().set("quota-backend-bytes", "2097152");
    for cluster in of_each_version(small).await {
        let (ann, bob) = (client(&cluster.url()).await, Arc::new(client(&cluster.url()).await));
        let lease = hold(&ann, "orders", LONG).await;
        let waits = tokio::spawn(async move {
            bob.acquire(request("orders", Mode::Exclusive, TTL, Wait::Until(BootInstant::MAX))).await
        });
        let waiters = async || ann.inspect(&name("orders")).await.unwrap().waiters.len();
        common::within("one waits", async { while waiters().await == 0 {} }).await;
        fill(&cluster).await;

        let eve = client(&cluster.url()).await;
        let state = eve.inspect(&name("orders")).await.unwrap();
        assert_eq!((state.holders.len(), state.waiters.len()), (1, 1), "{state:?}");
        assert_eq!(eve.list(ListQuery::default()).await.unwrap().items, [state]);
        assert!(eve.records().read(&RecordKey::of(name("orders"))).await.unwrap().is_none());
        let findings = eve.examine().await.unwrap();
        assert!(findings.iter().any(|one| one.about == "alarms" && one.severity == Severity::Problem));
        let error = eve.acquire(request("another", Mode::Exclusive, LONG, Wait::No)).await.unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Full, Effect::None), "{error:?}");

        assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released);
        // It keeps its place for a while: room may be made.
        let error = common::within("an error", waits).await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Full, Effect::None), "{error:?}");
        assert_eq!(ann.inspect(&name("orders")).await.unwrap().holders.len(), 0, "nothing is left of it");

        make_room(&cluster).await;
        hold(&eve, "orders", LONG).await;
    }
}

#[tokio::test]
async fn who_does_not_answer_or_is_no_etcd_is_an_error_in_time() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let proxy = Proxy::start(cluster.port(0)).await;
    proxy.accept_and_be_silent();
    for url in [
        format!("etcd://127.0.0.1:{}", proxy.port()),
        "etcd://127.0.0.1:1".to_owned(),
        "etcd://[::1]:1".to_owned(),
    ] {
        let error = common::within("an error", connect(&url)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{url}: {error:?}");
    }
    let error =
        common::within("an error", connect(&cluster.url().replace("etcd:", "etcds:"))).await.unwrap_err();
    assert!(error.to_string().contains("TLS") || error.to_string().contains("etcd:"), "{error:?}");
}

#[tokio::test]
async fn a_foreign_value_in_a_records_place_is_corrupt_and_stays() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&cluster.url()).await;
    let lease = hold(&ann, "orders", LONG).await;
    cluster.etcdctl(&["put", "ringfence/record/orders!value", "garbage"]).await;
    let key = RecordKey::of(name("orders"));
    for error in [
        ann.records().read(&key).await.unwrap_err(),
        ann.records().open(&key, lease.token).await.unwrap_err(),
        ann.records().write(&key, lease.token, "x".into()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
    assert_eq!(
        cluster.etcdctl(&["get", "--print-value-only", "ringfence/record/orders!value"]).await,
        "garbage"
    );
}

/// As after a snapshot was restored, when revisions begin again where they were then.
#[tokio::test]
async fn a_record_whose_mark_is_another_holders_of_the_same_number_is_a_collision() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&cluster.url()).await;
    let lease = hold(&ann, "orders", LONG).await;
    let other = Nonce::from_u64(lease.token.nonce().get() ^ 1 << 63).expect("another nonce");
    let mark = FencingToken::new(lease.token.sequence(), other).expect("a token");
    let kept = format!("ringfence1 {mark}\n");
    cluster.etcdctl(&["put", "ringfence/record/orders!value", &kept]).await;
    let key = RecordKey::of(name("orders"));
    let error = ann.records().open(&key, lease.token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TokenCollision, "{error:?}");
    assert_eq!(
        cluster.etcdctl(&["get", "--print-value-only", "ringfence/record/orders!value"]).await,
        kept.trim()
    );
}

#[tokio::test]
async fn a_key_that_was_put_into_a_line_by_hand_is_seen_and_can_be_evicted() {
    let Some(cluster) = EtcdCluster::start(1).await else { return };
    let ann = client(&cluster.url()).await;
    // It lives by no lease, so that it stays until somebody removes it.
    cluster.etcdctl(&["put", "ringfence/lock/orders!by-hand", "anything"]).await;
    let attempt = ann.acquire(request("orders", Mode::Exclusive, LONG, Wait::No)).await.unwrap();
    assert!(matches!(&attempt, Attempt::Busy(busy) if busy.holders.len() == 1), "{attempt:?}");
    let state = ann.inspect(&name("orders")).await.unwrap();
    let [holder] = &state.holders[..] else { panic!("who shows a lock shows who has it: {state:?}") };
    assert!(
        holder.remaining > Some(Duration::from_hours(24 * 365 * 10)),
        "it has no end of its own: {holder:?}"
    );
    let evicted = ann.evict(&name("orders"), holder.token.nonce()).await.unwrap();
    assert_eq!(evicted, Eviction::Evicted);
    hold(&ann, "orders", LONG).await;
}

#[tokio::test]
async fn a_member_that_takes_few_operations_at_once_costs_nobody_a_lease() {
    const COUNT: usize = 40;
    for cluster in of_each_version(EtcdOptions::new().set("max-txn-ops", "16")).await {
        let ann = Arc::new(client(&cluster.url()).await);
        let mut taking = JoinSet::new();
        for number in 0..COUNT {
            let ann = Arc::clone(&ann);
            taking.spawn(async move { hold(&ann, &format!("lock-{number}"), LONG).await.key });
        }
        let keys = taking.join_all().await;
        let renewed = ann.renew(&keys).await.unwrap();
        assert!(renewed.iter().all(|renewal| *renewal == Renewal::Renewed), "{renewed:?}");
        cluster.etcdctl(&["del", "--prefix", "ringfence/lock/lock-7!"]).await;
        let lost = ann.renew(&keys).await.unwrap().into_iter().filter(|renewal| *renewal == Renewal::Lost);
        assert_eq!(lost.count(), 1, "each has the answer to its own look");
        let released = ann.release(&keys).await.unwrap();
        assert_eq!(released.iter().filter(|release| **release == Release::Released).count(), COUNT - 1);
    }
}

#[tokio::test]
async fn tls_trusts_whom_it_is_told_to_and_shows_who_we_are() {
    let Some(cluster) = EtcdOptions::new().tls().start().await else { return };
    let [authority, certificate, key] =
        cluster.certificates().expect("it speaks TLS").map(|file| file.display());
    let url = |rest: String| format!("{}?{rest}", cluster.url());
    let ann = client(&url(format!("ca={authority}&cert={certificate}&key={key}"))).await;
    let lease = hold(&ann, "orders", LONG).await;
    assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
    assert_eq!(release(&ann, &lease).await.unwrap(), Release::Released);

    for (rest, kinds, hint) in [
        (format!("cert={certificate}&key={key}"), &[ErrorKind::Refused][..], "?ca=/path.pem"),
        // That it wants to know who we are, it says by hanging up.
        (format!("ca={authority}"), &[ErrorKind::Refused, ErrorKind::Unavailable], "cert="),
    ] {
        let error = common::within("an error", connect(&url(rest.clone()))).await.unwrap_err();
        assert!(kinds.contains(&error.kind()), "{rest}: {error:?}");
        assert!(error.to_string().contains(hint), "{rest}: {error}");
    }
    let other = url(format!("ca={authority}&cert={certificate}&key={key}")).replace("127.0.0.1", "localhost");
    let error = common::within("an error", connect(&other)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error:?}");
    assert!(error.to_string().contains("another host"), "{error}");
    // A member whose certificate is wrong is passed over like one that is dead.
    let both =
        other.replace(&format!(":{}", cluster.port(0)), &format!(":{0},127.0.0.1:{0}", cluster.port(0)));
    let bob = client(&both).await;
    let lease = hold(&bob, "orders", LONG).await;
    assert_eq!(release(&bob, &lease).await.unwrap(), Release::Released);
}

#[tokio::test]
async fn members_of_two_clusters_in_one_url_are_not_taken_for_one() {
    for mut one in of_each_version(EtcdOptions::new()).await {
        let Some(other) = EtcdCluster::start(1).await else { return };
        let ann = client(&format!("{},127.0.0.1:{}", one.url(), other.port(0))).await;
        let findings = ann.examine().await.unwrap();
        let finding = findings.iter().find(|finding| finding.about == "cluster").expect("it is said");
        assert_eq!(finding.severity, Severity::Problem, "{finding:?}");
        assert!(finding.what.contains(&other.port(0).to_string()), "{finding:?}");

        let lease = hold(&ann, "orders", LONG).await;
        one.kill(0);
        // The other one knows of no lease, and would grant it again, with a lower token.
        for _ in 0..3 {
            let attempt = ann.acquire(request("orders", Mode::Exclusive, LONG / 30, Wait::No)).await;
            let error = attempt.expect_err("it is held in the cluster that we know");
            assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error:?}");
        }
        one.start_again(0);
        one.is_healthy(0).await;
        let renewed = async {
            loop {
                if let Ok(renewal) = renew(&ann, &lease).await {
                    return renewal;
                }
            }
        };
        assert_eq!(common::within("the first one is back", renewed).await, Renewal::Renewed);
        let findings = client(&one.url()).await.examine().await.unwrap();
        assert!(findings.iter().all(|finding| finding.about != "cluster"), "it is one: {findings:?}");
    }
}
