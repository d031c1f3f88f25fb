//! A cluster: which of its masters has which slots, and how a call finds the one that it is for.
//!
//! A master has two connections of ours, each opened when it is first needed: one for calls, one for subscriptions. A slot that
//! has moved is learned from the answer MOVED. A master that does not answer is asked for no longer: the next call for a slot of
//! its own first asks the others who has it now. Calls for other masters go on meanwhile.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use redis::{ErrorKind as Theirs, RedisError, ServerErrorKind, Value};
use ringfence_core::{Backoff, Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::channels::{Channels, LINGER, Listening};
use crate::error;
use crate::keys::{LockKeys, SLOTS};
use crate::link::{ANSWER_PATIENCE, Answers, Call, Link};
use crate::options::Access;
use crate::route::Route;
use crate::scripts::{self, Change, EXTEND, LOCK, number, text};
use crate::servers::{Answered, answered, confirmation, unconfirmed};
use crate::tries::Tries;

/// How often a call is sent on before it is taken for lost: a slot that moves while it is followed is a second time, and who
/// sends us around for longer has not agreed on who has it.
const REDIRECTS_MAX: usize = 8;

/// The longest pause before a call is tried again whose slot is on its way between two masters, doubled after each time, and how
/// long all of them may take together.
const MOVING_PAUSE: Duration = Duration::from_millis(5);
const MOVING_PATIENCE: Duration = ANSWER_PATIENCE;

pub(crate) struct Cluster {
    /// The nodes of the URL, of which any one that answers tells of all others.
    seeds: Vec<String>,
    access: Access,
    shown: String,
    /// How many replicas of a master have to confirm a lease.
    replicas: Option<NonZeroU8>,
    channels: Arc<Channels>,
    map: Mutex<Map>,
    /// To learn who has which slots.
    tries: Tries,
    runtime: Handle,
}

struct Map {
    /// By slot: its master, where one is known.
    masters: Vec<Option<Arc<Node>>>,
    nodes: HashMap<String, Arc<Node>>,
    /// Counts the answers it was made from.
    looks: u64,
}

/// One server of the cluster.
struct Node {
    address: String,
    calls: Arc<Link>,
    subscriptions: Link,
    /// It did not answer, so that its slots may be another's by now.
    is_doubted: AtomicBool,
}

impl Node {
    /// It did not answer as it should.
    fn doubt(&self) {
        tracing::debug!(node = self.address, "a master of the cluster is in doubt");
        self.is_doubted.store(true, Ordering::Release);
        // Who cannot be called can hardly tell.
        self.subscriptions.hang_up();
    }
}

/// What a call is for, and so over which connection it goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Call,
    Subscription,
}

impl Cluster {
    pub(crate) fn new(
        seeds: Vec<String>,
        access: Access,
        shown: String,
        replicas: Option<NonZeroU8>,
        channels: Channels,
        runtime: Handle,
    ) -> Self {
        let map = Map { masters: vec![None; usize::from(SLOTS)], nodes: HashMap::new(), looks: 0 };
        Self {
            seeds,
            access,
            shown,
            replicas,
            channels: Arc::new(channels),
            map: Mutex::new(map),
            tries: Tries::default(),
            runtime,
        }
    }

    /// The cluster, for people.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Learns who has which slots. Errors without effect.
    pub(crate) async fn connect(&self) -> Result<()> {
        let node = self.masters().await?.swap_remove(0);
        let mut sharded = redis::cmd("PUBSUB");
        sharded.arg("SHARDNUMSUB");
        match node.ask(Call::of(&sharded)).await? {
            Err(error) if error.to_string().to_lowercase().contains("unknown") => Err(Error::new(
                ErrorKind::Unsupported,
                "it has no sharded channels, by which waiters of a cluster are told of their turn: it needs Redis 7 or later",
            )
            .about(node.server())
            .because(error)),
            _ => Ok(()),
        }
    }

