//! Locks on several independent servers, of which a quorum has to agree.
//!
//! # The protocol
//! Every step goes to all nodes at once and waits for those answers that decide; a node that has not answered after a fifth of
//! the TTL, or a second, counts as one that failed, and is asked one thing at a time until it answers again.
//!
//! 1. *Take*: each node takes the lock as one server does (`acquire` of `lua/lock.lua`), under a nonce of this attempt, and says
//!    with which number it would grant it. The highest number of a quorum is that of the attempt.
//! 2. *Mark*: where the attempt's nonce still stands, the request's nonce and the number take its place, the counter is raised
//!    to the number, and the node says yes if nobody else can have been given the number or a higher one.
//!
//! After as many yes as make a quorum the lease is granted, unless its TTL is over by then. It counts from before the first
//! step; the nodes keep it for a little longer, so that their clocks may be a little faster. Whatever else comes of an attempt,
//! it is undone on every node that may have got it. `docs/adr/0004-redlock.md` says why this gives tokens that rise.
//!
//! A renewal and a release go to all nodes, and are done where a quorum did them.

mod acquire;
mod nodes;
mod owed;
mod records;
mod view;

use std::fmt;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BackendUrl, BoxFuture, Clock, Error, ErrorKind, Eviction, FencedStore,
    Finding, Guarantees, LeaseClock, LeaseKey, ListQuery, LockName, LockState, LossListener, Nonce, Page,
    Queue, Quorum, Records, Release, Renewal, Result, Retry, Scope, Tokens, Ttl, WakeUp, WallTime,
};

use self::nodes::{Node, Nodes};
use crate::backend::Client;
use crate::checks;
use crate::keys::Keys;
use crate::options::Options;

/// The part of a TTL by which the nodes' clocks may run apart while it lasts, and what each of them may round: 1 % and 2 ms, as
/// the algorithm was published.
const DRIFT_PART: u64 = 100;
const DRIFT_ROUND_MS: u64 = 2;

/// The longest lease: what the nodes keep, which is longer by the drift, is within the range of a [`Ttl`].
const TTL_MAX: Duration = Duration::from_hours(23);

/// How long nodes may take to be connected to, at first.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);

/// How much later than a quorum a node may be connected to for its word to be heard on whether it is a server of its own.
const CONNECT_GRACE: Duration = Duration::from_millis(250);

/// What to do about two nodes that are one server.
const NO_TWINS: &str = "name as many servers that have nothing in common";

/// How long an examination may take, or to go through all keys of a node: a step for each thousand of them.
const EXAMINE_PATIENCE: Duration = Duration::from_secs(10);

/// The most that a node is waited for.
const PATIENCE_MOST: Duration = Duration::from_secs(1);

/// The part of a TTL for which a round waits for the nodes.
const PATIENCE_PARTS: u32 = 5;

/// The usual quorum, for a URL that names no nodes.
const THREE_OF_FIVE: Quorum = Quorum::new(3, 5).expect("three are a majority of five");

/// What Redlock promises on the nodes of a URL; where it names none, on five of which three have to agree. Errors with
/// [`ErrorKind::InvalidUrl`].
pub fn redlock_guarantees(url: &BackendUrl) -> Result<Guarantees> {
    Ok(guarantees_of(if url.hosts().is_empty() { THREE_OF_FIVE } else { Options::parse_nodes(url)?.1 }))
}

fn guarantees_of(quorum: Quorum) -> Guarantees {
    let mut guarantees = Guarantees::of_one_process();
    guarantees.scope = Scope::Network;
    guarantees.tokens = Tokens::Quorum(quorum);
    guarantees.queue = Queue::Unordered;
    guarantees.wake_up = WakeUp::Polling;
    guarantees.lease_clock = LeaseClock::NodesWallClocks(quorum);
    guarantees.records = Records::Quorum(quorum);
    guarantees.ttl_max = Ttl::new(TTL_MAX).expect("it is below a day");
    guarantees
}

/// For how long a node keeps a lease of this TTL: so much longer that the holder can rely on the TTL, although the node's clock
/// may be faster than its own.
fn node_ttl(ttl: Ttl) -> Result<Ttl> {
    let millis = ((ttl.as_millis() + DRIFT_ROUND_MS) * DRIFT_PART).div_ceil(DRIFT_PART - 1);
    Ttl::new(Duration::from_millis(millis))
}

