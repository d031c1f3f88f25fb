//! The local store keeps the contract, with clients in one process and in processes of their own; and with records for locks
//! that live elsewhere.

use std::sync::Arc;

use ringfence_core::{Backend, BoxFuture, LockName, RecordGuard, Result, SystemClock, Ttl};
use ringfence_local::LocalBackend;
use ringfence_patterns::faults::Reach;
use ringfence_servers::Taker;
use ringfence_testkit::{Harness, OtherProcess};
use tempfile::TempDir;

struct Local {
    directory: TempDir,
    guard: RecordGuard,
}

impl Local {
    fn new(guard: RecordGuard) -> Self {
        Self { directory: TempDir::new().expect("a temporary directory"), guard }
    }

    fn open(&self) -> Result<LocalBackend> {
        let store = LocalBackend::open(self.directory.path(), Arc::new(SystemClock::new()))?;
        Ok(store.with_record_guard(self.guard))
    }
}

impl Harness for Local {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async { Ok(Arc::new(self.open()?) as _) })
    }

    fn start_process<'a>(
        &'a self,
        name: &'a LockName,
        ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        Some(Box::pin(async move { Taker::asking(&self.url(), name, ttl).await }))
    }
}

impl Reach for Local {
    fn url(&self) -> String {
        self.open().expect("the store").to_string()
    }
}

ringfence_testkit::conformance!(Some(Local::new(RecordGuard::LiveLease)));

mod for_locks_elsewhere {
    use ringfence_core::RecordGuard;

    ringfence_testkit::conformance!(Some(super::Local::new(RecordGuard::HighWaterMark)));
}

mod patterns {
    use ringfence_core::RecordGuard;

    ringfence_patterns::patterns!(Some(super::Local::new(RecordGuard::LiveLease)));
}

mod under_faults {
    use ringfence_core::RecordGuard;

    ringfence_patterns::faults!(Some(super::Local::new(RecordGuard::LiveLease)));
}
