//! The command line, as clap reads it and `--help` prints it: what every verb takes, and what several take. What one verb takes
//! stands at the top of its own file.

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringfence::{Error, ErrorKind, HolderInfo, PERMITS_MAX, Result, Stakes, Ttl, parse_duration};

use crate::advise::AdviseArgs;
use crate::completions::CompletionsArgs;
use crate::doctor::DoctorArgs;
use crate::elect::ElectArgs;
use crate::evict::EvictArgs;
use crate::exit_codes;
use crate::failure::Failure;
use crate::fence::FenceVerb;
use crate::fence_table::FenceTableArgs;
use crate::gate::GateArgs;
use crate::guarantees::GuaranteesArgs;
use crate::hold::HoldArgs;
use crate::idempotent::IdempotentArgs;
use crate::ls::LsArgs;
use crate::man::ManArgs;
use crate::once::OnceArgs;
use crate::outbox::OutboxVerb;
use crate::partitions::PartitionsArgs;
use crate::record::RecordVerb;
use crate::run::RunArgs;
use crate::setup::SetupArgs;
use crate::show::ShowArgs;

/// The longest `--wait`. A longer one is a mistake: leave it out to wait without limit.
const WAIT_MAX: Duration = Duration::from_hours(365 * 24);

/// Exclusive access to shared things, across processes and machines, with fences that hold.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, max_term_width = 100, after_help = exit_codes::HELP)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What every verb takes, before it and after it.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Which locks: local:, local:/some/dir, redis://host …  [env: RINGFENCE_URL] [default: local:]
    #[arg(long, global = true, value_name = "URL", display_order = 900)]
    pub(crate) url: Option<String>,
    /// Print JSON, error messages included
    #[arg(long, global = true, display_order = 901)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(RunArgs),
    Hold(HoldArgs),
    Ls(LsArgs),
    Show(ShowArgs),
    Evict(EvictArgs),
    Elect(ElectArgs),
    Once(OnceArgs),
    Partitions(PartitionsArgs),
    Idempotent(IdempotentArgs),
    #[command(subcommand)]
    Record(RecordVerb),
    #[command(subcommand)]
    Fence(FenceVerb),
    FenceTable(FenceTableArgs),
    Gate(GateArgs),
    #[command(subcommand)]
    Outbox(OutboxVerb),
    Advise(AdviseArgs),
    Doctor(DoctorArgs),
    Setup(SetupArgs),
    Guarantees(GuaranteesArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// What to lock, and how: the flags of flock(1) mean what they mean there.
#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    #[command(flatten)]
    pub(crate) patience: PatienceArgs,
    /// Hold it together with other shared holders
    #[arg(short = 's', long, conflicts_with_all = ["exclusive", "permits"])]
    pub(crate) shared: bool,
    /// Hold it alone; this is the default
    #[arg(short = 'x', visible_short_alias = 'e', long, conflicts_with = "permits")]
    pub(crate) exclusive: bool,
    /// Hold one of so many permits
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PERMITS_MAX)),
        allow_negative_numbers = true
    )]
    pub(crate) permits: Option<u32>,
    /// How long the lease lives without renewal, with a unit, as in 30s [default: 30s, or the URL's ttl]
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl, allow_hyphen_values = true)]
    pub(crate) ttl: Option<Ttl>,
    #[command(flatten)]
    pub(crate) delay: DelayArgs,
    /// What a double run would cost: efficiency, or correctness, which a backend without durable tokens refuses
    #[arg(long, value_name = "STAKES", default_value = "efficiency")]
    stakes: StakesArg,
    /// What the holder calls itself in `ringfence show` [default: the command's name, or ringfence]
    #[arg(long, value_name = "TEXT", value_parser = parse_label)]
    pub(crate) label: Option<String>,
    /// Free text for `ringfence show`, at most 1 KiB; put no secret into it
    #[arg(long, value_name = "TEXT", value_parser = parse_metadata)]
    pub(crate) metadata: Option<String>,
    /// What to lock: 1 to 255 bytes of UTF-8 without control characters
    pub(crate) name: String,
}

impl LockArgs {
    /// What a double run would cost.
    pub(crate) fn stakes(&self) -> Stakes {
        self.stakes.into()
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum StakesArg {
    Efficiency,
    Correctness,
}

impl From<StakesArg> for Stakes {
    fn from(stakes: StakesArg) -> Self {
        match stakes {
            StakesArg::Efficiency => Self::Efficiency,
            StakesArg::Correctness => Self::Correctness,
        }
    }
}

/// What is held for a command by a verb that names its locks itself.
#[derive(Debug, Args)]
pub(crate) struct LeaseArgs {
    /// How long a lease lives without renewal, with a unit, as in 30s [default: 30s, or the URL's ttl]
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl, allow_hyphen_values = true)]
    pub(crate) ttl: Option<Ttl>,
    /// What two holders at once would cost: efficiency, or correctness, which a backend without durable tokens refuses
    #[arg(long, value_name = "STAKES", default_value = "efficiency")]
    stakes: StakesArg,
    /// What we call ourselves in `ringfence show` [default: the command's name]
    #[arg(long, value_name = "TEXT", value_parser = parse_label)]
    pub(crate) label: Option<String>,
}

