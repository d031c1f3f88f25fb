//! What would break the promises of a store, looked at when somebody asks.

use ringfence_core::{Finding, Result};

use crate::directory::Directory;
use crate::segment::{self, Segment};
use crate::session;

/// File systems of this machine by their magic number, and whether one keeps its files through a boot.
const FILE_SYSTEMS: [(u32, &str, bool); 8] = [
    (0xef53, "ext4", true),
    (0x5846_5342, "XFS", true),
    (0x9123_683e, "Btrfs", true),
    (0x2fc1_2fc1, "ZFS", true),
    (0xf2f5_2010, "F2FS", true),
    (0x794c_7630, "overlay", true),
    (0x0102_1994, "tmpfs", false),
    (0x8584_58f6, "ramfs", false),
];

const OVERLAY: &str = "overlay";

/// Looks at an open store. `is_whole` is what it knows about itself.
pub(crate) fn examine(
    directory: &Directory,
    segment: &Segment,
    is_whole: Result<()>,
) -> Result<Vec<Finding>> {
    let mut findings = vec![
        store(segment, is_whole),
        place(directory)?,
        file_system(directory.file_system()?),
        free_space(directory.free_space()?, segment.has_room_for_next(directory)),
        sessions(directory)?,
    ];
    findings.extend(damaged(&directory.list(segment::DAMAGED)?));
    Ok(findings)
}

fn store(segment: &Segment, is_whole: Result<()>) -> Finding {
    match is_whole {
        Ok(()) => Finding::fine(
            "store",
            format!(
                "format {}, file {} of its log, which takes {} before the next one begins",
                segment::FORMAT,
                segment.number,
                mebibytes(segment.full_at)
            ),
        ),
        Err(error) => Finding::problem(
            "store",
            error.to_string(),
            "end the processes that use it, then do as it says; what they hold can no longer be proven",
        ),
    }
}

/// What was true of the directory when it was opened may have changed since.
fn place(directory: &Directory) -> Result<Finding> {
    Ok(match directory.check() {
        Ok(()) => {
            let stat = directory.stat()?;
            Finding::fine(
                "directory",
                format!(
                    "{} belongs to user {}, with mode {:o}",
                    directory.path().display(),
                    stat.st_uid,
                    stat.st_mode & 0o7777
                ),
            )
        }
        Err(error) => Finding::problem(
            "directory",
            error.to_string(),
            "do as it says, and look at who changed it: processes that open the store from now on are refused",
        ),
    })
}

fn file_system(kind: u32) -> Finding {
    const ABOUT: &str = "file system";
    match FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == kind) {
        Some((_, OVERLAY, _)) => Finding::warning(
            ABOUT,
            "overlay, the layer of a container: other containers do not see the store, and it goes with this one",
            "mount a volume and name a directory on it, unless the locks are for this container only",
        ),
        Some((_, name, true)) => Finding::fine(ABOUT, *name),
        Some((_, name, false)) => Finding::warning(
            ABOUT,
            format!(
                "{name}, which is memory: a boot forgets the records and how far the sequences have come"
            ),
            "name a directory on a disk, unless nothing outside of the store checks the tokens",
        ),
        None => Finding::fine(ABOUT, format!("one of this machine that we have no name for ({kind:#x})")),
    }
}

fn free_space(free: u64, is_enough: bool) -> Finding {
    const ABOUT: &str = "free space";
    if is_enough {
        Finding::fine(ABOUT, mebibytes(free))
    } else {
        Finding::problem(
            ABOUT,
            format!(
                "{}, too little for the next file of the log: soon nothing will be granted",
                mebibytes(free)
            ),
            "make room on the disk",
        )
    }
}

fn sessions(directory: &Directory) -> Result<Finding> {
    let (alive, dead) = session::count(directory)?;
    let others = alive.saturating_sub(1);
    let left_behind = match dead {
        0 => String::new(),
        _ => format!("; {dead} have ended and are tidied away by the next one that opens it"),
    };
    Ok(Finding::fine("sessions", format!("{others} beside this one have the store open{left_behind}")))
}

fn damaged(numbers: &[String]) -> Option<Finding> {
    let names: Vec<_> = numbers.iter().map(|number| format!("{}{number}", segment::DAMAGED)).collect();
    (!names.is_empty()).then(|| {
        Finding::warning(
            "power cut",
            format!(
                "the power was lost under the store, and what it had not confirmed went with it: {}",
                names.join(", ")
            ),
            "nothing is missing that was confirmed; remove these files when you have looked at them",
        )
    })
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use ringfence_core::Severity;

    use super::*;

    #[test]
    fn memory_and_the_layer_of_a_container_are_no_disks() {
        let severity = |kind| file_system(kind).severity;
        assert_eq!((severity(0xef53), severity(0x1234)), (Severity::Fine, Severity::Fine));
        assert_eq!((severity(0x0102_1994), severity(0x794c_7630)), (Severity::Warning, Severity::Warning));
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_a_problem() {
        assert_eq!(free_space(10 << 30, true), Finding::fine("free space", "10240 MiB"));
        let full = free_space(1 << 20, false);
        assert!(full.severity == Severity::Problem && full.what.starts_with("1 MiB, too little"), "{full:?}");
    }

    #[test]
    fn what_a_power_cut_left_is_named() {
        assert_eq!(damaged(&[]), None);
        assert!(damaged(&["07".to_owned()]).unwrap().what.ends_with(": damaged-07"));
    }
}
