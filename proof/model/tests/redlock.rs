//! What quorum tokens promise, in every order of events, and where the promise ends.

use ringfence_core::Quorum;
use ringfence_model::redlock::{Flaw, Promise, Redlock};
use ringfence_model::{Found, explore};

/// No order of events breaks the promise, and the protocol does what it is for in some.
#[track_caller]
fn holds(model: Redlock) {
    let Found { can_be_done, broken, states } = explore(&model);
    assert!(broken.is_none(), "{model:?} breaks its promise:\n{}", broken.expect("it is there"));
    assert!(can_be_done, "{model:?} never gets to a grant, in {states} states");
}

/// Some order of events breaks the promise.
#[track_caller]
fn breaks(model: Redlock) -> String {
    let found = explore(&model);
    let broken =
        found.broken.unwrap_or_else(|| panic!("{model:?} keeps its promise in {} states", found.states));
    println!("{model:?}:\n{broken}");
    broken.to_string()
}

/// Every quorum of so many nodes.
fn quorums(nodes: u8) -> impl Iterator<Item = Quorum> {
    (1..=nodes).filter_map(move |needed| Quorum::new(needed, nodes))
}

/// The promise holds while as many nodes fail as [`Quorum::may_forget`] says, and no longer.
#[track_caller]
fn holds_up_to_what_the_quorum_bears(quorum: Quorum, promise: Promise) {
    let model = Redlock::new(quorum.needed(), quorum.nodes(), promise);
    holds(Redlock { failing: quorum.may_forget(), ..model });
    breaks(Redlock { failing: quorum.may_forget() + 1, ..model });
}

#[test]
fn tokens_of_three_nodes_rise_while_a_quorum_bears_what_is_forgotten() {
    quorums(3).for_each(|quorum| holds_up_to_what_the_quorum_bears(quorum, Promise::Order));
}

#[test]
fn tokens_of_four_nodes_rise_while_a_quorum_bears_what_is_forgotten() {
    quorums(4).for_each(|quorum| holds_up_to_what_the_quorum_bears(quorum, Promise::Order));
}

#[test]
fn tokens_of_five_nodes_rise_while_a_quorum_bears_what_is_forgotten() {
    quorums(5).for_each(|quorum| holds_up_to_what_the_quorum_bears(quorum, Promise::Order));
}

#[test]
fn a_third_attempt_changes_nothing_about_tokens() {
    holds(Redlock { attempts: 3, ..Redlock::new(2, 3, Promise::Order) });
}

#[test]
fn tokens_rise_where_nodes_raise_their_counters_already_when_they_are_taken() {
    for quorum in quorums(3) {
        let model = Redlock { raising: true, ..Redlock::new(quorum.needed(), 3, Promise::Order) };
        holds(Redlock { failing: quorum.may_forget(), ..model });
        breaks(Redlock { failing: quorum.may_forget() + 1, ..model });
        // To have put the counter at a number of one's own is no leave to mark a lower one.
        breaks(Redlock { flaw: Some(Flaw::MarksAnyCounter), ..model });
    }
}

/// Where a quorum gives one number, that is its yes.
#[test]
fn one_round_is_enough_where_all_nodes_give_one_number_that_is_new_to_them() {
    let model = |quorum: Quorum, promise| Redlock {
        raising: true,
        ..Redlock::new(quorum.needed(), quorum.nodes(), promise)
    };
    for quorum in quorums(3) {
        let exclusive = model(quorum, Promise::Exclusion);
        holds(Redlock { failing: quorum.may_forget(), ..exclusive });
        breaks(Redlock { failing: quorum.may_forget() + 1, ..exclusive });
        let ordered = model(quorum, Promise::Order);
        for flaw in [Flaw::GivesAnyNumber, Flaw::AgreesToAnyNumbers] {
            let trace = breaks(Redlock { flaw: Some(flaw), ..ordered });
            assert!(trace.contains("all say"), "{flaw:?} is about the first round:\n{trace}");
        }
    }
}

#[test]
fn nobody_holds_beside_another_while_a_quorum_bears_what_is_forgotten_or_ends_early() {
    quorums(3).for_each(|quorum| holds_up_to_what_the_quorum_bears(quorum, Promise::Exclusion));
    holds(Redlock { attempts: 3, ..Redlock::new(2, 3, Promise::Exclusion) });
}

#[test]
fn nobody_holds_beside_another_on_more_nodes() {
    for (needed, nodes) in [(3, 4), (3, 5)] {
        let quorum = Quorum::new(needed, nodes).expect("it is a majority");
        holds_up_to_what_the_quorum_bears(quorum, Promise::Exclusion);
    }
}

