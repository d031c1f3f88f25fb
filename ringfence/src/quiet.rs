//! Waiting for an answer that comes from a future which the same task polls, without waking the task for it.
//!
//! A task that is woken while it runs is put at the end of its worker's queue, and another worker is woken to help. That
//! costs more than all the rest of an acquire of ours, and the answer is looked at in the same poll anyway.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use crate::sync::Mutex;

/// Wakes the task, except while it polls the source of its answers.
struct Quiet {
    polls: AtomicBool,
    task: Mutex<Waker>,
}

impl Wake for Quiet {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.polls.load(Ordering::SeqCst) {
            self.task.lock().wake_by_ref();
        }
    }
}

/// Polls `source` until it ends and `answer` until it is there, and returns the answer.
pub(crate) async fn answer_from<T>(
    source: impl Future + Unpin,
    answer: &mut (impl Future<Output = T> + Unpin),
) -> T {
    let mut source = Some(source);
    let quiet = Arc::new(Quiet { polls: AtomicBool::new(false), task: Mutex::new(Waker::noop().clone()) });
    let waker = Waker::from(Arc::clone(&quiet));
    poll_fn(|context| {
        quiet.task.lock().clone_from(context.waker());
        if let Some(running) = &mut source {
            quiet.polls.store(true, Ordering::SeqCst);
            if Pin::new(running).poll(context).is_ready() {
                source = None;
            }
            // From here on whoever answers wakes us; whoever did before is seen below.
            quiet.polls.store(false, Ordering::SeqCst);
        }
        Pin::new(&mut *answer).poll(&mut Context::from_waker(&waker))
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Poll;

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls it, with how often it was woken until then.
    fn poll<F: Future>(future: Pin<&mut F>, wakes: &Arc<Wakes>) -> (Poll<F::Output>, usize) {
        let polled = future.poll(&mut Context::from_waker(&Waker::from(Arc::clone(wakes))));
        (polled, wakes.0.load(Ordering::SeqCst))
    }

    #[test]
    fn an_answer_from_the_source_itself_wakes_nobody() {
        let wakes = Arc::default();
        let (sender, mut answer) = oneshot::channel();
        let mut sender = Some(sender);
        let mut polls = 0;
        let source = poll_fn(|_| {
            polls += 1;
            if polls == 1 {
                return Poll::Pending;
            }
            sender.take().unwrap().send(7).unwrap();
            Poll::Ready(())
        });
        let mut both = Box::pin(answer_from(source, &mut answer));
        assert_eq!(poll(both.as_mut(), &wakes), (Poll::Pending, 0));
        assert_eq!(poll(both.as_mut(), &wakes), (Poll::Ready(Ok(7)), 0));
    }

    #[test]
    fn an_answer_from_elsewhere_wakes_before_and_after_the_source_has_ended() {
        for ends in [false, true] {
            let wakes = Arc::default();
            let (sender, mut answer) = oneshot::channel();
            let source = poll_fn(|_| if ends { Poll::Ready(()) } else { Poll::Pending });
            let mut both = Box::pin(answer_from(source, &mut answer));
            assert_eq!(poll(both.as_mut(), &wakes), (Poll::Pending, 0), "{ends}");
            sender.send(7).unwrap();
            assert_eq!(wakes.0.load(Ordering::SeqCst), 1, "{ends}");
            assert_eq!(poll(both.as_mut(), &wakes).0, Poll::Ready(Ok(7)), "{ends}");
        }
    }
}
