use std::io::{self, Read, Write};

use bytes::Bytes;
use clap::{Args, Subcommand};
use ringfence::patterns::Swap;
use ringfence::{
    Error, ErrorKind, FencingToken, ListQuery, LockName, PresentedToken, RECORD_VALUE_MAX, Record, RecordKey,
    Result, Version,
};
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print;

/// Read, write, remove or list the records that locks guard
#[derive(Debug, Subcommand)]
pub(crate) enum RecordVerb {
    Get(RecordGetArgs),
    Put(RecordPutArgs),
    Rm(RecordRmArgs),
    Ls(RecordLsArgs),
}

/// Print a record's value; exit with 1 if there is none
#[derive(Debug, Args)]
pub(crate) struct RecordGetArgs {
    #[command(flatten)]
    key: RecordKeyArgs,
}

/// Write standard input into a record, behind its lock's fence
///
/// Opens the record with the token, then writes. A token that is stale, because a later holder came or the lease is
/// over, is refused with exit code 77, and nothing is written.
///
/// With --if-version a token is not needed: without one this takes the lock for as long as it writes, and waits at most 10 seconds
/// for that.
#[derive(Debug, Args)]
pub(crate) struct RecordPutArgs {
    #[command(flatten)]
    key: RecordKeyArgs,
    /// The fencing token, as `run` and `hold` give it
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RINGFENCE_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true,
        required_unless_present = "if_version"
    )]
    token: Option<String>,
    /// Only if the record still has this version, as `record get --json` prints it; 0: if it was never written. Else exit with 76
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

/// Remove a record, behind its lock's fence; exit with 1 if there is none
///
/// Opens the record with the token, then removes it. A token that is stale, because a later holder came or the lease is
/// over, is refused with exit code 77, and nothing is removed.
#[derive(Debug, Args)]
pub(crate) struct RecordRmArgs {
    #[command(flatten)]
    key: RecordKeyArgs,
    /// The fencing token, as `run` and `hold` give it
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RINGFENCE_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    token: String,
}

/// List the records that hold a value
#[derive(Debug, Args)]
pub(crate) struct RecordLsArgs {
    /// Only those of locks whose names begin with this
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
}

/// Which record.
#[derive(Debug, Args)]
struct RecordKeyArgs {
    /// Which of the lock's records
    #[arg(long, value_name = "FIELD", default_value = "value")]
    field: String,
    /// The lock that guards it
    name: String,
}

#[derive(Serialize)]
struct Got<'a> {
    name: &'a LockName,
    field: &'a str,
    #[serde(flatten)]
    value: Value<'a>,
    version: Version,
    token: FencingToken,
}

/// JSON has no bytes: what is no text is written as hexadecimal digits, under another key.
#[derive(Serialize)]
enum Value<'a> {
    #[serde(rename = "value")]
    Text(&'a str),
    #[serde(rename = "value_hex")]
    Hex(String),
}

#[derive(Serialize)]
struct Put<'a> {
    name: &'a LockName,
    field: &'a str,
    version: Version,
    /// Only of a write with the caller's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<FencingToken>,
}

/// One of a listing.
#[derive(Serialize)]
struct Listed<'a> {
    name: &'a LockName,
    field: &'a str,
}

/// Reads, writes, removes or lists records.
pub(crate) async fn run(verb: RecordVerb, global: &Global) -> Result<u8, Failure> {
    match verb {
        RecordVerb::Get(args) => get(args, global).await,
        RecordVerb::Put(args) => put(args, global).await,
        RecordVerb::Rm(args) => rm(args, global).await,
        RecordVerb::Ls(args) => ls(args, global).await,
    }
}

async fn get(args: RecordGetArgs, global: &Global) -> Result<u8, Failure> {
    let key = key(&args.key)?;
    let locks = global.connect().await?;
    let Some(record) = locks.records().read(&key).await? else {
        return Err(nothing_there(&key));
    };
    if global.json {
        let value = match std::str::from_utf8(&record.value) {
            Ok(text) => Value::Text(text),
            Err(_) => Value::Hex(format!("{:x}", record.value)),
        };
        let (version, token) = (record.version, record.written_with);
        print::json(&Got { name: key.lock(), field: key.field(), value, version, token })?;
    } else {
        let mut out = io::stdout().lock();
        out.write_all(&record.value)?;
        out.flush()?;
    }
    Ok(exit_codes::OK)
}

