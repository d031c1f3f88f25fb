//! Who stands in line for a lock, and whose turn it is: from the names of the nodes alone.

use std::collections::HashSet;

use ringfence_core::{Mode, Nonce};

/// What stands in the name of a node between who it is of and its number, and what that one wants. Other clients' words come
/// after those that we write ourselves.
const MARKS: [(&str, Want); 6] = [
    // Curator's mutex, and ours.
    ("-lock-", Want::Exclusive),
    // Curator's lock for readers and a writer, and our readers.
    ("-__READ__", Want::Shared),
    ("-__WRIT__", Want::Exclusive),
    // Ours. The number of permits stands before it.
    ("-lease-", Want::Permit),
    // kazoo's locks.
    ("__lock__", Want::Exclusive),
    ("__rlock__", Want::Shared),
];

#[derive(Clone, Copy)]
enum Want {
    Exclusive,
    Shared,
    Permit,
}

/// What the name of one of our nodes begins with, as Curator has it.
const OURS: &str = "_c_";

/// The name of the node of an attempt, to which the server adds a number.
pub(crate) fn name_of(nonce: Nonce, mode: Mode) -> String {
    let who = format!("{OURS}{:016x}", nonce.get());
    match mode {
        Mode::Exclusive => format!("{who}-lock-"),
        Mode::Shared => format!("{who}-__READ__"),
        Mode::Permit(limit) => format!("{who}-{limit}-lease-"),
    }
}

/// One in line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name of its node.
    pub(crate) name: String,
    /// The number that the server gave it. It is signed, and after its end begins again at the lowest.
    pub(crate) number: i32,
    pub(crate) mode: Mode,
    pub(crate) nonce: Nonce,
    /// Whether it is one of us.
    pub(crate) is_ours: bool,
}

impl Place {
    /// `None`: that is nobody's place.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (at, mark, want) = MARKS
            .iter()
            .filter_map(|(mark, want)| Some((name.rfind(mark)?, *mark, *want)))
            .max_by_key(|(at, ..)| *at)?;
        let (who, number) = (&name[..at], &name[at + mark.len()..]);
        let digits = number.strip_prefix('-').unwrap_or(number);
        // Ten characters at least, of which a sign is one.
        if number.len() < 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let number = number.parse().ok()?;
        let (who, limit) = match want {
            Want::Permit => who.rsplit_once('-')?,
            Want::Exclusive | Want::Shared => (who, ""),
        };
        let mode = match want {
            Want::Exclusive => Mode::Exclusive,
            Want::Shared => Mode::Shared,
            Want::Permit => Mode::permit(limit.parse().ok()?).ok()?,
        };
        let ours = who.strip_prefix(OURS).filter(|nonce| nonce.len() == 16);
        let ours = ours.and_then(|nonce| u64::from_str_radix(nonce, 16).ok()).and_then(Nonce::from_u64);
        let nonce = ours.unwrap_or_else(|| nonce_of(who));
        Some(Self { name: name.to_owned(), number, mode, nonce, is_ours: ours.is_some() })
    }

    /// Whether the server has run out of numbers for its line: it gives the highest one to all who come then, or begins again
    /// below zero, so that numbers no longer say who came first.
    pub(crate) fn is_beyond_the_last(&self) -> bool {
        self.number < 0 || self.number == i32::MAX
    }
}

/// A nonce for one who has none, so that an operator can name it: the same for the same one, always (FNV-1a).
fn nonce_of(who: &str) -> Nonce {
    let hash = who.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    Nonce::from_u64(hash).unwrap_or(Nonce::from_u64(1).expect("not zero"))
}

/// All that stand in line for one lock, those that hold it first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    pub(crate) places: Vec<Place>,
    /// Whether others may stand before the first one.
    is_cut: bool,
}

/// Whether it is somebody's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn<'a> {
    /// It holds.
    Now,
    /// Not before something happens to this one.
    Behind(&'a Place),
    /// Not before one of several leaves.
    BehindSeveral,
    /// It is not known who stands before it.
    Unknown,
}

impl Line {
    pub(crate) fn of(children: &[String]) -> Self {
        let mut places: Vec<Place> = children.iter().filter_map(|name| Place::parse(name)).collect();
        // The numbers may have begun again: what counts is which ones are less than half of all numbers apart.
        if let Some(origin) = places.first().map(|place| place.number) {
            places.sort_by_key(|place| place.number.wrapping_sub(origin));
        }
        Self { places, is_cut: false }
    }

