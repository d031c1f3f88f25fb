//! Those of this process who stand in line at the server, and how each learns of its turn.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use foldhash::fast::RandomState;
use redis::{PushInfo, PushKind};
use ringfence_core::{FencingToken, LossListener, Nonce};
use tokio::sync::Notify;

use crate::scripts::{parse_nonce, text};

/// Everybody of this process who waits.
#[derive(Default)]
pub(crate) struct Line {
    waiters: Mutex<HashMap<Nonce, Arc<Waiter>, RandomState>>,
    listener: OnceLock<LossListener>,
}

/// One that waits.
#[derive(Debug, Default)]
pub(crate) struct Waiter {
    called: Notify,
    /// The number of its grant, once its turn has come.
    turn: AtomicU64,
}

/// A place in line, given up when it is dropped.
#[derive(Debug)]
pub(crate) struct Standing {
    line: Arc<Line>,
    nonce: Nonce,
    waiter: Arc<Waiter>,
}

impl Line {
    pub(crate) fn stand(self: &Arc<Self>, nonce: Nonce) -> Standing {
        let waiter = Arc::new(Waiter::default());
        self.waiters().insert(nonce, Arc::clone(&waiter));
        Standing { line: Arc::clone(self), nonce, waiter }
    }

    pub(crate) fn listen(&self, listener: LossListener) {
        // The contract allows one call; a second listener would be told of leases that are not its own.
        let _ = self.listener.set(listener);
    }

    /// What came unasked on the connection.
    pub(crate) fn pushed(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Message => self.message(push),
            // Whoever waits opens a new one, and finds there what it missed.
            PushKind::Disconnection => self.waiters().values().for_each(|waiter| waiter.called.notify_one()),
            _ => {}
        }
    }

    /// A message to this process.
    pub(crate) fn message(&self, push: &PushInfo) {
        let mut parts = push.data.get(1).and_then(text).unwrap_or_default().split(':');
        let (what, nonce) = (parts.next(), parts.next().and_then(parse_nonce));
        let turn = parts.next().and_then(|digits| digits.parse::<u64>().ok());
        let turn =
            turn.filter(|turn| nonce.is_some_and(|nonce| FencingToken::of_grant(*turn, nonce).is_ok()));
        match (what, nonce, turn) {
            (Some("turn"), Some(nonce), Some(turn)) => {
                if let Some(waiter) = self.waiters().get(&nonce) {
                    waiter.turn.store(turn, Ordering::Release);
                    waiter.called.notify_one();
                }
            }
            (Some("lost"), Some(nonce), _) => {
                if let Some(listener) = self.listener.get() {
                    listener(nonce);
                }
            }
            _ => tracing::warn!("somebody else writes to our channel"),
        }
    }

    fn waiters(&self) -> MutexGuard<'_, HashMap<Nonce, Arc<Waiter>, RandomState>> {
        self.waiters.lock().expect("nothing panics while it has the line")
    }
}

impl Standing {
    /// Resolves when there is something to look at: the turn, or the end of the connection.
    pub(crate) async fn called(&self) {
        self.waiter.called.notified().await;
    }

    /// The number of the grant, where the turn has come; told once.
    pub(crate) fn turn(&self) -> Option<u64> {
        Some(self.waiter.turn.swap(0, Ordering::AcqRel)).filter(|number| *number != 0)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.line.waiters().remove(&self.nonce);
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("waiters", &self.waiters().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redis::Value;

    use super::*;

    fn message(text: impl Into<Vec<u8>>) -> PushInfo {
        let channel = Value::BulkString(b"ringfence:00000000000000aa".to_vec());
        PushInfo { kind: PushKind::Message, data: vec![channel, Value::BulkString(text.into())] }
    }

    fn nonce() -> Nonce {
        Nonce::from_u64(0xee).unwrap()
    }

    #[test]
    fn a_turn_is_told_once_to_the_one_whose_it_is() {
        let line = Arc::<Line>::default();
        let (standing, other) = (line.stand(nonce()), line.stand(Nonce::random()));
        line.pushed(&message("turn:00000000000000ee:1700000000000000"));
        assert_eq!((standing.turn(), standing.turn()), (Some(1_700_000_000_000_000), None));
        assert_eq!(other.turn(), None);
        drop(standing);
        line.pushed(&message("turn:00000000000000ee:1700000000000001"));
        assert_eq!(other.turn(), None);
    }

    #[test]
    fn a_turn_that_cannot_be_one_is_none() {
        let line = Arc::<Line>::default();
        let standing = line.stand(nonce());
        for turn in ["0", "-1", "", "18446744073709551615", "36028797018963968", "1x", "rubbish", "+"] {
            line.pushed(&message(format!("turn:00000000000000ee:{turn}")));
            assert_eq!(standing.turn(), None, "{turn:?}");
        }
    }

    proptest! {
        #[test]
        fn what_anybody_pushes_is_no_panic_and_no_turn(
            text in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..80),
                "(turn|lost|TURN)?:?[0-9a-f]{0,17}:?[0-9:]{0,22}".prop_map(String::into_bytes),
            ],
            parts in 0_usize..3,
        ) {
            let line = Arc::<Line>::default();
            let lost = Arc::new(Mutex::new(Vec::new()));
            let told = Arc::clone(&lost);
            line.listen(Arc::new(move |nonce| told.lock().unwrap().push(nonce)));
            // Nobody whose nonce the text has stands here.
            let standing = line.stand(Nonce::from_u64(u64::MAX).unwrap());
            let mut push = message(text.clone());
            push.data.truncate(parts);
            line.pushed(&push);
            prop_assert_eq!(standing.turn(), None);
            prop_assert!(text.starts_with(b"lost:") || lost.lock().unwrap().is_empty());
        }
    }
}
