use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::port::Port;
use crate::process::run;
use crate::redis::{Instance, LEASH};
use crate::require::require;

/// Where Debian has the tables that a server needs for itself, as SQL.
const TABLES: &str = "/usr/share/mysql";

/// What keeps a server small: a test needs nothing of the sizes that its files have otherwise.
const SMALL: [&str; 5] = [
    "--innodb-autoextend-increment=1",
    "--innodb-buffer-pool-size=16M",
    "--innodb-data-file-path=ibdata1:1M:autoextend",
    "--innodb-log-file-size=4M",
    "--innodb-temp-data-file-path=ibtmp1:1M:autoextend",
];

/// A real MariaDB server on a port of 127.0.0.1, with an empty database `shop` and nobody else on it.
///
/// It takes about 300 ms to start, so that every test has its own. Dropping it kills it, whatever state it is in; it ends with the
/// test's process too, however that ends.
#[derive(Debug)]
pub struct MariaDb {
    _instance: Instance,
    port: Port,
    _folder: TempDir,
}

impl MariaDb {
    /// Starts one with these settings beside its usual ones, as `["--innodb-lock-wait-timeout=1"]`, and returns when it accepts
    /// connections. `None`, and said as [`skip`](crate::skip) does, where MariaDB is not installed.
    ///
    /// Panics, with what the server said, when it does not start.
    pub async fn start(settings: &[&str]) -> Option<Self> {
        let program = require("mariadbd")?;
        let (port, folder) = (Port::claim(), TempDir::new().expect("a temporary directory"));
        let data = folder.path().join("data");
        run(Command::new("cp").arg("-a").arg(template(&program)).arg(&data));
        let mut command = Command::new("sh");
        // It speaks on stderr.
        command.args(["-c", LEASH, "sh", "-c", r#"exec "$0" "$@" 2>&1"#]).arg(program).args(own(&data));
        command.arg(format!("--port={}", port.number())).arg("--bind-address=127.0.0.1");
        for file in ["socket", "pid-file"] {
            command.arg(format!("--{file}={}", folder.path().join(file).display()));
        }
        command.args(settings);
        let instance = Instance::start(command, "ready for connections").await;
        Some(Self { _instance: instance, port, _folder: folder })
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The URL of its user `root`, who needs no password and may do everything, as in `mysql://root@127.0.0.1:11042/shop`.
    pub fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}/shop", self.port())
    }
}

/// The arguments of every server on this data: no file of the machine's settings is read, and it runs as whoever we are.
fn own(data: &Path) -> Vec<String> {
    let user = Command::new("id").arg("-un").output().expect("we have a name").stdout;
    let mut arguments = vec![
        "--no-defaults".to_owned(),
        format!("--user={}", String::from_utf8_lossy(&user).trim_end()),
        format!("--datadir={}", data.display()),
        "--skip-name-resolve".to_owned(),
    ];
    arguments.extend(SMALL.map(str::to_owned));
    arguments
}

/// The data of a server that has never run, to be copied: made once for each version, because it takes longer than everything
/// else that a server does to start.
fn template(program: &Path) -> PathBuf {
    let version = Command::new(program).arg("--version").output().expect("mariadbd starts").stdout;
    let version = String::from_utf8_lossy(&version);
    let version = version.split_whitespace().nth(2).expect("mariadbd says its version").to_owned();
    let target =
        Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the workspace").join("target");
    let templates = target.join("mariadb");
    let template = templates.join(format!("{version}-of-{}", rustix::process::geteuid().as_raw()));
    if !template.exists() {
        fs::create_dir_all(&templates).expect("the target folder can be written to");
        // Nobody sees half of one. If somebody else was quicker, theirs is as good.
        let folder = TempDir::new_in(&templates).expect("the target folder can be written to");
        let data = folder.path().join("data");
        fs::create_dir(&data).expect("a temporary directory can be written to");
        let mut sql = "CREATE DATABASE mysql;\nUSE mysql;\n".to_owned();
        for file in ["mysql_system_tables", "mysql_performance_tables", "mysql_system_tables_data"] {
            let path = Path::new(TABLES).join(file).with_extension("sql");
            sql += &fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
        sql += "CREATE DATABASE shop;\n";
        let script = folder.path().join("bootstrap.sql");
        fs::write(&script, sql).expect("a temporary file can be written");
        let script = File::open(script).expect("it was written");
        run(Command::new(program).args(own(&data)).arg("--bootstrap").stdin(script));
        let _ = fs::rename(data, &template);
    }
    template
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn it_greets_and_goes_with_its_owner() {
        let Some(server) = MariaDb::start(&[]).await else { return };
        let address = ("127.0.0.1", server.port());
        let mut greeting = [0; 32];
        TcpStream::connect(address).await.unwrap().read_exact(&mut greeting).await.unwrap();
        assert!(String::from_utf8_lossy(&greeting).contains("MariaDB"), "{greeting:?}");
        drop(server);
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
}
