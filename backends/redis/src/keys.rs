//! Which keys a lock has.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use ringfence_core::{Error, ErrorKind, LockName, RecordKey, Result};

/// How many slots a cluster has.
pub(crate) const SLOTS: u16 = 16384;

/// What the keys of encoded names begin with.
const ENCODED: &str = "ringfence:{";
/// What stands beside a verbatim name begins with this. Another prefix, so that a lock and its verbatim twin share nothing.
const VERBATIM: &str = "ringfence@{";

/// What stands in the key of a record, and in that of one node's part of a record on several nodes.
pub(crate) const RECORD: char = 'r';
pub(crate) const PART: char = 'n';

/// What a name may contain as it stands: nothing that means something in a pattern or ends a hash tag.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b':');

/// How names become keys: injectively, and all keys of one lock in one slot of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    Encoded,
    /// The name is the key, for sharing locks with other clients.
    Verbatim,
}

/// The keys of one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockKeys {
    /// What the keys beside the lock begin with.
    beside: String,
    lock: Lock,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Lock {
    /// What stands beside it, but for the last character.
    Encoded,
    Verbatim(LockName),
}

impl LockKeys {
    /// The lock itself.
    pub(crate) fn lock(&self) -> &str {
        match &self.lock {
            Lock::Encoded => &self.beside[..self.beside.len() - 1],
            Lock::Verbatim(name) => name.as_str(),
        }
    }

    /// What the keys beside the lock begin with.
    pub(crate) fn beside(&self) -> &str {
        &self.beside
    }

    /// The slot of a cluster that all keys of the lock are in. Errors for a lock whose keys are in several, which only a
    /// verbatim name can have.
    pub(crate) fn slot(&self) -> Result<u16> {
        let (lock, beside) = (deciding(self.lock()), deciding(self.beside()));
        if lock == beside {
            return Ok(crc16(lock) % SLOTS);
        }
        Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "the name {:?} has braces that are no hash tag, so that nothing can stand beside its key in one slot of a cluster: \
                 leave out the braces, or drop keys=verbatim",
                self.lock()
            ),
        ))
    }

    /// Where a process is told of its turn in a cluster: in the slot of the lock, because a script reaches no other.
    pub(crate) fn channel(&self, session: &str) -> String {
        format!("{}c:{session}", self.beside)
    }
}

impl Keys {
    pub(crate) fn of(self, name: &LockName) -> LockKeys {
        match self {
            Self::Encoded => {
                let mut beside = String::with_capacity(ENCODED.len() + name.as_str().len() + 16);
                beside.push_str(ENCODED);
                beside.extend(encode(name.as_str()));
                beside.push_str("}:");
                LockKeys { beside, lock: Lock::Encoded }
            }
            Self::Verbatim => {
                let beside = match hash_tag(name.as_str()) {
                    Some(tag) => format!("{VERBATIM}{tag}}}:{{{}}}:", encode(name.as_str())),
                    // The first closing brace ends a name, so that one with a brace in it is encoded. No tag of its keys can be
                    // that of the lock then.
                    None if name.as_str().contains('}') => {
                        format!("{VERBATIM}}}:{{{}}}:", encode(name.as_str()))
                    }
                    None => format!("{VERBATIM}{name}}}:"),
                };
                LockKeys { beside, lock: Lock::Verbatim(name.clone()) }
            }
        }
    }

    /// The key of a record.
    pub(crate) fn of_record(self, key: &RecordKey) -> String {
        self.of_kind(RECORD, key)
    }

    /// The key of one node's part of a record on several nodes. It is not that of a record, because it is no record.
    pub(crate) fn of_part(self, key: &RecordKey) -> String {
        self.of_kind(PART, key)
    }

    fn of_kind(self, kind: char, key: &RecordKey) -> String {
        format!("{}{kind}:{}", self.of(key.lock()).beside(), key.field())
    }

