use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request::Ttl;

/// What a backend promises, and under which faults, as data.
///
/// The conformance suite reads it to choose its cases, the documentation is generated from it, the hall refuses
/// `Stakes::Correctness` by it, and the command line prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Guarantees {
    /// Who can contend for one name.
    pub scope: Scope,
    /// What keeps the tokens rising.
    pub tokens: Tokens,
    /// In which order waiters are served.
    pub queue: Queue,
    /// How a waiter learns of its turn.
    pub wake_up: WakeUp,
    /// Whether a name can have permits.
    pub permits: Permits,
    /// When the lease of a killed holder is free.
    pub holder_death: HolderDeath,
    /// Which clock ends a lease.
    pub lease_clock: LeaseClock,
    /// What a record survives.
    pub records: Records,
    /// What a record's fence checks.
    pub record_guard: RecordGuard,
    /// The shortest lease it grants.
    pub ttl_min: Ttl,
    /// The longest lease it grants.
    pub ttl_max: Ttl,
}

/// One promise in words: what it is about, what is promised, and the fault under which it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Claim {
    /// What it is about.
    pub about: &'static str,
    /// The promise, with the fault under which it holds.
    pub promise: String,
}

impl Guarantees {
    /// The weakest promises: those of a store in one process, without durability. A backend strengthens what it can
    /// prove.
    pub fn of_one_process() -> Self {
        Self {
            scope: Scope::Process,
            tokens: Tokens::WhileItRuns,
            queue: Queue::FirstComeFirstServed,
            wake_up: WakeUp::Direct,
            permits: Permits::Counted,
            holder_death: HolderDeath::Ttl,
            lease_clock: LeaseClock::BootTime,
            records: Records::WhileItRuns,
            record_guard: RecordGuard::LiveLease,
            ttl_min: Ttl::MIN,
            ttl_max: Ttl::MAX,
        }
    }

    /// Whether tokens outlive every fault that the backend is built for, so that `Stakes::Correctness` may be asked
    /// for.
    pub fn tokens_are_durable(&self) -> bool {
        matches!(self.tokens, Tokens::Durable)
    }

    /// Every promise in words, in the order of the fields.
    pub fn claims(&self) -> Vec<Claim> {
        let claim = |about, promise: &dyn fmt::Display| Claim { about, promise: promise.to_string() };
        vec![
            claim("Who can contend", &self.scope),
            claim("Fencing tokens", &self.tokens),
            claim("Order of waiters", &self.queue),
            claim("Wake-up", &self.wake_up),
            claim("Permits", &self.permits),
            claim("A killed holder", &self.holder_death),
            claim("A paused holder", &self.lease_clock),
            claim("Records", &self.records),
            claim("The records' fence", &self.record_guard),
            claim("TTL", &format_args!("{} to {}", self.ttl_min, self.ttl_max)),
        ]
    }
}

/// Who can contend for one name. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scope {
    /// The tasks of one process.
    Process,
    /// The processes of one machine.
    Machine,
    /// Every machine that reaches the server.
    Network,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "the tasks of one process",
            Self::Machine => "the processes of one machine",
            Self::Network => "every process that reaches the server",
        })
    }
}

/// What keeps the tokens rising. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tokens {
    /// A counter in memory.
    WhileItRuns,
    /// A counter that can be lost, with a floor that survives while the server's clock is sane.
    BestEffort,
    /// A counter on each of several independent nodes, raised on a quorum of them before the grant is returned.
    Quorum(Quorum),
    /// A counter on disk, or agreed on by consensus, before the grant is returned.
    Durable,
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WhileItRuns => "rise while the process lives; start again when it ends",
            Self::BestEffort => {
                "rise through the loss of the counter as long as the server's clock does not go back; best effort"
            }
            Self::Quorum(quorum) => {
                return write!(
                    f,
                    "rise through pauses, clock steps, and messages lost, late or repeated, as long as {} of the {} \
                     nodes lose their counters between two grants ({quorum})",
                    quorum.may_forget_in_words(),
                    quorum.nodes
                );
            }
            Self::Durable => {
                "rise through kills at any instant, power cuts and clock steps, as long as the disk keeps what it \
                 confirmed as written"
            }
        })
    }
}

