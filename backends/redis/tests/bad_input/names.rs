//! Names that mean something to somebody else: patterns, hash tags, keys of ours.

use ringfence_core::{Backend, ErrorKind, ListQuery, LockName, Mode};
use ringfence_servers::RedisServer;

use crate::common::{connect, hold, name};

fn names() -> Vec<LockName> {
    let long = "n".repeat(255);
    let wide = "é".repeat(127) + "x";
    let mut names: Vec<_> = [
        "a",
        "a*",
        "a?",
        "a[b]",
        "a\\*",
        "*",
        "?",
        "[^a]",
        "{",
        "}",
        "{}",
        "{a}",
        "a{b}c",
        "}a{",
        "%7B",
        "%7b",
        "a:q",
        "a}:q",
        " ",
        "..",
        "-n",
        "SELECT 1",
        "锁",
        "🔒",
        "\u{202e}abc",
        "e\u{301}",
        "é",
        &long,
        &wide,
    ]
    .map(name)
    .to_vec();
    names.sort();
    names
}

#[tokio::test]
async fn names_are_names_whatever_they_contain() {
    let Some(server) = RedisServer::start().await else { return };
    for suffix in ["", "?keys=verbatim"] {
        let client = connect(&format!("{}{suffix}", server.url())).await.expect("a server that runs");
        for name in names() {
            // Were one of them in another one's way, it would not be granted.
            hold(&client, &name, Mode::Exclusive).await;
            let state = client.inspect(&name).await.expect("a state");
            assert_eq!((&state.name, state.holders.len()), (&name, 1), "{suffix}");
        }
        let page = client.list(ListQuery::default()).await.expect("a listing");
        let listed: Vec<_> = page.items.into_iter().map(|state| state.name).collect();
        assert_eq!(listed, names(), "{suffix}");
        for prefix in names() {
            let page = client.list(ListQuery::new(prefix.as_str())).await.expect("a listing");
            let listed: Vec<_> = page.items.into_iter().map(|state| state.name).collect();
            let mut begin = names();
            begin.retain(|name| name.as_str().starts_with(prefix.as_str()));
            assert_eq!(listed, begin, "names that begin with {prefix:?}{suffix}");
        }
        server.command(&["FLUSHALL"]).await;
    }
}

#[test]
fn a_name_that_would_break_a_line_or_has_no_end_is_refused() {
    for name in ["", "a\nb", "a\r\nDEL b", "\0", "\u{7f}", "\u{85}", &"n".repeat(256), &"é".repeat(128)] {
        let error = LockName::new(name).expect_err("it is no name");
        assert_eq!(error.kind(), ErrorKind::InvalidName, "{name:?}");
    }
}