/// What a compare-and-set says of a record that somebody else wrote.
fn conflict(key: &RecordKey, found: Option<&Record>) -> Error {
    let found = match found {
        Some(record) => format!("has version {}", record.version.0),
        None => "was never written".to_owned(),
    };
    let why = format!("the record {key} {found}: nothing was written; read it again, and decide again");
    Error::new(ErrorKind::Conflict, why)
}

async fn put(args: RecordPutArgs, global: &Global) -> Result<u8, Failure> {
    let key = key(&args.key)?;
    let token =
        args.token.map(|token| Ok::<_, Error>(token.parse::<PresentedToken>()?.token())).transpose()?;
    let expected = args.if_version.map(|version| (version > 0).then_some(Version(version)));
    // One byte more than a record takes tells that there is too much, however much there is.
    let mut value = Vec::new();
    io::stdin().lock().take(RECORD_VALUE_MAX as u64 + 1).read_to_end(&mut value)?;
    if value.len() > RECORD_VALUE_MAX {
        let why = format!("a record's value is at most {RECORD_VALUE_MAX} bytes, standard input has more");
        return Err(Error::new(ErrorKind::InvalidRequest, why).into());
    }
    let locks = global.connect().await?;
    let version = match (token, expected) {
        (Some(token), expected) => {
            let found = locks.records().open(&key, token).await?.record;
            if expected.is_some_and(|expected| expected != found.as_ref().map(|record| record.version)) {
                return Err(conflict(&key, found.as_ref()).into());
            }
            locks.records().write(&key, token, Bytes::from(value)).await?
        }
        (None, expected) => {
            let record = locks.versioned(key.lock()).field(key.field());
            match record.compare_and_set(expected.flatten(), value).await? {
                Swap::Swapped(version) => version,
                Swap::Conflict(found) => return Err(conflict(&key, found.as_ref()).into()),
            }
        }
    };
    if global.json {
        print::json(&Put { name: key.lock(), field: key.field(), version, token })?;
    }
    Ok(exit_codes::OK)
}

async fn rm(args: RecordRmArgs, global: &Global) -> Result<u8, Failure> {
    let key = key(&args.key)?;
    let token = args.token.parse::<PresentedToken>()?.token();
    let locks = global.connect().await?;
    let opened = locks.records().open(&key, token).await?;
    // Also what was opened only leaves a mark.
    locks.records().remove(&key, token).await?;
    if opened.record.is_some() { Ok(exit_codes::OK) } else { Err(nothing_there(&key)) }
}

async fn ls(args: RecordLsArgs, global: &Global) -> Result<u8, Failure> {
    let locks = global.connect().await?;
    let mut keys = Vec::new();
    let mut query = ListQuery::new(args.prefix.as_str());
    loop {
        let page = locks.records().list(query).await?;
        keys.extend(page.items);
        match page.next {
            Some(last) => query = ListQuery::new(args.prefix.as_str()).after(last),
            None => break,
        }
    }
    if global.json {
        let listed = |key| Listed { name: RecordKey::lock(key), field: key.field() };
        print::json(&keys.iter().map(listed).collect::<Vec<_>>())?;
    } else if !keys.is_empty() {
        let header = ["NAME", "FIELD"].map(str::to_owned);
        let row = |key: &RecordKey| [key.lock().to_string(), key.field().to_owned()];
        let rows: Vec<_> = std::iter::once(header).chain(keys.iter().map(row)).collect();
        print::line(&print::table(&rows))?;
    }
    Ok(exit_codes::OK)
}

fn nothing_there(key: &RecordKey) -> Failure {
    Failure::new(exit_codes::NOTHING_THERE, format!("the record {key} was never written, or removed"))
}

fn key(args: &RecordKeyArgs) -> Result<RecordKey> {
    RecordKey::new(LockName::new(&args.name)?, args.field.as_str())
}