/// How many of how many independent nodes have to agree before a grant is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Quorum {
    needed: u8,
    nodes: u8,
}

impl Quorum {
    /// So many of so many nodes, or `None` where that is no majority of them, or more than there are.
    pub const fn new(needed: u8, nodes: u8) -> Option<Self> {
        if nodes / 2 < needed && needed <= nodes { Some(Self { needed, nodes }) } else { None }
    }

    /// How many nodes have to agree.
    pub fn needed(self) -> u8 {
        self.needed
    }

    /// How many nodes there are.
    pub fn nodes(self) -> u8 {
        self.nodes
    }

    /// How many nodes may forget a grant, and the next one still meets a node that remembers it: two quorums have
    /// `2 × needed − nodes` nodes in common, and one of these has to remember. The model in `proof/model` finds two
    /// holders with one number where one node more forgets.
    pub fn may_forget(self) -> u8 {
        self.needed - (self.nodes - self.needed) - 1
    }

    fn may_forget_in_words(self) -> String {
        match self.may_forget() {
            0 => "none".to_owned(),
            some => format!("at most {some}"),
        }
    }
}

/// Prints as in `a quorum of 4 bears 2 × 4 − 5 − 1 = 2`.
impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, nodes } = self;
        write!(f, "a quorum of {needed} bears 2 × {needed} − {nodes} − 1 = {}", self.may_forget())
    }
}

/// In which order waiters are served. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Queue {
    /// In the order in which they came.
    FirstComeFirstServed,
    /// In the order in which they came; a place of one that is paused lives for as long as a lease would, at most.
    FirstComeFirstServedByLease,
    /// Whoever asks at the right moment.
    Unordered,
}

impl fmt::Display for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstComeFirstServed => {
                "first come, first served; a waiter that is paused when its turn comes loses its place after a second"
            }
            Self::FirstComeFirstServedByLease => {
                "first come, first served; a waiter that is paused when its turn comes loses its place at its TTL at the latest"
            }
            Self::Unordered => "none: whoever asks at the right moment",
        })
    }
}

/// How a waiter learns of its turn. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WakeUp {
    /// The one that releases tells the next one, and only that one.
    Direct,
    /// The waiter asks again and again.
    Polling,
}

impl fmt::Display for WakeUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "the one that releases tells the next in line, and only that one",
            Self::Polling => "the waiter polls",
        })
    }
}

/// Whether a name can have permits. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Permits {
    /// As many hold at once as the smallest limit says that anybody asked for.
    Counted,
    /// There are none: asking for one is [`Unsupported`](crate::ErrorKind::Unsupported).
    None,
}

impl fmt::Display for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counted => "at most as many hold at once as the smallest limit says that anybody asked for",
            Self::None => "none: whoever asks for one is refused",
        })
    }
}

impl Queue {
    /// Whether waiters stand in a line.
    pub fn is_ordered(self) -> bool {
        matches!(self, Self::FirstComeFirstServed | Self::FirstComeFirstServedByLease)
    }
}

/// When the lease of a killed holder is free. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum HolderDeath {
    /// When its TTL is over.
    Ttl,
    /// At once: the kernel tells.
    AtOnce,
    /// With the end of a connection, which the server sees.
    Connection,
}

impl HolderDeath {
    /// Whether a killed holder is out of the way long before its TTL is over.
    pub fn is_at_once(self) -> bool {
        matches!(self, Self::AtOnce | Self::Connection)
    }
}

impl fmt::Display for HolderDeath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ttl => "its lease is free when its TTL is over",
            Self::AtOnce => {
                "its lease is free at once, unless a child of it lives on that inherited the lease: then at its TTL"
            }
            Self::Connection => {
                "its lease is free as soon as the server sees its connection end; so is the lease of a holder that lives, whose \
                 connection breaks: only the fence stops its writes until it knows"
            }
        })
    }
}

