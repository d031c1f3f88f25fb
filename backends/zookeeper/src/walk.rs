//! A walk through nodes of which anybody's may be there, for one page of the locks among them: what is looked into next, and what
//! may be forgotten, so that neither a large tree nor a wide one costs more than a page.
//!
//! The nodes that are known and not looked into yet are sorted by path, as locks are listed. The first one of them is where the
//! walk is: all locks before it are found.

use std::collections::BTreeSet;

use ringfence_core::{ListQuery, LockName};

/// How far a walk goes. Each page takes up the way to the last name of the one before: nodes whose paths that name begins with, of
/// which there are no more than it has bytes. So a page gets on if it remembers more, and asks more often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How many nodes are asked for at once.
    pub(crate) at_once: usize,
    /// How many nodes are remembered to be looked into. Those that come after them are left to the next page.
    pub(crate) ahead: usize,
    /// After so many nodes the page ends, whatever is on it.
    pub(crate) looks: usize,
}

impl Limits {
    pub(crate) const OF_A_PAGE: Self = Self { at_once: 64, ahead: 10_000, looks: 10_000 };
}

/// Nodes are named by their paths below the one where it begins, without a slash before them: as locks are.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    query: &'a ListQuery,
    limits: Limits,
    /// How many locks are enough.
    wanted: usize,
    ahead: BTreeSet<String>,
    /// From here on nodes are left to the next page.
    end: Option<String>,
    passed: BTreeSet<String>,
    found: BTreeSet<LockName>,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(query: &'a ListQuery, wanted: usize, limits: Limits) -> Self {
        let (passed, found) = (BTreeSet::new(), BTreeSet::new());
        Self { query, limits, wanted, ahead: BTreeSet::from([String::new()]), end: None, passed, found }
    }

    /// The nodes to look into next. None: it is over.
    pub(crate) fn next(&mut self) -> Vec<String> {
        let is_before =
            |name: &&LockName| self.ahead.first().is_none_or(|first| name.as_str() < first.as_str());
        let is_enough = self.passed.len() >= self.limits.looks
            || self.found.iter().filter(is_before).count() >= self.wanted;
        if is_enough {
            return Vec::new();
        }
        let next: Vec<String> =
            std::iter::from_fn(|| self.ahead.pop_first()).take(self.limits.at_once).collect();
        self.passed.extend(next.iter().cloned());
        next
    }

    /// Below a node that was looked into are these, and by them it is a lock or not.
    pub(crate) fn saw(&mut self, node: &str, children: impl IntoIterator<Item = String>, is_lock: bool) {
        if is_lock
            && let Ok(name) = LockName::new(node)
            && name.as_str().starts_with(&self.query.prefix)
            && self.query.after.as_ref().is_none_or(|after| name > *after)
        {
            self.found.insert(name);
        }
        for child in children {
            let path = if node.is_empty() { child } else { format!("{node}/{child}") };
            if self.end.as_ref().is_some_and(|end| path >= *end) || !self.may_lead_to_locks(&path) {
                continue;
            }
            self.ahead.insert(path);
            if self.ahead.len() > self.limits.ahead {
                self.end = self.ahead.pop_last();
            }
        }
    }

    /// Whether this one or one below it can be asked for.
    fn may_lead_to_locks(&self, path: &str) -> bool {
        // What is no name has none below it, which would only be longer.
        if LockName::new(path).is_err() {
            return false;
        }
        let below = format!("{path}/");
        let has_prefix = |prefix: &str| {
            path.starts_with(prefix) || below.starts_with(prefix) || prefix.starts_with(&below)
        };
        let is_after = |after: &str| path > after || below.as_str() > after || after.starts_with(&below);
        has_prefix(&self.query.prefix)
            && self.query.after.as_ref().is_none_or(|after| is_after(after.as_str()))
    }

    /// The locks that were found, in order, and after which name the next page begins where there may be more.
    pub(crate) fn end(mut self) -> (Vec<LockName>, Option<LockName>) {
        // All that is known and was not looked into comes after it.
        let known = self.ahead.first().into_iter().chain(&self.end).min();
        let Some(rest) = known.and_then(|first| self.passed.range(..first.clone()).next_back()) else {
            return (self.found.into_iter().collect(), None);
        };
        let rest = LockName::new(rest).ok();
        self.found.retain(|name| Some(name) <= rest.as_ref());
        (self.found.into_iter().collect(), rest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A tree by the paths of its nodes, each of which is a lock or not.
    type Tree = BTreeMap<String, bool>;

    fn children<'a>(tree: &'a Tree, node: &'a str) -> impl Iterator<Item = String> + 'a {
        let below = if node.is_empty() { String::new() } else { format!("{node}/") };
        tree.keys().filter_map(move |path| {
            let child = path.strip_prefix(&below)?;
            (!child.is_empty() && !child.contains('/')).then(|| child.to_owned())
        })
    }

    /// One page; checks what it costs.
    fn page(tree: &Tree, query: &ListQuery, limits: Limits) -> (Vec<LockName>, Option<LockName>) {
        let mut walk = Walk::new(query, query.limit, limits);
        let mut looks = 0;
        loop {
            let next = walk.next();
            assert!(next.len() <= limits.at_once, "{next:?}");
            if next.is_empty() {
                break;
            }
            looks += next.len();
            for node in next {
                walk.saw(&node, children(tree, &node), tree.get(&node) == Some(&true));
                assert!(walk.ahead.len() <= limits.ahead, "{:?}", walk.ahead);
            }
        }
        assert!(looks < limits.looks + limits.at_once, "{looks} looks");
        walk.end()
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let name = prop::sample::select(vec!["a", "b", "a!", "a0", "é"]);
        let path = prop::collection::vec(name, 1..5);
        prop::collection::vec((path, prop::bool::weighted(0.1)), 0..100).prop_map(|paths| {
            let mut tree = Tree::new();
            for (path, is_lock) in paths {
                for depth in 1..path.len() {
                    tree.entry(path[..depth].join("/")).or_insert(false);
                }
                tree.insert(path.join("/"), is_lock);
            }
            tree
        })
    }

    proptest! {
        #[test]
        fn the_pages_have_every_lock_once_and_in_order(
            tree in tree(),
            prefix in prop::sample::select(vec!["", "a", "a/", "a!", "a/b", "b/a/a", "é"]),
            limit in 1_usize..8,
            at_once in 1_usize..5,
            ahead in 10_usize..16,
            rounds in 10_usize..16,
        ) {
            // Each node of a path up to a lock, and a sibling of it that sorts before.
            let limits = Limits { at_once, ahead, looks: rounds * at_once };
            let expected: Vec<&str> = tree
                .iter()
                .filter_map(|(path, is_lock)| (*is_lock && path.starts_with(prefix)).then_some(path.as_str()))
                .collect();
            let mut query = ListQuery::new(prefix).limit(limit);
            let mut listed = Vec::new();
            loop {
                let (names, rest) = page(&tree, &query, limits);
                listed.extend(names);
                let Some(rest) = rest else { break };
                prop_assert!(query.after.as_ref().is_none_or(|after| rest > *after), "{query:?} {rest:?}");
                query = query.after(rest);
            }
            prop_assert_eq!(listed.iter().map(LockName::as_str).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn what_cannot_lead_to_a_lock_that_is_asked_for_is_not_looked_into() {
        let query = ListQuery::new("a/b").after(LockName::new("a/b/d/e").unwrap());
        let walk = Walk::new(&query, 1, Limits::OF_A_PAGE);
        for (path, is_looked_into) in [
            ("a", true),
            ("a/b", true),
            ("a/b/d", true),
            ("a/b/d/e", true),
            ("a/b/d/f", true),
            ("a/bc", true),
            ("a/b/c", false),
            ("a/b/d/c", false),
            ("a/c", false),
            ("b", false),
            (&"a".repeat(256), false),
        ] {
            assert_eq!(walk.may_lead_to_locks(path), is_looked_into, "{path}");
        }
    }
}
