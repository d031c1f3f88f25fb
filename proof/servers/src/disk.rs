use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::run;
use crate::require::{require, skip};

/// The tools that it takes, in the order of their use.
const TOOLS: [&str; 4] = ["mkfs.ext4", "mount", "xfs_io", "umount"];

/// A file system of a test's own, in a file, whose power can be cut: what was synced is there afterwards, what was not is
/// gone.
///
/// Dropping it unmounts it, whatever uses it still.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mounted_on: PathBuf,
    _folder: TempDir,
}

impl Disk {
    /// One of this size that is not mounted yet, and whose root everybody may enter. `None`, and said as [`skip`] does, where
    /// this machine does not let us cut the power of a file system.
    pub fn new(megabytes: u64) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip("power cut", "only root can mount a file system");
            return None;
        }
        for tool in TOOLS {
            require(tool)?;
        }
        let folder = TempDir::new().expect("a temporary directory");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
        let (image, mounted_on) = (folder.path().join("image"), folder.path().join("disk"));
        fs::create_dir(&mounted_on).expect("a temporary directory can be written to");
        let file = File::create(&image).expect("a temporary file can be written");
        file.set_len(megabytes << 20).expect("a file may be sparse");
        run(tool("mkfs.ext4").arg("-q").arg(&image));
        Some(Self { image, mounted_on, _folder: folder })
    }

    /// Where it is mounted, or will be.
    pub fn path(&self) -> &Path {
        &self.mounted_on
    }

    /// Mounts it; after a power cut, with what had been synced.
    pub fn mount(&self) {
        run(tool("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mounted_on));
    }

    /// Unmounts it. Nobody may have a file of it open.
    pub fn unmount(&self) {
        run(tool("umount").arg(&self.mounted_on));
    }

    /// Shuts it down without flushing anything, the journal included. Whatever is done with its files fails, until it has been
    /// unmounted and is mounted again.
    pub fn cut_power(&self) {
        run(tool("xfs_io").args(["-x", "-c", "shutdown"]).arg(&self.mounted_on));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whatever state the test ended in, nothing of it stays mounted.
        let _ = tool("umount").args(["--lazy", "--quiet"]).arg(&self.mounted_on).output();
    }
}

fn tool(name: &str) -> Command {
    Command::new(require(name).expect("it was looked for first"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_power_cut_leaves_what_was_synced_and_nothing_else() {
        let Some(disk) = Disk::new(64) else { return };
        disk.mount();
        let [synced, unsynced] = ["synced", "unsynced"].map(|name| {
            let path = disk.path().join(name);
            let mut file = File::create(&path).unwrap();
            file.write_all(name.as_bytes()).unwrap();
            if name == "synced" {
                file.sync_all().unwrap();
            }
            path
        });
        disk.cut_power();
        disk.unmount();
        disk.mount();
        assert_eq!(fs::read(synced).unwrap(), b"synced");
        assert_eq!(fs::read(unsynced).unwrap_or_default(), b"", "it was never synced");
        disk.unmount();
    }
}
