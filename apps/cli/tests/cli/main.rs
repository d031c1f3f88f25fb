//! The program as its users see it: real processes, a real store in a directory of each test's own.

mod child;
mod death;
mod doctor;
mod elect;
mod exit_codes;
mod fence_table;
mod gate;
mod help;
mod hold;
mod input;
mod inspect;
mod loss;
mod once;
mod record;
mod setup;
mod support;
mod terminal;
