//! The command line, as clap reads it and `--help` prints it.

#![expect(clippy::doc_markdown, reason = "these doc comments are the help, which is plain text")]

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use http::Uri;
use http::uri::{Authority, PathAndQuery};
use ringfence::patterns::PARTITIONS_MAX;
use ringfence::{Error, ErrorKind, HolderInfo, LockName, PERMITS_MAX, Result, Stakes, Ttl, parse_duration};

use crate::advise::AdviseArgs;
use crate::exit_codes;
use crate::failure::Failure;

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

/// Run a command while holding a lock
///
/// Waits for the lock, runs the command in a process group of its own, and releases when the command ends. The
/// command finds RINGFENCE_LOCK, RINGFENCE_TOKEN and RINGFENCE_URL in its environment; it has our standard input and
/// the terminal. SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGWINCH and job control reach its process group, SIGUSR1 and
/// SIGUSR2 the command alone.
///
/// If the lease is lost, or about to be because it cannot be renewed, the command's process group is ended before
/// the lease can lapse: SIGTERM when a quarter of the TTL is left, SIGKILL when a twentieth is. After an eviction
/// SIGTERM comes at once, and SIGKILL after a quarter of the TTL, at most 5 seconds.
///
/// If this program itself is killed, the command is killed with it (a set-user-ID command is not: the kernel does not
/// allow it). What survives of its processes keeps the lease until its TTL.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence run [OPTIONS] <NAME> [--] <COMMAND>...",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) lock: LockArgs,
    /// What to do with the command when the lease is lost
    #[arg(long, value_name = "WHAT", default_value = "term")]
    pub(crate) on_lost: OnLost,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Hold a lock until standard input closes, for scripts and other languages
///
/// Prints one JSON line when it has the lease, {"event":"held","name":…,"token":…,"ttl_ms":…,"remaining_ms":…}, and
/// keeps it until standard input closes or SIGTERM, SIGINT, SIGQUIT or SIGHUP comes; then it releases, prints
/// {"event":"released",…} and exits with 0. If the lease is lost it prints {"event":"lost",…} and exits with 123.
/// Standard input is looked at once the lease is held: give it a pipe, because /dev/null is closed at once.
#[derive(Debug, Args)]
pub(crate) struct HoldArgs {
    #[command(flatten)]
    pub(crate) lock: LockArgs,
}

/// Run a command while leading an election
///
/// Waits until this candidate leads, then runs the command as `ringfence run` does, with the term in RINGFENCE_TOKEN: it ends before
/// the term can. After a lost term this is a candidate again, and the command is started anew in the next term; it stays one while the
/// locks cannot be reached. When the command ends by itself, this resigns and ends with its exit code.
///
/// With --observe it runs nothing, and prints a line for each change of the leader: its term, what it proclaims and who it is, or
/// nobody. It looks once a second, and never prints a leader older than one it printed.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence elect [OPTIONS] <NAME> [--] <COMMAND>...\n       ringfence elect [OPTIONS] --observe <NAME>",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct ElectArgs {
    /// What the leader proclaims, such as its address [default: nothing]
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(crate) value: String,
    /// After a lost term do not campaign again: exit with 123
    #[arg(long)]
    pub(crate) once: bool,
    /// Print who leads, and each change
    #[arg(long, conflicts_with_all = ["value", "once", "ttl", "stakes", "label", "command"])]
    pub(crate) observe: bool,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    /// Which election; its lock is leader/NAME
    pub(crate) name: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required_unless_present = "observe", trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Run a command once per window, whoever of many hosts calls for it
