//! An attempt under way: it stands in line, waits for its turn, and takes it.
//!
//! # What a waiter knows
//! It reads the names of all children once, behind the making of its own. Numbers only rise while a container lives, it lives as
//! long as it has a child, and a session's reads see what its writes did. So as long as its own node stands, everybody who is
//! before it was in that list: others only leave. What it knows may be too many and never too few, and whoever is first in a
//! line that is too long is first in the real one (`line.rs`). A node that is gone stays gone, whichever server says so.
//!
//! In a long line it is told of the last one alone that came before it, and that the line is cut before that one: it lists the others if that
//! one leaves without having held.
//!
//! So it watches one of those before it, and a hand-over reads nothing that grows with the line. That the one before it has left
//! does not say that all have: it may have given up. But who has waited writes into its node that it holds, at the latest in the
//! transaction by which it leaves, and who holds alone has nobody before it. Who watches a node that changes and goes at once is told of
//! both. A waiter that
//! finds that two before it have left, one after the other, and neither had said so (they died, or are of another client), lists all
//! children again: once, however many have left.
//!
//! # How a turn is taken
//! A waiter is told of what a majority has agreed to, in that order, however late: that the one before it has left, and if its own
//! node had gone before that, of that first. So when the one before it has left and nothing came of its own node, the transaction
//! by which the other one left was its turn, and it need not ask. What it has to know beside that is for how long its session lives:
//! for a TTL from the moment before its place was made. When half of that is over it asks: it writes into its node that it holds, which
//! succeeds if a majority agrees that the session lives and the node stands.

use std::collections::HashSet;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ringfence_core::{
    AcquireRequest, Attempt, Backoff, BootInstant, Contention, Error, ErrorKind, FencingToken, Lease,
    LeaseKey, Mode, Result, Wait,
};
use tokio::sync::oneshot;

use crate::backend::{Client, PAUSES};
use crate::batch::{Change, Changed, Joined, Seen};
use crate::error;
use crate::keys::Naming;
use crate::line::{self, Line, Place, Turn};
use crate::place::{Said, Step, another_client};
use crate::session::{Failure, News, Pending, Session};
use crate::wire::{self, ANY_VERSION, Code, Data, Kind, Odd, Request};

/// How often a waiter looks after its place and the one before it, whatever happens: the net under a message that was lost.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often at least the node of an attempt is made anew, whose parent was missing or whose session was over. One that waits goes on
/// until its time is over: a network that is slow enough can do that to it often.
const STARTS_MAX: usize = 4;

/// How many of those in the way are looked up for one who is told that it is busy.
const SHOWN_MAX: usize = 8;

/// How many of those before it a waiter misses, one after the other, until it lists all.
const MISSED_MAX: usize = 2;

/// From how many on a line is long: who joins it is told of the last one alone.
const LONG: usize = 32;

/// An attempt under way; withdrawn in the background if its future is dropped before it is settled.
pub(crate) struct Seeker<'a> {
    client: &'a Arc<Client>,
    folder: &'a str,
    pub(crate) request: &'a mut AcquireRequest,
    /// Where the servers may know of it: in this session.
    pub(crate) session: Option<Arc<Session>>,
    /// While its node is being made: it resolves when that is over.
    joining: Option<oneshot::Receiver<()>>,
    /// Whether nobody wants the lease any more.
    is_abandoned: bool,
    /// Whether nothing is left to withdraw.
    pub(crate) is_settled: bool,
}

/// What came of making a node.
enum Start {
    Stands(Standing),
    /// Nothing, for this reason; the next one begins with what was missing.
    Again(Error),
}

/// A place in line, by the server's word.
struct Standing {
    session: Arc<Session>,
    /// The name of its node.
    name: String,
    /// The transaction that made it.
    made_by: i64,
    /// A moment before it was made, or was found to stand: then the session lived.
    proven: BootInstant,
    /// Whether somebody was in its way.
    has_waited: bool,
    /// Everybody before it, and perhaps some who have left.
    line: Line,
    /// How many of those have left one after the other, without a word of who holds.
    missed: usize,
    /// Whether the one before it was heard to change, and not been looked at since.
    has_changed: bool,
    /// News of its own node: as long as there are none, it was there when the last happened of what was heard of others.
    own: Option<News>,
}

impl Standing {
    fn new(session: Arc<Session>, name: String, made_by: i64, proven: BootInstant, line: Line) -> Self {
        let (has_waited, missed, has_changed, own) = (false, 0, false, None);
        Self { session, name, made_by, proven, has_waited, line, missed, has_changed, own }
    }

