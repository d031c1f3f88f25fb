use std::ffi::{OsStr, OsString};
use std::future::pending;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::Duration;

use clap::Args;
use ringfence::patterns::{Begun, Idempotency, Pruned, RESULT_MAX, Session};
use ringfence::{Contention, ErrorKind, LockName, parse_duration};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::child::Ended;
use crate::cli::{Global, LeaseArgs, OnLost, PatienceArgs};
use crate::exit_codes;
use crate::failure::Failure;
use crate::job::{End, Orders, SIGNALS};
use crate::lock;
use crate::print;
use crate::signals::{Signals, Source};

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
///
/// With --prune it runs nothing, and removes the outputs of all keys whose retention is over: nothing else does. Keys under which
/// somebody works are left alone, and so is what is stored at that moment. Have it run now and then, from one place.
#[derive(Debug, Args)]
#[command(
    override_usage = "ringfence idempotent [OPTIONS] <KEY> [--] <COMMAND>...\n       ringfence idempotent [OPTIONS] --prune",
    after_long_help = exit_codes::HELP
)]
pub(crate) struct IdempotentArgs {
    /// What tells this request from others; only its hash is stored [default: the command and its arguments]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    fingerprint: Option<OsString>,
    /// For how long the output is kept, with a unit, as in 24h; after it the key is new
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = parse_duration)]
    retention: Duration,
    /// Remove what is past its retention
    #[arg(
        long,
        conflicts_with_all = [
            "fingerprint", "retention", "nonblock", "wait", "conflict_exit_code", "ttl", "stakes", "label", "key", "command"
        ]
    )]
    prune: bool,
    #[command(flatten)]
    patience: PatienceArgs,
    #[command(flatten)]
    lease: LeaseArgs,
    /// Which request: 1 to 243 bytes of UTF-8 without control characters; its lock is idempotency/KEY
    #[arg(required_unless_present = "prune")]
    key: Option<String>,
    /// The command and its arguments; it is not passed through a shell
    #[arg(required_unless_present = "prune", trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command, or prints what it printed when it was run under this key; or removes what is over.
pub(crate) async fn run(mut args: IdempotentArgs, global: &Global) -> Result<u8, Failure> {
    // Without --prune there is one.
    let Some(key) = args.key.take() else { return prune(global).await };
    let name = Idempotency::lock_of(&key)?;
    let signals = Signals::take(&SIGNALS)?;
    let command = std::mem::take(&mut args.command);
    let orders = Orders::take(command, OnLost::Term, global, &signals, args.patience.to_connect()).await?;
    let outcome = run_once(&orders, &name, &key, &args, global, &signals).await;
    lock::close(&orders.locks, &name, global.messages()).await;
    orders.pass_on_interrupt(&outcome)?;
    Ok(outcome?.code())
}

async fn run_once(
    orders: &Orders,
    name: &LockName,
    key: &str,
    args: &IdempotentArgs,
    global: &Global,
    signals: &Signals,
) -> Result<Ended, Failure> {
    let command = orders.command.join(OsStr::new("\0"));
    let wait =
        if args.patience.nonblock { Duration::ZERO } else { args.patience.wait.unwrap_or(Duration::MAX) };
    let mut request = orders
        .locks
        .idempotency(key)
        .fingerprint(args.fingerprint.as_ref().unwrap_or(&command).as_bytes())
        .retention(args.retention)
        .stakes(args.lease.stakes())
        .wait(wait);
    if let Some(ttl) = args.lease.ttl {
        request = request.ttl(ttl.as_duration());
    }
    if let Some(label) = args.lease.label.as_deref().or(orders.label()) {
        request = request.label(label);
    }
    let begun = lock::announced(&orders.locks, name, global.messages(), request.begin());
    match signals.unless_interrupted(begun).await?? {
        Begun::Done(output) => {
            let mut out = io::stdout().lock();
            out.write_all(&output)?;
            out.flush()?;
            say_if_cut(output.len(), global);
            Ok(Ended::Exited(0))
        }
        Begun::InFlight(others) => Err(args.patience.in_vain(in_flight(key, &others))),
        Begun::Started(session) => work(orders, session, global, signals).await,
    }
}

