//! Readers, who hold together, and writers, who hold alone.

use ringfence_testkit::Verdict;

use super::scene::{BESIDE_THE_TTL, LATE, Scene, appends, line};
use super::{Fault, Reach};

const READER: &[&str] = &["--mode", "shared"];
const WRITER: &[&str] = &["--mode", "exclusive"];

/// A writer is struck: readers hold in time, together, and the next writer after the last of them. What the first one writes late is
/// refused.
pub(super) async fn read_on(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    let mut first = scene.victim(fault, WRITER).await;
    let (early, _) = first.process.holds().await;
    appends(&mut first.process, "append", "the first").await;
    let mut readers = [scene.start(READER), scene.start(READER)];
    for reader in &mut readers {
        reader.asks().await;
    }

    let struck = first.strike();
    if fault != Fault::Killed {
        first.process.tell(&format!("append {LATE}"));
    }
    for reader in &mut readers {
        let (token, began) = reader.holds().await;
        scene.in_time(&format!("a reader after a writer that was {fault:?}"), struck, began, BESIDE_THE_TTL);
        assert!(token.sequence() > early.sequence(), "{token} after {early}");
    }
    let mut second = scene.start(WRITER);
    second.asks().await;
    let mut until = struck;
    for reader in &mut readers {
        until = until.max(reader.gives_back().await);
    }
    let (token, began) = second.holds().await;
    assert!(began >= until, "a writer from {began:?} beside a reader until {until:?}");
    appends(&mut second, "append", "the second").await;

    first.goes_on();
    if fault != Fault::Killed {
        first.is_refused().await;
        first.process.loses().await;
    }
    let expected = line(early, "the first") + &line(token, "the second");
    assert_eq!(scene.effects(&scene.lock()).await, expected, "{fault:?}");
    Ok(())
}

/// One of two readers is struck: its hold is over in time, and a writer holds when the other one has given back, not before. The first
/// one finds out, and what it would write is refused.
pub(super) async fn write_after(reach: &dyn Reach, fault: Fault) -> Verdict {
    let scene = Scene::new(reach).await;
    let mut first = scene.victim(fault, READER).await;
    let (early, _) = first.process.holds().await;
    let mut beside = scene.start(READER);
    let _ = beside.holds().await;
    let mut writer = scene.start(WRITER);
    writer.asks().await;

    let struck = first.strike();
    if fault != Fault::Killed {
        first.process.tell(&format!("append {LATE}"));
    }
    let gone = scene.until_gone(early).await;
    scene.in_time(&format!("the end of a reader that was {fault:?}"), struck, gone, BESIDE_THE_TTL);
    let until = beside.gives_back().await;
    let (token, began) = writer.holds().await;
    assert!(began >= until, "a writer from {began:?} beside a reader until {until:?}");
    assert!(token.sequence() > early.sequence(), "{token} after {early}");
    appends(&mut writer, "append", "the writer").await;

    first.goes_on();
    if fault != Fault::Killed {
        first.is_refused().await;
        first.process.loses().await;
    }
    let effects = scene.effects(&scene.lock()).await;
    assert_eq!(effects, line(token, "the writer"), "{fault:?}");
    Ok(())
}
