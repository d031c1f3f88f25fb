use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ringfence::Locks;
use ringfence_core::{
    Attempt, Backend, BootInstant, Clock, Effect, Error, ErrorKind, Lease, RecordKey, Release, Renewal,
    Retry, SystemClock, Wait,
};
use ringfence_redis::RedisBackend;
use ringfence_servers::{Proxy, Sentinels};

use crate::{
    FAILOVER_PATIENCE, connect, granted, name, over_proxies, refusal, release, renew, replicated, request,
    until_one_waits,
};

/// A lease, once the failover is over: an attempt may fail meanwhile, without effect, and may be made again.
async fn hold(client: &RedisBackend) -> Lease {
    let granted = async {
        loop {
            match client.acquire(request(Wait::No)).await {
                Ok(Attempt::Granted(lease)) => break lease,
                Ok(Attempt::Busy(contention)) => panic!("nobody else is there: {contention:?}"),
                Err(error) => assert_may_pass(&error),
            }
        }
    };
    tokio::time::timeout(FAILOVER_PATIENCE, granted).await.expect("a failover in time")
}

fn assert_may_pass(error: &Error) {
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Unavailable, Retry::Later), "{error}");
}

/// What a renewal says, once the failover is over.
async fn renewed(client: &RedisBackend, lease: &Lease) -> Renewal {
    let renewed = async {
        loop {
            match renew(client, lease).await {
                Ok(renewal) => break renewal,
                Err(error) => assert_may_pass(&error),
            }
        }
    };
    tokio::time::timeout(FAILOVER_PATIENCE, renewed).await.expect("a failover in time")
}

