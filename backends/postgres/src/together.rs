//! Several requests of one process in one statement, which is one commit.

use std::fmt;
use std::sync::Arc;

use ringfence_core::{BoxFuture, Coalescer, Effect, Error, ErrorKind, Result};
use tokio::runtime::Handle;

use crate::error;

/// How many statements of one kind are under way at a time: their connection makes one after the other, and has the next one at
/// hand when one is done.
const FLIGHTS: usize = 2;

/// How many requests go together. A statement has all of their rows until the last one is done.
pub(crate) const BATCH: usize = 128;

/// Requests of one kind, each about a lock. The first goes at once, what comes meanwhile goes together in the next statement.
///
/// Several go twice: first in a statement that is cheap and answers those whose locks nobody else is at, which is most. It has their
/// rows until its end, so that the others go in a transaction after it: there too each row is taken in the order of the locks.
///
/// What the server refuses takes no other with it: then each goes for itself.
pub(crate) struct Together<Request, Answer>(Coalescer<Request, Result<Answer>>);

/// Sends requests in one statement. They come in the order of their locks, in which every process takes their rows, and the
/// answers come back in that order.
type Send<Request, Answer> =
    dyn Fn(Vec<Request>) -> BoxFuture<'static, Result<Vec<Answer>>> + std::marker::Send + Sync;

/// The two ways to send requests.
struct Ways<Request, Answer> {
    /// `None` for one that has to be sent again, because this did nothing about it.
    simple: Box<Send<Request, Option<Answer>>>,
    each: Box<Send<Request, Answer>>,
}

impl<Request, Answer> Together<Request, Answer>
where
    Request: AsRef<str> + Clone + std::marker::Send + Sync + 'static,
    Answer: std::marker::Send + 'static,
{
    /// `AsRef<str>` of a request is the name of its lock. `simple` answers those of several that are simple, and `None` for the
    /// others; `each` answers all.
    pub(crate) fn new(
        runtime: Handle,
        simple: impl Fn(Vec<Request>) -> BoxFuture<'static, Result<Vec<Option<Answer>>>>
        + std::marker::Send
        + Sync
        + 'static,
        each: impl Fn(Vec<Request>) -> BoxFuture<'static, Result<Vec<Answer>>>
        + std::marker::Send
        + Sync
        + 'static,
    ) -> Self {
        let ways = Arc::new(Ways { simple: Box::new(simple), each: Box::new(each) });
        let send_all = move |requests| {
            let ways = Arc::clone(&ways);
            Box::pin(async move { ways.send_all(requests).await }) as BoxFuture<'static, _>
        };
        Self(Coalescer::new(FLIGHTS, BATCH, send_all, move |left| drop(runtime.spawn(left))))
    }

    /// Sends a request, with others that come at this time.
    ///
    /// # Cancel safety
    /// One that is dropped before it is sent never is. Otherwise it takes effect or not, and nobody is told.
    pub(crate) async fn send(&self, request: Request) -> Result<Answer> {
        self.0.request(request).await.unwrap_or_else(|| Err(error::shutting_down()))
    }
}

impl<Request: AsRef<str> + Clone, Answer> Ways<Request, Answer> {
    async fn send_all(&self, requests: Vec<Request>) -> Vec<Result<Answer>> {
        if requests.len() == 1 {
            return vec![self.send_one(requests).await];
        }
        let mut order: Vec<usize> = (0..requests.len()).collect();
        // Of one lock, who came first is first.
        order.sort_by_key(|&index| requests[index].as_ref());
        let sorted = |order: &[usize]| order.iter().map(|&index| requests[index].clone()).collect();
        let mut answers: Vec<Result<Answer>> = requests.iter().map(|_| Err(too_few())).collect();
        let mut rest = Vec::new();
        match (self.simple)(sorted(&order)).await {
            Ok(sorted) => {
                for (index, answer) in order.into_iter().zip(sorted) {
                    match answer {
                        Some(answer) => answers[index] = Ok(answer),
                        None => rest.push(index),
                    }
                }
            }
            Err(error) if is_refusal(&error) => rest = order,
            Err(error) => {
                answers.fill_with(|| Err(error.clone()));
                return answers;
            }
        }
        if rest.is_empty() {
            return answers;
        }
        match (self.each)(sorted(&rest)).await {
            Ok(sorted) => {
                for (index, answer) in rest.into_iter().zip(sorted) {
                    answers[index] = Ok(answer);
                }
            }
            Err(error) if is_refusal(&error) => {
                for index in rest {
                    answers[index] = self.send_one(vec![requests[index].clone()]).await;
                }
            }
            Err(error) => rest.into_iter().for_each(|index| answers[index] = Err(error.clone())),
        }
        answers
    }

