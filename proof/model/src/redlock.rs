//! Redlock with quorum tokens: one lock on several independent nodes, and attempts to hold it.
//!
//! An attempt has a nonce of its own and goes through two rounds, in which it asks all nodes at once:
//!
//! 1. **take**: a node where the lock is free stores the nonce, and answers with its counter. When a quorum has answered,
//!    the attempt chooses its number, which is higher than the highest of these counters.
//! 2. **mark**: a node where the nonce still stands, *and whose counter is lower than the number*, raises its counter to
//!    it. When a quorum has, the grant is returned: the number and the nonce are its token.
//!
//! An attempt that gives up, and a holder that releases, sends an **undo**: a node where the nonce stands frees the lock,
//! and every node remembers the nonce, so that a take that comes later is refused.
//!
//! What may happen besides: a message arrives at any time, never, or again; an answer is lost; a client stops anywhere for
//! any time; a lease ends at any moment (which covers every clock, every pause and every renewal); a node forgets.
//!
//! `docs/adr/0004-redlock.md` has the proof of which this is the check, and what was found.

use std::fmt;
use std::ops::RangeInclusive;

use crate::search::Model;

/// As many nodes as a model has at most.
pub const NODES_MAX: usize = 5;

/// As many attempts as a model has at most.
pub const ATTEMPTS_MAX: usize = 3;

/// The protocol on so many nodes, and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub struct Redlock {
    /// How many nodes there are.
    pub nodes: u8,
    /// How many have to answer in each round.
    pub quorum: u8,
    /// How many attempts there are to hold the lock.
    pub attempts: u8,
    /// Whether a node raises its counter already when it is taken, and answers with the number that it gives, as those of
    /// `backends/redis` do. The highest of these is the attempt's number, and a node marks it where it gave none higher. Where a
    /// quorum gives one and the same, it is marked with that, and there is no second round.
    pub raising: bool,
    /// What is asked of it.
    pub promise: Promise,
    /// How many nodes may fail, again and again, in the way that the promise names.
    pub failing: u8,
    /// What is wrong with it.
    pub flaw: Option<Flaw>,
}

/// What is asked of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// No two grants have one number, and a grant that was returned before another attempt began has the lower one.
    ///
    /// A node fails when it forgets everything. Leases may end early on all nodes, which frees whatever an undo would, so
    /// that attempts do not end here.
    Order,
    /// A grant that was returned before another attempt began has the lower number: the half of [`Order`](Self::Order) whose
    /// breach is never found there, because equal numbers are found sooner.
    RealTimeOrder,
    /// No two hold the lock at once.
    ///
    /// A node fails when it forgets everything, or ends a lease early *that it had marked*. Leases that are not marked yet
    /// may end on all nodes.
    Exclusion,
    /// Whoever is next gets the lock: no node holds it for an attempt that was undone there, and there is a number for the
    /// next one although no clock raises it.
    ///
    /// No lease ends here, and no node fails.
    Succession,
}

impl Promise {
    /// Whether it is about numbers alone.
    fn is_order(self) -> bool {
        matches!(self, Self::Order | Self::RealTimeOrder)
    }
}

/// One thing that is different from the protocol, and wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The second round is left out.
    NoSecondRound,
    /// One yes fewer than a quorum is enough in the second round.
    FewerMarks,
    /// A node marks whether its counter is lower than the number or not.
    MarksAnyCounter,
    /// A node marks whether the nonce still stands there or not.
    MarksAnyNonce,
    /// The number is the highest counter, not one more.
    NumberIsHighest,
    /// A take does not answer with the node's counter.
    TakeHidesCounter,
    /// A take takes the lock from whoever has it.
    TakeOverwrites,
    /// A node drops its counter when a lease ends.
    CounterEndsWithLease,
    /// An attempt that gives up undoes nothing.
    NoUndo,
    /// A node undoes whatever nonce stands there.
    UndoesAnyNonce,
    /// A node does not remember what was undone.
    NoTombstone,
    /// A node gives a number that it gave, or marked, before.
    GivesAnyNumber,
    /// One round is enough, whatever numbers the nodes give.
    AgreesToAnyNumbers,
}