/// For how long a holder can rely on what a node keeps for this long: the other way round.
fn claimable(kept: Duration) -> Duration {
    let millis = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(millis.saturating_sub(millis.div_ceil(DRIFT_PART) + DRIFT_ROUND_MS))
}

/// For how long a round waits for a node: far below the TTL.
fn patience(ttl: Ttl) -> Duration {
    (ttl.as_duration() / PATIENCE_PARTS).min(PATIENCE_MOST)
}

/// Locks on several independent Redis or Valkey servers, of which a quorum has to agree; see the crate's documentation.
///
/// Dropping it closes the connections. What it still holds ends at its TTL.
pub struct RedlockBackend {
    redlock: Arc<Redlock>,
    guarantees: Guarantees,
    shown: String,
}

/// What the calls of one process share.
#[derive(Debug)]
struct Redlock {
    nodes: Nodes,
    keys: Keys,
    clock: Arc<dyn Clock>,
}

impl RedlockBackend {
    /// Connects to the nodes of a URL, and returns when a quorum of them can be used and the others can as well, or have had a
    /// quarter of a second more. One round trip, and those of the connections.
    ///
    /// Must be called in a tokio runtime. Errors with [`ErrorKind::InvalidUrl`], also where two of the nodes that could be
    /// connected to by then are one server, as far as servers tell us; with [`ErrorKind::Unavailable`] where too few nodes can be
    /// reached, [`ErrorKind::Refused`] where too many have another password or access rules that keep us out.
    pub async fn connect(url: &BackendUrl, clock: Arc<dyn Clock>) -> Result<Self> {
        let (options, quorum) = Options::parse_nodes(url)?;
        let keys = options[0].keys;
        let nodes =
            options.into_iter().map(|options| Arc::new(Node::new(Client::new(options, Arc::clone(&clock)))));
        let nodes = Nodes::new(nodes.collect(), quorum);
        let mut round = nodes.ask(nodes.every(), CONNECT_PATIENCE, |node| async move {
            node.client.servers.connect().await?;
            let asked = node.client.now();
            let introduction = checks::introduction(&node.client).await?;
            if let Some(time) = introduction.time {
                node.tells_time(asked, time);
            }
            Ok(introduction.run_id)
        });
        let mut known = nodes.quorum_of(&mut round).await.map_err(|error| error.about(url))?;
        let others = async {
            while let Some((node, answer)) = round.next().await {
                known.extend(answer.map(|run_id| (node, run_id)));
            }
        };
        let _ = tokio::time::timeout(CONNECT_GRACE, others).await;
        if let Some(what) = nodes.twins(known) {
            return Err(Error::new(ErrorKind::InvalidUrl, format!("{what}: {NO_TWINS}")).about(url));
        }
        let redlock = Arc::new(Redlock { nodes, keys, clock });
        Ok(Self { redlock, guarantees: guarantees_of(quorum), shown: url.to_string() })
    }
}

impl Redlock {
    /// Has all nodes make the same change of many leases; for each, whether as many made it as have to agree. `None`: those who
    /// are silent would decide that.
    ///
    /// Errors where too few nodes can be used for anything.
    async fn decide(self: &Arc<Self>, verb: &'static str, leases: &[LeaseKey]) -> Result<Vec<Option<bool>>> {
        let Some(shortest) = leases.iter().map(|lease| lease.ttl).min() else { return Ok(Vec::new()) };
        let (nodes, patience) = (&self.nodes, patience(shortest));
        let on_node =
            |lease: &LeaseKey| Ok(LeaseKey::new(lease.name.clone(), lease.nonce, node_ttl(lease.ttl)?));
        let on_nodes: Arc<[LeaseKey]> = leases.iter().map(on_node).collect::<Result<_>>()?;
        let change = |node: Arc<Node>| {
            let leases = Arc::clone(&on_nodes);
            async move { node.client.change_all(verb, &leases).await }
        };
        let released = (verb == RELEASE).then(|| Arc::clone(&on_nodes));
        let mut round = nodes.ask_or(nodes.every(), patience, change, owes(released));
        let mut votes = vec![Votes::default(); leases.len()];
        let mut failures = Vec::new();
        while !votes.iter().all(|votes| votes.are_decided(nodes))
            && let Some((_, answer)) = round.next().await
        {
            match answer {
                Ok(answers) => votes.iter_mut().zip(answers).for_each(|(votes, made)| votes.count(made)),
                Err(error) => failures.push(error),
            }
        }
        let needed = nodes.quorum.needed().into();
        if failures.len() > nodes.count() - needed {
            return Err(nodes.too_few(needed, failures).with_unknown_effect());
        }
        let outcome = |votes: &Votes| {
            let may_be_enough = votes.made + failures.len() >= nodes.needed(votes.limit);
            if votes.are_enough(nodes) { Some(true) } else { (!may_be_enough).then_some(false) }
        };
        Ok(votes.iter().map(outcome).collect())
    }

