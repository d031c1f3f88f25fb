//! Records whose holder loses the right to write them while it writes.

use std::sync::Arc;
use std::time::Duration;

use ringfence_core::{Backend, ErrorKind, Eviction, FencingToken, Lease, Mode, RecordKey, Wait};
use ringfence_servers::{Ensemble, Proxy};
use ringfence_zookeeper::ZooKeeperBackend;

use crate::{LONG, connect, connect_over, granted, hold, name, release, request, within};

/// How often it is tried.
const ROUNDS: u64 = 24;

/// How much longer everything takes for the one that writes, in each direction: as long lies between its last look and its write.
const FAR: Duration = Duration::from_millis(5);

/// One that is far away, and one that is not.
async fn two(servers: &Ensemble) -> (Proxy, Arc<ZooKeeperBackend>, Arc<ZooKeeperBackend>) {
    let proxy = Proxy::start(servers.ports()[0]).await;
    proxy.delay(FAR);
    let ann = connect_over(&proxy).await;
    (proxy, ann, connect(&servers.url()).await)
}

/// When the other one begins, so that it soon comes between the look and the write: later where it has come before them, sooner where
/// it has come after them.
#[derive(Default)]
struct Start(Duration);

impl Start {
    async fn come(&self) {
        tokio::time::sleep(self.0).await;
    }

    fn has_come(&mut self, before: bool) {
        self.0 = if before { self.0 * 3 / 2 + Duration::from_millis(1) } else { self.0 / 2 };
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_takes_no_write_after_the_end_of_its_lease() {
    let Some(servers) = Ensemble::start().await else { return };
    let (_proxy, ann, bob) = two(&servers).await;
    let key = RecordKey::of(name());
    let (mut written, mut refused, mut start) = (0, 0, Start::default());
    for round in 0..ROUNDS {
        let lease = hold(&ann).await;
        ann.records().open(&key, lease.token).await.expect("the holder opens it");
        let writes = ann.records().write(&key, lease.token, format!("round {round}").into());
        let ends = async {
            start.come().await;
            let evicted = bob.evict(&name(), lease.token.nonce()).await;
            assert_eq!(evicted.expect("an answer"), Eviction::Evicted);
            bob.records().read(&key).await.expect("the record")
        };
        let (wrote, at_the_end) = within("a write and an end", async { tokio::join!(writes, ends) }).await;
        let afterwards = bob.records().read(&key).await.expect("the record");
        assert_eq!(afterwards, at_the_end, "round {round}: nobody holds any more, and {wrote:?}");
        start.has_come(wrote.is_err());
        match wrote {
            Ok(_) => written += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Stale, "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(written > 0 && refused > 0, "{written} came before the end, and {refused} after it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_opened_takes_no_write_of_an_older_token() {
    let Some(servers) = Ensemble::start().await else { return };
    let (_proxy, ann, bob) = two(&servers).await;
    let reads = async |client: &ZooKeeperBackend| -> Lease {
        granted(client.acquire(request(Mode::Shared, LONG, Wait::No)).await)
    };
    let key = RecordKey::of(name());
    let mut start = Start::default();
    for round in 0..ROUNDS {
        let (anns, bobs) = (reads(&ann).await, reads(&bob).await);
        ann.records().open(&key, anns.token).await.expect("the older one opens it first");
        let writes = ann.records().write(&key, anns.token, "older".into());
        let opens = async {
            start.come().await;
            bob.records().open(&key, bobs.token).await.expect("the younger one opens it");
        };
        let (wrote, ()) = within("a write and an opening", async { tokio::join!(writes, opens) }).await;
        start.has_come(wrote.is_err());
        let error = ann.records().write(&key, anns.token, "late".into()).await.expect_err("it is stale");
        assert_eq!(error.kind(), ErrorKind::Stale, "round {round}: {error:?}");
        bob.records().write(&key, bobs.token, "younger".into()).await.expect("it has opened it");
        release(&ann, &anns).await;
        release(&bob, &bobs).await;
    }
}

#[tokio::test]
async fn a_record_takes_no_number_but_that_of_the_lease() {
    let Some(servers) = Ensemble::start().await else { return };
    let ann = connect(&servers.url()).await;
    let lease = hold(&ann).await;
    let key = RecordKey::of(name());
    for number in [lease.token.grant() - 1, lease.token.grant() + 1] {
        let other = FencingToken::of_grant(number, lease.token.nonce()).expect("a token");
        let error = ann.records().open(&key, other).await.expect_err("nobody was granted it");
        assert_eq!(error.kind(), ErrorKind::Stale, "{error:?}");
    }
    ann.records().open(&key, lease.token).await.expect("its own");
}