    /// Makes changes of several locks, all at the same time: one call for each slot, because a script may reach no other. What
    /// is not answered within the patience has no answer.
    pub(crate) async fn change_all(
        self: &Arc<Self>,
        changes: Vec<Change>,
        patience: Duration,
    ) -> Vec<Result<Answered>> {
        let late = || {
            let why = "some of the cluster's masters have not answered yet";
            Error::new(ErrorKind::Unavailable, why).about(&self.shown).with_unknown_effect()
        };
        let mut answers: Vec<Result<Answered>> = changes.iter().map(|_| Err(late())).collect();
        let mut by_slot: HashMap<u16, (Vec<usize>, Vec<Change>)> = HashMap::new();
        for (index, change) in changes.into_iter().enumerate() {
            match change.keys().slot() {
                Ok(slot) => {
                    let (indices, changes) = by_slot.entry(slot).or_default();
                    indices.push(index);
                    changes.push(change);
                }
                Err(error) => answers[index] = Err(error),
            }
        }
        let (tell, mut told) = mpsc::unbounded_channel();
        for (slot, (indices, changes)) in by_slot {
            let (cluster, tell) = (Arc::clone(self), tell.clone());
            // Each ends even if nobody waits for it any more, so that a connection that does not answer is dropped.
            self.runtime.spawn(async move {
                let _ = tell.send((indices, cluster.change_slot(slot, &changes).await));
            });
        }
        drop(tell);
        let all = async {
            while let Some((indices, made)) = told.recv().await {
                for (index, answer) in indices.into_iter().zip(made) {
                    answers[index] = answer;
                }
            }
        };
        let _ = tokio::time::timeout(patience, all).await;
        answers
    }

    /// Makes one change.
    pub(crate) async fn change(&self, change: Change) -> Result<Answered> {
        let slot = change.keys().slot()?;
        let mut answers = self.change_slot(slot, std::slice::from_ref(&change)).await;
        answers.swap_remove(0)
    }

    /// Makes changes of locks in one slot, and returns the answer to each.
    async fn change_slot(&self, slot: u16, changes: &[Change]) -> Vec<Result<Answered>> {
        let (command, confirm) = (scripts::call(changes), confirmation(self.replicas, changes));
        let call = Call { then: confirm.as_ref(), ..Call::of_script(&LOCK, &command) };
        if !changes.iter().all(Change::is_renewal) {
            return answered(self.call(slot, call).await, changes, self.replicas, &self.shown);
        }
        let reply = self.route(slot, Purpose::Call, call).await;
        let is_moving = matches!(&reply, Ok((_, Err(error))) if is_moving(error));
        if !is_moving {
            return answered(reply.and_then(explained), changes, self.replicas, &self.shown);
        }
        // A lease must outlive the move of its slot, however long that takes.
        let mut answers = Vec::new();
        for change in changes {
            let command = scripts::extension(change);
            let call = Call { then: confirm.as_ref(), ..Call::of_script(&EXTEND, &command) };
            let reply = self.route(slot, Purpose::Call, call).await.and_then(explained);
            answers.push(reply.map(|(value, confirmed)| Answered {
                value,
                unconfirmed: unconfirmed(confirmed, self.replicas, &self.shown),
            }));
        }
        answers
    }

    /// Joins those of this process who listen to the channel of a lock. It hears nothing before [`Self::listen`].
    pub(crate) fn join(self: &Arc<Self>, keys: &LockKeys, session: &str) -> Result<Listening> {
        let slot = keys.slot()?;
        let (listening, is_first) = self.channels.join(keys.channel(session), slot);
        if is_first {
            let cluster = Arc::downgrade(self);
            self.runtime.spawn(leave_at_last(
                cluster,
                Arc::clone(&self.channels),
                listening.channel.clone(),
                slot,
            ));
        }
        Ok(listening)
    }

    /// Whether the channel is heard as things stand.
    pub(crate) fn hears(&self, listening: &mut Listening) -> bool {
        let heard = listening.heard();
        let master = self.map().masters[usize::from(listening.slot)].clone();
        heard.is_some() && heard == master.and_then(|master| master.subscriptions.epoch())
    }

