//! What is kept of a job: its runs, the newest first, in the record of its lock.

use bytes::Bytes;
use ringfence_core::{Error, ErrorKind, FencingToken, HolderInfo, Record, RecordKey, Result, WallTime};
use serde::{Deserialize, Serialize};

use super::window::Window;

/// How many runs of a job are remembered.
pub const HISTORY_MAX: usize = 32;

/// How much is kept of what a failed run says for itself, in bytes.
const WHY_MAX: usize = 128;

/// A run of a job, as its history has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RunEntry {
    /// The window that it was for.
    pub window: Window,
    /// The fencing token that it ran under.
    pub token: FencingToken,
    /// When it began.
    pub started: WallTime,
    /// When it ended. `None` where nobody knows: it runs, or crashed.
    pub ended: Option<WallTime>,
    /// How it ended. `None`: it runs, or crashed and nobody has found that out yet. The first one that gets the job's lock does.
    pub outcome: Option<RunOutcome>,
    /// What it said for itself, where it failed: the beginning of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Who ran it, without metadata.
    #[serde(with = "by")]
    pub by: HolderInfo,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::exhaustive_enums, reason = "it said how it ended, or it did not")]
pub enum RunOutcome {
    /// It said that it did what it was for.
    Succeeded,
    /// It said that it did not.
    Failed,
    /// It never said anything: its process died, or lost its lease, before.
    Crashed,
}

impl RunEntry {
    pub(super) fn begun(window: Window, token: FencingToken, started: WallTime, by: HolderInfo) -> Self {
        Self { window, token, started, ended: None, outcome: None, why: None, by }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.outcome != Some(RunOutcome::Succeeded)
    }
}

/// The record's value.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Ledger {
    pub(super) runs: Vec<RunEntry>,
}

impl Ledger {
    /// What a record says. Errors with [`ErrorKind::Corrupt`] where somebody else wrote it.
    pub(super) fn read(key: &RecordKey, record: Option<Record>) -> Result<Self> {
        let Some(record) = record else { return Ok(Self::default()) };
        serde_json::from_slice(&record.value).map_err(|error| {
            let (lock, what) = (key.lock(), "is no history of runs, so nobody can say what is due");
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the record {key} {what}: look at it (ringfence record get {lock}), then write {{\"runs\":[]}} there to \
                     begin anew"
                ),
            )
            .because(error)
        })
    }

    pub(super) fn newest(&self) -> Option<&RunEntry> {
        self.runs.first()
    }

    /// The newest run, if it has not said how it ended.
    pub(super) fn unfinished(&self) -> Option<&RunEntry> {
        self.newest().filter(|run| run.outcome.is_none())
    }

    /// Takes down that an unfinished run crashed; returns whether there is one. Only for who has the job's lock.
    pub(super) fn bury(&mut self) -> bool {
        let crashed = self.runs.first_mut().filter(|run| run.outcome.is_none());
        crashed.map(|run| run.outcome = Some(RunOutcome::Crashed)).is_some()
    }

    pub(super) fn begin(&mut self, run: RunEntry) {
        self.runs.insert(0, run);
        self.runs.truncate(HISTORY_MAX);
    }

    /// Takes down how the run that began last has ended: well, or why not.
    pub(super) fn end(&mut self, ended: WallTime, failure: Option<&str>) {
        let run = self.runs.first_mut().expect("a run begins before it ends");
        run.ended = Some(ended);
        run.outcome = Some(if failure.is_some() { RunOutcome::Failed } else { RunOutcome::Succeeded });
        run.why = failure.map(short);
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        serde_json::to_vec(self).expect("a history has string keys and whole numbers").into()
    }
}

/// The first line of a text, as much of it as is kept.
fn short(text: &str) -> String {
    let line = text.split(char::is_control).find(|line| !line.is_empty()).unwrap_or_default();
    line[..line.floor_char_boundary(WHY_MAX)].to_owned()
}

