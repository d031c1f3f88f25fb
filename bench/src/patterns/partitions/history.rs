//! What is made of what members say.

use std::collections::BTreeMap;

use ringfence::Nonce;
use ringfence_patterns::partitions::owner;

use super::member::{News, What};

/// Who owned which partition when, as far as it was told.
#[derive(Debug)]
pub(super) struct History {
    partitions: u32,
    members: Vec<Nonce>,
    owned: BTreeMap<u32, Owned>,
}

/// The last that was heard of a partition.
#[derive(Clone, Copy, Debug)]
struct Owned {
    since: u64,
    by: Option<u64>,
}

/// What came of one change of who takes part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Change {
    /// When the last partition had its owner, in nanoseconds since the machine began.
    pub(super) settled: u64,
    /// How many partitions have another owner than before.
    pub(super) moved: usize,
    /// How often a partition was given to a member that was not to have it in the end, or that had it before.
    pub(super) moved_in_vain: usize,
    /// The longest time for which one of them was nobody's, in nanoseconds.
    pub(super) longest_gap: u64,
    /// How often a member was told that it owns what another one had not finished with.
    pub(super) two_owners: usize,
    /// How often a partition was gone before it was finished.
    pub(super) lost: usize,
}

impl History {
    pub(super) fn of(partitions: u32) -> Self {
        Self { partitions, members: Vec::new(), owned: BTreeMap::new() }
    }

    pub(super) fn joined(&mut self, member: u64) {
        self.members.push(nonce(member));
    }

    /// Whoever joined last is no member any more.
    pub(super) fn newcomer_left(&mut self) {
        self.members.pop();
    }

    pub(super) fn members(&self) -> usize {
        self.members.len()
    }

    /// Whether every partition is owned by who should own it after this.
    pub(super) fn is_settled_by(&self, news: &[News]) -> bool {
        let owned = self.replay(news).0;
        let by = |partition| owned.get(&partition).and_then(|owned: &Owned| owned.by);
        !self.members.is_empty()
            && (0..self.partitions)
                .all(|partition| by(partition) == Some(owner(&self.members, partition).get()))
    }

    /// Adds what was told in a change.
    pub(super) fn change(&mut self, news: &[News]) -> Change {
        let (owned, change) = self.replay(news);
        self.owned = owned;
        change
    }

    fn replay(&self, news: &[News]) -> (BTreeMap<u32, Owned>, Change) {
        // Two processes are not heard in the order in which they speak.
        let mut news = news.to_vec();
        news.sort_by_key(|news| news.at);
        let (mut owned, mut change, mut assigned) = (self.owned.clone(), Change::default(), 0_usize);
        for News { at, member, what } in news {
            match what {
                What::Joined => change.settled = at,
                What::Owns(partition) => {
                    match owned.insert(partition, Owned { since: at, by: Some(member) }) {
                        Some(Owned { by: None, since }) => {
                            change.longest_gap = change.longest_gap.max(at - since);
                        }
                        Some(Owned { by: Some(_), .. }) => change.two_owners += 1,
                        None => {}
                    }
                    (assigned, change.settled) = (assigned + 1, at);
                }
                What::Finished(partition) | What::Lost(partition) => {
                    change.lost += usize::from(what == What::Lost(partition));
                    // One that has two owners has the later one still.
                    if owned.get(&partition).is_some_and(|owned| owned.by == Some(member)) {
                        owned.insert(partition, Owned { since: at, by: None });
                    }
                }
            }
        }
        let by = |owned: Option<&Owned>| owned.and_then(|owned| owned.by);
        let is_moved = |(partition, now): &(&u32, &Owned)| by(Some(*now)) != by(self.owned.get(*partition));
        change.moved = owned.iter().filter(is_moved).count();
        change.moved_in_vain = assigned.saturating_sub(change.moved);
        (owned, change)
    }
}

fn nonce(member: u64) -> Nonce {
    Nonce::from_u64(member).expect("the id of a member")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(at: u64, member: u64, what: What) -> News {
        News { at, member, what }
    }

    /// Members 1 and 2, where everything belongs to whom it should.
    fn settled(partitions: u32, members: &[u64]) -> History {
        let mut history = History::of(partitions);
        for member in members {
            history.joined(*member);
        }
        let owns = |partition| says(1, owner(&history.members, partition).get(), What::Owns(partition));
        let news: Vec<News> = (0..partitions).map(owns).collect();
        assert!(history.is_settled_by(&news));
        assert!(!history.is_settled_by(&news[1..]));
        let change = history.change(&news);
        assert_eq!(change, Change { settled: 1, moved: partitions as usize, ..Change::default() });
        history
    }

    #[test]
    fn who_joins_has_its_share_when_the_last_one_is_told() {
        let mut history = settled(64, &[1, 2]);
        history.joined(3);
        let before = [1, 2].map(nonce);
        let share: Vec<u32> = (0..64).filter(|at| owner(&history.members, *at) == nonce(3)).collect();
        let mut news = vec![says(10, 3, What::Joined)];
        for partition in &share {
            assert!(!history.is_settled_by(&news), "{partition} is not its own yet");
            // The newcomer is heard before the one that it has it from.
            news.push(says(30 + u64::from(*partition), 3, What::Owns(*partition)));
            news.push(says(20, owner(&before, *partition).get(), What::Finished(*partition)));
        }
        assert!(history.is_settled_by(&news));
        let last = u64::from(*share.last().unwrap());
        let expected =
            Change { settled: 30 + last, moved: share.len(), longest_gap: 10 + last, ..Change::default() };
        assert_eq!(history.change(&news), expected);
    }

    #[test]
    fn two_owners_are_seen_and_so_is_what_moved_in_vain() {
        let mut history = settled(1, &[1, 2]);
        let (had, other) = if owner(&history.members, 0) == nonce(1) { (1, 2) } else { (2, 1) };
        let news =
            vec![says(2, other, What::Owns(0)), says(3, other, What::Lost(0)), says(4, had, What::Owns(0))];
        assert!(history.is_settled_by(&news));
        let expected = Change {
            settled: 4,
            moved_in_vain: 2,
            longest_gap: 1,
            two_owners: 1,
            lost: 1,
            ..Change::default()
        };
        assert_eq!(history.change(&news), expected);
    }

    #[test]
    fn what_somebody_has_who_left_is_not_settled() {
        let mut history = settled(64, &[1, 2]);
        history.newcomer_left();
        assert!(!history.is_settled_by(&[]));
    }
}
