//! Which keys a lock has.

use ringfence_core::{Error, ErrorKind, LockName, Nonce, RecordKey, Result};

use crate::slots::Slot;

/// Ends an encoded name. It is less than every byte of one, so that keys are in the order of their names, and no line of keys
/// lies within another.
const END: u8 = b'!';
/// Stands before a byte of a name that is not greater than it.
const ESCAPE: u8 = b'"';
/// The bytes of a name that are escaped, each with what stands for it: every other byte of a name is greater than these.
const ESCAPED: [(u8, u8); 3] = [(b' ', b'0'), (END, b'1'), (ESCAPE, b'2')];

/// How names become keys: injectively, and no name's keys among those of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    /// What all keys of ours begin with, with its slash.
    prefix: String,
    is_verbatim: bool,
}

/// A range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) begin: Vec<u8>,
    pub(crate) end: Vec<u8>,
}

impl Range {
    /// Every key that begins so.
    pub(crate) fn beginning_with(begin: Vec<u8>) -> Self {
        let mut end = begin.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                break;
            }
        }
        // Nothing is greater: a range without an end, as etcd writes it.
        if end.is_empty() {
            end.push(0);
        }
        Self { begin, end }
    }
}

impl Keys {
    pub(crate) fn encoded(prefix: &str) -> Self {
        Self { prefix: format!("{prefix}/"), is_verbatim: false }
    }

    /// The name is what the keys begin with, for sharing locks with other clients.
    pub(crate) fn verbatim(prefix: &str) -> Self {
        Self { prefix: format!("{prefix}/"), is_verbatim: true }
    }

    /// What all keys of ours begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The keys of those who hold a lock or wait for it.
    pub(crate) fn line(&self, name: &LockName) -> Range {
        Range::beginning_with(self.line_begin(name))
    }

    fn line_begin(&self, name: &LockName) -> Vec<u8> {
        if self.is_verbatim {
            format!("{name}/").into_bytes()
        } else {
            self.encode("lock", name.as_str(), true)
        }
    }

    /// The key of an attempt that has this slot of its process.
    pub(crate) fn place(&self, name: &LockName, lease: i64, slot: &Slot) -> Vec<u8> {
        let mut key = self.line_begin(name);
        key.extend(format!("{lease:x}-{slot}").into_bytes());
        key
    }

    /// The key that says that an attempt was withdrawn, and must not come back.
    pub(crate) fn withdrawn(&self, nonce: Nonce) -> Vec<u8> {
        format!("{}withdrawn/{:016x}", self.prefix, nonce.get()).into_bytes()
    }

    /// The key of a record.
    pub(crate) fn record(&self, key: &RecordKey) -> Vec<u8> {
        let mut record = self.records(key.lock()).begin;
        record.extend(key.field().as_bytes());
        record
    }

    /// The keys of all records of a lock.
    pub(crate) fn records(&self, lock: &LockName) -> Range {
        Range::beginning_with(self.encode(self.kind_of_records(), lock.as_str(), true))
    }

    /// The keys of all records of locks whose names begin so. They are in the order of the records.
    pub(crate) fn all_records(&self, prefix: &str) -> Range {
        Range::beginning_with(self.encode(self.kind_of_records(), prefix, false))
    }

    /// The record that has this key.
    pub(crate) fn record_of(&self, key: &[u8]) -> Option<RecordKey> {
        let (lock, field) = self.decode(self.kind_of_records(), key)?;
        RecordKey::new(lock, std::str::from_utf8(field).ok()?).ok()
    }

