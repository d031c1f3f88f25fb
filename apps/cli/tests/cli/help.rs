//! What people read before they do anything.

use insta::assert_snapshot;

use crate::support::Store;

#[test]
fn every_verb_has_its_help() {
    let store = Store::new();
    for verb in [
        &[][..],
        &["run"],
        &["hold"],
        &["ls"],
        &["show"],
        &["evict"],
        &["elect"],
        &["once"],
        &["partitions"],
        &["idempotent"],
        &["record"],
        &["record", "get"],
        &["record", "put"],
        &["fence"],
        &["fence", "show"],
        &["fence", "reset"],
        &["fence-table"],
        &["gate"],
        &["outbox"],
        &["outbox", "setup"],
        &["outbox", "relay"],
        &["outbox", "status"],
        &["outbox", "retry"],
        &["advise"],
        &["doctor"],
        &["setup"],
        &["guarantees"],
        &["completions"],
        &["man"],
    ] {
        let help = store.ringfence(verb.iter().copied().chain(["--help"])).with_code(0).stdout;
        assert_snapshot!(["help", &verb.join("-")].join("-").trim_end_matches('-'), help);
    }
}

#[test]
fn the_exit_codes_that_are_documented_are_those_there_are() {
    let store = Store::new();
    let help = store.ringfence(["--help"]).with_code(0).stdout;
    for code in [
        "0 ", "1 ", "64 ", "65 ", "69 ", "70 ", "74 ", "75 ", "76 ", "77 ", "78 ", "123 ", "124 ",
        "126 127 ", "128+n ",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(code)), "{code}");
    }
}

#[test]
fn guarantees_are_printed_without_connecting() {
    let store = Store::new();
    let all = store.ringfence(["guarantees"]).with_code(0).stdout;
    assert!(all.contains("local:\n  Who can contend     the processes of one machine\n"), "{all}");
    assert!(all.contains("memory:\n"), "{all}");
    let json = store.ringfence(["guarantees", "--json", "local:"]).with_code(0).json();
    let [local] = json.as_array().unwrap().as_slice() else { panic!("{json}") };
    assert_eq!((&local["scheme"], &local["guarantees"]["scope"]), (&"local".into(), &"machine".into()));
    assert!(local["claims"].as_array().unwrap().iter().any(|claim| claim["about"] == "Fencing tokens"));
    let by_mark = store.ringfence(["guarantees", "local:?fence=mark"]).with_code(0).stdout;
    assert!(by_mark.contains("below the record's mark") && !all.contains(&by_mark), "{by_mark}");
    store.ringfence(["guarantees", "locl:"]).with_code(64).saying("did you mean local:?");
    assert!(!store.path("store").exists());
}

#[test]
fn completions_are_scripts_that_their_shell_reads() {
    let store = Store::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = store.ringfence(["completions", shell]).with_code(0).stdout;
        assert!(script.contains("evict") && !script.contains("__exec"), "{shell}");
    }
    let script = store.ringfence(["completions", "bash"]).stdout;
    let read = std::process::Command::new("bash").args(["-n", "-c", &script]).status();
    assert!(read.is_ok_and(|status| status.success()));
}

#[test]
fn every_verb_has_its_manual_page() {
    let store = Store::new();
    for (verb, title) in [
        (&[][..], "ringfence"),
        (&["run"], "ringfence-run"),
        (&["record"], "ringfence-record"),
        (&["record", "put"], "ringfence-record-put"),
    ] {
        let page = store.ringfence(["man"].iter().chain(verb)).with_code(0).stdout;
        assert!(page.contains(&format!(".TH {title} 1")), "{page}");
    }
}