    /// The record, or the part of one, whose key this is.
    pub(crate) fn record_of(self, kind: char, key: &str) -> Option<RecordKey> {
        let mark = format!(":{kind}:");
        key.match_indices(&mark).find_map(|(at, _)| {
            let (beside, field) = (&key[..=at], &key[at + mark.len()..]);
            let record = RecordKey::new(self.name_beside(beside)?, field).ok()?;
            (self.of(record.lock()).beside() == beside).then_some(record)
        })
    }

    /// The name of the lock beside which keys stand that begin so, if it is one's.
    fn name_beside(self, beside: &str) -> Option<LockName> {
        let rest = beside.strip_suffix(':')?;
        match self {
            Self::Encoded => self.name_of(rest),
            Self::Verbatim => {
                let rest = rest.strip_prefix(VERBATIM)?.strip_suffix('}')?;
                match rest.split_once("}:{") {
                    Some((_tag, encoded)) => decode(encoded),
                    None => rest.parse().ok(),
                }
            }
        }
    }

    /// A pattern that the keys of all records match whose locks' names begin so.
    pub(crate) fn pattern_of_records(self, prefix: &str) -> String {
        match self {
            Self::Encoded => self.pattern(prefix),
            // What stands beside a verbatim name may begin with its hash tag instead.
            Self::Verbatim => format!("{VERBATIM}*"),
        }
    }

    /// A pattern that every key of a name with this prefix matches.
    pub(crate) fn pattern(self, prefix: &str) -> String {
        match self {
            // Nothing that is encoded means anything in a pattern.
            Self::Encoded => format!("{ENCODED}{}*", encode(prefix)),
            Self::Verbatim => {
                let mut pattern = String::new();
                for character in prefix.chars() {
                    if matches!(character, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
                        pattern.push('\\');
                    }
                    pattern.push(character);
                }
                pattern + "*"
            }
        }
    }

    /// The name of the lock that is this key, if the key is a lock.
    pub(crate) fn name_of(self, key: &str) -> Option<LockName> {
        match self {
            Self::Encoded => decode(key.strip_prefix(ENCODED)?.strip_suffix('}')?),
            Self::Verbatim if key.starts_with(ENCODED) || key.starts_with(VERBATIM) => None,
            Self::Verbatim => key.parse().ok(),
        }
    }
}

fn decode(encoded: &str) -> Option<LockName> {
    percent_encoding::percent_decode_str(encoded).decode_utf8().ok()?.parse().ok()
}

fn encode(name: &str) -> PercentEncode<'_> {
    utf8_percent_encode(name, ESCAPED)
}

/// What decides the slot of a key.
fn deciding(key: &str) -> &str {
    hash_tag(key).unwrap_or(key)
}

