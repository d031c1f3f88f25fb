use std::io::Write;
use std::path::{Path, PathBuf};

/// Names what a test must not skip: tools by name, or `all`.
const REQUIRE: &str = "RINGFENCE_REQUIRE";

/// Where tools of the administrator are, which an ordinary user's `PATH` may leave out.
const ADMIN_PATHS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The Debian packages of the tools that our tests use.
const PACKAGES: &[(&str, &str)] = &[
    ("cc", "build-essential"),
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("fsfreeze", "util-linux"),
    ("java", "default-jre-headless"),
    ("javac", "default-jdk-headless"),
    ("mariadbd", "mariadb-server-core"),
    ("mkfs.ext4", "e2fsprogs"),
    ("pgbouncer", "pgbouncer"),
    ("postgres", "postgresql"),
    ("redis-cli", "redis-tools"),
    ("script", "bsdutils"),
    ("sqlite3", "sqlite3"),
    ("umount", "mount"),
    ("xfs_io", "xfsprogs"),
];

/// Finds a tool on the `PATH`. Where it is not installed, says so on stderr as [`skip`] does, and what to install.
///
/// Panics when it is not installed and `RINGFENCE_REQUIRE` names it.
pub fn require(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(ADMIN_PATHS.map(PathBuf::from));
    let found = folders.map(|folder| folder.join(tool)).find(|file| is_executable(file));
    if found.is_none() {
        let package = PACKAGES.iter().find(|(name, _)| *name == tool).map_or(tool, |(_, package)| package);
        skip(tool, &format!("not found on the PATH; install it, as with: apt-get install {package}"));
    }
    found
}

/// Says on stderr that a test is skipped for want of something, past the capture of the test harness: what was skipped
/// must not look like what passed.
///
/// Panics when `RINGFENCE_REQUIRE` names the thing.
pub fn skip(what: &str, why: &str) {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    assert!(!is_required(&required, what), "{what} is required by {REQUIRE}={required}: {why}");
    writeln!(std::io::stderr(), "skipped: {what}: {why}").expect("stderr can be written to");
}

fn is_required(required: &str, what: &str) -> bool {
    required.split(',').map(str::trim).any(|name| name == "all" || name == what)
}

fn is_executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_is_required_is_named_or_all() {
        for (required, what, expected) in [
            ("", "flock", false),
            ("all", "flock", true),
            ("mount,flock", "flock", true),
            ("mount, flock", "flock", true),
            ("mount", "flock", false),
            ("flock2", "flock", false),
        ] {
            assert_eq!(is_required(required, what), expected, "{required:?} and {what:?}");
        }
    }

    #[test]
    fn a_tool_that_is_there_is_found() {
        let sh = require("sh").expect("every Unix has a shell");
        assert!(sh.is_absolute() && sh.ends_with("sh"), "{sh:?}");
    }

    /// Runs the test below in a process of its own, because it reads the environment.
    fn require_nonsense(required: &str) -> (bool, String) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "require::tests::child_requires_nonsense", "--ignored"])
            .env(REQUIRE, required)
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    }

    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn child_requires_nonsense() {
        assert_eq!(require("no-such-tool-anywhere"), None);
    }

    #[test]
    fn a_missing_tool_is_a_visible_skip_or_a_failure() {
        let (passed, said) = require_nonsense("");
        assert!(passed && said.contains("skipped: no-such-tool-anywhere: not found"), "{said}");
        let (passed, said) = require_nonsense("mount,no-such-tool-anywhere");
        assert!(!passed && said.contains("no-such-tool-anywhere is required"), "{said}");
        let (passed, said) = require_nonsense("all");
        assert!(!passed && said.contains("no-such-tool-anywhere is required"), "{said}");
    }
}