    /// Those who hold or wait, in their order.
    pub(crate) fn of_places(places: Vec<Place>) -> Self {
        Self { places, is_cut: false }
    }

    /// The end of a line: an exclusive one, and the one that came right after it. Who is before them is not known.
    pub(crate) fn behind(last: Place, own: Place) -> Self {
        Self { places: vec![last, own], is_cut: true }
    }

    /// Whether others may stand before the first one that is known.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// The place of an attempt.
    pub(crate) fn find(&self, nonce: Nonce) -> Option<&Place> {
        self.places.iter().find(|place| place.nonce == nonce)
    }

    /// Somebody has left.
    pub(crate) fn leaves(&mut self, name: &str) {
        self.places.retain(|place| place.name != name);
    }

    /// This one came to hold alone, so that everybody before it has left.
    pub(crate) fn is_held_alone_by(&mut self, name: &str) {
        if let Some(at) = self.places.iter().position(|place| place.name == name) {
            self.places.drain(..at);
            self.is_cut = false;
        }
    }

    /// Those who were exclusive and share by now are `downgraded`.
    fn mode(&self, at: usize, downgraded: &HashSet<String>) -> Mode {
        let place = &self.places[at];
        if downgraded.contains(&place.name) { Mode::Shared } else { place.mode }
    }

    /// How many hold it. The others wait behind the first one that is incompatible with those before it.
    pub(crate) fn holders(&self, downgraded: &HashSet<String>) -> usize {
        let mut permits = usize::MAX;
        let mut held_in = None;
        for at in 0..self.places.len() {
            let mode = self.mode(at, downgraded);
            let is_compatible = match (held_in, mode) {
                (None, _) | (Some(Mode::Shared), Mode::Shared) => true,
                (Some(Mode::Permit(_)), Mode::Permit(limit)) => at < permits.min(limit_of(limit)),
                (Some(_), _) => false,
            };
            if !is_compatible {
                return at;
            }
            if let Mode::Permit(limit) = mode {
                permits = permits.min(limit_of(limit));
            }
            held_in = Some(mode);
        }
        self.places.len()
    }

    /// Whether it is the turn of the one who stands there, and what has to happen first.
    ///
    /// Places only ever leave a line, or join its end, so that whoever holds once goes on to. An exclusive one waits until the
    /// one before it leaves. A shared one waits for the nearest one before it that does not share, and looks again. One that
    /// wants a permit and is the first of those who wait gets what any holder gives back; those behind it wait for it.
    pub(crate) fn turn(&self, at: usize, downgraded: &HashSet<String>) -> Turn<'_> {
        if self.is_cut && at == 0 {
            return Turn::Unknown;
        }
        let holders = self.holders(downgraded);
        if at < holders {
            return Turn::Now;
        }
        let nearest = match self.places[at].mode {
            Mode::Permit(_) if at == holders => return Turn::BehindSeveral,
            Mode::Permit(_) | Mode::Exclusive => at - 1,
            Mode::Shared => (0..at)
                .rfind(|before| self.mode(*before, downgraded) != Mode::Shared)
                .expect("one who shares and waits has somebody before it who does not share"),
        };
        Turn::Behind(&self.places[nearest])
    }
}

