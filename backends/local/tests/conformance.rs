//! The local store keeps the contract.

use std::sync::Arc;

use ringfence_core::{Backend, BoxFuture, Result, SystemClock};
use ringfence_local::LocalBackend;
use ringfence_testkit::Harness;
use tempfile::TempDir;

struct Local(TempDir);

impl Harness for Local {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async {
            Ok(Arc::new(LocalBackend::open(self.0.path(), Arc::new(SystemClock::new()))?) as _)
        })
    }
}

ringfence_testkit::conformance!(Local(TempDir::new().expect("a temporary directory")));
