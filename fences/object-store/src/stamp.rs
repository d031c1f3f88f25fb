//! What an object's metadata says of its fence.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use object_store::{Attribute, Attributes, PutPayload};
use ringfence_core::{Error, ErrorKind, FencingToken, Nonce, Result};

/// How many bytes of a stored object are no part of its value, where the store's ETags are a hash of what is stored.
pub const SALT_BYTES: usize = 18;

/// The key of the metadata. Without a hyphen, which Azure does not take, and without an underline, which proxies do not.
const KEY: Attribute = Attribute::Metadata(Cow::Borrowed("ringfence"));

/// What stands there, as `mark=1024.7b put=9f3c salt=18 written=1023.5c wrote=77aa`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The highest token that the object has seen.
    pub(crate) mark: FencingToken,
    /// The put that brought this stamp: no two have the same.
    pub(crate) put: Nonce,
    /// How many bytes at the end are no part of the value.
    pub(crate) salt: usize,
    /// The token of the last write and its put, `None` where the object was only opened.
    pub(crate) written: Option<(FencingToken, Nonce)>,
}

impl Stamp {
    /// The stamp of an object, `None` if it has none.
    pub(crate) fn of(attributes: &Attributes) -> Result<Option<Self>> {
        attributes.get(&KEY).map(|text| text.as_ref().parse()).transpose()
    }

    /// The same attributes with this stamp.
    pub(crate) fn on(&self, attributes: &Attributes) -> Attributes {
        let mut attributes = attributes.clone();
        attributes.insert(KEY, self.to_string().into());
        attributes
    }

    /// What is stored for a value.
    pub(crate) fn seal(&self, value: Bytes) -> PutPayload {
        if self.salt == 0 {
            return value.into();
        }
        PutPayload::from_iter([value, self.salt().into()])
    }

    /// The value of what is stored.
    pub(crate) fn unseal(&self, mut stored: Bytes) -> Result<Bytes> {
        if self.salt == 0 {
            return Ok(stored);
        }
        if !stored.ends_with(self.salt().as_bytes()) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                "it does not end as its metadata says: somebody has put it without the fence, and kept the metadata",
            ));
        }
        stored.truncate(stored.len() - SALT_BYTES);
        Ok(stored)
    }

    fn salt(&self) -> String {
        format!("\n{:016x}\n", self.put.get())
    }

    /// What it says to a token: whether that is the mark, and not above it.
    pub(crate) fn judge(&self, token: FencingToken) -> Result<bool> {
        let Self { mark, .. } = self;
        if *mark == token {
            return Ok(true);
        }
        let (kind, why) = match mark.sequence().cmp(&token.sequence()) {
            std::cmp::Ordering::Less => return Ok(false),
            std::cmp::Ordering::Equal => (
                ErrorKind::TokenCollision,
                format!(
                    "token {token} has the sequence of {mark}, which was seen: two holders were given one number, so a lock service has \
                     lost its memory; stop both, and look at it"
                ),
            ),
            std::cmp::Ordering::Greater => (
                ErrorKind::Stale,
                format!("token {token} is stale: {mark} was seen; stop, and acquire the lock again"),
            ),
        };
        Err(Error::new(kind, why).with_mark(*mark))
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mark, put, salt, written } = self;
        write!(f, "mark={mark} put={put} salt={salt}")?;
        match written {
            Some((token, put)) => write!(f, " written={token} wrote={put}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Stamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (mut mark, mut put, mut salt, mut written, mut wrote) = (None, None, None, None, None);
            for field in text.split(' ') {
                match field.split_once('=')? {
                    ("mark", value) => mark = Some(value.parse().ok()?),
                    ("put", value) => put = Some(value.parse().ok()?),
                    ("salt", "0") => salt = Some(0),
                    ("salt", "18") => salt = Some(SALT_BYTES),
                    ("written", value) => written = Some(value.parse().ok()?),
                    ("wrote", value) => wrote = Some(value.parse().ok()?),
                    _ => return None,
                }
            }
            let written = match (written, wrote) {
                (Some(token), Some(put)) => Some((token, put)),
                (None, None) => None,
                _ => return None,
            };
            Some(Self { mark: mark?, put: put?, salt: salt?, written })
        };
        parse().ok_or_else(|| {
            let shown: String = text.chars().take(200).collect();
            Error::new(
                ErrorKind::Corrupt,
                format!("its metadata `ringfence` is {shown:?}, which is not ours or is of a later version"),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(mark: (u64, u64), put: u64, salt: bool, written: Option<(u64, u64, u64)>) -> Stamp {
        let token = |(sequence, nonce): (u64, u64)| {
            FencingToken::new(sequence >> 1, Nonce::from_u64(nonce.max(1)).unwrap()).unwrap()
        };
        let nonce = |number: u64| Nonce::from_u64(number.max(1)).unwrap();
        Stamp {
            mark: token(mark),
            put: nonce(put),
            salt: if salt { SALT_BYTES } else { 0 },
            written: written.map(|(sequence, number, put)| (token((sequence, number)), nonce(put))),
        }
    }

    proptest! {
        #[test]
        fn a_stamp_and_a_value_come_back(
            mark in any::<(u64, u64)>(), put in any::<u64>(), salt in any::<bool>(),
            written in any::<Option<(u64, u64, u64)>>(), value in any::<Vec<u8>>(),
        ) {
            let stamp = stamp(mark, put, salt, written);
            prop_assert_eq!(stamp.to_string().parse::<Stamp>().unwrap(), stamp.clone());
            let stored: Vec<u8> = stamp.seal(value.clone().into()).into_iter().flatten().collect();
            prop_assert_eq!(stored.len(), value.len() + stamp.salt);
            prop_assert_eq!(stamp.unseal(stored.into()).unwrap(), value);
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for text in [
            "",
            "mark=1.a",
            "mark=1.a put=1 salt=17",
            "mark=1.a put=1 salt=18 written=1.a",
            "mark=1.a put=1 salt=0 later=1",
        ] {
            assert_eq!(text.parse::<Stamp>().unwrap_err().kind(), ErrorKind::Corrupt, "{text:?}");
        }
        let stamp = stamp((2, 1), 7, true, None);
        for stored in ["", "value", "value\n0000000000000008\n"] {
            assert_eq!(stamp.unseal(stored.into()).unwrap_err().kind(), ErrorKind::Corrupt, "{stored:?}");
        }
    }
}
