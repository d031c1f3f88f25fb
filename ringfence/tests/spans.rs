//! Spans and events. A test program of its own: a subscriber that is set while other threads log may miss what it is for.

use std::io;
use std::sync::{Arc, Mutex};

use ringfence::Locks;

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

#[tokio::test]
async fn an_acquire_is_a_span() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let locks = Locks::connect("memory:").await.unwrap();
    let held = locks.lock("orders/42").shared().acquire().await.unwrap();
    assert!(locks.lock("orders/42").try_acquire().await.unwrap().is_none());
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let granted = log.lines().find(|line| line.contains("granted")).unwrap();
    for part in ["ringfence.acquire", "name=orders/42", "mode=shared", "backend=memory:"] {
        assert!(granted.contains(part), "{granted}");
    }
    assert!(granted.contains(&held.token().to_string()), "{granted}");
    assert!(log.lines().any(|line| line.contains("mode=exclusive") && line.contains("busy")), "{log}");
}
