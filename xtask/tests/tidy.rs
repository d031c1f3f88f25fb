//! What holds of every file and folder in the house.

#[path = "../src/evidence.rs"]
mod evidence;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What is left lying about is not done.
const LEFT_LYING: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];

/// What the tools make: no part of the house.
const MADE: [&str; 5] = [".git", "target", "fuzz/corpus", "fuzz/artifacts", "bench/results"];

/// Cargo's own names, which every crate has and ARCHITECTURE.md need not repeat.
const OF_CARGO: [&str; 4] = ["src", "tests", "benches", "examples"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every folder and every file of the house, as paths from its root.
fn walk() -> (Vec<String>, Vec<String>) {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    let mut unread = vec![PathBuf::new()];
    while let Some(folder) = unread.pop() {
        for entry in fs::read_dir(root().join(&folder)).expect("a folder can be listed") {
            let entry = entry.expect("a folder can be listed");
            let path = folder.join(entry.file_name());
            let name = path.to_str().expect("paths in the house are UTF-8").to_owned();
            if MADE.iter().any(|made| *made == name) || name.ends_with("/target") {
                continue;
            }
            if entry.file_type().expect("an entry has a type").is_dir() {
                folders.push(name);
                unread.push(path);
            } else {
                files.push(name);
            }
        }
    }
    (folders, files)
}

/// Every file of the house with this extension.
fn files(extension: &str) -> impl Iterator<Item = String> {
    walk()
        .1
        .into_iter()
        .filter(move |file| Path::new(file).extension().is_some_and(|found| found == extension))
}

#[test]
fn nothing_is_left_lying_about() {
    for file in walk().1 {
        // What is no text cannot hold a note.
        let Ok(text) = fs::read_to_string(root().join(&file)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if let Some(mark) = LEFT_LYING.iter().find(|mark| line.contains(**mark)) {
                panic!(
                    "{file}:{}: do it, or say in the changelog that it is missing, but leave no {mark}",
                    number + 1
                );
            }
        }
    }
}

#[test]
fn every_folder_is_in_the_architecture() {
    let architecture = text("ARCHITECTURE.md");
    for folder in walk().0.iter().filter(|folder| folder.matches('/').count() <= 1) {
        let last = folder.rsplit('/').next().unwrap_or(folder);
        let named =
            architecture.contains(&format!("`{folder}`")) || architecture.contains(&format!("`{folder}/`"));
        assert!(named || OF_CARGO.contains(&last), "ARCHITECTURE.md does not say what `{folder}` is for");
    }
}

#[test]
fn every_decision_is_listed() {
    let list = text("docs/adr/README.md");
    let decisions = walk().1.into_iter().filter_map(|file| file.strip_prefix("docs/adr/").map(str::to_owned));
    for decision in decisions.filter(|name| name != "README.md") {
        assert!(list.contains(&format!("]({decision})")), "docs/adr/README.md has no link to {decision}");
    }
}

#[test]
fn every_test_that_is_named_as_evidence_exists() {
    let sources: String = files("rs").map(|file| text(&file)).collect();
    for (about, _, tests) in evidence::EVIDENCE {
        for test in *tests {
            assert!(
                sources.contains(&format!("fn {test}(")),
                "no test is called {test}, which is to show {about:?}"
            );
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    for file in files("md") {
        let folder = root().join(&file).parent().expect("a file is in a folder").to_owned();
        for target in links(&text(&file)).into_iter().filter(|target| !target.contains("://")) {
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { root().join(&file) } else { folder.join(path) };
            assert!(path.exists(), "{file} links to {target}, which is not there");
            let is_page = path.extension().is_some_and(|extension| extension == "md");
            let is_there = heading.is_empty()
                || !is_page
                || anchors(&fs::read_to_string(&path).expect("a page is text")).contains(heading);
            assert!(is_there, "{file} links to {target}: the page is there, and has no such heading");
        }
    }
}

/// Where the links of a Markdown text lead.
fn links(text: &str) -> Vec<&str> {
    text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target).collect()
}

/// By what one links to the headings of a Markdown text: in lower case, with hyphens for spaces and without other punctuation.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut is_code = false;
    let is_heading = |line: &&str| {
        is_code ^= line.starts_with("```");
        !is_code && line.starts_with('#')
    };
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().chars();
        let kept = kept.filter(|kept| kept.is_alphanumeric() || [' ', '-', '_'].contains(kept));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    text.lines().filter(is_heading).map(anchor).collect()
}

#[test]
fn headings_are_found() {
    let text = "# One\n```sh\n# none\n```\n## A `?b=c` (d), e_f-g\n";
    assert_eq!(anchors(text), ["one", "a-bc-d-e_f-g"].map(str::to_owned).into());
}

#[test]
fn links_are_found() {
    assert_eq!(links("see [one](a.md) and\n[two](b/c.md#d), not (this)"), ["a.md", "b/c.md#d"]);
}
