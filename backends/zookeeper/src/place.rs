//! What the node of one in line holds: who it is.

use bytes::Bytes;
use ringfence_core::{HolderInfo, Ttl};

/// What the data of our nodes begins with, and no other client's.
const OURS: &str = "ringfence:";

/// How far one of us has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It stands in line. It holds if nobody was in its way when it came.
    Asked,
    /// It has waited, and holds.
    Holds,
    /// It held exclusively, and shares by now.
    Shares,
}

/// What one of us says of itself in its node: `ringfence:step:ttl:pid:label`, host and metadata, each in a line of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) step: Step,
    pub(crate) ttl: Ttl,
    pub(crate) holder: HolderInfo,
}

impl Said {
    pub(crate) fn new(ttl: Ttl, holder: HolderInfo) -> Self {
        Self { step: Step::Asked, ttl, holder }
    }

    pub(crate) fn write(&self) -> String {
        let Self { step, ttl, holder } = self;
        let (pid, label, host, metadata) = (holder.pid(), holder.label(), holder.host(), holder.metadata());
        let step = match step {
            Step::Asked => "asked",
            Step::Holds => "holds",
            Step::Shares => "shared",
        };
        format!("{OURS}{step}:{}:{pid}:{label}\n{host}\n{metadata}", ttl.as_millis())
    }

    /// `None`: it is of another client.
    pub(crate) fn read(data: &Bytes) -> Option<Self> {
        let text = std::str::from_utf8(data).ok()?.strip_prefix(OURS)?;
        let mut parts = text.splitn(4, ':');
        let step = match parts.next()? {
            "holds" => Step::Holds,
            "shared" => Step::Shares,
            // Whoever it may be, nothing is concluded from it.
            _ => Step::Asked,
        };
        let ttl = Ttl::new(std::time::Duration::from_millis(parts.next()?.parse().ok()?)).ok()?;
        let pid = parts.next()?.parse().ok()?;
        let mut lines = parts.next()?.splitn(3, '\n');
        let (label, host, metadata) = (lines.next()?, lines.next()?, lines.next()?);
        let holder =
            HolderInfo::new(label, host, pid).and_then(|holder| holder.with_metadata(metadata)).ok()?;
        Some(Self { step, ttl, holder })
    }
}

/// Whose node it is that says nothing of ours.
pub(crate) fn another_client() -> HolderInfo {
    HolderInfo::new("another client", "unknown", 0).expect("lawful words")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_one_of_us_says_is_read_back() {
        let holder = HolderInfo::new("cron: nightly", "web-1", 42).unwrap().with_metadata("a:b\nc").unwrap();
        for step in [Step::Asked, Step::Holds, Step::Shares] {
            let said = Said { step, ..Said::new(Ttl::DEFAULT, holder.clone()) };
            assert_eq!(Said::read(&Bytes::from(said.write())), Some(said));
        }
    }

    proptest! {
        #[test]
        fn what_anybody_says_is_read_or_not_ours(
            data in prop_oneof!["\\PC{0,60}", "ringfence:[a-z]{0,7}:[0-9]{0,12}:[0-9]{0,12}(:[^:]{0,4}){0,2}(\n[^\n]{0,3}){0,3}"]
        ) {
            let _ = Said::read(&Bytes::from(data));
        }
    }
}
