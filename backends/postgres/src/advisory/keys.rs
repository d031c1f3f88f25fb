//! From names to the integers that the server locks.

use ringfence_core::{Error, ErrorKind, LockName, Result};
use sha2::{Digest, Sha256};

/// What a name is locked as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// The first 8 bytes of its SHA-256, as `lock_key(name)` of the schema has it.
    Hashed,
    /// The integer that it is.
    Verbatim,
}

impl Keys {
    /// Errors with [`ErrorKind::InvalidName`] for a verbatim name that is no integer.
    pub(super) fn of(self, name: &LockName) -> Result<i64> {
        let name = name.as_str();
        match self {
            Self::Hashed => {
                let digest = Sha256::digest(name);
                let first = digest.first_chunk().expect("it has 32 bytes");
                Ok(i64::from_be_bytes(*first))
            }
            // Two names of one integer would be two locks to everybody but the server.
            Self::Verbatim => {
                name.parse().ok().filter(|key: &i64| key.to_string() == name).ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidName,
                        format!(
                            "{name:?} is no key of an advisory lock: with keys=verbatim a name is a whole number of 64 bits, \
                             as 42, without a sign where it is not negative and without leading zeros"
                        ),
                    )
                })
            }
        }
    }

    /// The name of a lock of which only the key is known, where there is such.
    pub(super) fn name_of(self, key: i64) -> Option<LockName> {
        match self {
            Self::Hashed => None,
            Self::Verbatim => LockName::new(key.to_string()).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(keys: Keys, name: &str) -> Result<i64> {
        keys.of(&LockName::new(name).unwrap())
    }

    #[test]
    fn a_hashed_key_is_what_any_client_makes_of_the_name() {
        // printf %s orders/42 | sha256sum
        assert_eq!(key(Keys::Hashed, "orders/42").unwrap(), 0xc4dd_165f_06c3_5f87_u64.cast_signed());
    }

    #[test]
    fn a_verbatim_key_is_an_integer_in_its_one_notation() {
        for key_itself in [0, 42, -7, i64::MIN, i64::MAX] {
            assert_eq!(key(Keys::Verbatim, &key_itself.to_string()).unwrap(), key_itself);
            assert_eq!(Keys::Verbatim.name_of(key_itself).unwrap().as_str(), key_itself.to_string());
        }
        for name in ["042", "+42", "-0", "4 2", " 42", "1:2", "0x2a", "orders/42", "9223372036854775808"] {
            assert_eq!(key(Keys::Verbatim, name).unwrap_err().kind(), ErrorKind::InvalidName, "{name}");
        }
    }
}
