//! What a record keeps of work that is done: a line of JSON, then the result as it is.

use bytes::{BufMut, Bytes, BytesMut};
use ringfence_core::{Error, ErrorKind, LockName, RECORD_VALUE_MAX, Result, WallTime};
use serde::{Deserialize, Serialize};

/// The longest line before the result, in bytes: a fingerprint and two times, and room for what a later version may add.
const HEAD_MAX: usize = 256;

/// The largest result that is kept, in bytes: 65,280, which is a record less the line before it.
pub const RESULT_MAX: usize = RECORD_VALUE_MAX - HEAD_MAX;

/// What is known of a result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    /// The hash of the request, where its caller gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fingerprint: Option<String>,
    /// When the work was done.
    pub(super) completed: WallTime,
    /// From when on the key is new.
    pub(super) expires: WallTime,
}

/// A result, and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) head: Head,
    pub(super) result: Bytes,
}

impl Kept {
    /// The record's value. The result is at most [`RESULT_MAX`] bytes.
    pub(super) fn to_value(head: &Head, result: &[u8]) -> Bytes {
        let head = serde_json::to_vec(head).expect("a head has string keys and whole numbers");
        debug_assert!(head.len() < HEAD_MAX, "a head is a fingerprint and two times: {}", head.len());
        let mut value = BytesMut::with_capacity(head.len() + 1 + result.len());
        value.put_slice(&head);
        value.put_u8(b'\n');
        value.put_slice(result);
        value.freeze()
    }

    /// What a record keeps. Errors with [`ErrorKind::Corrupt`] where somebody else wrote it.
    pub(super) fn of_value(name: &LockName, value: &Bytes) -> Result<Self> {
        let head_ends = value.iter().position(|&byte| byte == b'\n').unwrap_or(value.len());
        let head = serde_json::from_slice(&value[..head_ends]).map_err(|error| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the record of {:?} is not one of an idempotency key: expected a line of JSON before the result; look at \
                     it with `ringfence record get`, and at who else writes names that begin with idempotency/",
                    name.as_str()
                ),
            )
            .because(error)
        })?;
        Ok(Self { head, result: value.slice((head_ends + 1).min(value.len())..) })
    }

    /// Whether its retention is over: then the key is new.
    pub(super) fn is_over(&self, now: WallTime) -> bool {
        self.head.expires <= now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> LockName {
        LockName::new("idempotency/a").unwrap()
    }

    proptest! {
        #[test]
        fn what_is_kept_reads_back_the_same(
            fingerprint: Option<[u8; 32]>,
            completed: u64,
            expires: u64,
            result: Vec<u8>,
        ) {
            let head = Head {
                fingerprint: fingerprint.map(|hash| format!("{:x}", Bytes::copy_from_slice(&hash))),
                completed: WallTime::from_millis(completed),
                expires: WallTime::from_millis(expires),
            };
            let value = Kept::to_value(&head, &result);
            prop_assert!(value.len() - result.len() <= HEAD_MAX, "{value:?}");
            prop_assert_eq!(Kept::of_value(&name(), &value).unwrap(), Kept { head, result: result.into() });
        }

        #[test]
        fn what_somebody_else_wrote_is_said_to_be(value: Vec<u8>) {
            let read = Kept::of_value(&name(), &value.into());
            prop_assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
