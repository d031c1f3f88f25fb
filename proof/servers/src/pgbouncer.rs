use std::fs;
use std::process::Command;

use tempfile::TempDir;

use crate::port::Port;
use crate::postgres::{Postgres, USER, folder_of_the_server, give_away, unprivileged};
use crate::redis::{Instance, LEASH};
use crate::require::require;

/// A real pgbouncer on a port of 127.0.0.1, before a server: its clients share few connections to that one.
///
/// Its settings are its own defaults otherwise. Dropping it kills it; it ends with the test's process too, however that ends.
#[derive(Debug)]
pub struct Pgbouncer {
    _instance: Instance,
    port: Port,
    _folder: TempDir,
}

impl Pgbouncer {
    /// Starts one that lends a connection to a client for a `session` or for a `transaction`, and returns when it accepts
    /// connections. `None`, and said as [`skip`](crate::skip) does, where it is not installed.
    ///
    /// It knows the user `postgres`, and believes everybody who says that he is.
    ///
    /// Panics, with what it said, when it does not start.
    pub async fn start(server: &Postgres, mode: &str) -> Option<Self> {
        let program = require("pgbouncer")?;
        let (port, folder) = (Port::claim(), folder_of_the_server());
        let [settings, users] = ["pgbouncer.ini", "users.txt"].map(|name| folder.path().join(name));
        let text = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={}\n\
             [pgbouncer]\n\
             pool_mode = {mode}\n\
             listen_addr = 127.0.0.1\n\
             listen_port = {}\n\
             unix_socket_dir =\n\
             auth_type = trust\n\
             auth_file = {}\n",
            server.port(),
            port.number(),
            users.display()
        );
        for (file, text) in [
            (&settings, text),
            (&users, format!("\"{USER}\" \"{}\"\n", server.password().unwrap_or_default())),
        ] {
            fs::write(file, text).expect("a temporary file can be written");
            give_away(file);
        }
        let unprivileged = unprivileged(&program);
        let mut command = Command::new("sh");
        // It speaks on stderr.
        command.args(["-c", LEASH, "sh", "-c", r#"exec "$0" "$@" 2>&1"#]).arg(unprivileged.get_program());
        command.args(unprivileged.get_args()).arg(settings);
        let instance = Instance::start(command, "process up").await;
        Some(Self { _instance: instance, port, _folder: folder })
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Its URL, as in `postgres://postgres@127.0.0.1:11042/postgres`.
    pub fn url(&self) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/postgres", self.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::PostgresOptions;

    #[tokio::test]
    async fn clients_share_a_connection_for_a_transaction_each_or_have_one_for_a_session() {
        const WHO: &str = "SELECT pg_backend_pid()";
        let Some(server) = PostgresOptions::new().password("it's").start().await else { return };
        for (mode, is_shared) in [("transaction", true), ("session", false)] {
            let Some(pooler) = Pgbouncer::start(&server, mode).await else { return };
            let (mut one, mut two) = (server.session_by(&pooler.url()), server.session_by(&pooler.url()));
            let (first, second) = (one.ask(WHO).await, two.ask(WHO).await);
            assert!(first.parse::<u32>().is_ok(), "{first}");
            assert_eq!(first == second, is_shared, "{mode}: {first} and {second}");
        }
    }
}
