//! Spans and events. A test program of its own: a subscriber that is set while other threads log may miss what it is for.

use std::io;
use std::sync::{Arc, Mutex};

use ringfence::{Agreement, Locks};

#[path = "behaviour/stage.rs"]
#[expect(dead_code, reason = "this program needs little of it")]
mod stage;

#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Collects what this thread logs until the guard is dropped.
    fn collect(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn an_acquire_is_a_span() {
    let log = Log::default();
    let _guard = log.collect();
    let locks = Locks::connect("memory:").await.unwrap();
    let held = locks.lock("orders/42").shared().acquire().await.unwrap();
    assert!(locks.lock("orders/42").try_acquire().await.unwrap().is_none());
    let log = log.text();
    let granted = log.lines().find(|line| line.contains("granted")).unwrap();
    for part in ["ringfence.acquire", "name=orders/42", "mode=shared", "backend=memory:"] {
        assert!(granted.contains(part), "{granted}");
    }
    assert!(!granted.contains("attempts"), "nobody had to agree: {granted}");
    assert!(granted.contains(&held.token().to_string()), "{granted}");
    assert!(log.lines().any(|line| line.contains("mode=exclusive") && line.contains("busy")), "{log}");
}

#[tokio::test]
async fn the_span_says_what_it_took_for_several_nodes_to_agree() {
    let log = Log::default();
    let _guard = log.collect();
    let (locks, stage) = stage::staged();
    stage.agree(Agreement::new(4, 5, stage::millis(12), 3));
    let _held = locks.lock("orders/42").acquire().await.unwrap();
    let log = log.text();
    let granted = log.lines().find(|line| line.contains("granted")).unwrap();
    for part in ["answered=4", "nodes=5", "quorum_time=12ms", "attempts=3"] {
        assert!(granted.contains(part), "{granted}");
    }
}
