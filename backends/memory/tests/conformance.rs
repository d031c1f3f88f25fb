//! The memory backend does as the contract says.

use std::sync::Arc;

use ringfence_core::{Backend, BoxFuture, Clock, Lease, Result};
use ringfence_memory::MemoryBackend;
use ringfence_testkit::{Harness, ShiftedClock};

/// One world, whose clients are the tasks that share it, and the clock that its leases end by.
struct Memory {
    clock: Arc<ShiftedClock>,
    world: Arc<MemoryBackend>,
}

impl Memory {
    fn new() -> Self {
        let clock = Arc::new(ShiftedClock::new());
        let world = Arc::new(MemoryBackend::new(Arc::clone(&clock) as Arc<dyn Clock>));
        Self { clock, world }
    }
}

impl Harness for Memory {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { Ok(Arc::clone(&self.world) as Arc<dyn Backend>) })
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }

    fn expire<'a>(&'a self, lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        Some(Box::pin(async { self.clock.advance(lease.key.ttl.as_duration()) }))
    }
}

ringfence_testkit::conformance!(Some(Memory::new()));

mod patterns {
    ringfence_patterns::patterns!(Some(super::Memory::new()));
}
