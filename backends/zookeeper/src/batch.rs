//! Several changes of lines in one replicated write.
//!
//! A `multi` is done or not done as a whole. If one of its changes is refused, nothing was done, so that its neighbours can go
//! alone; if its answer is lost, that is so for each of them. All nodes of one `multi` are made by one transaction, which is what
//! tokens count: so it makes one node of a line at most.

use std::collections::HashSet;

use ringfence_core::{BoxFuture, Coalescer, Mode};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::error;
use crate::line::{Line, Place};
use crate::session::{Failure, Orders, Pending};
use crate::wire::{self, ANY_VERSION, Code, Created, Data, Request, Stat};

/// How many batches are under way at a time.
const FLIGHTS: usize = 2;

/// How many changes go together: a tenth of what a server takes in one request, if all are of the longest.
const BATCH: usize = 64;

/// A change of a line.
#[derive(Debug)]
pub(crate) struct Change {
    /// The node of the line that it joins. `None`: it leaves one.
    joins: Option<String>,
    /// What is written before that, in the same transaction: into its own node by one that leaves, into that of the line by one
    /// that joins it.
    word: Option<Request>,
    request: Request,
    /// It is dropped with the change, when nothing more is going to be sent of it.
    _ends: Option<oneshot::Sender<()>>,
}

impl Change {
    /// Makes a node in a line. The receiver resolves when that was sent and answered, or never will be: it may be in somebody
    /// else's hands when the future of its caller is dropped.
    pub(crate) fn join(folder: &str, create: Request) -> (Self, oneshot::Receiver<()>) {
        let (ends, ended) = oneshot::channel();
        (Self { joins: Some(folder.to_owned()), word: None, request: create, _ends: Some(ends) }, ended)
    }

    /// As [`Self::join`], where the line is known to be long: says in its node who has come last, under this name without its
    /// number, so that the next one to come need not list them all.
    pub(crate) fn join_long(folder: &str, name: &str, create: Request) -> (Self, oneshot::Receiver<()>) {
        let (joins, ended) = Self::join(folder, create);
        (Self { word: Some(Request::set_data(folder, name.as_bytes(), ANY_VERSION)), ..joins }, ended)
    }

    /// Removes one.
    pub(crate) fn leave(path: &str) -> Self {
        Self { joins: None, word: None, request: Request::delete(path), _ends: None }
    }

    /// As [`Self::leave`], and tells who watches it that it held: its node changes before it goes.
    pub(crate) fn leave_as_holder(path: &str) -> Self {
        Self { word: Some(Request::set_data(path, b"", ANY_VERSION)), ..Self::leave(path) }
    }

    fn requests(&self) -> impl Iterator<Item = &Request> {
        self.word.iter().chain([&self.request])
    }
}

/// What came of a change.
#[derive(Debug)]
pub(crate) enum Changed {
    Joined(Joined),
    Left,
}

/// A node that was made in a line.
#[derive(Debug)]
pub(crate) struct Joined {
    pub(crate) path: String,
    pub(crate) seen: Result<Seen, Failure>,
}

/// What was seen of a node and its line when it had been made.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The transaction that made it.
    pub(crate) made_by: i64,
    /// When, by the leader's wall clock, in milliseconds.
    pub(crate) made_at: i64,
    pub(crate) line: Line,
    /// How many children the line's node has.
    pub(crate) standing: usize,
}

impl Seen {
    /// Of one that has listed them all.
    fn listed(stat: Stat, children: &[String]) -> Self {
        let Stat { made_by, made_at, .. } = stat;
        Self { made_by, made_at, line: Line::of(children), standing: children.len() }
    }
}

/// What came of a change that went with others.
#[derive(Debug)]
pub(crate) enum Outcome {
    Known(Result<Changed, Failure>),
    /// Nothing, because another one was refused.
    NotDone(Change),
}

pub(crate) type Changes = Coalescer<Change, Outcome>;

pub(crate) fn new(orders: Orders, runtime: Handle) -> Changes {
    let send = move |changes| send_all(&orders, changes);
    Coalescer::new(FLIGHTS, BATCH, send, move |changes| drop(runtime.spawn(changes)))
}

