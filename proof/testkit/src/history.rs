use ringfence_core::{BootInstant, FencingToken};

/// One exclusive hold of one name, as its holder saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "tests write it down field by field")]
pub struct Hold {
    /// The token of the grant.
    pub token: FencingToken,
    /// An instant after the grant, by the machine's clock.
    pub from: BootInstant,
    /// The last instant at which the holder is known to have held: before its release, its stop or its death. Where
    /// none is known, the same as `from`.
    pub until: BootInstant,
}

/// Checks the holds of one name, by whatever clients and processes of one machine, in any order: no two overlap, and
/// each has a higher token than those before it in time.
///
/// Errors with the first two holds that contradict each other.
pub fn check_exclusive(holds: impl IntoIterator<Item = Hold>) -> Result<(), String> {
    let mut holds: Vec<Hold> = holds.into_iter().collect();
    // What a clock puts into one instant may have come in either order: the tokens have the benefit of the doubt.
    holds.sort_unstable_by_key(|hold| (hold.from, hold.token.sequence()));
    for (place, pair) in holds.windows(2).enumerate() {
        let [earlier, later] = pair else { unreachable!("windows of two") };
        if later.from < earlier.until {
            return Err(format!("holds {place} and {} overlap: {earlier:?}, then {later:?}", place + 1));
        }
        if later.token.sequence() <= earlier.token.sequence() {
            return Err(format!(
                "the token did not rise from hold {place} to {}: {earlier:?}, then {later:?}",
                place + 1
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ringfence_core::Nonce;

    use super::*;

    fn hold(sequence: u64, from: u64, until: u64) -> Hold {
        Hold {
            token: FencingToken::new(sequence, Nonce::random()).unwrap(),
            from: BootInstant::from_nanos(from),
            until: BootInstant::from_nanos(until),
        }
    }

    #[test]
    fn holds_in_a_row_pass_in_any_order() {
        assert_eq!(check_exclusive([hold(2, 20, 30), hold(1, 10, 20), hold(9, 31, 31)]), Ok(()));
    }

    #[test]
    fn an_overlap_is_seen() {
        let error = check_exclusive([hold(1, 10, 21), hold(2, 20, 30)]).unwrap_err();
        assert!(error.contains("overlap"), "{error}");
    }

    #[test]
    fn a_token_that_falls_or_repeats_is_seen() {
        for second in [1, 2] {
            let error = check_exclusive([hold(2, 10, 20), hold(second, 20, 30)]).unwrap_err();
            assert!(error.contains("did not rise"), "{error}");
        }
    }
}
