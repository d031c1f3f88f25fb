//! Who stands in line for a lock, and whose turn it is: the keys of the lock in the order in which they were created.

use std::time::Duration;

use ringfence_core::{FencingToken, HolderInfo, Mode, Nonce};

use crate::keys;
use crate::proto::KeyValue;

/// How long a place in line lives without its waiter, at most: one that is stopped or cut off costs the next one as much.
pub(crate) const PLACE: Duration = Duration::from_secs(2);

/// What the value of a key of ours begins with.
const OURS: &str = "ringfence1";

/// What stands in the value of a place.
pub(crate) fn value(mode: Mode, ttl: Duration, nonce: Nonce, holder: &HolderInfo) -> Vec<u8> {
    let mode = match mode {
        Mode::Exclusive => "x".to_owned(),
        Mode::Shared => "s".to_owned(),
        Mode::Permit(limit) => format!("p{limit}"),
    };
    format!(
        "{OURS}:{mode}:{}:{:016x}:{}\n{}\n{}\n{}",
        ttl.as_millis(),
        nonce.get(),
        holder.pid(),
        holder.label(),
        holder.host(),
        holder.metadata()
    )
    .into_bytes()
}

/// One that stands in line. Those at the front hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) key: Vec<u8>,
    pub(crate) created: i64,
    pub(crate) mode: Mode,
    pub(crate) holder: HolderInfo,
    /// Its token. `None`: its revision is no number of a grant.
    pub(crate) token: Option<FencingToken>,
    /// The TTL that it asked for, where it is one of ours.
    pub(crate) ttl: Option<Duration>,
    pub(crate) lease: i64,
}

impl Place {
    /// From a key and its value. What is not ours is somebody else's exclusive lock, as etcd's own clients take them.
    pub(crate) fn read(found: &KeyValue) -> Self {
        // Others have a lease of their own for each place, by which an operator can name them. What somebody has put there by hand has
        // none, and stays until that one or an operator removes it.
        let number = if found.lease == 0 { found.create_revision } else { found.lease };
        let theirs = || (Mode::Exclusive, None, Nonce::from_u64(number.unsigned_abs()), stranger());
        let ours = |(mode, ttl, nonce, holder)| (mode, Some(ttl), Some(nonce), holder);
        let (mode, ttl, nonce, holder) = parse(&found.value).map_or_else(theirs, ours);
        let token = nonce.and_then(|nonce| token(found.create_revision, nonce));
        Self {
            key: found.key.clone(),
            created: found.create_revision,
            mode,
            holder,
            token,
            ttl,
            lease: found.lease,
        }
    }

    /// Whether it is one of ours that holds alone, or waits to.
    pub(crate) fn is_ours_alone(&self) -> bool {
        self.ttl.is_some() && self.mode == Mode::Exclusive
    }

    /// Whether a key is one of ours that holds alone and came to do so after it had waited. Its turn moved the key to the lease that its
    /// name says, which no place in line lives by, so that nobody who writes into it makes it look so. Where a TTL is as short as a place
    /// lives, or the turn was given and the lease not renewed yet, nobody can say.
    pub(crate) fn held_alone(found: &KeyValue) -> bool {
        let place = Self::read(found);
        place.is_ours_alone()
            && place.ttl > Some(PLACE)
            && found.mod_revision > found.create_revision
            && keys::lease_named(&found.key) == Some(found.lease)
    }
}

/// The token of a place, which is granted in the order in which places are taken.
pub(crate) fn token(created: i64, nonce: Nonce) -> Option<FencingToken> {
    FencingToken::of_grant(u64::try_from(created).ok()?, nonce).ok()
}

fn stranger() -> HolderInfo {
    HolderInfo::new("another client", "unknown", 0).expect("the label is short")
}

fn parse(value: &[u8]) -> Option<(Mode, Duration, Nonce, HolderInfo)> {
    let (head, text) = std::str::from_utf8(value).ok()?.split_once('\n')?;
    let mut head = head.split(':');
    let (ours, mode, ttl) = (head.next()?, head.next()?, head.next()?);
    let (nonce, pid) = (Nonce::from_u64(u64::from_str_radix(head.next()?, 16).ok()?)?, head.next()?);
    let mode = match (ours == OURS).then(|| mode.split_at_checked(1)).flatten()? {
        ("x", "") => Mode::Exclusive,
        ("s", "") => Mode::Shared,
        ("p", limit) => Mode::permit(limit.parse().ok()?).ok()?,
        _ => return None,
    };
    let mut text = text.splitn(3, '\n');
    let (label, host, metadata) = (text.next()?, text.next()?, text.next()?);
    let holder =
        HolderInfo::new(label, host, pid.parse().ok()?).and_then(|holder| holder.with_metadata(metadata));
    Some((mode, Duration::from_millis(ttl.parse().ok()?), nonce, holder.ok()?))
}

/// Where one stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// At the front: it holds.
    Holds,
    /// Behind this key, as it was created at this revision: while that is there, it does not hold.
    Behind(Vec<u8>, i64),
    /// Among permits of which too many are ahead: it may hold as soon as any of them goes.
    BehindAny,
}

/// Where one stands of this mode, with these ahead of it, the oldest first.
pub(crate) fn standing(mode: Mode, ahead: &[Place]) -> Standing {
    let behind = |place: Option<&Place>| {
        place.map_or(Standing::Holds, |place| Standing::Behind(place.key.clone(), place.created))
    };
    match mode {
        Mode::Exclusive => behind(ahead.last()),
        Mode::Shared => behind(ahead.iter().rfind(|place| place.mode != Mode::Shared)),
        Mode::Permit(limit) => {
            let mut least = limit;
            for place in ahead.iter().rev() {
                let Mode::Permit(theirs) = place.mode else { return behind(Some(place)) };
                least = least.min(theirs);
            }
            let is_room = u64::try_from(ahead.len()).is_ok_and(|ahead| ahead < u64::from(least.get()));
            if is_room { Standing::Holds } else { Standing::BehindAny }
        }
    }
}

