use ringfence::{Locks, Nonce};
use ringfence_testkit::Harness;

/// The hall of one more process, as far as the store can tell.
pub(crate) async fn locks(harness: &dyn Harness) -> Locks {
    let backend = harness.connect().await.expect("the harness connects a client");
    Locks::builder()
        .clock(harness.clock())
        .with_backend(backend)
        .expect("nothing was chosen that could be wrong")
}

/// A name that no other case and no other run uses.
pub(crate) fn fresh(case: &str) -> String {
    format!("{case}/{}", Nonce::random())
}
