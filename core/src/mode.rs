use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// The most permits one name can have.
pub const PERMITS_MAX: u32 = 65_536;

/// How many may hold a name at once, and who.
///
/// This enum does not grow: the three modes are the contract of every backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::exhaustive_enums, reason = "a fourth mode would change the contract of every backend")]
pub enum Mode {
    /// One holder, no other.
    Exclusive,
    /// Any number of shared holders, no exclusive one and no permits.
    Shared,
    /// At most this many holders at once, each with a permit that is a lease of its own.
    ///
    /// Where holders and a request name different limits, the smallest one counts, so that no holder ever shares
    /// the name with more others than it agreed to.
    Permit(NonZeroU32),
}

impl Mode {
    /// One of `limit` permits. Errors with [`ErrorKind::InvalidRequest`] outside 1 to [`PERMITS_MAX`].
    pub fn permit(limit: u32) -> Result<Self, Error> {
        match NonZeroU32::new(limit) {
            Some(limit) if limit.get() <= PERMITS_MAX => Ok(Self::Permit(limit)),
            _ => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("a lock has 1 to {PERMITS_MAX} permits, not {limit}"),
            )),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exclusive => f.write_str("exclusive"),
            Self::Shared => f.write_str("shared"),
            Self::Permit(limit) => write!(f, "permit (of {limit})"),
        }
    }
}