    /// Where it stands. `None`: its node was not there when the line was listed.
    fn at(&self) -> Option<usize> {
        self.line.places.iter().position(|place| place.name == self.name)
    }

    /// One of those before it has left.
    fn misses(&mut self, place: &Place) {
        self.line.leaves(&place.name);
        self.has_waited = true;
        self.missed += 1;
    }

    /// Whether its own node is watched, and nothing has come of it.
    fn is_watched(&mut self) -> bool {
        self.own.as_mut().is_some_and(|news| news.has_come().is_pending())
    }

    /// Until when it is granted its turn without asking a majority again. Half of its lease at least is left then to one that has
    /// waited. Who waits for a permit always asks, which tells the one behind.
    fn proven_until(&mut self, mode: Mode, ttl: Duration) -> BootInstant {
        match mode {
            _ if !self.has_waited => self.proven.saturating_add(ttl),
            Mode::Exclusive | Mode::Shared if self.is_watched() => self.proven.saturating_add(ttl / 2),
            _ => self.proven,
        }
    }

    /// One of those before it came to hold; if alone, then nobody was before that one any more.
    fn meets_holder(&mut self, place: &Place) {
        if place.is_ours && place.mode == Mode::Exclusive {
            self.line.is_held_alone_by(&place.name);
        }
    }
}

impl<'a> Seeker<'a> {
    pub(crate) fn new(client: &'a Arc<Client>, folder: &'a str, request: &'a mut AcquireRequest) -> Self {
        Self { client, folder, request, session: None, joining: None, is_abandoned: false, is_settled: false }
    }

    /// Takes a place in line, and waits for the turn as long as the request does.
    pub(crate) async fn seek(&mut self) -> Result<Attempt> {
        // Those who were exclusive and share by now.
        let mut downgraded = HashSet::new();
        let mut standing = self.stand_in_line().await?;
        loop {
            let Some(at) = standing.at() else {
                // Somebody removed it, and it stands in line again, at the end.
                standing = self.stand_in_line().await?;
                continue;
            };
            if standing.line.places[at].is_beyond_the_last() {
                return Err(Error::new(
                    ErrorKind::Full,
                    "the servers have given all numbers of this line: remove its node when nobody stands below it, and its \
                     numbers begin again",
                )
                .about(self.folder)
                .about(self.client.shown()));
            }
            match standing.line.turn(at, &downgraded) {
                Turn::Now => {
                    if let Some(lease) = self.take(&mut standing).await? {
                        return Ok(Attempt::Granted(lease));
                    }
                }
                Turn::Unknown => self.list(&mut standing).await?,
                Turn::Behind(_) if standing.missed >= MISSED_MAX => self.list(&mut standing).await?,
                // Who gives up is told who is in the way.
                Turn::Behind(_) if standing.line.is_cut() && self.is_impatient() => {
                    self.list(&mut standing).await?;
                }
                Turn::Behind(place) => {
                    let place = place.clone();
                    if let Some(attempt) = self.wait_behind(place, &mut standing, &mut downgraded).await? {
                        return Ok(attempt);
                    }
                }
                Turn::BehindSeveral if self.is_impatient() => {
                    return self.give_up(&standing, &downgraded).await;
                }
                Turn::BehindSeveral => self.wait_behind_several(&mut standing).await?,
            }
        }
    }

