//! The nodes, and how all of them are asked at once.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use ringfence_core::{BootInstant, BoxFuture, Error, ErrorKind, Quorum, Result};
use tokio::runtime::Handle;
use tokio::time::Sleep;

use super::owed::Owed;
use crate::backend::Client;
use crate::checks::Checks;

/// For how long an answer may be under way that says what time it is.
const TELLING_MOST: Duration = Duration::from_secs(1);

/// One server of several that have nothing in common.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) checks: Checks,
    pub(super) owed: Owed,
    /// What time it was there, in microseconds, by its last answer, and when it was asked.
    told_time: Mutex<Option<(BootInstant, u64)>>,
    /// It left somebody waiting for longer than anybody waits, and has not answered since.
    is_suspect: AtomicBool,
    /// Somebody asks a suspect whether it is there again.
    is_probed: AtomicBool,
}

impl Node {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            checks: Checks::default(),
            owed: Owed::default(),
            told_time: Mutex::default(),
            is_suspect: AtomicBool::new(false),
            is_probed: AtomicBool::new(false),
        }
    }

    /// It has said what time it is, in microseconds. An answer that was under way for long says too little.
    pub(super) fn tells_time(&self, asked: BootInstant, time: u64) {
        if self.client.now().saturating_since(asked) > TELLING_MOST {
            return;
        }
        *self.told_time.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, time));
    }

    /// What time it is there by now, or a little more, as far as that is known.
    pub(super) fn time(&self, now: BootInstant) -> Option<u64> {
        let (asked, time) = (*self.told_time.lock().unwrap_or_else(PoisonError::into_inner))?;
        let passed = u64::try_from(now.saturating_since(asked).as_micros()).ok()?;
        Some(time.saturating_add(passed))
    }

    /// It has left somebody waiting for too long.
    fn suspect(&self) {
        self.is_suspect.store(true, Ordering::Release);
    }

    /// Has the node asked, but a suspect one thing at a time only: it costs nobody anything until it answers again.
    async fn asked<T>(&self, question: impl Future<Output = Result<T>>) -> Result<T> {
        let probe = if self.is_suspect.load(Ordering::Acquire) { Some(Probe::of(self)?) } else { None };
        let answer = question.await;
        if answer.as_ref().map_or_else(is_answer, |_| true) {
            self.is_suspect.store(false, Ordering::Release);
        }
        drop(probe);
        answer
    }
}

/// Whether a node said so, and not the way to it.
fn is_answer(error: &Error) -> bool {
    error.kind() != ErrorKind::Unavailable
}

/// The one question to a suspect.
struct Probe<'a>(&'a Node);

impl<'a> Probe<'a> {
    fn of(node: &'a Node) -> Result<Self> {
        if node.is_probed.swap(true, Ordering::AcqRel) {
            let why = "it did not answer in time, and has not answered since";
            return Err(Error::new(ErrorKind::Unavailable, why).about(node.client.servers.shown()));
        }
        Ok(Self(node))
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.is_probed.store(false, Ordering::Release);
    }
}

/// All nodes, and how many of them have to agree.
#[derive(Debug)]
pub(crate) struct Nodes {
    all: Vec<Arc<Node>>,
    pub(crate) quorum: Quorum,
    pub(crate) runtime: Handle,
}

impl Nodes {
    pub(crate) fn new(all: Vec<Arc<Node>>, quorum: Quorum) -> Self {
        Self { all, quorum, runtime: Handle::current() }
    }

    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// All of them, to be asked.
    pub(crate) fn every(&self) -> Range<usize> {
        0..self.all.len()
    }

    pub(crate) fn get(&self, node: usize) -> &Arc<Node> {
        &self.all[node]
    }

    /// How many nodes have to agree to a lease of which there may be so many at a time.
    ///
    /// Each node counts for itself, so that of `n` nodes `q` are enough only where `limit + 1` leases cannot have `q` nodes each
    /// while no node has more than `limit` of them: `q × (limit + 1) > n × limit`. For one lease that is a majority, and from
    /// `n − 1` on it is all nodes.
    pub(crate) fn needed(&self, limit: u64) -> usize {
        let needed = u128::from(self.quorum.nodes()) * u128::from(limit) / (u128::from(limit) + 1) + 1;
        usize::try_from(needed).unwrap_or(usize::MAX).max(self.quorum.needed().into())
    }