    /// Listens to the channel; when this returns, the server counts us among those who do. Errors without effect on any lock.
    pub(crate) async fn listen(&self, listening: &mut Listening) -> Result<()> {
        if let Some(connection) = listening.heard() {
            self.channels.doubt(&listening.channel, connection);
        }
        let mut subscribe = redis::cmd("SSUBSCRIBE");
        subscribe.arg(&listening.channel);
        let (node, answer) = self.route(listening.slot, Purpose::Subscription, Call::of(&subscribe)).await?;
        answer.map_err(|error| error::of_connecting(error, node.subscriptions.server()))?;
        tokio::time::timeout(ANSWER_PATIENCE, listening.confirmed()).await.map_err(|_| {
            Error::new(ErrorKind::Unavailable, "it does not confirm a subscription")
                .about(node.subscriptions.server())
        })
    }

    /// The masters as they are now, for what is asked of all of them.
    pub(crate) async fn masters(&self) -> Result<Vec<Arc<Link>>> {
        let looks = self.map().looks;
        self.look(looks).await?;
        let map = self.map();
        let mut masters: Vec<&Arc<Node>> = map.masters.iter().flatten().collect();
        masters.sort_by(|one, other| one.address.cmp(&other.address));
        masters.dedup_by(|one, other| Arc::ptr_eq(one, other));
        if masters.is_empty() {
            return Err(self.nobody("no master has any slot"));
        }
        Ok(masters.into_iter().map(|node| Arc::clone(&node.calls)).collect())
    }

    /// The answer of the slot's master, when the slot is in one place.
    pub(crate) async fn call(&self, slot: u16, call: Call<'_>) -> Result<Answers> {
        let (mut pauses, mut left) = (Backoff::new(MOVING_PAUSE, MOVING_PATIENCE), MOVING_PATIENCE);
        loop {
            let (node, answer) = self.route(slot, Purpose::Call, call).await?;
            let is_moving = answer.as_ref().is_err_and(is_moving);
            if !is_moving || left.is_zero() {
                return explained((node, answer));
            }
            let pause = pauses.pause().min(left);
            tokio::time::sleep(pause).await;
            left -= pause;
        }
    }

    /// Sends a command to the master of a slot, or to whom that sends us on. A command is sent on only where a server said that
    /// it did nothing with it.
    async fn route(
        &self,
        slot: u16,
        purpose: Purpose,
        call: Call<'_>,
    ) -> Result<(Arc<Node>, Result<Answers, RedisError>)> {
        let mut node = self.master(slot).await?;
        let mut asking = false;
        for _ in 0..REDIRECTS_MAX {
            let link = match purpose {
                Purpose::Call => &*node.calls,
                Purpose::Subscription => &node.subscriptions,
            };
            let answer = link.ask(Call { asking, ..call }).await;
            let error = match answer {
                Ok(Err(error)) => error,
                Ok(Ok(value)) => return Ok((node, Ok(value))),
                Err(not_sent) => {
                    node.doubt();
                    let next = self.master(slot).await?;
                    if next.address == node.address {
                        return Err(not_sent);
                    }
                    (node, asking) = (next, false);
                    continue;
                }
            };
            asking = error.kind() == Theirs::Server(ServerErrorKind::Ask);
            node = match (error.kind(), error.redirect_node()) {
                (Theirs::Server(ServerErrorKind::Moved), Some((address, slot))) => {
                    let next = self.node(&complete(address, &node.address))?;
                    if let Some(master) = self.map().masters.get_mut(usize::from(slot)) {
                        *master = Some(Arc::clone(&next));
                    }
                    next
                }
                (Theirs::Server(ServerErrorKind::Ask), Some((address, _))) => {
                    self.node(&complete(address, &node.address))?
                }
                _ => {
                    let is_fine = error::is_answer(&error)
                        && error.kind() != Theirs::Server(ServerErrorKind::ClusterDown);
                    if !is_fine {
                        node.doubt();
                    }
                    return Ok((node, Err(error)));
                }
            };
        }
        Err(self.nobody(&format!("its masters do not agree on who has slot {slot}")))
    }