#[test]
fn what_was_undone_stands_in_nobodys_way() {
    holds(Redlock { attempts: 3, ..Redlock::new(2, 3, Promise::Succession) });
    holds(Redlock::new(3, 5, Promise::Succession));
}

#[test]
fn a_later_grant_has_a_lower_number_where_one_node_more_forgets() {
    for quorum in quorums(3) {
        let model = Redlock::new(quorum.needed(), 3, Promise::RealTimeOrder);
        let trace = breaks(Redlock { failing: quorum.may_forget() + 1, ..model });
        let order = ["it holds the lock, as number 2", "B begins", "it holds the lock, as number 1"];
        let found = order.map(|what| trace.find(what));
        assert!(found.is_sorted() && found[0].is_some(), "expected {order:?} in:\n{trace}");
    }
}

#[test]
fn half_of_the_nodes_are_no_quorum() {
    breaks(Redlock::new(2, 4, Promise::Order));
    breaks(Redlock::new(1, 3, Promise::Order));
}

#[test]
fn one_node_that_forgets_gives_two_holders_one_number() {
    let trace = breaks(Redlock { failing: 1, ..Redlock::new(2, 3, Promise::Order) });
    let expected = "  \
  1. A begins
  2. B begins
  3. A takes node 1, whose counter is 0
  4. A takes node 2, whose counter is 0; that is enough: its number is 1
  5. B takes node 3, whose counter is 0
  6. A marks node 1 with 1
  7. A marks node 2 with 1; that is enough: it holds the lock, as number 1
  8. node 1 forgets everything
  9. B takes node 1, whose counter is 0; that is enough: its number is 1
 10. B marks node 3 with 1
 11. B marks node 1 with 1; that is enough: it holds the lock, as number 1
     broken: two grants have one number";
    assert_eq!(trace, expected);
}

/// Why a node looks at its counter before it marks: nobody forgets anything here.
#[test]
fn a_node_that_marks_whatever_its_counter_is_gives_two_holders_one_number() {
    let model = Redlock::new(2, 3, Promise::Order);
    let trace = breaks(Redlock { flaw: Some(Flaw::MarksAnyCounter), ..model });
    let expected = "  \
  1. A begins
  2. B begins
  3. A takes node 1, whose counter is 0
  4. A takes node 2, whose counter is 0; that is enough: its number is 1
  5. B takes node 3, whose counter is 0
  6. A marks node 1 with 1
  7. the lease on node 2 ends
  8. B takes node 2, whose counter is 0; that is enough: its number is 1
  9. B marks node 2 with 1
 10. B marks node 3 with 1; that is enough: it holds the lock, as number 1
 11. the lease on node 2 ends
 12. A takes node 2, whose counter is 1; the answer is lost, or late
 13. A marks node 2 with 1; that is enough: it holds the lock, as number 1
     broken: two grants have one number";
    assert_eq!(trace, expected);
}

#[test]
fn every_flaw_is_found() {
    use Flaw::*;
    for (flaw, promise, what) in [
        (NoSecondRound, Promise::Order, "two grants have one number"),
        (FewerMarks, Promise::Order, "two grants have one number"),
        (MarksAnyCounter, Promise::Order, "two grants have one number"),
        (CounterEndsWithLease, Promise::Order, "two grants have one number"),
        (MarksAnyNonce, Promise::Exclusion, "two hold the lock at once"),
        (TakeOverwrites, Promise::Exclusion, "two hold the lock at once"),
        (UndoesAnyNonce, Promise::Exclusion, "two hold the lock at once"),
        (NoUndo, Promise::Succession, "an attempt that is over"),
        (NoTombstone, Promise::Succession, "an attempt that is over"),
    ] {
        let model = Redlock { attempts: 3, ..Redlock::new(2, 3, promise) };
        let trace = breaks(Redlock { flaw: Some(flaw), ..model });
        assert!(trace.contains(what), "{flaw:?}: expected {what:?}, but:\n{trace}");
    }
}

#[test]
fn a_protocol_that_grants_nothing_more_is_found() {
    for flaw in [Flaw::NumberIsHighest, Flaw::TakeHidesCounter] {
        let found = explore(&Redlock { flaw: Some(flaw), ..Redlock::new(2, 3, Promise::Succession) });
        assert!(found.broken.is_none(), "{flaw:?} breaks nothing");
        assert!(!found.can_be_done, "{flaw:?}: there is no number for whoever is next");
    }
}
