use std::fs;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use nix::unistd::{Uid, User};
use ringfence::{Clock, FencingToken, LockName, Locks, RecordGuard, SystemClock, WallTime};
use ringfence_http::{Epochs, Reset, mark};
use serde::Serialize;

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::lock;
use crate::print::{self, visible};

/// Look at the mark that the gates have of a lock, or start it anew
#[derive(Debug, Subcommand)]
pub(crate) enum FenceVerb {
    Show(FenceShowArgs),
    Reset(FenceResetArgs),
}

/// Print the highest token that the gates have seen, and every time it was started anew
#[derive(Debug, Args)]
pub(crate) struct FenceShowArgs {
    /// Of which lock
    name: String,
}

/// Start the gates' mark of a lock anew, after a forged token or a lock service that lost its memory
///
/// Takes the lock to do it, so it must be free. It is kept who did it, when, why, and which mark was given up. Where the store
/// keeps the lock as well, every token granted before is refused afterwards. Elsewhere any token passes until the first request: see
/// that no old holder is left. Gates that run notice it within about a second.
#[derive(Debug, Args)]
pub(crate) struct FenceResetArgs {
    /// Do it; without this, only say which mark would be given up and exit with 64
    #[arg(long)]
    yes: bool,
    /// Why, for whoever looks at the list later: at most 512 bytes
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Of which lock
    name: String,
}

/// What the holder that resets a mark calls itself.
const LABEL: &str = "ringfence fence reset";

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a LockName,
    mark: Option<FencingToken>,
    #[serde(flatten)]
    epochs: &'a Epochs,
}

/// Shows the mark that the gates have of a lock, or starts it anew.
pub(crate) async fn run(verb: FenceVerb, global: &Global) -> Result<u8, Failure> {
    match verb {
        FenceVerb::Show(args) => show(args, global).await,
        FenceVerb::Reset(args) => reset(args, global).await,
    }
}

async fn show(args: FenceShowArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.name)?;
    let locks = global.connect().await?;
    let epochs = Epochs::read(locks.records(), &name).await?;
    let mark = mark(locks.records(), &name, epochs.epoch).await?;
    if global.json {
        print::json(&Shown { name: &name, mark, epochs: &epochs })?;
        return Ok(exit_codes::OK);
    }
    print::line(&format!("{}: {}", visible(name.as_str()), of(mark)))?;
    if !epochs.resets.is_empty() {
        let head = ["RESET", "BY", "MARK GIVEN UP", "REASON"].map(str::to_owned);
        let rows = epochs.resets.iter().rev().map(|reset| {
            let mark = reset.mark.map_or_else(|| "none".to_owned(), |mark| mark.to_string());
            [time(reset.at), reset.by.clone(), mark, reset.why.clone()]
        });
        print::line(&print::table(&[head].into_iter().chain(rows).collect::<Vec<_>>()))?;
    }
    Ok(exit_codes::OK)
}

async fn reset(args: FenceResetArgs, global: &Global) -> Result<u8, Failure> {
    let name = LockName::new(&args.name)?;
    let locks = global.connect().await?;
    if !args.yes {
        let epochs = Epochs::read(locks.records(), &name).await?;
        let mark = mark(locks.records(), &name, epochs.epoch).await?;
        let message = format!("would start anew {name}: {}; say --yes to do it", of(mark));
        return Err(Failure::new(exit_codes::USAGE, message));
    }
    let outcome = reset_locked(&locks, &name, args.reason, global).await;
    lock::close(&locks, &name, global.messages()).await;
    outcome
}

async fn reset_locked(locks: &Locks, name: &LockName, why: String, global: &Global) -> Result<u8, Failure> {
    let Some(guard) = locks.lock(name).label(LABEL).try_acquire().await? else {
        let message = format!(
            "{name} is held: what its holder sends is refused or not by the mark of now; evict it first"
        );
        return Err(Failure::new(exit_codes::BUSY, message));
    };
    // Where the lease is looked at as well, the lock lives here, and its sequence counts on.
    let seed = locks.guarantees().record_guard == RecordGuard::LiveLease;
    let reset = Reset { at: SystemClock::new().wall(), by: operator(), why, mark: None };
    let done = Epochs::reset(locks.records(), name, guard.token(), seed, reset).await?;
    guard.release().await?;
    if global.json {
        print::json(&done)?;
    } else {
        print::line(&format!("started anew {}: {} before", visible(name.as_str()), of(done.mark)))?;
    }
    Ok(exit_codes::OK)
}

fn of(mark: Option<FencingToken>) -> String {
    mark.map_or_else(|| "no gate has seen a token".to_owned(), |mark| format!("the gates' mark is {mark}"))
}

/// Who we are, for whoever looks at the list of resets.
fn operator() -> String {
    let uid = Uid::effective();
    let user = User::from_uid(uid).ok().flatten().map_or_else(|| format!("uid {uid}"), |user| user.name);
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{user}@{}", host.trim())
}

fn time(at: WallTime) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(at.as_millis())).to_string()
}