    async fn master(&self, slot: u16) -> Result<Arc<Node>> {
        for _ in 0..2 {
            let (master, looks) = {
                let map = self.map();
                (map.masters[usize::from(slot)].clone(), map.looks)
            };
            match master {
                Some(master) if !master.is_doubted.load(Ordering::Acquire) => return Ok(master),
                _ => self.look(looks).await?,
            }
        }
        Err(self.nobody(&format!("no master has slot {slot}")))
    }

    /// Asks the cluster who has which slots, unless somebody has since it was asked so many times.
    async fn look(&self, looks: u64) -> Result<()> {
        let is_known = || (self.map().looks != looks).then_some(());
        self.tries.get(is_known, self.look_around()).await
    }

    /// Asks those first who are not in doubt.
    async fn look_around(&self) -> Result<()> {
        let nodes: Vec<Arc<Node>> = self.map().nodes.values().cloned().collect();
        let (doubted, trusted): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|node| node.is_doubted.load(Ordering::Acquire));
        // A master that was cut off from the others does not know who took its place.
        let mut failure = match self.ask_for_slots(trusted).await {
            Ok(ranges) => return self.redraw(&ranges),
            Err(failure) => failure,
        };
        let mut rest = doubted;
        for seed in &self.seeds {
            match self.node(seed) {
                Ok(node) => rest.push(node),
                Err(error) => failure = Some(error),
            }
        }
        match self.ask_for_slots(rest).await {
            Ok(ranges) => self.redraw(&ranges),
            Err(last) => Err(last.or(failure).unwrap_or_else(|| self.nobody("none of its nodes answers"))),
        }
    }

    /// What the first of these nodes says that answers; otherwise why one of them did not.
    async fn ask_for_slots(&self, nodes: Vec<Arc<Node>>) -> Result<Vec<Range>, Option<Error>> {
        let mut asked = JoinSet::new();
        for node in nodes {
            let ask = async move {
                let mut slots = redis::cmd("CLUSTER");
                slots.arg("SLOTS");
                let reply = node.calls.query(&slots).await?;
                let ranges = parse_slots(&reply, &node.address);
                ranges.ok_or_else(|| error::odd_reply(&reply, node.calls.server()).without_effect())
            };
            asked.spawn_on(ask, &self.runtime);
        }
        let mut failure = None;
        while let Some(Ok(answer)) = asked.join_next().await {
            match answer {
                Ok(ranges) => return Ok(ranges),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure)
    }

    fn redraw(&self, ranges: &[Range]) -> Result<()> {
        let mut masters = vec![None; usize::from(SLOTS)];
        for Range { first, last, master } in ranges {
            let master = self.node(master)?;
            master.is_doubted.store(false, Ordering::Release);
            for slot in *first..=*last {
                masters[usize::from(slot)] = Some(Arc::clone(&master));
            }
        }
        let mut map = self.map();
        map.nodes.retain(|address, _| ranges.iter().any(|range| range.master == *address));
        map.masters = masters;
        map.looks += 1;
        Ok(())
    }

    /// The node at an address, which is made where it is new.
    fn node(&self, address: &str) -> Result<Arc<Node>> {
        if let Some(node) = self.map().nodes.get(address) {
            return Ok(Arc::clone(node));
        }
        let shown = format!("{address} of {}", self.shown);
        let server = self.access.at_address(address)?;
        let channels = Arc::clone(&self.channels);
        let node = Arc::new(Node {
            address: address.to_owned(),
            calls: Arc::new(Link::new(Route::ToNode(server.clone()), None, shown.clone(), |_, _| ())),
            subscriptions: Link::new(Route::ToNode(server), None, shown, move |connection, push| {
                channels.pushed(connection, &push);
            }),
            is_doubted: AtomicBool::new(false),
        });
        Ok(Arc::clone(self.map().nodes.entry(address.to_owned()).or_insert(node)))
    }

    fn nobody(&self, why: &str) -> Error {
        Error::new(ErrorKind::Unavailable, why.to_owned()).about(&self.shown)
    }

    fn map(&self) -> MutexGuard<'_, Map> {
        self.map.lock().expect("nothing panics while it has the map")
    }
}

