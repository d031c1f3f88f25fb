//! What many may want at a time, and one of them tries to get.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ringfence_core::{Error, Result};

/// Tries that are made one at a time.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    one_at_a_time: tokio::sync::Mutex<()>,
    failed: Mutex<Failed>,
}

/// How many led to nothing, with what came of the last one.
#[derive(Debug, Default)]
struct Failed {
    count: u64,
    last: Option<Error>,
}

impl Tries {
    /// What is `present` by the time that nobody else tries, or what comes of this `attempt`. Whoever waits for one that fails has its
    /// error: one after the other, for each of them, would take long.
    ///
    /// # Cancel safety
    /// An attempt whose future is dropped counts as none, and the next one that waits makes its own.
    pub(crate) async fn get<T>(
        &self,
        present: impl Fn() -> Option<T>,
        attempt: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let before = self.failed().count;
        let _one_at_a_time = self.one_at_a_time.lock().await;
        if let Some(present) = present() {
            return Ok(present);
        }
        if let Failed { count, last: Some(error) } = &*self.failed()
            && *count > before
        {
            return Err(error.clone());
        }
        let tried = attempt.await;
        if let Err(error) = &tried {
            let mut failed = self.failed();
            failed.count += 1;
            failed.last = Some(error.clone());
        }
        tried
    }

    fn failed(&self) -> MutexGuard<'_, Failed> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use ringfence_core::ErrorKind;

    use super::*;

    #[tokio::test]
    async fn who_waits_for_one_that_fails_has_its_error_and_whoever_comes_later_tries() {
        let (tries, made) = (Tries::default(), Cell::new(0));
        let fail = || async {
            made.set(made.get() + 1);
            tokio::task::yield_now().await;
            Err::<(), _>(Error::new(ErrorKind::Unavailable, "away"))
        };
        let (first, second) = tokio::join!(tries.get(|| None, fail()), tries.get(|| None, fail()));
        assert_eq!((first.unwrap_err().message(), second.unwrap_err().message()), ("away", "away"));
        assert_eq!(made.get(), 1);
        tries.get(|| None, fail()).await.unwrap_err();
        assert_eq!(made.get(), 2);
        tries.get(|| Some(()), fail()).await.unwrap();
        assert_eq!(made.get(), 2, "it is there");
    }
}