    /// Waits for news of the one before it, and takes note of them. An attempt is what it ends with.
    async fn wait_behind(
        &mut self,
        place: Place,
        standing: &mut Standing,
        downgraded: &mut HashSet<String>,
    ) -> Result<Option<Attempt>> {
        let may_share = self.request.mode == Mode::Shared && place.mode == Mode::Exclusive;
        if self.is_impatient() && !may_share {
            return self.give_up(standing, downgraded).await.map(Some);
        }
        let has_changed = std::mem::take(&mut standing.has_changed);
        let path = format!("{}/{}", self.folder, place.name);
        let (asked, news) = standing.session.watch(Request::data(&path, true), &path, false);
        // Nobody is ever below it. But of a node that changes and goes in one transaction, this tells that it has gone.
        let (asked_of_end, mut end) = standing.session.watch(Request::children(&path, true), &path, true);
        // That is answered last: its own node was there when the one before it had gone.
        let own = (!standing.is_watched()).then(|| self.watch_own(standing));
        let step = match asked.answer().await.map(Data::read) {
            Ok(Ok(data)) => Some(Said::read(&data.bytes).map_or(Step::Asked, |said| said.step)),
            // It has left in this moment.
            Err(failure) if failure.is(Code::NO_NODE) => None,
            Ok(Err(Odd)) => return Err(self.client.odd()),
            Err(failure) => return self.bear(failure, standing).await.map(|()| None),
        };
        let _ = asked_of_end.answer().await;
        if let Some((asked, news)) = own
            && !self.sees_own(asked, news, standing).await?
        {
            return Ok(None);
        }
        let Some(step) = step else {
            // Word that it goes came after word of its change.
            if has_changed {
                standing.meets_holder(&place);
            }
            standing.misses(&place);
            return Ok(None);
        };
        standing.missed = 0;
        if step != Step::Asked {
            standing.meets_holder(&place);
            // It holds, so that others have left; and who is the first that waits for a permit now hears of it from no one else.
            if matches!(self.request.mode, Mode::Permit(_)) {
                let known = standing.line.places.clone();
                self.list(standing).await?;
                if standing.line.places != known {
                    return Ok(None);
                }
            }
        }
        if may_share && step == Step::Shares {
            downgraded.insert(place.name);
            return Ok(None);
        }
        if self.is_impatient() {
            return self.give_up(standing, downgraded).await.map(Some);
        }
        match self.wait(standing, news).await {
            // Of the last look it is told who is in the way. Who waits behind a permit, waits for the line to be another.
            _ if self.is_impatient() || matches!(self.request.mode, Mode::Permit(_)) => {
                self.list(standing).await?;
            }
            Some(wire::Change::Deleted) => standing.misses(&place),
            Some(wire::Change::Data) if end.has_come() == Poll::Ready(Some(wire::Change::Deleted)) => {
                standing.meets_holder(&place);
                standing.misses(&place);
            }
            // By itself or by somebody else: what it says now tells whether it holds.
            Some(wire::Change::Data) => standing.has_changed = true,
            Some(_) | None => {
                let (asked, news) = self.watch_own(standing);
                self.sees_own(asked, news, standing).await?;
            }
        }
        Ok(None)
    }

    /// Waits until somebody comes or leaves.
    async fn wait_behind_several(&mut self, standing: &mut Standing) -> Result<()> {
        // Who is behind it waits for its word that it holds, and gets that also where the turn has come before this look.
        standing.has_waited = true;
        let listed = Request::children(self.folder, true);
        let (asked, news) = standing.session.watch(listed, self.folder, true);
        let Some(line) = self.listed(asked, standing).await? else { return Ok(()) };
        // What it watches is what it knows, unless it has changed since.
        let is_known = line.places == standing.line.places;
        standing.line = line;
        if is_known {
            self.wait(standing, news).await;
            if self.is_impatient() {
                self.list(standing).await?;
            }
        }
        Ok(())
    }

    /// Whether it does not wait, or no longer.
    fn is_impatient(&self) -> bool {
        self.is_abandoned
            || match self.request.wait {
                Wait::No => true,
                Wait::Until(deadline) => self.client.now() >= deadline,
            }
    }