    /// Asks some of them at once.
    pub(crate) fn ask<T, F>(
        &self,
        whom: impl IntoIterator<Item = usize>,
        patience: Duration,
        question: impl Fn(Arc<Node>) -> F,
    ) -> Round<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.ask_or(whom, patience, question, |_, _| {})
    }

    /// The same; `failed` hears of each node that cannot be asked, however late that is known.
    pub(crate) fn ask_or<T, F>(
        &self,
        whom: impl IntoIterator<Item = usize>,
        patience: Duration,
        question: impl Fn(Arc<Node>) -> F,
        failed: impl Fn(&Arc<Node>, &Error) + Clone + Send + 'static,
    ) -> Round<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let asked = |number: usize| {
            let node = Arc::clone(&self.all[number]);
            let (asked, question, failed) = (Arc::clone(&node), question(Arc::clone(&node)), failed.clone());
            let answer =
                async move { asked.asked(question).await.inspect_err(|error| failed(&asked, error)) };
            Asked { number, node, answer: Box::pin(answer) }
        };
        // What is late goes on in our runtime, so the time is told by that one, and not by the caller's, which may end first.
        let _ours = self.runtime.enter();
        Round {
            asked: whom.into_iter().map(asked).collect(),
            late: Vec::new(),
            answers: VecDeque::new(),
            patience: Some(Box::pin(tokio::time::sleep(patience))),
            runtime: self.runtime.clone(),
        }
    }

    /// The answers of a quorum, as soon as they are there.
    pub(crate) async fn ask_quorum<T, F>(
        &self,
        patience: Duration,
        question: impl Fn(Arc<Node>) -> F,
    ) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let answers = self.quorum_of(&mut self.ask(self.every(), patience, question)).await?;
        Ok(answers.into_iter().map(|(_, answer)| answer).collect())
    }

    /// Those of a round that went to all nodes, with the node of each.
    pub(crate) async fn quorum_of<T: Send + 'static>(&self, round: &mut Round<T>) -> Result<Vec<(usize, T)>> {
        let needed = self.quorum.needed().into();
        let (mut answers, mut failures) = (Vec::new(), Vec::new());
        while answers.len() < needed
            && failures.len() <= self.count() - needed
            && let Some((node, answer)) = round.next().await
        {
            match answer {
                Ok(answer) => answers.push((node, answer)),
                Err(error) => failures.push(error),
            }
        }
        if answers.len() < needed { Err(self.too_few(needed, failures)) } else { Ok(answers) }
    }

    /// What is to be said where two of the nodes are one server, by what some of them say that they are.
    pub(crate) fn twins(&self, mut known: Vec<(usize, Option<String>)>) -> Option<String> {
        known.sort_unstable();
        let mut by_run_id = HashMap::new();
        let (one, other) = known.into_iter().find_map(|(node, run_id)| {
            let twin = by_run_id.insert(run_id?, node)?;
            Some((twin, node))
        })?;
        let shown = |node: usize| self.all[node].client.servers.shown();
        Some(format!("{} and {} are one server, which would vote twice", shown(one), shown(other)))
    }

    /// The error where too many nodes failed for a quorum of the others.
    pub(crate) fn too_few(&self, needed: usize, failures: Vec<Error>) -> Error {
        // Of the others some may be silent: nobody waits for them, because they would change nothing.
        let answered = self.count() - failures.len();
        // What a node said tells more than that another one was silent.
        let worst = failures.into_iter().min_by_key(|failure| !is_answer(failure));
        let kind = worst.as_ref().map_or(ErrorKind::Unavailable, Error::kind);
        let why =
            format!("at most {answered} of {} nodes can be used and {needed} have to agree", self.count());
        let error = Error::new(kind, why);
        match worst {
            Some(worst) => error.because(worst),
            None => error,
        }
    }
}

/// What was asked of several nodes at once. What has not answered when it is dropped goes on in the background.
pub(crate) struct Round<T: Send + 'static> {
    asked: Vec<Asked<T>>,
    /// Those who were waited for long enough.
    late: Vec<Asked<T>>,
    answers: VecDeque<(usize, Result<T>)>,
    /// For how long any of them is waited for; there until it is dropped.
    patience: Option<Pin<Box<Sleep>>>,
    runtime: Handle,
}

struct Asked<T> {
    number: usize,
    node: Arc<Node>,
    answer: BoxFuture<'static, Result<T>>,
}

impl<T: Send + 'static> Round<T> {
    /// The next answer, and which node's it is; an error for one that does not answer in time. `None`: that was all.
    pub(crate) async fn next(&mut self) -> Option<(usize, Result<T>)> {
        poll_fn(|context| {
            let Self { asked, answers, runtime, .. } = self;
            let ours = runtime.enter();
            asked.retain_mut(|Asked { number, answer, .. }| match answer.as_mut().poll(context) {
                Poll::Ready(answer) => {
                    answers.push_back((*number, answer));
                    false
                }
                Poll::Pending => true,
            });
            drop(ours);
            if self.answers.is_empty() && !self.asked.is_empty() {
                if let Some(patience) = &mut self.patience {
                    std::task::ready!(patience.as_mut().poll(context));
                }
                self.give_up();
            }
            Poll::Ready(self.answers.pop_front())
        })
        .await
    }

    /// Waits for nobody any longer.
    fn give_up(&mut self) {
        for Asked { number, node, .. } in &self.asked {
            node.suspect();
            let error = Error::new(ErrorKind::Unavailable, "it does not answer in time");
            let error = error.about(node.client.servers.shown()).with_unknown_effect();
            self.answers.push_back((*number, Err(error)));
        }
        self.late.append(&mut self.asked);
    }
}

impl<T: Send + 'static> Drop for Round<T> {
    fn drop(&mut self) {
        self.late.append(&mut self.asked);
        let rest = std::mem::take(&mut self.late);
        if let Some(patience) = self.patience.take().filter(|_| !rest.is_empty()) {
            self.runtime.spawn(hear_out(rest, patience));
        }
    }
}

/// Waits for everybody, however long it takes, and suspects those for whom it takes too long.
async fn hear_out<T>(mut asked: Vec<Asked<T>>, mut patience: Pin<Box<Sleep>>) {
    let mut is_patient = true;
    poll_fn(|context| {
        asked.retain_mut(|asked| asked.answer.as_mut().poll(context).is_pending());
        if asked.is_empty() {
            return Poll::Ready(());
        }
        if is_patient && patience.as_mut().poll(context).is_ready() {
            is_patient = false;
            for Asked { node, .. } in &asked {
                node.suspect();
            }
        }
        Poll::Pending
    })
    .await;
}

impl<T: Send + 'static> fmt::Debug for Round<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Round").field("asked", &self.asked.len()).finish_non_exhaustive()
    }
}