/// A node, as its memory is, and what the attempts know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Node {
    /// Whose nonce stands there.
    holder: Option<u8>,
    counter: u8,
    /// Whose undo it remembers.
    undone: Attempts,
    /// Whose first round counts its answer.
    taken: Attempts,
    /// Whose second round counts its yes.
    marked: Attempts,
    /// Whether it is one of those that fail.
    fails: bool,
}

/// A set of attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Attempts(u8);

impl Attempts {
    fn has(self, attempt: u8) -> bool {
        self.0 & 1 << attempt != 0
    }

    fn add(&mut self, attempt: u8) {
        self.0 |= 1 << attempt;
    }

    fn remove(&mut self, attempt: u8) {
        self.0 &= !(1 << attempt);
    }

    fn reordered(self, order: [u8; ATTEMPTS_MAX]) -> Self {
        let mut reordered = Self::default();
        (0..).zip(order).filter(|&(_, old)| self.has(old)).for_each(|(new, _)| reordered.add(new));
        reordered
    }
}

/// How far an attempt is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Taking {
        highest: u8,
        /// Whether the nodes that count gave different numbers.
        differs: bool,
    },
    Marking {
        number: u8,
    },
    Holding {
        number: u8,
    },
    /// It gave up, or released.
    Over,
    /// The last of them, so that attempts that never begin come last.
    #[default]
    NotBegun,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Attempt {
    stage: Stage,
    /// The highest number that had been granted when it began.
    before: u8,
}

/// The nodes and the attempts at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct World {
    nodes: [Node; NODES_MAX],
    attempts: [Attempt; ATTEMPTS_MAX],
}

/// Every order of so many attempts.
const ORDERS: [&[[u8; ATTEMPTS_MAX]]; ATTEMPTS_MAX + 1] = [
    &[[0, 1, 2]],
    &[[0, 1, 2]],
    &[[0, 1, 2], [1, 0, 2]],
    &[[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]],
];

impl World {
    /// The same world with other names for the attempts, where their stages ascend with these.
    fn reordered(&self, order: [u8; ATTEMPTS_MAX]) -> Option<Self> {
        let attempts = order.map(|old| self.attempts[usize::from(old)]);
        if !attempts.is_sorted() {
            return None;
        }
        let nodes = self.nodes.map(|node| Node {
            holder: node
                .holder
                .and_then(|holder| (0..).zip(order).find(|&(_, old)| old == holder))
                .map(|(new, _)| new),
            undone: node.undone.reordered(order),
            taken: node.taken.reordered(order),
            marked: node.marked.reordered(order),
            ..node
        });
        Some(Self { nodes, attempts })
    }

    fn stage(&self, attempt: u8) -> Stage {
        self.attempts[usize::from(attempt)].stage
    }

    /// The numbers of those who hold the lock, as far as they know.
    fn held(&self) -> impl Iterator<Item = u8> {
        self.attempts.iter().filter_map(|attempt| match attempt.stage {
            Stage::Holding { number } => Some(number),
            _ => None,
        })
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// An attempt begins.
    Begin {
        /// Which.
        attempt: u8,
    },
    /// A take arrives at a node where the lock is free.
    Take {
        /// Whose.
        attempt: u8,
        /// Where.
        node: u8,
        /// The counter that it answers with.
        counter: u8,
        /// What comes of the answer.
        answer: Answer,
    },
    /// A mark arrives at a node that says yes.
    Mark {
        /// Whose.
        attempt: u8,
        /// Where.
        node: u8,
        /// The number that the counter is raised to.
        number: u8,
        /// What comes of the answer.
        answer: Answer,
    },
    /// An attempt gives up, or a holder releases.
    GiveUp {
        /// Which.
        attempt: u8,
    },
    /// An undo arrives.
    Undo {
        /// Whose.
        attempt: u8,
        /// Where.
        node: u8,
    },
    /// The lease on a node ends.
    End {
        /// Where.
        node: u8,
    },
    /// A node loses all its memory.
    Forget {
        /// Which.
        node: u8,
    },
}

/// What comes of a node's answer.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It is lost, or comes too late to count.
    Lost,
    /// It counts.
    Counts,
    /// It counts, and ends the round: this is the attempt's number.
    Decides(u8),
    /// It counts, and makes a second round needless.
    Grants(u8),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |attempt: u8| char::from(b'A' + attempt);
        match *self {
            Self::Begin { attempt } => write!(f, "{} begins", name(attempt)),
            Self::Take { attempt, node, counter, answer } => {
                write!(f, "{} takes node {}, whose counter is {counter}", name(attempt), node + 1)?;
                match answer {
                    Answer::Lost => write!(f, "; the answer is lost, or late"),
                    Answer::Counts => Ok(()),
                    Answer::Decides(number) => write!(f, "; that is enough: its number is {number}"),
                    Answer::Grants(number) => write!(f, "; all say {number}: it holds the lock, as that"),
                }
            }
            Self::Mark { attempt, node, number, answer } => {
                write!(f, "{} marks node {} with {number}", name(attempt), node + 1)?;
                match answer {
                    Answer::Lost => write!(f, "; the answer is lost, or late"),
                    Answer::Counts => Ok(()),
                    Answer::Decides(number) | Answer::Grants(number) => {
                        write!(f, "; that is enough: it holds the lock, as number {number}")
                    }
                }
            }
            Self::GiveUp { attempt } => write!(f, "{} gives up, or releases", name(attempt)),
            Self::Undo { attempt, node } => write!(f, "{} is undone on node {}", name(attempt), node + 1),
            Self::End { node } => write!(f, "the lease on node {} ends", node + 1),
            Self::Forget { node } => write!(f, "node {} forgets everything", node + 1),
        }
    }
}