#[tokio::test]
async fn a_failover_is_followed_by_holders_waiters_and_newcomers() {
    let Some(mut sentinels) = Sentinels::start().await else { return };
    let url = sentinels.url();
    let (ann, ben) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let first = granted(ann.acquire(request(Wait::No))).await;
    let (second, third) = tokio::join!(
        async {
            let second = granted(ben.acquire(request(Wait::Until(BootInstant::MAX)))).await;
            assert_eq!(release(&ben, &second).await, Release::Released);
            second
        },
        async {
            until_one_waits(&ann).await;
            replicated(&sentinels).await;
            let old = sentinels.kill_primary().await;
            // What was replicated is held, and the line goes on, on the new primary.
            assert_eq!(renewed(&ann, &first).await, Renewal::Renewed);
            sentinels.wait_for_failover(old).await;
            let primary = sentinels.primary().await;
            let hears = async {
                // Both processes have a channel: one that has not yet would be passed over.
                while primary.command(&["pubsub", "channels", "ringfence:*"]).await.lines().count() < 2 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(FAILOVER_PATIENCE, hears).await.expect("the waiter finds the new primary");
            assert_eq!(release(&ann, &first).await, Release::Released);
            let cid = connect(&url).await.unwrap();
            granted(cid.acquire(request(Wait::Until(BootInstant::MAX)))).await
        }
    );
    let sequences = [&first, &second, &third].map(|lease| lease.token.sequence());
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequences_rise_through_a_failover_while_they_are_granted() {
    let Some(mut sentinels) = Sentinels::start().await else { return };
    let ann = connect(&sentinels.url()).await.unwrap();
    let granted = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let grants = async {
        let (mut last, mut afterwards) = (0, 0);
        while afterwards < 20 {
            let lease = hold(&ann).await;
            assert!(lease.token.sequence() > last, "{last} {lease:?}");
            last = lease.token.sequence();
            granted.fetch_add(1, Ordering::Relaxed);
            afterwards += u64::from(is_over.load(Ordering::Relaxed));
            while let Err(error) = ann.release(std::slice::from_ref(&lease.key)).await {
                assert_may_pass(&error);
            }
        }
    };
    let failover = async {
        while granted.load(Ordering::Relaxed) < 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let old = sentinels.kill_primary().await;
        sentinels.wait_for_failover(old).await;
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(grants, failover);
}

#[tokio::test]
async fn a_lease_that_was_not_replicated_is_lost_and_its_holder_is_told() {
    let Some(mut sentinels) = Sentinels::start().await else { return };
    let ann = connect(&sentinels.url()).await.unwrap();
    let old = sentinels.cut_off_primary().await;
    let lease = granted(ann.acquire(request(Wait::No))).await;
    assert_eq!(renew(&ann, &lease).await.unwrap(), Renewal::Renewed);
    let server = sentinels.servers_mut().iter_mut().find(|server| server.port() == old);
    server.expect("the primary").kill();
    assert_eq!(renewed(&ann, &lease).await, Renewal::Lost);
    assert!(hold(&ann).await.token.sequence() > lease.token.sequence());
}

#[tokio::test]
async fn a_primary_that_is_demoted_is_left() {
    let Some(sentinels) = Sentinels::start().await else { return };
    let ann = connect(&sentinels.url()).await.unwrap();
    let lease = granted(ann.acquire(request(Wait::No))).await;
    replicated(&sentinels).await;
    // It is made a replica without a word to its clients: only its answers tell.
    let new = &sentinels.servers()[1];
    new.command(&["replicaof", "no", "one"]).await;
    let old = &sentinels.servers()[0];
    old.command(&["replicaof", "127.0.0.1", &new.port().to_string()]).await;
    let error = renew(&ann, &lease).await.expect_err("a replica takes no change");
    assert_may_pass(&error);
    assert!(error.message().contains("it is a replica"), "{error}");
    // Nor is it taken for a primary while the Sentinels still name it.
    match renew(&ann, &lease).await {
        Err(error) => assert!(error.message().contains("name as the primary: it is a replica"), "{error}"),
        Ok(renewal) => {
            assert_eq!(renewal, Renewal::Renewed, "by the new primary, to which the Sentinels led");
        }
    }
}

#[tokio::test]
async fn a_primary_that_was_replaced_is_left_though_it_calls_itself_one() {
    let Some(sentinels) = Sentinels::start().await else { return };
    let (ann, ben) = (connect(&sentinels.url()).await.unwrap(), connect(&sentinels.url()).await.unwrap());
    let held = granted(ann.acquire(request(Wait::No))).await;
    let waiting = ben.acquire(request(Wait::Until(BootInstant::MAX)));
    let cut_off = async {
        until_one_waits(&ann).await;
        replicated(&sentinels).await;
        let old = sentinels.cut_off_primary().await;
        sentinels.wait_for_failover(old).await;
        // Nobody reaches it who could demote it. On the next one the lock is given back, and Ben has his turn there.
        let cid = connect(&sentinels.url()).await.unwrap();
        assert_eq!(release(&cid, &held).await, Release::Released);
        let learns = async {
            while !matches!(renew(&ann, &held).await, Ok(Renewal::Lost)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(FAILOVER_PATIENCE, learns).await.expect("the Sentinels tell of the next one");
        cid
    };
    let (next, cid) = tokio::join!(granted(waiting), cut_off);
    assert!(next.token.sequence() > held.token.sequence());
    assert_eq!(release(&cid, &next).await, Release::Released, "it was granted by the next one");
}

#[tokio::test]
async fn two_hold_while_a_primary_is_cut_off_and_records_there_and_elsewhere_refuse_every_stale_write() {
    let Some(sentinels) = Sentinels::start().await else { return };
    let (url, way) = over_proxies(&sentinels).await;
    let (ann, key) = (connect(&url).await.unwrap(), RecordKey::of(name()));
    // The local store of one machine, where both of them write as well.
    let folder = tempfile::tempdir().expect("a folder");
    let store =
        Locks::connect(&format!("local:{}?fence=mark", folder.path().display())).await.expect("a store");
    let elsewhere = store.records();
    let first = granted(ann.acquire(request(Wait::No))).await;
    elsewhere.open(&key, first.token).await.expect("an open record");
    elsewhere.write(&key, first.token, Bytes::from_static(b"first")).await.expect("a write");
    ann.records().open(&key, first.token).await.expect("an open record");
    ann.records().write(&key, first.token, Bytes::from_static(b"first")).await.expect("a write");
    replicated(&sentinels).await;
    let old = sentinels.cut_off_primary().await;
    way.iter().for_each(Proxy::cut);
    // Ann is on its side of the cut, and goes on: the connection stands, the server calls itself a primary, and grants.
    assert_eq!(release(&ann, &first).await, Release::Released);
    let mut last = first.token.sequence();
    let mut stale = granted(ann.acquire(request(Wait::No))).await;
    sentinels.wait_for_failover(old).await;
    for _ in 0..20 {
        assert_eq!(release(&ann, &stale).await, Release::Released);
        stale = granted(ann.acquire(request(Wait::No))).await;
        assert!(stale.token.sequence() > last, "{last} {stale:?}");
        last = stale.token.sequence();
    }
    // Ben is led to the next one, where the first lease may still stand, because its release was not replicated.
    let ben = connect(&sentinels.url()).await.unwrap();
    ben.release(std::slice::from_ref(&first.key)).await.expect("an answer");
    let second = granted(ben.acquire(request(Wait::No))).await;
    assert_eq!(renew(&ann, &stale).await.unwrap(), Renewal::Renewed);
    assert_eq!(renew(&ben, &second).await.unwrap(), Renewal::Renewed);
    let now = SystemClock::new().now();
    assert!(stale.deadline() > now && second.deadline() > now, "this is the overlap: both hold");
    assert!(second.token.sequence() > last, "servers with one clock: the later grant has the higher number");
    let mut accepted = 0;
    for records in [ben.records(), elsewhere] {
        records.open(&key, second.token).await.expect("an open record");
        records.write(&key, second.token, Bytes::from_static(b"second")).await.expect("a write");
        for token in [first.token, stale.token] {
            let late = records.write(&key, token, Bytes::from_static(b"stale")).await;
            let open = records.open(&key, token).await;
            accepted += usize::from(late.is_ok()) + usize::from(open.is_ok());
        }
    }
    assert_eq!(accepted, 0, "stale writes accepted");
    // Once the old one is reached again it is demoted, and Ann is led to the next one as well.
    sentinels.mend(old).await;
    way.iter().for_each(Proxy::mend);
    let learns = tokio::time::timeout(FAILOVER_PATIENCE, async {
        while !matches!(renew(&ann, &stale).await, Ok(Renewal::Lost)) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    learns.await.expect("the holder of the old primary learns of its loss");
    for records in [ann.records(), elsewhere] {
        let record = records.read(&key).await.expect("an answer").expect("a record");
        assert_eq!(&record.value[..], b"second");
    }
}

#[tokio::test]
async fn a_wrong_way_says_which_sentinel_and_what_next() {
    let Some(sentinels) = Sentinels::start().await else { return };
    let server = sentinels.servers()[0].port();
    for (url, kind, hint) in [
        (
            sentinels.url().replace("/ringfence", "/ringfense"),
            ErrorKind::InvalidUrl,
            "did you mean \"ringfence\"?",
        ),
        (sentinels.url().replace("/ringfence", "/x"), ErrorKind::InvalidUrl, "It knows: ringfence"),
        (
            format!("redis+sentinel://127.0.0.1:{server}/ringfence"),
            ErrorKind::InvalidUrl,
            "name the Sentinels",
        ),
        (
            format!("redis://127.0.0.1:{}", sentinels.sentinel_ports()[0]),
            ErrorKind::InvalidUrl,
            "a Sentinel is reached by redis+sentinel://",
        ),
    ] {
        let error = refusal(&url).await;
        assert_eq!(
            (error.kind(), error.retry(), error.effect()),
            (kind, Retry::Never, Effect::None),
            "{error}"
        );
        assert!(error.message().contains(hint) && error.message().contains("127.0.0.1"), "{url}: {error}");
    }
    let replica = refusal(&sentinels.servers()[1].url()).await;
    assert!(replica.message().contains("it is a replica"), "{replica}");
}

#[tokio::test]
async fn one_sentinel_is_enough_and_none_is_said() {
    let Some(sentinels) = Sentinels::start().await else { return };
    let alive = sentinels.sentinel_ports()[0];
    // Two that refuse, as one does that is down.
    let mixed = format!("redis+sentinel://127.0.0.1:1,127.0.0.1:2,127.0.0.1:{alive}/ringfence");
    let ann = connect(&mixed).await.unwrap();
    granted(ann.acquire(request(Wait::No))).await;
    let error = refusal("redis+sentinel://127.0.0.1:1,127.0.0.1:2/ringfence").await;
    assert_may_pass(&error);
    assert!(error.message().contains("none of its 2 Sentinels can be asked"), "{error}");
    assert!(error.message().contains("the Sentinel 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn the_newest_configuration_is_believed() {
    let Some(stale) = Sentinels::start().await else { return };
    let Some(mut sentinels) = Sentinels::start().await else { return };
    let old = sentinels.kill_primary().await;
    let new = sentinels.wait_for_failover(old).await;
    // The other one knows of no failover, and answers as fast.
    for ports in [
        [stale.sentinel_ports()[0], sentinels.sentinel_ports()[0]],
        [sentinels.sentinel_ports()[0], stale.sentinel_ports()[0]],
    ] {
        let url = format!("redis+sentinel://127.0.0.1:{},127.0.0.1:{}/ringfence", ports[0], ports[1]);
        let ann = connect(&url).await.unwrap();
        let lease = granted(ann.acquire(request(Wait::No))).await;
        assert_eq!(new.command(&["exists", "ringfence:{orders/42}"]).await, "1");
        assert_eq!(release(&ann, &lease).await, Release::Released);
    }
}

#[tokio::test]
async fn sentinels_and_servers_have_passwords_of_their_own() {
    let Some(mut sentinels) = Sentinels::start_with_passwords("one", "two").await else { return };
    let with = |login: &str, params: &str| {
        format!("{}{params}", sentinels.url().replace("://", &format!("://{login}")))
    };
    let right = with(":one@", "?sentinel_password=two");
    for (url, hint) in [
        (with("", ""), "sentinel_password="),
        (with(":one@", "?sentinel_password=one"), "sentinel_password="),
        (with(":two@", "?sentinel_password=two"), "name as the primary: it refuses our user or password"),
        (with("", "?sentinel_password=two"), "name as the primary: it refuses our user or password"),
    ] {
        let error = refusal(&url).await;
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Refused, Retry::Never), "{error}");
        assert!(error.message().contains(hint), "{url}: {error}");
        assert!(
            !format!("{error:?}").contains("=one") && !format!("{error:?}").contains("=two"),
            "{error:?}"
        );
    }
    let ann = connect(&right).await.unwrap();
    let first = granted(ann.acquire(request(Wait::No))).await;
    assert_eq!(release(&ann, &first).await, Release::Released);
    replicated(&sentinels).await;
    sentinels.kill_primary().await;
    assert!(hold(&ann).await.token.sequence() > first.token.sequence());
    let shown = format!("{ann} {ann:?}");
    assert!(!shown.contains("one") && !shown.contains("two"), "{shown}");
}
