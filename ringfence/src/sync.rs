//! The primitives under the state that threads share: loom's where loom explores every interleaving, std's elsewhere.

#[cfg(loom)]
use loom::sync as primitives;
#[cfg(not(loom))]
use std::sync as primitives;

pub(crate) use primitives::atomic::{AtomicU64, Ordering};

/// A mutex that a panic does not poison: what it guards is consistent at every instant at which foreign code runs.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(primitives::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(primitives::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> primitives::MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
