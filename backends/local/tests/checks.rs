//! What an examination says about a store.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use ringfence_core::{Backend, Finding, Severity, SystemClock};
use ringfence_local::LocalBackend;
use tempfile::TempDir;

fn open(directory: &Path) -> LocalBackend {
    LocalBackend::open(directory, Arc::new(SystemClock::new())).unwrap()
}

async fn finding(store: &LocalBackend, about: &str) -> Option<Finding> {
    store.examine().await.unwrap().into_iter().find(|finding| finding.about == about)
}

#[track_caller]
fn assert_finding(finding: Option<Finding>, severity: Severity, says: &str) {
    let finding = finding.expect("it is looked at");
    assert!(finding.severity == severity && finding.what.contains(says), "{severity}, {says:?}: {finding:?}");
}

#[tokio::test]
async fn a_store_says_where_it_is_and_who_has_it_open() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store");
    let (store, _other) = (open(&path), open(&path));
    for (about, says) in [
        ("store", "format 3, file 1"),
        ("directory", "with mode 700"),
        ("free space", "MiB"),
        ("sessions", "1 beside"),
    ] {
        assert_finding(finding(&store, about).await, Severity::Fine, says);
    }
    assert_eq!(finding(&store, "power cut").await, None);
    assert!(finding(&store, "file system").await.is_some());
}

#[tokio::test]
async fn a_directory_that_others_may_enter_since_is_a_problem() {
    let directory = TempDir::new().unwrap();
    let store = open(directory.path());
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert_finding(
        finding(&store, "directory").await,
        Severity::Problem,
        "others can write to it (mode 777)",
    );
}

#[tokio::test]
async fn a_store_that_was_removed_since_is_a_problem() {
    let directory = TempDir::new().unwrap();
    let store = open(directory.path());
    for entry in fs::read_dir(directory.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_finding(finding(&store, "store").await, Severity::Problem, "it was removed while in use");
}

#[tokio::test]
async fn what_a_power_cut_left_is_a_warning() {
    let directory = TempDir::new().unwrap();
    let store = open(directory.path());
    fs::write(directory.path().join("damaged-0000000000000001"), "").unwrap();
    assert_finding(finding(&store, "power cut").await, Severity::Warning, "damaged-0000000000000001");
}
