//! Re-entry by name: a holder that acquires again what it holds gets a nested guard.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use ringfence_core::{Error, LockName, Mode};

use crate::guard::Hold;
use crate::hall::Hall;
use crate::request::{LockRequest, Terms};
use crate::sync::Mutex;

/// A holder with an identity: whatever it acquires again while it holds it is a [nested](crate::Guard::nested) guard on
/// the same lease, with the same token.
///
/// Identity is a text of your choice, never a thread or a task. Two holders of one id in one
/// [`Locks`](crate::Locks) and its clones are the same holder; in another process they are not.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> ringfence::Result<()> {
/// # let locks = ringfence::Locks::connect("memory:").await?;
/// let job = locks.holder("job-7");
/// let outer = job.lock("orders/42").acquire().await?;
/// let inner = job.lock("orders/42").acquire().await?;
/// assert_eq!(inner.token(), outer.token());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Holder {
    hall: Arc<Hall>,
    id: Arc<str>,
}

impl Holder {
    pub(crate) fn new(hall: Arc<Hall>, id: &str) -> Self {
        Self { hall, id: id.into() }
    }

    /// The identity.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A request by this holder. If it holds the name already, the request is granted with a nested guard on that lease:
    /// with the lease's TTL and mode, whatever the request says.
    ///
    /// Errors at `acquire`, beside those of any request, with [`ErrorKind::Unsupported`](crate::ErrorKind) where the
    /// request wants more than the holder has, which would be an upgrade: see [`Guard::upgrade`](crate::Guard::upgrade).
    pub fn lock<N: TryInto<LockName, Error = Error>>(&self, name: N) -> LockRequest {
        LockRequest::new(
            Arc::clone(&self.hall),
            name.try_into(),
            Terms::default(),
            Some(Arc::clone(&self.id)),
        )
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Whether a hold in `held` covers a request for `wanted`: it is no weaker.
pub(crate) fn covers(held: Mode, wanted: Mode) -> bool {
    held == Mode::Exclusive || held == wanted
}

/// What each holder holds or is about to.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    entries: Mutex<HashMap<(Arc<str>, LockName), Entry>>,
}

#[derive(Debug)]
struct Entry {
    hold: SharedHold,
    enrolled: usize,
}

/// One holder's hold on one name. The mutex is held while the holder acquires: of two tasks that acquire in its name, the
/// second one finds what the first one got.
pub(crate) type SharedHold = Arc<tokio::sync::Mutex<Weak<Hold>>>;

/// Keeps an entry among the holders while somebody acquires or holds by it.
pub(crate) struct Enrolment {
    hall: Arc<Hall>,
    key: (Arc<str>, LockName),
}

impl Enrolment {
    pub(crate) fn new(hall: &Arc<Hall>, id: Arc<str>, name: LockName) -> (Self, SharedHold) {
        let key = (id, name);
        let mut entries = hall.holders.entries.lock();
        let entry =
            entries.entry(key.clone()).or_insert_with(|| Entry { hold: SharedHold::default(), enrolled: 0 });
        entry.enrolled += 1;
        let hold = Arc::clone(&entry.hold);
        drop(entries);
        (Self { hall: Arc::clone(hall), key }, hold)
    }
}

impl Drop for Enrolment {
    fn drop(&mut self) {
        let mut entries = self.hall.holders.entries.lock();
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.enrolled -= 1;
            if entry.enrolled == 0 {
                entries.remove(&self.key);
            }
        }
    }
}

impl fmt::Debug for Enrolment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Enrolment").field(&self.key).finish()
    }
}

#[cfg(test)]
mod tests {
    use crate::Locks;

    #[tokio::test]
    async fn a_holder_that_holds_nothing_costs_nothing() {
        let locks = Locks::connect("memory:").await.unwrap();
        let entries = || locks.hall.holders.entries.lock().len();
        let job = locks.holder("job-7");
        let outer = job.lock("a").acquire().await.unwrap();
        let inner = job.lock("a").acquire().await.unwrap();
        assert!(locks.holder("job-8").lock("a").try_acquire().await.unwrap().is_none());
        drop(outer);
        assert_eq!(entries(), 1);
        drop(inner);
        assert_eq!(entries(), 0);
    }
}
