//! The program that `ringfence advise` prints does what it says, on a database of the test's own.

use std::time::Duration;

use crate::stage::Stage;

#[path = "../../../../ringfence/examples/outbox.rs"]
#[expect(dead_code, reason = "its main has the URL of a server that nobody has")]
#[expect(unreachable_pub, reason = "it is a program of its own where it is pasted")]
mod pasted;

#[tokio::test]
async fn the_program_that_is_pasted_commits_both_and_sends_what_is_committed() {
    let Some(stage) = Stage::postgres().await else { return };
    stage
        .sql("CREATE TABLE orders (id bigint, state text); INSERT INTO orders VALUES (42, 'new')")
        .await
        .unwrap();
    pasted::pay(&stage.url).await.unwrap();
    assert_eq!(stage.number("SELECT count(*) FROM orders WHERE state = 'paid'").await, 1);
    assert_eq!(stage.outbox().status().await.unwrap().pending, 1);
    let is_sent = async {
        while stage.outbox().status().await.unwrap().pending > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let relayed = Box::pin(pasted::relay(&stage.url, is_sent)).await.unwrap();
    assert_eq!((relayed.delivered, relayed.refused), (1, 0));
}
