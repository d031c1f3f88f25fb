//! The wall clock of a server is set forward and back. Version 3.4 looks at it before it ends a lease.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Attempt, Backend, Mode, Renewal, Wait};
use ringfence_servers::{EtcdOptions, Taker, WallClock, taker};
use ringfence_testkit::OtherProcess;

use crate::common::{client, granted, hold, renew, request, within};
use crate::line::FOR_EVER;
use crate::now;

const TTL: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_forward_ends_no_lease_and_one_that_is_set_back_keeps_those_of_the_dead() {
    let Some(clock) = WallClock::new() else { return };
    let Some(cluster) = EtcdOptions::new().clock(&clock).start().await else { return };
    // Built now, because nobody renews meanwhile.
    taker();
    let ann = Arc::new(client(&cluster.url()).await);
    let kept = hold(&ann, "kept", TTL).await;
    // Renews in time whatever the clock does, for so long.
    let renews = async |many: Duration| {
        let begun = now();
        while now() < begun.saturating_add(many) {
            assert_eq!(renew(&ann, &kept).await.unwrap(), Renewal::Renewed, "its holder lives");
            tokio::time::sleep(TTL / 5).await;
        }
    };

    clock.step(3600);
    renews(TTL).await;
    let next = granted(&ann, request("free", Mode::Exclusive, TTL, Wait::No)).await;
    assert!(next.token.sequence() > kept.token.sequence(), "a clock has no part in tokens");

    clock.step(0);
    let url = cluster.url();
    let mut dead = Taker::start(&url, "of the dead", &["--ttl", "2s"]);
    let token = dead.held().await;
    clock.step(-3600);
    dead.kill();
    renews(4 * TTL).await;
    let attempt = ann.acquire(request("of the dead", Mode::Exclusive, TTL, Wait::No)).await.unwrap();
    assert!(
        matches!(attempt, Attempt::Busy(_)),
        "does this version no longer look at the wall clock? {attempt:?}"
    );
    // By the clock's own time it would be an hour.
    clock.step(0);
    let lease = within("it is free when the clock has caught up", async {
        granted(&ann, request("of the dead", Mode::Exclusive, TTL, FOR_EVER)).await
    })
    .await;
    assert!(lease.token.sequence() > token.sequence(), "tokens rise: {token}, {lease:?}");
}