/// Gives up a channel when nobody has listened to it for a while.
async fn leave_at_last(cluster: Weak<Cluster>, channels: Arc<Channels>, channel: String, slot: u16) {
    let mut joins = 0;
    loop {
        tokio::time::sleep(LINGER).await;
        match channels.leave(&channel, joins) {
            Some(so_far) => joins = so_far,
            None => break,
        }
    }
    let Some(cluster) = cluster.upgrade() else { return };
    let master = cluster.map().masters[usize::from(slot)].clone();
    if master.is_some_and(|master| master.subscriptions.epoch().is_some()) {
        let mut unsubscribe = redis::cmd("SUNSUBSCRIBE");
        unsubscribe.arg(&channel);
        if let Err(error) = cluster.route(slot, Purpose::Subscription, Call::of(&unsubscribe)).await {
            tracing::debug!(%error, channel, "a channel is given up with its connection");
        }
    }
}

/// Whether a server says that it has only some keys of a slot that is being moved.
fn is_moving(error: &RedisError) -> bool {
    error.kind() == Theirs::Server(ServerErrorKind::TryAgain)
}

fn explained((node, answer): (Arc<Node>, Result<Answers, RedisError>)) -> Result<Answers> {
    answer.map_err(|error| error::of_call(error, node.calls.server()))
}

/// Slots and the address of their master.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    master: String,
}

/// What `CLUSTER SLOTS` answers, when `asked` is asked.
fn parse_slots(reply: &Value, asked: &str) -> Option<Vec<Range>> {
    let Value::Array(ranges) = reply else { return None };
    let parse = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let slot = |at: usize| u16::try_from(number(parts.get(at)?)?).ok().filter(|slot| *slot < SLOTS);
        // The master comes first, then its replicas.
        let Value::Array(master) = parts.get(2)? else { return None };
        let host = master.first().and_then(text).unwrap_or_default();
        let port = number(master.get(1)?)?;
        Some(Range { first: slot(0)?, last: slot(1)?, master: complete(&format!("{host}:{port}"), asked) })
    };
    ranges.iter().map(parse).collect()
}

/// An address as a node names it, as we write addresses. A node that does not know its own host means the one that was asked.
fn complete(address: &str, asked: &str) -> String {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let (of_asked, _) = asked.rsplit_once(':').unwrap_or((asked, ""));
    match host {
        "" | "?" => format!("{of_asked}:{port}"),
        // The colons of an address of version 6 stand in brackets.
        host if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("cluster", &self.shown).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_which_slots_is_read() {
        let node = |host: Value, port| {
            Value::Array(vec![host, Value::Int(port), Value::Nil, Value::Array(Vec::new())])
        };
        let host = |host: &str| Value::BulkString(host.as_bytes().to_vec());
        let replica = node(host("10.0.0.9"), 7009);
        let range = |first, last, master: Value| {
            Value::Array(vec![Value::Int(first), Value::Int(last), master, replica.clone()])
        };
        let reply = Value::Array(vec![
            range(0, 5, node(host("10.0.0.1"), 7001)),
            range(6, 6, node(Value::Nil, 7002)),
            range(7, 9, node(host("?"), 7003)),
            range(10, 16383, node(host("fd00::1"), 7004)),
        ]);
        let expected = [
            (0, 5, "10.0.0.1:7001"),
            (6, 6, "asked:7002"),
            (7, 9, "asked:7003"),
            (10, 16383, "[fd00::1]:7004"),
        ];
        let expected = expected.map(|(first, last, master)| Range { first, last, master: master.to_owned() });
        assert_eq!(parse_slots(&reply, "asked:1"), Some(expected.into()));
        for odd in [
            Value::Int(1),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(0, 16384, node(host("one"), 7001))]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        ] {
            assert_eq!(parse_slots(&odd, "asked:1"), None, "{odd:?}");
        }
    }
}