impl Model for Redlock {
    type State = World;
    type Step = Step;

    fn first(&self) -> World {
        World::default()
    }

    fn steps(&self, world: &World) -> Vec<(Step, World)> {
        let mut steps = Vec::new();
        for attempt in 0..self.attempts {
            self.client_steps(world, attempt, &mut steps);
        }
        for node in 0..self.nodes {
            // What happens to one of two nodes that are alike need not happen to the other as well.
            let at = usize::from(node);
            if world.nodes[..at].contains(&world.nodes[at]) {
                continue;
            }
            for attempt in 0..self.attempts {
                self.take(world, attempt, node, &mut steps);
                self.mark(world, attempt, node, &mut steps);
                self.undo(world, attempt, node, &mut steps);
            }
            self.fail(world, node, &mut steps);
        }
        // What changes nothing is no step.
        steps.retain(|(_, next)| next != world);
        steps
    }

    /// Nodes are alike, and so are attempts: of all the ways to name them, the one that comes first.
    fn representative(&self, world: World) -> World {
        let orders = ORDERS[usize::from(self.attempts)].iter();
        let sorted = orders.filter_map(|order| world.reordered(*order)).map(|mut world| {
            world.nodes[..usize::from(self.nodes)].sort_unstable();
            world
        });
        sorted.min().expect("attempts can be put in order")
    }

    fn broken(&self, world: &World) -> Option<&'static str> {
        match self.promise {
            Promise::Order | Promise::RealTimeOrder => {
                let held: Vec<_> = world.held().collect();
                let twice = (1..held.len()).any(|at| held[..at].contains(&held[at]));
                if twice && self.promise == Promise::Order {
                    return Some("two grants have one number");
                }
                let back = world.attempts.iter().any(
                    |attempt| matches!(attempt.stage, Stage::Holding { number } if number < attempt.before),
                );
                back.then_some("a grant has a lower number than one that was returned before it began")
            }
            Promise::Exclusion => (world.held().count() > 1).then_some("two hold the lock at once"),
            Promise::Succession => {
                let undo_is_done =
                    |node: &Node, attempt| node.undone.has(attempt) || self.flaw == Some(Flaw::NoUndo);
                let orphan = world.nodes.iter().any(|node| {
                    node.holder.is_some_and(|holder| {
                        world.stage(holder) == Stage::Over && undo_is_done(node, holder)
                    })
                });
                orphan.then_some(
                    "a node holds the lock for an attempt that is over, though all its messages arrived",
                )
            }
        }
    }

    fn done(&self, world: &World) -> bool {
        let somebody_is_over = (0..self.attempts).any(|attempt| world.stage(attempt) == Stage::Over);
        match self.promise {
            Promise::Order | Promise::RealTimeOrder => world.held().count() == usize::from(self.attempts),
            Promise::Exclusion => world.held().count() > 0 && somebody_is_over,
            Promise::Succession => world.held().any(|number| number > 1) && somebody_is_over,
        }
    }
}

