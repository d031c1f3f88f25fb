//! Cases run to their end, and each step of a pattern takes as many round trips as its documentation says.

use std::collections::BTreeMap;
use std::process::Command;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Report {
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    case: String,
    subject: String,
    /// What could not be measured is no number.
    medians: BTreeMap<String, Option<f64>>,
}

/// A short run of the program.
fn bench(arguments: &[&str]) -> Vec<Row> {
    let place = tempfile::tempdir().unwrap();
    let figures = place.path().join("figures.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringfence-bench"));
    command.args(["--rounds", "1", "--millis", "300", "--json"]).arg(&figures).args(arguments);
    command.arg("--directory").arg(place.path());
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
    let report: Report = serde_json::from_slice(&std::fs::read(figures).unwrap()).unwrap();
    report.rows
}

/// By subject, what one task needs for it on this backend. Nothing where the server is not installed, which was said.
fn round_trips(backend: &str, case: &str) -> Option<BTreeMap<String, f64>> {
    let rows = bench(&["--on", backend, "--only", case]);
    let of_one = rows.iter().filter(|row| row.case.ends_with(", 1 tasks"));
    let counted = of_one.map(|row| (row.subject.clone(), row.medians["round trips"].unwrap()));
    Some(counted.collect()).filter(|counted: &BTreeMap<_, _>| !counted.is_empty())
}

#[test]
fn backends_without_a_server_run_every_step() {
    let rows = bench(&["--on", "memory,local", "--only", "once,idempotency"]);
    let subjects: Vec<&str> = rows.iter().map(|row| &*row.subject).collect();
    let (once, keys) = (
        ["acquire and release", "a run", "nothing is due"],
        ["acquire and release", "new", "done", "in flight"],
    );
    // On each of the two, by one task and by several.
    let expected = [[&once[..]; 4].concat(), [&keys[..]; 4].concat()].concat();
    assert_eq!(subjects, expected);
    for Row { case, subject, medians } in &rows {
        assert!(medians["/s"] > Some(0.0), "{case}: {subject} was never done: {medians:?}");
    }
}

#[test]
fn the_gate_and_what_it_stands_beside_pass_requests_on() {
    let rows = bench(&["--only", "gate"]);
    // At least the gate's own program is built whenever all of this project's tests are.
    for Row { case, subject, medians } in &rows {
        assert!(medians["requests/s"] > Some(0.0), "{case}: {subject} passed nothing on: {medians:?}");
        let may_refuse = subject.ends_with("tokens rise");
        assert!(may_refuse || medians["refused"] == Some(0.0), "{case}: {subject}: {medians:?}");
    }
}

#[test]
fn redis_is_asked_as_often_as_is_documented() {
    asked_as_documented("redis");
}

#[test]
fn etcd_is_asked_as_often_as_is_documented() {
    asked_as_documented("etcd");
}

#[test]
fn zookeeper_is_asked_as_often_as_is_documented() {
    asked_as_documented("zookeeper");
}

#[test]
fn postgres_is_asked_as_often_as_is_documented() {
    asked_as_documented("postgres-leases");
}

/// As the guides say, where a record is opened and written as the page of the backend does.
fn asked_as_documented(backend: &str) {
    let [run, nothing_is_due, new, in_flight] = match backend {
        "etcd" => [9, 1, 7, 2],
        "zookeeper" => [15, 1, 18, 3],
        _ => [8, 2, 5, 2],
    };
    asked(backend, "once", &[("acquire and release", 2), ("a run", run), ("nothing is due", nothing_is_due)]);
    asked(backend, "idempotency", &[("new", new), ("done", 1), ("in flight", in_flight)]);
}

fn asked(backend: &str, case: &str, expected: &[(&str, u32)]) {
    let Some(counted) = round_trips(backend, case) else { return };
    // On a slow machine a lock of etcd is held for so long that its key is watched: a message to begin that, and more to end it. ZooKeeper
    // is pinged when it owes an answer for 20 ms. And what PostgreSQL prepares the first time is shared by few.
    let more = if backend == "redis" { 0.0 } else { 3.0 };
    for (step, count) in expected {
        let (counted, count) = (counted[*step], f64::from(*count));
        assert!(
            (count - 0.5..count + more + 0.5).contains(&counted),
            "{backend}: {step}: {count} are documented, and {counted} were counted"
        );
    }
}

#[test]
fn members_share_partitions_again_after_one_joins_and_after_it_leaves() {
    let rows =
        bench(&["--on", "local,redis", "--only", "partitions", "--members", "2", "--partitions", "16"]);
    assert!(!rows.is_empty());
    for Row { case, subject, medians } in &rows {
        for name in ["moved in vain", "two owners", "lost"] {
            assert_eq!(medians[name], Some(0.0), "{case}: {subject}: {name}: {medians:?}");
        }
        for name in ["start s", "join s", "leave s"] {
            assert!(medians[name] > Some(0.0), "{case}: {subject}: {name}: {medians:?}");
        }
    }
}
