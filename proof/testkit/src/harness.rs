use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{
    Backend, BoxFuture, Clock, FencingToken, Lease, LockName, Result, SystemClock, Ttl, Version,
};

/// The longest that one case may take, with all its waits, and with the build of the program that it may start.
const CASE_LIMIT: Duration = Duration::from_mins(2);

/// What a backend brings to the suite: clients of one store, and the faults it can cause.
///
/// Every case makes a harness of its own. Harnesses may share a server, but each should have a namespace of its own (a
/// directory, a database, a prefix).
///
/// The faults have a default that says "not here". Whatever is left at it is not proven, and the cases that need
/// it say that they do not apply.
pub trait Harness: Send + Sync {
    /// A new client of the store that shares nothing with the other clients but the store, as one in another process
    /// would. A backend of one process, whose tasks are its clients, may return the same one again.
    fn connect(&self) -> BoxFuture<'_, Result<Arc<dyn Backend>>>;

    /// The clock that the clients read; the cases set their deadlines by it.
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock::new())
    }

    /// *Stop* and *kill*: starts a client in a process of its own that at once asks for `name`, exclusively, and waits
    /// for it without limit. Returns when the process asks.
    fn start_process<'a>(
        &'a self,
        _name: &'a LockName,
        _ttl: Ttl,
    ) -> Option<BoxFuture<'a, Box<dyn OtherProcess>>> {
        None
    }

    /// *Cut off*: a new client at the end of a cable.
    fn connect_by_cable(&self) -> Option<BoxFuture<'_, Box<dyn Cable>>> {
        None
    }

    /// *Expire*: ends a lease as the end of its TTL would, now: by moving the clock, or by ending its session.
    fn expire<'a>(&'a self, _lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        None
    }

    /// *Evict*: removes a lease behind everybody's back, by the store's own means and not by
    /// [`Backend::evict`]: a deleted key, a deleted row.
    fn remove_behind_its_back<'a>(&'a self, _lease: &'a Lease) -> Option<BoxFuture<'a, ()>> {
        None
    }
}

/// A client in a process of its own, which holds or waits for one lock.
///
/// It renews while it runs. It goes away when it is dropped, whatever state it is in. Its methods panic, with what it
/// said, when it does not do as it is told.
pub trait OtherProcess: Send {
    /// Waits until the process holds the lock, and says by which token.
    fn held(&mut self) -> BoxFuture<'_, FencingToken>;

    /// Has the process open the lock's record ([`RecordKey::of`](ringfence_core::RecordKey::of)) with its token, and
    /// write.
    fn write<'a>(&'a mut self, value: &'a str) -> BoxFuture<'a, Result<Version>>;

    /// Waits until the process says that its lease is lost.
    fn lost(&mut self) -> BoxFuture<'_, ()>;

    /// Stops it, as SIGSTOP does, and returns when it has stopped.
    fn stop(&mut self);

    /// Lets it run on.
    fn resume(&mut self);

    /// Kills it, as SIGKILL does, and returns when it is dead.
    fn kill(&mut self);
}

/// What connects a client to its store. It begins whole.
pub trait Cable: Send + Sync {
    /// The client at the end of it.
    fn client(&self) -> Arc<dyn Backend>;

    /// Nothing passes any more, in either direction.
    fn cut(&self);

    /// Everything passes again.
    fn mend(&self);
}

/// Why a case does not apply to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a reason and nothing else")]
pub struct NotApplicable(pub &'static str);

/// What a case says that did not panic: the backend does as the contract says, or the case does not apply.
pub type Verdict = std::result::Result<(), NotApplicable>;

/// Runs one case in a runtime of its own. [`conformance!`](crate::conformance) calls it.
///
/// Panics where the backend breaks the contract. Says on stderr when the case does not apply, past the capture of the
/// test harness, because a case that was left out must not look like one that passed.
pub fn run<H>(
    name: &str,
    harness: impl Future<Output = Option<H>>,
    case: impl for<'a> FnOnce(&'a H) -> BoxFuture<'a, Verdict>,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("the case needs a tokio runtime");
    let verdict = runtime.block_on(async {
        let Some(harness) = harness.await else { return Ok(()) };
        tokio::time::timeout(CASE_LIMIT, case(&harness))
            .await
            .unwrap_or_else(|_| panic!("{name} hangs: it is not done after {CASE_LIMIT:?}"))
    });
    if let Err(NotApplicable(why)) = verdict {
        writeln!(std::io::stderr(), "not applicable: {name}: {why}").expect("stderr can be written to");
    }
}
