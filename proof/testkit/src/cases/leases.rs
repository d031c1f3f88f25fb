use std::time::Duration;

use ringfence_core::{Eviction, Lease, Mode, Nonce, Release, Renewal};

use crate::cases::acquire::modes;
use crate::client::{LONG, SHORT, clients, fresh, permit};
use crate::harness::{Harness, Verdict};

/// A renewed lease outlives its first TTL.
pub async fn renewal_extends(harness: &dyn Harness) -> Verdict {
    // Long enough for a busy machine to renew in time, five times in each.
    const TTL: Duration = Duration::from_secs(3);
    let [ann, bob] = clients(harness).await;
    let name = fresh("renewal_extends");
    let lease = ann.hold(&name, Mode::Exclusive, TTL).await;
    let beat = lease.key.ttl.as_duration() / 5;
    let well_past_the_first_ttl = lease.deadline().saturating_add(beat);
    while ann.now() < well_past_the_first_ttl {
        tokio::time::sleep(beat).await;
        assert_eq!(ann.renew(&lease).await, Renewal::Renewed, "a lease that is renewed in time lives on");
    }
    bob.meets_busy(&name, Mode::Exclusive).await;
    ann.gives_back(&lease).await;
    Ok(())
}

/// A lease that lapsed, was released, was evicted or never was is `Lost`, for good: no renewal brings it back, not
/// even while the name is free.
pub async fn renewal_tells_of_loss(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let name = fresh("renewal_tells_of_loss");
    let check = async |why: &str, lease: &Lease| {
        for _ in 0..2 {
            assert_eq!(ann.renew(lease).await, Renewal::Lost, "a lease that {why} is lost");
        }
        let next = bob.hold(&name, Mode::Exclusive, LONG).await;
        assert_eq!(ann.renew(lease).await, Renewal::Lost, "a lease that {why} is lost under its successor");
        bob.gives_back(&next).await;
    };

    let lease = ann.hold(&name, Mode::Exclusive, SHORT).await;
    ann.sees_lapsed(&lease).await;
    check("lapsed", &lease).await;

    let lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    ann.gives_back(&lease).await;
    check("was released", &lease).await;

    let mut lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    assert_eq!(bob.evict(&name, lease.key.nonce).await, Eviction::Evicted, "a holder can be evicted");
    check("was evicted", &lease).await;

    lease.key.nonce = Nonce::random();
    check("never was", &lease).await;
    Ok(())
}

/// A batch answers for each lease, in order, and one lost lease in it does not hurt its neighbours.
pub async fn renewal_is_a_batch(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let names = ["a", "b", "c", "d"].map(|_| fresh("renewal_is_a_batch"));
    let leases = [
        ann.hold(&names[0], Mode::Exclusive, LONG).await,
        ann.hold(&names[1], Mode::Exclusive, LONG).await,
        ann.hold(&names[2], Mode::Shared, LONG).await,
        ann.hold(&names[3], if ann.has_permits() { permit(2) } else { Mode::Shared }, LONG).await,
    ];
    ann.gives_back(&leases[1]).await;
    let renewals = ann.renew_all(&leases.each_ref()).await;
    assert_eq!(
        renewals,
        [Renewal::Renewed, Renewal::Lost, Renewal::Renewed, Renewal::Renewed],
        "only the second one is lost"
    );
    bob.meets_busy(&names[0], Mode::Exclusive).await;
    assert_eq!(ann.renew_all(&[]).await, [], "an empty batch is nothing to do");
    for lease in [&leases[0], &leases[2], &leases[3]] {
        ann.gives_back(lease).await;
    }
    Ok(())
}

/// A released name can be acquired at once, and a batch of releases answers for each lease, in order.
pub async fn release_frees_the_name(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    for mode in modes(&ann) {
        let name = fresh("release_frees_the_name");
        let lease = ann.hold(&name, mode, LONG).await;
        ann.gives_back(&lease).await;
        let next = bob.hold(&name, Mode::Exclusive, LONG).await;
        bob.gives_back(&next).await;
    }

    let names = ["a", "b", "c"].map(|_| fresh("release_frees_the_name"));
    let mut leases = Vec::new();
    for name in &names {
        leases.push(ann.hold(name, Mode::Exclusive, LONG).await);
    }
    ann.gives_back(&leases[1]).await;
    let releases = ann.release_all(&leases.iter().collect::<Vec<_>>()).await;
    assert_eq!(
        releases,
        [Release::Released, Release::NotHeld, Release::Released],
        "only the second one was not held any more"
    );
    for name in &names {
        let next = bob.hold(name, Mode::Exclusive, LONG).await;
        bob.gives_back(&next).await;
    }
    assert_eq!(ann.release_all(&[]).await, [], "an empty batch is nothing to do");
    Ok(())
}

