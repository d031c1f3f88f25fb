//! Several requests in one round trip.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_channel::oneshot;

use crate::BoxFuture;

/// Lets the concurrent requests of one process share round trips: the first goes at once, what arrives while it is under way
/// goes together in the next. A lone request is never held back.
///
/// There is no task behind it: of those whose requests go together, one takes the others along. If its future is dropped on
/// the way, the round trip is finished elsewhere, so that nobody loses an answer because somebody else went away.
pub struct Coalescer<Request, Answer> {
    shared: Arc<Shared<Request, Answer>>,
}

type SendAll<Request, Answer> = dyn Fn(Vec<Request>) -> BoxFuture<'static, Vec<Answer>> + Send + Sync;

struct Shared<Request, Answer> {
    flights_max: usize,
    batch_max: usize,
    send: Box<SendAll<Request, Answer>>,
    adopt: Box<dyn Fn(BoxFuture<'static, ()>) + Send + Sync>,
    state: Mutex<State<Request, Answer>>,
}

struct State<Request, Answer> {
    flights: usize,
    waiting: VecDeque<Waiting<Request, Answer>>,
}

struct Waiting<Request, Answer> {
    request: Request,
    told: oneshot::Sender<Told<Request, Answer>>,
}

/// What one that waits is told.
enum Told<Request, Answer> {
    /// Somebody took its request along, and this is the answer.
    Answer(Answer),
    /// It is its turn to take the others along, with its own request.
    TakeOff(Flight<Request, Answer>, Request),
}

/// The right to one round trip. It passes to the first of those that wait when it is dropped.
struct Flight<Request, Answer>(Arc<Shared<Request, Answer>>);

impl<Request: Send + 'static, Answer: Send + 'static> Coalescer<Request, Answer> {
    /// At most `flights_max` round trips at a time, each for at most `batch_max` requests; zero counts as one.
    ///
    /// `send` gets requests in the order in which they came, and returns an answer for each, in that order. `adopt` is given
    /// a round trip whose caller went away, to poll it to its end: it spawns a task.
    pub fn new(
        flights_max: usize,
        batch_max: usize,
        send: impl Fn(Vec<Request>) -> BoxFuture<'static, Vec<Answer>> + Send + Sync + 'static,
        adopt: impl Fn(BoxFuture<'static, ()>) + Send + Sync + 'static,
    ) -> Self {
        let state = Mutex::new(State { flights: 0, waiting: VecDeque::new() });
        Self {
            shared: Arc::new(Shared {
                flights_max: flights_max.max(1),
                batch_max: batch_max.max(1),
                send: Box::new(send),
                adopt: Box::new(adopt),
                state,
            }),
        }
    }

    /// Sends a request, perhaps together with others. `None`: its round trip ended without an answer, because it panicked or
    /// what adopted it was shut down; whether the request took effect is unknown.
    ///
    /// # Cancel safety
    /// A future that is dropped while its request waits takes it back. One that is dropped while it is under way loses its
    /// answer; those who went along with it get theirs.
    pub async fn request(&self, request: Request) -> Option<Answer> {
        let (flight, request) = match self.shared.board(request) {
            Ok(boarded) => boarded,
            Err(told) => match told.await {
                Ok(Told::Answer(answer)) => return Some(answer),
                Ok(Told::TakeOff(flight, request)) => (flight, request),
                Err(oneshot::Canceled) => return None,
            },
        };
        let shared = Arc::clone(&self.shared);
        Ride { shared, round_trip: Some(flight.round_trip(request)) }.await
    }
}

type Answered<Request, Answer> = oneshot::Receiver<Told<Request, Answer>>;

impl<Request, Answer> Shared<Request, Answer> {
    /// A flight for this request, or word of it later.
    fn board(
        self: &Arc<Self>,
        request: Request,
    ) -> Result<(Flight<Request, Answer>, Request), Answered<Request, Answer>> {
        let mut state = self.state();
        if state.flights < self.flights_max {
            state.flights += 1;
            return Ok((Flight(Arc::clone(self)), request));
        }
        let (told, answered) = oneshot::channel();
        state.waiting.push_back(Waiting { request, told });
        Err(answered)
    }

