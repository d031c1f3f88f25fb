use std::fmt;

use ringfence_core::{Error, ErrorKind, Guarantees, RecordGuard, Result};

/// What a double run costs: whether the lock is there for efficiency or for correctness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a double run is a waste, or it is wrong")]
pub enum Stakes {
    /// A double run wastes work, and no more. Every backend will do.
    #[default]
    Efficiency,
    /// A double run does damage. Only a backend whose fencing tokens survive every fault it is built for will do; and
    /// the guarded resource still has to check the tokens.
    Correctness,
}

impl Stakes {
    /// Refuses a backend that these stakes must not be entrusted to.
    pub(crate) fn check(self, backend: &dyn fmt::Display, guarantees: &Guarantees) -> Result<()> {
        if self == Self::Efficiency || guarantees.tokens_are_durable() {
            return Ok(());
        }
        let durable: Vec<String> = crate::schemes()
            .into_iter()
            .filter_map(|scheme| {
                let url = format!("{scheme}:");
                let other = crate::guarantees_of(&url).ok()?;
                other.tokens_are_durable().then(|| format!("{url} ({})", other.scope))
            })
            .collect();
        let mut instead = if durable.is_empty() {
            "use a backend whose tokens are durable; none is compiled in (the feature `local` is one)"
                .to_owned()
        } else {
            format!("use a backend whose tokens are durable: {}", durable.join(", "))
        };
        if guarantees.record_guard == RecordGuard::LiveLease {
            instead.push_str(
                "; or, with stakes of efficiency, keep what the lock guards in its record, which takes a write only while \
                 the writer's lease lives",
            );
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{backend} is not for stakes of correctness: its fencing tokens {}, so a resource could be made to \
                 accept a stale one; {instead}",
                guarantees.tokens
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_and_what_to_use_instead() {
        for scheme in crate::schemes() {
            let guarantees = crate::guarantees_of(&format!("{scheme}:")).unwrap();
            let checked = Stakes::Correctness.check(&format!("{scheme}:here"), &guarantees);
            assert_eq!(checked.is_ok(), guarantees.tokens_are_durable(), "{scheme}");
            let Err(error) = checked else { continue };
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            let said = error.to_string();
            assert!(said.starts_with(&format!("{scheme}:here is not for stakes of correctness")), "{said}");
            assert!(said.contains(&guarantees.tokens.to_string()), "{said}");
            assert!(said.contains("while the writer's lease lives"), "{said}");
            #[cfg(feature = "local")]
            assert!(said.contains("local: (the processes of one machine)"), "{said}");
        }
    }
}
