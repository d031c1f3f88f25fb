use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, Effect, Error, ErrorKind, HolderInfo, Lease, Mode,
    Release, Renewal, Retry, Ttl, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, RedisServer, Sentinels};
use ringfence_testkit::PATIENCE;

use crate::{connect, granted, name, over_proxies, release, renew, replicated, request, until_one_waits};

const KEY: &str = "ringfence:{orders/42}";

/// Servers whose replicas follow.
async fn started() -> Option<Sentinels> {
    let sentinels = Sentinels::start().await?;
    replicated(&sentinels).await;
    Some(sentinels)
}

fn is_unconfirmed(error: &Error) -> bool {
    let says = "replicas have confirmed the lease within 500ms";
    (error.kind(), error.retry()) == (ErrorKind::Unavailable, Retry::Later) && error.message().contains(says)
}

/// A lease that the replicas have: on a machine that is busy they may take longer than they are given.
async fn confirmed(client: &RedisBackend, wait: Wait) -> Lease {
    loop {
        match client.acquire(request(wait)).await {
            Err(error) if is_unconfirmed(&error) => {}
            settled => return granted(async { settled }).await,
        }
    }
}

async fn stop_replicas(sentinels: &Sentinels) -> &[RedisServer] {
    let (primary, replicas) = sentinels.servers().split_first().expect("three servers");
    assert_eq!(sentinels.primary().await.port(), primary.port());
    replicas.iter().for_each(RedisServer::stop);
    replicas
}

/// How often the server was asked to wait for its replicas.
async fn waits(server: &RedisServer) -> u64 {
    let stats = server.command(&["info", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_wait:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().expect("a number"))
}

#[tokio::test]
async fn every_grant_is_on_the_replicas_when_it_is_returned() {
    let Some(sentinels) = started().await else { return };
    let url = format!("{}?replicas=2", sentinels.url());
    let (ann, ben) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let holds = async |lease: &Lease| {
        for server in sentinels.servers() {
            let held = server.command(&["get", KEY]).await;
            let nonce = format!("{:016x}", lease.token.nonce().get());
            assert!(held.starts_with(&nonce), "{held:?} is not {nonce}");
        }
    };
    let mut held = confirmed(&ann, Wait::No).await;
    holds(&held).await;
    for (from, to) in [(&ann, &ben), (&ben, &ann), (&ann, &ben)] {
        let (next, ()) = tokio::join!(confirmed(to, Wait::Until(BootInstant::MAX)), async {
            until_one_waits(from).await;
            assert_eq!(release(from, &held).await, Release::Released);
        });
        holds(&next).await;
        let left: u64 = sentinels.servers()[0].command(&["pttl", KEY]).await.parse().expect("a TTL");
        assert!(left > 5_000, "a turn that is confirmed is a lease, and no offer: {left} ms");
        held = next;
    }
}

#[tokio::test]
async fn a_grant_that_too_few_replicas_have_fails_in_time_and_leaves_nothing() {
    let Some(sentinels) = started().await else { return };
    let url = format!("{}?replicas=2", sentinels.url());
    let (ann, plain) = (connect(&url).await.unwrap(), connect(&sentinels.url()).await.unwrap());
    let kept = confirmed(&ann, Wait::No).await;
    let replicas = stop_replicas(&sentinels).await;

    let error = renew(&ann, &kept).await.expect_err("what nobody else knows is not renewed");
    assert!(is_unconfirmed(&error) && error.effect() == Effect::Unknown, "{error:?}");
    // A release counts on nothing.
    assert_eq!(release(&ann, &kept).await, Release::Released);

    // One that finds the lock free, and one that it is handed to.
    for wait in [Wait::No, Wait::Until(BootInstant::MAX)] {
        let before = match wait {
            Wait::No => None,
            Wait::Until(_) => Some(granted(plain.acquire(request(Wait::No))).await),
        };
        let (attempt, ()) =
            tokio::join!(tokio::time::timeout(PATIENCE / 2, ann.acquire(request(wait))), async {
                if let Some(held) = before {
                    until_one_waits(&plain).await;
                    assert_eq!(release(&plain, &held).await, Release::Released);
                }
            });
        let error = attempt.expect("an answer in time").expect_err("no replica knows");
        assert!(is_unconfirmed(&error) && error.effect() == Effect::None, "{error:?}");
        assert_eq!(sentinels.servers()[0].command(&["exists", KEY]).await, "0", "it is withdrawn");
    }
    granted(plain.acquire(request(Wait::No))).await;
    plain.evict(&name(), plain.inspect(&name()).await.unwrap().holders[0].token.nonce()).await.unwrap();

    replicas.iter().for_each(RedisServer::resume);
    let again = confirmed(&ann, Wait::No).await;
    assert_eq!(renew(&ann, &again).await.unwrap(), Renewal::Renewed);
}

#[tokio::test]
async fn a_primary_that_is_cut_off_grants_and_renews_nothing() {
    let Some(sentinels) = started().await else { return };
    let (url, way) = over_proxies(&sentinels).await;
    let ann = connect(&format!("{url}?replicas=1")).await.unwrap();
    let held = confirmed(&ann, Wait::No).await;
    // She is on its side of the cut: nobody tells her of the next one.
    way.iter().for_each(Proxy::cut);
    sentinels.cut_off_primary().await;
    for _ in 0..2 {
        let error = renew(&ann, &held).await.expect_err("its replicas are gone");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.message().contains("0 of 1 replicas"), "{error}");
    }
    assert_eq!(release(&ann, &held).await, Release::Released);
    let error = ann.acquire(request(Wait::No)).await.expect_err("its replicas are gone");
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Unavailable, Effect::None), "{error}");
}

#[tokio::test]
async fn grants_that_are_asked_for_together_wait_together() {
    const GRANTS: u64 = 50;
    let Some(sentinels) = started().await else { return };
    let primary = &sentinels.servers()[0];
    primary.command(&["config", "resetstat"]).await;
    let plain = connect(&sentinels.url()).await.unwrap();
    let lease = granted(plain.acquire(request(Wait::No))).await;
    assert_eq!(release(&plain, &lease).await, Release::Released);
    assert_eq!(waits(primary).await, 0, "nobody has asked for it");

    let ann = connect(&format!("{}?replicas=2", sentinels.url())).await.unwrap();
    let lease = granted(ann.acquire(request(Wait::No))).await;
    assert_eq!(waits(primary).await, 1);
    assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
    assert_eq!(waits(primary).await, 2);
    assert_eq!(release(&ann, &lease).await, Release::Released);
    assert_eq!(waits(primary).await, 2, "a release counts on nothing");

    let all = (0..GRANTS).map(|index| {
        let name = format!("orders/{index}").parse().expect("a name");
        let holder = HolderInfo::new("test", "host", 1).expect("a holder");
        AcquireRequest::new(name, Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder)
    });
    let ann = std::sync::Arc::new(ann);
    let mut attempts = tokio::task::JoinSet::new();
    for request in all {
        let ann = std::sync::Arc::clone(&ann);
        attempts.spawn(async move { ann.acquire(request).await });
    }
    let attempts = tokio::time::timeout(Duration::from_secs(10), attempts.join_all()).await.expect("in time");
    assert!(attempts.iter().all(|attempt| matches!(attempt, Ok(Attempt::Granted(_)))), "{attempts:?}");
    let together = waits(primary).await - 2;
    assert!((1..GRANTS / 2).contains(&together), "{together} waits for {GRANTS} grants");
}
