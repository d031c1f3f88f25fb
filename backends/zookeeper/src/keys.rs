//! Which nodes a lock has.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ringfence_core::{Error, ErrorKind, LockName, RecordKey, Result};

use crate::wire::Access;

/// Under which all is that is ours, below the path of the URL.
const ROOT: &str = "/ringfence";
/// Below that one: the locks, and the records of these and of verbatim ones.
const LOCKS: &str = "locks";
const RECORDS: &str = "records";
const VERBATIM_RECORDS: &str = "records-of-verbatim";

/// Below which the servers keep what is theirs.
const SERVERS_OWN: &str = "zookeeper";

/// Our own root and the servers' own: there are no verbatim locks below them.
const RESERVED: [&str; 2] = ["ringfence", SERVERS_OWN];

/// What the name of a node may contain as it stands. A dot may not: `.` and `..` are no names of nodes.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b':');

/// How names become nodes: injectively, each lock with a node of its own.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    naming: Naming,
    /// The path of the URL, without a slash at its end.
    chroot: String,
    access: Access,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Encoded,
    /// The name is the path, for sharing locks with other clients.
    Verbatim,
}

impl Keys {
    /// Errors where the chroot is no path.
    pub(crate) fn new(naming: Naming, chroot: &str, access: Access) -> Result<Self> {
        let is_a_place = || match chroot.split('/').nth(1) {
            Some(SERVERS_OWN) => Err("it is the servers' own".to_owned()),
            _ => Ok(()),
        };
        check_path(chroot).and_then(|()| is_a_place()).map_err(|why| {
            Error::new(
                ErrorKind::InvalidUrl,
                format!("{chroot:?} is no path for us among ZooKeeper's nodes: {why}"),
            )
        })?;
        Ok(Self { naming, chroot: chroot.to_owned(), access })
    }

    pub(crate) fn naming(&self) -> Naming {
        self.naming
    }

    /// Who may do what with the nodes that we make.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// The node below which all is that is ours.
    pub(crate) fn root(&self) -> String {
        format!("{}{ROOT}", self.chroot)
    }

    /// The node below which the locks are.
    pub(crate) fn locks(&self) -> String {
        match self.naming {
            Naming::Encoded => format!("{}{ROOT}/{LOCKS}", self.chroot),
            Naming::Verbatim => self.chroot.clone(),
        }
    }

    /// The nodes below which all is that everybody needs; locks with verbatim names are in no place of ours.
    pub(crate) fn areas(&self) -> [String; 3] {
        let locks = match self.naming {
            Naming::Encoded => self.locks(),
            Naming::Verbatim => self.root(),
        };
        [self.root(), locks, self.records()]
    }

    /// The node of a lock, below which those stand who want it. Errors for a name that is no path, which only a verbatim one can
    /// be.
    pub(crate) fn lock(&self, name: &LockName) -> Result<String> {
        let name = name.as_str();
        match self.naming {
            Naming::Encoded => Ok(format!("{}/{}", self.locks(), encode(name))),
            Naming::Verbatim => {
                let path = format!("/{}", name.strip_prefix('/').unwrap_or(name));
                check_path(&path).and_then(|()| check_not_ours(&path)).map_err(|why| {
                    Error::new(
                        ErrorKind::InvalidName,
                        format!("{name:?} is no path among ZooKeeper's nodes, as keys=verbatim wants: {why}"),
                    )
                })?;
                Ok(self.chroot.clone() + &path)
            }
        }
    }

    /// The name of the lock whose node is a child of [`Self::locks`] with this name. `None` if it is no lock's.
    pub(crate) fn name_of(child: &str) -> Option<LockName> {
        percent_decode_str(child).decode_utf8().ok()?.parse().ok()
    }

    /// Whether nobody's verbatim lock is at this child of the chroot, or below it.
    pub(crate) fn is_reserved(child: &str) -> bool {
        RESERVED.contains(&child)
    }

    /// The node below which each lock that has records has a node for them.
    pub(crate) fn records(&self) -> String {
        let records = match self.naming {
            Naming::Encoded => RECORDS,
            Naming::Verbatim => VERBATIM_RECORDS,
        };
        format!("{}{ROOT}/{records}", self.chroot)
    }

    /// The node below which the records of a lock are.
    pub(crate) fn records_of(&self, lock: &LockName) -> String {
        format!("{}/{}", self.records(), encode(lock.as_str()))
    }

    /// The node of a record.
    pub(crate) fn record(&self, key: &RecordKey) -> String {
        format!("{}/{}", self.records_of(key.lock()), encode(key.field()))
    }

    /// The record of a lock whose node is a child of [`Self::records_of`] with this name. `None` if it is none.
    pub(crate) fn field_of(lock: &LockName, child: &str) -> Option<RecordKey> {
        RecordKey::new(lock.clone(), percent_decode_str(child).decode_utf8().ok()?).ok()
    }
}

/// Nodes of locks that were there not long ago, and how many stood below each when it was last seen.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<String, usize>>);

impl Known {
    /// How many are remembered. Then all are forgotten.
    const MAX: usize = 4096;

