use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

use ringfence_testkit::PATIENCE;

/// An HTTP server on a port of 127.0.0.1 that keeps what it is sent, and answers as the test has it.
///
/// It runs on threads of its own, so that a test may block. Dropping it does not end them: they go with the test's process.
#[derive(Debug)]
pub struct Hook {
    port: u16,
    kept: Arc<Kept>,
}

/// A request, in the order in which they were answered.
#[derive(Clone, Debug)]
pub struct Posted {
    /// As in `POST /orders`.
    pub request: String,
    /// By their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// What was sent.
    pub body: Vec<u8>,
    /// What it was answered with.
    pub status: u16,
}

#[derive(Debug, Default)]
struct Kept {
    posted: Mutex<Vec<Posted>>,
    changed: Condvar,
}

/// What is asked for each answer: a status, or `None` for no answer at all.
type Answer = dyn FnMut(&Posted) -> Option<u16> + Send;

impl Hook {
    /// Starts it. `answer` is asked for each request, one at a time.
    pub fn start(answer: impl FnMut(&Posted) -> Option<u16> + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let kept = Arc::<Kept>::default();
        let (shared, answer) = (Arc::clone(&kept), Arc::new(Mutex::new(Box::new(answer) as Box<Answer>)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, answer) = (Arc::clone(&shared), Arc::clone(&answer));
                // A client that goes away ends its thread.
                thread::spawn(move || serve(&stream, &kept, &answer));
            }
        });
        Self { port, kept }
    }

    /// One that takes everything.
    pub fn taking_everything() -> Self {
        Self::start(|_| Some(204))
    }

    /// As in `http://127.0.0.1:11042`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What was sent so far.
    pub fn posted(&self) -> Vec<Posted> {
        self.kept.lock().clone()
    }

    /// Blocks until what was sent is so, and returns it. Panics when it is not so in time.
    #[track_caller]
    pub fn until(&self, what: &str, mut is_so: impl FnMut(&[Posted]) -> bool) -> Vec<Posted> {
        let posted = self.kept.lock();
        let (posted, wait) = self
            .kept
            .changed
            .wait_timeout_while(posted, PATIENCE, |posted| !is_so(posted))
            .expect("no thread panics with it");
        assert!(!wait.timed_out(), "not within {PATIENCE:?}: {what}; {} were sent", posted.len());
        posted.clone()
    }
}

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Vec<Posted>> {
        self.posted.lock().expect("no thread panics with it")
    }
}

fn serve(stream: &TcpStream, kept: &Kept, answer: &Mutex<Box<Answer>>) -> Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(mut posted) = read(&mut reader)? {
        let status = (answer.lock().expect("no answer panics"))(&posted);
        posted.status = status.unwrap_or(0);
        kept.lock().push(posted);
        kept.changed.notify_all();
        let Some(status) = status else {
            // Until the client gives up.
            reader.read_exact(&mut [0])?;
            return Ok(());
        };
        let body = if status == 204 { "" } else { "said" };
        let length =
            if status == 204 { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        (&mut &*stream).write_all(format!("HTTP/1.1 {status} Status\r\n{length}\r\n{body}").as_bytes())?;
    }
    Ok(())
}

/// A request; `None` at the end of the connection.
fn read(reader: &mut impl BufRead) -> Result<Option<Posted>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let request = line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Posted { request, headers, body, status: 0 }))
}
