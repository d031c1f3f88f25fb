//! Waiting for a lock, in vain.

use std::time::Duration;

use ringfence::ErrorKind;
use ringfence_testkit::{Harness, Verdict};

use crate::stage::{fresh, locks, ttl};

/// How long one waits who does not get it.
const WAIT: Duration = Duration::from_millis(300);

/// Whoever waits in vain is told who has the lock, wherever that can be known: it is what is asked next.
pub async fn waiting_in_vain_names_the_holder(harness: &dyn Harness) -> Verdict {
    let (ann, bob, name) = (locks(harness).await, locks(harness).await, fresh("waiting_in_vain"));
    let long = ttl(&ann, Duration::from_mins(1));
    let held = ann.lock(&name).ttl(long).label("the report").acquire().await.expect("it is free");
    let error = bob.lock(&name).ttl(long).wait(WAIT).acquire().await.expect_err("it is held");
    assert_eq!(error.kind(), ErrorKind::WaitElapsed, "{error:?}");
    assert!(error.to_string().contains("the report"), "{error}");
    held.release().await.expect("a release");
    Ok(())
}
