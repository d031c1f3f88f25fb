use std::fmt;

use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::error::{Error, ErrorKind};
use crate::name::check_text;

/// The most metadata a holder can carry, in bytes.
pub const METADATA_MAX: usize = 1024;

/// The longest label or host name of a holder, in bytes.
pub const LABEL_MAX: usize = 255;

/// Who holds or waits for a lock, for the person on call: a label, the host, the process, free metadata.
///
/// It is shown to anyone who may read the store: put no secret into it. Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HolderInfo {
    /// Label, host and metadata, each but the last ended by [`END`]: one allocation, because every process of a local
    /// store reads every holder.
    text: SmolStr,
    pid: u32,
}

/// Ends a part of a holder's text; labels and hosts have no control characters.
const END: char = '\n';

impl HolderInfo {
    /// A holder on a host. The label is 1 to [`LABEL_MAX`] bytes without control characters, and so is the host.
    pub fn new(label: &str, host: &str, pid: u32) -> Result<Self, Error> {
        let invalid = |why| Error::new(ErrorKind::InvalidRequest, why);
        check_text("a holder's label", label, LABEL_MAX).map_err(invalid)?;
        check_text("a host name", host, LABEL_MAX).map_err(invalid)?;
        Ok(Self::assemble(label, host, pid, ""))
    }

    /// The same holder with free metadata: at most [`METADATA_MAX`] bytes, any characters.
    pub fn with_metadata(self, metadata: &str) -> Result<Self, Error> {
        if metadata.len() > METADATA_MAX {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("a holder's metadata is at most {METADATA_MAX} bytes, this has {}", metadata.len()),
            ));
        }
        Ok(Self::assemble(self.label(), self.host(), self.pid, metadata))
    }

    /// The same holder under another label.
    pub fn with_label(self, label: &str) -> Result<Self, Error> {
        check_text("a holder's label", label, LABEL_MAX)
            .map_err(|why| Error::new(ErrorKind::InvalidRequest, why))?;
        Ok(Self::assemble(label, self.host(), self.pid, self.metadata()))
    }

    /// What the holder calls itself.
    pub fn label(&self) -> &str {
        self.part(0)
    }

    /// The host it runs on.
    pub fn host(&self) -> &str {
        self.part(1)
    }

    /// Its process id on that host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Free text, empty where none was given.
    pub fn metadata(&self) -> &str {
        self.part(2)
    }

    fn assemble(label: &str, host: &str, pid: u32, metadata: &str) -> Self {
        Self { text: format!("{label}{END}{host}{END}{metadata}").into(), pid }
    }

    fn part(&self, index: usize) -> &str {
        self.text.splitn(3, END).nth(index).unwrap_or_default()
    }
}

impl fmt::Display for HolderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {} on {})", self.label(), self.pid, self.host())
    }
}

impl fmt::Debug for HolderInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