    /// Waits for news, also of its own node, or until it is time to look anyway.
    async fn wait(&mut self, standing: &mut Standing, mut news: News) -> Option<wire::Change> {
        standing.has_waited = true;
        let look_at = self.client.now().saturating_add(LOOK_EVERY);
        let look_at = match self.request.wait {
            Wait::Until(deadline) => look_at.min(deadline),
            Wait::No => look_at,
        };
        let own_changes = async {
            match &mut standing.own {
                Some(own) => own.come().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = &mut self.request.abandoned => {
                self.is_abandoned = true;
                None
            }
            news = news.come() => news,
            _ = own_changes => {
                standing.own = None;
                None
            }
            () = self.client.pass(look_at) => None,
        }
    }

    async fn stand_in_line(&mut self) -> Result<Standing> {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut tries = 0;
        loop {
            tries += 1;
            let why = match self.try_to_stand_in_line().await? {
                Start::Stands(standing) => return Ok(standing),
                Start::Again(why) => why,
            };
            if self.is_abandoned || (tries >= STARTS_MAX && self.is_impatient()) {
                return Err(why.about(self.client.shown()));
            }
            // A parent that was never there is by now.
            if tries > 1 {
                tracing::debug!(%why, "an attempt has no place in line yet");
                tokio::select! {
                    () = &mut self.request.abandoned, if !self.is_abandoned => self.is_abandoned = true,
                    () = tokio::time::sleep(backoff.pause()) => {}
                }
            }
        }
    }

    /// Makes the node, and sees who stands before it: in one round trip where the lock is in use.
    async fn try_to_stand_in_line(&mut self) -> Result<Start> {
        let client = self.client;
        let AcquireRequest { mode, ttl, wait, nonce, ref holder, .. } = *self.request;
        let said = Said::new(ttl, holder.clone()).write();
        let name = line::name_of(nonce, mode);
        let path = format!("{}/{name}", self.folder);
        let session = client.sessions.of(ttl).await?;
        self.session = Some(Arc::clone(&session));
        let proven = client.now();
        let create = Request::create(&path, said.as_bytes(), client.keys.access(), Kind::InLine);
        let standing = client.known.standing(self.folder);
        // Into nodes that are not ours alone, nothing is written. One that shares has to know more than one before it.
        let is_long = client.keys.naming() == Naming::Encoded
            && mode == Mode::Exclusive
            && wait != Wait::No
            && standing.is_some_and(|standing| standing >= LONG);
        let (change, joining) = if is_long {
            Change::join_long(self.folder, &name, create)
        } else {
            Change::join(self.folder, create)
        };
        self.joining = Some(joining);
        // One that might miss its parent disturbs nobody.
        let joined = if standing.is_some() && !is_long {
            session.change(change).await
        } else {
            session.change_alone(change).await
        };
        self.joining = None;
        let Joined { path, seen } = match joined {
            Ok(Changed::Joined(joined)) => joined,
            Ok(Changed::Left) | Err(Failure::Odd) => return Err(client.odd()),
            Err(failure) if failure.is(Code::NO_NODE) => {
                // The container was never there, or was removed because it was empty.
                client.known.remove(self.folder);
                let parents = client.make_parents(&session, &path, Kind::Container).await;
                return match parents {
                    Ok(()) => Ok(Start::Again(error::refused(Code::NO_NODE))),
                    Err(Failure::Over(why)) => Ok(Start::Again(why)),
                    Err(failure) => Err(client.error_at(self.folder, failure)),
                };
            }
            // It ended before we knew, and the next session is as good.
            Err(Failure::Over(why)) => return Ok(Start::Again(why)),
            Err(Failure::Lost(why)) => return self.find(session, why).await,
            Err(failure) => {
                // It was not made.
                self.session = None;
                return Err(client.error_at(self.folder, failure));
            }
        };
        let Seen { made_by, made_at, line, standing } = match seen {
            Ok(seen) => seen,
            Err(Failure::Lost(why) | Failure::NotSent(why)) => return self.find(session, why).await,
            Err(failure) => return Err(client.error_at(self.folder, failure)),
        };
        client.known.insert(self.folder, standing);
        client.server_time.learn(made_at, proven, client.now());
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Start::Stands(Standing::new(session, name, made_by, proven, line)))
    }

