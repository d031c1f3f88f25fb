//! `cargo run -p ringfence-model` prints how many nodes may forget with each quorum, found by search, and what happens
//! when one node more does.

use ringfence_core::Quorum;
use ringfence_model::explore;
use ringfence_model::redlock::{Promise, Redlock};

fn main() {
    println!("Redlock with quorum tokens, two attempts\n");
    println!("nodes  quorum  may forget    states  one node more");
    let mut shortest = None;
    for nodes in 3..=5 {
        for quorum in (1..=nodes).filter_map(|needed| Quorum::new(needed, nodes)) {
            let model = Redlock::new(quorum.needed(), nodes, Promise::Order);
            let may_forget = quorum.may_forget();
            let found = explore(&Redlock { failing: may_forget, ..model });
            let worse = explore(&Redlock { failing: may_forget + 1, ..model });
            println!(
                "{nodes:>5}  {:>6}  {may_forget:>10}  {:>8}  {}",
                quorum.needed(),
                found.states,
                match &worse.broken {
                    Some(trace) => format!("{}, after {} steps", trace.promise, trace.steps.len()),
                    None => "breaks nothing".to_owned(),
                }
            );
            if let Some(broken) = found.broken {
                println!("\n{broken}\n");
            }
            shortest = shortest.or(worse.broken);
        }
    }
    if let Some(trace) = shortest {
        println!("\nOn three nodes with a quorum of two, of which one forgets:\n\n{trace}");
    }
}