impl Redlock {
    /// The protocol on so many nodes, of which so many are needed, with two attempts, and nothing wrong.
    pub fn new(quorum: u8, nodes: u8, promise: Promise) -> Self {
        Self { nodes, quorum, attempts: 2, raising: false, promise, failing: 0, flaw: None }
    }

    fn has(self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    /// An attempt begins, or ends.
    fn client_steps(self, world: &World, attempt: u8, steps: &mut Vec<(Step, World)>) {
        let mut next = *world;
        let this = &mut next.attempts[usize::from(attempt)];
        match this.stage {
            // Attempts are alike: that they begin in the order of their names loses nothing. Nor does it that all begin at
            // once, but where a grant that was returned before is told from one that was not.
            Stage::NotBegun
                if (0..attempt).all(|other| world.stage(other) != Stage::NotBegun)
                    && (world.nodes == World::default().nodes
                        || self.promise.is_order() && world.held().count() > 0) =>
            {
                *this = Attempt {
                    stage: Stage::Taking { highest: 0, differs: false },
                    before: world.held().max().unwrap_or_default(),
                };
                steps.push((Step::Begin { attempt }, next));
            }
            Stage::Taking { .. } | Stage::Marking { .. } | Stage::Holding { .. }
                if !self.promise.is_order() =>
            {
                *this = Attempt { stage: Stage::Over, before: 0 };
                for node in &mut next.nodes {
                    node.taken.remove(attempt);
                    node.marked.remove(attempt);
                }
                steps.push((Step::GiveUp { attempt }, next));
            }
            _ => {}
        }
    }

    /// A take arrives: for the first time or once more, in time or long after.
    fn take(self, world: &World, attempt: u8, node: u8, steps: &mut Vec<(Step, World)>) {
        let at = usize::from(node);
        let Node { holder, counter, undone, taken, .. } = world.nodes[at];
        let free = holder.is_none_or(|holder| holder == attempt) || self.has(Flaw::TakeOverwrites);
        let withdrawn = undone.has(attempt) && !self.has(Flaw::NoTombstone);
        if world.stage(attempt) == Stage::NotBegun || !free || withdrawn {
            return;
        }
        // Where the nonce stands already a node may say again what it said, which is its counter.
        let least = match (self.raising, holder) {
            (true, _) if self.has(Flaw::GivesAnyNumber) => 1,
            (true, None) => counter + 1,
            _ => counter,
        };
        for after in least..=if self.raising { self.attempts + 1 } else { counter } {
            let mut next = *world;
            next.nodes[at].holder = Some(attempt);
            next.nodes[at].counter = counter.max(after);
            let counter = if self.has(Flaw::TakeHidesCounter) { 0 } else { after };
            let mut push = |answer, next| steps.push((Step::Take { attempt, node, counter, answer }, next));
            push(Answer::Lost, next);
            let Stage::Taking { highest, differs } = world.stage(attempt) else { continue };
            if taken.has(attempt) {
                continue;
            }
            let differs = self.raising && (differs || ![0, counter].contains(&highest));
            let highest = highest.max(counter);
            next.nodes[at].taken.add(attempt);
            if next.nodes.iter().filter(|node| node.taken.has(attempt)).count() < usize::from(self.quorum) {
                next.attempts[usize::from(attempt)].stage = Stage::Taking { highest, differs };
                push(Answer::Counts, next);
                continue;
            }
            let is_marked = self.raising && (!differs || self.has(Flaw::AgreesToAnyNumbers));
            for node in &mut next.nodes {
                if is_marked && node.taken.has(attempt) {
                    node.marked.add(attempt);
                }
                node.taken.remove(attempt);
            }
            if is_marked {
                self.grant(&mut next, attempt, highest);
                push(Answer::Grants(highest), next);
                continue;
            }
            for number in self.numbers(highest) {
                next.attempts[usize::from(attempt)].stage = Stage::Marking { number };
                if self.has(Flaw::NoSecondRound) {
                    self.grant(&mut next, attempt, number);
                }
                push(Answer::Decides(number), next);
            }
        }
    }

    /// The numbers that an attempt may choose, of which the highest counter that it counts is this: every one that is
    /// higher, because clocks may raise it, and because it may count more answers than it needs.
    ///
    /// The protocol compares numbers and does nothing else with them, so as many as there are attempts will do. (Where nodes
    /// raise their counters there are more of them, and one number more than attempts is a bound.)
    fn numbers(self, highest: u8) -> RangeInclusive<u8> {
        match self.promise {
            _ if self.raising || self.has(Flaw::NumberIsHighest) => highest..=highest,
            Promise::Order | Promise::RealTimeOrder | Promise::Exclusion => highest + 1..=self.attempts,
            Promise::Succession => highest + 1..=highest + 1,
        }
    }

    /// A mark arrives at a node that says yes. One that says no changes nothing.
    fn mark(self, world: &World, attempt: u8, node: u8, steps: &mut Vec<(Step, World)>) {
        let at = usize::from(node);
        let Node { holder, counter, .. } = world.nodes[at];
        let (Stage::Marking { number } | Stage::Holding { number }) = world.stage(attempt) else { return };
        let stands = holder == Some(attempt) || self.has(Flaw::MarksAnyNonce);
        let lower = counter < number + u8::from(self.raising) || self.has(Flaw::MarksAnyCounter);
        if !stands || !lower {
            return;
        }
        let mut next = *world;
        next.nodes[at].counter = counter.max(number);
        let mut push = |answer, next| steps.push((Step::Mark { attempt, node, number, answer }, next));
        // A grant that is returned a yes later asks less of those that come after it: where nothing else is asked, the
        // answers to marks need not be lost.
        let late = world.stage(attempt) != Stage::Marking { number };
        if late || !self.promise.is_order() {
            push(Answer::Lost, next);
        }
        if late {
            return;
        }
        next.nodes[at].marked.add(attempt);
        let marked = next.nodes.iter().filter(|node| node.marked.has(attempt)).count();
        let needed = if self.has(Flaw::FewerMarks) { self.quorum - 1 } else { self.quorum };
        if marked < usize::from(needed) {
            push(Answer::Counts, next);
        } else {
            self.grant(&mut next, attempt, number);
            push(Answer::Decides(number), next);
        }
    }

    /// The grant is returned, as soon as it can be: that asks the most of all that begins later.
    fn grant(self, world: &mut World, attempt: u8, number: u8) {
        let this = &mut world.attempts[usize::from(attempt)];
        this.stage = Stage::Holding { number };
        // What nobody will ask for again is dropped, so that states that differ in nothing else are one.
        if number >= this.before {
            this.before = 0;
        }
        if self.promise.is_order() {
            world.nodes.iter_mut().for_each(|node| node.marked.remove(attempt));
        }
    }

    /// An undo arrives, of an attempt that is over.
    fn undo(self, world: &World, attempt: u8, node: u8, steps: &mut Vec<(Step, World)>) {
        if world.stage(attempt) != Stage::Over || self.has(Flaw::NoUndo) {
            return;
        }
        let mut next = *world;
        let there = &mut next.nodes[usize::from(node)];
        if there.holder == Some(attempt) || self.has(Flaw::UndoesAnyNonce) {
            there.holder = None;
        }
        there.undone.add(attempt);
        steps.push((Step::Undo { attempt, node }, next));
    }

    /// A lease ends, or a node forgets.
    fn fail(self, world: &World, node: u8, steps: &mut Vec<(Step, World)>) {
        let at = usize::from(node);
        let there = world.nodes[at];
        let may_fail =
            there.fails || world.nodes.iter().filter(|node| node.fails).count() < usize::from(self.failing);
        // A node that is taken may come to have been marked by that.
        let marked = there
            .holder
            .is_some_and(|holder| there.marked.has(holder) || self.raising && there.taken.has(holder));
        let (may_end, is_failure) = match self.promise {
            Promise::Order | Promise::RealTimeOrder => (true, false),
            Promise::Exclusion => (may_fail || !marked, marked),
            Promise::Succession => (false, false),
        };
        if may_end && there.holder.is_some() {
            let mut next = *world;
            let there = &mut next.nodes[at];
            there.holder = None;
            there.fails |= is_failure;
            if self.has(Flaw::CounterEndsWithLease) {
                there.counter = 0;
            }
            steps.push((Step::End { node }, next));
        }
        if may_fail && (there.counter, there.undone) != (0, Attempts::default()) {
            let mut next = *world;
            let Node { taken, marked, .. } = there;
            next.nodes[at] = Node { taken, marked, fails: true, ..Node::default() };
            steps.push((Step::Forget { node }, next));
        }
    }
}
