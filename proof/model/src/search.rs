use std::fmt;
use std::hash::Hash;

use foldhash::HashSet;

/// A protocol, and everything that can happen to it.
pub trait Model {
    /// All there is to know at one instant.
    type State: Clone + Eq + Hash;
    /// What happens between two states; prints as a sentence.
    type Step: fmt::Display;

    /// The state in which everything begins.
    fn first(&self) -> Self::State;

    /// Everything that can happen in a state, and what comes of it.
    fn steps(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;

    /// The one state that stands for all those that differ in the names of alike things only.
    fn representative(&self, state: Self::State) -> Self::State;

    /// The promise that is broken in this state.
    fn broken(&self, state: &Self::State) -> Option<&'static str>;

    /// Whether the protocol has done what it is for. A protocol that never does breaks no promise either.
    fn done(&self, state: &Self::State) -> bool;
}

/// What there is in all the states of a model.
#[derive(Debug)]
pub struct Found {
    /// How many states were looked at.
    pub states: usize,
    /// Whether the protocol can do what it is for.
    pub can_be_done: bool,
    /// A shortest way to a broken promise. The search ends where it finds one.
    pub broken: Option<Trace>,
}

/// A way from the first state to a broken promise, step by step.
#[derive(Debug)]
pub struct Trace {
    /// What happened, in order.
    pub steps: Vec<String>,
    /// The promise that is broken in the end.
    pub promise: &'static str,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:>3}. {step}", at + 1)?;
        }
        write!(f, "     broken: {}", self.promise)
    }
}

/// Looks at every state of a model, nearest first, until a promise is broken.
pub fn explore<M: Model>(model: &M) -> Found {
    let mut found = Found { states: 0, can_be_done: false, broken: None };
    // Every state that was seen, and where it came from: what is yet to be looked at stands at the end.
    let mut states = vec![(model.representative(model.first()), 0)];
    let mut seen = HashSet::from_iter([states[0].0.clone()]);
    while let Some((state, _)) = states.get(found.states).cloned() {
        if let Some(promise) = model.broken(&state) {
            found.broken = Some(Trace { steps: retrace(model, &states, found.states), promise });
            break;
        }
        found.can_be_done |= model.done(&state);
        for (_, next) in model.steps(&state) {
            let next = model.representative(next);
            if seen.insert(next.clone()) {
                states.push((next, found.states));
            }
        }
        found.states += 1;
    }
    found
}

/// The steps to the state at `last`. They are made once more, without representatives: these change the names of things
/// from one step to the next.
fn retrace<M: Model>(model: &M, states: &[(M::State, usize)], last: usize) -> Vec<String> {
    let mut way = vec![last];
    while let Some(&at) = way.last().filter(|&&at| at != 0) {
        way.push(states[at].1);
    }
    let mut state = model.first();
    let mut steps = Vec::new();
    for at in way.into_iter().rev().skip(1) {
        let mut onward = model.steps(&state).into_iter();
        let (step, next) = onward
            .find(|(_, next)| model.representative(next.clone()) == states[at].0)
            .expect("a state allows the same steps as the one that stands for it");
        steps.push(step.to_string());
        state = next;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two jugs, of three and five litres, with which nobody may measure so many.
    struct Jugs {
        forbidden: u8,
    }

    impl Model for Jugs {
        type State = [u8; 2];
        type Step = &'static str;

        fn first(&self) -> [u8; 2] {
            [0, 0]
        }

        fn steps(&self, &[three, five]: &[u8; 2]) -> Vec<(&'static str, [u8; 2])> {
            let (up, down) = ((5 - five).min(three), (3 - three).min(five));
            vec![
                ("fill three", [3, five]),
                ("fill five", [three, 5]),
                ("empty three", [0, five]),
                ("empty five", [three, 0]),
                ("three into five", [three - up, five + up]),
                ("five into three", [three + down, five - down]),
            ]
        }

        fn representative(&self, jugs: [u8; 2]) -> [u8; 2] {
            jugs
        }

        fn broken(&self, jugs: &[u8; 2]) -> Option<&'static str> {
            jugs.contains(&self.forbidden).then_some("nobody measures that")
        }

        fn done(&self, jugs: &[u8; 2]) -> bool {
            jugs.contains(&2)
        }
    }

    #[test]
    fn a_shortest_way_to_a_broken_promise_is_found() {
        let found = explore(&Jugs { forbidden: 4 });
        let steps = found.broken.expect("four litres can be measured").steps;
        let shortest = [
            "fill five",
            "five into three",
            "empty three",
            "five into three",
            "fill five",
            "five into three",
        ];
        assert_eq!(steps, shortest);
    }

    #[test]
    fn every_state_is_looked_at_once_where_no_promise_is_broken() {
        let found = explore(&Jugs { forbidden: 6 });
        assert!(found.broken.is_none() && found.can_be_done, "{found:?}");
        assert_eq!(found.states, 16, "the jugs can be had in so many ways");
    }
}
