//! The power goes: what the disk has is what was promised.

use ringfence_core::{Attempt, Backend, RecordKey, Renewal, Wait};
use ringfence_servers::{Disk, PostgresOptions};

use crate::stage::{AT_ONCE, LONG, client, exclusive, granted, name, now, release, renew};

/// Without a flush before the answer the lock would be there for two, and the second one would have the first one's number.
/// That holds whatever the database's default is, because a grant asks for it itself.
#[tokio::test]
async fn leases_and_numbers_outlive_a_power_cut_whatever_the_default_is() {
    for synchronous_commit in ["on", "off"] {
        let Some(disk) = Disk::new(512) else { return };
        disk.mount();
        // Unlike the writer of the log, nobody else takes what was confirmed to the disk in this time.
        let options = PostgresOptions::new()
            .data(disk.path().join("data"))
            .set("synchronous_commit", synchronous_commit)
            .set("wal_writer_delay", "10s")
            .set("checkpoint_timeout", "1d");
        let Some(mut server) = options.start().await else { return };
        let (ann, ben) = (client(&server.url()).await, client(&server.url()).await);
        for _ in 0..20 {
            let lease = granted(&ann, exclusive(Wait::No)).await;
            release(&ann, &lease).await.expect("an answer");
        }
        let held = granted(&ann, exclusive(Wait::No)).await;
        let key = RecordKey::of(name());
        ann.records().open(&key, held.token).await.expect("its own record");
        let granted_at = now();
        disk.cut_power();
        server.kill();
        disk.unmount();
        disk.mount();
        server.restart().await;

        let answer = loop {
            match ben.acquire(exclusive(Wait::No)).await {
                Err(error) if error.kind() == ringfence_core::ErrorKind::Unavailable => {}
                answer => break answer,
            }
        };
        assert!(now().saturating_since(granted_at) + AT_ONCE < LONG, "it lives still");
        assert!(matches!(answer, Ok(Attempt::Busy(_))), "{synchronous_commit}: it is held: {answer:?}");
        let renewed = loop {
            match renew(&ann, &held).await {
                Err(error) => assert_eq!(error.kind(), ringfence_core::ErrorKind::Unavailable, "{error:?}"),
                Ok(renewed) => break renewed,
            }
        };
        assert_eq!(renewed, Renewal::Renewed, "{synchronous_commit}");
        ann.records().write(&key, held.token, "first".into()).await.expect("it has opened it");
        release(&ann, &held).await.expect("an answer");
        let next = granted(&ben, exclusive(Wait::No)).await;
        assert!(next.token.sequence() > held.token.sequence(), "{held:?}, then {next:?}");
        server.kill();
        disk.unmount();
    }
}

/// A release need not wait for the disk. What a power cut takes of it is a lock that is held until its TTL, by nobody, and
/// a number that nobody gets again.
#[tokio::test]
async fn a_release_that_the_disk_had_not_is_a_lease_until_its_ttl() {
    let Some(disk) = Disk::new(512) else { return };
    disk.mount();
    let options = PostgresOptions::new()
        .data(disk.path().join("data"))
        .set("wal_writer_delay", "10s")
        .set("checkpoint_timeout", "1d");
    let Some(mut server) = options.start().await else { return };
    let ann = client(&server.url()).await;
    let ttl = std::time::Duration::from_secs(4);
    let lease = granted(&ann, crate::stage::request(ringfence_core::Mode::Exclusive, ttl, Wait::No)).await;
    let asked = now();
    release(&ann, &lease).await.expect("an answer");
    disk.cut_power();
    server.kill();
    disk.unmount();
    disk.mount();
    server.restart().await;
    let ben = client(&server.url()).await;
    let next = tokio::time::timeout(2 * ttl, ben.acquire(exclusive(crate::stage::FOR_EVER))).await;
    let Ok(Ok(Attempt::Granted(next))) = next else { panic!("it is free after its TTL: {next:?}") };
    let took = now().saturating_since(asked);
    assert!(took < ttl + std::time::Duration::from_secs(3), "it took {took:?}");
    assert!(next.token.sequence() > lease.token.sequence(), "{lease:?}, then {next:?}");
    server.kill();
    disk.unmount();
}
