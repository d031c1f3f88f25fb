use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ringfence_core::{Error, ErrorKind, LockName, Result};

use crate::guard::Guard;
use crate::hall::Hall;
use crate::request::{LockRequest, Patience, Terms};
use crate::stakes::Stakes;

/// The most locks that one [`Locks::all`](crate::Locks::all) takes.
pub const ALL_MAX: usize = 1000;

/// A request for several locks, all or nothing; see [`Locks::all`](crate::Locks::all).
#[derive(Debug)]
#[must_use = "a request asks for nothing until it is acquired"]
pub struct AllRequest {
    hall: Arc<Hall>,
    names: Result<Vec<LockName>>,
    terms: Terms,
}

impl AllRequest {
    pub(crate) fn new(hall: Arc<Hall>, names: impl Iterator<Item = Result<LockName>>) -> Self {
        Self { hall, names: names.take(ALL_MAX + 1).collect(), terms: Terms::default() }
    }

    /// How long each lease lives without renewal; see [`LockRequest::ttl`].
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.terms.ttl = Some(ttl);
        self
    }

    /// Keeps everybody else out of each of them for this long after an unclean loss; see [`LockRequest::lock_delay`].
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.terms.lock_delay = delay;
        self
    }

    /// Waits for at most this long for all of them together; see [`LockRequest::wait`].
    pub fn wait(mut self, wait: Duration) -> Self {
        self.terms.wait = Some(wait);
        self
    }

    /// Holds all of them together with other shared holders; see [`LockRequest::shared`].
    pub fn shared(mut self) -> Self {
        self.terms.shared = true;
        self
    }

    /// What a double run costs; see [`LockRequest::stakes`].
    pub fn stakes(mut self, stakes: Stakes) -> Self {
        self.terms.stakes = stakes;
        self
    }

    /// Acquires all of the locks, one after the other in byte order, so that two requests for the same locks never wait for
    /// each other in a circle. A name that is given twice is acquired once. One round trip for each lock that is free.
    ///
    /// If one of them cannot be had, those acquired so far are released before the error returns. Errors as
    /// [`LockRequest::acquire`] does; with [`ErrorKind::InvalidRequest`] for no name or more than [`ALL_MAX`]; with
    /// [`ErrorKind::Lost`] if one was lost while the others were waited for.
    ///
    /// # Cancel safety
    /// Dropping the future releases what was acquired so far, in the background.
    pub async fn acquire(self) -> Result<Guards> {
        let mut names = self.names?;
        if names.is_empty() || names.len() > ALL_MAX {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("1 to {ALL_MAX} locks can be acquired together; these are none, or more"),
            ));
        }
        names.sort_unstable();
        names.dedup();
        let patience = Patience::of(self.terms.wait, &*self.hall.clock);
        let mut guards = Guards { guards: Vec::with_capacity(names.len()) };
        for name in names {
            let request = LockRequest::new(Arc::clone(&self.hall), Ok(name), self.terms.clone(), None);
            let asked = async { request.checked(patience)?.guard().await };
            match asked.await {
                Ok(guard) => guards.guards.push(guard),
                Err(error) => return guards.give_up(error).await,
            }
        }
        match guards.ensure_held() {
            Ok(()) => Ok(guards),
            Err(error) => guards.give_up(error).await,
        }
    }
}

/// The guards of several locks, in byte order of their names.
#[derive(Debug)]
#[must_use = "locks whose guards are dropped are released at once"]
pub struct Guards {
    guards: Vec<Guard>,
}

impl Guards {
    /// The guards, in byte order of their names.
    pub fn iter(&self) -> std::slice::Iter<'_, Guard> {
        self.guards.iter()
    }

    /// The guard of a name, where it is among them.
    pub fn get(&self, name: &str) -> Option<&Guard> {
        let index = self.guards.binary_search_by(|guard| guard.name().as_str().cmp(name)).ok()?;
        self.guards.get(index)
    }

    /// Whether holding all of them can be proven right now. Errors with [`ErrorKind::Lost`] and names the first that is
    /// lost.
    pub fn ensure_held(&self) -> Result<()> {
        self.guards.iter().try_for_each(Guard::ensure_held)
    }

    /// Resolves when the first of the leases is lost; see [`Guard::lost`].
    pub fn lost(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut all: Vec<_> = self.guards.iter().map(|guard| Box::pin(guard.lost())).collect();
        poll_fn(move |context| {
            let lost = all.iter_mut().any(|lost| lost.as_mut().poll(context).is_ready());
            if lost { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Gives all of them back, the last one first, whatever becomes of the others; then errors with the first error, if
    /// there was one. See [`Guard::release`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the release, but what was not sent by then is sent in the background.
    pub async fn release(self) -> Result<()> {
        let mut result = Ok(());
        for guard in self.guards.into_iter().rev() {
            let released = guard.release().await;
            result = result.and(released);
        }
        result
    }

    async fn give_up(self, error: Error) -> Result<Self> {
        if let Err(unreleased) = self.release().await {
            tracing::warn!(error = %unreleased, "some locks of a request that failed were not released");
        }
        Err(error)
    }
}

impl<'a> IntoIterator for &'a Guards {
    type Item = &'a Guard;
    type IntoIter = std::slice::Iter<'a, Guard>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