    /// A lock and its verbatim twin share nothing.
    fn kind_of_records(&self) -> &'static str {
        if self.is_verbatim { "verbatim-record" } else { "record" }
    }

    /// The keys of all locks whose names begin so.
    pub(crate) fn all(&self, prefix: &str) -> Range {
        if self.is_verbatim {
            match prefix {
                // A range that begins with nothing is that of all keys.
                "" => Range { begin: vec![0], end: vec![0] },
                prefix => Range::beginning_with(prefix.as_bytes().to_vec()),
            }
        } else {
            Range::beginning_with(self.encode("lock", prefix, false))
        }
    }

    /// Where everything of ours is that everybody needs; locks with verbatim names have no place in common.
    pub(crate) fn areas(&self) -> Vec<Range> {
        let (marks, records) = ("withdrawn", self.kind_of_records());
        let areas = if self.is_verbatim { vec![marks, records] } else { vec!["lock", marks, records] };
        let range = |area| Range::beginning_with(format!("{}{area}/", self.prefix).into_bytes());
        areas.into_iter().map(range).collect()
    }

    /// Whether keys are in the order of their names.
    pub(crate) fn are_in_order(&self) -> bool {
        !self.is_verbatim
    }

    /// The name of the lock in whose line this key stands.
    pub(crate) fn name_of(&self, key: &[u8]) -> Option<LockName> {
        if self.is_verbatim {
            let key = std::str::from_utf8(key).ok()?;
            let (name, _) = key.rsplit_once('/')?;
            return LockName::new(name).ok().filter(|name| self.check(name).is_ok());
        }
        self.decode("lock", key).map(|(name, _)| name)
    }

    /// The name that is encoded in a key, and what comes after it.
    fn decode<'a>(&self, kind: &str, key: &'a [u8]) -> Option<(LockName, &'a [u8])> {
        let rest = key.strip_prefix(format!("{}{kind}/", self.prefix).as_bytes())?;
        let end = rest.iter().position(|byte| *byte == END)?;
        let mut name = Vec::with_capacity(end);
        let mut bytes = rest[..end].iter();
        while let Some(&byte) = bytes.next() {
            if byte == ESCAPE {
                let stands_for = bytes.next()?;
                name.push(ESCAPED.iter().find(|(_, code)| code == stands_for)?.0);
            } else {
                name.push(byte);
            }
        }
        Some((LockName::new(std::str::from_utf8(&name).ok()?).ok()?, &rest[end + 1..]))
    }

    /// Errors for a name that cannot be used as it stands, because its keys and our own would meet.
    pub(crate) fn check(&self, name: &LockName) -> Result<()> {
        let ours = &self.prefix[..self.prefix.len() - 1];
        let meet = || name.as_str().starts_with(&self.prefix) || self.prefix.starts_with(&format!("{name}/"));
        if self.is_verbatim && meet() {
            return Err(Error::new(
                ErrorKind::InvalidName,
                format!(
                    "the keys of the lock name {:?} meet those under {ours:?}, where Ringfence keeps what is its own: with \
                     keys=verbatim give the lock another name, or the URL another path",
                    name.as_str()
                ),
            ));
        }
        Ok(())
    }

    fn encode(&self, kind: &str, name: &str, is_whole: bool) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + kind.len() + name.len() + 48);
        key.extend(self.prefix.as_bytes());
        key.extend(kind.as_bytes());
        key.push(b'/');
        for &byte in name.as_bytes() {
            match ESCAPED.iter().find(|(escaped, _)| *escaped == byte) {
                Some((_, code)) => key.extend([ESCAPE, *code]),
                None => key.push(byte),
            }
        }
        if is_whole {
            key.push(END);
        }
        key
    }
}