///
/// For cron on twenty hosts: the first one that calls in a window runs the command, the others exit with 0 and, unless at a terminal or
/// with --json, say nothing. Call it more often than there are windows, or well inside of each, because hosts differ about its edge.
///
/// The command finds RINGFENCE_WINDOW, the start of its window (UTC), beside what `ringfence run` gives it, and is ended as there before
/// its lease can lapse. What came of it stands in the record of the lock once/NAME. A run that fails, or whose host dies, is done for
/// its window unless there is --retry-failed.
///
/// A window is decided by the backend's clock, or by this machine's where the backend has none. None that is not later than the
/// recorded one ever runs.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence once [OPTIONS] <--every <WINDOW>|--since-last <PAUSE>> <NAME> [--] <COMMAND>...\n       \
                      ringfence once [OPTIONS] --history <NAME>",
    after_long_help = exit_codes::HELP
)]
#[group(id = "when", required = true, multiple = false, args = ["every", "since_last", "history"])]
pub(crate) struct OnceArgs {
    /// Once in each window of this length, from 1970 (UTC) on: 1h is each full hour, 1d midnight
    #[arg(long, value_name = "WINDOW", value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) every: Option<Duration>,
    /// Windows begin so much later, as in --every 1d --offset 2h: at two in the morning (UTC)
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        allow_hyphen_values = true,
        conflicts_with_all = ["since_last", "history"]
    )]
    pub(crate) offset: Option<Duration>,
    /// Once this long after the last run began
    #[arg(long, value_name = "PAUSE", value_parser = parse_duration, allow_hyphen_values = true)]
    pub(crate) since_last: Option<Duration>,
    /// No sooner than this after the last run began, whatever the window and whatever came of it
    #[arg(
        long,
        value_name = "PAUSE",
        value_parser = parse_duration,
        allow_hyphen_values = true,
        conflicts_with = "history"
    )]
    pub(crate) at_least: Option<Duration>,
    /// What becomes of windows that nobody ran, because nobody called or the run before took too long
    #[arg(long, value_name = "WHAT", default_value = "skip", conflicts_with_all = ["since_last", "history"])]
    pub(crate) missed: MissedArg,
    /// Run it again in its window if it failed or its host died
    #[arg(long, conflicts_with = "history")]
    pub(crate) retry_failed: bool,
    /// Exit with this instead of 0 if nothing was run
    #[arg(short = 'E', long, value_name = "CODE", allow_negative_numbers = true, conflicts_with = "history")]
    pub(crate) skipped_exit_code: Option<u8>,
    /// Print the last runs, the newest first, and run nothing
    #[arg(long, conflicts_with_all = ["ttl", "stakes", "label", "command"])]
    pub(crate) history: bool,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    /// Which job; its lock is once/NAME
    pub(crate) name: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required_unless_present = "history", trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// What becomes of a window that nobody ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MissedArg {
    /// Nothing
    Skip,
    /// The latest one is run, and then the current one
    Run,
}

/// Run a command for each partition of a work that is dealt to us
///
/// Takes part in a work in a fixed number of partitions, together with every other host that does the same, and runs the command once
/// for each partition that it owns, at most one at a time anywhere as far as the lease goes. The command finds RINGFENCE_PARTITION
/// (a number from 0), RINGFENCE_TOKEN, RINGFENCE_LOCK and RINGFENCE_URL in its environment; its standard input is empty.
///
/// When a partition is to be somebody else's, the command gets SIGTERM, and SIGKILL when nine tenths of the hand-over time are over;
/// then the next owner starts. If a lease is lost, or about to be, its command ends before the lease can lapse, as with `ringfence run`.
/// A command that ends by itself is started again a second later, under another token; one that cannot be run (126, 127) ends the
/// program. SIGTERM, SIGINT, SIGQUIT and SIGHUP end every command, hand everything over and exit with 0; SIGUSR1 and SIGUSR2 go to
/// every command; SIGTSTP is ignored.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence partitions [OPTIONS] --count <N> <NAME> [--] <COMMAND>...",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct PartitionsArgs {
    /// How many partitions there are; the same for everybody
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PARTITIONS_MAX)),
        allow_negative_numbers = true
    )]
    pub(crate) count: u32,
    /// How long a command may take to end when its partition is to be somebody else's
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "10s", allow_hyphen_values = true)]
    pub(crate) handover: Duration,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    /// Which work, without a slash; its locks are partitions/NAME/0 and so on
    pub(crate) name: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Run a command once for an idempotency key, and print its output again for every duplicate
