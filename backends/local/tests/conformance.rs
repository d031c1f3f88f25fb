//! The local store keeps the contract, with clients in one process and in processes of their own.

use std::sync::Arc;

use ringfence_core::{Backend, BoxFuture, LockName, Result, SystemClock, Ttl};
use ringfence_local::LocalBackend;
use ringfence_servers::Taker;
use ringfence_testkit::{Harness, OtherProcess};
use tempfile::TempDir;

struct Local(TempDir);

impl Harness for Local {
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>> {
        Box::pin(async {
            Ok(Arc::new(LocalBackend::open(self.0.path(), Arc::new(SystemClock::new()))?) as _)
        })
    }

    fn start_process<'a>(
        &'a self,
        name: &'a LockName,
        ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        Some(Box::pin(async move {
            let url = format!("local:{}", self.0.path().display());
            let mut taker = Taker::start(&url, name.as_str(), &["--ttl", &ttl.to_string()]);
            taker.asks().await;
            Box::new(taker) as Box<dyn OtherProcess>
        }))
    }
}

ringfence_testkit::conformance!(Some(Local(TempDir::new().expect("a temporary directory"))));