fn limit_of(limit: std::num::NonZeroU32) -> usize {
    usize::try_from(limit.get()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nonce(number: u64) -> Nonce {
        Nonce::from_u64(number).unwrap()
    }

    fn permit(limit: u32) -> Mode {
        Mode::permit(limit).unwrap()
    }

    fn line(modes: &[Mode]) -> Line {
        let names = modes
            .iter()
            .zip(1..)
            .map(|(mode, number)| format!("{}{number:010}", name_of(nonce(number), *mode)));
        Line::of(&names.collect::<Vec<_>>())
    }

    fn no_one() -> HashSet<String> {
        HashSet::new()
    }

    #[test]
    fn what_we_write_is_read_back() {
        for mode in [Mode::Exclusive, Mode::Shared, permit(4)] {
            let name = format!("{}{:010}", name_of(nonce(0xff), mode), 7);
            let place = Place::parse(&name).unwrap();
            assert_eq!(
                (place.number, place.mode, place.nonce, place.is_ours),
                (7, mode, nonce(0xff), true),
                "{name}"
            );
        }
    }

    #[test]
    fn what_other_clients_write_is_understood() {
        for (name, mode, number) in [
            ("_c_4a8d5a0e-93bc-4cd1-9b7e-3c4b6f0d7a11-lock-0000000012", Mode::Exclusive, 12),
            ("_c_4a8d5a0e-93bc-4cd1-9b7e-3c4b6f0d7a11-__READ__0000000012", Mode::Shared, 12),
            ("_c_4a8d5a0e-93bc-4cd1-9b7e-3c4b6f0d7a11-__WRIT__0000000012", Mode::Exclusive, 12),
            ("f0f3b6a2c5d04a47a9ab2a3ea8d4ba2e__lock__0000000003", Mode::Exclusive, 3),
            ("f0f3b6a2c5d04a47a9ab2a3ea8d4ba2e__rlock__0000000003", Mode::Shared, 3),
            ("x-lock--2147483648", Mode::Exclusive, i32::MIN),
            ("x-lock--000000005", Mode::Exclusive, -5),
        ] {
            let place = Place::parse(name).unwrap();
            assert_eq!((place.mode, place.number, place.is_ours), (mode, number, false), "{name}");
            assert_eq!(Place::parse(name), Some(place), "its nonce is always the same");
        }
        for name in [
            "",
            "lock-1",
            "x-lock-",
            "x-lock-12",
            "x-lock-0000000001x",
            "x-9999999-lease-0000000001",
            "leases",
        ] {
            assert_eq!(Place::parse(name), None, "{name}");
        }
    }

    #[test]
    fn numbers_that_begin_again_come_after_those_before() {
        let name = |number: i32| format!("x{number}-lock-{number:010}");
        let expected = [i32::MAX - 1, i32::MAX, i32::MIN, i32::MIN + 1];
        for first in 0..4 {
            let mut listed = expected.map(name);
            listed.rotate_left(first);
            let numbers: Vec<i32> = Line::of(&listed).places.iter().map(|place| place.number).collect();
            assert_eq!(numbers, expected);
        }
    }

    #[test]
    fn numbers_that_no_longer_say_who_came_first_are_known() {
        for (number, is_beyond) in
            [(0, false), (i32::MAX - 1, false), (i32::MAX, true), (i32::MIN, true), (-1, true)]
        {
            let place = Place::parse(&format!("x-lock-{number:010}")).unwrap();
            assert_eq!(place.is_beyond_the_last(), is_beyond, "{number}");
        }
    }

    #[test]
    fn readers_hold_together_up_to_the_first_writer() {
        let line = line(&[Mode::Shared, Mode::Shared, Mode::Exclusive, Mode::Shared]);
        assert_eq!(line.holders(&no_one()), 2);
        assert_eq!(line.turn(1, &no_one()), Turn::Now);
        assert_eq!(line.turn(2, &no_one()), Turn::Behind(&line.places[1]));
        assert_eq!(line.turn(3, &no_one()), Turn::Behind(&line.places[2]));
    }

    #[test]
    fn the_smallest_number_of_permits_counts() {
        assert_eq!(line(&[permit(2), permit(2), permit(2)]).holders(&no_one()), 2);
        assert_eq!(line(&[permit(3), permit(1)]).holders(&no_one()), 1);
        assert_eq!(line(&[permit(3), permit(2), permit(3)]).holders(&no_one()), 2);
        assert_eq!(line(&[permit(1), Mode::Shared]).holders(&no_one()), 1);
        let waiting = line(&[permit(2), permit(2), permit(2), permit(2)]);
        assert_eq!(waiting.turn(2, &no_one()), Turn::BehindSeveral);
        assert_eq!(waiting.turn(3, &no_one()), Turn::Behind(&waiting.places[2]));
    }

    #[test]
    fn who_was_downgraded_shares() {
        let line = line(&[Mode::Exclusive, Mode::Shared, Mode::Exclusive]);
        assert_eq!(line.turn(1, &no_one()), Turn::Behind(&line.places[0]));
        let downgraded = HashSet::from([line.places[0].name.clone()]);
        assert_eq!(line.holders(&downgraded), 2);
        assert_eq!(line.turn(2, &downgraded), Turn::Behind(&line.places[1]));
    }

    fn any_mode() -> impl Strategy<Value = Mode> {
        prop_oneof![Just(Mode::Exclusive), Just(Mode::Shared), (1_u32..4).prop_map(permit)]
    }

    proptest! {
        /// Whoever holds goes on to hold, whoever leaves and whoever joins; and not before what it waits for has changed is it
        /// anybody's turn.
        #[test]
        fn a_turn_comes_with_what_is_waited_for(modes in prop::collection::vec(any_mode(), 2..8), leaves in any::<prop::sample::Index>()) {
            let before = line(&modes);
            let leaves = leaves.index(modes.len());
            let mut after = before.clone();
            let gone = after.places.remove(leaves);
            for (at, place) in before.places.iter().enumerate().filter(|(at, _)| *at != leaves) {
                let then = after.places.iter().position(|other| other == place).unwrap();
                let (was, is) = (before.turn(at, &no_one()), after.turn(then, &no_one()));
                match was {
                    Turn::Now => prop_assert_eq!(is, Turn::Now),
                    Turn::Behind(other) if is == Turn::Now && *other != gone => {
                        // It was told by another one than the one that left: only one that wants a permit can be, by one before
                        // it whose turn has come.
                        let of = |line: &Line| line.places.iter().position(|place| place == other).unwrap();
                        prop_assert!(matches!((other.mode, place.mode), (Mode::Permit(_), Mode::Permit(_))), "{:?} {}", modes, at);
                        prop_assert_eq!(after.turn(of(&after), &no_one()), Turn::Now);
                        prop_assert_ne!(before.turn(of(&before), &no_one()), Turn::Now);
                    }
                    _ => {}
                }
            }
        }

        /// Whoever waits knows all who are before it, or that it does not, so that its turn is never too early; and when it has looked
        /// for those that it waits for, it is not too late. It hears of those it waits for alone: that they leave, and perhaps
        /// that they hold.
        #[test]
        fn who_knows_too_many_takes_no_turn_that_is_not_its_own(
            modes in prop::collection::vec(any_mode(), 2..9),
            leavers in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..9),
            is_told_of_the_last in any::<bool>(),
        ) {
            let mut real = line(&modes);
            let own = real.places.last().unwrap().clone();
            let mut known = match &real.places[modes.len() - 2..] {
                [last, own] if is_told_of_the_last && last.mode == Mode::Exclusive && own.mode == Mode::Exclusive => {
                    Line::behind(last.clone(), own.clone())
                }
                _ => real.clone(),
            };
            let at = |line: &Line| line.places.iter().position(|place| *place == own).unwrap();
            for (leaver, is_told_who_holds) in leavers {
                let leaver = leaver.index(real.places.len());
                if real.places[leaver] != own {
                    real.places.remove(leaver);
                }
                loop {
                    let place = match known.turn(at(&known), &no_one()) {
                        Turn::Behind(place) => place.clone(),
                        Turn::Unknown => {
                            known = real.clone();
                            continue;
                        }
                        Turn::Now | Turn::BehindSeveral => break,
                    };
                    if real.places.contains(&place) {
                        if is_told_who_holds && place.mode == Mode::Exclusive && place == real.places[0] {
                            known.is_held_alone_by(&place.name);
                        }
                        break;
                    }
                    known.leaves(&place.name);
                }
                prop_assert!(known.is_cut() || real.places.iter().all(|place| known.places.contains(place)));
                let (turn, real_turn) = (known.turn(at(&known), &no_one()), real.turn(at(&real), &no_one()));
                if turn == Turn::Now {
                    prop_assert_eq!(real_turn, Turn::Now);
                } else if turn != Turn::BehindSeveral && !matches!(own.mode, Mode::Permit(_)) {
                    prop_assert_ne!(real_turn, Turn::Now);
                }
            }
        }
    }

    #[test]
    fn before_one_that_holds_alone_is_nobody() {
        let mut known = line(&[Mode::Exclusive, Mode::Shared, Mode::Exclusive, Mode::Exclusive]);
        let (holder, own) = (known.places[2].clone(), known.places[3].clone());
        known.is_held_alone_by(&holder.name);
        assert_eq!(known.places, [holder.clone(), own.clone()]);
        known.leaves(&holder.name);
        assert_eq!(known.places, [own]);
        assert_eq!(known.turn(0, &no_one()), Turn::Now);
        known.is_held_alone_by(&holder.name);
        assert_eq!(known.places.len(), 1, "who has left says nothing of the others");
    }
}