///
/// Where the key is new this runs the command as `ringfence run` does, with the key in RINGFENCE_IDEMPOTENCY_KEY, and prints what it
/// prints. If it exits with 0 its output is stored, behind the fence, and the key is done: from then on this prints the stored output
/// and exits with 0. A command that fails stores nothing, and the next one runs. Where somebody works under the key this waits for
/// the end of that.
///
/// The key is for one request: another fingerprint, which is the command line unless you choose, is refused with 65.
///
/// A crash after the command took effect and before its output is stored leaves the key free, and the next one does it again. Only
/// the command can prevent that: by handing RINGFENCE_IDEMPOTENCY_KEY on to whoever takes effect, or by writing down that it is done
/// in the same transaction.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence idempotent [OPTIONS] <KEY> [--] <COMMAND>...",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct IdempotentArgs {
    /// What tells this request from others; only its hash is stored [default: the command and its arguments]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) fingerprint: Option<OsString>,
    /// For how long the output is kept, with a unit, as in 24h; after it the key is new
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    pub(crate) retention: Duration,
    #[command(flatten)]
    pub(crate) patience: PatienceArgs,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    /// Which request: 1 to 243 bytes of UTF-8 without control characters; its lock is idempotency/KEY
    pub(crate) key: String,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
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

/// For how long to wait for somebody else.
#[derive(Debug, Args)]
pub(crate) struct PatienceArgs {
    /// Do not wait: exit with 75 if somebody else has it
    #[arg(short = 'n', long = "nonblock", visible_alias = "nb", conflicts_with = "wait")]
    pub(crate) nonblock: bool,
    /// Wait at most so long, then exit with 124: seconds, or a duration such as 30s or 1m 30s [default: no limit]
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

impl PatienceArgs {
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

/// List the locks that are held or waited for
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only names that begin with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
}

/// Show who holds a lock, since when, and who waits
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Which lock
    pub(crate) name: String,
}

/// Take a lock away from its holders
///
/// The evicted holder learns that it lost, its token is stale from then on, and the next in line gets the lock.
#[derive(Debug, Args)]
pub(crate) struct EvictArgs {
    /// Do it; without this, only say whom it would evict and exit with 64
    #[arg(long)]
    pub(crate) yes: bool,
    /// Only the holder with this token or nonce
    #[arg(long, value_name = "TOKEN", allow_hyphen_values = true)]
    pub(crate) holder: Option<String>,
    /// Which lock
    pub(crate) name: String,
}

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
    pub(crate) key: RecordKeyArgs,
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
    pub(crate) key: RecordKeyArgs,
    /// The fencing token, as `run` and `hold` give it
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RINGFENCE_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true,
        required_unless_present = "if_version"
    )]
    pub(crate) token: Option<String>,
    /// Only if the record still has this version, as `record get --json` prints it; 0: if it was never written. Else exit with 76
    #[arg(long, value_name = "VERSION")]
    pub(crate) if_version: Option<u64>,
}

/// Remove a record, behind its lock's fence; exit with 1 if there is none
///
/// Opens the record with the token, then removes it. A token that is stale, because a later holder came or the lease is
/// over, is refused with exit code 77, and nothing is removed.
#[derive(Debug, Args)]
pub(crate) struct RecordRmArgs {
    #[command(flatten)]
    pub(crate) key: RecordKeyArgs,
    /// The fencing token, as `run` and `hold` give it
    #[arg(
        long,
        value_name = "TOKEN",
        env = "RINGFENCE_TOKEN",
        hide_env_values = true,
        allow_hyphen_values = true
    )]
    pub(crate) token: String,
}

/// List the records that hold a value
#[derive(Debug, Args)]
pub(crate) struct RecordLsArgs {
    /// Only those of locks whose names begin with this
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
}

/// Which record.
#[derive(Debug, Args)]
pub(crate) struct RecordKeyArgs {
    /// Which of the lock's records
    #[arg(long, value_name = "FIELD", default_value = "value")]
    pub(crate) field: String,
    /// The lock that guards it
    pub(crate) name: String,
}

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
    pub(crate) name: String,
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
    pub(crate) yes: bool,
    /// Why, for whoever looks at the list later: at most 512 bytes
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: String,
    /// Of which lock
    pub(crate) name: String,
}

/// Fence a table of a PostgreSQL database: no UPDATE or DELETE without a token
///
/// From now on a row is changed by nobody, from psql or any program, who has not admitted a token to it in the same transaction,
/// as in SELECT ringfence.admit('public.orders/42', 1024, '7b') for the token 1024.7b. A token that is below the highest that the
/// row has seen is refused. An INSERT needs a token where its key ever had one, TRUNCATE is refused. Prints what the names of the
/// rows' resources begin with.
///
/// Table and key are written as in SQL: folded to lower case unless they stand in double quotes. The role of the URL has to own the
/// table, or to have TRIGGER and UPDATE on it. To undo it, DROP TRIGGER ringfence_fence and ringfence_truncate.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub(crate) struct FenceTableArgs {
    /// The database of this URL, instead of --url and RINGFENCE_URL
    #[arg(value_name = "URL", id = "of")]
    pub(crate) of: Option<String>,
    /// Which table, as in public.orders
    #[arg(required = true)]
    pub(crate) table: String,
    /// The column that tells its rows apart
    #[arg(long, value_name = "COLUMN")]
    pub(crate) key: String,
}