/// The lease that the key of a place names. `None`: it is none of ours.
pub(crate) fn lease_named(place: &[u8]) -> Option<i64> {
    let (named, _slot) = std::str::from_utf8(place).ok()?.rsplit_once('-')?;
    let digits = named.rsplit(|character: char| !character.is_ascii_hexdigit()).next()?;
    i64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slots::Slots;

    fn name() -> impl Strategy<Value = LockName> {
        let parts = prop::sample::select(vec![
            " ",
            "!",
            "\"",
            "#",
            "%",
            "-",
            "/",
            "0",
            "1",
            "2",
            "a",
            "b",
            "é",
            "~",
            "\u{10ffff}",
            "lock/",
            "!694d-",
        ]);
        prop::collection::vec(parts, 1..6).prop_map(|parts| LockName::new(parts.concat()).unwrap())
    }

    fn holds(range: &Range, key: &[u8]) -> bool {
        *range.begin <= *key && *key < *range.end
    }

    proptest! {
        #[test]
        fn a_name_comes_back(name in name(), lease in 1..i64::MAX) {
            let slot = Slots::default().take(&name);
            for keys in [Keys::encoded("ringfence"), Keys::verbatim("ringfence")] {
                let key = keys.place(&name, lease, &slot);
                prop_assert_eq!(lease_named(&key), Some(lease));
                prop_assert_eq!(keys.name_of(&key), Some(name.clone()));
                prop_assert!(holds(&keys.line(&name), &key));
            }
        }

        #[test]
        fn keys_are_in_the_order_of_their_names_and_in_no_line_of_another(
            one in name(), two in name(), leases in (1..i64::MAX, 1..i64::MAX),
        ) {
            prop_assume!(one != two);
            let keys = Keys::encoded("ringfence");
            let place = |name, lease| keys.place(name, lease, &Slots::default().take(name));
            let (of_one, of_two) = (place(&one, leases.0), place(&two, leases.1));
            prop_assert_eq!(of_one.cmp(&of_two), one.cmp(&two));
            prop_assert!(!holds(&keys.line(&one), &of_two));
        }

        #[test]
        fn a_prefix_finds_the_names_that_begin_with_it(name in name(), prefix in name()) {
            let keys = Keys::encoded("ringfence");
            let key = keys.place(&name, 7, &Slots::default().take(&name));
            let begins = name.as_str().starts_with(prefix.as_str());
            prop_assert_eq!(holds(&keys.all(prefix.as_str()), &key), begins);
            prop_assert!(holds(&keys.all(""), &key));
        }

        #[test]
        fn a_record_comes_back_and_is_found_by_its_prefix(name in name(), field in name(), prefix in name()) {
            let record = RecordKey::new(name.clone(), field.as_str()).unwrap();
            for keys in [Keys::encoded("ringfence"), Keys::verbatim("ringfence")] {
                let key = keys.record(&record);
                prop_assert_eq!(keys.record_of(&key), Some(record.clone()));
                prop_assert!(holds(&keys.records(&name), &key));
                let begins = name.as_str().starts_with(prefix.as_str());
                prop_assert_eq!(holds(&keys.all_records(prefix.as_str()), &key), begins);
            }
        }

        #[test]
        fn what_is_no_key_of_ours_is_none(key in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(Keys::encoded("ringfence").name_of(&key), None);
            let _ = Keys::verbatim("ringfence").name_of(&key);
        }
    }

    #[test]
    fn records_are_apart_from_each_other_and_from_locks() {
        let record = |lock: &str, field: &str| RecordKey::new(lock.parse().unwrap(), field).unwrap();
        let keys = Keys::encoded("ringfence");
        assert_ne!(keys.record(&record("a!b", "c")), keys.record(&record("a", "b!c")));
        let verbatim = Keys::verbatim("ringfence");
        assert_ne!(keys.record(&record("a", "b")), verbatim.record(&record("a", "b")));
        assert!(verbatim.check(&"ringfence/record/a!b".parse().unwrap()).is_err());
        assert!(verbatim.check(&"ringfence".parse().unwrap()).is_err(), "its line would be all that is ours");
        assert!(keys.check(&"ringfence/record/a!b".parse().unwrap()).is_ok());
        let deep = Keys::verbatim("apps/ringfence");
        assert!(deep.check(&"apps".parse().unwrap()).is_err(), "its line would have all that is ours in it");
        assert!(deep.check(&"app".parse().unwrap()).is_ok());
        assert!(deep.check(&"apps/ring".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_range_without_anything_greater_has_no_end() {
        assert_eq!(Range::beginning_with(vec![b'a', 0xff]).end, b"b");
        assert_eq!(Range::beginning_with(vec![0xff]).end, [0]);
    }
}
