//! A sink that is not there kills no message, and one that hangs holds nobody up for ever.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringfence::patterns::outbox::{Delivery, Sink};
use ringfence::{BoxFuture, Result};

use crate::on_both;
use crate::stage::{Memory, Stage, away, message};

on_both!(a_sink_that_is_away_kills_nothing, a_message_that_hangs_is_given_up_and_comes_again);

async fn a_sink_that_is_away_kills_nothing(stage: Stage) {
    let tries = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&tries);
    let sink =
        Memory::answering(
            move |_| if counted.fetch_add(1, Ordering::Relaxed) < 5 { Err(away()) } else { Ok(()) },
        );
    stage.put(&[message("k", 1), message("k", 2), message(None, 3)]).await;
    let relay = stage.relay(|relay| relay.refusals(NonZeroU32::new(1)), &sink);
    sink.until_taken(3).await;
    let done = relay.stop().await;
    assert_eq!((done.delivered, done.refused, done.dead), (3, 0, 0));
    assert_eq!(sink.payloads()[&Some("k".to_owned())], ["1", "2"]);
}

/// Takes what is sent a second time, and never answers before.
#[derive(Debug)]
struct Hangs(Arc<Memory>);

impl Sink for Hangs {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        if message.attempt == 1 { Box::pin(std::future::pending()) } else { self.0.deliver(message) }
    }
}

async fn a_message_that_hangs_is_given_up_and_comes_again(stage: Stage) {
    let memory = Memory::new();
    stage.put(&[message("k", 1), message("k", 2)]).await;
    let timeout = Duration::from_millis(50);
    let sink = Arc::new(Hangs(Arc::clone(&memory)));
    let relay = stage.relay(|relay| relay.claim(4 * timeout, timeout).unwrap(), &sink);
    memory.until_taken(2).await;
    assert_eq!(relay.stop().await.dead, 0);
    assert!(memory.taken().iter().all(|message| message.attempt > 1), "{:?}", memory.taken());
}
