use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;
use ringfence::patterns::outbox::{
    Delivery, Grants, JsonLines, Outbox, RedisStreams, Sink, Status, Troubled, Webhook, Which,
};
use ringfence::{BackendUrl, BoxFuture, Error, ErrorKind, Result, parse_duration};
use serde::Serialize;
use tokio::sync::{oneshot, watch};

use crate::cli::Global;
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, duration, visible};
use crate::signals::Signals;

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
///   INSERT INTO ringfence_outbox.messages (topic, key, payload)
///       VALUES ('orders', '42', convert_to('{"state":"paid"}', 'UTF8'));
///
/// In SQLite the table is ringfence_outbox_messages, and a payload is a text as it stands.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct OutboxSetupArgs {
    #[command(flatten)]
    database: OutboxUrlArgs,
    /// Let this role enqueue, and nothing else (PostgreSQL)
    #[arg(long, value_name = "ROLE")]
    grant_to: Option<String>,
    /// Let this role relay, look, and put dead letters back (PostgreSQL)
    #[arg(long, value_name = "ROLE")]
    grant_relay_to: Option<String>,
    /// Print all of it as a script for psql or sqlite3, and connect to nothing
    #[arg(long)]
    print: bool,
}

/// Send messages, until SIGTERM, SIGINT, SIGQUIT or SIGHUP
///
/// At least once, and in order per key; several relays share the work. A message that is sent again has the same id, and an
/// attempt above 1. What the sink refuses is tried again with growing pauses, and is a dead letter after --refusals; what cannot be
/// sent because the sink is not there is tried again without end.
///
/// On a signal it ends what is under way and gives back its claim; a second one ends it at once. Killed, it loses nothing: what it had
/// sent and not settled is sent again when its claim is over. It logs to standard error; RINGFENCE_LOG says how much [default: ringfence=info].
#[derive(Debug, Args)]
pub(crate) struct OutboxRelayArgs {
    #[command(flatten)]
    database: OutboxUrlArgs,
    /// Where to: stdout (JSON lines), http://… or https://… (a webhook), redis://… or rediss://… (a stream for each topic)
    #[arg(long, value_name = "SINK", env = "RINGFENCE_OUTBOX_TO", hide_env_values = true)]
    to: String,
    /// Headers for the webhook, as Authorization and Content-Type, a line each: NAME: VALUE
    #[arg(long, value_name = "FILE")]
    headers: Option<PathBuf>,
    /// How many messages to claim at most, and so how many can come twice when it is killed
    #[arg(long, value_name = "N", default_value_t = 100)]
    batch: u32,
    /// How long a claim lasts: at least twice the timeout
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    claim: Duration,
    /// How long the sink may take for a message
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
    /// After how many refusals a message is a dead letter; unlimited: never, and its key waits
    #[arg(long, value_name = "N", default_value = "12", value_parser = parse_refusals)]
    refusals: Refusals,
}

/// Show how many messages are pending, waiting for another try, and dead
#[derive(Debug, Args)]
pub(crate) struct OutboxStatusArgs {
    #[command(flatten)]
    database: OutboxUrlArgs,
}

/// Put dead letters back, at the end of their keys' lines
#[derive(Debug, Args)]
pub(crate) struct OutboxRetryArgs {
    #[command(flatten)]
    database: OutboxUrlArgs,
    #[command(flatten)]
    which: OutboxWhichArgs,
}

/// Which dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct OutboxWhichArgs {
    /// All of them
    #[arg(long)]
    all: bool,
    /// Those of this key
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    key: Option<String>,
    /// This one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
}

/// Which database.
#[derive(Debug, Args)]
struct OutboxUrlArgs {
    /// The database, as postgres://user@host/database or sqlite:/some/file.db, instead of --url and RINGFENCE_URL
    #[arg(value_name = "URL", id = "of")]
    of: Option<String>,
}

/// How many refusals make a dead letter.
#[derive(Clone, Copy, Debug)]
struct Refusals(Option<NonZeroU32>);

/// What ends a relay. Ctrl-Z stops it as any program: its claim then lapses.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP];

#[derive(Serialize)]
struct Ready<'a> {
    url: &'a str,
    granted_to: Option<&'a str>,
    granted_relay_to: Option<&'a str>,
}