/// Put a fence before an HTTP server: no request without a token, none with an old one
///
/// A proxy that lets a request through only with the header Ringfence-Token: name;sequence.nonce of a lock's holder, and answers
/// 412 if it has seen a later token of that lock. It prints a line when it listens, and ends in order when it is told to.
///
/// The marks are kept in the records of --url, which is asked for each request, so that several gates can share them; when it does
/// not answer, nothing passes (503). A newer token waits until the requests of the older ones are answered, or until --drain is
/// over and they are cut. What has reached the upstream cannot be called back. Where the URL names a token_key_file, only tokens
/// that were sealed with that key pass.
#[derive(Debug, Args)]
pub(crate) struct GateArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// The server behind the gate, as in http://127.0.0.1:8080
    #[arg(long, value_name = "URL", value_parser = parse_upstream)]
    pub(crate) upstream: Authority,
    /// How long a newer token waits for the requests of an older one, and the end of the program for all
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(crate) drain: Duration,
    /// How long the upstream may be silent
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// Be the only gate of this name: hold the lock gate/NAME, and ask the store only for tokens not seen yet. The others
    /// of the name stand by and answer 503; all gates before one upstream have to have the name
    #[arg(long, value_name = "NAME", value_parser = parse_gate_name)]
    pub(crate) alone: Option<LockName>,
}

/// Send what transactions have put into an outbox, on PostgreSQL or SQLite
#[derive(Debug, Subcommand)]
pub(crate) enum OutboxVerb {
    Setup(OutboxSetupArgs),
    Relay(OutboxRelayArgs),
    Status(OutboxStatusArgs),
    Retry(OutboxRetryArgs),
}

/// Make the tables of an outbox in the database of your transactions
///
/// Calling it again makes nothing twice. To enqueue a message is an INSERT, in your own transaction:
///
///   INSERT INTO ringfence_outbox.messages (topic, key, payload) VALUES ('orders', '42', '{"state":"paid"}');
///
/// In SQLite the table is ringfence_outbox_messages.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct OutboxSetupArgs {
    #[command(flatten)]
    pub(crate) database: OutboxUrlArgs,
    /// Let this role enqueue, and nothing else (PostgreSQL)
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_to: Option<String>,
    /// Let this role relay, look, and put dead letters back (PostgreSQL)
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_relay_to: Option<String>,
    /// Print all of it as a script for psql or sqlite3, and connect to nothing
    #[arg(long)]
    pub(crate) print: bool,
}

/// Send messages, until SIGTERM, SIGINT, SIGQUIT or SIGHUP
///
/// At least once, and in order per key; several relays share the work. A message that is sent again has the same id, and an
/// attempt above 1. What the sink refuses is tried again with growing pauses, and is a dead letter after --refusals; what cannot be
/// sent because the sink is not there is tried again without end.
///
/// On a signal it ends what is under way and gives back its claim. Killed, it loses nothing: what it had sent and not settled is
/// sent again when its claim is over. It logs to standard error; RINGFENCE_LOG says how much [default: ringfence=info].
#[derive(Debug, Args)]
pub(crate) struct OutboxRelayArgs {
    #[command(flatten)]
    pub(crate) database: OutboxUrlArgs,
    /// Where to: stdout (JSON lines), http://… or https://… (a webhook), redis://… or rediss://… (a stream for each topic)
    #[arg(long, value_name = "SINK", env = "RINGFENCE_OUTBOX_TO", hide_env_values = true)]
    pub(crate) to: String,
    /// Headers for the webhook, as Authorization and Content-Type, a line each: NAME: VALUE
    #[arg(long, value_name = "FILE")]
    pub(crate) headers: Option<PathBuf>,
    /// How many messages to claim at most, and so how many can come twice when it is killed
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(crate) batch: u32,
    /// How long a claim lasts: at least twice the timeout
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    pub(crate) claim: Duration,
    /// How long the sink may take for a message
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// After how many refusals a message is a dead letter; unlimited: never, and its key waits
    #[arg(long, value_name = "N", default_value = "12", value_parser = parse_refusals)]
    pub(crate) refusals: Refusals,
}

