//! How the rows say who holds or waits, how, and by which attempt.

use ringfence_core::{HolderInfo, Mode, Nonce, Result};
use serde::{Deserialize, Serialize};

/// The same bits, in what the server has for them.
pub(crate) fn write_nonce(nonce: Nonce) -> i64 {
    nonce.get().cast_signed()
}

/// `None`: zero, which is no nonce.
pub(crate) fn read_nonce(bits: i64) -> Option<Nonce> {
    Nonce::from_u64(bits.cast_unsigned())
}

/// A holder as JSON, so that it is read in any client.
#[derive(Serialize, Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    label: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    host: std::borrow::Cow<'a, str>,
    pid: u32,
    #[serde(borrow, default)]
    metadata: std::borrow::Cow<'a, str>,
}

pub(crate) fn write_holder(holder: &HolderInfo) -> String {
    let said = Said {
        label: holder.label().into(),
        host: holder.host().into(),
        pid: holder.pid(),
        metadata: holder.metadata().into(),
    };
    serde_json::to_string(&said).expect("text and numbers are JSON")
}

/// `None`: nobody of us wrote it.
pub(crate) fn read_holder(text: &str) -> Option<HolderInfo> {
    let Said { label, host, pid, metadata } = serde_json::from_str(text).ok()?;
    HolderInfo::new(&label, &host, pid).and_then(|holder| holder.with_metadata(&metadata)).ok()
}

/// The mode of who holds alone.
pub(crate) const EXCLUSIVE: i32 = 0;

/// 0 exclusive, -1 shared, n one of at most n permits.
pub(crate) fn write_mode(mode: Mode) -> i32 {
    match mode {
        Mode::Exclusive => EXCLUSIVE,
        Mode::Shared => -1,
        Mode::Permit(limit) => limit.get().try_into().expect("PERMITS_MAX is small"),
    }
}

pub(crate) fn read_mode(number: i32) -> Result<Mode> {
    match number {
        EXCLUSIVE => Ok(Mode::Exclusive),
        -1 => Ok(Mode::Shared),
        limit => Mode::permit(u32::try_from(limit).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_holder_is_read_back(
            label in "[^\\p{Cc}]{1,40}", host in "[^\\p{Cc}]{1,40}", pid: u32, metadata in "(\\PC|\n|\0|\"|\\\\){0,40}",
        ) {
            let holder = HolderInfo::new(&label, &host, pid).unwrap().with_metadata(&metadata).unwrap();
            let written = write_holder(&holder);
            // A server's text has no such character.
            prop_assert!(!written.contains('\0'));
            prop_assert_eq!(read_holder(&written), Some(holder));
        }

        #[test]
        fn what_anybody_wrote_is_no_panic(text in "\\PC{0,80}") {
            let _ = read_holder(&text);
        }

        #[test]
        fn a_nonce_is_read_back(bits in 1..=u64::MAX) {
            let nonce = Nonce::from_u64(bits).unwrap();
            prop_assert_eq!(read_nonce(write_nonce(nonce)), Some(nonce));
        }

        #[test]
        fn a_mode_is_read_back(limit in 1..=ringfence_core::PERMITS_MAX) {
            for mode in [Mode::Exclusive, Mode::Shared, Mode::permit(limit).unwrap()] {
                prop_assert_eq!(read_mode(write_mode(mode)).unwrap(), mode);
            }
        }
    }
}