/// The checksum whose remainder is the slot: CRC-16/XMODEM.
fn crc16(text: &str) -> u16 {
    text.bytes().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

/// The part of a key that decides its slot, where it is not the whole key.
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    (!tag.is_empty()).then_some(tag)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = LockName> {
        let tricky = prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    "{", "}", ":", "*", "[", "\\", "%", "%7B", "a", "b", "q", "w", "é", "/", ":r:"
                ]),
                Just("ringfence:{a}"),
                Just("ringfence@{a}:q"),
            ],
            1..6,
        );
        tricky.prop_map(|parts| LockName::new(parts.concat()).unwrap())
    }

    /// Everything that a lock ever uses.
    fn all(keys: &LockKeys) -> Vec<String> {
        let beside = ["t", "q", "w", "h", "s", "l", "x", "r:value", "n:value"]
            .map(|key| format!("{}{key}", keys.beside()));
        beside.into_iter().chain([keys.lock().to_owned()]).collect()
    }

    proptest! {
        #[test]
        fn locks_share_no_key(a in name(), b in name()) {
            prop_assume!(a != b);
            let of = |name: &LockName| all(&Keys::Encoded.of(name)).into_iter().collect::<HashSet<_>>();
            prop_assert!(of(&a).is_disjoint(&of(&b)), "{:?} {:?}", of(&a), of(&b));
            // Verbatim names are the user's, so the keys beside one may be named like another lock; but not like what
            // stands beside it.
            let beside = |name: &LockName| all(&Keys::Verbatim.of(name)).into_iter().take(9).collect::<HashSet<_>>();
            prop_assert!(beside(&a).is_disjoint(&beside(&b)), "{:?} {:?}", beside(&a), beside(&b));
            prop_assert!(beside(&a).is_disjoint(&of(&b)));
        }

        #[test]
        fn all_keys_of_a_lock_have_one_tag(name in name()) {
            let keys = Keys::Encoded.of(&name);
            prop_assert!(all(&keys).iter().all(|key| hash_tag(key) == hash_tag(keys.lock())));
        }

        #[test]
        fn the_key_of_a_record_says_whose_it_is(
            name in name(),
            field in prop::sample::select(vec!["value", "a:r:b", "}:r:x", "}:n:x", "n:", "é"]),
        ) {
            let record = RecordKey::new(name.clone(), field).unwrap();
            prop_assert_eq!(Keys::Encoded.record_of(RECORD, &Keys::Encoded.of_record(&record)), Some(record.clone()));
            prop_assert_eq!(Keys::Encoded.record_of(RECORD, &Keys::Encoded.of_part(&record)), None);
            let found = Keys::Verbatim.record_of(PART, &Keys::Verbatim.of_part(&record));
            prop_assert_eq!(found, Some(record));
        }

        #[test]
        fn a_key_says_its_name(name in name()) {
            prop_assert_eq!(Keys::Encoded.name_of(Keys::Encoded.of(&name).lock()), Some(name));
        }
    }

    #[test]
    fn a_verbatim_name_stands_in_what_is_beside_it() {
        for (name, beside) in [
            ("orders", "ringfence@{orders}:"),
            ("{user}.x", "ringfence@{user}:{%7Buser%7D.x}:"),
            ("a{user}{b}", "ringfence@{user}:{a%7Buser%7D%7Bb%7D}:"),
            ("a}:r:x", "ringfence@{}:{a%7D:r:x}:"),
        ] {
            let keys = Keys::Verbatim.of(&name.parse().unwrap());
            assert_eq!((keys.lock(), keys.beside()), (name, beside));
        }
    }

    #[test]
    fn a_slot_is_the_remainder_of_the_checksum_of_the_tag() {
        // The check value of CRC-16/XMODEM, and slots that servers name.
        assert_eq!(crc16("123456789"), 0x31C3);
        let slot = |name: &str| Keys::Verbatim.of(&name.parse().unwrap()).slot();
        for (name, expected) in [("foo", 12182), ("{user1000}.following", 3443), ("somekey", 11058)] {
            assert_eq!(slot(name).unwrap(), expected, "{name}");
        }
        for name in ["a}b", "{}a", "{}{b}"] {
            let error = slot(name).unwrap_err().to_string();
            assert!(error.contains("hash tag") && error.contains(name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn every_encoded_name_has_a_slot_and_its_channel_is_in_it(name in name()) {
            let keys = Keys::Encoded.of(&name);
            let slot = keys.slot().unwrap();
            prop_assert!(slot < SLOTS);
            prop_assert_eq!(crc16(deciding(&keys.channel("c0ff"))) % SLOTS, slot);
        }

        #[test]
        fn a_verbatim_name_is_in_one_slot_or_refused(name in name()) {
            let keys = Keys::Verbatim.of(&name);
            if let Ok(slot) = keys.slot() {
                prop_assert!(all(&keys).iter().all(|key| crc16(deciding(key)) % SLOTS == slot));
            }
        }
    }

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(Keys::Encoded.pattern("a*b"), "ringfence:{a%2Ab*");
        assert_eq!(Keys::Verbatim.pattern("a*[b]?"), "a\\*\\[b\\]\\?*");
    }
}