    /// Finds the node of this attempt, after the connection broke before its place was known. What the next connection does not
    /// see will never be.
    async fn find(&mut self, session: Arc<Session>, why: Error) -> Result<Start> {
        let client = self.client;
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        loop {
            let proven = client.now();
            match self.look_for_ours(&session).await {
                Ok(Some((line, name, made_by))) => {
                    return Ok(Start::Stands(Standing::new(session, name, made_by, proven, line)));
                }
                // What was made in it went with it.
                Err(Failure::Over(why)) => return Ok(Start::Again(why)),
                Ok(None) => return Err(why.about(client.shown())),
                Err(failure) if failure.is(Code::NO_NODE) => return Err(why.about(client.shown())),
                Err(Failure::Lost(_) | Failure::NotSent(_)) => {}
                Err(failure) => return Err(client.error_at(self.folder, failure)),
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// The line, and in it the name of the node that this attempt made in this session, and the transaction that made it. One of
    /// an earlier session may stand there with the same nonce, until the servers have ended that one.
    async fn look_for_ours(&self, session: &Session) -> Result<Option<(Line, String, i64)>, Failure> {
        let line = self.client.proven_line(session, self.folder).await?;
        let mut found = None;
        for place in line.places.iter().filter(|place| place.nonce == self.request.nonce && place.is_ours) {
            let path = format!("{}/{}", self.folder, place.name);
            match session.call(Request::data(&path, false)).answer().await {
                // It has left in this moment.
                Err(failure) if failure.is(Code::NO_NODE) => {}
                data => {
                    let stat = Data::read(data?)?.stat;
                    if stat.owner == session.id {
                        found = Some((place.name.clone(), stat.made_by));
                    }
                }
            }
        }
        Ok(found.map(|(name, made_by)| (line, name, made_by)))
    }

    /// Looks at the whole line once more. While there is no connection it goes on waiting: its place stands as long as its session.
    async fn list(&mut self, standing: &mut Standing) -> Result<()> {
        let asked = standing.session.call(Request::children(self.folder, false));
        if let Some(line) = self.listed(asked, standing).await? {
            (standing.line, standing.missed) = (line, 0);
        }
        Ok(())
    }

    /// The line that was asked for. `None`: there was no answer, and it goes on without.
    async fn listed(&mut self, asked: Pending, standing: &mut Standing) -> Result<Option<Line>> {
        match asked.answer().await.map(wire::children) {
            Ok(Ok(children)) => Ok(Some(Line::of(&children))),
            Ok(Err(Odd)) => Err(self.client.odd()),
            Err(failure) if failure.is(Code::NO_NODE) => Ok(Some(Line::default())),
            Err(failure) => self.bear(failure, standing).await.map(|()| None),
        }
    }

    /// Has its own node looked at and watched.
    fn watch_own(&self, standing: &Standing) -> (Pending, News) {
        let path = format!("{}/{}", self.folder, standing.name);
        standing.session.watch(Request::exists(&path, true), &path, false)
    }

    /// Sees whether its own node is still there. If not, it stands in line again, and what was known of the line is over.
    async fn sees_own(&mut self, asked: Pending, news: News, standing: &mut Standing) -> Result<bool> {
        match asked.answer().await {
            Ok(_) => {
                standing.own = Some(news);
                return Ok(true);
            }
            Err(failure) if failure.is(Code::NO_NODE) => *standing = self.stand_in_line().await?,
            Err(failure) => self.bear(failure, standing).await?,
        }
        Ok(false)
    }

    /// Goes on after a call that failed, where that does not end the attempt.
    async fn bear(&mut self, failure: Failure, standing: &mut Standing) -> Result<()> {
        match failure {
            // The place went with the session. It stands in line again, at the end.
            Failure::Over(_) => {
                *standing = self.stand_in_line().await?;
                Ok(())
            }
            Failure::Lost(why) | Failure::NotSent(why) if self.request.wait != Wait::No => {
                tracing::debug!(%why, "a waiter cannot look at the line");
                let pause = Backoff::new(PAUSES.1, PAUSES.1).pause();
                tokio::select! {
                    () = &mut self.request.abandoned, if !self.is_abandoned => self.is_abandoned = true,
                    () = tokio::time::sleep(pause) => {}
                }
                Ok(())
            }
            failure => Err(self.client.error_at(self.folder, failure)),
        }
    }

    /// Takes its turn. `None`: it could not be proven, or that took longer than a lease lives.
    async fn take(&mut self, standing: &mut Standing) -> Result<Option<Lease>> {
        let AcquireRequest { mode, ttl, nonce, .. } = *self.request;
        let is_proven = self.client.now() < standing.proven_until(mode, ttl.as_duration());
        let proven = if is_proven {
            standing.proven
        } else {
            match self.claim(standing).await? {
                Some(proven) => proven,
                None => return Ok(None),
            }
        };
        let is_unsaid = is_proven && standing.has_waited;
        let number = u64::try_from(standing.made_by).unwrap_or(u64::MAX);
        let token =
            FencingToken::of_grant(number, nonce).map_err(|error| error.about(self.client.shown()))?;
        let lease = Lease::new(LeaseKey::new(self.request.name.clone(), nonce, ttl), token, proven);
        if self.client.now() >= lease.deadline() {
            return Ok(None);
        }
        let path = format!("{}/{}", self.folder, standing.name);
        Ok(standing.session.hold(nonce, &path, lease.deadline(), is_unsaid).then_some(lease))
    }

    /// Writes into its node that it holds: a majority agrees that its session lives and its place stands, and the one behind it is
    /// told. Returns the moment before.
    async fn claim(&mut self, standing: &mut Standing) -> Result<Option<BootInstant>> {
        let said =
            Said { step: Step::Holds, ..Said::new(self.request.ttl, self.request.holder.clone()) }.write();
        let path = format!("{}/{}", self.folder, standing.name);
        let asked = self.client.now();
        match standing.session.call(Request::set_data(&path, said.as_bytes(), ANY_VERSION)).answer().await {
            Ok(_) => Ok(Some(asked)),
            Err(failure) if failure.is(Code::NO_NODE) => {
                // Somebody removed it.
                *standing = self.stand_in_line().await?;
                Ok(None)
            }
            // If it was done all the same, nothing is lost by doing it again.
            Err(failure) => self.bear(failure, standing).await.map(|()| None),
        }
    }

    /// What it comes to where nobody answers and it is overdue. Who waits no longer leaves the line in the background. One that never waited
    /// is withdrawn first, which is tried for a TTL: it may be known sooner that nothing is left of it, or that its session is over.
    pub(crate) async fn ends_unanswered(&mut self) -> Result<Attempt> {
        if self.request.wait != Wait::No {
            return Ok(Attempt::Busy(Contention::default()));
        }
        let Self { client, folder, session, joining, .. } = self;
        let (ttl, nonce) = (self.request.ttl.as_duration(), self.request.nonce);
        let undo = async {
            // Others may be about to send it along with theirs.
            if let Some(joined) = joining {
                let _ = joined.await;
                *joining = None;
            }
            match session {
                Some(session) => client.withdraw(session, folder, nonce).await.is_ok(),
                None => true,
            }
        };
        self.is_settled = tokio::select! {
            is_undone = undo => is_undone,
            () = client.pass(client.now().saturating_add(ttl)) => false,
        };
        let why = "no server answers in time: they are overloaded or cut off, or have no quorum";
        let why = Error::new(ErrorKind::Unavailable, why).about(client.shown());
        Err(if self.is_settled { why } else { why.with_unknown_effect() })
    }

    /// Leaves the line.
    async fn give_up(&mut self, standing: &Standing, downgraded: &HashSet<String>) -> Result<Attempt> {
        let (client, session) = (self.client, &standing.session);
        let holders = standing.line.holders(downgraded);
        let others = standing.line.places.iter().filter(|place| place.name != standing.name).count();
        let shown: Vec<_> = standing.line.places[..holders.min(SHOWN_MAX)]
            .iter()
            .map(|place| session.call(Request::data(&format!("{}/{}", self.folder, place.name), false)))
            .collect();
        let left = session.call(Request::delete(&format!("{}/{}", self.folder, standing.name)));
        let mut contention = Contention::new(Vec::new(), others.saturating_sub(holders));
        for pending in shown {
            if let Ok(data) = pending.answer().await
                && let Ok(data) = Data::read(data)
            {
                let said = Said::read(&data.bytes);
                contention.holders.push(said.map_or_else(another_client, |said| said.holder));
            }
        }
        match left.answer().await {
            Ok(_) | Err(Failure::Refused(Code::NO_NODE) | Failure::Over(_)) => {}
            // The line is left in the background, where nobody waits for it.
            Err(Failure::Lost(_) | Failure::NotSent(_)) => self.withdraw_in_background(),
            Err(failure) => return Err(client.error_at(self.folder, failure)),
        }
        Ok(Attempt::Busy(contention))
    }

    fn withdraw_in_background(&mut self) {
        let Some(session) = self.session.take() else { return };
        let (client, session) = (Arc::downgrade(self.client), Arc::downgrade(&session));
        let (folder, nonce) = (self.folder.to_owned(), self.request.nonce);
        let joining = self.joining.take();
        self.client.runtime.spawn(async move {
            // Others may be about to send it along with theirs. What is looked for must be there, if it ever will be.
            if let Some(joining) = joining {
                let _ = joining.await;
            }
            let mut backoff = Backoff::new(PAUSES.1, LOOK_EVERY);
            // Where the client or the session is dropped, the servers remove the node.
            while let (Some(client), Some(session)) = (client.upgrade(), session.upgrade()) {
                let Err(error) = client.withdraw(&session, &folder, nonce).await else { return };
                tracing::warn!(%error, "an attempt could not be withdrawn yet; what came of it ends with its session");
                drop((client, session));
                tokio::time::sleep(backoff.pause()).await;
            }
        });
    }
}

impl Drop for Seeker<'_> {
    fn drop(&mut self) {
        if !self.is_settled {
            self.withdraw_in_background();
        }
    }
}
