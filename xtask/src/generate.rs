use std::fmt::Write as _;
use std::fs;

use ringfence::{Claim, Guarantees};

use crate::command::{Result, root};
use crate::evidence::EVIDENCE;
use crate::messages::messages;

/// Write GUARANTEES.md, and the table of backends in README.md, from what the backends promise as data; and the messages of etcd
/// from its protocol.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail if a document says anything else than the code.
    #[arg(long)]
    pub(crate) check: bool,
}

const BEGIN: &str = "<!-- guarantees:begin -->\n";
const END: &str = "<!-- guarantees:end -->\n";

/// URLs that ask for other promises than their scheme's.
const VARIANTS: [(&str, &str); 3] = [
    ("local", "local:?fence=mark"),
    ("postgres", "postgres:?reclaim=connection"),
    ("postgres", "postgres:?recipe=advisory"),
];

/// What stands in the README's table: what decides which backend to take.
const README_COLUMNS: [&str; 4] = ["Who can contend", "Fencing tokens", "A killed holder", "Records"];

pub(crate) fn run(args: Args) -> Result {
    let backends = backends()?;
    let readme = fs::read_to_string(root().join("README.md"))?;
    let documents = [
        ("GUARANTEES.md", guarantees(&backends)?),
        ("README.md", with_table(&readme, &table(&backends)?)?),
        messages()?,
    ];
    for (name, wanted) in documents {
        let path = root().join(name);
        // A document that does not exist yet differs from every text.
        if fs::read_to_string(&path).is_ok_and(|text| text == wanted) {
            continue;
        }
        if args.check {
            return Err(format!("{name} is not what it is written from: run `cargo xtask gen`").into());
        }
        fs::write(path, wanted)?;
        eprintln!("gen: wrote {name}");
    }
    Ok(())
}

/// Every backend that is compiled in, by scheme, with what it promises.
fn backends() -> Result<Vec<(&'static str, Guarantees)>> {
    let schemes = ringfence::schemes().into_iter();
    schemes.map(|scheme| Ok((scheme, ringfence::guarantees_of(&format!("{scheme}:"))?))).collect()
}

/// The README with this table between the two marks.
fn with_table(readme: &str, table: &str) -> Result<String> {
    let parts = readme.split_once(BEGIN).and_then(|(head, rest)| Some((head, rest.split_once(END)?.1)));
    let (head, tail) =
        parts.ok_or("README.md has lost its two marks, guarantees:begin and guarantees:end")?;
    Ok(format!("{head}{BEGIN}{table}{END}{tail}"))
}

/// The README's table: one row for each backend, or for those that promise the same.
fn table(backends: &[(&str, Guarantees)]) -> Result<String> {
    let mut table = format!("| Backend | {} |\n", README_COLUMNS.join(" | "));
    writeln!(table, "|---|{}", "---|".repeat(README_COLUMNS.len()))?;
    let rows = alike(backends, |scheme, guarantees| {
        let promise = |about| {
            let claim = guarantees.claims().into_iter().find(|claim| claim.about == about);
            claim
                .map(|claim| claim.promise)
                .ok_or_else(|| format!("{scheme}: promises nothing about {about:?}"))
        };
        README_COLUMNS.into_iter().map(promise).collect::<std::result::Result<Vec<_>, _>>()
    });
    for (schemes, promises) in rows {
        writeln!(table, "| {} | {} |", in_code(&schemes), promises?.join(" | "))?;
    }
    Ok(table)
}

/// Those of which the same is to be said, with what that is, in the order in which they come.
fn alike<'a, Said: PartialEq>(
    backends: &'a [(&str, Guarantees)],
    what: impl Fn(&'a str, &'a Guarantees) -> Said,
) -> Vec<(Vec<&'a str>, Said)> {
    let mut groups: Vec<(Vec<&str>, Said)> = Vec::new();
    for (scheme, guarantees) in backends {
        let said = what(scheme, guarantees);
        match groups.iter_mut().find(|(_, other)| *other == said) {
            Some((schemes, _)) => schemes.push(scheme),
            None => groups.push((vec![scheme], said)),
        }
    }
    groups
}

/// Schemes, as a document names them.
fn in_code(schemes: &[&str]) -> String {
    let schemes: Vec<String> = schemes.iter().map(|scheme| format!("`{scheme}:`")).collect();
    schemes.join(", ")
}

