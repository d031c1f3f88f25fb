//! Dependencies point one way: `apps → ringfence → backends → core`.

use std::collections::BTreeSet;
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand};

/// What the packages of one room may depend on inside the house.
struct Rule {
    room: &'static str,
    may_see: &'static [&'static str],
    tests_may_see: &'static [&'static str],
    reason: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        room: "apps",
        may_see: &["ringfence", "fences"],
        tests_may_see: &["proof"],
        reason: "a program sees the hall, which re-exports what users need of core, and the fences; its tests may see proof",
    },
    Rule {
        room: "ringfence",
        may_see: &["backends", "core"],
        tests_may_see: &[],
        reason: "the hall stands on core and on the backends that its features name",
    },
    Rule {
        room: "backends",
        may_see: &["core", "tls"],
        tests_may_see: &["proof", "ringfence"],
        reason: "a backend knows the contract, and TLS, and nothing above or beside it; its tests may see proof and the hall",
    },
    Rule {
        room: "fences",
        may_see: &["core"],
        tests_may_see: &["proof", "ringfence"],
        reason: "a fence checks tokens and knows no lock service; its tests may see proof and the hall",
    },
    Rule {
        room: "tls",
        may_see: &["core"],
        tests_may_see: &[],
        reason: "what backends share of TLS knows none of them",
    },
    Rule { room: "core", may_see: &[], tests_may_see: &[], reason: "core is what everybody else depends on" },
    Rule {
        room: "proof",
        may_see: EVERYTHING,
        tests_may_see: EVERYTHING,
        reason: "a proof may see everything",
    },
    Rule {
        room: "bench",
        may_see: EVERYTHING,
        tests_may_see: EVERYTHING,
        reason: "a benchmark may see everything",
    },
    Rule {
        room: "xtask",
        may_see: &["ringfence"],
        tests_may_see: &[],
        reason: "the chores read what the backends promise, from the hall",
    },
];

const EVERYTHING: &[&str] =
    &["apps", "ringfence", "backends", "fences", "tls", "core", "proof", "bench", "xtask"];

/// One package of the house depends on another. Both are folders, as in `backends/local`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Edge {
    from: String,
    to: String,
    /// Whether only its tests do.
    tests_only: bool,
}

/// What is wrong with an edge, if anything is.
fn objection(edge: &Edge) -> Option<String> {
    let Edge { from, to, tests_only } = edge;
    let room = |folder: &str| folder.split('/').next().unwrap_or_default().to_owned();
    let Some(rule) = RULES.iter().find(|rule| rule.room == room(from)) else {
        return Some(format!("{from} is in no room that xtask/tests/dependencies.rs knows: give it a rule"));
    };
    // A package whose tests turn its own features on depends on itself.
    let allowed = from == to && *tests_only
        || rule.may_see.contains(&room(to).as_str())
        || *tests_only && rule.tests_may_see.contains(&room(to).as_str());
    let how = if *tests_only { "dev-depends" } else { "depends" };
    (!allowed).then(|| format!("{from} {how} on {to}, but {}", rule.reason))
}

/// The edges between the packages of this workspace.
fn edges() -> BTreeSet<Edge> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace");
    let metadata = MetadataCommand::new()
        .current_dir(root)
        .no_deps()
        .exec()
        .expect("cargo metadata reads the workspace");
    let folder = |path: &cargo_metadata::camino::Utf8Path| {
        path.strip_prefix(&metadata.workspace_root).map_or_else(|_| path.to_string(), ToString::to_string)
    };
    let mut edges = BTreeSet::new();
    for package in &metadata.packages {
        let from = folder(package.manifest_path.parent().expect("a manifest is in a folder"));
        for dependency in &package.dependencies {
            let Some(path) = &dependency.path else { continue };
            let tests_only = dependency.kind == DependencyKind::Development;
            edges.insert(Edge { from: from.clone(), to: folder(path), tests_only });
        }
    }
    edges
}

#[test]
fn dependencies_point_one_way() {
    let edges = edges();
    let expected = Edge { from: "ringfence".to_owned(), to: "core".to_owned(), tests_only: false };
    assert!(edges.contains(&expected), "the hall depends on core, but these were found: {edges:?}");
    let objections: Vec<String> = edges.iter().filter_map(objection).collect();
    assert!(objections.is_empty(), "ARCHITECTURE.md forbids:\n{}", objections.join("\n"));
}

#[test]
fn every_other_direction_is_refused() {
    let edge =
        |from: &str, to: &str, tests_only| Edge { from: from.to_owned(), to: to.to_owned(), tests_only };
    for (forbidden, reason) in [
        (edge("core", "backends/memory", false), "core is what everybody else depends on"),
        (edge("core", "proof/testkit", true), "core is what everybody else depends on"),
        (edge("backends/local", "ringfence", false), "a backend knows the contract"),
        (edge("backends/local", "backends/memory", true), "a backend knows the contract"),
        (edge("backends/local", "proof/testkit", false), "a backend knows the contract"),
        (edge("fences/http", "backends/local", false), "a fence checks tokens"),
        (edge("apps/cli", "core", false), "a program sees the hall, which"),
        (edge("ringfence", "apps/cli", false), "the hall stands on core"),
        (edge("ringfence", "tls", false), "the hall stands on core"),
        (edge("tls", "backends/local", false), "knows none of them"),
        (edge("xtask", "backends/local", false), "the chores read"),
        (edge("attic", "core", false), "give it a rule"),
        (edge("core", "/elsewhere", false), "core is what everybody else depends on"),
    ] {
        let objection = objection(&forbidden).unwrap_or_else(|| panic!("{forbidden:?} was let through"));
        assert!(objection.contains(&forbidden.from) && objection.contains(reason), "{objection}");
    }
    for allowed in [
        edge("apps/cli", "ringfence", false),
        edge("apps/cli", "fences/http", false),
        edge("ringfence", "backends/local", false),
        edge("backends/local", "ringfence", true),
        edge("backends/local", "core", false),
        edge("backends/local", "proof/testkit", true),
        edge("backends/redis", "tls", false),
        edge("fences/http", "core", false),
        edge("proof/testkit", "core", false),
        edge("bench", "backends/local", false),
        edge("xtask", "ringfence", false),
    ] {
        assert_eq!(objection(&allowed), None);
    }
}
