//! Futures that outlive the caller who started them: no step towards or away from a lease is left half done because
//! somebody dropped a future of ours.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use ringfence_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

/// The runtime that the hall was opened on, and how many of our tasks run there.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    runtime: Handle,
    tasks: Arc<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    running: AtomicUsize,
    idle: Notify,
}

/// One task that runs, counted until it is dropped.
struct Running(Arc<Tasks>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Background {
    pub(crate) fn on(runtime: Handle) -> Self {
        Self { runtime, tasks: Arc::default() }
    }

    /// Runs a future to its end, whatever becomes of the caller.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.tasks.running.fetch_add(1, Ordering::AcqRel);
        let running = Running(Arc::clone(&self.tasks));
        self.runtime.spawn(async move {
            let _running = running;
            future.await;
        });
    }

    /// Starts a future where the caller stands, and spawns what is left of it: nothing, where nothing has to be waited
    /// for.
    pub(crate) async fn start(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut future = Box::pin(future);
        if poll_once(future.as_mut()).await.is_pending() {
            self.spawn(future);
        }
    }

    /// Runs a future to its end, whatever becomes of the caller, and waits for what comes of it.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut future = Box::pin(future);
        if let Poll::Ready(result) = poll_once(future.as_mut()).await {
            return result;
        }
        let (sender, receiver) = oneshot::channel();
        self.spawn(async move {
            // Nobody waits any more: then the result is dropped, and a guard in it releases.
            let _ = sender.send(future.await);
        });
        receiver.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Bug,
                "the backend panicked, or the runtime was shut down, before it answered; the lease ends at its TTL",
            )
            .with_unknown_effect())
        })
    }

    /// Runs a future to its end from a place that cannot wait, such as a `drop`. Never panics: outside of a runtime, or
    /// while a panic unwinds, nothing is polled here.
    pub(crate) fn let_go(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut future = Box::pin(future);
        let can_poll = Handle::try_current().is_ok() && !std::thread::panicking();
        if can_poll && future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return;
        }
        self.spawn(future);
    }

    /// Waits until no task of ours runs.
    pub(crate) async fn idle(&self) {
        loop {
            let idle = self.tasks.idle.notified();
            if self.tasks.running.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}

async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
