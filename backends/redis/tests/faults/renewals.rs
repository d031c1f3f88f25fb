//! Many leases, renewed together.

use std::time::Duration;

use ringfence_core::{AcquireRequest, Attempt, Backend, HolderInfo, Mode, Renewal, Ttl, Wait};
use tokio::task::JoinSet;

use crate::stage::{LONG, Stage, within};

/// A process that holds this many.
const LEASES: usize = 5000;

/// The most that one call renews, by the hall.
const BATCH: usize = 1024;

/// A command for each lease would be five thousand every ten seconds, for one process.
#[tokio::test]
async fn a_renewal_of_many_is_one_command_and_one_lost_lease_does_not_hurt_the_others() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.client().await;
    let holder = HolderInfo::new("test", "host", 1).expect("a holder");
    let mut keys = Vec::new();
    for number in 0..BATCH {
        let name = format!("job/{number}").parse().expect("a name");
        let ttl = Ttl::new(LONG).expect("a TTL");
        let request = AcquireRequest::new(name, Mode::Exclusive, ttl, Wait::No, holder.clone());
        let Ok(Attempt::Granted(lease)) = ann.acquire(request).await else { panic!("a free lock") };
        keys.push(lease.key);
    }
    stage.server.command(&["DEL", "ringfence:{job/17}"]).await;
    stage.server.command(&["CONFIG", "RESETSTAT"]).await;
    let answers = within("an answer", ann.renew(&keys)).await.expect("an answer");
    assert_eq!(stage.calls().await["evalsha"], 1);
    for (number, answer) in answers.iter().enumerate() {
        let expected = if number == 17 { Renewal::Lost } else { Renewal::Renewed };
        assert_eq!(*answer, expected, "job/{number}");
    }
}

/// The hall's keeper brings together what is due at nearly the same time; without that a process with many leases would be a
/// burden to everybody's server.
#[tokio::test]
async fn the_leases_of_a_process_are_renewed_in_batches_and_one_that_is_lost_is_lost_alone() {
    let Some(stage) = Stage::new().await else { return };
    let ann = stage.locks().await;
    let ttl = Duration::from_secs(6);
    let mut asked = JoinSet::new();
    for number in 0..LEASES {
        let request = ann.lock(format!("job/{number}").as_str()).ttl(ttl);
        asked.spawn(async move { request.acquire().await.expect("a free lock") });
    }
    let guards = within("all of them", asked.join_all()).await;
    let lost = guards.iter().find(|guard| guard.name().as_str() == "job/17").expect("one of them");
    stage.server.command(&["CONFIG", "RESETSTAT"]).await;
    stage.server.command(&["DEL", "ringfence:{job/17}"]).await;
    within("the loss", lost.lost()).await;
    // All others are renewed once at least, before any of them would have lapsed.
    within("renewals of all", async {
        while guards.iter().any(|guard| guard.name() != lost.name() && guard.remaining() < ttl / 2) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while stage.calls().await.get("pexpire").is_none_or(|calls| *calls < LEASES as u64 - 1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let calls = stage.calls().await;
    let rounds = calls["pexpire"].div_ceil(LEASES as u64);
    assert!(calls["evalsha"] <= 20 * rounds, "{calls:?}");
    let held = guards.iter().filter(|guard| guard.is_held()).count();
    assert_eq!(held, LEASES - 1, "one was lost, and nobody else");
}