/// Makes a change, together with others that come while earlier ones are under way.
///
/// # Cancel safety
/// What was not sent when the future is dropped never is. Otherwise the change is made or not, and nobody is told.
pub(crate) async fn make(changes: &Changes, orders: &Orders, change: Change) -> Result<Changed, Failure> {
    match changes.request(change).await {
        Some(Outcome::Known(made)) => made,
        Some(Outcome::NotDone(change)) => make_alone(orders, change).await,
        None => Err(Failure::Lost(error::session_over())),
    }
}

/// Makes a change in a write of its own, which is sent before this returns.
pub(crate) fn make_alone(orders: &Orders, change: Change) -> BoxFuture<'static, Result<Changed, Failure>> {
    match (&change.joins, &change.word) {
        (None, Some(_)) => return leave_as_holder(orders, change),
        (Some(folder), Some(_)) => {
            let folder = folder.clone();
            return join_behind_the_last(orders, change, folder);
        }
        (_, None) => {}
    }
    let made = orders.call(change.request);
    let listed = change.joins.map(|folder| orders.call(Request::children(&folder, false)));
    Box::pin(async move {
        let made = made.answer().await?;
        let Some(listed) = listed else { return Ok(Changed::Left) };
        let Created { path, stat } = Created::read(made)?;
        let seen = async { Ok(Seen::listed(stat, &wire::children(listed.answer().await?)?)) }.await;
        Ok(Changed::Joined(Joined { path, seen }))
    })
}

/// Who may not write into its node may still remove it.
fn leave_as_holder(orders: &Orders, change: Change) -> BoxFuture<'static, Result<Changed, Failure>> {
    let made = orders.call(Request::all(change.requests()));
    let orders = orders.clone();
    Box::pin(async move {
        if wire::all(made.answer().await?)?.is_ok() {
            return Ok(Changed::Left);
        }
        make_alone(&orders, Change { word: None, ..change }).await
    })
}

/// Joins a long line without listing it, behind the one that came last as the line's node says. Whether it did is seen by its number:
/// it is the one before. Otherwise the line is listed after all.
fn join_behind_the_last(
    orders: &Orders,
    change: Change,
    folder: String,
) -> BoxFuture<'static, Result<Changed, Failure>> {
    // Who is about to join has done so by then: a server that follows tells only what it has heard of.
    let synced = orders.call(Request::sync(&folder));
    let asked = orders.call(Request::data(&folder, false));
    let made = orders.call(Request::all(change.requests()));
    let orders = orders.clone();
    Box::pin(async move {
        let (_, last) = (synced.answer().await, asked.answer().await);
        let Ok(mut done) = wire::all(made.answer().await?)? else {
            // The line is not there, or we may not write into its node.
            return make_alone(&orders, Change { word: None, ..change }).await;
        };
        let (Some(path), Some(stat)) = (done.made.pop(), done.changed.pop()) else {
            return Err(Failure::Odd);
        };
        let seen = async {
            let name = path.rsplit('/').next().unwrap_or_default();
            let last = match last {
                // It was made anew since.
                Err(failure) if failure.is(Code::NO_NODE) => None,
                last => Some(Data::read(last?)?),
            };
            // The line's node was changed by the transaction that made this one.
            let Stat { changed_by: made_by, changed_at: made_at, children, .. } = stat;
            let standing = usize::try_from(children).unwrap_or(0);
            let line = match last.and_then(|last| behind_the_last(name, &last)) {
                Some(line) => line,
                None => {
                    Line::of(&wire::children(orders.call(Request::children(&folder, false)).answer().await?)?)
                }
            };
            Ok(Seen { made_by, made_at, line, standing })
        };
        let seen = seen.await;
        Ok(Changed::Joined(Joined { path, seen }))
    })
}

/// The line as far as it is known behind the one that came last, if nobody has come in between. `None` where that may be, and where
/// the last one need not hold alone.
fn behind_the_last(name: &str, last: &Data) -> Option<Line> {
    let own = Place::parse(name)?;
    let before = format!("{}{:010}", std::str::from_utf8(&last.bytes).ok()?, own.number.checked_sub(1)?);
    let before = Place::parse(&before)?;
    (before.is_ours && before.mode == Mode::Exclusive && own.number > 0).then(|| Line::behind(before, own))
}

