use std::fmt;

use ringfence_core::{Error, ErrorKind, Guarantees, Result};

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
            .filter(|scheme| crate::guarantees_of(scheme).is_ok_and(|other| other.tokens_are_durable()))
            .map(|scheme| format!("{scheme}:"))
            .collect();
        let instead = if durable.is_empty() {
            "use a backend whose tokens are durable; none is compiled in (the feature `local` is one)"
                .to_owned()
        } else {
            format!("use a backend whose tokens are durable: {}", durable.join(", "))
        };
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
