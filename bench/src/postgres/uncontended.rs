//! Acquire and release, each task a name of its own.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::server::Server;
use super::{COMPARED, DISTRIBUTED_LOCK, RECIPES, Recipe};
use crate::network::figures::uncontended as figures;
use crate::network::subject::{Subject, installed, interleave};
use crate::report::{Figures, Goal, Report};

const PEERS: &[Subject] = &[
    #[cfg(feature = "peers")]
    super::SQLX,
    DISTRIBUTED_LOCK,
];

/// How many connections `pgbench` is given; the best one counts.
const CONNECTIONS: [u32; 5] = [1, 4, 16, 32, 64];

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    let Some(server) = Server::start() else { return };
    let peers = installed(PEERS);
    for tasks in [1, 16, 128] {
        let case = format!("postgres, uncontended, {tasks} tasks");
        let take = |subject: &Subject| {
            server.forget();
            figures(subject.take_own(&[server.port()], tasks, 1, length), length)
        };
        let limits = RECIPES.each_ref().map(|recipe| {
            let (server, script) = (&server, recipe.script);
            (recipe.limit, move || limit(server, script, length))
        });
        let limits: Vec<(&'static str, &dyn Fn() -> Figures)> =
            limits.iter().map(|(name, limit)| (*name, limit as &dyn Fn() -> Figures)).collect();
        let mut subjects: Vec<&Subject> =
            RECIPES.iter().flat_map(|recipe| [&recipe.ours, &recipe.raw]).collect();
        subjects.extend(&peers);
        // What it can do does not depend on the number of our tasks, and everything is compared with it where there are most.
        interleave(report, &case, rounds, &subjects, take, if tasks == 128 { &limits } else { &[] });

        for Recipe { ours, raw, limit, pairs_by_limit, .. } in &RECIPES {
            if tasks == 1 {
                report.ratio(&case, "p50 us", ours.name, raw.name, Goal::AtMost(1.25));
            }
            report.ratio(&case, "pairs/s", ours.name, raw.name, COMPARED);
            if tasks == 128 {
                report.ratio(&case, "pairs/s", ours.name, limit, *pairs_by_limit);
            }
            for peer in &peers {
                let goal = match (tasks, peer.name == DISTRIBUTED_LOCK.name) {
                    (128, true) => Goal::AtLeast(2.0),
                    _ => COMPARED,
                };
                report.ratio(&case, "pairs/s", ours.name, peer.name, goal);
            }
        }
    }
}

/// What the server can do when the client costs next to nothing and has as many connections as are good for it.
fn limit(server: &Server, script: &str, length: Duration) -> Figures {
    server.forget();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(script.as_bytes()).expect("a script");
    let runs =
        CONNECTIONS.map(|connections| (pgbench(server, file.path(), connections, length), connections));
    let (pairs, connections) =
        runs.into_iter().max_by(|(one, _), (other, _)| one.total_cmp(other)).expect("it ran");
    Figures::from([("pairs/s", pairs), ("connections", f64::from(connections))])
}

/// The scripts that so many connections run in a second.
fn pgbench(server: &Server, script: &Path, connections: u32, length: Duration) -> f64 {
    let output = Command::new(server.program("pgbench"))
        .args(["-h", "127.0.0.1", "-p", &server.port().to_string(), "-U", "postgres"])
        .args(["-n", "-M", "prepared", "-c", &connections.to_string(), "-j", &connections.min(2).to_string()])
        .args(["-T", &length.as_secs().max(1).to_string(), "-f"])
        .arg(script)
        .arg("postgres")
        .output()
        .expect("pgbench");
    let said = String::from_utf8_lossy(&output.stdout);
    // Where a statement fails it prints a rate as well.
    let said = if output.status.success() { said } else { "a run that failed: ".into() };
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    rate.unwrap_or_else(|| panic!("no rate in {said}{}", String::from_utf8_lossy(&output.stderr)))
}
