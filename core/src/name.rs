use std::fmt;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::error::{Error, ErrorKind};

/// The longest lock name, in bytes of UTF-8.
pub const NAME_MAX: usize = 255;

/// What is locked: 1 to [`NAME_MAX`] bytes of UTF-8 without control characters.
///
/// Parsed once, valid ever after. Names are compared as bytes: nothing is normalised, trimmed or case-folded, and
/// `.`, `..`, `/` and braces are characters like any other, because every backend encodes names injectively.
/// Cloning is cheap.
///
/// ```
/// use ringfence_core::LockName;
///
/// let name: LockName = "orders/42".parse()?;
/// assert_eq!(name.as_str(), "orders/42");
/// assert!("".parse::<LockName>().is_err());
/// assert!("line\nbreak".parse::<LockName>().is_err());
/// # Ok::<(), ringfence_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "SmolStr")]
pub struct LockName(SmolStr);

impl LockName {
    /// Parses a name. Errors with [`ErrorKind::InvalidName`] and says what is wrong with it.
    pub fn new(name: impl AsRef<str>) -> Result<Self, Error> {
        let name = name.as_ref();
        check_name(name)?;
        Ok(Self(name.into()))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    check_text("a lock name", name, NAME_MAX).map_err(|why| Error::new(ErrorKind::InvalidName, why))
}

/// The one rule for text that people choose and others print: not empty, bounded, no control characters.
pub(crate) fn check_text(what: &str, text: &str, max: usize) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{what} must not be empty: give it 1 to {max} bytes"));
    }
    if text.len() > max {
        return Err(format!("{what} must be at most {max} bytes of UTF-8, this one has {}", text.len()));
    }
    if let Some((at, character)) = text.char_indices().find(|(_, character)| character.is_control()) {
        return Err(format!(
            "{what} must not contain control characters, this one has U+{:04X} at byte {at}",
            u32::from(character)
        ));
    }
    Ok(())
}

impl std::str::FromStr for LockName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<&str> for LockName {
    type Error = Error;

    fn try_from(name: &str) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<String> for LockName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<&String> for LockName {
    type Error = Error;

    fn try_from(name: &String) -> Result<Self, Error> {
        Self::new(name)
    }
}

impl TryFrom<&LockName> for LockName {
    type Error = Error;

    fn try_from(name: &LockName) -> Result<Self, Error> {
        Ok(name.clone())
    }
}

impl TryFrom<SmolStr> for LockName {
    type Error = Error;

    fn try_from(name: SmolStr) -> Result<Self, Error> {
        check_name(&name)?;
        Ok(Self(name))
    }
}

impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