    /// As [`Self::decide`], where a part of an answer is of no use.
    async fn decide_all(self: &Arc<Self>, verb: &'static str, leases: &[LeaseKey]) -> Result<Vec<bool>> {
        let decided: Option<Vec<bool>> = self.decide(verb, leases).await?.into_iter().collect();
        decided.ok_or_else(|| {
            let why = "too few nodes have answered to know what has become of the lease: try again";
            Error::new(ErrorKind::Unavailable, why).with_unknown_effect()
        })
    }

    /// What is to be said of each node, and which of them cannot be asked.
    async fn examine(&self) -> Result<Vec<Finding>> {
        let nodes = &self.nodes;
        let mut round = nodes.ask(nodes.every(), EXAMINE_PATIENCE, |node| async move {
            Ok((node.checks.examine(&node.client).await?, checks::introduction(&node.client).await?.run_id))
        });
        let (mut findings, mut known, mut failures) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((number, answer)) = round.next().await {
            match answer {
                Ok((found, run_id)) => {
                    known.push((number, run_id));
                    let server = nodes.get(number).client.servers.shown();
                    findings.extend(found.into_iter().map(|finding| finding.at(server)));
                }
                Err(error) => {
                    let advice = "bring it back: what a quorum bears is counted with all nodes";
                    findings.push(Finding::problem("node", error.to_string(), advice));
                    failures.push(error);
                }
            }
        }
        findings.extend(nodes.twins(known).map(|what| Finding::problem("nodes", what, NO_TWINS)));
        let needed = nodes.quorum.needed().into();
        if failures.len() > nodes.count() - needed {
            Err(nodes.too_few(needed, failures))
        } else {
            Ok(findings)
        }
    }

    /// The median of what a quorum of the nodes say that the time is.
    async fn time(&self) -> Result<Option<WallTime>> {
        let read = |node: Arc<Node>| async move { checks::time(&node.client).await };
        Ok(median(self.nodes.ask_quorum(PATIENCE_MOST, read).await?.into_iter().flatten().collect()))
    }

    /// Renews leases or downgrades them. One that too few nodes have is gone, and what is left of it is given back.
    async fn renewed(self: &Arc<Self>, verb: &'static str, leases: &[LeaseKey]) -> Result<Vec<Renewal>> {
        let renewed = self.decide(verb, leases).await?;
        let lost = leases.iter().zip(&renewed).filter(|(_, renewed)| **renewed == Some(false));
        let lost: Arc<[LeaseKey]> = lost.map(|(lease, _)| lease.clone()).collect();
        if !lost.is_empty() {
            // Nobody waits for it: it goes on in the background.
            let give_back = |node: Arc<Node>| {
                let lost = Arc::clone(&lost);
                async move { node.client.change_all(RELEASE, &lost).await }
            };
            let owes = owes(Some(Arc::clone(&lost)));
            drop(self.nodes.ask_or(self.nodes.every(), PATIENCE_MOST, give_back, owes));
        }
        let renewal = |renewed| match renewed {
            Some(true) => Renewal::Renewed,
            Some(false) => Renewal::Lost,
            None => Renewal::Unknown,
        };
        Ok(renewed.into_iter().map(renewal).collect())
    }
}

/// The one in the middle; of two, the earlier one.
fn median(mut times: Vec<WallTime>) -> Option<WallTime> {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) / 2).copied()
}

const RELEASE: &str = "release";

