use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use ringfence::patterns::outbox::{
    Delivery, Grants, JsonLines, Outbox, RedisStreams, Sink, Status, Troubled, Webhook, Which,
};
use ringfence::{BackendUrl, BoxFuture, Result};
use serde::Serialize;
use tokio::sync::watch;

use crate::cli::{
    Global, OutboxRelayArgs, OutboxRetryArgs, OutboxSetupArgs, OutboxStatusArgs, OutboxUrlArgs, OutboxVerb,
};
use crate::exit_codes;
use crate::failure::Failure;
use crate::print::{self, duration, visible};
use crate::signals::Signals;

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
    let stop = async {
        tokio::select! {
            signal = signals.next() => drop(signal),
            // Another sink than standard output never breaks.
            Ok(_) = breaks.wait_for(Option::is_some) => {}
        }
    };
    let done = relay.run(sink, stop).await?;
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