/// Which clock ends the lease of a holder that is paused or cut off. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeaseClock {
    /// The boot-time clock of the one machine.
    BootTime,
    /// The server's wall clock.
    ServerWallClock,
    /// The wall clocks of several independent nodes, a quorum of which keep the lease.
    NodesWallClocks(Quorum),
    /// The server's monotonic clock, for a session.
    Session,
}

impl fmt::Display for LeaseClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BootTime => {
                "its lease ends at its TTL by the machine's boot-time clock, which no step of the wall clock moves; \
                 the holder may run on unaware: only the fence stops its writes"
            }
            Self::ServerWallClock => {
                "its lease ends at its TTL by the server's wall clock: a clock set forward ends it early; only the \
                 fence stops the writes of a holder that runs on unaware"
            }
            Self::NodesWallClocks(quorum) => {
                return write!(
                    f,
                    "its lease ends at its TTL by the nodes' wall clocks: the clocks of {} of the {} nodes set \
                     forward can end it early; only the fence stops the writes of a holder that runs on unaware",
                    quorum.may_forget() + 1,
                    quorum.nodes
                );
            }
            Self::Session => {
                "its lease ends with its session, by the servers' monotonic clocks; only the fence stops the writes \
                 of a holder that runs on unaware"
            }
        })
    }
}

/// What a record survives. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Records {
    /// Nothing: it lives in memory.
    WhileItRuns,
    /// What the server's own persistence survives.
    AsTheServer,
    /// What a quorum of several independent nodes keeps.
    Quorum(Quorum),
    /// Kills and power cuts, from the moment its write is confirmed.
    Durable,
}

impl fmt::Display for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WhileItRuns => "live and end with the process",
            Self::AsTheServer => {
                "survive what the server's own persistence and replication survive: without them, nothing"
            }
            Self::Quorum(quorum) => {
                return write!(
                    f,
                    "are on {} of the {} nodes before a write is confirmed, and survive as long as {} of them lose what \
                     they kept",
                    quorum.needed,
                    quorum.nodes,
                    quorum.may_forget_in_words()
                );
            }
            Self::Durable => {
                "survive kills and power cuts from the moment a write is confirmed, as long as the disk keeps what \
                 it confirmed as written"
            }
        })
    }
}

/// What a record's fence checks. May grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecordGuard {
    /// The high-water mark, and that the token's lease is alive: lock and record live in one store.
    LiveLease,
    /// The high-water mark alone: the lock may live anywhere.
    HighWaterMark,
}

impl fmt::Display for RecordGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LiveLease => {
                "refuses every token but those of leases that live at the moment of the write, and of these every \
                 one below the record's mark; holds under pauses, kills and expiry"
            }
            Self::HighWaterMark => {
                "refuses every token below the record's mark, and another one with the mark's sequence: a stale holder's \
                 writes from the moment at which the next holder has opened the record, not before; holds as long as \
                 the lock's own tokens rise"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quorum_is_a_majority() {
        let quorums = |nodes| (0..=nodes + 1).filter(move |&needed| Quorum::new(needed, nodes).is_some());
        assert_eq!(quorums(3).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(quorums(4).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(quorums(5).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(Quorum::new(255, 255).map(Quorum::may_forget), Some(254));
        assert_eq!(Quorum::new(0, 0), None);
    }

    #[test]
    fn tokens_of_a_quorum_say_how_many_nodes_may_forget() {
        let promise = |needed| Tokens::Quorum(Quorum::new(needed, 5).unwrap()).to_string();
        let rise = "rise through pauses, clock steps, and messages lost, late or repeated, as long as ";
        let smallest = "none of the 5 nodes lose their counters between two grants \
                        (a quorum of 3 bears 2 × 3 − 5 − 1 = 0)";
        let larger = "at most 2 of the 5 nodes lose their counters between two grants \
                      (a quorum of 4 bears 2 × 4 − 5 − 1 = 2)";
        assert_eq!(promise(3), format!("{rise}{smallest}"));
        assert_eq!(promise(4), format!("{rise}{larger}"));
    }
}
