//! Bad input: a clear error before anything happens, the same for every verb and every backend.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::support::{HOLD, Store};

/// Every verb that takes a name, with the name last.
const VERBS: [&[&str]; 6] = [
    &["run", "-n", "--"],
    &["hold", "-n", "--"],
    &["show", "--"],
    &["evict", "--yes", "--"],
    &["record", "get", "--"],
    &["record", "put", "--token", "256.1", "--"],
];

#[test]
fn a_name_that_is_none_is_refused_before_anything_happens() {
    let store = Store::new();
    let long = "x".repeat(256);
    let rows = [
        ("", "must not be empty"),
        (long.as_str(), "at most 255 bytes"),
        ("line\nbreak", "control characters"),
        ("\u{1b}[2J", "control characters"),
        ("c1\u{9b}", "control characters"),
        ("\u{7f}", "control characters"),
    ];
    for url in [store.url(), "memory:".to_owned()] {
        for (name, why) in rows {
            for verb in VERBS {
                let mut args = vec!["--url", &url];
                args.extend(verb);
                args.push(name);
                if verb[0] == "run" {
                    args.push("true");
                }
                let done = store.ringfence(&args).with_code(64).saying(why);
                assert!(done.stdout.is_empty(), "{done:?}");
                assert!(!done.stderr.trim_end().contains(char::is_control), "{done:?}");
            }
        }
    }
    assert!(!store.path("store").exists(), "nothing happened, not even a store was made");
}

#[test]
fn a_name_that_is_not_utf_8_is_refused() {
    let store = Store::new();
    let name = OsStr::from_bytes(b"\xff\xfe");
    store.ringfence([OsStr::new("show"), name]).with_code(64).saying("UTF-8");
}

#[test]
fn strange_names_are_names_and_do_not_collide() {
    let store = Store::new();
    let longest = "x".repeat(255);
    let names = [
        ".",
        "..",
        "../..",
        "/",
        "//",
        "a/",
        "a//b",
        "/etc/passwd",
        "{}",
        "{a}b",
        "*",
        "?",
        "%2e",
        "-x",
        "--",
        "$(id)",
        "'; DROP TABLE locks; --",
        " ",
        "a b",
        "é",
        "e\u{301}",
        "ο",
        "o",
        "K",
        "\u{212a}",
        "\u{202e}abc",
        "a\u{200b}",
        "\\u{202e}",
        longest.as_str(),
    ];
    for name in names {
        // Every one inside of all before it: if two were one lock, the inner one would be busy.
        let done = store.ringfence(["run", "-n", "--", name, "printenv", "RINGFENCE_LOCK"]).with_code(0);
        assert_eq!(done.stdout.strip_suffix('\n'), Some(name));
    }
    let mut nested: Vec<&str> = Vec::new();
    for name in &names {
        nested.extend(["run", "-n", "--", name, env!("CARGO_BIN_EXE_ringfence")]);
    }
    nested.extend(["ls", "--json"]);
    let listed = store.ringfence(nested).with_code(0).json();
    let mut listed: Vec<_> =
        listed.as_array().unwrap().iter().map(|lock| lock["name"].as_str().unwrap()).collect();
    let mut wanted = names.to_vec();
    wanted.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, wanted);
}

#[test]
fn names_that_begin_with_a_dash_stand_behind_two_dashes() {
    let store = Store::new();
    store.ringfence(["show", "-x"]).with_code(64);
    assert_eq!(store.ringfence(["show", "--", "-x"]).with_code(0).stdout, "-x is free\n");
    for args in [&["run", "--", "-x", "echo", "hi"][..], &["run", "--", "-x", "--", "echo", "hi"]] {
        assert_eq!(store.ringfence(args).with_code(0).stdout, "hi\n");
    }
}

#[test]
fn what_hides_is_shown() {
    let store = Store::new();
    let name = "a\u{202e}b\u{200b}";
    let holder = store.run_script(["--label", "l\u{2066}", "--metadata", "m\n\u{1b}[31m", name], HOLD);
    for args in [&["show", name][..], &["ls"], &["evict", name], &["run", "-n", name, "true"]] {
        let done = store.ringfence(args);
        let said = done.stdout + &done.stderr;
        assert!(said.contains("a\\u{202e}b\\u{200b}"), "{said}");
        assert!(said.contains("l\\u{2066}"), "{said}");
        assert!(
            !said.contains(|c: char| c != '\n' && c.is_control() || "\u{202e}\u{200b}\u{2066}".contains(c))
        );
    }
    assert!(store.ringfence(["show", name]).stdout.contains("metadata   m\\u{a}\\u{1b}[31m\n"));
    let json = store.ringfence(["show", "--json", name]);
    assert!(json.stdout.is_ascii(), "{json:?}");
    assert_eq!(json.json()["holders"][0]["metadata"], "m\n\u{1b}[31m", "and reads back the same");
    drop(holder);
}

#[test]
fn an_unknown_flag_or_verb_names_the_nearest_and_hides_nothing() {
    let store = Store::new();
    store.ringfence(["run", "--nonblok", "a", "true"]).with_code(64).saying("'--nonblock'");
    store.ringfence(["shwo", "a"]).with_code(64).saying("'show'");
    store.ringfence(["man", "recrd"]).with_code(64).saying("did you mean \"record\"?");
    for flags in [&[][..], &["--json"]] {
        let args = [&["\u{1b}]0;pwned\u{7}\u{202e}"], flags].concat();
        let done = store.ringfence(args).with_code(64).saying("\\u");
        assert!(
            !done.stderr.replace('\n', "").contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{done:?}"
        );
    }
}

