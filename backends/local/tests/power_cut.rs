//! The local store through power cuts: a file system of its own, shut down under the processes that use it, as if the
//! power had gone: what was synced is there afterwards, what was not is gone.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringfence_core::{
    AcquireRequest, Attempt, Backend, BootInstant, Clock as _, HolderInfo, LockName, Mode, RecordKey,
    SystemClock, Ttl, Wait,
};
use ringfence_local::LocalBackend;
use ringfence_servers::{Disk, Event, Taker};

const NAME: &str = "job";

/// How often the power goes.
const CUTS: usize = 6;

/// How many processes it hits.
const TAKERS: usize = 3;

/// How large the disk is.
const MEGABYTES: u64 = 64;

fn store(disk: &Disk) -> PathBuf {
    disk.path().join("store")
}

/// What the processes had been told by the time the power went.
#[derive(Debug, Default)]
struct Known {
    sequence: u64,
    version: u64,
    count: u64,
}

impl Known {
    fn learn(&mut self, event: &Event) {
        match event {
            Event::Held { token, .. } => self.sequence = self.sequence.max(token.sequence()),
            Event::Written { version, value, .. } => {
                self.version = self.version.max(version.0);
                self.count = self.count.max(value.parse().unwrap());
            }
            _ => {}
        }
    }
}

/// Without a record to write nothing but the range of numbers is ever synced.
#[tokio::test]
async fn sequences_survive_power_cuts_without_a_record() {
    let Some(disk) = Disk::new(MEGABYTES) else { return };
    let mut known = Known::default();
    for _ in 0..CUTS {
        disk.mount();
        let mut taker = Taker::start(&format!("local:{}", store(&disk).display()), NAME, &[]);
        for _ in 0..20 {
            let (token, _) = taker.holds().await;
            assert!(token.sequence() > known.sequence, "{token} after {known:?}");
            known.sequence = token.sequence();
            taker.releases().await;
            taker.tell("acquire");
        }
        disk.cut_power();
        taker.kill();
        taker.last_events().await.iter().for_each(|event| known.learn(event));
        disk.unmount();
    }
}

#[tokio::test]
async fn sequences_and_records_survive_power_cuts() {
    let Some(disk) = Disk::new(MEGABYTES) else { return };
    let mut known = Known::default();
    for cut in 0..CUTS {
        disk.mount();
        let before = check(&store(&disk), &mut known).await;
        let url = format!("local:{}", store(&disk).display());
        let mut takers: Vec<Taker> =
            (0..TAKERS).map(|_| Taker::start(&url, NAME, &["--cycles", "1000000000"])).collect();
        // Each cut comes at another moment of somebody's work.
        for _ in 0..20 + 7 * cut {
            let event = takers[cut % TAKERS].event("goes on", |event| Some(event.clone())).await;
            known.learn(&event);
        }
        // A name of its own: ext4 writes out at once what replaces a file.
        let unsynced = disk.path().join(format!("unsynced-{cut}"));
        std::fs::write(&unsynced, "never synced").unwrap();
        let goes = SystemClock::new().now();
        disk.cut_power();
        for mut taker in takers {
            taker.kill();
            let events = taker.last_events().await;
            events.iter().filter(|event| !is_written_after(event, goes)).for_each(|event| known.learn(event));
        }
        disk.unmount();
        assert!(known.version > before, "the processes wrote nothing before cut {cut}: {known:?}");
        disk.mount();
        let kept = std::fs::read(&unsynced).unwrap_or_default();
        assert!(kept.is_empty(), "what was not synced is there: this was no power cut");
        disk.unmount();
    }
    disk.mount();
    check(&store(&disk), &mut known).await;
    disk.unmount();
}

/// Whether it is a write that was confirmed when the power was going already. A sync that ends then may say that all is well: ext4 takes
/// a transaction that it gave up for one that was done before. No process lives that long without power.
fn is_written_after(event: &Event, instant: BootInstant) -> bool {
    matches!(event, Event::Written { at, .. } if *at >= instant)
}

/// The store is there, its record holds at least what was confirmed, and the next sequence is above all that were granted.
/// Returns the record's version.
async fn check(store: &Path, known: &mut Known) -> u64 {
    let backend = LocalBackend::open(store, Arc::new(SystemClock::new())).unwrap();
    let name = LockName::new(NAME).unwrap();
    let record = backend.records().read(&RecordKey::of(name.clone())).await.unwrap();
    let (version, count) = record.map_or((0, 0), |record| {
        (record.version.0, std::str::from_utf8(&record.value).unwrap().parse().unwrap())
    });
    assert!(version >= known.version && count >= known.count, "version {version}, {count} of {known:?}");
    let holder = HolderInfo::new("test", "host", 1).unwrap();
    let request = AcquireRequest::new(name, Mode::Exclusive, Ttl::DEFAULT, Wait::No, holder);
    let Attempt::Granted(lease) = backend.acquire(request).await.unwrap() else {
        panic!("the dead hold the lock");
    };
    let sequence = lease.token.sequence();
    assert!(sequence > known.sequence, "sequence {sequence} after {known:?}");
    known.sequence = sequence;
    backend.release(&[lease.key]).await.unwrap();
    drop(backend);
    // Its task ends, and with it the last descriptor on the disk, when the runtime comes to it.
    tokio::task::yield_now().await;
    version
}