#[derive(Serialize)]
struct Script {
    script: String,
}

#[derive(Serialize)]
struct Seen<'a> {
    url: &'a str,
    #[serde(flatten)]
    status: &'a Status,
}

#[derive(Serialize)]
struct PutBack {
    put_back: u64,
}

/// Sets up, relays, looks, or puts dead letters back.
pub(crate) async fn run(verb: OutboxVerb, global: Global) -> Result<u8, Failure> {
    match verb {
        OutboxVerb::Setup(args) => setup(&args, &global).await,
        OutboxVerb::Relay(args) => relay(&args, &global).await,
        OutboxVerb::Status(args) => status(&args, &global).await,
        OutboxVerb::Retry(args) => retry(args, &global).await,
    }
}

fn url(args: &OutboxUrlArgs, global: &Global) -> Result<String, Failure> {
    args.of.clone().map_or_else(|| global.url(), Ok)
}

async fn setup(args: &OutboxSetupArgs, global: &Global) -> Result<u8, Failure> {
    let url = url(&args.database, global)?;
    let outbox = Outbox::open(&url)?;
    let (app, relay) = (args.grant_to.as_deref(), args.grant_relay_to.as_deref());
    let grants = app.into_iter().fold(Grants::none(), Grants::to_app);
    let grants = relay.into_iter().fold(grants, Grants::to_relay);
    if args.print {
        let script = outbox.setup_script(&grants)?;
        if global.json {
            print::json(&Script { script })?;
        } else {
            print::line(script.trim_end())?;
        }
        return Ok(exit_codes::OK);
    }
    outbox.setup(&grants).await?;
    let shown = BackendUrl::parse(&url)?.to_string();
    if global.json {
        print::json(&Ready { url: &shown, granted_to: app, granted_relay_to: relay })?;
    } else {
        let app = app.map(|role| format!(", the role {} may enqueue", visible(role))).unwrap_or_default();
        let relay = relay.map(|role| format!(", the role {} may relay", visible(role))).unwrap_or_default();
        print::line(&format!("the outbox of {} is ready{app}{relay}", visible(&shown)))?;
    }
    Ok(exit_codes::OK)
}

async fn relay(args: &OutboxRelayArgs, global: &Global) -> Result<u8, Failure> {
    let outbox = Outbox::open(&url(&args.database, global)?)?;
    let relay = outbox.relay().batch(args.batch)?.claim(args.claim, args.timeout)?.refusals(args.refusals.0);
    let (broken, mut breaks) = watch::channel(None);
    let sink = sink(&args.to, args.headers.as_deref(), broken)?;
    let signals = Signals::take(&SIGNALS)?;
    let asked = async {
        tokio::select! {
            signal = signals.next() => drop(signal),
            // Another sink than standard output never breaks.
            Ok(_) = breaks.wait_for(Option::is_some) => {}
        }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let mut relayed = pin!(relay.run(sink, async { drop(stopped.await) }));
    let done = tokio::select! {
        biased;
        done = &mut relayed => done,
        () = asked => {
            drop(stop);
            signals.unless_interrupted(relayed).await?
        }
    }?;
    if let Some(kind) = *breaks.borrow() {
        return Err(io::Error::from(kind).into());
    }
    let said = format!("{} delivered, {} refused, {} dead", done.delivered, done.refused, done.dead);
    global.messages().note(&said);
    Ok(exit_codes::OK)
}

/// Where to, by how it is written.
fn sink(
    to: &str,
    headers: Option<&Path>,
    broken: watch::Sender<Option<io::ErrorKind>>,
) -> Result<Arc<dyn Sink>, Failure> {
    let is_webhook = to.starts_with("http://") || to.starts_with("https://");
    if headers.is_some() && !is_webhook {
        return Err(Failure::new(exit_codes::USAGE, "--headers are for a webhook, http://… or https://…"));
    }
    if is_webhook {
        let mut webhook = Webhook::new(to)?;
        for (name, value) in headers.map(read_headers).transpose()?.unwrap_or_default() {
            webhook = webhook.header(&name, &value)?;
        }
        Ok(Arc::new(webhook))
    } else if to.starts_with("redis://") || to.starts_with("rediss://") {
        Ok(Arc::new(RedisStreams::new(to)?))
    } else if to == "stdout" {
        Ok(Arc::new(Stdout { lines: JsonLines::new(tokio::io::stdout()), broken }))
    } else {
        // It may have a password in it.
        let why = "--to is none of stdout, http://…, https://…, redis://… and rediss://…";
        Err(Failure::new(exit_codes::USAGE, why))
    }
}

/// The lines of a file of headers. Their values are secrets, and stand in no message.
fn read_headers(file: &Path) -> Result<Vec<(String, String)>, Failure> {
    let shown = file.display().to_string();
    let text = fs::read_to_string(file)
        .map_err(|why| Failure::new(exit_codes::USAGE, format!("--headers {}: {why}", visible(&shown))))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            let (name, value) = line.split_once(':').ok_or_else(|| {
                let why = format!("--headers {}: line {} is not NAME: VALUE", visible(&shown), at + 1);
                Failure::new(exit_codes::USAGE, why)
            })?;
            Ok((name.trim().to_owned(), value.trim().to_owned()))
        })
        .collect()
}