/// Show how many messages are pending, waiting for another try, and dead
#[derive(Debug, Args)]
pub(crate) struct OutboxStatusArgs {
    #[command(flatten)]
    pub(crate) database: OutboxUrlArgs,
}

/// Put dead letters back, at the end of their keys' lines
#[derive(Debug, Args)]
pub(crate) struct OutboxRetryArgs {
    #[command(flatten)]
    pub(crate) database: OutboxUrlArgs,
    #[command(flatten)]
    pub(crate) which: OutboxWhichArgs,
}

/// Which dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct OutboxWhichArgs {
    /// All of them
    #[arg(long)]
    pub(crate) all: bool,
    /// Those of this key
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pub(crate) key: Option<String>,
    /// This one
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<String>,
}

/// Which database.
#[derive(Debug, Args)]
pub(crate) struct OutboxUrlArgs {
    /// The database, as postgres://user@host/database or sqlite:/some/file.db, instead of --url and RINGFENCE_URL
    #[arg(value_name = "URL", id = "of")]
    pub(crate) of: Option<String>,
}

/// How many refusals make a dead letter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusals(pub(crate) Option<NonZeroU32>);

/// Look for what would break a backend's promises here
///
/// Prints what it looked at and what it found, the worst first, each with what to do about it: a server that evicts keys
/// or forgets them in a restart, a clock that was set, rights that are missing, a disk that is full. It changes nothing.
/// Exits with 78 if there is a problem; warnings leave it at 0.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The backend of this URL, instead of --url and RINGFENCE_URL
    #[arg(value_name = "URL", id = "of")]
    pub(crate) of: Option<String>,
}

/// Make what locks need in a PostgreSQL database
///
/// Makes the schema of a postgres: URL, or brings it to this program's version, as the role that the URL names, which owns it
/// from then on. A role that is only to lock is let in with --grant-to. Calling it again changes nothing. Where the role that
/// locks may create schemas none of this is needed: its first connection makes it.
#[derive(Debug, Args)]
pub(crate) struct SetupArgs {
    /// The database, instead of --url and RINGFENCE_URL; ?schema= names another schema than ringfence
    #[arg(value_name = "URL", id = "of")]
    pub(crate) of: Option<String>,
    /// Let this role use the schema, and do nothing else there
    #[arg(long, value_name = "ROLE")]
    pub(crate) grant_to: Option<String>,
    /// Print all of it as a script for psql, and connect to nothing
    #[arg(long)]
    pub(crate) print: bool,
}

/// Print what each backend promises, and under which faults
#[derive(Debug, Args)]
pub(crate) struct GuaranteesArgs {
    /// Only the backend of this URL
    #[arg(value_name = "URL", id = "of")]
    pub(crate) of: Option<String>,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print a manual page, for man(1)
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Of this verb, as in `ringfence man record put`
    #[arg(value_name = "VERB")]
    pub(crate) verb: Vec<String>,
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

fn parse_upstream(text: &str) -> Result<Authority> {
    let invalid = |why: &str| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{why}: write http://host:port, as in http://127.0.0.1:8080"),
        )
    };
    let uri: Uri = text.parse().map_err(|_| invalid("it is no URL"))?;
    let authority = uri.authority().ok_or_else(|| invalid("it names no host"))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(invalid("TLS to the upstream is not spoken, put the gate beside it")),
        _ => return Err(invalid("its scheme is not http")),
    }
    if authority.as_str().contains('@')
        || authority.as_str().ends_with(':')
        || !matches!(uri.path_and_query().map(PathAndQuery::as_str), None | Some("/"))
    {
        return Err(invalid(
            "a host and a port are all it can have, and the path of each request is the client's",
        ));
    }
    Ok(authority.clone())
}

fn parse_gate_name(name: &str) -> Result<LockName> {
    LockName::new(format!("gate/{name}"))
}

fn parse_refusals(text: &str) -> Result<Refusals> {
    if text == "unlimited" {
        return Ok(Refusals(None));
    }
    let most = text.parse().map_err(|_| {
        Error::new(ErrorKind::InvalidRequest, "write a number from 1 on, or unlimited".to_owned())
    })?;
    Ok(Refusals(Some(most)))
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
