//! Who owns which partition: decided by every member alone, and by all alike, from who the members are.

use std::collections::BTreeSet;

use ringfence_core::Nonce;

/// The odd number by which `SplitMix64` counts.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// How much a member wants a partition: the output of `SplitMix64` that has the partition's number, the first one being number 0,
/// when it is seeded with the member's id.
///
/// Members' ids are random 64-bit numbers already, so this needs to tell pairs apart and no more. Every language has these five
/// lines, and no version of anything changes them.
fn score(member: Nonce, partition: u32) -> u64 {
    let mut mixed = member.get().wrapping_add(GAMMA.wrapping_mul(u64::from(partition) + 1));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The owner of a partition by rendezvous hashing: the member who wants it most. `None` where nobody is a member.
pub(super) fn owner(members: &BTreeSet<Nonce>, partition: u32) -> Option<Nonce> {
    members.iter().copied().max_by_key(|member| (score(*member, partition), *member))
}

/// The partitions of one member.
pub(super) fn share(members: &BTreeSet<Nonce>, member: Nonce, count: u32) -> BTreeSet<u32> {
    (0..count).filter(|partition| owner(members, *partition) == Some(member)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn members(most: usize) -> impl Strategy<Value = BTreeSet<Nonce>> {
        proptest::collection::btree_set((1..=u64::MAX).prop_map(|id| Nonce::from_u64(id).unwrap()), 1..=most)
    }

    #[test]
    fn the_score_is_what_others_compute() {
        let seed = Nonce::from_u64(1_234_567).unwrap();
        let published = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!([0, 1, 2, 3, 4].map(|partition| score(seed, partition)), published);
    }

    #[test]
    fn nobody_owns_what_there_are_no_members_for() {
        assert_eq!(owner(&BTreeSet::new(), 0), None);
    }

    proptest! {
        #[test]
        fn every_partition_has_one_owner(members in members(20), count in 1..200_u32) {
            let shares: Vec<u32> =
                members.iter().flat_map(|member| share(&members, *member, count)).collect();
            prop_assert_eq!(shares.len(), count as usize);
            prop_assert_eq!(shares.into_iter().collect::<BTreeSet<_>>(), (0..count).collect());
        }

        #[test]
        fn who_joins_takes_from_the_others_and_nothing_else_moves(
            members in members(20),
            newcomer in 1..=u64::MAX,
        ) {
            let newcomer = Nonce::from_u64(newcomer).unwrap();
            let more: BTreeSet<Nonce> = members.iter().copied().chain([newcomer]).collect();
            for partition in 0..200 {
                let (before, after) = (owner(&members, partition), owner(&more, partition));
                prop_assert!(after == before || after == Some(newcomer), "{partition} moved between others");
            }
        }

        /// Shares are as even as those of a fair die: seven standard deviations off the mean, at most. Five are seen once in a million
        /// shares, and this looks at thousands.
        #[test]
        fn shares_are_even(members in members(50)) {
            let count = 2000;
            let mut shares: BTreeMap<Nonce, u32> = members.iter().map(|member| (*member, 0)).collect();
            for partition in 0..count {
                *shares.get_mut(&owner(&members, partition).unwrap()).unwrap() += 1;
            }
            let chance = 1.0 / f64::from(u32::try_from(members.len()).unwrap());
            let mean = f64::from(count) * chance;
            let deviation = (mean * (1.0 - chance)).sqrt();
            for (member, share) in shares {
                prop_assert!((f64::from(share) - mean).abs() <= 7.0 * deviation, "{member}: {share} of {mean}");
            }
        }
    }
}