#[test]
fn a_ttl_has_a_unit_and_a_range() {
    let store = Store::new();
    for ttl in ["0s", "99ms", "25h", "584y", "18446744073709551615s", "18446744073709551616s"] {
        store.ringfence(["run", "--ttl", ttl, "a", "--", "true"]).with_code(64).saying(ttl);
    }
    for ttl in ["", "30", "-1s", "-5", "1.5", "NaN", "inf", "1e3s", "soon"] {
        store.ringfence(["run", "--ttl", ttl, "a", "--", "true"]).with_code(64).saying("with a unit");
    }
    for ttl in ["100ms", "24h", "1m 30s", "100000001ns"] {
        store.ringfence(["run", "--ttl", ttl, "a", "--", "true"]).with_code(0);
    }
    let url = format!("{}?ttl=30", store.url());
    store.ringfence(["run", "--url", &url, "a", "--", "true"]).with_code(64).saying("the parameter ttl");
    assert!(store.state("a")["holders"].as_array().unwrap().is_empty());
}

#[test]
fn a_wait_is_seconds_or_a_duration() {
    let store = Store::new();
    for wait in [
        "",
        "-1",
        "-0.5",
        "NaN",
        "nan",
        "inf",
        "1e999",
        "0x10",
        "1.2.3",
        "soon",
        "99999999999999999999",
        "2y",
    ] {
        store.ringfence(["run", "-w", wait, "a", "--", "true"]).with_code(64).saying("--wait");
    }
    for wait in ["0", "1", ".5", "0.25", "31536000", "250ms", "1m 30s"] {
        store.ringfence(["run", "-w", wait, "a", "--", "true"]).with_code(0);
    }
}

#[test]
fn permits_codes_and_conflicting_flags_are_checked() {
    let store = Store::new();
    for permits in ["0", "-1", "65537", "4294967296", "many"] {
        store.ringfence(["run", "--permits", permits, "a", "--", "true"]).with_code(64);
    }
    for code in ["256", "-1", "x"] {
        store.ringfence(["run", "-E", code, "a", "--", "true"]).with_code(64);
    }
    for flags in [["-n", "-w1"], ["-s", "-x"], ["-s", "-e"], ["--permits=2", "-s"], ["--permits=2", "-x"]] {
        store
            .ringfence(["run", flags[0], flags[1], "a", "--", "true"])
            .with_code(64)
            .saying("cannot be used with");
    }
    store.ringfence(["run", "--metadata", &"x".repeat(1025), "a", "true"]).with_code(64).saying("1024");
    store.ringfence(["run", "--label", "", "a", "true"]).with_code(64).saying("label");
}

#[test]
fn a_url_names_what_is_wrong_with_it_and_what_is_near() {
    let store = Store::new();
    for (url, hint) in [
        ("", "no scheme"),
        ("/var/lib/locks", "did you mean local:/var/lib/locks?"),
        ("locl:", "did you mean local:?"),
        ("carrier-pigeon:", "scheme"),
        ("local:/tmp/x?tto=1s", "did you mean \"ttl\"?"),
        ("local:/tmp/x?ttl=1s&ttl=2s", "twice"),
        ("local://host/tmp/x", "host"),
        ("local:some/dir", "absolute"),
        ("local:..", "absolute"),
        ("memory:/x", "memory:"),
    ] {
        store.ringfence(["--url", url, "ls"]).with_code(64).saying(hint);
        store.ringfence(["run", "a", "true", "--url", url]).with_code(0);
        let done = store.command(["ls"]).env("RINGFENCE_URL", url).output().unwrap();
        assert_eq!(done.status.code(), Some(64), "the environment is read as strictly: {url}");
    }
}

#[test]
fn a_token_has_one_form() {
    let store = Store::new();
    for token in [
        "",
        "1",
        "1.",
        ".1",
        "18446744073709551616.1",
        "9223372036854775808.1",
        "+1.1",
        "-1.1",
        "01.1",
        "1.01",
        "1.1 ",
    ] {
        store.ringfence(["record", "put", "--token", token, "a"]).with_code(64).saying("token");
    }
    for holder in ["", "x", "0", "1.2.3", "10000000000000000"] {
        store.ringfence(["evict", "--yes", "--holder", holder, "a"]).with_code(64);
    }
    store.ringfence(["record", "put", "a"]).with_code(64).saying("--token");
}

#[test]
fn url_and_json_stand_before_or_after_the_verb() {
    let store = Store::new();
    let other = Store::new();
    let _holder = other.run_script(["a"], HOLD);
    for args in [["--url", &other.url(), "--json", "ls"], ["ls", "--json", "--url", &other.url()]] {
        assert_eq!(store.ringfence(args).with_code(0).json()[0]["name"], "a");
    }
    assert_eq!(store.ringfence(["--json", "ls"]).with_code(0).stdout, "[]\n");
    assert_eq!(store.ringfence(["record", "get", "a", "--url", &other.url()]).code, Some(1));
}

#[test]
fn a_log_filter_that_is_none_is_refused() {
    let store = Store::new();
    let done = store.command(["ls"]).env("RINGFENCE_LOG", "=,=").output().unwrap();
    assert_eq!(done.status.code(), Some(64));
    let done = store.command(["run", "a", "true"]).env("RINGFENCE_LOG", "trace").output().unwrap();
    assert!(done.status.success() && !done.stderr.is_empty() && done.stdout.is_empty());
}
