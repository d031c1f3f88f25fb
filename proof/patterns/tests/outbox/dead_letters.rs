//! What is refused too often is set aside, and put back by hand.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringfence::patterns::outbox::Which;

use crate::on_both;
use crate::stage::{Memory, Stage, message, refused, text};

on_both!(
    a_poisonous_message_is_dead_and_comes_back_at_the_end,
    dead_letters_are_put_back_by_key_and_by_id,
    what_dies_while_others_are_put_back_is_not_lost,
    nothing_dies_where_that_is_not_wanted,
);

async fn a_poisonous_message_is_dead_and_comes_back_at_the_end(stage: Stage) {
    let is_mended = Arc::new(AtomicBool::new(false));
    let mended = Arc::clone(&is_mended);
    let sink = Memory::answering(move |message| {
        let is_poison = text(message) == "poison" && !mended.load(Ordering::Relaxed);
        if is_poison { Err(refused()) } else { Ok(()) }
    });
    let ids = stage.put(&[message("k", "poison"), message("k", "next")]).await;
    let relay = stage.relay(|relay| relay.refusals(NonZeroU32::new(3)), &sink);
    sink.until_taken(1).await;
    let tries: Vec<_> = sink.given().iter().map(|(message, _)| (text(message), message.attempt)).collect();
    let poison = |attempt| ("poison".to_owned(), attempt);
    // `next` was in the same batches, and so is counted as one that may have been sent.
    assert_eq!(tries[..3], [poison(1), poison(2), poison(3)]);
    assert_eq!(
        (tries.len(), tries[3].0.as_str()),
        (4, "next"),
        "the third refusal is the last, then comes the next"
    );
    let status = stage.outbox().status().await.unwrap();
    let [letter] = &status.dead_letters[..] else { panic!("{status:?}") };
    assert_eq!((status.dead, letter.id, letter.refusals), (1, ids[0], 3));
    assert_eq!((letter.error.as_str(), letter.retry_in_ms), ("no, thank you", None));

    is_mended.store(true, Ordering::Relaxed);
    assert_eq!(stage.outbox().retry(&Which::All).await.unwrap(), 1);
    sink.until_taken(2).await;
    let done = relay.stop().await;
    assert_eq!((done.delivered, done.refused, done.dead), (2, 3, 1));
    let taken = sink.taken();
    assert_eq!((taken[1].id, text(&taken[1]).as_str()), (ids[0], "poison"));
    assert!(
        taken[1].number > taken[0].number,
        "its number is a new one, so that who keeps the highest takes it"
    );
    assert_eq!(taken[1].attempt, 4);
    assert_eq!(stage.outbox().retry(&Which::All).await.unwrap(), 0);
}

async fn dead_letters_are_put_back_by_key_and_by_id(stage: Stage) {
    let sink = Memory::answering(|_| Err(refused()));
    let put: Vec<_> =
        [("a", 1), ("a", 2), ("b", 1), ("b", 2), ("c", 1)].map(|(key, at)| message(key, at)).into();
    let ids = stage.put(&put).await;
    let relay = stage.relay(|relay| relay.refusals(NonZeroU32::MIN.into()), &sink);
    sink.until("all are refused", |given| given.len() == 5).await;
    assert_eq!(relay.stop().await.dead, 5);
    let outbox = stage.outbox();
    assert_eq!(outbox.retry(&Which::Key("a".to_owned())).await.unwrap(), 2);
    assert_eq!(outbox.retry(&Which::Id(ids[3])).await.unwrap(), 1);
    assert_eq!(outbox.retry(&Which::Key("nobody".to_owned())).await.unwrap(), 0);
    let sink = Memory::new();
    let relay = stage.relay(|relay| relay, &sink);
    sink.until_taken(3).await;
    relay.stop().await;
    let a = sink.payloads()[&Some("a".to_owned())].clone();
    assert_eq!(a, ["1", "2"], "in the order that they had");
    let mut taken: Vec<_> = sink.taken().iter().map(|message| message.id).collect();
    taken.sort();
    let mut expected = vec![ids[0], ids[1], ids[3]];
    expected.sort();
    assert_eq!(taken, expected);
    assert_eq!(outbox.status().await.unwrap().dead, 2);
}

async fn what_dies_while_others_are_put_back_is_not_lost(stage: Stage) {
    const COUNT: usize = 150;
    let sink = Memory::answering(|_| Err(refused()));
    let messages: Vec<_> = (0..COUNT).map(|at| message(None, at)).collect();
    stage.put(&messages).await;
    let relays: Vec<_> = (0..2)
        .map(|_| stage.relay(|relay| relay.refusals(NonZeroU32::MIN.into()).batch(5).unwrap(), &sink))
        .collect();
    for _ in 0..40 {
        // Of two who do it at once one may have to do it again.
        let (one, other) = (stage.outbox(), stage.outbox());
        let _ = tokio::join!(one.retry(&Which::All), other.retry(&Which::All));
    }
    for relay in relays {
        relay.stop().await;
    }
    let ids = format!("SELECT count(DISTINCT id) FROM {}", stage.table());
    let rows = format!("SELECT count(*) FROM {}", stage.table());
    let count = i64::try_from(COUNT).unwrap();
    assert_eq!((stage.number(&ids).await, stage.number(&rows).await), (count, count));
}

async fn nothing_dies_where_that_is_not_wanted(stage: Stage) {
    let sink = Memory::answering(|message| if text(message) == "poison" { Err(refused()) } else { Ok(()) });
    stage.put(&[message("k", "poison"), message("k", "next"), message("other", "1")]).await;
    let relay = stage.relay(|relay| relay.refusals(None), &sink);
    sink.until("it was refused thirty times", |given| given.len() > 30).await;
    relay.stop().await;
    let taken: Vec<_> = sink.taken().iter().map(text).collect();
    assert_eq!(taken, ["1"], "what is behind it waits, other keys do not");
}
