use std::pin::pin;
use std::task::Poll;

/// Polls a future so many times, and drops it. What it came to, if it did before that. For a backend's own tests of what a
/// future leaves behind that is dropped at each of its await points.
pub async fn drop_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => {
            left -= 1;
            if left == 0 { Poll::Ready(None) } else { Poll::Pending }
        }
    })
    .await
}
