//! Who stands directly behind a place in line.
//!
//! A place that comes to hold hands over when it leaves: the transaction that deletes its key gives the turn to the one behind it, which
//! hears of that by an event of its own key and need not ask. So it has to be known who that is before. Nobody comes to stand between
//! two places later, so that it is known for good once it is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ringfence_core::Result;

use crate::backend::Client;
use crate::batch::RANGE;
use crate::keys::Range;
use crate::line::Place;
use crate::ops;
use crate::proto::{KeyValue, RangeRequest, RangeResponse};
use crate::watch::{Ear, Tells, Watch, What};

/// Who comes after a place, as far as is known: those who come are heard of, and who came before that is looked for.
#[derive(Debug)]
pub(crate) struct Follower {
    client: Weak<Client>,
    line: Range,
    /// The revision at which the place was created.
    created: i64,
    known: Mutex<Known>,
}

#[derive(Debug, PartialEq, Eq)]
struct Known {
    /// Nobody had come up to this revision who is there still.
    none_until: i64,
    /// Whoever has come since this revision was heard of, if anybody listens.
    hears_from: Option<i64>,
    /// The first one that was heard of.
    heard: Option<Arrival>,
    /// The first one that was there when it was looked for.
    found: Option<Arrival>,
}

/// A place that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Arrival {
    key: Vec<u8>,
    created: i64,
    /// Whether it is one of ours that waits to hold alone, and knows what it is to be given a turn.
    can_be_given: bool,
}

impl Arrival {
    fn of(found: &KeyValue) -> Self {
        let place = Place::read(found);
        let can_be_given = place.is_ours_alone();
        Self { key: place.key, created: place.created, can_be_given }
    }
}

impl Known {
    /// The first one behind, once it is certain.
    fn first(&self) -> Option<&Arrival> {
        self.found.as_ref().or(self.heard.as_ref().filter(|_| self.is_whole()))
    }

    /// Whether nobody came between those who are known not to be there and those who are heard of.
    fn is_whole(&self) -> bool {
        self.hears_from.is_some_and(|from| from <= self.none_until)
    }

    fn is_listened_for(&mut self, revision: i64) {
        if self.first().is_none() {
            (self.hears_from, self.heard) = (Some(revision), None);
        }
    }

    fn heard(&mut self, arrival: Arrival) {
        self.heard.get_or_insert(arrival);
    }

    fn looked(&mut self, revision: i64, found: Option<Arrival>) {
        if self.first().is_none() {
            match found {
                Some(_) => self.found = found,
                None => self.none_until = self.none_until.max(revision),
            }
        }
    }
}

/// Who is listened for behind a place; no longer when it is dropped.
#[derive(Debug)]
pub(crate) struct Next {
    follower: Arc<Follower>,
    _watch: Watch,
}

impl Next {
    /// Listens for those who come after a place that was created at this revision.
    pub(crate) fn behind(client: &Arc<Client>, line: Range, created: i64) -> Arc<Self> {
        let what = What { range: line.clone(), after: created, tells: Tells::Arrivals };
        let known = Known { none_until: created, hears_from: None, heard: None, found: None };
        let follower = Follower { client: Arc::downgrade(client), line, created, known: Mutex::new(known) };
        let follower = Arc::new(follower);
        let watch = client.watches.watch(what, Ear::Follower(Arc::clone(&follower)));
        Arc::new(Self { follower, _watch: watch })
    }

    /// The key of the one behind and the revision at which it was created, if the turn can be given to it.
    pub(crate) fn place(&self) -> Option<(Vec<u8>, i64)> {
        let known = self.follower.known();
        known.first().filter(|first| first.can_be_given).map(|first| (first.key.clone(), first.created))
    }
}

impl Follower {
    /// Whether nobody else has to be heard of.
    pub(crate) fn has_heard(&self) -> bool {
        let known = self.known();
        known.heard.is_some() || known.found.is_some()
    }

    /// Everybody who comes after this revision is heard of. Who came before is looked for.
    pub(crate) fn is_listened_for(self: &Arc<Self>, revision: i64) {
        let mut known = self.known();
        known.is_listened_for(revision);
        let is_certain = known.found.is_some() || known.is_whole();
        drop(known);
        if let Some(client) = self.client.upgrade().filter(|_| !is_certain) {
            let follower = Arc::clone(self);
            let runtime = client.runtime.clone();
            runtime.spawn(async move {
                if let Err(error) = follower.look(&client, revision).await {
                    tracing::debug!(%error, "who comes next cannot be looked for, and will have to ask for its turn");
                }
            });
        }
    }

    /// A key of the line was written.
    pub(crate) fn heard(&self, key: &KeyValue) {
        if key.create_revision == key.mod_revision && key.create_revision > self.created {
            self.known().heard(Arrival::of(key));
        }
    }

    /// Looks who is there that came after the place.
    async fn look(&self, client: &Client, revision: i64) -> Result<()> {
        let behind = RangeRequest {
            min_create_revision: self.created + 1,
            limit: 1,
            ..ops::oldest_first(ops::get_range(&self.line))
        };
        let found: RangeResponse = client.servers.call(RANGE, &behind).await?;
        let read_at = found.header.as_ref().map_or(0, |header| header.revision);
        // A member that is behind may show a line in which those who are there are not yet.
        if read_at >= revision {
            self.known().looked(read_at, found.kvs.first().map(Arrival::of));
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What happens around a place, in any order that the server and the network leave.
    #[derive(Clone, Debug)]
    enum Step {
        Comes {
            can_be_given: bool,
        },
        Leaves(prop::sample::Index),
        /// A watch begins, the one before it having broken.
        Listens,
        /// What the watch has to tell arrives.
        Hears,
        /// A line is read.
        Reads,
        /// The line that was read arrives.
        Looked,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(|can_be_given| Step::Comes { can_be_given }),
            any::<prop::sample::Index>().prop_map(Step::Leaves),
            Just(Step::Listens),
            Just(Step::Hears),
            Just(Step::Reads),
            Just(Step::Looked),
        ]
    }

    proptest! {
        /// Whoever is said to come next has nobody between, or is gone.
        #[test]
        fn nobody_stands_before_the_one_that_is_known(steps in prop::collection::vec(step(), 0..40)) {
            const CREATED: i64 = 5;
            let mut known = Known { none_until: CREATED, hears_from: None, heard: None, found: None };
            let (mut revision, mut line, mut told) = (CREATED, Vec::<Arrival>::new(), Vec::<Arrival>::new());
            let (mut listens, mut read) = (false, None);
            for step in steps {
                match step {
                    Step::Comes { can_be_given } => {
                        revision += 1;
                        let arrival = Arrival { key: vec![], created: revision, can_be_given };
                        line.push(arrival.clone());
                        if listens {
                            told.push(arrival);
                        }
                    }
                    Step::Leaves(which) if !line.is_empty() => {
                        revision += 1;
                        line.remove(which.index(line.len()));
                    }
                    Step::Leaves(_) => {}
                    Step::Listens => {
                        (listens, told) = (true, Vec::new());
                        known.is_listened_for(revision);
                    }
                    Step::Hears => told.drain(..).for_each(|arrival| known.heard(arrival)),
                    Step::Reads => read = Some((revision, line.first().cloned())),
                    Step::Looked => {
                        if let Some((read_at, found)) = read.take() {
                            known.looked(read_at, found);
                        }
                    }
                }
                if let Some(first) = known.first() {
                    let is_gone = !line.contains(first);
                    prop_assert!(is_gone || line.first() == Some(first), "{known:?} of {line:?}");
                }
            }
        }
    }
}
