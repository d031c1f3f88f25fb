use std::path::Path;
use std::process::Command;

use ringfence_testkit::PATIENCE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::peers::python;
use crate::port::Port;
use crate::redis::{Instance, LEASH};

/// An object store that speaks S3 on a port of 127.0.0.1, with an empty bucket `bucket`: moto's, which compares ETags as S3 does, and
/// has S3's ETags, which are a hash of what is stored and of nothing else.
///
/// Dropping it kills it; it ends with the test's process too, however that ends.
#[derive(Debug)]
pub struct S3 {
    _instance: Instance,
    port: Port,
}

impl S3 {
    /// The bucket that it has.
    pub const BUCKET: &str = "bucket";

    /// Starts one, and returns when it accepts requests. `None`, and said as [`skip`](crate::skip) does, where moto is not installed.
    ///
    /// Panics, with what it said, when it does not start.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one that ignores the conditions of a put, as older servers do.
    pub async fn start_unconditional() -> Option<Self> {
        Self::start_with(&["unconditional"]).await
    }

    async fn start_with(arguments: &[&str]) -> Option<Self> {
        let python = python()?;
        let port = Port::claim();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/s3.py");
        let mut command = Command::new("sh");
        // It speaks of each request on stderr.
        command.args(["-c", LEASH, "sh", "-c", r#"exec "$0" "$@" 2>/dev/null"#]).arg(python.get_program());
        command.arg(script).arg(port.number().to_string()).args(arguments);
        let instance = Instance::start(command, "ready").await;
        let server = Self { _instance: instance, port };
        server.make_bucket().await;
        Some(server)
    }

    /// Its TCP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where it is, as in `http://127.0.0.1:11042`. It takes any key and secret.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    async fn make_bucket(&self) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port())).await.expect("it listens");
        let request =
            format!("PUT /{} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n", Self::BUCKET);
        stream.write_all(request.as_bytes()).await.expect("it reads");
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.expect("an answer in time").expect("it answers");
        assert!(answer.contains(" 200 "), "a bucket is made: {answer}");
    }
}
