//! The gate before an HTTP server, beside that server without it, and beside a plain reverse proxy.
//!
//! Upstream, subject and load share the cores of this machine, as a gate does that stands beside its resource. So a request costs
//! every subject what the upstream and the load take as well, and nothing is added up that would not be there without it.

mod load;
mod subject;
mod upstream;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub(crate) use load::Load;
pub(crate) use upstream::Upstream;

use crate::contest::Contest;
use crate::gate::load::Outcome;
use crate::gate::subject::{Gate, Server, nginx};
use crate::redis::server::Server as Redis;
use crate::report::{Figures, Goal, Report, per_second};

const UPSTREAM: &str = "upstream alone";
const NGINX: &str = "nginx";

/// How often a new holder comes, where tokens rise.
const RISES_EVERY: Duration = Duration::from_millis(50);

/// How a gate is asked.
struct Case {
    subject: &'static str,
    url: String,
    is_alone: bool,
    rises: bool,
}

pub(crate) fn measure(report: &mut Report, directory: &Path, rounds: usize, length: Duration) {
    let Some(program) = subject::ringfence() else { return };
    let place = tempfile::tempdir_in(directory).expect("a directory");
    let local = format!("local:{}", place.path().join("store").display());
    let redis = Redis::start().map(|redis| (format!("redis://127.0.0.1:{}", redis.port()), redis));
    let case = |subject, url: &str| Case { subject, url: url.to_owned(), is_alone: false, rises: false };
    let mut cases = vec![
        case("gate, local", &local),
        Case { rises: true, ..case("gate, local, tokens rise", &local) },
        Case { is_alone: true, ..case("gate, local, alone", &local) },
    ];
    if let Some((redis, _)) = &redis {
        cases.extend([
            case("gate, redis", redis),
            Case { rises: true, ..case("gate, redis, tokens rise", redis) },
            Case { is_alone: true, ..case("gate, redis, alone", redis) },
        ]);
    }
    let upstream = upstream::start();
    let proxy = nginx(place.path(), upstream.port());
    for connections in [1, 16, 64] {
        let title = format!("gate, {connections} connections");
        let load = |server: &Server, holds: Option<(&str, bool)>| load(server, connections, holds, length);
        let gates: Vec<_> = cases
            .iter()
            .map(|case| {
                let (program, load, upstream) = (&program, &load, &upstream);
                let run = move || {
                    let gate = Gate { program, url: &case.url, is_alone: case.is_alone };
                    load(&gate.start(upstream.port()), Some((&case.url, case.rises)))
                };
                (case.subject, run)
            })
            .collect();
        let alone = || load(&upstream, None);
        let plain = || load(proxy.as_ref().expect("it is among the subjects only if it is there"), None);
        let mut subjects: Vec<(&'static str, &dyn Fn() -> Figures)> = vec![(UPSTREAM, &alone)];
        if proxy.is_some() {
            subjects.push((NGINX, &plain));
        }
        subjects.extend(gates.iter().map(|(subject, run)| (*subject, run as &dyn Fn() -> Figures)));
        report.interleave(&title, rounds, &subjects);

        for Case { subject, .. } in &cases {
            if proxy.is_some() {
                report.ratio(&title, "requests/s", subject, NGINX, Goal::AtLeast(0.7));
            }
            // Where requests are more than the cores can do, how long one takes says only how many there are.
            let goal = match connections {
                1 => Goal::AtMost(300.0),
                _ => Goal::None("the cores are busy"),
            };
            report.difference(&title, "p50 us", subject, UPSTREAM, goal);
        }
        if proxy.is_some() {
            report.difference(&title, "p50 us", NGINX, UPSTREAM, Goal::None("for comparison"));
        }
    }
}

/// Sends requests to one server for a while: with the token of a lock of this URL, which may change hands, or with any.
fn load(server: &Server, connections: usize, holds: Option<(&str, bool)>, length: Duration) -> Figures {
    let mut process = Command::new(std::env::current_exe().expect("this program"));
    process.args(["gate-load", "--port", &server.port().to_string()]);
    process.args(["--connections", &connections.to_string(), "--millis", &length.as_millis().to_string()]);
    if let Some((url, rises)) = holds {
        process.args(["--url", url]);
        if rises {
            process.args(["--rises-every-ms", &RISES_EVERY.as_millis().to_string()]);
        }
    }
    let contest = Contest::prepare(vec![process]);
    let before = server.processor_time();
    let [outcome]: [Outcome; 1] = contest.go().outcomes().try_into().expect("there is one process");
    let spent = server.processor_time().saturating_sub(before);
    let Outcome { mut passed, all, refused, lasted } = outcome;
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
    let counts = (all as f64, refused as f64);
    Figures::from([
        ("requests/s", per_second(passed.len(), lasted)),
        ("p50 us", passed.micros_at(0.5)),
        ("p99 us", passed.micros_at(0.99)),
        ("processor us", spent.as_secs_f64() * 1e6 / counts.0),
        ("refused", counts.1),
    ])
}
