use std::fmt;

use crate::command::{Result, is_ci, program, run as run_command, succeeds};

/// Install what the tests need and this machine lacks.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Say what would be installed, and install nothing.
    #[arg(long)]
    dry_run: bool,
}

/// A program that the tests use.
struct Tool {
    name: &'static str,
    /// Succeeds where the program is there.
    detect: &'static [&'static str],
    source: Source,
    /// What is skipped, or fails, without it.
    purpose: &'static str,
    /// Whether nothing at all can be tested without it.
    vital: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// A package of Debian and its relatives.
    Apt(&'static str),
    /// A crate with a program.
    Cargo(&'static str),
}

/// A line for each program; the servers of the network backends join here.
const TOOLS: &[Tool] = &[
    Tool {
        name: "a C compiler",
        detect: &["cc", "--version"],
        source: Source::Apt("build-essential"),
        purpose: "links every program",
        vital: true,
    },
    Tool {
        name: "cargo-nextest",
        detect: &["cargo", "nextest", "--version"],
        source: Source::Cargo("cargo-nextest"),
        purpose: "runs the tests",
        vital: true,
    },
    Tool {
        name: "mkfs.ext4",
        detect: &["mkfs.ext4", "-V"],
        source: Source::Apt("e2fsprogs"),
        purpose: "makes the file systems whose power is cut, or whose disk hangs",
        vital: false,
    },
    Tool {
        name: "mount",
        detect: &["mount", "--version"],
        source: Source::Apt("mount"),
        purpose: "mounts them, where root runs the tests",
        vital: false,
    },
    Tool {
        name: "xfs_io",
        detect: &["xfs_io", "-V"],
        source: Source::Apt("xfsprogs"),
        purpose: "cuts their power",
        vital: false,
    },
    Tool {
        name: "fsfreeze",
        detect: &["fsfreeze", "--version"],
        source: Source::Apt("util-linux"),
        purpose: "makes a disk hang under a command that holds a lock",
        vital: false,
    },
    Tool {
        name: "script",
        detect: &["script", "--version"],
        source: Source::Apt("bsdutils"),
        purpose: "gives the command-line tests a terminal",
        vital: false,
    },
];

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.purpose)
    }
}

pub(crate) fn run(args: Args) -> Result {
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !is_there(tool)).collect();
    if missing.is_empty() {
        eprintln!(
            "setup: everything is there: {}",
            TOOLS.iter().map(|t| t.name).collect::<Vec<_>>().join(", ")
        );
        return Ok(());
    }
    for tool in &missing {
        eprintln!("setup: missing: {tool}");
    }
    let mut packages: Vec<&str> = Vec::new();
    let mut crates: Vec<&str> = Vec::new();
    for tool in &missing {
        match tool.source {
            Source::Apt(package) => packages.push(package),
            Source::Cargo(name) => crates.push(name),
        }
    }
    if args.dry_run {
        if !packages.is_empty() {
            println!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
        }
        for name in crates {
            println!("cargo install --locked {name}");
        }
        return Ok(());
    }
    if !packages.is_empty() {
        install_packages(&packages);
    }
    for name in crates {
        run_command(program("cargo").args(["install", "--locked", name]))?;
    }
    judge(missing.into_iter().filter(|tool| !is_there(tool)), is_ci())
}

fn is_there(tool: &Tool) -> bool {
    let (name, arguments) = tool.detect.split_first().expect("a detection is a command");
    // An ordinary user's PATH may leave out where the administrator's tools are.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    succeeds(program(name).args(arguments).env("PATH", path))
}

/// Installs by apt, or says why not: whether that matters is for [`judge`] to say.
fn install_packages(packages: &[&str]) {
    let by_hand = format!("install them by hand: {}", packages.join(" "));
    if !succeeds(program("apt-get").arg("--version")) {
        eprintln!("setup: there is no apt-get on this machine; {by_hand}");
        return;
    }
    if !is_root() {
        eprintln!("setup: only root may install packages; {by_hand}, or run `sudo cargo xtask setup`");
        return;
    }
    let outcome = run_command(program("apt-get").args(["update", "--quiet"])).and_then(|()| {
        run_command(
            program("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "--yes", "--quiet", "--no-install-recommends"])
                .args(packages),
        )
    });
    if let Err(error) = outcome {
        eprintln!("setup: {error}; {by_hand}");
    }
}

fn is_root() -> bool {
    program("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// What is still missing is an error where nothing runs without it, and where every test is `required` to run;
/// elsewhere its tests say that they are skipped.
fn judge<'a>(missing: impl Iterator<Item = &'a Tool>, required: bool) -> Result {
    let (fatal, skipped): (Vec<_>, Vec<_>) = missing.partition(|tool| tool.vital || required);
    for tool in skipped {
        eprintln!("setup: without {tool}: its tests are skipped");
    }
    if fatal.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = fatal.iter().map(ToString::to_string).collect();
    Err(format!("still missing: {}", names.join("; ")).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(detect: &'static [&'static str], vital: bool) -> Tool {
        Tool { name: "it", detect, source: Source::Apt("it"), purpose: "a test", vital }
    }

    #[test]
    fn a_tool_is_there_when_its_detection_succeeds() {
        assert!(is_there(&tool(&["true"], false)));
        assert!(!is_there(&tool(&["false"], false)));
        assert!(!is_there(&tool(&["/no/such/program"], false)));
    }

    #[test]
    fn a_missing_tool_is_fatal_where_it_is_vital_or_required() {
        let (vital, other) = (tool(&["false"], true), tool(&["false"], false));
        assert!(judge([&other].into_iter(), false).is_ok());
        for (missing, required) in [(&vital, false), (&other, true)] {
            let error = judge([missing].into_iter(), required).unwrap_err().to_string();
            assert_eq!(error, "still missing: it (a test)");
        }
    }
}
