use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// How many low bits of a token's sequence count the hand-overs inside one process under one grant.
pub const HANDOVER_BITS: u32 = 8;

/// The first sequence that is too large: sequences stay below 2^63, so that they fit every store's signed integer.
const SEQUENCE_END: u64 = 1 << 63;

/// Tells two attempts to hold one name apart: 64 bits from the operating system, drawn anew for every attempt.
///
/// Prints as hexadecimal without leading zeros. Never zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nonce(#[serde(with = "fixed")] u64);

impl Nonce {
    /// A new nonce from the operating system's random source.
    pub fn random() -> Self {
        loop {
            let number = getrandom::u64().expect("the operating system has a random source");
            if number != 0 {
                return Self(number);
            }
        }
    }

    /// The nonce of this number, or `None` for zero, which is no nonce.
    pub fn from_u64(number: u64) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }

    /// The nonce as a number.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Nonce {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let canonical = !text.is_empty()
            && !text.starts_with('0')
            && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let nonce =
            if canonical { u64::from_str_radix(text, 16).ok().and_then(Self::from_u64) } else { None };
        nonce.ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidToken,
                format!("{text:?} is no nonce: expected 1 to 16 lower-case hexadecimal digits without leading zeros"),
            )
        })
    }
}

/// Random 64-bit numbers are written as eight bytes: a variable-length code would take ten, one by one.
mod fixed {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes every field by reference")]
    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&number.to_le_bytes())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        struct EightBytes;

        impl Visitor<'_> for EightBytes {
            type Value = u64;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("eight bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<u64, E> {
                let bytes = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                Ok(u64::from_le_bytes(bytes))
            }
        }

        deserializer.deserialize_bytes(EightBytes)
    }
}

/// Proof of one grant, for the resource to check: `(sequence, nonce)`.
///
/// Per lock name the sequence strictly rises with every grant and stays below 2^63. The nonce tells two holders
/// apart that were given one number by a store that lost its memory. The upper bits of the sequence are the
/// backend's grant number; the low [`HANDOVER_BITS`] count the hand-overs inside one process under that grant.
///
/// The text form is `sequence.nonce`, decimal then hexadecimal, neither with leading zeros; in JSON it is a string.
///
/// ```
/// use ringfence_core::FencingToken;
///
/// let token: FencingToken = "1024.7b".parse()?;
/// assert_eq!((token.sequence(), token.nonce().get()), (1024, 0x7b));
/// assert_eq!(token.to_string(), "1024.7b");
/// assert!("+1024.7b".parse::<FencingToken>().is_err());
/// assert!("18446744073709551616.7b".parse::<FencingToken>().is_err());
/// # Ok::<(), ringfence_core::Error>(())
/// ```
#[must_use = "a token protects nothing until it is given to the resource"]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FencingToken {
    sequence: u64,
    nonce: Nonce,
}

impl FencingToken {
    /// A token of a sequence and a nonce. Errors with [`ErrorKind::InvalidToken`] from 2^63 on.
    pub fn new(sequence: u64, nonce: Nonce) -> Result<Self, Error> {
        if sequence >= SEQUENCE_END {
            return Err(Error::new(
                ErrorKind::InvalidToken,
                format!("a token's sequence is below 2^63, {sequence} is not"),
            ));
        }
        Ok(Self { sequence, nonce })
    }

    /// The token of a backend's grant number, before any hand-over. Errors when the number leaves no room for the
    /// hand-over bits below 2^63.
    pub fn of_grant(number: u64, nonce: Nonce) -> Result<Self, Error> {
        if number >= SEQUENCE_END >> HANDOVER_BITS {
            return Err(Error::new(ErrorKind::InvalidToken, format!("grant number {number} is too large")));
        }
        Ok(Self { sequence: number << HANDOVER_BITS, nonce })
    }

    /// The number that rises with every grant of the name.
    pub fn sequence(self) -> u64 {
        self.sequence
    }

    /// The backend's grant number: the sequence without its hand-over bits.
    pub fn grant(self) -> u64 {
        self.sequence >> HANDOVER_BITS
    }

    /// What tells this holder from another one of the same number.
    pub fn nonce(self) -> Nonce {
        self.nonce
    }

    /// The token of the next hand-over under the same grant, or `None` when the hand-over bits are used up.
    pub fn handed_over(self) -> Option<Self> {
        let next = self.sequence + 1;
        (next >> HANDOVER_BITS == self.grant()).then_some(Self { sequence: next, nonce: self.nonce })
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.sequence, self.nonce)
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for FencingToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || {
            Error::new(
                ErrorKind::InvalidToken,
                format!(
                    "{text:?} is no token: expected sequence.nonce, a decimal number below 2^63, a dot and \
                     hexadecimal digits, neither with a sign or leading zeros"
                ),
            )
        };
        let (sequence, nonce) = text.split_once('.').ok_or_else(malformed)?;
        let canonical = sequence.bytes().all(|byte| byte.is_ascii_digit())
            && !sequence.is_empty()
            && (sequence == "0" || !sequence.starts_with('0'));
        if !canonical {
            return Err(malformed());
        }
        let sequence = sequence.parse().map_err(|_| malformed())?;
        Self::new(sequence, nonce.parse().map_err(|_| malformed())?)
    }
}

impl TryFrom<String> for FencingToken {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<FencingToken> for String {
    fn from(token: FencingToken) -> Self {
        token.to_string()
    }
}