    fn state(&self) -> MutexGuard<'_, State<Request, Answer>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Request: Send + 'static, Answer: Send + 'static> Flight<Request, Answer> {
    /// One round trip, with this request and those that wait. Returns the answer to this one, and tells the others theirs.
    fn round_trip(self, request: Request) -> BoxFuture<'static, Option<Answer>> {
        let mut requests = vec![request];
        let mut along = Vec::new();
        {
            let mut state = self.0.state();
            while requests.len() < self.0.batch_max
                && let Some(Waiting { request, told }) = state.waiting.pop_front()
            {
                if !told.is_canceled() {
                    requests.push(request);
                    along.push(told);
                }
            }
        }
        let answers = (self.0.send)(requests);
        Box::pin(async move {
            let mut answers = answers.await.into_iter();
            // The next ones go before anybody looks at these.
            drop(self);
            let answer = answers.next();
            for (told, answer) in along.into_iter().zip(answers) {
                // Whoever went away meanwhile needs no answer.
                let _ = told.send(Told::Answer(answer));
            }
            answer
        })
    }
}

impl<Request, Answer> Drop for Flight<Request, Answer> {
    fn drop(&mut self) {
        let next = {
            let mut state = self.0.state();
            let next = loop {
                match state.waiting.pop_front() {
                    Some(waiting) if waiting.told.is_canceled() => {}
                    next => break next,
                }
            };
            if next.is_none() {
                state.flights -= 1;
            }
            next
        };
        if let Some(Waiting { request, told }) = next {
            // If it has gone away in this moment the flight comes back, and passes to the one after it.
            drop(told.send(Told::TakeOff(Flight(Arc::clone(&self.0)), request)));
        }
    }
}

/// A round trip that its caller polls, and somebody else when the caller goes away.
struct Ride<Request, Answer: Send + 'static> {
    shared: Arc<Shared<Request, Answer>>,
    round_trip: Option<BoxFuture<'static, Option<Answer>>>,
}

impl<Request, Answer: Send + 'static> Future for Ride<Request, Answer> {
    type Output = Option<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Answer>> {
        let Some(round_trip) = &mut self.round_trip else { return Poll::Ready(None) };
        let ended = round_trip.as_mut().poll(cx);
        if ended.is_ready() {
            self.round_trip = None;
        }
        ended
    }
}

impl<Request, Answer: Send + 'static> Drop for Ride<Request, Answer> {
    fn drop(&mut self) {
        // One that panicked must not be polled again.
        if let Some(round_trip) = self.round_trip.take()
            && !std::thread::panicking()
        {
            (self.shared.adopt)(Box::pin(async move { drop(round_trip.await) }));
        }
    }
}