/// Has a node that cannot be told of releases owe them.
fn owes(released: Option<Arc<[LeaseKey]>>) -> impl Fn(&Arc<Node>, &Error) + Clone + Send + 'static {
    move |node, error| {
        if let Some(leases) = released.as_ref().filter(|_| error.retry() == Retry::Later) {
            node.owe(leases);
        }
    }
}

/// What the nodes said about one lease.
#[derive(Clone, Debug, Default)]
struct Votes {
    made: usize,
    not_made: usize,
    /// Among how many at most it is held, as far as somebody said so.
    limit: u64,
}

impl Votes {
    fn count(&mut self, answer: u64) {
        if answer == 0 {
            self.not_made += 1;
        } else {
            self.made += 1;
            self.limit = self.limit.max(answer);
        }
    }

    fn are_enough(&self, nodes: &Nodes) -> bool {
        self.made >= nodes.needed(self.limit)
    }

    fn are_decided(&self, nodes: &Nodes) -> bool {
        self.are_enough(nodes) || self.not_made > nodes.count() - nodes.needed(self.limit)
    }
}

impl Backend for RedlockBackend {
    fn guarantees(&self) -> &Guarantees {
        &self.guarantees
    }

    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Attempt>> {
        Box::pin(Arc::clone(&self.redlock).acquire(request))
    }

    fn renew<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Renewal>>> {
        Box::pin(self.redlock.renewed("renew", leases))
    }

    fn release<'a>(&'a self, leases: &'a [LeaseKey]) -> BoxFuture<'a, Result<Vec<Release>>> {
        Box::pin(async move {
            let released = self.redlock.decide_all(RELEASE, leases).await?;
            Ok(released
                .into_iter()
                .map(|yes| if yes { Release::Released } else { Release::NotHeld })
                .collect())
        })
    }

    fn downgrade<'a>(&'a self, lease: &'a LeaseKey) -> BoxFuture<'a, Result<Renewal>> {
        Box::pin(async move { Ok(self.redlock.renewed("downgrade", slice::from_ref(lease)).await?[0]) })
    }

    fn inspect<'a>(&'a self, name: &'a LockName) -> BoxFuture<'a, Result<LockState>> {
        Box::pin(view::inspect(&self.redlock, name))
    }

    fn list(&self, query: ListQuery) -> BoxFuture<'_, Result<Page<LockState>>> {
        Box::pin(view::list(&self.redlock, query))
    }

    fn evict<'a>(&'a self, name: &'a LockName, holder: Nonce) -> BoxFuture<'a, Result<Eviction>> {
        Box::pin(async move {
            let lease = LeaseKey::new(name.clone(), holder, Ttl::DEFAULT);
            let evicted = self.redlock.decide_all("evict", &[lease]).await?;
            Ok(if evicted[0] { Eviction::Evicted } else { Eviction::NotHeld })
        })
    }

    fn examine(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        Box::pin(self.redlock.examine())
    }

    /// One round. The median of what a quorum says, which is no longer that of one clock that is wrong where three or more agree.
    fn time(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(self.redlock.time())
    }

    fn records(&self) -> &dyn FencedStore {
        self
    }

    /// One node that says so is no quorum: a holder learns of an eviction from its next renewal.
    fn on_loss(&self, _listener: LossListener) {}

    fn lifeline(&self) -> Result<Option<OwnedFd>> {
        Ok(None)
    }
}

impl fmt::Debug for RedlockBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RedlockBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_clock_of_three_that_is_wrong_is_not_believed() {
        for (told, believed) in [
            (vec![], None),
            (vec![7], Some(7)),
            (vec![9, 7], Some(7)),
            (vec![0, 9, 8], Some(8)),
            (vec![7, 8, 1 << 60], Some(8)),
        ] {
            let times = told.into_iter().map(WallTime::from_millis).collect();
            assert_eq!(median(times).map(WallTime::as_millis), believed);
        }
    }

    proptest! {
        #[test]
        fn a_node_keeps_a_lease_for_its_ttl_and_the_drift(millis in 100_u64..=23 * 60 * 60 * 1000) {
            let ttl = Ttl::new(Duration::from_millis(millis)).unwrap();
            let kept = node_ttl(ttl).unwrap().as_duration();
            prop_assert_eq!(claimable(kept), ttl.as_duration());
            prop_assert!(kept >= ttl.as_duration().mul_f64(1.01) + Duration::from_millis(2));
        }
    }
}