/// GUARANTEES.md.
fn guarantees(backends: &[(&str, Guarantees)]) -> Result<String> {
    let mut text = PREFACE.to_owned();
    let sections = alike(backends, |scheme, guarantees| {
        let tests = guarantees.claims().iter().map(|claim| tests_of(scheme, claim.about)).collect::<Vec<_>>();
        (guarantees, tests)
    });
    for (schemes, (guarantees, _)) in sections {
        let claims = guarantees.claims();
        writeln!(text, "\n## {}\n\n{}\n", in_code(&schemes), stakes(guarantees))?;
        write_claims(&mut text, schemes[0], &claims)?;
        for (scheme, url) in VARIANTS.iter().filter(|(of, _)| schemes.contains(of)) {
            let mut others = ringfence::guarantees_of(url)?.claims();
            others.retain(|claim| !claims.contains(claim));
            writeln!(text, "\n## `{url}`\n\nAs `{scheme}:`, but for:\n")?;
            write_claims(&mut text, url, &others)?;
        }
    }
    Ok(text)
}

/// One row for each promise of a scheme, or of a URL that asks for others.
fn write_claims(text: &mut String, of: &str, claims: &[Claim]) -> Result {
    writeln!(text, "| What | Promise | Shown by |\n|---|---|---|")?;
    for Claim { about, promise, .. } in claims {
        let tests = tests_of(of, about);
        if tests.is_empty() {
            return Err(format!(
                "no test shows what {of} promises about {about:?}: name one in xtask/src/evidence.rs"
            )
            .into());
        }
        writeln!(text, "| {about} | {promise} | `{}` |", tests.join("`, `"))?;
    }
    Ok(())
}

/// The tests that show what a scheme, or a URL, promises about something.
fn tests_of(of: &str, about: &str) -> Vec<&'static str> {
    let rows = EVIDENCE.iter().filter(|(what, whose, _)| *what == about && whose.contains(&of));
    rows.flat_map(|(_, _, tests)| *tests).copied().collect()
}

fn stakes(guarantees: &Guarantees) -> &'static str {
    if guarantees.tokens_are_durable() {
        "Accepts `Stakes::Correctness`: its tokens outlive every fault named below."
    } else {
        "Refuses `Stakes::Correctness`: its tokens do not outlive every fault named below."
    }
}

/// What is true of every backend.
const PREFACE: &str = "\
# Guarantees

<!-- Written by `cargo xtask gen` from the `Guarantees` of each backend. Change those, then run it again. -->

## What no lock can promise

A process may be paused at any instruction: by SIGSTOP, by a virtual machine's host, by swapping, by a laptop's lid. If it
is paused for longer than its lease lives, somebody else gets the lock, and when it runs again it goes on with the very
next instruction as if nothing had happened. No lock service can prevent that, so none can promise that two holders never
act at once. What can be promised is a **lease** that ends, a **fencing token** that rises with every grant, and
**resources that refuse stale tokens**. The number that matters is: stale writes accepted = 0. A resource that does not
check the token gets less: exclusion as long as nobody is paused for longer than the lease has left.

## The words

A *lease* is what a backend grants: this lock name, this mode, to this holder, for this long; its *TTL* is how long it
lives without renewal. A *fencing token* is a sequence, which rises with every grant of the name, and a nonce, which tells
two holders apart that were given one number by a store that lost its memory. A *fence* is a resource's check that refuses
a token lower than the highest it has seen, its *mark*. A *record* is a small value kept by the backend itself behind such a
fence. A lease is *lost* when it is gone or can no longer be proven: the guard says so at the latest at its own deadline,
which counts from before the request was sent.

## How to read the tables

Each promise names the fault under which it holds; what is not named is not promised. The last column names the tests that
would fail without it. Those of the conformance suite run on every backend with the promise.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let readme = format!("head\n{BEGIN}old\n{END}tail\n");
        assert_eq!(with_table(&readme, "new\n").unwrap(), format!("head\n{BEGIN}new\n{END}tail\n"));
        assert!(with_table("no marks", "new\n").is_err());
    }

    #[test]
    fn every_promise_of_every_backend_has_its_row() {
        let backends = backends().unwrap();
        let text = guarantees(&backends).unwrap();
        for (scheme, guarantees) in &backends {
            let is_named = |line: &str| line.starts_with("## ") && line.contains(&format!("`{scheme}:`"));
            assert_eq!(text.lines().filter(|line| is_named(line)).count(), 1, "{scheme}");
            for claim in guarantees.claims() {
                assert!(text.contains(&claim.promise), "{scheme}: {}", claim.about);
            }
        }
    }

    #[test]
    fn every_line_of_evidence_is_about_a_promise() {
        let backends = backends().unwrap();
        for (about, schemes, _) in EVIDENCE {
            for of in *schemes {
                let scheme = VARIANTS.iter().find(|(_, url)| url == of).map_or(*of, |(scheme, _)| scheme);
                let backend = backends.iter().find(|(known, _)| *known == scheme);
                let (_, guarantees) = backend.unwrap_or_else(|| panic!("there is no backend {of}:"));
                assert!(guarantees.claims().iter().any(|claim| claim.about == *about), "{of}: {about}");
            }
        }
    }
}
