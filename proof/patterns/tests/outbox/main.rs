//! The transactional outbox, on real databases. What needs the program is in the program's own tests: relays that are killed, or
//! stopped past their claims.

mod dead_letters;
mod order;
mod refusals;
mod sinks;
mod stage;
mod transactions;
mod trouble;
