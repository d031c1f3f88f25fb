//! The resource: a small HTTP server that reads what it is sent and answers in a line.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::process::Command;

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ringfence_servers::Process;
use tokio::net::TcpListener;

use crate::gate::subject::Server;

const ANSWER: &str = "{\"order\":42,\"state\":\"charged\",\"amount\":1999,\"currency\":\"EUR\"}\n";

/// The server, as a process of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Upstream {}

impl Upstream {
    /// Says its port, and serves until it is killed.
    pub(crate) fn run() {
        // One thread, which leaves the other core to the subject and the load.
        crate::small_runtime().block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
            println!("{}", listener.local_addr().expect("it is bound").port());
            loop {
                let (stream, _) = listener.accept().await.expect("a client");
                stream.set_nodelay(true).expect("a connection");
                tokio::spawn(
                    http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)),
                );
            }
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // A client that goes away in the middle is none of this server's business.
    let _ = request.into_body().collect().await;
    Ok(Response::new(Full::from(ANSWER)))
}

/// Starts it.
pub(crate) fn start() -> Server {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.arg("gate-upstream");
    let mut process = Process::start(command).expect("a process");
    let port = crate::small_runtime().block_on(process.line()).expect("it says its port");
    Server::new(process, port.parse().expect("a port"))
}