/// Releasing twice is harmless and says `NotHeld`; so does releasing what never was.
pub async fn release_is_idempotent(harness: &dyn Harness) -> Verdict {
    let [ann] = clients(harness).await;
    let name = fresh("release_is_idempotent");
    let mut lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    ann.gives_back(&lease).await;
    for _ in 0..2 {
        assert_eq!(ann.release(&lease).await, Release::NotHeld, "what was released is not held");
    }
    lease.key.nonce = Nonce::random();
    assert_eq!(ann.release(&lease).await, Release::NotHeld, "what never was is not held");
    Ok(())
}

/// Releasing a lapsed lease says `NotHeld` and does not free its successor.
pub async fn release_never_frees_a_successor(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    let name = fresh("release_never_frees_a_successor");
    let lapsed = ann.hold(&name, Mode::Exclusive, SHORT).await;
    let successor = bob.wait(&name, Mode::Exclusive).granted().await;
    assert_eq!(ann.release(&lapsed).await, Release::NotHeld, "a lease that lapsed is not held");
    cat.meets_busy(&name, Mode::Exclusive).await;
    assert_eq!(bob.renew(&successor).await, Renewal::Renewed, "the successor holds on");
    bob.gives_back(&successor).await;
    Ok(())
}

/// A downgraded lease is held together with readers, with the same token, and lets in those that wait.
pub async fn downgrade_lets_readers_in(harness: &dyn Harness) -> Verdict {
    let [ann, bob, cat] = clients(harness).await;
    let name = fresh("downgrade_lets_readers_in");
    let lease = ann.hold(&name, Mode::Exclusive, LONG).await;
    let waiting = bob.wait(&name, Mode::Shared);
    ann.sees_in_line(&name, 1).await;
    waiting.still_waits();

    assert_eq!(ann.downgrade(&lease).await, Renewal::Renewed, "a lease that is held can be downgraded");
    let reader = waiting.granted().await;
    let trying = cat.hold(&name, Mode::Shared, LONG).await;
    cat.meets_busy(&name, Mode::Exclusive).await;
    let state = cat.inspect(&name).await;
    let downgraded = state.holders.iter().find(|holder| holder.token == lease.token);
    assert!(
        state.holders.len() == 3 && downgraded.is_some_and(|holder| holder.mode == Mode::Shared),
        "the downgraded lease is shared, under its old token: {state:?}"
    );
    assert_eq!(ann.renew(&lease).await, Renewal::Renewed, "the downgraded lease lives on");

    bob.gives_back(&reader).await;
    cat.gives_back(&trying).await;
    cat.meets_busy(&name, Mode::Exclusive).await;
    ann.gives_back(&lease).await;
    let writer = cat.hold(&name, Mode::Exclusive, LONG).await;
    cat.gives_back(&writer).await;
    Ok(())
}

/// Downgrading a lease that is gone says `Lost`.
pub async fn downgrade_tells_of_loss(harness: &dyn Harness) -> Verdict {
    let [ann, bob] = clients(harness).await;
    let name = fresh("downgrade_tells_of_loss");
    let lapsed = ann.hold(&name, Mode::Exclusive, SHORT).await;
    ann.sees_lapsed(&lapsed).await;
    assert_eq!(ann.downgrade(&lapsed).await, Renewal::Lost, "a lease that lapsed cannot be downgraded");

    let released = ann.hold(&name, Mode::Exclusive, LONG).await;
    ann.gives_back(&released).await;
    let successor = bob.hold(&name, Mode::Exclusive, LONG).await;
    assert_eq!(
        ann.downgrade(&released).await,
        Renewal::Lost,
        "a lease that was released cannot be downgraded"
    );
    ann.meets_busy(&name, Mode::Shared).await;
    bob.gives_back(&successor).await;
    Ok(())
}
