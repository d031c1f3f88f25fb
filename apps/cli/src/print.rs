//! What people and scripts read: text in which nothing hides, JSON, tables.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::future::pending;
use std::io::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use ringfence::WallTime;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Prints a line to standard output, now.
pub(crate) fn line(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    line(&to_json(value))
}

/// Resolves when whoever read our standard output has gone, for one that prints rarely: writing would be the first to say so.
pub(crate) async fn unread() {
    #[expect(deprecated, reason = "its successor is unsafe; our standard output stays open")]
    let out = AsyncFd::with_interest(io::stdout(), Interest::ERROR);
    match out {
        Ok(out) if out.ready(Interest::ERROR).await.is_ok() => {}
        // A file has no reader that could go.
        _ => pending().await,
    }
}

/// Where messages go, and in which form: standard error, for people or as JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Messages {
    json: bool,
}

impl Messages {
    /// Messages in JSON, or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// What a person should know, and nothing that ends the program.
    pub(crate) fn note(self, text: &str) {
        self.write(&visible(text), || to_json(&Note { note: text }));
    }

    /// Why the program ends.
    pub(crate) fn error(self, text: &str, exit_code: u8) {
        self.write(&visible(text), || to_json(&Failed { error: text, exit_code }));
    }

    /// What is wrong with the command line, in several lines of our own with the user's words in them.
    pub(crate) fn usage(self, text: &str, exit_code: u8) {
        let lines: Vec<_> = text.split('\n').map(visible).collect();
        self.write(&lines.join("\n"), || to_json(&Failed { error: text, exit_code }));
    }

    fn write(self, text: &str, json: impl FnOnce() -> String) {
        let text = if self.json { json() } else { format!("ringfence: {text}") };
        // There is nobody left to tell that standard error is closed.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}

#[derive(Serialize)]
struct Note<'a> {
    note: &'a str,
}

#[derive(Serialize)]
struct Failed<'a> {
    error: &'a str,
    exit_code: u8,
}

/// The text with every character escaped that a terminal would obey or hide, line ends included.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    escape(text, hides, |character, out| write!(out, "\\u{{{:x}}}", u32::from(character)))
}

/// A value as JSON that is safe to show: what hides is escaped in the way of JSON, so it reads back the same.
fn to_json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("what we print has string keys and finite numbers");
    escape(&text, hides, |character, out| {
        character.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))
    })
    .into_owned()
}

fn escape(
    text: &str,
    which: impl Fn(char) -> bool,
    how: impl Fn(char, &mut String) -> std::fmt::Result,
) -> Cow<'_, str> {
    if !text.contains(&which) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if which(character) {
            how(character, &mut out).expect("a string takes all that is written to it");
        } else {
            out.push(character);
        }
    }
    out.into()
}

/// Whether a character moves the cursor, turns the direction of the text, or cannot be seen at all, so that two
/// different names would look the same.
fn hides(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A duration to read: whole seconds from one second on, milliseconds below.
pub(crate) fn duration(duration: Duration) -> String {
    let rounded = match duration.as_secs() {
        0 => Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX)),
        seconds => Duration::from_secs(seconds),
    };
    humantime::format_duration(rounded).to_string()
}

/// How long a lease lasts unless it is renewed: `None` for one that has no end of its own. No client of ours asks for years.
pub(crate) fn until_lapse(remaining: Duration) -> Option<String> {
    const YEARS: Duration = Duration::from_hours(10 * 365 * 24);
    (remaining < YEARS).then(|| duration(remaining))
}

/// A duration for JSON.
pub(crate) fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(u64::MAX)
}

/// A time of day, as in `2026-11-21T20:00:00Z`: with milliseconds where it has some.
pub(crate) fn time(time: WallTime) -> String {
    /// From here on a year has more digits than the format.
    const YEAR_10000: u64 = 253_402_300_800_000;
    let millis = time.as_millis();
    let instant = UNIX_EPOCH + Duration::from_millis(millis.min(YEAR_10000 - 1));
    if millis >= YEAR_10000 {
        format!("{millis} ms after 1970")
    } else if millis.is_multiple_of(1000) {
        humantime::format_rfc3339_seconds(instant).to_string()
    } else {
        humantime::format_rfc3339_millis(instant).to_string()
    }
}

/// Rows in columns of equal width, the last one ragged.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let rows: Vec<[Cow<'_, str>; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| visible(cell))).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Unicode's own list of the characters that turn the direction of text.
    const BIDI: [char; 12] = [
        '\u{61c}', '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}',
        '\u{2066}', '\u{2067}', '\u{2068}', '\u{2069}',
    ];

    /// Any text, with many more of the characters that matter here than chance would give.
    fn nasty() -> impl Strategy<Value = String> {
        let character = prop_oneof![
            any::<char>(),
            proptest::sample::select(BIDI.as_slice()),
            (0_u8..=0x9f).prop_map(char::from),
        ];
        proptest::collection::vec(character, 0..40).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn nothing_hides_in_visible_text(text in nasty()) {
            let shown = visible(&text);
            prop_assert!(!shown.contains(|c: char| c.is_control() || BIDI.contains(&c)), "{shown:?}");
        }

        #[test]
        fn nothing_hides_in_a_table(text in nasty()) {
            let shown = table(&[[text.clone(), text]]);
            prop_assert!(!shown.contains(|c: char| c.is_control() || BIDI.contains(&c)), "{shown:?}");
        }

        #[test]
        fn json_hides_nothing_and_reads_back_the_same(text in nasty()) {
            let shown = to_json(&text);
            prop_assert!(!shown.contains(|c: char| c.is_control() || BIDI.contains(&c)), "{shown:?}");
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }
    }

    #[test]
    fn text_that_hides_nothing_stays_as_it_is() {
        for text in ["orders/42", "naïve café", "日本語", "a\\b", "{}"] {
            assert_eq!(visible(text), text);
        }
        assert_eq!(visible("a\u{202e}b\n\u{1b}[2J"), "a\\u{202e}b\\u{a}\\u{1b}[2J");
    }

    #[test]
    fn a_time_is_as_the_calendar_has_it() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_794_000_000_000, "2026-11-06T21:20:00Z"),
            (1_794_000_000_050, "2026-11-06T21:20:00.050Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
            (253_402_300_800_000, "253402300800000 ms after 1970"),
            (u64::MAX, "18446744073709551615 ms after 1970"),
        ] {
            assert_eq!(time(WallTime::from_millis(millis)), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", "AGE"], ["a", "1s"], ["long name", "20s"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "NAME       AGE\na          1s\nlong name  20s");
    }
}
