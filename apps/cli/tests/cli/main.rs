//! The program as its users see it: real processes, a real store in a directory of each test's own.

mod advise;
mod child;
mod death;
mod doctor;
mod elect;
mod exit_codes;
mod fence;
mod fence_table;
mod gate;
mod gate_http;
mod help;
mod hold;
mod idempotent;
mod input;
mod inspect;
mod loss;
mod once;
mod outbox;
mod partitions;
mod record;
mod setup;
mod support;
mod terminal;