impl LeaseArgs {
    /// What two holders at once would cost.
    pub(crate) fn stakes(&self) -> Stakes {
        self.stakes.into()
    }
}

/// For how long nobody holds after one that was lost.
#[derive(Debug, Args)]
pub(crate) struct DelayArgs {
    /// After an unclean loss, how long nobody gets the lock once its TTL is over, with a unit, as in 30s: for a resource that
    /// cannot check a token
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        allow_hyphen_values = true,
        default_value = "0s",
        hide_default_value = true
    )]
    pub(crate) lock_delay: Duration,
}

/// For how long to wait for somebody else.
#[derive(Debug, Args)]
pub(crate) struct PatienceArgs {
    /// Do not wait: exit with 75 if somebody else has it
    #[arg(short = 'n', long = "nonblock", visible_alias = "nb", conflicts_with = "wait")]
    pub(crate) nonblock: bool,
    /// Wait at most so long, then exit with 124: seconds, or a duration such as 30s or 1m 30s [default: no limit]. For a
    /// connection as long, 3s at least, then exit with 69
    #[arg(
        short = 'w',
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        value_parser = parse_wait,
        allow_hyphen_values = true
    )]
    pub(crate) wait: Option<Duration>,
    /// Exit with this instead of 75 and 124
    #[arg(short = 'E', long, value_name = "CODE", allow_negative_numbers = true)]
    conflict_exit_code: Option<u8>,
}

/// Who waits for less than this is connected within this: a server that is dead costs as much before the next one is asked.
const CONNECT_WITHIN_MIN: Duration = Duration::from_secs(3);

impl PatienceArgs {
    /// For how long there may be no connection. Where nothing is said of a wait, each backend has a patience of its own.
    pub(crate) fn to_connect(&self) -> Option<Duration> {
        self.wait.map(|wait| wait.max(CONNECT_WITHIN_MIN))
    }

    /// The failure of a wait that was in vain.
    pub(crate) fn in_vain(&self, message: String) -> Failure {
        let code = if self.nonblock { exit_codes::BUSY } else { exit_codes::WAITED_TOO_LONG };
        Failure::new(self.conflict_exit_code.unwrap_or(code), message)
    }
}

/// What happens to the command of `run` when its lease is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// SIGTERM to its process group, then SIGKILL, before the lease can lapse
    Term,
    /// SIGKILL to its process group, before the lease can lapse
    Kill,
    /// Only a message: the command goes on without the lease
    Warn,
}

/// `flock` takes seconds and their fractions; we take a duration with its unit as well.
fn parse_wait(text: &str) -> Result<Duration> {
    let invalid = |why: String| Error::new(ErrorKind::InvalidRequest, why);
    let seconds = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let wait = if seconds {
        text.parse()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .ok_or_else(|| invalid(format!("{text:?} is no number of seconds that a wait can have")))?
    } else {
        parse_duration(text)
            .map_err(|_| invalid("write seconds, as in 30 or 0.5, or a duration, as in 250ms".to_owned()))?
    };
    if wait > WAIT_MAX {
        return Err(invalid(format!(
            "a wait is at most {} days: leave it out to wait without limit",
            WAIT_MAX.as_secs() / (24 * 60 * 60)
        )));
    }
    Ok(wait)
}

/// A bare number is refused here: a wrong unit in a lease is an outage.
fn parse_ttl(text: &str) -> Result<Ttl> {
    Ttl::new(parse_duration(text)?)
}

fn parse_label(text: &str) -> Result<String> {
    anybody().with_label(text)?;
    Ok(text.to_owned())
}

fn parse_metadata(text: &str) -> Result<String> {
    anybody().with_metadata(text)?;
    Ok(text.to_owned())
}

/// A holder to try a label or metadata on, so that a bad one is refused before anything happens.
fn anybody() -> HolderInfo {
    HolderInfo::new("ringfence", "localhost", 0).expect("these are a label and a host")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_wait_is_seconds_or_a_duration() {
        for (text, millis) in
            [("0", 0), ("2", 2000), ("0.25", 250), (".5", 500), ("250ms", 250), ("1m 30s", 90_000)]
        {
            assert_eq!(parse_wait(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", ".", "1.2.3", "NaN", "inf", "-1", "-0.5", "1e3", "0x10", "+1", "soon", "1 fortnight"]
        {
            assert!(parse_wait(text).is_err(), "{text}");
        }
        for text in ["31536001", "1000y", "18446744073709551616", "9".repeat(400).as_str()] {
            assert!(parse_wait(text).is_err(), "{text}");
        }
    }
}
