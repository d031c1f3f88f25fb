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
/// What the server refuses takes no other with it: then each goes for itself.
pub(crate) struct Together<Request, Answer>(Coalescer<Request, Result<Answer>>);

/// Sends requests in one statement. They come in the order of their locks, in which every process takes their rows, and the
/// answers come back in that order.
type Send<Request, Answer> =
    dyn Fn(Vec<Request>) -> BoxFuture<'static, Result<Vec<Answer>>> + std::marker::Send + Sync;

impl<Request, Answer> Together<Request, Answer>
where
    Request: AsRef<str> + Clone + std::marker::Send + Sync + 'static,
    Answer: std::marker::Send + 'static,
{
    /// `AsRef<str>` of a request is the name of its lock.
    pub(crate) fn new(
        runtime: Handle,
        send: impl Fn(Vec<Request>) -> BoxFuture<'static, Result<Vec<Answer>>>
        + std::marker::Send
        + Sync
        + 'static,
    ) -> Self {
        let send: Arc<Send<Request, Answer>> = Arc::new(send);
        let send_all =
            move |requests| Box::pin(send_all(Arc::clone(&send), requests)) as BoxFuture<'static, _>;
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

async fn send_all<Request, Answer>(
    send: Arc<Send<Request, Answer>>,
    requests: Vec<Request>,
) -> Vec<Result<Answer>>
where
    Request: AsRef<str> + Clone,
{
    if requests.len() == 1 {
        return vec![send(requests).await.and_then(|answers| answers.into_iter().next().ok_or_else(too_few))];
    }
    let mut order: Vec<usize> = (0..requests.len()).collect();
    // Of one lock, who came first is first.
    order.sort_by_key(|&index| requests[index].as_ref());
    let sorted: Vec<Request> = order.iter().map(|&index| requests[index].clone()).collect();
    let mut answers: Vec<Result<Answer>> = requests.iter().map(|_| Err(too_few())).collect();
    match send(sorted).await {
        Ok(sorted) => {
            for (index, answer) in order.into_iter().zip(sorted) {
                answers[index] = Ok(answer);
            }
        }
        // Nobody knows whose fault it was, and nothing was done.
        Err(error) if error.effect() == Effect::None && error.kind() != ErrorKind::Unavailable => {
            for index in order {
                let alone = send(vec![requests[index].clone()]).await;
                answers[index] = alone.and_then(|sent| sent.into_iter().next().ok_or_else(too_few));
            }
        }
        Err(error) => answers.fill_with(|| Err(error.clone())),
    }
    answers
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

    type Sent = Arc<Mutex<Vec<Vec<String>>>>;

    /// Counts the bytes of each request; refuses what holds a request `bad`.
    fn lengths(sent: Sent) -> Together<String, usize> {
        Together::new(Handle::current(), move |requests| {
            let sent = Arc::clone(&sent);
            Box::pin(async move {
                sent.lock().unwrap().push(requests.clone());
                tokio::task::yield_now().await;
                if requests.iter().any(|request| request == "bad") {
                    return Err(Error::new(ErrorKind::InvalidRequest, "bad"));
                }
                Ok(requests.iter().map(String::len).collect())
            })
        })
    }

    #[tokio::test]
    async fn what_goes_together_goes_in_the_order_of_locks_and_is_answered_each() {
        let sent = Sent::default();
        let together = lengths(Arc::clone(&sent));
        let ask = |name: &str| together.send(name.to_owned());
        let answers = tokio::join!(ask("b"), ask("b"), ask("dddd"), ask("ccc"), ask("aa"));
        assert_eq!(
            (answers.2.unwrap(), answers.3.unwrap(), answers.4.unwrap()),
            (4, 3, 2),
            "{:?}",
            sent.lock().unwrap()
        );
        assert_eq!(sent.lock().unwrap().last().unwrap(), &["aa", "ccc", "dddd"]);
    }

    #[tokio::test]
    async fn one_that_is_refused_takes_no_other_with_it() {
        let together = lengths(Sent::default());
        let ask = |name: &str| together.send(name.to_owned());
        let (.., good, bad, better) =
            tokio::join!(ask("1"), ask("2"), ask("good"), ask("bad"), ask("better"));
        assert_eq!((good.unwrap(), better.unwrap()), (4, 6));
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::InvalidRequest);
    }
}
