//! What a process says to the one that has started it and several others, and hears from it.

use serde::Serialize;

/// Says that this process is ready, and waits for all the others to be.
pub(crate) fn wait() {
    println!("ready");
    std::io::stdin().read_line(&mut String::new()).expect("the word to go");
}

/// What this process has to say at the end.
pub(crate) fn report(outcome: &impl Serialize) {
    println!("{}", serde_json::to_string(outcome).expect("figures have a JSON form"));
}
