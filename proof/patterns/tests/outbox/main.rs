//! The transactional outbox, on real databases. What needs the program is in the program's own tests: relays that are killed,
//! stopped past their claims, or cut off.

mod dead_letters;
mod order;
mod program;
mod refusals;
mod sinks;
mod stage;
mod transactions;
mod trouble;