/// A holder as its parts.
mod by {
    use ringfence_core::HolderInfo;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    #[derive(Serialize, Deserialize)]
    struct By<'a> {
        #[serde(borrow)]
        label: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        host: std::borrow::Cow<'a, str>,
        pid: u32,
    }

    pub(super) fn serialize<S: Serializer>(holder: &HolderInfo, serializer: S) -> Result<S::Ok, S::Error> {
        let by = By { label: holder.label().into(), host: holder.host().into(), pid: holder.pid() };
        by.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HolderInfo, D::Error> {
        let by = By::deserialize(deserializer)?;
        HolderInfo::new(&by.label, &by.host, by.pid).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use ringfence_core::{LockName, Nonce, RECORD_VALUE_MAX, Version};

    use super::*;

    fn run(started: u64, label: &str) -> RunEntry {
        let window = Window { start: WallTime::from_millis(u64::MAX), end: WallTime::from_millis(u64::MAX) };
        let token = FencingToken::new((1 << 63) - 1, Nonce::from_u64(u64::MAX).unwrap()).unwrap();
        let by = HolderInfo::new(label, label, u32::MAX).unwrap();
        RunEntry::begun(window, token, WallTime::from_millis(started), by)
    }

    fn read(value: &[u8]) -> Result<Ledger> {
        let key = RecordKey::of(LockName::new("once/report").unwrap());
        let token = FencingToken::new(256, Nonce::from_u64(1).unwrap()).unwrap();
        Ledger::read(&key, Some(Record::new(Bytes::copy_from_slice(value), Version(1), token)))
    }

    #[test]
    fn the_longest_history_fits_into_a_record() {
        let mut ledger = Ledger::default();
        for number in 0..100 {
            ledger.begin(run(u64::MAX - number, &"\"".repeat(255)));
            ledger.end(WallTime::from_millis(u64::MAX), Some(&"\\".repeat(1000)));
        }
        assert_eq!(ledger.runs.len(), HISTORY_MAX);
        assert_eq!(ledger.runs[0].started.as_millis(), u64::MAX - 99, "the newest comes first");
        let value = ledger.to_bytes();
        assert!(value.len() <= RECORD_VALUE_MAX, "{}", value.len());
        assert_eq!(read(&value).unwrap().runs, ledger.runs, "it reads back the same");
    }

    #[test]
    fn a_run_is_kept_as_people_read_it() {
        let mut ledger = Ledger::default();
        let mut first = run(7, "job");
        first.window = Window { start: WallTime::from_millis(0), end: WallTime::from_millis(10) };
        first.token = FencingToken::new(256, Nonce::from_u64(0x1f).unwrap()).unwrap();
        ledger.begin(first);
        ledger.end(WallTime::from_millis(9), Some("\nno disk\nand more"));
        let json = r#"{"runs":[{"window":{"start":0,"end":10},"token":"256.1f","started":7,"ended":9,"outcome":"failed","why":"no disk","by":{"label":"job","host":"job","pid":4294967295}}]}"#;
        assert_eq!(String::from_utf8(ledger.to_bytes().to_vec()).unwrap(), json);
    }

    #[test]
    fn what_a_failed_run_says_is_cut_between_characters() {
        assert_eq!(short(&"é".repeat(100)), "é".repeat(64));
        assert_eq!(short(&format!("x{}", "é".repeat(100))), format!("x{}", "é".repeat(63)));
        assert_eq!(short("\n\n"), "");
    }

    #[test]
    fn only_a_run_that_has_not_ended_is_buried() {
        let mut ledger = Ledger::default();
        assert!(!ledger.bury());
        ledger.begin(run(1, "job"));
        assert!(ledger.unfinished().is_some() && ledger.bury());
        assert_eq!(ledger.runs[0].outcome, Some(RunOutcome::Crashed));
        assert!(ledger.unfinished().is_none() && !ledger.bury());
    }

    #[test]
    fn what_is_no_history_is_said_to_be_none() {
        for value in ["", "41", "{\"runs\":[{}]}", "[]"] {
            let error = read(value.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{value}");
            assert!(error.to_string().contains("ringfence record get once/report"), "{error}");
        }
        assert!(read(br#"{"runs":[]}"#).unwrap().runs.is_empty());
    }
}