impl<Request, Answer> fmt::Debug for Coalescer<Request, Answer> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state();
        f.debug_struct("Coalescer")
            .field("flights", &state.flights)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    /// A round trip that ends when it is told to, and a place for those that lost their caller.
    #[derive(Default)]
    struct Server {
        batches: Mutex<Vec<Vec<u32>>>,
        replies: Mutex<VecDeque<oneshot::Receiver<()>>>,
        adopted: Mutex<Vec<BoxFuture<'static, ()>>>,
    }

    impl Server {
        fn coalescer(self: &Arc<Self>, flights_max: usize, batch_max: usize) -> Coalescer<u32, u32> {
            let (sending, adopting) = (Arc::clone(self), Arc::clone(self));
            let send = move |requests: Vec<u32>| -> BoxFuture<'static, Vec<u32>> {
                let reply = sending.replies.lock().unwrap().pop_front();
                sending.batches.lock().unwrap().push(requests.clone());
                Box::pin(async move {
                    if let Some(reply) = reply {
                        let _ = reply.await;
                    }
                    requests.into_iter().map(|request| request * 10).collect()
                })
            };
            let adopt = move |round_trip| adopting.adopted.lock().unwrap().push(round_trip);
            Coalescer::new(flights_max, batch_max, send, adopt)
        }

        /// The next round trip ends when the sender does.
        fn hold(&self) -> oneshot::Sender<()> {
            let (sender, receiver) = oneshot::channel();
            self.replies.lock().unwrap().push_back(receiver);
            sender
        }

        fn batches(&self) -> Vec<Vec<u32>> {
            self.batches.lock().unwrap().clone()
        }
    }

    fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    macro_rules! requests {
        ($coalescer:ident, $($name:ident = $request:literal),*) => {
            $(let mut $name = Box::pin($coalescer.request($request));)*
            $(assert!(poll($name.as_mut()).is_pending());)*
        };
    }

    #[test]
    fn a_lone_request_goes_at_once() {
        let server = Arc::<Server>::default();
        let coalescer = server.coalescer(1, 8);
        assert_eq!(poll(pin!(coalescer.request(1))), Poll::Ready(Some(10)));
    }

    #[test]
    fn what_arrives_under_way_goes_together_in_the_next() {
        let server = Arc::<Server>::default();
        let coalescer = server.coalescer(1, 3);
        let (first, second) = (server.hold(), server.hold());
        requests!(coalescer, a = 1, b = 2, c = 3, d = 4, e = 5);
        drop(first);
        assert_eq!(poll(a.as_mut()), Poll::Ready(Some(10)));
        assert!(poll(b.as_mut()).is_pending());
        assert_eq!(server.batches(), [vec![1], vec![2, 3, 4]], "no more than three at a time");
        drop(second);
        assert_eq!(poll(b.as_mut()), Poll::Ready(Some(20)));
        assert_eq!(poll(c.as_mut()), Poll::Ready(Some(30)));
        assert_eq!(poll(d.as_mut()), Poll::Ready(Some(40)));
        assert_eq!(poll(e.as_mut()), Poll::Ready(Some(50)));
    }

    #[test]
    fn several_round_trips_go_at_a_time() {
        let server = Arc::<Server>::default();
        let coalescer = server.coalescer(2, 8);
        let (_first, second) = (server.hold(), server.hold());
        requests!(coalescer, a = 1, b = 2, c = 3);
        drop(second);
        assert_eq!(poll(b.as_mut()), Poll::Ready(Some(20)));
        assert_eq!(poll(c.as_mut()), Poll::Ready(Some(30)), "it does not wait for the first");
        assert!(poll(a.as_mut()).is_pending());
    }

    #[test]
    fn one_that_goes_away_holds_up_nobody() {
        let server = Arc::<Server>::default();
        let coalescer = server.coalescer(1, 8);
        let first = server.hold();
        requests!(coalescer, a = 1, b = 2, c = 3, d = 4);
        drop(c);
        drop(first);
        assert_eq!(poll(a.as_mut()), Poll::Ready(Some(10)));
        // It was told to take off, and goes away before it does.
        drop(b);
        assert_eq!(poll(d.as_mut()), Poll::Ready(Some(40)));
        assert_eq!(server.batches(), [vec![1], vec![4]]);
    }

    #[test]
    fn those_who_went_along_with_one_that_goes_away_get_their_answers() {
        let server = Arc::<Server>::default();
        let coalescer = server.coalescer(1, 8);
        let (first, second) = (server.hold(), server.hold());
        requests!(coalescer, a = 1, b = 2, c = 3);
        drop(first);
        assert_eq!(poll(a.as_mut()), Poll::Ready(Some(10)));
        assert!(poll(b.as_mut()).is_pending());
        drop(b);
        drop(second);
        assert!(poll(c.as_mut()).is_pending(), "nobody has polled the round trip yet");
        let mut adopted = server.adopted.lock().unwrap().pop().expect("the round trip that b left");
        assert!(poll(adopted.as_mut()).is_ready());
        assert_eq!(poll(c.as_mut()), Poll::Ready(Some(30)));
    }

    #[test]
    fn a_round_trip_that_is_shut_down_leaves_nothing_behind() {
        let server = Arc::<Server>::default();
        let coalescer = server.coalescer(1, 8);
        let (first, _second) = (server.hold(), server.hold());
        requests!(coalescer, a = 1, b = 2, c = 3);
        drop(first);
        assert_eq!(poll(a.as_mut()), Poll::Ready(Some(10)));
        assert!(poll(b.as_mut()).is_pending());
        drop(b);
        server.adopted.lock().unwrap().clear();
        assert_eq!(poll(c.as_mut()), Poll::Ready(None), "nobody knows what became of it");
        assert_eq!(poll(pin!(coalescer.request(4))), Poll::Ready(Some(40)), "and the next one goes");
    }
}