/// Runs the command under the key and stores what it prints, if it ends well.
async fn work(
    orders: &Orders,
    mut session: Session,
    global: &Global,
    signals: &Signals,
) -> Result<Ended, Failure> {
    let (output, written) = Output::collect()?;
    let guard = session.guard().expect("a session that has just begun has its guard");
    let environment = [("RINGFENCE_IDEMPOTENCY_KEY", session.key().to_owned())];
    let end = match orders.start_into(Some(written), guard, Source::Queue(signals), &environment) {
        Ok(job) => job.supervise(pending()).await,
        Err(failure) => Err(failure),
    };
    if let Ok(End::ByItself(Ended::Exited(0), _)) = end {
        // All of it is there when everybody has closed it who inherited it, as for a shell's $(…).
        let Printed { kept, unread } = signals.unless_interrupted(output.all()).await??;
        session.complete(&kept).await?;
        say_if_cut(kept.len(), global);
        return unread.map_or(Ok(Ended::Exited(0)), |error| Err(error.into()));
    }
    let (key, remaining) = (session.key().to_owned(), guard.remaining());
    let name = guard.name().clone();
    let released = lock::while_it_lasts(&name, remaining, session.release()).await;
    let printed = signals.unless_interrupted(output.all()).await;
    let ended = match end? {
        End::ByItself(ended, _) => ended,
        End::Told | End::Lost(_) => {
            let lost = format!("the lease on the idempotency key {key} was lost while the command ran");
            return Err(Failure::new(exit_codes::LOST, lost));
        }
    };
    printed??;
    match released {
        Err(error) if error.kind() == ErrorKind::Lost => Err(error.into()),
        Err(error) => {
            global.messages().note(&format!("{name} stays held until its TTL is over: {error}"));
            Ok(ended)
        }
        Ok(()) => Ok(ended),
    }
}

/// What `--prune --json` prints.
#[derive(Debug, Default, Serialize)]
struct PrunedView {
    looked_at: usize,
    removed: usize,
    unreadable: usize,
}

/// Removes the outputs of all keys whose retention is over.
async fn prune(global: &Global) -> Result<u8, Failure> {
    let locks = global.connect().await?;
    let (mut all, mut after) = (PrunedView::default(), None);
    loop {
        let Pruned { looked_at, removed, unreadable, next, .. } = locks.prune_idempotency_keys(after).await?;
        all.looked_at += looked_at;
        all.removed += removed;
        all.unreadable += unreadable;
        after = next;
        if after.is_none() {
            break;
        }
    }
    locks.close().await?;
    if all.unreadable > 0 {
        global.messages().note(&format!(
            "records under idempotency/ that are no results, and stay: {}; RINGFENCE_LOG=warn names them",
            all.unreadable
        ));
    }
    if global.json {
        print::json(&all)?;
    } else {
        print::line(&format!("results removed: {} of {}", all.removed, all.looked_at))?;
    }
    Ok(exit_codes::OK)
}

fn in_flight(key: &str, others: &Contention) -> String {
    let who = others.holders.first().map_or_else(|| "somebody".to_owned(), ToString::to_string);
    format!("{who} works on the request with the idempotency key {key}: try again later, with the same key")
}

/// A result that is as long as one can be may be the beginning of a longer one.
fn say_if_cut(kept: usize, global: &Global) {
    if kept == RESULT_MAX {
        global
            .messages()
            .note(&format!("only the first {RESULT_MAX} bytes of the command's output are kept"));
    }
}

/// The standard output of a command, which goes on to ours while it comes.
struct Output {
    printed: oneshot::Receiver<io::Result<Printed>>,
}

/// What a command has printed.
struct Printed {
    /// The beginning of it, at most [`RESULT_MAX`] bytes.
    kept: Vec<u8>,
    /// Why the rest of it did not go to our standard output.
    unread: Option<io::Error>,
}

impl Output {
    /// Collects what is written into the descriptor that this returns.
    fn collect() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = io::pipe()?;
        let (sender, printed) = oneshot::channel();
        // A thread of its own, because whoever reads our output may be slow, and the lease has to be watched meanwhile.
        thread::spawn(move || sender.send(pass_on(reader)));
        Ok((Self { printed }, writer.into()))
    }

    /// All that was written, once everybody has closed it.
    async fn all(self) -> io::Result<Printed> {
        self.printed.await.unwrap_or_else(|_| Err(io::Error::other("the command's output was not collected")))
    }
}

fn pass_on(mut from: PipeReader) -> io::Result<Printed> {
    let mut printed = Printed { kept: Vec::new(), unread: None };
    let mut chunk = [0; 8 * 1024];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return Ok(printed),
            Ok(read) => &chunk[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let room = RESULT_MAX - printed.kept.len();
        printed.kept.extend_from_slice(&read[..read.len().min(room)]);
        // The command has its work to do, whether somebody reads what it prints or not.
        if printed.unread.is_none() {
            let mut out = io::stdout().lock();
            printed.unread = out.write_all(read).and_then(|()| out.flush()).err();
        }
    }
}