    /// How many stood there. `None`: it is not known to be there.
    pub(crate) fn standing(&self, folder: &str) -> Option<usize> {
        self.folders().get(folder).copied()
    }

    pub(crate) fn insert(&self, folder: &str, standing: usize) {
        let mut folders = self.folders();
        if let Some(known) = folders.get_mut(folder) {
            *known = standing;
            return;
        }
        if folders.len() >= Self::MAX {
            folders.clear();
        }
        folders.insert(folder.to_owned(), standing);
    }

    pub(crate) fn remove(&self, folder: &str) {
        self.folders().remove(folder);
    }

    fn folders(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The nodes above one, from the top.
pub(crate) fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|path| !path.is_empty())
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// What a server says of a path, before it is asked. The empty one is that of the top.
fn check_path(path: &str) -> Result<(), String> {
    for name in path.split('/').skip(1) {
        if matches!(name, "." | "..") {
            return Err(format!("it has {name:?}, which has no meaning there"));
        }
        if name.is_empty() {
            return Err("it has no name between two slashes, or after the last one".to_owned());
        }
    }
    // What is beyond the first 65,536 characters is two of Java's, neither of which may stand there.
    let is_refused = |character: &char| matches!(*character, '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..);
    match path.chars().find(is_refused) {
        Some(bad) => Err(format!("it has {bad:?}, which a server refuses")),
        None => Ok(()),
    }
}

/// Below our own root and the servers' own are no locks of anybody's.
fn check_not_ours(path: &str) -> Result<(), String> {
    match path.split('/').nth(1) {
        Some(first) if RESERVED.contains(&first) => Err(format!("what is below {first:?} is no lock")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(naming: Naming) -> Keys {
        Keys::new(naming, "/apps", Access::Anyone).unwrap()
    }

    #[test]
    fn what_is_the_servers_own_is_no_place_for_locks() {
        for (chroot, is_place) in [
            ("", true),
            ("/zookeepers", true),
            ("/a/zookeeper", true),
            ("/zookeeper", false),
            ("/zookeeper/config", false),
        ] {
            let keys = Keys::new(Naming::Encoded, chroot, Access::Anyone);
            assert_eq!(keys.is_ok(), is_place, "{chroot:?}: {keys:?}");
        }
    }

    fn name() -> impl Strategy<Value = LockName> {
        let part =
            prop::sample::select(vec!["/", ".", "..", "%", "%2F", "a", "b", "é", "\u{f8ff}", "locks", " "]);
        prop::collection::vec(part, 1..6).prop_map(|parts| LockName::new(parts.concat()).unwrap())
    }

    proptest! {
        #[test]
        fn locks_share_no_node_and_none_is_below_another(a in name(), b in name()) {
            prop_assume!(a != b);
            let of = |name: &LockName| keys(Naming::Encoded).lock(name).unwrap();
            prop_assert_ne!(of(&a), of(&b));
            let is_below = of(&b).starts_with(&(of(&a) + "/"));
            prop_assert!(!is_below, "{} {}", of(&a), of(&b));
            let record = |name: &LockName| keys(Naming::Encoded).record(&RecordKey::of(name.clone()));
            prop_assert_ne!(record(&a), record(&b));
        }

        #[test]
        fn a_node_says_its_name_and_is_one(name in name()) {
            let keys = keys(Naming::Encoded);
            let path = keys.lock(&name).unwrap();
            prop_assert_eq!(check_path(&path), Ok(()));
            let child = path.strip_prefix(&format!("{}/", keys.locks())).unwrap();
            prop_assert_eq!(Keys::name_of(child), Some(name.clone()));
            let record = RecordKey::new(name.clone(), "a/b%").unwrap();
            let (folder, child) = (keys.records_of(&name), keys.record(&record));
            let child = child.strip_prefix(&format!("{folder}/")).unwrap();
            prop_assert_eq!(Keys::field_of(&name, child), Some(record));
        }
    }

    #[test]
    fn a_verbatim_name_is_a_path_or_refused() {
        let keys = keys(Naming::Verbatim);
        let of = |name: &str| keys.lock(&name.parse().unwrap());
        assert_eq!(of("orders/42").unwrap(), "/apps/orders/42");
        assert_eq!(of("/orders/42").unwrap(), "/apps/orders/42");
        for (name, hint) in [
            ("a/", "after the last one"),
            ("a//b", "between two slashes"),
            ("a/../b", "\"..\""),
            (".", "\".\""),
            ("a\u{f8ff}", "refuses"),
            ("a\u{1f980}", "refuses"),
            ("ringfence/locks/x", "no lock"),
            ("zookeeper", "no lock"),
        ] {
            let error = of(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName, "{name}");
            assert!(error.to_string().contains(hint), "{name}: {error}");
        }
    }

    #[test]
    fn the_nodes_above_are_those_on_the_way() {
        assert_eq!(above("/a/b/c").collect::<Vec<_>>(), ["/a", "/a/b"]);
        assert_eq!(above("/a").count(), 0);
    }
}