/// How many at the front of a line hold.
pub(crate) fn holding(line: &[Place]) -> usize {
    let holds = |index: &usize| standing(line[*index].mode, &line[..*index]) == Standing::Holds;
    (0..line.len()).take_while(holds).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(created: i64, mode: Mode) -> Place {
        let holder = HolderInfo::new("cron: nightly", "web-1", 42).unwrap().with_metadata("a:b\nc").unwrap();
        let nonce = Nonce::from_u64(u64::try_from(created).unwrap()).unwrap();
        let found = KeyValue {
            key: format!("lock/694d-0.{created:x}").into_bytes(),
            create_revision: created,
            mod_revision: created,
            value: value(mode, Duration::from_secs(30), nonce, &holder),
            lease: 0x694d,
        };
        let place = Place::read(&found);
        assert_eq!((place.mode, &place.holder, place.ttl), (mode, &holder, Some(Duration::from_secs(30))));
        assert_eq!(place.token, token(created, nonce));
        place
    }

    fn line(modes: &[Mode]) -> Vec<Place> {
        (1..).zip(modes).map(|(created, mode)| place(created, *mode)).collect()
    }

    fn permit(limit: u32) -> Mode {
        Mode::permit(limit).unwrap()
    }

    #[test]
    fn the_front_of_a_line_holds() {
        use Mode::{Exclusive, Shared};
        for (modes, expected) in [
            (&[][..], 0),
            (&[Exclusive, Exclusive], 1),
            (&[Exclusive, Shared], 1),
            (&[Shared, Shared, Exclusive, Shared], 2),
            (&[permit(2), permit(2), permit(2)], 2),
            (&[permit(3), permit(1), permit(3)], 1),
            (&[permit(3), permit(3), permit(2), permit(3)], 2),
            (&[permit(2), Shared, permit(2)], 1),
            (&[Shared, permit(2)], 1),
        ] {
            assert_eq!(holding(&line(modes)), expected, "{modes:?}");
        }
    }

    #[test]
    fn each_waits_for_the_one_that_is_in_its_way() {
        use Mode::{Exclusive, Shared};
        let ahead = line(&[Exclusive, Shared, Shared]);
        let behind = |place: &Place| Standing::Behind(place.key.clone(), place.created);
        assert_eq!(standing(Exclusive, &ahead), behind(&ahead[2]));
        assert_eq!(standing(Shared, &ahead), behind(&ahead[0]));
        assert_eq!(standing(permit(2), &ahead), behind(&ahead[2]));
        assert_eq!(standing(permit(2), &line(&[permit(2); 2])), Standing::BehindAny);
    }

    #[test]
    fn only_one_of_ours_that_has_claimed_its_turn_for_itself_alone_is_known_to_have_held_alone() {
        let ttl = Duration::from_secs(30);
        let holder = HolderInfo::new("cron", "web-1", 42).unwrap();
        let ours = |mode| value(mode, ttl, Nonce::from_u64(0xff).unwrap(), &holder);
        let ours_for = |ttl| value(Mode::Exclusive, ttl, Nonce::from_u64(0xff).unwrap(), &holder);
        for (value, changed, lease, expected) in [
            (ours(Mode::Exclusive), 8, 0x694d, true),
            // It waited to its end, or it was first when it came.
            (ours(Mode::Exclusive), 7, 0x694d, false),
            (ours(Mode::Shared), 8, 0x694d, false),
            (ours(permit(2)), 8, 0x694d, false),
            // Somebody has written it back, or touched it while it waited.
            (ours(Mode::Exclusive), 8, 0, false),
            (ours(Mode::Exclusive), 8, 0x7d, false),
            (ours_for(PLACE), 8, 0x694d, false),
            // etcdctl's, which somebody has touched.
            (Vec::new(), 8, 0x694d, false),
        ] {
            let found = KeyValue {
                key: b"lock/694d-0.0".to_vec(),
                create_revision: 7,
                mod_revision: changed,
                value,
                lease,
            };
            assert_eq!(Place::held_alone(&found), expected, "{found:?}");
        }
    }

    #[test]
    fn what_somebody_else_wrote_is_an_exclusive_lock() {
        for (key, value) in [
            ("lock/694d5765fc71500b", ""),
            ("lock/694d-0.0", "ringfence1:x:30000:ff:1\nno host"),
            ("lock/694d-0.0", "ringfence1:p0:30000:ff:1\na\nb\n"),
            ("lock/694d-0.0", "ringfence1:\u{e9}:30000:ff:1\na\nb\n"),
            ("lock/694d-0.0", "ringfence2:s:30000:ff:1\na\nb\n"),
            ("lock/694d-0.0", "ringfence1:s:30000:0:1\na\nb\n"),
            ("lock/694d-0.0", "ringfence1:s:30000:1\na\nb\n"),
        ] {
            let found =
                KeyValue { key: key.into(), create_revision: 7, value: value.into(), ..KeyValue::default() };
            let place = Place::read(&found);
            assert_eq!((place.mode, place.holder.label()), (Mode::Exclusive, "another client"), "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_is_read_without_a_panic(key in "[0-9a-f-]{0,30}", value in prop::collection::vec(any::<u8>(), 0..60)) {
            let found = KeyValue { key: key.into_bytes(), value, create_revision: -1, ..KeyValue::default() };
            prop_assert_eq!(Place::read(&found).token, None);
        }
    }
}
