//! Leases of a PostgreSQL server under faults: dead connections, crashed, stopped, forgetful and promoted servers, locked tables,
//! paused processes, lost answers, stepped clocks, dropped futures.
//!
//! What a fault costs is asked of the server and of the guards of the hall. Each test says what would go wrong without it.

mod clocks;
mod connections;
mod crowd;
mod drops;
mod outages;
mod pauses;
mod power;
mod promotions;
mod replies;
mod rows;
mod stage;
