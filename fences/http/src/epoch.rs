//! Epochs: how an operator starts a resource's mark anew, and what is kept of that.
//!
//! A mark never goes down. So a reset begins another one: the marks of epoch 0 are the record `gate`, those of epoch 3 the record
//! `gate.3`, and which epoch it is stands in the record `gate.epoch` of the same lock, which only a holder of that lock can write.

use ringfence_core::{
    Error, ErrorKind, FencedStore, FencingToken, LockName, Nonce, RecordKey, Result, WallTime,
};
use serde::{Deserialize, Serialize};

/// The field of the record that says which epoch it is.
const EPOCH_FIELD: &str = "gate.epoch";

/// The most resets that are kept; the oldest goes first.
const RESETS_MAX: usize = 32;

/// The longest reason for a reset, in bytes.
const WHY_MAX: usize = 512;

/// Which epoch a resource is in, and how it came to that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Epochs {
    /// How often its mark was started anew.
    pub epoch: u64,
    /// The last 32 resets, the latest last.
    pub resets: Vec<Reset>,
}

/// That a mark was started anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::exhaustive_structs, reason = "whoever resets a mark says all of this")]
pub struct Reset {
    /// When, by the clock of whoever did it.
    pub at: WallTime,
    /// Who did it.
    pub by: String,
    /// Why: at most 512 bytes.
    pub why: String,
    /// The mark that was given up, if there was one.
    pub mark: Option<FencingToken>,
}

impl Epochs {
    /// Reads them. One round trip. Errors with [`ErrorKind::Corrupt`] if the record is not ours.
    pub async fn read(store: &dyn FencedStore, name: &LockName) -> Result<Self> {
        let record = store.read(&epoch_key(name)).await?;
        record.map_or_else(|| Ok(Self::default()), |record| Self::parse(name, &record.value))
    }

    /// Starts the mark anew with the token of a lease on the lock, and returns the reset as it is kept, with the mark that was
    /// given up. Where the lock lives in the same store (`seed`), the new mark is that token, so that whatever was granted before is refused.
    ///
    /// Up to five round trips. Errors with [`ErrorKind::Stale`] if the lease is over, and with [`ErrorKind::InvalidRequest`] for a reason that
    /// is too long.
    ///
    /// # Cancel safety
    /// The mark may have been started anew or not; [`read`](Self::read) says it.
    pub async fn reset(
        store: &dyn FencedStore,
        name: &LockName,
        token: FencingToken,
        seed: bool,
        reset: Reset,
    ) -> Result<Reset> {
        if reset.why.len() > WHY_MAX {
            let why = format!("a reason has at most {WHY_MAX} bytes, this one has {}", reset.why.len());
            return Err(Error::new(ErrorKind::InvalidRequest, why));
        }
        let key = epoch_key(name);
        let found = store.open(&key, token).await?.record;
        let mut epochs =
            found.map_or_else(|| Ok(Self::default()), |record| Self::parse(name, &record.value))?;
        let reset = Reset { mark: mark(store, name, epochs.epoch).await?, ..reset };
        epochs.epoch += 1;
        epochs.resets.push(reset.clone());
        let surplus = epochs.resets.len().saturating_sub(RESETS_MAX);
        epochs.resets.drain(..surplus);
        if seed {
            // Before anybody looks there.
            store.open(&mark_key(name, epochs.epoch), token).await?;
        }
        let text = serde_json::to_vec(&epochs).expect("it has string keys");
        store.write(&key, token, text.into()).await?;
        Ok(reset)
    }

    fn parse(name: &LockName, value: &[u8]) -> Result<Self> {
        serde_json::from_slice(value).map_err(|error| {
            Error::new(ErrorKind::Corrupt, "it does not say which epoch the mark is in")
                .about(format_args!("record {}", epoch_key(name)))
                .because(error)
        })
    }
}

/// The mark of an epoch, if there is one: what refuses the lowest token that can be. One round trip.
pub async fn mark(store: &dyn FencedStore, name: &LockName, epoch: u64) -> Result<Option<FencingToken>> {
    let lowest = FencingToken::new(0, Nonce::random()).expect("0 is a sequence");
    match store.open(&mark_key(name, epoch), lowest).await {
        Ok(_) => Ok(None),
        // No grant has the sequence 0: such a mark is left of somebody who asked as we do.
        Err(error) if matches!(error.kind(), ErrorKind::Stale | ErrorKind::TokenCollision) => {
            Ok(error.mark().filter(|mark| mark.sequence() > 0))
        }
        Err(error) => Err(error),
    }
}

/// The record whose mark is the resource's in this epoch.
pub(crate) fn mark_key(name: &LockName, epoch: u64) -> RecordKey {
    let field = if epoch == 0 { "gate".to_owned() } else { format!("gate.{epoch}") };
    RecordKey::new(name.clone(), field).expect("it is a field")
}

fn epoch_key(name: &LockName) -> RecordKey {
    RecordKey::new(name.clone(), EPOCH_FIELD).expect("it is a field")
}
