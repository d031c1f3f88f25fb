//! Leader election does as its documentation says.

use std::time::Duration;

use ringfence::patterns::{Election, Leader, Leadership, Observation};
use ringfence::{ErrorKind, FencingToken, Locks, Result};
use ringfence_testkit::{Harness, NotApplicable, Verdict};
use tokio::task::JoinHandle;

use crate::stage::{fresh, hall, locks, ttl, within};

/// A TTL that a case waits for.
const SHORT: Duration = Duration::from_millis(500);

async fn campaign(election: &Election, value: &str) -> Leadership {
    within("a campaign that nobody is in the way of", election.campaign(value)).await.expect("it leads")
}

fn campaign_later(election: &Election, value: &'static str) -> JoinHandle<Result<Leadership>> {
    let election = election.clone();
    tokio::spawn(async move { election.campaign(value).await })
}

async fn leads(campaign: JoinHandle<Result<Leadership>>) -> Leadership {
    within("the campaign succeeds", campaign).await.expect("no panic").expect("it leads")
}

/// Waits until so many wait in line.
async fn until_waiting(locks: &Locks, name: &str, wanted: usize) {
    within("somebody waits in line", async {
        while locks.inspect(format!("leader/{name}")).await.expect("an inspection").waiters.len() < wanted {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn next(observation: &mut Observation) -> Option<Leader> {
    within("a change is observed", observation.next()).await.expect("a look")
}

/// The next leader that is observed. Before it nobody may lead for a moment, which may be seen or not.
async fn next_leader(observation: &mut Observation) -> Option<Leader> {
    match next(observation).await {
        None => next(observation).await,
        leader => leader,
    }
}

/// Looks until a leader is seen, and sees no other before. What is seen of who holds may be a moment old: then it is nobody.
async fn until_seen(election: &Election, value: &str, term: FencingToken) {
    let leader = within("the leader is seen", async {
        loop {
            if let Some(leader) = election.current().await.expect("a look") {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(seen(Some(&leader)), Some((value, term)));
}

/// What has been seen of an election, as value and term.
fn seen(leader: Option<&Leader>) -> Option<(&str, FencingToken)> {
    leader.map(|leader| (leader.value.as_str(), leader.term))
}

/// Nobody leads beside the leader, and the next one has a higher token.
pub async fn leader_is_one_and_the_next_has_a_later_term(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("leader"));
    let first = campaign(&ann.leader(&name), "ann").await;
    let campaign = campaign_later(&bob.leader(&name), "bob");
    if ann.guarantees().queue.is_ordered() {
        until_waiting(&ann, &name, 1).await;
    }
    assert!(!campaign.is_finished(), "bob leads beside ann");
    let term = first.term();
    first.proclaim("ann, elsewhere").await.expect("the leader proclaims");
    first.resign().await.expect("it led until now");
    let second = leads(campaign).await;
    assert!(second.term().sequence() > term.sequence(), "{} after {term}", second.term());
    until_seen(&ann.leader(&name), "bob", second.term()).await;
    Ok(())
}

/// Nobody, a leader, its next value, the next leader, nobody: as it was, and nobody twice.
pub async fn leader_is_observed_in_order(harness: &dyn Harness) -> Verdict {
    let (ann, bob, eve, name) =
        (locks(harness).await, locks(harness).await, locks(harness).await, fresh("leader"));
    let mut observation = eve.leader(&name).observe();
    assert_eq!(next(&mut observation).await, None, "nobody ever led");
    let first = campaign(&ann.leader(&name), "ann").await;
    assert_eq!(seen(next(&mut observation).await.as_ref()), Some(("ann", first.term())));
    first.proclaim("ann, elsewhere").await.expect("the leader proclaims");
    assert_eq!(seen(next(&mut observation).await.as_ref()), Some(("ann, elsewhere", first.term())));
    let campaign = campaign_later(&bob.leader(&name), "bob");
    let newest = first.term();
    first.resign().await.expect("it led until now");
    let second = leads(campaign).await;
    assert_eq!(seen(next_leader(&mut observation).await.as_ref()), Some(("bob", second.term())));
    assert!(second.term().sequence() > newest.sequence());
    second.resign().await.expect("it led until now");
    assert_eq!(
        next(&mut observation).await,
        None,
        "what the last leader proclaimed is still there, and he is not"
    );
    Ok(())
}

/// What the last leader proclaimed still stands when the next one holds the lock, and until that one proclaims nobody leads.
pub async fn leader_that_proclaimed_nothing_yet_is_not_taken_for_the_one_before(
    harness: &dyn Harness,
) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("leader"));
    campaign(&ann.leader(&name), "ann").await.resign().await.expect("it led until now");
    let next = bob.lock(format!("leader/{name}"));
    let next = within("nobody leads", next.acquire()).await.expect("the next one's lock");
    assert_eq!(
        ann.leader(&name).current().await.expect("a look"),
        None,
        "{} proclaimed nothing",
        next.token()
    );
    next.release().await.expect("it was held");
    Ok(())
}

/// Two candidates of one process have a term each: the second is not taken for the first.
pub async fn leader_of_one_process_follows_another_in_its_own_term(harness: &dyn Harness) -> Verdict {
    let (ann, name) = (locks(harness).await, fresh("leader"));
    let election = ann.leader(&name);
    let mut before = campaign(&election, "0").await;
    for value in ["1", "2", "3"] {
        let campaign = campaign_later(&election, value);
        if ann.guarantees().queue.is_ordered() {
            // In the backend's line, and not in that of a process whose tasks share a lease.
            until_waiting(&ann, &name, 1).await;
        }
        let term = before.term();
        before.resign().await.expect("it led until now");
        before = leads(campaign).await;
        assert!(before.term().grant() > term.grant(), "{} is of the same grant as {term}", before.term());
        until_seen(&election, value, before.term()).await;
    }
    Ok(())
}

/// A campaign that is dropped stands in nobody's way.
pub async fn leader_that_gave_up_waiting_leaves_the_line(harness: &dyn Harness) -> Verdict {
    let (ann, bob, eve, name) =
        (locks(harness).await, locks(harness).await, locks(harness).await, fresh("leader"));
    let first = campaign(&ann.leader(&name), "ann").await;
    let given_up = campaign_later(&bob.leader(&name), "bob");
    if ann.guarantees().queue.is_ordered() {
        until_waiting(&ann, &name, 1).await;
    }
    given_up.abort();
    let campaign = campaign_later(&eve.leader(&name), "eve");
    first.resign().await.expect("it led until now");
    let leadership = leads(campaign).await;
    until_seen(&ann.leader(&name), "eve", leadership.term()).await;
    Ok(())
}

/// Who hangs past the end of its term is told, is not observed, and overwrites nothing of its successor's.
pub async fn leader_that_hangs_past_its_term_proclaims_no_more(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("leader"));
    let hangs = ann.leader(&name).ttl(ttl(&ann, SHORT)).max_hold(Duration::ZERO);
    let first = campaign(&hangs, "ann").await;
    let second = leads(campaign_later(&bob.leader(&name), "bob")).await;
    assert!(second.term().sequence() > first.term().sequence());
    assert_refused(&ann, &name, &first, "ann").await;
    until_seen(&ann.leader(&name), "bob", second.term()).await;
    Ok(())
}

/// Nothing of an earlier leader passes: neither by its leadership nor by its token alone.
async fn assert_refused(locks: &Locks, name: &str, earlier: &Leadership, value: &str) {
    within("the earlier leader learns that its term is over", earlier.lost()).await;
    let told = earlier.proclaim(value).await.expect_err("its term is over");
    assert_eq!(told.kind(), ErrorKind::Lost, "{told:?}");
    let record = locks.record(format!("leader/{name}")).expect("a name");
    let late =
        record.write(earlier.term(), format!("{{\"value\":\"{value}\"}}")).await.expect_err("a stale token");
    assert_eq!(late.kind(), ErrorKind::Stale, "{late:?}");
}

/// Who is evicted is told, and leads no more.
pub async fn leader_that_is_evicted_learns_of_it(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("leader"));
    let first = campaign(&ann.leader(&name).ttl(ttl(&ann, 2 * SHORT)), "ann").await;
    let mut observation = bob.leader(&name).observe();
    assert_eq!(seen(next_leader(&mut observation).await.as_ref()), Some(("ann", first.term())));
    bob.evict(format!("leader/{name}"), first.term().nonce()).await.expect("an eviction");
    assert_eq!(next(&mut observation).await, None, "its value stands in the record, and it does not lead");
    let second = campaign(&bob.leader(&name), "bob").await;
    assert_refused(&ann, &name, &first, "ann").await;
    assert_eq!(seen(next(&mut observation).await.as_ref()), Some(("bob", second.term())));
    Ok(())
}

/// A leader that nothing reaches any more knows by itself that its term is over, before the next one begins.
pub async fn leader_that_is_cut_off_ends_its_term_before_the_next_begins(harness: &dyn Harness) -> Verdict {
    let connected = harness.connect_by_cable();
    let cable = connected.ok_or(NotApplicable("the harness cuts no client off"))?.await;
    let (ann, bob, name) = (hall(harness, cable.client()), locks(harness).await, fresh("leader"));
    let first = campaign(&ann.leader(&name).ttl(ttl(&ann, 2 * SHORT)), "ann").await;
    cable.cut();
    let second = leads(campaign_later(&bob.leader(&name), "bob")).await;
    assert!(first.ensure_held().is_err(), "two lead: {} and {}", first.term(), second.term());
    cable.mend();
    assert_refused(&bob, &name, &first, "ann").await;
    until_seen(&bob.leader(&name), "bob", second.term()).await;
    Ok(())
}
