//! One Redis server under faults: paused processes, dead connections, lost answers, full memory, dropped futures.
//!
//! What a fault costs is asked of the server and of the guards of the hall. Each test says what would go wrong without it.

mod drops;
mod late;
mod line;
mod memory;
mod outages;
mod pauses;
mod releases;
mod renewals;
mod replies;
mod stage;