    async fn send_one(&self, request: Vec<Request>) -> Result<Answer> {
        (self.each)(request).await?.into_iter().next().ok_or_else(too_few)
    }
}

/// Whether the server refused what it was asked and did nothing. Nobody knows whose fault that was.
fn is_refusal(error: &Error) -> bool {
    error.effect() == Effect::None && error.kind() != ErrorKind::Unavailable
}

fn too_few() -> Error {
    Error::new(ErrorKind::Corrupt, "the server answered for fewer locks than it was asked about")
        .with_unknown_effect()
}

impl<Request, Answer> fmt::Debug for Together<Request, Answer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Together")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What was sent, and whether as what is simple.
    type Sent = Arc<Mutex<Vec<(bool, Vec<String>)>>>;

    /// Counts the bytes of each request; refuses what holds a request `bad`. Those that begin with `c` are not simple.
    fn lengths(sent: &Sent) -> Together<String, usize> {
        let answer = |sent: &Sent, is_simple| {
            let sent = Arc::clone(sent);
            move |requests: Vec<String>| {
                sent.lock().unwrap().push((is_simple, requests.clone()));
                let is_bad = requests.iter().any(|request| request == "bad");
                let lengths = requests
                    .into_iter()
                    .map(|request| (!request.starts_with('c') || !is_simple).then_some(request.len()));
                let lengths: Vec<Option<usize>> = lengths.collect();
                async move {
                    tokio::task::yield_now().await;
                    if is_bad { Err(Error::new(ErrorKind::InvalidRequest, "bad")) } else { Ok(lengths) }
                }
            }
        };
        let (simple, each) = (answer(sent, true), answer(sent, false));
        Together::new(
            Handle::current(),
            move |requests| Box::pin(simple(requests)),
            move |requests| {
                let all = each(requests);
                Box::pin(async move { Ok(all.await?.into_iter().flatten().collect()) })
            },
        )
    }

    #[tokio::test]
    async fn what_goes_together_goes_in_the_order_of_locks_and_is_answered_each() {
        let sent = Sent::default();
        let together = lengths(&sent);
        let ask = |name: &str| together.send(name.to_owned());
        let answers = tokio::join!(ask("b"), ask("b"), ask("dddd"), ask("ccc"), ask("aa"));
        assert_eq!((answers.2.unwrap(), answers.3.unwrap(), answers.4.unwrap()), (4, 3, 2));
        // What is alone is not tried as something simple, and what is not simple is sent again, after the others.
        let expected =
            [(false, vec!["b"]), (false, vec!["b"]), (true, vec!["aa", "ccc", "dddd"]), (false, vec!["ccc"])];
        let sent = sent.lock().unwrap();
        let sent: Vec<_> = sent
            .iter()
            .map(|(is_simple, names)| (*is_simple, names.iter().map(|name| &**name).collect()))
            .collect();
        assert_eq!(sent, expected);
    }

    #[tokio::test]
    async fn one_that_is_refused_takes_no_other_with_it() {
        let together = lengths(&Sent::default());
        let ask = |name: &str| together.send(name.to_owned());
        let (.., good, bad, better) =
            tokio::join!(ask("1"), ask("2"), ask("good"), ask("bad"), ask("better"));
        assert_eq!((good.unwrap(), better.unwrap()), (4, 6));
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}