/// Standard output, which ends the relay when it breaks: nobody will ever read it again.
struct Stdout {
    lines: JsonLines<tokio::io::Stdout>,
    broken: watch::Sender<Option<io::ErrorKind>>,
}

impl fmt::Debug for Stdout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stdout")
    }
}

impl Sink for Stdout {
    fn deliver<'a>(&'a self, message: &'a Delivery) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            self.lines.deliver(message).await.inspect_err(|error| {
                let why = std::error::Error::source(error).and_then(|why| why.downcast_ref::<io::Error>());
                self.broken.send_replace(Some(why.map_or(io::ErrorKind::Other, io::Error::kind)));
            })
        })
    }
}

async fn status(args: &OutboxStatusArgs, global: &Global) -> Result<u8, Failure> {
    let url = url(&args.database, global)?;
    let status = Outbox::open(&url)?.status().await?;
    let shown = BackendUrl::parse(&url)?.to_string();
    if global.json {
        print::json(&Seen { url: &shown, status: &status })?;
    } else {
        print::line(&describe(&shown, &status))?;
    }
    Ok(exit_codes::OK)
}

fn describe(url: &str, status: &Status) -> String {
    let oldest =
        status.oldest_ms.map(|age| format!(", the oldest for {}", duration(Duration::from_millis(age))));
    let mut lines = vec![
        visible(url).into_owned(),
        format!("  pending  {}{}", status.pending, oldest.unwrap_or_default()),
        format!("  dead     {}", status.dead),
    ];
    for at_work in &status.relays {
        lines.push(format!("  relay    {} at work on {} lanes", visible(&at_work.relay), at_work.lanes));
    }
    let troubled: Vec<&Troubled> = status.waiting.iter().chain(&status.dead_letters).collect();
    if !troubled.is_empty() {
        let header = ["STATE", "ID", "TOPIC", "KEY", "REFUSED", "ERROR"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(header).chain(troubled.into_iter().map(row)).collect();
        lines.push(print::table(&rows));
    }
    lines.join("\n")
}

fn row(message: &Troubled) -> [String; 6] {
    [
        message.retry_in_ms.map_or_else(
            || "dead".to_owned(),
            |left| format!("in {}", duration(Duration::from_millis(left))),
        ),
        message.id.to_string(),
        message.topic.clone(),
        message.key.clone().unwrap_or_else(|| "-".to_owned()),
        message.refusals.to_string(),
        message.error.clone(),
    ]
}

async fn retry(args: OutboxRetryArgs, global: &Global) -> Result<u8, Failure> {
    let which = match (args.which.key, args.which.id) {
        (Some(key), _) => Which::Key(key),
        (None, Some(id)) => Which::Id(id.parse()?),
        (None, None) => Which::All,
    };
    let put_back = Outbox::open(&url(&args.database, global)?)?.retry(&which).await?;
    if put_back == 0 && which != Which::All {
        return Err(Failure::new(exit_codes::NOTHING_THERE, "there is no such dead letter"));
    }
    if global.json {
        print::json(&PutBack { put_back })?;
    } else {
        print::line(&format!("dead letters put back: {put_back}"))?;
    }
    Ok(exit_codes::OK)
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