/// Sends all of these before it returns: the future is that of their answers.
fn send_all(orders: &Orders, changes: Vec<Change>) -> BoxFuture<'static, Vec<Outcome>> {
    let places = changes.len();
    let mut batches = Vec::new();
    let mut left: Vec<(usize, Change)> = changes.into_iter().enumerate().collect();
    while !left.is_empty() {
        let mut lines = HashSet::new();
        let is_first = |(_, change): &(usize, Change)| {
            change.joins.as_ref().is_none_or(|folder| lines.insert(folder.clone()))
        };
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(is_first);
        let (at, together): (Vec<_>, Vec<_>) = now.into_iter().unzip();
        batches.push((at, send_together(orders, together)));
        left = later;
    }
    Box::pin(async move {
        let mut outcomes: Vec<Option<Outcome>> = (0..places).map(|_| None).collect();
        for (at, batch) in batches {
            for (place, outcome) in at.into_iter().zip(batch.await) {
                outcomes[place] = Some(outcome);
            }
        }
        outcomes.into_iter().map(|outcome| outcome.unwrap_or(Outcome::Known(Err(Failure::Odd)))).collect()
    })
}

fn send_together(orders: &Orders, mut changes: Vec<Change>) -> BoxFuture<'static, Vec<Outcome>> {
    if changes.len() == 1
        && let Some(change) = changes.pop()
    {
        let sent = make_alone(orders, change);
        return Box::pin(async move { vec![Outcome::Known(sent.await)] });
    }
    let made = orders.call(Request::all(changes.iter().flat_map(Change::requests)));
    let folders: Vec<&str> = changes.iter().filter_map(|change| change.joins.as_deref()).collect();
    let listed = (!folders.is_empty()).then(|| orders.call(Request::children_of_all(&folders)));
    let orders = orders.clone();
    Box::pin(async move {
        let made = async { Ok::<_, Failure>(wire::all(made.answer().await?)?) }.await;
        let paths = match made {
            Ok(Ok(done)) => done.made,
            // Nothing was done. Each learns by itself whether that was because of it.
            Ok(Err(_)) => return changes.into_iter().map(Outcome::NotDone).collect(),
            Err(failure) => return changes.iter().map(|_| Outcome::Known(Err(failure.clone()))).collect(),
        };
        let mut joined = match listed {
            Some(listed) => see(&orders, paths, listed).await,
            None => Vec::new(),
        }
        .into_iter();
        let each = changes.into_iter().map(|change| match change.joins {
            Some(_) => joined.next().map(Changed::Joined).ok_or(Failure::Odd),
            None => Ok(Changed::Left),
        });
        each.map(Outcome::Known).collect()
    })
}

/// What is seen of nodes that were made together. Of several a server tells the paths alone; but the same transaction made them, so
/// that one of them is looked at for all.
async fn see(orders: &Orders, paths: Vec<String>, listed: Pending) -> Vec<Joined> {
    let mut stat = Err(Failure::Odd);
    for path in &paths {
        let looked = orders.call(Request::data(path, false)).answer().await;
        stat = looked.and_then(|data| Ok(Data::read(data)?.stat));
        // Somebody has removed that one in this moment.
        if !matches!(&stat, Err(failure) if failure.is(Code::NO_NODE)) {
            break;
        }
    }
    let lists = listed.answer().await.and_then(|lists| Ok(wire::children_of_all(lists)?));
    let mut lists = lists.map(Vec::into_iter);
    let mut children = || match &mut lists {
        Ok(lists) => lists.next().ok_or(Failure::Odd)?.map_err(Failure::Refused),
        Err(failure) => Err(failure.clone()),
    };
    let seen =
        |path| Joined { path, seen: stat.clone().and_then(|stat| Ok(Seen::listed(stat, &children()?))) };
    paths.into_iter().map(seen).collect()
}
