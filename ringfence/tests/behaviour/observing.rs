//! Metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use ringfence::{Backend, Locks};

use crate::stage::{Call, Fate, Stage, eventually, millis, soon};

/// Counts what is counted, and how often what is measured.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<BTreeMap<String, Arc<Tally>>>>);

#[derive(Debug, Default)]
struct Tally(AtomicU64);

impl CounterFn for Tally {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::SeqCst);
    }

    fn absolute(&self, value: u64) {
        self.0.store(value, Ordering::SeqCst);
    }
}

impl HistogramFn for Tally {
    fn record(&self, _value: f64) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Ledger {
    fn tally(&self, key: &Key) -> Arc<Tally> {
        let labels: Vec<String> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.0.lock().unwrap().entry(name).or_default())
    }

    fn of(&self, key: &str) -> u64 {
        self.0
            .lock()
            .unwrap()
            .get(key)
            .unwrap_or_else(|| panic!("no {key} in {self:?}"))
            .0
            .load(Ordering::SeqCst)
    }
}

impl Recorder for Ledger {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.tally(key))
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.tally(key))
    }
}

#[tokio::test]
async fn everything_is_counted_and_no_name_is_a_label() {
    let ledger = Ledger::default();
    let stage = Stage::new();
    let backend: Arc<dyn Backend> = Arc::clone(&stage) as _;
    let locks = metrics::with_local_recorder(&ledger, || Locks::new(backend));
    let acquires =
        |outcome: &str| ledger.of(&format!("ringfence_acquires_total{{backend=stage,outcome={outcome}}}"));
    let of = |name: &str| ledger.of(&format!("ringfence_{name}{{backend=stage}}"));

    let held = locks.lock("secret-name").ttl(millis(1000)).acquire().await.unwrap();
    assert!(locks.lock("secret-name").ttl(millis(1000)).try_acquire().await.unwrap().is_none());
    locks.lock("secret-name").ttl(millis(1000)).wait(millis(5)).acquire().await.unwrap_err();
    stage.next(Call::Acquire, [Fate::Unreachable]);
    locks.lock("another").acquire().await.unwrap_err();
    assert_eq!(["granted", "busy", "wait_elapsed", "failed"].map(acquires), [1, 1, 1, 1]);

    eventually(async || of("renewal_lag_seconds") > 0).await;
    held.release().await.unwrap();
    let first = locks.lock("secret-name").acquire().await.unwrap();
    let next = tokio::spawn(locks.lock("secret-name").acquire());
    tokio::task::yield_now().await;
    first.release().await.unwrap();
    let next = soon(next).await.unwrap().unwrap();
    assert_eq!((of("handovers_total"), of("hold_seconds"), of("wait_seconds")), (1, 2, 3));

    locks.evict("secret-name", next.token().nonce()).await.unwrap();
    assert_eq!(of("lost_total"), 1);
    next.release().await.unwrap_err();
    assert_eq!(of("lost_total"), 1, "once for each lease");
    assert!(!format!("{ledger:?}").contains("secret-name"));
}
