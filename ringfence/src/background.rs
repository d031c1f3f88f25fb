//! Futures that outlive the caller who started them: no step towards or away from a lease is left half done because
//! somebody dropped a future of ours.

use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringfence_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::sync::Mutex;

/// The runtime that the hall was opened on, and how many of our tasks run there.
#[derive(Clone, Debug)]
pub(crate) struct Background {
    runtime: Handle,
    tasks: Arc<Tasks>,
    young: Arc<Young>,
}

#[derive(Debug, Default)]
struct Tasks {
    running: AtomicUsize,
    idle: Notify,
}

/// One task that runs, counted until it is dropped.
struct Running(Arc<Tasks>);

impl Running {
    fn one_of(tasks: &Arc<Tasks>) -> Self {
        tasks.running.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(tasks))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Background {
    pub(crate) fn on(runtime: Handle) -> Self {
        let young = Arc::<Young>::default();
        runtime.spawn(adopt_all(Arc::downgrade(&young), Arc::clone(&young.news)));
        Self { runtime, tasks: Arc::default(), young }
    }

    /// Runs a future to its end, whatever becomes of the caller.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_counted(Running::one_of(&self.tasks), future);
    }

    fn spawn_counted(&self, running: Running, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(async move {
            let _running = running;
            future.await;
        });
    }

    /// Starts a future that runs to its end, whatever becomes of the caller; see [`Errand`]. `Err`: it has ended already.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> impl Future<Output = Result<T, Errand<T>>> + Send {
        let background = self.clone();
        let mut future = Box::pin(future);
        async move {
            if background.is_here()
                && let Poll::Ready(result) = poll_once(future.as_mut()).await
            {
                return Ok(result);
            }
            Err(Errand::new(background, future))
        }
    }

    /// Runs a future to its end, whatever becomes of the caller, and waits for what comes of it.
    pub(crate) async fn finish<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let ended = match self.begin(future).await {
            Ok(result) => return result,
            Err(errand) => errand.await,
        };
        ended.unwrap_or_else(|| {
            Err(Error::new(
                ErrorKind::Bug,
                "the backend panicked, or the runtime was shut down, before it answered; the lease ends at its TTL",
            )
            .with_unknown_effect())
        })
    }

    /// Runs a future to its end from a place that cannot wait, such as a `drop`. Never panics: outside of the runtime, or
    /// while a panic unwinds, nothing is polled here.
    pub(crate) fn let_go(&self, future: impl Future<Output = ()> + Send + 'static) {
        let mut future = Box::pin(future);
        let can_poll = self.is_here() && !std::thread::panicking();
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

    /// Whether the caller is on the runtime of the hall. The first timer or socket of whatever is polled elsewhere would belong to
    /// another runtime, and may end with that while others still depend on it.
    fn is_here(&self) -> bool {
        Handle::try_current().is_ok_and(|current| current.id() == self.runtime.id())
    }
}

/// After this long an errand is taken from its caller, or a little later.
const ADOPT_AFTER: Duration = Duration::from_millis(10);

/// A future that its caller polls at first, and a task of its own later.
///
/// Nearly every errand is one round trip, and a task for it would cost two changes of thread, which is more than all the
/// rest of ours. But others may depend on it, and a caller may be dropped, or forget to poll. So whatever is left of it goes
/// to a task when the caller drops it, or when it has taken longer than a round trip does.
///
/// Resolves to `None` if the future panicked or its runtime was shut down.
pub(crate) struct Errand<T: Send + 'static>(Arc<Slot<T>>);

struct Slot<T> {
    background: Background,
    state: Mutex<State<T>>,
}

enum State<T> {
    /// The caller polls it.
    Rides {
        future: Pin<Box<dyn Future<Output = T> + Send>>,
        caller: Waker,
        running: Running,
    },
    /// A task does.
    Adopted(oneshot::Receiver<T>),
    Over,
}

impl<T: Send + 'static> Errand<T> {
    fn new(background: Background, future: Pin<Box<dyn Future<Output = T> + Send>>) -> Self {
        let running = Running::one_of(&background.tasks);
        let rides = State::Rides { future, caller: Waker::noop().clone(), running };
        let slot = Arc::new(Slot { background, state: Mutex::new(rides) });
        let adoptable: Arc<dyn Adoptable> = Arc::clone(&slot) as _;
        slot.background.young.add(Arc::downgrade(&adoptable));
        Self(slot)
    }
}

impl<T: Send + 'static> Future for Errand<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let slot = &*self.0;
        let mut state = slot.state.lock();
        let (result, ended) = match &mut *state {
            State::Rides { future, caller, .. } => {
                // Its timers and sockets belong to the runtime of the hall, wherever the caller lives.
                let _context = slot.background.runtime.enter();
                match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
                    Ok(Poll::Pending) => {
                        caller.clone_from(context.waker());
                        return Poll::Pending;
                    }
                    Ok(Poll::Ready(result)) => (Some(result), std::mem::replace(&mut *state, State::Over)),
                    Err(_panic) => (None, std::mem::replace(&mut *state, State::Over)),
                }
            }
            State::Adopted(result) => return Pin::new(result).poll(context).map(Result::ok),
            State::Over => (None, State::Over),
        };
        // What drops with the future may be anything, so the slot is open by then.
        drop(state);
        drop(ended);
        Poll::Ready(result)
    }
}

impl<T: Send + 'static> Drop for Errand<T> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.0.state.lock(), State::Over);
        if let State::Rides { future, running, .. } = state {
            self.0.background.spawn_counted(running, async move { drop(future.await) });
        }
    }
}

/// What may be taken from its caller.
trait Adoptable: Send + Sync {
    fn adopt(&self);
}

impl<T: Send + 'static> Adoptable for Slot<T> {
    fn adopt(&self) {
        let mut state = self.state.lock();
        if !matches!(*state, State::Rides { .. }) {
            return;
        }
        let (sender, receiver) = oneshot::channel();
        if let State::Rides { future, caller, running } =
            std::mem::replace(&mut *state, State::Adopted(receiver))
        {
            drop(state);
            self.background.spawn_counted(running, async move {
                // Nobody waits any more: then the result is dropped, and a guard in it releases.
                let _ = sender.send(future.await);
            });
            caller.wake();
        }
    }
}

/// The errands that were begun a moment ago.
#[derive(Default)]
struct Young {
    errands: Mutex<Vec<Weak<dyn Adoptable>>>,
    /// Says that there are some, or that there will be none any more.
    news: Arc<Notify>,
}

impl Young {
    fn add(&self, errand: Weak<dyn Adoptable>) {
        let mut errands = self.errands.lock();
        errands.push(errand);
        if errands.len() == 1 {
            self.news.notify_one();
        }
    }
}

impl Drop for Young {
    fn drop(&mut self) {
        self.news.notify_one();
    }
}

impl fmt::Debug for Young {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Young").finish_non_exhaustive()
    }
}

/// Adopts what is older than one or two looks. Looks at nothing while there is nothing.
async fn adopt_all(young: Weak<Young>, news: Arc<Notify>) {
    let mut older: Vec<Weak<dyn Adoptable>> = Vec::new();
    loop {
        if older.is_empty() {
            news.notified().await;
        }
        tokio::time::sleep(ADOPT_AFTER).await;
        let Some(young) = young.upgrade() else { return };
        for errand in older.drain(..) {
            if let Some(errand) = errand.upgrade() {
                errand.adopt();
            }
        }
        std::mem::swap(&mut older, &mut *young.errands.lock());
    }
}

async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}
