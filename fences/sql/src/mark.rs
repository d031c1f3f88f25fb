//! The highest token that something has seen.

use std::fmt;

use ringfence_core::{Error, ErrorKind, FencingToken, Result};

use crate::statement::Value;

/// A mark, as it stands in a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub(crate) sequence: Option<i64>,
    /// `None` where there is no column for it.
    pub(crate) nonce: Option<String>,
}

impl Mark {
    /// What it says to a token for which it was not raised.
    pub(crate) fn judge(&self, token: FencingToken, has_nonces: bool) -> Result<()> {
        let seen = self.sequence.unwrap_or(-1);
        let is_own = !has_nonces || self.nonce == Some(token.nonce().to_string());
        let (kind, why) = match seen.cmp(&sequence(token)) {
            std::cmp::Ordering::Equal if is_own => return Ok(()),
            std::cmp::Ordering::Equal => (
                ErrorKind::TokenCollision,
                format!(
                    "token {token} has the sequence of {self}, which was seen: two holders were given one number, so a lock service has \
                     lost its memory; stop both, and look at it"
                ),
            ),
            std::cmp::Ordering::Greater => (
                ErrorKind::Stale,
                format!("token {token} is stale: {self} was seen; stop, and acquire the lock again"),
            ),
            std::cmp::Ordering::Less => (
                ErrorKind::Corrupt,
                format!(
                    "the mark was raised to {token} and is {self}: a trigger or a rule of the table is in the way"
                ),
            ),
        };
        let error = Error::new(kind, why);
        Err(self.token().into_iter().fold(error, Error::with_mark))
    }
}

impl Mark {
    /// The token that it is of, where it has a nonce.
    fn token(&self) -> Option<FencingToken> {
        let sequence = u64::try_from(self.sequence?).ok()?;
        FencingToken::new(sequence, self.nonce.as_ref()?.parse().ok()?).ok()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sequence {
            Some(sequence) => write!(f, "{sequence}")?,
            None => f.write_str("NULL")?,
        }
        self.nonce.as_ref().map_or(Ok(()), |nonce| write!(f, ".{nonce}"))
    }
}

/// The sequence as a signed number, which databases have.
pub(crate) fn sequence(token: FencingToken) -> i64 {
    i64::try_from(token.sequence()).expect("sequences stay below 2^63")
}

/// The token as its two columns have it: the number, and the nonce as it is printed.
pub(crate) fn values(token: FencingToken) -> (Value, Value) {
    (Value::Integer(sequence(token)), Value::Text(token.nonce().to_string()))
}
